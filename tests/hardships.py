"""A daemon, a simulated KIS and three subscribers as real processes, and what befalls them.

Everything that happens is drawn from a seed (:func:`rounds`); when exactly it happens is the
machine's business. After each round everything heals, and the accounts must close.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.chaos.checks import most_within
from kisfeed.chaos.restarts import rules
from kisfeed.config import Session
from kisfeed.kfp.messages import Source
from tests.processes import FOLLOWER, KISFEED, Place, Program, open_place
from tests.proxy import FaultProxy, open_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence

RAW: Final = Path(__file__).with_name("clients") / "raw.py"
READERS: Final = ("stream", "sync", "raw")
SECRETS: Final = ("canary-appkey-" + "k" * 22, "canary-appsecret-" + "s" * 163, "87654321-01")
TWO: Final = dict.fromkeys(READERS, ("005930", "000660"))
WINDOWS: Final = ((60.0, 3), (3600.0, 12), (86_400.0, 60))
_DRIFT_S: Final = 0.03  # between a dial in one process and its accept in another
_HEAL_S: Final = 90.0
_QUIET_S: Final = 10.0
_CLOSINGS: Final = 5
_READY_S: Final = 60.0  # a busy machine may take its time


@attrs.define(eq=False)
class Ledger:
    """What one program was told of one topic: every row is held against the one before it.

    Attributes:
        base: the day's shares before the first row.
        received, missed: shares in rows, and shares told as missed.
        behind: shares in rows that this program alone lost, told as a number of rows.
        lost: that number.
        at: the day's shares with the newest row.
        rows: how many there were.
        faults: what does not add up.
    """

    base: int | None = None
    received: int = 0
    missed: int = 0
    behind: int = 0
    lost: int = 0
    at: int = 0
    rows: int = 0
    faults: list[str] = attrs.field(factory=list)
    _sseq: int = 0
    _gap: int = 0
    _jump: int | None = 0  # rows that may be skipped before the next; None: any number

    def take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "trade" if event["flags"] & 3 == Source.POLL:
                pass
            case "trade":
                self._row(event)
            case "gap" if self.base is not None:
                if event["missed_qty"] is None:
                    self.faults.append(f"a gap behind row {self._sseq} without a number")
                self._gap += event["missed_qty"] or 0
                if event["next_sseq"] != self._sseq + 1:
                    self._jump = None  # the client was away
            case "lost":
                self.lost += event["n"]
                if self._jump is not None:
                    self._jump += event["n"]
            case _:
                pass

    def anew(self) -> None:
        """The program begins another account, and says so."""
        self.base, self._gap, self._jump = None, 0, 0
        self.received = self.missed = self.behind = 0

    def _row(self, event: dict[str, Any]) -> None:
        image, sseq, total = event["image"], event["sseq"], event["cum_qty"]
        own = 0 if image else event["qty"]
        self.rows += not image
        if self.base is None:
            self.base = total - own
        else:
            if self._jump is not None and not image and sseq != self._sseq + 1 + self._jump:
                self.faults.append(f"row {sseq} behind {self._sseq}, {self._jump} told as lost")
            if total <= self.at and not image:
                self.faults.append(f"row {sseq} brings {total} shares, {self.at} were there")
            unknown = total - own - self.at - self._gap
            if unknown < 0 or (unknown and not self._jump and self._jump is not None):
                self.faults.append(f"{unknown} shares untold before row {sseq}")
            self.missed += self._gap
            self.behind += unknown
        self.received += own
        self._sseq, self.at, self._gap, self._jump = sseq, total, 0, 0

    @property
    def closed(self) -> int:
        """All shares of the day, as this program knows them."""
        return (self.base or 0) + self.received + self.missed + self.behind


@attrs.define(eq=False)
class Reader:
    """A subscriber: its program and its ledgers."""

    kind: str
    program: Program
    ledgers: dict[str, Ledger]

    def hear(self, event: Any) -> None:
        if not isinstance(event, dict):
            self.faulty(f"said {event!r:.80}")
        elif event["type"] == "anew":
            for ledger in self.ledgers.values():
                ledger.anew()
        elif event["type"] in {"trade", "gap", "lost"}:
            self.ledgers[event["topic"]].take(event)

    def faulty(self, what: str) -> None:
        next(iter(self.ledgers.values())).faults.append(what)


@attrs.frozen
class Blow:
    """One thing that goes wrong, *at* seconds into a round; what *value* is depends on the kind.

    ``daemon_loop`` kills the daemon several times while it starts.
    """

    at: float
    kind: str
    value: float = 0.0
    reader: str = ""


KINDS: Final[dict[str, tuple[float, float]]] = {
    "daemon_killed": (0.0, 0.0),
    "daemon_loop": (0.0, 1.2),  # the longest life
    "daemon_ended": (0.0, 0.0),
    "daemon_ended_young": (0.0, 1.2),  # how young
    "daemon_stopped": (0.1, 1.0),
    "daemon_stalled": (1.0, 1.2),  # of the stall asked for
    "reader_killed": (0.0, 0.0),
    "reader_ended": (0.0, 0.0),
    "reader_stopped": (0.5, 3.0),
    "line_cut": (1, 4000),  # bytes later
    "line_reset": (0.0, 0.0),
    "line_orphaned": (0.2, 3.0),
    "line_stalled": (0.2, 3.0),
    "line_slow": (0.01, 0.15),
    "line_refused": (0.1, 1.0),
    "rest_reset": (0.0, 0.0),
    "rest_stalled": (0.2, 2.0),
    "kis_drop": (0.0, 0.0),
    "kis_close": (1000, 1012),
    "kis_burst": (20, 200),
}
"""Every kind of blow, and the range of its value."""


@attrs.define(eq=False)
class Scene:
    """Everything that runs, and what was wrong so far.

    Attributes:
        topics: what each reader follows.
        scale: what every pause and window of dialling is divided by.
        exit_s: a daemon ends within this after SIGTERM.
        faults: everything that must not be.
        live_s: seconds from each healing until every reader had new rows of every topic.
        exits_s: seconds from each SIGTERM to the end.
        gone: ledgers of readers that were killed.
        counts: what the simulator counted, when it was asked last.
    """

    place: Place
    sim: Program
    line: FaultProxy
    rest: FaultProxy
    topics: dict[str, tuple[str, ...]]
    stall_s: float
    rng: random.Random
    log_level: str
    scale: float
    exit_s: float
    daemon: Program | None = None
    readers: dict[str, Reader] = attrs.field(factory=dict)
    faults: list[str] = attrs.field(factory=list)
    live_s: list[float] = attrs.field(factory=list)
    exits_s: list[float] = attrs.field(factory=list)
    gone: list[Ledger] = attrs.field(factory=list)
    counts: dict[str, Any] = attrs.field(factory=dict)
    _asking: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _answers: list[dict[str, Any]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.sim.hear = self._answers.append

    # What runs

    async def ask(self, line: dict[str, Any]) -> dict[str, Any]:
        """Tell the simulator; returns its counters."""
        assert self.sim.process.stdin is not None
        async with self._asking:
            try:
                await self.sim.process.stdin.send_all(json.dumps(line).encode() + b"\n")
            except trio.BrokenResourceError:
                raise AssertionError(f"the simulator ended: {self.sim.talk}") from None
            await self.sim.until(lambda _: self._answers, _READY_S)
            self.counts = self._answers.pop()
            assert self.counts["type"] == "counts", self.counts
            return self.counts

    async def serve(self) -> None:
        """Start the daemon; whatever the last one left behind, clients must be able to connect."""
        daemon = self.daemon = await self._start_daemon()
        try:
            await daemon.until(lambda d: d.of("ready"), _READY_S)
        except AssertionError:
            daemon.process.send_signal(signal.SIGABRT)  # it says where it is
            await daemon.ends()
            raise AssertionError(f"no daemon: {daemon.said} {daemon.talk[-4000:]}") from None

    async def _start_daemon(self) -> Program:
        return await self.place.kisfeed(
            "serve", "--json", "--profile", "test", "--log-level", self.log_level
        )

    async def follow(self, kind: str) -> None:
        """Start a reader."""
        topics = self.topics[kind]
        commands: dict[str, tuple[str | Path, ...]] = {
            "stream": (*KISFEED, "stream", *topics, "--profile", "test"),
            "sync": (sys.executable, FOLLOWER, "sync", self.place.socket(), *topics),
            "raw": (sys.executable, RAW, self.place.socket(), *topics),
        }
        ledgers = {topic: Ledger() for topic in topics}

        def hear(event: Any) -> None:
            reader.hear(event)

        reader = Reader(kind, await self.place.start(*commands[kind], hear=hear), ledgers)
        self.readers[kind] = reader

    # What goes wrong

    async def suffer(self, blows: Iterable[Blow]) -> None:
        """Everything that goes wrong in one round."""
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for blow in blows:
                await trio.sleep_until(began + blow.at)
                nursery.start_soon(self._strike, blow)

    async def _strike(self, blow: Blow) -> None:
        who, _, what = blow.kind.partition("_")
        if who == "daemon":
            await self._strike_daemon(what, blow.value)
        elif who == "reader" and blow.reader in self.readers:
            await self._strike_reader(self.readers[blow.reader], what, blow.value)
        elif who == "kis":
            faults: dict[str, dict[str, Any]] = {
                "drop": {"kind": "drop"},
                "close": {"kind": "close", "value": int(blow.value)},
                "burst": {"kind": "burst", "count": int(blow.value)},
            }
            await self.ask(faults[what])
        elif who in {"line", "rest"}:
            await self._strike_line(self.line if who == "line" else self.rest, what, blow.value)

    async def _strike_daemon(self, what: str, value: float) -> None:
        daemon = self.daemon
        if daemon is None or daemon.code is not None:
            return
        if what in {"stopped", "stalled"}:
            await self._pause(daemon, self.stall_s * value if what == "stalled" else value)
        elif what.startswith("ended"):
            self.daemon = None
            await self._end(daemon)
            if what == "ended_young":
                young = await self._start_daemon()
                await trio.sleep(value)
                await self._end(young)
        else:
            self.daemon = None
            await self._kill(daemon)
            for _ in range(3 if what == "loop" else 0):
                young = await self._start_daemon()
                await trio.sleep(self.rng.uniform(0, value))
                await self._kill(young)

    async def _strike_reader(self, reader: Reader, what: str, value: float) -> None:
        if what == "stopped":
            await self._pause(reader.program, value)
            return
        del self.readers[reader.kind]
        self.gone += reader.ledgers.values()
        how = signal.SIGKILL if what == "killed" else signal.SIGTERM
        reader.program.process.send_signal(how)
        # Should another blow hold it.
        reader.program.process.send_signal(signal.SIGCONT)
        if await reader.program.ends() != -how:
            self.faults.append(f"{reader.kind}: exit code {reader.program.code} after {how.name}")

    async def _strike_line(self, line: FaultProxy, what: str, value: float) -> None:
        match what:
            case "cut":
                line.cut(int(value))
            case "reset":
                line.reset()
            case "slow":
                line.delay_s, line.chopped = value, True
            case "orphaned":
                line.orphan(value)
            case "stalled":
                line.stall()
                await trio.sleep(value)
                line.heal()
            case _:
                assert what == "refused"
                line.refuse()
                await trio.sleep(value)
                line.heal()

    async def _pause(self, program: Program, seconds: float) -> None:
        program.process.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        program.process.send_signal(signal.SIGCONT)

    async def _kill(self, program: Program) -> None:
        program.process.send_signal(signal.SIGKILL)
        if await program.ends() != -signal.SIGKILL:
            self.faults.append(f"ended with {program.code} before it was killed: {program.talk}")

    async def _end(self, program: Program) -> None:
        """SIGTERM: in time, exit code 0, nothing left behind."""
        asked = trio.current_time()
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGCONT)
        code = await program.ends(_READY_S)
        took = trio.current_time() - asked
        self.exits_s.append(took)
        if took > self.exit_s:
            self.faults.append(f"took {took:.1f} s to end")
        # An interpreter that has not come so far as to listen for it ends by the signal.
        if code != 0 and (code != -signal.SIGTERM or program.of("ready")):
            self.faults.append(f"exit code {code} after SIGTERM: {program.talk[-500:]}")
        if code == 0 and program.of("ready") and self.place.socket().exists():
            self.faults.append("left its socket behind")

    # What must be true afterwards

    async def heal(self) -> None:
        """Nothing goes wrong any more; returns when every reader has new rows of every topic."""
        self.line.heal()
        self.rest.heal()
        if self.daemon is not None and self.daemon.code is not None:
            self.faults.append(f"the daemon ended by itself: {self.daemon.code}")
            self.daemon = None
        if self.daemon is None:
            await self.serve()
        for kind in READERS:
            reader = self.readers.get(kind)
            if reader is not None and reader.program.code is not None:
                self.faults.append(f"{kind} ended by itself: {reader.program.talk[-500:]}")
            if reader is None or reader.program.code is not None:
                await self.follow(kind)
        began = trio.current_time()
        # What was on its way when it healed is not new.
        await trio.sleep(0.3)
        seen = {id(ledger): ledger.rows for _, ledger in self._ledgers()}
        if not await self._until(
            lambda: all(ledger.rows >= seen[id(ledger)] + 3 for _, ledger in self._ledgers()),
            _HEAL_S,
        ):
            dry = [who for who, ledger in self._ledgers() if ledger.rows < seen[id(ledger)] + 3]
            self.faults.append(f"no rows {_HEAL_S:g} s after everything healed: {dry}")
            for command in ("status", "slots"):
                shown = await self.place.kisfeed(command, "--json", "--profile", "test")
                await shown.ends()
                self.faults.append(f"{command}: {shown.said}")
        self.live_s.append(trio.current_time() - began)

    async def close(self) -> None:
        """The market stands still; everybody must know every share that was traded."""
        left = _CLOSINGS
        while True:
            traded = (await self.ask({"kind": "quiet"}))["traded"]
            wrong = await self._open_accounts(traded)
            await self.ask({"clear": "quiet"})
            left -= 1
            if not wrong or not left:
                break
            # A session that is lost in the quiet is told of with the next row, not before.
            await trio.sleep(1.0)
        self.faults += wrong
        self._look_at_ledgers()
        self._look_at_counts()
        self._look_at_talk()

    async def _open_accounts(self, traded: dict[str, int]) -> list[str]:
        """The accounts that do not close while the market stands still."""

        def wrong() -> list[str]:
            return [
                f"{who}: {traded[who.split()[1]]} shares traded, {ledger.closed} known"
                for who, ledger in self._ledgers()
                if not ledger.closed == ledger.at == traded[who.split()[1]]
            ]

        await self._until(lambda: not wrong(), _QUIET_S)
        return wrong()

    def _look_at_ledgers(self) -> None:
        for who, ledger in self._ledgers():
            self.faults += [f"{who}: {fault}" for fault in ledger.faults]
            ledger.faults.clear()
        for ledger in self.gone:
            self.faults += [f"a reader that is gone: {fault}" for fault in ledger.faults]
            ledger.faults.clear()

    def _look_at_counts(self) -> None:
        for seconds, allowed in WINDOWS:
            most = self.most_dials(seconds)
            if most > allowed:
                self.faults.append(f"{most} connects in {seconds:g} s of KIS's pace")
        if self.counts["most_registrations"] > 41:
            self.faults.append(f"{self.counts['most_registrations']} registrations")

    def most_dials(self, seconds: float) -> int:
        """The most connects that the simulator accepted in so many seconds of KIS's pace."""
        return most_within(self.counts["connects"], seconds / self.scale - _DRIFT_S)

    def secrets(self) -> set[str]:
        """Every key that was configured, or that the simulator gave out."""
        return {*SECRETS, *self.line.secrets, *self.rest.secrets}

    def _look_at_talk(self) -> None:
        """No secret in anything that was said, and no bug."""
        secrets = self.secrets()
        for program in self.place.programs:
            if program is self.sim:
                continue
            talk = program.talk + "\n".join(map(str, program.said))
            talk += "".join(_shown(program.process.pid))
            found = [secret[:12] for secret in secrets if secret in talk]
            if found:
                self.faults.append(f"{found} in the words of {program.process.args!r}")
            if "Traceback" in program.talk:
                self.faults.append(f"a traceback: {program.talk[-1500:]}")
        over = [p for p in self.place.programs if p.code is not None and p is not self.sim]
        for program in over:
            self.place.programs.remove(program)

    def _ledgers(self) -> list[tuple[str, Ledger]]:
        return [
            (f"{reader.kind} {topic}", ledger)
            for reader in self.readers.values()
            for topic, ledger in reader.ledgers.items()
        ]

    async def _until(self, done: Callable[[], bool], within: float) -> bool:
        with trio.move_on_after(within):
            while not done():  # noqa: ASYNC110  # other processes make it so
                await trio.sleep(0.02)
        return done()


def _shown(pid: int) -> Iterable[str]:
    """What anybody may read of a process."""
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")


def profile(rest: int, line: int, *, scale: float, liveness: float, pinned: Sequence[str]) -> str:
    """The daemon's configuration: all that holds a dial back at *scale* times the pace."""
    session, quick = rules(scale), Session().scaled(scale)
    # A registration whose answer drowned rests for half a minute of KIS's pace.
    session = attrs.evolve(
        session,
        quarantine_base_s=quick.quarantine_base_s,
        quarantine_cap_s=quick.quarantine_cap_s,
    )
    names = [field.name for field in attrs.fields(Session) if field.name.endswith("_s")]
    usual = Session()
    lines = [f"time_scale = {scale}"]
    for name in names:
        value = getattr(session, name)
        if name in {"quiet_suspect_s", "quiet_dead_s", "busy_suspect_floor_s", "probe_timeout_s"}:
            value /= liveness
        if value != getattr(usual, name):
            lines.append(f"{name} = {list(value) if isinstance(value, tuple) else value}")
    appkey, appsecret, account = SECRETS
    return f"""environment = "sim"
[credentials]
appkey = "{appkey}"
appsecret = "{appsecret}"
account = "{account}"
hts_id = "someone"
[endpoints]
rest = "http://127.0.0.1:{rest}"
ws = "ws://127.0.0.1:{line}"
[subscriptions]
pinned = {json.dumps(list(pinned))}
[session]
{chr(10).join(lines)}
"""


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


@contextlib.asynccontextmanager
async def open_scene(
    seed: int,
    *,
    rate_hz: float = 20.0,
    symbols: Mapping[str, Sequence[str]] = TWO,
    stall_s: float = 2.0,
    pinned: Sequence[str] = (),
    scale: float = 300.0,
    liveness: float = 5.0,
    log_level: str = "debug",
    exit_s: float = 5.0,
) -> AsyncGenerator[Scene]:
    """Start everything.

    Args:
        seed: of the market and of what the proxies do.
        rate_hz: frames a second of each symbol.
        symbols: what each reader follows.
        pinned: topics the daemon holds whether or not anybody follows them.
        stall_s: how long the daemon's event loop is stalled.
        scale: what every pause and window of dialling is divided by.
        liveness: what the bounds that judge a live session are divided by.
        log_level: the daemon's.
        exit_s: a daemon ends within this after SIGTERM.
    """
    rng = random.Random(seed)
    topics = {kind: tuple(f"trade.krx.{s}" for s in symbols[kind]) for kind in READERS}
    async with open_place(PYTHONFAULTHANDLER="1") as place:
        sim = await place.kisfeed(
            "sim", "--json", "--control", "--seed", str(seed), "--rate", str(rate_hz),
            "--hold", str(18.0 / scale),
        )  # fmt: skip
        (urls,) = await sim.says(1)
        async with (
            open_proxy(_port(urls["ws"]), rng) as line,
            open_proxy(_port(urls["rest"]), rng) as rest,
        ):
            place.configure(
                profile(rest.port, line.port, scale=scale, liveness=liveness, pinned=pinned)
            )
            scene = Scene(place, sim, line, rest, topics, stall_s, rng, log_level, scale, exit_s)
            await scene.serve()
            for kind in READERS:
                await scene.follow(kind)
            await scene.heal()
            yield scene
            await scene.ask({})
            if scene.daemon is not None:
                await scene._end(scene.daemon)


async def play(scene: Scene, blows: Sequence[Blow]) -> list[str]:
    """One round; returns what was wrong."""
    before = len(scene.faults)
    await scene.suffer(blows)
    await scene.heal()
    await scene.close()
    return scene.faults[before:]


def rounds(seed: int, kinds: Iterable[str] = KINDS) -> Iterator[list[Blow]]:
    """Rounds without end; the first ones have every kind once, so that a short run has all."""
    rng = random.Random(seed)
    kinds = list(kinds)
    rng.shuffle(kinds)
    for first in range(0, len(kinds), 3):
        blows = [_blow(rng, kind) for kind in kinds[first : first + 3]]
        yield sorted(blows, key=lambda blow: blow.at)
    while True:
        blows = [_blow(rng, rng.choice(kinds)) for _ in range(rng.choice((1, 1, 2, 3)))]
        yield sorted(blows, key=lambda blow: blow.at)


def _blow(rng: random.Random, kind: str) -> Blow:
    return Blow(rng.uniform(0, 1.5), kind, rng.uniform(*KINDS[kind]), rng.choice(READERS))
