from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.kis import frames, rows
from kisfeed.kis.rows import RowMaker

if TYPE_CHECKING:
    from kisfeed.kis.catalogue import Layout, Tr

REAL = schemas.load_catalogue(Environment.REAL)
LINES = Path(__file__).with_name("data").joinpath("frames.jsonl").read_text("utf-8").splitlines()
GOLDEN: dict[str, dict[str, Any]] = {g["id"]: g for g in map(json.loads, LINES)}
KST = dt.timezone(dt.timedelta(hours=9))
LAYOUTS = [(tr, layout) for tr in REAL.trs.values() for layout in tr.layouts.values()]
EVERY_LAYOUT = st.sampled_from(LAYOUTS)
ABSENT = st.sampled_from([b"", b"(null)", b"nan", b"-nan"])
ODD = st.sampled_from([b"", b"(null)", b"nan", b"-nan", b"+1", b"007", b"x", b"\xff", b"9" * 40])

PLAIN = {
    "str": st.sampled_from([b"0", b"1", b"20", b"Y", b"N", b"A"]),
    "int": st.integers(-(10**13), 10**13).map(lambda n: b"%d" % n),
    "decimal": st.decimals(-(10**6), 10**6, places=2).map(lambda d: f"{d:.2f}".encode()),
    "time": st.times().map(lambda t: t.strftime("%H%M%S").encode()),
    "date": st.dates(dt.date(2000, 1, 1)).map(lambda d: d.strftime("%Y%m%d").encode()),
}


def golden_rows(name: str) -> tuple[RowMaker, list[dict[str, Any]]]:
    golden = GOLDEN[name]
    tr = REAL.trs[golden["tr"]]
    payload = golden["raw"].encode()
    if golden["form"] == "full":
        payload = payload.split(b"|", 3)[3]
    found = frames.records(tr, golden["count"], payload)
    assert isinstance(found, frames.Records)
    maker = RowMaker(tr, found.layout)
    names = ("xts", *rows.FIELDS[tr.schema])
    made = [maker.typed(fields) for fields in found.rows]
    return maker, [dict(zip(names, (xts, *row), strict=True)) for row, xts in made]


def record(layout: Layout, **values: str) -> list[bytes]:
    return [values.get(name, "").encode() for name in layout.fields]


def moment(text: str) -> int:
    return int(dt.datetime.strptime(text, "%Y%m%d %H%M%S").replace(tzinfo=KST).timestamp()) * 10**9


def test_the_rows_are_those_of_the_schema_file() -> None:
    listed = schemas.load("kfp1/rows.json")["schemas"]
    assert {
        name: tuple(f["name"] for f in schema["fields"]) for name, schema in listed.items()
    } == dict(rows.FIELDS)
    assert [rows.FIELDS["trade.v1"][i] for i in (rows.PX, rows.QTY, rows.CUM_QTY)] == [
        "px",
        "qty",
        "cum_qty",
    ]


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (
            "trade.v1",
            """px qty cum_qty ask bid side change open high low cum_value session time_class
            halted vi_ref_px""",
        ),
        (
            "book.v1",
            "time_class asks ask_qtys bids bid_qtys total_ask total_bid expected_px expected_qty",
        ),
    ],
)
def test_the_published_fields_never_move(schema: str, fields: str) -> None:
    published = tuple(fields.split())
    assert rows.FIELDS[schema][: len(published)] == published


@pytest.mark.parametrize(
    ("tr", "layout"), LAYOUTS, ids=[f"{t.tr_id}-{layout.width}" for t, layout in LAYOUTS]
)
def test_every_layout_has_the_row_of_its_schema(tr: Tr, layout: Layout) -> None:
    row, _ = RowMaker(tr, layout).typed([b"1"] * layout.width)
    assert len(row) == len(rows.FIELDS.get(tr.schema, layout.fields))
    if tr.schema == "trade.v1":
        assert row[rows.PX] == 10 ** (tr.scale or 0)
    if tr.schema == "book.v1":
        assert len({len(levels) for levels in row[1:5]}) == 1
        assert len(row[1]) in (1, 5, 9, 10)


@given(EVERY_LAYOUT, st.data())
def test_a_row_holds_exactly_the_numbers_of_its_record(
    pair: tuple[Tr, Layout], data: st.DataObject
) -> None:
    tr, layout = pair
    fields = [data.draw(PLAIN[kind]) for kind in layout.types]
    maker = RowMaker(tr, layout)
    row, _ = maker.typed(fields)
    named = dict(zip(layout.fields, fields, strict=True))
    if tr.schema != "trade.v1" or maker.inexact:
        return
    price = next(
        named[c]
        for c in ("STCK_PRPR", "FUTS_PRPR", "OPTN_PRPR", "PRPR_NMIX", "LAST", "TOTL_ERNN_NMIX")
        if c in named
    )
    assert Decimal(row[rows.PX]) == Decimal(price.decode()).scaleb(tr.scale or 0)
    volume = named.get("ACML_VOL", named.get("TVOL"))
    assert row[rows.CUM_QTY] == (None if volume is None else int(volume))


@given(EVERY_LAYOUT, st.data())
def test_any_value_anywhere_gives_a_row_that_can_be_encoded(
    pair: tuple[Tr, Layout], data: st.DataObject
) -> None:
    tr, layout = pair
    values = data.draw(st.lists(ODD | st.binary(max_size=20), min_size=7, max_size=7))
    row, xts = RowMaker(tr, layout).typed([values[i % 7] for i in range(layout.width)])
    msgpack.packb([xts, *row])


@given(EVERY_LAYOUT, ABSENT)
def test_what_kis_left_empty_is_none(pair: tuple[Tr, Layout], absent: bytes) -> None:
    tr, layout = pair
    maker = RowMaker(tr, layout)
    row, xts = maker.typed([absent] * layout.width)
    assert xts is None
    assert (maker.inexact, maker.unreadable) == (0, 0)
    if tr.schema in ("trade.v1", "expected.v1", "status.v1"):
        assert set(row) == {None}


@given(st.integers(0, 4), st.decimals(-(10**6), 10**6, places=4))
def test_a_price_is_exact_or_none_and_counted(extra: int, price: Decimal) -> None:
    tr = REAL.trs["H0IFCNT0"]
    maker = RowMaker(tr, tr.usual)
    row, _ = maker.typed(record(tr.usual, FUTS_PRPR=f"{price:.4f}" + "0" * extra))
    exact = price.scaleb(2)
    if exact == exact.to_integral_value():
        assert (row[rows.PX], maker.inexact) == (int(exact), 0)
    else:
        assert (row[rows.PX], maker.inexact) == (None, 1)


@pytest.mark.parametrize("value", ["9223372036854775808", "-9223372036854775808", "9" * 5000])
def test_a_number_beyond_64_bits_is_none_and_counted(value: str) -> None:
    tr = REAL.trs["H0STCNT0"]
    maker = RowMaker(tr, tr.usual)
    row, _ = maker.typed(record(tr.usual, ACML_VOL=value, STCK_PRPR="5"))
    assert (row[rows.PX], row[rows.CUM_QTY], maker.inexact) == (5, None, 1)


@pytest.mark.parametrize(
    ("text", "number"),
    [("+12", 12), ("-007", -7), ("00012", 12), ("12.000", 12), (" 12", 12), (".0", 0), ("-0", 0)],
)
def test_every_way_kis_writes_a_number_is_read(text: str, number: int) -> None:
    tr = REAL.trs["H0STCNT0"]
    maker = RowMaker(tr, tr.usual)
    row, _ = maker.typed(record(tr.usual, PRDY_VRSS=text))
    assert row[6] == number
    assert (maker.inexact, maker.unreadable) == (0, 0)


@pytest.mark.parametrize("text", ["x", "1.2.3", "--1", "1e5", ".", "-", "1_0", "1_0.00"])
def test_what_is_no_number_is_none_and_counted(text: str) -> None:
    for tr_id, column in (("H0STCNT0", "STCK_PRPR"), ("H0IFCNT0", "FUTS_PRPR")):
        tr = REAL.trs[tr_id]
        maker = RowMaker(tr, tr.usual)
        row, _ = maker.typed(record(tr.usual, **{column: text}))
        assert (row[rows.PX], maker.unreadable) == (None, 1)


def test_a_total_with_an_underscore_is_no_number() -> None:
    tr = REAL.trs["H0STCNT0"]
    maker = RowMaker(tr, tr.usual)
    row, _ = maker.typed(record(tr.usual, ACML_VOL="1_0", ACML_TR_PBMN="700"))
    assert (row[rows.CUM_QTY], row[10], maker.unreadable) == (None, 700, 1)


@pytest.mark.parametrize(("text", "price"), [("1.5 ", 150), (" 1.5", 150), ("1.50 ", 150)])
def test_a_blank_behind_a_price_is_no_decimal_of_it(text: str, price: int) -> None:
    tr = REAL.trs["H0IFCNT0"]
    row, _ = RowMaker(tr, tr.usual).typed(record(tr.usual, FUTS_PRPR=text))
    assert row[rows.PX] == price


def test_a_share_trade_is_read() -> None:
    _, (row,) = golden_rows("stcnt0-2026")
    assert row == {
        "xts": moment("20260724 115214"),
        "px": 250_500,
        "qty": 2,
        "cum_qty": 11_701_513,
        "ask": 250_500,
        "bid": 250_000,
        "side": 1,
        "change": -19_500,
        "open": 266_000,
        "high": 266_500,
        "low": 248_500,
        "cum_value": 3_013_709_268_750,
        "session": "2",
        "time_class": "0",
        "halted": False,
        "vi_ref_px": 266_000,
    }


def test_the_longer_share_trade_names_its_session_itself() -> None:
    tr = REAL.trs["H0STCNT0"]
    base = GOLDEN["stcnt0-2026"]["raw"].encode().split(b"|", 3)[3].split(b"^")
    maker = RowMaker(tr, tr.layouts[47])
    session = rows.FIELDS["trade.v1"].index("session")
    assert maker.typed([*base, b"3"])[0][session] == "3"
    assert maker.typed([*base, b""])[0][session] == "2"
    assert maker.typed([*base, b"3"])[0][:3] == (250_500, 2, 11_701_513)


@pytest.mark.parametrize("width", [59, 62, 63])
def test_a_share_book_is_read_at_every_width(width: int) -> None:
    tr = REAL.trs["H0STASP0"]
    base = GOLDEN["stasp0-portal"]["raw"].encode().split(b"^")
    row, xts = RowMaker(tr, tr.layouts[width]).typed([*base, *[b"1"] * (width - 59)])
    book = dict(zip(rows.FIELDS["book.v1"], row, strict=True))
    assert xts is None
    assert book["asks"] == list(range(71_900, 72_801, 100))
    assert book["bids"] == list(range(71_800, 70_899, -100))
    assert (book["ask_qtys"][0], book["bid_qtys"][9]) == (91_918, 158_171)
    assert (book["total_ask"], book["total_bid"], book["time_class"]) == (1_159_362, 2_095_167, "0")


def test_an_overseas_trade_is_dated_by_its_korean_columns() -> None:
    _, made = golden_rows("hdfscnt0-a")
    assert [row["px"] for row in made] == [1_697_850, 1_697_900]
    assert [row["cum_qty"] for row in made] == [108_464, 108_467]
    assert made[0]["xts"] == moment("20230502 221912")


@pytest.mark.parametrize(("text", "day"), [("20230502", 20230502), ("", 0), ("2023-5-2", 0)])
def test_an_overseas_trade_counts_on_its_exchange_s_own_day(text: str, day: int) -> None:
    tr = REAL.trs["HDFSCNT0"]
    days = RowMaker(tr, tr.usual).trading_day
    assert days is not None
    assert days(record(tr.usual, TYMD=text)) == day
    shares = REAL.trs["H0STCNT0"]
    assert RowMaker(shares, shares.usual).trading_day is None


def test_an_overseas_book_has_ten_interleaved_levels() -> None:
    _, (row,) = golden_rows("hdfsasp0-portal")
    assert (row["bids"][0], row["asks"][0]) == (1_828_500, 1_828_700)
    assert (row["bid_qtys"][9], row["ask_qtys"][9]) == (201, 98)
    assert (row["total_bid"], row["total_ask"]) == (1482, 381)


def test_levels_that_stand_apart_are_joined() -> None:
    _, (row,) = golden_rows("zoasp0-portal")
    assert row["asks"][4:7] == [140_000, 150_000, 152_000]
    assert row["ask_qtys"][5:7] == [10, 1]


def test_two_records_in_one_frame_are_two_rows() -> None:
    _, made = golden_rows("stanc0-2026")
    assert [row["qty"] for row in made] == [3, 1]
    assert {row["px"] for row in made} == {308_000}


def test_the_sign_that_a_value_carries_is_not_applied_again() -> None:
    _, (row,) = golden_rows("ifcnt0-2026")
    assert row["change"] == -54


def test_a_status_is_read_without_its_time() -> None:
    _, (row,) = golden_rows("unmko0-live")
    assert (row["halted"], row["halt_reason"], row["session"]) == (False, None, "AB1")
    assert (row["vi"], row["xts"]) == ("N", None)


NUMERIC = [
    g["id"]
    for g in GOLDEN.values()
    if g.get("fields_per_record") and g["form"] in ("full", "payload")
]


@pytest.mark.parametrize("name", NUMERIC)
def test_no_golden_value_is_lost_by_its_scale(name: str) -> None:
    if REAL.trs[GOLDEN[name]["tr"]].schema not in rows.FIELDS:
        return
    maker, _ = golden_rows(name)
    assert (maker.inexact, maker.unreadable) == (0, 0)


@pytest.mark.parametrize(
    ("date", "time"),
    [
        ("20260230", "120000"),
        ("20260724", "240000"),
        ("20260724", ""),
        ("", "120000"),
        ("99991231", "120000"),
        ("19691231", "120000"),
    ],
)
def test_an_impossible_time_is_none(date: str, time: str) -> None:
    tr = REAL.trs["H0STCNT0"]
    _, xts = RowMaker(tr, tr.usual).typed(record(tr.usual, BSOP_DATE=date, STCK_CNTG_HOUR=time))
    assert xts is None


@given(
    st.dates(dt.date(1970, 1, 2), dt.date(2262, 1, 1)),
    st.times().map(lambda t: t.replace(microsecond=0)),
)
def test_a_time_is_that_of_seoul(day: dt.date, time: dt.time) -> None:
    tr = REAL.trs["H0STCNT0"]
    fields = record(tr.usual, BSOP_DATE=f"{day:%Y%m%d}", STCK_CNTG_HOUR=f"{time:%H%M%S}")
    expected = dt.datetime.combine(day, time, KST) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert RowMaker(tr, tr.usual).typed(fields)[1] == expected // dt.timedelta(seconds=1) * 10**9


@given(st.lists(st.binary(max_size=8)))
def test_a_raw_row_keeps_every_field(fields: list[bytes]) -> None:
    made = rows.raw(fields)
    assert len(made) == len(fields)
    assert all(v.encode() == f for v, f in zip(made, fields, strict=True) if f.isascii())
