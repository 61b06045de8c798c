"""One WebSocket to KIS: trio-websocket on a stream of ours.

``open_websocket*`` is not used: it can end our nursery silently, hides an early drop for 60 s
and sends no close frame when cancelled. ``wrap_client_stream`` with a reader that we own has
none of these faults.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

import attrs
import h11
import trio
import trio_websocket
import wsproto.utilities

from kisfeed.upstream.frametap import READ_SIZE, FrameTap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from kisfeed.config import Session

# 1006 is what a missing close frame is called (RFC 6455); with the others it is we who give the
# session up, often without a word, so KIS may think that it still stands.
_NOT_BY_PEER: Final = frozenset({1002, 1006, 1007, 1009})
PATH: Final = "/tryitout"  # KIS does not check the path; its own samples use this one
_KEEPALIVE: Final = (
    # A half-open connection is told by the kernel within about 15 s, without a byte of ours
    # that KIS would see as a message.
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPINTVL", 3),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 15_000),
)


async def dial_tcp(host: str, port: int) -> trio.abc.Stream:
    """Connect to KIS with keepalive and a bound on unacknowledged data.

    Raises:
        OSError: no TCP connection; ``socket.gaierror`` when the name does not resolve,
            ``ConnectionRefusedError`` when a host is there and nobody listens.
    """
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as exc:
        # Trio tells one OSError for all addresses, whatever each of them met.
        met = exc.__cause__
        if isinstance(met, ExceptionGroup) and met.subgroup(ConnectionRefusedError) is not None:
            raise ConnectionRefusedError(str(exc)) from exc
        raise
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)  # not on every platform
        if option is not None:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
    return stream


@attrs.define(eq=False)
class _Readied(trio.abc.Stream):
    """A TCP stream that waits for bytes before it reads.

    Trio's own tries to read first, which between two ticks of a market finds nothing: a system
    call and an exception for each read, before the wait that follows anyway.
    """

    _stream: trio.SocketStream
    _socket: socket.socket = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # A second object on the same descriptor: Trio's own has no read that does not wait.
        self._socket = socket.socket(fileno=self._stream.socket.fileno())
        self._socket.setblocking(False)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_SIZE if max_bytes is None else max_bytes)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise trio.BrokenResourceError(f"socket connection broken: {exc}") from exc

    async def aclose(self) -> None:
        self._socket.detach()
        await self._stream.aclose()


class NoHandshake(Exception):
    """TCP stood, but the peer did not answer the WebSocket handshake."""


@attrs.define(eq=False)
class _Reader:
    """Stands in for the nursery that trio-websocket starts its reader in.

    The library calls nothing but ``start_soon`` on it. Owning that call shows us when the
    reader ends, lets it outlive an outer cancellation so that the closing handshake can finish,
    and tells the library's harmless errors from the others.
    """

    _nursery: trio.Nursery
    opened: bool = attrs.field(default=False, init=False)
    closing: bool = attrs.field(default=False, init=False)
    life: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True), init=False)
    _waiting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, task, name="upstream reader")

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            with self.life:
                await task()
        except (wsproto.utilities.LocalProtocolError, h11.LocalProtocolError):
            # It answers a PING that it had buffered before we began to close
            # (trio-websocket#184), or tries to refuse what is no answer to its handshake, as only
            # a server may. Harmless then, a bug at any other time.
            if self.opened and not self.closing:
                raise
        except trio_websocket.HandshakeError:
            pass  # answered, with a refusal: open_link sees the reader end without a handshake
        finally:
            self._waiting.cancel(reason="reader ended")

    @contextmanager
    def waiting(self, seconds: float, *, shield: bool = False) -> Generator[trio.CancelScope]:
        """Like :func:`trio.move_on_after`, but also ends when the reader does."""
        with trio.move_on_after(seconds, shield=shield) as self._waiting:
            yield self._waiting


@attrs.define(eq=False)
class Link:
    """An open WebSocket.

    Attributes:
        abort: set it to leave without a close frame (a link judged dead answers none).
    """

    _ws: trio_websocket.WebSocketConnection
    _tap: FrameTap
    _sink: Callable[[list[bytes]], None]
    _send_timeout_s: float
    abort: bool = False

    async def send_text(self, text: str) -> None:
        """Send one text message.

        Raises:
            OSError: the link is gone, or did not take the bytes in time; do not use it again.
        """
        try:
            with trio.fail_after(self._send_timeout_s):
                await self._ws.send_message(text)
        except (trio.TooSlowError, trio_websocket.ConnectionClosed) as exc:
            raise OSError(f"WebSocket send failed: {exc!r}") from exc

    async def run(self) -> bool:
        """Feed the sink until the link ends; before this is called nothing reaches it.

        Returns whether the peer ended it with a close frame; False means that TCP dropped or that
        the peer broke the protocol, and that KIS may think the session still stands.
        """
        self._tap.release()
        while True:
            try:
                message = await self._ws.get_message()
            except trio_websocket.ConnectionClosed as exc:
                return exc.reason is not None and exc.reason.code not in _NOT_BY_PEER
            self._tap.taken()
            self._sink([message.encode() if isinstance(message, str) else message])


@asynccontextmanager
async def open_link(
    stream: trio.abc.Stream,
    host: str,
    rules: Session,
    *,
    sink: Callable[[list[bytes]], None],
    heard: Callable[[], None],
) -> AsyncGenerator[Link]:
    """Speak WebSocket over *stream* for the length of the block; a close frame ends it.

    Takes ownership of *stream*. Leaving takes at most ``rules.close_timeout_s``, whatever is
    unread and whoever is cancelled.

    Raises:
        ExceptionGroup: what the body raised, or :exc:`NoHandshake`.
    """
    if isinstance(stream, trio.SocketStream):
        stream = _Readied(stream)
    tap = FrameTap(
        stream,
        sink,
        heard,
        max_message_bytes=rules.max_message_bytes,
        direct=rules.fast_receive,
    )
    try:
        async with trio.open_nursery() as nursery:
            reader = _Reader(nursery)
            try:
                with reader.waiting(rules.dial_timeout_s) as handshake:
                    ws = await trio_websocket.wrap_client_stream(
                        cast("trio.Nursery", reader),
                        cast("trio.SocketStream", tap),
                        host,
                        PATH,
                        max_message_size=rules.max_message_bytes,
                        receive_buffer_size=READ_SIZE,
                    )
                if handshake.cancelled_caught:
                    raise NoHandshake
                reader.opened = True
                link = Link(ws, tap, sink, rules.send_timeout_s)
                try:
                    yield link
                finally:
                    reader.closing = True
                    tap.release()
                    if not link.abort:
                        with (
                            reader.waiting(rules.close_timeout_s, shield=True),
                            suppress(trio_websocket.ConnectionClosed),
                        ):
                            await ws.aclose()
            finally:
                reader.life.cancel(reason="link left")
    finally:
        await trio.aclose_forcefully(stream)
