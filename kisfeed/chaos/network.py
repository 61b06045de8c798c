"""A network in memory and in virtual time, with everything that goes wrong on a real one.

A :class:`Wire` is one TCP connection: two byte pipes, each first in first out, with a latency
drawn from a seed. Reads come chopped at any byte. A :class:`Route` is the way between two hosts:
it can lose its dials, hold its bytes one way or both ways, reset or cut its wires. Nothing here
uses a socket, a thread or a clock but the run's own.
"""

from __future__ import annotations

import collections
import enum
import errno
import functools
import heapq
import importlib
import math
import socket
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.gateway.unixsocket import DirectStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kisfeed.seams import Seeded

_GIVES_WAY: Final = 0.25  # of the sends; a pass of the scheduler is most of what one costs

KEEPALIVE_S: Final = 15.0
"""How long a kernel with our socket options lets nothing be acknowledged."""


class LeapingClock(trio.abc.Clock):
    """Virtual time, from 0: whenever no task can run, it is at once the next deadline.

    As a ``MockClock`` that jumps, but without a turn of the scheduler of its own for every jump;
    and it stands still while a thread works. Not for runs with sockets.

    What the network is to do later it leaves here: a call at its time costs a fraction of a task
    that sleeps until then.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._threads: trio.CapacityLimiter | None = None

    def call_at(self, when: float, what: Callable[[], None]) -> None:
        """Call *what* at *when*, between two passes of the scheduler; it may wake tasks."""
        self._number += 1
        heapq.heappush(self._calls, (when, self._number, what))

    async def sleep(self, seconds: float) -> None:
        """As :func:`trio.sleep`, without a cancel scope; for the world around the program."""
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            return
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

        def wake() -> None:
            if task is not None:
                trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal task
            task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.call_at(self._now + seconds, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def start_clock(self) -> None:
        """Nothing runs by itself; Trio no longer asks the kernel at each pass."""
        self._threads = trio.to_thread.current_default_thread_limiter()
        runner = scheduler()["GLOBAL_RUN_CONTEXT"].runner
        runner.io_manager = _Unpolled(runner.io_manager, runner.entry_queue)

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        calls = self._calls
        due = min(deadline, calls[0][0]) if calls else deadline
        assert self._threads is not None
        if due == math.inf or self._threads.borrowed_tokens:
            return math.inf  # what comes from outside wakes Trio: a thread's end, a finalizer
        self._now = max(self._now, due)
        while calls and calls[0][0] <= self._now:
            heapq.heappop(calls)[2]()
        return 0.0


class _Unpolled:
    """Trio's I/O in a run without sockets.

    Each pass of the scheduler asks the kernel, which is a tenth of a run. All that it could tell
    of is what another thread, a signal or a finalizer has queued, and that can be seen.
    """

    def __init__(self, real: Any, queued: Any) -> None:
        self._real = real
        self._queue = queued.queue
        self._idempotent = queued.idempotent_queue
        self.process_events = real.process_events

    def get_events(self, timeout: float) -> Any:
        if timeout == 0 and not self._queue and not self._idempotent:
            return []
        return self._real.get_events(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def scheduler() -> dict[str, Any]:
    """The insides of Trio's scheduler, for what it has no door for."""
    return vars(importlib.import_module("trio._core._run"))


class DialFault(enum.StrEnum):
    """What a dial meets."""

    REFUSED = "refused"
    NO_ROUTE = "no_route"
    DNS = "dns"
    HANG = "hang"  # no answer to the SYN
    MUTE = "mute"  # TCP stands, and not a byte passes


@attrs.define(eq=False)
class _Pipe:
    """One direction of a wire.

    Attributes:
        held: bytes wait until the route heals. mute: until everything does.
        room: bytes that fit before a sender waits.
        cut_after: the wire is reset when so many more bytes have gone in.
    """

    _clock: LeapingClock
    room: float
    queue: collections.deque[tuple[float, bytes]] = attrs.field(factory=collections.deque)
    waiting: int = 0
    last: float = 0.0
    held: bool = False
    mute: bool = False
    ends_at: float = math.inf
    cut_after: float = math.inf
    moved: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _wakes_at: float = math.inf

    def ready_at(self) -> float:
        """When a reader gets something."""
        if self.held or self.mute:
            return math.inf
        return self.queue[0][0] if self.queue else self.ends_at

    def arrives(self) -> None:
        """Bytes are on their way: who waits for them is woken when they are there."""
        if self.moved:
            self._wake_when_ready()

    async def change(self) -> None:
        """Wait until bytes or the end are there, or something else has changed."""
        self._wake_when_ready()
        await self.moved.park()

    def _wake_when_ready(self) -> None:
        ready = self.ready_at()
        if ready <= self._clock.current_time():
            if self.moved:
                self.wake()
        elif ready < self._wakes_at:
            self._wakes_at = ready
            self._clock.call_at(ready, self.wake)

    def wake(self) -> None:
        self._wakes_at = math.inf
        self.moved.unpark_all()


@attrs.define(eq=False)
class Wire:
    """One TCP connection of a route; ``up`` is from the dialler to the listener.

    Attributes:
        number: counts the wires of the route, from 1; dial: and its dials.
        opened_at: when the dialler's connect returned.
        down_at: when the dialler's end was closed or broken; infinite while it stands.
        closed_by_dialler: its end was closed before anything broke it or the other one closed.
        received: what the dialler's program has read, and when.
        sent: what it wrote, and when.
    """

    number: int
    dial: int
    opened_at: float
    up: _Pipe
    down: _Pipe
    near: Stream = attrs.field(init=False)
    far: Stream = attrs.field(init=False)
    down_at: float = math.inf
    closed_by_dialler: bool = False
    received: list[tuple[float, bytes]] = attrs.field(factory=list)
    sent: list[tuple[float, bytes]] = attrs.field(factory=list)

    def reset(self) -> None:
        """Both ends break at once; what is on its way is gone."""
        self.near.broken = self.far.broken = True
        self.ended()
        self.up.queue.clear()
        self.down.queue.clear()
        self.up.waiting = self.down.waiting = 0
        self.up.wake()
        self.down.wake()

    def ended(self) -> None:
        """The dialler's end is over."""
        if self.down_at == math.inf:
            self.down_at = trio.current_time()

    @property
    def over(self) -> bool:
        """Neither end is of use any more."""
        return (self.near.broken or self.near.closed) and (self.far.broken or self.far.closed)


class Stream(DirectStream, trio.abc.HalfCloseableStream):
    """One end of a wire; it is its own socket."""

    def __init__(self, route: Route, wire: Wire, *, near: bool) -> None:
        self._route = route
        self._wire = wire
        self._near = near
        self._rx, self._tx = (wire.down, wire.up) if near else (wire.up, wire.down)
        self.closed = False
        self.broken = False

    @property
    def socket(self) -> Stream:
        return self

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._route.gives_way():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        rest = bytes(data)
        while True:
            await self._room()
            self._check()
            rest = rest[self._put(rest) :]
            if not rest:
                return

    def send(self, data: bytes, _flags: int = 0, /) -> int:
        """As a socket's that does not block."""
        if self.closed or self.broken:
            raise BrokenPipeError(errno.EPIPE, "this end is closed or broken")
        if self._tx.waiting >= self._tx.room:
            raise BlockingIOError(errno.EAGAIN, "no room")
        return self._put(data)

    def _put(self, data: bytes) -> int:
        """A kernel takes what it has room for."""
        pipe = self._tx
        if pipe.waiting + len(data) > pipe.room:
            data = data[: int(pipe.room) - pipe.waiting]
        if data:
            if self._near:
                self._wire.sent.append((trio.current_time(), data))
            self._route.carry(self._wire, pipe, data)
        return len(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        await self._room()

    async def _room(self) -> None:
        while self._tx.waiting >= self._tx.room:
            self._check()
            await self._tx.moved.park()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._finish()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        pipe = self._rx
        await trio.lowlevel.checkpoint_if_cancelled()
        slept = False
        self._check()
        while pipe.ready_at() > (now := self._route.clock.current_time()):
            slept = True
            await pipe.change()
            self._check()
        data = b""
        if pipe.queue:
            data = self._take(pipe, now, math.inf if max_bytes is None else max_bytes)
            if pipe.moved:  # a sender waits for room
                pipe.wake()
            if self._near:
                self._wire.received.append((now, data))
        if not slept:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            if self._near:
                stood = self._wire.down_at == math.inf and not self._wire.far.closed
                self._wire.closed_by_dialler = stood
                self._wire.ended()
            self._finish()
            # What nobody will read takes no room: who waits to send more is answered with RST.
            self._rx.queue.clear()
            self._rx.waiting = 0
            self._rx.wake()
            self._route.closed(self._wire)
        await trio.lowlevel.checkpoint()

    def _take(self, pipe: _Pipe, now: float, most: float) -> bytes:
        """All that has arrived, or a piece of it that ends anywhere."""
        parts = []
        size = 0
        while pipe.queue and pipe.queue[0][0] <= now and size < most:
            parts.append(pipe.queue.popleft()[1])
            size += len(parts[-1])
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        cut = self._route.chop(len(whole), most)
        if cut < len(whole):
            pipe.queue.appendleft((now, whole[cut:]))
            whole = whole[:cut]
        pipe.waiting -= len(whole)
        return whole

    def _finish(self) -> None:
        if self._tx.ends_at == math.inf:
            self._tx.ends_at = max(trio.current_time() + self._route.latency(), self._tx.last)
            self._tx.wake()

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end is closed")
        if self.broken:
            raise trio.BrokenResourceError("connection reset")


@attrs.frozen
class Attempt:
    """A dial that is over.

    Attributes:
        how: ``opened``, ``refused``, ``no_route``, ``dns``, or ``given_up`` by the dialler.
    """

    began_at: float
    ended_at: float
    how: str


@attrs.frozen
class _Trouble:
    """What is wrong with a route for a while."""

    up: bool = False
    down: bool = False
    dial: DialFault | None = None


@attrs.define(eq=False)
class Route:
    """The way from one host to another that listens.

    Args:
        name: in the trace.
        clock: of the run.
        rng: latencies and chops.
        accept: serves the far end of a wire; its task lives in *nursery*.
        nursery: of whatever serves.
        trace: told of everything that happens.
        latency_s: the least and the most that a byte takes.
        chopped: reads end anywhere.
        room: bytes that a direction holds before its sender waits.
        keepalive_s: nothing acknowledged for so long breaks the dialler's end; infinite for a
            kernel that never looks.
        refuses: nobody listens at this moment.
    """

    name: str
    clock: LeapingClock
    _rng: Seeded
    _accept: Callable[[trio.abc.Stream], Awaitable[None]]
    _nursery: trio.Nursery
    _trace: Callable[..., None]
    latency_s: tuple[float, float] = (0.0005, 0.02)
    chopped: bool = True
    room: float = math.inf
    keepalive_s: float = KEEPALIVE_S
    refuses: Callable[[], bool] = lambda: False
    wires: list[Wire] = attrs.field(factory=list, init=False)
    _open: list[Wire] = attrs.field(factory=list, init=False)
    dials: list[float] = attrs.field(factory=list, init=False)
    attempts: list[Attempt] = attrs.field(factory=list, init=False)
    _troubles: dict[int, _Trouble] = attrs.field(factory=dict, init=False)
    _posted: int = attrs.field(default=0, init=False)
    _healed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    def latency(self) -> float:
        """How long the next bytes take."""
        low, high = self.latency_s
        return low + (high - low) * self._rng.random()

    def gives_way(self) -> bool:
        """Whether a send lets other tasks run first."""
        return self._rng.random() < _GIVES_WAY

    def chop(self, size: int, most: float) -> int:
        """How many of *size* bytes that are there a read returns."""
        size = int(min(size, most))
        if not self.chopped or size < 2 or self._rng.random() < 0.7:
            return size
        return self._rng.randint(1, size)

    def carry(self, wire: Wire, pipe: _Pipe, data: bytes) -> None:
        """Put *data* on its way."""
        sender, receiver = (wire.near, wire.far) if pipe is wire.up else (wire.far, wire.near)
        if receiver.closed or receiver.broken:
            # Answered with RST, which breaks both ways of the sender; lost on a line that holds.
            back = wire.down if pipe is wire.up else wire.up
            if not (pipe.held or pipe.mute or back.held or back.mute):
                sender.broken = True
                if sender is wire.near:
                    wire.ended()
                back.wake()
            return
        if len(data) >= pipe.cut_after:
            data = data[: int(pipe.cut_after)]
            self._trace(self.name, "cut", wire.number, len(data))
            pipe.cut_after = math.inf
            cut = True
        else:
            pipe.cut_after -= len(data)
            cut = False
        if data:
            pipe.last = max(trio.current_time() + self.latency(), pipe.last)
            pipe.queue.append((pipe.last, data))
            pipe.waiting += len(data)
            pipe.arrives()
        if cut:
            # With the last byte, which is lost then, or right behind it.
            at = max(pipe.last, trio.current_time())
            at = math.nextafter(at, math.inf) if self._rng.random() < 0.5 else at
            self.clock.call_at(at, wire.reset)

    def closed(self, wire: Wire) -> None:
        """An end was closed."""
        self._trace(self.name, "closed", wire.number, wire.near.closed, wire.far.closed)

    async def dial(self, host: str = "", port: int = 0) -> Stream:
        """Open a wire; the address does not matter.

        Raises:
            OSError: as :func:`socket.create_connection` would.
        """
        await trio.lowlevel.checkpoint()
        began_at = trio.current_time()
        self.dials.append(began_at)
        number = len(self.dials)
        self._trace(self.name, "dial", number)
        how = "given_up"
        try:
            stream = await self._connect(number, f"{host}:{port}")
            how = "opened"
        except OSError as error:
            how = _how(error)
            raise
        finally:
            self.attempts.append(Attempt(began_at, trio.current_time(), how))
        return stream

    async def _connect(self, number: int, host: str) -> Stream:
        fault = self._dial_fault()
        if fault is DialFault.DNS:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")
        if fault is DialFault.NO_ROUTE:
            raise OSError(errno.ENETUNREACH, "network is unreachable")
        while self._dial_fault() is DialFault.HANG or self._held(up=True) or self._held(up=False):
            await self._healed.park()  # SYNs are sent again, so a heal lets one through
        await self.clock.sleep(2 * self.latency())
        fault = self._dial_fault()
        if fault is DialFault.REFUSED or self.refuses():
            self._trace(self.name, "refused", number)
            raise ConnectionRefusedError(f"nobody listens on {host}")
        wire = Wire(
            len(self.wires) + 1,
            number,
            trio.current_time(),
            _Pipe(self.clock, self.room),
            _Pipe(self.clock, self.room),
        )
        wire.near = Stream(self, wire, near=True)
        wire.far = Stream(self, wire, near=False)
        wire.up.mute = wire.down.mute = fault is DialFault.MUTE
        self.wires.append(wire)
        self._open.append(wire)
        self._apply()
        self._trace(self.name, "opened", wire.number)
        self._nursery.start_soon(self._serve, wire)
        return wire.near

    # Faults.

    @property
    def open_wires(self) -> list[Wire]:
        """Wires with an end that stands."""
        self._open = [wire for wire in self._open if not wire.over]
        return self._open

    def hold(self, lasts: float = math.inf, *, up: bool, down: bool, silent: bool = False) -> None:
        """For *lasts* seconds bytes wait, in one direction or both, and so do dials.

        Args:
            lasts: then what was held passes.
            up: from the dialler.
            down: to it.
            silent: the kernels still acknowledge (the far program is frozen), so that no
                keepalive finds it.
        """
        self._post(_Trouble(up, down), lasts)
        if not silent and self.keepalive_s < lasts:
            for wire in self.open_wires:
                self._nursery.start_soon(self._keepalive, wire, trio.current_time())

    def fail_dials(self, fault: DialFault, lasts: float = math.inf) -> None:
        """For *lasts* seconds dials meet *fault*; wires that stand are not touched."""
        self._post(_Trouble(dial=fault), lasts)

    def reset(self) -> None:
        """RST to both ends of every wire."""
        for wire in self.open_wires:
            self._trace(self.name, "reset", wire.number)
            wire.reset()

    def cut(self, after: int, *, up: bool) -> None:
        """Reset the newest wire when *after* more bytes have passed in one direction."""
        if self.open_wires:
            wire = self.open_wires[-1]
            (wire.up if up else wire.down).cut_after = after

    def vanish(self) -> None:
        """The dialling host is gone: its ends break at once, the far ends by an RST."""
        self.reset()

    def heal(self) -> None:
        """Everything works again; what was held passes."""
        self._troubles.clear()
        for wire in self.open_wires:
            for pipe in (wire.up, wire.down):
                pipe.mute = False
                pipe.cut_after = math.inf
                pipe.wake()
        self._apply()

    # Parts.

    def _post(self, trouble: _Trouble, lasts: float) -> None:
        self._posted += 1
        self._troubles[self._posted] = trouble
        self._apply()
        if lasts < math.inf:
            over_at = trio.current_time() + lasts
            self.clock.call_at(over_at, functools.partial(self._lift, self._posted))

    def _lift(self, number: int) -> None:
        if self._troubles.pop(number, None) is not None:
            self._apply()

    def _apply(self) -> None:
        up, down = self._held(up=True), self._held(up=False)
        for wire in self.open_wires:
            for pipe, held in ((wire.up, up), (wire.down, down)):
                if pipe.held is not held:
                    pipe.held = held
                    pipe.wake()
        self._healed.unpark_all()

    def _held(self, *, up: bool) -> bool:
        return any(t.up if up else t.down for t in self._troubles.values())

    def _dial_fault(self) -> DialFault | None:
        return next((t.dial for t in self._troubles.values() if t.dial is not None), None)

    async def _serve(self, wire: Wire) -> None:
        await self.clock.sleep(self.latency())
        await self._accept(wire.far)

    async def _keepalive(self, wire: Wire, since: float) -> None:
        await trio.sleep_until(since + self.keepalive_s)
        pipes = (wire.up, wire.down)
        if wire.near.closed or wire.near.broken or not any(pipe.held for pipe in pipes):
            return
        self._trace(self.name, "keepalive", wire.number)
        # Only this end knows: its RST cannot pass. The far end hears of it after the heal.
        wire.near.broken = True
        wire.ended()
        wire.down.wake()
        wire.up.wake()
        while any(pipe.held for pipe in pipes) and not wire.over:
            await self._healed.park()
        wire.far.broken = True
        wire.up.wake()
        wire.down.wake()


def _how(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return "dns" if isinstance(error, socket.gaierror) else "no_route"


class Listener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the far ends of a route, for whoever serves by :func:`trio.serve_listeners`."""

    def __init__(self) -> None:
        self._in, self._out = trio.open_memory_channel[trio.abc.Stream](math.inf)

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Hand *stream* to the one who accepts; the ``accept`` of a route."""
        try:
            self._in.send_nowait(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(stream)

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._out.close()
        self._in.close()
        await trio.lowlevel.checkpoint()
