"""What is wrong with an order before KIS is asked: its shape, its price, the caps, the market."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.errors import OrderRefused
from kisfeed.kfp.messages import ErrorCode
from kisfeed.kis import symbols

if TYPE_CHECKING:
    import datetime as dt

    from kisfeed.config import Orders
    from kisfeed.kfp.orders import Action, Side
    from kisfeed.kis.orders import Facts, OrderRules, OrderType

SYMBOL: Final = re.compile(r"[0-9A-Z]{6}|Q[0-9]{6}")
MAX_QTY: Final = 10**9  # ORD_QTY has ten digits
MAX_PRICE: Final = 10**9

_CODES: Final = {
    "symbol": ErrorCode.BAD_REQUEST,
    "unknown_symbol": ErrorCode.UNKNOWN_SYMBOL,
    "qty": ErrorCode.BAD_REQUEST,
    "type": ErrorCode.BAD_REQUEST,
    "exchange": ErrorCode.BAD_REQUEST,
    "price": ErrorCode.BAD_REQUEST,
    "tick": ErrorCode.BAD_REQUEST,
    "preview": ErrorCode.BAD_REQUEST,
    "id": ErrorCode.BAD_REQUEST,
    "id_used": ErrorCode.BAD_REQUEST,
    "target": ErrorCode.BAD_REQUEST,
    "symbol_not_allowed": ErrorCode.NOT_ENTITLED,
    "qty_cap": ErrorCode.OVER_LIMIT,
    "value_cap": ErrorCode.OVER_LIMIT,
    "day_orders_cap": ErrorCode.OVER_LIMIT,
    "day_value_cap": ErrorCode.OVER_LIMIT,
    "queue_full": ErrorCode.RATE_LIMITED,
    "expired": ErrorCode.RATE_LIMITED,
    "halted": ErrorCode.HALTED,
    "not_sent": ErrorCode.UPSTREAM_DOWN,
    "unknown": ErrorCode.UNKNOWN_OUTCOME,
    "closed": ErrorCode.ORDER_REJECTED,
    "stopped": ErrorCode.ORDER_REJECTED,
    "frozen": ErrorCode.ORDER_REJECTED,
    "kis": ErrorCode.ORDER_REJECTED,
    "journal": ErrorCode.INTERNAL,
}
"""Reason -> KFP/1 code."""


def refusal(reason: str, text: str, order: dict[str, object] | None = None) -> OrderRefused:
    """The error that says why an order is not placed, or how it went wrong."""
    return OrderRefused(_CODES[reason], reason, text, order=order)


@attrs.frozen
class Ask:
    """What a caller asks for.

    Attributes:
        client: the program's name, without its version.
        id: its own name for this order; the same id on the same day is the same order.
        target: id of the order to amend or cancel.
        priority: 0-9 in the queue.
        ttl_s: expires if not sent within this; None takes the configured one.
        allow_closed: place it although its market is closed.
    """

    client: str
    id: str
    action: Action
    symbol: str
    side: Side
    qty: int
    price: int | None
    type: str
    exchange: str
    stop_price: int | None = None
    target: str = ""
    priority: int = 0
    ttl_s: float | None = None
    allow_closed: bool = False


@attrs.frozen
class Situation:
    """What an order is checked against.

    Attributes:
        date: in Seoul.
        paper: the paper host, which takes fewer kinds.
        facts: of the symbol; None where they could not be had.
        open: the exchange's market does something now.
        halted: somebody has halted all ordering.
    """

    date: dt.date
    paper: bool
    facts: Facts | None
    open: bool
    halted: bool = False


@attrs.frozen
class Checked:
    """A passed check: what the order may cost at most, in won, and what a person should know."""

    value: int
    warnings: tuple[str, ...]


def check(ask: Ask, rules: OrderRules, caps: Orders, now: Situation) -> Checked:
    """Check a new order or an amendment (with the remaining quantity in *ask*).

    Raises:
        OrderRefused: names the first thing that is wrong, and what would be right where that
            can be told.
    """
    _check_shape(ask)
    if caps.symbols and ask.symbol not in caps.symbols:
        raise refusal("symbol_not_allowed", f"{ask.symbol} is not in orders.symbols")
    order_type = _check_type(ask, rules, now)
    _check_price(ask, order_type, rules, now)
    if ask.qty > caps.max_qty:
        raise refusal("qty_cap", f"{ask.qty} shares; orders.max_qty is {caps.max_qty}")
    warnings = []
    if now.facts is None:
        warnings.append("no quote: price step and daily limits are not checked")
    unit = ask.price
    if unit is None:
        if now.facts is None:
            raise refusal("value_cap", "an order without a price cannot be valued: no quote")
        unit = now.facts.upper or now.facts.last
    value = unit * ask.qty
    if value > caps.max_value:
        raise refusal("value_cap", f"{value:,} won; orders.max_value is {caps.max_value:,}")
    if not now.open:
        warnings.append(f"{ask.exchange} is closed")
    if now.facts is not None and now.facts.stopped:
        raise refusal("stopped", f"trading in {ask.symbol} is stopped")
    return Checked(value, tuple(warnings))


def _check_shape(ask: Ask) -> None:
    complaint = symbols.complaint(ask.symbol, SYMBOL)
    if complaint is not None:
        hint = f"; did you mean {complaint.suggestion}?" if complaint.suggestion else ""
        raise refusal("symbol", f"{ask.symbol!r} is no symbol ({complaint.fault}){hint}")
    if not 1 <= ask.qty <= MAX_QTY:
        raise refusal("qty", f"{ask.qty} is no quantity: at least 1")
    if ask.price is not None and not 1 <= ask.price <= MAX_PRICE:
        raise refusal("price", f"{ask.price} is no price")


def _check_type(ask: Ask, rules: OrderRules, now: Situation) -> OrderType:
    exchange = rules.exchanges.get(ask.exchange)
    if exchange is None:
        raise refusal("exchange", f"{ask.exchange!r} is none of {', '.join(rules.exchanges)}")
    order_type = rules.types.get(ask.type)
    if order_type is None:
        raise refusal("type", f"{ask.type!r} is none of {', '.join(rules.types)}")
    if now.paper and not exchange.paper:
        raise refusal("exchange", f"the paper host does not take orders for {ask.exchange}")
    if now.paper and not order_type.paper:
        raise refusal("type", f"the paper host does not take {ask.type} orders")
    if ask.exchange not in order_type.exchanges:
        raise refusal("type", f"{ask.exchange} does not take {ask.type} orders")
    if not order_type.first <= now.date <= order_type.last:
        raise refusal("type", f"{ask.type} orders are not taken on {now.date}")
    return order_type


def _check_price(ask: Ask, order_type: OrderType, rules: OrderRules, now: Situation) -> None:
    if order_type.priced and ask.price is None:
        raise refusal("price", f"a {ask.type} order has a price")
    if not order_type.priced and ask.price is not None:
        raise refusal("price", f"a {ask.type} order has no price")
    if order_type.stop != (ask.stop_price is not None):
        raise refusal("price", "a stop price belongs to stop-limit orders, and only to them")
    for price in (ask.price, ask.stop_price):
        if price is not None:
            _check_step(price, rules, now)
    facts = now.facts
    if facts is None or ask.price is None or not facts.upper:
        return
    if not facts.lower <= ask.price <= facts.upper:
        raise refusal(
            "price", f"{ask.price:,} is outside the day's limits {facts.lower:,} to {facts.upper:,}"
        )


def _check_step(price: int, rules: OrderRules, now: Situation) -> None:
    kinds: tuple[str, ...] = ()
    if now.facts is not None:
        kinds = rules.kinds(now.date, now.facts.last, now.facts.step)
    steps = rules.steps(now.date, price, kinds)
    if any(price % step == 0 for step in steps):
        return
    step = min(steps)
    below = price // step * step
    raise refusal(
        "tick", f"{price:,} is off the price step of {step}: {below:,} or {below + step:,}"
    )
