"""Prices by stream and by polling: who lives on which, and which row is still a price."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kisfeed.core import quoting
from kisfeed.core.pollplan import Want
from kisfeed.kfp import codec
from kisfeed.kfp.events import Gap, Trade
from kisfeed.kfp.messages import Code, Data, Source, Stream
from tests.engine_bench import BOOK, TRADE, WALL, Bench, rows_of, statuses, trade

if TYPE_CHECKING:
    from kisfeed.kfp.models import Price

KEY = ("H0STCNT0", "005930")
OTHER = "trade.krx.000660"
OTHER_KEY = ("H0STCNT0", "000660")
#: Seconds from WALL, 11:00 in Seoul, to the next midnight there.
TO_MIDNIGHT_S = 13 * 3_600


def price(symbol: str, px: int = 500, ts: int = 0) -> Price:
    found = quoting.price({"output": {"stck_prpr": str(px)}}, "krx", symbol, ts)
    assert found is not None
    return found


def crowded() -> Bench:
    """One slot, and a topic in it that streams."""
    bench = Bench(cap=1)
    bench.subscribe(TRADE, prio=5)
    bench.rows(trade(100))
    return bench


def wants(bench: Bench) -> list[Want]:
    return bench.engine.prices.to_poll(bench.rts)


def poll(bench: Bench, *, failed: bool = False) -> None:
    prices = {} if failed else {OTHER_KEY: price("000660", ts=bench.rts)}
    bench.engine.prices.polled(prices, [OTHER_KEY] if failed else [], bench.at())


def test_what_is_polled_is_wanted_without_a_stream_and_known_to_rest() -> None:
    bench = crowded()
    assert wants(bench) == []
    waiting = bench.subscribe(OTHER)
    bench.subscribe("book.krx.000660", "raw.H0STCNT0.000270")
    assert wants(bench) == [Want(OTHER_KEY, "krx", "000660", True)]
    bench.engine.unsubscribe(waiting, None, bench.at())
    assert wants(bench) == []


@pytest.mark.parametrize(
    ("asked", "polled"),
    [
        ([{"passive": True}], False),
        ([{"passive": False}], True),
        ([{"passive": True}, {}], True),
        ([{"passive": True, "poll": False}], False),
    ],
)
def test_who_only_watches_has_nothing_polled(asked: list[dict[str, bool]], polled: bool) -> None:
    bench = crowded()
    for spec in asked:
        bench.subscribe(OTHER, **spec)
    assert bool(wants(bench)) is polled


def test_what_kis_refused_for_good_is_not_polled() -> None:
    bench = Bench()
    bench.answers[KEY] = "OPSP8992"
    bench.subscribe(TRADE)
    assert wants(bench) == []


def test_a_price_that_comes_late_does_not_open_what_kis_refused_for_good() -> None:
    bench = Bench()
    bench.answers[KEY] = "OPSP8992"
    program = bench.subscribe(TRADE)
    bench.take(program)
    bench.engine.prices.polled({KEY: price("005930", ts=bench.rts)}, [], bench.at())
    assert bench.take(program) == []


def test_a_polled_price_stands_in_for_the_stream_and_is_told_once() -> None:
    bench = crowded()
    waiting = bench.subscribe(OTHER)
    program = bench.subscriber(encode=True)
    bench.take(waiting)
    for _ in range(2):
        bench.now += 1
        poll(bench)
    told = bench.take(waiting)
    assert [(s.stream, s.data, s.code) for s in statuses(told, OTHER)] == [
        (Stream.SNAPSHOT, Data.OK, Code.SOURCE_POLL)
    ]
    images = [e for e in told if isinstance(e, Trade)]
    assert [(e.image, e.px, e.source, e.rts) for e in images] == [
        (True, 500, Source.POLL, bench.rts - 10**9),
        (True, 500, Source.POLL, bench.rts),
    ]
    assert told.index(statuses(told, OTHER)[0]) < told.index(images[0])
    assert codec.Decoder().feed(b"".join(program.outbox.take(bench.now))) == []


def test_who_wants_no_polled_rows_is_told_of_none() -> None:
    bench = crowded()
    bench.subscribe(OTHER)
    without = bench.subscribe(OTHER, poll=False, passive=True)
    bench.take(without)
    poll(bench)
    assert bench.take(without) == []


def test_when_polling_fails_the_topic_waits_as_before() -> None:
    bench = crowded()
    waiting = bench.subscribe(OTHER)
    poll(bench, failed=True)
    assert [s.code for s in statuses(bench.take(waiting), OTHER)][-1] == Code.OVER_LIMIT
    poll(bench)
    bench.take(waiting)
    poll(bench, failed=True)
    assert [(s.stream, s.data, s.code) for s in statuses(bench.take(waiting), OTHER)] == [
        (Stream.RECOVERING, Data.SUSPECT, Code.OVER_LIMIT)
    ]
    # A raw topic has no price at all.
    bench.subscribe("raw.H0STCNT0.000270")
    bench.engine.prices.polled({("H0STCNT0", "000270"): price("000270")}, [], bench.at())
    bench.engine.prices.polled({}, [("H0STCNT0", "000270")], bench.at())


def test_a_topic_that_streams_again_takes_no_polled_price() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.take(subscriber)
    bench.engine.prices.polled({KEY: price("005930")}, [KEY], bench.at())
    assert bench.take(subscriber) == []


def test_the_stream_that_comes_behind_a_polled_price_is_told_as_promoted() -> None:
    bench = Bench(cap=1)
    loser = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.wait(61)
    winner = bench.subscribe(OTHER, prio=9)
    bench.engine.prices.polled({KEY: price("005930", ts=bench.rts)}, [], bench.at())
    bench.wait(61)
    bench.engine.detach(winner, bench.at())
    bench.wait(61)
    bench.rows(trade(300))
    told = bench.take(loser)
    codes = [s.code for s in statuses(told)]
    assert Code.PROMOTED in codes[codes.index(Code.SOURCE_POLL) :]
    assert [g.missed_qty for g in told if isinstance(g, Gap)] == [190]
    assert [r.sseq for r in rows_of(told)] == [1, 2]


# Quotes by the stream.


def live(bench: Bench, wall_ns: int | None = None) -> Price | None:
    return bench.engine.prices.live("krx", "005930", bench.rts if wall_ns is None else wall_ns)


def test_a_row_of_the_stream_is_a_price_as_long_as_its_feed_is_sound() -> None:
    bench = Bench()
    assert live(bench) is None
    bench.subscribe(TRADE)
    assert live(bench) is None
    bench.rows(trade(100))
    found = live(bench)
    assert found is not None
    assert (found.price, found.volume, found.source) == (71_000, 100, "stream")
    assert (found.venue, found.symbol, found.scale, found.ts) == ("krx", "005930", 0, bench.rts)
    assert bench.engine.prices.live("nxt", "005930", bench.rts) is None
    bench.wait(10.0)
    bench.engine.suspended(600.0, bench.at())
    assert live(bench) is None
    bench.settle()
    assert live(bench) is not None


def test_after_a_break_it_is_a_price_with_the_next_row() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.lose()
    assert live(bench) is None
    bench.reconnect()
    assert live(bench) is None
    bench.rows(trade(110))
    assert live(bench) is not None


def test_a_price_is_of_its_day_in_seoul_to_the_nanosecond() -> None:
    bench = Bench(now=0.0)
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    midnight = WALL + TO_MIDNIGHT_S * 10**9
    day = 86_400 * 10**9
    asked = [midnight - day - 1, midnight - day, midnight - 1, midnight, midnight + day - 1]
    assert [live(bench, at) is not None for at in asked] == [False, True, True, False, False]


def test_the_first_moment_of_a_day_is_of_that_day() -> None:
    bench = Bench(now=float(TO_MIDNIGHT_S))
    bench.subscribe(TRADE)
    bench.now = float(TO_MIDNIGHT_S)
    bench.rows(trade(100))
    midnight = WALL + TO_MIDNIGHT_S * 10**9
    assert bench.rts == midnight
    assert [live(bench, at) is not None for at in (midnight - 1, midnight)] == [False, True]


def test_shares_to_be_known_are_those_that_somebody_wants() -> None:
    bench = Bench(pinned=("trade.krx.000270",))
    bench.subscribe(TRADE, BOOK, "trade.nxt.005930", "trade.unified.000100")
    bench.subscribe(OTHER, passive=True)
    assert bench.engine.prices.symbols() == ["000270", "005930"]
