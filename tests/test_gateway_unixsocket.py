"""Streams on Unix sockets keep Trio's promises."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import check_two_way_stream, wait_all_tasks_blocked

from kisfeed.gateway.unixsocket import UnixListener, UnixStream

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def listening(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fspath(tmp_path / "s"))
    sock.listen()
    return sock


def pair() -> tuple[UnixStream, UnixStream]:
    one, two = socket.socketpair()
    return UnixStream(one), UnixStream(two)


async def test_they_are_trio_streams() -> None:
    async def made() -> tuple[UnixStream, UnixStream]:
        await trio.lowlevel.checkpoint()
        return pair()

    async def clogged() -> tuple[UnixStream, UnixStream]:
        one, two = await made()
        for stream in (one, two):
            with suppress(BlockingIOError):
                while stream.socket.send(bytes(65_536)):
                    pass
        return one, two

    await check_two_way_stream(made, clogged)


async def test_a_peer_that_is_gone_breaks_the_stream() -> None:
    one, two = pair()
    async with one:
        await one.send_all(b"unread")
        await two.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await one.send_all(b"more")
        with pytest.raises(trio.BrokenResourceError):  # it left with something unread
            await one.receive_some()


async def test_a_listener_hands_out_streams_until_it_is_closed(listening: socket.socket) -> None:
    async with UnixListener(listening) as listener:
        client = await trio.open_unix_socket(listening.getsockname())
        async with client, await listener.accept() as server:
            assert not server.socket.getblocking()
            await client.send_all(b"hello")
            assert await server.receive_some() == b"hello"
    listener.close()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_closing_a_listener_ends_who_waits_for_a_client(listening: socket.socket) -> None:
    listener = UnixListener(listening)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        await wait_all_tasks_blocked()
        listener.close()


class Moody(socket.socket):
    """Accepts nobody for the reasons it is given, then whoever comes."""

    moods: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.moods:
            raise OSError(self.moods.pop(0), "not now")
        return super().accept()


async def test_a_client_that_did_not_wait_is_passed_over(listening: socket.socket) -> None:
    moody = Moody(fileno=listening.detach())
    moody.moods = [errno.ECONNABORTED, errno.EAGAIN, errno.EMFILE]
    async with UnixListener(moody) as listener:
        client = await trio.open_unix_socket(moody.getsockname())
        async with client:
            with pytest.raises(OSError, match="not now") as caught:
                await listener.accept()
            assert caught.value.errno == errno.EMFILE
            await (await listener.accept()).aclose()
