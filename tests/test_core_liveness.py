from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import schemas
from kisfeed.config import Session
from kisfeed.core.liveness import (
    FeedOk,
    FeedStalled,
    LinkDead,
    LinkOk,
    LinkSuspect,
    Liveness,
    Output,
    Probe,
)
from kisfeed.kis.sessions import Calendar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kisfeed.kis.catalogue import RegKey

RULES = Session()
SAMSUNG: RegKey = ("H0STCNT0", "005930")
HYNIX: RegKey = ("H0STCNT0", "000660")
KIA: RegKey = ("H0STCNT0", "000270")
HOUR = 3600.0


def is_open(_key: RegKey) -> bool:
    return True


def is_closed(_key: RegKey) -> bool:
    return False


def up(*keys: RegKey, now: float = 0.0, rules: Session = RULES) -> Liveness:
    liveness = Liveness(rules)
    liveness.market(is_open, now)
    liveness.session_up(now)
    for key in keys:
        liveness.watch(key, now)
    return liveness


def run(liveness: Liveness, until: float) -> list[tuple[float, Output]]:
    """Fire every deadline up to *until*, each at its exact time."""
    told: list[tuple[float, Output]] = []
    for _ in range(100_000):
        due = liveness.next_deadline()
        if due > until:
            return told
        told += [(due, output) for output in liveness.timer(due)]
    raise AssertionError("the deadlines do not advance")


def feed(liveness: Liveness, times: Iterable[float], *keys: RegKey) -> list[tuple[float, Output]]:
    """Reads at *times*, each with a record of every key, deadlines fired in between."""
    told: list[tuple[float, Output]] = []
    for now in times:
        told += run(liveness, now)
        told += [(now, output) for output in liveness.heard(now)]
        for key in keys:
            told += [(now, output) for output in liveness.data(key, now)]
    return told


def every(gap: float, *, start: float = 0.0, until: float) -> list[float]:
    return [start + gap * n for n in range(1, round((until - start) / gap) + 1)]


def times_of(told: list[tuple[float, Output]], kind: type[Output]) -> list[float]:
    return [now for now, output in told if isinstance(output, kind)]


# Properties ----------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, RULES.busy_suspect_floor_s - 0.01), max_size=60))
def test_gaps_below_the_busy_bound_are_never_suspect(gaps: list[float]) -> None:
    liveness = up(SAMSUNG)
    now = 0.0
    for gap in gaps:
        now += gap
        assert feed(liveness, [now], SAMSUNG) == []


@given(
    st.lists(st.floats(0.0, RULES.quiet_suspect_s - 0.01), max_size=40),
    st.floats(0.0, RULES.probe_timeout_s - 0.01),
)
def test_a_link_that_answers_its_probes_never_dies(gaps: list[float], answer: float) -> None:
    liveness = up(SAMSUNG)
    now = 0.0
    for gap in gaps:
        told: list[tuple[float, Output]] = []
        frame_at = now + gap
        while liveness.next_deadline() <= frame_at:
            now = liveness.next_deadline()
            told = [(now, output) for output in liveness.timer(now)]
            if any(isinstance(output, Probe) for _, output in told):
                now += answer
                assert any(isinstance(output, LinkOk) for output in liveness.probe_answered(now))
                frame_at = max(frame_at, now)
        now = frame_at
        liveness.heard(now)
        liveness.data(SAMSUNG, now)
        assert liveness.status(now)["link"] == "ok"


@given(st.lists(st.floats(0.0, RULES.quiet_suspect_s - 0.01), max_size=60))
def test_a_closed_market_bears_any_silence_below_the_quiet_bound(gaps: list[float]) -> None:
    liveness = up(SAMSUNG)
    liveness.market(is_closed, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        assert feed(liveness, [now]) == []


@given(st.lists(st.floats(0.0, 200.0), max_size=40), st.booleans())
def test_every_suspicion_ends_in_one_ok_or_one_death_and_death_is_never_first(
    gaps: list[float], market_open: bool
) -> None:
    liveness = up(SAMSUNG)
    liveness.market(is_open if market_open else is_closed, 0.0)
    now, told = 0.0, []
    for gap in gaps:
        now += gap
        told += feed(liveness, [now], SAMSUNG)
    story = [type(o) for _, o in told if isinstance(o, LinkSuspect | Probe | LinkOk | LinkDead)]
    while story:
        assert story[:2] == [LinkSuspect, Probe]
        if story[2:3] == [LinkDead]:
            assert story[3:] == []
        assert not story[2:] or story[2] in (LinkOk, LinkDead)
        story = story[3:]


@given(st.floats(0.001, 100.0), st.integers(30, 300))
def test_silence_is_told_between_the_bounds_whatever_the_rate(gap: float, count: int) -> None:
    liveness = up(SAMSUNG)
    liveness_times = every(gap, until=gap * count)
    told = feed(liveness, liveness_times, SAMSUNG)
    if times_of(told, LinkDead):
        assert gap >= RULES.quiet_dead_s
        return
    last = liveness_times[-1]
    silent = run(liveness, last + 100.0)
    (suspect,) = times_of(silent, LinkSuspect)
    (dead,) = times_of(silent, LinkDead)
    assert RULES.busy_suspect_floor_s <= suspect - last + 1e-6
    assert suspect - last <= RULES.quiet_suspect_s + 1e-6
    assert suspect + RULES.probe_timeout_s - 1e-6 <= dead <= last + RULES.quiet_dead_s + 1e-6


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data", "open", "closed", "halt", "resume", "quiet", "rewatch"]),
            st.sampled_from([SAMSUNG, HYNIX]),
            st.floats(0.0, 300.0),
        ),
        max_size=40,
    )
)
def test_every_stall_is_followed_by_one_ok_and_only_expected_keys_stall(
    steps: list[tuple[str, RegKey, float]],
) -> None:
    liveness = up(SAMSUNG, HYNIX)
    market_open = True
    halted = dict.fromkeys([SAMSUNG, HYNIX], False)
    stalled: dict[RegKey, bool] = {}
    now = 0.0

    def note(outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, FeedStalled):
                assert not stalled.get(output.key, False)
                assert market_open
                assert not halted[output.key]
                stalled[output.key] = True
            elif isinstance(output, FeedOk):
                assert stalled[output.key]
                stalled[output.key] = False

    for step, key, gap in steps:
        for tick in every(10.0, start=now, until=now + gap):  # PINGPONG keeps the link alive
            note([output for _, output in feed(liveness, [tick])])
            now = tick
        if step == "data":
            note(liveness.heard(now) + liveness.data(key, now))
        elif step in {"open", "closed"}:
            outputs = liveness.market(is_open if step == "open" else is_closed, now)
            market_open = step == "open"
            note(outputs)
        elif step in {"halt", "resume"}:
            note(liveness.halted(key, step == "halt", now))
            halted[key] = step == "halt"
        elif step == "quiet":
            note(liveness.quiet_explained(key, now))
        else:
            note(liveness.unwatch(key, now))
            liveness.watch(key, now)
            liveness.halted(key, halted[key], now)
        assert not any(stalled.get(k) and (halted[k] or not market_open) for k in halted)


# The link, in exact numbers --------------------------------------------------------------


def test_half_open_at_500_frames_a_second_is_suspect_after_5_s_and_dead_after_10_s() -> None:
    liveness = up(SAMSUNG)
    assert feed(liveness, every(0.002, until=30.0), SAMSUNG) == []
    told = run(liveness, 200.0)
    assert [type(output) for _, output in told] == [LinkSuspect, Probe, LinkDead]
    assert times_of(told, LinkSuspect) == [pytest.approx(35.0)]
    assert times_of(told, LinkDead) == [pytest.approx(40.0)]
    assert liveness.next_deadline() == math.inf


def test_one_key_that_flows_is_enough_for_a_market_to_be_open() -> None:
    liveness = up(SAMSUNG, HYNIX, KIA)
    liveness.market(lambda key: key == SAMSUNG, 0.0)
    feed(liveness, every(0.002, until=30.0), SAMSUNG)
    assert liveness.unwatch(KIA, 30.0) == []
    assert times_of(run(liveness, 200.0), LinkSuspect) == [pytest.approx(35.0)]


def test_a_session_counts_as_busy_after_20_s_of_500_frames_a_second() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(0.002, until=21.0), SAMSUNG)
    (suspect,) = times_of(run(liveness, 100.0), LinkSuspect)
    assert suspect - 21.0 < 6.0


def test_one_frame_in_10_s_is_suspect_after_45_s_and_dead_after_90_s() -> None:
    liveness = up(SAMSUNG)
    liveness.halted(SAMSUNG, True, 0.0)  # only the link is in question
    assert feed(liveness, every(10.0, until=HOUR)) == []
    told = run(liveness, 2 * HOUR)
    assert [type(output) for _, output in told] == [LinkSuspect, Probe, LinkDead]
    assert [now - HOUR for now, _ in told] == [45.0, 45.0, 90.0]


def test_a_frame_a_second_is_suspect_after_20_s_and_dead_after_40_s() -> None:
    liveness = up(SAMSUNG)
    assert feed(liveness, every(1.0, until=300.0), SAMSUNG) == []
    told = run(liveness, 400.0)
    assert times_of(told, LinkSuspect) == [pytest.approx(320.0, abs=0.01)]
    assert times_of(told, LinkDead) == [pytest.approx(340.0, abs=0.02)]


def test_a_session_that_never_speaks_is_dead_after_90_s() -> None:
    told = run(up(now=100.0), 1000.0)
    assert told == [(145.0, LinkSuspect(45.0)), (145.0, Probe()), (190.0, LinkDead(90.0))]


def test_a_closed_market_with_pingpong_does_nothing_for_12_hours() -> None:
    liveness = up(SAMSUNG, HYNIX)
    feed(liveness, every(0.002, until=30.0), SAMSUNG, HYNIX)
    assert liveness.market(is_closed, 30.0) == []
    assert feed(liveness, every(14.0, start=30.0, until=12 * HOUR)) == []
    assert liveness.status(12 * HOUR)["link"] == "ok"


def test_a_busy_market_that_falls_silent_by_itself_is_probed_once_and_left_alone() -> None:
    liveness = up(SAMSUNG)
    liveness_times = every(0.002, until=60.0)
    feed(liveness, liveness_times, SAMSUNG)
    (suspect, _), (_, probe) = run(liveness, 66.0)
    assert suspect == pytest.approx(65.0)
    assert isinstance(probe, Probe)
    assert liveness.probe_answered(65.1) == [LinkOk()]
    assert not times_of(feed(liveness, every(10.0, start=65.1, until=600.0)), LinkSuspect)


def test_bursts_do_not_make_a_quiet_link_look_busy() -> None:
    liveness = up(SAMSUNG)
    bursts = [start * 10.0 + n * 0.01 for start in range(1, 100) for n in range(20)]
    assert feed(liveness, bursts, SAMSUNG) == []


def test_the_registering_of_41_keys_does_not_make_a_quiet_link_look_busy() -> None:
    liveness = up(SAMSUNG)
    assert feed(liveness, every(0.2, until=8.2)) == []
    assert feed(liveness, every(14.0, start=8.2, until=50.0)) == []


def test_a_process_that_slept_probes_before_it_kills() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(0.002, until=30.0), SAMSUNG)
    assert [type(output) for output in liveness.timer(1030.0)] == [LinkSuspect, Probe]
    assert liveness.timer(1034.9) == []
    assert liveness.heard(1034.9) == [LinkOk()]


def test_doubt_from_outside_is_told_and_probed_at_once_and_only_on_a_sound_link() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(0.002, until=30.0), SAMSUNG)
    assert [type(output) for output in liveness.doubt(30.5)] == [LinkSuspect, Probe]
    assert liveness.doubt(30.6) == []
    assert times_of(run(liveness, 100.0), LinkDead) == [pytest.approx(40.0)]
    assert Liveness(RULES).doubt(0.0) == []


def test_without_a_session_nothing_is_judged() -> None:
    liveness = Liveness(RULES)
    assert liveness.next_deadline() == math.inf
    assert liveness.timer(1e9) == []
    liveness.session_up(0.0)
    liveness.watch(SAMSUNG, 0.0)
    liveness.session_down(1.0)
    assert liveness.next_deadline() == math.inf
    assert liveness.status(2.0) == {
        "link": "down",
        "last_byte_age_s": None,
        "suspect_after_s": None,
        "market_open": False,
        "feeds": {},
    }


def test_rules_scaled_in_time_judge_at_scaled_times() -> None:
    liveness = up(SAMSUNG, rules=RULES.scaled(60.0))
    feed(liveness, every(0.002 / 60, until=0.5), SAMSUNG)
    told = run(liveness, 10.0)
    assert times_of(told, LinkSuspect) == [pytest.approx(0.5 + 5 / 60)]
    assert times_of(told, LinkDead) == [pytest.approx(0.5 + 10 / 60)]


# The feeds -------------------------------------------------------------------------------


def test_an_ack_followed_by_nothing_is_found_after_60_s_while_the_link_is_alive() -> None:
    liveness = up(SAMSUNG)
    told = feed(liveness, every(10.0, until=HOUR))
    assert told == [(60.0, FeedStalled(SAMSUNG))]


def test_a_stalled_feed_never_touches_the_link() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(10.0, until=HOUR))
    status = liveness.status(HOUR)
    assert status["link"] == "ok"
    assert status["feeds"] == {
        "H0STCNT0.005930": {"verdict": "stalled", "ack_age_s": HOUR, "data_age_s": None}
    }


def test_data_ends_a_stall() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(10.0, until=100.0))
    assert liveness.data(SAMSUNG, 100.0) == [FeedOk(SAMSUNG)]
    assert liveness.data(SAMSUNG, 101.0) == []


def test_a_busy_key_among_busy_keys_is_found_60_s_after_its_last_record() -> None:
    liveness = up(SAMSUNG, HYNIX)
    feed(liveness, every(0.1, until=1000.0), SAMSUNG, HYNIX)
    told = feed(liveness, every(0.1, start=1000.0, until=1100.0), HYNIX)
    assert [output for _, output in told] == [FeedStalled(SAMSUNG)]
    assert times_of(told, FeedStalled) == [pytest.approx(1060.0)]


def test_a_key_that_turns_from_thin_to_busy_is_judged_as_busy() -> None:
    liveness = up(SAMSUNG)
    beat = every(10.0, until=10_000.0)
    feed(liveness, [t for t in beat if t % 50 == 0], SAMSUNG)
    assert (
        times_of(feed(liveness, every(0.5, start=10_000.0, until=10_600.0), SAMSUNG), LinkOk) == []
    )
    (stall,) = times_of(feed(liveness, every(10.0, start=10_600.0, until=10_800.0)), FeedStalled)
    assert stall == pytest.approx(10_660.0)


def test_a_thin_symbol_stops_being_asked_about_once_its_pace_is_known() -> None:
    liveness = up(SAMSUNG)
    told: list[tuple[float, Output]] = []
    for now in every(10.0, until=6 * HOUR):
        told += feed(liveness, [now], *([SAMSUNG] if now % 300 == 0 else []))
    assert times_of(told, FeedStalled) == [60.0]


def test_explained_quiet_is_asked_about_again_only_after_twice_as_long() -> None:
    liveness = up(SAMSUNG)
    stalls = []
    for now in every(10.0, until=2000.0):
        for at, output in feed(liveness, [now]):
            if isinstance(output, FeedStalled):
                stalls.append(at)
                assert liveness.quiet_explained(SAMSUNG, now) == [FeedOk(SAMSUNG)]
    assert stalls == pytest.approx([60.0, 180.0, 420.0, 900.0, 1860.0])


def test_registering_a_stalled_key_again_does_not_restart_its_patience() -> None:
    liveness = up(SAMSUNG)
    stalls = []
    for now in every(10.0, until=2000.0):
        for at, output in feed(liveness, [now]):
            if isinstance(output, FeedStalled):
                stalls.append(at)
                assert liveness.unwatch(SAMSUNG, now) == [FeedOk(SAMSUNG)]
                liveness.watch(SAMSUNG, now)
    assert stalls == pytest.approx([60.0, 180.0, 420.0, 900.0, 1860.0])


def test_what_is_known_of_a_thin_symbol_outlives_the_session() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(10.0, until=60.0))
    liveness.quiet_explained(SAMSUNG, 60.0)
    liveness.session_down(70.0)
    liveness.session_up(100.0)
    liveness.watch(SAMSUNG, 100.0)
    (stall,) = times_of(feed(liveness, every(10.0, start=100.0, until=400.0)), FeedStalled)
    assert stall == pytest.approx(220.0)


@pytest.mark.parametrize("again", [False, True], ids=["stays", "registered-again"])
def test_the_first_record_already_tells_something_of_a_symbols_pace(*, again: bool) -> None:
    """A third of its gap of 30 s: twenty times that is borne, by a later registration too."""
    liveness = up(SAMSUNG)
    feed(liveness, [10.0, 20.0])
    feed(liveness, [30.0], SAMSUNG)
    since = 30.0
    if again:
        assert liveness.unwatch(SAMSUNG, 35.0) == []
        liveness.watch(SAMSUNG, 35.0)
        since = 35.0
    told = feed(liveness, every(10.0, start=30.0, until=300.0))
    assert [output for _, output in told] == [FeedStalled(SAMSUNG)]
    assert times_of(told, FeedStalled) == [pytest.approx(since + 200.0)]


def test_a_symbol_that_became_busy_is_no_longer_remembered_as_thin() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, [10.0, 20.0])
    feed(liveness, [30.0], SAMSUNG)
    liveness.unwatch(SAMSUNG, 30.0)
    liveness.watch(SAMSUNG, 30.0)
    feed(liveness, every(0.5, start=30.0, until=600.0), SAMSUNG)
    liveness.unwatch(SAMSUNG, 600.0)
    liveness.watch(SAMSUNG, 600.0)
    told = feed(liveness, every(10.0, start=600.0, until=700.0))
    assert times_of(told, FeedStalled) == [pytest.approx(660.0)]


def test_of_a_busy_symbol_nothing_is_remembered() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(1.0, until=300.0), SAMSUNG)
    liveness.unwatch(SAMSUNG, 300.0)
    liveness.watch(SAMSUNG, 300.0)
    feed(liveness, [310.0, 320.0])
    feed(liveness, [330.0], SAMSUNG)
    told = feed(liveness, every(10.0, start=330.0, until=600.0))
    assert times_of(told, FeedStalled) == [pytest.approx(530.0)], "as of a new one"


def test_a_halted_symbol_never_stalls_and_counts_from_its_resumption() -> None:
    liveness = up(SAMSUNG)
    liveness.halted(SAMSUNG, True, 50.0)
    assert feed(liveness, every(10.0, until=5 * HOUR)) == []
    assert liveness.halted(SAMSUNG, False, 5 * HOUR) == []
    told = feed(liveness, every(10.0, start=5 * HOUR, until=6 * HOUR))
    assert told == [(5 * HOUR + 60.0, FeedStalled(SAMSUNG))]


def test_a_halt_excuses_a_stall_and_an_unknown_key_is_nobodys() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(10.0, until=100.0))
    assert liveness.halted(SAMSUNG, True, 100.0) == [FeedOk(SAMSUNG)]
    assert liveness.halted(SAMSUNG, True, 101.0) == []
    assert liveness.halted(HYNIX, True, 100.0) == []
    assert liveness.data(HYNIX, 100.0) == []
    assert liveness.quiet_explained(HYNIX, 100.0) == []
    assert liveness.unwatch(HYNIX, 100.0) == []


def test_silence_counts_from_the_opening_and_the_close_excuses_it() -> None:
    liveness = up(SAMSUNG, HYNIX)
    liveness.market(is_closed, 0.0)
    feed(liveness, every(10.0, until=1000.0))
    liveness.market(lambda key: key == SAMSUNG, 1000.0)
    told = feed(liveness, every(10.0, start=1000.0, until=1100.0))
    assert told == [(1060.0, FeedStalled(SAMSUNG))]
    assert liveness.market(is_closed, 1100.0) == [FeedOk(SAMSUNG)]
    verdicts = liveness.status(1100.0)["feeds"]
    assert isinstance(verdicts, dict)
    assert {feed["verdict"] for feed in verdicts.values()} == {"closed"}


def test_a_print_after_an_auction_teaches_nothing_about_the_symbol() -> None:
    liveness = up(SAMSUNG)
    feed(liveness, every(0.5, until=100.0), SAMSUNG)
    liveness.market(is_closed, 100.0)
    feed(liveness, every(10.0, start=100.0, until=700.0))
    liveness.data(SAMSUNG, 700.0)
    liveness.market(is_open, 710.0)
    told = feed(liveness, every(10.0, start=700.0, until=900.0))
    assert times_of(told, FeedStalled) == [pytest.approx(770.0)]


def test_an_ack_seen_again_renews_its_age_and_nothing_else() -> None:
    liveness = up(SAMSUNG)
    liveness.watch(SAMSUNG, 30.0)
    assert times_of(feed(liveness, every(10.0, until=100.0)), FeedStalled) == [60.0]


def test_verdicts_are_told_by_name() -> None:
    liveness = up(SAMSUNG, HYNIX)
    liveness.data(SAMSUNG, 4.0)
    liveness.halted(HYNIX, True, 4.0)
    assert liveness.status(10.0)["feeds"] == {
        "H0STCNT0.005930": {"verdict": "ok", "ack_age_s": 10.0, "data_age_s": 6.0},
        "H0STCNT0.000660": {"verdict": "halted", "ack_age_s": 10.0, "data_age_s": None},
    }
    liveness.halted(HYNIX, False, 4.0)
    feeds = liveness.status(10.0)["feeds"]
    assert isinstance(feeds, dict)
    assert feeds["H0STCNT0.000660"]["verdict"] == "none_yet"


def test_a_whole_trading_day_by_the_calendar_tells_only_what_is_odd() -> None:
    calendar = Calendar(schemas.load("kis/sessions.json"), {})
    midnight = 1_784_473_200 * 10**9  # Monday 2026-07-20 in Seoul
    liveness = up(SAMSUNG, HYNIX)
    told: list[tuple[float, Output]] = []
    change = 0.0
    for now in every(10.0, until=24 * HOUR):
        if now >= change:
            wall = midnight + round(now * 1e9)
            flows = calendar.flows("krx", "trade", wall)
            liveness.market(is_open if flows else is_closed, now)
            due = calendar.next_change(["krx"], wall)
            assert due is not None
            change = (due - midnight) / 1e9
        trading = 9 * HOUR < now <= 15 * HOUR + 1200
        keys = [SAMSUNG] if trading else []  # the other key is registered and never speaks
        told += feed(liveness, [now], *keys)
    assert [output for _, output in told] == [FeedStalled(HYNIX)]
    assert times_of(told, FeedStalled) == [9 * HOUR + 60.0]


def test_a_timer_that_comes_early_does_nothing() -> None:
    liveness = up(SAMSUNG)
    assert liveness.timer(1.0) == []
    assert liveness.next_deadline() == 45.0


def test_when_the_last_key_that_flows_is_let_go_the_link_may_be_quiet() -> None:
    liveness = up(SAMSUNG, HYNIX, KIA)
    liveness.market(lambda key: key is not KIA, 0.0)
    seen = []
    for key in (SAMSUNG, HYNIX):
        liveness.unwatch(key, 1.0)
        seen.append(liveness.status(1.0)["market_open"])
    assert seen == [True, False]
    assert liveness.status(1.0)["suspect_after_s"] == RULES.quiet_suspect_s
