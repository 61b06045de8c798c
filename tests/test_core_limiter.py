"""The limiter against a model of KIS's window, under any order of asking, sending and leaving."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, settings, strategies as st

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
