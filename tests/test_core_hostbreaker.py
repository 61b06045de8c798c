"""The breaker over one REST host: who may call it while it does not answer, and when."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from kisfeed.core.hostbreaker import HostBreaker

PAUSES = [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def tripped(now: float = 0.0) -> HostBreaker:
    breaker = HostBreaker()
    for _ in range(5):
        assert breaker.enter(now)
        assert not breaker.open
        breaker.failed(now)
    return breaker


def test_five_failures_in_a_row_open_it_and_each_failed_probe_makes_the_pause_longer() -> None:
    breaker, now = tripped(), 0.0
    for pause in PAUSES:
        assert breaker.open
        assert breaker.wait(now) == pause
        assert not breaker.enter(now + pause - 0.01)
        now += pause
        assert breaker.wait(now) == 0.0
        assert breaker.enter(now)
        breaker.failed(now)


def test_an_answer_ends_the_row_of_failures() -> None:
    breaker = HostBreaker()
    for _ in range(4):
        breaker.failed(0.0)
    breaker.worked()
    for _ in range(4):
        breaker.failed(0.0)
    assert not breaker.open
    assert breaker.wait(0.0) == 0.0


def test_an_answer_closes_it_and_the_next_pause_is_the_first_again() -> None:
    breaker = tripped()
    assert breaker.enter(5.0)
    breaker.failed(5.0)
    breaker.worked()
    assert breaker.enter(6.0)
    assert not breaker.open
    for _ in range(5):
        breaker.failed(7.0)
    assert breaker.wait(7.0) == 5.0


def test_one_call_probes_and_the_others_wait_for_what_it_finds() -> None:
    breaker = tripped()
    assert breaker.enter(5.0)
    assert not breaker.enter(5.0)
    assert not breaker.enter(500.0)
    assert breaker.wait(5.0) == 0.1, "a while, not at once and again"
    breaker.worked()
    assert breaker.enter(5.1)
    assert breaker.enter(5.1)


def test_of_the_calls_that_were_out_when_it_opened_none_makes_the_pause_longer() -> None:
    breaker = tripped()
    for _ in range(9):
        breaker.failed(3.0)
    assert breaker.wait(3.0) == 2.0
    assert breaker.enter(5.0)
    breaker.failed(5.0)
    breaker.failed(6.0)
    assert breaker.wait(6.0) == 9.0


def test_a_probe_that_ends_without_telling_leaves_its_turn_to_the_next() -> None:
    breaker = tripped()
    assert breaker.enter(5.0)
    breaker.left()
    assert breaker.wait(5.0) == 0.0
    assert breaker.enter(5.0)
    breaker.worked()
    for _ in range(5):
        breaker.failed(6.0)
    assert breaker.enter(11.0), "the probe that worked is not still out"


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.sampled_from(["failed", "worked", "left"])), max_size=60
    )
)
def test_who_waits_as_long_as_told_may_enter_unless_a_probe_is_out(
    steps: list[tuple[float, str]],
) -> None:
    breaker, now = HostBreaker(), 0.0
    for pause, end in steps:
        now += pause
        if not breaker.enter(now):
            now += breaker.wait(now)
            assert breaker.enter(now)
        if end == "failed":
            breaker.failed(now)
        else:
            getattr(breaker, end)()
        assert breaker.wait(now) == pytest.approx(0.0) or breaker.open


def test_an_answer_of_a_call_that_was_out_ends_the_pause_at_once() -> None:
    breaker = tripped()
    breaker.worked()
    assert breaker.wait(1.0) == 0.0
    assert breaker.enter(1.0)


def test_a_status_tells_when_the_host_is_tried_next() -> None:
    breaker = HostBreaker()
    breaker.failed(0.0)
    assert breaker.status(0.0) == {"open": False, "failures": 1, "next_try_in_s": None}
    breaker = tripped()
    assert breaker.status(1.26) == {"open": True, "failures": 5, "next_try_in_s": 3.7}
    assert breaker.status(9.0) == {"open": True, "failures": 5, "next_try_in_s": 0.0}
