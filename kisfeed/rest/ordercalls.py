"""The ``order.*`` calls and their kin, from the maps of KFP/1 to the desk and back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.core.ordercheck import SYMBOL, Ask
from kisfeed.errors import OrderRefused, UsageError
from kisfeed.kfp.messages import ErrorCode
from kisfeed.kfp.orders import Action, Side
from kisfeed.texts import Phrase, parts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kisfeed.kis.orders import OrderRules
    from kisfeed.rest.account import AccountReader
    from kisfeed.rest.orders import OrderDesk

_MAX_TTL_S: Final = 60.0
_MAX_REASON: Final = 400
_DAY: Final = re.compile(r"[0-9]{8}")


@attrs.define(eq=False)
class OrderCalls:
    """Answers the calls of programs about orders and the account.

    Args:
        desk: None while orders are off.
        account: None where no account is configured.
        rules: what KIS takes.
    """

    _desk: OrderDesk | None
    _account: AccountReader | None
    _rules: OrderRules
    _calls: dict[str, Callable[[Mapping[str, Any], str], Awaitable[object]]] = attrs.field(
        init=False
    )

    def __attrs_post_init__(self) -> None:
        self._calls = {
            "order.preview": self._preview,
            "order.place": self._place,
            "order.amend": self._amend,
            "order.cancel": self._cancel,
            "order.show": self._show,
            "order.list": self._list,
            "order.resolve": self._resolve,
            "halt": self._halt,
            "resume": self._resume,
            "balance": self._balance,
            "orderable": self._orderable,
            "book": self._book,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The calls that are answered here."""
        return tuple(self._calls)

    async def call(self, name: str, arguments: Mapping[str, Any], caller: str) -> object:
        """Answer one of :attr:`names`.

        Args:
            name: which.
            arguments: as they came.
            caller: the program's name, as it greeted; its version is not part of who it is.

        Raises:
            UsageError: an argument is missing or of the wrong kind.
            OrderRefused: as the desk says.
            KisError: KIS refused a read, or did not answer.
            StateError: something could not be written.
        """
        return await self._calls[name](arguments, caller.partition("/")[0])

    # Orders.

    async def _preview(self, a: Mapping[str, Any], client: str) -> object:
        return (await self._open().preview(self._new(a, client))).to_map()

    async def _place(self, a: Mapping[str, Any], client: str) -> object:
        return (await self._open().place(self._new(a, client))).to_map()

    async def _amend(self, a: Mapping[str, Any], client: str) -> object:
        desk = self._open()
        target = desk.show(_text(a, "target"), client)
        ask = Ask(
            client,
            _text(a, "client_order_id"),
            Action.AMEND,
            target.symbol,
            target.side,
            target.qty,
            _whole(a, "price"),
            _text(a, "type", ""),
            target.exchange,
            stop_price=_whole(a, "stop_price"),
            target=target.id,
            priority=_priority(a),
            ttl_s=_ttl(a),
            allow_closed=_flag(a, "allow_closed"),
        )
        return (await desk.place(ask)).to_map()

    async def _cancel(self, a: Mapping[str, Any], client: str) -> object:
        desk = self._open()
        target = desk.show(_text(a, "target"), client)
        qty = _whole(a, "qty") or 0
        name = _text(a, "client_order_id", "") or desk.cancel_id(client, target, qty)
        ask = Ask(
            client,
            name,
            Action.CANCEL,
            target.symbol,
            target.side,
            qty,
            None,
            target.type,
            target.exchange,
            target=target.id,
            ttl_s=_ttl(a),
        )
        return (await desk.place(ask)).to_map()

    async def _show(self, a: Mapping[str, Any], client: str) -> object:
        desk = self._open()
        name, day = _text(a, "client_order_id"), _day(a)
        who = _text(a, "client", client)
        order = desk.show(name, who, day)
        if _flag(a, "fresh"):
            await desk.refresh()
            order = desk.show(name, who, day)
        return order.to_map()

    async def _list(self, a: Mapping[str, Any], client: str) -> object:  # noqa: ARG002
        desk = self._open()
        if _flag(a, "fresh"):
            await desk.refresh()
        return {"orders": [order.to_map() for order in desk.of_day(_day(a))], **desk.status()}

    async def _resolve(self, a: Mapping[str, Any], client: str) -> object:
        number = _text(a, "order_no", "")
        if bool(number) is _flag(a, "not_executed"):
            raise UsageError("either order_no or not_executed settles an order")
        order = await self._open().resolve(
            _text(a, "client_order_id"),
            _text(a, "client", client),
            number=number or None,
            reason=_text(a, "reason", "") if number else _text(a, "reason"),
            day=_day(a),
        )
        return order.to_map()

    async def _halt(self, a: Mapping[str, Any], client: str) -> object:
        desk = self._open()
        reason = _text(a, "reason", f"halted by {client}")
        found, swept = await desk.halt(reason, cancel_open=_flag(a, "cancel_open"))
        return {
            "halted": found,
            "cancelled": [order.to_map() for order in swept.cancellations],
            "not_cancelled": [
                {"client": order.client, "id": order.id, "reason": exc.reason, "text": str(exc)}
                | parts(exc)
                for order, exc in swept.refused
            ],
        }

    async def _resume(self, a: Mapping[str, Any], client: str) -> object:
        await self._open().resume(_text(a, "reason"), client)
        return {"halted": None}

    def _open(self) -> OrderDesk:
        if self._desk is None:
            raise OrderRefused(
                ErrorCode.ORDERS_DISABLED, "disabled", Phrase("orders are off (orders.enabled)")
            )
        return self._desk

    def _new(self, a: Mapping[str, Any], client: str) -> Ask:
        side = _text(a, "side")
        if side not in tuple(Side):
            raise UsageError(f"side is one of {', '.join(Side)}")
        qty = _whole(a, "qty")
        if qty is None:
            raise UsageError("qty is needed")
        price = _whole(a, "price")
        return Ask(
            client,
            _text(a, "client_order_id"),
            Action.NEW,
            _text(a, "symbol"),
            Side(side),
            qty,
            price,
            _text(a, "type", "market" if price is None else "limit"),
            _text(a, "exchange", "KRX"),
            stop_price=_whole(a, "stop_price"),
            priority=_priority(a),
            ttl_s=_ttl(a),
            allow_closed=_flag(a, "allow_closed"),
        )

    # The account.

    async def _balance(self, a: Mapping[str, Any], client: str) -> object:  # noqa: ARG002
        return await self._owned().balance()

    async def _orderable(self, a: Mapping[str, Any], client: str) -> object:  # noqa: ARG002
        price = _whole(a, "price")
        name = _text(a, "type", "market" if price is None else "limit")
        order_type = self._rules.types.get(name)
        if order_type is None:
            raise UsageError(f"type is one of {', '.join(self._rules.types)}")
        return await self._owned().orderable(_symbol(a), order_type, price)

    async def _book(self, a: Mapping[str, Any], client: str) -> object:  # noqa: ARG002
        exchange = _text(a, "exchange", "KRX")
        if exchange not in self._rules.exchanges:
            raise UsageError(f"exchange is one of {', '.join(self._rules.exchanges)}")
        return await self._owned().book(_symbol(a), exchange)

    def _owned(self) -> AccountReader:
        if self._account is None:
            text = Phrase("no account is configured (credentials.account)")
            raise OrderRefused(ErrorCode.NOT_ENTITLED, "no_account", text)
        return self._account


# What the arguments may hold; every other key is ignored.


def _text(a: Mapping[str, Any], name: str, otherwise: str | None = None) -> str:
    value = a.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_REASON:
        raise UsageError(f"{name} is needed: a text of at most {_MAX_REASON} characters")
    return value


def _whole(a: Mapping[str, Any], name: str) -> int | None:
    value = a.get(name)
    if value is not None and type(value) is not int:
        raise UsageError(f"{name} is a whole number")
    return value


def _flag(a: Mapping[str, Any], name: str) -> bool:
    value = a.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is true or false")
    return value


def _priority(a: Mapping[str, Any]) -> int:
    value = _whole(a, "priority") or 0
    if not 0 <= value <= 9:
        raise UsageError("priority is 0 to 9")
    return value


def _ttl(a: Mapping[str, Any]) -> float | None:
    value = a.get("ttl_s")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TTL_S:
        raise UsageError(Phrase("ttl_s is more than 0 and at most {most:g}", most=_MAX_TTL_S))
    return float(value)


def _day(a: Mapping[str, Any]) -> str | None:
    value = a.get("day")
    if value is None:
        return None
    if not isinstance(value, str) or not _DAY.fullmatch(value):
        raise UsageError(Phrase("day is YYYYMMDD"))
    return value


def _symbol(a: Mapping[str, Any]) -> str:
    symbol = _text(a, "symbol")
    if not SYMBOL.fullmatch(symbol):
        text = Phrase("{symbol} is no symbol", symbol=symbol)
        raise OrderRefused(ErrorCode.BAD_REQUEST, "symbol", text)
    return symbol
