"""Streams: numbered rows, shared by everybody, with gaps and states told in their place."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.core.outbox import Outbox
from kisfeed.core.streams import Subscriber, TopicStream, Touched
from kisfeed.kfp import codec
from kisfeed.kfp.events import Event, Gap, Lost, Raw, Status, Trade
from kisfeed.kfp.messages import Code, Data, Mode, Source, Stream, Type
from kisfeed.kis.rows import raw
from tests.engine_bench import BOOK, CATALOGUE, TRADE

RAW = "raw.H0STCNT0.005930"
RTS = 1_795_140_000 * 10**9  # 2026-11-20 11:00 in Seoul
MIDNIGHT = RTS + 13 * 3_600 * 10**9


def trade(cum: int, qty: int = 10) -> tuple[Any, ...]:
    return (71_000, qty, cum, *([None] * 12))


@attrs.define(eq=False)
class Hall:
    """One stream and its subscribers."""

    topic: str = TRADE
    touched: Touched = attrs.field(factory=Touched)
    stream: TopicStream = attrs.field(init=False)
    _conns: int = 0

    def __attrs_post_init__(self) -> None:
        topic = CATALOGUE.topic(self.topic)
        self.stream = TopicStream(1, topic, topic.tr.schema, self.touched)

    def join(
        self,
        *,
        encode: bool = False,
        mode: Mode = Mode.ALL,
        queue_bytes: int = 1 << 20,
        hz: float = 0.0,
    ) -> Subscriber:
        self._conns += 1

        def lost(sid: int, first: int, last: int, n: int, code: str) -> Any:
            if encode:
                return codec.frame(Type.LOST, sid, first, last, n, code)
            return Lost(self.topic, sid, first, last, n, code)

        outbox: Outbox[Any] = Outbox(
            size=len if encode else lambda _: 100,
            lost=lost,
            queue_bytes=queue_bytes,
            max_age_s=math.inf,
            max_age_latest_s=math.inf,
        )
        subscriber = Subscriber(f"{self._conns}", self._conns, "reader", outbox, encode=encode)
        subscriber.touched = self.touched
        self.stream.add(subscriber, mode, hz)
        return subscriber

    def held(self) -> None:
        self.stream.held = True
        self.stream.set_state(Stream.OPEN, Data.OK, Code.NONE, RTS, 0.0)

    def row(self, cum: int, qty: int = 10, *, xts: int | None = RTS, rts: int = RTS) -> object:
        gap = self.stream.row(trade(cum, qty), xts, rts, 0.0)
        self.touched.settle()
        return gap


def take(subscriber: Subscriber) -> list[Any]:
    items: list[Any] = subscriber.outbox.take(0.0, 1 << 30)
    return codec.Decoder().feed(b"".join(items)) if subscriber.encode else items


def rows(told: list[Event]) -> list[Trade]:
    return [e for e in told if isinstance(e, Trade) and not e.image]


def test_rows_are_numbered_densely_and_shared_as_they_are() -> None:
    hall = Hall()
    programs = [hall.join(encode=True) for _ in range(3)]
    inside = [hall.join() for _ in range(3)]
    for cum in (100, 110, 120):
        hall.row(cum)
    frames = [subscriber.outbox.take(0.0) for subscriber in programs]
    assert all(x is y for other in frames[1:] for x, y in zip(frames[0], other, strict=True))
    decoded = codec.Decoder().feed(b"".join(frames[0]))
    assert [m[:3] for m in decoded] == [[Type.TICK, 1, n] for n in (1, 2, 3)]
    objects = [take(subscriber) for subscriber in inside]
    assert [e.sseq for e in objects[0]] == [1, 2, 3]
    assert all(x is y for other in objects[1:] for x, y in zip(objects[0], other, strict=True))


def test_who_joins_later_begins_at_the_row_after() -> None:
    hall = Hall()
    hall.row(100)
    late = hall.join()
    hall.row(110)
    assert [e.sseq for e in take(late)] == [2]
    hall.stream.remove(late)
    hall.row(120)
    assert take(late) == []
    assert late.streams == {}


def test_rows_that_wait_are_delivered_to_who_left() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.row(100)
    hall.stream.remove(subscriber)
    assert [e.sseq for e in take(subscriber)] == [1]


def test_everybody_touched_is_named_once() -> None:
    hall = Hall()
    one, two = hall.join(), hall.join(encode=True)
    hall.row(100)
    hall.row(110)
    assert sorted(s.conn for s in hall.touched.take()) == [one.conn, two.conn]
    assert hall.touched.take() == []
    hall.row(120)
    hall.held()
    assert sorted(s.conn for s in hall.touched.take()) == [one.conn, two.conn]
    assert hall.touched.take() == []


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(["row", "break", "state", "join", "leave", "take"]),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 12),
)
def test_every_subscriber_sees_one_order_and_every_jump_is_told(plan: list[str], room: int) -> None:
    hall = Hall()
    hall.held()
    loose, tight = hall.join(), hall.join(queue_bytes=room * 100)
    got: dict[int, list[Event]] = {loose.conn: [], tight.conn: []}
    guests: list[Subscriber] = []
    cum = 0
    for step in plan:
        match step:
            case "row":
                cum += 10
                hall.row(cum)
            case "break":
                hall.stream.break_off(RTS)
                hall.stream.held = True
            case "state":
                data = Data.SUSPECT if hall.stream.data is Data.OK else Data.OK
                hall.stream.set_state(Stream.OPEN, data, Code.NONE, RTS, 0.0)
            case "join":
                guests.append(hall.join(encode=len(guests) % 2 == 0))
            case "leave" if guests:
                hall.stream.remove(guests.pop())
            case "take":
                got[tight.conn] += take(tight)
            case _:
                pass
    for subscriber in (loose, tight):
        got[subscriber.conn] += take(subscriber)
    everything, partly = got[loose.conn], got[tight.conn]
    assert [r.sseq for r in rows(everything)] == list(range(1, len(rows(everything)) + 1))
    # What the tight one got is the same, less the rows it was told of.
    told = [e for e in partly if not isinstance(e, Lost)]
    assert told == [e for e in everything if e in told]
    missing = len(rows(everything)) - len(rows(partly))
    assert sum(e.n for e in partly if isinstance(e, Lost)) == missing == tight.outbox.dropped


# Gaps.


def test_a_break_ends_what_was_held() -> None:
    hall = Hall()
    hall.held()
    hall.stream.break_off(RTS)
    assert not hall.stream.held
    # And what is not held does not break again.
    hall.row(100)
    hall.stream.break_off(RTS + 1)
    assert hall.stream.broken_at is None


def test_what_breaks_twice_before_its_next_row_broke_the_first_time() -> None:
    hall = Hall()
    hall.held()
    hall.row(100)
    for moment in (1, 2):
        hall.stream.held = True
        hall.stream.break_off(RTS + moment)
    assert hall.stream.broken_at == RTS + 1


def test_what_had_nothing_yet_and_was_not_open_does_not_break() -> None:
    hall = Hall()
    hall.stream.held = True
    hall.stream.break_off(RTS)
    assert hall.stream.broken_at is None


def test_a_break_behind_a_promotion_is_a_break() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.held()
    hall.row(100)
    hall.stream.break_off(RTS)
    hall.stream.break_code = Code.PROMOTED
    hall.stream.held = True
    hall.stream.break_off(RTS + 1)
    hall.row(200)
    assert [e.code for e in take(subscriber) if isinstance(e, Gap)] == [Code.GAP_DETECTED]


def test_a_gap_comes_before_its_row_to_programs_too() -> None:
    hall = Hall()
    hall.held()
    inside, program = hall.join(), hall.join(encode=True)
    hall.row(100, rts=RTS + 1)
    hall.stream.break_off(RTS + 2)
    hall.held()
    hall.row(150, rts=RTS + 3)
    before, gap, after = take(inside)
    assert (before.after_gap, after.after_gap) == (False, True)
    assert gap == Gap(TRADE, 1, 1, 2, RTS + 1, RTS + 3, 40, Code.GAP_DETECTED)
    messages = take(program)
    assert [m[0] for m in messages] == [Type.TICK, Type.GAP, Type.TICK]
    assert messages[1] == [Type.GAP, 1, 1, 2, RTS + 1, RTS + 3, 40, "gap_detected"]


def test_what_was_never_held_is_not_broken() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.stream.break_off(RTS)
    hall.row(100)
    assert [type(e) for e in take(subscriber)] == [Trade]


def test_a_break_before_the_first_row_is_told_from_its_beginning() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.held()
    hall.stream.break_off(RTS + 5)
    hall.stream.break_off(RTS + 9)  # the same break
    hall.row(100, rts=RTS + 20)
    gap = next(e for e in take(subscriber) if isinstance(e, Gap))
    assert (gap.from_rts, gap.to_rts, gap.missed_qty) == (RTS + 5, RTS + 20, None)


def test_the_code_of_a_break_holds_for_one_gap() -> None:
    hall = Hall()
    subscriber = hall.join()
    for code, cum in ((Code.PROMOTED, 100), (Code.GAP_DETECTED, 200)):
        hall.held()
        hall.stream.break_off(RTS)
        if code is Code.PROMOTED:
            hall.stream.break_code = code
        hall.row(cum)
    assert [e.code for e in take(subscriber) if isinstance(e, Gap)] == ["promoted", "gap_detected"]


def test_the_account_begins_anew_at_midnight_in_seoul() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.row(100, xts=MIDNIGHT - 10**9)
    hall.row(50, xts=MIDNIGHT)
    hall.row(90, xts=MIDNIGHT + 10**9)
    told = take(subscriber)
    assert [e.correction for e in rows(told)] == [False, False, False]
    assert [e.missed_qty for e in told if isinstance(e, Gap)] == [30]


def test_a_falling_volume_is_flagged() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.row(100)
    hall.row(80)
    assert [e.correction for e in rows(take(subscriber))] == [False, True]


def test_a_book_has_no_volume_to_be_measured_by() -> None:
    hall = Hall(BOOK)
    subscriber = hall.join()
    hall.held()
    row = (None,) * 9
    hall.stream.row(row, RTS, RTS, 0.0)
    hall.stream.break_off(RTS)
    gap = hall.stream.row(row, RTS, RTS, 0.0)
    hall.touched.settle()
    assert gap is not None
    assert (gap.qty, gap.jump) == (None, False)
    assert len([e for e in take(subscriber) if isinstance(e, Gap)]) == 1


def test_a_break_can_be_told_without_a_row() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.held()
    assert not hall.stream.tell_break(RTS, 0.0)
    hall.stream.break_off(RTS + 1)
    assert hall.stream.tell_break(RTS + 2, 0.0)
    assert not hall.stream.tell_break(RTS + 3, 0.0)
    hall.row(100)
    assert [type(e) for e in take(subscriber)] == [Status, Gap, Trade]


# States and images.


def test_a_state_is_told_when_it_changes_and_only_then() -> None:
    hall = Hall()
    subscriber = hall.join()
    for _ in range(3):
        hall.held()
    hall.stream.set_state(Stream.OPEN, Data.SUSPECT, Code.RESYNCING, RTS, 0.0, tell=False)
    assert [e.data for e in take(subscriber)] == [Data.OK]
    assert hall.stream.status()[1].data == Data.SUSPECT


def test_the_image_is_the_last_row() -> None:
    hall = Hall()
    assert hall.stream.image() is None
    hall.row(100)
    hall.row(110)
    image = hall.stream.image()
    assert image is not None
    frame, event = image
    assert isinstance(event, Trade)
    assert (event.image, event.sseq, event.cum_qty) == (True, 2, 110)
    assert codec.Decoder().feed(frame)[0][:3] == [Type.IMAGE, 1, 2]


def test_a_polled_price_is_an_image_and_no_row() -> None:
    hall = Hall()
    taker, other = hall.join(), hall.join()
    hall.row(100, rts=RTS + 1)
    hall.stream.poll(trade(180), RTS + 2, 0.0, [taker])
    told = take(taker)
    assert [(e.image, e.sseq, e.source) for e in told if isinstance(e, Trade)][-1] == (
        True,
        1,
        Source.POLL,
    )
    assert len(take(other)) == 1
    # The account knows the stream's own rows alone.
    hall.row(200, rts=RTS + 3)
    assert [e.missed_qty for e in take(taker) if isinstance(e, Gap)] == [90]
    newest = hall.stream.image()
    assert newest is not None
    assert isinstance(newest[1], Trade)
    assert newest[1].cum_qty == 200


@pytest.mark.parametrize("mode", [Mode.LATEST, Mode.HZ])
def test_who_wants_the_latest_gets_it_behind_the_gap_before_it(mode: Mode) -> None:
    hall = Hall()
    hall.held()
    subscriber = hall.join(mode=mode, hz=1.0 if mode is Mode.HZ else 0.0)
    hall.row(100)
    hall.stream.break_off(RTS)
    hall.row(150)
    hall.row(160)
    told = take(subscriber)
    assert [type(e) for e in told] == [Gap, Trade]
    assert told[1].sseq == 3
    assert subscriber.outbox.conflated == 2


@given(
    st.lists(
        st.one_of(
            st.text("0aZ가\x00", max_size=300).map(str.encode),
            st.binary(max_size=8).filter(lambda value: b"^" not in value),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_raw_row_is_the_same_to_programs_and_in_process(fields: list[bytes]) -> None:
    hall = Hall()
    hall.stream = TopicStream(1, CATALOGUE.topic(RAW), "raw.H0STCNT0", hall.touched)
    outside, inside = hall.join(encode=True), hall.join()
    hall.stream.row(fields, None, RTS, 0.0)
    hall.touched.settle()
    (event,) = take(inside)
    (message,) = take(outside)
    image = hall.stream.image()
    assert image is not None
    (shown,) = codec.Decoder().feed(image[0])
    assert event.fields == raw(fields)
    assert message[1:] == shown[1:] == [1, 1, 0, None, RTS, *event.fields]
    assert isinstance(image[1], Raw)
    assert attrs.evolve(image[1], image=False) == event


def test_what_is_told_to_many_programs_is_one_frame() -> None:
    hall = Hall()
    programs = [hall.join(encode=True) for _ in range(3)]
    inside = hall.join()
    hall.held()
    frames = [program.outbox.take(0.0)[0] for program in programs]
    assert frames[0] is frames[1] is frames[2]
    assert codec.Decoder().feed(frames[0])[0][0] == Type.STATUS
    assert [type(event) for event in take(inside)] == [Status]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    )
)
def test_everybody_gets_the_rows_of_its_streams_and_no_other(
    plan: list[tuple[int, int]],
) -> None:
    halls = [Hall()]
    for number in (1, 2):
        hall = Hall(f"trade.krx.{number:06}", halls[0].touched)
        hall.stream.sid = number + 1
        halls.append(hall)
    people = [halls[0].join(encode=encode) for encode in (False, True, False, True)]
    for where, who in plan:
        hall, subscriber = halls[where], people[who]
        if subscriber.conn in hall.stream.subscribers:
            hall.stream.remove(subscriber)
        else:
            hall.stream.add(subscriber, Mode.ALL, 0.0)
        for each in halls:
            each.stream.row(trade(100), RTS, RTS, 0.0)
        halls[0].touched.settle()
        for one in people:
            told = take(one)
            sids = [event[1] if one.encode else event.sid for event in told]
            assert sids == [h.stream.sid for h in halls if one.conn in h.stream.subscribers]


@pytest.mark.parametrize(
    ("topic", "scale"), [("trade.index.0001", 2), (TRADE, 0), ("program.krx.005930", 0)]
)
def test_prices_of_a_stream_have_the_scale_of_its_tr(topic: str, scale: int) -> None:
    assert Hall(topic).stream.scale == scale


def test_who_is_behind_gets_the_next_polled_price_and_not_this_one() -> None:
    hall = Hall()
    hall.held()
    behind, beyond = hall.join(encode=True), hall.join(encode=True)
    for subscriber, size in ((behind, 32_768), (beyond, 32_769)):
        take(subscriber)
        subscriber.control(bytes(size), 0.0)
    hall.stream.poll(trade(100), RTS, 0.0, [behind, beyond])
    assert [s.outbox.control_bytes > 32_769 for s in (behind, beyond)] == [True, False]


def test_a_state_counts_from_when_it_was_told() -> None:
    hall = Hall()
    hall.held()
    assert hall.stream.since_ts == RTS
    hall.stream.set_state(Stream.OPEN, Data.SUSPECT, Code.RESYNCING, RTS + 5, 0.0)
    assert hall.stream.status()[1].since_ts == RTS + 5
    hall.stream.set_state(Stream.OPEN, Data.SUSPECT, Code.RESYNCING, RTS + 9, 0.0)
    assert hall.stream.status()[1].since_ts == RTS + 5


@pytest.mark.parametrize(("polled_at", "shown"), [(-1, 100), (0, 100), (1, 180)])
def test_the_image_is_the_newer_of_row_and_polled_price(polled_at: int, shown: int) -> None:
    hall = Hall()
    hall.row(100)
    hall.stream.poll(trade(180), RTS + polled_at, 0.0, [])
    image = hall.stream.image()
    assert image is not None
    assert isinstance(image[1], Trade)
    assert image[1].cum_qty == shown


def test_a_row_without_a_time_counts_on_the_day_it_was_received() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.row(100, xts=RTS)
    hall.row(200, xts=None)
    (gap,) = [e for e in take(subscriber) if isinstance(e, Gap)]
    assert gap.missed_qty is not None


def test_who_left_has_the_sid_open_no_more() -> None:
    hall = Hall()
    subscriber = hall.join()
    hall.stream.remove(subscriber)
    with pytest.raises(KeyError):
        subscriber.outbox.tick(1, 1, None, 0.0)
