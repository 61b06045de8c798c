"""End to end: KIS's socket to every subscriber's, each daemon or relay a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from bench import relays, wire

if TYPE_CHECKING:
    from collections.abc import Generator

TYPED: Final = "kisfeed, typed"
RAW: Final = "kisfeed, raw"
PEERS: Final = {
    "websockets + JSON + Unix": "unix_sockets",
    "websockets + JSON + Redis pipeline": "redis_pipelined",
    "websockets + JSON + Redis, awaited": "redis_awaited",
    "websockets + JSON + NATS": "nats",
    "websockets + JSON + ZeroMQ": "zeromq",
    "picows/uvloop + Unix, a write each": "picows_plain",
    "picows/uvloop + Unix, coalesced": "picows_coalesced",
}
_SYMBOLS: Final = 20
_WINDOW: Final = 20_000  # records between KIS and the slowest subscriber
_QUEUE: Final = 67_108_864


@attrs.frozen
class Load:
    """What is sent.

    Attributes:
        rate: frames a second; 0 is as many as are taken.
        burst: frames in one write.
        seconds: for how long.
    """

    rate: float = 0.0
    burst: int = 1
    seconds: float = 2.0
    records: int = 1
    symbols: int = _SYMBOLS

    @property
    def stamps(self) -> int:
        return int(self.rate * self.seconds) // self.burst * self.burst


@attrs.frozen
class Result:
    """What one run gave.

    Attributes:
        rate: frames a second at the slowest subscriber.
        us: CPU microseconds a frame, daemon and broker.
        cpu: share of one core, daemon and broker.
        late: microseconds from KIS's socket to a subscriber, by percentile.
        lost: LOST messages.
        missing: ticks that never came, all subscribers together.
    """

    rate: float
    us: float
    cpu: float
    late: dict[str, float]
    lost: int
    missing: int


class Child:
    """A process that answers each line with a line."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=wire.HERE.parent,
            env={**os.environ, "PYTHONPATH": str(wire.HERE.parent)},
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def ask(self, **command: Any) -> dict[str, Any]:
        self.tell(**command)
        return self.read()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that all threads of these processes have used."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def missing(name: str) -> str:
    """Why this row cannot run here; empty where it can."""
    for word, program in (("Redis", "redis-server"), ("NATS", "nats-server")):
        if word in name and shutil.which(program) is None:
            return f"skipped: no {program}"
    return ""


@contextmanager
def broker(name: str, folder: Path) -> Generator[tuple[str, list[int]]]:
    """The server that relay *name* needs: where subscribers connect, and its process."""
    address = str(folder / "relay.sock")
    command: list[str] = []
    if name.startswith("redis"):
        command = ["redis-server", "--port", "0", "--unixsocket", address, "--save", ""]
        command += ["--dir", str(folder), "--client-output-buffer-limit", "pubsub 0 0 0"]
    elif name == "nats":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = f"127.0.0.1:{port}"
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(port)]
    if not command:
        yield address, []
        return
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        time.sleep(0.5)
        yield address, [process.pid]
    finally:
        process.kill()
        process.wait()


@contextmanager
def daemon(
    folder: Path, ports: dict[str, int], *, module: tuple[str, ...] = ("kisfeed",)
) -> Generator[tuple[str, int]]:
    """``kisfeed serve`` as a user runs it, on the exchange of this benchmark.

    *module* is run in its place, with arguments before those of ``serve``.
    """
    config = folder / "bench.toml"
    config.write_text(
        f"""environment = "sim"
[credentials]
appkey = "{"k" * 36}"
appsecret = "{"s" * 180}"
[endpoints]
rest = "http://127.0.0.1:{ports["rest"]}"
ws = "ws://127.0.0.1:{ports["ws"]}"
[gateway]
socket = "{folder}/feed.sock"
queue_bytes = {_QUEUE}
[state]
dir = "{folder}/state"
"""
    )
    config.chmod(0o600)
    command = [sys.executable, "-m", *module, "serve", "--config", str(config)]
    with (folder / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "error"], stdout=log, stderr=log, cwd=wire.HERE.parent
        )
    try:
        path = folder / "feed.sock"
        for _ in range(300):
            if path.exists():
                break
            if process.poll() is not None:
                raise RuntimeError((folder / "daemon.log").read_text())
            time.sleep(0.05)
        yield str(path), process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def unit(name: str) -> int:
    """Bytes of one message at a subscriber of relay *name*."""
    frame = wire.trades(1)[0]
    data = relays.to_json(frame.decode())
    if name.startswith("picows"):
        return len(relays.framed(frame))
    if name.startswith("redis"):
        return len(b"*3\r\n$7\r\nmessage\r\n$5\r\nticks\r\n$%d\r\n" % len(data)) + len(data) + 2
    if name == "nats":
        return len(b"MSG ticks 1 %d\r\n" % len(data)) + len(data) + 2
    return (9 if name == "zeromq" else 4) + len(data)


def measure(name: str, subscribers: int, load: Load, *, stalled: int = 0) -> Result:
    """Run *load* through *name* (a key of ``PEERS``, ``TYPED`` or ``RAW``) once.

    Args:
        name: what is measured.
        subscribers: how many read.
        load: what is sent.
        stalled: how many more never read.
    """
    ours = name in {TYPED, RAW}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kfb")))
        shared = f"/dev/shm/{folder.name}"
        wire.Shared(shared, load.stamps, create=True)
        stack.callback(Path(shared).unlink)

        def child(*command: str) -> Child:
            started = Child(*command)
            stack.callback(started.end)
            return started

        exchange = child(sys.executable, "-m", "bench.exchange", shared, str(load.stamps))
        ports = exchange.read()
        sinks = child(sys.executable, "-m", "bench.sinks", shared, str(load.stamps))
        if ours:
            address, pid = stack.enter_context(daemon(folder, ports))
            pids, kind, size = [pid], "kfp", 0
        else:
            relay = PEERS[name]
            address, pids = stack.enter_context(broker(relay, folder))
            started = child(
                *(sys.executable, "-m", "bench.relays", relay),
                *(str(ports["ws"]), address, str(load.symbols)),
            )
            started.read()
            pids = [*pids, started.process.pid]
            kind, size = relay if relay in {"nats", "zeromq"} else "unix", unit(relay)
            kind = "redis" if relay.startswith("redis") else kind
        topics = [
            f"raw.{wire.TR_ID}.{symbol}" if name == RAW else f"trade.krx.{symbol}"
            for symbol in wire.symbols(load.symbols)
        ]
        sinks.ask(
            do="connect",
            kind=kind,
            address=address,
            count=subscribers + stalled,
            topics=topics,
            stalled=stalled,
        )
        deadline = time.monotonic() + 60
        while exchange.ask(do="registered", count=load.symbols)["registered"] < load.symbols:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not register")
            time.sleep(0.05)
        time.sleep(0.3)
        sinks.ask(do="read", unit=size, most=load.stamps)
        if load.rate:
            return _paced(exchange, sinks, subscribers, pids, load)
        return _saturated(exchange, sinks, pids, load)


def _saturated(exchange: Child, sinks: Child, pids: list[int], load: Load) -> Result:
    exchange.tell(
        do="blast",
        seconds=load.seconds + 1.0,
        symbols=load.symbols,
        records=load.records,
        window=_WINDOW,
    )
    time.sleep(0.7)
    before, used = sinks.ask(do="count"), cpu_s(pids)
    time.sleep(load.seconds)
    after, used = sinks.ask(do="count"), cpu_s(pids) - used
    told = sinks.ask(do="stop")
    took = after["at"] - before["at"]
    frames = (after["least"] - before["least"]) / load.records
    return Result(frames / took, used / max(frames, 1) * 1e6, used / took, {}, told["lost"], 0)


def _paced(exchange: Child, sinks: Child, subscribers: int, pids: list[int], load: Load) -> Result:
    used, at = cpu_s(pids), time.monotonic()
    sent = exchange.ask(
        do="pace",
        rate=load.rate,
        burst=load.burst,
        count=load.stamps,
        symbols=load.symbols,
        records=load.records,
    )["sent"]
    used, took = cpu_s(pids) - used, time.monotonic() - at
    time.sleep(0.3)
    told = sinks.ask(do="stop")
    return Result(
        sent / took,
        used / max(sent, 1) * 1e6,
        used / took,
        told.get("us", {}),
        told["lost"],
        sent * load.records * subscribers - told["all"],
    )
