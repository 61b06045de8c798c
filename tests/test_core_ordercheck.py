"""What is wrong with one order by itself: its shape, kind, price, size, and the market."""

from __future__ import annotations

import datetime as dt
from typing import Any

import attrs
import pytest

from kisfeed import schemas
from kisfeed.config import Orders
from kisfeed.core.ordercheck import Ask, Checked, Situation, check, refusal
from kisfeed.errors import OrderRefused
from kisfeed.kfp.messages import ErrorCode
from kisfeed.kfp.orders import Action, Side
from kisfeed.kis.orders import Facts, OrderRules

RULES = OrderRules(schemas.load("kis/orders.json"))
CAPS = Orders(enabled=True, max_qty=10**10, max_value=10**20)
FACTS = Facts(last=70_000, upper=91_000, lower=49_000, step=100, stopped=False)
LIMIT = Ask("bot", "a", Action.NEW, "005930", Side.BUY, 10, 70_000, "limit", "KRX")
MARKET = attrs.evolve(LIMIT, type="market", price=None)
STOP = attrs.evolve(LIMIT, type="stop-limit", stop_price=70_000)


def situation(**changes: Any) -> Situation:
    whole = Situation(dt.date(2026, 11, 2), paper=False, facts=FACTS, open=True)
    return attrs.evolve(whole, **changes)


def checked(ask: Ask, now: Situation | None = None, caps: Orders = CAPS, **changes: Any) -> Checked:
    return check(attrs.evolve(ask, **changes), RULES, caps, now or situation())


def reason(ask: Ask, now: Situation | None = None, caps: Orders = CAPS, **changes: Any) -> str:
    with pytest.raises(OrderRefused) as error:
        checked(ask, now, caps, **changes)
    return error.value.reason


def test_an_order_that_is_right_costs_price_times_shares_and_needs_no_word() -> None:
    assert checked(LIMIT) == Checked(700_000, ())
    assert checked(STOP) == Checked(700_000, ())


def test_what_fits_the_digits_of_kis_fits() -> None:
    blind = situation(facts=None)
    assert checked(LIMIT, qty=1).value == 70_000
    assert checked(LIMIT, qty=10**9).value == 70_000 * 10**9
    assert reason(LIMIT, qty=10**9 + 1) == "qty"
    assert checked(LIMIT, blind, price=10**9, qty=1).value == 10**9
    assert reason(LIMIT, blind, price=10**9 + 1000) == "price"
    assert checked(LIMIT, blind, price=1, qty=1).value == 1
    for nothing in (0, -1000):
        assert reason(LIMIT, blind, price=nothing) == "price"
        assert reason(STOP, blind, stop_price=nothing) == "price"


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("5930", "5930 is no symbol; did you mean 005930?"),
        ("A005930", "A005930 is no symbol; did you mean 005930?"),
        ("AAPL", "AAPL is no symbol"),
        ("", " is no symbol"),
    ],
)
def test_a_symbol_that_is_none_is_answered_with_what_may_be_meant(symbol: str, said: str) -> None:
    with pytest.raises(OrderRefused) as error:
        checked(LIMIT, symbol=symbol)
    assert error.value.reason == "symbol"
    assert str(error.value) == said


def test_an_etn_has_a_symbol_with_a_letter() -> None:
    assert checked(LIMIT, symbol="Q500001").value == 700_000


def test_only_listed_symbols_are_ordered_where_there_is_a_list() -> None:
    caps = attrs.evolve(CAPS, symbols=("000660", "005930"))
    assert checked(LIMIT, caps=caps).value == 700_000
    assert reason(LIMIT, caps=caps, symbol="035720") == "symbol_not_allowed"


def test_caps_are_the_most_that_goes() -> None:
    caps = attrs.evolve(CAPS, max_qty=10, max_value=700_000)
    assert checked(LIMIT, caps=caps).value == 700_000
    assert reason(LIMIT, caps=caps, qty=11, price=100) == "price"
    assert reason(LIMIT, caps=caps, qty=11, price=49_000) == "qty_cap"
    assert reason(LIMIT, caps=caps, price=70_100) == "value_cap"


@pytest.mark.parametrize(
    ("kind", "exchange", "first", "last"),
    [("single-price", "KRX", None, "2026-09-13"), ("after", "KRX", "2026-09-14", None)],
)
def test_a_kind_is_taken_from_its_first_day_to_its_last(
    kind: str, exchange: str, first: str | None, last: str | None
) -> None:
    a_day = dt.timedelta(days=1)
    if first is not None:
        day = dt.date.fromisoformat(first)
        checked(LIMIT, situation(date=day), type=kind, exchange=exchange)
        assert reason(LIMIT, situation(date=day - a_day), type=kind, exchange=exchange) == "type"
    if last is not None:
        day = dt.date.fromisoformat(last)
        checked(LIMIT, situation(date=day), type=kind, exchange=exchange)
        assert reason(LIMIT, situation(date=day + a_day), type=kind, exchange=exchange) == "type"


def test_unknown_kinds_and_exchanges_are_answered_with_the_known_ones() -> None:
    with pytest.raises(OrderRefused, match="NYSE is none of KRX, NXT, SOR"):
        checked(LIMIT, exchange="NYSE")
    with pytest.raises(OrderRefused, match="guess is none of limit, market"):
        checked(LIMIT, type="guess")


def test_paper_takes_limit_and_market_orders_on_krx() -> None:
    paper = situation(paper=True)
    assert checked(LIMIT, paper).value == 700_000
    assert reason(LIMIT, paper, exchange="NXT") == "exchange"
    assert reason(LIMIT, paper, type="limit-ioc") == "type"
    assert checked(LIMIT, exchange="NXT", type="limit-ioc").value == 700_000


def test_a_kind_has_the_prices_it_has() -> None:
    assert reason(LIMIT, price=None) == "price"
    assert reason(MARKET, price=70_000) == "price"
    assert reason(LIMIT, stop_price=70_000) == "price"
    assert reason(STOP, stop_price=None) == "price"
    assert reason(STOP, stop_price=70_050) == "tick"
    assert reason(MARKET, exchange="NXT") == "type"


def test_the_days_limits_themselves_are_prices() -> None:
    for price in (49_000, 91_000):
        assert checked(LIMIT, price=price).value == 10 * price
    for price in (48_950, 91_100):
        assert reason(LIMIT, price=price) == "price"
    unlimited = situation(facts=attrs.evolve(FACTS, upper=0, lower=0))
    assert checked(LIMIT, unlimited, price=1_000).value == 10_000


def test_the_step_is_that_of_the_kind_that_a_quote_tells() -> None:
    with pytest.raises(OrderRefused) as error:
        checked(LIMIT, price=70_030)
    said = "70,030 is off the price step of 100: 70,000 or 70,100"
    assert (error.value.reason, str(error.value)) == ("tick", said)
    etf = situation(facts=attrs.evolve(FACTS, step=5))
    assert checked(LIMIT, etf, price=70_005).value == 700_050
    with pytest.raises(OrderRefused, match="step of 5: 70,005 or 70,010"):
        checked(LIMIT, etf, price=70_007)
    blind = situation(facts=None)
    with pytest.raises(OrderRefused, match="step of 5: 70,005 or 70,010"):
        checked(LIMIT, blind, price=70_007)


def test_an_order_without_a_price_is_valued_at_the_most_it_can_cost() -> None:
    assert checked(MARKET).value == 910_000
    unlimited = situation(facts=attrs.evolve(FACTS, upper=0, lower=0))
    assert reason(MARKET, unlimited) == "value_cap"
    assert checked(MARKET, unlimited, side=Side.SELL).value == 700_000
    assert reason(MARKET, situation(facts=None)) == "value_cap"


def test_a_person_is_told_of_a_missing_quote_and_a_closed_market() -> None:
    blind = "no quote: price step and daily limits are not checked"
    closed = "the market is closed"
    assert checked(LIMIT, situation(facts=None, open=False)).warnings == (blind, closed)
    assert checked(LIMIT, situation(facts=None)).warnings == (blind,)
    assert checked(LIMIT, situation(open=False)).warnings == (closed,)


def test_trading_that_is_stopped_stops_orders() -> None:
    assert reason(LIMIT, situation(facts=attrs.evolve(FACTS, stopped=True))) == "stopped"


def test_a_refusal_carries_the_code_of_its_reason_and_the_order_it_is_about() -> None:
    error = refusal("frozen", "x", {"id": "a"})
    assert (error.code, error.reason) == (ErrorCode.ORDER_REJECTED, "frozen")
    assert error.detail == {"reason": "frozen", "order": {"id": "a"}}
    assert refusal("unknown", "x").detail == {"reason": "unknown"}
