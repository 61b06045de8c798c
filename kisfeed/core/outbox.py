"""What waits for one subscriber: bounded in bytes and age, every loss counted and told.

An outbox never waits and never blocks its feeder. Frames are shared objects: a thousand outboxes
that hold the same tick hold a thousand references to one tuple and one frame.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import attrs

from kisfeed.kfp.messages import MAX_FRAME, Code, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

Tick: TypeAlias = tuple[int, int, T, float]
"""``(sid, sseq, item, now)``: one tick, built once and put into every outbox that wants it."""

RUN_BYTES: Final = 65_536  # a longer run is cut, so that one of them still fits one write

_HELD: Final = object()  # stands in the queue for what the state holds (latest, hz)
_SETTLE: Final = object()  # stands where a sid's old baseline ends
_RUN: Final = object()  # stands for every tick of a run
_MIN_COMPACT: Final = 64
_CONTROL: Final = 0
_NOTICE: Final = 1
_AGAIN: Final = 2


@attrs.define(eq=False)
class _State:
    """One sid under one baseline.

    Attributes:
        trades: a stream of trades.
        position: the last sseq the subscriber knows of, from a tick or from LOST.
        lost: ticks dropped and not yet told.
        lost_to: the newest of them.
        held: the pending tick, if this sid conflates.
        ticket: which queue entry stands for it; None while it waits for its turn (hz).
        barrier: how many control items had been queued when that entry was.
        due: when the next tick may go (hz).
        waiting: an entry of the heap will bring ``held`` to the queue.
    """

    sid: int
    trades: bool
    conflates: bool
    interval: float
    max_age: float
    position: int
    lost: int = 0
    lost_to: int = 0
    held: tuple[int, int, Any, float] | None = None
    ticket: int | None = None
    barrier: int = 0
    due: float = -math.inf
    waiting: bool = False


_Entry: TypeAlias = tuple[Any, int, Any, float]
"""One of: a shared ``Tick``; ``(_State, ticket, _HELD, at)``; ``(_State, 0, _SETTLE, inf)``;
``(None, _CONTROL or _NOTICE or _AGAIN, item, at)``; ``(Run, 0, _RUN, at)``."""


@attrs.define(eq=False)
class Run(Generic[T]):
    """Ticks of one moment, in order: built once and put into every outbox that wants all of them.

    What an outbox does for each tick it does once for a run, and the bytes that go to every
    subscriber are joined once.

    Attributes:
        ticks: two or more, the sseqs of each sid dense.
        size: what all of them count for.
        spans: sid, first and last sseq of every sid in it.
        at: their ``now``.
    """

    ticks: list[Tick[T]]
    size: int
    spans: tuple[tuple[int, int, int], ...]
    at: float
    _join: Callable[[list[T]], T] | None
    _joined: T | None = attrs.field(default=None, init=False)

    def items(self) -> list[T]:
        """What the subscriber gets; the caller owns the list."""
        if self._joined is not None:
            return [self._joined]
        items = [tick[2] for tick in self.ticks]
        if self._join is None:
            return items
        self._joined = self._join(items)
        return [self._joined]


def runs(
    ticks: list[Tick[T]], size: Callable[[T], int], join: Callable[[list[T]], T] | None
) -> list[Run[T]]:
    """Make runs of *ticks*, each of at most 64 KiB or one tick.

    Args:
        ticks: of one moment, the sseqs of each sid dense.
        size: as the outboxes count.
        join: makes one item of many, where items can be joined.
    """
    found: list[Run[T]] = []
    start = total = 0
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    for index, (sid, sseq, item, at) in enumerate(ticks):
        length = size(item)
        if total + length > RUN_BYTES and index > start:
            spans = tuple([(s, first, lasts[s]) for s, first in firsts.items()])
            found.append(Run(ticks[start:index], total, spans, at, join))
            start, total, firsts, lasts = index, 0, {}, {}
        total += length
        if sid not in lasts:
            firsts[sid] = sseq
        lasts[sid] = sseq
    spans = tuple([(s, first, lasts[s]) for s, first in firsts.items()])
    found.append(Run(ticks[start:] if start else ticks, total, spans, ticks[-1][3], join))
    return found


class Outbox(Generic[T]):
    """The queue between the core and one subscriber.

    The law, at every point of what :meth:`take` has returned: the jumps of sseq (counted from the
    baseline of :meth:`open`; LOST moves the subscriber to its ``to_sseq``) add up to
    ``dropped + conflated``, and the ``n`` of all LOST to ``dropped``.

    Order is the order of arrival, with two exceptions. A tick that replaces a pending one (modes
    ``latest``, ``hz``) takes its place, unless a control item was queued in between: then it goes
    behind that item, so that no tick overtakes the state change that precedes it. A tick held
    back by ``hz`` goes when it is due.

    Attributes:
        sent: ticks handed over.
        dropped: ticks lost to a bound and told by LOST.
        untold: ticks lost to a bound that the next :meth:`take` tells.
        conflated: ticks that the mode passed over.
        drained: the last :meth:`take` left nothing, so there is nothing to look for; only True
            where that was plain to see.
        control_bytes: control items that wait; a door stops reading from a program that lets
            them pile up.
        overflowed: items that must not be dropped went over the bound; the subscriber has to go.
        size: bytes that an item counts for.
    """

    __slots__ = (
        "_again_bytes",
        "_barrier",
        "_conflating",
        "_ended",
        "_front",
        "_lossy",
        "_lost",
        "_max_age_latest_s",
        "_max_age_s",
        "_notice_bytes",
        "_protected_bytes",
        "_queue",
        "_queue_bytes",
        "_states",
        "_tick_bytes",
        "_ticket",
        "_void",
        "_waiting",
        "conflated",
        "control_bytes",
        "drained",
        "dropped",
        "overflowed",
        "sent",
        "size",
        "untold",
    )

    def __init__(
        self,
        *,
        size: Callable[[T], int],
        lost: Callable[[int, int, int, int, str], T],
        queue_bytes: int,
        max_age_s: float,
        max_age_latest_s: float,
        protected_bytes: int = MAX_FRAME,
    ) -> None:
        """Make an empty outbox.

        Args:
            size: bytes that an item counts for.
            lost: makes LOST of ``(sid, from_sseq, to_sseq, n, code)``.
            queue_bytes: bound of the ticks.
            max_age_s: an older tick is dropped, in ``all`` and ``trade_safe``; seconds.
            max_age_latest_s: the same in ``latest`` and ``hz``, from when the tick was due.
            protected_bytes: bound of the control items, and again of the notices, but not of those
                told again. It has to hold the images of everything that one SUB may ask for.
        """
        self.size = size
        self._lost = lost
        self._queue_bytes = queue_bytes
        self._protected_bytes = protected_bytes
        self._max_age_s = max_age_s
        self._max_age_latest_s = max_age_latest_s
        self._states: dict[int, _State] = {}
        # By sid, oldest first: closed ones whose shared ticks may still be queued, each until
        # what settles it is passed.
        self._ended: dict[int, list[_State]] | None = None
        # A deque only where something has to be taken from its front: an empty one would be the
        # largest part of an idle outbox, and who keeps up does not need it.
        self._queue: list[_Entry] | deque[_Entry] = []
        # What shedding met in front of the oldest tick; it is still the first to go.
        self._front: list[_Entry] = []
        self._waiting: list[tuple[float, int, _State]] = []
        self._lossy: dict[_State, None] = {}
        self._tick_bytes = 0
        self.control_bytes = 0
        self._notice_bytes = 0
        self._again_bytes = 0
        self._ticket = 0
        self._barrier = 0
        self._void = 0
        self._conflating = 0  # open sids that do
        self.sent = 0
        self.dropped = 0
        self.untold = 0
        self.conflated = 0
        self.overflowed = False
        self.drained = False

    def open(self, sid: int, mode: Mode, hz: float, sseq: int, *, trades: bool) -> None:
        """Take ticks of *sid* from here on; jumps count from *sseq*.

        A sid that is open already starts over with the new mode and baseline. What is queued of
        it is still delivered, and its LOST told, before anything that is queued after this call:
        the RES that names the new baseline divides the two.

        Args:
            sid: the stream.
            mode: how it is delivered.
            hz: ticks a second in mode ``hz``; ignored otherwise.
            sseq: the baseline: the first tick is expected to be ``sseq + 1``.
            trades: the stream is one of trades, all of which ``trade_safe`` keeps.

        Raises:
            ValueError: mode ``hz`` with an *hz* that is not positive.
        """
        if mode is Mode.HZ and not hz > 0:
            raise ValueError(f"hz must be positive, not {hz}")
        self.close(sid)
        latest = mode in (Mode.LATEST, Mode.HZ)
        conflates = latest or (mode is Mode.TRADE_SAFE and not trades)
        self._conflating += conflates
        self._states[sid] = _State(
            sid=sid,
            trades=trades,
            conflates=conflates,
            interval=1 / hz if mode is Mode.HZ else 0.0,
            max_age=self._max_age_latest_s if latest else self._max_age_s,
            position=sseq,
        )

    def retune(self, sid: int, mode: Mode, hz: float, sseq: int) -> None:
        """:meth:`open` for a sid that is open, with a new mode and baseline.

        Raises:
            KeyError: the sid is not open.
            ValueError: mode ``hz`` with an *hz* that is not positive.
        """
        self.open(sid, mode, hz, sseq, trades=self._states[sid].trades)

    def close(self, sid: int) -> None:
        """Take no more ticks of *sid*; what is queued of it is still delivered.

        What ``hz`` held back goes at once. Nothing happens if the sid is not open.
        """
        state = self._states.pop(sid, None)
        if state is None:
            return
        if state.conflates:
            self._conflating -= 1
            if state.held is not None and state.ticket is None:
                self._stand(state)
        elif self._queue:
            if self._ended is None:
                self._ended = {}
            self._ended.setdefault(sid, []).append(state)
        if self._queue or self._front or state.lost:
            self._queue.append((state, 0, _SETTLE, math.inf))

    def put(self, tick: Tick[T], length: int = 0) -> None:
        """Queue one tick of an open sid. *tick* is kept as it is: share it between outboxes.

        *length* is what the item counts for, where the caller knows it.

        Raises:
            KeyError: the sid is not open.
        """
        state = self._states[tick[0]]
        if state.conflates:
            self._hold(state, tick)
        else:
            self._queue.append(tick)
            self._tick_bytes += length or self.size(tick[2])
        if self._tick_bytes > self._queue_bytes:
            self._shed()

    def put_run(self, run: Run[T]) -> None:
        """:meth:`put` for every tick of *run*, all of whose sids are open; it is kept as it is."""
        if self._conflating:
            for tick in run.ticks:
                self.put(tick)
            return
        self._queue.append((run, 0, _RUN, run.at))
        self._tick_bytes += run.size
        if self._tick_bytes > self._queue_bytes:
            self._shed()

    def tick(self, sid: int, sseq: int, item: T, now: float) -> None:
        """:meth:`put` for a tick that goes to this outbox only."""
        self.put((sid, sseq, item, now))

    def control(self, item: T, now: float) -> None:
        """Queue what is never dropped (RES, ERR, STATUS, GAP, IMAGE, SESSION), behind the ticks.

        One item may be larger than the bound; ``overflowed`` is set, and the item forgotten, when
        the ones before it are over the bound already.
        """
        if self.control_bytes > self._protected_bytes:
            self.overflowed = True
            return
        self.control_bytes += self.size(item)
        self._barrier += 1
        self._queue.append((None, _CONTROL, item, now))

    def notice(self, item: T, now: float) -> None:
        """Queue an order or fill notice: as :meth:`control`, with a bound of its own."""
        if self._notice_bytes > self._protected_bytes:
            self.overflowed = True
            return
        self._notice_bytes += self.size(item)
        self._barrier += 1
        self._queue.append((None, _NOTICE, item, now))

    def again(self, items: Iterable[T], whole: int, now: float) -> None:
        """Queue notices that are told again, however many they are.

        Who lost them at a bound would ask for as many the next time, for ever; and they are kept
        for everybody, so that one more queue of them costs little. ``overflowed`` is set, and the
        items forgotten, only when more of them waits already than *whole* and the bound.

        Args:
            items: in order.
            whole: bytes of all that may be told again at present.
            now: seconds.
        """
        if self._again_bytes > max(whole, self._protected_bytes):
            self.overflowed = True
            return
        entries = [(None, _AGAIN, item, now) for item in items]
        self._again_bytes += sum([self.size(entry[2]) for entry in entries])
        self._barrier += 1
        self._queue.extend(entries)

    def take(self, now: float, max_bytes: int = 65_536) -> list[T]:
        """Hand over what may go at *now*, in order; empty if nothing may.

        The caller owns the list. It ends with the first item that reaches *max_bytes*, where a run
        counts as one; once nothing is queued any more, LOST of every drop has been in it.
        """
        queue = self._queue
        if len(queue) == 1 and not (self._front or self._waiting or self._lossy):
            # What nearly every take of a subscriber that keeps up finds: one shared tick or run.
            owner, number, item, at = queue[0]
            if item is _RUN:
                if self._advance(owner, now):
                    queue.clear()
                    self._tick_bytes = 0
                    self.drained = True
                    return owner.items()  # type: ignore[no-any-return]  # of a run of ours
            elif type(owner) is int:
                state = self._states[owner]
                if number == state.position + 1 and now - at <= state.max_age:
                    queue.clear()
                    self._tick_bytes = 0
                    state.position = number
                    self.sent += 1
                    self.drained = True
                    return [item]
        self.drained = False
        if self.ready:
            return self._take(now, max_bytes)
        return []

    def next_due(self) -> float:
        """When :meth:`take` may have something, seconds.

        ``-inf`` while anything is queued, else when ``hz`` lets the next tick go, else ``inf``.
        """
        if self._queue or self._front or self._lossy:
            return -math.inf
        return self._waiting[0][0] if self._waiting else math.inf

    @property
    def ready(self) -> bool:
        """There is something to send, at once or at :meth:`next_due`."""
        return bool(self._queue or self._front or self._lossy or self._waiting)

    @property
    def queued_bytes(self) -> int:
        """Bytes of everything that waits."""
        return self._tick_bytes + self.control_bytes + self._notice_bytes + self._again_bytes

    def age_ms(self, now: float) -> int:
        """How long the first in line has waited, milliseconds; 0 if nothing waits."""
        for entry in (*self._front, *self._queue):
            owner, number, item, at = entry
            if item is _SETTLE or (item is _HELD and number != owner.ticket):
                continue
            return max(0, int((now - at) * 1000))
        return 0

    def _take(self, now: float, max_bytes: int) -> list[T]:
        queue = self._to_deque()
        if self._waiting or self._front:
            self._arrange(now, queue)
        size = self.size
        items: list[T] = []
        total = 0
        while queue and total < max_bytes:
            owner, number, item, at = queue.popleft()
            if owner is None:
                total += self._release(item, number)
                items.append(item)
                continue
            if type(owner) is int:
                state = self._baseline(owner) if self._ended else self._states[owner]
            elif item is _RUN:
                total += self._take_run(owner, now, queue, items)
                continue
            else:
                state = owner
                if item is _SETTLE:
                    self._pass(state)
                    if state.lost:
                        items.append(self._tell(state))
                    continue
                if item is _HELD:
                    if number != state.ticket:
                        self._void -= 1
                        continue
                    number, item, at = self._unhold(state)
            length = size(item)
            self._tick_bytes -= length
            if now - at > state.max_age:
                self._lose(state, number)
                continue
            if state.lost:
                items.append(self._tell(state))
            self.conflated += number - state.position - 1
            state.position = number
            if state.conflates:
                state.due = now + state.interval
            self.sent += 1
            total += length
            items.append(item)
        if not queue:
            self._emptied(items)
        return items

    def _emptied(self, items: list[T]) -> None:
        """Nothing is queued any more: tell what is left to be told."""
        if self._lossy:
            # Not sooner: the RES that opened the sid may still be queued.
            items.extend([self._tell(state) for state in list(self._lossy)])
        if not self._conflating:
            self._queue = []

    def _release(self, item: T, kind: int) -> int:
        """Count a control item or notice as handed over; how many bytes that is."""
        length = self.size(item)
        if kind == _CONTROL:
            self.control_bytes -= length
        elif kind == _NOTICE:
            self._notice_bytes -= length
        else:
            self._again_bytes -= length
        return length

    def _take_run(self, run: Run[T], now: float, queue: deque[_Entry], items: list[T]) -> int:
        """Append what may be handed over at once, and how many bytes it is.

        0 where *run* was put back as single ticks.
        """
        if self._ended or not self._advance(run, now):
            queue.extendleft(reversed(run.ticks))
            return 0
        self._tick_bytes -= run.size
        items.extend(run.items())
        return run.size

    def _advance(self, run: Run[T], now: float) -> bool:
        """Count all of *run* as handed over; False if its ticks have to be looked at one by one."""
        states = self._states
        for sid, first, _ in run.spans:
            state = states[sid]
            if first != state.position + 1 or now - run.at > state.max_age:
                return False
        for sid, _, last in run.spans:
            states[sid].position = last
        self.sent += len(run.ticks)
        return True

    def _baseline(self, sid: int) -> _State:
        """What the first shared tick of *sid* in the queue belongs to."""
        ended = self._ended.get(sid) if self._ended else None
        return ended[0] if ended else self._states[sid]

    def _pass(self, state: _State) -> None:
        """No tick of *state* is queued any more: what settles it was met."""
        ended = self._ended.get(state.sid) if self._ended else None
        if ended and ended[0] is state:
            del ended[0]
            if not ended and self._ended:
                del self._ended[state.sid]

    def _hold(self, state: _State, tick: Tick[T]) -> None:
        replaced, state.held = state.held, tick
        self._tick_bytes += self.size(tick[2])
        if replaced is None:
            if tick[3] >= state.due:
                self._stand(state)
            elif not state.waiting:
                state.waiting = True
                self._ticket += 1  # only breaks ties in the heap
                heapq.heappush(self._waiting, (state.due, self._ticket, state))
            return
        self._tick_bytes -= self.size(replaced[2])
        if state.ticket is not None and state.barrier != self._barrier:
            self._void += 1
            self._stand(state)
            if self._void > max(_MIN_COMPACT, len(self._queue) // 2):
                self._compact()

    def _stand(self, state: _State) -> None:
        """Queue an entry that stands for what *state* holds."""
        assert state.held is not None  # for the type checker
        self._ticket += 1
        state.ticket = self._ticket
        state.barrier = self._barrier
        self._queue.append((state, self._ticket, _HELD, state.held[3]))

    def _unhold(self, state: _State) -> tuple[int, Any, float]:
        """Take what *state* holds: its sseq, the item, and when it could first have gone."""
        assert state.held is not None  # a live ticket stands for a held tick
        _, sseq, item, at = state.held
        state.held = None
        state.ticket = None
        # Waiting for the next turn of hz was asked for; it is not age.
        return sseq, item, max(at, state.due)

    def _to_deque(self) -> deque[_Entry]:
        queue = self._queue
        if isinstance(queue, list):
            self._queue = queue = deque(queue)
        return queue

    def _arrange(self, now: float, queue: deque[_Entry]) -> None:
        """Put back what shedding passed over, and bring in what ``hz`` lets go now."""
        queue.extendleft(reversed(self._front))
        self._front.clear()
        while self._waiting and self._waiting[0][0] <= now:
            state = heapq.heappop(self._waiting)[2]
            state.waiting = False
            if state.held is not None and state.ticket is None:
                self._stand(state)

    def _compact(self) -> None:
        self._queue = deque(e for e in self._queue if e[2] is not _HELD or e[1] == e[0].ticket)
        self._void = 0

    def _shed(self) -> None:
        """Drop the oldest ticks until the rest fits."""
        queue = self._to_deque()
        while self._tick_bytes > self._queue_bytes:
            if not queue:
                self._shed_waiting()
                return
            entry = queue.popleft()
            owner, number, item, _ = entry
            if item is _SETTLE:
                self._pass(owner)
            if owner is None or item is _SETTLE:
                self._front.append(entry)
                continue
            if item is _RUN:
                queue.extendleft(reversed(owner.ticks))
                continue
            state = self._baseline(owner) if type(owner) is int else owner
            if item is _HELD:
                if number != state.ticket:
                    self._void -= 1
                    continue
                number, item, _ = self._unhold(state)
            self._tick_bytes -= self.size(item)
            self._lose(state, number)

    def _shed_waiting(self) -> None:
        for _, _, state in sorted(self._waiting, key=lambda w: w[:2]):
            if self._tick_bytes <= self._queue_bytes:
                return
            if state.held is not None and state.ticket is None:
                number, item, _ = self._unhold(state)
                self._tick_bytes -= self.size(item)
                self._lose(state, number)

    def _lose(self, state: _State, sseq: int) -> None:
        state.lost += 1
        state.lost_to = sseq
        self.untold += 1
        self._lossy[state] = None

    def _tell(self, state: _State) -> T:
        n, first, last = state.lost, state.position + 1, state.lost_to
        self.conflated += last - state.position - n
        self.dropped += n
        self.untold -= n
        state.position = last
        state.lost = 0
        del self._lossy[state]
        return self._lost(state.sid, first, last, n, Code.OVER_LIMIT)
