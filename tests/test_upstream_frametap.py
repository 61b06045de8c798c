"""Frames cut under the WebSocket library: the same messages, in the same order, as without."""

from __future__ import annotations

import itertools
import re
import struct
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pytest
import trio
import trio.testing
from hypothesis import example, given, settings, strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, CloseConnection, Request, TextMessage
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from kisfeed.upstream.frametap import FrameTap

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

T = TypeVar("T")
MAX = 300
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
HANDSHAKE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %s\r\n\r\n"
)


def frame(first: int, payload: bytes, *, masked: bool = False, width: int | None = None) -> bytes:
    """One frame as a server sends it; *width* forces 2, 4 or 10 bytes of header."""
    size = len(payload)
    if width is None:
        width = 2 if size < 126 else 4 if size < 65_536 else 10
    mask = 0x80 if masked else 0
    head = {
        2: lambda: struct.pack("!BB", first, mask | size),
        4: lambda: struct.pack("!BBH", first, mask | 126, size),
        10: lambda: struct.pack("!BBQ", first, mask | 127, size),
    }[width]()
    return head + (b"\0\0\0\0" if masked else b"") + payload


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waited")


class Chunks(trio.abc.Stream):
    """Gives the chunks it was made of, then the end."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = [chunk for chunk in chunks if chunk]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        return self._chunks.pop(0) if self._chunks else b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:  # noqa: ARG002
        raise AssertionError("nothing is sent here")

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError("nothing is sent here")

    async def aclose(self) -> None:
        pass


@attrs.define(eq=False)
class Library:
    """wsproto, and on top of it the joining and bounding that trio-websocket does."""

    ws: WSConnection = attrs.field(factory=lambda: WSConnection(ConnectionType.CLIENT))
    queue: list[bytes] = attrs.field(factory=list)
    over: bool = False
    _parts: list[str] | list[bytes] = attrs.field(factory=list)

    def answer(self) -> bytes:
        """The server's answer to this one's handshake."""
        request = self.ws.send(Request(host="kis", target="/"))
        found = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", request)
        assert found is not None
        return HANDSHAKE % generate_accept_token(found[1])

    def feed(self, data: bytes) -> None:
        if self.over:
            return
        try:
            self.ws.receive_data(data)
        except RemoteProtocolError:
            self.over = True
            return
        for event in self.ws.events():
            if isinstance(event, CloseConnection):
                self.over = True
                return
            if isinstance(event, TextMessage | BytesMessage):
                self._parts.append(event.data)  # type: ignore[arg-type]  # one kind a message
                if sum(map(len, self._parts)) > MAX:
                    self.over = True
                    return
                if event.message_finished:
                    joined = self._parts[0][:0].join(self._parts)  # type: ignore[arg-type]
                    self.queue.append(joined.encode() if isinstance(joined, str) else joined)
                    self._parts = []


def alone(data: bytes) -> list[bytes]:
    """What arrives without a tap."""
    library = Library()
    library.feed(library.answer() + data)
    return library.queue


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def tapped(data: bytes, places: Sequence[int], patience: Sequence[int] = ()) -> list[bytes]:
    """What arrives through a tap, by both ways, while the consumer is *patience* reads late."""
    library = Library()
    delivered: list[bytes] = []
    tap = FrameTap(
        Chunks(cut(library.answer() + data, places)),
        delivered.extend,
        lambda: None,
        max_message_bytes=MAX,
    )
    tap.release()

    def take() -> None:
        for message in library.queue:
            tap.taken()
            delivered.append(message)
        library.queue = []

    late = 0
    waits = list(patience)
    while passed := run_now(tap.receive_some()):
        library.feed(passed)
        late += 1
        if library.queue and late >= (waits[0] if waits else 0):
            take()
            late = 0
            waits = waits[1:]
    take()
    return delivered


words = st.text(st.sampled_from("0|^가é\x00z"), max_size=40).map(str.encode)
good = st.one_of(
    words.map(lambda text: frame(TEXT, text)),
    words.map(lambda text: frame(TEXT, (text * 20)[:MAX].decode(errors="ignore").encode())),
    st.binary(max_size=20).map(lambda data: frame(BINARY, data)),
    st.binary(max_size=20).map(lambda data: frame(PING, data)),
    st.binary(max_size=20).map(lambda data: frame(PONG, data)),
    st.tuples(
        st.sampled_from([0x01, 0x02]),
        st.lists(words, min_size=2, max_size=4),
        st.lists(st.sampled_from([b"", frame(PING, b"in between"), frame(PONG, b"")]), max_size=3),
    ).map(lambda parts: fragments(*parts)),
)
fatal = st.one_of(
    st.just(frame(CLOSE, struct.pack("!H", 1000) + b"bye")),
    st.just(frame(CLOSE, b"")),
    st.just(frame(CLOSE, b"\x03")),
    st.just(frame(TEXT, b"masked", masked=True)),
    st.just(frame(TEXT, b"x" * (MAX + 1))),
    st.just(frame(BINARY, b"x" * (MAX + 1))),
    st.just(frame(TEXT, b"wide", width=4)),
    st.just(frame(TEXT, b"wide", width=10)),
    st.just(frame(0x80, b"continues nothing")),
    st.just(frame(0x01, b"begun") + frame(TEXT, b"another")),
    st.just(frame(0x01, b"\xff") + frame(0x80, b"")),
    st.just(frame(0x09, b"half a ping")),
    st.just(frame(PING, b"x" * 126)),
    *(st.just(frame(first, b"reserved")) for first in (0xC1, 0xA2, 0x91, 0x83, 0x8B, 0xC9)),
)
cuts = st.lists(st.integers(0, 4000), max_size=30)


def fragments(first: int, parts: Sequence[bytes], between: Sequence[bytes]) -> bytes:
    data = frame(first, parts[0])
    for number, part in enumerate(parts[1:], 1):
        data += between[number - 1] if number - 1 < len(between) else b""
        data += frame(0x80 if number == len(parts) - 1 else 0x00, part)
    return data


@settings(max_examples=200)
@given(st.lists(good, max_size=12), cuts, st.lists(st.integers(0, 3), max_size=8))
def test_the_tap_changes_neither_what_arrives_nor_its_order(
    frames: list[bytes], places: list[int], patience: list[int]
) -> None:
    data = b"".join(frames)
    assert tapped(data, places, patience) == alone(data)


@settings(max_examples=200)
@given(st.lists(good, max_size=4), fatal, st.lists(good, max_size=4), cuts)
def test_nothing_is_delivered_behind_a_close_frame_or_a_breach(
    before: list[bytes], end: bytes, after: list[bytes], places: list[int]
) -> None:
    data = b"".join([*before, end, *after])
    expected = alone(b"".join(before))
    assert tapped(data, places) == alone(data) == expected


@given(st.lists(good, max_size=5))
@example([frame(TEXT, b"x" * 130), frame(PING, b"p"), frame(TEXT, b"y")])
def test_every_single_cut_delivers_the_same(frames: list[bytes]) -> None:
    data = b"".join(frames)
    assert tapped(data, range(1, 4000)) == alone(data)


@given(st.lists(st.one_of(good, fatal), max_size=8), cuts)
def test_without_direct_every_byte_is_passed_on(frames: list[bytes], places: list[int]) -> None:
    data = Library().answer() + b"".join(frames)
    sunk: list[bytes] = []
    tap = FrameTap(
        Chunks(cut(data, places)),
        sunk.extend,
        lambda: None,
        max_message_bytes=MAX,
        direct=False,
    )
    passed = b""
    while piece := run_now(tap.receive_some()):
        passed += piece
    assert passed == data
    assert sunk == []


def test_a_text_frame_of_no_utf8_reaches_the_sink_and_ends_nothing() -> None:
    data = frame(TEXT, b"0|H0STCNT0|001|\xff\xfe") + frame(TEXT, b"next")
    assert tapped(data, []) == [b"0|H0STCNT0|001|\xff\xfe", b"next"]


def test_a_frame_of_a_64_bit_length_is_taken_whole() -> None:
    payload = b"x" * 70_000
    sunk: list[bytes] = []
    data = HANDSHAKE % b"" + frame(TEXT, payload)
    chunks = [data[i : i + 8_192] for i in range(0, len(data), 8_192)]
    tap = FrameTap(Chunks(chunks), sunk.extend, lambda: None, max_message_bytes=1 << 20)
    tap.release()
    assert run_now(tap.receive_some()) == HANDSHAKE % b""
    assert run_now(tap.receive_some()) == b""
    assert sunk == [payload]


def test_all_text_frames_of_one_read_come_in_one_call() -> None:
    calls: list[list[bytes]] = []
    heard: list[None] = []
    data = frame(TEXT, b"a") + frame(PING, b"p") + frame(TEXT, b"b") + frame(TEXT, b"c")
    tap = FrameTap(
        Chunks([HANDSHAKE % b"", data]),
        calls.append,
        lambda: heard.append(None),
        max_message_bytes=MAX,
    )
    tap.release()
    run_now(tap.receive_some())
    assert run_now(tap.receive_some()) == frame(PING, b"p")
    assert calls == [[b"a", b"b", b"c"]]
    assert len(heard) == 2


@pytest.mark.parametrize("status", [b"403 Forbidden", b"200 OK", b"1010 Odd"])
def test_the_body_of_a_refusal_is_not_taken_for_frames(status: bytes) -> None:
    sunk: list[bytes] = []
    data = b"HTTP/1.1 " + status + b"\r\nContent-Length: 3\r\n\r\n" + frame(TEXT, b"a")
    tap = FrameTap(Chunks([data[:-1], data[-1:]]), sunk.extend, lambda: None, max_message_bytes=MAX)
    passed = b""
    while piece := run_now(tap.receive_some()):
        passed += piece
    assert passed == data
    assert sunk == []


def test_an_endless_handshake_is_passed_on() -> None:
    data = b"HTTP/1.1 101 x\r\n" + b"a" * 70_000
    tap = FrameTap(Chunks([data]), lambda _: None, lambda: None, max_message_bytes=MAX)
    assert run_now(tap.receive_some()) == data


async def test_nothing_behind_the_handshake_is_delivered_before_the_release() -> None:
    sunk: list[bytes] = []
    data = HANDSHAKE % b"" + frame(TEXT, b"early") + frame(PING, b"p")
    tap = FrameTap(Chunks([data]), sunk.extend, lambda: None, max_message_bytes=MAX)
    assert await tap.receive_some() == HANDSHAKE % b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tap.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert sunk == []
        tap.release()
    assert sunk == [b"early"]
