"""Account and order calls of the simulated KIS: what each is answered, and what goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.kis import server
from kisfeed.simulator.brokerage import BRANCH, Placed, Refused, padded, whole
from kisfeed.simulator.faults import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kisfeed.simulator.brokerage import Brokerage
    from kisfeed.simulator.exchange import Exchange
    from kisfeed.simulator.market import Market

ORDER_CASH: Final = "/uapi/domestic-stock/v1/trading/order-cash"
ORDER_CHANGE: Final = "/uapi/domestic-stock/v1/trading/order-rvsecncl"
ORDERABLE: Final = "/uapi/domestic-stock/v1/trading/inquire-psbl-order"
BALANCE: Final = "/uapi/domestic-stock/v1/trading/inquire-balance"
DAY_LIST: Final = "/uapi/domestic-stock/v1/trading/inquire-daily-ccld"
BOOK: Final = "/uapi/domestic-stock/v1/quotations/inquire-asking-price-exp-ccn"

_TRS: Final[Mapping[str, tuple[str, ...]]] = {
    # Without the first letter: T on the real host, V on the paper host. The second ones are old.
    ORDER_CASH: ("TTC0012U", "TTC0011U", "TTC0802U", "TTC0801U"),
    ORDER_CHANGE: ("TTC0013U", "TTC0803U"),
    ORDERABLE: ("TTC8908R",),
    BALANCE: ("TTC8434R",),
    DAY_LIST: ("TTC0081R", "TTC8001R"),
}
_BUYS: Final = ("TTC0012U", "TTC0802U")
_POSTS: Final = (ORDER_CASH, ORDER_CHANGE)
_CURSOR: Final = 100


@attrs.frozen
class Said:
    """An answer.

    Attributes:
        body: JSON, or the bytes themselves where a fault sends something else.
        tr_cont: of the response header.
        delay: seconds until it is sent.
        lost: the connection ends instead.
    """

    status: int
    body: Mapping[str, Any] | bytes = attrs.field(repr=False)
    tr_cont: str = ""
    delay: float = 0.0
    lost: bool = False


_LOST: Final = Said(0, b"", lost=True)


@attrs.define(eq=False)
class Trading:
    """Answers account and order calls.

    Attributes:
        posts: when each order POST came in, with its path; counted before anything else happens.
    """

    _exchange: Exchange
    _brokerage: Brokerage
    _market: Market
    _wake: Callable[[], None]
    paper: bool = False
    posts: list[tuple[float, str, Mapping[str, str]]] = attrs.field(factory=list, init=False)

    def serves(self, method: str, path: str) -> bool:
        """Whether a call is one of these."""
        if path == BOOK:
            return method == "GET"
        return path in _TRS and method == ("POST" if path in _POSTS else "GET")

    def answer(
        self, path: str, sent: Mapping[str, str], values: Mapping[str, str], now: float
    ) -> Said:
        """The answer to one call that :meth:`serves`.

        Args:
            path: without the query.
            sent: headers by lower-case name.
            values: query or body.
            now: scheduler's seconds.
        """
        if path in _POSTS:
            self.posts.append((now, path, dict(values)))
        board = self._exchange.board
        if path in _POSTS and board.take(Kind.ORDER_LOST_BEFORE, now):
            return _LOST
        bearer = sent.get("authorization", "").removeprefix("Bearer ").strip()
        code = self._exchange.admit_call(path, sent.get("appkey", ""), bearer, now)
        if code is not None:
            return Said(500, server.gateway_error(code))
        refused = self._tr_refused(path, sent.get("tr_id", ""))
        if refused is not None:
            return refused
        self._brokerage.advance(now)
        if path == BOOK:
            return self._book(values.get("FID_INPUT_ISCD", ""))
        account = values.get("CANO", "") + values.get("ACNT_PRDT_CD", "")
        if len(account) != 10:
            return _business("OPSQ2000", "ERROR : INPUT INVALID_CHECK_ACNO")
        if path in _POSTS:
            return self._order(path, account, sent["tr_id"], values, now)
        if path == ORDERABLE:
            return self._orderable(account, values)
        if path == BALANCE:
            return self._balance(account, sent, values)
        return self._day_list(account, sent, values, now)

    def _tr_refused(self, path: str, tr_id: str) -> Said | None:
        if path == BOOK:
            return None if tr_id == "FHKST01010200" else _gateway("MCA00124")
        if tr_id[1:] not in _TRS[path]:
            return _gateway("MCA00124")
        if self.paper and not tr_id.startswith("V"):
            return Said(500, {"rt_cd": "1", "msg1": "모의투자 TR  이 아닙니다."})
        if not self.paper and tr_id.startswith("V"):
            return _gateway("EGW00213")
        return None

    # Orders.

    def _order(
        self, path: str, account: str, tr_id: str, values: Mapping[str, str], now: float
    ) -> Said:
        board = self._exchange.board
        if board.take(Kind.ORDER_TWIN, now):
            self._hand(account, tr_id, values, now)
        if board.take(Kind.ORDER_REFUSED, now):
            return _business("APBK0919", "장운영시간이 아닙니다.")
        dropped = board.take(Kind.ORDER_NOT_DONE, now)
        if dropped is not None:
            return Said(500, b"<html>502 Bad Gateway</html>", delay=dropped.value)
        if path == ORDER_CASH:
            placed = self._brokerage.place(
                account,
                values.get("PDNO", ""),
                "buy" if tr_id[1:] in _BUYS else "sell",
                values.get("ORD_DVSN", ""),
                whole(values, "ORD_QTY"),
                whole(values, "ORD_UNPR"),
                values.get("EXCG_ID_DVSN_CD") or "KRX",
                now,
            )
        else:
            everything = values.get("QTY_ALL_ORD_YN") == "Y"
            placed = self._brokerage.change(
                account,
                whole(values, "ORGN_ODNO"),
                values.get("RVSE_CNCL_DVSN_CD", ""),
                values.get("ORD_DVSN", ""),
                0 if everything else whole(values, "ORD_QTY"),
                whole(values, "ORD_UNPR"),
                now,
            )
        self._wake()
        if isinstance(placed, Refused):
            return _business(placed.code, placed.text)
        if board.take(Kind.ORDER_BOUNCED, now):
            self._brokerage.reject_at_exchange(placed, now)
        return self._receipt(placed, now)

    def _hand(self, account: str, tr_id: str, values: Mapping[str, str], now: float) -> None:
        """A person places the same order in an app at the same moment."""
        self._brokerage.place(
            account,
            values.get("PDNO", ""),
            "buy" if tr_id[1:] in _BUYS else "sell",
            values.get("ORD_DVSN", ""),
            whole(values, "ORD_QTY"),
            whole(values, "ORD_UNPR"),
            "KRX",
            now,
            hand=True,
        )

    def _receipt(self, placed: Placed, now: float) -> Said:
        board = self._exchange.board
        body = {
            "rt_cd": "0",
            "msg_cd": "APBK0013",
            "msg1": padded("주문 전송 완료 되었습니다."),
            "output": {
                "KRX_FWDG_ORD_ORGNO": BRANCH,
                "ODNO": f"{placed.number:010d}",
                "ORD_TMD": f"{placed.time:%H%M%S}",
            },
        }
        if board.take(Kind.ORDER_LOST_AFTER, now):
            return _LOST
        if board.take(Kind.ORDER_HTML, now):
            return Said(500, b"<html><body>Internal Server Error</body></html>")
        if board.take(Kind.ORDER_CUT, now):
            return Said(200, b'{"rt_cd":"0","msg_cd":"APBK0013","output":{"ODN')
        late = board.take(Kind.ORDER_LATE, now)
        return Said(200, body, delay=0.0 if late is None else late.value)

    # Accounts.

    def _orderable(self, account: str, values: Mapping[str, str]) -> Said:
        symbol, price = values.get("PDNO", ""), whole(values, "ORD_UNPR")
        qty = self._brokerage.affordable(account, symbol, price)
        cash = self._brokerage.cash(account)
        output = {
            "ord_psbl_cash": str(cash),
            "ord_psbl_sbst": "0",
            "ruse_psbl_amt": "0",
            "fund_rpch_chgs": "0",
            "psbl_qty_calc_unpr": str(price),
            "nrcvb_buy_amt": str(cash),
            "nrcvb_buy_qty": str(qty),
            "max_buy_amt": str(cash),
            "max_buy_qty": str(qty),
            "cma_evlu_amt": "0",
            "ovrs_re_use_amt_wcrc": "0",
            "ord_psbl_frcr_amt_wcrc": "0",
        }
        return Said(200, {"output": output, **_DONE})

    def _balance(self, account: str, sent: Mapping[str, str], values: Mapping[str, str]) -> Said:
        rows, worth = [], 0
        for symbol in self._brokerage.symbols(account):
            price = self._market.tape("krx", symbol).last
            held = self._brokerage.holding(account, symbol)
            worth += price * held
            rows.append(
                {
                    "pdno": symbol,
                    "prdt_name": symbol,
                    "trad_dvsn_name": "현금",
                    "hldg_qty": str(held),
                    "ord_psbl_qty": str(self._brokerage.sellable(account, symbol)),
                    "pchs_avg_pric": f"{price}.0000",
                    "pchs_amt": str(price * held),
                    "prpr": str(price),
                    "evlu_amt": str(price * held),
                    "evlu_pfls_amt": "0",
                    "evlu_pfls_rt": "0.00",
                }
            )
        cash = str(self._brokerage.cash(account))
        totals = {
            "dnca_tot_amt": cash,
            "nxdy_excc_amt": cash,
            "prvs_rcdl_excc_amt": cash,
            "scts_evlu_amt": str(worth),
            "tot_evlu_amt": str(int(cash) + worth),
            "nass_amt": str(int(cash) + worth),
        }
        page = 20 if self.paper else self._brokerage.dealing.holdings_page
        return _paged(rows, page, sent, values, {"output2": [totals]})

    def _day_list(
        self, account: str, sent: Mapping[str, str], values: Mapping[str, str], now: float
    ) -> Said:
        rows = self._brokerage.day_rows(account, values.get("INQR_STRT_DT", ""), now)
        if values.get("INQR_DVSN") == "00":
            rows.reverse()
        side = values.get("SLL_BUY_DVSN_CD", "00")
        wanted = [
            row
            for row in rows
            if side in {"00", row["sll_buy_dvsn_cd"]}
            and values.get("PDNO", "") in {"", row["pdno"]}
        ]
        page = 15 if self.paper else self._brokerage.dealing.page
        totals = {"tot_ord_qty": str(sum(int(row["ord_qty"]) for row in wanted))}
        return _paged(wanted, page, sent, values, {"output2": totals})

    def _book(self, symbol: str) -> Said:
        tape = self._market.tape("krx", symbol)
        output: dict[str, str] = {"aspr_acpt_hour": "000000"}
        totals = {"askp": 0, "bidp": 0}
        for side in totals:
            for n, (price, qty) in enumerate(tape.side(ask=side == "askp"), 1):
                output[f"{side}{n}"] = str(price)
                output[f"{side}_rsqn{n}"] = str(qty)
                totals[side] += qty
        output["total_askp_rsqn"] = str(totals["askp"])
        output["total_bidp_rsqn"] = str(totals["bidp"])
        done = {"rt_cd": "0", "msg_cd": "MCA00000", "msg1": "정상처리 되었습니다."}
        return Said(200, {"output1": output, "output2": {}, **done})


_DONE: Final = {
    "rt_cd": "0",
    "msg_cd": "KIOK0510",
    "msg1": padded("조회가 완료되었습니다"),
}


def _gateway(code: str) -> Said:
    return Said(500, server.gateway_error(code))


def _business(code: str, text: str) -> Said:
    return Said(200, {"rt_cd": "1", "msg_cd": code, "msg1": padded(text)})


def _paged(
    rows: list[dict[str, str]],
    page: int,
    sent: Mapping[str, str],
    values: Mapping[str, str],
    rest: Mapping[str, Any],
) -> Said:
    """One page, with the cursor in the body and in the header whether there is another."""
    cursor = values.get("CTX_AREA_NK100", "").strip()
    start = int(cursor) if sent.get("tr_cont", "").strip() == "N" and cursor.isdecimal() else 0
    more = start + page < len(rows)
    # A cursor stands on the last page too: only the header tells.
    following = str(start + page) if more else "0"
    body = {
        "ctx_area_fk100": "12345678^01^".ljust(_CURSOR),
        "ctx_area_nk100": following.ljust(_CURSOR),
        "output1": rows[start : start + page],
        **rest,
        **_DONE,
    }
    return Said(200, body, tr_cont=("M" if start else "F") if more else ("E" if start else "D"))
