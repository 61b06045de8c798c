from __future__ import annotations

import copy
import datetime as dt
import inspect
import json
import pickle
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from kisfeed.kfp import events
from kisfeed.kfp.messages import Source, Type

_T = 1_763_600_400_000_000_000  # 2025-11-20 10:00:00 in Seoul
_TRADE: list[Any] = [
    71000, 10, 500, 71100, 71000, 1, -100, 70500, 71200, 70400, 35_500_000, "2", "0", False, None,
]  # fmt: skip


def _trade(
    row: list[Any] = _TRADE, *, kind: int = Type.TICK, scale: int = 0, flags: int = 0
) -> events.Trade:
    made = events.row_maker("trade.v1", "trade.krx.005930", scale)
    event = made([kind, 1, 42, flags, _T, _T + 123_456_789, *row])
    assert isinstance(event, events.Trade)
    return event


def test_a_trade_is_matched_by_class_and_field() -> None:
    match _trade():
        case events.Trade(px=px, qty=10, halted=False):
            assert px == 71000
        case _:
            pytest.fail("no match")


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        _trade().px = 1  # type: ignore[misc]


@given(st.integers(-(2**60), 2**60), st.integers(0, 9))
def test_a_price_is_exact(price: int, scale: int) -> None:
    value = _trade(scale=scale).price(price)
    assert value is not None
    assert value * 10**scale == price


def test_a_price_keeps_its_decimals_and_nil() -> None:
    trade = _trade(scale=2)
    assert str(trade.price(40050)) == "400.50"
    assert trade.price(None) is None
    assert _trade().price(71000) == Decimal(71000)


def test_times_are_seouls() -> None:
    trade = _trade()
    assert trade.exchange_time is not None
    assert trade.exchange_time.isoformat() == "2025-11-20T10:00:00+09:00"
    assert trade.received_time == trade.exchange_time + dt.timedelta(microseconds=123_456)
    assert attrs.evolve(trade, xts=None).exchange_time is None


def test_flags_say_source_gap_and_correction() -> None:
    plain, marked = _trade(), _trade(flags=0b1101)
    assert (plain.source, plain.after_gap, plain.correction) == (Source.WEBSOCKET, False, False)
    assert (marked.source, marked.after_gap, marked.correction) == (Source.POLL, True, True)


def test_an_image_is_told_from_a_tick() -> None:
    assert not _trade(kind=Type.TICK).image
    assert _trade(kind=Type.IMAGE).image


@given(st.integers(0, 20))
def test_fields_of_the_future_are_ignored_and_missing_ones_are_nil(width: int) -> None:
    row = [*_TRADE, "later", 7, None, 8, 9][:width]
    trade = _trade(row)
    values = [getattr(trade, field.name) for field in attrs.fields(events.Trade)][8:]
    assert values == (row[:15] + [None] * 15)[:15]


@pytest.mark.parametrize("sides", [[[1, 2], [3], [], [4]], [None, None, None, None], [7, 7, 7, 7]])
def test_a_book_has_tuples_whatever_came(sides: list[Any]) -> None:
    book = events.row_maker("book.v1", "b", 0)([20, 1, 1, 0, None, 1, "0", *sides, 1, 2, 3, 4])
    assert isinstance(book, events.Book)
    for side, came in zip((book.asks, book.ask_qtys, book.bids, book.bid_qtys), sides, strict=True):
        assert side == (tuple(came) if isinstance(came, list) else ())
    assert book.expected_qty == 4


def test_a_schema_without_a_class_is_raw() -> None:
    made = events.row_maker("raw.X", "raw.X.1", 0, ("A", "B"))
    raw = made([20, 1, 1, 0, None, 1, "1", "2", "3"])
    assert isinstance(raw, events.Raw)
    assert raw.fields == ("1", "2", "3")
    assert raw.by_name() == {"A": "1", "B": "2"}


def test_every_event_is_one_json_object_that_names_its_type() -> None:
    made: list[events.Event] = [
        _trade(),
        events.Gap("t", 1, 1, 2, None, 3, None, "gap_detected"),
        events.Lost("t", 1, 1, 2, 2, "over_limit"),
        events.Status("t", 1, 1, 1, "none", 0, ""),
        events.Session(1, "STREAMING", 1, "none", 0, ""),
        events.Heartbeat(1, 2, 3, 4, 5, 6, {}),
        events.Goaway("draining", 1000, {}),
        events.Notice("n", 1, None, 2, "fill", {"qty": 1}),
    ]
    for event in made:
        line = json.loads(json.dumps(event.to_map()))
        assert next(iter(line)) == "type"
        assert line["type"] == event.type
        assert set(line) == {"type", *attrs.fields_dict(type(event))}
    assert len({event.type for event in made}) == len(made)


def test_a_notice_keeps_the_account_out_of_its_repr() -> None:
    assert "12345678" not in repr(events.Notice("n", 1, None, 2, "fill", {"account": "12345678"}))


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.integers())
)
_HEADS = st.tuples(*[st.integers(0, 2**60)] * 3, st.none() | st.integers(0, 2**60), st.integers(0))
_ROWS_AND_RAW = {**events.ROWS, "raw.X": events.Raw}
_AT_ONCE = {
    schema: attrs.make_class(cls.__name__, list(attrs.fields_dict(cls)), frozen=True, slots=True)
    for schema, cls in _ROWS_AND_RAW.items()
}
_SIDES = {"asks", "ask_qtys", "bids", "bid_qtys"}


def _set_at_once(schema: str, topic: str, scale: int, message: list[Any], names: Any) -> Any:
    """The same row as an ordinary object, all of whose attributes were set when it was made."""
    kind, *head = message[:6]
    common = (topic, scale, kind == Type.IMAGE, *head)
    if schema not in events.ROWS:
        return _AT_ONCE[schema](*common, schema, names, tuple(message[6:]))
    own = list(attrs.fields_dict(_AT_ONCE[schema]))[8:]
    values = dict(zip(own, message[6:] + [None] * len(own), strict=False))
    for side in _SIDES & values.keys():
        values[side] = tuple(values[side]) if isinstance(values[side], list) else ()
    return _AT_ONCE[schema](*common, *values.values())


@given(
    st.sampled_from(sorted(_ROWS_AND_RAW)),
    st.integers(0, 6),
    st.sampled_from([Type.TICK, Type.IMAGE]),
    _HEADS,
    st.lists(_VALUES, max_size=20),
)
def test_a_row_that_is_read_when_asked_for_is_the_row_that_was_set_at_once(
    schema: str, scale: int, kind: Type, head: tuple[Any, ...], row: list[Any]
) -> None:
    message = [int(kind), *head, *row]
    plain = _set_at_once(schema, "a topic", scale, list(message), ("A", "B"))
    made = events.row_maker(schema, "a topic", scale, ("A", "B"))
    read, again = made(list(message)), made(list(message))
    names = list(attrs.fields_dict(type(read)))

    assert type(read) is _ROWS_AND_RAW[schema]
    assert names == list(attrs.fields_dict(type(plain)))
    assert [getattr(read, n) for n in names] == [getattr(plain, n) for n in names]
    assert repr(again) == repr(plain)
    assert read.to_map() == {"type": read.type, **attrs.asdict(plain, recurse=False)}
    assert type(read).__match_args__ == type(plain).__match_args__

    same = type(read)(*attrs.astuple(plain, recurse=False))
    named = type(read)(**attrs.asdict(plain, recurse=False))
    copies = [copy.copy(read), copy.deepcopy(read), pickle.loads(pickle.dumps(read))]
    assert all(other == read for other in [again, same, named, attrs.evolve(read), *copies])
    other = attrs.evolve(read, sseq=read.sseq + 1)
    assert other != read
    assert attrs.evolve(other, sseq=read.sseq) == read
    try:
        hash(plain)
    except TypeError:
        with pytest.raises(TypeError):
            hash(read)
    else:
        assert {read, again, same} == {read}
    for name in [*names, "another"]:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(read, name, 1)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            delattr(read, name)
    assert not hasattr(read, "__dict__")


@pytest.mark.parametrize("schema", sorted(_ROWS_AND_RAW))
def test_a_row_is_made_of_its_attributes_and_nothing_else(schema: str) -> None:
    cls, plain = _ROWS_AND_RAW[schema], _AT_ONCE[schema]
    shown = inspect.signature(cls).parameters
    assert list(shown) == list(inspect.signature(plain).parameters)
    values = dict.fromkeys(shown, 1)
    for wrong in ({**values, "another": 1}, dict(list(values.items())[1:])):
        with pytest.raises(TypeError):
            cls(**wrong)


@given(st.lists(_VALUES, max_size=20))
def test_rows_of_different_topics_kinds_and_classes_are_different(row: list[Any]) -> None:
    message = [Type.TICK, 1, 2, 0, None, 3, *row]
    one = events.row_maker("trade.v1", "a", 0)(list(message))
    others = [
        events.row_maker("trade.v1", "b", 0)(list(message)),
        events.row_maker("trade.v1", "a", 1)(list(message)),
        events.row_maker("trade.v1", "a", 0)([Type.IMAGE, *message[1:]]),
        events.row_maker("expected.v1", "a", 0)(list(message)),
    ]
    assert one not in others
