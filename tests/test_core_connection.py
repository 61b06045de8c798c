"""The connection state machine, against a model server that counts for itself, in virtual time."""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import json
import math
import random
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import config, schemas
from kisfeed.core.breaker import BreakerRecord
from kisfeed.core.connection import (
    TRANSITIONS,
    Change,
    Close,
    Connection,
    Dial,
    DialFailure,
    FetchKey,
    IllegalInput,
    Input,
    Output,
    Reason,
    SaveHygiene,
    State,
    diagram,
)
from kisfeed.core.pacing import Hygiene
from kisfeed.limits import Limits, Window, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMITS: Limits = resolve(schemas.load("limits.kis.json"), "real", dt.date(2026, 11, 20))
RULES = config.Session()
LIVE = (State.AUTHENTICATED, State.SUBSCRIBED, State.STREAMING, State.DEGRADED)


def connection(hygiene: Hygiene | None = None, now: float = 0.0, jitter: float = 0.5) -> Connection:
    return Connection(RULES, LIMITS, lambda: jitter, hygiene or Hygiene(), now)


def of(kind: type[Any], outputs: list[Output]) -> list[Any]:
    return [o for o in outputs if isinstance(o, kind)]


def dialled(c: Connection, now: float) -> float:
    """Wait until *c* has dialled; returns when."""
    out = c.want(now) if c.state is State.IDLE else []
    for _ in range(50):
        if of(FetchKey, out):
            out = c.key_ready(now)
        if of(Dial, out):
            return now
        now = max(now, c.next_deadline())
        out = c.timer(now)
    raise AssertionError("no dial")


def subscribed(c: Connection, now: float) -> float:
    """Bring *c* to where every registration is acknowledged; returns when."""
    now = dialled(c, now)
    c.opened(c.epoch, now)
    c.acked(now)
    c.settled(now)
    return now


def streaming(c: Connection, now: float) -> float:
    """Bring *c* to STREAMING; returns when."""
    now = subscribed(c, now)
    c.data(now)
    assert c.state is State.STREAMING
    return now


# the table


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("what", Input)
def test_only_listed_transitions_exist(state: State, what: Input) -> None:
    c = connection()
    dialled(c, 0.0)
    c.state = state
    out: list[Output] = []
    if (state, what) in TRANSITIONS:
        c._step(what, Reason.RETRY, 1.0, out)
        assert c.state is TRANSITIONS[state, what]
        assert all(isinstance(o, Change) and (o.old, o.new) == (state, c.state) for o in out)
    else:
        with pytest.raises(IllegalInput):
            c._step(what, Reason.RETRY, 1.0, out)
        assert (c.state, out) == (state, [])


def test_every_state_is_reached_and_left() -> None:
    reached = {State.IDLE}
    for _ in State:
        reached |= {new for (old, _), new in TRANSITIONS.items() if old in reached}
    assert reached == set(State)
    assert all(
        any(old is s and new is not s for (old, _), new in TRANSITIONS.items()) for s in State
    )


def test_the_diagram_shows_every_arrow_of_the_table_and_no_other() -> None:
    text = diagram()
    assert text.startswith("stateDiagram-v2\n    [*] --> IDLE\n")
    arrows = {
        tuple(line.split(":")[0].split(" --> "))
        for line in text.splitlines()[2:]
        for line in [line.strip()]
    }
    assert arrows == {(o.value, n.value) for (o, _), n in TRANSITIONS.items() if o is not n}


class Recorder(Connection):
    """Writes down every pair of the table it goes through."""

    seen: set[tuple[State, Input]]

    def _step(self, what: Input, reason: Reason, now: float, out: list[Output]) -> None:
        self.seen.add((self.state, what))
        super()._step(what, reason, now, out)


Call: TypeAlias = "Callable[[Connection, float, random.Random], list[Output]]"

ANYWHERE: list[Call] = [
    lambda c, now, _: c.want(now),
    lambda c, now, _: c.want(now),
    lambda c, now, _: c.timer(now),
    lambda c, now, _: c.override(now),
    lambda c, now, r: c.unwant(
        now, r.choice([Reason.STOPPED, Reason.NO_INTEREST, Reason.CLOSED_HOURS])
    ),
    lambda c, now, r: c.release(r.choice([5.0, 1800.0]), now),
    lambda c, now, r: c.market(r.random() < 0.5, r.choice([None, now + 4000.0]), now),
    lambda c, now, r: c.suspended(r.choice([3.0, 900.0]), now),
    lambda c, now, _: c.opened(c.epoch - 1, now),
    lambda c, now, _: c.lost(c.epoch - 1, Reason.RESET, now),
]
IN_SESSION: list[Call] = [
    lambda c, now, _: c.acked(now),
    lambda c, now, _: c.settled(now),
    lambda c, now, _: c.unsettled(now),
    lambda c, now, _: c.data(now),
    lambda c, now, _: c.data(now),
    lambda c, now, _: c.pingpong(now),
    lambda c, now, r: c.degraded(r.choice([Reason.LINK_SILENT, Reason.FEED_STALLED]), now),
    lambda c, now, _: c.repaired(now),
    lambda c, now, r: c.lost(c.epoch, r.choice([Reason.LOST, Reason.RESET]), now),
    lambda c, now, _: c.in_use(now),
    lambda c, now, _: c.key_refused(now),
    lambda c, now, _: c.resync(now),
    lambda c, now, _: c.link_dead(now),
    lambda c, now, _: c.looped(now),
]
FOR_KEY: list[Call] = [
    lambda c, now, _: c.key_ready(now),
    lambda c, now, _: c.key_ready(now),
    lambda c, now, r: c.key_failed(now, refused=r.random() < 0.3),
]
FOR_DIAL: list[Call] = [
    lambda c, now, _: c.opened(c.epoch, now),
    lambda c, now, _: c.opened(c.epoch, now),
    lambda c, now, r: c.dial_failed(c.epoch, r.choice(list(DialFailure)), now),
    lambda c, now, _: c.lost(c.epoch, Reason.LOST, now),
]


def walk(seed: int, steps: int, seen: set[tuple[State, Input]]) -> None:
    """Call anything that may be called, at any time; check what must always hold."""
    rng = random.Random(seed)
    c = Recorder(RULES, LIMITS, rng.random, Hygiene(), 0.0)
    c.seen = seen
    now, fetching, dialling, dials = 0.0, False, False, 0
    for _ in range(steps):
        due = c.next_deadline()
        if rng.random() < 0.4 and due < math.inf:
            now = max(now, due)
            out = c.timer(now)
            for _ in range(3):
                out += c.timer(now) if c.next_deadline() <= now else []
            assert c.next_deadline() > now, "a timer that does nothing would spin"
        else:
            now = min(now + rng.choice([0.0, 0.1, 5.0, 61.0]), max(now, due))
            calls = ANYWHERE
            if fetching and rng.random() < 0.6:
                fetching, calls = False, FOR_KEY
            elif dialling and rng.random() < 0.7:
                dialling, calls = False, FOR_DIAL
            elif c.live and rng.random() < 0.8:
                calls = IN_SESSION
            out = rng.choice(calls)(c, now, rng)
        fetching = fetching or bool(of(FetchKey, out))
        for before, output in itertools.pairwise([None, *out]):
            if isinstance(output, Dial):
                dialling = True
                dials += 1
                assert isinstance(before, SaveHygiene), "on disk before the dial"
                assert before.record.dialling
        assert c.live is (c.state in LIVE)
        assert (c.next_try is not None) is (c.state is State.RECONNECT_BACKOFF)
        if c.state in (State.CONNECTING, State.AUTHENTICATED, State.DEGRADED):
            assert c.next_deadline() < math.inf
        json.dumps(c.status(now), allow_nan=False)
    assert c.epoch == dials


def test_anything_in_any_order_takes_listed_transitions_only_and_takes_them_all() -> None:
    seen: set[tuple[State, Input]] = set()
    for seed in range(330):
        walk(seed, 150, seen)
    assert seen == set(TRANSITIONS)


# the model server and its weather

WEATHER = (
    "fine",
    "quiet",
    "refused",
    "timed_out",
    "no_route",
    "dns",
    "upgrade_failed",
    "kicked",
    "kicked_acked",
    "frozen",
    "in_use",
    "key_refused",
    "key_unavailable",
)


@attrs.define(eq=False)
class Seen:
    """A session as the server saw it."""

    at: float
    until: float = math.inf
    neutral: bool = False  # ended by our own clean stop, or dialled by a person's order


@attrs.define(eq=False)
class World:
    """One connection, its disk, and a server with weather, on one virtual timeline."""

    weather: list[tuple[float, str, float]]  # until, kind, parameter
    rng: random.Random
    commands: float = 0.0  # mean seconds between two commands; 0 for none
    limits: Limits = LIMITS
    now: float = 0.0
    seen: list[Seen] = attrs.Factory(list)
    dials: list[float] = attrs.Factory(list)
    changes: list[Change] = attrs.Factory(list)
    keys: int = 0
    disk: tuple[Hygiene, float] = (Hygiene(), 0.0)
    running: int = 0
    alive: bool = False
    _events: list[tuple[float, int, Callable[[], None]]] = attrs.Factory(list)
    _order: Iterator[int] = attrs.Factory(itertools.count)
    _shift: float = 0.0
    _overridden: bool = False
    _stopped: list[int] = attrs.Factory(list)
    connection: Connection = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start()
        if self.commands:
            self.command()

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what))

    def start(self) -> None:
        """A new process reads the disk; its clock has a zero of its own."""
        self.running += 1
        self.alive = True
        self._shift = self.rng.uniform(0, 1e6)
        record, written = self.disk
        record = Hygiene.from_map(json.loads(json.dumps(record.to_map()))).aged(self.now - written)
        self.connection = Connection(
            RULES, self.limits, self.rng.random, record, self.now + self._shift
        )
        self.do(lambda c, now: c.want(now))

    def do(self, call: Callable[[Connection, float], list[Output]]) -> None:
        for output in call(self.connection, self.now + self._shift):
            match output:
                case SaveHygiene(record=record):
                    self.disk = (record, self.now)
                case FetchKey():
                    self.keys += 1
                    self._for_this_process(self.rng.uniform(0, 3), self.answer_key)
                case Dial(epoch=epoch):
                    self.dials.append(self.now)
                    self.dial(epoch)
                case Close(abort=abort):
                    self.end_session(self.rng.uniform(0, 2) if abort else self.rng.uniform(0, 1))
                case Change():
                    self.changes.append(output)

    def _for_this_process(self, seconds: float, what: Callable[[], None]) -> None:
        running = self.running
        self.after(seconds, lambda: what() if self.running == running else None)

    def kind(self) -> tuple[str, float]:
        return next(((k, p) for until, k, p in self.weather if self.now < until), ("fine", 0.0))

    def answer_key(self) -> None:
        if self.kind()[0] == "key_unavailable":
            refused = self.rng.random() < 0.2
            self.do(lambda c, now: c.key_failed(now, refused=refused))
        else:
            self.do(lambda c, now: c.key_ready(now))

    def dial(self, epoch: int) -> None:
        kind, parameter = self.kind()
        took = self.rng.choice([0.0, 0.05, self.rng.uniform(0, 9.9)])
        if kind in ("refused", "timed_out", "no_route", "dns"):
            failure = DialFailure(kind)
            self._for_this_process(
                took, lambda: self.do(lambda c, now: c.dial_failed(epoch, failure, now))
            )
            return
        running = self.running
        self.after(self.rng.uniform(0, took), lambda: self.accept(running))
        if kind == "upgrade_failed":
            self._for_this_process(took, lambda: self.fail_upgrade(epoch))
        else:
            self._for_this_process(took, lambda: self.open(epoch, kind, parameter))

    def accept(self, running: int) -> None:
        orphan = self.running != running  # the process ended while its dial was on the way
        self.seen.append(
            Seen(
                self.now,
                self.now if orphan else math.inf,
                neutral=self._overridden or (orphan and running in self._stopped),
            )
        )
        self._overridden = False

    def fail_upgrade(self, epoch: int) -> None:
        self.end_session(0)
        self.do(lambda c, now: c.dial_failed(epoch, DialFailure.UPGRADE_FAILED, now))

    def end_session(self, seconds: float) -> None:
        if self.seen and math.isinf(self.seen[-1].until):
            self.seen[-1].until = self.now + seconds

    def open(self, epoch: int, kind: str, parameter: float) -> None:
        self.do(lambda c, now: c.opened(epoch, now))

        def live(seconds: float, call: Callable[[Connection, float], list[Output]]) -> None:
            def late() -> None:
                if self.connection.live and self.connection.epoch == epoch:
                    self.do(call)

            self._for_this_process(seconds, late)

        def kicked(seconds: float) -> None:
            how = self.rng.choice([Reason.LOST, Reason.RESET])

            def kick(c: Connection, now: float) -> list[Output]:
                self.end_session(0)
                return c.lost(epoch, how, now)

            live(seconds, kick)

        match kind:
            case "in_use":
                live(0.1, lambda c, now: c.in_use(now))
            case "key_refused":
                live(0.1, lambda c, now: c.key_refused(now))
                live(4.0, lambda c, now: c.key_refused(now))
                kicked(parameter)
            case "kicked":
                kicked(parameter)
            case "fine" | "quiet" | "kicked_acked":
                live(0.1, lambda c, now: c.acked(now))
                live(0.2, lambda c, now: c.settled(now))
                self.session(kind, live)
                if kind == "kicked_acked" or parameter:
                    kicked(parameter if kind == "kicked_acked" else 60 + parameter * 30)
            case _:
                pass

    def session(
        self,
        kind: str,
        live: Callable[[float, Callable[[Connection, float], list[Output]]], None],
    ) -> None:
        if kind == "fine":
            live(0.3, lambda c, now: c.data(now))
        for beat in range(12, 200, 12):
            live(beat, lambda c, now: c.pingpong(now))
        if kind == "quiet":
            for probe in range(70, 4000, 60):
                live(probe, lambda c, now: c.repaired(now))

    def die(self, at_least: float = 0.1) -> None:
        """The process is gone, and something starts it again soon."""
        self.alive = False
        self.running += 1
        self._for_this_process(self.rng.uniform(at_least, 10), self.start)

    def command(self) -> None:
        self.after(self.rng.expovariate(1 / self.commands), self.command)
        what = self.rng.choice(
            ["kill", "kill", "stop", "override", "resync", "market", "interest", "release"]
        )
        if not self.alive:
            return
        match what:
            case "kill":
                self.end_session(0)
                self.die()
            case "stop":
                self._stopped.append(self.running)
                self.do(lambda c, now: c.unwant(now, Reason.STOPPED))
                if self.seen and self.seen[-1].until >= self.now:
                    self.seen[-1].neutral = True
                self.die(at_least=1.0)  # a process that stops waits for its close
            case "override":
                self._overridden = not self.connection.live
                self.do(lambda c, now: c.override(now))
            case "resync" if self.connection.live:
                self.do(lambda c, now: c.resync(now))
            case "release":
                for_s = self.rng.choice([30.0, 1800.0])
                self.do(lambda c, now: c.release(for_s, now))
            case "market":
                opens = self.now + self._shift + self.rng.uniform(0, 7200)
                is_open = self.rng.random() < 0.5
                self.do(lambda c, now: c.market(is_open, opens, now))
            case "interest":
                self.do(lambda c, now: c.unwant(now, Reason.NO_INTEREST))
                self._for_this_process(1.0, lambda: self.do(lambda c, now: c.want(now)))
            case _:
                pass

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        while not stop():
            due = self.connection.next_deadline() - self._shift if self.alive else math.inf
            event = self._events[0][0] if self._events else math.inf
            at = min(due, event)
            if at > until:
                self.now = until
                return
            self.now = max(self.now, at)
            if event <= due:
                heapq.heappop(self._events)[2]()
            else:
                # The shift costs a bit of the float; the clock may be a hair early.
                self.now += 1e-6
                self.do(lambda c, now: c.timer(now))


def check(world: World) -> None:
    """What the server says must be true, by its own count."""
    stamps = sorted(s.at for s in world.seen)
    for window in LIMITS.dials:
        for nth, at in enumerate(stamps[window.count :]):
            assert at - stamps[nth] > window.seconds, f"{window}: {stamps[nth]} .. {at}"
    row, last_end = 0, -math.inf
    for one, two in itertools.pairwise([*world.seen, Seen(math.inf)]):
        end = min(one.until, two.at)
        assert one.until <= two.at or math.isinf(one.until), "two sessions at once"
        if end - one.at >= RULES.min_lifetime_s:
            row = 0
        elif not one.neutral:
            row, last_end = row + 1, end
        if row >= RULES.young_sessions_to_trip and not two.neutral:
            # The pause starts with our Close; the socket may stand a little longer.
            pause = RULES.breaker_pauses_s[0] - RULES.close_timeout_s
            assert two.at - last_end >= pause, "through an open breaker"


def storm(seed: int, *, commands: bool) -> World:
    rng = random.Random(seed)
    weather, until = [], 0.0
    liking = rng.sample(WEATHER, rng.randint(1, 5))
    while until < 30_000:
        until += rng.choice([rng.uniform(1, 120), rng.uniform(60, 7200)])
        weather.append((until, rng.choice(liking), rng.choice([0.0, 0.3, 5.0, 59.9, 60.1, 130.0])))
    world = World(weather, rng, commands=rng.choice([20.0, 300.0, 3000.0]) if commands else 0.0)
    world.run(36_000)
    return world


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_storm_makes_us_dial_more_than_the_rules_as_the_server_counts(seed: int) -> None:
    check(storm(seed, commands=False))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_neither_do_restarts_crashes_and_commands(seed: int) -> None:
    check(storm(seed, commands=True))


def test_fifty_kills_in_a_minute_dial_no_more_than_one_process() -> None:
    world = World([], random.Random(1))
    for n in range(50):
        world.after(n * 1.2, lambda: world.end_session(0))
        world.after(n * 1.2, world.start)  # a start ends whatever ran before
    world.run(60.0)
    assert len(world.seen) <= 3
    world.run(3600.0)
    check(world)
    assert world.connection.state is State.STREAMING


def test_the_same_seed_gives_the_same_run() -> None:
    one, two = storm(7, commands=True), storm(7, commands=True)
    assert (one.dials, one.changes) == (two.dials, two.changes)


# how long until it is back


def heal_wait(kind: str, parameter: float, outage: float, seed: int) -> float:
    """Seconds from the end of an outage to the first dial after it."""
    start, healed = 300.0, 300.0 + outage
    world = World([(start, "fine", 0.0), (healed, kind, parameter)], random.Random(seed))
    world.run(start)
    assert world.connection.state is State.STREAMING
    world.end_session(0)
    world.do(lambda c, now: c.lost(c.epoch, Reason.RESET, now))
    world.run(healed)
    if world.connection.live:
        return 0.0
    before = len(world.dials)
    world.run(healed + 10_000, stop=lambda: len(world.dials) > before or world.connection.live)
    assert world.now < healed + 9_000
    return world.now - healed


OUTAGES = [1.0, 7.0, 30.0, 61.0, 200.0, 700.0, 1800.0, 3600.0, 5000.0, 7200.0]


@pytest.mark.parametrize(
    ("kind", "parameter", "worst"),
    [
        ("no_route", 0.0, 41.0),
        ("dns", 0.0, 41.0),
        ("refused", 0.0, 131.0),
        ("timed_out", 0.0, 131.0),
        ("kicked", 61.0, 600.0),
        ("kicked_acked", 61.0, 600.0),
        ("kicked_acked", 100.0, 600.0),
        ("frozen", 0.0, 600.0),
        # The breaker's own pauses, which are longer by design.
        ("upgrade_failed", 0.0, 3601.0),
        ("kicked", 1.0, 3601.0),
        ("in_use", 0.0, 901.0),
    ],
)
def test_after_an_outage_the_next_dial_comes_in_time(
    kind: str, parameter: float, worst: float
) -> None:
    waits = [heal_wait(kind, parameter, o, seed) for o in OUTAGES for seed in range(4)]
    assert max(waits) <= worst


# one rule at a time


def test_accept_then_close_backs_off_further_each_time_and_then_stops() -> None:
    c, now, dials = connection(), 0.0, []
    for _ in range(4):
        now = dialled(c, now)
        dials.append(now)
        c.opened(c.epoch, now)
        c.acked(now)
        c.data(now)
        c.lost(c.epoch, Reason.LOST, now + 0.01)
        now += 0.01
    # Twice the minimum lifetime since the dial, then the breaker.
    assert [b - a for a, b in itertools.pairwise(dials)] == pytest.approx([60, 60, 600.01])
    assert (c.state, c.reason) == (State.RECONNECT_BACKOFF, Reason.BREAKER)
    assert c.next_try == pytest.approx(dials[-1] + 0.01 + 1200)


@pytest.mark.parametrize(
    ("lived", "fed", "acked", "resets"),
    [
        (60.1, "data", True, True),
        (60.1, "pingpong", True, True),
        (59.9, "data", True, False),
        (60.1, "", True, False),
        (60.1, "data", False, False),
        (3600.0, "", True, False),
    ],
)
def test_backoff_is_reset_only_after_a_lifetime_with_an_ack_and_data_or_pingpong(
    lived: float, fed: str, acked: bool, resets: bool
) -> None:
    c = connection()
    now = dialled(c, 0.0)
    for _ in range(4):
        c.dial_failed(c.epoch, DialFailure.REFUSED, now)
        now = dialled(c, now)
    assert c.status(now)["backoff_failures"] == 4
    c.opened(c.epoch, now)
    if acked:
        c.acked(now)
        c.settled(now)
    if fed:
        c.data(now + 1) if fed == "data" else c.pingpong(now + 1)
    c.lost(c.epoch, Reason.LOST, now + lived)
    assert c.status(now)["backoff_failures"] == (1 if resets else 5)


def test_local_failures_have_a_quick_count_of_their_own_and_cost_nothing() -> None:
    c, now, gaps = connection(), 0.0, []
    now = dialled(c, now)
    for how in [DialFailure.NO_ROUTE, DialFailure.DNS] * 5:
        c.dial_failed(c.epoch, how, now)
        assert c.reason.value == how.value
        last, now = now, dialled(c, now)
        gaps.append(now - last)
    assert gaps == [0.75, 1.5, 3, 6, 12, 22.5, 22.5, 22.5, 22.5, 22.5]
    c.dial_failed(c.epoch, DialFailure.NO_ROUTE, now)
    assert [w["left"] for w in c.status(now)["budget"]] == [3, 12, 60]  # type: ignore[attr-defined]
    assert c.status(now)["backoff_failures"] == 0


def test_a_failed_upgrade_is_charged_and_young_and_a_refused_connect_is_neither() -> None:
    for how, young in ((DialFailure.UPGRADE_FAILED, 1), (DialFailure.REFUSED, 0)):
        c = connection()
        now = dialled(c, 0.0)
        record = of(SaveHygiene, c.dial_failed(c.epoch, how, now))[-1].record
        assert (len(record.dials), record.breaker.young) == (young, young)


def test_a_dial_that_never_answers_is_given_up_and_charged() -> None:
    c = connection()
    now = dialled(c, 0.0)
    out = c.timer(now + 12.0)
    assert Close(1, Reason.TIMED_OUT, abort=True) in out
    assert c.opened(1, now + 13.0) == [], "late"
    assert c.lost(1, Reason.LOST, now + 13.0) == []
    assert [w["left"] for w in c.status(now)["budget"]] == [2, 11, 59]  # type: ignore[attr-defined]


def test_events_of_an_old_epoch_are_ignored_and_epochs_rise() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.lost(1, Reason.LOST, now + 100)
    now = dialled(c, now + 100)
    assert c.epoch == 2
    for late in (
        c.opened(1, now),
        c.dial_failed(1, DialFailure.REFUSED, now),
        c.lost(1, Reason.RESET, now),
    ):
        assert late == []
    assert c.state is State.CONNECTING


def test_our_own_stop_is_charged_but_no_young_death() -> None:
    c = connection()
    now = streaming(c, 0.0)
    out = c.unwant(now + 1, Reason.STOPPED)
    assert of(Close, out) == [Close(1, Reason.STOPPED, abort=False)]
    record = out[-1].record  # type: ignore[union-attr]  # the last one saves
    assert (record.breaker.young, len(record.dials), record.open) == (0, 1, False)
    again = connection(record.aged(1.0), 77.0)
    assert dialled(again, 77.0) == 77.0


def test_a_crash_with_a_session_open_waits_until_kis_has_forgotten_it() -> None:
    c = connection()
    now = subscribed(c, 0.0)
    c.data(now)
    record = of(SaveHygiene, c.data(now + 61) + c.pingpong(now + 61))[-1].record
    assert (record.open, record.proved) == (True, True)
    again = connection(record.aged(500.0), 5.0)
    out = again.want(5.0)
    assert isinstance(out[0], SaveHygiene)
    assert (again.reason, again.next_try) == (Reason.UNCLOSED, 25.0)


def test_a_crash_loop_of_unproved_sessions_opens_the_breaker_once() -> None:
    record, now, levels = Hygiene(), 0.0, []
    c = connection()
    for _ in range(12):
        c = connection(record, now)
        out = c.want(now)
        if of(FetchKey, out):
            out += c.key_ready(now)
        record = (of(SaveHygiene, out) or [SaveHygiene(record)])[-1].record.aged(61.0)
        levels.append(record.breaker.level)
        now += 61.0
    assert levels[-1] == 1
    assert c.reason is Reason.BREAKER


def test_the_learned_hold_comes_from_the_wait_that_worked() -> None:
    c = connection(Hygiene(open=True, proved=True))
    now = dialled(c, 0.0)
    assert now == 20.0
    c.opened(c.epoch, now)
    c.in_use(now)
    assert c.status(now)["in_use"] == {"holder": "own", "times": 1, "ago_s": 0.0}
    now = dialled(c, now)
    assert now == 80.0
    c.opened(c.epoch, now)
    record = c.acked(now)[-1].record  # type: ignore[union-attr]  # it saves
    assert (record.hold_s, record.in_use, record.unclosed_s) == (80.0, 0, None)


def in_use_tries(c: Connection, now: float, until: float) -> list[float]:
    """Dial and be refused with OPSP8996 until *until*; returns the waits."""
    waits: list[float] = []
    while True:
        c.opened(c.epoch, now)
        out = c.in_use(now)
        assert not of(FetchKey, out), "the key is not reissued"
        assert of(Close, out) == [Close(c.epoch, Reason.IN_USE, abort=False)]
        assert c.reason is Reason.IN_USE
        assert c.next_try is not None
        if c.next_try > until:
            return waits
        last, now = now, dialled(c, now)
        waits.append(now - last)


def test_in_use_waits_longer_and_then_every_quarter_of_an_hour() -> None:
    c = connection()
    assert in_use_tries(c, dialled(c, 0.0), 5000.0) == [60, 300, 900, 900, 900, 900, 900]
    assert c.status(5000.0)["in_use"] is not None


def test_in_use_tries_hourly_when_closed_and_once_five_minutes_before_the_open() -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.market(False, 10_000.0, now)
    assert in_use_tries(c, now, 9_900.0) == [60, 300, 3600, 3600, 10_000 - 300 - 7560]
    c.market(True, None, 10_000.0)
    assert c.next_try == 9_700.0 + 900


def test_a_stranger_cannot_shorten_the_pause_by_mixing_reasons() -> None:
    c = connection()
    now = dialled(c, 0.0)
    for _ in range(2):
        c.dial_failed(c.epoch, DialFailure.UPGRADE_FAILED, now)
        now = dialled(c, now)
    c.opened(c.epoch, now)
    c.in_use(now)
    assert c.next_try == now + 600


def test_an_order_by_a_person_goes_past_the_breaker_but_not_past_the_budget() -> None:
    c, now = connection(), 0.0
    for _ in range(3):
        now = dialled(c, now)
        c.dial_failed(c.epoch, DialFailure.UPGRADE_FAILED, now)
    assert c.status(now)["reason"] == "breaker"
    c.override(now + 1)
    assert c.status(now)["reason"] == "min_lifetime"
    assert c.next_try == now + 60
    now = dialled(c, now + 1)
    for _ in range(5):
        c.opened(c.epoch, now)
        c.in_use(now)
        c.override(now + 60)
        if c.state is State.RECONNECT_BACKOFF:
            break
        now += 60
    assert c.status(now)["reason"] == "budget"


def test_a_refused_key_is_replaced_once_and_the_session_kept() -> None:
    c = connection()
    now = streaming(c, 0.0)
    assert c.key_refused(now) == [FetchKey(fresh=True)]
    assert c.key_refused(now) == []
    c.key_ready(now + 1)
    assert c.key_refused(now + 2) == []
    assert c.state is State.STREAMING
    assert c.next_deadline() == now + 602
    c.acked(now + 3)
    assert c.key_refused(now + 4) == [], "an ACK of this session came before"


def test_a_live_session_whose_keys_are_refused_asks_ever_more_rarely_and_never_stops() -> None:
    c = connection()
    now = streaming(c, 0.0)
    asked = of(FetchKey, c.key_refused(now))
    waits = []
    for _ in range(5):
        c.key_ready(now + 1)
        assert c.key_refused(now + 1) == []
        last, now = now + 1, c.next_deadline()
        waits.append(now - last)
        asked += of(FetchKey, c.timer(now))
    assert waits == [600, 1200, 2400, 3600, 3600]
    assert asked == [FetchKey(fresh=True)] * 6
    c.key_failed(now, refused=False)
    assert c.next_deadline() == now + 7.5
    assert of(FetchKey, c.timer(now + 7.5))
    c.key_failed(now + 8, refused=True)
    assert c.next_deadline() == now + 608
    assert c.state is State.STREAMING


def test_a_pause_between_two_keys_goes_on_while_the_machine_sleeps() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.key_refused(now)
    c.key_ready(now)
    c.key_refused(now)
    c.suspended(590.0, now)
    assert c.next_deadline() == now + 10
    assert of(FetchKey, c.timer(now + 10)) == [FetchKey(fresh=True)]


def test_a_young_session_is_lent_for_as_long_as_asked_once_it_can_be_closed() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.release(30.0, now + 1)
    out = c.timer(c.next_deadline())
    assert of(Close, out) == [Close(1, Reason.RELEASED, abort=False)]
    assert (c.state, c.next_deadline()) == (State.IDLE, now + 90)
    assert c.state is not State.IDLE or of(Dial, c.timer(now + 90))


def test_a_loan_that_is_over_before_the_session_may_be_closed_leaves_it_alone() -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.release(30.0, now)
    c.opened(1, now + 1)
    c.acked(now + 1)
    c.settled(now + 1)
    c.data(now + 1)
    assert c.timer(now + 61) == []
    assert (c.state, c.next_deadline()) == (State.STREAMING, math.inf)


@pytest.mark.parametrize("server_closes", [True, False])
def test_a_key_that_is_always_refused_costs_one_reissue_and_one_more_dial(
    server_closes: bool,
) -> None:
    c, keys = connection(), []
    now = dialled(c, 0.0)
    for _ in range(2):
        c.opened(c.epoch, now)
        keys += of(FetchKey, c.key_refused(now))
        if c._fetching:
            c.key_ready(now + 1)
            assert not server_closes or c.lost(c.epoch, Reason.LOST, now + 1)
        if c.live:
            c.key_refused(now + 2)
            assert server_closes or c.live, "no voluntary close of a young session"
        if c.live and server_closes:
            c.lost(c.epoch, Reason.LOST, now + 2)
        if c.live:
            out = c.timer(c.next_deadline())
            assert of(Close, out) == [Close(c.epoch, Reason.KEY_REJECTED, abort=False)]
            now += 60
        if c.reason is Reason.BREAKER:
            break
        now = dialled(c, now + 2)
    assert (c.epoch, len(keys), c.reason) == (2, 1, Reason.BREAKER)
    assert c.status(now)["breaker"]["reason"] == "key_refused"  # type: ignore[index]


def test_without_a_key_nobody_dials_and_nothing_is_charged() -> None:
    c = connection()
    out = c.want(0.0)
    gaps, now = [], 0.0
    for _ in range(6):
        assert of(FetchKey, out)
        assert not of(Dial, out)
        c.key_failed(now, refused=False)
        assert (c.state, c.reason) == (State.RECONNECT_BACKOFF, Reason.KEY_UNAVAILABLE)
        gaps.append(c.next_deadline() - now)
        now = c.next_deadline()
        out = c.timer(now)
    assert gaps == [7.5, 15, 30, 60, 90, 90]
    c.key_failed(now, refused=True)
    assert c.next_try == now + 600
    assert [w["left"] for w in c.status(now)["budget"]] == [3, 12, 60]  # type: ignore[attr-defined]


def test_a_key_that_never_comes_is_not_waited_for_for_ever() -> None:
    c = connection()
    c.want(0.0)
    c.timer(30.0)
    assert c.reason is Reason.KEY_UNAVAILABLE
    again = connection()
    again.want(0.0)
    again.timer(30.0)
    assert of(FetchKey, again.timer(again.next_deadline())), "it is asked for once more"
    c.key_ready(31.0)
    out = c.timer(c.next_deadline())
    assert of(Dial, out)
    assert not of(FetchKey, out)


def test_an_old_key_is_renewed_before_the_next_dial() -> None:
    for age, fetches in ((82_799.0, []), (82_800.0, [FetchKey(fresh=True)])):
        c = connection()
        now = streaming(c, 0.0)
        c.lost(1, Reason.LOST, now + age - 3.75)
        out = c.timer(c.next_deadline())
        assert of(FetchKey, out) == fetches


def test_a_resync_waits_for_the_lifetime_and_for_the_budget() -> None:
    c = connection()
    now = streaming(c, 0.0)
    assert c.resync(now + 1) == []
    assert c.next_deadline() == now + 60
    out = c.timer(now + 60)
    assert of(Close, out) == [Close(1, Reason.RESYNC, abort=False)]
    for _ in range(4):
        now = dialled(c, c.next_deadline())
        c.opened(c.epoch, now)
        c.acked(now)
        c.data(now)
        c.lost(c.epoch, Reason.LOST, now + 61)
    now = streaming(c, now + 61)
    assert c.resync(now + 100) == []
    assert c.next_deadline() == now + 600, "not before the sixth dial's turn"


def test_a_session_closed_on_purpose_after_its_lifetime_with_data_was_a_good_one() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.lost(1, Reason.LOST, now + 1)
    now = streaming(c, c.next_deadline())
    c.resync(now + 1)
    c.timer(c.next_deadline())
    assert c.status(now)["backoff_failures"] == 1, "its own end"


def test_a_session_lent_before_it_opened_is_closed_after_its_lifetime() -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.release(1800.0, now)
    c.opened(1, now + 1)
    c.acked(now + 1)
    c.settled(now + 1)
    c.data(now + 1)
    assert c.next_deadline() == now + 61
    out = c.timer(now + 61)
    assert of(Close, out) == [Close(1, Reason.RELEASED, abort=False)]


@pytest.mark.parametrize(("lived", "young"), [(59.9, 1), (60.0, 0)])
def test_a_session_that_lived_a_minute_did_not_die_young(lived: float, young: int) -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.lost(1, Reason.LOST, now + lived)
    assert c._breaker.young == young


@pytest.mark.parametrize("heard", ["data", "pingpong"])
def test_a_session_is_a_good_one_from_the_first_sign_of_life_after_its_minute_on(
    heard: str,
) -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.opened(1, now)
    c.acked(now)
    listen = c.data if heard == "data" else c.pingpong
    assert of(SaveHygiene, listen(now + 59)) == []
    (saved,) = of(SaveHygiene, listen(now + 60))
    assert saved.record.proved
    assert of(SaveHygiene, listen(now + 61)) == []


def test_who_is_heard_at_the_moment_of_the_doubt_is_not_dead() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.pingpong(now)
    c.degraded(Reason.FEED_STALLED, now)
    assert of(Close, c.timer(c.next_deadline())) == []
    assert c.live


def test_an_answer_that_says_nothing_new_is_not_written_down() -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.opened(1, now)
    assert of(SaveHygiene, c.acked(now)) == []


def test_the_wait_after_a_young_death_goes_on_while_the_machine_sleeps() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.lost(1, Reason.LOST, now + 1)
    assert (c.reason, c.next_try) == (Reason.MIN_LIFETIME, now + 60)
    assert of(Dial, c.suspended(100.0, now + 2))


def test_a_dead_link_is_aborted_and_then_waited_for() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.degraded(Reason.LINK_SILENT, now)
    assert (c.state, c.next_deadline()) == (State.DEGRADED, now + 45)
    out = c.timer(now + 45)
    assert of(Close, out) == [Close(1, Reason.LINK_DEAD, abort=True)]
    assert (c.reason, c.next_try) == (Reason.UNCLOSED, now + 65)


def test_silence_of_data_alone_never_kills_a_session() -> None:
    c = connection()
    now = subscribed(c, 0.0)
    probes = 0
    for _ in range(500):
        now = min(now + 12, c.next_deadline())
        out = c.timer(now) + c.pingpong(now)
        if c.state is State.DEGRADED:
            assert c.reason is Reason.NO_DATA
            probes += 1
            out += c.repaired(now)
            assert of(Change, out)[-1].new is State.SUBSCRIBED
        assert not of(Close, out)
    assert 5 <= probes <= 12, "ever more rarely"
    c.degraded(Reason.FEED_STALLED, now)
    asked = 0
    for _ in range(50):
        now += 12
        asked += len(of(Change, c.pingpong(now) + c.timer(now)))
    assert c.state is State.DEGRADED
    assert asked >= 10, "it asks for probes"


def test_a_closed_market_for_twelve_hours_causes_no_dial_and_the_next_open_does() -> None:
    c = connection()
    now = streaming(c, 0.0) + 3600
    opens = now + 43_200
    c.market(False, opens, now)
    assert c.state is State.STREAMING, "an open session stays"
    c.lost(1, Reason.LOST, now + 5)
    assert (c.reason, c.next_deadline()) == (Reason.CLOSED_HOURS, opens - 600)
    assert of(Dial, c.timer(c.next_deadline()))


def test_an_unknown_next_open_parks_until_it_is_told() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.market(False, None, now)
    c.lost(1, Reason.LOST, now)
    assert c.next_deadline() == math.inf
    assert c.status(now)["next_try_in_s"] is None
    assert of(Dial, c.market(True, None, now + 1000))


def test_the_first_dial_may_be_made_at_any_hour_and_a_failed_one_is_not_repeated_all_night() -> (
    None
):
    c = connection()
    c.market(False, 40_000.0, 0.0)
    now = dialled(c, 0.0)
    assert now == 0.0
    c.dial_failed(1, DialFailure.NO_ROUTE, now)
    now = dialled(c, now)
    c.dial_failed(2, DialFailure.REFUSED, now)
    assert c.next_try == 39_400.0
    assert of(Dial, c.override(now + 1)), "unless a person says so"


def test_a_key_refused_outside_hours_is_not_asked_for_all_night() -> None:
    c = connection()
    c.market(False, 40_000.0, 0.0)
    assert of(FetchKey, c.want(0.0))
    c.key_failed(1.0, refused=True)
    assert (c.reason, c.next_try) == (Reason.CLOSED_HOURS, 39_400.0)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_session_that_opens_for_nobody_is_closed_outside_hours(*, is_open: bool) -> None:
    c = connection()
    c.market(is_open, 40_000.0, 0.0)
    now = dialled(c, 0.0)
    c.unwant(now, Reason.NO_INTEREST)
    c.opened(1, now)
    c.acked(now)
    c.settled(now)
    c.data(now)
    assert c.next_deadline() == (math.inf if is_open else now + 60)


def test_losing_the_last_interest_closes_nothing_inside_hours() -> None:
    c = connection()
    now = streaming(c, 0.0)
    assert c.unwant(now, Reason.NO_INTEREST) == []
    assert c.next_deadline() == math.inf
    c.market(False, 90_000.0, now + 1)
    assert c.next_deadline() == now + 60, "outside hours, and not before its minimum"
    c.want(now + 2)
    assert c.next_deadline() == math.inf
    c.unwant(now + 3, Reason.NO_INTEREST)
    c.market(True, None, now + 4)
    assert c.next_deadline() == math.inf, "it opened meanwhile"
    c.market(False, 90_000.0, now + 5)
    out = c.timer(now + 60)
    assert of(Close, out) == [Close(1, Reason.NO_INTEREST, abort=False)]
    assert c.state is State.IDLE


def test_a_lost_session_nobody_wants_is_not_dialled_again() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.unwant(now, Reason.NO_INTEREST)
    c.lost(1, Reason.LOST, now + 100)
    assert (c.state, c.next_deadline()) == (State.IDLE, math.inf)


def test_a_released_session_is_lent_and_taken_back() -> None:
    c = connection()
    now = streaming(c, 0.0)
    assert c.release(1800.0, now + 10) == []
    out = c.timer(c.next_deadline())
    assert of(Close, out) == [Close(1, Reason.RELEASED, abort=False)]
    assert (c.state, c.reason, c.next_deadline()) == (State.IDLE, Reason.RELEASED, now + 1860)
    assert c.want(now + 100) == [], "interest does not end it"
    assert of(Dial, c.timer(now + 1860))


def test_barren_loops_open_the_breaker_and_close_an_old_enough_session() -> None:
    c = connection()
    now = subscribed(c, 0.0)
    for _ in range(4):
        assert c.looped(now + 70) == []
    out = c.looped(now + 70)
    assert of(Close, out) == [Close(1, Reason.BARREN_LOOPS, abort=False)]
    assert (c.reason, c.next_try) == (Reason.BREAKER, now + 70 + 600)


def test_a_suspended_machine_is_suspect_at_once_and_its_pauses_went_on() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.suspended(900.0, now)
    assert (c.state, c.reason) == (State.DEGRADED, Reason.SUSPENDED)
    c.link_dead(now + 5)
    assert c.next_try == now + 25
    assert of(Dial, c.suspended(3600.0, now + 6)), "it was waited for while asleep"


@pytest.mark.parametrize(("slept", "dials"), [(5.0, False), (3600.0, True)])
def test_what_was_lent_comes_back_to_a_machine_that_slept_over_it(
    slept: float, dials: bool
) -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.release(1800.0, now)
    assert (c.state, c.reason) == (State.IDLE, Reason.RELEASED)
    assert bool(of(Dial, c.suspended(slept, now + 60))) is dials
    if not dials:
        assert c.next_deadline() == now + 1800 - slept


def test_a_scaled_profile_does_everything_sooner() -> None:
    c = Connection(RULES.scaled(60), LIMITS, lambda: 0.5, Hygiene(), 0.0)
    now, dials = 0.0, []
    for _ in range(4):
        now = dialled(c, now)
        dials.append(now)
        c.opened(c.epoch, now)
        c.lost(c.epoch, Reason.LOST, now)
    assert [b - a for a, b in itertools.pairwise(dials)] == pytest.approx([1, 1, 10])


def test_a_tighter_configuration_binds() -> None:
    rules = attrs.evolve(RULES, dials=(Window(1, 500.0),))
    c = Connection(rules, LIMITS, lambda: 0.5, Hygiene(), 0.0)
    now = streaming(c, 0.0)
    c.lost(1, Reason.LOST, now + 100)
    assert c.reason is Reason.BUDGET
    assert c.next_try == pytest.approx(now + 505)


def test_no_session_no_session_events() -> None:
    c = connection()
    for call in (c.acked, c.settled, c.data, c.pingpong, c.in_use, c.link_dead, c.resync):
        with pytest.raises(IllegalInput):
            call(0.0)
    assert c.state is State.IDLE


# what mutants of this module showed to be untold


def barren_loops(c: Connection, now: float) -> object:
    return c.status(now)["breaker"]["barren_loops"]  # type: ignore[index]


def test_data_forgive_the_loops_before_them() -> None:
    c = connection()
    now = streaming(c, 0.0)
    for _ in range(4):
        c.looped(now)
    c.data(now + 1)
    assert barren_loops(c, now) == 0
    for _ in range(4):
        assert c.looped(now + 2) == []


def test_data_end_no_doubt_of_the_link() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.degraded(Reason.LINK_SILENT, now + 1)
    c.data(now + 2)
    assert (c.state, c.reason) == (State.DEGRADED, Reason.LINK_SILENT)


def test_the_windows_of_the_budget_go_on_while_the_machine_sleeps() -> None:
    c, now = connection(), 0.0
    for _ in range(3):
        now = dialled(c, now)
        c.opened(c.epoch, now)
        c.acked(now)
        c.data(now)
        c.lost(c.epoch, Reason.LOST, now + 61)
        now += 61
    assert [w["left"] for w in c.status(now)["budget"]][1] == 9  # type: ignore[attr-defined]
    assert of(Dial, c.suspended(3700.0, now))
    assert [w["left"] for w in c.status(now)["budget"]] == [2, 11, 56]  # type: ignore[attr-defined]


def test_a_key_grows_old_while_the_machine_sleeps() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.suspended(82_800.0, now + 1)
    c.link_dead(now + 6)
    assert of(FetchKey, c.timer(c.next_deadline())) == [FetchKey(fresh=True)]


def test_a_loan_that_nobody_waits_for_wakes_nobody() -> None:
    c = connection()
    c.release(30.0, 0.0)
    assert (c.state, c.next_deadline()) == (State.IDLE, math.inf)
    c.want(1.0)
    assert c.next_deadline() == 30.0


def test_after_a_close_of_ours_the_next_dial_waits_until_the_socket_is_gone() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.unwant(now, Reason.STOPPED)
    c.want(now + 0.5)
    assert c.next_try == now + RULES.close_timeout_s


@pytest.mark.parametrize(("heard", "loops"), [("", 1), ("data", 0), ("pingpong", 0)])
def test_a_whole_session_in_which_nothing_came_is_a_loop(heard: str, loops: int) -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.opened(c.epoch, now)
    if heard:
        c.data(now) if heard == "data" else c.pingpong(now)
    c.resync(now + 61)
    assert c.state is State.RECONNECT_BACKOFF
    assert barren_loops(c, now + 61) == loops


def test_the_first_key_may_be_the_one_at_hand() -> None:
    assert of(FetchKey, connection().want(0.0)) == [FetchKey(False)]


@pytest.mark.parametrize(("dialling", "next_try"), [(False, 30.0), (True, 40.0)])
def test_a_restart_waits_out_the_lifetime_of_a_session_that_died_young(
    next_try: float, *, dialling: bool
) -> None:
    record = Hygiene(dials=(30.0,), dialling=dialling, breaker=BreakerRecord(young=1))
    c = connection(record)
    c.want(0.0)
    assert (c.next_try, c.reason) == (next_try, Reason.MIN_LIFETIME)


def test_a_dial_that_is_given_up_is_over_and_counts_from_then_on() -> None:
    c = connection()
    dialled(c, 0.0)
    due = c.next_deadline()
    (saved,) = of(SaveHygiene, c.timer(due))
    assert (saved.record.dialling, saved.record.dials) == (False, (0.0,))


def test_the_same_market_told_again_moves_nothing() -> None:
    c = connection()
    now = subscribed(c, 0.0)
    due = c.next_deadline()
    assert c.market(True, None, now + 30) == []
    assert c.next_deadline() == due
    c.market(True, 9000.0, now + 30)
    assert c.next_deadline() == due + 30
    assert c.market(True, 9000.000_002, now + 40) == []  # of two clocks, read one after the other
    assert c.next_deadline() == due + 30


def test_data_are_a_sign_of_life_to_who_doubts() -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.opened(c.epoch, now)
    c.settled(now)
    c.degraded(Reason.FEED_STALLED, now + 10)
    due = c.next_deadline()
    c.data(now + 20)
    assert of(Close, c.timer(due)) == []
    assert c.state is State.DEGRADED


def test_a_dial_has_its_time_though_the_machine_slept() -> None:
    c = connection()
    dialled(c, 0.0)
    due = c.next_deadline()
    c.suspended(5.0, 6.0)
    assert c.next_deadline() == due


def test_one_wait_is_the_longest_where_there_is_only_one() -> None:
    rules = attrs.evolve(RULES, in_use_waits_s=(60.0,))
    c = Connection(rules, LIMITS, lambda: 0.5, Hygiene(open=True, proved=True), 0.0)
    now = dialled(c, 0.0)
    c.opened(c.epoch, now)
    c.in_use(now)
    now = dialled(c, now)
    c.opened(c.epoch, now)
    (saved,) = of(SaveHygiene, c.acked(now))
    assert saved.record.hold_s == 60.0


def test_a_session_that_was_proved_is_no_loop_however_it_ends() -> None:
    c = connection()
    now = streaming(c, 0.0)
    c.looped(now + 10)
    c.pingpong(now + 61)
    before = barren_loops(c, now + 61)
    c.link_dead(now + 100)
    assert barren_loops(c, now + 100) == before


def test_the_first_data_end_the_doubt_that_none_come() -> None:
    c = connection()
    subscribed(c, 0.0)
    due = c.next_deadline()
    c.timer(due)
    assert (c.state, c.reason) == (State.DEGRADED, Reason.NO_DATA)
    c.data(due + 1)
    assert c.status(due + 1)["state"] == State.STREAMING


def test_losing_the_last_interest_outside_hours_closes() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    c.market(False, None, now)
    assert of(Close, c.unwant(now, Reason.NO_INTEREST)) == [
        Close(c.epoch, Reason.NO_INTEREST, abort=False)
    ]


def test_the_wait_after_in_use_goes_on_while_the_machine_sleeps() -> None:
    c = connection()
    now = dialled(c, 0.0)
    c.opened(c.epoch, now)
    c.in_use(now)
    c.suspended(30.0, now)
    assert c.next_try == now + 30.0


def test_a_key_that_came_forgets_how_often_it_did_not() -> None:
    c = connection()
    out, now, waits = c.want(0.0), 0.0, []
    for _ in range(3):
        assert of(FetchKey, out)
        c.key_failed(now, refused=False)
        assert c.next_try is not None
        waits.append(c.next_try - now)
        now = c.next_try
        out = c.timer(now)
    assert waits == sorted(set(waits))
    c.key_ready(now)
    c.opened(c.epoch, now)
    c.lost(c.epoch, Reason.LOST, now)
    now += RULES.approval_key_age_s
    assert of(FetchKey, c.timer(now))
    c.key_failed(now, refused=False)
    assert c.next_try == now + waits[0]


def test_a_network_that_was_well_starts_its_local_pauses_anew() -> None:
    c = connection()
    now = dialled(c, 0.0)
    waits = []
    for _ in range(3):
        c.dial_failed(c.epoch, DialFailure.DNS, now)
        assert c.next_try is not None
        waits.append(c.next_try - now)
        now = dialled(c, c.next_try)
    assert waits == sorted(set(waits))
    c.opened(c.epoch, now)
    c.acked(now)
    c.data(now)
    c.lost(c.epoch, Reason.LOST, now + 61)
    now = dialled(c, now + 61)
    c.dial_failed(c.epoch, DialFailure.DNS, now)
    assert c.next_try == now + waits[0]


def test_how_long_kis_holds_a_session_is_learnt_up_to_five_minutes() -> None:
    c = connection(Hygiene(open=True, proved=True))
    now = dialled(c, 0.0)
    for _ in range(4):  # 60 s, 5 min, 15 min: our own remains do not stand so long
        c.opened(c.epoch, now)
        c.in_use(now)
        now = dialled(c, now)
    c.opened(c.epoch, now)
    record = c.acked(now)[-1].record  # type: ignore[union-attr]  # it saves
    assert now > 300.0
    assert record.hold_s == 300.0


def test_what_goes_to_disk_says_how_long_ago_a_session_was_left_open() -> None:
    c = connection()
    now = streaming(c, 0.0) + 100
    (saved,) = of(SaveHygiene, c.lost(c.epoch, Reason.RESET, now))[-1:]
    assert saved.record.unclosed_s == 0.0
    now = dialled(c, now)
    out = c.opened(c.epoch, now) + c.lost(c.epoch, Reason.LOST, now + 5)
    (saved,) = of(SaveHygiene, out)[-1:]
    assert saved.record.unclosed_s == now + 5 - 100
