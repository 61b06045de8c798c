"""KIS's answers about prices and symbols in domain words."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kisfeed.core import quoting

KST = dt.timezone(dt.timedelta(hours=9))
# inquire-price, captured 2025-09-16; the fields that are read.
CAPTURED = {
    "stck_prpr": "77800", "prdy_vrss": "1300", "prdy_vrss_sign": "2", "acml_tr_pbmn": "46124900400",
    "acml_vol": "593205", "stck_oprc": "77300", "stck_hgpr": "78200", "stck_lwpr": "77300",
    "stck_mxpr": "99400", "stck_llam": "53600", "stck_sdpr": "76500",
}  # fmt: skip


def ns(*moment: int) -> int:
    return int(dt.datetime(*moment, tzinfo=KST).timestamp()) * 10**9  # type: ignore[misc,arg-type]


def test_a_captured_price() -> None:
    price = quoting.price({"output": CAPTURED}, "krx", "005930", 5)
    assert price is not None
    assert (price.price, price.change, price.previous_close) == (77800, 1300, 76500)
    assert (price.volume, price.value, price.upper_limit) == (593205, 46124900400, 99400)
    assert (price.ask, price.source, price.ts, price.stale) == (None, "rest", 5, False)


@pytest.mark.parametrize(
    ("change", "sign", "meant"),
    [("500", "5", -500), ("-500", "5", -500), ("500", "2", 500), ("0", "3", 0), ("-7", "", -7)],
)
def test_the_sign_column_tells_the_direction(change: str, sign: str, meant: int) -> None:
    row = {**CAPTURED, "prdy_vrss": change, "prdy_vrss_sign": sign}
    price = quoting.price({"output": row}, "krx", "005930", 0)
    assert price is not None
    assert price.change == meant


def test_many_prices_are_told_apart_by_their_symbol() -> None:
    rows: list[Any] = [
        {"inter_shrn_iscd": "000660", "inter2_prpr": "265000", "inter2_askp": "0"},
        {"inter_shrn_iscd": "999999", "inter2_prpr": "0"},
        {"inter_shrn_iscd": "", "inter2_prpr": "1"},
        "nonsense",
        {"inter_shrn_iscd": "005930", "inter2_prpr": "71900", "inter2_prdy_clpr": "72000"},
    ]
    found = quoting.prices({"output": rows}, "nxt", 0)
    assert {symbol: price.price for symbol, price in found.items()} == {
        "000660": 265000,
        "005930": 71900,
    }
    assert found["000660"].ask is None
    assert found["005930"].previous_close == 72000


def test_days_are_the_finished_ones_newest_first() -> None:
    rows = [
        {"stck_bsop_date": "20261116", "stck_clpr": "1"},
        {},
        {"stck_bsop_date": "20261118", "stck_clpr": "3"},
        {"stck_bsop_date": "20261117", "stck_clpr": "2"},
        {"stck_bsop_date": "nonsense"},
    ]
    daily = quoting.daily({"output2": rows}, "krx", "005930", 0, dt.date(2026, 11, 17))
    assert daily is not None
    assert [(bar.date, bar.close) for bar in daily.bars] == [("2026-11-17", 2), ("2026-11-16", 1)]


def test_an_unknown_symbol_is_none_whichever_way_kis_says_it() -> None:
    outputs: list[Any] = [{}, None, [], [{}]]
    for body in ({}, *({"output": output} for output in outputs)):
        assert quoting.price(body, "krx", "x", 0) is None
        assert quoting.prices(body, "krx", 0) == {}
        assert quoting.info(body, "x", 0) is None
    charts: list[dict[str, Any]] = [{}, {"output1": {}, "output2": []}, {"output2": [{}]}]
    for body in charts:
        assert quoting.daily(body, "krx", "x", 0, dt.date(2026, 1, 1)) is None
        assert quoting.info_of_daily(body, "x", 0) is None


def test_a_symbol() -> None:
    row = {
        "prdt_abrv_name": "카카오", "mket_id_cd": "STK", "scty_grp_id_cd": "ST",
        "std_pdno": "KR7035720002", "lstg_stqt": "442000000", "tr_stop_yn": "N",
        "admn_item_yn": "Y", "cptt_trad_tr_psbl_yn": "", "lstg_abol_dt": "00000000",
    }  # fmt: skip
    info = quoting.info({"output": row}, "035720", 0)
    assert info is not None
    assert (info.name, info.market, info.kind) == ("카카오", "kospi", "stock")
    assert (info.halted, info.supervised, info.on_nxt, info.delisted) == (False, True, None, None)


VALUES = st.one_of(st.none(), st.text(max_size=8), st.integers(), st.just("(null)"), st.just("nan"))


@given(st.dictionaries(st.sampled_from([*CAPTURED, "inter_shrn_iscd", "inter2_prpr"]), VALUES))
def test_no_row_breaks_a_reader(row: dict[str, Any]) -> None:
    quoting.price({"output": row}, "krx", "005930", 0)
    quoting.prices({"output": [row]}, "krx", 0)
    quoting.info({"output": row}, "005930", 0)
    quoting.daily({"output2": [row]}, "krx", "005930", 0, dt.date(2026, 1, 1))


@pytest.mark.parametrize(
    ("asked", "last_day", "until"),
    [
        (ns(2026, 11, 18, 9, 5), dt.date(2026, 11, 17), ns(2026, 11, 18, 20, 10)),
        (ns(2026, 11, 18, 20, 9, 59), dt.date(2026, 11, 17), ns(2026, 11, 18, 20, 10)),
        (ns(2026, 11, 18, 20, 10), dt.date(2026, 11, 18), ns(2026, 11, 19)),
        (ns(2026, 11, 18), dt.date(2026, 11, 17), ns(2026, 11, 18, 20, 10)),
    ],
)
def test_todays_bar_comes_when_every_venue_has_closed(
    asked: int, last_day: dt.date, until: int
) -> None:
    assert quoting.last_finished_day(asked) == last_day
    assert quoting.reference_until(asked) == until


def test_pairs_are_numbered_from_one() -> None:
    query = quoting.prices_values("nxt", ["005930", "000660"])
    assert list(query.items()) == [
        ("FID_COND_MRKT_DIV_CODE_1", "NX"),
        ("FID_INPUT_ISCD_1", "005930"),
        ("FID_COND_MRKT_DIV_CODE_2", "NX"),
        ("FID_INPUT_ISCD_2", "000660"),
    ]


def test_a_hundred_days_are_answered_in_whole_won() -> None:
    days = [dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(101)]
    rows = [{"stck_bsop_date": f"{day:%Y%m%d}", "stck_clpr": "5"} for day in days]
    daily = quoting.daily({"output2": rows}, "krx", "005930", 7, days[-1])
    assert daily is not None
    assert (len(daily.bars), daily.scale, daily.ts) == (100, 0, 7)
    assert daily.bars[-1].date == "2026-01-02"


def test_the_chart_tells_the_name_where_there_is_nothing_better() -> None:
    row = {"hts_kor_isnm": "카카오", "lstn_stcn": "442000000", "stck_prdy_clpr": "50000"}
    info = quoting.info_of_daily({"output1": row}, "035720", 7)
    assert info is not None
    assert (info.name, info.listed_shares, info.previous_close) == ("카카오", 442_000_000, 50_000)
    assert (info.symbol, info.market, info.halted, info.ts) == ("035720", None, None, 7)


def test_days_are_asked_for_as_far_back_as_a_hundred_of_them_may_reach() -> None:
    query = quoting.daily_values("krx", "005930", dt.date(2026, 11, 20))
    assert (query["FID_INPUT_DATE_1"], query["FID_INPUT_DATE_2"]) == ("20260613", "20261120")


def test_a_symbol_has_the_names_there_are() -> None:
    row = {"prdt_name": "카카오보통주", "prdt_eng_name": "KakaoCorp.", "lstg_abol_dt": "20270104"}
    info = quoting.info({"output": [row]}, "035720", 0)
    assert info is not None
    assert (info.name, info.english_name) == ("카카오보통주", "KakaoCorp.")
    assert info.delisted == "2027-01-04"
    row |= {"prdt_abrv_name": "카카오", "prdt_eng_abrv_name": "Kakao"}
    info = quoting.info({"output": row}, "035720", 0)
    assert info is not None
    assert (info.name, info.english_name) == ("카카오", "Kakao")


def test_yesterdays_close_follows_from_the_change_where_it_is_not_told() -> None:
    row = {"inter_shrn_iscd": "005930", "inter2_prpr": "71900"}
    changed = {**row, "inter2_prdy_vrss": "100", "prdy_vrss_sign": "5"}
    for told, previous in ((row, None), (changed, 72_000)):
        price = quoting.prices({"output": [told]}, "krx", 0)["005930"]
        assert (price.previous_close, price.scale) == (previous, 0)
