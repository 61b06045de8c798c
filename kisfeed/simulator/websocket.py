"""One client of the simulator's WebSocket server, from TCP accept to its end.

trio-websocket speaks the protocol; messages to the client are framed here, so that any bytes can
be sent. :class:`Line` below it is where the network goes wrong, so that silence, resets and
broken bytes need nothing from the library.
"""

from __future__ import annotations

import math
import socket
import struct
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import attrs
import trio
from trio_websocket import ConnectionClosed, wrap_server_stream
from wsproto.utilities import ProtocolError

from kisfeed.simulator.exchange import Drop, Exchange, Send, Session
from kisfeed.simulator.faults import Kind
from kisfeed.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_websocket import WebSocketConnection

    from kisfeed.kis.catalogue import RegKey

HANDSHAKE_S: Final = 10.0
CLOSE_S: Final = 1.0
MAX_BACKLOG: Final = 32 * 1024 * 1024  # bytes; a client this far behind is cut off
MAX_REQUEST: Final = 1024 * 1024

_TEXT: Final = 0x1
_BINARY: Final = 0x2
_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA


def raw_frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """A final, unmasked frame of any bytes, also such as no library would send."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    if size < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


class FrameScanner:
    """Says which control frames a client sent, independently of the WebSocket library."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._upgraded = False
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(opcode, unmasked payload)`` of every control frame that is complete."""
        self._buffer += data
        if not self._upgraded:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self._buffer[: end + 4]
            self._upgraded = True
        while True:
            step = min(self._skip, len(self._buffer))
            del self._buffer[:step]
            self._skip -= step
            if self._skip:
                return
            head = self._head()
            if head is None:
                return
            opcode, start, size = head
            if opcode < _CLOSE:
                self._skip = start + size
                continue
            if len(self._buffer) < start + size:
                return
            mask = self._buffer[start - 4 : start]
            body = self._buffer[start : start + size]
            yield opcode, bytes(b ^ mask[i % 4] for i, b in enumerate(body))
            del self._buffer[: start + size]

    def _head(self) -> tuple[int, int, int] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, extra = buffer[1] & 0x7F, 0
        if size >= 126:
            extra = 2 if size == 126 else 8
            if len(buffer) < 2 + extra:
                return None
            size = int.from_bytes(buffer[2 : 2 + extra], "big")
        start = 2 + extra + (4 if buffer[1] & 0x80 else 0)
        return (buffer[0] & 0x0F, start, size) if len(buffer) >= start else None


class Line(trio.abc.Stream):
    """A stream that can fall silent, end without a word, or be reset.

    Attributes:
        close_seen: the client sent a close frame.
        mute_close: swallow what is sent after that, as KIS is reported to do.
    """

    def __init__(
        self, stream: trio.abc.Stream, on_pong: Callable[[str], None], *, mute_close: bool
    ) -> None:
        self.close_seen = False
        self.mute_close = mute_close
        self._stream = stream
        self._on_pong = on_pong
        self._scanner = FrameScanner()
        self._sending = Turn()
        self._heard: trio.Event | None = None
        self._receiving: trio.CancelScope | None = None
        self._held = bytearray()

    @property
    def silent(self) -> bool:
        """Nothing passes at present."""
        return self._heard is not None

    def silence(self) -> None:
        """From here on nothing passes either way, and nothing is closed."""
        if self._heard is None:
            self._heard = trio.Event()

    def heal(self) -> None:
        """End a silence; what was waiting passes, as TCP would send it again."""
        if self._heard is not None:
            self._heard.set()
            self._heard = None
            if self._receiving is not None:
                self._receiving.cancel()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            if self._heard is not None:
                await self._heard.wait()
            if self.close_seen and self.mute_close:
                return
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            if self._held and not self.silent:
                data = bytes(self._held)
                self._held.clear()
                self._scan(data)
                return data
            # Only what is held back needs a way out of the wait for more.
            with trio.CancelScope() if self.silent else nullcontext() as self._receiving:
                received = await self._stream.receive_some(max_bytes)
                if not received:
                    return received
                self._held += received

    def _scan(self, data: bytes) -> None:
        for opcode, payload in self._scanner.feed(data):
            if opcode == _CLOSE:
                self.close_seen = True
            elif opcode in {_PING, _PONG} and b"PINGPONG" in payload:
                self._on_pong("ping" if opcode == _PING else "pong")

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        """End the connection at once: RST on TCP, both halves closed in memory."""
        if isinstance(self._stream, trio.SocketStream):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self._stream)


@attrs.frozen
class Records:
    """What a data frame carries, for the oracle's tallies."""

    key: RegKey
    count: int
    volume: int


@attrs.frozen
class _Frame:
    data: bytes  # as it goes on the line
    records: Records | None = None


@attrs.frozen
class _End:
    """End the line when everything before this is written."""

    close_code: int | None = None


class Client:
    """One WebSocket client of the simulator. Everything but :meth:`run` is synchronous.

    Attributes:
        session: the exchange's record of it.
        backlog: bytes that wait to be sent.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        exchange: Exchange,
        *,
        pingpong: Callable[[], str],
        pingpong_s: float,
        registered: Callable[[Session], None],
        acknowledge_close: bool,
    ) -> None:
        self.session = exchange.connect(trio.current_time())
        self._exchange = exchange
        self._pingpong = pingpong
        self._pingpong_s = pingpong_s
        self._registered = registered
        self._line = Line(stream, self._on_pong, mute_close=not acknowledge_close)
        self._queue_in, self._queue_out = trio.open_memory_channel[_Frame | _End](math.inf)
        self.backlog = 0
        self._closed_by_us = False
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until the connection ends, from either side; never raises for what a peer does."""
        now = trio.current_time
        board = self._exchange.board
        try:
            if board.take(Kind.ACCEPT_CLOSE, now()):
                return
            if board.take(Kind.HANG, now()):
                await self._swallow()
                return
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    try:
                        await self._serve(nursery)
                    finally:
                        # What is still queued may ask for an end of its own; this one is enough.
                        self._nursery = None
                    nursery.cancel_scope.cancel()
            except* (
                ConnectionClosed,
                ProtocolError,
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                OSError,
            ):
                # A client may go at any moment and in any way.
                pass
        finally:
            clean = self._line.close_seen or self._closed_by_us
            self._exchange.disconnect(self.session, now(), clean=clean)
            self._forget_queue()
            with trio.CancelScope(shield=True, deadline=now() + CLOSE_S):
                await trio.aclose_forcefully(self._line)

    def send(self, text: str | bytes, records: Records | None = None) -> None:
        """Queue a message; text as a text message, bytes as a binary one."""
        whole = raw_frame(text.encode()) if isinstance(text, str) else raw_frame(text, _BINARY)
        self._put(_Frame(whole, records))

    def send_raw(self, payload: bytes, records: Records | None = None) -> None:
        """Queue a text message of any bytes, also invalid UTF-8."""
        self._put(_Frame(raw_frame(payload), records))

    def drop(self) -> None:
        """End TCP after what is queued, without a close frame; for the exchange it is unclean."""
        self._put(_End())

    def refuse(self) -> None:
        """End TCP after what is queued, without a close frame, by the server's own decision."""
        self._closed_by_us = True
        self._put(_End())

    def close(self, code: int) -> None:
        """Send a close frame after what is queued, then end."""
        self._closed_by_us = True
        self._put(_End(code))

    def reset(self) -> None:
        """Cut the line now; what is queued is lost."""
        if self._nursery is not None:
            self._nursery.start_soon(self._line.reset)

    def silence(self, lasts: float | None) -> None:
        """Go half-open, for ever or for *lasts* seconds."""
        self._line.silence()
        if lasts is not None and self._nursery is not None:
            self._nursery.start_soon(self._heal_after, lasts)

    async def _heal_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._line.heal()

    async def _swallow(self) -> None:
        try:
            while await self._line.receive_some():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _serve(self, nursery: trio.Nursery) -> None:
        request = None
        with trio.move_on_after(HANDSHAKE_S):
            request = await wrap_server_stream(
                nursery, self._line, max_message_size=MAX_REQUEST, receive_buffer_size=None
            )
        if request is None:
            return
        websocket = await request.accept()
        self._exchange.handshake(self.session, trio.current_time())
        nursery.start_soon(self._write, websocket)
        nursery.start_soon(self._ping)
        while True:
            try:
                message = await websocket.get_message()
            except ConnectionClosed:
                return
            text = message if isinstance(message, str) else message.decode("utf-8", "replace")
            self._on_message(text, nursery)

    def _on_message(self, text: str, nursery: trio.Nursery) -> None:
        for action in self._exchange.message(self.session, text, trio.current_time()):
            match action:
                case Send(text=answer, delay=0.0):
                    self.send(answer)
                case Send(text=answer, delay=delay):
                    nursery.start_soon(self._send_later, answer, delay)
                case Drop():
                    self.refuse()
        self._registered(self.session)

    async def _send_later(self, text: str, delay: float) -> None:
        await trio.sleep(delay)
        self.send(text)

    async def _ping(self) -> None:
        while True:
            await trio.sleep(self._pingpong_s)
            now = trio.current_time()
            if self.session.pong_due <= now:
                self.refuse()
                return
            board = self._exchange.board
            if not board.active(Kind.NO_PINGPONG, now, appkey=self.session.appkey):
                self.send(self._pingpong())
                self._exchange.pinged(self.session, now)

    async def _write(self, websocket: WebSocketConnection) -> None:
        async for item in self._queue_out:
            if isinstance(item, _End):
                if item.close_code is None:
                    await self._line.aclose()
                else:
                    with trio.move_on_after(CLOSE_S):
                        await websocket.aclose(item.close_code)
                return
            self.backlog -= len(item.data)
            delivered = False
            try:
                if websocket.closed is not None:
                    return  # behind a close frame there is nothing
                await self._line.send_all(item.data)
                delivered = not self._line.silent
            finally:
                self._tally(item, delivered=delivered)

    def _put(self, item: _Frame | _End) -> None:
        if isinstance(item, _Frame):
            self.backlog += len(item.data)
        try:
            self._queue_in.send_nowait(item)
        except trio.BrokenResourceError:
            if isinstance(item, _Frame):
                self._tally(item, delivered=False)
            return
        if self.backlog > MAX_BACKLOG:
            self.reset()

    def _tally(self, item: _Frame, *, delivered: bool) -> None:
        if item.records is None:
            return
        record = self._exchange.sent if delivered else self._exchange.withheld
        record(item.records.key, item.records.count, item.records.volume)

    def _forget_queue(self) -> None:
        while True:
            try:
                item = self._queue_out.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            if isinstance(item, _Frame):
                self._tally(item, delivered=False)
        self._queue_out.close()

    def _on_pong(self, form: str) -> None:
        self._exchange.pong(self.session, form, trio.current_time())
