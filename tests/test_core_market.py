"""What the market does for the topics somebody wants: when to judge it, and what rows say of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.core.market import TELLING, Market
from kisfeed.kis.sessions import Calendar

KST = dt.timezone(dt.timedelta(hours=9))
SESSIONS = schemas.load("kis/sessions.json")
CATALOGUE = schemas.load_catalogue(Environment.REAL)
ROWS = schemas.load("kfp1/rows.json")["schemas"]
KRX, KRX_STATUS = ("H0STCNT0", "005930"), ("H0STMKO0", "005930")
NEW_YORK, TOKYO = ("HDFSCNT0", "DNASAAPL"), ("HDFSCNT0", "DTSE7203")


def market() -> Market:
    return Market(Calendar(SESSIONS, {}), CATALOGUE.trs)


def wall(clock: str, day: str = "2026-11-20") -> int:
    when = dt.datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=KST)
    return round(when.timestamp() * 1000) * 1_000_000


def row(schema: str, **values: Any) -> list[Any]:
    return [values.get(field["name"]) for field in ROWS[schema]["fields"]]


def test_nobody_wanting_anything_there_is_no_market() -> None:
    under_test = market()
    judged = under_test.judge([], 5.0, wall("11:00:00"))
    assert (judged.open, judged.next_open) == (False, None)
    assert under_test.due == 65.0


def test_one_open_venue_of_those_wanted_is_enough() -> None:
    night = wall("01:00:00")  # Korea and Japan sleep, New York trades
    assert not market().judge([KRX, TOKYO], 0.0, night).open
    assert market().judge([KRX, NEW_YORK], 0.0, night).open
    assert not market().judge([TOKYO], 0.0, night).open


def test_the_next_opening_is_told_on_the_schedulers_clock() -> None:
    judged = market().judge([KRX], 1000.0, wall("07:50:00"))
    assert not judged.open
    assert judged.next_open == 1000.0 + 30 * 60


@given(st.integers(0, 86_400 - 1))
def test_it_is_judged_again_at_the_next_change_and_every_minute_at_least(second: int) -> None:
    under_test, at = market(), wall("00:00:00") + second * 10**9
    under_test.judge([KRX], 7.0, at)
    assert 7.0 < under_test.due <= 67.0
    change = Calendar(SESSIONS, {}).next_change(["krx"], at)
    assert change is not None
    assert under_test.due == min(67.0, 7.0 + (change - at) / 1e9)


def test_silence_is_odd_of_what_its_market_lets_flow() -> None:
    flows = market().judge([KRX], 0.0, wall("11:00:00")).flows
    assert flows(KRX)
    assert not flows(KRX_STATUS)
    assert not flows(NEW_YORK)
    assert not market().judge([KRX], 0.0, wall("20:00:00")).flows(KRX)


@pytest.mark.parametrize(
    ("schema", "fields"),
    [("trade.v1", {"session": "1"}), ("status.v1", {"session": "164"})],
)
def test_a_row_that_contradicts_the_timetable_makes_the_judgement_due(
    schema: str, fields: dict[str, Any]
) -> None:
    under_test, at = market(), wall("11:00:00")
    assert under_test.judge([KRX], 0.0, at).flows(KRX)
    due = under_test.due
    under_test.observe(KRX, schema, row(schema), at)
    assert under_test.due == due, "a row without a code says nothing"
    under_test.observe(KRX, schema, row(schema, **fields), at)
    assert under_test.due < 0
    assert not under_test.judge([KRX], 0.0, at).flows(KRX)


def test_a_row_that_agrees_with_the_timetable_changes_nothing() -> None:
    under_test, at = market(), wall("11:00:00")
    under_test.judge([KRX], 0.0, at)
    due = under_test.due
    under_test.observe(KRX, "trade.v1", row("trade.v1", session="20"), at)
    assert under_test.due == due


@pytest.mark.parametrize(
    ("schema", "fields", "halted"),
    [
        ("trade.v1", {"halted": True}, True),
        ("trade.v1", {"halted": False}, False),
        ("trade.v1", {}, None),
        ("status.v1", {"halted": True}, True),
        ("status.v1", {"halted": True, "vi": "N"}, True),
        ("status.v1", {"halted": False}, False),
        ("status.v1", {"halted": False, "vi": ""}, False),
        ("status.v1", {"halted": False, "vi": "0"}, False),
        ("status.v1", {"halted": False, "vi": "N"}, False),
        ("status.v1", {"halted": False, "vi": "1"}, True),
        ("status.v1", {"halted": None, "vi": "Y"}, True),
    ],
)
def test_a_halt_or_an_interruption_is_read_from_the_row(
    schema: str, fields: dict[str, Any], *, halted: bool | None
) -> None:
    assert Market.halted(schema, row(schema, **fields)) is halted


@pytest.mark.parametrize(
    ("schema", "telling"),
    [("trade.v1", ["session", "halted"]), ("status.v1", ["session", "halted", "vi"])],
)
def test_what_tells_of_the_market_is_where_the_schemas_say(schema: str, telling: list[str]) -> None:
    names = [field["name"] for field in ROWS[schema]["fields"]]
    assert list(TELLING[schema](names)) == telling


def test_a_change_within_the_minute_is_judged_at_its_moment() -> None:
    calendar = Calendar(SESSIONS, {})
    change = calendar.next_change(["krx"], wall("07:00:00"))
    assert change is not None
    under_test = market()
    assert under_test.due < 0, "nothing was judged yet"
    under_test.judge([KRX], 7.0, change - 30 * 10**9)
    assert under_test.due == 37.0
    under_test.judge([KRX], 7.0, change - 90 * 10**9)
    assert under_test.due == 67.0
