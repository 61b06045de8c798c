"""Session discipline and slot market: what ``bench.discipline`` measures, at the size of a test."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import pytest

from kisfeed.chaos import outages, stages, storms
from kisfeed.chaos.checks import most_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def played(scene: Callable[..., Awaitable[dict[str, float]]], **how: Any) -> dict[str, float]:
    figures: dict[str, float] = stages.play(functools.partial(scene, **how))
    return figures


# The last four once found a defect each; so did 6.
@pytest.mark.parametrize("seed", [*range(12), 21, 39, 81, 85])
def test_no_storm_shows_the_server_more_than_the_rules_allow(seed: int) -> None:
    verdict = storms.run(storms.plan(seed))
    assert verdict.faults == ()
    assert all(most <= bound for most, bound in zip(verdict.most, (3, 12, 60), strict=True))
    assert verdict.most_registered <= 41


def test_a_storm_repeats_from_its_seed() -> None:
    assert storms.run(storms.plan(3)) == storms.run(storms.plan(3))


@pytest.mark.parametrize("outage", [*outages.OUTAGES, *outages.PUNISHED], ids=lambda o: o.why)
def test_the_wait_from_heal_to_dial_is_bounded(outage: outages.Outage) -> None:
    waits = [outages.wait_after(*case) for case in outages.cases((outage,), 1)]
    assert max(waits) <= outage.bound_s


def test_a_closed_market_of_twelve_hours_causes_no_reconnect() -> None:
    assert played(stages.closed_market) == {
        "reconnects": 0,
        "first_before_open_s": pytest.approx(math.nan, nan_ok=True),
        "live": 1,
    }


def test_a_session_lost_in_closed_hours_is_redialled_ten_minutes_before_the_next_one() -> None:
    figures = played(stages.closed_market, drop=True)
    assert figures["reconnects"] == 1
    assert 300 < figures["first_before_open_s"] <= 601
    assert figures["live"] == 1


def test_a_half_open_line_is_found_as_fast_as_its_traffic_allows() -> None:
    busy = played(stages.half_open, rate_hz=60.0, busy_s=30.0)
    assert busy["suspect_s"] <= 6
    assert busy["dead_s"] <= 15
    quiet = played(stages.half_open, rate_hz=0.0, busy_s=300.0)
    assert quiet["dead_s"] <= 91


def test_an_ack_followed_by_nothing_is_found_and_repaired_inside_the_session() -> None:
    figures = played(stages.ack_then_nothing)
    assert figures["found_s"] <= 61
    assert figures["repaired_s"] <= 75
    assert figures["connects"] == 1


def test_a_wrong_hts_id_costs_three_dials_and_no_market_data_for_good() -> None:
    figures = played(stages.wrong_hts_id, hours=0.4)
    assert figures["connects"] <= 3
    assert figures["trades_in_last_hour"] > 200
    assert figures["notice_closed"]


@pytest.mark.parametrize("seed", range(2))
def test_missed_shares_are_what_the_server_withheld(seed: int) -> None:
    figures = played(stages.missed_shares, seed=seed, minutes=6.0)
    assert figures["wrong"] == 0
    assert figures["reported"] == figures["withheld"] > 0


@pytest.mark.parametrize("steady", [True, False])
def test_sixty_topics_on_forty_one_slots_do_not_thrash(steady: bool) -> None:
    figures = played(stages.slot_market, hours=0.2, steady=steady)
    assert figures["swaps_at_rest"] == 0
    assert figures["swaps_an_hour"] <= 6
    assert figures["most_registered"] == 41
    assert figures["over_cap"] == figures["unequal"] == 0


def test_the_window_checker_counts_both_ends() -> None:
    assert most_within([], 60.0) == 0
    assert most_within([0.0, 30.0, 60.0, 60.1], 60.0) == 3
