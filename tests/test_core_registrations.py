"""The slot market against a model of KIS that counts for itself."""

from __future__ import annotations

import enum
import heapq
import itertools
from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.config import Session
from kisfeed.core.interest import Interest
from kisfeed.core.registrations import (
    AckMissing,
    CapLearned,
    Freed,
    Held,
    Output,
    Preempted,
    ProbeFailed,
    ProbePassed,
    Promoted,
    Refused,
    Registrations,
    Resync,
    ResyncReason,
    State,
    Subscribe,
    Unsubscribe,
)
from kisfeed.kis.codes import SUBSCRIBED, Meaning
from kisfeed.limits import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kisfeed.kis.catalogue import RegKey

OPS = Window(5, 1.0)
NOTICE = ("H0STCNI0", "someone")
NACKS = (
    Meaning.OVER_CAP,
    Meaning.PERMANENT,
    Meaning.TRANSIENT,
    Meaning.UNKNOWN,
    Meaning.CLIENT_BUG,
)


def key(n: int) -> RegKey:
    return ("H0STCNT0", f"{n:06}")


class Fault(enum.Enum):
    """What becomes of an answer; a NACK changes nothing at the server."""

    LOST = enum.auto()
    TWICE = enum.auto()
    LATE = enum.auto()
    NACK = enum.auto()


class Server:
    """KIS as it counts: takes messages in order, answers in order, sooner or later."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.registered: dict[RegKey, None] = {}
        self.unacknowledged: dict[RegKey, None] = {}  # unsubscribed, not told so yet
        self.most = 0
        self.over_cap = 0
        self.sent_at: list[float] = []
        self.subscribed: dict[RegKey, list[float]] = {}
        self.unsubscribed: dict[RegKey, list[float]] = {}
        self.bad: dict[RegKey, Meaning] = {}

    def forget(self) -> None:
        self.registered.clear()
        self.unacknowledged.clear()

    def take(self, message: Subscribe | Unsubscribe, now: float) -> Meaning:
        self.sent_at.append(now)
        wanted = message.key
        if isinstance(message, Unsubscribe):
            self.unsubscribed.setdefault(wanted, []).append(now)
            self.registered.pop(wanted, None)
            self.unacknowledged[wanted] = None
            return Meaning.FREE
        if wanted in self.bad:
            return self.bad[wanted]
        if wanted in self.registered:
            return Meaning.HELD
        # A slot whose unsubscribe has not been answered may not be counted on yet.
        if len({**self.registered, **self.unacknowledged} | {wanted: None}) > self.cap:
            self.over_cap += 1
            if len(self.registered) >= self.cap:
                return Meaning.OVER_CAP
        self.subscribed.setdefault(wanted, []).append(now)
        self.registered[wanted] = None
        self.most = max(self.most, len(self.registered))
        return Meaning.HELD


_Delivery: TypeAlias = tuple[float, int, int, "RegKey", Meaning]


class World:
    """Registrations, their server, and the wire between them, in virtual time."""

    def __init__(
        self,
        cap: int = 41,
        server_cap: int | None = None,
        *,
        rules: Session | None = None,
        ops: Window = OPS,
        reserved: Sequence[RegKey] = (),
        pollable: Callable[[RegKey], bool] = lambda _key: True,
        reply_s: float = 0.01,
        resync_s: float = 60.0,
    ) -> None:
        self.rules = rules or Session()
        self.cap = cap
        self.ops = ops
        self.interest = Interest(self.rules)
        self.regs = Registrations(
            self.rules, cap, ops, self.interest, reserved=reserved, pollable=pollable
        )
        self.server = Server(cap if server_cap is None else server_cap)
        self.now = 0.0
        self.epoch = 0
        self.told: list[Output] = []
        self.swapped_at: list[float] = []
        self.faults: list[tuple[Fault, Meaning]] = []
        self.overdue: set[RegKey] = set()
        self.reply_s = reply_s
        self.resync_s = resync_s
        self._wire: list[_Delivery] = []
        self._last_answer_at = 0.0
        self._serial = itertools.count()
        self._resync_at = float("inf")

    def up(self) -> World:
        self.epoch += 1
        self.do(self.regs.session_up(self.epoch, self.now))
        return self

    def down(self, *, excused: bool = False) -> World:
        self.server.forget()
        self._wire.clear()
        self._last_answer_at = self.now
        self._resync_at = float("inf")
        self.do(self.regs.session_down(self.now, excused=excused))
        return self

    def do(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.told.append(output)
            match output:
                case Subscribe() | Unsubscribe():
                    self._send(output)
                case Held(key=held):
                    assert held in self.server.registered, f"{held} told held too early"
                case Preempted(key=lost):
                    self.swapped_at.append(self.now)
                    assert not self.interest.standing(lost).score.pinned, f"pinned {lost} evicted"
                    assert lost != NOTICE
                case Resync():
                    self._resync_at = self.now + self.resync_s
                case _:
                    pass
        self.check()

    def _ack(self, about: RegKey, meaning: Meaning) -> list[Output]:
        code, overdue = f"CODE-{meaning}", about in self.overdue
        return self.regs.ack(about, meaning, code, self.now, overdue=overdue)

    def _send(self, message: Subscribe | Unsubscribe) -> None:
        fault, nack = self.faults.pop(0) if self.faults else (None, Meaning.UNKNOWN)
        if fault is Fault.NACK and not (
            nack is Meaning.OVER_CAP and isinstance(message, Unsubscribe)
        ):
            self.server.sent_at.append(self.now)
            self._answer(message.key, nack, 1, self.reply_s)
            return
        meaning = self.server.take(message, self.now)
        delay = 8.0 if fault is Fault.LATE else self.reply_s
        copies = {Fault.LOST: 0, Fault.TWICE: 2}.get(fault, 1) if fault is not None else 1
        self._answer(message.key, meaning, copies, delay)

    def _answer(self, about: RegKey, meaning: Meaning, copies: int, delay: float) -> None:
        self._last_answer_at = max(self._last_answer_at, self.now + delay)
        for _ in range(copies):
            serial = next(self._serial)
            heapq.heappush(self._wire, (self._last_answer_at, serial, self.epoch, about, meaning))

    def check(self) -> None:
        states = {k: self.regs.state(k) for k in self.server.registered}
        unknown = [k for k, s in states.items() if s is None or s in _WITHOUT_A_SLOT]
        assert not unknown, f"the server holds what we do not count: {unknown}"
        for holder in self.regs.holders():
            if holder.state is State.HELD:
                assert holder.key in self.server.registered, f"{holder.key} wrongly held"
        assert self.regs.used <= self.cap

    def run(self, seconds: float) -> World:
        """Let time pass: answers arrive, deadlines fall due."""
        end = self.now + seconds
        for _ in range(100_000):
            answer_at = self._wire[0][0] if self._wire else float("inf")
            at = min(answer_at, self.regs.next_deadline(), self._resync_at)
            if at > end:
                self.now = end
                return self
            self.now = max(self.now, at)
            if at == self._resync_at:
                self.down(excused=True).up()
            elif at == answer_at:
                _, _, _, about, meaning = heapq.heappop(self._wire)
                if meaning is Meaning.FREE:
                    self.server.unacknowledged.pop(about, None)
                self.do(self._ack(about, meaning))
            else:
                self.do(self.regs.timer(self.now))
        raise AssertionError("no quiet in sight")

    def want(self, *keys: RegKey, by: object = "client", prio: int = 0) -> World:
        for wanted in keys:
            self.interest.add(wanted, by, self.now, prio=prio)
        self.do(self.regs.changed(self.now))
        return self

    def leave(self, *keys: RegKey, by: object = "client") -> World:
        for left in keys:
            self.interest.remove(left, by, self.now)
        self.do(self.regs.changed(self.now))
        return self

    def ack(self, about: RegKey, meaning: Meaning) -> list[Output]:
        before = len(self.told)
        self.do(self._ack(about, meaning))
        return self.told[before:]

    @property
    def held(self) -> list[RegKey]:
        return [h.key for h in self.regs.holders() if h.state is State.HELD]

    def all_told(self, kind: type[Output]) -> list[Output]:
        return [output for output in self.told if isinstance(output, kind)]

    @property
    def swaps(self) -> int:
        return len(self.all_told(Preempted))


_WITHOUT_A_SLOT = (State.WAITING, State.QUARANTINED, State.CLOSED)


def keys(first: int, last: int) -> list[RegKey]:
    return [key(n) for n in range(first, last + 1)]


def most_in(times: Sequence[float], seconds: float) -> int:
    """The most of *times* in any window of *seconds*, its end excluded."""
    most, start = 0, 0
    for i, at in enumerate(times):
        while times[start] <= at - seconds + 1e-9:
            start += 1
        most = max(most, i - start + 1)
    return most


# Properties, over random plans of interest, faults and time.


@attrs.frozen
class Step:
    kind: str
    n: int = 0
    who: int = 0
    prio: int = 0
    flag: bool = False
    dt: float = 0.0
    fault: Fault = Fault.LOST
    nack: Meaning = Meaning.TRANSIENT


KINDS = ["add"] * 6 + ["remove"] * 4 + ["wait"] * 5 + ["fault"] * 4
KINDS += ["pin", "unpin", "reconnect", "data", "probe", "stray", "cap"]
STEPS = st.builds(
    Step,
    kind=st.sampled_from(KINDS),
    n=st.integers(0, 8),
    who=st.integers(0, 2),
    prio=st.sampled_from([0, 0, 0, 5]),
    flag=st.booleans(),
    dt=st.sampled_from([0.0, 0.02, 0.5, 3.1, 20.0, 61.0, 700.0]),
    fault=st.sampled_from(Fault),
    nack=st.sampled_from(NACKS),
)


def perform(world: World, step: Step) -> None:
    wanted, holder = key(step.n), ("client", step.who)
    interest = world.interest
    match step.kind:
        case "add":
            interest.add(wanted, holder, world.now, prio=step.prio, passive=step.flag)
        case "remove":
            if holder in interest.holders(wanted):
                interest.remove(wanted, holder, world.now)
        case "pin":
            if sum(interest.standing(k).score.pinned for k in interest.all_wanted()) < 2:
                interest.pin(wanted, world.now)
        case "unpin":
            interest.unpin(wanted, world.now)
        case "fault":
            world.faults.append((step.fault, step.nack))
        case "reconnect":
            world.down(excused=step.flag).run(step.dt).up()
        case "data":
            if wanted in world.server.registered:
                world.do(world.regs.data(wanted, world.now))
        case "probe":
            world.do(world.regs.probe(world.now))
        case "stray":  # nobody asked: unknown keys, no key at all
            world.ack(("(null)", "") if step.flag else key(90 + step.n), step.nack)
        case "cap":
            world.server.cap = 1 + step.n if step.flag else world.server.cap
        case _:
            world.run(step.dt)
    world.do(world.regs.changed(world.now))


def held_by_right(world: World) -> None:
    """After quiet: both sides agree, and no better claim is kept waiting."""
    assert sorted(world.held) == sorted(world.server.registered)
    assert world.regs.used == len(world.held)
    states = {k: world.regs.state(k) for k in world.interest.all_wanted()}
    waiting = [k for k, state in states.items() if state is State.WAITING]
    if waiting:
        assert world.regs.used == world.regs.cap
        best = max(world.interest.standing(k).score for k in waiting)
        held = [world.interest.standing(k).score for k in world.held]
        assert all(best <= score or score.pinned for score in held)


@given(plan=st.lists(STEPS, max_size=40))
@settings(max_examples=120)
def test_no_fault_breaks_the_ledger_and_quiet_ends_in_agreement(plan: list[Step]) -> None:
    world = World(cap=4).up()
    for step in plan:
        perform(world, step)
    world.faults.clear()
    world.server.cap = max(world.server.cap, 1)
    world.run(8 * 3600.0)
    held_by_right(world)
    assert world.regs.settled
    assert most_in(world.server.sent_at, world.ops.seconds) <= world.ops.count
    for times in [*world.server.subscribed.values(), *world.server.unsubscribed.values()]:
        assert most_in(times, 60.0) <= 9  # retries and reconnects included
    # Only a cap that moved under us is ever met, and then each time once.
    if not any(step.kind == "cap" for step in plan):
        assert world.server.over_cap == 0
        assert world.server.most <= 4


@given(plan=st.lists(STEPS, max_size=60))
@settings(max_examples=100)
def test_nothing_is_subscribed_and_unsubscribed_in_turn(plan: list[Step]) -> None:
    world = World(cap=3).up()
    for step in plan:
        if step.kind not in {"fault", "reconnect", "cap", "stray"}:
            perform(world, attrs.evolve(step, dt=min(step.dt, 20.0)))
    for wanted, times in world.server.unsubscribed.items():
        assert most_in(times, 60.0) <= 3
        assert most_in(world.server.subscribed.get(wanted, []), 60.0) <= 3


@given(
    server_cap=st.sampled_from([1, 3, 40, 41]),
    wanted=st.integers(1, 60),
    lost=st.lists(st.integers(0, 60), max_size=5),
)
@settings(max_examples=30)
def test_a_lower_cap_is_learned_and_never_looped_on(
    server_cap: int, wanted: int, lost: list[int]
) -> None:
    world = World(41, server_cap, ops=Window(100, 1.0))
    for n in range(max(lost, default=0) + 1):
        world.faults.append((Fault.LOST if n in lost else Fault.TWICE, Meaning.HELD))
    world.want(*keys(1, wanted)).up().run(900.0)
    assert len(world.held) == min(server_cap, wanted)
    refusals = world.server.over_cap
    assert refusals <= 1 + len(lost)  # one that was not heard is repeated
    assert world.all_told(CapLearned) == [CapLearned(server_cap)] * min(refusals, 1)
    world.run(12 * 3600.0)
    assert world.server.over_cap == refusals
    assert len(world.server.sent_at) <= wanted + 5 * len(lost) + 1


@pytest.mark.parametrize("meaning", [m for m in Meaning if m not in {Meaning.HELD, Meaning.FREE}])
def test_a_server_that_refuses_everything_is_asked_ever_less(meaning: Meaning) -> None:
    world = World()
    world.faults = [(Fault.NACK, meaning)] * 10_000
    world.want(*keys(1, 60)).up().run(3600.0)
    assert world.held == []
    subscribes = len(world.all_told(Subscribe))
    assert subscribes <= 60 * 8
    assert len(world.all_told(Unsubscribe)) <= 3 * subscribes
    world.run(3600.0)
    assert len(world.all_told(Subscribe)) - subscribes <= 60 * 4


def test_each_of_several_probes_is_sent_in_turn() -> None:
    world = World(ops=Window(100, 1.0)).want(*keys(1, 4)).up().run(10.0)
    for wanted in (key(3), key(1), key(4)):
        world.do(world.regs.probe(world.now, (wanted,)))
    world.do(world.regs.probe(world.now))  # one is on the way: it will tell as much
    world.run(10.0)
    assert world.all_told(ProbePassed) == [ProbePassed(k) for k in (key(3), key(1), key(4))]


def test_a_refusal_over_the_cap_holds_up_no_slot_that_comes_free() -> None:
    world = World(41, 2).want(*keys(1, 3)).up().run(5.0)
    assert world.held == keys(1, 2)
    world.leave(key(1)).run(5.0)
    assert sorted(world.held) == keys(2, 3)


def test_a_probe_whose_key_is_refused_leaves_its_slot_alone() -> None:
    world = World().want(key(1)).up().run(5.0)
    world.faults = [(Fault.NACK, Meaning.KEY_REFUSED)]
    world.do(world.regs.probe(world.now))
    world.run(1.0)
    world.do(world.regs.retry(key(1), world.now))
    world.run(30.0)
    assert world.held == [key(1)]
    assert world.all_told(Unsubscribe) == []


# Sessions.


def test_a_session_takes_up_the_notice_then_pins_then_the_best_scores() -> None:
    world = World(cap=6, reserved=[NOTICE])
    world.want(key(1), key(2)).want(key(3), prio=4).want(key(4), by="a").want(key(4), by="b")
    world.interest.pin(key(5), 0.0)
    world.interest.add(key(6), "dashboard", 0.0, passive=True)
    world.up().run(5.0)
    sent = [output.key for output in world.told if isinstance(output, Subscribe)]
    assert sent == [NOTICE, key(5), key(3), key(4), key(1), key(2)]
    assert world.regs.settled


def test_a_new_session_takes_up_what_the_last_one_held() -> None:
    world = World(cap=3).want(*keys(1, 3)).up().run(100.0)
    world.want(*keys(4, 5)).run(100.0)
    held = sorted(world.held)
    swaps = world.swaps
    world.down().run(10.0)
    assert not world.regs.settled
    world.up().run(3600.0)
    assert sorted(world.held) == held
    assert world.swaps == swaps


def test_what_was_let_go_between_two_sessions_comes_behind_what_was_wanted_first() -> None:
    world = World(cap=1, rules=Session(rotation="hold")).want(key(1)).up().run(100.0)
    world.down().leave(key(1)).want(key(2)).run(700.0).want(key(1)).up().run(1.0)
    assert world.held == [key(2)]


def test_a_topic_that_nobody_wants_any_more_is_not_taken_up() -> None:
    world = World(cap=3).want(*keys(1, 2)).leave(key(2)).up().run(10.0)
    assert world.held == [key(1)]
    assert world.regs.settled


def test_epochs_go_up_and_sessions_do_not_overlap() -> None:
    world = World().up()
    with pytest.raises(AssertionError):
        world.regs.session_up(2, 0.0)
    world.down()
    with pytest.raises(AssertionError):
        world.regs.session_up(1, 0.0)
    assert world.regs.session_down(0.0) == []
    assert world.regs.next_deadline() == float("inf")


def test_nothing_is_sent_without_a_session() -> None:
    world = World().want(*keys(1, 5)).run(100.0)
    assert world.told == []
    assert world.regs.state(key(1)) is State.WAITING
    assert world.regs.probe(world.now) == []


# The market.


def full(**options: object) -> World:
    """41 slots held, each topic wanted one second after the one before it, dwell over."""
    world = World(**options).up()  # type: ignore[arg-type]
    for wanted in keys(1, 41):
        world.want(wanted).run(1.0)
    return world.run(120.0)


def test_sixty_wanted_for_a_day_swap_only_while_they_settle() -> None:
    world = full()
    for wanted in keys(42, 60):
        world.want(wanted).run(1.0)
    world.run(600.0)
    assert world.swaps == 19
    assert sorted(world.held) == keys(20, 60)  # the least recent made room
    world.run(86_400.0)
    assert world.swaps == 19


@pytest.mark.parametrize("pause", [0.0, 5.0, 200.0, 500.0])
@pytest.mark.parametrize("prio", [0, 7])
def test_two_flapping_clients_move_at_most_six_slots_an_hour(pause: float, prio: int) -> None:
    world = World().up()
    mine, yours = keys(1, 35), keys(26, 60)
    world.want(*mine, by="x").want(*yours, by="y", prio=prio).run(900.0)
    world.swapped_at.clear()
    for _ in range(15):
        for who, topics, at in (("x", mine, 0), ("y", yours, prio)):
            world.leave(*topics, by=who).run(pause)
            world.want(*topics, by=who, prio=at).run(max(pause, 2.0))
    assert most_in(world.swapped_at, 3600.0) <= 6
    for times in world.server.unsubscribed.values():
        assert most_in(times, 60.0) <= 3


def test_subscribing_again_for_ever_moves_nothing() -> None:
    world = full()
    world.want(*keys(42, 60)).run(600.0)
    swaps = world.swaps
    for _ in range(200):
        world.want(*keys(1, 60), by="x").run(1.0)
    assert world.swaps == swaps


def test_among_equals_the_least_recent_makes_room_unwanted_ones_first() -> None:
    world = full()
    world.leave(key(30)).run(1.0)
    world.want(key(50)).run(1.0)
    assert world.all_told(Preempted) == [Preempted(key(30), key(50))]
    world.want(key(51)).run(1.0)
    assert world.all_told(Preempted)[1:] == [Preempted(key(1), key(51))]


def test_what_cannot_be_polled_goes_last_among_equals() -> None:
    world = full(pollable=lambda wanted: wanted[1] > "000005")
    world.want(key(50)).run(1.0)
    assert world.all_told(Preempted) == [Preempted(key(6), key(50))]


def test_hold_lets_equals_keep_their_slots_and_a_higher_score_still_evicts() -> None:
    world = full(rules=Session(rotation="hold"))
    world.want(key(50), key(51)).run(3600.0)
    assert world.swaps == 0
    assert not world.regs.admits(key(50))
    world.want(key(51), prio=1).run(1.0)
    assert world.all_told(Preempted) == [Preempted(key(1), key(51))]
    world.leave(key(7)).run(1.0)  # its slot goes to who came first
    assert key(1) in world.held


@pytest.mark.parametrize("better", ["pinned", "priority", "users"])
def test_a_higher_score_evicts_after_the_dwell(better: str) -> None:
    world = World(cap=1).want(key(1)).up().run(30.0)
    world.want(key(2), prio=1 if better == "priority" else 0)
    if better == "users":
        world.want(key(2), by="other")
    elif better == "pinned":
        world.interest.pin(key(2), world.now)
    world.do(world.regs.changed(world.now))
    world.run(29.9)
    assert world.held == [key(1)]
    assert world.regs.admits(key(2))
    world.run(1.0)
    assert world.held == [key(2)]
    assert not world.regs.admits(key(1))
    assert world.regs.state(key(1)) is State.WAITING


def test_an_evicted_topic_is_promoted_when_a_slot_is_free_and_not_before() -> None:
    world = full().want(key(50)).run(1.0)
    assert world.regs.state(key(1)) is State.WAITING
    world.run(7200.0)
    assert key(1) not in world.held
    world.interest.add(key(1), "recorder", world.now, passive=True)
    world.leave(key(1)).run(5.0)
    world.want(key(1)).run(3600.0)
    assert key(1) not in world.held, "it is the old interest"
    world.leave(key(9)).run(2.0)
    assert world.told[-2:] == [Held(key(1)), Promoted(key(1))]
    world.leave(key(2)).run(700.0)
    assert key(2) in world.held, "lazy release"


def test_who_left_meanwhile_is_not_promoted() -> None:
    world = World(cap=1).up().want(key(1)).run(100.0).want(key(2)).run(1.0)
    assert world.held == [key(2)]
    world.leave(key(1)).run(700.0).want(key(1)).run(1.0)
    assert world.told[-1] == Held(key(1))


def test_interest_that_is_new_again_takes_a_slot() -> None:
    world = full().want(key(50)).run(1.0)
    world.leave(key(1)).run(600.0)
    world.want(key(1)).run(1.0)
    assert key(1) in world.held


def test_passive_interest_neither_creates_nor_keeps_a_slot() -> None:
    world = full()
    world.interest.add(key(50), "recorder", world.now, passive=True)
    world.interest.add(key(3), "recorder", world.now, passive=True)
    world.leave(key(3)).run(10.0)
    assert world.swaps == 0
    world.want(key(51)).run(1.0)
    assert world.all_told(Preempted) == [Preempted(key(3), key(51))]


def test_swaps_come_in_a_burst_of_41_and_then_one_a_minute() -> None:
    world = full()
    world.leave(*keys(1, 41))
    started = world.now
    world.want(*keys(101, 141)).run(30.0)
    assert world.swaps == 41
    world.leave(*keys(101, 141)).want(*keys(201, 241)).run(600.0 - (world.now - started))
    assert 41 + 8 <= world.swaps <= 41 + 10


def test_old_interest_beyond_the_allowance_waits_for_slots_long_left() -> None:
    world = World().up().want(*keys(1, 60)).run(60.0)
    left = world.now
    world.leave(*keys(1, 10)).run(599.0)
    assert world.swaps == 6
    world.run(5.0)
    assert world.swaps == 10
    assert world.swapped_at[6] == left + 600.0


def test_of_the_slots_nobody_wants_the_longest_left_goes_first() -> None:
    world = full()
    world.leave(key(20)).run(5.0).leave(key(10)).run(5.0)
    world.want(key(50)).run(1.0)
    assert world.all_told(Preempted) == [Preempted(key(20), key(50))]


def test_what_comes_back_from_quarantine_displaces_no_equal() -> None:
    world = World(cap=2).up().want(key(1)).run(1.0)
    world.server.bad[key(2)] = Meaning.TRANSIENT
    world.want(key(2)).run(1.0).want(key(3)).run(10.0)
    assert world.held == [key(1), key(3)]
    world.server.bad.clear()
    world.run(3600.0)
    assert world.regs.state(key(2)) is State.WAITING
    assert world.swaps == 0


def test_a_topic_lifted_while_it_was_held_is_not_new_when_it_is_evicted() -> None:
    world = World(cap=1).up().want(key(2)).run(1.0).want(key(1)).run(100.0)
    world.want(key(1), prio=1).run(10.0).want(key(2), prio=2).run(100.0)
    assert world.held == [key(2)]
    swaps = world.swaps
    world.want(key(2), prio=1).run(3600.0)
    assert world.swaps == swaps


def test_two_topics_that_take_turns_are_not_subscribed_in_turn() -> None:
    world = World(cap=1, ops=Window(100, 1.0)).up()
    for _ in range(300):
        world.want(key(1), prio=2).run(0.5).leave(key(1))
        world.want(key(2), prio=1).run(0.5).leave(key(2))
    for times in [*world.server.subscribed.values(), *world.server.unsubscribed.values()]:
        assert most_in(times, 60.0) <= 3
        assert min((b - a for a, b in itertools.pairwise(times)), default=99.0) >= 29.0


def test_the_slot_goes_to_the_topic_it_was_emptied_for() -> None:
    world = full()
    world.reply_s = 1.0
    world.want(key(50)).run(0.5)
    world.leave(key(9)).want(key(1), prio=1)
    world.want(key(51), prio=9).run(0.6)
    assert world.told[-2:] == [Freed(key(1)), Subscribe(key(50))]


def test_the_unsubscribe_is_acknowledged_before_the_slot_is_used() -> None:
    world = World(cap=1, reply_s=2.0).want(key(1)).up().run(100.0)
    world.want(key(2))
    assert world.told[-2:] == [Preempted(key(1), key(2)), Unsubscribe(key(1))]
    world.run(1.9)
    assert world.told[-1] == Unsubscribe(key(1))
    world.run(0.2)
    assert world.told[-2:] == [Freed(key(1)), Subscribe(key(2))]


def test_over_limit_names_the_holders() -> None:
    world = full()
    world.want(*keys(1, 41), prio=5).want(key(7), prio=8)
    world.want(key(50))
    assert not world.regs.admits(key(50))
    world.want(key(50), prio=6)
    assert world.regs.admits(key(50))
    holders = world.regs.holders()
    assert len(holders) == 41
    assert holders[0].key == key(7)
    assert holders == sorted(holders, key=lambda holder: holder.score, reverse=True)
    assert not world.regs.admits(key(77))


# ACKs.


def test_a_silent_subscribe_is_repeated_twice_then_given_back_and_rested() -> None:
    world = World()
    world.faults = [(Fault.LOST, Meaning.HELD)] * 3
    world.want(key(1)).up().run(9.5)
    assert world.told == [
        Subscribe(key(1)),
        AckMissing(key(1), 1),
        Subscribe(key(1)),
        AckMissing(key(1), 2),
        Subscribe(key(1)),
        AckMissing(key(1), 3),
        Refused(key(1), "", permanent=False),
        Unsubscribe(key(1)),
        Freed(key(1)),
    ]
    assert world.regs.state(key(1)) is State.QUARANTINED
    world.run(60.0)
    assert world.held == [key(1)]


def test_a_silent_unsubscribe_ends_in_one_resync() -> None:
    world = World(cap=1, resync_s=1e9).want(key(1)).up().run(100.0)
    world.faults = [(Fault.LOST, Meaning.FREE)] * 3
    world.want(key(2)).run(50.0)
    assert world.all_told(Resync) == [Resync(ResyncReason.UNSUBSCRIBE_UNANSWERED)]
    assert len(world.all_told(Unsubscribe)) == 3
    assert world.regs.used == 1
    assert not world.regs.settled
    world.down().up().run(10.0)
    assert world.held == [key(2)]


@pytest.mark.parametrize("meaning", [Meaning.TRANSIENT, Meaning.PERMANENT])
def test_a_refused_unsubscribe_ends_in_one_resync(meaning: Meaning) -> None:
    world = World(cap=1, resync_s=1e9).want(key(1)).up().run(100.0)
    world.faults = [(Fault.NACK, meaning)] * 9
    world.want(key(2)).run(50.0)
    assert world.all_told(Resync) == [Resync(ResyncReason.UNSUBSCRIBE_REFUSED)]
    assert len(world.all_told(Unsubscribe)) == 3


def test_a_late_ack_after_the_retry_counts_once() -> None:
    world = World()
    world.faults = [(Fault.LATE, Meaning.HELD)]
    world.want(key(1)).up().run(20.0)
    assert world.all_told(Held) == [Held(key(1))]
    assert world.told.count(Subscribe(key(1))) == 3


@pytest.mark.parametrize("meaning", list(Meaning))
def test_an_answer_nobody_asked_for_changes_nothing(meaning: Meaning) -> None:
    world = World(cap=2).want(*keys(1, 2)).up().run(100.0)
    before = world.regs.status(world.now)
    for about in (key(1), key(9), ("(null)", "")):
        assert world.ack(about, meaning) == []
    assert world.regs.status(world.now) == before


def test_the_ack_of_an_older_operation_does_not_undo_the_newer() -> None:
    world = World(cap=1)
    world.faults = [(Fault.LOST, Meaning.HELD), (Fault.LOST, Meaning.HELD)]
    world.want(key(1)).up().run(1.0)
    world.do(world.regs.data(key(1), world.now))  # the data stands for the lost ACK
    world.run(100.0)
    world.want(key(2))
    assert world.told[-1] == Unsubscribe(key(1))
    assert world.ack(key(1), Meaning.HELD) == []  # of the subscribe, long ago
    assert world.regs.state(key(1)) is State.RELEASING


@pytest.mark.parametrize("meaning", [Meaning.PERMANENT, Meaning.CLIENT_BUG])
def test_a_permanent_refusal_closes_the_topic_until_it_is_reopened(meaning: Meaning) -> None:
    world = World()
    world.server.bad[key(1)] = meaning
    world.want(*keys(1, 2)).up().run(86_400.0)
    code = f"CODE-{meaning}"
    assert world.all_told(Refused) == [Refused(key(1), code, permanent=True)]
    assert world.regs.state(key(1)) is State.CLOSED
    assert not world.regs.admits(key(1))
    assert world.regs.state(key(3)) is None
    assert world.regs.closed_by(key(1)) == code
    assert world.regs.settled
    assert len(world.server.sent_at) == 2
    world.server.bad.clear()
    world.do(world.regs.reopen(key(1), world.now))
    world.run(1.0)
    assert sorted(world.held) == keys(1, 2)


def test_a_bad_symbol_whose_first_answer_was_lost_is_closed_without_a_resync() -> None:
    world = World()
    world.server.bad[key(1)] = Meaning.PERMANENT
    world.faults = [
        (Fault.LOST, Meaning.HELD),
        (Fault.TWICE, Meaning.HELD),
        (Fault.NACK, Meaning.PERMANENT),
    ]
    world.want(key(1)).up().run(600.0)
    assert world.regs.used == 0
    assert world.all_told(Resync) == []
    assert world.regs.state(key(1)) is State.CLOSED


def test_transient_refusals_are_tried_again_after_growing_pauses() -> None:
    world = World()
    world.server.bad[key(1)] = Meaning.TRANSIENT
    world.want(key(1)).up().run(3 * 3600.0)
    gaps = [round(b - a) for a, b in itertools.pairwise(world.server.sent_at)]
    assert gaps[:6] == [30, 60, 120, 240, 480, 900]
    assert set(gaps[6:]) == {900}
    assert world.regs.settled, "what rests does not hold the session up"
    world.server.bad.clear()
    world.run(900.0)
    assert world.held == [key(1)]


def test_data_confirms_a_subscribe_but_not_after_an_unsubscribe() -> None:
    world = World(cap=1, reply_s=1.0).want(key(1)).up()
    assert world.regs.data(key(1), world.now) == [Held(key(1))]
    assert world.regs.data(key(1), world.now) == []
    assert world.regs.data(key(9), world.now) == []
    world.run(61.0).want(key(2)).run(1.5)
    world.do(world.regs.data(key(2), world.now))
    world.run(70.0).leave(key(1)).run(700.0).want(key(1)).run(1.0)
    assert world.told[-1] == Subscribe(key(1))
    assert world.regs.data(key(1), world.now) == [], "may be of the time before"
    world.run(1.0)
    assert key(1) in world.held


@pytest.mark.parametrize("meaning", [Meaning.KEY_REFUSED, Meaning.IN_USE])
@pytest.mark.parametrize("about", [key(1), ("(null)", "")])
def test_a_refused_approval_key_puts_the_operation_back(meaning: Meaning, about: RegKey) -> None:
    world = World(reply_s=2.0).want(*keys(1, 2)).up()
    world.server.registered.clear()
    assert world.ack(about, meaning) == []
    assert world.regs.next_deadline() == float("inf")
    assert not world.regs.settled
    assert world.regs.timer(world.now) == []
    assert world.regs.used == 1
    assert world.ack(key(1), Meaning.HELD) == []
    world.do(world.regs.retry(key(1), world.now))
    assert world.told[-1] == Subscribe(key(1))
    world.run(5.0)
    assert sorted(world.held) == keys(1, 2)
    assert world.all_told(AckMissing) == []


def test_a_refusal_after_a_lost_ack_gives_the_slot_back_before_it_is_counted_free() -> None:
    world = World(ops=Window(1, 3.5))
    world.faults = [(Fault.LOST, Meaning.HELD), (Fault.NACK, Meaning.TRANSIENT)]
    world.want(key(1)).up().run(3.6)
    assert world.regs.state(key(1)) is State.DOUBT
    assert world.ack(key(1), Meaning.TRANSIENT)[0] == Refused(
        key(1), "CODE-transient", permanent=False
    )
    assert world.regs.state(key(1)) is State.DOUBT, "a second refusal lifts no doubt"
    world.run(4.0)
    assert world.told[-2:] == [Unsubscribe(key(1)), Freed(key(1))]
    assert world.server.registered == {}


def test_a_key_the_server_does_not_know_needs_no_resync_to_be_free() -> None:
    world = World()
    world.server.bad[key(1)] = Meaning.PERMANENT
    world.faults = [(Fault.LOST, Meaning.HELD), (Fault.NACK, Meaning.PERMANENT)]
    world.faults += [(Fault.NACK, Meaning.PERMANENT)] * 9
    world.want(key(1)).up().run(600.0)
    assert world.regs.used == 0
    assert len(world.all_told(Unsubscribe)) == 2
    assert world.all_told(Resync) == []


def test_a_topic_waits_for_one_slot_only() -> None:
    world = full()
    world.faults = [(Fault.NACK, Meaning.TRANSIENT)]
    world.want(key(50)).run(2.0)
    assert world.regs.state(key(1)) is State.RELEASING
    assert world.swaps == 1
    world.run(2.0)
    assert key(50) in world.held
    assert world.swaps == 1


def test_a_slot_lost_until_the_resync_does_not_keep_its_newcomer_waiting() -> None:
    world = World(cap=2, resync_s=1e9).want(key(1)).up().run(1.0)
    world.want(key(2)).run(100.0)
    world.faults = [(Fault.LOST, Meaning.FREE)] * 3
    world.want(key(3)).run(20.0)
    assert world.held == [key(3)]
    assert world.regs.state(key(1)) is State.DOUBT


def test_what_was_put_back_is_not_counted_as_a_try() -> None:
    world = World(reply_s=99.0).want(key(1)).up()
    world.ack(key(1), Meaning.KEY_REFUSED)
    world.do(world.regs.retry(key(1), world.now))
    world.run(3.5)
    assert world.all_told(AckMissing) == [AckMissing(key(1), 1)]


def test_two_sessions_that_die_young_forget_nobody() -> None:
    world = World(cap=2).up().want(key(1)).run(1.0)
    world.server.bad[key(2)] = Meaning.TRANSIENT
    world.want(key(2)).run(1.0).want(key(3)).run(10.0)
    world.server.bad.clear()
    world.run(60.0)
    assert world.held == [key(1), key(3)]
    world.down().run(10.0).up()
    world.down().run(60.0).up().run(60.0)
    assert sorted(world.held) == [key(1), key(3)], "though key 2 was wanted after key 1"


def test_a_server_without_a_slot_is_asked_with_growing_pauses_and_believed_again() -> None:
    world = World(41, 0).want(*keys(1, 60)).up().run(3600.0)
    gaps = [round(b - a) for a, b in itertools.pairwise(world.server.sent_at)]
    assert gaps == [30, 60, 120, 240, 480, 900, 900]
    assert world.regs.cap == 1
    assert not world.regs.settled
    world.server.cap = 41
    world.run(900.0)
    assert len(world.held) == 1
    world.down().up().run(60.0)
    assert len(world.held) == 41


def test_the_pauses_before_a_server_without_a_slot_begin_anew_in_a_new_session() -> None:
    world = World(41, 0).want(key(1)).up().run(400.0)
    world.down().up()
    first = len(world.server.sent_at)
    world.run(200.0)
    gaps = [round(b - a) for a, b in itertools.pairwise(world.server.sent_at[first - 1 :])]
    assert gaps == [30, 60]


def test_the_pauses_before_a_server_without_a_slot_begin_anew_once_it_gave_one() -> None:
    world = World(41, 0).want(key(1)).up().run(20.0)
    world.server.cap = 1
    world.run(100.0)
    assert world.held == [key(1)]
    world.server.cap = 0
    first = len(world.server.sent_at) + 1
    world.want(key(2)).run(100.0)
    gaps = [round(b - a) for a, b in itertools.pairwise(world.server.sent_at[first:])]
    assert gaps == [30, 60]


def test_each_topic_in_quarantine_comes_back_at_its_own_time() -> None:
    world = World().up()
    for n in (1, 2, 3):
        world.server.bad[key(n)] = Meaning.TRANSIENT
        world.want(key(n)).run(5.0)
    world.server.bad.clear()
    world.run(60.0)
    assert [world.server.subscribed[key(n)] for n in (1, 2, 3)] == [
        [pytest.approx(30.0 + 5.0 * n, abs=0.1)] for n in range(3)
    ]


def test_a_late_answer_about_one_topic_does_not_answer_for_the_next() -> None:
    world = World().up()
    world.faults = [(Fault.LOST, Meaning.UNKNOWN)]
    world.want(*keys(1, 3))
    world.do(world.regs.data(key(1), world.now))
    assert world.told == [Subscribe(key(1)), Held(key(1)), Subscribe(key(2))]
    assert world.ack(key(1), Meaning.HELD) == []
    world.run(1.0)
    assert world.held == keys(1, 3)


class LyingWorld(World):
    """Its server holds more than it says."""

    def check(self) -> None:
        pass


def test_what_kis_still_sends_long_after_it_said_that_it_let_go_is_ended_once_more() -> None:
    world = LyingWorld(cap=1, server_cap=2).want(key(1)).up().run(100.0)
    world.faults = [(Fault.NACK, Meaning.TRANSIENT)]
    world.want(key(2))
    assert world.told[-1] == Unsubscribe(key(1))
    world.ack(key(1), Meaning.FREE)  # of who knows what; to ours KIS says no
    world.run(1.0)
    assert (world.held, sorted(world.server.registered)) == ([key(2)], keys(1, 2))
    for after, asked in ((1.0, 1), (55.0, 1), (5.0, 2)):
        world.run(after)
        world.do(world.regs.data(key(1), world.now))
        assert world.told.count(Unsubscribe(key(1))) == asked
    world.do(world.regs.data(key(1), world.now))
    world.run(5.0)
    assert (world.held, sorted(world.server.registered)) == ([key(2)], [key(2)])
    assert world.told.count(Unsubscribe(key(1))) == 2


def test_a_record_of_what_was_let_go_and_asked_for_again_proves_that_one() -> None:
    world = LyingWorld(cap=1, server_cap=2).want(key(1)).up().run(100.0)
    world.want(key(2)).run(100.0)
    assert world.held == [key(2)]
    world.faults = [(Fault.TWICE, Meaning.FREE), (Fault.NACK, Meaning.PERMANENT)]
    world.leave(key(2)).run(200.0)
    assert world.regs.state(key(1)) is State.CLOSED
    world.server.take(Subscribe(key(1)), world.now)  # the refusal was of something else
    world.do(world.regs.data(key(1), world.now))
    assert world.held == [key(1)]


# Probes.


def test_a_probe_asks_for_what_is_held_and_costs_no_swap() -> None:
    world = World(cap=2).want(*keys(1, 2)).up().run(10.0)
    for asked in (key(1), key(2), key(1)):
        world.do(world.regs.probe(world.now))
        world.run(1.0)
        assert world.told[-2:] == [Subscribe(asked), ProbePassed(asked)]
    world.do(world.regs.probe(world.now, (key(2),)))
    world.run(1.0)
    assert world.told[-1] == ProbePassed(key(2))
    assert world.regs.probe(world.now, (key(3),)) == []
    assert world.swaps == 0


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.NACK])
def test_a_lost_probe_is_told_and_the_slot_stays(fault: Fault) -> None:
    world = World().want(key(1)).up().run(10.0)
    world.faults = [(fault, Meaning.TRANSIENT)]
    world.do(world.regs.probe(world.now))
    world.run(5.5)
    assert world.told[-2:] == [Subscribe(key(1)), ProbeFailed(key(1))]
    assert world.held == [key(1)]
    assert world.regs.settled


@pytest.mark.parametrize("among", [(key(1),), ()])
def test_an_overdue_one_that_is_refused_for_want_of_room_is_held_no_more(
    among: Sequence[RegKey],
) -> None:
    world = World().want(key(1), key(2)).up().run(10.0)
    world.faults = [(Fault.NACK, Meaning.OVER_CAP)]
    world.overdue = {key(1)}
    world.do(world.regs.probe(world.now, among))
    world.run(60.0)
    begun = world.told.index(ProbeFailed(key(1)))
    assert world.told[begun : begun + 5] == [
        ProbeFailed(key(1)),
        CapLearned(1),
        Refused(key(1), "CODE-over_cap", permanent=False),
        Unsubscribe(key(1)),
        Freed(key(1)),
    ]
    assert world.held == [key(2)]
    assert Subscribe(key(1)) not in world.told[begun:], "there is no room for it"


def test_one_whose_data_are_not_overdue_keeps_its_slot_whatever_is_said_of_room() -> None:
    world = World().want(key(1), key(2)).up().run(10.0)
    world.faults = [(Fault.NACK, Meaning.OVER_CAP)]
    world.do(world.regs.probe(world.now, (key(1),)))
    world.run(60.0)
    assert world.held == [key(1), key(2)]


def test_what_kis_takes_anew_is_told_though_an_earlier_answer_was_lost() -> None:
    world = World().want(key(1))
    world.faults = [(Fault.LOST, Meaning.HELD)] * 2
    world.up().run(0.5)
    world.do(world.regs.data(key(1), world.now))
    assert world.held == [key(1)]
    world.do(world.regs.probe(world.now))
    outputs = world.regs.ack(key(1), Meaning.HELD, SUBSCRIBED, world.now)
    assert ProbePassed(key(1), True) in outputs


def test_what_kis_takes_anew_is_told_though_it_refused_the_key_about_another_topic() -> None:
    world = World().want(key(1)).up().run(10.0)
    world.faults = [(Fault.LOST, Meaning.HELD)]
    world.do(world.regs.probe(world.now))
    assert world.ack(key(7), Meaning.KEY_REFUSED) == []
    outputs = world.regs.ack(key(1), Meaning.HELD, SUBSCRIBED, world.now)
    assert ProbePassed(key(1), True) in outputs


def test_of_several_the_one_that_was_asked_for_longest_ago_is_asked_for() -> None:
    world = World().want(*keys(1, 4)).up().run(10.0)
    for _ in range(4):
        world.do(world.regs.probe(world.now, (key(2), key(3), key(9))))
        world.run(10.0)
    probed = [told.key for told in world.told if isinstance(told, ProbePassed)]
    assert sorted(probed[:2]) == sorted(probed[2:]) == [key(2), key(3)]


@pytest.mark.parametrize("meaning", [Meaning.PERMANENT, Meaning.TRANSIENT])
def test_data_of_one_that_was_refused_are_believed_over_the_refusal(meaning: Meaning) -> None:
    world = World().want(key(2)).up().run(10.0)
    world.faults = [(Fault.NACK, meaning)]
    world.want(key(1)).run(1.0)
    assert world.held == [key(2)]
    assert world.regs.data(key(3), world.now) == []
    world.server.registered[key(1)] = None
    world.do(world.regs.data(key(1), world.now))
    assert world.held == [key(2), key(1)]
    assert world.regs.closed_by(key(1)) is None
    sent = len(world.all_told(Subscribe))
    world.run(7200.0)
    assert len(world.all_told(Subscribe)) == sent


def test_a_probe_waits_for_its_turn() -> None:
    world = World(ops=Window(1, 10.0)).want(key(1)).up().run(1.0)
    assert world.regs.probe(world.now) == []
    world.run(8.9)
    assert world.told[-1] == Held(key(1))
    world.run(1.0)
    assert world.told[-2:] == [Subscribe(key(1)), ProbePassed(key(1))]


# The order notice.


def notice_world(cap: int = 3) -> World:
    return World(cap=cap, reserved=[NOTICE]).want(*keys(1, 5)).up()


def test_the_notice_keeps_its_slot_whatever_is_wanted() -> None:
    world = notice_world()
    assert not world.regs.settled
    world.run(10.0)
    assert world.regs.admits(NOTICE)
    assert NOTICE in world.held
    assert world.regs.reserved == 1
    for n in range(20):
        world.want(key(100 + n), prio=9).run(70.0)
    assert NOTICE in world.held
    world.down().run(10.0).up()
    assert world.told[-1] == Subscribe(NOTICE)


def test_a_session_that_dies_of_the_notice_asks_for_it_last_then_never() -> None:
    world = notice_world().run(4.0)
    world.down().run(60.0).up()
    assert world.told[-1] == Subscribe(key(1))
    world.run(4.0)
    assert [output.key for output in world.told if isinstance(output, Held)][-3:] == [
        key(1),
        key(2),
        NOTICE,
    ]
    world.down()
    assert world.all_told(Refused) == [Refused(NOTICE, "", permanent=True)]
    assert world.regs.closed_by(NOTICE) == ""
    assert world.regs.reserved == 0
    world.run(60.0).up().run(60.0)
    assert sorted(world.held) == keys(1, 3)
    assert world.regs.settled


@pytest.mark.parametrize("how", ["late", "excused", "in_use"])
def test_a_death_with_another_cause_is_not_laid_to_the_notice(how: str) -> None:
    world = notice_world()
    for _ in range(4):
        world.run(5.5 if how == "late" else 1.0)
        if how == "in_use":
            world.ack(("(null)", ""), Meaning.IN_USE)
        world.down(excused=how == "excused").run(60.0).up()
        assert world.told[-1] == Subscribe(NOTICE)
    assert world.all_told(Refused) == []


def test_outliving_the_notice_puts_it_first_again() -> None:
    world = notice_world().run(1.0)
    world.down().run(60.0).up().run(60.0)
    world.down().run(60.0).up()
    assert world.told[-1] == Subscribe(NOTICE)


def test_the_notice_gets_a_slot_even_under_a_learned_cap() -> None:
    world = World(cap=5, server_cap=2, reserved=[NOTICE])
    world.server.bad[NOTICE] = Meaning.TRANSIENT
    world.want(*keys(1, 5)).up().run(20.0)
    assert sorted(world.held) == keys(1, 2)
    world.server.bad.clear()
    world.run(200.0)
    assert NOTICE in world.held
    assert world.regs.cap == 2


# What people see, and what it costs.


def test_status_shows_every_slot_and_who_waits() -> None:
    world = World(cap=3, reserved=[NOTICE])
    world.server.bad[key(1)] = Meaning.PERMANENT
    world.server.bad[key(2)] = Meaning.TRANSIENT
    world.want(*keys(1, 5)).up().run(10.0)
    rows = world.regs.status(world.now)
    states = [row["state"] for row in rows]
    assert states == ["held", "held", "held", "waiting", "quarantined", "closed"]
    assert rows[0]["key"] == list(NOTICE)
    assert rows[0]["reserved"] is True
    held = next(row for row in rows if row["key"] == list(key(3)))
    assert 0 < float(str(held["dwell_left_s"])) <= 60.0
    assert len(rows) == 6


def test_a_thousand_wanted_one_by_one_all_find_their_place() -> None:
    world = full()
    for n in range(1000):
        world.interest.add(key(1000 + n), "client", world.now)
        world.do(world.regs.changed(world.now))
    world.run(3600.0)
    assert len(world.held) == 41
