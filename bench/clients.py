"""A tick at a program: ``python -m bench.clients NAME PATH TICKS``, one of ``CLIENTS`` a process.

Connects to the daemon at PATH, subscribes, takes ticks from the client's iterator and prints
``{"ticks": n, "cpu": seconds}`` when that many have come. Nothing is read of them but their class.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgpack

from bench import ends, pieces, wire
from kisfeed.client.core import ClientCore, specs
from kisfeed.kfp import codec, events
from kisfeed.kfp.messages import Code, Data, Stream, Type

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

_SYMBOLS: Final = 20
_READ: Final = 65_536
_TICKS: Final = 100_000
TYPED: Final = tuple(f"trade.krx.{symbol}" for symbol in wire.symbols(_SYMBOLS))
RAW: Final = tuple(f"raw.{wire.TR_ID}.{symbol}" for symbol in wire.symbols(_SYMBOLS))


def stream(topics: tuple[str, ...]) -> list[bytes]:
    """What the daemon sends for :func:`bench.wire.trades`, a frame each; sids go up from 1."""
    core = pieces.Core(_SYMBOLS, raw=topics == RAW)
    box = core.subscribers[0].outbox
    frames = []
    for frame in wire.trades(_SYMBOLS):
        core.read([frame])
        frames.append(box.take(core.now)[-1])  # what the first row ends is told before it
    return frames


def answer(topics: list[str]) -> dict[str, Any]:
    """RES to the SUB of *topics*."""
    raw = topics[0] == RAW[0]
    schema = f"raw.{wire.TR_ID}" if raw else "trade.v1"
    state = {"stream": Stream.OPEN, "data": Data.OK, "code": Code.NONE, "since_ts": 0, "text": ""}
    items = [
        {"topic": topic, "sid": sid, "schema": schema, "scale": 0, "sseq": 0, **state}
        for sid, topic in enumerate(topics, 1)
    ]
    return {"items": items, "schemas": {schema: list(wire.field_names())} if raw else {}}


def unpacked(topics: tuple[str, ...]) -> float:
    """msgpack alone, bodies at hand; us a tick."""
    bodies = [frame[4:] for frame in stream(topics)]
    many = _READ // (len(bodies[0]) + 4)

    def work() -> int:
        for at in range(0, len(bodies), many):
            [msgpack.unpackb(body) for body in bodies[at : at + many]]
        return len(bodies)

    return pieces.cpu_us(work)


def set_at_once() -> float:
    """Decoded, every attribute of an event set when it is made, nothing accounted; us a tick."""
    data = b"".join(stream(TYPED))
    names = list(attrs.fields_dict(events.Trade))
    plain = attrs.make_class("Plain", names, frozen=True, slots=True)
    own = len(names) - 3

    def work() -> int:
        decoder, done = codec.Decoder(), 0
        for at in range(0, len(data), _READ):
            made = [
                plain(TYPED[m[1] - 1], 0, m[0] == Type.IMAGE, *m[1 : own + 1])
                for m in decoder.feed(data[at : at + _READ])
            ]
            done += len(made)
        return done

    return pieces.cpu_us(work)


def without_io(topics: tuple[str, ...], *, ticks_a_read: int = 0) -> float:
    """A client's core, from the bytes of a read (of 64 KiB or so many ticks) to events."""
    frames = stream(topics)
    data = b"".join(frames)
    reads = [data[at : at + _READ] for at in range(0, len(data), _READ)]
    if ticks_a_read:
        starts = range(0, len(frames), ticks_a_read)
        reads = [b"".join(frames[at : at + ticks_a_read]) for at in starts]
    core = connected(topics)

    def work() -> int:
        done = 0
        for read in reads:
            core.received(read, 0.0)
            done += len(core.events)
            core.events.clear()
        return done

    return pieces.cpu_us(work)


def connected(topics: tuple[str, ...]) -> ClientCore:
    """A core that has subscribed to *topics*."""
    core = ClientCore("bench", jitter=lambda: 0.5)
    core.connected(0.0)
    core.received(codec.frame(Type.WELCOME, 1, {}), 0.0)
    core.subscribe(specs(topics), 0.0)
    core.received(codec.frame(Type.RES, 2, answer(list(topics))), 0.0)
    core.events.clear()
    return core


class Tally:
    """Counts ticks from the first one on, to *most*."""

    def __init__(self, most: int) -> None:
        self.most, self.ticks, self.cpu = most, 0, 0.0

    def add(self, event: events.Event) -> bool:
        """Count *event* if it is a tick; True when it is enough."""
        if type(event) is events.Trade:
            if not self.ticks:
                self.cpu = time.process_time()
            self.ticks += 1
        return self.ticks >= self.most


def blocking(path: str, tally: Tally) -> None:
    import kisfeed  # noqa: PLC0415  # one client a process

    with kisfeed.connect(socket=path) as kf:
        for event in kf.subscribe(*TYPED):
            if tally.add(event):
                return


def on_trio(path: str, tally: Tally) -> None:
    import trio  # noqa: PLC0415

    import kisfeed  # noqa: PLC0415

    trio.run(_follow, kisfeed.open_client(socket=path), tally)


def on_asyncio(path: str, tally: Tally) -> None:
    import asyncio  # noqa: PLC0415

    from kisfeed import aio  # noqa: PLC0415

    asyncio.run(_follow(aio.connect(socket=path), tally))


async def _follow(opening: AbstractAsyncContextManager[Any], tally: Tally) -> None:
    async with opening as kf:
        await kf.subscribe(*TYPED)
        async for event in kf:
            if tally.add(event):
                return


CLIENTS: Final = {
    "kisfeed.connect": blocking,
    "kisfeed.open_client (Trio)": on_trio,
    "kisfeed.aio.connect (asyncio)": on_asyncio,
}


def through_socket(name: str) -> float:
    """One of ``CLIENTS`` at a daemon that sends as fast as it reads; CPU microseconds a tick."""
    data = b"".join(stream(TYPED))
    with tempfile.TemporaryDirectory(prefix="kfb") as folder, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{folder}/feed.sock")
        door.listen(1)
        program = ends.Child(
            *(sys.executable, "-m", "bench.clients", name, f"{folder}/feed.sock", str(_TICKS))
        )
        try:
            link, _ = door.accept()
            with link:
                decoder = codec.Decoder()
                link.sendall(codec.frame(Type.WELCOME, _request(link, decoder)[1], {}))
                asked = _request(link, decoder)
                topics = [sub["topic"] for sub in asked[2]["subs"]]
                link.sendall(codec.frame(Type.RES, asked[1], answer(topics)))
                # Its sseqs begin anew with every round, which is nothing to a client.
                for _ in range(_TICKS // wire.RING):
                    link.sendall(data)
                told = program.read()
        finally:
            program.end()
    return float(told["cpu"] / told["ticks"] * 1e6)


def _request(link: socket.socket, decoder: codec.Decoder) -> list[Any]:
    while not (messages := decoder.feed(link.recv(_READ))):
        pass
    return messages[0]


def main(name: str, path: str, ticks: int) -> None:
    tally = Tally(ticks)
    CLIENTS[name](path, tally)
    cpu = time.process_time() - tally.cpu
    print(json.dumps({"ticks": tally.ticks, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
