"""Storms: random weather, crashes and commands from one seed, and what the server counted."""

from __future__ import annotations

import datetime as dt
import math
import zlib
from typing import Final

import attrs

from kisfeed.chaos import checks
from kisfeed.chaos.world import Spell, Weather, World
from kisfeed.core.connection import State
from kisfeed.core.subscriptions import SubSpec
from kisfeed.seams import Seeded, seeded_rng
from kisfeed.seoul import KST

_HOUR: Final = 3600.0
# After the last spell every rule lets a session live again: a spent day takes a day.
HEAL_S: Final = 26 * _HOUR
_QUIET_S: Final = 1200.0
_COMMANDS: Final = ("kill", "kill", "stop", "order", "release", "resync", "churn", "churn")
_NACK_CODES: Final = ("OPSP0007", "OPSP8999", "OPSP9993", "OPSP1234", "OPSP0009", "OPSP9995")


@attrs.frozen
class Plan:
    """A storm as data; the seed makes it, and it makes the run."""

    seed: int
    start: dt.datetime
    hours: bool
    lasts: float
    spells: tuple[Spell, ...]
    topics: int
    priorities: bool
    commands_s: float  # mean time between two commands; 0 for none
    delay: float
    beat: float
    hts_id: str


@attrs.frozen
class Verdict:
    """What came of a storm.

    Attributes:
        seed: repeats it.
        faults: what was wrong; empty is well.
        most: the most connects in each window of the budget.
        connects, dials, breaker_connects, events: how many.
        most_registered: at any instant, with those whose release we could not know of.
        overlap_s: seconds with two sessions.
        flips: the most subscribes of one registration in a minute.
        heal_s: from the end of the storm until every wanted topic was held.
        digest: of the server's history.
    """

    seed: int
    faults: tuple[str, ...]
    most: tuple[int, ...]
    connects: int
    dials: int
    breaker_connects: int
    events: int
    most_registered: int
    overlap_s: float
    flips: int
    heal_s: float
    digest: int


def plan(seed: int) -> Plan:
    """Draw a storm. Each one first draws which faults it knows at all."""
    rng = seeded_rng(seed)
    liking = rng.sample(list(Weather), rng.randint(1, 5))
    lasts = rng.choice([1 * _HOUR, 3 * _HOUR, 8 * _HOUR, 30 * _HOUR])
    longest = rng.choice([120.0, 1200.0, 7200.0])
    spells, since = [], rng.uniform(0, 300)
    while since < lasts:
        value = rng.choice([0.0, 0.3, 4.0, 5.5, 30.0, 59.9, 60.1, 130.0])
        spells.append(Spell(since, rng.choice(liking), value, rng.choice(_NACK_CODES)))
        since += rng.uniform(1, longest)
    spells.append(Spell(lasts, Weather.FINE))
    hours = rng.random() < 0.25
    day = dt.datetime(2026, 11, 16 + rng.randrange(4), tzinfo=KST)
    return Plan(
        seed,
        day + dt.timedelta(seconds=rng.randrange(86_400)),
        hours,
        lasts,
        tuple(spells),
        topics=rng.choice([1, 2, 5, 5, 12, 41, 60] if lasts < 4 * _HOUR else [1, 2, 3, 5]),
        priorities=rng.random() < 0.3,
        commands_s=rng.choice([0.0, 0.0, 20.0, 300.0, 3000.0]) * (1 if lasts < 2 * _HOUR else 4),
        delay=rng.choice([0.001, 0.02, 0.3]),
        beat=rng.choice([10.0, 20.0, 40.0]) if lasts < 4 * _HOUR else 40.0,
        hts_id="someone" if rng.random() < 0.2 else "",
    )


def topic(number: int) -> str:
    """A wanted topic."""
    return f"trade.krx.{number + 1:06d}"


def run(of: Plan) -> Verdict:
    """Let the storm pass, heal, and judge."""
    rng = seeded_rng(of.seed + (1 << 40))
    world = World(
        of.spells,
        rng,
        of.start,
        hours=of.hours,
        delay=of.delay,
        beat=of.beat,
        hts_id=of.hts_id,
    )
    world.want(*(_spec(n, of, rng) for n in range(of.topics)))
    world.boot()
    if of.commands_s:
        _command(world, of, rng)
    world.run(of.lasts)
    faults = []
    if not world.alive:
        world.boot()
    heal = of.lasts + HEAL_S + (3 * 24 * _HOUR if of.hours else 0.0)
    world.run(heal, stop=lambda: _well(world))
    healed_at = world.now
    while _well(world) and world.now < heal:
        before = len(world.wires)
        world.run(world.now + _QUIET_S)
        if len(world.wires) == before and world.wire is not None:
            faults += _disagreement(world)
            break
        # What the storm had in store for that session came after its end.
        world.run(heal, stop=lambda: _well(world))
    else:
        faults.append(f"not well {world.now - of.lasts:.0f} s after the end: {_state(world)}")
    world.settle_accounts()
    stamps = checks.connects(world)
    through_breaker = checks.breaker_faults(world)
    overlap = checks.overlap_s(world)
    refused = checks.over_cap(world)
    return Verdict(
        of.seed,
        tuple(
            faults
            + world.faults
            + checks.window_faults(stamps, world.limits)
            + through_breaker
            + ([f"two sessions for {overlap} s"] if overlap > 0 else [])
            + ([f"{refused} times over the cap"] if refused else [])
        ),
        tuple(checks.most_within(stamps, window.seconds) for window in world.limits.dials),
        len(stamps),
        len(world.dials),
        len(through_breaker),
        world.events,
        world.exchange.most_registrations,
        overlap,
        checks.flips(world),
        healed_at - of.lasts,
        _digest(world),
    )


def _spec(number: int, of: Plan, rng: Seeded) -> SubSpec:
    return SubSpec(topic(number), prio=rng.randrange(3) if of.priorities else 0)


def _command(world: World, of: Plan, rng: Seeded) -> None:
    """A crash, a restart, a person's order or a client's whim, and then the next one."""
    if world.now >= of.lasts:
        return
    world.after(rng.expovariate(1 / of.commands_s), lambda: _command(world, of, rng))
    if not world.alive:
        return
    match rng.choice(_COMMANDS):
        case "kill":
            world.kill()
            world.after(rng.uniform(0.1, 10), lambda: None if world.alive else world.boot())
        case "stop":
            world.stop()
            world.after(rng.uniform(0.1, 10), lambda: None if world.alive else world.boot())
        case "order":
            world.order()
        case "release":
            for_s = rng.choice([30.0, 1800.0])
            world.do(lambda engine, at: engine.release(for_s, at))
        case "churn":
            number = rng.randrange(of.topics + 3)
            if topic(number) in world.wanted and len(world.wanted) > 1:
                world.unwant(topic(number))
            else:
                world.want(_spec(number, of, rng))
        case _:
            pass


def _well(world: World) -> bool:
    engine = world.engine
    if engine.connection.state not in (State.SUBSCRIBED, State.STREAMING):
        return False
    return engine.registrations.settled


def _disagreement(world: World) -> list[str]:
    """After quiet both sides hold the same, and everything there is room for."""
    wire = world.wire
    if wire is None or wire.session is None or not wire.stands:
        return [f"no session after quiet: {_state(world)}"]
    ours, theirs = sorted(world.held), sorted(wire.session.registrations)
    if ours != theirs:
        return [f"after quiet: {len(ours)} held, {len(theirs)} registered, {_state(world)}"]
    return []


def _state(world: World) -> str:
    connection = world.engine.connection
    wait = connection.next_try
    left = math.nan if wait is None else wait - world.engine.connection.since
    return f"{connection.state} ({connection.reason}), next try after {left:.0f} s"


def _digest(world: World) -> int:
    text = "\n".join(
        f"{line.at!r} {line.what} {line.session} {line.key} {line.code}"
        for line in world.exchange.history
    )
    return zlib.crc32(text.encode())
