"""The client without I/O: bytes in, events out, and when to dial again.

A shell (:mod:`~kisfeed.client.sync`, :mod:`~kisfeed.client.structured`,
:mod:`~kisfeed.client.aio`) owns the socket and the clock and does what this class says. What the
caller wants is kept by topic and outlives every connection and every daemon.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.errors import BadFrame, Disconnected, KisfeedError, NoDaemon, ServerRefused
from kisfeed.kfp import codec, events
from kisfeed.kfp.messages import (
    MAX_HZ,
    MAX_PRIO,
    PROTO,
    Code,
    Data,
    ErrorCode,
    Mode,
    Source,
    Stream,
    Type,
)
from kisfeed.seoul import day_number
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SILENCE_S: Final = 15.0  # without any frame for so long the daemon is dead (it beats every 5 s)
GREETING_S: Final = 5.0  # a daemon answers HELLO within this
REQUEST_S: Final = 30.0  # any request is answered within this
BACKLOG_S: Final = 1.0  # a caller that was busy has by then read what had come, an answer perhaps
BACKOFF_BASE_S: Final = 0.2
BACKOFF_CAP_S: Final = 5.0
# Venues whose trading day is not Seoul's date; between two such days lies more than an hour.
_PAST_MIDNIGHT: Final = ("overseas", "osfut", "night")
_HOUR_NS: Final = 3600 * 10**9
GRACE_S: Final = 0.1  # a shell looks so long for bytes that came while its caller was busy
SETTLED_S: Final = 5.0  # a connection that lived so long was a good one: the backoff starts over

MOST_QUESTIONS: Final = 12
"""Questions about symbols that are out at a time; the daemon takes 16 calls of one client, and
the rest are for orders."""

MAX_EVENTS: Final = 100_000
"""Events that wait for a program that does not take them (about 50 MB); see ``_make_room``."""

_QUESTIONS: Final = frozenset({"quotes", "daily", "symbols"})
_TICK: Final = int(Type.TICK)
_IMAGE: Final = int(Type.IMAGE)
_ROWS: Final = frozenset({_TICK, _IMAGE})
_NOTICE_SCHEMA: Final = "notice.v1"
_TRADE_SCHEMA: Final = "trade.v1"
_HOPELESS: Final = frozenset({ErrorCode.PROTO_MISMATCH, ErrorCode.UNAUTHORIZED})


class Phase(enum.Enum):
    """Where the connection is."""

    WAITING = enum.auto()
    """No connection; dial at :attr:`ClientCore.deadline`."""

    GREETING = enum.auto()
    """HELLO is on its way."""

    READY = enum.auto()
    """WELCOME has come."""

    FAILED = enum.auto()
    """:attr:`ClientCore.failure` says why; nothing will be tried again."""

    CLOSED = enum.auto()
    """The caller has left."""


_LINKED: Final = frozenset({Phase.GREETING, Phase.READY})


@attrs.frozen
class Spec:
    """What is wanted of one topic; the elements of SUB.

    Attributes:
        mode: how ticks are delivered under pressure.
        hz: in mode ``hz``, at most so many a second.
        prio: 0 to 9, for the slot market.
        passive: never create or keep a slot for this.
        image: send the last value first.
        poll: take polled snapshots while the topic has no slot; False would rather be refused.
        after: for a notice topic, send the day's notices after this ``nseq`` again.
    """

    topic: str
    mode: Mode = Mode.ALL
    hz: float = 0
    prio: int = 0
    passive: bool = False
    image: bool = True
    poll: bool = True
    after: int | None = None

    def to_map(self) -> dict[str, object]:
        """This as an item of SUB: what differs from the default."""
        return {
            field.name: getattr(self, field.name)
            for field in attrs.fields(Spec)
            if getattr(self, field.name) != field.default
        }


def specs(
    topics: Sequence[str],
    *,
    mode: str = Mode.ALL,
    hz: float = 0,
    prio: int = 0,
    passive: bool = False,
    image: bool = True,
    poll: bool = True,
    after: int | None = None,
) -> list[Spec]:
    """One :class:`Spec` a topic; an ``hz`` alone means mode ``hz``.

    Raises:
        ValueError: there is no such mode, hz or prio, or no topic.
    """
    if not topics:
        raise ValueError("subscribe to at least one topic")
    how = Mode.HZ if hz and mode == Mode.ALL else Mode(mode)
    return [_sound(Spec(topic, how, hz, prio, passive, image, poll, after)) for topic in topics]


def _sound(spec: Spec) -> Spec:
    """*spec* itself, with no value that every daemon refuses (some the whole SUB for one of them).

    Raises:
        ValueError: it holds one.
    """
    hz: object = spec.hz
    if (
        isinstance(hz, bool)
        or not isinstance(hz, int | float)
        or not (0 < hz <= MAX_HZ or (hz == 0 and spec.mode is not Mode.HZ))
    ):
        raise ValueError(f"hz is a number above 0 and at most {MAX_HZ:g}")
    if type(spec.prio) is not int or not 0 <= spec.prio <= MAX_PRIO:
        raise ValueError(f"prio is an integer from 0 to {MAX_PRIO}")
    return spec


@attrs.frozen
class Subscription:
    """What is known of one subscribed topic at this moment.

    Attributes:
        sid: its number in the present daemon instance; None while there is no connection, or it
            was refused.
        lost: ticks that were dropped because this client was slow.
        conflated: ticks that the mode passed over.
    """

    topic: str
    schema: str
    scale: int
    sid: int | None
    stream: int
    data: int
    code: str
    lost: int
    conflated: int


@attrs.define(eq=False)
class Request:
    """One question to the daemon, and its answer once ``done``."""

    kind: Type
    deadline: float
    topics: tuple[str, ...] = ()
    done: bool = False
    result: Any = None
    error: KisfeedError | None = None
    sid: int | None = None  # GET: the image that is still to come
    question: bool = False
    overdue: bool = False
    changes: list[tuple[Spec, Spec]] = attrs.field(factory=list)  # SUB, SET: from what to what

    def outcome(self) -> Any:
        """The answer.

        Raises:
            ServerRefused: the daemon answered ERR, or not in time (code ``timeout``).
            Disconnected: the connection ended before the answer.
            NoDaemon: there is no connection.
        """
        assert self.done
        if self.error is not None:
            raise self.error
        return self.result

    def finish(self, result: Any = None, error: KisfeedError | None = None) -> None:
        self.done, self.result, self.error = True, result, error


@attrs.define(eq=False)
class _Wanted:
    """One desired topic, over all connections.

    Attributes:
        made: makes the events of its rows; set with ``sid``.
        last_sseq: the newest row this client knows of, from its baseline on.
        last_rts, last_xts, last_cum: of the last row received.
        cut_sseq: the last sseq before a connection was lost, until the first row after it.
        told_cum, told_qty: shares told as missed behind the row of this ``last_cum``.
        cut_day: the day in Seoul when something was last heard before a connection was lost;
            behind a return to the same daemon, until its first notice or heartbeat.
        nseq: the last notice received, or the one behind which they were asked for.
    """

    spec: Spec
    sid: int | None = None
    schema: str = ""
    scale: int = 0
    made: Callable[[list[Any]], events.Row] = attrs.field(init=False)
    stream: int = Stream.RECOVERING
    data: int = Data.NONE
    code: str = Code.PENDING
    last_sseq: int = 0
    last_rts: int | None = None
    last_xts: int | None = None
    last_cum: int | None = None
    cut_sseq: int | None = None
    told_cum: int | None = None
    told_qty: int = 0
    cut_day: int | None = None
    nseq: int | None = None
    lost: int = 0
    conflated: int = 0


class ClientCore:
    """One program's side of KFP/1, over as many connections as it takes.

    The shell's loop: in :attr:`Phase.WAITING`, once ``deadline`` has passed, dial, and report
    :meth:`connected` or :meth:`dial_failed`. While :attr:`linked`, send :meth:`outgoing`, report
    what arrives by :meth:`received` (``b""`` for the end) or :meth:`lost`, and call :meth:`timer`
    when ``deadline`` has passed and nothing is there to be read. When ``linked`` turns False,
    close the socket. *now* is seconds of any monotonic clock.

    Attributes:
        events: what happened, for the caller to take from the left; another one after a call of
            :meth:`received`, perhaps.
        failure: why nothing will be tried again; None while there is hope.
        welcome: the last WELCOME's map.
        heartbeat: the last one.
    """

    def __init__(
        self,
        client: str,
        *,
        jitter: Callable[[], float],
        role: str = "reader",
        wait: bool = False,
        heartbeats: bool = False,
    ) -> None:
        """Make a core that wants to dial at once.

        Args:
            client: what this program calls itself, for ``kisfeed clients``.
            jitter: uniform in [0, 1), for the pauses between two dials.
            role: ``reader``, or ``trader`` for a program that places orders.
            wait: keep trying until the first daemon comes, instead of failing with NoDaemon.
            heartbeats: put every Heartbeat among the events.
        """
        self.events: deque[events.Event] = deque()
        self.failure: KisfeedError | None = None
        self.phase = Phase.WAITING
        self.welcome: Mapping[str, Any] = {}
        self.heartbeat: events.Heartbeat | None = None
        self._client = client
        self._jitter = jitter
        self._role = role
        self._wait = wait
        self._heartbeats = heartbeats
        self._decoder = codec.Decoder()
        self._outgoing: list[bytes] = []
        self._wanted: dict[str, _Wanted] = {}
        self._by_sid: dict[int, _Wanted] = {}
        self._schemas: dict[str, tuple[str, ...]] = {}
        self._requests: dict[int, Request] = {}
        self._questions: deque[tuple[Request, Mapping[str, object]]] = deque()
        self._next_id = 1
        self._instance = ""
        self._greeted = False
        self._failed_dials = 0
        self._retry_at = -math.inf
        self._ready_at = 0.0
        self._heard_at = 0.0
        self._answers_by = math.inf  # no request that is out has an earlier deadline
        self._leave_at = math.inf
        self._heard_ts = 0
        self._epoch = 0
        self._full_at = MAX_EVENTS

    # What the shell asks.

    @property
    def linked(self) -> bool:
        """There is a connection that is to be kept."""
        return self.phase in _LINKED

    @property
    def deadline(self) -> float:
        """When to dial, or when to call :meth:`timer`; ``math.inf`` for neither."""
        if self.phase is Phase.WAITING:
            return self._retry_at
        if not self.linked:
            return math.inf
        silence = GREETING_S if self.phase is Phase.GREETING else SILENCE_S
        answers = (request.deadline for request in self._requests.values())
        return min(self._heard_at + silence, self._leave_at, *answers)

    @property
    def has_outgoing(self) -> bool:
        """Something is to be sent."""
        return bool(self._outgoing)

    def outgoing(self) -> bytes:
        """What is to be sent now; handed out once."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def subscriptions(self) -> dict[str, Subscription]:
        """Every wanted topic and what became of it."""
        return {
            topic: Subscription(
                topic, w.schema, w.scale, w.sid, w.stream, w.data, w.code, w.lost, w.conflated
            )
            for topic, w in self._wanted.items()
        }

    # What the shell reports.

    def connected(self, now: float) -> None:
        """The socket is connected: HELLO goes out, unless the caller has left in the meantime."""
        if self.phase is not Phase.WAITING:
            return
        self.phase = Phase.GREETING
        self._decoder = codec.Decoder()
        self._outgoing.clear()
        self._heard_at = now
        self._leave_at = math.inf
        self._schemas.clear()
        hello = {"proto": [PROTO, PROTO], "client": self._client, "role": self._role}
        self._send(Request(Type.HELLO, now + REQUEST_S), hello)

    def dial_failed(self, why: str, now: float) -> None:
        """Nobody listens there."""
        if self.phase is Phase.WAITING:
            self._retry(NoDaemon(why), now)

    def received(self, data: bytes, now: float) -> None:
        """Bytes arrived; ``b""`` means that the daemon closed the connection."""
        if not self.linked:
            return
        if not data:
            self._drop(Phrase("the daemon closed the connection"), now)
            return
        self._heard_at = now
        try:
            for message in self._decoder.feed(data):
                kind = message[0]
                if kind in _ROWS:
                    self._on_row(message)
                    continue
                self._on_message(kind, message, now)
                if self.phase not in _LINKED:
                    return
            if now >= self._answers_by:
                self._look_for_overdue(now)
            self._send_questions(now)
        except BadFrame as error:
            self._drop(str(error), now, error)
        if len(self.events) >= self._full_at:
            self._make_room()

    def lost(self, why: str, now: float) -> None:
        """The connection broke, or a frame was sent in part only."""
        if self.linked:
            self._drop(why, now)

    def close(self) -> None:
        """The caller leaves; what it still waits for ends with Disconnected."""
        self.give_up(Disconnected("this client was closed"))
        self.phase = Phase.CLOSED

    def timer(self, now: float) -> None:
        """``deadline`` has passed and there was nothing to read."""
        if not self.linked:
            return
        silence = GREETING_S if self.phase is Phase.GREETING else SILENCE_S
        if now >= self._heard_at + silence:
            self._drop(f"nothing from the daemon for {silence:g} s", now)
        elif now >= self._leave_at:
            self._drop(Phrase("the daemon goes away"), now)
        else:
            for number, request in list(self._requests.items()):
                if now >= request.deadline and self.linked:
                    self._too_late(number, now)
            self._send_questions(now)

    # What the caller wants.

    def subscribe(self, wanted: Sequence[Spec], now: float) -> Request:
        """Want these topics, now and after every reconnect.

        Done at once while there is no connection: what is refused later is told by a Status.
        """
        request = Request(Type.SUB, now + REQUEST_S, tuple(spec.topic for spec in wanted))
        for spec in wanted:
            known = self._wanted.setdefault(spec.topic, _Wanted(spec))
            request.changes.append((known.spec, spec))
            known.spec = spec
            if spec.after is not None:
                known.nseq = spec.after
        return self._ask_if_ready(request, {"subs": [spec.to_map() for spec in wanted]})

    def unsubscribe(self, topics: Sequence[str], now: float) -> Request:
        """Want these topics no longer; what is still on its way is dropped.

        Raises:
            KeyError: one of them is not subscribed.
        """
        ended = [self._wanted[topic] for topic in topics]
        sids = []
        for wanted in ended:
            self._wanted.pop(wanted.spec.topic, None)
            if wanted.sid is not None:
                del self._by_sid[wanted.sid]
                sids.append(wanted.sid)
        return self._ask_if_ready(Request(Type.UNSUB, now + REQUEST_S), {"sids": sids})

    def retune(
        self,
        topic: str,
        now: float,
        *,
        mode: str | None = None,
        hz: float | None = None,
        prio: int | None = None,
    ) -> Request:
        """Change how a subscribed topic is delivered; an *hz* alone means mode ``hz``.

        Raises:
            KeyError: it is not subscribed.
            ValueError: there is no such mode, hz or prio.
        """
        wanted = self._wanted[topic]
        changes: dict[str, Any] = {}
        if mode is not None or hz:
            changes["mode"] = Mode.HZ if mode is None else Mode(mode)
        if hz is not None:
            changes["hz"] = hz
        if prio is not None:
            changes["prio"] = prio
        request = Request(Type.SET, now + REQUEST_S, (topic,))
        spec = _sound(attrs.evolve(wanted.spec, **changes))
        request.changes.append((wanted.spec, spec))
        wanted.spec = spec
        if wanted.sid is None:
            request.finish()
            return request
        return self._ask_if_ready(request, {"sid": wanted.sid, **changes})

    def get(self, topic: str, now: float) -> Request:
        """The topic's last value, as a row event; None where nothing is known yet."""
        return self._ask(Request(Type.GET, now + REQUEST_S, (topic,)), {"topic": topic})

    def ping(self, now: float) -> Request:
        """Answered as soon as the daemon gets to it."""
        return self._ask(Request(Type.PING, now + REQUEST_S), None)

    def call(self, name: str, arguments: Mapping[str, Any], now: float) -> Request:
        """Call *name*; the answer is the call's ``result``. Never sent twice.

        Of questions about symbols a few are out at a time, the others wait their turn here, so
        that any number of threads may ask and none of their orders waits.
        """
        body = {"m": name, "a": dict(arguments)}
        request = Request(Type.CALL, now + REQUEST_S, question=name in _QUESTIONS)
        if not request.question or self.phase is not Phase.READY:
            return self._ask(request, body)
        self._questions.append((request, body))
        self._send_questions(now)
        return request

    # Inside.

    def _send(self, request: Request, *body: object) -> Request:
        number = self._next_id
        self._outgoing.append(codec.frame(request.kind, number, *body))
        self._next_id += 1
        self._requests[number] = request
        self._answers_by = min(self._answers_by, request.deadline)
        return request

    def _look_for_overdue(self, now: float) -> None:
        """End what was not answered in time though there is always something to read."""
        for number, request in list(self._requests.items()):
            if now < request.deadline:
                continue
            if request.overdue:
                self._too_late(number, now)
                if not self.linked:
                    return
            else:
                request.overdue, request.deadline = True, now + BACKLOG_S
        self._answers_by = min((r.deadline for r in self._requests.values()), default=math.inf)

    def _too_late(self, number: int, now: float) -> None:
        why = f"no answer within {REQUEST_S:g} s"
        request = self._requests.pop(number)
        request.finish(error=ServerRefused(ErrorCode.TIMEOUT, why))
        if request.kind in {Type.SUB, Type.UNSUB, Type.SET}:
            # What is subscribed over there nobody here knows: the next connection starts clean.
            self._drop(why, now)

    def _send_questions(self, now: float) -> None:
        if not self._questions or self.phase is not Phase.READY:
            return
        out = sum(request.question for request in self._requests.values())
        while self._questions and out < MOST_QUESTIONS:
            request, body = self._questions.popleft()
            request.deadline = now + REQUEST_S
            self._send(request, body)
            out += 1

    def _end_questions(self, error: KisfeedError) -> None:
        """Those that wait were never sent."""
        while self._questions:
            self._questions.popleft()[0].finish(error=error)

    def _ask(self, request: Request, body: object) -> Request:
        if self.phase is Phase.READY:
            return self._send(request, body)
        request.finish(error=self.failure or NoDaemon("there is no daemon at the moment"))
        return request

    def _ask_if_ready(self, request: Request, body: object) -> Request:
        if self.phase is Phase.READY:
            return self._send(request, body)
        request.finish(error=self.failure)
        return request

    def _retry(self, error: KisfeedError, now: float) -> None:
        if not self._greeted and not self._wait:
            self.give_up(error)
            return
        pause = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(self._failed_dials, 10))
        self._failed_dials += 1
        self._retry_at = now + pause * (0.5 + 0.5 * self._jitter())
        self.phase = Phase.WAITING

    def give_up(self, error: KisfeedError) -> None:
        """Nothing will be tried again: what was asked, and will be, ends with *error*."""
        self.phase = Phase.FAILED
        self.failure = error
        self._outgoing.clear()
        pending, self._requests = list(self._requests.values()), {}
        for request in pending:
            request.finish(error=error)
        self._end_questions(error)

    def _drop(self, why: str, now: float, error: KisfeedError | None = None) -> None:
        """The connection is over; say so once, and what every topic must assume."""
        was_ready = self.phase is Phase.READY
        if was_ready and now - self._ready_at >= SETTLED_S:
            self._failed_dials = 0
        self._retry(error or NoDaemon(why), now)
        self._outgoing.clear()
        self._by_sid.clear()
        for wanted in self._wanted.values():
            if wanted.sid is not None:
                if wanted.cut_sseq is None:
                    wanted.cut_sseq = wanted.last_sseq
                wanted.sid = None
            wanted.stream, wanted.data = Stream.RECOVERING, Data.SUSPECT
            wanted.code = Code.UPSTREAM_DOWN
        pending, self._requests = list(self._requests.values()), {}
        for request in pending:
            if request.kind in {Type.CALL, Type.GET, Type.PING}:
                request.finish(error=Disconnected(Phrase("{why}, before it answered", why=why)))
            else:
                request.finish()
        self._end_questions(NoDaemon(why))
        if was_ready:
            self.events.append(
                events.Session(
                    self._epoch,
                    "RECONNECT_BACKOFF",
                    int(Data.SUSPECT),
                    str(Code.UPSTREAM_DOWN),
                    self._heard_ts,
                    why,
                )
            )

    def _on_row(self, message: list[Any]) -> None:
        try:
            kind, sid, sseq, flags, xts, rts = message[:6]
        except ValueError:
            raise BadFrame("a row of fewer than six elements") from None
        if not (
            type(sid) is int
            and type(sseq) is int
            and type(flags) is int
            and type(rts) is int
            and (xts is None or type(xts) is int)
        ):
            raise BadFrame("a row's head is not made of integers")
        if kind == _IMAGE and self._requests and self._answer_get(message):
            return
        wanted = self._by_sid.get(sid)
        if wanted is None:
            return
        event = wanted.made(message)
        if rts > self._heard_ts:  # noqa: PLR1730  # max is a call a tick
            self._heard_ts = rts
        if kind == _IMAGE and event.source is Source.POLL:
            # A price that was asked for, no row of the stream: the account goes on from the last
            # row, so that the Gap before the next one holds all that was traded in between.
            self.events.append(event)
            return
        if wanted.cut_sseq is not None:
            self._tell_gap(wanted, event)
        if kind == _TICK and sseq > wanted.last_sseq:
            wanted.conflated += sseq - wanted.last_sseq - 1
            wanted.last_sseq = sseq
        wanted.last_rts, wanted.last_xts = rts, xts
        if type(event) is events.Trade and (cum_qty := event.cum_qty) is not None:
            wanted.last_cum = cum_qty
        self.events.append(event)

    def _make_room(self) -> None:
        """The program does not take its events: older ticks go, and are told as lost.

        All else stays in its place; of images in a row the last stays, if no tick replaces it. An
        interrupt leaves what was there.
        """
        older = len(self.events) - MAX_EVENTS // 2
        kept: list[events.Event] = []
        images: dict[str, events.Event] = {}
        gone: dict[tuple[str, int], list[int]] = {}  # first, last, how many
        dropped: Counter[str] = Counter()

        def settle(topic: str | None) -> None:
            """Put what is to be said of *topic*, or of all, before what comes next."""
            for key in [key for key in gone if topic in {None, key[0]}]:
                first, last, count = gone.pop(key)
                kept.append(events.Lost(*key, first, last, count, str(Code.OVER_LIMIT)))
            kept.extend(images.pop(name) for name in list(images) if topic in {None, name})

        for event in islice(self.events, older):
            if isinstance(event, events.Row):
                if event.image:
                    images[event.topic] = event
                    continue
                images.pop(event.topic, None)
                dropped[event.topic] += 1
                first, last, count = event.sseq, event.sseq, 1
            elif isinstance(event, events.Lost):
                if event.topic in images:
                    settle(event.topic)
                first, last, count = event.from_sseq, event.to_sseq, event.n
            else:
                settle(getattr(event, "topic", None))
                kept.append(event)
                continue
            span = gone.setdefault((event.topic, event.sid), [first, last, 0])
            span[1], span[2] = last, span[2] + count
        settle(None)
        self.events = deque([*kept, *islice(self.events, older, None)])
        self._full_at = max(MAX_EVENTS, len(self.events) + MAX_EVENTS // 2)
        for topic, count in dropped.items():
            if topic in self._wanted:
                self._wanted[topic].lost += count

    def _answer_get(self, message: list[Any]) -> bool:
        for number, request in self._requests.items():
            if request.sid == message[1]:
                del self._requests[number]
                made = request.result
                request.finish(made(message))
                return True
        return False

    def _tell_gap(self, wanted: _Wanted, event: events.Row) -> None:
        assert wanted.cut_sseq is not None
        self.events.append(
            events.Gap(
                wanted.spec.topic,
                event.sid,
                wanted.cut_sseq,
                event.sseq,
                wanted.last_rts,
                event.rts,
                _missed(wanted, event),
                str(Code.GAP_DETECTED),
            )
        )
        wanted.cut_sseq = None

    def _on_message(self, kind: int, message: list[Any], now: float) -> None:
        if kind == Type.RES:
            number, body = _elements(message, int, dict)
            self._on_answer(number, body, now)
        elif kind == Type.ERR:
            number, code, fatal, text = _elements(message, (int, type(None)), str, bool, str)
            detail = message[5] if len(message) > 5 and isinstance(message[5], dict) else None
            refusal = ServerRefused(code, text, fatal=fatal, detail=detail)
            self._on_error(number, refusal, now)
        elif kind == Type.WELCOME:
            number, body = _elements(message, int, dict)
            self._on_welcome(number, body, now)
        elif kind == Type.STATUS:
            sid, stream, data, code, since_ts, text = _elements(
                message, int, int, int, str, int, str
            )
            self._on_status(sid, stream, data, code, since_ts, text)
        elif kind == Type.GAP:
            gap = _elements(message, int, int, int, int, int, (int, type(None)), str)
            wanted = self._by_sid.get(gap[0])
            # A cut that is still open reaches to the same row: its Gap covers this one.
            if wanted is not None and wanted.cut_sseq is None:
                if wanted.told_cum != wanted.last_cum:
                    wanted.told_cum, wanted.told_qty = wanted.last_cum, 0
                wanted.told_qty += gap[5] or 0
                self.events.append(events.Gap(wanted.spec.topic, *gap))
        elif kind == Type.LOST:
            sid, from_sseq, to_sseq, n, code = _elements(message, int, int, int, int, str)
            self._on_lost(sid, from_sseq, to_sseq, n, code)
        elif kind == Type.HB:
            now_ts, body = _elements(message, int, dict)
            self._on_heartbeat(now_ts, body)
        elif kind == Type.SESSION:
            session = _elements(message, int, str, int, str, int, str)
            self._epoch = session[0]
            self.events.append(events.Session(*session))
        elif kind == Type.GOAWAY:
            code, deadline_ms, detail = _elements(message, str, int, dict)
            self._leave_at = now + deadline_ms / 1000
            self.events.append(events.Goaway(code, deadline_ms, detail))
        elif kind == Type.NOTICE:
            notice = _elements(message, int, (int, type(None)), int, str, dict)
            self._on_notice(*notice)

    def _on_welcome(self, number: int, body: dict[str, Any], now: float) -> None:
        if self.phase is not Phase.GREETING:
            raise BadFrame("a second WELCOME")
        self._requests.pop(number, Request(Type.HELLO, now)).finish()
        self.phase = Phase.READY
        self.welcome = body
        self._greeted = True
        self._ready_at = now
        self._epoch = _whole(body.get("epoch"))
        instance = str(body.get("instance", ""))
        session = body.get("session")
        if isinstance(session, dict):
            self.events.append(
                events.Session(
                    _whole(session.get("epoch")),
                    str(session.get("state", "")),
                    _whole(session.get("data")),
                    str(session.get("code", "")),
                    _whole(session.get("since_ts")),
                    str(session.get("text", "")),
                )
            )
        same = instance == self._instance
        self._instance = instance
        if self._wanted:
            subs = [self._again(wanted, same=same) for wanted in self._wanted.values()]
            self._send(Request(Type.SUB, now + REQUEST_S), {"subs": subs})

    def _again(self, wanted: _Wanted, *, same: bool) -> dict[str, object]:
        """The item of SUB that takes a topic up again."""
        if wanted.schema != _NOTICE_SCHEMA:
            return wanted.spec.to_map()
        wanted.cut_sseq = None
        if not same or wanted.nseq is None:
            # What another instance heard before it died, nobody can send again; and where the
            # notices of this one stood when they were asked for, it did not say.
            self._tell_notices_missed(wanted)
            wanted.cut_day = None
        elif wanted.cut_day is None:
            wanted.cut_day = day_number(self._heard_ts)
        if not same:
            wanted.nseq = 0
        return attrs.evolve(wanted.spec, after=wanted.nseq).to_map()

    def _look_for_midnight(self, wanted: _Wanted, ts: int) -> None:
        """Of notices the daemon keeps one day's: behind a cut on another day some may be gone.

        *ts* is of the first notice or heartbeat behind the return.
        """
        if wanted.cut_day is not None:
            if day_number(ts) != wanted.cut_day:
                self._tell_notices_missed(wanted)
            wanted.cut_day = None

    def _tell_notices_missed(self, wanted: _Wanted) -> None:
        self.events.append(
            events.Gap(
                wanted.spec.topic, 0, 0, 0, wanted.last_rts, None, None, str(Code.GAP_DETECTED)
            )
        )

    def _on_answer(self, number: int, body: dict[str, Any], now: float) -> None:
        request = self._requests.pop(number, None)
        if request is None:
            return
        self._learn_schemas(body)
        if request.kind is Type.SUB:
            self._on_subscribed(request, body, now)
        elif request.kind is Type.GET:
            self._on_get(number, request, body)
        elif request.kind is Type.SET:
            wanted = self._wanted.get(request.topics[0])
            if wanted is not None and "sseq" in body:
                wanted.last_sseq = _whole(body["sseq"])
            request.finish(body)
        elif request.kind is Type.CALL:
            request.finish(body.get("result"))
        else:
            request.finish(body)

    def _maker(self, topic: str, schema: str, scale: int) -> Callable[[list[Any]], events.Row]:
        return events.row_maker(schema, topic, scale, self._schemas.get(schema, ()))

    def _learn_schemas(self, body: dict[str, Any]) -> None:
        schemas = body.get("schemas")
        if isinstance(schemas, dict):
            for schema, names in schemas.items():
                if isinstance(names, list):
                    self._schemas[schema] = tuple(str(name) for name in names)

    def _on_get(self, number: int, request: Request, body: dict[str, Any]) -> None:
        item = _item(body)
        if item["sid"] is None or not body.get("image", item["sseq"]):
            request.finish(None)
            return
        request.sid = item["sid"]
        request.result = self._maker(request.topics[0], item["schema"], item["scale"])
        self._requests[number] = request

    def _on_subscribed(self, request: Request, body: dict[str, Any], now: float) -> None:
        refusal: ServerRefused | None = None
        unwanted: list[int] = []
        for item in _items(body):
            topic, sid, code, text = item["topic"], item["sid"], item["code"], item["text"]
            wanted = self._wanted.get(topic)
            if wanted is None:
                if sid is not None:
                    unwanted.append(sid)
                continue
            if sid is None and topic in request.topics:
                if code == ErrorCode.BAD_REQUEST and wanted.sid is not None:
                    # As nothing was understood, the topic goes on as before.
                    self._take_back([c for c in request.changes if c[1].topic == topic])
                else:
                    del self._wanted[topic]
                refusal = refusal or ServerRefused(code, f"{topic}: {text or code}")
                continue
            wanted.stream, wanted.data, wanted.code = item["stream"], item["data"], code
            if sid is not None:
                self._by_sid[sid] = wanted
                wanted.sid = sid
                wanted.schema = item["schema"]
                wanted.scale = item["scale"]
                wanted.made = self._maker(topic, wanted.schema, wanted.scale)
                wanted.last_sseq = item["sseq"]
            since = item["since_ts"] or self._heard_ts
            self.events.append(
                events.Status(topic, sid or 0, wanted.stream, wanted.data, code, since, text)
            )
        if unwanted:
            # Unsubscribed before there was a sid to say it with.
            self._send(Request(Type.UNSUB, now + REQUEST_S), {"sids": unwanted})
        request.finish(error=refusal)

    def _on_error(self, number: int | None, refusal: ServerRefused, now: float) -> None:
        code, fatal = refusal.code, refusal.fatal
        request = None if number is None else self._requests.pop(number, None)
        if request is not None and request.kind is not Type.HELLO:
            if request.kind is Type.SUB:
                self._on_sub_refused(request, refusal)
            self._take_back(request.changes)
            request.finish(error=refusal)
        if fatal and code in _HOPELESS:
            self.give_up(refusal)
        elif fatal or (request is not None and request.kind is Type.HELLO):
            self._drop(f"the daemon closed the connection ({refusal})", now, refusal)

    def _take_back(self, changes: Sequence[tuple[Spec, Spec]]) -> None:
        """What was refused is not asked for again behind a reconnect; what came later is."""
        for old, new in changes:
            wanted = self._wanted.get(new.topic)
            if wanted is not None:
                before, refused, now = (attrs.asdict(spec) for spec in (old, new, wanted.spec))
                same = {name: value for name, value in before.items() if now[name] == refused[name]}
                wanted.spec = attrs.evolve(wanted.spec, **same)

    def _on_sub_refused(self, request: Request, refusal: ServerRefused) -> None:
        """SUB was refused as a whole: forget what was asked for, keep what is taken up again."""
        for topic in request.topics:
            wanted = self._wanted.get(topic)
            if wanted is not None and wanted.sid is None:
                del self._wanted[topic]
        if not request.topics:
            for topic, wanted in self._wanted.items():
                if wanted.sid is None:
                    wanted.stream, wanted.data = Stream.CLOSED, Data.SUSPECT
                    wanted.code = refusal.code
                    self.events.append(
                        events.Status(
                            topic, 0, wanted.stream, wanted.data, refusal.code,
                            self._heard_ts, refusal.text,
                        )
                    )  # fmt: skip

    def _on_status(
        self, sid: int, stream: int, data: int, code: str, since_ts: int, text: str
    ) -> None:
        wanted = self._by_sid.get(sid)
        if wanted is not None:
            wanted.stream, wanted.data, wanted.code = stream, data, code
            topic = wanted.spec.topic
            self.events.append(events.Status(topic, sid, stream, data, code, since_ts, text))

    def _on_lost(self, sid: int, from_sseq: int, to_sseq: int, n: int, code: str) -> None:
        wanted = self._by_sid.get(sid)
        if wanted is not None:
            wanted.lost += n
            # The range may hold ticks that the mode had passed over already.
            wanted.conflated += max(to_sseq - wanted.last_sseq, 0) - n
            wanted.last_sseq = max(wanted.last_sseq, to_sseq)
            self.events.append(events.Lost(wanted.spec.topic, sid, from_sseq, to_sseq, n, code))

    def _on_heartbeat(self, now_ts: int, body: dict[str, Any]) -> None:
        up = body.get("up")
        self.heartbeat = events.Heartbeat(
            now_ts,
            _whole(body.get("sent")),
            _whole(body.get("dropped")),
            _whole(body.get("conflated")),
            _whole(body.get("q_bytes")),
            _whole(body.get("q_age_ms")),
            up if isinstance(up, dict) else {},
        )
        # It overtakes what waits for us: of that we have heard nothing.
        self._heard_ts = max(self._heard_ts, now_ts - self.heartbeat.q_age_ms * 10**6)
        for wanted in self._by_sid.values():
            self._look_for_midnight(wanted, now_ts)
        if self._heartbeats:
            self.events.append(self.heartbeat)

    def _on_notice(
        self, nseq: int, xts: int | None, rts: int, kind: str, body: dict[str, Any]
    ) -> None:
        topic = str(body.get("topic", ""))
        if not topic:
            # With one notice topic there is no doubt whose it is.
            mine = [t for t, w in self._wanted.items() if w.schema == _NOTICE_SCHEMA]
            topic = mine[0] if len(mine) == 1 else ""
        wanted = self._wanted.get(topic)
        self._heard_ts = max(self._heard_ts, rts)
        if wanted is not None:
            self._look_for_midnight(wanted, rts)
            wanted.nseq, wanted.last_rts, wanted.last_xts = nseq, rts, xts
        fields = {name: value for name, value in body.items() if name != "topic"}
        self.events.append(events.Notice(topic, nseq, xts, rts, kind, fields))


def _missed(wanted: _Wanted, event: events.Row) -> int | None:
    """Shares traded between the last row before a cut and *event*, none received, none told yet.

    A tick's own shares are received with it; an image repeats a trade, so its shares are missed.
    """
    if type(event) is not events.Trade:
        return None
    before, now_qty = wanted.last_cum, event.cum_qty
    own = 0 if event.image else event.qty
    if type(before) is not int or type(now_qty) is not int or type(own) is not int:
        return None
    if not _one_day(wanted, event):
        return None
    missed = now_qty - before - own
    if wanted.told_cum == before:  # a Gap came, and the row behind it did not
        missed -= wanted.told_qty
    return missed if missed >= 0 else None


def _one_day(wanted: _Wanted, event: events.Row) -> bool:
    """Whether *event* is surely of the same trading day as the last row, whose volume goes on."""
    before = wanted.last_rts if wanted.last_xts is None else wanted.last_xts
    after = event.rts if event.xts is None else event.xts
    if before is None:
        return False
    if wanted.spec.topic.split(".")[1].startswith(_PAST_MIDNIGHT):
        return abs(after - before) < _HOUR_NS
    return day_number(before) == day_number(after)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _elements(message: list[Any], *kinds: type | tuple[type, ...]) -> list[Any]:
    """The elements after the type, as many as are known here.

    Raises:
        BadFrame: there are fewer, or one has another type.
    """
    body = message[1 : len(kinds) + 1]
    if len(body) < len(kinds):
        raise BadFrame(f"message {message[0]} has fewer than {len(kinds)} elements")
    for value, kind in zip(body, kinds, strict=True):
        if not isinstance(value, kind):
            raise BadFrame(f"message {message[0]} holds {type(value).__name__} in a wrong place")
    return body


_ITEM: Final[Mapping[str, tuple[Any, Any]]] = {
    "topic": (str, ""),
    "sid": ((int, type(None)), None),
    "schema": (str, ""),
    "scale": (int, 0),
    "sseq": (int, 0),
    "stream": (int, Stream.CLOSED),
    "data": (int, Data.NONE),
    "code": (str, Code.NONE),
    "since_ts": (int, 0),
    "text": (str, ""),
}


def _checked(item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadFrame("an item of RES is not a map")
    checked = {}
    for key, (kind, default) in _ITEM.items():
        value = item.get(key, default)
        if value is None and key == "scale":
            value = 0
        if not isinstance(value, kind):
            raise BadFrame(f"{key!r} of RES holds {type(value).__name__}")
        checked[key] = value
    return checked


def _items(body: dict[str, Any]) -> list[dict[str, Any]]:
    items = body.get("items")
    if not isinstance(items, list):
        raise BadFrame("RES to SUB without items")
    return [_checked(item) for item in items]


def _item(body: dict[str, Any]) -> dict[str, Any]:
    items = body.get("items")
    return _checked(items[0] if isinstance(items, list) and items else body)
