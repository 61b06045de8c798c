"""Streams and their subscribers: sids, sequence numbers, last values, and the fan-out.

A stream is one topic of this daemon instance. It numbers its rows densely, keeps the last one,
and puts every row into the outbox of each subscriber: one encoded frame shared by all programs,
one event object shared by all in-process subscribers.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary, ref

import attrs

from kisfeed.core.gaps import Missed, VolumeAccount
from kisfeed.core.outbox import runs
from kisfeed.kfp import codec, events
from kisfeed.kfp.messages import (
    FLAG_AFTER_GAP,
    FLAG_CORRECTION,
    Code,
    Data,
    Mode,
    Source,
    Stream,
    Type,
)
from kisfeed.kis.rows import raw
from kisfeed.seoul import DAY_NS, KST_NS, day_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kisfeed.core.outbox import Outbox, Tick
    from kisfeed.kis.catalogue import Topic

T = TypeVar("T")

_TICK: Final = int(Type.TICK)
_BY_NIGHT: Final = frozenset({"nightfut", "nightopt"})  # 18:00 to 06:00: one day, noon to noon
_POLL_ROOM: Final = 32_768  # a subscriber behind by more gets the next polled image, not this one


class LastValue(NamedTuple):
    """The newest row of a stream."""

    sseq: int
    flags: int
    xts: int | None
    rts: int
    row: Sequence[Any]


_text_frame: Final = codec.text_frame
_new: Final = tuple.__new__  # half the price of the generated constructor, once a row


@attrs.define(eq=False)
class _Audience(Generic[T]):
    """Outboxes that take the same ticks; streams with the same subscribers have the same one.

    It knows what it last became, because a program that comes to one of its streams comes to the
    others, too: whom a thousand streams have is counted once, not for each of them.
    """

    conns: tuple[int, ...] = ()
    boxes: tuple[Outbox[T], ...] = ()
    became: tuple[int, ref[_Audience[T]]] | None = None


@attrs.define(eq=False)
class _Spread(Generic[T]):
    """Gathers consecutive ticks of one audience, so that each of its outboxes takes them at once.

    Nothing is gathered for longer than one call of the engine.

    Attributes:
        nobody: the audience of a stream without subscribers.
    """

    _join: Callable[[list[T]], T] | None
    _audience: _Audience[T] = attrs.field(factory=_Audience, init=False)
    _ticks: list[Tick[T]] = attrs.field(factory=list, init=False)
    _known: WeakValueDictionary[tuple[int, ...], _Audience[T]] = attrs.field(
        factory=WeakValueDictionary, init=False
    )
    nobody: _Audience[T] = attrs.field(factory=_Audience, init=False)

    def __attrs_post_init__(self) -> None:
        # Kept, and with it what it last became, though new streams have subscribers at once.
        self._known[()] = self.nobody

    def changed(self, audience: _Audience[T], subscriber: Subscriber) -> _Audience[T]:
        """*audience* with *subscriber*, or without it where it has it."""
        conn = subscriber.conn
        if audience.became is not None and audience.became[0] == conn:
            known = audience.became[1]()
            if known is not None:
                return known
        conns, boxes = audience.conns, audience.boxes
        at = bisect_left(conns, conn)
        if conn in conns[at : at + 1]:
            found = self._shared(conns[:at] + conns[at + 1 :], boxes[:at] + boxes[at + 1 :])
        else:
            box = (subscriber.outbox,)
            found = self._shared((*conns[:at], conn, *conns[at:]), boxes[:at] + box + boxes[at:])
        audience.became = conn, ref(found)
        return found

    def _shared(self, conns: tuple[int, ...], boxes: tuple[Outbox[T], ...]) -> _Audience[T]:
        found = self._known.get(conns)
        if found is None:
            self._known[conns] = found = _Audience(conns, boxes)
        return found

    def add(self, audience: _Audience[T], tick: Tick[T]) -> None:
        """Put *tick* into the outboxes of *audience*, behind all that was added before it."""
        if audience is not self._audience:
            self.settle()
            self._audience = audience
        self._ticks.append(tick)

    def settle(self) -> None:
        """Put what was gathered into the outboxes: call it before anything else goes there."""
        ticks = self._ticks
        if not ticks:
            return
        boxes = self._audience.boxes
        if len(ticks) == 1:
            tick = ticks[0]
            ticks.clear()
            length = boxes[0].size(tick[2])
            for box in boxes:
                box.put(tick, length)
            return
        self._ticks = []
        for run in runs(ticks, boxes[0].size, self._join):
            for box in boxes:
                box.put_run(run)


@attrs.define(eq=False)
class Touched:
    """Who has something to be sent since the last look, and the ticks on their way there."""

    streams: dict[int, TopicStream] = attrs.field(factory=dict)
    subscribers: dict[int, Subscriber] = attrs.field(factory=dict)
    frames: _Spread[bytes] = attrs.field(factory=lambda: _Spread(b"".join))
    events: _Spread[events.Event] = attrs.field(factory=lambda: _Spread(None))

    def settle(self) -> None:
        """Put every tick that was published into its outboxes."""
        self.frames.settle()
        self.events.settle()

    def take(self) -> list[Subscriber]:
        """Every subscriber whose outbox was put something into; each is handed out once."""
        self.settle()
        found = self.subscribers
        for stream in self.streams.values():
            found.update(stream.subscribers)
        self.subscribers = {}
        self.streams.clear()
        return list(found.values())


@attrs.define(eq=False)
class Subscriber:
    """One local program, or one in-process subscription.

    Attributes:
        name: what it calls itself.
        conn: numbers the connections of this instance.
        role: ``reader`` or ``trader``.
        outbox: what it has not been sent yet.
        encode: True takes frames (bytes), False takes event objects.
        pid: the peer's process, where it has one.
        since_ts: when it came, nanoseconds since 1970 UTC.
        sink: the door's own handle, with which it wakes or sends.
    """

    name: str
    conn: int
    role: str
    outbox: Outbox[Any]
    encode: bool
    pid: int | None = None
    since_ts: int = 0
    sink: object = None
    streams: dict[int, TopicStream] = attrs.field(factory=dict, init=False)
    touched: Touched = attrs.field(factory=Touched, init=False)

    def control(self, item: Any, now: float) -> None:
        """Queue one control item as this subscriber takes it: a frame or an event."""
        self.touched.settle()
        self.outbox.control(item, now)
        self.touched.subscribers[self.conn] = self

    def notice(self, frame: bytes, event: events.Notice, now: float) -> None:
        """Queue an order notice, losslessly."""
        self.touched.settle()
        self.outbox.notice(frame if self.encode else event, now)
        self.touched.subscribers[self.conn] = self

    def notices_again(
        self, notices: Iterable[tuple[bytes, events.Notice]], whole: int, now: float
    ) -> None:
        """Queue notices that it asked for; *whole* is how many bytes are kept in all."""
        self.touched.settle()
        told = [frame if self.encode else event for frame, event in notices]
        self.outbox.again(told, whole, now)
        self.touched.subscribers[self.conn] = self


def tell(
    subscribers: Iterable[Subscriber],
    kind: Type,
    body: Sequence[object],
    event: events.Event,
    now: float,
) -> None:
    """Queue one control message for all of *subscribers*, in order with the ticks."""
    frame: bytes | None = None
    for subscriber in subscribers:
        if not subscriber.encode:
            subscriber.control(event, now)
            continue
        if frame is None:
            frame = codec.frame(kind, *body)
        subscriber.control(frame, now)


def _raw_frame(
    kind: int, sid: int, sseq: int, flags: int, xts: int | None, rts: int, row: Sequence[bytes]
) -> bytes:
    if b"".join(row).isascii():
        return codec.text_frame(kind, sid, sseq, flags, xts, rts, row)
    return codec.tick_frame(kind, sid, sseq, flags, xts, rts, raw(row))


@attrs.define(eq=False)
class TopicStream:
    """One topic: its number, its state, its last value and who wants it.

    Attributes:
        sid: small integer, the same for every client of this instance.
        schema: row schema, such as ``trade.v1``.
        trades: rows are trades, whose volume can be accounted.
        typed: rows are integers and codes, not KIS's own texts, which stay bytes here.
        sseq: number of the last row; dense, starts with the instance.
        stream, data, code, since_ts: what STATUS says of it.
        broken_at: receive time of the last thing heard before the break that the next row ends;
            None while unbroken.
        held: KIS has acknowledged its registration in this epoch.
        polled: the newest price that came by polling; apart from ``last``, so that the volume
            account and the gap after the poll tier know the last row of the stream.
        stood_in: the code that it had before polled prices stood in for its rows; None while
            they do not.
    """

    sid: int
    topic: Topic
    schema: str
    touched: Touched
    sseq: int = 0
    stream: Stream = Stream.RECOVERING
    data: Data = Data.NONE
    code: Code = Code.PENDING
    since_ts: int = 0
    text: str = ""
    held: bool = False
    broken_at: int | None = None
    break_code: Code = Code.GAP_DETECTED
    last: LastValue | None = None
    polled: LastValue | None = None
    stood_in: Code | None = None
    volume: VolumeAccount = attrs.field(factory=VolumeAccount)
    subscribers: dict[int, Subscriber] = attrs.field(factory=dict)
    trades: bool = attrs.field(init=False)
    typed: bool = attrs.field(init=False)
    _byte_audience: _Audience[bytes] = attrs.field(init=False)
    _event_audience: _Audience[events.Event] = attrs.field(init=False)
    _frame: Callable[..., bytes] = attrs.field(init=False)
    _made: Callable[[list[Any]], events.Event] = attrs.field(init=False)
    _starts_ns: int = attrs.field(init=False)  # of a trading day, after midnight in Seoul
    _day: int = -DAY_NS  # when the trading day started

    def __attrs_post_init__(self) -> None:
        self.trades = self.schema == "trade.v1"
        self.typed = not self.schema.startswith("raw.")
        self._starts_ns = DAY_NS // 2 if self.topic.tr.venue in _BY_NIGHT else 0
        self._frame = codec.tick_frame if self.typed else _raw_frame
        self._made = events.row_maker(self.schema, self.topic.name, self.scale)
        self._byte_audience = self.touched.frames.nobody
        self._event_audience = self.touched.events.nobody

    @property
    def scale(self) -> int:
        return self.topic.tr.scale or 0

    def add(self, subscriber: Subscriber, mode: Mode, hz: float) -> None:
        """Start putting rows into *subscriber*'s outbox, from the row after ``sseq``."""
        subscriber.outbox.open(self.sid, mode, hz, self.sseq, trades=self.trades)
        self.subscribers[subscriber.conn] = subscriber
        subscriber.streams[self.sid] = self
        self._audience_changed(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Stop; rows that wait in the outbox are still delivered."""
        del self.subscribers[subscriber.conn]
        del subscriber.streams[self.sid]
        subscriber.outbox.close(self.sid)
        self._audience_changed(subscriber)

    def _audience_changed(self, subscriber: Subscriber) -> None:
        touched = self.touched
        if subscriber.encode:
            self._byte_audience = touched.frames.changed(self._byte_audience, subscriber)
        else:
            self._event_audience = touched.events.changed(self._event_audience, subscriber)

    def row(
        self,
        row: Sequence[Any],
        xts: int | None,
        rts: int,
        now: float,
        plain: bool = False,
        trading_day: int | None = None,
    ) -> Missed | None:
        """Number a row and publish it to every outbox; the gap before it, if any, is told first.

        It is in the outboxes after ``touched.settle()``. *plain* says that a row of texts is known
        to be ASCII; *trading_day* is as :class:`~kisfeed.kis.rows.RowMaker` gives it.
        """
        gap: Missed | None = None
        flags = 0
        if self.trades:
            if trading_day is not None:
                day = trading_day or None
            else:
                day = self._day
                at = rts if xts is None else xts
                if not 0 <= at - day < DAY_NS:
                    starts = self._starts_ns
                    day = self._day = day_number(at - starts) * DAY_NS - KST_NS + starts
            gap, correction = self.volume.trade(
                row[1], row[2], day, broken=self.broken_at is not None
            )
            if correction:
                flags |= FLAG_CORRECTION
        elif self.broken_at is not None:
            gap = Missed(None, jump=False)
        if gap is not None:
            self._tell_gap(gap, rts, now)
            flags |= FLAG_AFTER_GAP
        sseq = self.sseq = self.sseq + 1
        last = self.last = _new(LastValue, (sseq, flags, xts, rts, row))
        sid = self.sid
        touched = self.touched
        if self._byte_audience.boxes:
            encode = _text_frame if plain else self._frame
            frame = encode(_TICK, sid, sseq, flags, xts, rts, row)
            touched.frames.add(self._byte_audience, (sid, sseq, frame, now))
        if self._event_audience.boxes:
            event_tick = (sid, sseq, self._event(_TICK, last), now)
            touched.events.add(self._event_audience, event_tick)
        touched.streams[sid] = self
        return gap

    def _event(self, kind: int, value: LastValue) -> events.Event:
        *head, row = value
        return self._made([kind, self.sid, *head, *(row if self.typed else raw(row))])

    def _tell_gap(self, gap: Missed, rts: int, now: float) -> None:
        before = self.last.rts if self.last is not None else self.broken_at or rts
        code = Code.VOLUME_JUMP if gap.jump else self.break_code
        self.broken_at = None
        body = (self.sid, self.sseq, self.sseq + 1, before, rts, gap.qty, code)
        event = events.Gap(self.topic.name, *body)
        tell(self.subscribers.values(), Type.GAP, body, event, now)

    def tell_break(self, rts: int, now: float) -> bool:
        """Tell a break without waiting for the row that ends it; False where there is none."""
        if self.broken_at is None:
            return False
        self._tell_gap(Missed(None, jump=False), rts, now)
        return True

    def break_off(self, rts: int) -> None:
        """Rows may be missed from *rts* on: the next row comes after a GAP."""
        if self.held:
            self.held = False
            # Also before its first row: open it was, suspect or not, and one may have come.
            if self.broken_at is None and (self.last is not None or self.data is not Data.NONE):
                self.broken_at = rts
        self.break_code = Code.GAP_DETECTED

    def poll(self, row: Sequence[Any], rts: int, now: float, takers: Iterable[Subscriber]) -> None:
        """A price that KIS was asked for: an image for *takers*, and no row of the stream."""
        self.polled = LastValue(self.sseq, Source.POLL, None, rts, row)
        image = self.image()
        assert image is not None
        for subscriber in takers:
            if subscriber.outbox.control_bytes <= _POLL_ROOM:
                subscriber.control(image[0] if subscriber.encode else image[1], now)

    @property
    def waits_as(self) -> Code:
        """Why it has no stream, whether or not polled prices stand in meanwhile."""
        return self.code if self.stood_in is None else self.stood_in

    def set_state(
        self,
        stream: Stream,
        data: Data,
        code: Code,
        wall_ns: int,
        now: float,
        *,
        text: str = "",
        tell: bool = True,
    ) -> None:
        """Change what STATUS says, and say it to every subscriber.

        With ``tell=False`` it is only noted: a SESSION has told it for the whole group.
        """
        if (stream, data, code, text) == (self.stream, self.data, self.code, self.text):
            return
        self.stream, self.data, self.code, self.text = stream, data, code, text
        self.stood_in = None
        self.since_ts = wall_ns
        if tell:
            self.tell_status(self.subscribers.values(), now)

    def tell_status(self, subscribers: Iterable[Subscriber], now: float) -> None:
        """Say to *subscribers* what STATUS says now."""
        tell(subscribers, Type.STATUS, *self.status(), now)

    def status(self) -> tuple[Sequence[object], events.Status]:
        """The elements of a STATUS frame, and the same as an event."""
        body = (self.sid, self.stream, self.data, self.code, self.since_ts, self.text)
        return body, events.Status(self.topic.name, *body)

    def image(self) -> tuple[bytes, events.Event] | None:
        """The last value as an IMAGE frame and as an event; None before the first row."""
        value = self.last
        if self.polled is not None and (value is None or self.polled.rts > value.rts):
            value = self.polled
        if value is None:
            return None
        frame = self._frame(Type.IMAGE, self.sid, *value)
        return frame, self._event(Type.IMAGE, value)
