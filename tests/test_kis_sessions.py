from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.kis.sessions import DAY_NS, NS, Calendar, always_open
from kisfeed.trading_days import EXCHANGES, market_holidays

DATA: dict[str, Any] = schemas.load("kis/sessions.json")
HOLIDAYS = market_holidays(range(2025, 2029))
VENUES = list(DATA["venues"])
KST = dt.timezone(dt.timedelta(hours=9))
NEW_YORK_WINTER = dt.timezone(dt.timedelta(hours=-5))
NEW_YORK_SUMMER = dt.timezone(dt.timedelta(hours=-4))
LATE = {dt.date(2025, 11, 13), dt.date(2026, 11, 19), dt.date(2027, 11, 18)}

moments = st.integers(
    int(dt.datetime(2025, 6, 10, tzinfo=KST).timestamp()) * NS,
    int(dt.datetime(2028, 11, 1, tzinfo=KST).timestamp()) * NS,
)


def calendar(data: dict[str, Any] = DATA) -> Calendar:
    return Calendar(data, HOLIDAYS)


SHARED = calendar()


def at(text: str, zone: dt.timezone = KST) -> int:
    return (
        round(dt.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * 1000) * NS // 1000
    )


def name(venue: str, text: str, tr_key: str = "") -> str:
    return SHARED.phase(venue, at(text), tr_key).name


# The data --------------------------------------------------------------------------------


def test_the_hours_fit_their_schema() -> None:
    jsonschema.validate(DATA, schemas.load("kis/sessions.schema.json"))


def test_every_venue_of_the_catalogue_has_hours_and_every_flow_is_a_channel() -> None:
    catalogue = schemas.load_catalogue(Environment.REAL)
    trs = catalogue.trs.values()
    assert {tr.venue for tr in trs} == set(VENUES)
    flows = {f for m in DATA["markets"].values() for row in m["phases"] for f in row["flows"]}
    assert flows <= {tr.channel for tr in trs} - {"notice", "status"}


def test_every_market_is_some_venues_and_every_calendar_can_be_filled() -> None:
    used = {
        m for v in DATA["venues"].values() for m in v.get("by_key", {"": v.get("market")}).values()
    }
    assert used == set(DATA["markets"])
    assert {m["calendar"] for m in DATA["markets"].values()} - {""} == set(EXCHANGES)


def test_hours_that_are_not_sure_never_call_a_feed_stalled() -> None:
    unsure = [
        row
        for market in DATA["markets"].values()
        for row in market["phases"]
        if row["confidence"] == "low"
    ]
    assert unsure
    assert all(row["flows"] == [] for row in unsure)


# Properties ------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.sampled_from(VENUES), moments)
def test_phases_partition_time(venue: str, start: int) -> None:
    now, end = start, start + 3 * DAY_NS
    while now < end:
        phase = SHARED.phase(venue, now)
        if phase.until is None:
            assert not phase.open
            return
        assert phase.until > now
        assert SHARED.phase(venue, phase.until - 1).open == phase.open
        if len(DATA["venues"][venue].get("by_key", {})) == 0:
            assert SHARED.phase(venue, phase.until - 1) == phase
            assert SHARED.phase(venue, phase.until) != phase
        now = phase.until


@settings(max_examples=150)
@given(st.sampled_from(sorted(DATA["markets"])), st.dates(dt.date(2023, 1, 1), dt.date(2029, 1, 1)))
def test_no_two_phases_of_a_market_overlap_on_any_date(market: str, date: dt.date) -> None:
    own = calendar()
    day = (date - dt.date(1970, 1, 1)).days
    spans = [s for d in (day - 1, day, day + 1) for s in own._timetable(own._markets[market], d)]
    assert all(a.start < a.end <= b.start for a, b in itertools.pairwise(spans))


@settings(max_examples=100)
@given(st.lists(st.sampled_from(VENUES), min_size=1, max_size=4), moments)
def test_the_next_opening_is_an_opening_and_comes_later(venues: list[str], now: int) -> None:
    opening = SHARED.next_open(venues, now)
    if opening is None:
        assert set(venues) == {"krx-after"}
        return
    assert opening > now
    assert any(SHARED.phase(venue, opening).open for venue in venues)
    markets = [m for venue in venues for m in SHARED._venues[venue].values()]
    assert any(
        SHARED._scheduled(m, opening).open and not SHARED._scheduled(m, opening - 1).open
        for m in markets
    )


@settings(max_examples=100)
@given(st.sampled_from(VENUES), moments)
def test_nothing_changes_before_the_next_change(venue: str, now: int) -> None:
    change = SHARED.next_change([venue], now)
    if change is not None:
        assert change > now
        assert SHARED.phase(venue, change - 1).name == SHARED.phase(venue, now).name


@settings(max_examples=100)
@given(st.sampled_from(["krx", "nxt", "unified", "idxfut", "index", "bond"]), moments)
def test_korea_is_closed_on_weekends_and_holidays(venue: str, now: int) -> None:
    date = dt.datetime.fromtimestamp(now // NS, KST).date()
    if date.weekday() >= 5 or date in HOLIDAYS["XKRX"]:
        assert not SHARED.phase(venue, now).open


@settings(max_examples=100)
@given(moments, st.integers(0, 23), st.integers(0, 59))
def test_on_an_ordinary_day_of_any_season_krx_trades_from_9_to_1520(
    day: int, hour: int, minute: int
) -> None:
    date = dt.datetime.fromtimestamp(day // NS, KST).date()
    trades = date.weekday() < 5 and date not in HOLIDAYS["XKRX"]
    first = dt.date(date.year, 1, 1) + dt.timedelta(days=5)
    if not trades or date in LATE or date <= first:
        return
    regular = (9, 0) <= (hour, minute) < (15, 20)
    text = f"{date} {hour:02}:{minute:02}:00"
    assert (name("krx", text) == "regular") == regular
    assert SHARED.flows("krx", "trade", at(text)) == (
        regular or (date >= dt.date(2026, 9, 14) and 16 <= hour < 20)
    )


# Examples --------------------------------------------------------------------------------


def test_an_ordinary_day_of_krx() -> None:
    day = "2026-07-20"
    assert name("krx", f"{day} 08:29:59.999") == "closed"
    assert name("krx", f"{day} 08:30") == "preopen"
    assert name("krx", f"{day} 09:00") == "regular"
    assert name("krx", f"{day} 15:20") == "closing-auction"
    assert name("krx", f"{day} 15:30") == "after-fixed"
    assert name("krx", f"{day} 16:00") == "closed"


def test_the_krx_after_market_begins_where_the_single_price_session_ends() -> None:
    assert name("krx", "2026-09-11 17:00") == "closed"
    assert name("krx-after", "2026-09-11 17:00") == "after-single"
    assert name("krx", "2026-09-14 17:00") == "after-market"
    assert name("krx-after", "2026-09-14 17:00") == "closed"
    assert SHARED.next_open(["krx-after"], at("2026-09-11 18:00")) is None
    assert SHARED.phase("krx-after", at("2026-09-14 17:00")).until is None


def test_nxt_pauses_twice_and_opens_30_seconds_after_krx() -> None:
    day = "2026-07-20"
    times = ["08:00", "08:50", "09:00:29", "09:00:30", "15:20", "15:30", "15:40", "20:00"]
    assert [name("nxt", f"{day} {time}") for time in times] == [
        "pre",
        "closed",
        "closed",
        "regular",
        "closed",
        "single",
        "after-market",
        "closed",
    ]


def test_no_trade_is_expected_in_an_auction_but_its_expected_price_is() -> None:
    auction = at("2026-07-20 15:25")
    assert not SHARED.flows("krx", "trade", auction)
    assert SHARED.flows("krx", "expected", auction)
    assert not SHARED.flows("krx", "status", auction)


def test_the_csat_day_is_an_hour_late_and_night_keeps_its_end() -> None:
    day = "2026-11-19"
    assert name("krx", f"{day} 09:30") == "preopen"
    assert name("krx", f"{day} 10:00") == "regular"
    assert name("krx", f"{day} 16:19") == "regular"
    assert name("krx", f"{day} 16:20") == "closing-auction"
    assert name("krx", f"{day} 17:00") == "after-market"
    assert name("krx", f"{day} 20:00") == "closed"
    assert name("nxt", f"{day} 08:30") == "closed"
    assert name("nxt", f"{day} 10:00:30") == "regular"
    assert name("nxt", f"{day} 16:40") == "after-market"
    assert name("idxfut", f"{day} 09:45") == "regular"
    assert name("idxfut", f"{day} 16:44") == "closing-auction"
    assert name("nightfut", f"{day} 18:30") == "closed"
    assert name("nightfut", f"{day} 19:00") == "night"
    assert name("nightfut", "2026-11-20 05:59") == "night-late"
    assert name("nightfut", "2026-11-20 06:00") == "closed"


def test_the_first_business_day_opens_late_and_closes_on_time() -> None:
    day = "2026-01-02"
    assert name("nxt", f"{day} 08:30") == "closed"
    assert name("krx", f"{day} 09:30") == "preopen"
    assert name("krx", f"{day} 10:00") == "regular"
    assert name("nxt", f"{day} 10:00:30") == "regular"
    assert name("krx", f"{day} 15:20") == "closing-auction"
    assert name("krx", "2026-01-05 09:00") == "regular"
    assert name("krx", "2027-01-04 09:30") == "preopen"
    assert name("krx", "2027-01-05 09:00") == "regular"


def test_a_night_session_crosses_midnight_and_the_weekend_morning() -> None:
    assert name("nightfut", "2026-07-24 23:59:59") == "night"
    assert name("nightfut", "2026-07-25 00:00") == "night"
    assert name("nightfut", "2026-07-25 06:00") == "closed"
    assert SHARED.next_open(["nightfut"], at("2026-07-25 01:00")) == at("2026-07-27 18:00")


@pytest.mark.parametrize(
    ("date", "zone"),
    [
        ("2026-03-06", NEW_YORK_WINTER),
        ("2026-03-09", NEW_YORK_SUMMER),
        ("2026-10-30", NEW_YORK_SUMMER),
        ("2026-11-02", NEW_YORK_WINTER),
    ],
)
def test_new_york_keeps_its_own_clock_through_both_changes(date: str, zone: dt.timezone) -> None:
    opening = at(f"{date} 09:30", zone)
    assert SHARED.phase("overseas", opening - 1, "DNASAAPL").name == "pre"
    assert SHARED.phase("overseas", opening, "DNASAAPL").name == "regular"
    assert SHARED.phase("overseas", at(f"{date} 16:00", zone), "DNASAAPL").name == "after-market"


def test_an_overseas_venue_follows_its_key() -> None:
    assert name("overseas", "2026-11-18 11:00", "RBAQAAPL") == "regular"
    assert name("overseas", "2026-11-18 11:00", "DNASAAPL") == "closed"
    assert name("overseas", "2026-11-18 11:15", "DHKS00003") == "morning"
    assert name("overseas", "2026-11-18 13:15", "DTSE7203") == "afternoon"
    assert SHARED.phase("overseas", at("2026-11-18 11:00")).open
    with pytest.raises(KeyError):
        SHARED.phase("mars", 0)


def test_without_a_holiday_list_only_weekends_are_closed() -> None:
    bare = Calendar(DATA, {})
    christmas = at("2026-12-25 10:00")
    assert bare.phase("krx", christmas).name == "regular"
    assert SHARED.phase("krx", christmas).name == "closed"


def test_a_simulated_market_never_closes() -> None:
    simulated = calendar(always_open(DATA))
    now = at("2026-12-26 03:00")
    assert simulated.flows("krx", "trade", now)
    assert simulated.phase("overseas", now, "DNASAAPL").open
    assert simulated.next_open(["krx"], now) is None


# What the wire says ------------------------------------------------------------------------


def test_a_row_that_agrees_with_the_timetable_changes_nothing() -> None:
    own = calendar()
    now = at("2026-07-20 10:00")
    assert not own.observe("krx", "20", now)
    assert not own.observe("krx", "20", now + NS)
    assert not own.phase("krx", now).observed


def test_an_opening_later_than_the_timetable_is_learned_from_rows() -> None:
    own = calendar()
    now = at("2026-07-20 09:10")
    assert own.flows("krx", "trade", now)
    assert own.observe("krx", "11", now)
    phase = own.phase("krx", now)
    assert (phase.name, phase.observed, "trade" in phase.flows) == ("preopen", True, False)
    assert own.next_change(["krx"], now) == now + 30 * NS
    assert not own.observe("krx", "11", now + NS)
    assert own.observe("krx", "20", now + 2 * NS)
    assert own.phase("krx", now + 2 * NS).name == "regular"


def test_a_rows_word_lapses_30_s_after_the_last_such_row() -> None:
    own = calendar()
    now = at("2026-07-20 09:10")
    own.observe("krx", "11", now)
    own.observe("krx", "11", now + 20 * NS)
    assert own.phase("krx", now + 49 * NS).name == "preopen"
    assert own.phase("krx", now + 50 * NS).name == "regular"
    assert own.observe("krx", "11", now + 60 * NS)


def test_trades_on_a_day_called_closed_open_the_market() -> None:
    own = calendar()
    sunday = at("2026-07-19 10:00")
    assert own.observe("krx", "20", sunday)
    assert own.phase("krx", sunday).open


def test_a_circuit_breaker_halts_until_it_is_lifted_whatever_rows_say() -> None:
    own = calendar()
    now = at("2026-07-20 10:00")
    assert own.observe("krx", "174", now)
    assert not own.observe("krx", "20", now + NS)
    later = now + 1200 * NS
    assert own.phase("krx", later).name == "halted"
    assert not own.flows("krx", "book", later)
    assert own.phase("krx", later).open
    assert own.observe("krx", "175", later)
    assert own.flows("krx", "trade", later)


def test_the_timetable_ends_a_halt_that_nobody_lifted() -> None:
    own = calendar()
    own.observe("krx", "164", at("2026-07-20 15:00"))
    assert own.phase("krx", at("2026-07-20 15:19")).name == "halted"
    assert own.phase("krx", at("2026-07-20 15:20")).name == "closing-auction"


def test_unknown_codes_and_phases_a_market_lacks_mean_nothing() -> None:
    own = calendar()
    now = at("2026-07-20 10:00")
    for code in ["", "9", "F01", "AB1", "387"]:
        assert not own.observe("krx", code, now)
    assert not own.observe("bond", "4", now)


def test_an_observation_in_one_market_leaves_the_others_alone() -> None:
    own = calendar()
    now = at("2026-11-18 11:00")
    assert own.observe("krx", "174", now)
    assert own.phase("nxt", now).name == "regular"
    assert own.phase("etf", now).name == "halted"
