"""Outages: how long it takes from the end of one to the next dial."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.chaos.storms import topic
from kisfeed.chaos.world import Spell, Weather, World
from kisfeed.core.connection import State
from kisfeed.core.subscriptions import SubSpec
from kisfeed.seams import seeded_rng
from kisfeed.seoul import KST

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTHS: Final = (1.0, 3.0, 7.0, 30.0, 61.0, 200.0, 700.0, 1800.0, 3600.0, 5000.0, 7200.0)
_BEGINS: Final = 300.0
_LONGEST: Final = 10_000.0


@attrs.frozen
class Outage:
    """A way for KIS to be away.

    Attributes:
        weather: what dials meet meanwhile.
        value: see :class:`~kisfeed.chaos.world.Weather`.
        bound_s: the longest wait from the end to the next dial.
        why: what makes it so.
    """

    weather: Weather
    value: float
    bound_s: float
    why: str


#: Nobody answers, or sessions end that lived their minimum: no rule but pace and budget.
OUTAGES: Final = (
    Outage(Weather.NO_ROUTE, 0.0, 600.0, "network down"),
    Outage(Weather.DNS, 0.0, 600.0, "names do not resolve"),
    Outage(Weather.REFUSED, 0.0, 600.0, "nobody listens"),
    Outage(Weather.TIMED_OUT, 0.0, 600.0, "dials time out"),
    Outage(Weather.FROZEN, 0.0, 600.0, "half-open at once"),
    Outage(Weather.FROZEN, 70.0, 600.0, "half-open after 70 s"),
    Outage(Weather.KICKED_LATE, 1.0, 600.0, "dropped after 61 s"),
    Outage(Weather.KICKED_LATE, 40.0, 600.0, "dropped after 100 s"),
)

#: What KIS may take for abuse: the breaker's own pauses and those of OPSP8996 bound the wait.
PUNISHED: Final = (
    Outage(Weather.UPGRADE_FAILED, 0.0, 3600.0, "accepted, then closed"),
    Outage(Weather.HANG, 0.0, 3600.0, "accepted, then nothing"),
    Outage(Weather.KICKED, 1.0, 3600.0, "dropped after 1 s"),
    Outage(Weather.IN_USE, 0.0, 900.0, "another program has the appkey"),
)


def wait_after(outage: Outage, lasts: float, seed: int) -> float:
    """Seconds from the end of *outage* to the first dial after it; 0 if a session lives then."""
    ends = _BEGINS + lasts
    spells = (
        Spell(0.0, Weather.FINE),
        Spell(_BEGINS, outage.weather, outage.value),
        Spell(ends, Weather.FINE),
    )
    start = dt.datetime(2026, 11, 18, 10, tzinfo=KST)
    world = World(spells, seeded_rng(seed), start)
    world.want(SubSpec(topic(0)))
    world.boot()
    world.run(_BEGINS)
    assert world.engine.connection.state is State.STREAMING
    wire = world.wire
    assert wire is not None
    if wire.opened and outage.weather is not Weather.FROZEN:
        world.server_ends(wire, clean=False)
    elif wire.opened:
        world.fall_silent(wire)
    world.run(ends)
    wire = world.wire
    if wire is not None and wire.stands:
        return 0.0
    before = len(world.dials)
    world.run(ends + _LONGEST, stop=lambda: len(world.dials) > before)
    return world.dials[-1] - ends if len(world.dials) > before else math.inf


def cases(outages: tuple[Outage, ...], seeds: int) -> Iterator[tuple[Outage, float, int]]:
    """Every outage of every length."""
    for outage in outages:
        for lasts in LENGTHS:
            for seed in range(seeds):
                yield outage, lasts, seed
