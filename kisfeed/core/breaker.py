"""The circuit breaker over dials: after what KIS may take for abuse, nobody dials for a while.

It opens on three young sessions in a row, on an approval key that is refused although it is
fresh, and on subscribing again and again without data. Each time it opens without having been
closed the pause grows. After the pause exactly one dial is let through; only a session that lived
its minimum lifetime, with data or PINGPONG, closes the breaker.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A pause on disk is at most this long; more is a file that was not written by us.
_LONGEST_PAUSE_S: Final = 7 * 86_400.0


class Trip(enum.StrEnum):
    """Why the breaker opened."""

    YOUNG_SESSIONS = "young_sessions"
    KEY_REFUSED = "key_refused"
    BARREN_LOOPS = "barren_loops"


class Phase(enum.StrEnum):
    """Closed lets every dial through, open none, half-open has its one dial out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@attrs.frozen
class BreakerRecord:
    """A breaker as it goes to disk.

    Attributes:
        phase: see :class:`Phase`.
        trip: why it opened; None while closed.
        level: how often it opened since it was last closed.
        young: young sessions in a row.
        loops: barren loops since data last came.
        left_s: seconds until a dial is let through, as of the moment of writing.
        open_s: seconds since it opened.
    """

    phase: Phase = Phase.CLOSED
    trip: Trip | None = None
    level: int = 0
    young: int = 0
    loops: int = 0
    left_s: float = 0.0
    open_s: float = 0.0

    def aged(self, seconds: float) -> BreakerRecord:
        """The same record read *seconds* later."""
        return attrs.evolve(
            self, left_s=max(0.0, self.left_s - seconds), open_s=self.open_s + seconds
        )

    def to_map(self) -> dict[str, object]:
        """A JSON-able map; :meth:`from_map` reads it."""
        return {
            "phase": self.phase.value,
            "trip": self.trip.value if self.trip else None,
            "level": self.level,
            "young": self.young,
            "loops": self.loops,
            "left_s": self.left_s,
            "open_s": self.open_s,
        }

    @classmethod
    def from_map(cls, data: Any) -> BreakerRecord:
        """Read what :meth:`to_map` wrote.

        Raises:
            ValueError: *data* is anything else; nothing is guessed.
        """
        fields = exact_fields(data, cls)
        trip = fields["trip"]
        record = cls(
            phase=Phase(text(fields["phase"])),
            trip=None if trip is None else Trip(text(trip)),
            level=natural(fields["level"]),
            young=natural(fields["young"]),
            loops=natural(fields["loops"]),
            left_s=seconds_of(fields["left_s"]),
            open_s=seconds_of(fields["open_s"]),
        )
        if (record.phase is Phase.CLOSED) is not (record.trip is None):
            raise ValueError("breaker: an open breaker has a reason, a closed one has none")
        if record.left_s > _LONGEST_PAUSE_S:
            raise ValueError(f"breaker: a pause of {record.left_s} s was not written by kisfeed")
        return record


def exact_fields(data: Any, of: type[Any]) -> Mapping[str, Any]:
    """*data* if it is a map with exactly the fields of the attrs class *of*.

    Raises:
        ValueError: it is not a map, a field is missing or one is too many.
    """
    names = {field.name for field in attrs.fields(of)}
    if not isinstance(data, dict) or set(data) != names:
        raise ValueError(f"{of.__name__}: expected exactly the fields {sorted(names)}")
    return data


def text(value: Any) -> str:
    """*value* if it is text, else ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, not {type(value).__name__}")  # noqa: TRY004  # one error
    return value


def flag(value: Any) -> bool:
    """*value* if it is true or false, else ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r}")  # noqa: TRY004  # one error
    return value


def natural(value: Any) -> int:
    """*value* if it is a whole number from 0 on, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number from 0 on, not {value!r}")
    return value


def seconds_of(value: Any) -> float:
    """*value* if it is a finite number from 0 on, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected seconds, not {value!r}")  # noqa: TRY004  # one error
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError("expected seconds, not a number beyond measure") from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"expected seconds from 0 on, not {value!r}")
    return seconds


class Breaker:
    """Whether a dial is let through, and when the next one is.

    Args:
        pauses_s: the growing pauses, seconds; the last one repeats.
        young_to_trip: this many young sessions in a row open it.
        loops_to_trip: this many barren loops without data between them open it.
        record: what was on disk, as old as *now*.
        now: the scheduler's clock, seconds.
    """

    def __init__(
        self,
        *,
        pauses_s: tuple[float, ...],
        young_to_trip: int,
        loops_to_trip: int,
        record: BreakerRecord,
        now: float,
    ) -> None:
        self._pauses = pauses_s
        self._young_to_trip = young_to_trip
        self._loops_to_trip = loops_to_trip
        self._phase = record.phase
        self._trip = record.trip
        self._level = record.level
        self._young = record.young
        self._loops = record.loops
        self._until = now + record.left_s
        self._waived = False  # a person's order stands in for the rest of the pause
        self._opened_at = now - record.open_s

    @property
    def phase(self) -> Phase:
        """Where the breaker is."""
        return self._phase

    @property
    def young(self) -> int:
        """Young sessions in a row."""
        return self._young

    @property
    def loops(self) -> int:
        """Barren loops since data last came."""
        return self._loops

    @property
    def until(self) -> float:
        """The moment from which a dial is let through; ``-inf`` while closed."""
        if self._phase is Phase.CLOSED or self._waived:
            return -math.inf
        return self._until

    def dialled(self, now: float) -> None:
        """A dial goes out: the one of the half-open breaker, if it was open.

        Raises:
            AssertionError: the breaker lets no dial through at *now*.
        """
        if self._phase is Phase.CLOSED:
            return
        if self._phase is Phase.HALF_OPEN or now < self.until:
            raise AssertionError(f"dialled through a breaker that is {self._phase}")
        self._phase = Phase.HALF_OPEN

    def undialled(self) -> None:
        """That dial reached nobody: it has not been used."""
        if self._phase is Phase.HALF_OPEN:
            self._phase = Phase.OPEN

    def died_young(self, now: float) -> None:
        """The session ended before its minimum lifetime, or the upgrade failed."""
        self._young += 1
        if self._phase is Phase.HALF_OPEN:
            self._open(now, self._trip or Trip.YOUNG_SESSIONS)
        elif self._phase is Phase.OPEN:
            # It opened under this session: the pause starts when the session is gone.
            self._until = max(self._until, now + self._pause(self._level - 1))
        elif self._young >= self._young_to_trip:
            self._open(now, Trip.YOUNG_SESSIONS)

    def in_use(self, now: float, *, young: bool) -> None:
        """Another session holds the appkey; that has waits of its own and opens nothing.

        The session counts in the row of young ones all the same, and a half-open breaker had its
        dial: it waits as long as before.
        """
        self._young = self._young + 1 if young else 0
        if self._phase is Phase.HALF_OPEN:
            self._phase = Phase.OPEN
            self._waived = False
            self._until = now + self._pause(self._level - 1)

    def ended_unproved(self, now: float) -> None:
        """A session that was no young one ended without data or PINGPONG."""
        self._young = 0
        if self._phase is Phase.HALF_OPEN:
            self._open(now, self._trip or Trip.YOUNG_SESSIONS)

    def stood_down(self) -> None:
        """Our own clean stop ended the session: neither a failure nor a proof."""
        self._waived = False
        if self._phase is Phase.HALF_OPEN:
            self._phase = Phase.OPEN

    def proved(self) -> None:
        """The session lived its minimum lifetime with an ACK and data or PINGPONG: close."""
        if self._phase is Phase.HALF_OPEN:
            self._phase = Phase.CLOSED
            self._trip = None
        if self._phase is Phase.CLOSED:
            self._level = 0
        self._young = 0

    def key_refused(self, now: float) -> None:
        """A fresh approval key was refused on a session of its own."""
        if self._phase is not Phase.OPEN:
            self._open(now, Trip.KEY_REFUSED)

    def looped(self, now: float) -> bool:
        """A subscribe, unsubscribe, subscribe (or a whole session) brought no data.

        Returns:
            True: that was one too many, the breaker opened.
        """
        self._loops += 1
        if self._loops < self._loops_to_trip or self._phase is Phase.OPEN:
            return False
        self._loops = 0
        self._open(now, Trip.BARREN_LOOPS)
        return True

    def data(self) -> None:
        """Data came: no loop before it counts."""
        self._loops = 0

    def override(self) -> None:
        """Let one dial through at once, because a person says so."""
        self._waived = self._phase is Phase.OPEN

    def suspended(self, seconds: float) -> None:
        """The machine slept *seconds* that the scheduler's clock did not see."""
        self._until -= seconds
        self._opened_at -= seconds

    def record(self, now: float) -> BreakerRecord:
        """What goes to disk."""
        is_open = self._phase is not Phase.CLOSED
        return BreakerRecord(
            phase=self._phase,
            trip=self._trip,
            level=self._level,
            young=self._young,
            loops=self._loops,
            left_s=max(0.0, self._until - now) if is_open else 0.0,
            open_s=max(0.0, now - self._opened_at) if is_open else 0.0,
        )

    def status(self, now: float) -> dict[str, object]:
        """When it opened, why, and when the next dial is let through; JSON-able."""
        record = self.record(now)
        return {
            "phase": record.phase.value,
            "reason": record.trip.value if record.trip else None,
            "open_for_s": round(record.open_s, 1) if record.trip else None,
            "next_try_in_s": round(record.left_s, 1) if self._phase is Phase.OPEN else None,
            "level": record.level,
            "young_sessions": record.young,
            "barren_loops": record.loops,
        }

    def _open(self, now: float, trip: Trip) -> None:
        self._phase = Phase.OPEN
        self._waived = False
        self._trip = trip
        self._opened_at = now
        self._until = now + self._pause(self._level)
        self._level += 1

    def _pause(self, level: int) -> float:
        return self._pauses[min(max(level, 0), len(self._pauses) - 1)]
