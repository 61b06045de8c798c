"""Name look-ups that hang or fail, and what they may hold up: nothing."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from kisfeed.seams import Resolver, ThreadDisk

if TYPE_CHECKING:
    from pathlib import Path

GOOD = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 21000))]


class NameServer:
    """Answers, fails or hangs, as told; runs in the resolver's threads."""

    def __init__(self) -> None:
        self.mood = "good"
        self.asked = 0
        self.running = 0
        self.most = 0
        self.release = threading.Event()

    def __call__(self, *_asked: object) -> list[Any]:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.mood == "hangs":
                self.release.wait(30.0)
            if self.mood != "good":
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return GOOD
        finally:
            self.running -= 1


async def test_look_ups_that_hang_fail_in_time_and_leave_the_disk_its_threads(
    tmp_path: Path,
) -> None:
    server = NameServer()
    server.mood = "hangs"
    names = Resolver(server, within_s=0.1)
    failures: list[int | None] = []

    async def ask() -> None:
        with pytest.raises(socket.gaierror) as caught:
            await names.getaddrinfo(b"ops.example", 21000)
        failures.append(caught.value.errno)

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
    assert failures == [socket.EAI_AGAIN] * 50
    assert trio.current_time() - started < 2.0
    assert server.most <= 2
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    await ThreadDisk().write(tmp_path / "budget", b"kept")
    assert (tmp_path / "budget").read_bytes() == b"kept"
    server.release.set()


def test_a_look_up_that_hangs_does_not_hold_up_the_end() -> None:
    server = NameServer()
    server.mood = "hangs"

    async def main() -> None:
        with trio.move_on_after(0.05):
            await Resolver(server).getaddrinfo(b"ops.example", 21000)

    started = time.monotonic()
    trio.run(main)
    assert time.monotonic() - started < 2.0
    server.release.set()


async def test_the_last_good_answer_stands_in_for_a_failure_for_a_day() -> None:
    server = NameServer()
    names = Resolver(server, keep_s=0.5)
    assert await names.getaddrinfo(b"ops.example", 21000) == GOOD
    server.mood = "fails"
    assert await names.getaddrinfo(b"ops.example", 21000) == GOOD
    with pytest.raises(socket.gaierror):
        await names.getaddrinfo(b"other.example", 21000)
    await trio.sleep(0.6)
    with pytest.raises(socket.gaierror) as caught:
        await names.getaddrinfo(b"ops.example", 21000)
    assert caught.value.errno == socket.EAI_NONAME


async def test_trio_asks_it_for_names_and_not_for_addresses() -> None:
    server = NameServer()
    trio.socket.set_custom_hostname_resolver(Resolver(server))
    found = await trio.socket.getaddrinfo("ops.example", 21000, type=socket.SOCK_STREAM)
    assert found == GOOD
    await trio.socket.getaddrinfo("127.0.0.1", 21000)
    assert server.asked == 1


async def test_addresses_are_not_turned_into_names() -> None:
    assert await Resolver().getnameinfo(("127.0.0.1", 80), 0) == ("127.0.0.1", "80")
