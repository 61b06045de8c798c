"""Subscriptions: what each program asked for, and what it is told first."""

from __future__ import annotations

import pytest

from kisfeed.core.subscriptions import SubResult, SubSpec
from kisfeed.kfp import codec
from kisfeed.kfp.events import Event, Notice, Status, Trade
from kisfeed.kfp.messages import Code, Data, ErrorCode, Mode, Stream, Type
from tests.engine_bench import BOOK, NOTICE, TRADE, Bench, notice, rows_of, statuses, trade

KEY = ("H0STCNT0", "005930")


def kinds(told: list[Event]) -> list[str]:
    return [type(event).__name__ for event in told]


def sseqs(told: list[Event]) -> list[int]:
    return [row.sseq for row in rows_of(told)]


def test_a_topic_alone_is_every_row_its_image_and_polled_prices() -> None:
    assert SubSpec("x") == SubSpec("x", Mode.ALL, 0.0, 0, False, True, True, None)


def test_what_is_refused_has_no_sid_and_no_numbers() -> None:
    bench = Bench()
    subscriber = bench.subscriber()
    (result,) = bench.engine.subscribe(subscriber, [SubSpec("trade.mars.1")], bench.at())
    assert result == SubResult(
        "trade.mars.1",
        None,
        "",
        0,
        0,
        Stream.CLOSED,
        Data.NONE,
        ErrorCode.UNKNOWN_TOPIC,
        result.text,
    )
    assert result.text


def test_what_is_had_is_named_as_it_stands() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    subscriber = bench.subscriber()
    (result,) = bench.engine.subscribe(subscriber, [SubSpec(TRADE)], bench.at())
    assert result == SubResult(TRADE, 1, "trade.v1", 0, 1, Stream.OPEN, Data.OK, Code.NONE, "")


def test_results_stand_in_the_order_of_the_question() -> None:
    bench = Bench()
    subscriber = bench.subscriber()
    specs = [SubSpec(name) for name in (BOOK, "x", TRADE, BOOK)]
    results = bench.engine.subscribe(subscriber, specs, bench.at())
    assert [(r.topic, r.sid) for r in results] == [(BOOK, 1), ("x", None), (TRADE, 2), (BOOK, 1)]


def test_asking_again_changes_how_it_is_had() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100), trade(110))
    bench.take(subscriber)
    bench.engine.subscribe(subscriber, [SubSpec(TRADE, Mode.LATEST, prio=4)], bench.at())
    bench.take(subscriber)
    bench.rows(trade(120), trade(130))
    assert sseqs(bench.take(subscriber)) == [4]
    (slot,) = bench.engine.slots(bench.now)
    assert (slot["priority"], slot["users"]) == (4, 1)
    # What is kept is the last question: a rate that was named stays with the mode.
    bench.engine.subscribe(subscriber, [SubSpec(TRADE, Mode.HZ, 0.5)], bench.at())
    bench.take(subscriber)
    bench.engine.retune(subscriber, 1, bench.at(), prio=2)
    bench.rows(trade(140))
    assert sseqs(bench.take(subscriber)) == [5]
    bench.rows(trade(150))
    assert sseqs(bench.take(subscriber)) == []
    assert subscriber.outbox.next_due() == bench.now + 2.0


def test_who_is_passive_neither_takes_a_slot_nor_gets_one_by_retuning() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, passive=True)
    assert bench.sent == []
    assert bench.engine.retune(subscriber, 1, bench.at(), prio=9) == 0
    bench.settle()
    assert bench.sent == []


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"prio": 3}, [2]),
        ({"mode": Mode.HZ}, [2]),
        ({"hz": 4.0}, [2]),
        ({"mode": Mode.ALL}, [2, 3]),
        ({"mode": Mode.LATEST}, [3]),
        ({"mode": Mode.ALL, "hz": 9.0, "prio": 0}, [2, 3]),
    ],
)
def test_retuning_changes_what_is_named_and_nothing_else(
    change: dict[str, object], rows: list[int]
) -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, mode=Mode.HZ, hz=2.0, prio=1)
    bench.rows(trade(100))
    bench.take(subscriber)
    bench.now += 1
    baseline = bench.engine.retune(subscriber, 1, bench.at(), **change)  # type: ignore[arg-type]
    assert baseline == 1
    bench.rows(trade(110))
    got = [] if change.get("mode") is Mode.LATEST else sseqs(bench.take(subscriber))
    bench.rows(trade(120))
    got += sseqs(bench.take(subscriber))
    assert got == rows
    if subscriber.outbox.ready:
        assert subscriber.outbox.next_due() == bench.now + (0.25 if "hz" in change else 0.5)
    (slot,) = bench.engine.slots(bench.now)
    assert slot["priority"] == change.get("prio", 1)


def test_only_another_priority_asks_for_another_judgement_of_the_slots() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, prio=1)
    stream = subscriber.streams[1]
    retune = bench.engine.subscriptions.retune
    assert not retune(subscriber, stream, bench.at(), mode=Mode.LATEST, hz=None, prio=None)
    assert not retune(subscriber, stream, bench.at(), mode=None, hz=None, prio=1)
    assert retune(subscriber, stream, bench.at(), mode=None, hz=None, prio=2)
    assert not retune(subscriber, stream, bench.at(), mode=None, hz=None, prio=2)


def test_a_topic_without_polled_rows_is_had_while_there_is_a_slot() -> None:
    bench = Bench(cap=1)
    bench.subscribe(TRADE, poll=False)
    assert bench.sent == [(True, KEY)]
    beyond = SubSpec("trade.krx.000660", poll=False)
    reader, watcher = bench.subscriber(), bench.subscriber()
    (refused,) = bench.engine.subscribe(reader, [beyond], bench.at())
    assert (refused.sid, refused.code) == (None, ErrorCode.OVER_LIMIT)
    assert refused.text.endswith(TRADE)
    # Who is passive never had a claim to a slot.
    passive = SubSpec("trade.krx.000660", passive=True, poll=False)
    (had,) = bench.engine.subscribe(watcher, [passive], bench.at())
    assert had.sid is not None
    assert bench.engine.unsubscribe(reader, None, bench.at()) == []


def test_a_refused_topic_leaves_no_interest_behind() -> None:
    bench = Bench(cap=1)
    first = bench.subscribe(TRADE)
    reader = bench.subscriber()
    bench.engine.subscribe(reader, [SubSpec("trade.krx.000660", poll=False)], bench.at())
    bench.engine.unsubscribe(first, None, bench.at())
    assert not bench.engine.interest.any_active()
    assert bench.take(reader) == []


def test_without_a_reply_the_status_comes_first_and_the_image_behind_it() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    inside = bench.subscribe(TRADE, "x", BOOK)
    told = bench.take(inside)
    assert kinds(told) == ["Status", "Trade", "Status", "Status"]
    assert [e.topic for e in told if isinstance(e, Status)] == [TRADE, BOOK, BOOK]


def test_a_reply_stands_in_for_the_status_and_knows_every_result() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    program = bench.subscriber(encode=True)
    specs = [SubSpec(TRADE), SubSpec("x"), SubSpec(BOOK, image=False)]

    def reply(results: list[SubResult]) -> bytes:
        return codec.frame(Type.RES, 1, {"sids": [r.sid for r in results]})

    bench.engine.subscribe(program, specs, bench.at(), reply)
    messages = codec.Decoder().feed(b"".join(program.outbox.take(bench.now)))
    assert messages[0] == [Type.RES, 1, {"sids": [1, None, 2]}]
    assert [m[:3] for m in messages[1:]] == [[Type.IMAGE, 1, 1]]


def test_notices_are_told_again_to_who_names_the_last_one_it_has_and_have_no_image() -> None:
    bench = Bench()
    bench.subscribe(NOTICE)
    bench.rows(notice("1"), tr_id="H0STCNI0")
    bench.rows(notice("2"), tr_id="H0STCNI0")

    def numbers(after: int | None) -> list[int]:
        told = bench.take(bench.subscribe(NOTICE, after=after))
        return [e.nseq for e in told if isinstance(e, Notice)]

    assert [numbers(after) for after in (1, 0, None)] == [[2], [1, 2], []]
    # A number says nothing where there are no notices.
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    told = bench.take(bench.subscribe(TRADE, after=0))
    assert kinds(told) == ["Status", "Trade"]


def test_who_leaves_is_heard_no_more_and_its_other_topics_stay() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, BOOK)
    other = bench.subscribe(TRADE)
    assert bench.engine.unsubscribe(subscriber, [9, 1, 1], bench.at()) == [1]
    assert list(subscriber.streams) == [2]
    assert bench.engine.retune(subscriber, 1, bench.at(), prio=1) is None
    bench.rows(trade(100))
    assert rows_of(bench.take(subscriber)) == []
    assert len(rows_of(bench.take(other))) == 1
    assert bench.engine.interest.holders(KEY) == [(other.conn, 1)]
    assert bench.engine.unsubscribe(subscriber, [], bench.at()) == []
    assert list(subscriber.streams) == [2]
    for one in (subscriber, other):
        bench.engine.detach(one, bench.at())
    assert bench.engine.subscriptions._specs == {}


def test_who_takes_polled_images_is_who_did_not_decline() -> None:
    bench = Bench()
    yes, no = bench.subscribe(TRADE), bench.subscribe(TRADE, poll=False)
    stream = yes.streams[1]
    assert list(bench.engine.subscriptions.takers(stream)) == [yes]
    bench.engine.unsubscribe(yes, None, bench.at())
    assert bench.engine.subscriptions.takers(stream) == {}
    assert list(no.streams) == [1]


def test_an_image_of_what_has_no_row_is_its_state_alone() -> None:
    bench = Bench()
    result, frame = bench.engine.subscriptions.image(TRADE, bench.at())
    assert (result.sseq, result.stream, result.code, frame) == (
        0,
        Stream.RECOVERING,
        Code.PENDING,
        None,
    )
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    result, frame = bench.engine.subscriptions.image(TRADE, bench.at())
    assert (result.sseq, result.stream) == (1, Stream.OPEN)
    assert frame is not None
    assert codec.Decoder().feed(frame)[0][:3] == [Type.IMAGE, 1, 1]


def test_who_is_attached_is_listed_and_told_of_every_session() -> None:
    bench = Bench()
    subscriber = bench.subscriber()
    bench.subscribe(TRADE)
    assert kinds(bench.take(subscriber)) == ["Session"] * 3
    assert subscriber in bench.engine.take_dirty()
    (first, second) = bench.engine.subscriptions.clients(bench.now)
    assert (first["conn"], first["topics"]) == (1, [])
    assert (second["conn"], second["topics"]) == (2, [TRADE])


def test_an_image_comes_as_its_taker_takes_it() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    inside, program = bench.subscribe(TRADE), bench.subscriber(encode=True)
    bench.engine.subscribe(program, [SubSpec(TRADE)], bench.at())
    images = [e for e in bench.take(inside) if isinstance(e, Trade)]
    assert [(e.image, e.sseq) for e in images] == [(True, 1)]
    messages = codec.Decoder().feed(b"".join(program.outbox.take(bench.now)))
    assert [m[0] for m in messages] == [Type.STATUS, Type.IMAGE]
    assert statuses(bench.take(inside)) == []
