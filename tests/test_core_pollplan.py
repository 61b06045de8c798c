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


def test_each_failure_doubles_the_pause_and_the_first_is_one() -> None:
    plan = PollPlan(1.0, 0.0, 30)
    assert [plan.pause(worked=False) for _ in range(7)] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert plan.pause(worked=True) == 1.0
    assert plan.pause(worked=False) == 2.0
    assert PollPlan(3.0, 0.0, 30).pause(worked=True) == 3.0


def test_no_pause_is_longer_than_1024_turns_however_often_kis_failed() -> None:
    plan = PollPlan(0.01, 0.0, 30)
    assert [plan.pause(worked=False) for _ in range(2000)][-1] == 10.24


def test_a_turn_may_come_a_tenth_of_a_period_early() -> None:
    plan = PollPlan(10.0, 0.0, 30)
    assert len(plan.pick(wants(1), 0.0)) == 1
    assert plan.pick(wants(1), 8.9) == []
    assert len(plan.pick(wants(1), 9.0)) == 1
    assert plan.pick(wants(1), 17.9) == []
    assert len(plan.pick(wants(1), 18.0)) == 1


def test_a_closed_market_is_looked_at_no_sooner_than_an_open_one() -> None:
    plan = PollPlan(1.0, 2.0, 30)
    closed = wants(1, trading=False)
    assert [len(plan.pick(closed, now)) for now in (10.0, 11.9, 12.0, 13.0)] == [0, 0, 1, 0]


def test_who_waits_longest_goes_first_and_newcomers_before_all() -> None:
    plan = PollPlan(1.0, 0.0, 2)
    three = wants(3)
    assert plan.pick(three, 0.0) == three[:2]
    assert plan.pick(three, 1.0) == [three[2], three[0]]
    four = wants(4)
    assert plan.pick(four, 2.0) == [four[3], four[1]]
