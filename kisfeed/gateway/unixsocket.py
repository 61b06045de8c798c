"""Trio streams on Unix sockets, made for a daemon with a thousand idle clients.

``trio.SocketStream`` keeps more objects, and more coroutine frames for each reader that waits:
a quarter of all the memory that such a client costs.
"""

from __future__ import annotations

import abc
import errno
import operator
import socket
from typing import Final, Protocol

import attrs
import trio

SEND_BUFFER_BYTES: Final = 131_072
"""What the kernel may hold for one client, and with it how much can grow old unseen: the age of
those bytes is beyond our reach. The system's default is an administrator's choice and can be
megabytes. A much smaller one would be full after a few hundred small frames, because the kernel
counts several hundred bytes for each send."""
_READ_BYTES: Final = 65_536
_NOBODY_CAME: Final = frozenset({errno.ECONNABORTED, errno.EPERM, errno.EPROTO})


class SendsAtOnce(Protocol):
    """What sending without a wait needs of a socket that does not block."""

    def send(self, data: bytes, flags: int, /) -> int:
        """Take what there is room for; how many bytes that was.

        Raises:
            BlockingIOError: there is no room.
            OSError: the connection is broken or closed.
        """
        ...


class DirectStream(trio.abc.Stream):
    """A stream that can also be written without a wait."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def socket(self) -> SendsAtOnce:
        """For what must not wait."""


@attrs.define(eq=False)
class UnixStream(DirectStream):
    """A connected Unix socket, which it owns."""

    socket: socket.socket

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At most *max_bytes* of what came; ``b""`` is the end of it.

        Raises:
            TypeError, ValueError: *max_bytes* is no positive integer.
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: this stream was closed.
        """
        if max_bytes is None:
            max_bytes = _READ_BYTES
        elif operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be positive")
        while True:
            _check_open(self.socket)
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of *data*; if this is cancelled, nobody knows how much was sent.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: this stream was closed.
        """
        rest = memoryview(data)
        while True:
            await self.wait_send_all_might_not_block()
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from exc
            if not rest:
                return

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes something.

        Raises:
            trio.ClosedResourceError: this stream was closed.
        """
        _check_open(self.socket)
        await trio.lowlevel.wait_writable(self.socket)

    async def aclose(self) -> None:
        """Close the connection; whoever waits for it gets ``ClosedResourceError``."""
        _close(self.socket)
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class UnixListener(trio.abc.Listener[UnixStream]):
    """A listening Unix socket, which it owns."""

    _socket: socket.socket

    def __attrs_post_init__(self) -> None:
        self._socket.setblocking(False)

    async def accept(self) -> UnixStream:
        """Wait for the next client; its stream buffers :data:`SEND_BUFFER_BYTES` to send.

        Raises:
            OSError: the system is out of something; trying again later may help.
            trio.ClosedResourceError: this listener was closed.
        """
        while True:
            _check_open(self._socket)
            await trio.lowlevel.wait_readable(self._socket)
            try:
                accepted, _ = self._socket.accept()
            except OSError as exc:
                if not isinstance(exc, BlockingIOError) and exc.errno not in _NOBODY_CAME:
                    raise
                continue
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            return UnixStream(accepted)

    def close(self) -> None:
        """Listen no more; a second time does nothing."""
        _close(self._socket)

    async def aclose(self) -> None:
        """:meth:`close`, with a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()


def _check_open(sock: socket.socket) -> None:
    if sock.fileno() == -1:
        raise trio.ClosedResourceError("this socket was already closed")


def _close(sock: socket.socket) -> None:
    if sock.fileno() != -1:
        trio.lowlevel.notify_closing(sock)
        sock.close()
