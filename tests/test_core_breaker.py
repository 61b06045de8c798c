"""The breaker: what opens it, what closes it, how long it stays."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from kisfeed.core.breaker import Breaker, BreakerRecord, Phase, flag, natural, seconds_of, text

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSES = (600.0, 1200.0, 2400.0, 3600.0)


def _breaker(record: BreakerRecord | None = None, now: float = 0.0) -> Breaker:
    return Breaker(
        pauses_s=PAUSES,
        young_to_trip=3,
        loops_to_trip=5,
        record=record or BreakerRecord(),
        now=now,
    )


def _tripped() -> Breaker:
    breaker = _breaker()
    for _ in range(3):
        breaker.dialled(0.0)
        breaker.died_young(0.0)
    return breaker


def test_three_young_sessions_in_a_row_open_it() -> None:
    breaker = _breaker()
    breaker.died_young(0.0)
    breaker.died_young(0.0)
    assert breaker.phase is Phase.CLOSED
    breaker.died_young(7.0)
    assert (breaker.phase, breaker.until) == (Phase.OPEN, 607.0)
    status = breaker.status(10.0)
    assert (status["reason"], status["open_for_s"]) == ("young_sessions", 3.0)
    assert status["next_try_in_s"] == 597.0


@pytest.mark.parametrize("end", ["proved", "old"])
def test_a_session_that_lived_breaks_the_row(end: str) -> None:
    breaker = _breaker()
    breaker.died_young(0.0)
    breaker.died_young(0.0)
    breaker.proved() if end == "proved" else breaker.ended_unproved(0.0)
    breaker.died_young(0.0)
    breaker.died_young(0.0)
    assert breaker.phase is Phase.CLOSED


def test_the_pauses_grow_until_it_is_closed() -> None:
    breaker = _tripped()
    now = 0.0
    for pause in (600, 1200, 2400, 3600, 3600):
        assert breaker.until - now == pause
        now = breaker.until
        breaker.dialled(now)
        assert breaker.phase is Phase.HALF_OPEN
        breaker.died_young(now)
    now = breaker.until
    breaker.dialled(now)
    breaker.proved()
    assert (breaker.phase, breaker.until) == (Phase.CLOSED, -math.inf)
    for _ in range(3):
        breaker.died_young(now)
    assert breaker.until - now == 600


def test_half_open_is_exactly_one_dial_and_open_is_none() -> None:
    breaker = _tripped()
    with pytest.raises(AssertionError):
        breaker.dialled(599.9)
    breaker.dialled(600.0)
    with pytest.raises(AssertionError):
        breaker.dialled(600.0)


def test_a_dial_that_reached_nobody_is_not_the_one() -> None:
    breaker = _tripped()
    breaker.dialled(600.0)
    breaker.undialled()
    breaker.dialled(600.0)
    assert breaker.phase is Phase.HALF_OPEN


def test_a_trial_that_ends_without_proof_opens_it_again_and_our_own_stop_does_not() -> None:
    breaker = _tripped()
    breaker.dialled(600.0)
    breaker.stood_down()
    assert (breaker.phase, breaker.until) == (Phase.OPEN, 600.0)
    breaker.dialled(610.0)
    breaker.ended_unproved(800.0)
    assert (breaker.phase, breaker.until) == (Phase.OPEN, 2000.0)


def test_in_use_opens_nothing_but_uses_up_the_trial() -> None:
    breaker = _breaker()
    for _ in range(9):
        breaker.in_use(0.0, young=True)
    assert (breaker.phase, breaker.young) == (Phase.CLOSED, 9)
    breaker.died_young(0.0)
    assert breaker.phase is Phase.OPEN
    breaker.dialled(600.0)
    breaker.in_use(601.0, young=True)
    assert (breaker.phase, breaker.until) == (Phase.OPEN, 1201.0)
    breaker.in_use(601.0, young=False)
    assert breaker.young == 0


def test_five_barren_loops_open_it_and_data_forgives_them() -> None:
    breaker = _breaker()
    assert not any(breaker.looped(0.0) for _ in range(4))
    breaker.data()
    assert [breaker.looped(0.0) for _ in range(5)] == [False] * 4 + [True]
    assert breaker.status(0.0)["reason"] == "barren_loops"
    assert not any(breaker.looped(0.0) for _ in range(20)), "it is open already"


def test_a_key_refused_when_fresh_opens_it_once() -> None:
    breaker = _breaker()
    breaker.key_refused(0.0)
    breaker.key_refused(5.0)
    breaker.died_young(5.0)
    assert (breaker.until, breaker.status(5.0)["level"]) == (605.0, 1), "from the session's end on"
    assert breaker.status(5.0)["reason"] == "key_refused"


def test_a_person_may_override_it_for_one_dial() -> None:
    breaker = _tripped()
    breaker.override()
    breaker.dialled(10.0)
    breaker.died_young(11.0)
    assert breaker.until == 11.0 + 1200
    closed = _breaker()
    closed.override()
    for _ in range(3):
        closed.died_young(0.0)
    assert closed.until == 600.0, "an order given while closed does not count later"


def test_an_order_does_not_shorten_the_pause_for_anybody_else() -> None:
    breaker = _tripped()
    breaker.override()
    breaker.dialled(10.0)
    breaker.undialled()
    breaker.dialled(11.0)
    breaker.stood_down()
    assert breaker.until == 600.0


def test_a_session_that_stood_before_it_opened_does_not_close_it() -> None:
    breaker = _breaker()
    breaker.key_refused(0.0)
    breaker.proved()
    assert breaker.phase is Phase.OPEN


def test_sleep_counts_as_pause() -> None:
    breaker = _tripped()
    breaker.suspended(500.0)
    assert breaker.until == 100.0
    assert breaker.record(0.0).open_s == 500.0


def test_an_order_that_is_used_up_by_another_session_counts_no_longer() -> None:
    breaker = _tripped()
    breaker.override()
    breaker.dialled(10.0)
    breaker.in_use(11.0, young=True)
    assert breaker.until == 611.0


def test_another_session_in_the_trial_costs_the_pause_there_was() -> None:
    breaker = _tripped()
    breaker.dialled(600.0)
    breaker.died_young(600.0)
    assert breaker.record(600.0).open_s == 0.0
    breaker.dialled(1800.0)
    breaker.in_use(1801.0, young=True)
    assert breaker.until == 1801.0 + 1200


def test_a_closed_breaker_writes_that_it_owes_nothing() -> None:
    nothing = {
        "phase": "closed",
        "trip": None,
        "level": 0,
        "young": 0,
        "loops": 0,
        "left_s": 0.0,
        "open_s": 0.0,
    }
    assert BreakerRecord().to_map() == nothing
    assert _breaker(now=7.0).record(9.0).to_map() == nothing
    breaker = _tripped()
    breaker.dialled(600.0)
    breaker.proved()
    assert breaker.record(601.0).to_map() == nothing


_steps = st.lists(
    st.sampled_from(["dial", "young", "old", "proved", "in_use", "nobody", "stop", "loop", "key"])
    | st.floats(0, 2000),
    max_size=40,
)


@given(_steps, st.floats(0, 5000))
def test_a_restart_neither_shortens_nor_lengthens_a_pause(
    steps: list[str | float], down: float
) -> None:
    breaker, now = _breaker(), 0.0
    for step in steps:
        match step:
            case "dial" if breaker.phase is not Phase.HALF_OPEN and breaker.until <= now:
                breaker.dialled(now)
            case "young":
                breaker.died_young(now)
            case "old":
                breaker.ended_unproved(now)
            case "proved":
                breaker.proved()
            case "in_use":
                breaker.in_use(now, young=True)
            case "nobody":
                breaker.undialled()
            case "stop":
                breaker.stood_down()
            case "loop":
                breaker.looped(now)
            case "key":
                breaker.key_refused(now)
            case float():
                now += step
            case _:
                pass
    written = json.loads(json.dumps(breaker.record(now).to_map()))
    again = _breaker(BreakerRecord.from_map(written).aged(down), 70_000.0)
    assert (again.phase, again.young, again.loops) == (breaker.phase, breaker.young, breaker.loops)
    if breaker.phase is Phase.OPEN:
        left = max(0.0, breaker.until - now - down)
        assert again.until - 70_000.0 == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize("end", ["died_young", "ended_unproved"])
def test_a_trial_that_fails_keeps_the_reason_for_which_it_opened(end: str) -> None:
    breaker = _breaker()
    breaker.key_refused(0.0)
    breaker.dialled(600.0)
    breaker.died_young(610.0) if end == "died_young" else breaker.ended_unproved(610.0)
    assert breaker.status(610.0)["reason"] == "key_refused"
    assert breaker.until == 610.0 + 1200


def test_proof_under_an_open_breaker_does_not_forget_how_often_it_opened() -> None:
    breaker = _breaker()
    for _ in range(5):
        breaker.looped(0.0)
    breaker.proved()
    assert (breaker.phase, breaker.record(0.0).level) == (Phase.OPEN, 1)
    breaker.dialled(600.0)
    breaker.died_young(600.0)
    assert breaker.until == 1800.0


def test_after_it_opened_the_loops_are_counted_anew() -> None:
    breaker = _breaker()
    assert [breaker.looped(0.0) for _ in range(5)] == [False] * 4 + [True]
    assert breaker.loops == 0
    breaker.dialled(600.0)
    breaker.proved()
    assert [breaker.looped(700.0) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (text, ["", "x"], [1, None, b"x"]),
        (flag, [True, False], [0, 1, None]),
        (natural, [0, 1, 10**30], [-1, True, 1.0, "1"]),
        (seconds_of, [0, 0.5, 3], [-0.5, False, "1", None, math.inf, math.nan, 10**400]),
    ],
)
def test_a_field_is_what_it_says_or_an_error(
    read: Callable[[Any], Any], good: list[Any], bad: list[Any]
) -> None:
    assert [read(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValueError, match="expected"):
            read(value)


GOOD = BreakerRecord().to_map()


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        sorted(GOOD),
        {},
        {name: value for name, value in GOOD.items() if name != "young"},
        {**GOOD, "more": 1},
        {**GOOD, "left_s": math.nan},
        {**GOOD, "left_s": math.inf},
        {**GOOD, "open_s": -0.1},
        {**GOOD, "open_s": 10**400},
        {**GOOD, "open_s": True},
        {**GOOD, "open_s": "1"},
        {**GOOD, "level": -1},
        {**GOOD, "level": 1.0},
        {**GOOD, "young": True},
        {**GOOD, "phase": "ajar"},
        {**GOOD, "phase": 1},
        {**GOOD, "phase": "open"},
        {**GOOD, "trip": "young_sessions"},
        {**GOOD, "phase": "open", "trip": "young_sessions", "left_s": 7 * 86_400.0 + 0.5},
    ],
)
def test_what_is_no_record_is_refused(broken: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        BreakerRecord.from_map(broken)


def test_the_longest_pause_that_may_be_on_disk_is_a_week() -> None:
    week = {**GOOD, "phase": "open", "trip": "young_sessions", "left_s": 7 * 86_400.0}
    assert BreakerRecord.from_map(week).left_s == 604_800.0
