"""The in-process door: a subscription as a Trio channel of events.

Reads the same outbox as a local program would, without encoding anything.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import trio

from kisfeed.kfp.events import Event, Lost, Row
from kisfeed.kfp.messages import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from kisfeed.core.outbox import Outbox

_BATCH_BYTES: Final = 1 << 20
_MOST_HELD: Final = 4096  # gaps and states a full channel may hold up before it is given up
_LOOK_AGAIN_S: Final = 0.25  # nothing tells when the caller's full channel has room again


@attrs.define(eq=False)
class EventChannel(trio.abc.ReceiveChannel[Event]):
    """Events of one in-process subscription, in order; gaps, losses and states among them.

    Closing it ends the subscription. Several tasks may receive from it; each event goes to one.
    A receiver so slow that thousands of gaps, states and notices pile up loses the subscription:
    those are never dropped singly.

    Attributes:
        outbox: what is waiting; ``dropped`` and ``conflated`` count what this subscriber lost.
    """

    outbox: Outbox[Event]
    _clock: Callable[[], float]
    _on_close: Callable[[], None]
    _ready: deque[Event] = attrs.field(factory=deque, init=False)
    _arrived: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _broken: bool = attrs.field(default=False, init=False)

    def flush(self) -> None:
        """Something was put into the outbox."""
        if self.outbox.overflowed and not self._broken:
            self._broken = True
            self._on_close()
        self._arrived.unpark_all()

    def end(self) -> None:
        """The feed is over: what is queued can still be received, then ``EndOfChannel``."""
        self._ended = True
        self._arrived.unpark_all()

    def receive_nowait(self) -> Event:
        """The next event.

        Raises:
            trio.WouldBlock: nothing waits.
            trio.ClosedResourceError: this channel was closed.
            trio.BrokenResourceError: everything up to where it fell too far behind was received.
            trio.EndOfChannel: the feed is over.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if not self._ready:
            self._ready.extend(self.outbox.take(self._clock(), _BATCH_BYTES))
        if self._ready:
            return self._ready.popleft()
        if self._broken:
            raise trio.BrokenResourceError("received too slowly for gaps and states to be kept")
        if self._ended and not self.outbox.ready:
            raise trio.EndOfChannel
        raise trio.WouldBlock

    async def receive(self) -> Event:
        """Wait for the next event; raises as :meth:`receive_nowait` but for WouldBlock."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                event = self.receive_nowait()
            except trio.WouldBlock:
                await self._wait()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return event

    async def receive_batch(self) -> list[Event]:
        """Wait for one event, then take everything else that is queued, in order.

        One checkpoint a batch instead of one an event. Raises as :meth:`receive`.
        """
        batch = [await self.receive(), *self._ready]
        self._ready.clear()
        batch.extend(self.outbox.take(self._clock(), _BATCH_BYTES))
        return batch

    async def _wait(self) -> None:
        # A tick that mode hz holds back goes when it is due, without anything arriving.
        with trio.move_on_at(self.outbox.next_due()):
            await self._arrived.park()

    def close(self) -> None:
        """End the subscription at once; does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._arrived.unpark_all()
            if not self._broken:
                self._on_close()

    async def aclose(self) -> None:
        """End the subscription."""
        self.close()
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class EventPump:
    """Fans events straight into the caller's own memory channel.

    A full channel is a loss: counted here, and told by a ``Lost`` event for each topic soon after
    the channel has room again, before the topic's next row. A closed channel ends the
    subscription, and so does one that stays full for thousands of gaps and states.

    Attributes:
        outbox: what is waiting.
        lost: rows that found the channel full.
        closed: the subscription has ended.
    """

    outbox: Outbox[Event]
    _into: trio.MemorySendChannel[Event]
    _clock: Callable[[], float]
    _on_close: Callable[[], None]
    lost: int = attrs.field(default=0, init=False)
    closed: bool = attrs.field(default=False, init=False)
    _held: deque[Event] = attrs.field(factory=deque, init=False)
    _losses: dict[str, Lost] = attrs.field(factory=dict, init=False)

    @property
    def due(self) -> float:
        """When :meth:`flush` wants to be called though nothing arrives; ``inf`` for never."""
        if self.closed:
            return math.inf
        if self._held or self._losses:
            return self._clock() + _LOOK_AGAIN_S
        return self.outbox.next_due()

    def flush(self) -> None:
        """Move what waits into the channel; never waits itself."""
        if self.closed:
            return
        try:
            full = not self._tell()
            for event in self.outbox.take(self._clock(), _BATCH_BYTES):
                full = full or not self._send(event)
                if full:
                    self._hold(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close()
        if len(self._held) > _MOST_HELD or self.outbox.overflowed:
            self.close()

    def close(self) -> None:
        """End the subscription at once; the caller's channel stays open."""
        if not self.closed:
            self.closed = True
            self._on_close()

    def end(self) -> None:
        """The feed is over."""
        self.closed = True

    def _tell(self) -> bool:
        """Send what a full channel held up; False if it is still full."""
        while self._held:
            if not self._send(self._held[0]):
                return False
            self._held.popleft()
        while self._losses:
            topic, loss = next(iter(self._losses.items()))
            if not self._send(loss):
                return False
            del self._losses[topic]
        return True

    def _send(self, event: Event) -> bool:
        try:
            self._into.send_nowait(event)
        except trio.WouldBlock:
            return False
        return True

    def _hold(self, event: Event) -> None:
        """The channel is full: rows are lost, everything else waits."""
        if not isinstance(event, Row) or event.image:
            self._held.append(event)
            return
        self.lost += 1
        loss = self._losses.get(event.topic)
        if loss is None:
            loss = Lost(event.topic, event.sid, event.sseq, event.sseq, 0, Code.OVER_LIMIT)
        self._losses[event.topic] = attrs.evolve(loss, to_sseq=event.sseq, n=loss.n + 1)
