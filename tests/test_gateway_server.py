"""KFP/1 at the daemon's end: greeting, requests, faults; one client's trouble stays its own."""

from __future__ import annotations

import errno
import itertools
import os
import struct
import sys
import tracemalloc
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import attrs
import msgpack
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from kisfeed.config import Gateway
from kisfeed.core.subscriptions import SubResult, SubSpec
from kisfeed.errors import KisUnreachable, ServerRefused, UnknownTopic, UsageError
from kisfeed.gateway.fanout import Fanout
from kisfeed.gateway.listener import open_unix_listener
from kisfeed.gateway.server import serve
from kisfeed.kfp import codec
from kisfeed.kfp.messages import Code, Data, ErrorCode, Mode, Stream, Type

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from kisfeed.core.streams import Subscriber, TopicStream

WALL_NS = 1_767_225_600 * 10**9
SESSION = {
    "epoch": 12,
    "state": "STREAMING",
    "data": Data.OK,
    "code": Code.NONE,
    "since_ts": WALL_NS,
    "text": "",
}


@attrs.define(eq=False)
class FakeDoor:
    """A feed of trades whose only trade is the one that the test publishes."""

    orders_enabled: bool = False
    software: str = "kisfeed/test"
    instance: str = "01J"
    epoch: int = 12
    fanout: Fanout = attrs.field(factory=Fanout)
    sseq: dict[str, int] = attrs.field(factory=dict)
    attached: dict[int, Subscriber] = attrs.field(factory=dict)
    numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(7))
    left: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    calls: list[tuple[str, Mapping[str, Any]]] = attrs.field(factory=list)

    def now(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return WALL_NS

    def connection_number(self) -> int:
        return next(self.numbers)

    def session_map(self) -> Mapping[str, object]:
        return SESSION

    def slots_map(self) -> Mapping[str, object]:
        return {"cap": 41, "used": 39, "reserved": 2}

    def attach(self, subscriber: Subscriber) -> None:
        self.attached[subscriber.conn] = subscriber

    def detach(self, subscriber: Subscriber) -> None:
        del self.attached[subscriber.conn]
        self.left.unpark_all()

    async def only(self, clients: int) -> None:
        """Wait until no more than *clients* are left."""
        while len(self.attached) > clients:
            await self.left.park()

    def sid(self, topic: str) -> int:
        self.sseq.setdefault(topic, 0)
        return list(self.sseq).index(topic) + 1

    def result(self, topic: str) -> SubResult:
        if not topic.startswith("trade."):
            return SubResult(topic, None, code=ErrorCode.UNKNOWN_TOPIC, text="no such channel")
        sid = self.sid(topic)
        sseq = self.sseq[topic]
        return SubResult(topic, sid, "trade.v1", 0, sseq, Stream.RECOVERING, Data.NONE, "pending")

    def subscribe(
        self,
        subscriber: Subscriber,
        specs: Sequence[SubSpec],
        reply: Callable[[list[SubResult]], bytes],
    ) -> None:
        results = [self.result(spec.topic) for spec in specs]
        for spec, result in zip(specs, results, strict=True):
            if result.sid is not None:
                stream = SimpleNamespace(topic=SimpleNamespace(name=spec.topic))
                subscriber.streams[result.sid] = cast("TopicStream", stream)
                subscriber.outbox.open(result.sid, spec.mode, spec.hz, result.sseq, trades=True)
        subscriber.outbox.control(reply(results), self.now())
        for result in results:
            if result.sid is not None and result.sseq:
                subscriber.outbox.control(self.frame(Type.IMAGE, result.topic), self.now())

    def unsubscribe(self, subscriber: Subscriber, sids: Sequence[int] | None) -> list[int]:
        streams = subscriber.streams
        ended = [sid for sid in (list(streams) if sids is None else sids) if sid in streams]
        for sid in ended:
            del streams[sid]
            subscriber.outbox.close(sid)
        return ended

    def retune(
        self,
        subscriber: Subscriber,
        sid: int,
        *,
        mode: Mode | None,
        hz: float | None,
        prio: int | None,  # noqa: ARG002  # the Door's face
    ) -> int | None:
        stream = subscriber.streams.get(sid)
        if stream is None:
            return None
        topic = stream.topic.name
        subscriber.outbox.retune(sid, mode or Mode.ALL, hz or 0, self.sseq[topic])
        return self.sseq[topic]

    def image(self, topic: str) -> tuple[SubResult, bytes | None]:
        result = self.result(topic)
        if result.sid is None:
            raise UnknownTopic(topic, "no such channel")
        return result, self.frame(Type.IMAGE, topic) if result.sseq else None

    def fields(self, schema: str) -> list[str]:
        assert schema == "trade.v1"
        return ["px", "qty", "cum_qty"]

    async def call(self, name: str, arguments: Mapping[str, Any], caller: str) -> object:
        assert caller
        self.calls.append((name, arguments))
        match name:
            case "status":
                return {"ok": True}
            case "slow":
                await trio.sleep(arguments["for_s"])
                return {}
            case "huge":
                return "x" * (1 << 20)
            case "down":
                raise KisUnreachable("no answer")
            case "refused":
                raise ServerRefused("halted", "the kill switch is on")
            case "bug":
                raise ZeroDivisionError
            case _:
                raise UsageError("there is no such call")

    def kick(self) -> None:
        self.flush()

    def frame(self, kind: Type, topic: str, padding: int = 0) -> bytes:
        row = (71_000, 1, self.sseq[topic], "x" * padding)
        return codec.tick_frame(kind, self.sid(topic), self.sseq[topic], 0, None, WALL_NS, row)

    def publish(self, topic: str, n: int = 1, *, padding: int = 0, flush: bool = True) -> None:
        sid = self.sid(topic)
        for _ in range(n):
            self.sseq[topic] += 1
            tick = (sid, self.sseq[topic], self.frame(Type.TICK, topic, padding), self.now())
            for subscriber in self.attached.values():
                if sid in subscriber.streams:
                    subscriber.outbox.put(tick)
        if flush:
            self.flush()

    def flush(self) -> None:
        self.fanout.flush([s for s in self.attached.values() if s.outbox.ready])


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the other ends of what :meth:`connect` returns."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](10_000)

    def connect(self, pair: Callable[[], Any] = memory_stream_pair) -> Peer:
        mine, theirs = pair()
        self._send.send_nowait(theirs)
        return Peer(mine)

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()


class Peer:
    """A client author's program: packs and unpacks by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = codec.Decoder()
        self._messages: list[list[Any]] = []

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send(self, *message: object) -> None:
        body = msgpack.packb(message)
        await self.raw(struct.pack(">I", len(body)) + body)

    async def recv(self) -> list[Any]:
        """The next message; empty at the end."""
        while not self._messages:
            data = await self.stream.receive_some(65536)
            if not data:
                return []
            self._messages = self._decoder.feed(bytes(data))
        return self._messages.pop(0)

    async def rest(self) -> list[list[Any]]:
        messages = []
        try:
            while message := await self.recv():
                messages.append(message)
        except trio.BrokenResourceError:
            # The daemon closed with something of ours unread.
            return messages
        return messages

    async def ask(self, *message: object) -> list[Any]:
        """Send a request; the next RES or ERR."""
        await self.send(*message)
        while True:
            answer = await self.recv()
            if not answer or answer[0] in (Type.RES, Type.ERR, Type.WELCOME):
                return answer

    async def hello(self, **more: object) -> dict[str, Any]:
        welcome = await self.ask(1, 1, {"proto": [1, 1], "client": "test/1", **more})
        assert welcome[:2] == [Type.WELCOME, 1]
        body: dict[str, Any] = welcome[2]
        return body

    async def sub(self, *topics: str, **more: object) -> list[dict[str, Any]]:
        subs = [{"topic": topic, **more} for topic in topics]
        answer = await self.ask(2, 2, {"subs": subs})
        assert answer[0] == Type.RES, answer
        items: list[dict[str, Any]] = answer[2]["items"]
        return items


@asynccontextmanager
async def serving(
    door: FakeDoor, rules: Gateway | None = None
) -> AsyncGenerator[MemoryListener, None]:
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, listener, door, rules or Gateway())
        yield listener
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving_unix(
    path: Path, door: FakeDoor, rules: Gateway | None = None
) -> AsyncGenerator[None, None]:
    with trio.fail_after(10):
        async with open_unix_listener(path) as listener, trio.open_nursery() as nursery:
            await nursery.start(serve, listener, door, rules or Gateway())
            yield
            nursery.cancel_scope.cancel()


async def dial(path: Path) -> Peer:
    return Peer(await trio.open_unix_socket(path))


# The greeting.


async def test_welcome_tells_what_kfp1_says(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        assert await listener.connect().hello() == {
            "proto": 1,
            "server": "kisfeed/test",
            "conn": 7,
            "instance": "01J",
            "epoch": 12,
            "role": "reader",
            "limits": {
                "max_frame": 1_048_576,
                "max_subs": 512,
                "queue_bytes": 262_144,
                "max_age_ms": 10_000,
                "max_age_latest_ms": 1_000,
                "write_deadline_ms": 10_000,
            },
            "session": SESSION,
            "slots": {"cap": 41, "used": 39, "reserved": 2},
        }


@pytest.mark.parametrize("orders", [True, False])
async def test_trader_is_granted_when_orders_are_enabled(
    orders: bool, autojump_clock: MockClock
) -> None:
    async with serving(FakeDoor(orders_enabled=orders)) as listener:
        assert (await listener.connect().hello())["role"] == "reader"
        welcome = await listener.connect().hello(role="trader")
        assert welcome["role"] == ("trader" if orders else "reader")


async def test_a_client_that_says_nothing_is_closed_after_two_seconds(
    autojump_clock: MockClock,
) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.raw(b"\x00\x00\x00")
        assert await client.rest() == []
        assert trio.current_time() == 2.0


@pytest.mark.parametrize("proto", [[2, 3], [0, 0], "1", None, [1], ["a", "b"]])
async def test_no_common_version_names_the_daemons(
    proto: object, autojump_clock: MockClock
) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.send(1, 9, {"proto": proto})
        ((kind, number, code, fatal, _, detail),) = await client.rest()
        assert (kind, number, code, fatal) == (Type.ERR, 9, "proto_mismatch", True)
        assert detail == {"proto": [1, 1]}


async def test_a_newer_client_may_still_speak_version_1(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        answer = await client.ask(1, 1, {"proto": [1, 7], "x": 1}, "extra")
        assert answer[2]["proto"] == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff",
        codec.frame(Type.SUB, 1, {"subs": []}),
        codec.frame(Type.HELLO),
        codec.frame(Type.HELLO, "a", {}),
    ],
)
@pytest.mark.parametrize("greeted", [True, False])
async def test_garbage_is_answered_with_a_fatal_error(
    garbage: bytes, greeted: bool, autojump_clock: MockClock
) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client, other = listener.connect(), listener.connect()
        await other.hello()
        if greeted:
            await client.hello()
        await client.raw(garbage)
        with trio.move_on_after(1):
            *_, last = await client.rest()
            assert last[0] == Type.ERR
            assert last[3] is True
            assert last[2] == "bad_frame"
            assert len(door.attached) == 1
        assert (await other.ask(5, 3))[:2] == [Type.RES, 3]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.lists(
                st.recursive(
                    st.one_of(
                        st.none(),
                        st.booleans(),
                        st.integers(-(2**63), 2**64 - 1),
                        st.floats(),
                        st.text(max_size=9),
                        st.sampled_from(["subs", "sids", "topic", "m", "hz", "trade.krx.1"]),
                    ),
                    lambda inner: st.one_of(
                        st.lists(inner, max_size=3),
                        st.dictionaries(
                            st.sampled_from(["subs", "sids", "sid", "topic", "mode", "m", "a"]),
                            inner,
                            max_size=4,
                        ),
                    ),
                    max_leaves=8,
                ),
                max_size=3,
            ).flatmap(lambda args: st.integers(0, 30).map(lambda kind: [kind, 4, *args])),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_whatever_a_client_sends_the_daemon_lives(plan: list[Any], greeted: bool) -> None:
    async def main() -> None:
        door = FakeDoor()
        async with serving(door) as listener:
            client, other = listener.connect(), listener.connect()
            await other.hello()
            if greeted:
                await client.hello()
            for step in plan:
                try:
                    if isinstance(step, bytes):
                        await client.raw(step)
                    else:
                        await client.send(*step)
                except trio.BrokenResourceError:
                    break  # an answer to that is what rest() finds
            else:
                await client.stream.send_eof()  # type: ignore[attr-defined]  # a memory stream
            with trio.fail_after(20):
                for message in await client.rest():
                    assert message[0] in tuple(Type)
            assert (await other.ask(5, 3))[:2] == [Type.RES, 3]
            assert len(door.attached) == 1

    trio.run(main, clock=MockClock(autojump_threshold=0))


# Requests.


async def test_sub_answers_each_item_before_any_frame_of_its_sids(
    autojump_clock: MockClock,
) -> None:
    door = FakeDoor()
    door.publish("trade.krx.005930")
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        await client.send(
            2, 2, {"subs": [{"topic": "trade.krx.005930"}, {"topic": "smoke.krx.000660"}]}
        )
        _, _, body = await client.recv()
        assert body["schemas"] == {"trade.v1": ["px", "qty", "cum_qty"]}
        good, bad = body["items"]
        assert good == {
            "topic": "trade.krx.005930",
            "sid": 1,
            "schema": "trade.v1",
            "scale": 0,
            "sseq": 1,
            "stream": 3,
            "data": 3,
            "code": "pending",
            "text": "",
        }
        assert (bad["sid"], bad["stream"], bad["code"]) == (None, 4, "unknown_topic")
        assert (await client.recv())[:3] == [Type.IMAGE, 1, 1]
        door.publish("trade.krx.005930")
        assert (await client.recv())[:3] == [Type.TICK, 1, 2]


async def test_a_schema_is_told_once_a_connection(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        first = await client.ask(2, 2, {"subs": [{"topic": "trade.a"}]})
        second = await client.ask(2, 3, {"subs": [{"topic": "trade.b"}]})
        assert (len(first[2]["schemas"]), len(second[2]["schemas"])) == (1, 0)


async def test_topics_over_the_limit_are_refused_one_by_one(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor(), Gateway(max_subs=3)) as listener:
        client = listener.connect()
        await client.hello()
        await client.sub("trade.a", "trade.b")
        items = await client.sub("trade.b", "trade.c", "trade.d")
        assert [item["code"] for item in items] == ["pending", "pending", "over_limit"]
        answer = await client.ask(2, 5, {"subs": [{"topic": "trade.x"}] * 4})
        assert answer[:4] == [Type.ERR, 5, "over_limit", False]
        await client.ask(3, 6, {"sids": [1]})
        assert (await client.sub("trade.d"))[0]["code"] == "pending"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "some"},
        {"mode": "hz"},
        {"mode": "hz", "hz": 0},
        {"mode": "hz", "hz": float("nan")},
        {"prio": 10},
        {"passive": 1},
        {"after": "x"},
    ],
)
async def test_a_topic_with_an_option_that_cannot_be_is_refused_alone(
    wrong: dict[str, object], autojump_clock: MockClock
) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        subs = [{"topic": "trade.a"}, {"topic": "trade.b", **wrong}, {"topic": "trade.c"}]
        _, _, body = await client.ask(2, 2, {"subs": subs})
        told = [(item["topic"], item["sid"] is None, item["code"]) for item in body["items"]]
        assert told == [
            ("trade.a", False, "pending"),
            ("trade.b", True, "bad_request"),
            ("trade.c", False, "pending"),
        ]


async def test_unsub_ends_and_set_restarts_the_baseline(autojump_clock: MockClock) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        await client.sub("trade.a", "trade.b")
        door.publish("trade.a", 3)
        answer = await client.ask(8, 3, {"sid": 1, "mode": "hz", "hz": 2})
        assert answer == [Type.RES, 3, {"sid": 1, "sseq": 3}]
        assert (await client.ask(3, 4, {"sids": [2, 9]}))[2] == {"sids": [2]}
        assert (await client.ask(3, 5, {"all": True}))[2] == {"sids": [1]}
        door.publish("trade.a")
        assert (await client.ask(5, 6))[0] == Type.RES


async def test_hz_goes_at_once_and_then_when_due(autojump_clock: MockClock) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        await client.sub("trade.a", mode="hz", hz=2)
        start = trio.current_time()
        for _ in range(10):
            door.publish("trade.a")
            await trio.sleep(0.1)
        got = []
        with trio.move_on_after(1):
            while True:
                got.append((await client.recv())[2])
        assert got[0] == 1
        assert got[-1] == 10
        assert 3 <= len(got) <= 4
        assert trio.current_time() - start < 2.5


async def test_get_gives_the_last_value_and_no_interest(autojump_clock: MockClock) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        _, _, body = await client.ask(4, 2, {"topic": "trade.a"})
        assert body["image"] is False
        door.publish("trade.a")
        _, _, body = await client.ask(4, 3, {"topic": "trade.a"})
        assert (body["image"], body["items"][0]["sseq"]) == (True, 1)
        assert (await client.recv())[:3] == [Type.IMAGE, 1, 1]
        assert not door.attached[7].streams
        answer = await client.ask(4, 4, {"topic": "smoke.a"})
        assert answer[:4] == [Type.ERR, 4, "unknown_topic", False]


@pytest.mark.parametrize(
    "request_",
    [
        (2, 2, {}),
        (2, 2, {"subs": [7]}),
        (2, 2, {"subs": [{"topic": 7}]}),
        (2, 2, {"subs": [{"topic": "x" * 200}]}),
        (3, 2, {"sids": [True]}),
        (3, 2, {}),
        (4, 2, {}),
        (6, 2, {"m": 3}),
        (6, 2, {"m": "status", "a": [1]}),
        (8, 2, {"sid": 99}),
        (8, 2, {"sid": "1"}),
        (1, 2, {"proto": [1, 1]}),
        (7, 2, {}),
        (99, 2, {}),
        (2, 2, None),
        (2, 2),
    ],
)
async def test_a_request_that_cannot_be_is_refused_and_the_next_one_answered(
    request_: tuple[object, ...], autojump_clock: MockClock
) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        answer = await client.ask(*request_)
        assert answer[:4] == [Type.ERR, 2, "bad_request", False]
        assert (await client.ask(5, 3, "anything"))[:2] == [Type.RES, 3]


async def test_a_request_without_an_id_is_refused_with_none(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        assert (await client.ask(2))[:3] == [Type.ERR, None, "bad_request"]


async def test_calls_are_answered_when_they_are_ready(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        await client.send(6, 2, {"m": "slow", "a": {"for_s": 3}})
        assert await client.ask(6, 3, {"m": "status"}) == [Type.RES, 3, {"result": {"ok": True}}]
        assert await client.ask(5, 4) == [Type.RES, 4, {"now_ts": WALL_NS}]
        assert await client.recv() == [Type.RES, 2, {"result": {}}]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("down", "upstream_down"),
        ("refused", "halted"),
        ("huge", "over_limit"),
        ("nonsense", "bad_request"),
        ("order.place", "orders_disabled"),
    ],
)
async def test_a_call_that_fails_says_whose_fault_it_is(
    name: str, code: str, autojump_clock: MockClock
) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        answer = await client.ask(6, 3, {"m": name})
        assert answer[:4] == [Type.ERR, 3, code, False]


async def test_a_reader_cannot_place_orders(autojump_clock: MockClock) -> None:
    door = FakeDoor(orders_enabled=True)
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        answer = await client.ask(6, 3, {"m": "order.place"})
        assert answer[2] == "not_entitled"
        assert door.calls == []
        trader = listener.connect()
        await trader.hello(role="trader")
        await trader.ask(6, 3, {"m": "order.place", "a": {"qty": 1}})
        assert door.calls == [("order.place", {"qty": 1})]


async def test_too_many_calls_at_a_time_are_refused(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        client = listener.connect()
        await client.hello()
        for number in range(16):
            await client.send(6, number, {"m": "slow", "a": {"for_s": 3}})
        assert (await client.ask(6, 99, {"m": "status"}))[1:3] == [99, "rate_limited"]


async def test_a_bug_behind_a_call_is_not_hidden(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(FakeDoor()) as listener:
            client = listener.connect()
            await client.hello()
            await client.send(6, 2, {"m": "bug"})
            await trio.sleep_forever()


async def test_a_flood_of_requests_leaves_room_for_others(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor()) as listener:
        flooder, other = listener.connect(), listener.connect()
        await flooder.hello()
        await other.hello()
        await flooder.raw(codec.frame(Type.PING, 1, None) * 5_000)
        await other.send(5, 2)
        got = 0
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                nonlocal got
                while (await flooder.recv())[0] == Type.RES:
                    got += 1

            nursery.start_soon(count)
            assert (await other.recv())[:2] == [Type.RES, 2]
            assert got < 1_000
            await wait_all_tasks_blocked()
            assert got == 5_000
            nursery.cancel_scope.cancel()


# Heartbeats, shutdown, limits.


async def test_heartbeats_come_every_five_seconds_with_counters(
    autojump_clock: MockClock,
) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        await client.sub("trade.a")
        door.publish("trade.a", 3)
        for _ in range(3):
            await client.recv()
        for beat in (1, 2):
            assert await client.recv() == [
                Type.HB,
                WALL_NS,
                {
                    "sent": 3,
                    "dropped": 0,
                    "conflated": 0,
                    "q_bytes": 0,
                    "q_age_ms": 0,
                    "up": {"epoch": 12, "state": "STREAMING", "data": 1, "code": "none"},
                },
            ]
            assert trio.current_time() == 5.0 * beat


async def test_shutdown_delivers_what_is_queued_then_goaway(autojump_clock: MockClock) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client, mute = listener.connect(), listener.connect()
        await client.hello()
        await mute.hello()
        await client.sub("trade.a")
        door.publish("trade.a", 3, flush=False)
    got = await client.rest()
    assert [message[0] for message in got] == [Type.TICK] * 3 + [Type.GOAWAY]
    assert got[-1] == [Type.GOAWAY, "draining", 1000, {}]
    assert not door.attached


async def test_shutdown_waits_a_second_for_a_client_that_does_not_read(
    autojump_clock: MockClock,
) -> None:
    async with serving(FakeDoor()) as listener:
        stuck = listener.connect(trio.testing.lockstep_stream_pair)
        await stuck.hello()
        await wait_all_tasks_blocked()
        start = trio.current_time()
    assert trio.current_time() == start + 1.0


async def test_one_client_too_many_is_told(autojump_clock: MockClock) -> None:
    async with serving(FakeDoor(), Gateway(max_clients=2)) as listener:
        first, second, third = (listener.connect() for _ in range(3))
        await first.hello()
        await second.hello()
        ((kind, _, code, fatal, *_),) = await third.rest()
        assert (kind, code, fatal) == (Type.ERR, "over_limit", True)
        await first.stream.aclose()
        await wait_all_tasks_blocked()
        assert await listener.connect().hello()


class Exhausted(trio.abc.Listener[Any]):
    """Out of descriptors at first, broken after its one client."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.outcomes: list[OSError | trio.abc.Stream] = [
            OSError(errno.EMFILE, "too many files"),
            OSError(errno.ENOMEM, "no memory"),
            stream,
            OSError(errno.EBADF, "broken"),
        ]
        self.closed = False

    async def accept(self) -> trio.abc.Stream:
        await trio.sleep(0.01)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_who_comes_while_the_system_is_out_of_something_is_served_later(
    autojump_clock: MockClock,
) -> None:
    near, far = memory_stream_pair()
    listener = Exhausted(far)
    broken = pytest.RaisesExc(OSError, match="broken")
    with pytest.RaisesGroup(broken, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, listener, FakeDoor(), Gateway())
            await near.send_all(codec.frame(Type.HELLO, 1, {"proto": [1, 1], "client": "x"}))
            assert codec.Decoder().feed(bytes(await near.receive_some()))[0][0] == Type.WELCOME
            await trio.sleep_forever()
    assert listener.closed


async def test_a_client_that_leaves_leaves_nothing(autojump_clock: MockClock) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        client = listener.connect()
        await client.hello()
        await client.sub("trade.a")
        await client.send(6, 3, {"m": "slow", "a": {"for_s": 1e9}})
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert not door.attached
        door.publish("trade.a")


async def test_a_client_that_never_reads_is_closed_at_the_write_deadline(
    autojump_clock: MockClock,
) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        stuck = listener.connect(trio.testing.lockstep_stream_pair)
        other = listener.connect()
        for client in (stuck, other):
            await client.hello()
            await client.sub("trade.a")
        start = trio.current_time()
        for n in range(1, 13):
            door.publish("trade.a")
            while (tick := await other.recv())[0] != Type.TICK:
                pass
            assert tick[2] == n
            await trio.sleep(1)
        assert trio.current_time() == start + 12
        assert len(door.attached) == 1


async def test_every_heartbeat_agrees_with_what_the_client_saw(
    autojump_clock: MockClock,
) -> None:
    """Jumps are LOST plus conflated are the counters, at every HB, for a client that is slow."""
    door = FakeDoor()
    rules = Gateway(queue_bytes=2_000, heartbeat_s=0.7)
    async with serving(door, rules) as listener:
        client = listener.connect(trio.testing.lockstep_stream_pair)
        await client.hello()
        await client.sub("trade.a")
        await client.sub("trade.b", mode="latest")
        async with trio.open_nursery() as nursery:

            async def trade() -> None:
                for _ in range(400):
                    door.publish("trade.a", 7, flush=False)
                    door.publish("trade.b", 3)
                    await trio.sleep(0.05)

            nursery.start_soon(trade)
            position, sent, lost, jumps, beats = {1: 0, 2: 0}, 0, 0, 0, 0
            with trio.move_on_after(18):
                while True:
                    kind, *body = await client.recv()
                    if kind == Type.TICK:
                        jumps += body[1] - position[body[0]] - 1
                        position[body[0]] = body[1]
                        sent += 1
                    elif kind == Type.LOST:
                        sid, first, last, n, _ = body
                        assert first == position[sid] + 1
                        jumps += last - first + 1
                        lost += n
                        position[sid] = last
                    elif kind == Type.HB:
                        counters = body[1]
                        assert counters["sent"] == sent
                        assert counters["dropped"] == lost
                        assert counters["conflated"] == jumps - lost
                        beats += 1
                        await trio.sleep(0.6)
            assert beats > 10
            assert lost > 100
            assert jumps > lost


# Over a real socket.


async def test_a_fatal_error_is_flushed_before_the_close(tmp_path: Path) -> None:
    path = tmp_path / "d" / "s"
    async with serving_unix(path, FakeDoor()):
        for data, code in (
            (b"\xff" * 70_000, "bad_frame"),
            (codec.frame(1, 1, {"proto": [9, 9]}), "proto_mismatch"),
        ):
            client = await dial(path)
            await client.raw(data)
            (message,) = await client.rest()
            assert (message[0], message[2], message[3]) == (Type.ERR, code, True)
            await client.stream.aclose()


async def test_answers_queued_before_a_fatal_error_come_first(tmp_path: Path) -> None:
    path = tmp_path / "d" / "s"
    async with serving_unix(path, FakeDoor()):
        client = await dial(path)
        await client.hello()
        await client.raw(codec.frame(5, 2, None))
        assert (await client.recv())[:2] == [Type.RES, 2]
        await client.raw(codec.frame(5, 3, None) + b"\x00\x00\x00\x00")
        assert [message[0] for message in await client.rest()][-1] == Type.ERR
        await client.stream.aclose()


async def test_half_a_frame_and_a_dead_client_leave_nothing(tmp_path: Path) -> None:
    path, door = tmp_path / "d" / "s", FakeDoor()
    async with serving_unix(path, door):
        client = await dial(path)
        await client.hello()
        await client.sub("trade.a")
        await client.raw(codec.frame(2, 2, {"subs": []})[:7])
        await client.stream.aclose()
        while door.attached:
            door.publish("trade.a")
            await trio.sleep(0.001)


async def test_a_client_that_dies_while_it_is_written_to_is_let_go(tmp_path: Path) -> None:
    path, door = tmp_path / "d" / "s", FakeDoor()
    async with serving_unix(path, door):
        client = await dial(path)
        await client.hello()
        await client.sub("trade.a")
        door.publish("trade.a", 300, padding=2_000)
        assert door.attached[7].outbox.queued_bytes > 0
        await client.stream.aclose()
        await door.only(0)


async def test_a_stalled_reader_costs_itself_alone(tmp_path: Path) -> None:
    path, door = tmp_path / "d" / "s", FakeDoor()
    async with serving_unix(path, door, Gateway(write_deadline_s=0.3)):
        stalled, reader = await dial(path), await dial(path)
        for client in (stalled, reader):
            await client.hello()
            await client.sub("trade.a")
        for n in range(1, 1201):
            door.publish("trade.a", padding=1_000)
            assert (await reader.recv())[2] == n
        outbox = door.attached[7].outbox
        assert outbox.queued_bytes <= 262_144
        assert outbox.untold > 0
        await door.only(1)
        door.publish("trade.a")
        assert (await reader.recv())[2] == 1201
        await stalled.stream.aclose()
        await reader.stream.aclose()


async def test_three_megabytes_of_notices_told_again_arrive_in_order(tmp_path: Path) -> None:
    path, door = tmp_path / "d" / "s", FakeDoor()
    async with serving_unix(path, door):
        client = await dial(path)
        await client.hello()
        subscriber = door.attached[7]
        body = {"memo": "x" * 1000}
        notices = [codec.frame(Type.NOTICE, n, None, n, "fill", body) for n in range(3000)]
        subscriber.outbox.again(notices, 0, door.now())
        door.fanout.flush([subscriber])
        assert [(await client.recv())[1] for _ in range(3000)] == list(range(3000))
        await client.stream.aclose()


async def test_a_reader_that_catches_up_sees_where_it_lost(tmp_path: Path) -> None:
    path, door = tmp_path / "d" / "s", FakeDoor()
    async with serving_unix(path, door):
        client = await dial(path)
        await client.hello()
        await client.sub("trade.a")
        door.publish("trade.a", 2_000, padding=1_000)
        position = lost = ticks = 0
        while position < 2_000:
            kind, *body = await client.recv()
            if kind == Type.LOST:
                assert body[1] == position + 1
                position, lost = body[2], lost + body[3]
            elif kind == Type.TICK:
                assert body[1] == position + 1
                position, ticks = body[1], ticks + 1
        assert lost > 0
        assert ticks + lost == 2_000
        door.publish("trade.a")
        assert (await client.recv())[2] == 2_001
        await client.stream.aclose()


async def test_a_client_that_never_reads_its_answers_is_not_read_either(tmp_path: Path) -> None:
    path, door = tmp_path / "d" / "s", FakeDoor()
    async with serving_unix(path, door, Gateway(write_deadline_s=0.3)):
        client = await dial(path)
        await client.hello()
        outbox = door.attached[7].outbox
        async with trio.open_nursery() as nursery:

            async def ask_for_ever() -> None:
                with suppress(trio.BrokenResourceError):
                    while True:
                        await client.raw(codec.frame(3, 1, {"sids": []}) * 1_000)
                        assert outbox.control_bytes < 200_000

            nursery.start_soon(ask_for_ever)
            await door.only(0)
        assert outbox.control_bytes > 10_000
        await client.stream.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_another_uid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d" / "s"
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "os.chdir(sys.argv[1])\n"
        "os.setuid(65534)\n"
        "s.connect('s')\n"
        "s.settimeout(5)\n"
        "sys.stdout.buffer.write(s.recv(4096))\n"
    )
    async with serving_unix(path, FakeDoor()):
        path.parent.chmod(0o755)
        path.chmod(0o666)
        done = await trio.run_process(
            [sys.executable, "-c", code, str(path.parent)], capture_stdout=True
        )
        (message,) = codec.Decoder().feed(done.stdout)
        assert (message[0], message[2], message[3]) == (Type.ERR, "unauthorized", True)


async def test_subscribers_hold_references_to_shared_frames(autojump_clock: MockClock) -> None:
    door = FakeDoor()
    async with serving(door) as listener:
        clients = [listener.connect(trio.testing.lockstep_stream_pair) for _ in range(200)]
        for client in clients:
            await client.hello()
            await client.sub("trade.a")
        door.publish("trade.a")
        await wait_all_tasks_blocked()
        tracemalloc.start()
        door.publish("trade.a", 200, padding=1_000)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert door.attached[7].outbox.queued_bytes > 200_000
        assert grown < 200 * 4_000
