"""Which topics without a stream get a price next: all of them in turn, never too many at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kisfeed.kis.catalogue import RegKey

_MOST_PAUSE_S: Final = 60.0


@attrs.frozen
class Want:
    """A topic that lives on polling at present.

    Attributes:
        key: its registration.
        open: its venue trades now.
    """

    key: RegKey
    venue: str
    symbol: str
    open: bool


@attrs.define(eq=False)
class _Seen:
    since: float
    polled: float = -math.inf
    turn: int = 0
    looked_closed: bool = False


class PollPlan:
    """Fair turns among the topics that :meth:`pick` is told of.

    Args:
        period_s: a topic gets a price this often while they all fit in one turn.
        after_s: a topic's first turn comes when it has been here for so long.
        most: topics in one turn.
    """

    def __init__(self, period_s: float, after_s: float, most: int) -> None:
        self._period = period_s
        self._after = after_s
        self._most = most
        self._seen: dict[RegKey, _Seen] = {}
        self._failures = 0
        self._turns = 0

    def pick(self, wanted: Sequence[Want], now: float) -> list[Want]:
        """Whose turn it is: those whose last one is the longest ago.

        While its venue is closed a topic gets one look, then none until the venue opens.

        Args:
            wanted: every topic that lives on polling now; others are forgotten.
            now: seconds.
        """
        before = self._seen
        self._seen = {want.key: before.get(want.key) or _Seen(now) for want in wanted}
        due = [want for want in wanted if self._due(want, self._seen[want.key], now)]
        due.sort(key=lambda want: self._seen[want.key].turn)
        turn = due[: self._most]
        for want in turn:
            seen = self._seen[want.key]
            self._turns += 1
            seen.polled, seen.turn = now, self._turns
            seen.looked_closed = not want.open
        return turn

    def pause(self, *, worked: bool) -> float:
        """Seconds until the next turn, which are more and more while KIS cannot be asked."""
        self._failures = 0 if worked else self._failures + 1
        return min(_MOST_PAUSE_S, self._period * 2.0 ** min(self._failures, 10))

    def _due(self, want: Want, seen: _Seen, now: float) -> bool:
        if want.open:
            # Turns are a period apart, give or take what a timer is late.
            return now >= seen.since + self._after and now >= seen.polled + self._period * 0.9
        return now >= seen.since + self._after and not seen.looked_closed
