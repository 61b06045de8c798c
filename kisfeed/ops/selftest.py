"""What can be known to be wrong before the first dial.

KIS answers a wrong environment, key or topic with codes that look like other things, and counts
the dial all the same. Every check is a function of values; :func:`examine` runs them all and
:func:`cached_master` reads the master files that somebody put into a cache folder.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from kisfeed.config import HOSTS, Endpoints, Environment
from kisfeed.errors import UnknownTopic
from kisfeed.kis import symbols
from kisfeed.kis.catalogue import Catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from kisfeed.config import Config, Credentials
    from kisfeed.kis.catalogue import Topic

_ORDER_NOTICE: Final = "notice.krx."
_ACCOUNT: Final = re.compile(r"\d{8}(?:-?\d{2})?")
_PLACEHOLDER: Final = re.compile(
    r"(.)\1{11}|your[-_]?app|app[-_]?key|app[-_]?secret|[^!-~]", re.IGNORECASE
)
_OVERSEAS_FILE: Final = "*mst.cod"


class Check(enum.StrEnum):
    """What is looked at, in this order."""

    HOSTS = "hosts"
    KEYS = "keys"
    TR_IDS = "tr_ids"
    TOPICS = "topics"
    HTS_ID = "hts_id"
    MASTER = "master"


class Problem(enum.StrEnum):
    """What is wrong; the first group ends the start, the second is told."""

    OTHER_ENVIRONMENT = "other_environment"
    TR_ID_MISMATCH = "tr_id_mismatch"
    NOT_ON_PAPER = "not_on_paper"
    UNKNOWN_TOPIC = "unknown_topic"
    BAD_SYMBOL = "bad_symbol"
    BAD_HTS_ID = "bad_hts_id"

    UNKNOWN_ADDRESS = "unknown_address"
    PLACEHOLDER = "placeholder"
    SAME_KEYS = "same_keys"
    ACCOUNT_AS_HTS_ID = "account_as_hts_id"
    TOO_MANY_PINNED = "too_many_pinned"
    NOT_LISTED = "not_listed"
    HALTED = "halted"
    MASTER_UNREADABLE = "master_unreadable"


_REFUSES: Final = frozenset(
    {
        Problem.OTHER_ENVIRONMENT,
        Problem.TR_ID_MISMATCH,
        Problem.NOT_ON_PAPER,
        Problem.UNKNOWN_TOPIC,
        Problem.BAD_SYMBOL,
        Problem.BAD_HTS_ID,
    }
)


@attrs.frozen
class Finding:
    """One thing that is wrong.

    Attributes:
        check: which check found it.
        problem: what it is.
        setting: the configuration key that is meant.
        details: for the text; never a secret.
    """

    check: Check
    problem: Problem
    setting: str
    details: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def refuses(self) -> bool:
        """A start would come to nothing; else it is worth a warning."""
        return self.problem in _REFUSES


def check_hosts(environment: Environment, configured: Endpoints) -> list[Finding]:
    """Addresses that belong to the other environment, or to nobody known.

    A key of one environment at the other's host is refused there with codes that name something
    else. Empty addresses are the environment's own.
    """
    if environment is Environment.SIM:
        return []
    other = Environment.REAL if environment is Environment.PAPER else Environment.PAPER
    found = []
    for name in ("rest", "ws"):
        address = _place(getattr(configured, name))
        ours, theirs = (_place(getattr(HOSTS[e], name)) for e in (environment, other))
        if address is None or address == ours:
            continue
        same_host = ours is not None and address[0] == ours[0]
        problem = Problem.UNKNOWN_ADDRESS
        if theirs is not None and (
            address == theirs or (address[0] == theirs[0] and not same_host)
        ):
            problem = Problem.OTHER_ENVIRONMENT
        details = {"address": getattr(configured, name), "other": other.value}
        found.append(Finding(Check.HOSTS, problem, f"endpoints.{name}", details))
    return found


def _place(address: str) -> tuple[str, int | None] | None:
    if not address:
        return None
    parts = urlsplit(address)
    return parts.hostname or "", parts.port


def check_keys(environment: Environment, credentials: Credentials) -> list[Finding]:
    """Keys of the right length that nobody was given.

    Whether a key is of real or of paper trading cannot be told by its shape.
    """
    if environment is Environment.SIM:
        return []
    found = [
        Finding(Check.KEYS, Problem.PLACEHOLDER, f"credentials.{name}")
        for name in ("appkey", "appsecret")
        if _PLACEHOLDER.search(getattr(credentials, name).reveal())
    ]
    appkey, appsecret = credentials.appkey.reveal(), credentials.appsecret.reveal()
    if appkey and appkey in appsecret:
        found.append(Finding(Check.KEYS, Problem.SAME_KEYS, "credentials.appsecret"))
    return found


def check_tr_ids(environment: Environment, catalogue: Catalogue) -> list[Finding]:
    """TR ids on the wire that are not this environment's: paper has its own for the notices."""
    return [
        Finding(Check.TR_IDS, Problem.TR_ID_MISMATCH, "environment", {"tr_id": wire})
        for wire, tr in catalogue.trs.items()
        if wire != (tr.tr_id_paper if environment is Environment.PAPER else tr.tr_id)
    ]


def check_topics(
    pinned: Sequence[str], catalogue: Catalogue, everything: Catalogue, slots: int
) -> list[Finding]:
    """Pinned topics that cannot be registered, and more of them than there are slots.

    Args:
        pinned: as configured.
        catalogue: of this environment.
        everything: of real trading: tells what only paper lacks.
        slots: how many registrations are left for them.
    """
    setting = "subscriptions.pinned"
    found = []
    for name in pinned:
        try:
            catalogue.topic(name)
        except UnknownTopic as exc:
            problem, details = _unknown(name, exc.why, everything)
            found.append(Finding(Check.TOPICS, problem, setting, details))
    wanted = len(dict.fromkeys(pinned))
    if wanted > slots:
        details = {"count": str(wanted), "slots": str(slots)}
        found.append(Finding(Check.TOPICS, Problem.TOO_MANY_PINNED, setting, details))
    return found


def _unknown(name: str, why: str, everything: Catalogue) -> tuple[Problem, dict[str, str]]:
    details = {"topic": name, "why": why, "meant": ""}
    try:
        everything.topic(name)
    except UnknownTopic:
        pass
    else:
        return Problem.NOT_ON_PAPER, details
    channel, _, rest = name.partition(".")
    venue, _, symbol = rest.partition(".")
    for tr in everything.trs.values():
        if (tr.channel, tr.venue) == (channel, venue):
            complaint = symbols.complaint(symbol, tr.key_pattern)
            if complaint is not None and complaint.suggestion is not None:
                details["meant"] = f"{channel}.{venue}.{complaint.suggestion}"
            return Problem.BAD_SYMBOL, details
    return Problem.UNKNOWN_TOPIC, details


def check_hts_id(hts_id: str, catalogue: Catalogue) -> list[Finding]:
    """An HTS ID that is none. KIS drops the session of a wrong one."""
    if not hts_id:
        return []
    try:
        catalogue.topic(_ORDER_NOTICE + hts_id)
    except UnknownTopic:
        return [Finding(Check.HTS_ID, Problem.BAD_HTS_ID, "credentials.hts_id")]
    if _ACCOUNT.fullmatch(hts_id):
        return [Finding(Check.HTS_ID, Problem.ACCOUNT_AS_HTS_ID, "credentials.hts_id")]
    return []


def check_listed(topics: Iterable[Topic], master: symbols.Master) -> list[Finding]:
    """Symbols that the master files at hand do not list, or list as halted.

    The files may be of yesterday, so this is never a reason to refuse.
    """
    found = []
    for topic in topics:
        venue, symbol = topic.tr.venue, topic.key[1]
        listing = master.find(venue, symbol)
        problem = None
        if master.knows(venue, symbol) is False:
            problem = Problem.NOT_LISTED
        elif listing is not None and listing.halted:
            problem = Problem.HALTED
        if problem is not None:
            details = {"topic": topic.name}
            found.append(Finding(Check.MASTER, problem, "subscriptions.pinned", details))
    return found


def examine(
    config: Config, tr_data: Mapping[str, Any], slots: int, master: symbols.Master | None
) -> dict[Check, list[Finding]]:
    """Every check with what it found, in the order of :class:`Check`.

    Args:
        config: the profile.
        tr_data: the parsed ``kis/realtime.json``.
        slots: how many registrations a session may hold.
        master: what is listed; None where no master file is at hand, and then nothing is checked
            against it.
    """
    catalogue = Catalogue(tr_data, config.environment)
    everything = Catalogue(tr_data, Environment.REAL)
    pinned, hts_id = config.subscriptions.pinned, config.credentials.hts_id
    found = {
        Check.HOSTS: check_hosts(config.environment, config.endpoints),
        Check.KEYS: check_keys(config.environment, config.credentials),
        Check.TR_IDS: check_tr_ids(config.environment, catalogue),
        Check.TOPICS: check_topics(pinned, catalogue, everything, slots - bool(hts_id)),
        Check.HTS_ID: check_hts_id(hts_id, catalogue),
    }
    if master is not None:
        refused = {finding.details["topic"] for finding in found[Check.TOPICS] if finding.refuses}
        topics = [catalogue.topic(name) for name in pinned if name not in refused]
        found[Check.MASTER] = check_listed(topics, master)
    return found


def cached_master(folders: Sequence[Path]) -> tuple[symbols.Master | None, list[Finding]]:
    """The master files in the first of *folders* that has any, and those that cannot be read.

    They are KIS's own, unpacked: ``kospi_code.mst``, ``kosdaq_code.mst``, ``konex_code.mst``,
    ``nasmst.cod`` and its like.
    """
    for folder in folders:
        files: list[symbols.MasterFile] = []
        unreadable: list[Finding] = []
        domestic = [(folder / f"{board.value}_code.mst", board) for board in symbols.Board]
        overseas = [(path, None) for path in sorted(folder.glob(_OVERSEAS_FILE))]
        for path, board in [*domestic, *overseas]:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError:
                data = b""
            file = (
                symbols.parse_overseas(data)
                if board is None
                else symbols.parse_domestic(board, data)
            )
            if file.listings:
                files.append(file)
            else:
                details = {"file": str(path)}
                unreadable.append(
                    Finding(Check.MASTER, Problem.MASTER_UNREADABLE, "state.dir", details)
                )
        if files or unreadable:
            return (symbols.Master(files) if files else None), unreadable
    return None, []
