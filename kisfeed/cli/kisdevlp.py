"""``kis_devlp.yaml``, which every KIS user already has, read into profiles.

The file is flat ``key: text``, in the user's home, and holds both environments. It is read as
text only: an account like 01234567 must not become an octal number.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs
import yaml

from kisfeed.cli.i18n import _
from kisfeed.cli.settings import (
    APPKEY_LENGTH,
    APPSECRET_LENGTH,
    did_you_mean,
    key_problem,
)
from kisfeed.config import HOSTS, Environment, Secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KNOWN: Final = (
    "my_app", "my_sec", "paper_app", "paper_sec", "my_htsid", "my_acct_stock", "my_acct_future",
    "my_paper_stock", "my_paper_future", "my_prod", "prod", "ops", "vps", "vops", "my_token",
    "my_agent",
)  # fmt: skip

_OFFICIAL: Final = {
    "prod": HOSTS[Environment.REAL].rest,
    "ops": HOSTS[Environment.REAL].ws,
    "vps": HOSTS[Environment.PAPER].rest,
    "vops": HOSTS[Environment.PAPER].ws,
}
_ACCOUNT: Final = re.compile(r"\d{8}")
_PRODUCT: Final = re.compile(r"\d{2}")
_FUTURES_PRODUCTS: Final = ("03", "08")


@attrs.frozen
class Entry:
    """One value of the file and the line it stands on."""

    text: str
    line: int


@attrs.frozen
class Finding:
    """Something the reader should know about one line.

    Attributes:
        line: from 1; 0 where something is missing.
        key: the file's key.
        what: in words.
        fatal: the profile it belongs to cannot be written.
    """

    line: int
    key: str
    what: str
    fatal: bool


@attrs.frozen
class Profile:
    """What one environment's profile will hold."""

    environment: Environment
    appkey: Secret
    appsecret: Secret
    hts_id: str
    account: Secret


@attrs.frozen
class Imported:
    """The profiles that can be written, and everything that was noticed, by line."""

    profiles: tuple[Profile, ...]
    findings: tuple[Finding, ...]


def read(text: str) -> Imported:
    """Read the content of a ``kis_devlp.yaml``; never raises, whatever it holds."""
    findings: list[Finding] = []
    entries = _entries(text, findings)
    if entries is None:
        return Imported((), tuple(findings))
    _check_common(entries, findings)
    profiles = [
        profile
        for profile in (
            _profile(Environment.REAL, "my_app", "my_sec", "my_acct", entries, findings),
            _profile(Environment.PAPER, "paper_app", "paper_sec", "my_paper", entries, findings),
        )
        if profile is not None
    ]
    if len(profiles) == len({p.appkey for p in profiles}):
        return Imported(tuple(profiles), tuple(sorted(findings, key=lambda f: f.line)))
    line = entries["paper_app"].line
    same = _("is the same key as my_app: real and paper have one each")
    findings.append(Finding(line, "paper_app", same, fatal=True))
    return Imported((), tuple(sorted(findings, key=lambda f: f.line)))


def _entries(text: str, findings: list[Finding]) -> dict[str, Entry] | None:
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        what = _("is not YAML: {error}").format(error=getattr(error, "problem", None) or error)
        findings.append(Finding(line, "", what, fatal=True))
        return None
    if not isinstance(root, yaml.MappingNode):
        findings.append(Finding(1, "", _("holds no `key: value` lines"), fatal=True))
        return None
    entries: dict[str, Entry] = {}
    for key_node, value_node in root.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key not in KNOWN:
            what = _("unknown key, not imported.") + did_you_mean(key, list(KNOWN))
            findings.append(Finding(line, key, what, fatal=False))
        elif not isinstance(value_node, yaml.ScalarNode):
            findings.append(Finding(line, key, _("must be one value"), fatal=True))
        else:
            if key in entries:
                what = _("stands on line {line} too; this one counts").format(
                    line=entries[key].line
                )
                findings.append(Finding(line, key, what, fatal=False))
            entries[key] = Entry(value_node.value.strip(), line)
    return entries


def _is_filled(entry: Entry | None) -> bool:
    """The official file comes with Korean placeholders for everything that is to be filled in."""
    return entry is not None and bool(entry.text) and entry.text.isascii()


def _check_common(entries: Mapping[str, Entry], findings: list[Finding]) -> None:
    if not _is_filled(entries.get("my_htsid")):
        line = entries["my_htsid"].line if "my_htsid" in entries else 0
        what = _("no HTS ID: order notices will not be available")
        findings.append(Finding(line, "my_htsid", what, fatal=False))
    for key, official in _OFFICIAL.items():
        entry = entries.get(key)
        if entry is not None and entry.text.rstrip("/") != official:
            what = _("is not KIS's address {official}; not imported").format(official=official)
            findings.append(Finding(entry.line, key, what, fatal=False))


def _profile(
    environment: Environment,
    app: str,
    sec: str,
    accounts: str,
    entries: Mapping[str, Entry],
    findings: list[Finding],
) -> Profile | None:
    appkey, appsecret = entries.get(app), entries.get(sec)
    if not _is_filled(appkey) and not _is_filled(appsecret):
        what = _("not filled in: no profile {name}").format(name=environment.value)
        findings.append(Finding(appkey.line if appkey else 0, app, what, fatal=False))
        return None
    wrong = list(_key_findings(app, appkey, sec, appsecret))
    findings += wrong
    account = _account(accounts, entries, findings)
    if wrong or appkey is None or appsecret is None:
        return None
    hts_id = entries.get("my_htsid")
    return Profile(
        environment,
        Secret(appkey.text),
        Secret(appsecret.text),
        hts_id.text if hts_id is not None and _is_filled(hts_id) else "",
        Secret(account),
    )


def _key_findings(
    app: str, appkey: Entry | None, sec: str, appsecret: Entry | None
) -> Iterator[Finding]:
    lengths = (len(appkey.text) if appkey else 0, len(appsecret.text) if appsecret else 0)
    if appkey is not None and lengths == (APPSECRET_LENGTH, APPKEY_LENGTH):
        what = _("{app} and {sec} are swapped").format(app=app, sec=sec)
        yield Finding(appkey.line, app, what, fatal=True)
        return
    for key, entry, length in ((app, appkey, APPKEY_LENGTH), (sec, appsecret, APPSECRET_LENGTH)):
        if entry is None or not entry.text:
            yield Finding(entry.line if entry else 0, key, _("is missing"), fatal=True)
        elif (wrong := key_problem(entry.text, length)) is not None:
            yield Finding(entry.line, key, wrong, fatal=True)


def _account(prefix: str, entries: Mapping[str, Entry], findings: list[Finding]) -> str:
    """``12345678-01``, or nothing where it cannot be made; only orders need it."""
    for key in (f"{prefix}_stock", f"{prefix}_future"):
        entry = entries.get(key)
        if entry is not None and _is_filled(entry) and not _ACCOUNT.fullmatch(entry.text):
            what = _("must be the account's first 8 digits; not imported")
            findings.append(Finding(entry.line, key, what, fatal=False))
    product = entries.get("my_prod")
    suffix = product.text if product is not None else "01"
    if product is not None and not _PRODUCT.fullmatch(suffix):
        what = _("must be the account's last 2 digits, such as 01; no account imported")
        if not any(f.key == "my_prod" for f in findings):
            findings.append(Finding(product.line, "my_prod", what, fatal=False))
        return ""
    key = f"{prefix}_future" if suffix in _FUTURES_PRODUCTS else f"{prefix}_stock"
    number = entries.get(key)
    if number is None or not _is_filled(number):
        what = _("no account: needed for orders only")
        findings.append(Finding(number.line if number else 0, key, what, fatal=False))
        return ""
    return f"{number.text}-{suffix}" if _ACCOUNT.fullmatch(number.text) else ""
