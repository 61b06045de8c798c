"""The Trio client."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from kisfeed import places, seams
from kisfeed.client.core import ClientCore
from kisfeed.client.tasks import AsyncClient
from kisfeed.turns import Turn

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Awaitable, Callable

_READ: Final = 65_536


@asynccontextmanager
async def open_client(
    *,
    socket: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    client: str | None = None,
    role: str = "reader",
    wait: bool = False,
    heartbeats: bool = False,
    dial: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
) -> AsyncGenerator[Client, None]:
    """Connect to the daemon and stay with it, however often it restarts.

    ::

        async with kisfeed.open_client() as kf:
            await kf.subscribe("trade.krx.005930")
            async for event in kf: ...

    There is no nursery inside: the caller's exceptions pass as they are.

    Args:
        socket: the daemon's socket; by default that of the profile (``kisfeed.places``).
        profile: which daemon, by its profile's name.
        client: what this program is called in ``kisfeed clients``; by default the script's name.
        role: ``reader``, or ``trader`` for a program that places orders.
        wait: wait for a daemon instead of failing when there is none at first.
        heartbeats: yield a Heartbeat every 5 s too; the last one is always ``kf.heartbeat``.
        dial: opens the stream instead, for tests; raises ``OSError`` when nobody listens.

    Raises:
        NoDaemon: nobody listens there.
        ServerRefused: the daemon does not speak this protocol, or not with this user.
        BadFrame: what listens there is no kisfeed daemon.
    """
    path = str(places.socket_path(socket, profile)) if dial is None else ""

    async def dial_socket() -> trio.abc.Stream:
        try:
            return await trio.open_unix_socket(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error

    core = ClientCore(
        client or places.program_name(),
        jitter=seams.system_rng().random,
        role=role,
        wait=wait,
        heartbeats=heartbeats,
    )
    kf = Client(core, dial or dial_socket)
    try:
        await kf.greet()
        yield kf
    finally:
        await kf.aclose()


class Client(AsyncClient):
    """A connection to the daemon that comes back by itself; made by :func:`open_client`."""

    def __init__(self, core: ClientCore, dial: Callable[[], Awaitable[trio.abc.Stream]]) -> None:
        super().__init__(core)
        self._open = dial

    def _new_lock(self) -> trio.Lock:
        return trio.Lock()

    def _new_turn(self) -> Turn:
        return Turn()

    def _now(self) -> float:
        return trio.current_time()

    async def _sleep_until(self, deadline: float) -> None:
        await trio.sleep_until(max(deadline, trio.current_time()))

    async def _dial(self) -> _StreamLink:
        return _StreamLink(await self._open())

    async def _checkpoint(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()


class _StreamLink:
    """A Trio stream as a :class:`~kisfeed.client.tasks.Link`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self, until: float) -> bytes | None:
        with trio.move_on_at(until):
            try:
                return bytes(await self._stream.receive_some(_READ))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionError(str(error.__cause__ or error)) from error
        return None

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionError(str(error.__cause__ or error)) from error

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)
