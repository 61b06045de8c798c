"""The order book against a model broker that loses answers and shows its list late."""

from __future__ import annotations

import datetime as dt
import random
from contextlib import suppress
from typing import Any

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import schemas
from kisfeed.config import Orders
from kisfeed.core.engine import Instant
from kisfeed.core.ordercheck import Ask, Situation
from kisfeed.core.orders import Book, Hint
from kisfeed.errors import OrderRefused
from kisfeed.kfp.orders import FINAL, Action, Evidence, Order, OrderState, Side
from kisfeed.kis.orders import DayRow, Facts, OrderRules, Receipt

RULES = OrderRules(schemas.load("kis/orders.json"))
KST = dt.timezone(dt.timedelta(hours=9))
START = dt.datetime(2026, 11, 2, 10, 0, tzinfo=KST)
DAY = "20261102"
FACTS = Facts(last=70_000, upper=91_000, lower=49_000, step=100, stopped=False)
OPEN = Situation(START.date(), paper=False, facts=FACTS, open=True)
CAPS = Orders(enabled=True, max_qty=100, max_value=10**8, max_day_value=10**12)
TTL_S = 2.0


def at(seconds: float) -> Instant:
    return Instant(seconds, int((START.timestamp() + seconds) * 1e9))


def ask(name: str = "a", **changes: Any) -> Ask:
    base = Ask("bot", name, Action.NEW, "005930", Side.BUY, 10, 70_000, "limit", "KRX")
    return attrs.evolve(base, **changes)


def book(caps: Orders = CAPS) -> Book:
    return Book(RULES, caps, TTL_S)


def placed(orders: Book, wanted: Ask, now: float, situation: Situation = OPEN) -> Order:
    orders.preview(wanted, at(now), situation)
    return orders.place(wanted, at(now), situation)


def sent(orders: Book, wanted: Ask, now: float) -> Order:
    placed(orders, wanted, now)
    order = orders.take(at(now), halted=False)
    assert order is not None
    return orders.intended(orders.intend(order, at(now)))


def accepted(orders: Book, wanted: Ask, now: float, number: str) -> Order:
    order = sent(orders, wanted, now)
    orders.accepted(order.key, Receipt(number, "06010", "100000"), at(now))
    return orders.orders[order.key]


def row(number: str, seconds: float = 0.0, **changes: Any) -> DayRow:
    time = f"{START + dt.timedelta(seconds=seconds):%H%M%S}"
    base = DayRow(
        day=DAY,
        branch="06010",
        number=number,
        original="",
        side="buy",
        symbol="005930",
        type_code="00",
        exchange="KRX",
        qty=10,
        price=70_000,
        time=time,
        filled=0,
        avg_price="",
        open=10,
        cancelled=0,
        rejected=0,
    )
    return attrs.evolve(base, **changes)


def reason(error: pytest.ExceptionInfo[OrderRefused]) -> str:
    return error.value.reason


class TestIds:
    def test_the_same_id_is_the_same_order(self) -> None:
        orders = book()
        first = accepted(orders, ask(), 0, "77")
        assert orders.place(ask(), at(1), OPEN) == first
        assert orders.preview(ask(), at(1), OPEN) == first
        assert orders.take(at(1), halted=False) is None

    @pytest.mark.parametrize(
        "other", [{"qty": 11}, {"price": 70_100}, {"side": Side.SELL}, {"symbol": "000660"}]
    )
    def test_the_same_id_with_another_body_is_refused(self, other: dict[str, Any]) -> None:
        orders = book()
        accepted(orders, ask(), 0, "77")
        for method in (orders.preview, orders.place):
            with pytest.raises(OrderRefused) as error:
                method(ask(**other), at(1), OPEN)
            assert reason(error) == "id_used"

    def test_ids_belong_to_a_program_and_a_day(self) -> None:
        orders = book()
        accepted(orders, ask(), 0, "77")
        assert placed(orders, ask(client="other"), 1).state is OrderState.QUEUED
        assert placed(orders, ask(), 86_400).state is OrderState.QUEUED
        assert len(orders.orders) == 3

    def test_what_was_not_previewed_is_not_placed(self) -> None:
        orders = book()
        orders.preview(ask(), at(0), OPEN)
        for wanted, now in ((ask("b"), 0.0), (ask(qty=9), 0.0), (ask(), CAPS.preview_s)):
            with pytest.raises(OrderRefused) as error:
                orders.place(wanted, at(now), OPEN)
            assert reason(error) == "preview"


class TestChecks:
    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"symbol": "5930"}, "symbol"),
            ({"symbol": "AAPL"}, "symbol"),
            ({"qty": 0}, "qty"),
            ({"qty": -1}, "qty"),
            ({"price": 70_050}, "tick"),
            ({"price": None}, "price"),
            ({"price": 0}, "price"),
            ({"price": 91_100}, "price"),
            ({"price": 48_920}, "tick"),
            ({"price": 48_950}, "price"),
            ({"type": "market"}, "price"),
            ({"type": "guess"}, "type"),
            ({"type": "stop-limit"}, "price"),
            ({"type": "stop-limit", "exchange": "NXT"}, "price"),
            ({"type": "single-price"}, "type"),
            ({"type": "conditional", "exchange": "SOR"}, "type"),
            ({"exchange": "NYSE"}, "exchange"),
            ({"qty": 101}, "qty_cap"),
            ({"id": ""}, "id"),
            ({"id": "x" * 65}, "id"),
        ],
    )
    def test_what_is_wrong_is_named(self, changes: dict[str, Any], why: str) -> None:
        with pytest.raises(OrderRefused) as error:
            book().preview(attrs.evolve(ask(), **changes), at(0), OPEN)
        assert reason(error) == why

    def test_the_refusal_names_what_would_be_right(self) -> None:
        with pytest.raises(OrderRefused, match="70,000 or 70,100"):
            book().preview(ask(price=70_050), at(0), OPEN)

    def test_an_etf_moves_by_its_own_steps(self) -> None:
        etf = attrs.evolve(OPEN, facts=attrs.evolve(FACTS, step=5))
        assert book().preview(ask(price=70_005), at(0), etf).price == 70_005

    def test_without_a_quote_any_kind_of_step_will_do_and_a_person_is_told(self) -> None:
        blind = attrs.evolve(OPEN, facts=None)
        assert "no quote" in book().preview(ask(price=70_005), at(0), blind).warnings[0]
        with pytest.raises(OrderRefused) as error:
            book().preview(ask(price=70_001), at(0), blind)
        assert reason(error) == "tick"

    def test_an_order_without_a_price_counts_at_the_upper_limit(self) -> None:
        market = ask(price=None, type="market")
        assert book().preview(market, at(0), OPEN).value == 910_000
        with pytest.raises(OrderRefused) as error:
            book(attrs.evolve(CAPS, max_value=900_000)).preview(market, at(0), OPEN)
        assert reason(error) == "value_cap"

    def test_paper_takes_fewer_kinds(self) -> None:
        paper = attrs.evolve(OPEN, paper=True)
        with pytest.raises(OrderRefused) as error:
            book().preview(ask(type="limit-ioc"), at(0), paper)
        assert reason(error) == "type"
        with pytest.raises(OrderRefused) as error:
            book().preview(ask(exchange="NXT"), at(0), paper)
        assert reason(error) == "exchange"

    def test_a_closed_market_is_a_warning_that_can_be_passed(self) -> None:
        closed, orders = attrs.evolve(OPEN, open=False), book()
        assert orders.preview(ask(), at(0), closed).warnings == ("the market is closed",)
        with pytest.raises(OrderRefused) as error:
            orders.place(ask(), at(0), closed)
        assert reason(error) == "closed"
        orders.place(ask(allow_closed=True), at(0), closed)

    def test_a_stopped_symbol_and_one_off_the_list_are_refused(self) -> None:
        stopped = attrs.evolve(OPEN, facts=attrs.evolve(FACTS, stopped=True))
        with pytest.raises(OrderRefused) as error:
            book().preview(ask(), at(0), stopped)
        assert reason(error) == "stopped"
        with pytest.raises(OrderRefused) as error:
            book(attrs.evolve(CAPS, symbols=("000660",))).preview(ask(), at(0), OPEN)
        assert reason(error) == "symbol_not_allowed"

    def test_the_days_caps_count_what_may_have_been_done(self) -> None:
        orders = book(attrs.evolve(CAPS, max_day_orders=2))
        accepted(orders, ask("a"), 0, "1")
        placed(orders, ask("b", symbol="000660"), 0)
        with pytest.raises(OrderRefused) as error:
            orders.preview(ask("c"), at(0), OPEN)
        assert reason(error) == "day_orders_cap"
        orders.expire(at(TTL_S))
        orders.preview(ask("c"), at(TTL_S), OPEN)
        orders = book(attrs.evolve(CAPS, max_day_value=1_000_000))
        accepted(orders, ask("a"), 0, "1")
        with pytest.raises(OrderRefused) as error:
            orders.preview(ask("b"), at(0), OPEN)
        assert reason(error) == "day_value_cap"


class TestQueue:
    def test_cancellations_first_then_priority_then_turn(self) -> None:
        orders = book()
        accepted(orders, ask("old"), 0, "1")
        for name, priority in (("a", 0), ("b", 5), ("c", 5)):
            placed(orders, ask(name, priority=priority), 1)
        orders.place(cancel("old"), at(1), OPEN)
        ids = []
        while (order := orders.take(at(1), halted=False)) is not None:
            ids.append(order.id)
        assert ids == ["old.cancel", "b", "c", "a"]

    def test_an_order_expires_rather_than_go_out_late(self) -> None:
        orders = book()
        placed(orders, ask("a"), 0)
        placed(orders, ask("b", ttl_s=10.0), 0)
        assert orders.next_deadline() == TTL_S
        order = orders.take(at(TTL_S), halted=False)
        assert order is not None
        assert order.id == "b"
        assert orders.find("a", "bot").state is OrderState.EXPIRED
        assert orders.take_records() == []

    def test_it_is_bounded(self) -> None:
        orders = book(attrs.evolve(CAPS, queue=2))
        placed(orders, ask("a"), 0)
        placed(orders, ask("b"), 0)
        with pytest.raises(OrderRefused) as error:
            placed(orders, ask("c"), 0)
        assert reason(error) == "queue_full"

    def test_a_halt_stops_what_waits_but_no_cancellation(self) -> None:
        orders = book()
        accepted(orders, ask("old"), 0, "1")
        placed(orders, ask("a"), 1)
        orders.place(cancel("old"), at(1), attrs.evolve(OPEN, halted=True))
        order = orders.take(at(1), halted=True)
        assert order is not None
        assert order.action is Action.CANCEL
        assert orders.take(at(1), halted=True) is None
        assert orders.find("a", "bot").code == "halted"
        with pytest.raises(OrderRefused) as error:
            orders.preview(ask("b"), at(1), attrs.evolve(OPEN, halted=True))
        assert reason(error) == "halted"


def cancel(target: str, name: str = "", qty: int = 0) -> Ask:
    return ask(name or f"{target}.cancel", action=Action.CANCEL, target=target, qty=qty, price=None)


def amend(target: str, price: int, name: str) -> Ask:
    return ask(name, action=Action.AMEND, target=target, price=price, type="", qty=0)


class TestDoubt:
    def test_it_freezes_its_symbol_and_side(self) -> None:
        orders = book()
        order = sent(orders, ask("a"), 0)
        orders.doubt(order.key, "reset", at(1))
        for other in (ask("b"), ask("b", qty=1, price=69_000)):
            with pytest.raises(OrderRefused) as error:
                orders.preview(other, at(2), OPEN)
            assert reason(error) == "frozen"
        orders.preview(ask("b", side=Side.SELL), at(2), OPEN)
        orders.preview(ask("b", symbol="000660"), at(2), OPEN)

    def test_it_stops_what_waits_already(self) -> None:
        orders = book()
        placed(orders, ask("a"), 0)
        placed(orders, ask("b"), 0)
        order = orders.take(at(0), halted=False)
        assert order is not None
        orders.intended(orders.intend(order, at(0)))
        orders.doubt(order.key, "reset", at(1))
        assert orders.take(at(1), halted=False) is None
        assert orders.find("b", "bot").code == "frozen"

    def test_three_stop_all_buys_and_no_cancellation(self) -> None:
        orders = book()
        accepted(orders, ask("old", symbol="035420"), 0, "1")
        for name, symbol in (("a", "005930"), ("b", "000660"), ("c", "035720")):
            order = sent(orders, ask(name, symbol=symbol), 1)
            orders.doubt(order.key, "reset", at(1))
        with pytest.raises(OrderRefused) as error:
            orders.preview(ask("d", symbol="051910"), at(2), OPEN)
        assert reason(error) == "frozen"
        orders.preview(ask("d", symbol="051910", side=Side.SELL), at(2), OPEN)
        assert orders.place(cancel("old"), at(2), OPEN).state is OrderState.QUEUED

    def test_one_row_that_fits_is_it_but_not_before_the_list_has_caught_up(self) -> None:
        orders = book()
        order = sent(orders, ask(), 0)
        orders.doubt(order.key, "reset", at(1))
        rows = [row("5001", 0.4), row("5000", 0.0, qty=9), row("4999", 0.0, side="sell")]
        for now in (2, 8, 13.5):
            orders.rows(DAY, rows, at(now))
            assert orders.find("a", "bot").state is OrderState.UNKNOWN
            assert orders.find("a", "bot").candidates == ("5001",)
        orders.rows(DAY, rows, at(14.1))
        found = orders.find("a", "bot")
        assert (found.state, found.order_no) == (OrderState.ACCEPTED, "5001")
        assert found.evidence is Evidence.LIST

    def test_a_step_of_the_wall_clock_neither_keeps_it_in_doubt_nor_settles_it_early(self) -> None:
        for step in (-86_400, 86_400):
            orders = book()
            order = sent(orders, ask(), 0)
            orders.doubt(order.key, "reset", at(1))
            orders.rows(DAY, [row("5001", 0.4)], at(2))
            for now, state in ((8, OrderState.UNKNOWN), (14.1, OrderState.ACCEPTED)):
                stepped = Instant(now, at(now + step).wall_ns)
                orders.rows(DAY, [row("5001", 0.4)], stepped)
                assert orders.find("a", "bot").state is state

    def test_two_rows_are_a_persons(self) -> None:
        orders = book()
        order = sent(orders, ask(), 0)
        orders.doubt(order.key, "reset", at(1))
        orders.rows(DAY, [row("5001"), row("5002", 1)], at(5))
        assert orders.find("a", "bot").state is OrderState.HUMAN
        orders.rows(DAY, [row("5001"), row("5002", 1)], at(500))
        assert orders.find("a", "bot").state is OrderState.HUMAN
        with pytest.raises(OrderRefused):
            orders.preview(ask("b"), at(600), OPEN)
        found = orders.resolve(order.key, number="0000005002", reason="seen in HTS", at=at(700))
        assert (found.state, found.order_no) == (OrderState.ACCEPTED, "5002")
        orders.preview(ask("b"), at(701), OPEN)

    def test_no_row_is_no_proof_and_becomes_a_persons(self) -> None:
        orders = book()
        order = sent(orders, ask(), 0)
        orders.doubt(order.key, "reset", at(0))
        orders.rows(DAY, [], at(CAPS.human_after_s - 1))
        assert orders.find("a", "bot").state is OrderState.UNKNOWN
        orders.rows(DAY, [], at(CAPS.human_after_s))
        assert orders.find("a", "bot").state is OrderState.HUMAN
        found = orders.resolve(order.key, number=None, reason="not in HTS", at=at(500))
        assert found.state is OrderState.NOT_EXECUTED
        orders.preview(ask("b"), at(501), OPEN)

    @pytest.mark.parametrize(
        "other",
        [
            {"seconds": -10},
            {"seconds": 70},
            {"price": 70_100},
            {"symbol": "000660"},
            {"original": "4000"},
            {"type_code": "11"},
        ],
    )
    def test_a_row_that_does_not_fit_is_never_it(self, other: dict[str, Any]) -> None:
        orders = book()
        order = sent(orders, ask(), 0)
        orders.doubt(order.key, "reset", at(0))
        for now in (20.0, 40.0):
            orders.rows(DAY, [row("5001", **other)], at(now))
            found = orders.find("a", "bot")
            assert (found.state, found.candidates) == (OrderState.UNKNOWN, ())

    def test_a_row_seen_before_it_was_sent_or_another_orders_is_never_it(self) -> None:
        orders = book()
        orders.rows(DAY, [row("4000", 9)], at(9))
        accepted(orders, ask("first"), 9.5, "4001")
        order = sent(orders, ask("a"), 10)
        orders.doubt(order.key, "reset", at(10))
        orders.rows(DAY, [row("4000", 9), row("4001", 9.5)], at(30))
        assert orders.find("a", "bot").candidates == ()

    def test_a_notice_proves_nothing_but_holds_the_verdict_back(self) -> None:
        orders = book()
        order = sent(orders, ask(), 0)
        orders.doubt(order.key, "reset", at(1))
        assert orders.notice(Hint("6000", "", "005930", "buy", 10, ended=False), at(2)) is None
        for now in (2.0, 20.0, 40.0):
            orders.rows(DAY, [row("5001")], at(now))
            assert orders.find("a", "bot").state is OrderState.UNKNOWN
        orders.rows(DAY, [row("5001"), row("6000", 2, qty=3)], at(50))
        assert orders.find("a", "bot").order_no == "5001"

    def test_only_what_is_in_doubt_is_resolved_and_only_with_a_number_of_its_own(self) -> None:
        orders = book()
        first = accepted(orders, ask("first"), 0, "4001")
        with pytest.raises(OrderRefused, match="not in doubt"):
            orders.resolve(first.key, number=None, reason="x", at=at(1))
        order = sent(orders, ask("a"), 1)
        orders.doubt(order.key, "reset", at(1))
        orders.rows(DAY, [row("4000", 1, side="sell")], at(2))
        for number in ("4001", "4000", "abc"):
            with pytest.raises(OrderRefused):
                orders.resolve(order.key, number=number, reason="x", at=at(3))


class TestChanges:
    def test_an_amended_order_lives_under_its_new_number(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        order = orders.place(amend("a", 70_100, "a2"), at(1), OPEN)
        assert order.qty == 10
        taken = orders.take(at(1), halted=False)
        assert taken is not None
        changed = orders.intended(orders.intend(taken, at(1)))
        assert changed.original_no == "100"
        orders.accepted(changed.key, Receipt("101", "06010", "100001"), at(1))
        assert orders.find("a", "bot").numbers == ("100", "101")
        rows = [
            row("100", filled=4, avg_price="70000", open=0, cancelled=6),
            row("101", 1, original="100", price=70_100, qty=6, filled=2, open=4, avg_price="70100"),
        ]
        orders.rows(DAY, rows, at(9))
        found = orders.find("a", "bot")
        assert (found.filled_qty, found.open_qty, found.avg_price) == (6, 4, "70033.33")
        orders.place(cancel("a"), at(10), OPEN)
        taken = orders.take(at(10), halted=False)
        assert taken is not None
        assert Order.from_map(orders.intend(taken, at(10))["order"]).original_no == "101"

    def test_what_is_open_of_an_amended_order_is_not_known_until_the_list_shows_its_new_number(
        self,
    ) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        amended(orders, "a", 1, "101")
        gone = row("100", filled=3, avg_price="70000", open=0, cancelled=7)
        orders.rows(DAY, [gone], at(2))
        found = orders.find("a", "bot")
        assert (found.state, found.open_qty, found.filled_qty) == (OrderState.ACCEPTED, None, 3)
        orders.place(amend("a", 70_200, "a3"), at(3), OPEN)
        moved = row("101", 1, original="100", price=70_100, qty=7, open=7)
        orders.rows(DAY, [gone, moved], at(5))
        assert orders.find("a", "bot").open_qty == 7

    @pytest.mark.parametrize("doubt", [False, True])
    def test_what_may_have_been_amended_is_not_called_gone(self, *, doubt: bool) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        order = sent(orders, amend("a", 70_100, "a2"), 1)
        if doubt:
            orders.doubt(order.key, "reset", at(1))
        orders.rows(DAY, [row("100", filled=3, open=7)], at(2))
        assert orders.find("a", "bot").open_qty == 7, "as far as anybody knows"
        orders.rows(DAY, [row("100", filled=3, open=0, cancelled=7)], at(3))
        assert orders.find("a", "bot").open_qty is None
        orders.rows(DAY, [row("100", filled=10, open=0)], at(4))
        assert orders.find("a", "bot").open_qty == 0, "nothing was left to amend"

    @pytest.mark.parametrize("filled", [0, 3])
    def test_an_amendment_that_the_exchange_refused_leaves_the_order_open(
        self, filled: int
    ) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        amended(orders, "a", 1, "101")
        stays = row("100", filled=filled, open=10 - filled)
        bounced = row("101", 1, original="100", price=70_100, open=0, rejected=10)
        orders.rows(DAY, [bounced], at(2))
        assert orders.find("a", "bot").open_qty is None, "the list does not show it yet"
        orders.rows(DAY, [stays, bounced], at(5))
        found = orders.find("a", "bot")
        assert (found.state, found.open_qty) == (OrderState.ACCEPTED, 10 - filled)
        assert (found.rejected_qty, found.live_number) == (0, "100")
        assert cancelling(orders, "a", 6).original_no == "100"

    @pytest.mark.parametrize("change", [cancel("a", "b", qty=3), amend("a", 70_100, "b")])
    def test_a_change_that_the_exchange_refused_is_rejected(self, change: Ask) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        order = sent(orders, change, 1)
        orders.accepted(order.key, Receipt("101", "06010", "100001"), at(1))
        orders.rows(DAY, [row("100"), row("101", 1, original="100", open=10)], at(2))
        assert orders.find("b", "bot").state is OrderState.ACCEPTED
        orders.take_records()
        rows = [row("100"), row("101", 1, original="100", open=0, rejected=10)]
        for now in (3, 4):
            orders.rows(DAY, rows, at(now))
        found = orders.find("b", "bot")
        assert (found.state, found.evidence) == (OrderState.REJECTED, Evidence.LIST)
        assert (found.code, found.text) == ("exchange", "the exchange refused it")
        states = [
            (record["order"]["id"], record["order"]["state"]) for record in orders.take_records()
        ]
        assert states.count(("b", "rejected")) == 1

    def test_a_cancellation_that_the_exchange_refused_is_no_reason_not_to_cancel(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        orders.accepted(cancelling(orders, "a", 1).key, Receipt("101", "06010", "100001"), at(1))
        assert orders.cancel_id("bot", orders.find("a", "bot"), 0, at(2)) == "a.cancel"
        refused = row("101", 1, original="100", open=0, rejected=10)
        orders.rows(DAY, [row("100"), refused], at(2))
        assert orders.cancel_id("bot", orders.find("a", "bot"), 0, at(2)) == "a.cancel2"

    def test_after_an_amendment_of_some_shares_in_an_app_each_number_is_cancelled_once(
        self,
    ) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")

        def cancelled(now: float) -> str:
            name = orders.cancel_id("bot", orders.find("a", "bot"), 0, at(now))
            found = orders.orders.get(("bot", DAY, name))
            if found is not None:
                return f"{name} again"
            change = sent(orders, cancel("a", name), now)
            orders.accepted(change.key, Receipt(f"9{now}", "06010", "100010"), at(now))
            return change.original_no

        # The list has the number it went on under, but not yet what became of the one before.
        some = row("300", 5, original="100", price=71_000, qty=4, open=4)
        orders.rows(DAY, [row("100"), some], at(9))
        assert [cancelled(10), cancelled(11), cancelled(12)] == ["300", "100", "a.cancel again"]

    def test_a_number_that_the_list_is_late_with_is_the_only_one_to_cancel(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        orders.rows(DAY, [row("100")], at(1))
        change = sent(orders, amend("a", 71_000, "a2"), 2)
        orders.accepted(change.key, Receipt("101", "06010", "100002"), at(2))
        orders.rows(DAY, [row("100")], at(3))
        target = orders.find("a", "bot")
        assert orders.number_to_cancel(target) == "101"
        assert orders.number_to_cancel(target, {"101"}) == ""
        assert cancelling(orders, "a", 4).original_no == "101"

    def test_each_number_is_to_cancel_while_the_list_is_late_with_one_of_them(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        some = row("300", 5, original="100", price=71_000, qty=4, open=4)
        orders.rows(DAY, [row("100", open=6), some], at(9))
        change = sent(orders, amend("a", 72_000, "a2"), 10)
        orders.accepted(change.key, Receipt("301", "06010", "100010"), at(10))
        target, tried = orders.find("a", "bot"), set[str]()
        while number := orders.number_to_cancel(target, tried):
            tried.add(number)
        assert tried == {"301", "100"}

    def test_who_names_a_number_does_not_wait_for_a_cancellation_that_names_none(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        target = orders.find("a", "bot")
        placed(orders, cancel("a"), 1)
        assert orders.cancel_id("bot", target, 0, at(1)) == "a.cancel"
        assert orders.cancel_id("bot", target, 0, at(1), "100") == "a.cancel2"

    def test_a_cancellation_is_the_same_one_again_once_nothing_is_open(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        orders.accepted(cancelling(orders, "a", 1).key, Receipt("101", "06010", "100001"), at(1))
        filled = row("300", 5, original="100", qty=4, open=0, filled=4, avg_price="70000")
        orders.rows(DAY, [row("100", open=0, cancelled=10), filled], at(9))
        target = orders.find("a", "bot")
        assert (target.live_number, target.open_qty) == ("300", 0)
        assert orders.cancel_id("bot", target, 0, at(10)) == "a.cancel"

    def test_the_row_of_another_cancellation_does_not_settle_one_in_doubt(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        first = cancelling(orders, "a", 1)
        orders.accepted(first.key, Receipt("105", "06010", "100001"), at(1))
        doubted = sent(orders, cancel("a", "a.cancel2"), 2)
        orders.doubt(doubted.key, "reset", at(2))
        for now in (5, 40):
            orders.rows(DAY, [row("100"), row("105", 1, original="100", open=0)], at(now))
        assert orders.orders[doubted.key].state is OrderState.UNKNOWN

    def test_a_cancellation_in_doubt_is_settled_by_the_number_it_names(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        some = row("300", 5, original="100", price=71_000, qty=4, open=4)
        orders.rows(DAY, [row("100", open=6, cancelled=4), some], at(9))
        doubted = cancelling(orders, "a", 10)
        orders.doubt(doubted.key, "reset", at(10))
        ended = attrs.evolve(some, open=0, cancelled=4)
        for now in (12, 40):
            orders.rows(DAY, [row("100", open=6, cancelled=4), ended], at(now))
        assert doubted.original_no == "300"
        assert orders.orders[doubted.key].state is OrderState.ACCEPTED
        assert orders.find("a", "bot").open_qty == 6

    def test_an_amendment_made_in_an_app_is_followed(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        moved = row("300", 5, original="100", price=71_000)
        orders.rows(DAY, [row("100", open=0), moved], at(9))
        assert orders.find("a", "bot").live_number == "300"

    @pytest.mark.parametrize("newest_first", [False, True])
    def test_two_amendments_made_in_an_app_between_two_readings_are_followed(
        self, *, newest_first: bool
    ) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        rows = [
            row("100", open=0, cancelled=10),
            row("300", 5, original="100", price=71_000, open=0, cancelled=10),
            row("301", 6, original="300", price=72_000, open=7, filled=3, avg_price="72000"),
        ]
        orders.rows(DAY, rows[::-1] if newest_first else rows, at(9))
        found = orders.find("a", "bot")
        assert found.numbers == ("100", "300", "301")
        assert (found.open_qty, found.filled_qty) == (7, 3)

    def test_what_the_exchange_refused_or_what_changes_itself_is_not_followed(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        refused = row("300", 5, original="100", open=0, rejected=10)
        further = row("301", 6, original="300")
        itself = row("302", 6, original="302")
        around = [row("303", 6, original="304"), row("304", 6, original="303")]
        orders.rows(DAY, [row("100", original="100"), refused, further, itself, *around], at(9))
        found = orders.find("a", "bot")
        assert (found.numbers, found.open_qty) == (("100",), 10)

    def test_shares_that_were_amended_in_an_app_and_those_that_were_not_are_both_open(
        self,
    ) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        rest = row("100", open=6, cancelled=4)
        some = row("300", 5, original="100", price=71_000, qty=4, open=4)
        orders.rows(DAY, [rest, some], at(9))
        found = orders.find("a", "bot")
        assert (found.open_qty, found.numbers) == (10, ("100", "300"))
        filled = attrs.evolve(some, open=0, filled=4, avg_price="71000")
        for now in (40, 41):
            orders.rows(DAY, [rest, filled], at(now))
            found = orders.find("a", "bot")
            assert (found.open_qty, found.filled_qty, found.live_number) == (6, 4, "100")
        assert cancelling(orders, "a", 42).original_no == "100"
        gone = attrs.evolve(rest, open=0, cancelled=10)
        more = row("302", 50, original="100", price=72_000, qty=6, open=6)
        orders.rows(DAY, [gone, filled, more], at(51))
        found = orders.find("a", "bot")
        assert (found.open_qty, found.live_number) == (6, "302")

    def test_what_is_open_beside_an_amendment_in_doubt_is_not_all_that_may_be(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        rest = row("100", open=6, cancelled=4)
        some = row("300", 5, original="100", price=71_000, qty=4, open=4)
        orders.rows(DAY, [rest, some], at(9))
        changed = sent(orders, amend("a", 70_100, "a2"), 10)
        assert changed.original_no == "300"
        orders.doubt(changed.key, "reset", at(10))
        orders.rows(DAY, [rest, attrs.evolve(some, open=0, cancelled=4)], at(11))
        found = orders.find("a", "bot")
        assert (found.open_qty, found.live_number) == (None, "300")

    def test_what_the_list_still_shows_under_the_number_before_is_not_open_twice(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        amended(orders, "a", 1, "101")
        moved = row("101", 1, original="100", price=70_100)
        orders.rows(DAY, [row("100"), moved], at(2))
        assert orders.find("a", "bot").open_qty == 10
        orders.rows(DAY, [row("100"), attrs.evolve(moved, open=0, filled=10)], at(3))
        found = orders.find("a", "bot")
        assert (found.open_qty, found.live_number) == (0, "101")

    def test_an_amendment_in_doubt_is_found_by_what_it_changed(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        changed = sent(orders, amend("a", 70_100, "a2"), 1)
        orders.doubt(changed.key, "reset", at(1))
        rows = [row("100", open=0), row("101", 1, original="100", price=70_100)]
        for now in (2.0, 20.0):
            orders.rows(DAY, rows, at(now))
        assert orders.find("a2", "bot").order_no == "101"
        assert orders.find("a", "bot").live_number == "101"

    def test_an_amendment_that_is_settled_late_leaves_its_order_under_the_newest_number(
        self,
    ) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        changed = sent(orders, amend("a", 70_100, "a2"), 1)
        orders.doubt(changed.key, "reset", at(1))
        gone, ours = row("100", open=0), row("101", 1, original="100", price=70_100)
        orders.rows(DAY, [gone, ours], at(3))
        assert orders.find("a", "bot").live_number == "101"
        rows = [gone, attrs.evolve(ours, open=0), row("300", 6, original="101", price=71_000)]
        for now in (8, 20, 21):
            orders.rows(DAY, rows, at(now))
        assert orders.find("a2", "bot").order_no == "101"
        found = orders.find("a", "bot")
        assert (found.numbers, found.open_qty) == (("100", "101", "300"), 10)

    def test_a_cancellation_in_doubt_is_settled_by_the_order_it_was_for(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        changed = sent(orders, cancel("a"), 1)
        orders.doubt(changed.key, "reset", at(1))
        assert orders.doubtful() == []
        orders.rows(DAY, [row("100")], at(4))
        assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
        assert orders.cancel_id("bot", orders.find("a", "bot"), 0, at(4)) == "a.cancel2"
        for now, state in ((8, "unknown"), (19.9, "unknown"), (20, "accepted")):
            orders.rows(DAY, [row("100", open=0, cancelled=10)], at(now))
            assert orders.find("a.cancel", "bot").state == state
        assert orders.find("a.cancel", "bot").evidence is Evidence.LIST

    def test_what_the_exchange_refused_is_rejected(self) -> None:
        orders = book()
        accepted(orders, ask("a"), 0, "100")
        orders.rows(DAY, [row("100", open=0, rejected=10)], at(4))
        assert orders.find("a", "bot").state is OrderState.REJECTED
        assert orders.find("a", "bot").evidence is Evidence.LIST

    @pytest.mark.parametrize("state", ["expired", "refused", "queued"])
    def test_only_an_order_with_a_number_is_changed(self, state: str) -> None:
        orders = book()
        if state == "refused":
            order = sent(orders, ask("a"), 0)
            orders.refused(order.key, "APBK0919", "closed", at(0))
        else:
            placed(orders, ask("a"), 0)
        if state == "expired":
            orders.expire(at(9))
        for change in (cancel("a"), amend("a", 70_100, "a2"), cancel("nobody")):
            with pytest.raises(OrderRefused) as error:
                orders.place(change, at(9), OPEN)
            assert reason(error) == "target"


def test_notices_make_the_list_be_read_until_it_has_caught_up() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.rows(DAY, [row("100")], at(2))
    assert orders.next_read() == float("inf")
    key = orders.notice(Hint("100", "", "005930", "buy", 10, ended=False), at(5))
    assert key is not None
    assert orders.find("a", "bot").filled_qty == 0
    assert orders.next_read() == 6.0
    orders.rows(DAY, [row("100")], at(6.0))
    assert orders.next_read() == 8.0
    orders.rows(DAY, [row("100", filled=10, open=0, avg_price="70000")], at(8.0))
    assert orders.find("a", "bot").filled_qty == 10
    assert orders.next_read() == float("inf")


def amended(orders: Book, target: str, now: float, number: str) -> Order:
    """An amendment of *target* that KIS took under *number*."""
    order = sent(orders, amend(target, 70_100, f"{target}.{number}"), now)
    orders.accepted(order.key, Receipt(number, "06010", "100001"), at(now))
    return orders.orders[order.key]


def cancelling(orders: Book, target: str, now: float) -> Order:
    """A cancellation of *target* that is being sent."""
    return sent(orders, cancel(target), now)


@pytest.mark.parametrize(
    ("seconds", "fits"), [(6, False), (7, True), (10, True), (72, True), (73, False)]
)
def test_kis_clock_may_be_a_little_behind_and_its_list_says_when_it_took_it(
    seconds: int, *, fits: bool
) -> None:
    orders = book()
    order = sent(orders, ask(), 10)
    orders.doubt(order.key, "reset", at(10))
    orders.rows(DAY, [row("5001", seconds)], at(100))
    assert orders.find("a", "bot").candidates == (("5001",) if fits else ())


def test_a_cancellation_without_an_id_is_the_last_one_while_that_stands() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")

    def named(now: float) -> str:
        return orders.cancel_id("bot", orders.find("a", "bot"), 0, at(now))

    assert named(1) == "a.cancel"
    order = cancelling(orders, "a", 1)
    assert named(1) == "a.cancel"
    orders.accepted(order.key, Receipt("101", "06010", "100001"), at(2))
    assert [named(now) for now in (2, 11.9, 12)] == ["a.cancel", "a.cancel", "a.cancel2"]
    orders.rows(DAY, [row("100", open=1)], at(13))
    assert named(13) == "a.cancel2"
    orders.rows(DAY, [row("100", open=0, cancelled=10)], at(14))
    assert named(14) == "a.cancel"


def test_a_cancellation_without_an_id_is_no_other_order_nor_of_another_quantity() -> None:
    orders = book()
    target = accepted(orders, ask("a"), 0, "100")
    accepted(orders, ask("b", symbol="000660"), 0, "101")
    accepted(orders, ask("a.cancel2", symbol="000660"), 0, "102")
    accepted(orders, ask("a", client="other"), 0, "103")
    part = orders.place(cancel("a", qty=4), at(1), OPEN)
    assert orders.cancel_id("bot", target, 4, at(1)) == part.id == "a.cancel"
    assert orders.cancel_id("bot", target, 0, at(1)) == "a.cancel3"
    assert orders.cancel_id("bot", orders.find("a", "other"), 4, at(1)) == "a.cancel3"


@pytest.mark.parametrize("state", [OrderState.ACCEPTED, OrderState.UNKNOWN, OrderState.HUMAN])
def test_some_shares_cancelled_without_an_id_are_not_cancelled_again(state: OrderState) -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    order = sent(orders, cancel("a", qty=3), 1)
    if state is OrderState.ACCEPTED:
        orders.accepted(order.key, Receipt("101", "06010", "100001"), at(1))
    else:
        orders.doubt(order.key, "reset", at(1))
    now = CAPS.human_after_s + 1 if state is OrderState.HUMAN else 13
    orders.rows(DAY, [row("100", open=7)], at(now))
    assert orders.find("a.cancel", "bot").state is state
    assert orders.cancel_id("bot", orders.find("a", "bot"), 3, at(now)) == "a.cancel"


def test_some_shares_are_cancelled_again_when_they_provably_were_not() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    order = sent(orders, cancel("a", qty=3), 1)
    orders.doubt(order.key, "reset", at(1))
    orders.resolve(order.key, number=None, reason="not in HTS", at=at(2))
    assert orders.cancel_id("bot", orders.find("a", "bot"), 3, at(3)) == "a.cancel2"


def test_cancellations_without_an_id_of_orders_whose_long_ids_begin_alike_are_two() -> None:
    orders = book()
    names = [f"{'x' * 62}{n}" for n in (10, 11)]
    targets = [accepted(orders, ask(name), 0, f"10{n}") for n, name in enumerate(names)]
    found = []
    for name, target in zip(names, targets, strict=True):
        found.append(orders.cancel_id("bot", target, 0, at(1)))
        order = orders.place(cancel(name, found[-1]), at(1), OPEN)
        assert order.target_key == target.key
        assert orders.cancel_id("bot", target, 0, at(1)) == found[-1], "it is that one's"
    assert found == [f"{'x' * 57}.cancel", f"{'x' * 56}.cancel2"]


def test_a_change_is_of_the_order_that_its_name_meant_when_it_was_asked_for() -> None:
    orders = book()
    accepted(orders, ask("a", client="other"), 0, "100")
    orders.place(cancel("a"), at(1), OPEN)
    taken = orders.take(at(1), halted=False)
    assert taken is not None
    accepted(orders, ask("a", symbol="000660"), 1, "200")
    accepted(orders, ask("a", client="third", symbol="000660"), 1, "300")
    order = orders.intended(orders.intend(taken, at(1)))
    assert (order.original_no, orders.target(order).client) == ("100", "other")


def test_the_order_of_a_change_that_waits_at_midnight_is_not_forgotten() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    night = 14 * 3600  # from 10:00
    orders.place(cancel("a"), at(night - 1), OPEN)
    orders.take_changed()
    orders.forget(at(night))
    taken = orders.take(at(night), halted=False)
    assert taken is not None
    assert orders.intend(taken, at(night))["order"]["original_no"] == "100"
    orders.not_sent(taken.key, "expired", "late", at(night))
    orders.take_changed()
    orders.forget(at(night))
    assert orders.orders == {}


def test_a_journal_from_before_orders_knew_whose_they_change_is_replayed() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.accepted(cancelling(orders, "a", 1).key, Receipt("101", "06010", "100001"), at(1))
    records = orders.take_records()
    for record in records:
        del record["order"]["target_client"], record["order"]["target_day"]
    again = book()
    again.replay(records, at(2))
    assert again.find("a.cancel", "bot").state is OrderState.ACCEPTED
    target = again.find("a", "bot")
    assert again.cancel_id("bot", target, 0, at(2)) == "a.cancel2", "twice does no harm"


def test_a_cancellation_in_doubt_is_also_found_by_its_own_row() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    order = cancelling(orders, "a", 1)
    orders.doubt(order.key, "reset", at(1))
    rows = [row("100"), row("101", 1, original="100", open=0)]
    for now in (2, 20):
        orders.rows(DAY, rows, at(now))
    found = orders.find("a.cancel", "bot")
    assert (found.state, found.order_no, found.numbers) == (OrderState.ACCEPTED, "101", ())


def test_a_change_is_one_of_its_targets_symbol_whatever_its_caller_says() -> None:
    orders = book()
    accepted(orders, ask("a", symbol="000660", side=Side.SELL), 0, "100")
    order = orders.place(cancel("a"), at(1), OPEN)
    assert (order.symbol, order.side, order.exchange) == ("000660", Side.SELL, "KRX")


def test_an_id_that_two_programs_have_is_only_found_by_those() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    assert orders.find("a", "anybody").client == "bot", "nobody else has one"
    accepted(orders, ask("a", client="other"), 1, "101")
    assert orders.find("a", "bot").order_no == "100"
    assert orders.find("a", "other").order_no == "101"
    with pytest.raises(OrderRefused, match="bot, other") as error:
        orders.find("a", "anybody")
    assert reason(error) == "target"


def test_every_change_is_told_once_and_what_must_last_is_written() -> None:
    orders = book()
    placed(orders, ask(), 0)
    assert [o.state for o in orders.take_changed()] == [OrderState.QUEUED]
    taken = orders.take(at(0), halted=False)
    assert taken is not None
    order = orders.intended(orders.intend(taken, at(0)))
    assert [o.state for o in orders.take_changed()] == [OrderState.SENDING]
    assert orders.take_records() == [], "the shell wrote the intent itself"
    orders.accepted(order.key, Receipt("100", "06010", "100000"), at(0))
    assert [record["order"]["state"] for record in orders.take_records()] == ["accepted"]
    orders.take_changed()
    orders.rows(DAY, [row("100", filled=4, open=6, avg_price="70000")], at(2))
    assert [o.filled_qty for o in orders.take_changed()] == [4]
    assert orders.take_records() == [], "the list tells of fills again"
    moved = row("101", 3, original="100", qty=6, open=6)
    orders.rows(DAY, [row("100", filled=4, open=0, avg_price="70000"), moved], at(4))
    (record,) = orders.take_records()
    assert record["order"]["numbers"] == ["100", "101"]
    orders.rows(DAY, [row("100", filled=4, open=0, avg_price="70000"), moved], at(5))
    assert len(orders.take_changed()) == 1


@pytest.mark.parametrize(
    ("why", "state"), [("expired", OrderState.EXPIRED), ("no_route", OrderState.NOT_SENT)]
)
def test_what_never_left_says_whether_its_time_was_up(why: str, state: OrderState) -> None:
    orders = book()
    order = sent(orders, ask(), 0)
    assert orders.deadline(order) == TTL_S
    orders.not_sent(order.key, why, "it did not go out", at(1))
    assert (orders.find("a", "bot").state, orders.find("a", "bot").code) == (state, why)
    assert orders.next_deadline() == float("inf")
    assert orders._deadlines == {}


def test_the_list_is_read_soon_after_an_answer_and_rarely_for_a_person() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    assert orders.next_read() == 1.0
    orders.rows(DAY, [row("100")], at(1))
    assert orders.next_read() == float("inf")
    orders.accepted(cancelling(orders, "a", 10).key, Receipt("101", "06010", "100010"), at(10))
    assert orders.next_read() == 11.0
    orders.rows(DAY, [row("100", open=0, cancelled=10)], at(11))
    assert orders.next_read() == float("inf")

    order = sent(orders, ask("b"), 20)
    orders.doubt(order.key, "reset", at(20))
    reads = []
    while orders.find("b", "bot").state is not OrderState.HUMAN:
        reads.append(orders.next_read() - 20)
        orders.rows(DAY, [], at(20 + reads[-1]))
    assert reads[:4] == [1.0, 3.0, 6.0, 9.0]
    assert orders.next_read() - 20 == reads[-1] + 60.0
    assert str(orders.find("b", "bot").text) == "the day's list does not settle it"


def test_after_a_restart_only_what_is_in_doubt_makes_the_list_be_read_at_once() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    records = orders.take_records()
    again = book()
    again.replay(records, at(100))
    assert again.next_read() == float("inf")
    orders.doubt(sent(orders, ask("b"), 1).key, "reset", at(1))
    again = book()
    again.replay([*records, *orders.take_records()], at(100))
    assert again.next_read() == 100.0


def test_a_notice_at_the_moment_of_sending_may_already_be_of_the_order() -> None:
    orders = book()
    order = sent(orders, ask(), 5)
    orders.doubt(order.key, "reset", at(5))
    orders.notice(Hint("6000", "", "005930", "buy", 10, ended=False), at(5))
    for now in (6.0, 40.0):
        orders.rows(DAY, [row("5001", 5)], at(now))
    assert orders.find("a", "bot").state is OrderState.UNKNOWN


def test_of_a_past_day_nothing_is_kept_in_memory() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.notice(Hint("100", "", "005930", "buy", 3, ended=False), at(1))
    orders.rows(DAY, [row("100", filled=3, open=7, avg_price="70000")], at(2))
    orders.take_changed()
    orders.take_records()
    orders.forget(at(3))
    assert list(orders.orders)
    assert orders.row(DAY, "100") is not None
    orders.forget(at(86_400))
    assert orders.outlived
    assert [record["order"]["filled_qty"] for record in orders.take_records()] == [3]
    left = (orders.orders, orders._rows, orders._first_seen, orders._hints, orders._heard)
    assert not any(left)
    assert not orders._owners
    assert orders.next_read() == float("inf")
    assert list(orders._past), "the clock may be wrong"
    orders.forget(at(2 * 86_400))
    assert not orders._past


@pytest.mark.parametrize("ahead", [86_400, 400 * 86_400])
def test_a_clock_that_was_a_day_ahead_for_a_while_lets_no_id_go_out_twice(ahead: int) -> None:
    orders = book(attrs.evolve(CAPS, max_day_orders=1))
    accepted(orders, ask("a"), 0, "100")
    orders.rows(DAY, [row("100", open=0, filled=10, avg_price="70000")], at(1))
    orders.take_changed()
    orders.take_records()
    orders.forget(Instant(2, at(ahead).wall_ns))
    assert orders.orders == {}
    assert orders.known(ask("a"), Instant(3, at(ahead).wall_ns)) is None, "that day's is another"
    orders.take_records()
    for wanted, day_full in ((ask("a"), False), (ask("b"), True)):
        for method in (orders.preview, orders.place):
            if day_full:
                with pytest.raises(OrderRefused):
                    method(wanted, at(4), OPEN)
            else:
                assert method(wanted, at(4), OPEN).order_no == "100"
    assert orders.take(at(4), halted=False) is None
    owner = orders.owner(DAY, "100")
    assert owner is not None
    assert owner.filled_qty == 10
    again = book()
    again.replay(orders.take_records(), at(5))
    assert again.find("a", "bot") == owner, "it is in the journal again"


def test_what_is_open_is_found_again_when_the_clock_was_put_back() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    amended(orders, "a", 1, "101")
    orders.take_changed()
    orders.forget(Instant(2, at(86_400).wall_ns))
    orders.forget(at(3))
    assert orders.find("a", "bot").live_number == "101"
    owner = orders.owner(DAY, "101")
    assert owner is not None
    assert owner.id == "a"


def test_a_replay_of_any_prefix_doubts_what_was_about_to_be_sent() -> None:
    orders, records = book(), []
    for n, end in enumerate(("accepted", "refused", "doubt", "not_sent")):
        name = f"o{n}"
        placed(orders, ask(name, symbol=f"00000{n}"), 0)
        taken = orders.take(at(0), halted=False)
        assert taken is not None
        records.append(orders.intend(taken, at(0)))
        order = orders.intended(records[-1])
        if end == "accepted":
            orders.accepted(order.key, Receipt(f"10{n}", "1", "100000"), at(0))
        elif end == "refused":
            orders.refused(order.key, "X", "no", at(0))
        elif end == "doubt":
            orders.doubt(order.key, "reset", at(0))
        else:
            orders.not_sent(order.key, "not_sent", "no route", at(0))
        records += orders.take_records()
    again = book()
    for cut in range(len(records) + 1):
        again = book()
        again.replay(records[:cut], at(100))
        again.replay(records[:cut], at(100))
        last = {r["order"]["id"]: r["order"]["state"] for r in records[:cut]}
        for name, state in last.items():
            found = again.find(name, "bot").state
            assert found is (OrderState.UNKNOWN if state == "sending" else OrderState(state))
    assert {o.id for o in again.orders.values()} == {"o0", "o1", "o2", "o3"}


@attrs.define
class Executed:
    number: str
    owner: str  # the order's id; empty: a person's own
    row: DayRow
    taken: float
    lag: float


@attrs.define
class Broker:
    """KIS as the book may meet it: it executes what reaches it, and answers or does not."""

    rng: random.Random
    orders: list[Executed] = attrs.field(factory=list)

    def execute(self, order: Order, now: float, owner: str) -> Executed:
        number = str(5001 + len(self.orders))
        known = row(
            number,
            now,
            symbol=order.symbol,
            side=str(order.side),
            qty=order.qty,
            price=order.price or 0,
            open=order.qty,
            channel="OpenAPI" if owner else "MTS",
        )
        done = Executed(number, owner, known, now, 0.5 + 5.0 * self.rng.random())
        self.orders.append(done)
        return done

    def rows(self, now: float) -> list[DayRow]:
        return [o.row for o in self.orders if o.taken + o.lag <= now]


@attrs.define
class World:
    """The book, the disk it leaves, the broker it talks to, and whoever else trades."""

    rng: random.Random
    people: bool
    broker: Broker
    caps: Orders = attrs.field(factory=lambda: attrs.evolve(CAPS, max_day_orders=10_000))
    disk: list[dict[str, Any]] = attrs.field(factory=list)
    twins: set[str] = attrs.field(factory=set)
    now: float = 0.0
    orders: Book = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.orders = book(self.caps)

    def ask(self) -> None:
        wanted = ask(
            f"o{self.rng.randrange(12)}",
            symbol=self.rng.choice(("005930", "000660")),
            side=self.rng.choice((Side.BUY, Side.SELL)),
        )
        with suppress(OrderRefused):
            placed(self.orders, wanted, self.now)

    def execute(self) -> None:
        while (taken := self.orders.take(at(self.now), halted=False)) is not None:
            self.disk.append(self.orders.intend(taken, at(self.now)))
            order = self.orders.intended(self.disk[-1])
            if self.people and self.rng.random() < 0.1:
                self.broker.execute(order, self.now, "")
                self.twins.add(order.id)
            if self.rng.random() < 0.15:
                self.die(order)
                return
            self.meet_fate(order)
            self.write()

    def die(self, order: Order) -> None:
        """Killed: before the order reached KIS, or after it did."""
        if self.rng.random() < 0.5:
            self.broker.execute(order, self.now, order.id)
        if self.rng.random() < 0.5:
            self.write()
        self.orders = book(self.caps)
        self.orders.replay(self.disk, at(self.now))

    def meet_fate(self, order: Order) -> None:
        moment = at(self.now)
        match self.rng.randrange(6):
            case 0:
                self.orders.not_sent(order.key, "not_sent", "no route", moment)
            case 1:
                self.orders.refused(order.key, "APBK0919", "closed", moment)
            case 2:
                self.orders.doubt(order.key, "reset before", moment)
            case 3:
                self.broker.execute(order, self.now, order.id)
                self.orders.doubt(order.key, "reset after", moment)
            case _:
                done = self.broker.execute(order, self.now, order.id)
                receipt = Receipt(done.number, "06010", done.row.time)
                self.orders.accepted(order.key, receipt, moment)

    def read(self) -> None:
        self.orders.rows(DAY, self.broker.rows(self.now), at(self.now))
        self.write()

    def write(self) -> None:
        self.disk += self.orders.take_records()

    def check(self) -> None:
        ours = [o.owner for o in self.broker.orders if o.owner]
        assert len(ours) == len(set(ours)), "an id was executed twice"
        for order in self.orders.orders.values():
            truth = [o.number for o in self.broker.orders if o.owner == order.id]
            if order.state is OrderState.ACCEPTED:
                assert [order.order_no] == truth
            if order.state in FINAL:
                assert truth == []
            if truth and not self.twins:
                assert order.state is OrderState.ACCEPTED, "found in the list within the time"
            if truth:
                assert order.state in {OrderState.ACCEPTED, OrderState.HUMAN}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 60), st.booleans())
def test_no_history_executes_an_id_twice_or_settles_one_wrongly(
    seed: int, steps: int, people: bool
) -> None:
    rng = random.Random(seed)
    world = World(rng, people, Broker(rng))
    # One order is known to be ours: what a person enters looks otherwise in the list.
    first = sent(world.orders, ask("first", symbol="035720"), 0)
    world.orders.accepted(
        first.key, Receipt(world.broker.execute(first, 0, "first").number, "", ""), at(0)
    )
    world.disk += [{"order": world.orders.find("first", "bot").to_map()}]
    world.now = 10.0
    world.read()
    for _ in range(steps):
        world.now += rng.choice((0.05, 0.3, 1.0, 4.0, 20.0))
        if rng.random() < 0.75:
            world.ask()
        world.execute()
        if rng.random() < 0.6:
            world.read()
    for _ in range(40):
        world.now += 3.0
        world.read()
    world.check()


def test_a_single_row_that_came_by_another_way_is_a_persons_to_judge() -> None:
    orders = book()
    accepted(orders, ask("first", symbol="000660"), 0, "4000")
    ours = row("4000", symbol="000660", channel="OpenAPI")
    order = sent(orders, ask("a"), 1)
    orders.doubt(order.key, "reset", at(1))
    for now in (2.0, 20.0):
        orders.rows(DAY, [ours, row("5001", 1, channel="MTS")], at(now))
    assert orders.find("a", "bot").state is OrderState.HUMAN
    order = sent(orders, ask("b", side=Side.SELL), 21)
    orders.doubt(order.key, "reset", at(21))
    for now in (22.0, 40.0):
        orders.rows(DAY, [ours, row("5002", 21, side="sell", channel="OpenAPI")], at(now))
    assert orders.find("b", "bot").state is OrderState.ACCEPTED


def test_an_order_sent_while_the_list_was_read_may_be_in_it() -> None:
    for answered, state in ((0.5, OrderState.UNKNOWN), (60.0, OrderState.ACCEPTED)):
        orders = book()
        order = sent(orders, ask("a"), 1)
        orders.doubt(order.key, "reset", at(1.1))
        orders.rows(DAY, [row("5001", 1)], at(0.4), answered=at(answered))
        orders.rows(DAY, [row("5001", 1)], at(61), answered=at(61.5))
        assert orders.find("a", "bot").state is state


def test_how_ours_are_entered_is_known_after_midnight_and_a_restart_too() -> None:
    orders = book()
    accepted(orders, ask("first", symbol="000660"), 0, "4000")
    orders.rows(DAY, [row("4000", symbol="000660", channel="OpenAPI")], at(1))
    written = orders.take_records()
    midnight = 86_400
    orders.take_changed()
    orders.forget(at(midnight))
    assert orders.orders == {}
    restarted, put_aside = book(), book()
    restarted.replay(iter(written), at(midnight))
    put_aside.replay(orders.needed(), at(midnight))
    for known in (orders, restarted, put_aside):
        order = sent(known, ask("a"), midnight + 1)
        known.doubt(order.key, "reset", at(midnight + 1))
        for now in (midnight + 2.0, midnight + 20.0):
            known.rows(order.day, [row("5001", midnight + 1, channel="MTS")], at(now))
        assert known.orders[order.key].state is OrderState.HUMAN


def test_an_order_and_its_twin_are_never_told_apart_by_a_guess() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        orders, broker = book(), Broker(rng)
        order = sent(orders, ask(), 0)
        for owner in rng.sample(["a", ""], 2):
            broker.execute(order, 0.0, owner)
        orders.doubt(order.key, "reset", at(rng.random()))
        for now in range(1, 40):
            orders.rows(DAY, broker.rows(now), at(now))
        assert orders.find("a", "bot").state is OrderState.HUMAN


def test_a_book_that_forgot_nothing_says_so() -> None:
    orders = book()
    assert not orders.outlived
    placed(orders, ask(), 0)
    orders.expire(at(9))
    orders.take_changed()
    orders.forget(at(86_400))
    assert orders.orders == {}
    assert not orders.outlived, "what was never sent is in no journal"
    assert orders.take_records() == []


def test_previews_are_bounded_and_go_when_their_time_is_up() -> None:
    orders = book()
    for n in range(1000):
        orders.preview(ask(f"a{n}"), at(0), OPEN)
    with pytest.raises(OrderRefused) as error:
        orders.preview(ask("b"), at(CAPS.preview_s - 1), OPEN)
    assert reason(error) == "queue_full"
    orders.place(ask("a0"), at(1), OPEN)
    orders.preview(ask("b"), at(1), OPEN)
    orders.preview(ask("c"), at(CAPS.preview_s), OPEN)
    assert [key[2] for key in orders._previews] == ["b", "c"]


def test_many_waiting_orders_leave_room_for_cancellations_and_these_are_bounded_too() -> None:
    orders = book(attrs.evolve(CAPS, queue=1))
    for name, number in (("x", "1"), ("y", "2")):
        accepted(orders, ask(name), 0, number)
    placed(orders, ask("a"), 1)
    orders.place(cancel("x"), at(1), OPEN)
    with pytest.raises(OrderRefused) as error:
        orders.place(cancel("y"), at(1), OPEN)
    assert reason(error) == "queue_full"
    assert orders.waiting() == 2


def test_a_list_that_does_not_show_an_accepted_order_yet_is_read_again_but_rarely_in_the_end() -> (
    None
):
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    pauses: list[float] = []
    now = 1.0
    while not pauses or pauses[-1] < 60:
        assert orders.next_read() == now
        orders.rows(DAY, [], at(now))
        pauses.append(orders.next_read() - now)
        now = orders.next_read()
    assert pauses[:3] == [2.0, 3.0, 3.0]
    assert sum(pauses[:-1]) <= CAPS.human_after_s < sum(pauses[:-1]) + 4
    assert orders.find("a", "bot").state is OrderState.ACCEPTED


def test_what_a_person_has_to_decide_is_looked_at_rarely_from_then_on() -> None:
    orders = book()
    order = sent(orders, ask(), 0)
    orders.doubt(order.key, "reset", at(0))
    orders.rows(DAY, [row("5001"), row("5002")], at(1))
    assert orders.find("a", "bot").state is OrderState.HUMAN
    assert orders.next_read() == 61.0
    orders.notice(Hint("5002", "", "005930", "buy", 1, ended=False), at(5))
    assert orders.next_read() == 6.0, "a notice that may be of it is worth a look"
    orders.notice(Hint("5002", "", "005930", "buy", 1, ended=False), at(5.5))
    assert orders.next_read() == 6.0
    orders.rows(DAY, [row("5001"), row("5002")], at(5.9))
    assert orders.next_read() == 6.0, "nothing was due"


def test_two_amendments_at_once_are_not_both_found_in_one_row() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    accepted(orders, ask("other", symbol="000660"), 0, "90")
    changes = [sent(orders, amend("a", 70_100, name), 1) for name in ("a2", "a3")]
    orders.accepted(changes[0].key, Receipt("101", "06010", "100001"), at(1))
    orders.doubt(changes[1].key, "reset", at(1))
    orders.rows(DAY, [row("100", open=0), row("101", 1, original="100", price=70_100)], at(20))
    assert orders.find("a3", "bot").candidates == ()


def test_what_was_seen_today_is_still_known_after_forgetting() -> None:
    orders = book()
    orders.rows(DAY, [row("4000", 10)], at(9))
    orders.notice(Hint("4000", "", "005930", "buy", 4, ended=False), at(9))
    orders.forget(at(9.5))
    order = sent(orders, ask(), 10)
    orders.doubt(order.key, "reset", at(10))
    orders.rows(DAY, [row("4000", 10)], at(30))
    assert orders.find("a", "bot").candidates == (), "it was in the list before"
    assert orders._hints[DAY, "4000"].filled == 4
    assert orders._heard[DAY, "4000"] == at(9).wall_ns


def test_a_notice_heard_before_an_order_was_sent_holds_no_verdict_back() -> None:
    orders = book()
    for original in ("", "4999"):
        hint = Hint(f"600{original}", original, "005930", "buy", 10, ended=False)
        orders.notice(hint, at(0 if not original else 3))
    orders.forget(at(0.5))
    order = sent(orders, ask(), 1)
    orders.doubt(order.key, "reset", at(1))
    for now in (2.0, 20.0):
        orders.rows(DAY, [row("5001", 1)], at(now))
    assert orders.find("a", "bot").order_no == "5001"


@pytest.mark.parametrize(
    "other", [{"target": "b"}, {"price": 70_200}, {"type": "market", "price": None}]
)
def test_the_id_of_a_change_is_that_changes_alone(other: dict[str, Any]) -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    accepted(orders, ask("b"), 0, "101")
    first = orders.place(amend("a", 70_100, "x"), at(1), OPEN)
    assert orders.place(amend("a", 70_100, "x"), at(1), OPEN) == first
    named = attrs.evolve(amend("a", 70_100, "x"), type="limit")
    assert orders.place(named, at(1), OPEN) == first, "the kind it has anyway"
    with pytest.raises(OrderRefused) as error:
        orders.place(attrs.evolve(amend("a", 70_100, "x"), **other), at(1), OPEN)
    assert reason(error) == "id_used"
    for wanted in (cancel("a", "x"), ask("x")):
        with pytest.raises(OrderRefused) as error:
            orders.known(wanted, at(1))
        assert reason(error) == "id_used"


def test_the_id_of_a_cancellation_is_that_one_with_its_quantity() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    first = orders.place(cancel("a", "x", qty=4), at(1), OPEN)
    again = attrs.evolve(cancel("a", "x", qty=4), price=1, type="market")
    assert orders.place(again, at(1), OPEN) == first, "prices mean nothing to it"
    with pytest.raises(OrderRefused) as error:
        orders.place(cancel("a", "x", qty=5), at(1), OPEN)
    assert reason(error) == "id_used"


def test_a_cancellation_takes_no_more_than_the_order_has() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    for qty in (-1, 11):
        with pytest.raises(OrderRefused) as error:
            orders.place(cancel("a", "x", qty=qty), at(1), OPEN)
        assert reason(error) == "qty"
    found = orders.place(cancel("a", "x", qty=10), at(1), OPEN)
    assert (found.qty, found.type, found.value, found.warnings) == (10, "limit", 0, ())


def test_a_cancellation_goes_out_while_the_market_is_closed_and_an_amendment_does_not() -> None:
    orders, closed = book(), attrs.evolve(OPEN, open=False)
    accepted(orders, ask("a"), 0, "100")
    with pytest.raises(OrderRefused) as error:
        orders.place(amend("a", 70_100, "a2"), at(1), closed)
    assert reason(error) == "closed"
    orders.place(attrs.evolve(amend("a", 70_100, "a2"), allow_closed=True), at(1), closed)
    orders.place(cancel("a"), at(1), closed)


def test_an_amendment_is_of_what_is_open_and_of_an_order_itself() -> None:
    orders = book()
    accepted(orders, ask("a", side=Side.SELL), 0, "100")
    orders.rows(DAY, [row("100", side="sell", filled=4, open=6, avg_price="70000")], at(1))
    change = orders.place(amend("a", 70_100, "a2"), at(2), OPEN)
    assert (change.qty, change.side, change.type, change.value) == (6, Side.SELL, "limit", 420_600)
    orders.rows(DAY, [row("100", side="sell", filled=10, open=0, avg_price="70000")], at(3))
    with pytest.raises(OrderRefused, match="nothing of a is open") as error:
        orders.place(amend("a", 70_200, "a3"), at(3), OPEN)
    assert reason(error) == "target"
    for wanted in (amend("a2", 70_300, "a4"), cancel("a2")):
        with pytest.raises(OrderRefused, match="itself a change"):
            orders.place(wanted, at(4), OPEN)


def test_the_days_value_is_counted_to_the_last_won_and_without_cancellations() -> None:
    orders = book(attrs.evolve(CAPS, max_day_value=1_400_000, max_day_orders=2))
    accepted(orders, ask("a"), 0, "1")
    orders.place(cancel("a"), at(0), OPEN)
    with pytest.raises(OrderRefused, match="1,401,000 won") as error:
        orders.preview(ask("b", price=70_100), at(0), OPEN)
    assert reason(error) == "day_value_cap"
    placed(orders, ask("b"), 0)
    with pytest.raises(OrderRefused, match="2 orders today"):
        orders.preview(ask("c"), at(0), OPEN)
    assert placed(orders, ask("c"), 86_400).value == 700_000, "another day"


def test_doubts_stop_buys_of_other_symbols_at_the_configured_number() -> None:
    orders = book(attrs.evolve(CAPS, max_unknown=2))
    for n, symbol in enumerate(("000660", "035720")):
        orders.preview(ask("z", symbol="051910"), at(n), OPEN)
        orders.doubt(sent(orders, ask(f"a{n}", symbol=symbol), n).key, "reset", at(n))
    with pytest.raises(OrderRefused, match=r"2 orders are in doubt \(a0, a1\)"):
        orders.preview(ask("z", symbol="051910"), at(2), OPEN)


def test_a_clients_own_newest_order_is_found_or_the_one_of_a_day() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    placed(orders, ask("a"), 86_400)
    assert orders.find("a", "bot").day == "20261103"
    assert orders.find("a", "bot", day=DAY).order_no == "100"
    with pytest.raises(OrderRefused, match="no order a"):
        orders.find("a", "bot", day="20261101")


def test_only_orders_in_doubt_add_a_day_to_the_days_that_are_read() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    assert orders.days(at(0)) == [DAY]
    order = sent(orders, ask("b"), 1)
    orders.doubt(order.key, "reset", at(1))
    assert orders.days(at(1)) == [DAY]
    assert orders.days(at(86_400)) == ["20261103", DAY]
    orders.take_changed()
    orders.forget(at(86_400))
    assert [o.id for o in orders.orders.values()] == ["b"]
    assert orders.next_read() == 2.0
    orders.rows("20261103", [], at(86_400))
    assert orders.next_read() == 2.0, "another day's list says nothing of it"


def test_notices_of_one_number_add_up_and_the_list_has_to_show_all_of_it() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.rows(DAY, [row("100")], at(1))
    for _ in range(2):
        assert orders.notice(Hint("100", "", "005930", "buy", 3, ended=False), at(2)) is not None
    orders.rows(DAY, [row("100", filled=5, open=5, avg_price="70000")], at(3))
    assert orders.next_read() == 5.0
    orders.rows(DAY, [row("100", filled=6, open=4, avg_price="70000")], at(5))
    assert orders.next_read() == float("inf")
    orders.notice(Hint("100", "", "005930", "buy", 0, ended=True), at(6))
    orders.notice(Hint("100", "", "005930", "buy", 0, ended=False), at(6))
    orders.rows(DAY, [row("100", filled=6, open=4, avg_price="70000")], at(7))
    assert orders.next_read() == 9.0, "it ended, and the list shows it open"
    orders.rows(DAY, [row("100", filled=6, open=0, cancelled=4, avg_price="70000")], at(9))
    assert orders.next_read() == float("inf")


def test_a_notice_of_a_change_is_its_orders_and_one_of_nobodys_number_nobodys() -> None:
    orders = book()
    order = accepted(orders, ask("a"), 0, "100")
    orders.rows(DAY, [row("100")], at(1))
    hint = Hint("300", "100", "005930", "buy", 0, ended=False)
    assert orders.notice(hint, at(2)) == order.key
    assert orders.next_read() == 3.0
    orders.rows(DAY, [row("100")], at(3))
    assert orders.notice(Hint("301", "", "005930", "buy", 0, ended=False), at(4)) is None
    assert orders.next_read() == float("inf"), "and no list is read for it"
    orders.doubt(sent(orders, ask("b"), 5).key, "reset", at(5))
    orders.rows(DAY, [row("100")], at(6))
    for symbol, side in (("000660", "buy"), ("005930", "sell")):
        orders.notice(Hint("9", "", symbol, side, 0, ended=False), at(6.5))
        assert orders.next_read() == 8.0


def test_whose_a_number_is_can_be_asked() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    owner = orders.owner(DAY, "100")
    assert owner is not None
    assert owner.id == "a"
    assert orders.owner(DAY, "101") is None
    assert orders.owner("20261103", "100") is None
    assert orders.row(DAY, "100") is None
    assert orders.row("20261103", "100") is None


def test_the_list_fills_in_what_an_answer_did_not_say_and_leaves_what_it_did() -> None:
    orders = book()
    order = sent(orders, ask("a"), 0)
    orders.accepted(order.key, Receipt("100", "", ""), at(0))
    accepted(orders, ask("b", symbol="000660"), 0, "101")
    rows = [row("100", 7), row("101", 7, symbol="000660", branch="99999")]
    orders.rows(DAY, rows, at(1))
    found = orders.find("a", "bot")
    assert (found.branch, found.order_time) == ("06010", "100007")
    found = orders.find("b", "bot")
    assert (found.branch, found.order_time) == ("06010", "100000")


def test_only_what_was_refused_whole_is_rejected() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    partly = row("100", rejected=4, open=6)
    whole = attrs.evolve(partly, open=0, filled=6, avg_price="70000")
    for now, known in enumerate((partly, whole)):
        orders.rows(DAY, [known], at(now))
        found = orders.find("a", "bot")
        assert (found.state, found.rejected_qty) == (OrderState.ACCEPTED, 4)


def test_an_average_price_is_of_fills_alone() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.rows(DAY, [row("100")], at(1))
    assert orders.find("a", "bot").avg_price == ""
    moved = row("101", 2, original="100", filled=2, open=8, avg_price="70100.5")
    orders.rows(DAY, [row("100", open=0, cancelled=10), moved], at(2))
    found = orders.find("a", "bot")
    assert (found.avg_price, found.filled_qty) == ("70100.5", 2)


@pytest.mark.parametrize("counted", [0, 4])
def test_what_was_amended_is_not_told_as_cancelled(counted: int) -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    rest = row("100", open=6, cancelled=counted)
    orders.rows(DAY, [rest, row("101", 2, original="100", qty=4, open=4)], at(2))
    assert orders.find("a", "bot").cancelled_qty == 0
    some = attrs.evolve(rest, open=0, cancelled=counted + 6)
    ended = row("101", 2, original="100", qty=4, open=0, filled=1, cancelled=3, avg_price="70000")
    orders.rows(DAY, [some, ended], at(3))
    found = orders.find("a", "bot")
    assert (found.filled_qty, found.cancelled_qty, found.open_qty) == (1, 9, 0)


def test_a_row_of_a_change_that_ended_without_a_fill_is_not_followed() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    dead = row("300", 5, original="100", open=0, cancelled=10)
    orders.rows(DAY, [row("100"), dead], at(9))
    assert orders.find("a", "bot").numbers == ("100",)
    moved = row("301", 6, original="100", open=6)
    further = row("302", 7, original="301", open=0, filled=6, avg_price="70000")
    orders.rows(DAY, [row("100", open=0), dead, further, moved], at(10))
    assert orders.find("a", "bot").numbers == ("100", "301", "302")
    owner = orders.owner(DAY, "302")
    assert owner is not None
    assert owner.id == "a"


def test_a_cancellation_that_does_nothing_becomes_a_persons() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.doubt(cancelling(orders, "a", 1).key, "reset", at(1))
    orders.rows(DAY, [row("100")], at(CAPS.human_after_s + 0.9))
    assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
    orders.rows(DAY, [row("100")], at(CAPS.human_after_s + 1))
    found = orders.find("a.cancel", "bot")
    assert (found.state, str(found.text)) == (
        OrderState.HUMAN,
        "the order is still open: cancel it again",
    )
    orders.take_records()
    orders.take_changed()
    orders.rows(DAY, [row("100")], at(CAPS.human_after_s + 2))
    assert (orders.take_records(), orders.take_changed()) == ([], []), "told and written once"


def test_a_person_may_settle_an_order_by_a_number_that_the_list_does_not_show() -> None:
    orders = book()
    order = sent(orders, ask("a"), 0)
    orders.doubt(order.key, "reset", at(0))
    found = orders.resolve(order.key, number="0000000077", reason="by telephone", at=at(1))
    assert (found.order_no, found.branch, found.order_time) == ("77", "", "")
    assert (found.evidence, found.text) == (Evidence.HUMAN, "by telephone")
    order = sent(orders, ask("b"), 2)
    orders.doubt(order.key, "reset", at(2))
    orders.rows(DAY, [row("78", 2, filled=10, open=0, avg_price="70000", qty=11)], at(3))
    found = orders.resolve(order.key, number="78", reason="", at=at(4))
    assert (found.branch, found.order_time, found.filled_qty) == ("06010", "100002", 10)


def test_a_person_may_settle_an_amendment_by_the_number_that_its_order_was_followed_to() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    moved = [row("100", open=0), row("200", 0.5, original="100", open=0)]
    orders.rows(DAY, [moved[0], row("200", 0.5, original="100")], at(1))
    order = sent(orders, amend("a", 70_100, "a2"), 2)
    assert order.original_no == "200"
    orders.doubt(order.key, "reset", at(2))
    orders.rows(DAY, [*moved, row("201", 2, original="200", price=70_100)], at(3))
    assert orders.find("a", "bot").live_number == "201"
    for number in ("100", "200"):
        with pytest.raises(OrderRefused, match=f"number {number} belongs to a"):
            orders.resolve(order.key, number=number, reason="x", at=at(4))
    found = orders.resolve(order.key, number="0000000201", reason="seen in HTS", at=at(4))
    assert (found.state, found.order_no) == (OrderState.ACCEPTED, "201")
    assert orders.find("a", "bot").numbers == ("100", "200", "201")


def test_a_journal_holds_what_was_sent_and_its_orders_as_they_are() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    placed(orders, ask("b"), 0)
    orders.rows(DAY, [row("100", filled=4, open=6, avg_price="70000")], at(1))
    (record,) = orders.needed()
    assert (record["order"]["id"], record["order"]["filled_qty"]) == ("a", 4)
    again = book()
    again.replay([{"halt": True}, record], at(5))
    assert again.orders == {key: o for key, o in orders.orders.items() if o.id == "a"}


def test_after_a_replay_numbers_belong_to_the_orders_they_continue() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    order = sent(orders, amend("a", 70_100, "a2"), 1)
    orders.accepted(order.key, Receipt("101", "06010", "100001"), at(1))
    again = book()
    again.replay(orders.needed(), at(5))
    owners = [again.owner(DAY, number) for number in ("100", "101")]
    assert [o and o.id for o in owners] == ["a", "a"]


def test_what_still_waits_or_was_not_told_yet_is_not_forgotten() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    placed(orders, ask("b", ttl_s=10**6), 0)
    orders.forget(at(86_400))
    assert {key[2] for key in orders.orders} == {"a", "b"}
    orders.take_changed()
    orders.forget(at(86_400))
    assert {key[2] for key in orders.orders} == {"b"}
    assert orders.waiting() == 1


@pytest.mark.parametrize("name", ["x" * 64, "가"])
def test_any_printable_name_up_to_64_is_an_id(name: str) -> None:
    assert book().preview(ask(name), at(0), OPEN).id == name


def test_an_id_with_a_line_break_is_none() -> None:
    with pytest.raises(OrderRefused) as error:
        book().preview(ask("a\nb"), at(0), OPEN)
    assert reason(error) == "id"


def test_an_amendment_or_cancellation_makes_the_list_of_its_order_be_read_soon() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.rows(DAY, [row("100")], at(1))
    order = sent(orders, amend("a", 70_100, "a2"), 5)
    orders.accepted(order.key, Receipt("101", "06010", "100005"), at(5))
    assert orders.next_read() == 6.0
    assert orders.find("a", "bot").open_qty is None, "nobody knows yet what went over"
    orders.rows(DAY, [row("100", open=0), row("101", 5, original="100", open=0)], at(6))
    assert orders.next_read() == float("inf")


@pytest.mark.parametrize("time", ["", "999999"])
def test_a_row_without_a_time_can_be_any_order(time: str) -> None:
    orders = book()
    order = sent(orders, ask(), 10)
    orders.doubt(order.key, "reset", at(10))
    orders.rows(DAY, [attrs.evolve(row("5001"), time=time, type_code="")], at(30))
    assert orders.find("a", "bot").candidates == ("5001",)


def test_a_market_order_is_found_whatever_price_its_row_shows() -> None:
    orders = book()
    order = sent(orders, ask(price=None, type="market"), 0)
    orders.doubt(order.key, "reset", at(0))
    orders.rows(DAY, [row("5001", type_code="01", price=0), row("5002")], at(1))
    assert orders.find("a", "bot").candidates == ("5001",)


def test_of_equal_priority_who_came_first_goes_first() -> None:
    orders = book()
    for name in ("z", "m", "a"):
        placed(orders, ask(name), 0)
    taken = [orders.take(at(0), halted=False) for _ in range(3)]
    assert [order and order.id for order in taken] == ["z", "m", "a"]


def test_the_soonest_of_many_reasons_to_read_the_list_counts() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    accepted(orders, ask("b", symbol="000660"), 5, "101")
    assert orders.next_read() == 1.0


def test_a_row_settles_an_order_as_soon_as_the_list_has_caught_up() -> None:
    orders = book()
    orders.doubt(sent(orders, ask(), 0).key, "reset", at(0))
    for now, state in ((1, "unknown"), (12.9, "unknown"), (13, "accepted")):
        orders.rows(DAY, [row("5001")], at(now))
        assert orders.find("a", "bot").state == state


def test_what_becomes_a_persons_is_written() -> None:
    orders = book()
    orders.doubt(sent(orders, ask(), 0).key, "reset", at(0))
    orders.take_records()
    orders.rows(DAY, [row("5001"), row("5002")], at(1))
    assert [record["order"]["state"] for record in orders.take_records()] == ["human"]


def test_a_row_first_seen_at_the_moment_of_sending_may_be_the_order() -> None:
    orders = book()
    order = sent(orders, ask(), 10)
    orders.doubt(order.key, "reset", at(10))
    orders.rows(DAY, [row("5001", 10)], at(10))
    assert orders.find("a", "bot").candidates == ("5001",)


def test_a_cancellation_in_doubt_is_no_amendment_made_in_an_app() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.doubt(cancelling(orders, "a", 1).key, "reset", at(1))
    rows = [row("100", open=0), row("300", 2, original="100", price=70_200)]
    for now in (2.0, 3.0, 20.0):
        orders.rows(DAY, rows, at(now))
        assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
    assert orders.find("a.cancel", "bot").order_no == ""
    assert orders.find("a", "bot").live_number == "300"


def test_a_cancellation_in_doubt_stays_so_while_the_order_lives_on_under_another_number() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.doubt(cancelling(orders, "a", 1).key, "reset", at(1))
    amended(orders, "a", 2, "101")
    gone = row("100", open=0, cancelled=10)
    moved = row("101", 2, original="100", price=70_100)
    for now, rows in ((3, [gone]), (16, [gone]), (17, [gone, moved]), (40, [gone, moved])):
        orders.rows(DAY, rows, at(now))
        assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
    assert orders.cancel_id("bot", orders.find("a", "bot"), 0, at(41)) == "a.cancel2"
    moved = attrs.evolve(moved, open=0, cancelled=10)
    for now, state in ((50, "unknown"), (62, "accepted")):
        orders.rows(DAY, [gone, moved], at(now))
        assert orders.find("a.cancel", "bot").state == state


def test_an_amendment_made_in_an_app_that_is_listed_late_keeps_a_cancellation_in_doubt() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.doubt(cancelling(orders, "a", 1).key, "reset", at(1))
    orders.rows(DAY, [row("100")], at(20))
    gone = row("100", open=0, cancelled=10)
    orders.rows(DAY, [gone], at(30))
    assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
    for now in (35, 50, 100):
        orders.rows(DAY, [gone, row("300", 30, original="100", price=70_200)], at(now))
        assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
    assert orders.find("a", "bot").live_number == "300"


def test_an_order_that_the_list_opens_again_has_not_ended() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.doubt(cancelling(orders, "a", 1).key, "reset", at(1))
    for now, left in ((2, 0), (10, 10), (20, 0), (31.9, 0)):
        orders.rows(DAY, [row("100", open=left)], at(now))
        assert orders.find("a.cancel", "bot").state is OrderState.UNKNOWN
    orders.rows(DAY, [row("100", open=0)], at(32))
    assert orders.find("a.cancel", "bot").state is OrderState.ACCEPTED


def test_the_numbers_of_changes_are_known_again_after_a_replay() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.accepted(cancelling(orders, "a", 1).key, Receipt("101", "06010", "100001"), at(1))
    again = book()
    again.replay(orders.take_records(), at(5))
    owner = again.owner(DAY, "101")
    assert owner is not None
    assert owner.id == "a.cancel"


def test_the_number_of_an_amendment_is_its_orders_at_once_and_for_ever() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.take_records()
    order = sent(orders, amend("a", 70_100, "a2"), 1)
    orders.accepted(order.key, Receipt("101", "06010", "100001"), at(1))
    owner = orders.owner(DAY, "101")
    assert owner is not None
    assert owner.id == "a"
    written = [record["order"] for record in orders.take_records()]
    assert [(o["id"], o["numbers"]) for o in written] == [("a2", []), ("a", ["100", "101"])]


def test_a_change_may_be_settled_when_its_order_is_long_forgotten() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    orders.doubt(cancelling(orders, "a", 1).key, "reset", at(1))
    orders.take_changed()
    orders.forget(at(86_400))
    (left,) = orders.orders.values()
    found = orders.resolve(left.key, number="101", reason="seen in HTS", at=at(86_401))
    assert (found.state, found.order_no) == (OrderState.ACCEPTED, "101")


def test_the_list_of_a_day_without_doubt_is_not_read_any_more() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    assert orders.days(at(86_400)) == ["20261103"]


def test_a_notice_makes_the_readings_quick_again() -> None:
    orders = book()
    accepted(orders, ask("a"), 0, "100")
    while orders.next_read() < 300:
        orders.rows(DAY, [], at(orders.next_read()))
    now = orders.next_read() - 30
    orders.notice(Hint("100", "", "005930", "buy", 1, ended=False), at(now))
    assert orders.next_read() == now + 1
    orders.rows(DAY, [], at(now + 1))
    assert orders.next_read() == now + 3
