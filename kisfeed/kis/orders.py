"""Orders as KIS takes and tells them: order types, price steps, request values, rows of the day.

The data comes from ``schemas/kis/orders.json``. KIS has no client order id and does not notice
that an order came twice; an order is known by its date and number, and in lists only.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SIDES: Final = {"01": "sell", "1": "sell", "02": "buy", "2": "buy"}
_AMEND: Final = "01"
_CANCEL: Final = "02"
NUMBER_WIDTH: Final = 10


@attrs.frozen
class OrderType:
    """One ORD_DVSN.

    Attributes:
        name: what callers say, such as ``limit``.
        code: what KIS says.
        priced: a price is needed; without it ORD_UNPR is 0.
        stop: it takes a trigger price too.
    """

    name: str
    code: str
    priced: bool
    stop: bool
    exchanges: tuple[str, ...]
    paper: bool
    first: dt.date
    last: dt.date


@attrs.frozen
class Exchange:
    """Where an order can go; *venue* is whose hours it has."""

    name: str
    venue: str
    paper: bool


@attrs.frozen
class _Steps:
    kind: str
    first: dt.date
    last: dt.date
    steps: tuple[tuple[int | None, int], ...]

    def step(self, price: int) -> int:
        return next(step for below, step in self.steps if below is None or price < below)


class OrderRules:
    """What KIS takes, by date.

    Args:
        data: the parsed ``kis/orders.json``.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.types: Mapping[str, OrderType] = {
            name: OrderType(
                name,
                e["code"],
                e["price"] == "needed",
                e.get("stop", False),
                tuple(e["exchanges"]),
                e["paper"],
                _date(e.get("from"), dt.date.min),
                _date(e.get("until"), dt.date.max),
            )
            for name, e in data["types"].items()
        }
        self.exchanges: Mapping[str, Exchange] = {
            name: Exchange(name, e["venue"], e["paper"]) for name, e in data["exchanges"].items()
        }
        self._tables = [
            _Steps(
                e["kind"],
                _date(e["from"], dt.date.min),
                _date(e.get("until"), dt.date.max),
                tuple((below, step) for below, step in e["steps"]),
            )
            for e in data["tick_sizes"]
        ]

    def kinds(self, date: dt.date, price: int, step: int) -> tuple[str, ...]:
        """Kinds of instruments whose price step at *price* is *step*: what a quote tells of one."""
        return tuple(t.kind for t in self._of(date) if t.step(price) == step)

    def steps(self, date: dt.date, price: int, kinds: Sequence[str]) -> tuple[int, ...]:
        """The steps that *price* may have to fit: one for each kind, all kinds for none."""
        tables = [t for t in self._of(date) if not kinds or t.kind in kinds]
        return tuple(dict.fromkeys(t.step(price) for t in tables))

    def _of(self, date: dt.date) -> list[_Steps]:
        return [t for t in self._tables if t.first <= date <= t.last]


@attrs.frozen
class Account:
    """An account number's two halves; never shown."""

    cano: str = attrs.field(repr=False)
    product: str = attrs.field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Account:
        """Read ``12345678-01``.

        Raises:
            ValueError: it is something else.
        """
        cano, dash, product = text.partition("-")
        halves = cano.isdecimal() and product.isdecimal() and text.isascii()
        if not dash or len(cano) != 8 or len(product) != 2 or not halves:
            raise ValueError("an account is 8 digits, a dash and 2 digits")
        return cls(cano, product)

    def values(self) -> dict[str, str]:
        """The two as KIS names them."""
        return {"CANO": self.cano, "ACNT_PRDT_CD": self.product}

    def owns(self, number: str) -> bool:
        """Whether a notice's account *number* is this one: with its product code, or without."""
        return number.replace("-", "").strip() in {self.cano, self.cano + self.product}


def new_order(
    account: Account,
    symbol: str,
    qty: int,
    order_type: OrderType,
    exchange: str,
    price: int | None,
    stop_price: int | None,
) -> dict[str, str]:
    """The body of ``order-cash``; the side is in its TR id."""
    return {
        **account.values(),
        "PDNO": symbol,
        "ORD_DVSN": order_type.code,
        "ORD_QTY": str(qty),
        "ORD_UNPR": str(price or 0),
        "EXCG_ID_DVSN_CD": exchange,
        "SLL_TYPE": "",
        "CNDT_PRIC": "" if stop_price is None else str(stop_price),
    }


def amendment(
    account: Account,
    number: str,
    branch: str,
    order_type: OrderType,
    exchange: str,
    price: int | None,
    stop_price: int | None,
) -> dict[str, str]:
    """The body of ``order-rvsecncl`` that changes prices or type of all that is still open."""
    body = _change(account, number, branch, _AMEND, order_type, exchange, 0, price or 0)
    # Optional there, and of stop-limit orders only.
    return body if stop_price is None else body | {"CNDT_PRIC": str(stop_price)}


def cancellation(
    account: Account,
    number: str,
    branch: str,
    order_type: OrderType,
    exchange: str,
    qty: int,
) -> dict[str, str]:
    """The body of ``order-rvsecncl`` that cancels *qty*, or with 0 all that is still open."""
    return _change(account, number, branch, _CANCEL, order_type, exchange, qty, 0)


def _change(
    account: Account,
    number: str,
    branch: str,
    what: str,
    order_type: OrderType,
    exchange: str,
    qty: int,
    price: int,
) -> dict[str, str]:
    return {
        **account.values(),
        "KRX_FWDG_ORD_ORGNO": branch,
        "ORGN_ODNO": number.zfill(NUMBER_WIDTH),
        "ORD_DVSN": order_type.code,
        "RVSE_CNCL_DVSN_CD": what,
        "ORD_QTY": str(qty),
        "ORD_UNPR": str(price),
        "QTY_ALL_ORD_YN": "N" if qty else "Y",
        "EXCG_ID_DVSN_CD": exchange,
    }


@attrs.frozen
class Receipt:
    """What KIS answers to an order it took: its number there, and when."""

    number: str
    branch: str
    time: str


def receipt(body: Mapping[str, Any]) -> Receipt | None:
    """The receipt in an answer with ``rt_cd`` 0; None where there is no number in it.

    The paper host was seen to leave everything but the number out.
    """
    output = body.get("output")
    if not isinstance(output, dict):
        return None
    number = same_number(output.get("ODNO"))
    if not number:
        return None
    return Receipt(number, _text(output.get("KRX_FWDG_ORD_ORGNO")), _text(output.get("ORD_TMD")))


def same_number(number: object) -> str:
    """An order number in the one form in which numbers are compared; empty for none.

    KIS writes one number with leading zeros here and leading blanks there.
    """
    return _text(number).lstrip("0")


@attrs.frozen
class DayRow:
    """One row of the day's list: what became of one order number.

    Attributes:
        day: YYYYMMDD.
        number, original: in the form of :func:`same_number`; *original* is the number that an
            amendment or cancellation changes, empty on others.
        price: as ordered, 0 for none.
        time: HHMMSS at which KIS took it.
        avg_price: of the fills, as KIS wrote it; empty for none.
        channel: who or what entered it (``ordr_empno``); what the values mean is not documented.
    """

    day: str
    branch: str
    number: str
    original: str
    side: str
    symbol: str
    type_code: str
    exchange: str
    qty: int
    price: int
    time: str
    filled: int
    avg_price: str
    open: int
    cancelled: int
    rejected: int
    channel: str = ""


def day_list(
    account: Account, day: str, exchange: str, *, symbol: str = "", cursor: tuple[str, str]
) -> dict[str, str]:
    """The query of ``inquire-daily-ccld`` for every order of *day*, the oldest first.

    Orders that come in between are then behind the page that is read, and shift nothing.

    Args:
        account: whose orders.
        day: YYYYMMDD.
        exchange: ``ALL``, or ``KRX`` on paper.
        symbol: only this one.
        cursor: FK and NK of the last page, blank at first.
    """
    return {
        **account.values(),
        "INQR_STRT_DT": day,
        "INQR_END_DT": day,
        "SLL_BUY_DVSN_CD": "00",
        "CCLD_DVSN": "00",
        "INQR_DVSN": "01",
        "INQR_DVSN_3": "00",
        "INQR_DVSN_1": "",
        "PDNO": symbol,
        "ORD_GNO_BRNO": "",
        "ODNO": "",
        "EXCG_ID_DVSN_CD": exchange,
        "CTX_AREA_FK100": cursor[0],
        "CTX_AREA_NK100": cursor[1],
    }


def day_rows(body: Mapping[str, Any]) -> list[DayRow]:
    """The rows of one page.

    Raises:
        ValueError: a row cannot be read. Nothing is left out quietly: a row that is missing is an
            order that does not exist.
    """
    rows = body.get("output1") or []
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError("output1 is no list of maps")
    return [_day_row(row) for row in rows]


def _day_row(row: Mapping[str, Any]) -> DayRow:
    number = same_number(row.get("odno"))
    side = _SIDES.get(_text(row.get("sll_buy_dvsn_cd")))
    if not number or side is None:
        raise ValueError("a row of the day's list has no number or no side")
    qty, filled = _whole(row, "ord_qty"), _whole(row, "tot_ccld_qty")
    # The portal's table and its example say cncl_, the official sample's map cnc_.
    cancelled = _whole(row, "cncl_cfrm_qty" if "cncl_cfrm_qty" in row else "cnc_cfrm_qty")
    rejected = _whole(row, "rjct_qty")
    left = max(0, qty - filled - cancelled - rejected)
    return DayRow(
        day=_text(row.get("ord_dt")),
        branch=_text(row.get("ord_gno_brno")),
        number=number,
        original=same_number(row.get("orgn_odno")),
        side=side,
        symbol=_text(row.get("pdno")),
        type_code=_text(row.get("ord_dvsn_cd")),
        exchange=_text(row.get("excg_id_dvsn_Cd", row.get("excg_id_dvsn_cd"))),
        qty=qty,
        price=_whole(row, "ord_unpr"),
        time=_text(row.get("ord_tmd")),
        filled=filled,
        avg_price=_text(row.get("avg_prvs")).removesuffix(".0000") if filled else "",
        open=_whole(row, "rmn_qty") if "rmn_qty" in row else left,
        cancelled=cancelled,
        rejected=rejected,
        channel=_text(row.get("ordr_empno")),
    )


def cursor(body: Mapping[str, Any]) -> tuple[str, str]:
    """FK and NK with which the page after this answer is asked for; opaque."""
    return _text(body.get("ctx_area_fk100")), _text(body.get("ctx_area_nk100"))


def balance(account: Account, cursor: tuple[str, str]) -> dict[str, str]:
    """The query of ``inquire-balance``, by symbol, with yesterday's trades."""
    return {
        **account.values(),
        "AFHR_FLPR_YN": "N",
        "OFL_YN": "",
        "INQR_DVSN": "02",
        "UNPR_DVSN": "01",
        "FUND_STTL_ICLD_YN": "N",
        "FNCG_AMT_AUTO_RDPT_YN": "N",
        "PRCS_DVSN": "00",
        "CTX_AREA_FK100": cursor[0],
        "CTX_AREA_NK100": cursor[1],
    }


def holdings(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is held, by the names of ``calls.json``; rows of nothing (sold since) are left out."""
    rows = body.get("output1") or []
    found = []
    for row in rows if isinstance(rows, list) else ():
        qty = _whole(row, "hldg_qty")
        if qty:
            found.append(
                {
                    "symbol": _text(row.get("pdno")),
                    "name": _text(row.get("prdt_name")),
                    "qty": qty,
                    "sellable_qty": _whole(row, "ord_psbl_qty"),
                    "avg_price": _text(row.get("pchs_avg_pric")),
                    "price": _whole(row, "prpr"),
                    "value": _whole(row, "evlu_amt"),
                    "profit": _whole(row, "evlu_pfls_amt"),
                }
            )
    return found


def cash(body: Mapping[str, Any]) -> dict[str, int]:
    """The account's totals; ``output2`` is a list of one object here."""
    totals = body.get("output2")
    totals = totals[0] if isinstance(totals, list) and totals else totals
    row = totals if isinstance(totals, dict) else {}
    return {
        "cash": _whole(row, "dnca_tot_amt"),
        "cash_d1": _whole(row, "nxdy_excc_amt"),
        "cash_d2": _whole(row, "prvs_rcdl_excc_amt"),
        "value": _whole(row, "tot_evlu_amt"),
        "net": _whole(row, "nass_amt"),
    }


def orderable(
    account: Account, symbol: str, order_type: OrderType, price: int | None
) -> dict[str, str]:
    """The query of ``inquire-psbl-order``."""
    return {
        **account.values(),
        "PDNO": symbol,
        "ORD_UNPR": str(price or 0),
        "ORD_DVSN": order_type.code,
        "CMA_EVLU_AMT_ICLD_YN": "N",
        "OVRS_ICLD_YN": "N",
    }


def orderable_amounts(body: Mapping[str, Any]) -> dict[str, int]:
    """What can be bought, without margin debt and with it."""
    output = body.get("output")
    row = output if isinstance(output, dict) else {}
    return {
        "cash": _whole(row, "ord_psbl_cash"),
        "qty": _whole(row, "nrcvb_buy_qty"),
        "amount": _whole(row, "nrcvb_buy_amt"),
        "max_qty": _whole(row, "max_buy_qty"),
        "max_amount": _whole(row, "max_buy_amt"),
    }


def book_levels(body: Mapping[str, Any]) -> dict[str, Any]:
    """Ten levels of ``inquire-asking-price-exp-ccn``, the best first; empty levels are left out."""
    output = body.get("output1")
    row = output if isinstance(output, dict) else {}

    def side(price: str, qty: str) -> list[list[int]]:
        levels = [[_whole(row, f"{price}{n}"), _whole(row, f"{qty}{n}")] for n in range(1, 11)]
        return [level for level in levels if level[0]]

    return {
        "asks": side("askp", "askp_rsqn"),
        "bids": side("bidp", "bidp_rsqn"),
        "total_ask": _whole(row, "total_askp_rsqn"),
        "total_bid": _whole(row, "total_bidp_rsqn"),
        "time": _text(row.get("aspr_acpt_hour")),
    }


@attrs.frozen
class Facts:
    """What a price quote says that an order has to fit.

    Attributes:
        last, upper, lower: won; the day's limits are 0 where KIS does not say.
        step: the price step at *last*.
        stopped: trading in it is stopped.
    """

    last: int
    upper: int
    lower: int
    step: int
    stopped: bool


def facts(body: Mapping[str, Any]) -> Facts | None:
    """The facts in an answer of ``inquire-price``; None where it has no price."""
    output = body.get("output")
    row = output if isinstance(output, dict) else {}
    last = _whole(row, "stck_prpr")
    if not last:
        return None
    return Facts(
        last,
        _whole(row, "stck_mxpr"),
        _whole(row, "stck_llam"),
        _whole(row, "aspr_unit"),
        stopped=_text(row.get("temp_stop_yn")) == "Y",
    )


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _whole(row: Mapping[str, Any], name: str) -> int:
    """A number as KIS writes it, ``"249500.0000"`` included; 0 where it is left empty.

    Raises:
        ValueError: it is not a number.
    """
    text = _text(row.get(name))
    if not text:
        return 0
    whole, _, decimals = text.partition(".")
    if decimals.strip("0"):
        return round(float(text))
    return int(whole)


def _date(text: str | None, otherwise: dt.date) -> dt.date:
    return otherwise if text is None else dt.date.fromisoformat(text)
