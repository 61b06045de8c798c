"""Parts of the way, measured alone: receiving, decoding, publishing, memory, start-up."""

from __future__ import annotations

import datetime as dt
import gc
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from bench import ends, receivers, sinks, stalls, wire
from kisfeed import config, limits
from kisfeed.config import Environment
from kisfeed.core.engine import Engine, Instant, SendRegistration
from kisfeed.core.outbox import Outbox, Tick, runs
from kisfeed.core.pacing import Hygiene
from kisfeed.core.streams import Subscriber
from kisfeed.core.subscriptions import SubSpec
from kisfeed.gateway.channel import EventChannel
from kisfeed.kfp.events import Event, row_maker
from kisfeed.kfp.messages import Mode, Type
from kisfeed.kis import server
from kisfeed.kis.codes import Codes
from kisfeed.kis.rows import FIELDS
from kisfeed.kis.sessions import Calendar, always_open
from kisfeed.schemas import load, load_catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WALL: Final = 1_795_000_000 * 10**9


def receive(name: str, frames: int) -> float:
    """CPU microseconds a frame of one receiver, saturated."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="kfb") as shared:
        wire.Shared(shared.name, 0, create=True)
        exchange = ends.Child(sys.executable, "-m", "bench.exchange", shared.name, "0")
        try:
            port = exchange.read()["ws"]
            client = ends.Child(
                sys.executable, "-m", "bench.receivers", name, str(port), str(frames)
            )
            try:
                while exchange.ask(do="registered", count=0)["registered"] < 0:
                    time.sleep(0.05)
                time.sleep(1.0)
                exchange.tell(do="blast", seconds=60, symbols=20, records=1, window=0)
                told = client.read()
            finally:
                client.end()
        finally:
            exchange.end()
    return float(told["cpu"] / told["frames"] * 1e6)


def cpu_us(work: Callable[[], int]) -> float:
    """CPU microseconds of one of the things that *work* did; best of seven."""
    best = math.inf
    work()
    for _ in range(7):
        gc.collect()
        gc.disable()
        began = time.process_time()
        done = work()
        best = min(best, (time.process_time() - began) / done * 1e6)
        gc.enable()
    return best


class Core:
    """An engine with a session that stands and *subscribers* of every topic, without I/O."""

    def __init__(
        self, symbols: int, subscribers: int = 1, *, raw: bool = False, encode: bool = True
    ) -> None:
        environment = Environment.SIM
        self.now = 1.0
        at = Instant(0.0, _WALL)
        today = dt.datetime.fromtimestamp(_WALL // 10**9, dt.UTC).date()
        self.engine = Engine(
            "bench",
            load_catalogue(environment),
            Codes(load("kis/codes.json")),
            FIELDS,
            config.Session(),
            limits.resolve(load("limits.kis.json"), environment, today),
            lambda: 0.5,
            Hygiene(),
            at,
            Calendar(always_open(load("kis/sessions.json")), {}),
        )
        self.engine.start(at)
        names = wire.symbols(symbols)
        topics = [f"raw.{wire.TR_ID}.{n}" if raw else f"trade.krx.{n}" for n in names]
        self.subscribers = [self.subscriber(n + 1, topics, encode) for n in range(subscribers)]
        self.engine.key_ready(at)
        self.engine.opened(1, at)
        acks = [server.build_ack((wire.TR_ID, n), server.SUBSCRIBED).encode() for n in names]
        while any(ack for ack in acks):
            self.now += 1.0
            self.engine.timer(Instant(self.now, _WALL))
            done = [
                server.build_ack(action.key, server.SUBSCRIBED).encode()
                for action in self.engine.take_actions()
                if isinstance(action, SendRegistration)
            ]
            self.engine.on_frames(done, _WALL, self.now)
            acks = acks[len(done) :]
        self.take()

    def subscriber(self, conn: int, topics: Sequence[str], encode: bool) -> Subscriber:
        box: Outbox[Any] = Outbox(
            size=len if encode else lambda _: 256,
            lost=lambda *_: b"",
            queue_bytes=1 << 30,
            max_age_s=1e9,
            max_age_latest_s=1e9,
        )
        made = Subscriber(f"s{conn}", conn, "reader", box, encode=encode)
        self.engine.subscriptions.attach(made)
        at = Instant(self.now, _WALL)
        self.engine.subscribe(made, [SubSpec(topic) for topic in topics], at, lambda _: b"")
        return made

    def read(self, frames: list[bytes]) -> None:
        """One read of the socket."""
        self.now += 1e-3
        self.engine.on_frames(frames, _WALL, self.now)

    def take(self) -> None:
        """Take everything out of the outboxes that got something."""
        for subscriber in self.engine.take_dirty():
            while subscriber.outbox.take(self.now):
                pass


def decode_kisfeed(records: int = 1, symbols: int = 20, per_read: int = 100) -> float:
    """A frame to typed row, gap account, last value and encoded KFP frame; us a record."""
    core = Core(symbols)
    frames = wire.trades(symbols, records)

    def work() -> int:
        for at in range(0, len(frames), per_read):
            core.read(frames[at : at + per_read])
            core.take()
        return len(frames) * records

    return cpu_us(work)


def decode_pykis() -> float:
    """python-kis's own parser of the same frame."""
    from pykis.api.websocket.price import KisDomesticRealtimePrice  # noqa: PLC0415
    from pykis.responses.websocket import KisWebsocketResponse  # noqa: PLC0415

    payloads = [f.decode().split("|", 3)[3] for f in wire.trades(20, ring=200)]

    def work() -> int:
        for payload in payloads:
            list(KisWebsocketResponse.parse(payload, 1, response_type=KisDomesticRealtimePrice))
        return len(payloads)

    return cpu_us(work)


def decode_mojito() -> float:
    """mojito2's parser of the same frame: a dict of texts."""
    import mojito  # noqa: PLC0415

    class Queue:
        def put(self, _: object) -> None:
            """Nothing keeps it."""

    parser = mojito.KoreaInvestmentWS.__new__(mojito.KoreaInvestmentWS)
    parser.queue = Queue()
    payloads = [f.decode().split("|", 3)[3] for f in wire.trades(20, ring=1000)]

    def work() -> int:
        for payload in payloads:
            parser.parse_execution("001", payload)
        return len(payloads)

    return cpu_us(work)


def decode_pandas() -> float:
    """The way of the vendor's sample: one data frame for each message."""
    import pandas as pd  # noqa: PLC0415

    names = list(wire.field_names())
    payloads = [f.decode().split("|", 3)[3] for f in wire.trades(20, ring=100)]

    def work() -> int:
        for payload in payloads:
            pd.read_csv(io.StringIO(payload), header=None, sep="^", names=names, dtype=object)
        return len(payloads)

    return cpu_us(work)


def publish(subscribers: int, per_read: int) -> float:
    """The core's whole work for one frame of trades with this many subscribers; us a frame."""
    core = Core(20, subscribers)
    frames = wire.trades(20)[: max(200, 4000 // subscribers)]

    def work() -> int:
        for at in range(0, len(frames), per_read):
            core.read(frames[at : at + per_read])
            core.take()
        return len(frames)

    return cpu_us(work)


def in_process(batch: int) -> tuple[float, float]:
    """Handing ticks to a task: our batches, and a memory channel of single ones; us a tick."""
    ticks = 20_000
    row = wire.trade_values("100000", 1)[:15]
    event = row_maker("trade.v1", "trade.krx.1", 0)([Type.TICK, 1, 1, 0, None, 0, *row])

    async def ours() -> None:
        box: Outbox[Event] = Outbox(
            size=lambda _: 256,
            lost=lambda *_: event,
            queue_bytes=1 << 30,
            max_age_s=1e9,
            max_age_latest_s=1e9,
        )
        box.open(1, Mode.ALL, 0, 0, trades=True)
        channel = EventChannel(box, trio.current_time, lambda: None)

        async def consume() -> None:
            got = 0
            while got < ticks:
                got += len(await channel.receive_batch())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            for at in range(0, ticks, batch):
                now = trio.current_time()
                made: list[Tick[Event]] = [(1, at + k + 1, event, now) for k in range(batch)]
                for run in runs(made, box.size, None):
                    box.put_run(run)
                channel.flush()
                await trio.lowlevel.checkpoint()

    async def theirs() -> None:
        sender, receiver = trio.open_memory_channel[Event](ticks)

        async def consume() -> None:
            for _ in range(ticks):
                await receiver.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            for _ in range(ticks // batch):
                for _ in range(batch):
                    await sender.send(event)
                await trio.lowlevel.checkpoint()

    def timed(program: Callable[[], Any]) -> float:
        def work() -> int:
            trio.run(program)
            return ticks

        return cpu_us(work)

    return timed(ours), timed(theirs)


def memory_of_outbox(frames: int) -> float:
    """Bytes that one more outbox with *frames* shared frames takes; it has its subscriber."""
    core = Core(20, 1)
    many = 50
    topics = [f"trade.krx.{n}" for n in wire.symbols(20)]
    made = wire.trades(20)[:frames]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    extra = [core.subscriber(1000 + n, topics, True) for n in range(many)]
    for subscriber in extra:
        subscriber.outbox.take(core.now)
    core.take()
    if frames:
        # One read a frame: nothing is joined, as for a subscriber that stalls on a quiet market.
        shared = _encoded_bytes(core, made)
        used = tracemalloc.get_traced_memory()[0] - before - shared
    else:
        used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / many


def _encoded_bytes(core: Core, frames: Sequence[bytes]) -> int:
    """Publish *frames* one by one; the bytes of the frames that all outboxes share."""
    for frame in frames:
        core.read([frame])
    box = core.subscribers[0].outbox
    return box.queued_bytes


def memory_of_registration() -> float:
    """Bytes that one more topic, with a row, takes in the core."""
    gc.collect()
    tracemalloc.start()
    few = Core(2)
    few.read(wire.trades(2)[:2])
    few.take()
    at = tracemalloc.get_traced_memory()[0]
    many = Core(40)
    many.read(wire.trades(40)[:40])
    many.take()
    first, second = at, tracemalloc.get_traced_memory()[0] - at
    tracemalloc.stop()
    return (second - first) / 38


def memory_of_connection(count: int = 800) -> float:
    """Bytes of the daemon's memory (private and its share) for each idle subscriber."""

    def pss(pid: int) -> int:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.split("Pss:")[1].split()[0]) * 1024

    with tempfile.TemporaryDirectory(prefix="kfb") as folder:
        shared = f"{folder}/shared"
        wire.Shared(shared, 0, create=True)
        exchange = ends.Child(sys.executable, "-m", "bench.exchange", shared, "0")
        readers = ends.Child(sys.executable, "-m", "bench.sinks", shared, "0")
        try:
            with ends.daemon(Path(folder), exchange.read()) as (address, pid):
                one = {
                    "do": "connect",
                    "kind": "kfp",
                    "address": address,
                    "topics": ["trade.krx.1"],
                }
                one["topics"] = ["trade.krx.100000"]
                readers.ask(**one, count=50)
                time.sleep(3.0)  # the deadline of a greeting is forgotten when it has passed
                before = pss(pid)
                readers.ask(**one, count=count)
                time.sleep(3.0)
                return (pss(pid) - before) / count
        finally:
            readers.end()
            exchange.end()


def startup(*arguments: str) -> dict[str, float]:
    """Milliseconds from start to end of a Python process, and of CPU; each the best of five."""
    wall, cpu = math.inf, math.inf
    for _ in range(5):
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        wall = min(wall, time.perf_counter() - began)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = min(cpu, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    return {"ms": wall * 1e3, "CPU ms": cpu * 1e3}


def demo_first_tick() -> float:
    """Seconds from ``kisfeed demo`` to its first tick on the screen."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "kisfeed", "demo", "--plain", "--seconds", "15"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if b"trade.krx" in line:
                return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return math.nan


def available(module: str) -> bool:
    """Whether a peer is installed."""
    return find_spec(module) is not None


RECEIVERS: Final = tuple(receivers.RECEIVERS)


def reader_stall(topics_each: int) -> float:
    """CPU milliseconds of the longest time that nothing was read, while programs misbehave."""
    with tempfile.TemporaryDirectory(prefix="kfb") as name:
        folder = Path(name)
        shared, told = str(folder / "shared"), folder / "stalls.json"
        wire.Shared(shared, 0, create=True)
        exchange = ends.Child(sys.executable, "-m", "bench.exchange", shared, "0")
        try:
            watched = ("bench.stalls", str(told))
            with ends.daemon(folder, exchange.read(), module=watched) as (address, pid):
                sock = sinks.connect(address)
                topics = [f"trade.krx.{symbol}" for symbol in wire.symbols(20)]
                sinks.subscribe_kfp(sock, topics, "first")
                exchange.ask(do="registered", count=20)
                time.sleep(0.5)
                os.kill(pid, signal.SIGUSR1)
                stalls.storm(address, topics_each)
                sock.close()
        finally:
            exchange.end()
        return float(json.loads(told.read_text())["ms"])
