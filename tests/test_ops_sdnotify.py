from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from kisfeed.ops import sdnotify

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


def manager(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind("\0" + address[1:] if address.startswith("@") else address)
    sock.setblocking(False)
    return sock


def test_ready_reaches_a_manager_at_a_path_and_at_an_abstract_address(tmp_path: Path) -> None:
    for address in (str(tmp_path / "n"), f"@kisfeed-test-{os.getpid()}"):
        with manager(address) as sock:
            sdnotify.from_environment({"NOTIFY_SOCKET": address}).tell(READY="1", STATUS="IDLE")
            assert sock.recv(256) == b"READY=1\nSTATUS=IDLE"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    sdnotify.from_environment({}).tell(READY="1")
    sdnotify.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell(READY="1")
    assert sdnotify.from_environment({"NOTIFY_SOCKET": "relative"}).address is None


def test_the_watchdog_is_ours_only_if_it_names_this_process() -> None:
    ours = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert sdnotify.from_environment(ours).watchdog_s == 30.0
    assert sdnotify.from_environment({**ours, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert sdnotify.from_environment({"WATCHDOG_USEC": "soon"}).watchdog_s is None


async def test_a_running_loop_tells_twice_a_period_and_a_stalled_one_does_not(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    address = str(tmp_path / "n")
    with manager(address) as sock:
        told = []
        async with trio.open_nursery() as nursery:
            notifier = sdnotify.Notifier(address, 30.0)
            nursery.start_soon(notifier.keep_alive, lambda: "RECONNECT_BACKOFF")
            await trio.sleep(46)
            nursery.cancel_scope.cancel()
        while True:
            try:
                told.append(sock.recv(256))
            except BlockingIOError:
                break
        assert told == [b"STATUS=RECONNECT_BACKOFF\nWATCHDOG=1"] * 4
