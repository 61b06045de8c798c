"""Whole text frames, cut out of the byte stream under trio-websocket.

KIS sends thousands of small text frames a second. trio-websocket spends most of its time on
them in wsproto, event objects and a one-message channel, so :class:`FrameTap` sits between the
socket and trio-websocket, takes the complete unfragmented text frames of each read and hands
them to a synchronous sink, all of one read in one call. Everything else (the HTTP handshake,
control, fragmented, binary, malformed, masked and oversized frames) goes on untouched, so that
ping, close and every protocol error stay trio-websocket's job.

Frames are bytes: KIS has sent invalid UTF-8, which a strict WebSocket would end the session for.

Order holds across the two ways: once a data frame has been passed on, later data frames go the
same way until the consumer has taken every passed message (:meth:`FrameTap.taken`). Nothing is
delivered after a Close frame or a breach of the protocol. The layout of a frame is RFC 6455
section 5.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

READ_SIZE: Final = 65_536

_FIN_TEXT: Final = 0x81
_FIN: Final = 0x80
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
_CONTINUATION: Final = 0x0
_CLOSE: Final = 0x8
_CONTROL: Final = 0x8  # opcodes from here on are control frames
_OPCODES: Final = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})
_SHORTEST_16_BIT: Final = 126
_SHORTEST_64_BIT: Final = 65_536

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")  # bare line feeds are read by h11, too
_ACCEPTED: Final = re.compile(rb"HTTP/1\.1 101[ \r\n]")


class FrameTap(trio.abc.Stream):
    """A stream that takes text frames out of what it reads.

    Owns *stream*: closing the tap closes it.

    Args:
        stream: the transport, before the WebSocket handshake.
        sink: called with the text frames of one read, in order; must not wait.
        heard: called once a read, whatever it brought; must not wait.
        max_message_bytes: longer frames go to trio-websocket, which ends the session with 1009.
        direct: False passes every frame on; the sink is then fed by ``get_message`` alone.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        sink: Callable[[list[bytes]], None],
        heard: Callable[[], None],
        *,
        max_message_bytes: int,
        direct: bool = True,
    ) -> None:
        self._stream = stream
        self._sink = sink
        self._heard = heard
        self._max = max_message_bytes
        self._direct = direct
        self._buffer = b""
        self._in_http = True
        self._in_fragments = False
        self._passed = 0  # complete data messages given to trio-websocket ...
        self._taken = 0  # ... and taken out of it again
        self._verbatim = not direct  # from here on every byte is passed on
        self._released = trio.Event()

    def release(self) -> None:
        """Let frames flow: until then nothing is read behind the handshake's answer."""
        self._released.set()

    def taken(self) -> None:
        """Tell that one passed message came out of ``get_message``."""
        self._taken += 1

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """The next bytes that trio-websocket must see; ``b""`` is the end of the stream."""
        if not (self._in_http or self._verbatim or self._released.is_set()):
            await self._released.wait()
        # What came with the handshake's last bytes is cut before anything more is read.
        pending = not self._in_http and bool(self._buffer)
        while True:
            if not pending:
                data = await self._stream.receive_some(READ_SIZE)
                if not data:
                    return self._flush()
                self._heard()
                self._buffer = self._buffer + data if self._buffer else bytes(data)
            pending = False
            if self._verbatim:
                return self._flush()
            if self._in_http:
                blank = _BLANK_LINE.search(self._buffer)
                if blank is None:
                    if len(self._buffer) > READ_SIZE:
                        return self._flush()  # no handshake is that long; let the library say so
                    continue
                self._in_http = False
                if not _ACCEPTED.match(self._buffer):
                    self._verbatim = True  # what follows a refusal is its body, not frames
                    return self._flush()
                end = blank.end()
                head, self._buffer = self._buffer[:end], self._buffer[end:]
                return head
            frames, passed = self._cut()
            if frames:
                self._sink(frames)
            if passed:
                return passed

    def _flush(self) -> bytes:
        data, self._buffer = self._buffer, b""
        return data

    def _cut(self) -> tuple[list[bytes], bytes]:
        """Split the buffer into text frames for the sink and bytes to pass on."""
        data = self._buffer
        end = len(data)
        frames: list[bytes] = []
        passed: list[bytes] = []
        at = 0
        straight = self._passed == self._taken and not self._in_fragments
        while end - at >= 2:
            first = data[at]
            size = data[at + 1]
            body = at + 2
            if size == 126:
                body = at + 4
                if end < body:
                    break
                size = (data[at + 2] << 8) | data[at + 3]
                broken = size < _SHORTEST_16_BIT
            elif size == 127:
                body = at + 10
                if end < body:
                    break
                size = int.from_bytes(data[at + 2 : body], "big")
                broken = size < _SHORTEST_64_BIT
            else:
                broken = size > 127  # masked: a server must not
            if (
                broken
                or size > self._max
                or ((first != _FIN_TEXT or self._in_fragments) and self._breaches(first, size))
            ):
                # The library says so and ends the session.
                self._verbatim = True
                passed.append(data[at:])
                at = end
                break
            stop = body + size
            if stop > end:
                break
            if first == _FIN_TEXT and straight:
                frames.append(data[body:stop])
            else:
                passed.append(data[at:stop])
                opcode = first & _OPCODE
                if opcode < _CONTROL:
                    straight = False
                    self._in_fragments = not first & _FIN
                    if first & _FIN:
                        self._passed += 1
                elif opcode == _CLOSE:
                    self._verbatim = True
                    passed.append(data[stop:])
                    at = end
                    break
            at = stop
        self._buffer = data[at:]
        return frames, b"".join(passed)

    def _breaches(self, first: int, size: int) -> bool:
        """Whether a frame that begins so may not be sent here."""
        opcode = first & _OPCODE
        if first & _RESERVED or opcode not in _OPCODES:
            return True
        if opcode >= _CONTROL:
            return not first & _FIN or size >= _SHORTEST_16_BIT
        return (opcode == _CONTINUATION) is not self._in_fragments
