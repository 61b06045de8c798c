"""Order notices: numbered for the whole run, kept for one day of Seoul."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kisfeed.core.noticelog import NoticeLog
from kisfeed.kfp import codec
from kisfeed.kfp.events import Notice, Trade
from kisfeed.kfp.messages import MAX_FRAME, Mode, Type
from tests.engine_bench import NOTICE
from tests.test_core_streams import MIDNIGHT, RTS, Hall, take, trade

if TYPE_CHECKING:
    from kisfeed.core.streams import Subscriber

A_DAY = 86_400 * 10**9


def told(subscriber: Subscriber) -> list[int]:
    return [notice.nseq for notice in take(subscriber)]


def again(log: NoticeLog, hall: Hall, after: int = 0) -> list[int]:
    guest = hall.join()
    log.tell_again(guest, hall.stream, after, 0.0)
    return told(guest)


def test_a_notice_goes_to_everybody_as_they_take_it() -> None:
    hall, log = Hall(NOTICE), NoticeLog()
    inside, program = hall.join(), hall.join(encode=True)
    fields: dict[str, Any] = {"order_no": "7"}
    log.tell(hall.stream, "fill", RTS - 5, fields, RTS, 0.0)
    assert take(inside) == [Notice(NOTICE, 1, RTS - 5, RTS, "fill", fields)]
    named = {"topic": NOTICE, "order_no": "7"}
    assert take(program) == [[Type.NOTICE, 1, RTS - 5, RTS, "fill", named]]


def test_what_is_told_again_is_the_very_same() -> None:
    hall, log = Hall(NOTICE), NoticeLog()
    first = hall.join()
    log.tell(hall.stream, "fill", None, {"order_no": "7"}, RTS, 0.0)
    program, inside = hall.join(encode=True), hall.join()
    for guest in (program, inside):
        log.tell_again(guest, hall.stream, 0, 0.0)
    assert take(inside)[0] is take(first)[0]
    assert codec.Decoder().feed(program.outbox.take(0.0)[0])[0][:2] == [Type.NOTICE, 1]


def test_only_what_came_behind_the_number_is_told_again() -> None:
    hall, log = Hall(NOTICE), NoticeLog()
    subscriber = hall.join()
    for _ in range(3):
        log.tell(hall.stream, "fill", None, {}, RTS, 0.0)
    assert told(subscriber) == [1, 2, 3]
    assert [again(log, hall, after) for after in (0, 1, 2, 3, 9)] == [
        [1, 2, 3],
        [2, 3],
        [3],
        [],
        [],
    ]


def test_all_of_a_day_is_told_again_however_much_it_is() -> None:
    log = NoticeLog()
    halls = [Hall(NOTICE), Hall("notice.krx.another")]
    for number in range(600):
        log.tell(halls[number % 2].stream, "fill", None, {"memo": "x" * 5000}, RTS, 0.0)
    program = halls[0].join(encode=True)
    for hall in halls:
        log.tell_again(program, hall.stream, 0, 0.0)
    log.tell(halls[0].stream, "fill", None, {}, RTS, 0.0)
    assert not program.outbox.overflowed
    assert program.outbox.queued_bytes > 2 * MAX_FRAME
    seen = []
    decoder = codec.Decoder()
    while program.outbox.ready:
        for frame in program.outbox.take(0.0):
            seen += [message[1] for message in decoder.feed(frame)]
    assert seen == [*range(1, 600, 2), *range(2, 601, 2), 601]


def test_another_topics_notices_are_not_told_again() -> None:
    log = NoticeLog()
    mine, other = Hall(NOTICE), Hall("notice.krx.another")
    log.tell(mine.stream, "fill", None, {}, RTS, 0.0)
    log.tell(other.stream, "fill", None, {}, RTS, 0.0)
    log.tell(mine.stream, "fill", None, {}, RTS, 0.0)
    assert (again(log, mine), again(log, other)) == ([1, 3], [2])


def test_a_day_begins_at_midnight_in_seoul_to_the_nanosecond() -> None:
    hall, log = Hall(NOTICE), NoticeLog()
    kept = []
    for rts in (RTS, MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + A_DAY - 1, MIDNIGHT + A_DAY):
        log.tell(hall.stream, "fill", None, {}, rts, 0.0)
        kept.append(again(log, hall))
    assert kept == [[1], [1, 2], [3], [3, 4], [5]]


def test_a_notice_comes_behind_the_rows_before_it_and_wakes_its_reader() -> None:
    hall, log = Hall(NOTICE), NoticeLog()
    subscriber = hall.join()
    hall.touched.take()
    log.tell(hall.stream, "fill", None, {}, RTS, 0.0)
    assert hall.touched.take() == [subscriber]
    rows = Hall(touched=hall.touched)
    rows.stream.sid = 2
    rows.stream.add(subscriber, Mode.ALL, 0.0)
    rows.stream.row(trade(100), RTS, RTS, 0.0)
    log.tell(hall.stream, "fill", None, {}, RTS, 0.0)
    assert [type(event) for event in take(subscriber)] == [Notice, Trade, Notice]
