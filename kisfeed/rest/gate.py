"""Waits for the limiter's grants: what stands between a caller and the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from kisfeed.core.counters import Histogram
from kisfeed.core.limiter import Limiter, Place, Ticket
from kisfeed.errors import LocalRefusal

if TYPE_CHECKING:
    from kisfeed.kis.rest import Priority
    from kisfeed.seams import Clock


@attrs.define(eq=False)
class Gate:
    """Hands out permits in the limiter's order, or, in shadow, at once.

    In shadow the limiter is asked all the same and its grants are taken as sends, so that what it
    would have delayed is known; nothing waits for it.

    Attributes:
        limiter: who decides.
        waits: how long each permit took, milliseconds; in shadow, how long it would have taken.
        would_refuse: in shadow, calls that the full queue would have refused.
    """

    limiter: Limiter
    _clock: Clock
    shadow: bool = False
    waits: Histogram = attrs.field(factory=Histogram, init=False)
    would_refuse: int = attrs.field(default=0, init=False)
    _waiters: dict[Ticket, trio.Event] = attrs.field(factory=dict, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def permit(
        self, priority: Priority, key: str, again: Ticket | None = None
    ) -> Ticket | None:
        """Wait for a permit; tell :meth:`sent` or :meth:`cancel` what became of it.

        None: nobody counts this call (shadow, with a full queue).

        Raises:
            LocalRefusal: too many of its class wait already.
        """
        try:
            ticket = self.limiter.request(priority, key, self._clock.now(), again)
        except LocalRefusal:
            if not self.shadow:
                raise
            self.would_refuse += 1
            await trio.lowlevel.checkpoint()
            return None
        if self.shadow:
            self.pump()
            await trio.lowlevel.checkpoint()
            return ticket
        done = self._waiters[ticket] = trio.Event()
        self.pump()
        try:
            await done.wait()
        except trio.Cancelled:
            self.cancel(ticket)
            raise
        finally:
            self._waiters.pop(ticket, None)
        return ticket

    def sent(self, ticket: Ticket | None) -> None:
        """Its request is being written to an open connection."""
        if ticket is not None and not self.shadow:
            self.limiter.sent(ticket, self._clock.now())
            self.pump()

    def cancel(self, ticket: Ticket | None) -> None:
        """Its request is not made; after :meth:`sent` this changes nothing."""
        if ticket is not None and ticket.place is not Place.OVER:
            self.limiter.cancel(ticket)
            self.pump()

    def pump(self) -> None:
        """Hand out what may go; to be called after every change of the limiter."""
        now = self._clock.now()
        while (granted := self.limiter.next_grant(now)) is not None:
            self.waits.add((now - granted.asked_at) * 1000)
            if self.shadow:
                self.limiter.sent(granted, now)
            else:
                self._waiters[granted].set()
        self._changed.set()

    async def run(self) -> None:
        """Hand out permits when their time comes, until cancelled."""
        while True:
            self._changed = trio.Event()
            due = self.limiter.next_deadline(self._clock.now())
            with trio.move_on_at(due) as slept:
                await self._changed.wait()
            if slept.cancelled_caught:
                self.pump()
