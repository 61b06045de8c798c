"""``kisfeed`` with a watch on its event loop: ``python -m bench.stalls FILE serve ...``.

While one task runs, nothing is read from KIS. Writes the CPU milliseconds of the longest run of
one task since the last SIGUSR1 to FILE when the daemon ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack
import trio

from bench import wire
from bench.sinks import connect, subscribe_kfp
from kisfeed.kfp import codec
from kisfeed.kfp.messages import MAX_FRAME, Type

if TYPE_CHECKING:
    import socket

_CLIENTS: Final = 200
_CALLS: Final = ("status", "slots", "clients")


class Watch(trio.abc.Instrument):
    """Times every run of a task in CPU seconds of the thread, which other programs do not bend."""

    def __init__(self) -> None:
        self.longest, self.who = 0.0, ""
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.thread_time() - self._began
        if took > self.longest:
            self.longest, self.who = took, task.name

    def forget(self, *_: object) -> None:
        self.longest, self.who = 0.0, ""


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def garbage() -> list[bytes]:
    """What no client sends: as much work as fits a frame, and what is no frame at all."""
    heads, most = [Type.CALL, 1], codec.MAX_VALUES - 5
    bodies = [
        [*heads, [[1] * 16_000] * 64],
        [*heads, [[[]] * 16_000] * 64],
        [*heads, [[]] * most],
        [*heads, ["x" * 60] * most],
        [*heads, {f"k{n}": n for n in range(most // 2)}],
        [*heads, "x" * (MAX_FRAME - 100)],
        [*heads, {"m": "status", "a": {"x": [[{}] * 8_000]}}],
    ]
    packed = [framed(msgpack.packb(body)) for body in bodies]
    return [*packed, framed(b"\x92\x05" + b"\x91" * 60_000), b"\xff" * 9000, bytes(9000)]


def storm(address: str, topics_each: int) -> None:
    """Everything at once that local programs can do to a daemon."""
    hello = codec.frame(Type.HELLO, 1, {"proto": [1, 1], "client": "storm"})
    topics = [f"trade.krx.{symbol}" for symbol in wire.symbols(512)]
    guests: list[socket.socket] = []

    def guest(count: int) -> None:
        sock = connect(address)
        subscribe_kfp(sock, topics[:count], "guest")
        guests.append(sock)

    for _ in range(_CLIENTS * 40 // topics_each):
        guest(topics_each)
    caller = connect(address)
    caller.sendall(hello)
    for number in range(60):
        name = _CALLS[number % len(_CALLS)]
        caller.sendall(codec.frame(Type.CALL, 10 + number, {"m": name}))
        caller.recv(1 << 20)
    small = codec.frame(Type.GET, 2, {"topic": topics[0]})
    for junk in (*garbage(), small * 5000, codec.frame(Type.PING, 3, None) * 5000):
        sock = connect(address)
        sock.settimeout(5)
        with contextlib.suppress(OSError):  # it hangs up on most of them
            sock.sendall(hello + junk)
            while sock.recv(1 << 20):
                sock.settimeout(0.3)
        sock.close()
    for sock in guests:
        sock.close()
    time.sleep(0.5)


def main() -> None:
    watch = Watch()
    signal.signal(signal.SIGUSR1, watch.forget)
    trio.run = cast("Any", functools.partial(trio.run, instruments=[watch]))
    to = Path(sys.argv.pop(1))
    from kisfeed.cli import main as kisfeed  # noqa: PLC0415  # after trio.run

    try:
        kisfeed()
    finally:
        to.write_text(json.dumps({"ms": watch.longest * 1e3, "who": watch.who, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
