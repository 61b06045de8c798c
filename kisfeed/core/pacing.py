"""How fast we may go: sliding windows, backoff, the budget of dials, and what of it outlives us.

Nothing here reads a clock. ``now`` is the scheduler's clock in seconds and never goes back.
"""

from __future__ import annotations

import bisect
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.core.breaker import (
    BreakerRecord,
    exact_fields,
    flag,
    natural,
    seconds_of,
    text,
)
from kisfeed.limits import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kisfeed import config, limits

#: Our windows are this much longer than the rule's, so that neither rounding nor a clock that
#: runs a little faster than the server's ever adds a dial.
_SLACK: Final = 1.01

#: More dials than this on disk were not written by us.
_MOST_DIALS: Final = 10_000


class SlidingWindows:
    """An exact limiter: at most ``count`` permits in any ``seconds``, for several windows at once.

    A token bucket with a burst lets nearly twice its rate through in one window; this lets through
    what the rule says and no more, however the calls fall.

    Args:
        windows: all of them bind; an empty sequence lets everything through.
        keep_s: stamps are kept at least this long for :meth:`newest`, whatever the windows need.
    """

    def __init__(self, windows: Sequence[Window], keep_s: float = 0.0) -> None:
        self.windows = tuple(windows)
        self._keep = max(keep_s, *(w.seconds for w in self.windows), 0.0)
        self._stamps: deque[float] = deque()

    def wait(self, now: float) -> float:
        """Seconds until a permit can be taken; 0.0 means at once."""
        return self.ready(now) - now

    def ready(self, now: float) -> float:
        """The moment from which a permit can be taken: *now* or later."""
        until = now
        stamps = self._stamps
        for window in self.windows:
            if len(stamps) >= window.count:
                until = max(until, stamps[-window.count] + window.seconds)
        return until

    def take(self, now: float) -> float:
        """Take a permit and return its stamp, for :meth:`refund` or :meth:`restamp`.

        Raises:
            AssertionError: no permit is free at *now*; ask :meth:`wait` first.
        """
        if self.ready(now) > now:
            raise AssertionError("a permit was taken that is not there")
        self._put(now)
        self._forget(now)
        return now

    def refund(self, stamp: float) -> None:
        """Give back a permit that was not used.

        Raises:
            ValueError: no permit has this *stamp*.
        """
        self._stamps.remove(stamp)

    def restamp(self, stamp: float, now: float) -> float:
        """The permit of *stamp* was used as late as *now*; returns its new stamp.

        A connection that took seconds to open is counted by the server when it opens, so it is
        counted here when it can have opened at the latest.

        Raises:
            ValueError: no permit has this *stamp*.
        """
        self._stamps.remove(stamp)
        self._put(now)
        return now

    def left(self, now: float) -> list[int]:
        """Permits left in each window, in the order of ``windows``; never below 0."""
        return [
            max(0, w.count - sum(1 for stamp in self._stamps if stamp + w.seconds > now))
            for w in self.windows
        ]

    def newest(self, nth: int) -> float | None:
        """The *nth* newest stamp, the first being 1; None where there are fewer."""
        return self._stamps[-nth] if len(self._stamps) >= nth else None

    def ages(self, now: float) -> tuple[float, ...]:
        """Age in seconds of every permit that still counts, the oldest first."""
        self._forget(now)
        return tuple(max(0.0, now - stamp) for stamp in self._stamps)

    def put_back(self, ages: Iterable[float], now: float) -> None:
        """Count permits taken before this limiter lived; more than a window allows is no error."""
        for age in ages:
            self._put(now - age)
        self._forget(now)

    def suspended(self, seconds: float) -> None:
        """The machine slept *seconds* that the scheduler's clock did not see."""
        self._stamps = deque(stamp - seconds for stamp in self._stamps)

    def _put(self, stamp: float) -> None:
        bisect.insort(self._stamps, stamp)

    def _forget(self, now: float) -> None:
        while self._stamps and self._stamps[0] + self._keep <= now:
            self._stamps.popleft()


class Backoff:
    """Exponential backoff with equal jitter: half of each pause is fixed, half is drawn.

    Full jitter can draw a pause of nearly nothing, which is right against herds and wrong against
    a server that punishes short gaps.

    Args:
        base_s: the first pause, seconds, before jitter.
        cap_s: the longest.
        failures: where a count from disk goes on.
    """

    def __init__(self, base_s: float, cap_s: float, failures: int = 0) -> None:
        self._base = base_s
        self._cap = cap_s
        self.failures = failures

    def failed(self, jitter: float) -> float:
        """Count one failure and return the pause after it, seconds.

        Args:
            jitter: uniform in [0, 1).
        """
        # The exponent is bounded: 2.0 ** 1024 overflows.
        whole = min(self._cap, self._base * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return whole / 2 + whole / 2 * jitter

    def reset(self) -> None:
        """It went well: the next pause is the first one again."""
        self.failures = 0


class DialBudget:
    """How many dials KIS sees from this appkey: windows, and a slow lane within the hour.

    A dial is charged before it is made and refunded if no TCP connection came of it; a refund
    follows its charge before the next charge.

    Args:
        of: the limits in force.
        rules: extra windows of the configuration, which bind too and so can only tighten, and the
            scale of time (demo, tests).
        ages: age in seconds of the dials made before, from disk.
        now: the scheduler's clock.
    """

    def __init__(
        self, of: limits.Limits, rules: config.Session, ages: Iterable[float], now: float
    ) -> None:
        scale = rules.time_scale
        #: The windows as the rules state them, scaled; what :meth:`left` reports on.
        self.windows = tuple(Window(w.count, w.seconds / scale) for w in (*of.dials, *rules.dials))
        self._slow_after = of.slow_dials_after
        self._slow_gap = of.slow_dials_gap_s / scale
        self._hour = 3600.0 * _SLACK / scale
        self._log = SlidingWindows(
            [Window(w.count, w.seconds * _SLACK) for w in self.windows], keep_s=self._hour
        )
        self._log.put_back(ages, now)
        self._open: float | None = None

    def ready(self, now: float) -> float:
        """The moment from which a dial may be made: *now* or later."""
        ready = self._log.ready(now)
        last, nth = self._log.newest(1), self._log.newest(self._slow_after)
        if last is not None and nth is not None:
            # The slow lane ends with its gap, or when the hour has thinned out.
            ready = max(ready, min(last + self._slow_gap, nth + self._hour))
        return ready

    def charge(self, now: float) -> None:
        """Count a dial that is about to be made.

        Raises:
            AssertionError: the budget has no room at *now*.
        """
        if self.ready(now) > now:
            raise AssertionError("a dial was charged that the budget does not allow")
        self._open = self._log.take(now)

    def refund(self) -> None:
        """The charged dial reached no TCP connection: KIS has not seen it."""
        assert self._open is not None, "a refund without a charge"
        self._log.refund(self._open)
        self._open = None

    def settle(self, now: float) -> None:
        """The charged dial is over, well or not: KIS has seen it by *now* at the latest."""
        if self._open is not None:
            self._log.restamp(self._open, now)
            self._open = None

    @property
    def open(self) -> bool:
        """A charged dial is out."""
        return self._open is not None

    def ages(self, now: float) -> tuple[float, ...]:
        """Age in seconds of every dial that still counts, the oldest first."""
        return self._log.ages(now)

    def suspended(self, seconds: float) -> None:
        """The machine slept *seconds* that the scheduler's clock did not see."""
        self._log.suspended(seconds)
        if self._open is not None:
            self._open -= seconds

    def left(self, now: float) -> list[dict[str, object]]:
        """Each window with the dials left in it; JSON-able."""
        left = self._log.left(now)
        return [
            {"count": w.count, "seconds": w.seconds, "left": n}
            for w, n in zip(self.windows, left, strict=True)
        ]


@attrs.frozen
class Stamp:
    """When something was written, by the clocks that can tell later.

    Attributes:
        boot_id: names the boot; empty where a boot has no name.
        boot: BOOTTIME, seconds, running on while the machine sleeps.
        wall: seconds since 1970 UTC.
    """

    boot_id: str
    boot: float
    wall: float

    def to_map(self) -> dict[str, object]:
        """A JSON-able map; :meth:`from_map` reads it."""
        return {"boot_id": self.boot_id, "boot": self.boot, "wall": self.wall}

    @classmethod
    def from_map(cls, data: Any) -> Stamp:
        """Read what :meth:`to_map` wrote.

        Raises:
            ValueError: *data* is anything else.
        """
        fields = exact_fields(data, cls)
        return cls(text(fields["boot_id"]), seconds_of(fields["boot"]), seconds_of(fields["wall"]))


def ages(stamps: Iterable[Stamp], boot_id: str, boot: float, wall: float) -> list[float]:
    """How many seconds ago each of *stamps* was written.

    Within one boot BOOTTIME decides, which no clock step touches; of another boot only the wall
    clock can tell. A stamp from the future was written just now, so that a stepped clock can
    make us wait longer, never dial sooner by more than the step.

    Args:
        stamps: from disk.
        boot_id: of this boot; empty where a boot has no name.
        boot: BOOTTIME at the moment, seconds.
        wall: seconds since 1970 UTC at the moment.
    """
    return [
        max(0.0, boot - s.boot if boot_id and s.boot_id == boot_id else wall - s.wall)
        for s in stamps
    ]


@attrs.frozen
class Hygiene:
    """What an appkey's next process must know of the last one, however it ended.

    Every number is an age or a remaining time in seconds as of the moment of writing; read it back
    with :meth:`aged`.

    Attributes:
        dials: ages of the dials that count, the oldest first.
        dialling: the newest of them was still out.
        open: a session was open, or being dialled: if this is what the next process finds, the
            last one died without a close.
        proved: that session had lived its minimum and had data or PINGPONG.
        unclosed_s: how long ago a session of ours ended without a close; None if the last one
            was closed.
        in_use: refusals with OPSP8996 in a row.
        in_use_s: how long ago the last of them was.
        hold_s: how long KIS keeps an unclosed session, as learned; None until it was.
        breaker: see :class:`~kisfeed.core.breaker.BreakerRecord`.
    """

    dials: tuple[float, ...] = ()
    dialling: bool = False
    open: bool = False
    proved: bool = False
    unclosed_s: float | None = None
    in_use: int = 0
    in_use_s: float = 0.0
    hold_s: float | None = None
    breaker: BreakerRecord = attrs.field(factory=BreakerRecord)

    def aged(self, seconds: float) -> Hygiene:
        """The same record read *seconds* later (see :func:`ages`)."""
        return attrs.evolve(
            self,
            dials=tuple(age + seconds for age in self.dials),
            unclosed_s=None if self.unclosed_s is None else self.unclosed_s + seconds,
            in_use_s=self.in_use_s + seconds,
            breaker=self.breaker.aged(seconds),
        )

    def to_map(self) -> dict[str, object]:
        """A JSON-able map; :meth:`from_map` reads it."""
        return {
            "dials": list(self.dials),
            "dialling": self.dialling,
            "open": self.open,
            "proved": self.proved,
            "unclosed_s": self.unclosed_s,
            "in_use": self.in_use,
            "in_use_s": self.in_use_s,
            "hold_s": self.hold_s,
            "breaker": self.breaker.to_map(),
        }

    @classmethod
    def from_map(cls, data: Any) -> Hygiene:
        """Read what :meth:`to_map` wrote.

        Raises:
            ValueError: *data* is anything else; nothing is guessed, for a wrong guess is a dial
                too many.
        """
        fields = exact_fields(data, cls)
        dials = fields["dials"]
        if not isinstance(dials, list) or len(dials) > _MOST_DIALS:
            raise ValueError("Hygiene: dials is not a list of ages")
        record = cls(
            dials=tuple(seconds_of(age) for age in dials),
            dialling=flag(fields["dialling"]),
            open=flag(fields["open"]),
            proved=flag(fields["proved"]),
            unclosed_s=_maybe_seconds(fields["unclosed_s"]),
            in_use=natural(fields["in_use"]),
            in_use_s=seconds_of(fields["in_use_s"]),
            hold_s=_maybe_seconds(fields["hold_s"]),
            breaker=BreakerRecord.from_map(fields["breaker"]),
        )
        if list(record.dials) != sorted(record.dials, reverse=True):
            raise ValueError("Hygiene: dials are not in order")
        return record


def _maybe_seconds(value: Any) -> float | None:
    return None if value is None else seconds_of(value)
