"""How the client commands reach the daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kisfeed.client.sync import Client


def connect(
    command: str,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
    *,
    role: str = "reader",
) -> Client:
    """Connect to the profile's daemon, as a ``trader`` for what places orders.

    Raises:
        ConfigError: which daemon is meant cannot be told.
        NoDaemon: nobody listens there.
    """
    from kisfeed.client import sync

    path = socket_path(profile, config_file, socket)
    return sync.connect(socket=path, client=f"kisfeed {command}", role=role)


def socket_path(profile: str | None, config_file: Path | None, socket: Path | None) -> Path:
    """The daemon's socket: the one given, else the profile's.

    Raises:
        ConfigError: which daemon is meant cannot be told.
    """
    if socket is None and profile is None and config_file is None:
        given = os.environ.get("KISFEED_SOCKET")
        socket = Path(given) if given else None
    if socket is not None:
        return socket
    from kisfeed import places
    from kisfeed.cli import settings

    config = settings.load(purpose=settings.Purpose.CLIENT, profile=profile, file=config_file)
    return config.socket_path(places.runtime_folder())
