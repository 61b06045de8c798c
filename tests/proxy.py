"""A TCP proxy between two real programs, and what can go wrong with a line."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator

_HOST: Final = "127.0.0.1"
_READ: Final = 65_536
_ABORT: Final = struct.pack("ii", 1, 0)
_SECRET: Final = re.compile(rb'"(?:approval_key|access_token|iv|key)": ?"([^"]{16,})"')
_LONGEST_SECRET: Final = 1024


@attrs.define(eq=False)
class _Link:
    """One connection through the proxy; ``near`` is who dialled.

    Attributes:
        left: bytes that still pass towards ``near`` before the line is cut; None for no cut.
        rude: it ends with RST instead of FIN.
        orphaned_s: KIS does not hear of the end before so many seconds.
    """

    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope
    left: int | None = None
    rude: bool = False
    orphaned_s: float = 0.0

    def end(self, *, rude: bool) -> None:
        self.rude = rude
        self.scope.cancel()


@attrs.define(eq=False)
class FaultProxy:
    """Passes bytes on, until told otherwise. What was done to it lasts until :meth:`heal`.

    Attributes:
        delay_s: every read waits up to this, by lot, before it is passed on.
        chopped: every read is passed on in two pieces.
        dials: when each connection was accepted.
        secrets: what KIS gave out that must never be seen anywhere.
    """

    target: int
    rng: random.Random
    port: int = 0
    delay_s: float = 0.0
    chopped: bool = False
    dials: list[float] = attrs.field(factory=list)
    secrets: set[str] = attrs.field(factory=set)
    _links: list[_Link] = attrs.field(factory=list)
    _passing: trio.Event | None = None
    _open: trio.Event | None = None
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def cut(self, after: int) -> None:
        """Every line ends without a close frame after so many more bytes from KIS."""
        for link in self._links:
            link.left = after

    def reset(self) -> None:
        """Every line is reset at once, on both sides."""
        for link in list(self._links):
            link.end(rude=True)

    def orphan(self, seconds: float) -> None:
        """Every line is reset for who dialled; KIS goes on sending for so long."""
        for link in list(self._links):
            link.orphaned_s = seconds
            link.end(rude=True)

    def stall(self) -> None:
        """Nothing passes either way, also on new lines; whoever sends is acknowledged."""
        if self._passing is None:
            self._passing = trio.Event()

    def refuse(self) -> None:
        """Nobody listens."""
        if self._open is None:
            self._open = trio.Event()
            self._change()

    def heal(self) -> None:
        """Nothing more goes wrong; what waited passes."""
        self.delay_s, self.chopped = 0.0, False
        for link in self._links:
            link.left = None
        if self._passing is not None:
            self._passing.set()
            self._passing = None
        if self._open is not None:
            self._open.set()
            self._open = None

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and carry, until cancelled."""
        async with trio.open_nursery() as carriers:
            while True:
                listeners = await trio.open_tcp_listeners(self.port, host=_HOST)
                self.port = listeners[0].socket.getsockname()[1]
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._accept, listeners, carriers)
                    while self._open is None:
                        await self._changed.wait()
                    accepting.cancel_scope.cancel()
                while self._open is not None:
                    await self._open.wait()

    async def _accept(self, listeners: list[trio.SocketListener], carriers: trio.Nursery) -> None:
        await trio.serve_listeners(self._carry, listeners, handler_nursery=carriers)

    async def _carry(self, near: trio.SocketStream) -> None:
        self.dials.append(trio.current_time())
        try:
            far = await trio.open_tcp_stream(_HOST, self.target)
        except OSError:
            await _hang_up(near, rude=True)
            return
        async with trio.open_nursery() as nursery:
            link = _Link(near, far, nursery.cancel_scope)
            self._links.append(link)
            nursery.start_soon(self._pump, link, near, far)
            nursery.start_soon(self._pump, link, far, near)
        self._links.remove(link)
        await _hang_up(near, rude=link.rude)
        with trio.move_on_after(link.orphaned_s), contextlib.suppress(trio.BrokenResourceError):
            while await far.receive_some(_READ):
                pass
        await _hang_up(far, rude=link.rude)

    async def _pump(self, link: _Link, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        tail = b""
        try:
            while data := await source.receive_some(_READ):
                if source is link.far:
                    tail = self._overhear(tail + data)
                while self._passing is not None:
                    await self._passing.wait()
                if self.delay_s:
                    await trio.sleep(self.rng.uniform(0, self.delay_s))
                if source is link.far and link.left is not None:
                    data = data[: link.left]
                    link.left -= len(data)
                await self._pass(sink, data)
                if link.left == 0:
                    link.end(rude=False)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            link.end(rude=True)

    async def _pass(self, sink: trio.SocketStream, data: bytes | bytearray) -> None:
        if self.chopped and len(data) > 1:
            place = self.rng.randrange(1, len(data))
            await sink.send_all(data[:place])
            await trio.sleep(0.001)
            data = data[place:]
        await sink.send_all(data)

    def _overhear(self, data: bytes) -> bytes:
        if b'"' in data:
            self.secrets.update(found.decode() for found in _SECRET.findall(data))
        return data[-_LONGEST_SECRET:]


async def _hang_up(stream: trio.SocketStream, *, rude: bool) -> None:
    if rude:
        # It may be gone already.
        with contextlib.suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    await trio.aclose_forcefully(stream)


@contextlib.asynccontextmanager
async def open_proxy(target: int, rng: random.Random) -> AsyncGenerator[FaultProxy]:
    """A proxy in front of a port of this machine, for as long as the block lasts."""
    proxy = FaultProxy(target, rng)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
