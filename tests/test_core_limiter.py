"""The limiter against a model of KIS's window, under any order of asking, sending and leaving."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import assume, given, settings, strategies as st

from kisfeed.core import limiter
from kisfeed.core.limiter import PROFILES, SLACK, Limiter, Place, Profile, Ticket
from kisfeed.errors import LocalRefusal
from kisfeed.kis.rest import Priority
from kisfeed.limits import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

REAL, PAPER = Window(18, 1.0), Window(1, 1.0)
WINDOWS = st.sampled_from([REAL, PAPER, Window(1, 1.1), Window(2, 1.0), Window(3, 1.0)])
SPACED = {"inquire_balance": Window(1, 1.0)}
KEYS = st.sampled_from(["inquire_price", "inquire_balance", "order"])


def most_within(times: list[float], seconds: float) -> int:
    """The largest number in any span [t, t + seconds)."""
    times = sorted(times)
    first, most = 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds + 1e-9:
            first += 1
        most = max(most, last - first + 1)
    return most


@attrs.define
class Asked:
    """One call of a plan: asked *at*, given up after *patience*, sent *connecting* after its grant.

    *wire* is how long it travels to KIS.
    """

    at: float
    priority: Priority
    key: str
    patience: float = math.inf
    connecting: float = 0.0
    wire: float = 0.0
    ticket: Ticket | None = None
    sent_at: float | None = None


def run(under_test: Limiter, plan: list[Asked], throttles: Sequence[float] = ()) -> None:
    """Play *plan* in virtual time until nothing is left to happen."""
    events: list[tuple[float, int, str, Asked | None]] = []

    def post(at: float, what: str, of: Asked | None) -> None:
        heapq.heappush(events, (at, next(numbers), what, of))

    numbers = itertools.count()
    for asked in plan:
        post(asked.at, "ask", asked)
    for at in throttles:
        post(at, "throttle", None)
    by_ticket: dict[Ticket, Asked] = {}
    due = math.inf
    while events or due < math.inf:
        if events and events[0][0] <= due:
            now, _, what, of = heapq.heappop(events)
        else:
            now, what, of = due, "timer", None
        if what == "throttle":
            under_test.throttled(now)
        elif of is not None:
            _play(under_test, what, of, now)
            if what == "ask" and of.ticket is not None:
                by_ticket[of.ticket] = of
                if of.patience < math.inf:
                    post(now + of.patience, "leave", of)
        while (granted := under_test.next_grant(now)) is not None:
            post(now + by_ticket[granted].connecting, "send", by_ticket[granted])
        due = under_test.next_deadline(now)
        assert due > now, "a deadline in the past would spin"


def _play(under_test: Limiter, what: str, asked: Asked, now: float) -> None:
    if what == "ask":
        asked.ticket = under_test.request(asked.priority, asked.key, now)
        return
    assert asked.ticket is not None
    if what == "leave" and asked.sent_at is None:
        under_test.cancel(asked.ticket)
    elif what == "send" and asked.ticket.place is Place.GRANTED:
        under_test.sent(asked.ticket, now)
        asked.sent_at = now


def plans(*, patience: bool = True, connecting: float = 0.5) -> st.SearchStrategy[list[Asked]]:
    return st.lists(
        st.builds(
            Asked,
            at=st.floats(0.0, 6.0),
            priority=st.sampled_from(Priority),
            key=KEYS,
            patience=st.one_of(st.just(math.inf), st.floats(0.0, 3.0))
            if patience
            else st.just(math.inf),
            connecting=st.one_of(st.just(0.0), st.floats(0.0, connecting))
            if connecting
            else st.just(0.0),
            wire=st.floats(0.0, 0.049),
        ),
        max_size=40,
    )


@given(
    WINDOWS,
    plans(),
    st.lists(st.floats(0.0, 8.0), max_size=4),
    st.sampled_from(list(PROFILES.values())),
)
def test_kis_never_sees_more_than_its_limit_in_any_window(
    window: Window, plan: list[Asked], throttles: list[float], profile: Profile
) -> None:
    run(Limiter(window, SPACED, profile, 0.0), plan, throttles)
    arrived = [a.sent_at + a.wire for a in plan if a.sent_at is not None]
    assert most_within(arrived, window.seconds) <= window.count
    balance = [a.sent_at + a.wire for a in plan if a.sent_at and a.key == "inquire_balance"]
    assert most_within(balance, 1.0) <= 1


@given(WINDOWS, plans(patience=False), st.lists(st.floats(0.0, 8.0), max_size=4))
def test_everyone_who_waits_is_served(
    window: Window, plan: list[Asked], throttles: list[float]
) -> None:
    run(Limiter(window, SPACED, Profile(), 0.0), plan, throttles)
    assert all(a.sent_at is not None for a in plan)


@given(WINDOWS, plans())
def test_within_a_class_first_come_is_first_served(window: Window, plan: list[Asked]) -> None:
    run(Limiter(window, {}, Profile(), 0.0), plan)
    granted = [a for a in plan if a.ticket is not None and a.ticket.granted_at < math.inf]
    for priority in Priority:
        row = sorted(
            (a.ticket for a in granted if a.ticket and a.priority is priority),
            key=lambda t: t.number,
        )
        assert [t.granted_at for t in row] == sorted(t.granted_at for t in row)


@given(WINDOWS, plans(patience=False))
def test_nobody_is_granted_while_a_higher_class_waits(window: Window, plan: list[Asked]) -> None:
    run(Limiter(window, {}, Profile(), 0.0), plan)
    tickets = [a.ticket for a in plan if a.ticket is not None]
    for low in tickets:
        for high in tickets:
            if high.priority < low.priority:
                assert not high.asked_at < low.granted_at < high.granted_at


@given(WINDOWS, plans(patience=False, connecting=0.0), st.lists(st.floats(0.0, 6.0), max_size=20))
def test_a_waiter_that_leaves_costs_nothing(
    window: Window, plan: list[Asked], others: list[float]
) -> None:
    # Of two that ask at one instant the order decides, which another one in between may change.
    assume(not {asked.at for asked in plan} & set(others))
    alone = [attrs.evolve(a) for a in plan]
    run(Limiter(window, {}, Profile(), 0.0), alone)
    among = [attrs.evolve(a) for a in plan]
    # They ask, and leave before time passes: nothing that time could have granted them.
    leaving = [
        Asked(at, Priority.REFERENCE, "inquire_price", patience=0.0, connecting=9.0)
        for at in others
    ]
    run(Limiter(window, {}, Profile(), 0.0), [*leaving, *among])
    assert [a.sent_at for a in among] == pytest.approx([a.sent_at for a in alone])


@given(st.floats(2.0, 8.0))
@settings(max_examples=20)
def test_an_order_waits_behind_no_quote_on_real(at: float) -> None:
    quotes = [Asked(i / 100, Priority.PRICE, "inquire_price", wire=0.0) for i in range(1000)]
    order = Asked(at, Priority.ORDER, "order")
    run(Limiter(REAL, {}, Profile(), 0.0), [*quotes, order])
    assert order.sent_at == order.at


@given(st.floats(2.0, 8.0))
@settings(max_examples=20)
def test_an_order_waits_at_most_one_window_on_paper(at: float) -> None:
    quotes = [Asked(i / 20, Priority.PRICE, "inquire_price") for i in range(200)]
    order = Asked(at, Priority.ORDER, "order")
    run(Limiter(PAPER, {}, Profile(), 0.0), [*quotes, order])
    assert order.sent_at is not None
    assert order.sent_at - order.at <= PAPER.seconds * SLACK


@given(WINDOWS)
def test_a_full_queue_is_served_at_full_speed(window: Window) -> None:
    plan = [Asked(0.0, Priority.ORDER, "order") for _ in range(5 * window.count)]
    run(Limiter(window, {}, Profile(), 0.0), plan)
    # The first window is full of what an earlier process may have sent.
    last = max(a.sent_at for a in plan if a.sent_at is not None)
    assert last == pytest.approx(5 * window.seconds * SLACK)


def test_a_refusal_halves_the_speed_and_it_comes_back_slowly() -> None:
    under_test = Limiter(REAL, {}, Profile(recover_s=10.0), 0.0)
    under_test.throttled(100.0)
    under_test.throttled(100.5)  # of the same burst
    assert under_test.status(101.0)["in_force"] == {"count": 9, "seconds": 1.05}
    under_test.throttled(102.0)
    assert under_test.status(102.0)["in_force"] == {"count": 4, "seconds": 1.05}
    speeds = []
    for second in range(103, 300):
        under_test.status(float(second))
        speeds.append(under_test.speed())
    assert speeds == sorted(speeds)
    assert max(b - a for a, b in itertools.pairwise(speeds)) == pytest.approx(0.05)
    assert speeds[-1] == 1.0


def test_below_one_call_a_window_the_window_grows() -> None:
    under_test = Limiter(PAPER, {}, Profile(), 0.0)
    for at in (100.0, 102.0, 104.0, 106.0, 108.0, 110.0):
        under_test.throttled(at)
    assert under_test.status(110.0)["in_force"] == {"count": 1, "seconds": 16.8}


def test_the_ledgers_limit_slows_only_its_own_calls() -> None:
    under_test = Limiter(REAL, {}, Profile(), 0.0)
    under_test.throttled(10.0, "inquire_psbl_order")
    plan = [Asked(20.0, Priority.ACCOUNT, "inquire_psbl_order") for _ in range(10)]
    plan += [Asked(20.0, Priority.PRICE, "inquire_price") for _ in range(7)]
    run(under_test, plan)
    assert sum(a.sent_at == 20.0 for a in plan[:10]) == 9
    assert all(a.sent_at == 20.0 for a in plan[10:])


def test_a_call_that_kis_refused_keeps_its_place_in_the_row() -> None:
    under_test = Limiter(Window(1, 1.0), {}, Profile(), 0.0)
    first = under_test.request(Priority.PRICE, "p", 0.0)
    second = under_test.request(Priority.PRICE, "p", 0.0)
    third = under_test.request(Priority.PRICE, "p", 0.0)
    assert under_test.next_grant(2.0) is first
    under_test.sent(first, 2.0)
    again = under_test.request(Priority.PRICE, "p", 2.0, again=first)
    order = []
    for second_of in range(4, 30):
        granted = under_test.next_grant(float(second_of))
        if granted is not None:
            under_test.sent(granted, float(second_of))
            order.append(granted)
    assert order == [again, second, third]


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "MOST_WAITING", 3)
    under_test = Limiter(REAL, {}, Profile(), 0.0)
    for _ in range(3):
        under_test.request(Priority.PRICE, "p", 0.0)
    with pytest.raises(LocalRefusal, match="price"):
        under_test.request(Priority.PRICE, "p", 0.0)
    under_test.request(Priority.ORDER, "o", 0.0)


def test_batch_use_is_even_and_leaves_half() -> None:
    plan = [Asked(5.0, Priority.PRICE, "inquire_price") for _ in range(30)]
    run(Limiter(REAL, {}, PROFILES["batch"], 0.0), plan)
    sent = sorted(a.sent_at for a in plan if a.sent_at is not None)
    assert most_within(sent, 1.0) <= 9
    gaps = [b - a for a, b in itertools.pairwise(sent)]
    assert min(gaps) >= SLACK / 9 - 1e-9


@given(plans(patience=False), WINDOWS, WINDOWS, st.floats(0.0, 6.0))
def test_other_limits_bind_from_the_moment_they_are_in_force(
    plan: list[Asked], before: Window, after: Window, at: float
) -> None:
    under_test = Limiter(before, {}, Profile(), 0.0)
    early = [a for a in plan if a.at < at]
    late = [attrs.evolve(a, at=max(a.at, at)) for a in plan if a.at >= at]
    run(under_test, early)
    done = max((a.sent_at for a in early if a.sent_at is not None), default=at)
    start = max(done, at)
    under_test.change(after, {}, Profile(), start)
    for asked in late:
        asked.at = start
    run(under_test, late)
    sent = [a.sent_at for a in (*early, *late) if a.sent_at is not None and a.sent_at >= start]
    assert most_within(sent, after.seconds) <= max(
        after.count, most_within([s for s in sent if s == start], after.seconds)
    )
    assert all(a.sent_at is not None for a in late)


def spent(under_test: Limiter, now: float, priority: Priority = Priority.PRICE) -> int:
    """How many calls may be sent at *now*."""
    found = 0
    while True:
        waiting = under_test.request(priority, "p", now)
        if under_test.next_grant(now) is None:
            under_test.cancel(waiting)
            return found
        under_test.sent(waiting, now)
        found += 1


def test_the_speed_comes_back_step_by_step_by_the_profiles_pace() -> None:
    for name, step_s in (("ordinary", 10.0), ("high_frequency", 3.0), ("batch", 30.0)):
        under_test = Limiter(REAL, {}, PROFILES[name], 0.0)
        under_test.throttled(100.0)
        waiting = under_test.request(Priority.ORDER, "o", 100.0)
        under_test.cancel(waiting)
        speeds = []
        for steps in range(12):
            under_test.next_grant(100.0 + step_s * steps)
            speeds.append(under_test.speed())
            under_test.next_grant(100.0 + step_s * (steps + 1) - 0.01)
            assert under_test.speed() == speeds[-1]
        assert speeds == pytest.approx([0.5 + 0.05 * min(n, 10) for n in range(12)])


def test_refusals_within_one_window_are_one_and_each_slowing_counts() -> None:
    under_test = Limiter(Window(4, 2.0), {}, Profile(), 0.0)
    speeds = []
    for at in (100.0, 102.09, 102.1, 104.2):
        under_test.throttled(at)
        speeds.append(under_test.speed())
    assert speeds == [0.5, 0.5, 0.25, 0.125]
    assert under_test.throttled_count == 3


def test_who_waits_is_looked_at_again_when_the_speed_comes_back() -> None:
    under_test = Limiter(REAL, {}, Profile(recover_s=0.25), 0.0)
    assert spent(under_test, 10.0) == 16
    under_test.throttled(10.0)
    under_test.request(Priority.PRICE, "p", 10.0)
    assert under_test.next_deadline(10.0) == 10.25
    steady = Limiter(REAL, {}, Profile(recover_s=0.25), 0.0)
    assert spent(steady, 10.0) == 16
    steady.request(Priority.PRICE, "p", 10.0)
    assert steady.next_deadline(10.0) == 11.05


def test_the_calls_of_the_last_second_are_counted() -> None:
    under_test = Limiter(REAL, {}, Profile(), 0.0)
    assert under_test.last_second(0.5) == 18, "what an earlier process may have sent"
    assert under_test.last_second(1.0) == 0
    assert spent(under_test, 10.0) == 16
    assert [under_test.last_second(now) for now in (10.0, 10.99, 11.0, 11.5)] == [16, 16, 0, 0]


def test_batch_use_takes_half_and_spreads_it_from_the_newest_call_on() -> None:
    under_test = Limiter(REAL, {}, PROFILES["batch"], 0.0)
    sent = []
    for _ in range(4):
        ticket = under_test.request(Priority.PRICE, "p", 10.0)
        at = max(10.0, under_test.next_deadline(10.0))
        assert under_test.next_grant(at - 0.001) is None or at == 10.0
        if ticket.place is Place.WAITING:
            assert under_test.next_grant(at) is ticket
        under_test.sent(ticket, at)
        sent.append(at)
    gaps = [b - a for a, b in itertools.pairwise(sent)]
    assert gaps == pytest.approx([SLACK / 9] * 3)
    half = Limiter(REAL, {}, Profile(rate=0.5, headroom=0), 0.0)
    assert spent(half, 10.0) == 9
    assert spent(half, 10.0, Priority.ORDER) == 9


def test_a_ticket_given_back_twice_or_after_it_was_sent_counts_once() -> None:
    under_test = Limiter(Window(2, 1.0), {}, Profile(), 0.0)
    first, second = (under_test.request(Priority.ORDER, "o", 10.0) for _ in range(2))
    assert under_test.next_grant(10.0) is first
    assert under_test.next_grant(10.0) is second
    under_test.sent(first, 10.0)
    under_test.cancel(first)
    under_test.cancel(second)
    under_test.cancel(second)
    assert (first.place, second.place) == (Place.OVER, Place.OVER)
    assert under_test.status(10.0)["unsent"] == 0
    assert spent(under_test, 10.0, Priority.ORDER) == 1


def test_what_was_sent_is_forgotten_when_no_window_can_need_it() -> None:
    for window in (REAL, PAPER):
        under_test = Limiter(window, {}, Profile(), 0.0)
        for second in range(2, 200):
            spent(under_test, float(second) * 1.1, Priority.ORDER)
        kept = under_test._all._stamps
        longest = SLACK * window.seconds / min(window.count / 16, 1.0)
        assert 219 * 1.0 - kept[0] < 2 * longest + 2.2
        assert len(kept) <= window.count * (2 * longest + 2)
        # Even at the slowest speed the window still knows all that it has to.
        assert kept[0] < 218.9 - longest


def test_of_two_refused_calls_the_older_one_goes_first() -> None:
    under_test = Limiter(REAL, {}, Profile(), 0.0)
    row = [under_test.request(Priority.PRICE, "p", 10.0) for _ in range(3)]
    for ticket in row[:2]:
        assert under_test.next_grant(10.0) is ticket
        under_test.sent(ticket, 10.0)
    again = [under_test.request(Priority.PRICE, "p", 10.0, again=t) for t in reversed(row[:2])]
    granted = [under_test.next_grant(20.0) for _ in range(3)]
    assert granted == [again[1], again[0], row[2]]


def test_other_limits_start_from_the_speed_there_is_by_then() -> None:
    under_test = Limiter(REAL, {}, Profile(recover_s=10.0), 0.0)
    under_test.throttled(100.0)
    under_test.change(REAL, {}, Profile(recover_s=1000.0), 125.0)
    assert under_test.speed() == pytest.approx(0.6)
    under_test.throttled(145.0)
    assert under_test.speed() == pytest.approx(0.325), "of which it had a step back"


def test_4096_calls_of_a_class_may_wait() -> None:
    under_test = Limiter(REAL, {}, Profile(), 0.0)
    for _ in range(4096):
        under_test.request(Priority.PRICE, "p", 0.0)
    with pytest.raises(LocalRefusal, match="4096 price calls"):
        under_test.request(Priority.PRICE, "p", 0.0)
    assert under_test.waiting(Priority.PRICE) == 4096
    assert under_test.waiting(Priority.ORDER) == 0


@pytest.mark.parametrize(("count", "kept"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (18, 2)])
def test_of_a_small_window_fewer_places_are_kept_for_orders(count: int, kept: int) -> None:
    under_test = Limiter(Window(count, 1.0), {}, Profile(), 0.0)
    assert spent(under_test, 10.0) == count - kept
    assert spent(under_test, 10.0, Priority.ORDER) == kept
    assert spent(under_test, 10.0 + SLACK, Priority.ORDER) == count


def test_the_profiles_keep_so_many_places_for_orders() -> None:
    for name, others in (("ordinary", 16), ("high_frequency", 17)):
        assert spent(Limiter(REAL, {}, PROFILES[name], 0.0), 10.0) == others


def test_an_even_use_of_the_whole_window_is_a_call_in_each_of_its_parts() -> None:
    under_test = Limiter(REAL, {}, Profile(even=True), 0.0)
    assert spent(under_test, 10.0) == 1
    under_test.request(Priority.PRICE, "p", 10.0)
    assert under_test.next_deadline(10.0) == pytest.approx(10.0 + SLACK / 18)
    assert spent(under_test, 10.0, Priority.ORDER) == 17, "orders are not spread"


def test_while_an_even_call_is_on_its_way_out_none_follows() -> None:
    under_test = Limiter(REAL, {}, Profile(even=True), 0.0)
    first, _ = (under_test.request(Priority.PRICE, "p", 10.0) for _ in range(2))
    assert under_test.next_grant(10.0) is first
    assert under_test.next_grant(12.0) is None
    assert under_test.next_deadline(12.0) == math.inf
    under_test.sent(first, 12.0)
    assert under_test.next_deadline(12.0) == pytest.approx(12.0 + SLACK / 18)


def test_of_many_keys_the_first_that_is_ready_tells_the_deadline() -> None:
    under_test = Limiter(REAL, {"a": Window(1, 1.0), "b": Window(1, 3.0)}, Profile(), 0.0)
    for key in ("a", "b"):
        ticket = under_test.request(Priority.PRICE, key, 10.0)
        assert under_test.next_grant(10.0) is ticket
        under_test.sent(ticket, 10.0)
    for key in ("b", "a"):
        under_test.request(Priority.PRICE, key, 10.0)
    assert under_test.next_deadline(10.0) == pytest.approx(10.0 + SLACK)
    assert under_test.next_grant(11.0) is None
    granted = under_test.next_grant(10.0 + SLACK)
    assert granted is not None
    assert granted.key == "a"
    assert under_test.next_deadline(12.0) == pytest.approx(10.0 + 3 * SLACK)


def test_a_key_at_full_speed_does_not_hide_when_the_others_recover() -> None:
    under_test = Limiter(REAL, {"a": Window(1, 1.0)}, Profile(recover_s=0.25), 0.0)
    assert spent(under_test, 10.0) == 16
    under_test.throttled(10.0)
    under_test.request(Priority.PRICE, "p", 10.0)
    assert under_test.next_deadline(10.0) == 10.25
    under_test = Limiter(REAL, {"a": Window(1, 9.0)}, Profile(recover_s=0.25), 0.0)
    for _ in range(2):
        ticket = under_test.request(Priority.PRICE, "a", 10.0)
        if under_test.next_grant(10.0) is ticket:
            under_test.sent(ticket, 10.0)
    under_test.throttled(10.0, "a")
    assert under_test.next_deadline(10.0) == 10.25


def test_nobody_waits_and_nothing_is_due() -> None:
    under_test = Limiter(REAL, {}, Profile(), 0.0)
    under_test.throttled(10.0)
    assert under_test.next_deadline(10.0) == math.inf
    assert under_test.next_grant(10.0) is None


def test_limits_of_a_key_may_come_and_go() -> None:
    under_test = Limiter(REAL, {"a": Window(1, 1.0)}, Profile(), 0.0)
    under_test.change(REAL, {"b": Window(2, 1.0)}, Profile(), 10.0)
    sent = {"a": 0, "b": 0}
    for key in sent:
        for _ in range(4):
            ticket = under_test.request(Priority.PRICE, key, 10.0)
            if under_test.next_grant(10.0) is ticket:
                under_test.sent(ticket, 10.0)
                sent[key] += 1
            else:
                under_test.cancel(ticket)
    assert sent == {"a": 4, "b": 2}
    assert under_test.profile == Profile()


def test_a_status_tells_the_limit_in_force_and_who_waits() -> None:
    under_test = Limiter(REAL, {}, Profile(recover_s=10.0), 0.0)
    under_test.throttled(100.0)
    for priority in (Priority.PRICE, Priority.PRICE, Priority.ORDER):
        under_test.request(priority, "p", 100.0)
    assert under_test.next_grant(100.0) is not None
    told = under_test.status(110.0)
    assert (told["speed"], told["throttled"], told["unsent"]) == (0.55, 1, 1)
    waiting = told["waiting"]
    assert isinstance(waiting, dict)
    assert (waiting["price"], waiting["order"]) == (2, 0)


def test_a_window_of_one_and_a_half_calls_is_one_call_and_no_shorter() -> None:
    under_test = Limiter(Window(3, 1.0), {}, Profile(), 0.0)
    under_test.throttled(100.0)
    assert under_test.status(100.0)["in_force"] == {"count": 1, "seconds": 1.05}


def test_back_at_full_speed_nobody_looks_whether_it_comes_back() -> None:
    under_test = Limiter(REAL, {}, Profile(recover_s=0.25), 0.0)
    under_test.throttled(10.0)
    assert spent(under_test, 20.0) == 16
    assert under_test.speed() == 1.0
    under_test.request(Priority.PRICE, "p", 20.0)
    assert under_test.next_deadline(20.0) == 20.0 + SLACK


def test_what_a_key_spent_is_spent_though_the_limits_are_told_again() -> None:
    under_test = Limiter(REAL, {"a": Window(1, 1.0)}, Profile(), 0.0)
    ticket = under_test.request(Priority.PRICE, "a", 10.0)
    assert under_test.next_grant(10.0) is ticket
    under_test.sent(ticket, 10.0)
    under_test.change(REAL, {"a": Window(1, 2.0)}, Profile(), 10.5)
    under_test.request(Priority.PRICE, "a", 10.5)
    assert under_test.next_deadline(10.5) == pytest.approx(10.0 + 2 * SLACK)
