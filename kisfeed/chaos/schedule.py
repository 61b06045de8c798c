"""What will go wrong, as data: one :class:`Case` makes one run, and the same run every time.

A seed draws a case. Swarm: it first draws which kinds of trouble there are at all and how dense
they come, so that one run knows only resets and another everything at once. Times of a step are
virtual seconds; where ``scale`` is 20 the rules' own times are a twentieth, so that hour and day
windows bind within minutes.
"""

from __future__ import annotations

import enum
import json
import math
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.seams import Seeded, seeded_rng
from kisfeed.simulator import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HORIZON_S: Final = 300.0
SCALE: Final = 20.0
_THIN_TOPICS: Final = 8


class Trouble(enum.StrEnum):
    """Everything that can go wrong beside what the simulator does (``kis.<kind>``).

    ``lasts`` is in seconds where it means anything, ``value`` is said here.
    """

    # The way to KIS.
    PARTITION = "partition"
    PARTITION_UP = "partition_up"
    PARTITION_DOWN = "partition_down"
    FREEZE = "freeze"  # as a partition that the kernels acknowledge
    RESET = "reset"
    CUT_UP = "cut_up"  # reset after *value* more bytes from us
    CUT_DOWN = "cut_down"  # and after so many to us
    DIAL_REFUSED = "dial_refused"
    DIAL_NO_ROUTE = "dial_no_route"
    DIAL_DNS = "dial_dns"
    DIAL_HANG = "dial_hang"
    DIAL_MUTE = "dial_mute"
    REST_HANG = "rest_hang"
    # The machine and the process.
    KILL = "kill"  # and started again *value* seconds later
    STOP = "stop"
    CLOCK_STEP = "clock_step"  # by *value* seconds
    SUSPEND = "suspend"  # for *value* seconds
    DISK_FULL = "disk_full"
    ORDER = "order"  # somebody orders a reconnect
    RELEASE = "release"  # somebody borrows the session for ``lasts``
    # Local programs.
    CHURN = "churn"  # one more topic, or one less: the *value*-th
    RETUNE = "retune"  # priority of a topic becomes *value*
    STORM = "storm"  # *value* programs come and go at once
    STALL = "stall"  # a program stops reading for ``lasts``
    HANG_UP = "hang_up"  # every program's connection breaks
    HOSTILE = "hostile"  # *value* bytes of nonsense on a new connection
    # A program that orders.
    PLACE = "place"  # an odd *value*: the same terms once more, under another id
    AGAIN = "again"  # the *value*-th last request, once more
    CANCEL = "cancel"  # the order of the *value*-th last request
    HALT = "halt"  # all ordering, for ``lasts``


_KIS_AT_ONCE: Final = (Kind.CUT, Kind.DROP, Kind.CLOSE, Kind.KEY_EXPIRED, Kind.TOKENS_INVALID)
_KIS_FOR_A_WHILE: Final = (
    Kind.SILENCE,
    Kind.NO_PINGPONG,
    Kind.QUIET,
    Kind.REFUSE,
    Kind.HANG,
    Kind.ACCEPT_CLOSE,
    Kind.STRANGER,
    Kind.WITHHOLD,
    Kind.REST_DOWN,
    Kind.TOKEN_DOWN,
    Kind.APPROVAL_DOWN,
    Kind.RATE_LIMITED,
)
_ORDERING: Final = (Trouble.PLACE, Trouble.AGAIN, Trouble.CANCEL, Trouble.HALT)
_ORDER_FAULTS: Final = tuple(kind for kind in Kind if kind.startswith("order_"))
ORDER_KINDS: Final = (*map(str, _ORDERING), *(f"kis.{kind}" for kind in _ORDER_FAULTS))
"""Kinds of step of a run with orders."""
KINDS: Final = tuple(str(t) for t in Trouble if t not in _ORDERING) + tuple(
    f"kis.{kind}" for kind in Kind if kind not in _ORDER_FAULTS
)
"""All others."""

_FAMILIES: Final = (
    (
        *("reset", "cut_up", "cut_down", "kis.cut", "kis.drop", "kis.close", "kis.accept_close"),
        *("kis.refuse", "kis.hang", "dial_refused", "dial_hang", "dial_mute"),
    ),
    (
        *("kis.ack_lost", "kis.ack_late", "kis.ack_twice", "kis.ack_wrong_key", "kis.nack"),
        *("kis.stray_ack", "kis.cap", "kis.drop_key", "churn", "retune", "storm"),
    ),
    ("kis.burst", "kis.withhold", "kis.cut", "churn", "storm", "stall", "hang_up", "hostile"),
)
"""Kinds that make each other worse: sessions that die, answers that mislead, slow programs."""

CODES: Final = (
    "OPSP0007",
    "OPSP0008",
    "OPSP0009",
    "OPSP0011",
    "OPSP8991",
    "OPSP8992",
    "OPSP8993",
    "OPSP8994",
    "OPSP8995",
    "OPSP8996",
    "OPSP8999",
    "OPSP9990",
    "OPSP9991",
    "OPSP9992",
    "OPSP9993",
    "OPSP9994",
    "OPSP9995",
    "OPSP1234",
)
"""Codes that a registration may be refused with; the last is none that KIS has."""


_STRAY: Final = ("OPSP0000", "OPSP0000", "OPSP0001", "OPSP0002", *CODES[:4])
"""An answer nobody asked for may say anything, yes before all."""


@attrs.frozen
class Step:
    """One thing that goes wrong.

    Attributes:
        dt: seconds after the step before.
        kind: one of :data:`KINDS` or :data:`ORDER_KINDS`.
        lasts: seconds.
        value: a number, as the kind says.
        count: how many ACKs or frames it hits; those of a burst are shared by the topics it hits.
        topic: number of the topic it hits; -1 for all.
        code: of a NACK.
    """

    dt: float
    kind: str
    lasts: float = 0.0
    value: float = 0.0
    count: int = 1
    topic: int = -1
    code: str = ""


@attrs.frozen
class Setup:
    """The world before anything goes wrong.

    Attributes:
        scale: what the rules' times are divided by.
        horizon: seconds of trouble; then everything heals.
        rate_hz: frames a second, all topics together.
        topics: how many the programs want.
        cap: registrations that KIS allows.
        priorities: topics have different ones.
        latency_s: the longest way of a byte; chopped: reads end anywhere.
        keepalive: the kernels look for dead connections.
        before_midnight_s: the day changes so long after the start; 0: it does not.
        pinned: the first topic is pinned in the configuration.
        notices: an HTS ID is configured.
        acknowledge_close: KIS answers a close frame.
        debug: every log line is made and searched for secrets.
        orders: there is an account, and a program that orders.
    """

    scale: float = 1.0
    horizon: float = HORIZON_S
    rate_hz: float = 1.0
    topics: int = 3
    cap: int = 41
    priorities: bool = False
    latency_s: float = 0.02
    chopped: bool = True
    keepalive: bool = True
    before_midnight_s: float = 0.0
    pinned: bool = False
    notices: bool = False
    acknowledge_close: bool = True
    debug: bool = False
    orders: bool = False


@attrs.frozen
class Case:
    """A run as data; ``seed`` decides everything that is drawn while it runs."""

    seed: int
    setup: Setup
    steps: tuple[Step, ...]

    def to_map(self) -> dict[str, Any]:
        """For a replay file; what has its default is left out of the steps."""
        return {
            "seed": self.seed,
            "config": attrs.asdict(self.setup),
            "schedule": [
                {
                    field.name: getattr(step, field.name)
                    for field in attrs.fields(Step)
                    if getattr(step, field.name) != field.default
                }
                for step in self.steps
            ],
        }

    @classmethod
    def from_map(cls, data: Mapping[str, Any]) -> Case:
        """Read what :meth:`to_map` made.

        Raises:
            KeyError, TypeError: it is anything else.
        """
        steps = tuple(Step(**step) for step in data["schedule"])
        return cls(int(data["seed"]), Setup(**data["config"]), steps)


def read_replay(path: Path) -> tuple[Case, Mapping[str, Any]]:
    """A replay file: the case, and everything that the file says.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is no replay file.
    """
    data = json.loads(path.read_text("utf-8"))
    return Case.from_map(data), data


def draw(seed: int, horizon: float = HORIZON_S) -> Case:
    """The case of a seed."""
    rng = seeded_rng(seed)
    scale = SCALE if rng.random() < 0.5 else 1.0
    busy = rng.random() < 0.05
    setup = Setup(
        scale=scale,
        horizon=horizon,
        rate_hz=20.0 if busy else 1.0,
        topics=rng.choice([1, 1, 2, 2, 3, 3, 4, 5, 8, 45]),
        cap=rng.choice([41, 41, 41, 41, 40, 3, 2]),
        priorities=rng.random() < 0.3,
        latency_s=rng.choice([0.001, 0.02, 0.02, 0.3]),
        chopped=rng.random() < 0.7,
        keepalive=rng.random() < 0.7,
        before_midnight_s=rng.choice([0.0, 0.0, 0.0, 100.0, 250.0]),
        pinned=rng.random() < 0.2,
        notices=rng.random() < 0.2,
        acknowledge_close=rng.random() < 0.7,
        debug=rng.random() < 0.05,
        orders=rng.random() < 0.25,
    )
    if rng.random() < 0.3:
        family = rng.choice(_FAMILIES)
        liking = rng.sample(family, rng.randint(2, len(family)))
    else:
        liking = rng.sample(KINDS, rng.choice([1, 2, 4, 8, 16, len(KINDS)]))
    pause = rng.choice([1.0, 5.0, 20.0] if scale > 1 else [5.0, 20.0, 60.0])
    ends = horizon - rng.uniform(1.0, 20.0)
    steps = _steps(rng, liking, pause, ends, scale)
    if setup.orders:
        # Placing is what makes the others mean anything.
        kinds = [*rng.sample(ORDER_KINDS, 4), "place", "place", "again"]
        steps = _merged(steps, _steps(rng, kinds, rng.choice([4.0, 15.0]), ends, scale))
    if any(step.kind == Trouble.DISK_FULL for step in steps):
        # A budget that could not be written dies with its process: said so in `status`.
        steps = [s for s in steps if s.kind not in {Trouble.KILL, Trouble.STOP}]
    if setup.topics > _THIN_TOPICS:
        # What KIS forgot is found by its silence, after many usual pauses: here, within hours.
        steps = [s for s in steps if s.kind != "kis.drop_key"]
    return Case(seed, setup, tuple(steps))


def _steps(
    rng: Seeded, kinds: Sequence[str], pause: float, ends: float, scale: float
) -> list[Step]:
    steps = []
    dt = rng.uniform(1.0, 20.0)
    while dt < ends:
        steps.append(_step(rng, dt, rng.choice(kinds), scale))
        ends -= dt
        dt = rng.expovariate(1 / pause)
    return steps


def _merged(one: Sequence[Step], two: Sequence[Step]) -> list[Step]:
    """Both, each step when it was."""
    timed = []
    for steps in (one, two):
        at = 0.0
        for step in steps:
            at += step.dt
            timed.append((at, step))
    timed.sort(key=lambda item: item[0])
    befores = [0.0, *(at for at, _ in timed)]
    return [
        attrs.evolve(step, dt=round(at - before, 3))
        for before, (at, step) in zip(befores, timed, strict=False)
    ]


def _step(rng: Seeded, dt: float, kind: str, scale: float) -> Step:
    # Around the rules' own times, which are what can be got wrong.
    lasts = rng.choice([0.2, 4.0, 12.0, 30.0, 59.9, 60.1, 91.0, 130.0, 900.0]) / scale
    topic = rng.choice([-1, rng.randrange(8)])
    dt = round(dt, 3)
    lasts = round(min(lasts, HORIZON_S), 3)
    if not kind.startswith("kis."):
        return Step(dt, kind, lasts, _value(rng, Trouble(kind), scale), topic=topic)
    fault = Kind(kind.removeprefix("kis."))
    if fault in _KIS_AT_ONCE:
        return Step(dt, kind, value=rng.choice([0.0, 1001.0, 1011.0]))
    if fault in _KIS_FOR_A_WHILE:
        return Step(dt, kind, lasts, topic=topic)
    value = {
        Kind.ACK_LATE: rng.choice([0.5, 2.9, 3.1, 7.0]) / scale,
        Kind.ACK_TWICE: rng.choice([0.0, 1.0]),
        Kind.CAP: rng.choice([0.0, 2.0, 3.0, 41.0]),
        Kind.HUGE: rng.choice([0.0, 600_000.0]),
        Kind.EXTRA_COLUMN: rng.choice([0.0, 3.0]),
        Kind.ORDER_LATE: rng.choice([1.0, 9.0, 14.0]),
    }.get(fault, 0.0)
    return Step(
        dt,
        kind,
        value=value,
        count=rng.choice([1, 1, 2] if fault in _ORDER_FAULTS else [1, 1, 2, 5, 50]),
        topic=topic,
        code=rng.choice(_STRAY if fault is Kind.STRAY_ACK else CODES),
    )


def _value(rng: Seeded, trouble: Trouble, scale: float) -> float:
    match trouble:
        case Trouble.CUT_UP | Trouble.CUT_DOWN:
            return float(rng.choice([0, 1, 2, 7, 100, 300, 1000, rng.randrange(3000)]))
        case Trouble.KILL | Trouble.STOP:
            return round(rng.choice([0.1, 1.0, 10.0]) / scale, 3)
        case Trouble.CLOCK_STEP:
            return rng.choice([-86_400.0, -3600.0, -1.0, 1.0, 3600.0, 86_400.0])
        case Trouble.SUSPEND:
            return rng.choice([1.0, 10.0, 600.0, 10_000.0])
        case Trouble.CHURN | Trouble.RETUNE | Trouble.PLACE | Trouble.AGAIN | Trouble.CANCEL:
            return float(rng.randrange(10))
        case Trouble.STORM:
            return rng.choice([2.0, 2.0, 2.0, 10.0])
        case Trouble.HOSTILE:
            return rng.choice([1.0, 5.0, 100.0, 20_000.0])
        case _:
            return 0.0


def halves(steps: tuple[Step, ...], pieces: int) -> list[tuple[Step, ...]]:
    """*steps* with each of *pieces* taken out in turn; what follows happens when it did."""
    size = math.ceil(len(steps) / pieces)
    return [without(steps, first, first + size) for first in range(0, len(steps), size)]


def without(steps: tuple[Step, ...], first: int, last: int) -> tuple[Step, ...]:
    """*steps* but those from *first* to before *last*; the rest keeps its times."""
    pause = sum(step.dt for step in steps[first:last])
    rest = list(steps[last:])
    if rest:
        rest[0] = attrs.evolve(rest[0], dt=round(rest[0].dt + pause, 3))
    return (*steps[:first], *rest)
