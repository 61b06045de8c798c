"""What an account holds and can buy, and the order book of a symbol: reads, by domain names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.errors import KisError, KisRefused
from kisfeed.kis import orders as wire

if TYPE_CHECKING:
    from kisfeed.kis.orders import Account, OrderType
    from kisfeed.rest.requests import Kis

_MAX_PAGES: Final = 20
_NOTHING: Final = "KIOK0560"
_MARKETS: Final = {"KRX": "J", "NXT": "NX", "SOR": "UN"}


@attrs.frozen
class AccountReader:
    """Reads one account. Every method makes calls to KIS and keeps nothing."""

    _kis: Kis
    _account: Account

    async def balance(self) -> dict[str, Any]:
        """Holdings and cash: the result of the call ``balance``.

        Raises:
            KisError: KIS refused or gave no readable answer.
        """
        holdings: list[dict[str, Any]] = []
        totals: dict[str, int] = {}
        cursor, more = ("", ""), False
        for _ in range(_MAX_PAGES):
            values = wire.balance(self._account, cursor)
            try:
                answer = await self._kis.call(
                    self._kis.endpoints.call("inquire_balance", values, more=more)
                )
            except KisRefused as exc:
                if exc.code != _NOTHING:
                    raise
                break
            body = answer.body
            try:
                holdings += wire.holdings(body)
                totals = wire.cash(body)
            except ValueError as exc:
                raise KisError(f"the balance cannot be read: {exc}") from exc
            if not answer.more:
                break
            cursor, more = wire.cursor(body), True
        return {"holdings": holdings, **totals}

    async def orderable(
        self, symbol: str, order_type: OrderType, price: int | None
    ) -> dict[str, Any]:
        """What can be bought: the result of the call ``orderable``.

        Raises:
            KisError: KIS refused or gave no readable answer.
        """
        values = wire.orderable(self._account, symbol, order_type, price)
        answer = await self._kis.call(self._kis.endpoints.call("inquire_psbl_order", values))
        try:
            return {"symbol": symbol, **wire.orderable_amounts(answer.body)}
        except ValueError as exc:
            raise KisError(f"the orderable amount cannot be read: {exc}") from exc

    async def book(self, symbol: str, exchange: str) -> dict[str, Any]:
        """Ten levels each way, the best first: the result of the call ``book``.

        Raises:
            KisError: KIS refused or gave no readable answer.
        """
        values = {"FID_COND_MRKT_DIV_CODE": _MARKETS[exchange], "FID_INPUT_ISCD": symbol}
        answer = await self._kis.call(
            self._kis.endpoints.call("inquire_asking_price_exp_ccn", values)
        )
        try:
            return {"symbol": symbol, **wire.book_levels(answer.body)}
        except ValueError as exc:
            raise KisError(f"the order book cannot be read: {exc}") from exc
