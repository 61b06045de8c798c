"""One case is one run: a simulated KIS, the daemon and local programs in virtual time.

The daemon is the real one, from its WebSocket library to its gateway; so are the clients. Only
the network, the disk and the clocks are ours (:mod:`kisfeed.chaos.network`, seams). Trouble goes
on for the case's horizon, then everything heals, and the run waits until all is well again. What
happened is kept as the server, the wires and the programs saw it: :class:`Run`.
"""

from __future__ import annotations

import datetime as dt
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.chaos import network
from kisfeed.chaos.schedule import Case, Setup, Step, Trouble
from kisfeed.chaos.trader import Trader
from kisfeed.client.core import ClientCore
from kisfeed.client.structured import Client
from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Environment,
    Gateway,
    Orders,
    Quotes,
    Secret,
    Session as SessionRules,
    State as StateFolder,
    Subscriptions,
)
from kisfeed.core.orders import day_of
from kisfeed.errors import Disconnected, KisfeedError, NoDaemon, ServerRefused
from kisfeed.feed import Feed, _Door, open_feed
from kisfeed.gateway.server import serve
from kisfeed.kfp import events
from kisfeed.kfp.messages import MAX_PRIO
from kisfeed.kis.codes import SUBSCRIBED
from kisfeed.seams import Seeded, VirtualClock, seeded_rng
from kisfeed.seoul import KST
from kisfeed.simulator import Fault, Happening, Kind, Options, Rules
from kisfeed.simulator.brokerage import Dealing
from kisfeed.testing import MemorySimulator, open_memory_simulator

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Generator,
        Mapping,
        MutableSequence,
        Sequence,
    )

    from kisfeed.kfp.events import Event
    from kisfeed.rest.transport import Handler
    from kisfeed.seams import Rng
    from kisfeed.simulator.brokerage import Brokerage
    from kisfeed.simulator.exchange import Exchange

OPEN: Final = dt.datetime(2026, 11, 18, 10, tzinfo=KST)
HTS_ID: Final = "chaos"
NOTICES: Final = f"notice.krx.{HTS_ID}"
APPKEY: Final = "canary-appkey-5b1fd0c2"
APPSECRET: Final = "canary-appsecret-93ae77"
ACCOUNT: Final = "73519284-01"
KIS: Final = "kis"
LOCAL: Final = "local"
QUEUE_BYTES: Final = 16_384
WELL_S: Final = 7200.0
"""All is well so long after the heal, in the rules' seconds: the longest pause and some."""
SETTLE_S: Final = 4500.0  # the longest pause after a refused key, and some
_FOLDER: Final = "kisfeed-chaos-"
_HEARD_S: Final = 3.0  # until programs have what KIS has sent
_QUIET_S: Final = 8.0
_TOKEN_PAUSE_S: Final = 1000.0  # the longest pause after refused tokens, and some; at any scale
_DOUBT_S: Final = 2 * Orders().human_after_s + _TOKEN_PAUSE_S  # a token reads what ends a doubt
_STEP_S: Final = 0.5
_STORE_S: Final = 0.003
_EXIT_S: Final = 30.0
_STORM_TOPICS: Final = 60
_ROOM: Final = 4096.0
_LITTLE_ROOM: Final = 512.0
_CLOSED: Final = 4
_SORTED: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"
_UNDER_WAY: Final = ("subscribing", "releasing", "doubt")
_TAKEN_OR_FORGOTTEN: Final = ((Happening.SUBSCRIBE, SUBSCRIBED), (Happening.FORGOTTEN, ""))
_UNDECIDED: Final = ("pending", "ack_timeout", "resyncing", "upstream_down")


def topic(number: int) -> str:
    """The name of a topic; each fourth is a book."""
    channel = "book" if number % 4 == 3 else "trade"
    return f"{channel}.krx.{number + 1:06d}"


def key_of(name: str) -> tuple[str, str]:
    """The registration of one of those topics."""
    channel, _, symbol = name.split(".")
    return ({"trade": "H0STCNT0", "book": "H0STASP0", "notice": "H0STCNI0"}[channel], symbol)


@attrs.define(eq=False)
class Life:
    """One daemon process, from its start to its end.

    Attributes:
        number: counts them, from 1.
        first_dial: dials that the route to KIS had seen before.
        how: ``kill``, ``stop`` or ``end``; empty while it lives.
        told_at: when it was told to end.
    """

    number: int
    started_at: float
    first_dial: int
    how: str = ""
    told_at: float = math.inf
    ended_at: float = math.inf


@attrs.define(eq=False)
class Queues:
    """How full the queues for local programs were when a slow one looked.

    Attributes:
        looks: at one queue.
        ticks: bytes of ticks and notices, the most of any queue; others: of what else waits.
    """

    looks: int = 0
    ticks: int = 0
    others: int = 0

    def look(self, feed: Feed) -> None:
        """Look at all queues of *feed*."""
        for subscriber in feed.engine.subscriptions.subscribers.values():
            box = subscriber.outbox
            self.looks += 1
            self.ticks = max(self.ticks, box.queued_bytes - box.control_bytes)
            self.others = max(self.others, box.control_bytes)


@attrs.define(eq=False)
class Program:
    """A local program: what it wants and what it was told.

    Attributes:
        mode: of delivery; pace: seconds it takes over each event.
        session: the last Session event.
        log: every event, when it was seen; None marks where a topic, the third element, was let
            go: behind what was at hand of it then, which is seen later.
    """

    name: str
    mode: str
    hz: float
    pace: float
    topics: list[str]
    route: network.Route
    log: list[tuple[float, Event | None, str]] = attrs.field(factory=list)
    client: Client | None = None
    session: events.Session | None = None
    stalled_until: float = -math.inf
    _core: ClientCore = attrs.field(init=False)
    _taken: int = attrs.field(default=0, init=False)
    _let_go: deque[tuple[int, str]] = attrs.field(factory=deque, init=False)

    async def run(
        self, rng: Seeded, priority: Callable[[str], int], wakes: Callable[[], None]
    ) -> None:
        """Stay subscribed, whatever happens; *wakes* is told when it has been slow."""
        core = self._core = ClientCore(self.name, jitter=rng.random, wait=True, heartbeats=True)
        client = self.client = Client(core, self.route.dial)
        clock = self.route.clock
        try:
            await client.greet()
            for name in self.topics:
                await self.take_up(name, priority(name))
            async for event in client:
                now = clock.current_time()
                while self._let_go and self._let_go[0][0] <= self._taken:
                    self.log.append((now, None, self._let_go.popleft()[1]))
                self.log.append((now, event, ""))
                if isinstance(event, events.Session):
                    self.session = event
                self._taken += 1
                if self.pace:
                    await clock.sleep(self.pace)
                    now = clock.current_time()
                if self.stalled_until > now:
                    await clock.sleep(self.stalled_until - now)
                    wakes()
                elif self.pace:
                    wakes()
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()

    async def take_up(self, name: str, prio: int = 0) -> None:
        """Subscribe, once more or for the first time."""
        assert self.client is not None
        with suppress(ServerRefused):
            await self.client.subscribe(name, mode=self.mode, hz=self.hz, prio=prio)

    async def let_go(self, name: str) -> None:
        """Unsubscribe."""
        assert self.client is not None
        self._let_go.append((self._taken + len(self._core.events), name))
        await self.client.unsubscribe(name)


@attrs.define(eq=False)
class Disk:
    """The state folder's disk, of one process; a dead process writes nothing more."""

    _rng: Seeded
    full_until: float = -math.inf
    refused_at: float = -math.inf
    dead: bool = False
    writes: int = 0

    async def write(self, path: Path, data: bytes) -> None:
        await trio.sleep(_STORE_S * self._rng.random())
        if self.full_until > trio.current_time():
            raise OSError(errno.ENOSPC, "no space left on device")
        if self.dead:
            return
        self.writes += 1
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        temporary.replace(path)

    async def append(self, fd: int, data: bytes) -> None:
        await trio.sleep(_STORE_S * self._rng.random())
        if self.full_until > trio.current_time():
            self.refused_at = trio.current_time()
            raise OSError(errno.ENOSPC, "no space left on device")
        if not self.dead:
            os.write(fd, data)


async def be_daemon(
    config: Config,
    clock: VirtualClock,
    rng: Rng,
    disk: Disk,
    dial: Callable[[str, int], Awaitable[network.Stream]],
    rest: Handler,
    up: Callable[[Feed, network.Listener], None],
) -> None:
    """Be a daemon until cancelled; *up* is told when local programs may connect."""
    async with open_feed(config, clock=clock, rng=rng, disk=disk, dial=dial, rest=rest) as feed:
        listener = network.Listener()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, listener, _Door(feed), config.gateway)
            up(feed, listener)
            await trio.sleep_forever()


@attrs.frozen
class Ending:
    """What was there when all was quiet.

    Attributes:
        well_after: seconds from the heal until a program saw the session live; infinite: never.
        settled_after: seconds from the heal until every wanted topic was open or refused.
        slots: the answer of the call ``slots``; status: of ``status``.
        unlike: registrations that only one side held at that moment.
        exit_s: how long the daemon took to end.
        tasks: that were left behind it.
    """

    well_after: float = math.inf
    settled_after: float = math.inf
    slots: Mapping[str, Any] = attrs.field(factory=dict)
    status: Mapping[str, Any] = attrs.field(factory=dict)
    unlike: frozenset[tuple[str, str]] = frozenset()
    exit_s: float = math.inf
    tasks: int = 0


@attrs.define(eq=False)
class Run:
    """Everything that was seen of a run."""

    case: Case
    rules: SessionRules
    exchange: Exchange
    brokerage: Brokerage
    kis: network.Route
    trader: Trader
    programs: list[Program]
    lives: list[Life]
    trace: list[tuple[Any, ...]]
    suspensions: list[tuple[float, float]]
    secrets: list[str]
    logged: list[str]
    rest_calls: list[tuple[float, str, str]]
    healed_at: float
    orders: list[float]
    hostile: list[str]
    queues: Queues
    ending: Ending
    ended_at: float
    crash: str = ""

    def real(self, at: float) -> float:
        """Seconds that have passed for KIS at virtual time *at*, sleep of the machine included."""
        return at + sum(slept for when, slept in self.suspensions if when <= at)

    def timeline(self) -> list[tuple[float, str]]:
        """All of it in the order of time, as lines of text."""
        lines = [(entry[0], " ".join(str(part) for part in entry[1:])) for entry in self.trace]
        lines += [
            (
                line.at,
                f"KIS {line.what} {line.session or ''} {'/'.join(line.key or ())} {line.code}",
            )
            for line in self.exchange.history
        ]
        lines += [
            (at, f"{program.name} {_text(event, name)}")
            for program in self.programs
            for at, event, name in program.log
        ]
        trader = self.trader
        lines += [(a.at, f"trader asks for {a.id} {a.terms}") for a in trader.asked]
        lines += [(a.until, f"trader: {a.id} is {a.state}") for a in trader.asked]
        lines += [(post.began_at, f"POST {post.path} {post.told}") for post in trader.posts]
        return sorted(lines, key=lambda line: line[0])

    def digest(self) -> str:
        """The same for the same case, in any process."""
        found = hashlib.sha256()
        for entry in self.trace:
            found.update(repr(entry).encode())
        for line in self.exchange.history:
            found.update(f"{line.at!r} {line.what} {line.session} {line.key} {line.code}".encode())
        for route in dict.fromkeys(program.route for program in self.programs):
            for wire in route.wires:
                found.update(repr([(at, len(data)) for at, data in wire.received]).encode())
                found.update(_nameless(b"".join([data for _, data in wire.received])))
        for program in self.programs:
            for at, event, name in program.log:
                # Most are rows, which the bytes above say in full.
                what = event.sseq if isinstance(event, events.Row) else _text(event, name)
                found.update(f"{at!r} {what}".encode())
        found.update(repr(self.ending.slots).encode())
        found.update(repr([(p.at, p.path, p.told) for p in self.trader.posts]).encode())
        found.update(_nameless(repr(self.trader.final).encode()))
        return found.hexdigest()[:16]


def _nameless(told: bytes) -> bytes:
    """What is told of a full disk names the folder, which is another one each time."""
    return re.sub(rf"{_FOLDER}\w+".encode(), b"", told)


def _text(event: Event | None, name: str) -> str:
    return f"has let go {name}" if event is None else repr(event)


@attrs.define(eq=False)
class _World:
    case: Case
    rng: Seeded
    clock: VirtualClock
    config: Config
    sim: MemorySimulator
    nursery: trio.Nursery
    trace: list[tuple[Any, ...]]
    kis: network.Route = attrs.field(init=False)
    door: network.Route = attrs.field(init=False)
    slow_door: network.Route = attrs.field(init=False)
    trader: Trader = attrs.field(init=False)
    programs: list[Program] = attrs.field(factory=list)
    lives: list[Life] = attrs.field(factory=list)
    suspensions: list[tuple[float, float]] = attrs.field(factory=list)
    secrets: list[str] = attrs.field(factory=list)
    rest_calls: list[tuple[float, str, str]] = attrs.field(factory=list)
    orders: list[float] = attrs.field(factory=list)
    hostile: list[str] = attrs.field(factory=list)
    queues: Queues = attrs.field(factory=Queues)
    feed: Feed | None = None
    listener: network.Listener | None = None
    disk: Disk | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    down_s: float = 0.0
    disk_full_until: float = -math.inf
    rest_held_until: float = -math.inf
    over: bool = False
    gone: trio.Event = attrs.field(factory=trio.Event)
    healed: trio.Event = attrs.field(factory=trio.Event)

    def note(self, *what: object) -> None:
        """Write a line of the trace."""
        self.trace.append((trio.current_time(), *what))

    # The daemon.

    async def live(self) -> None:
        """Run the daemon, again and again until the run is over."""
        while not self.over:
            life = Life(len(self.lives) + 1, trio.current_time(), len(self.kis.dials))
            self.lives.append(life)
            self.note("daemon starts", life.number)
            with trio.CancelScope() as self.scope:
                await self._live_once(life)
            self.feed = self.listener = None
            life.ended_at = trio.current_time()
            self.note("daemon ended", life.number, life.how)
            if not self.over:
                with trio.move_on_after(self.down_s):
                    await self.healed.wait()
        self.gone.set()

    async def _live_once(self, life: Life) -> None:
        disk = self.disk = Disk(self.rng, self.disk_full_until)
        rng = seeded_rng(self.case.seed * 1000 + life.number)
        await be_daemon(self.config, self.clock, rng, disk, self.kis.dial, self.rest, self._up)

    def _up(self, feed: Feed, listener: network.Listener) -> None:
        self.feed, self.listener = feed, listener

    def look(self) -> None:
        """A slow program reads on: its queue is as full as it gets."""
        if self.feed is not None:
            self.queues.look(self.feed)

    def end(self, how: str, down_s: float) -> None:
        """Kill the daemon, or tell it to stop."""
        if self.feed is None or self.scope.cancel_called:
            return
        self.down_s = down_s
        self.lives[-1].how = how
        self.lives[-1].told_at = trio.current_time()
        if how == "kill":
            assert self.disk is not None
            self.disk.dead = True
            self.listener = None
            self.kis.reset()
            self.door.reset()
            self.slow_door.reset()
        self.scope.cancel(reason=how)

    async def knock(self, stream: trio.abc.Stream) -> None:
        """A local program connects."""
        if self.listener is None:
            await trio.aclose_forcefully(stream)
        else:
            await self.listener.handle(stream)

    async def rest(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """KIS's REST side, behind the same kind of network."""
        disk = self.disk
        assert disk is not None
        post = self.trader.post(path, body, disk.refused_at)
        await self.kis.clock.sleep(self.kis.latency())
        while (left := self.rest_held_until - trio.current_time()) > 0:  # it may move
            await self.kis.clock.sleep(left)
        # What arrives when a dead process cannot have sent it has not arrived.
        if disk.dead:
            raise ConnectionResetError("the process is gone")
        if post is not None:
            post.at = trio.current_time()
        status, sent, content = await self.sim.rest(method, path, headers, body)
        self._learn_secrets(content)
        self.rest_calls.append((trio.current_time(), path.partition("?")[0], str(status)))
        await self.kis.clock.sleep(self.kis.latency())
        if post is not None:
            post.told = b'"rt_cd"' in content and content.endswith(b"}")
        return status, sent, content

    def _learn_secrets(self, content: bytes) -> None:
        if b"approval_key" not in content and b"access_token" not in content:
            return
        try:
            answer = json.loads(content)
        except ValueError:
            return
        if isinstance(answer, dict):
            self.secrets += [
                str(answer[name]) for name in ("approval_key", "access_token") if name in answer
            ]

    # Trouble.

    async def trouble(self) -> None:
        """Let the schedule happen."""
        ends = trio.current_time() + self.case.setup.horizon
        for step in self.case.steps:
            await self.kis.clock.sleep(step.dt)
            left = ends - trio.current_time()
            if left <= 0:
                break
            self._do(attrs.evolve(step, lasts=min(step.lasts, left)))
        await self.kis.clock.sleep(ends - trio.current_time())

    def _do(self, step: Step) -> None:
        self.note("step", step.kind, step.lasts, step.value, step.count, step.topic, step.code)
        if step.kind.startswith("kis."):
            self._fault(step)
        else:
            self._cause(step, Trouble(step.kind))

    def _fault(self, step: Step) -> None:
        key = key_of(topic(step.topic)) if step.topic >= 0 else ("", "")
        kind = Kind(step.kind.removeprefix("kis."))
        if kind is Kind.STRAY_ACK and step.topic < 0:
            key = key_of(topic(0))
        lasts, count = step.lasts or None, step.count
        if kind is Kind.BURST:
            hit = len(self.sim.exchange.registered()) if step.topic < 0 else 1
            count = max(1, count // max(1, hit))
        fault = Fault(
            kind,
            lasts=lasts,
            count=None if lasts else count,
            tr_id=key[0],
            tr_key=key[1],
            code=step.code,
            value=max(1.0, step.value) if kind is Kind.CAP else step.value,
        )
        self.sim.inject(fault)

    def _cause(self, step: Step, trouble: Trouble) -> None:  # noqa: C901  # a table
        now = trio.current_time()
        match trouble:
            case Trouble.PARTITION:
                self.kis.hold(step.lasts, up=True, down=True)
                self.rest_held_until = max(self.rest_held_until, now + step.lasts)
            case Trouble.PARTITION_UP:
                self.kis.hold(step.lasts, up=True, down=False)
            case Trouble.PARTITION_DOWN:
                self.kis.hold(step.lasts, up=False, down=True)
            case Trouble.FREEZE:
                self.kis.hold(step.lasts, up=True, down=True, silent=True)
            case Trouble.RESET:
                self.kis.reset()
            case Trouble.CUT_UP | Trouble.CUT_DOWN:
                self.kis.cut(int(step.value), up=trouble is Trouble.CUT_UP)
            case (
                Trouble.DIAL_REFUSED
                | Trouble.DIAL_NO_ROUTE
                | Trouble.DIAL_DNS
                | Trouble.DIAL_HANG
                | Trouble.DIAL_MUTE
            ):
                how = network.DialFault(trouble.value.removeprefix("dial_"))
                self.kis.fail_dials(how, step.lasts)
            case Trouble.REST_HANG:
                self.rest_held_until = max(self.rest_held_until, now + step.lasts)
            case Trouble.KILL | Trouble.STOP:
                self.end(trouble.value, step.value)
            case Trouble.CLOCK_STEP:
                self.clock.step_ns += int(step.value * 1e9)
            case Trouble.SUSPEND:
                self.suspensions.append((now, step.value))
                self.clock.suspended_s += step.value
            case Trouble.DISK_FULL:
                self.disk_full_until = now + step.lasts
                if self.disk is not None:
                    self.disk.full_until = self.disk_full_until
            case Trouble.ORDER | Trouble.RELEASE:
                self.nursery.start_soon(self._command, trouble, step.lasts)
            case _:
                self._disturb(step, trouble)

    def _disturb(self, step: Step, trouble: Trouble) -> None:
        now = trio.current_time()
        match trouble:
            case Trouble.CHURN:
                self.nursery.start_soon(self._churn, topic(int(step.value)))
            case Trouble.RETUNE:
                self.nursery.start_soon(self._retune, step)
            case Trouble.STORM:
                for number in range(int(step.value)):
                    self.nursery.start_soon(self._passer_by, number)
            case Trouble.STALL:
                for program in self.programs[step.topic % len(self.programs) :][:1]:
                    program.stalled_until = now + step.lasts
            case Trouble.HANG_UP:
                self.door.reset()
                self.slow_door.reset()
            case Trouble.HOSTILE:
                self.nursery.start_soon(self._hostile, int(step.value))
            case _:
                self._trade(step, trouble)

    def _trade(self, step: Step, trouble: Trouble) -> None:
        number = int(step.value)
        match trouble:
            case Trouble.PLACE:
                self.nursery.start_soon(self.trader.place, number)
            case Trouble.AGAIN:
                self.nursery.start_soon(self.trader.again, number)
            case Trouble.CANCEL:
                self.nursery.start_soon(self.trader.cancel, number)
            case Trouble.HALT:
                self.nursery.start_soon(self.trader.halt, step.lasts)
            case _:
                raise AssertionError(f"{trouble} is not caused")

    async def _command(self, trouble: Trouble, lasts: float) -> None:
        """What a person types: ``kisfeed reconnect`` or ``kisfeed release``."""
        core = ClientCore("person", jitter=self.rng.random)
        client = Client(core, self.door.dial)
        try:
            await client.greet()
            if trouble is Trouble.ORDER:
                self.orders.append(trio.current_time())
                await client.call("reconnect")
            elif lasts > 0:
                await client.call("release", for_s=lasts)
        except (KisfeedError, OSError):
            self.note("a command failed", trouble.value)
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()

    async def _churn(self, name: str) -> None:
        program = self.programs[0]
        try:
            if name in program.topics:
                if len(program.topics) > 1:
                    program.topics.remove(name)
                    self.note("lets go", name)
                    await program.let_go(name)
            else:
                program.topics.append(name)
                self.note("takes up", name)
                await program.take_up(name)
        except (Disconnected, NoDaemon, KeyError, AssertionError):
            self.note("churn failed", name)

    async def _retune(self, step: Step) -> None:
        program = self.programs[0]
        name = program.topics[step.topic % len(program.topics)]
        try:
            assert program.client is not None
            await program.client.retune(name, prio=min(int(step.value), MAX_PRIO))
        except (KisfeedError, KeyError, AssertionError):
            self.note("retune failed", name)

    async def _passer_by(self, number: int) -> None:
        """A program that comes, wants much and goes."""
        route = self.door
        client = Client(ClientCore(f"passer {number}", jitter=self.rng.random), route.dial)
        await route.clock.sleep(self.rng.random() * 2)
        count = self.rng.randint(1, 20)
        first = self.rng.randrange(_STORM_TOPICS)
        try:
            with trio.move_on_after(self.rng.choice([0.01, 1.0, 20.0])):
                await client.greet()
                await client.subscribe(*(topic(first + n) for n in range(count)))
                async for _ in client:
                    pass
        except (KisfeedError, OSError):
            self.note("passer-by turned away", number)
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()

    async def _hostile(self, size: int) -> None:
        """Nonsense on a connection of its own: answered or closed, and nobody else's trouble."""
        greet = self.rng.random() < 0.5
        try:
            stream = await self.door.dial()
        except OSError:
            return
        with trio.move_on_after(60) as patience:
            try:
                if greet:
                    await stream.send_all(
                        b"\x00\x00\x00\x12\x93\x01\x01\x82\xa5proto\x92\x01\x01\xa6client\xa0"
                    )
                await stream.send_all(self.rng.randbytes(size))
                while await stream.receive_some():
                    pass
                self.hostile.append("closed")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.hostile.append("broken")
        if patience.cancelled_caught:
            self.hostile.append("greeted" if greet else "left open")
        await trio.aclose_forcefully(stream)

    # The end.

    def heal(self) -> None:
        """Everything works again, for good."""
        self.note("healed")
        self.healed.set()
        self.sim.exchange.board.clear()
        self.sim.inject(Fault(Kind.CAP, value=self.case.setup.cap))
        for route in (self.kis, self.door, self.slow_door):
            route.heal()
        self.rest_held_until = self.disk_full_until = -math.inf
        if self.disk is not None:
            self.disk.full_until = -math.inf

    async def until(self, test: Callable[[], bool], within: float) -> float:
        """Seconds until *test*; infinite if it does not come true in time."""
        started = trio.current_time()
        while not test():
            if trio.current_time() - started > within:
                return math.inf
            await self.kis.clock.sleep(_STEP_S)
        return trio.current_time() - started

    def rows_of_market(self) -> dict[tuple[str, str], int]:
        """How many frames KIS has sent of each registration but the notices'."""
        exchange = self.sim.exchange
        keys = (key for key in exchange.registered() if key != key_of(NOTICES))
        return {key: exchange.tallies[key].frames for key in keys}

    def each_has_more_than(self, before: Mapping[tuple[str, str], int]) -> bool:
        """Each registration of *before* is there and has got a frame since."""
        now = self.rows_of_market()
        return all(now.get(key, frames) > frames for key, frames in before.items())

    def session_lives(self) -> bool:
        """The first program was told that data flows."""
        told = self.programs[0].session
        return told is not None and told.state in {"STREAMING", "SUBSCRIBED"}

    def settled(self) -> bool:
        """What the first program wants is open, refused for good, or without a slot."""
        return self.session_lives() and not self.unsettled()

    def unsettled(self) -> set[str]:
        """The codes of the first program's streams that are neither live nor answered for good."""
        client = self.programs[0].client
        assert client is not None
        # A cap that was learnt holds for the session, whatever KIS allows by then; and notices
        # that KIS forgot to send keep their slot, for no silence tells of it.
        exchange = self.sim.exchange
        taken = _forgotten_notices(exchange).union(exchange.registered())
        capped = len(taken) >= self.case.setup.cap or any(
            step.kind == "kis.cap" or step.code == "OPSP0008" for step in self.case.steps
        )
        return {
            s.code
            for s in client.subscriptions.values()
            if s.stream not in {1, _CLOSED} and not (capped and s.code not in _UNDECIDED)
        }

    async def ask(self, name: str) -> Mapping[str, Any]:
        """A call of the daemon's, by a program that wants nothing else."""
        client = Client(ClientCore("observer", jitter=self.rng.random, wait=True), self.door.dial)
        try:
            await client.greet()
            answer: Mapping[str, Any] = await client.call(name)
        except (KisfeedError, OSError):
            return {}
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()
        return answer


def _config(case: Case, folder: str) -> Config:
    setup = case.setup
    rules = SessionRules()
    return Config(
        environment=Environment.SIM,
        credentials=Credentials(
            Secret(APPKEY), Secret(APPSECRET), HTS_ID if setup.notices else "", Secret(ACCOUNT)
        ),
        endpoints=Endpoints("http://127.0.0.1:1", "ws://127.0.0.1:1"),
        state=StateFolder(folder),
        # Small enough that a slow program loses ticks before it is taken for stuck.
        gateway=Gateway(queue_bytes=QUEUE_BYTES, max_age_s=3.0),
        subscriptions=Subscriptions((topic(0),) if setup.pinned else ()),
        quotes=Quotes(poll_s=6.0),
        orders=Orders(enabled=setup.orders),
        session=rules if setup.scale == 1 else rules.scaled(setup.scale),
    )


def _options(setup: Setup, seed: int) -> Options:
    scale = setup.scale
    start = OPEN
    if setup.before_midnight_s:
        start = OPEN.replace(hour=23, minute=59, second=59) - dt.timedelta(
            seconds=setup.before_midnight_s
        )
    return Options(
        seed=seed,
        rate_hz=setup.rate_hz,
        shared=True,
        records=(1, 3),
        pingpong_s=14.0 / scale,
        notice_s=15.0,
        acknowledge_close=setup.acknowledge_close,
        dealing=Dealing(fill_s=2.0),
        rules=Rules(
            cap=setup.cap,
            hold_s=18.0 / scale,
            hts_id=HTS_ID if setup.notices else "",
        ),
        start=start,
    )


class _Keeper(logging.Handler):
    """Keeps every line as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        details = {k: v for k, v in record.__dict__.items() if k not in _USUAL}
        self.lines.append(f"{record.getMessage()} {details}")


_USUAL: Final = frozenset(logging.makeLogRecord({}).__dict__)


@contextmanager
def _logs(*, debug: bool) -> Generator[list[str]]:
    """Keep what is logged, at every level, or nothing at all."""
    root = logging.getLogger()
    keeper, level, handlers = _Keeper(), root.level, root.handlers[:]
    if debug:
        root.handlers[:] = [keeper]
        root.setLevel(logging.DEBUG)
    else:
        logging.disable(logging.CRITICAL)
    try:
        yield keeper.lines
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(logging.NOTSET)


async def _play(
    case: Case, folder: str, logged: list[str], found: list[Run], leaps: network.LeapingClock
) -> None:
    setup = case.setup
    config = _config(case, folder)
    options = _options(setup, case.seed)
    rng = seeded_rng(case.seed ^ 0x5EED)
    clock = VirtualClock(int(options.start.timestamp()) * 10**9)
    trace: list[tuple[Any, ...]] = []
    async with open_memory_simulator(options) as sim, trio.open_nursery() as nursery:
        world = _World(case, rng, clock, config, sim, nursery, trace)
        _lay_routes(world, nursery, leaps)
        world.trader = Trader(
            world.door,
            seeded_rng(case.seed + 13),
            functools.partial(sim.market.tape, "krx"),
            lambda: day_of(clock.wall_ns()),
            Path(folder),
        )
        _people(world)
        run = Run(
            case,
            config.session,
            sim.exchange,
            sim.simulator.brokerage,
            world.kis,
            world.trader,
            world.programs,
            world.lives,
            trace,
            world.suspensions,
            world.secrets,
            logged,
            world.rest_calls,
            math.inf,
            world.orders,
            world.hostile,
            world.queues,
            Ending(),
            math.inf,
        )
        found.append(run)
        nursery.start_soon(world.live)
        ranks = seeded_rng(case.seed + 7)
        priorities = {topic(n): ranks.randrange(4) for n in range(64)} if setup.priorities else {}
        for program in world.programs:
            nursery.start_soon(
                program.run,
                seeded_rng(case.seed * 31 + len(program.name)),
                lambda name: priorities.get(name, 0),
                world.look,
            )
        await world.trouble()
        world.heal()
        run.healed_at = trio.current_time()
        run.ending = await _wind_down(world)
        run.ended_at = trio.current_time()
        nursery.cancel_scope.cancel(reason="the run is over")


def _lay_routes(world: _World, nursery: trio.Nursery, clock: network.LeapingClock) -> None:
    setup, rng = world.case.setup, world.rng
    latency = (setup.latency_s / 20 / setup.scale, setup.latency_s / setup.scale)
    world.kis = network.Route(
        KIS,
        clock,
        rng,
        world.sim.simulator.serve_websocket,
        nursery,
        world.note,
        latency,
        setup.chopped,
        keepalive_s=network.KEEPALIVE_S / setup.scale if setup.keepalive else math.inf,
        refuses=world.sim.simulator.refuses,
    )
    local = (0.0, 0.0)  # within a machine what was written is there
    gone = functools.partial(lambda: world.listener is None)
    world.door = network.Route(
        LOCAL,
        clock,
        rng,
        world.knock,
        nursery,
        lambda *_: None,
        local,
        setup.chopped,
        keepalive_s=math.inf,
        refuses=gone,
        room=_ROOM,
    )
    world.slow_door = attrs.evolve(world.door, room=_LITTLE_ROOM)


def _people(world: _World) -> None:
    setup = world.case.setup
    every = [topic(n) for n in range(setup.topics)]
    draw = seeded_rng(world.case.seed + 11)
    mode = draw.choice(["latest", "latest", "hz", "trade_safe"])
    all_of_it = every + ([NOTICES] if setup.notices else [])
    world.programs += [
        Program("all", "all", 0.0, 0.0, all_of_it, world.door),
        Program(mode, mode, 2.0 if mode == "hz" else 0.0, 0.0, every[:5], world.door),
        Program("slow", "all", 0.0, draw.choice([0.2, 0.7, 1.5, 3.0]), every[:3], world.slow_door),
    ]


async def _wind_down(world: _World) -> Ending:
    """Wait until all is well, then let the market stand still and look at both sides."""
    scale = world.case.setup.scale
    well = await world.until(world.session_lives, WELL_S / scale)
    settled = math.inf
    if well < math.inf:
        settled = well + await world.until(world.settled, SETTLE_S / scale)
        if world.unsettled() == {"upstream_down"}:
            # Polled for want of a slot, and the token is waited for.
            settled = well + SETTLE_S / scale + await world.until(world.settled, _TOKEN_PAUSE_S)
    # Until every topic has a row after the last hole.
    market = world.rows_of_market()
    gap = max(1, len(market)) / world.case.setup.rate_hz
    await world.until(lambda: world.each_has_more_than(market), 3 * gap)
    await trio.sleep(_HEARD_S)
    # What KIS forgot without a word shows only in what does not come, after many usual pauses: a
    # registration that had just been silent for the whole horizon is given as many of those.
    forgot = any(step.kind == "kis.drop_key" for step in world.case.steps)
    patience = SessionRules().busy_suspect_gaps * world.case.setup.horizon
    await _until_agreed(world, patience + SETTLE_S / scale if forgot else 0.0, WELL_S / scale)
    await world.trader.wind_down(_DOUBT_S)
    world.sim.inject(Fault(Kind.QUIET, lasts=math.inf))
    await trio.sleep(_QUIET_S)
    # An operation may be under way at this moment.
    slots = await _until_agreed(world, 0.0, WELL_S / scale)
    status = await world.ask("status")
    unlike = frozenset(disagreement(slots, world.sim.exchange))
    world.over = True
    asked_at = trio.current_time()
    world.end("end", 0.0)
    with trio.move_on_after(_EXIT_S):
        await world.gone.wait()
    exit_s = trio.current_time() - asked_at if world.gone.is_set() else math.inf
    return Ending(well, settled, slots, status, unlike, exit_s)


async def _until_agreed(world: _World, within: float, pending_within: float) -> Mapping[str, Any]:
    """Both sides hold the same, or had time for it: more while something is under way.

    Returns:
        The last answer of the call ``slots``.
    """
    began = trio.current_time()
    while True:
        slots = await world.ask("slots")
        if not disagreement(slots, world.sim.exchange):
            return slots
        pending = any(slot["state"] in _UNDER_WAY for slot in slots.get("slots", ()))
        if trio.current_time() > began + (pending_within if pending else within):
            return slots
        await trio.sleep(max(within / 50, pending_within / 500))


def held(slots: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The registrations that the call ``slots`` says are held."""
    return {key_of(slot["topic"]) for slot in slots.get("slots", ()) if slot["state"] == "held"}


def disagreement(slots: Mapping[str, Any], exchange: Exchange) -> set[tuple[str, str]]:
    """The registrations that only one side holds now; *slots* is the answer of that call.

    No silence tells that KIS forgot to send notices; order news that came without one do.
    """
    return held(slots).symmetric_difference(exchange.registered()) - _forgotten_notices(exchange)


def _forgotten_notices(exchange: Exchange) -> set[tuple[str, str]]:
    """The notices, where the open session's registration of them is forgotten."""
    if not exchange.rules.hts_id:
        return set()
    notices = key_of(NOTICES)
    lines = (line for line in reversed(exchange.history) if line.key == notices)
    last = next((line for line in lines if (line.what, line.code) in _TAKEN_OR_FORGOTTEN), None)
    if last is None or last.what is not Happening.FORGOTTEN:
        return set()
    return {notices for session in exchange.open_sessions if session.number == last.session}


class _Chance(Seeded):
    """The scheduler's; nine batches in ten are of one task, which has no order."""

    def shuffle(self, x: MutableSequence[Any]) -> None:
        if len(x) > 1:
            super().shuffle(x)


@contextmanager
def _deterministic(seed: int) -> Generator[None]:
    """Let the scheduler draw from the seed.

    Trio sorts each batch of tasks before it shuffles it where it is told to be deterministic, as
    Hypothesis tells it; what is left to chance is then ``_r``.
    """
    scheduler = network.scheduler()
    told, chance = scheduler[_SORTED], scheduler["_r"]
    scheduler[_SORTED], scheduler["_r"] = True, _Chance(seed)
    try:
        yield
    finally:
        scheduler[_SORTED], scheduler["_r"] = told, chance


def play(case: Case) -> Run:
    """Play *case*; an exception out of the program under test is told in ``crash``."""
    shm = Path("/dev/shm")  # noqa: S108  # state of this run only; a folder of its own is made
    found: list[Run] = []
    crash = ""
    with ExitStack() as stack:
        stack.enter_context(_deterministic(case.seed))
        logged = stack.enter_context(_logs(debug=case.setup.debug))
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=_FOLDER, dir=shm if shm.is_dir() else None)
        )
        try:
            leaps = network.LeapingClock()
            trio.run(_play, case, folder, logged, found, leaps, clock=leaps)
        except BaseExceptionGroup as group:
            if group.subgroup((KeyboardInterrupt, SystemExit)) is not None:
                raise
            crash = _roots(group)
        run = found[0]
        run.crash = crash
    return run


def _roots(group: BaseExceptionGroup[BaseException]) -> str:
    """What is at the bottom of *group*, with the last place of ours in each traceback."""
    texts: list[str] = []
    pending: Sequence[BaseException] = [group]
    while pending:
        error, *rest = pending
        if isinstance(error, BaseExceptionGroup):
            pending = [*error.exceptions, *rest]
            continue
        pending = rest
        where = ""
        frame = error.__traceback__
        while frame is not None:
            code = frame.tb_frame.f_code
            if "kisfeed" in code.co_filename:
                where = f"{Path(code.co_filename).name}:{frame.tb_lineno} in {code.co_name}"
            frame = frame.tb_next
        texts.append(f"{type(error).__name__}: {error} ({where})")
    return "; ".join(texts)
