"""systemd's notification protocol (sd_notify(3)): ready, alive, stopping.

One datagram to the Unix socket that ``NOTIFY_SOCKET`` names. Without it nothing is sent, so the
daemon need not know whether systemd started it.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@attrs.define(eq=False)
class Notifier:
    """Tells the service manager what this process does.

    Attributes:
        address: the manager's socket, ``@`` first for an abstract one; None tells nobody.
        watchdog_s: the manager ends a process that stays silent for so long; None if it does not.
    """

    address: str | None = None
    watchdog_s: float | None = None

    def tell(self, **fields: str) -> None:
        """Send fields such as ``READY="1"`` or ``STATUS="..."``; a full or absent manager is fine.

        The socket is a datagram one on this machine: the send does not wait.
        """
        if self.address is None:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        path = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(message.encode(), path)
            except OSError:
                # Nobody reads it, or not fast enough. A missed WATCHDOG is told again in time.
                return

    async def keep_alive(self, status: Callable[[], str]) -> None:
        """Tell that the event loop runs, twice in every watchdog period, until cancelled.

        A loop that stalls stops telling, which is what the manager waits for. A daemon that waits
        out its breaker is alive and says so.
        """
        while True:
            alive = {} if self.watchdog_s is None else {"WATCHDOG": "1"}
            self.tell(STATUS=status(), **alive)
            await trio.sleep((self.watchdog_s or 60.0) / 2)


def from_environment(environ: Mapping[str, str] = os.environ) -> Notifier:
    """The manager that started this process, if one did (``NOTIFY_SOCKET``, ``WATCHDOG_USEC``)."""
    address = environ.get("NOTIFY_SOCKET") or None
    if address is not None and not address.startswith(("/", "@")):
        address = None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        meant_for = int(environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        microseconds, meant_for = 0, os.getpid()
    watched = microseconds > 0 and meant_for == os.getpid()
    return Notifier(address, microseconds / 1e6 if watched else None)
