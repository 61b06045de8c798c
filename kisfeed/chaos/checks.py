"""Checkers: they read what the server counted, and the wires between, and nothing else."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from kisfeed.kis.codes import SUBSCRIBED
from kisfeed.simulator import Happening

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kisfeed.chaos.world import World
    from kisfeed.config import Session
    from kisfeed.limits import Limits


def most_within(times: Sequence[float], seconds: float) -> int:
    """The most of the sorted *times* in any span of *seconds*, both ends included."""
    most = first = 0
    for nth, at in enumerate(times):
        while times[first] < at - seconds:
            first += 1
        most = max(most, nth - first + 1)
    return most


def window_faults(connects: Sequence[float], limits: Limits, scale: float = 1.0) -> list[str]:
    """Windows of the dial budget with more connects than they allow."""
    return [
        f"{most} connects in {window.seconds / scale} s, {window.count} are allowed"
        for window in limits.dials
        if (most := most_within(connects, window.seconds / scale)) > window.count
    ]


def breaker_faults(world: World) -> list[str]:
    """Connects in the pause that three young sessions in a row make, as the server saw them.

    A session that a person ordered, or that our own clean stop ended, counts for neither side.
    """
    rules: Session = world.rules
    found: list[str] = []
    young, last_end = 0, -math.inf
    for wire in [wire for wire in world.wires if wire.session is not None]:
        session = wire.session
        assert session is not None
        # The pause starts with our own end; the server may hear of it a little later.
        if young >= rules.young_sessions_to_trip and not wire.neutral:
            pause = rules.breaker_pauses_s[0] - rules.close_timeout_s
            if session.opened_at - last_end < pause:
                found.append(f"{session.opened_at}: a connect while the breaker is open")
        end = wire.ended_at
        if session.closed_at is not None and not wire.silent:  # else we could not know
            end = min(end, session.closed_at)
        if end - session.opened_at >= rules.min_lifetime_s - 2 * world.delay:
            young = 0  # or so it may look at our end of the line
        elif not wire.neutral:
            young, last_end = young + 1, end
    return found


def overlap_s(world: World) -> float:
    """Seconds with two live sessions of ours; a half-open one is none that we could have ended."""
    spans = sorted(
        (wire.session.opened_at, wire.session.closed_at or math.inf)
        for wire in world.wires
        if wire.session is not None and not wire.silent
    )
    return sum(max(0.0, min(one[1], two[1]) - two[0]) for one, two in itertools.pairwise(spans))


def connects(world: World) -> list[float]:
    """When the server accepted a connection."""
    return world.exchange.connects


def over_cap(world: World) -> int:
    """How often the server had to say MAX SUBSCRIBE OVER."""
    return sum(
        len(world.exchange.times(what, "OPSP0008"))
        for what in (Happening.SUBSCRIBE, Happening.UNSUBSCRIBE)
    )


def flips(world: World, seconds: float = 60.0) -> int:
    """The most subscribes of one registration in any *seconds*, in one session."""
    times: dict[tuple[int, object], list[float]] = {}
    for line in world.exchange.history:
        if line.what is Happening.SUBSCRIBE and line.code == SUBSCRIBED:
            times.setdefault((line.session, line.key), []).append(line.at)
    return max((most_within(t, seconds) for t in times.values()), default=0)


def joined(groups: Iterable[Iterable[str]]) -> list[str]:
    """One list of several."""
    return list(itertools.chain.from_iterable(groups))
