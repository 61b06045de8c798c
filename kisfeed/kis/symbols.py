"""Symbols before KIS is asked: what is wrong with a shape, and what the master files know.

The master files are public ZIPs of cp949 text, one record a line; here are their parsers and the
question they answer. Column places follow the official samples' parsers and struct headers.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable


class Fault(enum.StrEnum):
    """Why a symbol cannot be the tr_key of its venue."""

    EMPTY = "empty"
    BLANKS = "blanks"  # white space around or inside
    LOWER_CASE = "lower_case"
    LOST_ZEROS = "lost_zeros"  # a spreadsheet or an int() ate the leading zeros
    A_PREFIX = "a_prefix"  # A005930, as other brokers' tools write it
    STANDARD_CODE = "standard_code"  # the twelve-character ISIN
    EXCHANGE_SUFFIX = "exchange_suffix"  # 005930.KS
    NO_MARKET = "no_market"  # AAPL where DNASAAPL is wanted
    SHAPE = "shape"  # none of the above


@attrs.frozen
class Complaint:
    """What is wrong with a symbol.

    Attributes:
        fault: for a text in the reader's language.
        suggestion: what was probably meant; it has the right shape. None where nobody can tell.
    """

    fault: Fault
    suggestion: str | None


_ISIN: Final = re.compile(r"KR7(?P<code>[0-9A-Z]{6})[0-9A-Z]{3}")
_SUFFIXED: Final = re.compile(r"(?P<code>[0-9A-Z]{6})\.(?:KS|KQ|KR|NX)")


def complaint(symbol: str, pattern: re.Pattern[str]) -> Complaint | None:
    """What is wrong with *symbol* for a TR whose tr_key must match *pattern*; None if nothing.

    The shape alone is judged; :class:`Master` knows what is listed.
    """
    if pattern.fullmatch(symbol):
        return None
    if not symbol.strip():
        return Complaint(Fault.EMPTY, None)
    for fault, meant in _guesses(symbol):
        if pattern.fullmatch(meant):
            return Complaint(fault, meant)
    if pattern.fullmatch(f"DNAS{symbol}"):
        return Complaint(Fault.NO_MARKET, None)
    return Complaint(Fault.SHAPE, None)


def _guesses(symbol: str) -> Iterable[tuple[Fault, str]]:
    compact = "".join(symbol.split())
    upper = compact.upper()
    if compact != symbol:
        yield Fault.BLANKS, upper
    if upper != symbol:
        yield Fault.LOWER_CASE, upper
    if upper.isascii() and upper.isdigit():
        yield Fault.LOST_ZEROS, upper.zfill(6)
    if upper.startswith("A"):
        yield Fault.A_PREFIX, upper[1:]
    if isin := _ISIN.fullmatch(upper):
        yield Fault.STANDARD_CODE, isin["code"]
    if suffixed := _SUFFIXED.fullmatch(upper):
        yield Fault.EXCHANGE_SUFFIX, suffixed["code"]


class Board(enum.StrEnum):
    """Which domestic master file; each has its own fixed tail after the Korean name."""

    KOSPI = "kospi"
    KOSDAQ = "kosdaq"
    KONEX = "konex"


@attrs.frozen
class Listing:
    """One record of a master file.

    Attributes:
        symbol: the short code; overseas the exchange's own symbol, such as ``AAPL``.
        market: the board, or the three letters of the overseas market in tr_keys (``NAS``).
        name: Korean, else English.
        isin: the standard code; empty overseas.
        kind: security group, two letters (``ST`` share, ``EF`` ETF); overseas the digit KIS gives.
        halted: trading is stopped.
        liquidation: in liquidation trading, before its delisting.
    """

    symbol: str
    market: str
    name: str
    isin: str
    kind: str
    halted: bool
    liquidation: bool


@attrs.frozen
class MasterFile:
    """What one file held.

    Attributes:
        listings: by line.
        rejected: numbers of the lines, from 1, that are no record.
    """

    listings: tuple[Listing, ...]
    rejected: tuple[int, ...]


@attrs.frozen
class _Tail:
    width: int
    halted: int
    liquidation: int


_TAILS: Final = {
    Board.KOSPI: _Tail(227, 60, 61),
    Board.KOSDAQ: _Tail(221, 55, 56),
    Board.KONEX: _Tail(184, 21, 22),
}
_HEAD: Final = 21  # short code 9, standard code 12
_SHORT_CODE: Final = re.compile(r"[0-9A-Z]{6,9}")
_FLAGS: Final = (b"Y", b"N")
_OVERSEAS_COLUMNS: Final = 24


def parse_domestic(board: Board, data: bytes) -> MasterFile:
    """Read ``kospi_code.mst``, ``kosdaq_code.mst`` or ``konex_code.mst``.

    A line is cut in bytes, from both ends, because the Korean name between is wider in cp949
    than in characters. Lines that do not fit are reported and skipped; nothing is raised.
    """
    tail = _TAILS[board]
    listings, rejected = [], []
    for number, line in enumerate(_lines(data), start=1):
        listing = _domestic(board, tail, line)
        if listing is None:
            rejected.append(number)
        else:
            listings.append(listing)
    return MasterFile(tuple(listings), tuple(rejected))


def _domestic(board: Board, tail: _Tail, line: bytes) -> Listing | None:
    start = len(line) - tail.width
    if start < _HEAD:
        return None
    fixed = line[start:]
    flags = [fixed[at : at + 1] for at in (tail.halted, tail.liquidation)]
    symbol = line[:9].decode("ascii", "replace").strip()
    if not _SHORT_CODE.fullmatch(symbol) or not fixed.isascii():
        return None
    if any(flag not in _FLAGS for flag in flags):
        return None
    return Listing(
        symbol=symbol,
        market=board.value,
        name=line[_HEAD:start].decode("cp949", "replace").strip(),
        isin=line[9:_HEAD].decode("ascii", "replace").strip(),
        kind=fixed[:2].decode("ascii").strip(),
        halted=flags[0] == b"Y",
        liquidation=flags[1] == b"Y",
    )


def parse_overseas(data: bytes) -> MasterFile:
    """Read ``nasmst.cod`` and its like: 24 tab-separated columns.

    Whether the files begin with a header is not established: a first line whose base price is no
    number is taken for one.
    """
    listings, rejected = [], []
    for number, line in enumerate(_lines(data), start=1):
        columns = [column.strip() for column in line.decode("cp949", "replace").split("\t")]
        fits = len(columns) == _OVERSEAS_COLUMNS and _is_number(columns[12])
        if fits and columns[4] and columns[2]:
            name = columns[6] or columns[7]
            listings.append(
                Listing(columns[4], columns[2], name, "", columns[8], False, liquidation=False)
            )
        elif number > 1 or len(columns) != _OVERSEAS_COLUMNS:
            rejected.append(number)
    return MasterFile(tuple(listings), tuple(rejected))


def _lines(data: bytes) -> list[bytes]:
    # Not splitlines(): a stray form feed inside a record is not the end of it. Only the line's own
    # end is cut off, because the last column may be blank.
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+(?:\.[0-9]*)?", text) is not None


_DOMESTIC_VENUES: Final = frozenset({"krx", "krx-after", "nxt", "unified", "etf"})
_OVERSEAS_VENUES: Final = frozenset({"overseas", "overseas-asia"})
_DAYTIME: Final = {"BAQ": "NAS", "BAY": "NYS", "BAA": "AMS"}


class Master:
    """What is listed, from the master files at hand; made anew when they are read again."""

    def __init__(self, files: Iterable[MasterFile]) -> None:
        self._listings = {
            (listing.market, listing.symbol): listing for file in files for listing in file.listings
        }
        self._markets = {market for market, _ in self._listings}

    def find(self, venue: str, tr_key: str) -> Listing | None:
        """The listing behind a topic of *venue*, if the files at hand have it."""
        found = (self._listings.get(place) for place in self._places(venue, tr_key))
        return next((listing for listing in found if listing is not None), None)

    def knows(self, venue: str, tr_key: str) -> bool | None:
        """Whether *tr_key* is listed; None where the files at hand cannot tell.

        "Not listed" is only said when every file that could list it is at hand. A listing of
        today may be missing from yesterday's file, so this is a reason to warn, not to refuse.
        """
        places = self._places(venue, tr_key)
        if any(place in self._listings for place in places):
            return True
        complete = places and all(market in self._markets for market, _ in places)
        return False if complete else None

    def _places(self, venue: str, tr_key: str) -> list[tuple[str, str]]:
        if venue in _DOMESTIC_VENUES:
            return [(board.value, tr_key) for board in Board]
        if venue in _OVERSEAS_VENUES:
            market = tr_key[1:4]
            return [(_DAYTIME.get(market, market), tr_key[4:])]
        return []
