"""Where a program finds its profile and the profile's daemon, and what it calls itself there.

A profile is one appkey: ``<config folder>/<profile>.toml`` and ``<runtime folder>/<profile>.sock``.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from kisfeed.errors import ConfigError

SIM_PROFILE: Final = "sim"  # what `kisfeed serve --sim` serves; needs no configuration
PROFILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def config_folder() -> Path:
    """Where profiles are kept, one ``<profile>.toml`` each."""
    # Not needed where the profile or the path is given, and half of what a client would import.
    import platformdirs  # noqa: PLC0415

    return platformdirs.user_config_path("kisfeed")


def state_folder(given: str = "") -> Path:
    """Where budget, tokens, limits and the order journal live: *given*, else the user's own."""
    import platformdirs  # noqa: PLC0415  # as above

    return Path(given) if given else platformdirs.user_state_path("kisfeed")


def runtime_folder() -> Path:
    """Where the sockets of this user's daemons live; 0700, made by the daemon."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given) / "kisfeed"
    # What a login session is told by name and a cron job is not: both must find one daemon.
    session = Path(f"/run/user/{os.getuid()}")
    if session.is_dir():
        return session / "kisfeed"
    return Path(tempfile.gettempdir()) / f"kisfeed-{os.getuid()}"


def configured(folder: Path) -> list[str]:
    """The profiles in *folder*, sorted."""
    return sorted(p.stem for p in folder.glob("*.toml") if PROFILE_NAME.fullmatch(p.stem))


def profile_name(profile: str | None = None) -> str:
    """The profile that is meant: the argument, ``KISFEED_PROFILE``, else the only one configured.

    With none configured it is the simulated daemon's.

    Raises:
        ConfigError: several are configured; nothing guesses between real and paper.
    """
    named = profile or os.environ.get("KISFEED_PROFILE")
    if named:
        return named
    known = configured(config_folder())
    if len(known) > 1:
        raise ConfigError(("profile", f"several are configured ({', '.join(known)}): name one"))
    return known[0] if known else SIM_PROFILE


def socket_path(socket: str | os.PathLike[str] | None = None, profile: str | None = None) -> Path:
    """The daemon's socket: the argument, ``KISFEED_SOCKET``, else the profile's.

    That is where its configuration says (``gateway.socket``), else ``<runtime>/<profile>.sock``.
    A profile given as an argument is meant: it wins over ``KISFEED_SOCKET``.

    Raises:
        ConfigError: as :func:`profile_name`, or the profile's file cannot be read.
    """
    given = socket or (None if profile else os.environ.get("KISFEED_SOCKET"))
    if given:
        return Path(given)
    name = profile_name(profile)
    configured_path = os.environ.get("KISFEED_GATEWAY_SOCKET") or _configured_socket(name)
    return Path(configured_path) if configured_path else runtime_folder() / f"{name}.sock"


def _configured_socket(profile: str) -> str:
    """``gateway.socket`` of *profile*; empty where it says nothing or is not configured."""
    file = config_folder() / f"{profile}.toml"
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError((str(file), f"cannot be read: {exc}")) from exc
    if "gateway" not in text:
        return ""
    import tomllib  # noqa: PLC0415  # few have one to read

    try:
        gateway = tomllib.loads(text).get("gateway")
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError((str(file), f"cannot be read: {exc}")) from exc
    path = gateway.get("socket") if isinstance(gateway, dict) else None
    return path if isinstance(path, str) else ""


def program_name() -> str:
    """What this program calls itself when its caller gives no name: the script's."""
    return Path(sys.argv[0]).stem or "python"
