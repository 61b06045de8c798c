"""One WebSocket to KIS: every end of it is bounded, and says how it came."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing
import trio_websocket
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto.utilities import generate_accept_token

from kisfeed.config import Session
from kisfeed.simulator.websocket import raw_frame
from kisfeed.upstream.transport import Link, NoHandshake, dial_tcp, open_link

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Peer = Callable[[trio.abc.Stream], Awaitable[None]]

RULES = Session()
HOST = "kis:21000"
CLOSE_1000 = b"\x88\x82"  # what a client's close frame with a bare code begins with


@attrs.define(eq=False)
class Heard:
    """What a link brought."""

    frames: list[bytes] = attrs.field(factory=list)
    reads: int = 0

    def read(self) -> None:
        self.reads += 1


@asynccontextmanager
async def linked(
    peer: Peer, heard: Heard | None = None, rules: Session = RULES
) -> AsyncGenerator[Link]:
    """A link to a peer that plays the server's part on raw bytes."""
    heard = Heard() if heard is None else heard
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer, theirs)
        async with open_link(ours, HOST, rules, sink=heard.frames.extend, heard=heard.read) as link:
            yield link
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.abc.Stream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    return data


async def accept(stream: trio.abc.Stream, glued: bytes = b"") -> None:
    """Answer the handshake by hand, with *glued* right behind it."""
    found = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", await read_request(stream))
    assert found is not None
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + generate_accept_token(found[1]) + b"\r\n\r\n" + glued
    )


async def open_for_ever(stream: trio.abc.Stream) -> None:
    """A server of the library's own; it answers a close frame."""
    async with trio.open_nursery() as nursery:
        request = await trio_websocket.wrap_server_stream(nursery, stream)
        ws = await request.accept()
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await ws.get_message()


def answering(answer: bytes, *, then_close: bool = False) -> Peer:
    async def peer(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(answer)
        if then_close:
            await stream.aclose()
        await trio.sleep_forever()

    return peer


async def refused_after(peer: Peer) -> float:
    """How long it took to find that there is no handshake."""
    began = trio.current_time()
    with pytest.RaisesGroup(NoHandshake, flatten_subgroups=True):
        async with linked(peer):
            raise AssertionError("there is no link")
    return trio.current_time() - began


# The handshake.


async def test_a_refusal_by_the_server_is_no_handshake(autojump_clock: MockClock) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            await request.reject(403, body=b"no")

    assert await refused_after(peer) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: c29tZXRoaW5nIGVsc2U=\r\n\r\n"
        ),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\n\n",
    ],
    ids=["403", "200", "accept key", "no headers", "ssh", "tls alert"],
)
async def test_any_other_answer_than_a_handshake_is_none(
    autojump_clock: MockClock, answer: bytes
) -> None:
    assert await refused_after(answering(answer)) == 0


async def test_a_refusal_whose_body_does_not_come_is_bounded(autojump_clock: MockClock) -> None:
    answer = b"HTTP/1.1 503 Down\r\nContent-Length: 10\r\n\r\n"
    assert await refused_after(answering(answer)) == RULES.dial_timeout_s


async def test_a_drop_before_the_handshake_is_seen_at_once(autojump_clock: MockClock) -> None:
    assert await refused_after(answering(b"", then_close=True)) == 0
    assert await refused_after(answering(b"HTTP/1.1 101 Swit", then_close=True)) == 0


async def test_a_peer_that_answers_nothing_is_bounded(autojump_clock: MockClock) -> None:
    assert await refused_after(answering(b"")) == RULES.dial_timeout_s


# Messages.


@pytest.mark.parametrize("direct", [True, False])
async def test_messages_arrive_in_order_by_either_way(
    autojump_clock: MockClock, direct: bool
) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        binary = b"\x82\x01b"
        await accept(stream, raw_frame(b"glued") + binary + raw_frame(b"after"))
        await stream.send_all(raw_frame("가".encode()))
        await stream.aclose()

    heard = Heard()
    async with linked(peer, heard, Session(fast_receive=direct)) as link:
        await wait_all_tasks_blocked()
        assert heard.frames == []  # nothing before run()
        assert await link.run() is False
    assert heard.frames == [b"glued", b"b", b"after", "가".encode()]
    assert heard.reads >= 2


async def test_a_close_frame_from_the_peer_is_told_from_a_drop(autojump_clock: MockClock) -> None:
    async def closing(stream: trio.abc.Stream) -> None:
        await accept(stream)
        await stream.send_all(raw_frame(b"last") + b"\x88\x02\x03\xe8")
        await trio.sleep_forever()

    heard = Heard()
    async with linked(closing, heard) as link:
        assert await link.run() is True
    assert heard.frames == [b"last"]


@pytest.mark.parametrize(
    "breach",
    [
        b"\x83\x01x",
        b"\x81\x81\0\0\0\0x",
        b"\x01\x01\xff\x80\x00",
        b"\x88\x01\x03",
        b"\x81\x7f" + (RULES.max_message_bytes + 1).to_bytes(8, "big"),
    ],
    ids=["opcode", "masked", "bad utf-8 in fragments", "close of one byte", "too long"],
)
async def test_a_breach_of_the_protocol_ends_the_link_as_unclosed(
    autojump_clock: MockClock, breach: bytes
) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream)
        await stream.send_all(raw_frame(b"good") + breach + b"x" * RULES.max_message_bytes + b"x")
        await trio.sleep_forever()

    heard = Heard()
    async with linked(peer, heard) as link:
        assert await link.run() is False
    assert heard.frames == [b"good"]
    assert trio.current_time() <= RULES.close_timeout_s


async def test_a_message_of_the_allowed_size_arrives(autojump_clock: MockClock) -> None:
    whole = b"x" * RULES.max_message_bytes

    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream, raw_frame(whole))
        await stream.aclose()

    heard = Heard()
    async with linked(peer, heard) as link:
        await link.run()
    assert heard.frames == [whole]


# Sending.


async def test_text_is_sent_as_it_is(autojump_clock: MockClock) -> None:
    got: list[str | bytes] = []

    async def peer(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            ws = await request.accept()
            with suppress(trio_websocket.ConnectionClosed):
                while True:
                    got.append(await ws.get_message())

    async with linked(peer) as link:
        await link.send_text('{"header": "가"}')
        await wait_all_tasks_blocked()
    assert got == ['{"header": "가"}']


@pytest.mark.parametrize("clean", [True, False])
async def test_sending_on_a_dead_link_raises_oserror(
    autojump_clock: MockClock, clean: bool
) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream, b"\x88\x02\x03\xe8" if clean else b"")
        await stream.aclose()

    async with linked(peer) as link:
        await link.run()
        with pytest.raises(OSError, match="send failed"):
            await link.send_text("late")


async def test_a_send_that_nobody_takes_is_given_up(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, theirs)
        async with open_link(ours, HOST, RULES, sink=lambda _: None, heard=lambda: None) as link:
            began = trio.current_time()
            with pytest.raises(OSError, match="send failed"):
                await link.send_text("into nothing")
            assert trio.current_time() - began == RULES.send_timeout_s
            link.abort = True
        assert trio.current_time() - began == RULES.send_timeout_s


# Leaving.


async def goodbye(leave: Callable[[Link], Awaitable[None]]) -> bytes:
    """Everything the peer got between the handshake and the end."""
    got = bytearray()
    ended = trio.Event()

    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream)
        while data := await stream.receive_some():
            got.extend(data)
        ended.set()

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer, theirs)
        async with open_link(ours, HOST, RULES, sink=lambda _: None, heard=lambda: None) as link:
            await leave(link)
        await ended.wait()
    return bytes(got)


async def test_leaving_sends_a_close_frame_and_waits_only_so_long(
    autojump_clock: MockClock,
) -> None:
    async def leave(_: Link) -> None:
        pass

    assert (await goodbye(leave)).startswith(CLOSE_1000)
    assert trio.current_time() == RULES.close_timeout_s  # the peer never answers


async def test_a_dead_link_is_left_without_a_word(autojump_clock: MockClock) -> None:
    async def leave(link: Link) -> None:
        link.abort = True

    assert await goodbye(leave) == b""
    assert trio.current_time() == 0


async def test_a_cancelled_block_still_sends_its_close_frame(autojump_clock: MockClock) -> None:
    closed: list[object] = []

    async def peer(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            ws = await request.accept()
            try:
                await ws.get_message()
            except trio_websocket.ConnectionClosed as exc:
                closed.append(exc.reason and exc.reason.code)

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer, theirs)
        with trio.move_on_after(3):
            async with open_link(
                ours, HOST, RULES, sink=lambda _: None, heard=lambda: None
            ) as link:
                await link.run()
    assert closed == [1000]
    assert trio.current_time() == 3  # the peer answered at once


async def test_a_ping_that_waits_at_close_is_harmless(autojump_clock: MockClock) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream)
        received = await stream.receive_some()
        assert received[0] == 0x88
        await stream.send_all(b"\x89\x04ping" + b"\x88\x02\x03\xe8")
        await trio.sleep_forever()

    async with linked(peer):
        pass
    assert trio.current_time() <= RULES.close_timeout_s


@pytest.mark.parametrize("direct", [True, False])
async def test_unread_messages_do_not_hold_up_leaving(
    autojump_clock: MockClock, direct: bool
) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream, b"\x82\x01b" * 50 + raw_frame(b"t") * 50)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            while await stream.receive_some():
                await stream.send_all(b"\x82\x01b" * 50)

    async with linked(peer, rules=Session(fast_receive=direct)):
        await wait_all_tasks_blocked()
    assert trio.current_time() <= RULES.close_timeout_s


async def test_a_reset_while_a_pong_is_due_ends_the_link(autojump_clock: MockClock) -> None:
    async def peer(stream: trio.abc.Stream) -> None:
        await accept(stream, b"\x89\x04ping" * 3)
        await stream.aclose()

    async with linked(peer) as link:
        await wait_all_tasks_blocked()
        assert await link.run() is False


async def test_what_the_body_raises_comes_out_at_once(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="mine"), flatten_subgroups=True):
        async with linked(open_for_ever):
            raise ValueError("mine")
    assert trio.current_time() == 0


async def test_a_refused_dial_is_told_from_a_missing_route() -> None:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await dial_tcp("127.0.0.1", port)


async def test_a_dialled_stream_is_kept_alive_by_the_kernel() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        stream = await dial_tcp("127.0.0.1", listener.socket.getsockname()[1])
        async with stream, await listener.accept():
            assert isinstance(stream, trio.SocketStream)
            assert stream.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE) == 1
