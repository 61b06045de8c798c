from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.kis.symbols import (
    Board,
    Complaint,
    Fault,
    Listing,
    Master,
    MasterFile,
    complaint,
    parse_domestic,
    parse_overseas,
)

if TYPE_CHECKING:
    import re

CATALOGUE = schemas.load_catalogue(Environment.REAL)
SHARE = CATALOGUE.trs["H0STCNT0"].key_pattern
US = CATALOGUE.trs["HDFSCNT0"].key_pattern
TAILS = {Board.KOSPI: (227, 60, 61), Board.KOSDAQ: (221, 55, 56), Board.KONEX: (184, 21, 22)}

names = st.text(st.characters(codec="cp949", exclude_characters="\r\n"), max_size=20)
boards = st.sampled_from(Board)


def record(
    board: Board,
    symbol: str = "005930",
    name: str = "삼성전자",
    *,
    kind: str = "ST",
    halted: str = "N",
    liquidation: str = "N",
) -> bytes:
    width, halted_at, liquidation_at = TAILS[board]
    tail = bytearray(b"0" * width)
    tail[:2] = kind.encode()
    tail[halted_at : halted_at + 1] = halted.encode()
    tail[liquidation_at : liquidation_at + 1] = liquidation.encode()
    return f"{symbol:9}KR7{symbol[:6]}003".encode() + name.encode("cp949").ljust(40) + bytes(tail)


def overseas(
    symbol: str, market: str = "NAS", korean: str = "애플", price: str = "189.5000"
) -> bytes:
    columns = ["US", "22", market, "나스닥", symbol, f"D{market}{symbol}", korean, "APPLE INC", "2"]
    columns += ["USD", "4", "0", price, "1", "1", "0930", "1600", "N", "", "370", "0", "1", "", "0"]
    return "\t".join(columns).encode("cp949")


# Shapes ----------------------------------------------------------------------------------


@given(st.text(max_size=20), st.sampled_from([SHARE, US]))
def test_a_complaint_means_malformed_and_its_suggestion_is_well_formed(
    symbol: str, pattern: re.Pattern[str]
) -> None:
    found = complaint(symbol, pattern)
    assert (found is None) == (pattern.fullmatch(symbol) is not None)
    if found is not None and found.suggestion is not None:
        assert complaint(found.suggestion, pattern) is None


@pytest.mark.parametrize(
    ("symbol", "fault", "suggestion"),
    [
        ("", Fault.EMPTY, None),
        ("   ", Fault.EMPTY, None),
        (" 005930", Fault.BLANKS, "005930"),
        ("5930", Fault.LOST_ZEROS, "005930"),
        ("A005930", Fault.A_PREFIX, "005930"),
        ("KR7005930003", Fault.STANDARD_CODE, "005930"),
        ("005930.KS", Fault.EXCHANGE_SUFFIX, "005930"),
        ("q500001", Fault.LOWER_CASE, "Q500001"),
        ("삼성전자", Fault.SHAPE, None),
    ],
)
def test_usual_mistakes_are_named_and_put_right(
    symbol: str, fault: Fault, suggestion: str | None
) -> None:
    assert complaint(symbol, SHARE) == Complaint(fault, suggestion)


def test_an_overseas_symbol_without_its_market_is_named_but_not_guessed() -> None:
    assert complaint("AAPL", US) == Complaint(Fault.NO_MARKET, None)
    assert complaint("dnasaapl", US) == Complaint(Fault.LOWER_CASE, "DNASAAPL")
    assert complaint("DNASAAPL", US) is None


# Master files ----------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    boards,
    st.lists(st.tuples(st.text("0123456789ABQ", min_size=6, max_size=6), names), max_size=5),
)
def test_every_record_is_read_whatever_its_name(board: Board, rows: list[tuple[str, str]]) -> None:
    data = b"".join(record(board, symbol, name) + b"\n" for symbol, name in rows)
    parsed = parse_domestic(board, data)
    assert parsed.rejected == ()
    assert [(x.symbol, x.name) for x in parsed.listings] == [(s, n.strip()) for s, n in rows]


@given(st.binary(max_size=800), boards)
def test_no_bytes_at_all_make_a_parser_raise(data: bytes, board: Board) -> None:
    domestic, abroad = parse_domestic(board, data), parse_overseas(data)
    lines = len(data.split(b"\n")) - (data.endswith(b"\n") or not data)
    assert len(domestic.listings) + len(domestic.rejected) == lines
    assert len(abroad.listings) + len(abroad.rejected) in (lines, lines - 1)


@pytest.mark.parametrize("board", Board)
def test_flags_are_read_at_their_places(board: Board) -> None:
    data = record(board, "Q500001", "신한 ETN", kind="EN", halted="Y", liquidation="Y") + b"\r\n"
    (listing,) = parse_domestic(board, data).listings
    assert listing == Listing(
        symbol="Q500001",
        market=board.value,
        name="신한 ETN",
        isin="KR7Q50000003",
        kind="EN",
        halted=True,
        liquidation=True,
    )


def test_a_line_of_the_wrong_file_is_rejected_by_number() -> None:
    lines = [record(Board.KOSPI), record(Board.KOSDAQ), b"short", record(Board.KOSPI)]
    data = b"\n".join([*lines, record(Board.KOSPI, "5930"), record(Board.KOSPI, halted="?")])
    parsed = parse_domestic(Board.KOSPI, data)
    assert [listing.symbol for listing in parsed.listings] == ["005930", "005930"]
    assert parsed.rejected == (2, 3, 5, 6)


def test_an_overseas_header_is_no_record_and_no_error() -> None:
    header = b"\t".join(b"column" for _ in range(24))
    with_header = parse_overseas(header + b"\n" + overseas("AAPL") + b"\n")
    without = parse_overseas(overseas("AAPL") + b"\n")
    assert with_header == without
    assert without.listings[0].name == "애플"
    assert without.rejected == ()


def test_an_overseas_record_without_a_price_or_a_column_is_rejected() -> None:
    data = b"\n".join([overseas("AAPL"), overseas("MSFT", price="n/a"), b"a\tb"])
    parsed = parse_overseas(data)
    assert [listing.symbol for listing in parsed.listings] == ["AAPL"]
    assert parsed.rejected == (2, 3)


def test_a_korean_name_gives_way_to_the_english_one_only_when_empty() -> None:
    (listing,) = parse_overseas(overseas("AAPL", korean="")).listings
    assert listing.name == "APPLE INC"


# What is listed ----------------------------------------------------------------------------


def master(*boards: Board, overseas_too: bool = True) -> Master:
    files = [parse_domestic(board, record(board, f"{n:06}")) for n, board in enumerate(boards, 1)]
    return Master([*files, parse_overseas(overseas("AAPL"))] if overseas_too else files)


def test_listed_is_known_on_every_venue_that_trades_it() -> None:
    known = master(*Board)
    for venue in ("krx", "nxt", "unified", "krx-after", "etf"):
        assert known.knows(venue, "000001") is True
        assert known.knows(venue, "999999") is False
    assert (
        known.find("krx", "000002")
        == parse_domestic(Board.KOSDAQ, record(Board.KOSDAQ, "000002")).listings[0]
    )
    assert known.find("krx", "999999") is None


def test_what_the_files_cannot_tell_is_not_denied() -> None:
    partial = master(Board.KOSPI)
    assert partial.knows("krx", "000001") is True
    assert partial.knows("krx", "999999") is None
    assert partial.knows("idxfut", "101W09") is None
    assert partial.knows("overseas", "DNYSIBM") is None
    assert Master([MasterFile((), ())]).knows("krx", "005930") is None


def test_us_day_keys_are_looked_up_in_their_night_market() -> None:
    known = master(*Board)
    assert known.knows("overseas", "DNASAAPL") is True
    assert known.knows("overseas", "RBAQAAPL") is True
    assert known.knows("overseas", "RBAQNONE") is False
