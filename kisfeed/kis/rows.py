"""Records to typed rows, compiled once for each (TR, layout).

A row is a tuple in the order of ``schemas/kfp1/rows.json``. Prices are integers at the TR's
scale, quantities and values are integers as they are, codes are short texts, and what KIS left
empty is None.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kisfeed.kis import notices, values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kisfeed.kis.catalogue import Layout, Tr

    Typed: TypeAlias = Callable[[Sequence[bytes]], tuple["Row", int | None]]
    Pick: TypeAlias = Callable[[Sequence[bytes]], Sequence[bytes]]

Row: TypeAlias = tuple[Any, ...]

PX: Final = 0
QTY: Final = 1
CUM_QTY: Final = 2
"""Where price, quantity and cumulative quantity stand in ``trade.v1``."""

# For every field: how it is read, and the KIS columns that hold it in one TR or another.
_TRADE: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "px": (
        "price",
        ("STCK_PRPR", "FUTS_PRPR", "OPTN_PRPR", "PRPR_NMIX", "LAST", "TOTL_ERNN_NMIX"),
    ),
    "qty": ("whole", ("CNTG_VOL", "LAST_CNQN", "PCAS_VOL", "EVOL")),
    "cum_qty": ("whole", ("ACML_VOL", "TVOL")),
    "ask": ("price", ("ASKP1", "FUTS_ASKP1", "OPTN_ASKP1", "PASK")),
    "bid": ("price", ("BIDP1", "FUTS_BIDP1", "OPTN_BIDP1", "PBID")),
    "side": ("side", ("CCLD_DVSN", "CNTG_CLS_CODE")),
    "change": (
        "price",
        (
            "PRDY_VRSS",
            "FUTS_PRDY_VRSS",
            "OPTN_PRDY_VRSS",
            "BSTP_NMIX_PRDY_VRSS",
            "DIFF",
            "TOTL_ERNN_NMIX_PRDY_VRSS",
        ),
    ),
    "open": (
        "price",
        ("STCK_OPRC", "FUTS_OPRC", "OPTN_OPRC", "OPRC_NMIX", "OPEN", "TOTL_ERNN_NMIX_OPRC"),
    ),
    "high": (
        "price",
        ("STCK_HGPR", "FUTS_HGPR", "OPTN_HGPR", "NMIX_HGPR", "HIGH", "TOTL_ERNN_NMIX_HGPR"),
    ),
    "low": (
        "price",
        ("STCK_LWPR", "FUTS_LWPR", "OPTN_LWPR", "NMIX_LWPR", "LOW", "TOTL_ERNN_NMIX_LWPR"),
    ),
    "cum_value": ("whole", ("ACML_TR_PBMN", "TAMT")),
    "session": ("session", ("NEW_MKOP_CLS_CODE",)),
    "time_class": ("code", ("HOUR_CLS_CODE",)),
    "halted": ("flag", ("TRHT_YN",)),
    "vi_ref_px": ("price", ("VI_STND_PRC",)),
}
_BOOK: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "time_class": ("code", ("HOUR_CLS_CODE",)),
    "asks": ("prices", ("ASKP", "FUTS_ASKP", "OPTN_ASKP", "PASK")),
    "ask_qtys": ("wholes", ("ASKP_RSQN", "VASK")),
    "bids": ("prices", ("BIDP", "FUTS_BIDP", "OPTN_BIDP", "PBID")),
    "bid_qtys": ("wholes", ("BIDP_RSQN", "VBID")),
    "total_ask": ("whole", ("TOTAL_ASKP_RSQN", "AVOL")),
    "total_bid": ("whole", ("TOTAL_BIDP_RSQN", "BVOL")),
    "expected_px": ("price", ("ANTC_CNPR",)),
    "expected_qty": ("whole", ("ANTC_CNQN",)),
}
_BOOK_SCALARS: Final = (
    "TOTAL_ASKP_RSQN",
    "TOTAL_BIDP_RSQN",
    "ANTC_CNPR",
    "ANTC_CNQN",
    "HOUR_CLS_CODE",
)
_EXPECTED: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "px": ("price", ("STCK_PRPR", "PRPR_NMIX", "ANTC_CNPR")),
    "qty": ("whole", ("CNTG_VOL", "PCAS_VOL", "ANTC_CNQN")),
    "cum_qty": ("whole", ("ACML_VOL",)),
    "ask": ("price", ("ASKP1",)),
    "bid": ("price", ("BIDP1",)),
    "change": ("price", ("PRDY_VRSS", "BSTP_NMIX_PRDY_VRSS", "ANTC_CNTG_VRSS")),
    "session": ("session", ("NEW_MKOP_CLS_CODE",)),
    "time_class": ("code", ("HOUR_CLS_CODE",)),
    "halted": ("flag", ("TRHT_YN",)),
    "vi_ref_px": ("price", ("VI_STND_PRC",)),
    "cum_value": ("whole", ("ACML_TR_PBMN",)),
    "operation": ("code", ("ANTC_MKOP_CLS_CODE",)),
}
_STATUS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "halted": ("flag", ("TRHT_YN",)),
    "halt_reason": ("code", ("TR_SUSP_REAS_CNTT",)),
    "session": ("code", ("MKOP_CLS_CODE",)),
    "expected_session": ("code", ("ANTC_MKOP_CLS_CODE",)),
    "extension": ("code", ("MRKT_TRTM_CLS_CODE",)),
    "allocation": ("code", ("DIVI_APP_CLS_CODE",)),
    "symbol_state": ("code", ("ISCD_STAT_CLS_CODE",)),
    "vi": ("code", ("VI_CLS_CODE",)),
    "after_hours_vi": ("code", ("OVTM_VI_CLS_CODE",)),
    "venue": ("code", ("EXCH_CLS_CODE",)),
}
_TABLES: Final = {
    "trade.v1": _TRADE,
    "book.v1": _BOOK,
    "expected.v1": _EXPECTED,
    "status.v1": _STATUS,
}
_NUMBERS: Final = frozenset({"price", "whole"})
_DATED: Final = (("BSOP_DATE", "STCK_CNTG_HOUR"), ("KYMD", "KHMS"), ("STND_DATE1", "TRNM_HOUR"))
_TRADING_DAY: Final = "TYMD"

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    **{schema: tuple(table) for schema, table in _TABLES.items()},
    "notice.v1": notices.FIELDS,
}
"""Field names of the typed schemas, in row order."""


def raw(fields: Sequence[bytes]) -> tuple[str, ...]:
    """The untouched fields as text; bytes that are not UTF-8 become U+FFFD."""
    try:
        texts = b"^".join(fields).decode().split("^")
    except UnicodeDecodeError:
        pass
    else:
        if len(texts) == len(fields):
            return tuple(texts)
    return tuple([value.decode("utf-8", "replace") for value in fields])


class RowMaker:
    """Makes the rows of one TR from records of one layout.

    Attributes:
        typed: a record to ``(row, xts)``. *xts* is in nanoseconds since 1970 UTC, None where the
            record has no date. A TR without a schema gives its raw row. Never raises for a
            record of at least the layout's width.
        trading_day: a record to the exchange's own date as a number, 0 where it cannot be read:
            a foreign day's volume goes on past midnight in Seoul. None where there is no such
            column.
    """

    __slots__ = ("_numbers", "trading_day", "typed")

    typed: Typed
    trading_day: Callable[[Sequence[bytes]], int] | None

    def __init__(self, tr: Tr, layout: Layout) -> None:
        self._numbers = values.Numbers()
        self.typed = self._compile(tr, layout)
        dated = _TRADING_DAY in layout.fields
        self.trading_day = _date_number(layout.fields.index(_TRADING_DAY)) if dated else None

    @property
    def inexact(self) -> int:
        """Values so far that the scale, or 64 bits, cannot hold; they were given as None."""
        return self._numbers.inexact

    @property
    def unreadable(self) -> int:
        """Values so far that should be numbers and are not; they were given as None."""
        return self._numbers.unreadable

    def _compile(self, tr: Tr, layout: Layout) -> Typed:
        if tr.schema == "notice.v1":
            return lambda fields: notices.row(tr, layout, fields, self._numbers)
        table = _TABLES.get(tr.schema)
        if table is None:
            return lambda fields: (raw(fields), None)
        at = {name: index for index, name in enumerate(layout.fields)}
        stamp = _stamp(at)
        scale = tr.scale or 0
        present = {
            name: next((at[c] for c in columns if c in at), None)
            for name, (_, columns) in table.items()
        }
        if table is _TRADE and scale == 0 and None not in present.values():
            return self._share_trade(at, {k: v for k, v in present.items() if v is not None}, stamp)
        if table is _BOOK and scale == 0 and set(_BOOK_SCALARS) <= at.keys():
            return self._share_book(at, stamp)
        cells = [
            self._cell(kind, columns, present[name], at, scale)
            for name, (kind, columns) in table.items()
        ]

        def typed(fields: Sequence[bytes]) -> tuple[Row, int | None]:
            return tuple([cell(fields) for cell in cells]), stamp(fields)

        return typed

    def _cell(
        self,
        kind: str,
        columns: Sequence[str],
        index: int | None,
        at: Mapping[str, int],
        scale: int,
    ) -> Callable[[Sequence[bytes]], Any]:
        if kind in ("prices", "wholes"):
            levels = _levels(columns, at)
            return self._numbers.many(_pick(levels), len(levels), scale if kind == "prices" else 0)
        if index is None:
            return _nothing
        here: int = index
        if kind in _NUMBERS:
            number = self._numbers.one(scale if kind == "price" else 0)
            return lambda fields: number(fields[here])
        if kind == "side":
            return lambda fields: values.SIDES.get(fields[here])
        if kind == "flag":
            return lambda fields: values.FLAGS.get(fields[here])
        if kind == "session":
            return _session(at, here)
        codes = values.Codes()
        return lambda fields: codes[fields[here]]

    def _share_trade(
        self,
        at: Mapping[str, int],
        present: Mapping[str, int],
        stamp: Callable[[Sequence[bytes]], int | None],
    ) -> Typed:
        """Shares on KRX, NXT and both: most of all traffic, hence without a call a field."""
        often = ("px", "qty", "ask", "bid", "change", "open", "high", "low", "vi_ref_px")
        pick: Pick = itemgetter(*(present[name] for name in often))
        seen = self._numbers.seen()
        whole = self._numbers.one(0)
        sides, flags, codes = values.SIDES.get, values.FLAGS.get, values.Codes()
        session = _session(at, present["session"])
        side_at, class_at, halted_at = (present[n] for n in ("side", "time_class", "halted"))
        cum_at, value_at, digits = present["cum_qty"], present["cum_value"], values.MAX_DIGITS

        def typed(fields: Sequence[bytes]) -> tuple[Row, int | None]:
            px, qty, ask, bid, change, opening, high, low, vi_ref = map(seen, pick(fields))
            cum_qty, cum_value = fields[cum_at], fields[value_at]  # ever new: not worth keeping
            row = (
                px,
                qty,
                int(cum_qty) if cum_qty.isdigit() and len(cum_qty) <= digits else whole(cum_qty),
                ask,
                bid,
                sides(fields[side_at]),
                change,
                opening,
                high,
                low,
                int(cum_value)
                if cum_value.isdigit() and len(cum_value) <= digits
                else whole(cum_value),
                session(fields),
                codes[fields[class_at]],
                flags(fields[halted_at]),
                vi_ref,
            )
            return row, stamp(fields)

        return typed

    def _share_book(
        self, at: Mapping[str, int], stamp: Callable[[Sequence[bytes]], int | None]
    ) -> Typed:
        """Books of shares and ELW: most levels of a record stood in the one before it."""
        sides = [_levels(_BOOK[name][1], at) for name in ("asks", "ask_qtys", "bids", "bid_qtys")]
        depth = len(sides[0])
        *scalars, class_at = (at[name] for name in _BOOK_SCALARS)
        indices = [index for side in sides for index in side] + scalars
        pick: Pick = itemgetter(*indices)
        seen = self._numbers.seen()
        codes = values.Codes()
        two, three, four = depth * 2, depth * 3, depth * 4

        def typed(fields: Sequence[bytes]) -> tuple[Row, int | None]:
            numbers = [*map(seen, pick(fields))]
            row = (
                codes[fields[class_at]],
                numbers[:depth],
                numbers[depth:two],
                numbers[two:three],
                numbers[three:four],
                *numbers[four:],
            )
            return row, stamp(fields)

        return typed


def _nothing(_fields: Sequence[bytes]) -> None:
    return None


def _date_number(index: int) -> Callable[[Sequence[bytes]], int]:
    return lambda fields: int(fields[index]) if fields[index].isdigit() else 0


def _stamp(at: Mapping[str, int]) -> Callable[[Sequence[bytes]], int | None]:
    for date, time in _DATED:
        if date in at and time in at:
            return values.stamper(at[date], at[time])
    return _nothing


def _session(at: Mapping[str, int], operation_at: int) -> Callable[[Sequence[bytes]], str | None]:
    """MARKET_CLS_CODE where the layout has it, else the first character of NEW_MKOP_CLS_CODE."""
    first = values.Codes(width=1)
    market_at = at.get("MARKET_CLS_CODE")
    if market_at is None:
        return lambda fields: first[fields[operation_at]]
    codes = values.Codes()
    return lambda fields: codes[fields[market_at]] or first[fields[operation_at]]


def _levels(prefixes: Sequence[str], at: Mapping[str, int]) -> list[int]:
    for prefix in prefixes:
        indices = [at[name] for level in range(1, 11) if (name := f"{prefix}{level}") in at]
        if indices:
            return indices
    return []


def _pick(indices: Sequence[int]) -> Pick:
    first, last = indices[0], indices[-1]
    if list(indices) == list(range(first, last + 1)):
        return itemgetter(slice(first, last + 1))
    return itemgetter(*indices)
