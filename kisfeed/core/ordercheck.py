"""What is wrong with an order before KIS is asked: its shape, its price, the caps, the market."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.errors import OrderRefused
from kisfeed.kfp.messages import ErrorCode
from kisfeed.kis import symbols
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable

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
        number: of a cancellation, which of the order's numbers it names; the one that is open
            when it is sent unless told.
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
    number: str = ""
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
        raise refusal(
            "symbol_not_allowed", Phrase("{symbol} is not in orders.symbols", symbol=ask.symbol)
        )
    order_type = _check_type(ask, rules, now)
    _check_price(ask, order_type, rules, now)
    if ask.qty > caps.max_qty:
        text = Phrase("{qty:,} shares; orders.max_qty is {most:,}", qty=ask.qty, most=caps.max_qty)
        raise refusal("qty_cap", text)
    warnings = []
    if now.facts is None:
        warnings.append(Phrase("no quote: price step and daily limits are not checked"))
    unit = ask.price
    if unit is None:
        if now.facts is None:
            text = Phrase("an order without a price cannot be valued: no quote")
            raise refusal("value_cap", text)
        if ask.side == "buy" and not now.facts.upper:
            text = Phrase("a buy without a price cannot be valued: no upper limit of the day")
            raise refusal("value_cap", text)
        unit = now.facts.upper or now.facts.last
    value = unit * ask.qty
    if value > caps.max_value:
        text = Phrase(
            "{value:,} won; orders.max_value is {most:,}", value=value, most=caps.max_value
        )
        raise refusal("value_cap", text)
    if not now.open:
        warnings.append(Phrase("the market is closed"))
    if now.facts is not None and now.facts.stopped:
        raise refusal("stopped", Phrase("trading in {symbol} is stopped", symbol=ask.symbol))
    return Checked(value, tuple(warnings))


def _check_shape(ask: Ask) -> None:
    complaint = symbols.complaint(ask.symbol, SYMBOL)
    if complaint is not None:
        if complaint.suggestion:
            text = Phrase(
                "{symbol} is no symbol; did you mean {meant}?",
                symbol=ask.symbol,
                meant=complaint.suggestion,
            )
        else:
            text = Phrase("{symbol} is no symbol", symbol=ask.symbol)
        raise refusal("symbol", text)
    if not 1 <= ask.qty <= MAX_QTY:
        raise refusal("qty", Phrase("{qty} is no quantity: at least 1", qty=ask.qty))
    for price in (ask.price, ask.stop_price):
        if price is not None and not 1 <= price <= MAX_PRICE:
            raise refusal("price", Phrase("{price} is no price", price=price))


def _check_type(ask: Ask, rules: OrderRules, now: Situation) -> OrderType:
    exchange = rules.exchanges.get(ask.exchange)
    if exchange is None:
        raise refusal("exchange", _none_of(ask.exchange, rules.exchanges))
    order_type = rules.types.get(ask.type)
    if order_type is None:
        raise refusal("type", _none_of(ask.type, rules.types))
    if now.paper and not exchange.paper:
        text = Phrase("the paper host does not take orders for {exchange}", exchange=ask.exchange)
        raise refusal("exchange", text)
    if now.paper and not order_type.paper:
        text = Phrase("the paper host does not take {type} orders", type=ask.type)
        raise refusal("type", text)
    if ask.exchange not in order_type.exchanges:
        text = Phrase(
            "{exchange} does not take {type} orders", exchange=ask.exchange, type=ask.type
        )
        raise refusal("type", text)
    if not order_type.first <= now.date <= order_type.last:
        text = Phrase("{type} orders are not taken on {date}", type=ask.type, date=str(now.date))
        raise refusal("type", text)
    return order_type


def _check_price(ask: Ask, order_type: OrderType, rules: OrderRules, now: Situation) -> None:
    if order_type.priced and ask.price is None:
        raise refusal("price", Phrase("a {type} order has a price", type=ask.type))
    if not order_type.priced and ask.price is not None:
        raise refusal("price", Phrase("a {type} order has no price", type=ask.type))
    if order_type.stop != (ask.stop_price is not None):
        text = Phrase("a stop price belongs to stop-limit orders, and only to them")
        raise refusal("price", text)
    for price in (ask.price, ask.stop_price):
        if price is not None:
            _check_step(price, rules, now)
    facts = now.facts
    if facts is None or ask.price is None or not facts.upper:
        return
    if not facts.lower <= ask.price <= facts.upper:
        text = Phrase(
            "{price:,} is outside the day's limits {lower:,} to {upper:,}",
            price=ask.price,
            lower=facts.lower,
            upper=facts.upper,
        )
        raise refusal("price", text)


def _check_step(price: int, rules: OrderRules, now: Situation) -> None:
    kinds: tuple[str, ...] = ()
    if now.facts is not None:
        kinds = rules.kinds(now.date, now.facts.last, now.facts.step)
    steps = rules.steps(now.date, price, kinds)
    if any(price % step == 0 for step in steps):
        return
    step = min(steps)
    below = price // step * step
    text = Phrase(
        "{price:,} is off the price step of {step:,}: {below:,} or {above:,}",
        price=price,
        step=step,
        below=below,
        above=below + step,
    )
    raise refusal("tick", text)


def _none_of(given: str, known: Iterable[str]) -> Phrase:
    return Phrase("{given} is none of {known}", given=given, known=", ".join(known))
