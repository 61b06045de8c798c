"""The asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from kisfeed import blocking, places
from kisfeed.client.core import ClientCore
from kisfeed.client.tasks import AsyncClient

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

_READ: Final = 65_536
_CLOSE_S: Final = 1.0


@asynccontextmanager
async def connect(
    *,
    socket: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    client: str | None = None,
    role: str = "reader",
    wait: bool = False,
    heartbeats: bool = False,
) -> AsyncGenerator[Client, None]:
    """Connect to the daemon and stay with it, however often it restarts.

    ::

        async with kisfeed.aio.connect() as kf:
            await kf.subscribe("trade.krx.005930")
            async for event in kf: ...

    Args:
        socket: the daemon's socket; by default that of the profile (``kisfeed.places``).
        profile: which daemon, by its profile's name.
        client: what this program is called in ``kisfeed clients``; by default the script's name.
        role: ``reader``, or ``trader`` for a program that places orders.
        wait: wait for a daemon instead of failing when there is none at first.
        heartbeats: yield a Heartbeat every 5 s too; the last one is always ``kf.heartbeat``.

    Raises:
        NoDaemon: nobody listens there.
        ServerRefused: the daemon does not speak this protocol, or not with this user.
        BadFrame: what listens there is no kisfeed daemon.
    """
    core = ClientCore(
        client or places.program_name(),
        jitter=blocking.jitter,
        role=role,
        wait=wait,
        heartbeats=heartbeats,
    )
    kf = Client(core, str(places.socket_path(socket, profile)))
    try:
        await kf.greet()
        yield kf
    finally:
        await kf.aclose()


class Client(AsyncClient):
    """A connection to the daemon that comes back by itself; made by :func:`connect`."""

    def __init__(self, core: ClientCore, path: str) -> None:
        super().__init__(core)
        self._path = path
        self._loop = asyncio.get_running_loop()

    def _new_lock(self) -> asyncio.Lock:
        return asyncio.Lock()

    def _now(self) -> float:
        return self._loop.time()

    async def _sleep_until(self, deadline: float) -> None:
        await asyncio.sleep(max(deadline - self._loop.time(), 0))

    async def _dial(self) -> _StreamLink:
        return _StreamLink(*await asyncio.open_unix_connection(self._path, limit=_READ))

    async def _checkpoint(self) -> None:
        # Whatever is at hand came with one read; the next read is the checkpoint. And a lock that
        # was waited for has let a cancellation in.
        return


class _StreamLink:
    """An asyncio stream as a :class:`~kisfeed.client.tasks.Link`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, until: float) -> bytes | None:
        try:
            async with asyncio.timeout_at(None if until == math.inf else until):
                return await self._reader.read(_READ)
        except TimeoutError:
            return None

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        try:
            await self._writer.drain()
        except asyncio.CancelledError:
            # Closing alone would still send what is left of it.
            self._writer.transport.abort()
            raise

    async def close(self) -> None:
        self._writer.close()
        # What was sent goes out first, an order perhaps; a daemon that is stuck takes nothing.
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_CLOSE_S):
                await self._writer.wait_closed()
        self._writer.transport.abort()
