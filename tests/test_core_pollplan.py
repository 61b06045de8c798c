"""Turns among topics without a stream."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, strategies as st

from kisfeed.core.pollplan import PollPlan, Want


def wants(count: int, *, trading: bool = True) -> list[Want]:
    symbols = [f"{100_000 + n}" for n in range(count)]
    return [Want(("H0STCNT0", symbol), "krx", symbol, trading) for symbol in symbols]


@given(st.integers(1, 200), st.integers(1, 90))
def test_turns_are_fair(count: int, most: int) -> None:
    plan = PollPlan(1.0, 0.0, most)
    polled: Counter[str] = Counter()
    rounds = -(-count // most) * 5
    for second in range(rounds):
        turn = plan.pick(wants(count), float(second))
        assert len(turn) == min(count, most)
        polled.update(want.symbol for want in turn)
    assert max(polled.values()) - min(polled.values()) <= 1
    assert len(polled) == count


def test_the_first_turn_comes_after_a_while() -> None:
    plan = PollPlan(1.0, 2.0, 30)
    assert plan.pick(wants(1), 10.0) == []
    assert plan.pick(wants(1), 11.9) == []
    assert len(plan.pick(wants(1), 12.0)) == 1


def test_who_left_and_came_back_waits_again() -> None:
    plan = PollPlan(1.0, 2.0, 30)
    plan.pick(wants(1), 0.0)
    plan.pick([], 1.0)
    assert plan.pick(wants(1), 2.0) == []


def test_a_closed_market_gets_one_look_until_it_opens() -> None:
    plan = PollPlan(1.0, 0.0, 30)
    closed, trading = wants(3, trading=False), wants(3)
    assert len(plan.pick(closed, 0.0)) == 3
    assert [plan.pick(closed, float(second)) for second in range(1, 60)] == [[]] * 59
    assert len(plan.pick(trading, 60.0)) == 3
    # What it looks like after the close is one more look.
    assert len(plan.pick(closed, 61.0)) == 3
    assert plan.pick(closed, 62.0) == []


def test_a_kis_that_does_not_answer_is_asked_ever_more_rarely() -> None:
    plan = PollPlan(1.0, 0.0, 30)
    pauses = [plan.pause(worked=False) for _ in range(20)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60.0
    assert plan.pause(worked=True) == 1.0
