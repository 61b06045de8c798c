"""One scripted week of a real appkey: what each mishap costs, in seconds, shares and dials.

Virtual time, the whole daemon, one watched share on both venues. Each mishap owns the time from
its beginning until the next one; what was not live, without any data, missed and told in that
time stands in its row.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.chaos import network
from kisfeed.chaos.run import Disk, be_daemon
from kisfeed.chaos.trader import Trader
from kisfeed.client.core import ClientCore
from kisfeed.client.structured import Client
from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Environment,
    Orders,
    Quotes,
    Secret,
    State as StateFolder,
)
from kisfeed.kfp import events
from kisfeed.seams import VirtualClock, seeded_rng
from kisfeed.seoul import KST
from kisfeed.testing import Fault, Kind, MemorySimulator, Options, open_memory_simulator
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kisfeed.feed import Feed

MONDAY: Final = dt.datetime(2026, 11, 16, 7, 45, tzinfo=KST)
WATCHED: Final = "trade.krx.005930"
BOTH: Final = (WATCHED, "trade.nxt.005930")
_LOOK_S: Final = 15.0
_NO_DATA_S: Final = 60.0  # with a frame about every 20 s
_OPEN: Final = (dt.time(9, 0), dt.time(15, 20))  # regular trading in KRX
_DAYS: Final = 5


@attrs.define
class Cost:
    """What one mishap cost; *at* is the date and time in Seoul it began."""

    at: str
    cause: str
    not_live_s: float = 0.0
    no_data_s: float = 0.0
    missed: int = 0
    told: int = 0
    dials: int = 0


@attrs.define(eq=False)
class _Week:
    config: Config
    clock: VirtualClock
    sim: MemorySimulator
    nursery: trio.Nursery
    route: network.Route
    door: network.Route = attrs.field(init=False)
    costs: list[Cost] = attrs.field(factory=list)
    feed: Feed | None = None
    listener: network.Listener | None = None
    disk: Disk | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    heard_at: float = 0.0
    last_cum: int | None = None
    last_day: dt.date | None = None
    lives: int = 0

    @property
    def now(self) -> dt.datetime:
        return MONDAY + dt.timedelta(seconds=trio.current_time())

    @property
    def open(self) -> bool:
        """KRX trades."""
        now = self.now
        return now.weekday() < _DAYS and _OPEN[0] <= now.time() < _OPEN[1]

    async def live(self) -> None:
        """Run the daemon, again after each end."""
        while True:
            with trio.CancelScope() as self.scope:
                await self._live_once()
            self.feed = self.listener = None
            await trio.sleep(2.0)

    async def _live_once(self) -> None:
        self.lives += 1
        rng = seeded_rng(self.lives)
        self.disk = Disk(rng)
        await be_daemon(
            self.config, self.clock, rng, self.disk, self.route.dial, self.sim.rest, self._up
        )

    def _up(self, feed: Feed, listener: network.Listener) -> None:
        self.feed, self.listener = feed, listener

    async def knock(self, stream: trio.abc.Stream) -> None:
        """A local program connects."""
        if self.listener is None:
            await trio.aclose_forcefully(stream)
        else:
            await self.listener.handle(stream)

    def program(self, name: str) -> Client:
        """A local program, which outlives the daemon."""
        return Client(ClientCore(name, jitter=seeded_rng(7).random, wait=True), self.door.dial)

    async def watch(self) -> None:
        """Be the program that watches one share on both venues."""
        client = self.program("watcher")
        await client.greet()
        await client.subscribe(*BOTH)
        async for event in client:
            self._take(event)

    def _take(self, event: events.Event) -> None:
        cost = self.costs[-1]
        if isinstance(event, events.Trade):
            self.heard_at = trio.current_time()
            if event.topic != WATCHED or event.image:
                return
            assert event.cum_qty is not None
            assert event.qty is not None
            if self.last_cum is not None and self.last_day == self.now.date():
                cost.missed += max(0, event.cum_qty - event.qty - self.last_cum)
            self.last_cum, self.last_day = event.cum_qty, self.now.date()
        elif isinstance(event, events.Gap) and event.topic == WATCHED:
            cost.told += event.missed_qty or 0

    async def look(self) -> None:
        """Count what is not as it should be while KRX trades."""
        dials = 0
        while True:
            await trio.sleep(_LOOK_S)
            cost = self.costs[-1]
            cost.dials += len(self.route.wires) - dials
            dials = len(self.route.wires)
            if not self.open:
                self.heard_at = trio.current_time()
                continue
            state = "" if self.feed is None else str(self.feed.engine.connection.state)
            cost.not_live_s += _LOOK_S if state not in {"STREAMING", "SUBSCRIBED"} else 0.0
            silent = trio.current_time() - self.heard_at
            cost.no_data_s += _LOOK_S if silent > _NO_DATA_S else 0.0

    async def script(self) -> None:
        """Let the week happen."""
        for day, clock, cause, what in _script():
            at = (MONDAY.replace(hour=0, minute=0) + dt.timedelta(days=day)).replace(
                hour=clock.hour, minute=clock.minute
            )
            await trio.sleep_until((at - MONDAY).total_seconds())
            self.costs.append(Cost(f"{at:%m-%d %H:%M}", cause))
            await what(self)
        await trio.sleep_until(7 * 86_400.0 + 2 * 3600)


async def _ordinary(week: _Week) -> None:
    del week
    await trio.lowlevel.checkpoint()


async def _kill(week: _Week) -> None:
    assert week.disk is not None
    week.disk.dead = True  # what a dead process writes on its way out does not count
    week.listener = None
    week.route.reset()
    week.door.reset()
    week.scope.cancel(reason="killed")
    await trio.lowlevel.checkpoint()


async def _restart(week: _Week) -> None:
    week.scope.cancel(reason="restarted")
    await trio.lowlevel.checkpoint()


def _fault(*faults: Fault) -> Callable[[_Week], Awaitable[None]]:
    async def inject(week: _Week) -> None:
        for fault in faults:
            week.sim.inject(fault)
        await trio.lowlevel.checkpoint()

    return inject


async def _crowd(week: _Week) -> None:
    client = week.program("crowd")
    with trio.move_on_after(1800):
        await client.greet()
        await client.subscribe(*(f"trade.krx.{n:06d}" for n in range(1, 61)), mode="latest")
        async for _ in client:
            pass
    with trio.CancelScope(shield=True):
        await client.aclose()


async def _lose_an_answer(week: _Week) -> None:
    week.sim.inject(Fault(Kind.ORDER_LOST_AFTER, count=1))
    trader = Trader(
        week.door,
        seeded_rng(11),
        functools.partial(week.sim.market.tape, "krx"),
        lambda: f"{week.now:%Y%m%d}",
        Path(week.config.state.dir),
    )
    await trader.place(0)
    await trader.wind_down(600.0)
    states = ", ".join(order["state"] for order in trader.final.values())
    week.costs[-1].cause = Phrase(
        "an order's answer is lost: {states} after {seconds} s",
        states=states,
        seconds=round(trader.in_doubt_s),
    )


async def _sleep(week: _Week) -> None:
    # The machine sleeps: nothing reaches it for ten minutes, and only BOOTTIME runs on.
    week.route.hold(1.0, up=True, down=True)
    week.clock.suspended_s += 600
    await trio.lowlevel.checkpoint()


def _script() -> list[tuple[int, dt.time, str, Callable[[_Week], Awaitable[None]]]]:
    quiet = Fault(Kind.QUIET, lasts=120, tr_key="005930")
    withheld = Fault(Kind.WITHHOLD, lasts=60)
    return [
        (0, dt.time(8, 0), Phrase("NXT opens"), _ordinary),
        (0, dt.time(9, 1), Phrase("killed"), _kill),
        (0, dt.time(11, 0), Phrase("half-open"), _fault(Fault(Kind.SILENCE))),
        (1, dt.time(9, 0), Phrase("KIS down for 15 min"), _fault(
            Fault(Kind.REFUSE, lasts=900), Fault(Kind.CUT))),
        (1, dt.time(13, 0), Phrase("a stranger on the key for 20 min"), _fault(
            Fault(Kind.STRANGER, lasts=1200), Fault(Kind.CUT))),
        (2, dt.time(10, 0), Phrase("VI: two minutes without a trade"), _fault(quiet)),
        (2, dt.time(11, 0), Phrase("60 symbols for half an hour"), _crowd),
        (2, dt.time(14, 0), Phrase("KIS lowers the cap to 20"), _fault(Fault(Kind.CAP, value=20))),
        (3, dt.time(10, 0), Phrase("ten minutes of suspend"), _sleep),
        (3, dt.time(11, 0), Phrase("an order's answer is lost"), _lose_an_answer),
        (3, dt.time(14, 0), Phrase("shares withheld for a minute"), _fault(withheld)),
        (4, dt.time(8, 30), Phrase("approval key and token expire"), _fault(
            Fault(Kind.KEY_EXPIRED), Fault(Kind.TOKENS_INVALID), Fault(Kind.DROP))),
        (4, dt.time(12, 0), Phrase("restarted"), _restart),
        (5, dt.time(9, 0), Phrase("the weekend"), _ordinary),
        (7, dt.time(8, 0), Phrase("Monday again"), _ordinary),
    ]  # fmt: skip


async def _play(folder: str, found: list[Cost], leaps: network.LeapingClock) -> None:
    options = Options(
        environment=Environment.REAL,
        start=MONDAY,
        always_open=False,
        rate_hz=0.05,
        pingpong_s=30.0,
    )
    config = Config(
        environment=Environment.REAL,
        credentials=Credentials(
            Secret("an appkey"), Secret("a secret"), account=Secret("73519284-01")
        ),
        orders=Orders(enabled=True),
        endpoints=Endpoints("http://127.0.0.1:1", "ws://127.0.0.1:1"),
        state=StateFolder(folder),
        quotes=Quotes(poll_s=5.0),
    )
    clock = VirtualClock(int(MONDAY.timestamp()) * 10**9)
    async with open_memory_simulator(options) as sim, trio.open_nursery() as nursery:
        route = network.Route(
            "kis",
            leaps,
            seeded_rng(1),
            sim.simulator.serve_websocket,
            nursery,
            lambda *_: None,
            keepalive_s=math.inf,
            refuses=sim.simulator.refuses,
        )
        week = _Week(config, clock, sim, nursery, route, found)
        week.door = attrs.evolve(
            route,
            name="local",
            accept=week.knock,
            latency_s=(0.0, 0.0001),
            refuses=lambda: week.listener is None,
        )
        nursery.start_soon(week.live)
        nursery.start_soon(week.watch)
        nursery.start_soon(week.look)
        await week.script()
        nursery.cancel_scope.cancel(reason="the week is over")


def play() -> dict[str, Any]:
    """The week, by cause and in all."""
    found = [Cost(f"{MONDAY:%m-%d %H:%M}", Phrase("an ordinary start"))]
    with tempfile.TemporaryDirectory(prefix="kisfeed-week-") as folder:
        leaps = network.LeapingClock()
        trio.run(_play, folder, found, leaps, clock=leaps)
    total = Cost("", Phrase("all of it"))
    for cost in found:
        for name in ("not_live_s", "no_data_s", "missed", "told", "dials"):
            setattr(total, name, getattr(total, name) + getattr(cost, name))
    return {"causes": [attrs.asdict(cost) for cost in (*found, total)]}
