"""Sending: at once where the socket takes it, else by a writer of that one client's.

:meth:`Fanout.flush` is the last step of a tick's way and has no checkpoint: waking a writer task
costs several times what a non-blocking ``send`` does. Only a full socket starts a writer, which
then joins what has piled up.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Final

import attrs
import trio

from kisfeed.gateway.unixsocket import DirectStream
from kisfeed.kfp.messages import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kisfeed.core.outbox import Outbox
    from kisfeed.core.streams import Subscriber
    from kisfeed.gateway.unixsocket import SendsAtOnce

CHUNK_BYTES: Final = 65_536
_HIGH_WATER_BYTES: Final = 65_536  # of unsent answers; above it no more requests are read
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


@attrs.define(eq=False)
class Link:
    """The sending half of one client's connection.

    A link that ends by itself cancels the nursery it was given; ``verdict`` then holds the error
    to tell, or None if nobody is left to be told.

    Attributes:
        verdict: why the link ended by itself.
        busy: a writer task is at work; everything else waits in the outbox.
    """

    outbox: Outbox[bytes]
    _stream: trio.abc.Stream
    _nursery: trio.Nursery
    _write_deadline_s: float
    verdict: ErrorCode | None = attrs.field(default=None, init=False)
    busy: bool = attrs.field(default=False, init=False)
    _socket: SendsAtOnce | None = attrs.field(default=None, init=False)
    _rest: bytes = attrs.field(default=b"", init=False)
    _rest_since: float = attrs.field(default=0.0, init=False)
    _cut: bool = attrs.field(default=False, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _nap: trio.CancelScope | None = attrs.field(default=None, init=False)
    _heartbeat: Callable[[], bytes] | None = attrs.field(default=None, init=False)
    _wrote: trio.Event | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if isinstance(self._stream, DirectStream):
            self._socket = self._stream.socket

    def flush(self, now: float) -> None:
        """Send what may go; never waits. Does nothing while a writer is at work."""
        if self._ended:
            return
        if self.outbox.overflowed:
            self.end(ErrorCode.SLOW_CONSUMER)
            return
        if self.busy:
            return
        box = self.outbox
        if self._socket is not None:
            items = box.take(now, CHUNK_BYTES)
            alone = len(items) == 1 and self._heartbeat is None
            data = items[0] if alone else self._joined(items)
            if data:
                try:
                    sent = self._socket.send(data, _NO_SIGNAL)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self.end(None)
                    return
                if sent < len(data):
                    self._rest = data[sent:]
                    self._rest_since = now
                    self._start_writer()
                    return
            if box.drained:
                return
        due = box.next_due()
        if due <= now or self._heartbeat is not None:
            self._start_writer()
        elif due < math.inf:
            self._nap_until(due)

    def heartbeat(self, make: Callable[[], bytes], now: float) -> None:
        """Send what *make* returns behind the next chunk, so that its counters fit that place."""
        self._heartbeat = make
        self.flush(now)

    def end(self, verdict: ErrorCode | None) -> None:
        """Nothing more is sent; cancels the nursery. Only the first call counts."""
        if not self._ended:
            self._ended = True
            self.verdict = verdict
            self._nursery.cancel_scope.cancel()

    def age_ms(self, now: float) -> int:
        """How long the oldest bytes that the kernel has not taken have waited, milliseconds."""
        waited = int((now - self._rest_since) * 1000) if self._rest else 0
        return max(waited, self.outbox.age_ms(now))

    async def room(self) -> None:
        """Wait until few enough answers are unsent for another request to be worth reading."""
        while self.outbox.control_bytes > _HIGH_WATER_BYTES:
            self._wrote = trio.Event()
            await self._wrote.wait()

    async def finish(self, last_words: bytes, *, queued: bool) -> None:
        """Write what is cut, then what is queued, then *last_words*; give up on any trouble.

        Call it when no writer runs any more, and bound its time.

        Args:
            last_words: whole frames.
            queued: False skips what the outbox holds.
        """
        self._ended = True
        try:
            await self._write()
            while queued and (chunk := b"".join(self.outbox.take(trio.current_time()))):
                self._rest = chunk
                await self._write()
            self._rest = last_words
            await self._write()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            # The client is gone; there is nobody to tell.
            self._rest = b""

    def _joined(self, items: list[bytes]) -> bytes:
        if self._heartbeat is not None:
            items.append(self._heartbeat())
            self._heartbeat = None
        return b"".join(items)

    def _start_writer(self) -> None:
        self.busy = True
        self._nursery.start_soon(self._writer)

    async def _writer(self) -> None:
        try:
            while True:
                if not self._rest:
                    self._rest_since = trio.current_time()
                    self._rest = self._joined(self.outbox.take(self._rest_since, CHUNK_BYTES))
                    if not self._rest:
                        break
                with trio.move_on_after(self._write_deadline_s) as deadline:
                    await self._write()
                if deadline.cancelled_caught:
                    self.end(ErrorCode.SLOW_CONSUMER)
                    return
                if self._wrote is not None:
                    self._wrote.set()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.end(None)
            return
        self.busy = False
        self.flush(trio.current_time())

    async def _write(self) -> None:
        """Write all of ``_rest``."""
        if self._cut:
            raise trio.BrokenResourceError("an earlier write was cut inside a frame")
        if self._socket is None:
            # A cancelled send_all does not tell how much it wrote.
            self._cut = bool(self._rest)
            if self._cut:
                await self._stream.send_all(self._rest)
                self._rest = b""
                self._cut = False
            return
        while self._rest:
            await self._stream.wait_send_all_might_not_block()
            try:
                self._rest = self._rest[self._socket.send(self._rest, _NO_SIGNAL) :]
            except BlockingIOError:
                # Writable means some room, not room for anything of this size.
                continue

    def _nap_until(self, due: float) -> None:
        if self._nap is None:
            self._nap = trio.CancelScope(deadline=due)
            self._nursery.start_soon(self._sleep, self._nap)
        elif due < self._nap.deadline:
            self._nap.deadline = due

    async def _sleep(self, nap: trio.CancelScope) -> None:
        """Bring what ``hz`` held back when it is due."""
        with nap:
            await trio.sleep_forever()
        self._nap = None
        self.flush(trio.current_time())


@attrs.define(eq=False)
class Fanout:
    """Sends what the core has put into outboxes.

    Attributes:
        deferred: flushes left to a client's own writer because its socket was full.
    """

    deferred: int = attrs.field(default=0, init=False)

    def flush(self, subscribers: Iterable[Subscriber]) -> None:
        """Send to every one of *subscribers* that a socket is behind; never waits.

        One client's trouble (full, gone, over its bounds) stays its own.
        """
        now = trio.current_time()
        for subscriber in subscribers:
            link = subscriber.sink
            if type(link) is Link:
                if link.busy:
                    self.deferred += 1
                link.flush(now)
