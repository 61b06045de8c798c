"""Who may call KIS next, and when: exact windows, classes, room kept for orders.

Nothing here reads a clock. ``now`` is the scheduler's clock in seconds and never goes back. The
caller asks with :meth:`Limiter.request`, is told with :meth:`Limiter.next_grant`, and says with
:meth:`Limiter.sent` when the request is being written to an open connection: that moment is what
KIS counts. A grant that was not sent yet occupies its place all the same.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.errors import LocalRefusal
from kisfeed.kis.rest import Priority
from kisfeed.limits import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Our windows are this much longer than KIS's: what the wire may delay one request and not the
#: next, and a clock that runs a little faster than KIS's.
SLACK: Final = 1.05

#: So many calls may wait in one class; the next one is refused.
MOST_WAITING: Final = 4096

_SLOWEST: Final = 1 / 16
_STEPS: Final = 10  # from half speed to full speed in this many recoveries


@attrs.frozen
class Profile:
    """How the limit is used.

    Attributes:
        headroom: places of the window that only orders may take; fewer in a small window.
        rate: how much of the window everything else may take, 0 to 1.
        even: calls other than orders are spread over the window, not sent in a burst.
        recover_s: seconds without a refusal for each step back towards full speed.
    """

    headroom: int = 2
    rate: float = 1.0
    even: bool = False
    recover_s: float = 10.0


PROFILES: Final[Mapping[str, Profile]] = {
    "ordinary": Profile(),
    "high_frequency": Profile(headroom=1, recover_s=3.0),
    "batch": Profile(rate=0.5, even=True, recover_s=30.0),
}


class _Pace:
    """One sliding window that is narrowed when KIS refuses and widens again slowly."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.speed = 1.0
        self.unsent = 0
        self._stamps: deque[float] = deque()
        self._slowed_at = -math.inf
        self._step_at = math.inf

    def room(self, rate: float = 1.0) -> Window:
        """The window in force: ours, longer than KIS's, at the speed in force."""
        whole = self.window.count * self.speed * rate
        seconds = self.window.seconds * SLACK
        if whole >= 1:
            return Window(int(whole), seconds)
        return Window(1, seconds / whole)

    def ready(self, now: float, window: Window, kept: int = 0) -> float:
        """From when one more may be granted; ``inf`` while only a send can tell.

        Args:
            now: seconds.
            window: the one in force.
            kept: places of it that are for others.
        """
        free = window.count - kept - self.unsent
        if free <= 0:
            return math.inf
        if len(self._stamps) < free:
            return now
        return max(now, self._stamps[-free] + window.seconds)

    def newest(self) -> float:
        return self._stamps[-1] if self._stamps else -math.inf

    def stamp(self, now: float) -> None:
        self._stamps.append(now)
        longest = self.window.seconds * SLACK / min(self.window.count * _SLOWEST, 1.0)
        while self._stamps[0] + longest * 2 <= now:
            self._stamps.popleft()

    def within(self, now: float, seconds: float) -> int:
        return sum(1 for stamp in self._stamps if stamp > now - seconds)

    def slow(self, now: float, recover_s: float) -> bool:
        """Half the speed; refusals of the same window are one."""
        if now < self._slowed_at + self.window.seconds * SLACK:
            return False
        self._slowed_at = now
        self._step_at = now + recover_s
        self.speed = max(_SLOWEST, self.speed / 2)
        return True

    def recover(self, now: float, recover_s: float) -> None:
        while now >= self._step_at:
            self.speed = min(1.0, self.speed + 0.5 / _STEPS)
            self._step_at = self._step_at + recover_s if self.speed < 1.0 else math.inf

    def recovers_at(self) -> float:
        return self._step_at


class Place(enum.Enum):
    """Where a ticket is."""

    WAITING = enum.auto()
    GRANTED = enum.auto()
    OVER = enum.auto()  # sent, or given back


@attrs.define(eq=False)
class Ticket:
    """One call's place in the queue.

    Attributes:
        key: calls of one key may have a spacing of their own.
        asked_at, granted_at: on the scheduler's clock.
    """

    priority: Priority
    key: str
    asked_at: float
    number: int
    granted_at: float = math.inf
    place: Place = Place.WAITING
    paces: tuple[_Pace, ...] = attrs.field(default=(), repr=False)  # where the grant counts


class Limiter:
    """Grants calls in order of class, then of arrival, as fast as KIS allows and no faster.

    Args:
        window: KIS's, for all calls together.
        spacing: windows that calls of one key have besides.
        profile: how the window is used.
        now: the scheduler's clock. What was sent before this moment is not known, so the window
            counts as full at the start: a restart must not send twice the limit in a second.
    """

    def __init__(
        self, window: Window, spacing: Mapping[str, Window], profile: Profile, now: float
    ) -> None:
        self.profile = profile
        self._all = _Pace(window)
        self._paces = {key: _Pace(of) for key, of in spacing.items()}
        # Per class, the queues of each key: a key that must wait holds up nobody else.
        self._queues: dict[Priority, dict[str, deque[Ticket]]] = {p: {} for p in Priority}
        self._waiting = dict.fromkeys(Priority, 0)
        self._numbers = itertools.count()
        self.throttled_count = 0
        for _ in range(window.count):
            self._all.stamp(now)

    def request(
        self, priority: Priority, key: str, now: float, again: Ticket | None = None
    ) -> Ticket:
        """Queue one call.

        Args:
            priority: its class.
            key: its endpoint, or whatever has a spacing of its own.
            now: seconds.
            again: the ticket on which KIS refused this call: it keeps its place in the row.

        Raises:
            LocalRefusal: too many of its class wait already.
        """
        if self._waiting[priority] >= MOST_WAITING:
            raise LocalRefusal(f"{MOST_WAITING} {priority.name.lower()} calls wait for KIS already")
        queue = self._queues[priority].setdefault(key, deque())
        if again is None:
            ticket = Ticket(priority, key, now, next(self._numbers))
            queue.append(ticket)
        else:
            ticket = Ticket(priority, key, now, again.number)
            place = next((i for i, t in enumerate(queue) if t.number > ticket.number), len(queue))
            queue.insert(place, ticket)
        self._waiting[priority] += 1
        return ticket

    def next_grant(self, now: float) -> Ticket | None:
        """The call that may go out now, if there is one; ask again until there is none."""
        self._recover(now)
        for priority in Priority:
            ticket = self._first_ready(priority, now)
            if ticket is None:
                continue
            self._take(ticket)
            ticket.place, ticket.granted_at = Place.GRANTED, now
            own = self._paces.get(ticket.key)
            ticket.paces = (self._all,) if own is None else (self._all, own)
            for pace in ticket.paces:
                pace.unsent += 1
            return ticket
        return None

    def next_deadline(self, now: float) -> float:
        """When :meth:`next_grant` may have one, if nothing happens; ``inf``: not by itself."""
        soonest = math.inf
        for priority in Priority:
            if self._waiting[priority]:
                whole = self._ready(priority, now)
                keys = min(self._key_ready(key, now) for key in self._queues[priority])
                soonest = min(soonest, max(whole, keys))
        if any(self._waiting.values()):
            soonest = min(soonest, self._recovers_at())
        return soonest

    def sent(self, ticket: Ticket, now: float) -> None:
        """The granted call is being written to an open connection."""
        assert ticket.place is Place.GRANTED, "sent without a grant"
        ticket.place = Place.OVER
        for pace in ticket.paces:
            pace.unsent -= 1
            pace.stamp(now)

    def cancel(self, ticket: Ticket) -> None:
        """The call will not be made; after :meth:`sent` this changes nothing."""
        if ticket.place is Place.WAITING:
            self._take(ticket)
        elif ticket.place is Place.GRANTED:
            for pace in ticket.paces:
                pace.unsent -= 1
        ticket.place = Place.OVER

    def throttled(self, now: float, key: str | None = None) -> None:
        """KIS refused a call because of a rate limit: go at half the speed for a while.

        Args:
            now: seconds.
            key: only calls of this key were too many (the ledger's own limit); None: all calls.
        """
        self._recover(now)
        pace = self._all if key is None else self._paces.get(key)
        if pace is None:
            assert key is not None
            pace = self._paces[key] = _Pace(self._all.window)
        if pace.slow(now, self.profile.recover_s):
            self.throttled_count += 1

    def change(
        self, window: Window, spacing: Mapping[str, Window], profile: Profile, now: float
    ) -> None:
        """Other limits are in force; what was sent and who waits stays."""
        self._recover(now)
        self.profile = profile
        self._all.window = window
        for key in spacing:
            if key not in self._paces:
                self._paces[key] = _Pace(window)
        for key, pace in self._paces.items():
            pace.window = spacing.get(key, window)

    def waiting(self, priority: Priority) -> int:
        """Calls of this class in the queue."""
        return self._waiting[priority]

    def speed(self) -> float:
        """How much of the limit is used at present: 1.0 unless KIS refused calls lately."""
        return self._all.speed

    def last_second(self, now: float) -> int:
        """Calls sent in the last second."""
        return self._all.within(now, 1.0)

    def status(self, now: float) -> dict[str, object]:
        """For ``kisfeed status``; JSON-able."""
        self._recover(now)
        window = self._all.room()
        return {
            "count": self._all.window.count,
            "seconds": self._all.window.seconds,
            "in_force": {"count": window.count, "seconds": round(window.seconds, 3)},
            "headroom": self._headroom(window),
            "speed": round(self._all.speed, 3),
            "throttled": self.throttled_count,
            "unsent": self._all.unsent,
            "waiting": {p.name.lower(): n for p, n in self._waiting.items()},
        }

    def _headroom(self, window: Window) -> int:
        return min(self.profile.headroom, window.count // 3)

    def _ready(self, priority: Priority, now: float) -> float:
        window = self._all.room()
        if priority is Priority.ORDER:
            return self._all.ready(now, window)
        kept = self._headroom(window)
        ready = self._all.ready(now, window, kept)
        if self.profile.rate < 1.0:
            ready = max(ready, self._all.ready(now, self._all.room(self.profile.rate)))
        if self.profile.even:
            own = self._all.room(self.profile.rate)
            gap = own.seconds / own.count
            ready = max(ready, self._all.newest() + gap if not self._all.unsent else math.inf)
        return ready

    def _key_ready(self, key: str, now: float) -> float:
        pace = self._paces.get(key)
        return now if pace is None else pace.ready(now, pace.room())

    def _first_ready(self, priority: Priority, now: float) -> Ticket | None:
        if not self._waiting[priority] or self._ready(priority, now) > now:
            return None
        heads = (
            queue[0]
            for key, queue in self._queues[priority].items()
            if self._key_ready(key, now) <= now
        )
        return min(heads, key=lambda ticket: ticket.number, default=None)

    def _take(self, ticket: Ticket) -> None:
        queues = self._queues[ticket.priority]
        queue = queues[ticket.key]
        queue.remove(ticket)
        if not queue:
            del queues[ticket.key]
        self._waiting[ticket.priority] -= 1

    def _recover(self, now: float) -> None:
        self._all.recover(now, self.profile.recover_s)
        for pace in self._paces.values():
            pace.recover(now, self.profile.recover_s)

    def _recovers_at(self) -> float:
        return min(pace.recovers_at() for pace in (self._all, *self._paces.values()))
