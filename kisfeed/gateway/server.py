"""KFP/1 for local programs: one task a client, none of which can hurt the daemon.

What a client does wrong ends in an answer or in its connection's end. I/O errors of its stream
end it quietly. Anything else that goes wrong in here is our bug and is not caught.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import trio

from kisfeed import texts
from kisfeed.core.outbox import Outbox
from kisfeed.core.streams import Subscriber
from kisfeed.core.subscriptions import SubResult, SubSpec
from kisfeed.errors import BadFrame, UnknownTopic
from kisfeed.gateway import calls
from kisfeed.gateway.calls import error
from kisfeed.gateway.fanout import Link
from kisfeed.gateway.listener import peer_of
from kisfeed.kfp import codec
from kisfeed.kfp.messages import (
    MAX_FRAME,
    MAX_HZ,
    MAX_PRIO,
    PROTO,
    Code,
    Data,
    ErrorCode,
    Mode,
    Stream,
    Type,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from kisfeed import config
    from kisfeed.gateway.listener import Peer

_READ_BYTES: Final = 8_192  # one decoding step; larger reads let small frames stall everybody
_FRAMES_A_STEP: Final = 16
_CLIENTS_A_STEP: Final = 32
# The system is out of something that other programs give back.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_ACCEPT_AGAIN_S: Final = 0.1
_FLUSH_S: Final = 1.0  # for the last words to a client
_MAX_NAME: Final = 128
_MAX_TOPIC: Final = 128


class Door(Protocol):
    """What the gateway needs of the feed behind it.

    Every method but :meth:`call` returns at once and has no checkpoint.

    Attributes:
        software: name and version, such as ``kisfeed/0.1``.
        instance: names this run of the daemon.
        epoch: of the upstream session.
        orders_enabled: the role ``trader`` is granted to who asks for it.
    """

    @property
    def software(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def orders_enabled(self) -> bool: ...

    def now(self) -> float:
        """Seconds of the scheduler's clock."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""
        ...

    def connection_number(self) -> int:
        """A number that no subscriber of this instance has had."""
        ...

    def session_map(self) -> Mapping[str, object]:
        """SESSION as a map: epoch, state, data, code, since_ts, text."""
        ...

    def slots_map(self) -> Mapping[str, object]:
        """Registrations: cap, used, reserved."""
        ...

    def attach(self, subscriber: Subscriber) -> None:
        """From here on *subscriber*'s outbox gets what concerns everybody."""
        ...

    def detach(self, subscriber: Subscriber) -> None:
        """Let go of *subscriber* and of every interest it has."""
        ...

    def subscribe(
        self,
        subscriber: Subscriber,
        specs: Sequence[SubSpec],
        reply: Callable[[list[SubResult]], bytes],
    ) -> None:
        """Take up interest; queues what *reply* returns before any frame of the sids in it.

        The results are in the order of *specs*; a refused one has sid None and the code.
        """
        ...

    def unsubscribe(self, subscriber: Subscriber, sids: Sequence[int] | None) -> list[int]:
        """End interest in *sids*, all of them for None; returns those that ended."""
        ...

    def retune(
        self,
        subscriber: Subscriber,
        sid: int,
        *,
        mode: Mode | None,
        hz: float | None,
        prio: int | None,
    ) -> int | None:
        """Change the delivery of *sid*; returns its new baseline, None if it is not subscribed."""
        ...

    def image(self, topic: str) -> tuple[SubResult, bytes | None]:
        """What is known of *topic* without an interest in it, and IMAGE if there is a value.

        Raises:
            UnknownTopic: there is no such topic.
        """
        ...

    def fields(self, schema: str) -> list[str]:
        """Names of the elements of a row; empty for a schema that has no rows."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any], caller: str) -> object:
        """Answer a CALL of the program *caller* with something that msgpack can carry.

        Raises:
            UsageError, LocalRefusal, StateError, KisError: told to the client by the code that
                fits.
            ServerRefused, OrderRefused: told to the client with their own codes.
        """
        ...

    def kick(self) -> None:
        """Interests may have changed: act on it, and flush the outboxes."""
        ...


async def serve(
    listener: trio.abc.Listener[Any],
    door: Door,
    settings: config.Gateway,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve KFP/1 on *listener* until cancelled.

    On cancellation every client is told GOAWAY behind what is queued for it, within a second.

    Raises:
        OSError: the listener broke.
    """
    server = _Server(door, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.beat)
        nursery.start_soon(server.accept, listener, nursery)
        task_status.started()


class _Fatal(Exception):
    """The client broke the protocol: tell it and close."""

    def __init__(
        self,
        code: ErrorCode,
        text: str,
        number: int | None = None,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(text)
        self.words = error(number, code, text, detail, fatal=True)


class _BadRequest(Exception):
    """One request cannot be done; the connection goes on."""

    def __init__(self, text: str, code: ErrorCode = ErrorCode.BAD_REQUEST) -> None:
        super().__init__(text)
        self.code = code


@attrs.define(eq=False)
class _Server:
    """Who is connected.

    Attributes:
        clients: those that have greeted, by their number.
        streams: all that are served.
    """

    _door: Door
    _settings: config.Gateway
    clients: dict[int, _Client] = attrs.field(factory=dict, init=False)
    streams: int = attrs.field(default=0, init=False)

    async def accept(self, listener: trio.abc.Listener[Any], clients: trio.Nursery) -> None:
        """Welcome everybody who comes to *listener*, for ever; closes it at the end.

        As ``trio.serve_listeners``, but for a coroutine and a name of its own for each client.
        """
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in _EXHAUSTED:
                        raise
                    await trio.sleep(_ACCEPT_AGAIN_S)
                else:
                    clients.start_soon(self.welcome, stream, name="client")

    def welcome(self, stream: trio.abc.Stream) -> Awaitable[None]:
        """Serve one client to its end, and close *stream*."""
        words = b""
        peer: Peer | None = None
        try:
            peer = peer_of(stream)
        except OSError:
            words = error(None, ErrorCode.UNAUTHORIZED, "who are you?", fatal=True)
        if peer is not None and peer.uid != os.geteuid():
            text = f"uid {peer.uid} is not the daemon's"
            words = error(None, ErrorCode.UNAUTHORIZED, text, fatal=True)
        elif self.streams >= self._settings.max_clients:
            text = f"{self._settings.max_clients} clients are connected already"
            words = error(None, ErrorCode.OVER_LIMIT, text, fatal=True)
        if words:
            return _say(stream, words)
        self.streams += 1  # here, because this runs before the next one is accepted
        pid = None if peer is None else peer.pid
        return _Client(self._door, self._settings, self, stream, pid).run()

    async def beat(self) -> None:
        """Send HB to everybody, for ever."""
        while True:
            await trio.sleep(self._settings.heartbeat_s)
            session = self._door.session_map()
            upstream = {key: session[key] for key in ("epoch", "state", "data", "code")}
            for number, client in enumerate(list(self.clients.values()), 1):
                client.beat(upstream)
                if number % _CLIENTS_A_STEP == 0:
                    await trio.lowlevel.checkpoint()


async def _say(stream: trio.abc.Stream, words: bytes) -> None:
    """Write *words* if that is quickly done, and close *stream*."""
    with trio.move_on_after(_FLUSH_S, shield=True):
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(words)
    await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class _Client:
    """One connection, from its first byte to its last.

    While it waits for a request it keeps one scope, one coroutine and nothing of the last one:
    each would be a twentieth of what an idle client costs in memory.
    """

    _door: Door
    _settings: config.Gateway
    _server: _Server
    _stream: trio.abc.Stream
    _pid: int | None
    _nursery: trio.Nursery = attrs.field(init=False)
    _link: Link = attrs.field(init=False)
    _subscriber: Subscriber | None = attrs.field(default=None, init=False)
    _told_schemas: tuple[str, ...] = attrs.field(default=(), init=False)
    _in_flight: int = attrs.field(default=0, init=False)
    _words: bytes | None = attrs.field(default=None, init=False)  # the last ones

    async def run(self) -> None:
        """Serve to the end; whatever ends it, the client is told and the door forgets it."""
        decoder = codec.Decoder(codec.MAX_VALUES)
        try:
            async with trio.open_nursery() as self._nursery:
                self._link = self._make_link()
                scope = self._nursery.cancel_scope
                scope.deadline = trio.current_time() + self._settings.hello_deadline_s
                try:
                    while data := await self._stream.receive_some(_READ_BYTES):
                        await self._answer(decoder.feed(bytes(data)))
                        del data
                    self._words = b""
                except _Fatal as exc:
                    self._words = exc.words
                except BadFrame as exc:
                    self._words = error(None, ErrorCode.BAD_FRAME, str(exc), fatal=True)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._words = b""  # it left without saying so
                finally:
                    # Whatever is put into the outbox from here on must start no writer: this
                    # nursery takes none any more, and the flush is the whole daemon's.
                    self._link.end(None)
            self._settle()
        finally:
            self._server.streams -= 1
            words = self._leave()
            try:
                if words:
                    with trio.move_on_after(_FLUSH_S, shield=True):
                        await self._link.finish(words, queued=self._link.verdict is None)
            finally:
                await trio.aclose_forcefully(self._stream)

    def _make_link(self) -> Link:
        settings = self._settings
        outbox: Outbox[bytes] = Outbox(
            size=len,
            lost=_lost_frame,
            queue_bytes=settings.queue_bytes,
            max_age_s=settings.max_age_s,
            max_age_latest_s=settings.max_age_latest_s,
        )
        return Link(outbox, self._stream, self._nursery, settings.write_deadline_s)

    def _settle(self) -> None:
        """Find last words where the greeting's deadline or the link ended the conversation."""
        if self._words is None:
            verdict = self._link.verdict
            text = "this client does not read fast enough"
            self._words = b"" if verdict is None else error(None, verdict, text, fatal=True)

    def _leave(self) -> bytes:
        """Let the door forget this client; what is left to be said to it, if anything."""
        if self._subscriber is not None:
            del self._server.clients[self._subscriber.conn]
            self._door.detach(self._subscriber)
            self._door.kick()
        if self._words is None:
            # Cancelled from outside: the daemon stops.
            return codec.frame(Type.GOAWAY, ErrorCode.DRAINING, int(_FLUSH_S * 1000), {})
        return self._words

    async def _answer(self, messages: list[list[Any]]) -> None:
        """Answer *messages*, the first of which greets, and let others have their turn."""
        while messages:
            for message in messages[:_FRAMES_A_STEP]:
                if self._subscriber is None:
                    self._subscriber = self._greet(message)
                    self._nursery.cancel_scope.deadline = math.inf
                else:
                    self._handle(self._subscriber, message)
            del messages[:_FRAMES_A_STEP]
            self._link.flush(self._door.now())
            if messages:
                await trio.lowlevel.checkpoint()
        await self._link.room()

    # The first frame.

    def _greet(self, message: list[Any]) -> Subscriber:
        match message:
            case [Type.HELLO, int(number), dict(hello), *_]:
                pass
            case _:
                raise _Fatal(ErrorCode.BAD_FRAME, "a client says HELLO first")
        match hello.get("proto"):
            case [int(lowest), int(highest), *_] if lowest <= PROTO <= highest:
                pass
            case _:
                text = f"this daemon speaks KFP/{PROTO}"
                detail = {"proto": [PROTO, PROTO]}
                raise _Fatal(ErrorCode.PROTO_MISMATCH, text, number, detail)
        name = hello.get("client")
        trader = hello.get("role") == "trader" and self._door.orders_enabled
        now = self._door.now()
        subscriber = Subscriber(
            name=name[:_MAX_NAME] if isinstance(name, str) else "",
            conn=self._door.connection_number(),
            role="trader" if trader else "reader",
            outbox=self._link.outbox,
            encode=True,
            pid=self._pid,
            since_ts=self._door.wall_ns(),
            sink=self._link,
        )
        settings = self._settings
        welcome = {
            "proto": PROTO,
            "server": self._door.software,
            "conn": subscriber.conn,
            "instance": self._door.instance,
            "epoch": self._door.epoch,
            "role": subscriber.role,
            "limits": {
                "max_frame": MAX_FRAME,
                "max_subs": settings.max_subs,
                "queue_bytes": settings.queue_bytes,
                "max_age_ms": int(settings.max_age_s * 1000),
                "max_age_latest_ms": int(settings.max_age_latest_s * 1000),
                "write_deadline_ms": int(settings.write_deadline_s * 1000),
            },
            "session": dict(self._door.session_map()),
            "slots": dict(self._door.slots_map()),
        }
        # WELCOME carries the session: whatever changes from here on comes behind it.
        subscriber.outbox.control(codec.frame(Type.WELCOME, number, welcome), now)
        self._door.attach(subscriber)
        self._server.clients[subscriber.conn] = self
        return subscriber

    # Requests.

    def _handle(self, subscriber: Subscriber, message: list[Any]) -> None:
        number = message[1] if len(message) > 1 and type(message[1]) is int else None
        try:
            self._request(subscriber, message[0], number, message[2] if len(message) > 2 else None)
        except _BadRequest as exc:
            self._reply(error(number, exc.code, str(exc), texts.parts(exc)))

    def _request(
        self, subscriber: Subscriber, kind: int, number: int | None, argument: object
    ) -> None:
        if number is None:
            raise _BadRequest("a request has an integer id")
        if kind == Type.PING:
            self._reply(codec.frame(Type.RES, number, {"now_ts": self._door.wall_ns()}))
            return
        if not isinstance(argument, dict):
            raise _BadRequest("the argument of a request is a map")
        match kind:
            case Type.SUB:
                self._sub(subscriber, number, argument)
            case Type.UNSUB:
                self._unsub(subscriber, number, argument)
            case Type.GET:
                self._get(number, argument)
            case Type.SET:
                self._set(subscriber, number, argument)
            case Type.CALL:
                self._call(subscriber, number, argument)
            case _:
                raise _BadRequest(f"there is no request of type {kind}")

    def _reply(self, frame: bytes) -> None:
        self._link.outbox.control(frame, self._door.now())

    def _sub(self, subscriber: Subscriber, number: int, argument: dict[Any, Any]) -> None:
        asked = argument.get("subs")
        if not isinstance(asked, list):
            raise _BadRequest("SUB takes a list of subs")
        if len(asked) > self._settings.max_subs:
            text = f"at most {self._settings.max_subs} topics for one client"
            raise _BadRequest(text, ErrorCode.OVER_LIMIT)
        names = {stream.topic.name for stream in subscriber.streams.values()}
        specs: list[SubSpec] = []
        refused: list[SubResult | None] = []  # None where there is a spec
        for item in asked:
            spec = _spec_or_refusal(item)
            if isinstance(spec, SubSpec):
                if spec.topic in names or len(names) < self._settings.max_subs:
                    names.add(spec.topic)
                    specs.append(spec)
                    refused.append(None)
                    continue
                spec = _over_limit(spec, self._settings.max_subs)
            refused.append(spec)

        def reply(results: list[SubResult]) -> bytes:
            found = iter(results)
            return self._items(number, [refusal or next(found) for refusal in refused])

        self._door.subscribe(subscriber, specs, reply)
        self._door.kick()

    def _items(self, number: int, items: Sequence[SubResult], **more: object) -> bytes:
        schemas = {}
        for item in items:
            if item.sid is not None and item.schema not in self._told_schemas:
                self._told_schemas += (item.schema,)
                schemas[item.schema] = self._door.fields(item.schema)
        body = {"items": [_item(item) for item in items], "schemas": schemas, **more}
        return codec.frame(Type.RES, number, body)

    def _unsub(self, subscriber: Subscriber, number: int, argument: dict[Any, Any]) -> None:
        sids = argument.get("sids")
        if argument.get("all") is True:
            sids = None
        elif not isinstance(sids, list) or not all(type(sid) is int for sid in sids):
            raise _BadRequest("UNSUB takes a list of sids, or all")
        ended = self._door.unsubscribe(subscriber, sids)
        self._reply(codec.frame(Type.RES, number, {"sids": ended}))
        self._door.kick()

    def _get(self, number: int, argument: dict[Any, Any]) -> None:
        topic = _topic(argument)
        try:
            result, image = self._door.image(topic)
        except UnknownTopic as exc:
            raise _BadRequest(exc.why, ErrorCode.UNKNOWN_TOPIC) from None
        self._reply(self._items(number, [result], image=image is not None))
        if image is not None:
            self._reply(image)

    def _set(self, subscriber: Subscriber, number: int, argument: dict[Any, Any]) -> None:
        sid = argument.get("sid")
        if type(sid) is not int:
            raise _BadRequest("SET takes a sid")
        mode = _mode(argument)
        hz = _hz(argument, needed=mode is Mode.HZ)
        baseline = self._door.retune(subscriber, sid, mode=mode, hz=hz, prio=_prio(argument))
        if baseline is None:
            raise _BadRequest(f"sid {sid} is not subscribed")
        self._reply(codec.frame(Type.RES, number, {"sid": sid, "sseq": baseline}))
        self._door.kick()

    def _call(self, subscriber: Subscriber, number: int, argument: dict[Any, Any]) -> None:
        name, arguments = argument.get("m"), argument.get("a") or {}
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise _BadRequest('CALL takes {"m": name, "a": map}')
        refused = calls.refusal(name, subscriber.role, orders=self._door.orders_enabled)
        if refused is not None:
            raise _BadRequest(*refused)
        if self._in_flight >= calls.MAX_IN_FLIGHT:
            text = f"{calls.MAX_IN_FLIGHT} calls are waiting for their answers already"
            raise _BadRequest(text, ErrorCode.RATE_LIMITED)
        self._in_flight += 1
        self._nursery.start_soon(self._perform, number, name, arguments, subscriber.name)

    async def _perform(
        self, number: int, name: str, arguments: dict[str, Any], caller: str
    ) -> None:
        try:
            self._reply(await calls.answer(self._door.call, number, name, arguments, caller))
        finally:
            self._in_flight -= 1
        self._link.flush(self._door.now())

    # Heartbeat.

    def beat(self, upstream: Mapping[str, object]) -> None:
        outbox = self._link.outbox
        wall_ns, now = self._door.wall_ns(), self._door.now()

        def make() -> bytes:
            counters = {
                "sent": outbox.sent,
                "dropped": outbox.dropped,
                "conflated": outbox.conflated,
                "q_bytes": outbox.queued_bytes,
                "q_age_ms": self._link.age_ms(now),
                "up": upstream,
            }
            return codec.frame(Type.HB, wall_ns, counters)

        self._link.heartbeat(make, now)


def _lost_frame(sid: int, from_sseq: int, to_sseq: int, n: int, code: str) -> bytes:
    return codec.frame(Type.LOST, sid, from_sseq, to_sseq, n, code)


def _item(result: SubResult) -> dict[str, object]:
    return {
        "topic": result.topic,
        "sid": result.sid,
        "schema": result.schema,
        "scale": result.scale,
        "sseq": result.sseq,
        "stream": result.stream,
        "data": result.data,
        "code": result.code,
        "text": result.text,
    }


def _over_limit(spec: SubSpec, most: int) -> SubResult:
    return SubResult(
        spec.topic,
        None,
        stream=Stream.CLOSED,
        data=Data.NONE,
        code=Code.OVER_LIMIT,
        text=f"at most {most} topics for one client",
    )


# What a request may hold; every other key is ignored.


def _spec_or_refusal(item: object) -> SubSpec | SubResult:
    """The refusal is of one topic; what names none is no SUB at all."""
    if not isinstance(item, dict):
        raise _BadRequest("a sub is a map")
    topic = _topic(item)
    try:
        return _spec(item)
    except _BadRequest as exc:
        return SubResult(topic, None, code=ErrorCode.BAD_REQUEST, text=str(exc))


def _spec(item: dict[Any, Any]) -> SubSpec:
    mode = _mode(item) or Mode.ALL
    after = item.get("after")
    if after is not None and type(after) is not int:
        raise _BadRequest("after is an nseq")
    return SubSpec(
        topic=_topic(item),
        mode=mode,
        hz=_hz(item, needed=mode is Mode.HZ) or 0.0,
        prio=_prio(item) or 0,
        passive=_flag(item, "passive", default=False),
        image=_flag(item, "image", default=True),
        poll=_flag(item, "poll", default=True),
        after=after,
    )


def _topic(item: dict[Any, Any]) -> str:
    topic = item.get("topic")
    if not isinstance(topic, str) or len(topic) > _MAX_TOPIC:
        raise _BadRequest(f"a topic is a text of at most {_MAX_TOPIC} characters")
    return topic


def _mode(item: dict[Any, Any]) -> Mode | None:
    mode = item.get("mode")
    if mode is None:
        return None
    if mode not in tuple(Mode):
        raise _BadRequest(f"mode is one of {', '.join(Mode)}")
    return Mode(mode)


def _hz(item: dict[Any, Any], *, needed: bool) -> float | None:
    hz = item.get("hz")
    if hz is None and not needed:
        return None
    if isinstance(hz, bool) or not isinstance(hz, int | float) or not 0 < hz <= MAX_HZ:
        raise _BadRequest(f"hz is a number above 0 and at most {MAX_HZ:g}")
    return float(hz)


def _prio(item: dict[Any, Any]) -> int | None:
    prio = item.get("prio")
    if prio is not None and (type(prio) is not int or not 0 <= prio <= MAX_PRIO):
        raise _BadRequest(f"prio is an integer from 0 to {MAX_PRIO}")
    return prio


def _flag(item: dict[Any, Any], key: str, *, default: bool) -> bool:
    flag = item.get(key, default)
    if not isinstance(flag, bool):
        raise _BadRequest(f"{key} is true or false")
    return flag
