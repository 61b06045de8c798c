"""Questions to KIS about prices and symbols, and its answers, in domain words.

The one place that knows KIS's column names for them. Answers carry numbers as texts; an empty
one, ``(null)`` or nan is None, as in the rows of the stream.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from kisfeed.kfp.models import REST, STREAM, Bar, DailyPrice, Price, SymbolInfo
from kisfeed.kis import values
from kisfeed.seoul import KST, time_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VENUES: Final[Mapping[str, str]] = {"krx": "J", "nxt": "NX", "unified": "UN"}
"""Venues whose prices can be asked for, and KIS's code of each."""

MULTI_VENUES: Final = frozenset({"krx", "nxt"})
"""Those of them that ``intstock_multprice`` takes."""

DAYS: Final = 100
"""The most days that one call for daily prices answers with."""

_CALENDAR_DAYS: Final = 160  # hold 100 trading days, the longest holidays included
_DOWN: Final = frozenset({"4", "5"})
_FLAT: Final = "3"
_MARKETS: Final = {"STK": "kospi", "KSQ": "kosdaq", "KNX": "konex"}
_KINDS: Final = {"ST": "stock", "EF": "etf", "EN": "etn", "EW": "elw", "RT": "reit"}
_NEVER: Final = "00000000"


# Questions.


def price_values(venue: str, symbol: str) -> dict[str, str]:
    """The query of ``inquire_price``."""
    return {"FID_COND_MRKT_DIV_CODE": VENUES[venue], "FID_INPUT_ISCD": symbol}


def prices_values(venue: str, symbols: Sequence[str]) -> dict[str, str]:
    """The query of ``intstock_multprice``: pairs numbered from 1, no more than are needed."""
    pairs: dict[str, str] = {}
    for number, symbol in enumerate(symbols, 1):
        pairs[f"FID_COND_MRKT_DIV_CODE_{number}"] = VENUES[venue]
        pairs[f"FID_INPUT_ISCD_{number}"] = symbol
    return pairs


def daily_values(venue: str, symbol: str, today: dt.date) -> dict[str, str]:
    """The query of ``inquire_daily_itemchartprice`` for the last :data:`DAYS` trading days.

    This call and not ``inquire_daily_price``: of that one KIS's own samples disagree on which
    value of FID_ORG_ADJ_PRC asks for adjusted prices.
    """
    return {
        **price_values(venue, symbol),
        "FID_INPUT_DATE_1": f"{today - dt.timedelta(days=_CALENDAR_DAYS):%Y%m%d}",
        "FID_INPUT_DATE_2": f"{today:%Y%m%d}",
        "FID_PERIOD_DIV_CODE": "D",
        "FID_ORG_ADJ_PRC": "0",
    }


def info_values(symbol: str) -> dict[str, str]:
    """The query of ``search_stock_info``."""
    return {"PRDT_TYPE_CD": "300", "PDNO": symbol}


# Answers.


def price(body: Mapping[str, Any], venue: str, symbol: str, ts: int) -> Price | None:
    """The price in an answer of ``inquire_price``; None where it holds none."""
    row = _object(body, "output")
    base = _number(row, "stck_sdpr")
    return _price(row, venue, symbol, ts, "stck_", previous=base)


def prices(body: Mapping[str, Any], venue: str, ts: int) -> dict[str, Price]:
    """The prices in an answer of ``intstock_multprice``, by symbol.

    Rows are told apart by their symbol: their order is not documented, nor is what becomes of a
    symbol that KIS does not know. A row without a price is left out.
    """
    rows = body.get("output")
    found: dict[str, Price] = {}
    for row in rows if isinstance(rows, list) else []:
        symbol = _text(row, "inter_shrn_iscd") if isinstance(row, dict) else None
        if symbol is None:
            continue
        previous = _number(row, "inter2_prdy_clpr")
        made = _price(row, venue, symbol, ts, "inter2_", previous=previous)
        if made is not None:
            found[symbol] = made
    return found


def daily(
    body: Mapping[str, Any], venue: str, symbol: str, ts: int, last_day: dt.date
) -> DailyPrice | None:
    """The days up to *last_day* in an answer of ``inquire_daily_itemchartprice``; None for none.

    KIS fills up with empty rows.
    """
    rows = body.get("output2")
    bars = []
    for row in rows if isinstance(rows, list) else []:
        day = _day(_text(row, "stck_bsop_date")) if isinstance(row, dict) else None
        if day is not None and day <= last_day:
            bars.append(
                Bar(
                    day.isoformat(),
                    _number(row, "stck_oprc"),
                    _number(row, "stck_hgpr"),
                    _number(row, "stck_lwpr"),
                    _number(row, "stck_clpr"),
                    _number(row, "acml_vol"),
                    _number(row, "acml_tr_pbmn"),
                )
            )
    if not bars:
        return None
    newest_first = tuple(sorted(bars, key=lambda bar: bar.date, reverse=True)[:DAYS])
    return DailyPrice(symbol, venue, 0, newest_first, ts)


def info(body: Mapping[str, Any], symbol: str, ts: int) -> SymbolInfo | None:
    """The symbol in an answer of ``search_stock_info``; None where it holds none."""
    row = _object(body, "output")
    name = _text(row, "prdt_abrv_name") or _text(row, "prdt_name")
    if name is None:
        return None
    market, kind = _text(row, "mket_id_cd"), _text(row, "scty_grp_id_cd")
    gone = _day(_text(row, "lstg_abol_dt"))
    return SymbolInfo(
        symbol,
        name,
        _text(row, "prdt_eng_abrv_name") or _text(row, "prdt_eng_name"),
        None if market is None else _MARKETS.get(market, market),
        None if kind is None else _KINDS.get(kind, kind),
        _text(row, "std_pdno"),
        _number(row, "lstg_stqt"),
        _number(row, "bfdy_clpr"),
        _flag(row, "tr_stop_yn"),
        _flag(row, "admn_item_yn"),
        _flag(row, "cptt_trad_tr_psbl_yn"),
        None if gone is None else gone.isoformat(),
        ts,
    )


def info_of_daily(body: Mapping[str, Any], symbol: str, ts: int) -> SymbolInfo | None:
    """What an answer of ``inquire_daily_itemchartprice`` says of the symbol; None for nothing.

    Little, but the paper host has no better call.
    """
    row = _object(body, "output1")
    name = _text(row, "hts_kor_isnm")
    if name is None:
        return None
    return SymbolInfo(
        symbol,
        name,
        english_name=None,
        market=None,
        kind=None,
        isin=None,
        listed_shares=_number(row, "lstn_stcn"),
        previous_close=_number(row, "stck_prdy_clpr"),
        halted=None,
        supervised=None,
        on_nxt=None,
        delisted=None,
        ts=ts,
    )


def price_of_trade(
    row: Sequence[Any], venue: str, symbol: str, scale: int, xts: int | None, rts: int
) -> Price | None:
    """The price in a row of ``trade.v1``; None where the row has none."""
    px, _, volume, ask, bid, _, change, opening, high, low, value = row[:11]
    if px is None:
        return None
    return Price(
        symbol,
        venue,
        scale,
        px,
        change,
        None if change is None else px - change,
        opening,
        high,
        low,
        volume,
        value,
        ask,
        bid,
        upper_limit=None,
        lower_limit=None,
        source=STREAM,
        xts=xts,
        ts=rts,
    )


def trade_of_price(price: Price) -> tuple[int | str | bool | None, ...]:
    """*price* as a row of ``trade.v1``, without what only a trade has."""
    return (
        price.price,
        None,
        price.volume,
        price.ask,
        price.bid,
        None,
        price.change,
        price.open,
        price.high,
        price.low,
        price.value,
        None,
        None,
        None,
        None,
    )


def last_finished_day(wall_ns: int) -> dt.date:
    """The newest date in Seoul on which no Korean venue trades any more."""
    moment = time_of(wall_ns)
    return moment.date() if moment.time() >= _ALL_CLOSED else moment.date() - _A_DAY


def reference_until(wall_ns: int) -> int:
    """When what is asked of a finished day, or of a symbol, has to be asked again.

    Returns:
        Nanoseconds since 1970 UTC: the next midnight in Seoul, or the end of trading before it.
    """
    moment = time_of(wall_ns)
    ends = dt.datetime.combine(moment.date(), _ALL_CLOSED, KST)
    if moment >= ends:
        ends = dt.datetime.combine(moment.date() + _A_DAY, dt.time(), KST)
    return int(ends.timestamp()) * 10**9


_ALL_CLOSED: Final = dt.time(20, 10)  # NXT, the last to close, ends at 20:00
_A_DAY: Final = dt.timedelta(days=1)


def _price(
    row: Mapping[str, Any], venue: str, symbol: str, ts: int, prefix: str, *, previous: int | None
) -> Price | None:
    px = _number(row, f"{prefix}prpr")
    if not px:
        return None
    change = _number(row, "inter2_prdy_vrss" if prefix == "inter2_" else "prdy_vrss")
    sign = _text(row, "prdy_vrss_sign")
    if change is not None and sign is not None:
        # Some of KIS's calls sign the change and some do not; the sign column always tells.
        change = -abs(change) if sign in _DOWN else 0 if sign == _FLAT else abs(change)
    return Price(
        symbol,
        venue,
        0,
        px,
        change,
        previous or (None if change is None else px - change),
        _traded(row, f"{prefix}oprc"),
        _traded(row, f"{prefix}hgpr"),
        _traded(row, f"{prefix}lwpr"),
        _number(row, "acml_vol"),
        _number(row, "acml_tr_pbmn"),
        _traded(row, f"{prefix}askp"),
        _traded(row, f"{prefix}bidp"),
        _traded(row, f"{prefix}mxpr"),
        _traded(row, f"{prefix}llam"),
        REST,
        None,
        ts,
    )


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name)
    if isinstance(found, list):
        found = found[0] if found else None
    return found if isinstance(found, dict) else {}


def _text(row: Mapping[str, Any], name: str) -> str | None:
    found = row.get(name)
    if found is None:
        return None
    text = str(found).strip()
    return None if text.lower().encode() in values.NOTHING else text


_WHOLE: Final = values.Numbers().one(0)


def _number(row: Mapping[str, Any], name: str) -> int | None:
    text = _text(row, name)
    return None if text is None else _WHOLE(text.encode())


def _traded(row: Mapping[str, Any], name: str) -> int | None:
    """A price that KIS writes as 0 while there is none."""
    return _number(row, name) or None


def _flag(row: Mapping[str, Any], name: str) -> bool | None:
    return values.FLAGS.get((_text(row, name) or "").encode())


def _day(text: str | None) -> dt.date | None:
    if text is None or text == _NEVER:
        return None
    try:
        return dt.datetime.strptime(text, "%Y%m%d").replace(tzinfo=KST).date()
    except ValueError:
        return None
