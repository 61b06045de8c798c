"""The hot path has not grown: ``python -m bench.gate``; exits 1 if it has.

Counts what does not depend on the machine: calls and bytes for each record, and passes of the
scheduler for each read. Time appears only as a ratio of two things measured in turn.
"""

from __future__ import annotations

import gc
import math
import sys
import time
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio
from rich.console import Console
from rich.table import Table

from bench import clients, pieces, relays, wire
from kisfeed.core.connection import Reason
from kisfeed.core.engine import Instant
from kisfeed.gateway.fanout import Link
from kisfeed.upstream.frametap import FrameTap

if TYPE_CHECKING:
    from collections.abc import Callable

_FRAMES: Final = 1000
_HANDSHAKE: Final = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


@attrs.frozen
class Check:
    """One bound.

    Attributes:
        what: is counted.
        most: it may be.
        count: counts it.
    """

    what: str
    most: float
    count: Callable[[], float]


def calls(work: Callable[[], object]) -> int:
    """Python and C calls that *work* makes."""
    made = 0

    def seen(_frame: object, event: str, _argument: object) -> None:
        nonlocal made
        made += event in {"call", "c_call"}

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return made


def calls_a_record(
    *, per_read: int = 100, records: int = 1, subscribers: int = 1, raw: bool = False
) -> float:
    """Calls from the text frames of a read to what every socket is given."""
    core = pieces.Core(20, subscribers, raw=raw)
    frames = wire.trades(20, records)[:_FRAMES]

    def work() -> None:
        for at in range(0, len(frames), per_read):
            core.read(frames[at : at + per_read])
            core.take()

    work()
    return calls(work) / len(frames) / records


def calls_of_another(per_read: int) -> float:
    """Calls that one more subscriber adds to a record."""
    few = calls_a_record(per_read=per_read, subscribers=1)
    return (calls_a_record(per_read=per_read, subscribers=11) - few) / 10


def calls_of_a_send() -> float:
    """Calls from a tick in an outbox to the socket behind it."""
    core = pieces.Core(20, 1)
    (subscriber,) = core.subscribers
    link: Any = Link(subscriber.outbox, _Reads([]), cast("Any", None), math.inf)
    link._socket = _Socket()  # noqa: SLF001  # what a UnixStream would bring
    frames = wire.trades(20)[:_FRAMES]
    made = 0
    for frame in frames:
        core.read([frame])
        core.engine.take_dirty()
        made = calls(lambda: link.flush(core.now))  # of the last: the first has more to arrange
    return made


def calls_of_a_join(subscribers: int) -> float:
    """Calls for each topic of a program that joins *subscribers* others."""
    core = pieces.Core(20, subscribers)
    topics = [f"trade.krx.{name}" for name in wire.symbols(20)]
    return calls(lambda: core.subscriber(subscribers + 1, topics, True)) / len(topics)


def calls_of_a_leave(waiting: int) -> float:
    """Calls for each topic of a program that leaves with so many frames unsent."""
    core = pieces.Core(20, 1)
    (subscriber,) = core.subscribers
    topics = len(subscriber.streams)
    for frame in wire.trades(20)[:waiting]:
        core.read([frame])
    return calls(lambda: core.engine.detach(subscriber, Instant(core.now, 0))) / topics


def calls_of_a_state(subscribers: int) -> float:
    """Calls for each of *subscribers* when the state of the session changes."""
    core = pieces.Core(1, subscribers)
    at = Instant(core.now, 0)
    return calls(lambda: core.engine.lost(1, Reason.RESET, at)) / subscribers


def calls_at_a_client(topics: tuple[str, ...]) -> float:
    """Calls from the bytes of a read of 100 ticks to a client's events."""
    frames = clients.stream(topics)
    reads = [b"".join(frames[at : at + 100]) for at in range(0, len(frames), 100)]
    core = clients.connected(topics)

    def work() -> None:
        for read in reads:
            core.received(read, 0.0)
            core.events.clear()

    return calls(work) / len(frames)


def bytes_of_waiting() -> float:
    """Bytes that a frame takes in one more outbox, where frames are shared."""

    def held(subscribers: int) -> int:
        core = pieces.Core(20, subscribers)
        frames = wire.trades(20)[:_FRAMES]
        gc.collect()
        tracemalloc.start()
        for frame in frames:
            core.read([frame])
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    return (held(21) - held(1)) / 20 / _FRAMES


class _Reads(trio.abc.Stream):
    """A stream of ready-made reads; each takes one checkpoint, as a socket's does."""

    def __init__(self, reads: list[bytes]) -> None:
        self._reads = iter(reads)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        await trio.lowlevel.checkpoint()
        return next(self._reads, b"")

    async def send_all(self, data: Any) -> None:
        raise NotImplementedError

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Socket:
    """Takes whatever is sent."""

    def send(self, data: bytes, _flags: int) -> int:
        return len(data)


class _Steps(trio.abc.Instrument):
    """Counts how often a task is run."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
        self.count += 1


def steps_a_read() -> float:
    """Passes of the scheduler for a read of 100 frames, from the socket to the outboxes."""
    core = pieces.Core(20, 10)
    frames = wire.trades(20)
    reads = [
        b"".join(map(wire.websocket, frames[at : at + 100])) for at in range(0, len(frames), 100)
    ]

    def sink(batch: list[bytes]) -> None:
        core.read(batch)
        core.take()

    async def run() -> int:
        tap = FrameTap(_Reads([_HANDSHAKE, *reads]), sink, lambda: None, max_message_bytes=65_536)
        tap.release()
        await tap.receive_some()
        steps = _Steps()
        trio.lowlevel.add_instrument(steps)
        assert await tap.receive_some() == b""
        return steps.count

    before = sum(s.outbox.sent for s in core.subscribers)
    steps = trio.run(run)
    assert sum(s.outbox.sent for s in core.subscribers) - before == 10 * len(frames)
    return steps / len(reads)


def against_json() -> float:
    """CPU of our whole way for a trade, as a share of making it a JSON object."""
    core = pieces.Core(20)
    frames = wire.trades(20)
    texts = [frame.decode() for frame in frames]

    def ours() -> None:
        for at in range(0, len(frames), 100):
            core.read(frames[at : at + 100])
            core.take()

    def theirs() -> None:
        for text in texts:
            relays.to_json(text)

    def once(work: Callable[[], None]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    best = [math.inf, math.inf]
    for _ in range(15):
        best = [min(old, once(work)) for old, work in zip(best, (ours, theirs), strict=True)]
    return best[0] / best[1]


CHECKS: Final = (
    Check("calls a trade, reads of 100", 26, calls_a_record),
    Check("calls a trade, reads of 1", 62, partial(calls_a_record, per_read=1)),
    Check("calls a trade, 4 in a frame", 28, partial(calls_a_record, records=4)),
    Check("calls a raw row, reads of 100", 15, partial(calls_a_record, raw=True)),
    Check("calls of another subscriber, reads of 100", 0.2, partial(calls_of_another, 100)),
    Check("calls of another subscriber, reads of 1", 9, partial(calls_of_another, 1)),
    Check("calls of a send to one subscriber", 10, calls_of_a_send),
    Check("calls of a topic joined, behind 200 subscribers", 50, partial(calls_of_a_join, 200)),
    Check("calls of a topic left with 1000 frames unsent", 42, partial(calls_of_a_leave, 1000)),
    Check("calls of a change of state, for each of 200", 16, partial(calls_of_a_state, 200)),
    Check("calls a tick at a client", 10, partial(calls_at_a_client, clients.TYPED)),
    Check("calls a raw tick at a client", 10, partial(calls_at_a_client, clients.RAW)),
    Check("bytes of a waiting frame in another outbox", 12, bytes_of_waiting),
    Check("scheduler passes a read of 100 frames", 1.2, steps_a_read),
    Check("CPU of a trade, as a share of JSON alone", 0.8, against_json),
)


def main() -> None:
    """Count, show, and exit 1 where a bound is broken."""
    table = Table(title="hot path")
    for column in ("what", "at most", "measured"):
        table.add_column(column, justify="left" if column == "what" else "right")
    broken = 0
    for check in CHECKS:
        measured = check.count()
        well = measured <= check.most
        broken += not well
        style = None if well else "bold red"
        table.add_row(check.what, f"{check.most:g}", f"{measured:.3g}", style=style)
    Console().print(table)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
