"""From files, the environment and flags to one :class:`kisfeed.config.Config`.

Every key of ``kisfeed.toml`` can also be given as ``KISFEED_<SECTION>_<KEY>``. A flag wins over
the environment, the environment over a systemd credential, that over the file, and the file over
the default. Every problem is found before any is told, each with its key and where it was written.
"""

from __future__ import annotations

import contextlib
import difflib
import enum
import functools
import ipaddress
import os
import re
import stat
import tomllib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs
import cattrs

from kisfeed import errors
from kisfeed.cli.i18n import _
from kisfeed.config import Config, Environment, Secret, Session
from kisfeed.core.limiter import PROFILES
from kisfeed.limits import Window
from kisfeed.places import PROFILE_NAME, SIM_PROFILE, config_folder, configured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PREFIX: Final = "KISFEED_"
SIMULATED_ACCOUNT: Final = "12345678-01"
APPKEY_LENGTH: Final = 36
APPSECRET_LENGTH: Final = 180
ACCOUNT: Final = re.compile(r"\d{8}-\d{2}")
KIS_WS_HOST: Final = "ops.koreainvestment.com"  # the only host plain ws may go to

# What a configuration may do to the session's discipline: slow it down, never speed it up.
_AT_LEAST_DEFAULT: Final = (
    "min_lifetime_s", "backoff_base_s", "backoff_cap_s", "local_backoff_base_s",
    "local_backoff_cap_s", "approval_retry_s", "breaker_pauses_s", "in_use_hold_s",
    "in_use_waits_s", "in_use_closed_wait_s", "quarantine_base_s", "quarantine_cap_s",
    "dwell_s", "same_interest_s", "quiet_suspect_s", "quiet_dead_s",
)  # fmt: skip
_AT_MOST_DEFAULT: Final = (
    "young_sessions_to_trip", "barren_loops_to_trip", "ack_retries", "swap_burst",
    "swaps_per_hour",
)  # fmt: skip


_LIST_EXAMPLES: Final = {
    str: '["a", "b"]',
    float: "[1.0, 2.0]",
    Window: "[{count = 2, seconds = 60}]",
}


class Purpose(enum.Enum):
    """What the configuration is read for."""

    SERVE = enum.auto()
    """A daemon that speaks with KIS or a simulator at the configured address."""

    SERVE_SIM = enum.auto()
    """A daemon with its own simulator: nothing is required."""

    CLIENT = enum.auto()
    """A program that only needs to find the daemon's socket."""


class Layer(enum.IntEnum):
    """The sources of a value, the strongest last."""

    FILE = enum.auto()
    CREDENTIAL = enum.auto()
    ENVIRONMENT = enum.auto()
    FLAG = enum.auto()


@attrs.frozen
class Origin:
    """Where a value was written, in words."""

    layer: Layer
    where: str


@attrs.define(eq=False)
class _Values:
    """Raw values by key path, and where each came from; later sources replace earlier ones."""

    tree: dict[str, Any] = attrs.Factory(dict)
    origins: dict[str, Origin] = attrs.Factory(dict)
    problems: list[tuple[str, str]] = attrs.Factory(list)

    def put(self, path: str, value: object, origin: Origin) -> None:
        section, dot, key = path.rpartition(".")
        place = self.tree.setdefault(section, {}) if dot else self.tree
        if isinstance(place, dict):
            place[key] = value
        self.origins[path] = origin

    def wrong(self, key: str, what: str) -> None:
        origin = self.origins.get(key)
        self.problems.append((key, f"{what} ({origin.where})" if origin else what))


@functools.cache
def leaves() -> dict[str, Any]:
    """Every key's path (``session.min_lifetime_s``) with its type, as the classes declare it."""
    found: dict[str, Any] = {}
    for field in attrs.fields(attrs.resolve_types(Config)):
        if field.name == "profile":  # chosen, never read from a file
            continue
        if field.type is not None and attrs.has(field.type):
            section = attrs.fields(attrs.resolve_types(field.type))
            found |= {f"{field.name}.{inner.name}": inner.type for inner in section}
        else:
            found[field.name] = field.type
    return found


def _secret_paths() -> list[str]:
    return [path for path, kind in leaves().items() if kind is Secret]


def variable(path: str) -> str:
    """The environment variable of a key: ``KISFEED_SESSION_MIN_LIFETIME_S``."""
    return PREFIX + path.replace(".", "_").upper()


def did_you_mean(name: str, known: list[str]) -> str:
    """A suggestion to put behind "unknown", or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return " " + _("Did you mean {name}?").format(name=close[0]) if close else ""


def check_private(path: Path) -> str | None:
    """What is wrong with the owner or mode of a file that holds secrets; None if nothing is."""
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0):
        return _("{path} holds secrets and belongs to another user").format(path=path)
    if stat.S_IMODE(found.st_mode) & 0o077:
        return _("{path} holds secrets and others may read it: run chmod 600 {path}").format(
            path=path
        )
    return None


@attrs.frozen
class Choice:
    """Which profile is meant, and its file (None: it has none)."""

    profile: str
    file: Path | None


def choose(
    profile: str | None,
    file: Path | None,
    environ: Mapping[str, str],
    folder: Path,
    purpose: Purpose,
) -> Choice:
    """Pick the profile: named, else the only one configured; never guess between two.

    Raises:
        ConfigError: the name is malformed or unknown, nothing is configured, or two are.
    """
    name = profile or environ.get(f"{PREFIX}PROFILE") or None
    if name is not None and not PROFILE_NAME.fullmatch(name):
        raise errors.ConfigError(
            (
                "profile",
                _("{name} is not a profile's name: use a-z, 0-9, - and _").format(name=name),
            )
        )
    given = file or (Path(environ[f"{PREFIX}CONFIG"]) if f"{PREFIX}CONFIG" in environ else None)
    if given is not None:
        stem = given.stem if PROFILE_NAME.fullmatch(given.stem) else "default"
        return Choice(name or stem, given)
    known = configured(folder)
    if name is None and purpose is not Purpose.SERVE_SIM and len(known) == 1:
        name = known[0]
    if name is not None:
        if name in known:
            return Choice(name, folder / f"{name}.toml")
        if name == SIM_PROFILE or variable("environment") in environ:
            return Choice(name, None)
        listed = ", ".join(known) or _("none")
        raise errors.ConfigError(
            (
                "profile",
                _("there is no profile {name} in {folder}; configured: {listed}.").format(
                    name=name, folder=folder, listed=listed
                )
                + did_you_mean(name, known),
            )
        )
    if purpose is Purpose.SERVE_SIM:
        return Choice(SIM_PROFILE, None)
    if known:
        raise errors.ConfigError(
            (
                "profile",
                _("several are configured ({listed}): say which with --profile").format(
                    listed=", ".join(known)
                ),
            )
        )
    if variable("environment") in environ:
        return Choice("default", None)
    if purpose is Purpose.CLIENT:
        return Choice(SIM_PROFILE, None)
    raise errors.ConfigError(
        (
            "profile",
            _(
                "nothing is configured in {folder}: run `kisfeed init`,"
                " or `kisfeed serve --sim` to try it without an account"
            ).format(folder=folder),
        )
    )


def load(
    *,
    purpose: Purpose,
    profile: str | None = None,
    file: Path | None = None,
    flags: Mapping[str, tuple[str, str]] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Config:
    """Read one profile's configuration.

    Args:
        purpose: what it is for; decides what is required.
        profile: ``--profile``.
        file: ``--config``.
        flags: key path to (value as text, the flag's name).
        environ: the environment; the process's own if None.
        folder: where profiles live; the user's own if None.

    Raises:
        ConfigError: with every problem that was found.
    """
    environ = os.environ if environ is None else environ
    folder = config_folder() if folder is None else folder
    choice = choose(profile, file, environ, folder, purpose)
    values = _Values()
    if choice.file is not None:
        _read_file(choice.file, values)
    _read_credentials(environ.get("CREDENTIALS_DIRECTORY"), values)
    _read_environment(environ, values)
    for path, (text, flag) in (flags or {}).items():
        _put_text(values, path, text, Origin(Layer.FLAG, flag))
    _read_secret_files(values)
    if purpose is Purpose.SERVE_SIM:
        _put_text(values, "environment", "sim", Origin(Layer.FLAG, "--sim"))
        for secret in ("credentials.appkey", "credentials.appsecret"):
            if secret not in values.origins:
                values.put(secret, f"simulated-{choice.profile}", Origin(Layer.FLAG, "--sim"))
        if "credentials.account" not in values.origins:
            values.put("credentials.account", SIMULATED_ACCOUNT, Origin(Layer.FLAG, "--sim"))
    config = _structure(values, choice.profile)
    if config is not None:
        for key, what in rules(config, purpose):
            values.wrong(key, what)
    if values.problems or config is None:
        raise errors.ConfigError(*values.problems)
    return config


def _read_file(path: Path, values: _Values) -> None:
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except FileNotFoundError:
        values.wrong(str(path), _("there is no such file"))
        return
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        values.wrong(str(path), _("cannot be read: {error}").format(error=error))
        return
    lines = _lines(text)
    for key, value in tree.items():
        if not isinstance(value, dict):
            values.put(key, value, _written(path, lines.get(key)))
            continue
        values.tree.setdefault(key, {})
        values.origins[key] = _written(path, lines.get(key))
        for inner, inner_value in value.items():
            values.put(f"{key}.{inner}", inner_value, _written(path, lines.get(f"{key}.{inner}")))
    if any(values.origins.get(secret) for secret in _secret_paths()):
        complaint = check_private(path)
        if complaint is not None:
            values.wrong("credentials", complaint)


def _written(path: Path, line: int | None) -> Origin:
    if line is None:
        return Origin(Layer.FILE, path.name)
    return Origin(Layer.FILE, _("{file} line {line}").format(file=path.name, line=line))


def _lines(text: str) -> dict[str, int]:
    """The line of each section and key; a guide for people, so multi-line strings may fool it."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            section = f"{header[1]}."
            found.setdefault(header[1], number)
        elif key := re.match(r"\s*([\w.-]+)\s*=", line):
            found.setdefault(section + key[1], number)
    return found


def _read_credentials(directory: str | None, values: _Values) -> None:
    """Take systemd's ``LoadCredential=appkey:...``: the file is named after the key."""
    if directory is None:
        return
    for path in _secret_paths():
        name = path.rpartition(".")[2]
        file = Path(directory) / name
        with contextlib.suppress(FileNotFoundError):
            origin = Origin(Layer.CREDENTIAL, _("credential {name}").format(name=name))
            values.put(path, file.read_text("utf-8").strip(), origin)


def _read_environment(environ: Mapping[str, str], values: _Values) -> None:
    known = {variable(path): path for path in leaves()}
    known |= {f"{variable(path)}_FILE": f"{path}_file" for path in _secret_paths()}
    sections = tuple(
        f"{PREFIX}{path.partition('.')[0].upper()}_" for path in leaves() if "." in path
    )
    for name, text in environ.items():
        if name in known:
            _put_text(values, known[name], text, Origin(Layer.ENVIRONMENT, name))
        elif name.startswith(sections):
            # Other KISFEED_ names are left alone: container platforms inject their own
            # (KISFEED_PORT, KISFEED_SERVICE_HOST) for a service of that name.
            values.wrong(name, _("unknown variable.") + did_you_mean(name, list(known)))


def _put_text(values: _Values, path: str, text: str, origin: Origin) -> None:
    """Put a value that came as text, read as its key's type."""
    kind = leaves().get(path, str)
    values.origins[path] = origin
    try:
        value = _from_text(kind, text)
    except ValueError as error:
        values.wrong(path, str(error))
        return
    values.put(path, value, origin)


def _from_text(kind: Any, text: str) -> object:
    if kind is bool:
        answers = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in answers:
            raise ValueError(_("must be true or false"))
        return answers[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(_must_be(kind)) from None
    if kind is Window:
        count, _slash, seconds = text.partition("/")
        return {"count": _from_text(int, count), "seconds": _from_text(float, seconds)}
    if _is_sequence(kind):
        inner = typing.get_args(kind)[0]
        return [_from_text(inner, part.strip()) for part in text.split(",") if part.strip()]
    return text


def _read_secret_files(values: _Values) -> None:
    """Turn every ``<secret>_file = path`` into the secret."""
    for path in _secret_paths():
        section, _dot, key = path.rpartition(".")
        place = values.tree.get(section)
        if not isinstance(place, dict) or f"{key}_file" not in place:
            continue
        name = place.pop(f"{key}_file")
        origin = values.origins[f"{path}_file"]
        if not isinstance(name, str):
            values.wrong(f"{path}_file", _must_be(str))
            continue
        if key in place and values.origins[path].layer >= origin.layer:
            if values.origins[path].layer == origin.layer:
                both = _("give {key} or {key}_file, not both").format(key=key)
                values.wrong(f"{path}_file", both)
            continue
        file = Path(name).expanduser()
        try:
            complaint = check_private(file)
            text = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            complaint, text = str(error), ""
        if complaint is not None:
            values.wrong(f"{path}_file", complaint)
        values.put(path, text, origin)


def _is_sequence(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _must_be(kind: Any) -> str:
    if kind is bool:
        return _("must be true or false")
    if kind is int:
        return _("must be a whole number")
    if kind is float:
        return _("must be a number")
    if _is_sequence(kind):
        return _("must be a list, such as {example}").format(
            example=_LIST_EXAMPLES[typing.get_args(kind)[0]]
        )
    return _("must be a text in quotes")


def _strictly(kind: type, *accepted: type) -> Callable[[object, object], object]:
    """A cattrs hook that takes values of these types only: "5" is not a number, true no 1."""

    def hook(value: object, _kind: object) -> object:
        is_stray_bool = isinstance(value, bool) and bool not in accepted
        if not isinstance(value, accepted) or is_stray_bool:
            raise ValueError(_must_be(kind))
        return kind(value)

    return hook


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(bool, _strictly(bool, bool))
    converter.register_structure_hook(int, _strictly(int, int))
    converter.register_structure_hook(float, _strictly(float, int, float))
    converter.register_structure_hook(str, _strictly(str, str))

    def secret(value: object, _kind: object) -> Secret:
        if not isinstance(value, str):
            raise ValueError(_must_be(str))  # noqa: TRY004  # told like every other wrong value
        return Secret(value)

    def environment(value: object, _kind: object) -> Environment:
        try:
            return Environment(value)  # type: ignore[arg-type]  # any value is tried
        except ValueError:
            raise ValueError(_("must be one of real, paper, sim")) from None

    def sequence(value: object, kind: Any) -> tuple[object, ...]:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, list):
            raise ValueError(_must_be(kind))  # noqa: TRY004
        try:
            return tuple(converter.structure(item, inner) for item in value)
        except (ValueError, cattrs.BaseValidationError):
            raise ValueError(_must_be(kind)) from None

    converter.register_structure_hook(Secret, secret)
    converter.register_structure_hook(Environment, environment)
    converter.register_structure_hook_func(_is_sequence, sequence)
    return converter


def _structure(values: _Values, profile: str) -> Config | None:
    if "profile" in values.tree:
        values.wrong("profile", _("is the file's own name; leave it out"))
        del values.tree["profile"]
    try:
        config = _converter().structure(values.tree, Config)
    except cattrs.ClassValidationError as error:
        for path, inner in _walk(error, ""):
            if isinstance(inner, cattrs.ForbiddenExtraKeysError):
                _tell_unknown(values, path, inner)
            elif isinstance(inner, cattrs.StructureHandlerNotFoundError):
                raise
            else:
                what = str(inner) if isinstance(inner, ValueError) else _("must be a section")
                values.wrong(path, what)
        return None
    return attrs.evolve(config, profile=profile)


def _walk(error: cattrs.ClassValidationError, path: str) -> Iterator[tuple[str, Exception]]:
    noted, bare = error.group_exceptions()
    for inner, note in noted:
        here = f"{path}.{note.name}".lstrip(".")
        if isinstance(inner, cattrs.ClassValidationError):
            yield from _walk(inner, here)
        else:
            yield here, inner
    for inner in bare:
        yield path, inner


def _tell_unknown(values: _Values, path: str, error: cattrs.ForbiddenExtraKeysError) -> None:
    keys = [field.name for field in attrs.fields(error.cl) if field.name != "profile"]
    if path == "credentials":
        keys += [f"{secret.rpartition('.')[2]}_file" for secret in _secret_paths()]
    for extra in sorted(error.extra_fields):
        values.wrong(f"{path}.{extra}".lstrip("."), _("unknown key.") + did_you_mean(extra, keys))


def rules(config: Config, purpose: Purpose) -> Iterator[tuple[str, str]]:
    """What is wrong with *config* that its types cannot say: (key, what), in order."""
    yield from _positive(config)
    if config.session.rotation not in ("lru", "hold"):
        yield ("session.rotation", _("must be one of lru, hold"))
    if config.rest.profile not in PROFILES:
        yield ("rest.profile", _("must be one of {names}").format(names=", ".join(PROFILES)))
    if config.notify.post and config.notify.command:
        yield ("notify", _("give post or command, not both"))
    if config.notify.post and urlsplit(config.notify.post.reveal()).scheme not in {"http", "https"}:
        yield ("notify.post", _("must be an http or https address"))
    if config.environment is not Environment.SIM:
        yield from _tightened(config.session)
    yield from _endpoint_rules(config, purpose)
    if config.environment is not Environment.SIM:
        yield from _credential_rules(config, required=purpose is Purpose.SERVE)


def _positive(config: Config) -> Iterator[tuple[str, str]]:
    for path, kind in leaves().items():
        section, _dot, key = path.rpartition(".")
        value = getattr(getattr(config, section) if section else config, key)
        numbers: tuple[float, ...] = ()
        if kind in (int, float):
            numbers = (value,)
        elif kind == tuple[float, ...]:
            numbers = value
        elif kind == tuple[Window, ...]:
            numbers = tuple(n for window in value for n in (window.count, window.seconds))
        if any(number <= 0 for number in numbers):
            yield (path, _("must be greater than 0"))
        if kind == tuple[float, ...] and not value:
            yield (path, _("must not be empty"))


def _tightened(session: Session) -> Iterator[tuple[str, str]]:
    default = Session()
    for name in _AT_LEAST_DEFAULT:
        ours, least = getattr(session, name), getattr(default, name)
        pairs = zip(ours, least, strict=False) if isinstance(ours, tuple) else [(ours, least)]
        if any(mine < lowest for mine, lowest in pairs):
            yield (
                f"session.{name}",
                _("may not be less than {bound}: KIS blocks keys that hurry").format(
                    bound=_shown(least)
                ),
            )
    for name in _AT_MOST_DEFAULT:
        if getattr(session, name) > getattr(default, name):
            yield (
                f"session.{name}",
                _("may not be more than {bound}: KIS blocks keys that hurry").format(
                    bound=_shown(getattr(default, name))
                ),
            )
    if session.time_scale != 1:
        yield ("session.time_scale", _("is for environment sim only"))


def _shown(bound: object) -> str:
    if isinstance(bound, tuple):
        return "[" + ", ".join(_shown(item) for item in bound) + "]"
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _endpoint_rules(config: Config, purpose: Purpose) -> Iterator[tuple[str, str]]:
    simulated = config.environment is Environment.SIM
    if purpose is Purpose.SERVE_SIM and (config.endpoints.rest or config.endpoints.ws):
        yield ("endpoints", _("serve --sim brings its own simulator: leave them out"))
        return
    for name, allowed in (("rest", "http"), ("ws", "ws")):
        path = f"endpoints.{name}"
        address = getattr(config.endpoints, name)
        if not address:
            if simulated and purpose is Purpose.SERVE:
                yield (path, _("needed for environment sim (what `kisfeed sim` prints)"))
            continue
        try:
            parts = urlsplit(address)
            host, _port = parts.hostname or "", parts.port
        except ValueError as error:
            yield (path, _("is not an address: {error}").format(error=error))
            continue
        if not host or parts.path not in ("", "/") or parts.query or parts.username:
            yield (path, _("must look like {scheme}://host:port").format(scheme=allowed))
        elif simulated and (parts.scheme != allowed or not _is_loopback(host)):
            yield (
                path,
                _("environment sim speaks plain {scheme} to this machine only").format(
                    scheme=allowed
                ),
            )
        elif not simulated and name == "rest" and parts.scheme != "https":
            yield (path, _("must be https:// here"))
        elif not simulated and name == "ws" and (parts.scheme, host) != ("ws", KIS_WS_HOST):
            yield (path, _("must be ws://{host}:port here").format(host=KIS_WS_HOST))


def key_problem(value: str, length: int) -> str | None:
    """Why KIS cannot have given *value* as a key of this *length*; None if it can, or is empty."""
    if not value.isascii():
        return _("still holds a placeholder")
    if value and len(value) != length:
        return _("has {found} characters; KIS gives {length}").format(
            found=len(value), length=length
        )
    return None


def _credential_rules(config: Config, *, required: bool) -> Iterator[tuple[str, str]]:
    credentials = config.credentials
    appkey, appsecret = credentials.appkey.reveal(), credentials.appsecret.reveal()
    if len(appkey) == APPSECRET_LENGTH and len(appsecret) == APPKEY_LENGTH:
        yield ("credentials", _("appkey and appsecret are swapped"))
        return
    for name, value, length in (
        ("appkey", appkey, APPKEY_LENGTH),
        ("appsecret", appsecret, APPSECRET_LENGTH),
    ):
        what = _("is missing") if required and not value else key_problem(value, length)
        if what is not None:
            yield (f"credentials.{name}", what)
    account = credentials.account.reveal()
    if (account or config.orders.enabled) and not ACCOUNT.fullmatch(account):
        yield ("credentials.account", _("must look like 12345678-01"))
