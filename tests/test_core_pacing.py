"""Windows, backoff, the dial budget, and what of them outlives the process."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
from typing import Any

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import config, schemas
from kisfeed.core.breaker import BreakerRecord, Phase, Trip
from kisfeed.core.pacing import Backoff, DialBudget, Hygiene, SlidingWindows, Stamp, ages
from kisfeed.limits import Limits, Window, resolve

LIMITS: Limits = resolve(schemas.load("limits.kis.json"), "real", dt.date(2026, 11, 20))
RULES = config.Session()

_windows = st.lists(
    st.builds(Window, st.integers(1, 6), st.sampled_from([0.5, 1.0, 1.05, 7.0, 60.0])),
    min_size=1,
    max_size=3,
)
_gaps = st.lists(st.floats(0, 30), max_size=60)


def _most_in(stamps: list[float], seconds: float) -> int:
    """The fullest window of this length, seen from every stamp (an oracle of its own)."""
    return max((sum(1 for s in stamps if t - seconds < s <= t) for t in stamps), default=0)


@given(_windows, _gaps)
def test_no_window_ever_holds_more_than_its_count(windows: list[Window], gaps: list[float]) -> None:
    limiter = SlidingWindows(windows)
    now, taken = 0.0, []
    for gap in gaps:
        now = limiter.ready(now + gap)
        assert limiter.wait(now) == 0
        taken.append(limiter.take(now))
        # The float of the deadline decides, so what is compared is what the limiter compares.
        for window in windows:
            nth = taken[-window.count - 1 : -window.count] if len(taken) > window.count else []
            assert all(old + window.seconds <= now for old in nth)


@given(_windows, _gaps)
def test_waiting_is_never_longer_than_needed(windows: list[Window], gaps: list[float]) -> None:
    limiter = SlidingWindows(windows)
    now = 0.0
    for gap in gaps:
        now += gap
        ready = limiter.ready(now)
        if ready > now:
            just_before = math.nextafter(ready, -math.inf)
            assert limiter.ready(just_before) > just_before
            with pytest.raises(AssertionError):
                limiter.take(just_before)
        now = ready
        limiter.take(now)


@given(_windows, _gaps, st.data())
def test_a_refunded_permit_was_never_there(
    windows: list[Window], gaps: list[float], data: st.DataObject
) -> None:
    one, two = SlidingWindows(windows), SlidingWindows(windows)
    now = 0.0
    for gap in gaps:
        now = max(one.ready(now + gap), two.ready(now + gap))
        one.take(now)
        two.take(now)
        later = now + data.draw(st.floats(0, 5))
        later = two.ready(later)
        stamp = two.take(later)
        two.refund(stamp)
        assert one.ready(later) == two.ready(later)
        assert one.left(later) == two.left(later)
        now = later


def test_what_is_left_is_told_for_each_window() -> None:
    limiter = SlidingWindows([Window(2, 1.0), Window(3, 10.0)])
    assert limiter.left(0.0) == [2, 3]
    limiter.take(0.0)
    limiter.take(0.5)
    assert limiter.left(0.5) == [0, 1]
    assert limiter.wait(0.5) == 0.5
    limiter.take(1.0)
    assert limiter.left(1.2) == [0, 0]
    assert limiter.ready(2.0) == 10.0
    assert limiter.left(10.0) == [2, 1]
    with pytest.raises(ValueError, match="not in"):
        limiter.refund(3.3)


def test_permits_from_disk_may_come_in_any_order() -> None:
    limiter = SlidingWindows([Window(2, 10.0)])
    limiter.put_back([1.0, 9.0, 5.0, 11.0], 100.0)
    assert limiter.ages(100.0) == (9.0, 5.0, 1.0)
    assert limiter.ready(100.0) == 105.0


def test_a_permit_is_kept_as_long_as_a_window_needs_it_or_as_asked() -> None:
    limiter, keeping = SlidingWindows([Window(1, 0.5)]), SlidingWindows([Window(1, 0.5)], 3.0)
    limiter.take(0.0)
    keeping.take(0.0)
    assert limiter.ages(0.25) == keeping.ages(0.25) == (0.25,)
    assert limiter.ages(0.5) == ()
    assert keeping.ages(2.5) == (2.5,)
    assert keeping.newest(1) == 0.0
    assert keeping.ages(3.0) == ()


def test_no_window_lets_everything_through() -> None:
    limiter = SlidingWindows([])
    for _ in range(100):
        limiter.take(1.0)
    assert limiter.wait(1.0) == 0
    assert limiter.left(1.0) == []


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2000))
def test_half_of_a_pause_is_fixed_and_it_never_passes_the_cap(jitter: float, n: int) -> None:
    backoff = Backoff(5, 120, failures=n)
    pause = backoff.failed(jitter)
    whole = min(120, 5 * 2 ** min(n, 20))
    assert whole / 2 <= pause < whole or math.isclose(pause, whole)
    assert backoff.failures == n + 1
    backoff.reset()
    assert backoff.failed(0.0) == 2.5


def test_the_pauses_double_up_to_the_cap() -> None:
    backoff = Backoff(5, 120)
    assert [backoff.failed(0.5) for _ in range(7)] == [3.75, 7.5, 15, 30, 60, 90, 90]


def _budget(stamps: list[float] | None = None, now: float = 0.0, **rules: Any) -> DialBudget:
    return DialBudget(LIMITS, attrs.evolve(RULES, **rules), stamps or [], now)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 10)), max_size=90))
def test_the_server_never_counts_more_dials_than_the_rule(
    plan: list[tuple[float, float]],
) -> None:
    """The server sees a dial anywhere between its start and its end."""
    budget = _budget()
    now, seen = 0.0, []
    for number, (gap, took) in enumerate(plan):
        now = budget.ready(now + gap)
        budget.charge(now)
        # Late for the first of a window, early for the last: the worst there is.
        seen.append(now + took if number % 4 < 2 else now)
        now += took
        budget.settle(now)
    for window in LIMITS.dials:
        assert _most_in(seen, window.seconds) <= window.count


def test_from_the_sixth_dial_of_an_hour_on_they_are_ten_minutes_apart() -> None:
    budget = _budget()
    now, made = 0.0, []
    for _ in range(14):
        now = budget.ready(now)
        budget.charge(now)
        budget.settle(now)
        made.append(now)
    gaps = [b - a for a, b in itertools.pairwise(made)]
    assert gaps[:4] == [0, 0, pytest.approx(60.6), 0]
    assert gaps[4:] == pytest.approx([600] * 9)


def test_a_dial_that_reached_nobody_costs_nothing() -> None:
    budget = _budget()
    for now in range(50):
        assert budget.ready(now) == now
        budget.charge(now)
        assert budget.open
        budget.refund()
    assert budget.ages(50) == ()
    assert [w["left"] for w in budget.left(50)] == [3, 12, 60]


@pytest.mark.parametrize("misuse", ["charge", "refund"])
def test_a_charge_without_room_and_a_refund_without_a_charge_are_bugs(misuse: str) -> None:
    budget = _budget([1.0, 1.0, 1.0])
    with pytest.raises(AssertionError):
        budget.charge(0.0) if misuse == "charge" else budget.refund()


@given(st.lists(st.floats(0, 90_000), max_size=12), st.floats(0, 4000))
def test_the_budget_survives_a_restart(gaps: list[float], down: float) -> None:
    one = _budget()
    now = 0.0
    for gap in gaps:
        now = one.ready(now + gap)
        one.charge(now)
        one.settle(now)
    record = Hygiene(dials=one.ages(now))
    read = Hygiene.from_map(json.loads(json.dumps(record.to_map()))).aged(down)
    later = 5_000.0
    two = DialBudget(LIMITS, RULES, read.dials, later)
    assert two.ready(later) - later == pytest.approx(one.ready(now + down) - now - down, abs=1e-6)


def test_the_configuration_can_only_tighten() -> None:
    tight = _budget(dials=(Window(1, 60.0), Window(1000, 60.0)))
    tight.charge(0.0)
    assert tight.ready(0.0) == pytest.approx(60.6)
    assert [w["left"] for w in tight.left(0.0)] == [2, 11, 59, 0, 999]


def test_a_scaled_profile_scales_the_windows() -> None:
    budget = DialBudget(LIMITS, RULES.scaled(60), [], 0.0)
    for _ in range(3):
        budget.charge(0.0)
    assert budget.ready(0.0) == pytest.approx(1.01)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_the_slow_lane_ends_when_its_hour_has_thinned_out(scale: float) -> None:
    rules, minute = RULES.scaled(scale), 60.0 / scale
    early = [age * minute for age in (60.5, 60.4, 60.3, 60.2, 1.5)]
    assert DialBudget(LIMITS, rules, early, 0.0).ready(0.0) == pytest.approx(0.1 * minute)
    assert DialBudget(LIMITS, rules, [age * minute for age in (59, 58, 57, 9, 8)], 0.0).ready(
        0.0
    ) == pytest.approx(1.6 * minute)


def test_a_suspended_machine_grows_older() -> None:
    budget = _budget([0.0, 0.0])
    budget.charge(0.0)
    budget.suspended(61.0)
    assert budget.ready(0.0) == 0.0
    budget.settle(1.0)
    assert budget.ages(1.0) == (61.0 + 1, 61.0 + 1, 0.0)


# stamps


_clock = st.floats(0, 1e9)


@given(_clock, _clock, st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_within_one_boot_no_clock_step_counts(
    boot: float, wall: float, passed: float, step: float
) -> None:
    stamp = Stamp("b1", boot, wall)
    later_wall = max(0.0, wall + passed + step)
    assert ages([stamp], "b1", boot + passed, later_wall) == [pytest.approx(passed, abs=1e-3)]


@given(_clock, _clock, _clock, _clock)
def test_of_another_boot_the_wall_clock_tells_and_the_future_is_just_now(
    boot: float, wall: float, boot_now: float, wall_now: float
) -> None:
    for named in ("b2", ""):
        assert ages([Stamp("b1", boot, wall)], named, boot_now, wall_now) == [
            max(0.0, wall_now - wall)
        ]
    # A boot without a name is like no other, not even like itself.
    assert ages([Stamp("", boot, wall)], "", boot_now, wall_now) == [max(0.0, wall_now - wall)]


def test_boottime_that_went_back_within_a_boot_is_just_now() -> None:
    assert ages([Stamp("b", 100.0, 0.0)], "b", 50.0, 1e9) == [0.0]


# what goes to disk

_seconds = st.floats(0, 1e6)
_records = st.builds(
    Hygiene,
    dials=st.lists(_seconds, max_size=8).map(lambda a: tuple(sorted(a, reverse=True))),
    dialling=st.booleans(),
    open=st.booleans(),
    proved=st.booleans(),
    unclosed_s=st.none() | _seconds,
    in_use=st.integers(0, 9),
    in_use_s=_seconds,
    hold_s=st.none() | _seconds,
    breaker=st.builds(
        BreakerRecord,
        phase=st.sampled_from([Phase.OPEN, Phase.HALF_OPEN]),
        trip=st.sampled_from(Trip),
        level=st.integers(0, 9),
        young=st.integers(0, 9),
        loops=st.integers(0, 9),
        left_s=st.floats(0, 3600),
        open_s=_seconds,
    )
    | st.just(BreakerRecord()),
)


@given(_records)
def test_a_record_comes_back_from_json_as_it_was(record: Hygiene) -> None:
    assert Hygiene.from_map(json.loads(json.dumps(record.to_map()))) == record
    stamp = Stamp("boot", 1.5, 2.5)
    assert Stamp.from_map(json.loads(json.dumps(stamp.to_map()))) == stamp


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(_records, _json, st.data())
def test_a_record_that_was_tampered_with_is_refused_or_still_makes_sense(
    record: Hygiene, junk: Any, data: st.DataObject
) -> None:
    whole: dict[str, Any] = record.to_map()
    target = data.draw(st.sampled_from([whole, whole["breaker"]]))
    target[data.draw(st.sampled_from([*target, "extra"]))] = junk
    try:
        read = Hygiene.from_map(whole)
    except ValueError:
        return
    assert all(math.isfinite(age) and age >= 0 for age in read.dials)
    assert Hygiene.from_map(read.to_map()) == read


@pytest.mark.parametrize(
    "junk",
    [
        None,
        [],
        {},
        Hygiene().to_map() | {"dials": [1.0, 2.0]},
        Hygiene().to_map() | {"dials": [-1.0]},
        Hygiene().to_map() | {"dials": [math.nan]},
        Hygiene().to_map() | {"dials": [True]},
        Hygiene().to_map() | {"dials": [10**400]},
        Hygiene().to_map() | {"open": 1},
        Hygiene().to_map() | {"in_use": -1},
        Hygiene().to_map() | {"hold_s": "20"},
        Hygiene().to_map() | {"breaker": {}},
        Hygiene().to_map() | {"breaker": BreakerRecord().to_map() | {"phase": "ajar"}},
        Hygiene().to_map() | {"breaker": BreakerRecord().to_map() | {"phase": "open"}},
        Hygiene().to_map() | {"breaker": BreakerRecord().to_map() | {"left_s": 1e9}},
        Hygiene().to_map() | {"breaker": BreakerRecord().to_map() | {"phase": 3}},
    ],
)
def test_a_malformed_record_is_a_value_error(junk: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the kind is the promise, not the words
        Hygiene.from_map(junk)


def test_an_appkey_never_used_has_nothing_written_of_it() -> None:
    assert Hygiene().to_map() == {
        "dials": [],
        "dialling": False,
        "open": False,
        "proved": False,
        "unclosed_s": None,
        "in_use": 0,
        "in_use_s": 0.0,
        "hold_s": None,
        "breaker": BreakerRecord().to_map(),
    }


def test_more_dials_than_anybody_makes_were_not_written_by_us() -> None:
    good = Hygiene().to_map()
    assert len(Hygiene.from_map({**good, "dials": [1.0] * 10_000}).dials) == 10_000
    with pytest.raises(ValueError, match="dials"):
        Hygiene.from_map({**good, "dials": [1.0] * 10_001})


def test_a_record_read_later_is_older() -> None:
    record = Hygiene(
        dials=(9.0, 1.0),
        unclosed_s=4.0,
        in_use=1,
        in_use_s=3.0,
        breaker=BreakerRecord(Phase.OPEN, Trip.KEY_REFUSED, 1, 0, 0, left_s=5.0, open_s=1.0),
    ).aged(7.0)
    assert record.dials == (16.0, 8.0)
    assert (record.unclosed_s, record.in_use_s) == (11.0, 10.0)
    assert (record.breaker.left_s, record.breaker.open_s) == (0.0, 8.0)
