"""What the market does for wanted topics: by the timetable, and by what the rows say."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kisfeed.kis.catalogue import RegKey, Tr
    from kisfeed.kis.sessions import Calendar

_LOOK_AGAIN_S: Final = 60.0  # the wall clock may step, so no look is further away than this
_NO_VI: Final = frozenset({None, "", "N", "0"})


@attrs.frozen
class Judgement:
    """The market at one moment.

    Attributes:
        open: a venue of a wanted topic is open.
        next_open: when the next one opens, seconds of the scheduler's clock; None if not in sight.
        flows: whether silence of a registration would be odd.
    """

    open: bool
    next_open: float | None
    flows: Callable[[RegKey], bool]


@attrs.define(eq=False)
class Market:
    """Asks *calendar* about the venues of registrations.

    Attributes:
        due: when to judge again, seconds of the scheduler's clock.
    """

    _calendar: Calendar
    _trs: Mapping[str, Tr]
    due: float = -math.inf

    def judge(self, keys: Iterable[RegKey], now: float, wall_ns: int) -> Judgement:
        """Judge the venues of *keys*; an observation on the wire outweighs the timetable."""
        # Of one venue all keys trade together, but for those whose market the key names.
        places = dict.fromkeys((self._trs[key[0]].venue, key[1]) for key in keys)
        venues = list(dict.fromkeys(venue for venue, _ in places))
        opening = self._calendar.next_open(venues, wall_ns) if venues else None
        change = self._calendar.next_change(venues, wall_ns) if venues else None
        self.due = now + _LOOK_AGAIN_S
        if change is not None:
            self.due = min(self.due, now + (change - wall_ns) / 1e9)

        def flows(key: RegKey) -> bool:
            tr = self._trs[key[0]]
            return self._calendar.flows(tr.venue, tr.channel, wall_ns, key[1])

        return Judgement(
            any(self._calendar.phase(venue, wall_ns, key).open for venue, key in places),
            None if opening is None else now + (opening - wall_ns) / 1e9,
            flows,
        )

    def observe(self, key: RegKey, schema: str, row: Sequence[Any], wall_ns: int) -> None:
        """Learn the phase from a typed row; a surprise makes :attr:`due` now."""
        code = row[_SESSION_AT[schema]]
        if code and self._calendar.observe(self._trs[key[0]].venue, code, wall_ns, key[1]):
            self.due = -math.inf

    @staticmethod
    def halted(schema: str, row: Sequence[Any]) -> bool | None:
        """Whether *row* says that its symbol is halted or in VI; None if it does not say."""
        if schema == "status.v1":
            return bool(row[_HALTED_AT[schema]]) or row[_VI_AT] not in _NO_VI
        told: bool | None = row[_HALTED_AT[schema]]
        return told


# Where the rows of schemas/kfp1/rows.json say it.
_SESSION_AT: Final[Mapping[str, int]] = {"trade.v1": 11, "status.v1": 2}
_HALTED_AT: Final[Mapping[str, int]] = {"trade.v1": 13, "status.v1": 0}
_VI_AT: Final = 7

TELLING: Final[Mapping[str, Callable[[Sequence[Any]], tuple[Any, ...]]]] = {
    "trade.v1": itemgetter(_SESSION_AT["trade.v1"], _HALTED_AT["trade.v1"]),
    "status.v1": itemgetter(_SESSION_AT["status.v1"], _HALTED_AT["status.v1"], _VI_AT),
}
"""Row schemas that tell something of the market's phase, and the values of a row that do."""
