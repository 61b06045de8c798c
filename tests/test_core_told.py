"""What notices did not tell of an order is told late, once, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, strategies as st

from kisfeed.core.told import GRACE_S, Ledger, notice_fields
from kisfeed.kfp.orders import Action, Order, Side
from kisfeed.kis.orders import DayRow

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = "20261120"


def row(number: str = "7", **fields: Any) -> DayRow:
    plain = DayRow(
        day=DAY,
        branch="91252",
        number=number,
        original="",
        side="buy",
        symbol="005930",
        type_code="00",
        exchange="KRX",
        qty=10,
        price=70_000,
        time="100501",
        filled=0,
        avg_price="",
        open=10,
        cancelled=0,
        rejected=0,
    )
    return attrs.evolve(plain, **fields)


def late(ledger: Ledger, *rows: DayRow, at: float = 0.0) -> list[tuple[str, int]]:
    """What is told of *rows*, the same ones read twice."""
    assert ledger.review(rows, at) == []
    return [(missed.kind, missed.qty) for missed in ledger.review(rows, at + GRACE_S)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, [("accepted", 10)]),
        ({"filled": 4, "open": 6}, [("accepted", 10), ("fill", 4)]),
        ({"rejected": 10, "open": 0}, [("accepted", 10), ("rejected", 10)]),
        ({"cancelled": 6, "open": 0}, [("accepted", 10), ("cancelled", 6)]),
        ({"original": "5"}, [("amended", 10)]),
        ({"original": "5", "open": 0, "filled": 1}, [("amended", 10), ("fill", 1)]),
        ({"original": "5", "open": 0, "cancelled": 10}, [("cancelled", 10)]),
    ],
)
def test_an_order_nobody_was_told_of_is_told_whole_and_once(
    fields: dict[str, Any], told: list[tuple[str, int]]
) -> None:
    ledger, found = Ledger(), row(**fields)
    assert late(ledger, found) == told
    assert not ledger.pending()
    assert late(ledger, found, at=100.0) == []


@pytest.mark.parametrize(
    ("notices", "fields", "told"),
    [
        ([("accepted", 10)], {}, []),
        ([("fill", 3), ("fill", 2)], {"filled": 5}, []),
        ([("fill", 3)], {"filled": 5}, [("fill", 2)]),
        ([("fill", 6)], {"filled": 5}, []),  # the list is behind the notices
        ([("accepted", 10)], {"filled": 5}, [("fill", 5)]),
        ([("rejected", 10)], {"rejected": 10}, []),
        ([("cancelled", 10)], {"cancelled": 10}, []),
        ([("accepted", 10)], {"rejected": 10}, [("rejected", 10)]),
        ([("accepted", 10)], {"cancelled": 10}, [("cancelled", 10)]),
        ([("rejected", 1)], {"cancelled": 9}, [("cancelled", 9)]),
        ([("cancelled", 9)], {"rejected": 1}, [("rejected", 1)]),
        ([("amended", 10)], {"original": "5"}, []),
    ],
)
def test_only_what_no_notice_told_is_told(
    notices: Sequence[tuple[str, int]], fields: dict[str, Any], told: list[tuple[str, int]]
) -> None:
    ledger = Ledger()
    for kind, qty in notices:
        ledger.notice(DAY, "7", kind, qty)
    assert late(ledger, row(**fields)) == told


def test_a_notice_that_comes_within_the_grace_is_not_repeated() -> None:
    ledger = Ledger()
    assert ledger.review([row()], 0.0) == []
    assert ledger.pending()
    assert ledger.review([row()], GRACE_S - 0.1) == []
    ledger.notice(DAY, "7", "accepted", 10)
    assert ledger.review([row()], 60.0) == []
    assert not ledger.pending()


def test_what_came_after_the_first_look_has_a_grace_of_its_own() -> None:
    ledger = Ledger()
    ledger.notice(DAY, "7", "accepted", 10)
    assert ledger.review([row(filled=4)], 0.0) == []
    assert [m.qty for m in ledger.review([row(filled=9)], 4.0)] == [4]
    assert ledger.pending()
    assert ledger.review([row(filled=9)], 6.5) == []
    assert [m.qty for m in ledger.review([row(filled=10)], 7.0)] == [5]
    assert [m.qty for m in ledger.review([row(filled=10)], 10.0)] == [1]


def test_news_that_shrank_is_told_as_it_is_now() -> None:
    ledger = Ledger()
    ledger.notice(DAY, "7", "accepted", 10)
    ledger.review([row(filled=4)], 0.0)
    ledger.notice(DAY, "7", "fill", 3)
    assert [m.qty for m in ledger.review([row(filled=4)], 4.0)] == [1]


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.booleans(), st.floats(0.0, 5.0)), min_size=1, max_size=30
    )
)
def test_every_share_is_told_once_by_a_notice_or_late(
    fills: list[tuple[int, bool, float]],
) -> None:
    """The list is read after every fill; some fills have a notice, before that read."""
    ledger, filled, told, now = Ledger(), 0, 0, 0.0
    ledger.notice(DAY, "7", "accepted", 2_000)
    for qty, has_notice, pause in fills:
        now += pause
        filled += qty
        if has_notice:
            ledger.notice(DAY, "7", "fill", qty)
            told += qty
        told += sum(missed.qty for missed in ledger.review([row(filled=filled)], now))
        assert told <= filled
        assert ledger.pending() == (told < filled)
    for end in (now + 10, now + 20):
        told += sum(missed.qty for missed in ledger.review([row(filled=filled)], end))
    assert told == filled
    assert not ledger.pending()


def test_orders_and_days_are_kept_apart() -> None:
    ledger = Ledger()
    ledger.notice(DAY, "7", "accepted", 10)
    others = row("8"), row(day="20261123")
    found = [ledger.review([row(), *others], at) for at in (0.0, GRACE_S)][1]
    assert [missed.row for missed in found] == list(others)


def test_a_day_that_is_forgotten_takes_what_it_was_waiting_for_with_it() -> None:
    ledger = Ledger()
    ledger.review([row()], 0.0)
    ledger.notice("20261123", "7", "accepted", 10)
    ledger.forget(DAY)
    assert ledger.pending()
    ledger.forget("20261123")
    assert not ledger.pending()
    assert late(ledger, row(day="20261123")) == []


def test_a_late_notice_has_what_the_list_knows() -> None:
    ledger = Ledger()
    bought = row(filled=4, avg_price="70100.5")
    sold = row("8", side="sell", original="31", open=1)
    found = [ledger.review([bought, sold], at) for at in (0.0, GRACE_S)][1]
    accepted, fill, amended = (notice_fields(missed, None) for missed in found)
    assert fill == {
        "scale": 0,
        "px_text": "70100.5",
        "order_no": "0000000007",
        "original_order_no": None,
        "side": 1,
        "symbol": "005930",
        "qty": 4,
        "order_qty": 10,
        "order_px": 70_000,
        "time": "100501",
        "order_type": "00",
        "branch": "91252",
    }
    assert accepted["qty"] == 10
    assert amended["original_order_no"] == "0000000031"
    assert amended["side"] == -1
    assert amended["px_text"] is None


def test_a_late_notice_of_an_order_placed_here_says_whose_it_is() -> None:
    placed = Order(
        client="bot",
        id="a",
        day=DAY,
        action=Action.NEW,
        symbol="005930",
        side=Side.BUY,
        qty=10,
        price=70_000,
        type="limit",
        exchange="KRX",
    )
    ledger = Ledger()
    (missed,) = [ledger.review([row()], at) for at in (0.0, GRACE_S)][1]
    fields = notice_fields(missed, placed)
    assert (fields["client"], fields["client_order_id"]) == ("bot", "a")
    assert not {"client", "client_order_id"} & set(notice_fields(missed, None))
