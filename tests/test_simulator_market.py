from __future__ import annotations

import datetime as dt
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import schemas, seams
from kisfeed.config import Environment
from kisfeed.kis import frames, server
from kisfeed.kis.catalogue import Catalogue, RegKey
from kisfeed.kis.rows import CUM_QTY, PX, QTY, RowMaker
from kisfeed.seoul import KST
from kisfeed.simulator.market import (
    OPEN_MARKET,
    Market,
    MarketClock,
    Tape,
    is_open,
    tick_size,
)

DATA = schemas.load("kis/realtime.json")
TRS = Catalogue(DATA, Environment.SIM).trs
PLAIN = sorted(tr_id for tr_id, tr in TRS.items() if not tr.encrypted)
ENCRYPTED = sorted(tr_id for tr_id, tr in TRS.items() if tr.encrypted)
EXAMPLES = {e["tr_id"]: e["tr_key"]["examples"][0] for e in DATA["trs"]}


def market(seed: int = 1, **widths: int) -> Market:
    return Market(seed, TRS, MarketClock(OPEN_MARKET, 0.0), widths)


def key_of(tr_id: str) -> RegKey:
    return (tr_id, EXAMPLES[tr_id])


@settings(max_examples=30)
@given(st.integers(0, 1000), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_trades_add_up(seed: int, counts: list[int]) -> None:
    sim = market(seed)
    names = sim.layout("H0STCNT0").fields
    last = {"ACML_VOL": 0, "ACML_TR_PBMN": 0}
    total = 0
    for step, count in enumerate(counts):
        rows, volume = sim.records(("H0STCNT0", "005930"), count, float(step))
        assert len(rows) == count
        quantities = []
        for row in rows:
            record = dict(zip(names, row, strict=True))
            qty, px = int(record["CNTG_VOL"]), int(record["STCK_PRPR"])
            assert qty > 0
            assert int(record["ACML_VOL"]) == last["ACML_VOL"] + qty
            assert int(record["ACML_TR_PBMN"]) == last["ACML_TR_PBMN"] + qty * px
            assert int(record["STCK_LWPR"]) <= px <= int(record["STCK_HGPR"])
            assert int(record["STCK_LWPR"]) <= int(record["STCK_OPRC"]) <= int(record["STCK_HGPR"])
            assert int(record["BIDP1"]) < int(record["ASKP1"])
            assert px in {int(record["BIDP1"]), int(record["ASKP1"])}
            assert px % tick_size(int(record["BIDP1"])) == 0
            sums = int(record["SELN_CNTG_SMTN"]) + int(record["SHNU_CNTG_SMTN"])
            assert sums == int(record["ACML_VOL"])
            assert record["BSOP_DATE"] == "20261118"
            last = {name: int(record[name]) for name in last}
            quantities.append(qty)
        assert sum(quantities) == volume
        total += volume
    assert last["ACML_VOL"] == total == sim.tape("krx", "005930").volume


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_a_book_has_ten_levels_in_order(seed: int) -> None:
    sim = market(seed)
    names = sim.layout("H0STASP0").fields
    for step in range(20):
        rows, _ = sim.records(("H0STASP0", "000660"), 1, float(step))
        record = dict(zip(names, rows[0], strict=True))
        asks = [int(record[f"ASKP{n}"]) for n in range(1, 11)]
        bids = [int(record[f"BIDP{n}"]) for n in range(1, 11)]
        ladder = [*reversed(bids), *asks]
        assert ladder == sorted(set(ladder))
        sizes = [int(record[f"ASKP_RSQN{n}"]) for n in range(1, 11)]
        assert sum(sizes) == int(record["TOTAL_ASKP_RSQN"])


@pytest.mark.parametrize("tr_id", PLAIN)
def test_every_plain_tr_at_every_width_is_read_without_a_loss(tr_id: str) -> None:
    tr = TRS[tr_id]
    for width, layout in tr.layouts.items():
        sim = market(3, **{tr_id: width})
        maker = RowMaker(tr, layout)
        for count in (1, 12):
            rows, volume = sim.records(key_of(tr_id), count, 1.0)
            frame = frames.parse(server.data_frame(tr_id, rows).encode())
            assert isinstance(frame, frames.DataFrame)
            cut = frames.records(tr, frame.count, frame.payload)
            assert isinstance(cut, frames.Records)
            assert (cut.layout.width, len(cut.rows), cut.drift) == (width, count, None)
            if layout.key_index is not None:
                assert cut.rows[0][layout.key_index].decode() == key_of(tr_id)[1]
            typed = [maker.typed(row)[0] for row in cut.rows]
            if tr.schema == "trade.v1":
                assert all(row[PX] > 0 for row in typed)
                if typed[0][QTY] is not None:
                    assert sum(row[QTY] for row in typed) == volume
                    steps = itertools.pairwise(typed)
                    assert all(b[CUM_QTY] - a[CUM_QTY] == b[QTY] for a, b in steps)
            if tr.schema == "book.v1":
                assert typed[0][1][0] > typed[0][3][0] > 0
        assert (maker.inexact, maker.unreadable) == (0, 0)


@pytest.mark.parametrize("tr_id", ENCRYPTED)
def test_every_notice_tr_has_a_notice_of_its_width(tr_id: str) -> None:
    sim = market()
    acceptance, fill = (
        sim.notice((tr_id, "me"), 0.0, fill=fill, order=7) for fill in (False, True)
    )
    for row in (acceptance, fill):
        assert len(row) == TRS[tr_id].usual.width
        assert "0000000007" in row
    if tr_id == "H0STCNI0":
        assert (fill[0], fill[12], fill[13], acceptance[13]) == ("me", "0", "2", "1")


def test_the_same_seed_makes_the_same_records_whatever_else_is_asked_for() -> None:
    one, other = market(5), market(5)
    other.records(("H0STCNT0", "000660"), 7, 0.0)
    key = ("H0STCNT0", "005930")
    assert one.records(key, 12, 1.0) == other.records(key, 12, 1.0)
    assert one.records(key, 12, 1.0) != market(6).records(key, 12, 1.0)


@given(st.integers(1, 400), st.integers(0, 100))
def test_a_skipped_time_has_volume_but_no_records(trades: int, seed: int) -> None:
    sim = market(seed)
    key = ("H0STCNT0", "005930")
    _, before = sim.records(key, 1, 0.0)
    missed = sim.skip(key, trades, 1.0)
    rows, qty = sim.records(key, 1, 2.0)
    assert missed >= trades
    cum_at = sim.layout("H0STCNT0").fields.index("ACML_VOL")
    assert int(rows[0][cum_at]) == before + missed + qty


def test_a_new_day_starts_from_zero_with_the_last_price_as_its_base() -> None:
    tape = Tape("krx", "005930", 71_900, 0, seams.seeded_rng(1))
    for _ in range(10):
        tape.trade(OPEN_MARKET)
    last = tape.last
    tape.trade(OPEN_MARKET + dt.timedelta(days=1))
    assert tape.volume == tape.quantity
    assert tape.base == last


def test_the_price_stays_within_the_daily_band() -> None:
    tape = Tape("krx", "123456", 2000, 0, seams.seeded_rng(1))
    for _ in range(5000):
        tape.trade(OPEN_MARKET)
        assert 1400 <= tape.last <= 2600 + tick_size(2600)


@pytest.mark.parametrize(
    ("venue", "when", "expected"),
    [
        ("krx", dt.datetime(2026, 11, 18, 8, 59, tzinfo=KST), False),
        ("krx", dt.datetime(2026, 11, 18, 9, 0, tzinfo=KST), True),
        ("krx", dt.datetime(2026, 11, 18, 15, 30, tzinfo=KST), False),
        ("krx", dt.datetime(2026, 11, 21, 10, 0, tzinfo=KST), False),
        ("nxt", dt.datetime(2026, 11, 18, 8, 0, tzinfo=KST), True),
        ("nightfut", dt.datetime(2026, 11, 18, 2, 0, tzinfo=KST), True),
        ("nightfut", dt.datetime(2026, 11, 18, 12, 0, tzinfo=KST), False),
        ("overseas", dt.datetime(2026, 11, 18, 3, 0, tzinfo=KST), True),
    ],
)
def test_venues_have_hours(venue: str, when: dt.datetime, expected: bool) -> None:
    assert is_open(venue, when) is expected


def test_the_exchange_clock_may_run_faster() -> None:
    clock = MarketClock(OPEN_MARKET, 100.0, 60.0)
    assert clock.at(101.0) - OPEN_MARKET == dt.timedelta(minutes=1)
