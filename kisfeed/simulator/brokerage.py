"""Accounts and orders of the simulated KIS. Pure; it is told the time.

It is an oracle: :attr:`Brokerage.orders` is everything that ever took effect, whatever anybody was
answered. Nothing here notices that an order comes twice, as KIS does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Mapping

    from kisfeed.seams import Rng
    from kisfeed.simulator.market import Tape

BRANCH: Final = "06010"
_FIRST_NUMBER: Final = 5_001
_MARKET_TYPES: Final = frozenset({"01", "03", "04", "05", "06", "13", "14", "15", "16"})
_AT_ONCE: Final = frozenset({"11", "12", "13", "14", "15", "16"})
_WHOLE: Final = frozenset({"12", "14", "16"})
_NAMES: Final = {"00": "지정가", "01": "시장가", "02": "조건부지정가"}


@attrs.frozen
class Dealing:
    """How this broker deals.

    Attributes:
        cash: won of every account at the start.
        holdings: shares by symbol of every account at the start.
        fill_s: seconds from an acceptance to the first fill, and between two fills.
        lag_s: seconds, least and most, until the day's list shows what happened.
        page: rows in a page of the day's list.
        holdings_page: rows in a page of the balance.
    """

    cash: int = 100_000_000
    holdings: Mapping[str, int] = attrs.field(factory=lambda: {"005930": 500, "000660": 500})
    fill_s: float = 0.3
    lag_s: tuple[float, float] = (0.5, 5.5)
    page: int = 100
    holdings_page: int = 50


@attrs.frozen
class Fill:
    """One execution."""

    at: float
    qty: int
    price: int


@attrs.define(eq=False)
class Placed:
    """One order number: an order, an amendment or a cancellation that took effect.

    Attributes:
        taken_at: scheduler's seconds.
        original: the number that an amendment or cancellation changed.
        action: ``new``, ``amend`` or ``cancel``.
        ended_at: when nothing of it was open any more.
        lag: until the list shows it, and each thing that happens to it.
        hand: placed by a person in an app, not through REST.
    """

    number: int
    account: str
    symbol: str
    side: str
    code: str
    qty: int
    price: int
    exchange: str
    taken_at: float
    time: dt.datetime
    lag: float
    action: str = "new"
    original: int = 0
    hand: bool = False
    fills: list[Fill] = attrs.field(factory=list)
    cancelled: int = 0
    rejected: int = 0
    ended_at: float = float("inf")

    @property
    def filled(self) -> int:
        """Shares executed."""
        return sum(fill.qty for fill in self.fills)

    @property
    def open(self) -> int:
        """Shares that can still be executed, amended or cancelled."""
        if self.action == "cancel":
            return 0
        return self.qty - self.filled - self.cancelled - self.rejected


@attrs.frozen
class Refused:
    """A business refusal: HTTP 200, ``rt_cd`` 1."""

    code: str
    text: str


@attrs.frozen
class News:
    """What a notice is to say: *kind* is ``accepted``, ``fill``, ``rejected`` or ``cancelled``."""

    kind: str
    placed: Placed
    qty: int
    price: int
    at: dt.datetime


class Brokerage:
    """Every account's orders.

    Attributes:
        orders: everything that took effect, in order.
        news: what notices are to say; the host takes and sends it.
    """

    def __init__(
        self,
        dealing: Dealing,
        rng: Rng,
        tape: Callable[[str], Tape],
        kst: Callable[[float], dt.datetime],
    ) -> None:
        self.dealing = dealing
        self.orders: list[Placed] = []
        self.news: list[News] = []
        self._rng = rng
        self._tape = tape
        self._kst = kst
        self._by_number: dict[int, Placed] = {}

    def executed(self, symbol: str, side: str, qty: int, price: int) -> list[Placed]:
        """New orders of these terms that took effect: what a checker counts."""
        wanted = (symbol, side, qty, price)
        return [
            o
            for o in self.orders
            if o.action == "new" and (o.symbol, o.side, o.qty, o.price) == wanted
        ]

    def place(
        self,
        account: str,
        symbol: str,
        side: str,
        code: str,
        qty: int,
        price: int,
        exchange: str,
        now: float,
        *,
        hand: bool = False,
    ) -> Placed | Refused:
        """Take a new order, or refuse it."""
        refused = self._judge(account, symbol, side, code, qty, price)
        if refused is not None:
            return refused
        placed = self._take(account, symbol, side, code, qty, price, exchange, now, hand=hand)
        self._tell("accepted", placed, qty, price, now)
        return placed

    def reject_at_exchange(self, placed: Placed, now: float) -> None:
        """The exchange refuses what KIS took."""
        placed.rejected = placed.open
        placed.ended_at = now
        self._tell("rejected", placed, placed.rejected, placed.price, now)

    def change(
        self,
        account: str,
        number: int,
        what: str,
        code: str,
        qty: int,
        price: int,
        now: float,
    ) -> Placed | Refused:
        """Amend (``01``) or cancel (``02``) an order; *qty* 0 means all that is open."""
        self.advance(now)
        target = self._by_number.get(number)
        if target is None or target.account != account or not target.open:
            return Refused("APBK0344", "정정/취소할 수량이 없습니다.")
        qty = qty or target.open
        if qty > target.open:
            return Refused("APBK0344", "정정/취소할 수량이 없습니다.")
        if what == "01" and price % self._tape(target.symbol).step(price):
            return Refused("APBK0506", "호가단위 오류")
        target.cancelled += qty
        if not target.open:
            target.ended_at = now
        changed = self._take(
            account,
            target.symbol,
            target.side,
            code,
            qty,
            price if what == "01" else 0,
            target.exchange,
            now,
            action="amend" if what == "01" else "cancel",
            original=number,
        )
        self._tell("amended" if what == "01" else "cancelled", changed, qty, changed.price, now)
        return changed

    def advance(self, now: float) -> None:
        """Execute what can be executed by *now*."""
        for placed in self.orders:
            if placed.open and placed.action != "cancel":
                self._execute(placed, now)

    def busy(self) -> bool:
        """Something is open, so :meth:`advance` may find work."""
        return any(placed.open for placed in self.orders)

    def cash(self, account: str) -> int:
        """Won that is not bound or spent."""
        spent = 0
        for o in self._of(account):
            sign = 1 if o.side == "buy" else -1
            spent += sign * sum(fill.qty * fill.price for fill in o.fills)
            if o.side == "buy":
                spent += o.open * self._unit(o.symbol, o.price)
        return self.dealing.cash - spent

    def holding(self, account: str, symbol: str) -> int:
        """Shares held."""
        held = self.dealing.holdings.get(symbol, 0)
        for o in self._of(account):
            if o.symbol == symbol:
                held += o.filled if o.side == "buy" else -o.filled
        return held

    def symbols(self, account: str) -> list[str]:
        """What the account holds or has held today."""
        named = dict.fromkeys(self.dealing.holdings)
        named.update(dict.fromkeys(o.symbol for o in self._of(account)))
        return [symbol for symbol in named if self.holding(account, symbol)]

    def sellable(self, account: str, symbol: str) -> int:
        """Shares that no open sale binds."""
        bound = sum(o.open for o in self._of(account) if o.symbol == symbol and o.side == "sell")
        return self.holding(account, symbol) - bound

    def affordable(self, account: str, symbol: str, price: int) -> int:
        """Shares that the cash buys."""
        return max(0, self.cash(account)) // self._unit(symbol, price)

    def day_rows(self, account: str, day: str, now: float) -> list[dict[str, str]]:
        """The rows of ``inquire-daily-ccld`` as far as the list has caught up, oldest first."""
        return [
            self._row(o, now)
            for o in self._of(account)
            if f"{o.time:%Y%m%d}" == day and o.taken_at + o.lag <= now
        ]

    def take_news(self) -> list[News]:
        """What notices have not told yet."""
        news, self.news = self.news, []
        return news

    def _judge(
        self, account: str, symbol: str, side: str, code: str, qty: int, price: int
    ) -> Refused | None:
        if qty <= 0:
            return Refused("APBK0500", "주문수량을 확인하십시오.")
        if price and price % self._tape(symbol).step(price):
            return Refused("APBK0506", "호가단위 오류")
        if not price and code not in _MARKET_TYPES:
            return Refused("APBK0501", "주문단가를 확인하십시오.")
        if side == "buy" and qty > self.affordable(account, symbol, price):
            return Refused("APBK0913", "주문가능금액이 부족합니다.")
        if side == "sell" and qty > self.sellable(account, symbol):
            return Refused("APBK0400", "주문 가능한 수량을 초과했습니다.")
        return None

    def _take(
        self,
        account: str,
        symbol: str,
        side: str,
        code: str,
        qty: int,
        price: int,
        exchange: str,
        now: float,
        *,
        action: str = "new",
        original: int = 0,
        hand: bool = False,
    ) -> Placed:
        low, high = self.dealing.lag_s
        placed = Placed(
            _FIRST_NUMBER + len(self.orders),
            account,
            symbol,
            side,
            code,
            qty,
            price,
            exchange,
            now,
            self._kst(now),
            low + self._rng.random() * (high - low),
            action,
            original,
            hand,
        )
        self.orders.append(placed)
        self._by_number[placed.number] = placed
        return placed

    def _execute(self, placed: Placed, now: float) -> None:
        tape = self._tape(placed.symbol)
        started = placed.fills[-1].at if placed.fills else placed.taken_at
        due = started + self.dealing.fill_s
        while placed.open and due <= now:
            price = tape.ask if placed.side == "buy" else tape.bid
            fits = not placed.price or (
                placed.price >= price if placed.side == "buy" else placed.price <= price
            )
            offered = tape.side(ask=placed.side == "buy")[0][1]
            qty = min(placed.open, max(1, offered))
            if placed.code in _WHOLE and qty < placed.open:
                fits = False
            if fits:
                placed.fills.append(Fill(due, qty, price))
                self._tell("fill", placed, qty, price, due)
            if placed.open and placed.code in _AT_ONCE:
                placed.cancelled += placed.open
                self._tell("cancelled", placed, placed.cancelled, placed.price, due)
            if not fits:
                return
            due += self.dealing.fill_s
        if not placed.open:
            placed.ended_at = now

    def _row(self, o: Placed, now: float) -> dict[str, str]:
        fills = [fill for fill in o.fills if fill.at + o.lag <= now]
        filled = sum(fill.qty for fill in fills)
        value = sum(fill.qty * fill.price for fill in fills)
        known_end = o.ended_at + o.lag <= now
        cancelled = o.cancelled if known_end else 0
        rejected = o.rejected if known_end else 0
        left = 0 if o.action == "cancel" else o.qty - filled - cancelled - rejected
        side = "매수" if o.side == "buy" else "매도"
        mark = {"new": "", "amend": "정정*", "cancel": "취소*"}[o.action]
        return {
            "ord_dt": f"{o.time:%Y%m%d}",
            "ord_gno_brno": BRANCH,
            "odno": f"{o.number:010d}",
            "orgn_odno": f"{o.original:010d}" if o.original else "",
            "ord_dvsn_name": _NAMES.get(o.code, o.code),
            "sll_buy_dvsn_cd": "02" if o.side == "buy" else "01",
            "sll_buy_dvsn_cd_name": f"현금{side}{mark}",
            "pdno": o.symbol,
            "prdt_name": o.symbol,
            "ord_qty": str(o.qty),
            "ord_unpr": str(o.price),
            "ord_tmd": f"{o.time:%H%M%S}",
            "tot_ccld_qty": str(filled),
            "avg_prvs": f"{value / filled:.4f}" if filled else "0",
            "cncl_yn": "Y" if o.action == "cancel" else "N",
            "tot_ccld_amt": str(value),
            "loan_dt": "",
            "ordr_empno": "MTS" if o.hand else "OpenAPI",
            "ord_dvsn_cd": o.code,
            "cncl_cfrm_qty": str(cancelled),
            "rmn_qty": str(left),
            "rjct_qty": str(rejected),
            "ccld_cndt_name": "없음",
            "prdt_type_cd": "300",
            "ord_orgno": BRANCH,
            "excg_id_dvsn_Cd": o.exchange,
        }

    def _of(self, account: str) -> Iterator[Placed]:
        return (o for o in self.orders if o.account == account)

    def _unit(self, symbol: str, price: int) -> int:
        """What one share binds: market orders bind money at the upper limit."""
        return price or self._tape(symbol).base * 13 // 10

    def _tell(self, kind: str, placed: Placed, qty: int, price: int, at: float) -> None:
        self.news.append(News(kind, placed, qty, price, self._kst(at)))


def notice_values(news: News, hts_id: str) -> dict[str, str]:
    """The fields of an H0STCNI0 record by KIS's names; the others are left to the market."""
    o = news.placed
    fill = news.kind == "fill"
    revision = {"amend": "1", "cancel": "2"}.get(o.action, "0")
    return {
        "CUST_ID": hts_id,
        "ACNT_NO": o.account,
        "ODER_NO": f"{o.number:010d}",
        "OODER_NO": f"{o.original:010d}" if o.original else "",
        "SELN_BYOV_CLS": "02" if o.side == "buy" else "01",
        "RCTF_CLS": revision,
        "ODER_KIND": o.code,
        "STCK_SHRN_ISCD": o.symbol,
        "CNTG_QTY": f"{news.qty:010d}",
        "CNTG_UNPR": f"{news.price:09d}",
        "STCK_CNTG_HOUR": f"{news.at:%H%M%S}",
        "RFUS_YN": "1" if news.kind == "rejected" else "0",
        "CNTG_YN": "2" if fill else "1",
        "ACPT_YN": "3" if news.kind == "cancelled" and o.action == "new" else "2" if fill else "1",
        "BRNC_NO": BRANCH,
        "ODER_QTY": f"{o.qty:09d}",
        "ORD_EXG_GB": {"KRX": "1", "NXT": "2"}.get(o.exchange, "3"),
        "ODER_PRC": f"{o.price:09d}",
    }


def padded(text: str) -> str:
    """``msg1`` of a ledger call: padded with blanks to 80 bytes of EUC-KR."""
    return text + " " * max(0, 80 - len(text.encode("euc-kr", "replace")))


def whole(values: Mapping[str, Any], name: str) -> int:
    """A number that KIS takes as text; 0 for anything else."""
    text = str(values.get(name, "")).strip()
    return int(text) if text.isdecimal() else 0
