"""Whole-stack rehearsals in virtual time: the feed itself against the in-memory simulator.

Each function plays one scene and returns its figures. Run them under a ``MockClock`` with
``autojump_threshold=0``; :func:`play` does.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import math
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
import trio.testing

from kisfeed.chaos.checks import most_within
from kisfeed.chaos.world import Account
from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Environment,
    Secret,
    Session,
    State as StateFolder,
)
from kisfeed.feed import Feed, open_feed
from kisfeed.gateway.channel import EventChannel
from kisfeed.kfp import events
from kisfeed.kfp.messages import Code, Data
from kisfeed.seams import DirectDisk, Disk, VirtualClock, seeded_rng
from kisfeed.seoul import KST
from kisfeed.testing import (
    Fault,
    Happening,
    Kind,
    MemorySimulator,
    Options,
    Rules,
    open_memory_simulator,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from kisfeed.kfp.events import Event
    from kisfeed.upstream.actor import Dialler

OPEN: Final = dt.datetime(2026, 11, 18, 10, tzinfo=KST)
T: Final = "trade.krx.005930"
KEY: Final = ("H0STCNT0", "005930")
_HOUR: Final = 3600.0
_SETTLE_S: Final = 600.0
_FOUND_S: Final = 200.0  # whatever is wrong with a line is known after this


@attrs.define(eq=False)
class Heard:
    """What one subscription was told, with the second of each event."""

    channel: EventChannel
    log: list[tuple[float, Event]] = attrs.field(factory=list)
    accounts: dict[str, Account] = attrs.field(factory=dict)
    keep_trades: bool = False

    async def listen(self) -> None:
        """Take events until the feed is over."""
        while True:
            try:
                batch = await self.channel.receive_batch()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                return
            for event in batch:
                self._take(event)

    def _take(self, event: Event) -> None:
        trade = isinstance(event, events.Trade)
        if not trade or self.keep_trades:
            self.log.append((trio.current_time(), event))
        if isinstance(event, events.Gap) or (isinstance(event, events.Trade) and not event.image):
            self.accounts.setdefault(event.topic, Account()).take(event)

    def of(self, *kinds: type[Event], since: float = -math.inf) -> list[tuple[float, Any]]:
        """Events of these kinds, and when each came."""
        return [(at, e) for at, e in self.log if isinstance(e, kinds) and at >= since]

    def sessions(self, since: float = -math.inf) -> list[tuple[float, events.Session]]:
        """SESSION events."""
        return self.of(events.Session, since=since)

    def when(self, test: Callable[[Event], bool], since: float) -> float:
        """Seconds from *since* to the first event that passes *test*; infinite for never."""
        return next((at - since for at, e in self.log if at >= since and test(e)), math.inf)


@attrs.define(eq=False)
class Stage:
    """A feed, a simulated KIS, and their clock."""

    feed: Feed
    sim: MemorySimulator
    clock: VirtualClock
    _nursery: trio.Nursery

    def listen(self, *topics: str, keep_trades: bool = False, **how: Any) -> Heard:
        """Subscribe and write down what comes."""
        channel = self.feed.subscribe(*topics, **how)
        assert isinstance(channel, EventChannel)
        heard = Heard(channel, keep_trades=keep_trades)
        self._nursery.start_soon(heard.listen)
        return heard

    @property
    def state(self) -> str:
        """The session's state."""
        return str(self.feed.engine.connection.state)

    @property
    def reason(self) -> str:
        """And why."""
        return str(self.feed.engine.connection.reason)

    @property
    def connects(self) -> int:
        """Connections that the server accepted."""
        return len(self.sim.exchange.connects)

    @property
    def held(self) -> list[tuple[str, str]]:
        """What the engine calls active."""
        found = self.feed.engine.registrations.holders()
        return sorted(holder.key for holder in found if holder.state == "held")

    @property
    def registered(self) -> list[tuple[str, str]]:
        """What the server holds."""
        return sorted(self.sim.exchange.registered())

    async def until(
        self, test: Callable[[], object], within: float = 600.0, step: float = 0.1
    ) -> float:
        """Look every *step* until *test*; how long that took, infinite if it never was."""
        started = trio.current_time()
        while not test():
            if trio.current_time() - started > within:
                return math.inf
            await trio.sleep(step)
        return trio.current_time() - started


@asynccontextmanager
async def open_stage(
    options: Options | None = None,
    *,
    session: Session | None = None,
    hts_id: str = "",
    seed: int = 1,
    folder: Path | None = None,
    disk: Disk | None = None,
    dial: Callable[[MemorySimulator], Dialler] | None = None,
) -> AsyncGenerator[Stage]:
    """A feed on an in-memory KIS.

    Args:
        options: the simulator's; ``environment`` is the feed's too.
        session: rules.
        hts_id: of the order notice.
        seed: of the feed's own randomness.
        folder: where its state lives; one of its own by default.
        disk: writes it.
        dial: makes the dialler from the simulator's.
    """
    options = Options(rate_hz=1.0, start=OPEN) if options is None else options
    clock = VirtualClock(int(options.start.timestamp()) * 10**9)
    with tempfile.TemporaryDirectory(prefix="kisfeed-stage-") as scratch:
        config = Config(
            environment=options.environment,
            credentials=Credentials(Secret("an appkey"), Secret("a secret"), hts_id),
            endpoints=Endpoints("http://127.0.0.1:1", "ws://127.0.0.1:1"),
            state=StateFolder(str(folder or scratch)),
            session=session or Session(),
        )
        async with (
            open_memory_simulator(options) as sim,
            open_feed(
                config,
                clock=clock,
                rng=seeded_rng(seed),
                disk=disk or DirectDisk(),
                dial=sim.dial if dial is None else dial(sim),
                rest=sim.rest,
            ) as feed,
            trio.open_nursery() as nursery,
        ):
            yield Stage(feed, sim, clock, nursery)
            nursery.cancel_scope.cancel(reason="the scene is over")


def play(scene: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a scene in virtual time and return its figures."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(functools.partial(scene, *args), clock=clock)


def _suspect(event: Event) -> bool:
    return isinstance(event, events.Session) and event.data == Data.SUSPECT


def _session_gone(event: Event) -> bool:
    return isinstance(event, events.Session) and event.state == "RECONNECT_BACKOFF"


async def closed_market(hours: float = 12.0, *, drop: bool = False) -> dict[str, float]:
    """From the close to the next open: what an open session does, or one that is lost."""
    start = dt.datetime(2026, 11, 24, 19, 55, tzinfo=KST)
    options = Options(
        environment=Environment.REAL, start=start, always_open=False, rate_hz=0.05, pingpong_s=30.0
    )
    async with open_stage(options) as stage:
        stage.listen(T)
        await stage.until(lambda: stage.state == "STREAMING", 120.0)
        await trio.sleep(600.0)
        before = stage.connects
        if drop:
            await trio.sleep(_HOUR)
            stage.sim.inject(Kind.DROP)
        await trio.sleep(hours * _HOUR - 900.0)
        connects = stage.sim.exchange.connects[before:]
        opens = dt.datetime(2026, 11, 25, 8, 20, tzinfo=KST)
        to_open = [(opens - start).total_seconds() - at for at in connects]
        return {
            "reconnects": len(connects),
            "first_before_open_s": to_open[0] if to_open else math.nan,
            "live": float(stage.feed.engine.connection.live),
        }


async def half_open(rate_hz: float, busy_s: float) -> dict[str, float]:
    """The line falls silent while *rate_hz* frames a second flow; nothing at all for 0."""
    quiet = rate_hz == 0
    options = Options(rate_hz=rate_hz or 1.0, records=(1, 1), start=OPEN)
    async with open_stage(options) as stage:
        heard = stage.listen(T)
        if quiet:
            stage.sim.inject(Fault(Kind.QUIET, lasts=math.inf))
        await stage.until(lambda: stage.registered == [KEY])
        await trio.sleep(busy_s)
        silent = trio.current_time()
        stage.sim.inject(Kind.SILENCE)
        await stage.until(lambda: stage.state == "RECONNECT_BACKOFF", 200.0)
        await trio.sleep(0.2)
        return {
            "suspect_s": heard.when(_suspect, silent),
            "dead_s": heard.when(_session_gone, silent),
        }


async def ack_then_nothing() -> dict[str, float]:
    """KIS acknowledges and forgets: other symbols trade, this one does not."""
    other = "trade.krx.000660"
    async with open_stage() as stage:
        heard = stage.listen(T, other, keep_trades=True)
        await stage.until(lambda: len(stage.registered) == 2)
        stage.sim.inject(Fault(Kind.DROP_KEY, tr_key=KEY[1]))
        forgotten = trio.current_time()
        found = await stage.until(
            lambda: (
                heard.when(
                    lambda e: (
                        isinstance(e, events.Status) and e.topic == T and e.data == Data.SUSPECT
                    ),
                    forgotten,
                )
                < math.inf
            )
        )
        repaired = await stage.until(
            lambda: any(e.topic == T for _, e in heard.of(events.Trade, since=forgotten + found))
        )
        return {"found_s": found, "repaired_s": found + repaired, "connects": stage.connects}


async def wrong_hts_id(hours: float = 3.0) -> dict[str, float]:
    """The order notice's key is wrong: KIS drops the socket for it."""
    options = Options(rate_hz=0.2, start=OPEN, rules=Rules(hts_id="right"))
    async with open_stage(options, hts_id="wrong") as stage:
        heard = stage.listen(T, keep_trades=True)
        notice = stage.listen("notice.krx.wrong")
        await trio.sleep(hours * _HOUR)
        trades = [at for at, _ in heard.of(events.Trade)]
        last = [e for _, e in notice.of(events.Status)][-1:]
        return {
            "connects": stage.connects,
            "trades_in_last_hour": sum(at > (hours - 1) * _HOUR for at in trades),
            "longest_without_s": max(b - a for a, b in itertools.pairwise(trades)),
            "notice_closed": float(bool(last) and last[0].code == Code.REJECTED),
        }


async def missed_shares(seed: int, minutes: float = 30.0) -> dict[str, float]:
    """Holes and disconnects at random; the tape and the server's tally against what was told."""
    rng = seeded_rng(seed)
    symbols = ("005930", "000660", "035420")
    async with open_stage(Options(rate_hz=2.0, seed=seed, start=OPEN), seed=seed) as stage:
        heard = stage.listen(*(f"trade.krx.{s}" for s in symbols))
        ends = minutes * 60.0
        while trio.current_time() < ends:
            await trio.sleep(rng.choice([0.3, 5.0, 40.0, 200.0]) * (0.5 + rng.random()))
            key = rng.choice(symbols)
            stage.sim.inject(
                rng.choice(
                    [
                        Fault(Kind.WITHHOLD, count=1 + rng.randrange(20), tr_key=key),
                        Fault(Kind.WITHHOLD, lasts=rng.uniform(0, 30), tr_key=key),
                        Fault(Kind.CUT),
                        Fault(Kind.DROP),
                        Fault(Kind.CLOSE),
                        Fault(Kind.SILENCE),
                    ]
                )
            )
        # Until every topic has a row after the last hole; then the tape stands still.
        await trio.sleep(_FOUND_S)
        await stage.until(lambda: stage.state == "STREAMING", 4 * _HOUR, 5.0)
        stage.sim.exchange.board.clear()
        await trio.sleep(30.0)
        stage.sim.inject(Fault(Kind.QUIET, lasts=math.inf))
        await trio.sleep(5.0)
        wrong = told = withheld = 0
        for symbol in symbols:
            account = heard.accounts[f"trade.krx.{symbol}"]
            assert account.base is not None
            tally = stage.sim.exchange.tallies["H0STCNT0", symbol]
            volume = stage.sim.market.tape("krx", symbol).volume
            # All that traded since the first row and was not written to a socket that heard it.
            kept_back = volume - account.base - tally.volume
            told += account.missed
            withheld += kept_back
            wrong += abs(account.missed - kept_back) + (0 if account.exact else 1)
        return {
            "reported": told,
            "withheld": withheld,
            "wrong": wrong,
            "connects": stage.connects,
        }


async def slot_market(hours: float = 3.0, *, steady: bool = True) -> dict[str, float]:
    """60 wanted, 41 slots: at rest, and then under two clients that subscribe again for ever.

    With *steady* a third client wants all 60 all the time, else the two alone want them.
    """
    topics = [f"trade.krx.{n:06d}" for n in range(1, 61)]
    async with open_stage(Options(rate_hz=0.02, pingpong_s=30.0, start=OPEN)) as stage:
        watcher = stage.listen(*topics, passive=not steady)
        exchange = stage.sim.exchange

        async def flap(mine: list[str], period: float) -> None:
            while True:
                channel = stage.feed.subscribe(*mine)
                assert isinstance(channel, EventChannel)
                await trio.sleep(period)
                channel.close()
                await trio.sleep(period)

        def swaps(since: float) -> list[float]:
            told = watcher.of(events.Status, since=since)
            return [at for at, e in told if e.code == Code.PREEMPTED]

        at_rest = 0
        if steady:
            await trio.sleep(_SETTLE_S)
            settled = trio.current_time()
            await trio.sleep(hours * _HOUR)
            at_rest = len(swaps(settled))
        shares = (topics[41:51], topics[51:]) if steady else (topics[:35], topics[25:])
        async with trio.open_nursery() as clients:
            clients.start_soon(flap, shares[0], 7.0)
            clients.start_soon(flap, shares[1], 11.0)
            # Who joins in raises a score once; that is a change of interest, not flapping.
            await trio.sleep(_SETTLE_S)
            flapping = trio.current_time()
            await trio.sleep(hours * _HOUR)
            moved = swaps(flapping)
            clients.cancel_scope.cancel(reason="the scene is over")
        await stage.until(lambda: stage.held == stage.registered)
        return {
            "swaps_at_rest": at_rest,
            "swaps_an_hour": most_within(moved, _HOUR - 0.01),  # an hour apart is not within one
            "most_registered": exchange.most_registrations,
            "over_cap": len(exchange.times(Happening.SUBSCRIBE, "OPSP0008")),
            "unequal": len(set(stage.held) ^ set(stage.registered)),
        }
