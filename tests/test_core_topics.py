"""Topics: one stream for each name, one route for each registration."""

from __future__ import annotations

import pytest

from kisfeed.core.streams import Touched
from kisfeed.core.topics import Topics
from kisfeed.errors import UnknownTopic
from kisfeed.kfp.messages import Code, Data, Stream
from tests.engine_bench import BOOK, CATALOGUE, NOTICE, TRADE

RAW = "raw.H0STCNT0.005930"
KEY = ("H0STCNT0", "005930")


def made() -> Topics:
    return Topics(CATALOGUE, Touched())


def test_a_name_is_one_stream_and_one_sid_for_ever() -> None:
    topics = made()
    names = [TRADE, BOOK, RAW, NOTICE]
    streams = [topics.named(name, 5) for name in names]
    assert [stream.sid for stream in streams] == [1, 2, 3, 4]
    assert [stream.since_ts for stream in streams] == [5] * 4
    assert [stream.schema for stream in streams] == [
        "trade.v1",
        "book.v1",
        "raw.H0STCNT0",
        "notice.v1",
    ]
    assert [topics.named(name, 9) for name in names] == streams
    assert [stream.since_ts for stream in streams] == [5] * 4
    assert list(topics.streams) == names
    with pytest.raises(UnknownTopic):
        topics.named("trade.mars.1", 5)
    assert list(topics.streams) == names


def test_a_registration_has_one_route_for_its_typed_and_its_raw_stream() -> None:
    topics = made()
    raw = topics.named(RAW, 0)
    route = topics.route(KEY)
    assert (route.key, route.typed, route.raw, route.streams()) == (KEY, None, raw, [raw])
    typed = topics.named(TRADE, 0)
    book = topics.named(BOOK, 0)
    assert topics.route(KEY) is route
    assert route.streams() == [typed, raw]
    assert [r.streams() for r in topics.routes()] == [[typed, raw], [book]]
    assert topics.by_tr["H0STCNT0"] == {b"005930": route}
    assert (route.held, route.halted, route.quiet_before) == (False, False, False)


def test_a_second_topic_of_a_live_registration_is_live_at_once() -> None:
    topics = made()
    typed = topics.named(TRADE, 0)
    assert (typed.held, typed.stream, typed.data) == (False, Stream.RECOVERING, Data.NONE)
    topics.route(KEY).held = True
    raw = topics.named(RAW, 0)
    assert (raw.held, raw.stream, raw.data, raw.code) == (True, Stream.OPEN, Data.OK, Code.NONE)
    # And no other registration is.
    assert topics.named("trade.krx.000660", 0).held is False


def test_what_breaks_while_it_is_live_is_a_gap_of_the_second_topic_too() -> None:
    topics = made()
    topics.named(TRADE, 0)
    topics.route(KEY).held = True
    raw = topics.named(RAW, 0)
    raw.break_off(7)
    assert raw.broken_at == 7


def test_rest_stands_in_for_domestic_trades_alone() -> None:
    topics = made()
    pollable = [tr_id for tr_id in CATALOGUE.trs if topics.pollable((tr_id, "005930"))]
    assert pollable == ["H0NXCNT0", "H0STCNT0"]
