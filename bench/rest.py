"""The REST side under load: figures for what it promises.

Everything runs in virtual time against the simulated KIS, whose own history is the judge:
``python -m bench.rest`` takes a minute or two.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import random
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio
from trio.testing import MockClock

from kisfeed import open_feed, seams
from kisfeed.config import Config, Credentials, Endpoints, Environment, Orders, Secret, State
from kisfeed.errors import KisBusy, KisfeedError, NotSent
from kisfeed.seoul import KST
from kisfeed.testing import Fault, Happening, Kind, MemorySimulator, Options, open_memory_simulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from kisfeed.feed import Feed
    from kisfeed.kis.rest import Call

START = dt.datetime(2026, 11, 20, 11, tzinfo=KST)
APPKEY, APPSECRET = "CANARY-appkey-" + "k" * 22, "CANARY-appsecret-" + "s" * 163
ACCOUNT, HTS_ID = "87654321-01", "canaryhts"


def config_for(folder: Path, environment: Environment = Environment.SIM) -> Config:
    return Config(
        environment=environment,
        credentials=Credentials(Secret(APPKEY), Secret(APPSECRET), HTS_ID, Secret(ACCOUNT)),
        endpoints=Endpoints("http://kis", "ws://kis"),
        state=State(str(folder)),
    )


@asynccontextmanager
async def feed_on(
    sim: MemorySimulator, config: Config, seed: int, *, wire_s: float = 0.0
) -> AsyncGenerator[Feed]:
    """A feed whose requests travel up to *wire_s* to KIS and back."""
    rng = random.Random(seed)

    async def handler(
        method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        await trio.sleep(rng.random() * wire_s)
        answer = await sim.rest(method, path, headers, body)
        await trio.sleep(rng.random() * wire_s)
        return answer

    wall = int(START.timestamp() * 1e9)
    async with open_feed(
        config,
        clock=seams.VirtualClock(wall),
        rng=seams.seeded_rng(seed),
        disk=seams.DirectDisk(),
        dial=sim.dial,
        rest=handler,
    ) as feed:
        yield feed


@asynccontextmanager
async def simulated(
    seed: int = 1, environment: Environment = Environment.SIM
) -> AsyncGenerator[MemorySimulator]:
    async with open_memory_simulator(
        Options(seed=seed, start=START, environment=environment)
    ) as sim:
        yield sim


def price(feed: Feed, number: int = 5930) -> Call:
    values = {"FID_COND_MRKT_DIV_CODE": "J", "FID_INPUT_ISCD": f"{number:06d}"}
    return feed.rest.endpoints.call("inquire_price", values)


def balance(feed: Feed) -> Call:
    values = {"CANO": ACCOUNT[:8], "ACNT_PRDT_CD": ACCOUNT[9:]}
    return feed.rest.endpoints.call("inquire_balance", values)


def buy(feed: Feed) -> Call:
    values = {"CANO": ACCOUNT[:8], "PDNO": "005930"}
    return feed.rest.endpoints.call("order_cash_buy", values)


@attrs.define
class Found:
    """What KIS saw and what the callers saw."""

    calls: int = 0
    failed: int = 0
    rate_limited: int = 0
    restarts: int = 0
    most_issues_a_minute: int = 0
    most_calls_a_second: int = 0
    hours: float = 0.0

    @property
    def success_rate(self) -> float:
        return 1 - self.failed / max(1, self.calls)

    def judge(self, sim: MemorySimulator, started: float) -> Found:
        self.most_issues_a_minute = sim.exchange.most_within(Happening.TOKEN, 60.0)
        self.most_calls_a_second = sim.exchange.most_within(Happening.REST, 1.0)
        self.hours = (trio.current_time() - started) / 3600
        return self

    async def ask(self, feed: Feed, number: int = 5930) -> None:
        self.calls += 1
        try:
            await feed.rest.call(price(feed, number))
        except KisBusy:
            self.failed += 1
            self.rate_limited += 1
        except KisfeedError:
            self.failed += 1


async def tokens_under_load(folder: Path, callers: int, waves: int) -> Found:
    """Waves of callers, hours apart, over expiring tokens and restarts of the program."""
    found, started = Found(), trio.current_time()
    async with simulated() as sim:
        for wave in range(waves):
            async with feed_on(sim, config_for(folder), wave, wire_s=0.02) as feed:
                async with trio.open_nursery() as nursery:
                    for number in range(callers):
                        nursery.start_soon(found.ask, feed, number + 1)
                await trio.sleep(9 * 3600)
            found.restarts = wave
        return found.judge(sim, started)


async def two_hundred_callers(seed: int, each: int) -> Found:
    """200 callers at once, with refusals, dead tokens and a host that ends connections."""
    found, started = Found(), trio.current_time()
    rng = random.Random(seed)

    async def caller(feed: Feed) -> None:
        for _ in range(each):
            await found.ask(feed)
            await trio.sleep(rng.random() * 0.1)

    async def trouble(sim: MemorySimulator) -> None:
        while True:
            await trio.sleep(rng.uniform(1, 6))
            kind = rng.choice(["rate_limited", "rest_down", "ledger_busy", "token_expired"])
            sim.inject(Fault(Kind(kind), count=rng.randint(1, 3), lasts=1.0))

    with tempfile.TemporaryDirectory() as folder:
        async with (
            simulated(seed) as sim,
            feed_on(sim, config_for(Path(folder)), seed, wire_s=0.02) as feed,
            trio.open_nursery() as nursery,
        ):
            await feed.rest.call(price(feed))
            await trio.sleep(100)
            nursery.start_soon(trouble, sim)
            async with trio.open_nursery() as callers:
                for _ in range(200):
                    callers.start_soon(caller, feed)
            nursery.cancel_scope.cancel()
        return found.judge(sim, started)


async def token_trouble(trouble: Iterable[tuple[float, str]]) -> Found:
    """Callers that never stop, while tokens are revoked, refused and not to be had."""
    found, started = Found(), trio.current_time()

    async def caller(feed: Feed) -> None:
        while True:
            await found.ask(feed)
            await trio.sleep(7.0)

    with tempfile.TemporaryDirectory() as folder:
        async with simulated() as sim:
            waiting = itertools.chain(trouble, [(400.0, "end")])
            for number in itertools.count():
                async with (
                    feed_on(sim, config_for(Path(folder)), number) as feed,
                    trio.open_nursery() as nursery,
                ):
                    for _ in range(5):
                        nursery.start_soon(caller, feed)
                    for pause, kind in waiting:
                        await trio.sleep(pause)
                        if kind in {"restart", "end"}:
                            break
                        lasts = None if kind == "tokens_invalid" else 100.0
                        sim.inject(Fault(Kind(kind), lasts=lasts))
                    nursery.cancel_scope.cancel()
                if kind == "end":
                    return found.judge(sim, started)
    raise AssertionError("unreachable")


async def order_delay(paper: bool) -> float:
    """Under full quote load: the longest wait of an order for its permit, seconds."""
    environment = Environment.PAPER if paper else Environment.SIM
    waits: list[float] = []

    async def flood(feed: Feed) -> None:
        while True:
            await feed.rest.call(price(feed))

    with tempfile.TemporaryDirectory() as folder:
        async with (
            simulated(environment=environment) as sim,
            feed_on(sim, config_for(Path(folder), environment), 1, wire_s=0.02) as feed,
            trio.open_nursery() as nursery,
        ):
            await feed.rest.call(price(feed))
            for _ in range(100):
                nursery.start_soon(flood, feed)
            for number in range(40):
                await trio.sleep(5 + number / 13)
                asked = trio.current_time()

                def told(asked: float = asked) -> None:
                    waits.append(trio.current_time() - asked)
                    raise NotSent("only its turn is wanted")

                call = feed.rest.endpoints.call("order_cash_buy", {"PDNO": "005930"})
                with suppress(NotSent):
                    await feed.rest.post_once(call, until=asked + 60, check=told)
            nursery.cancel_scope.cancel()
    return max(waits)


@attrs.define
class Told:
    """Every text that leaves the program, and the secrets that must not be in one."""

    canaries: list[str]
    told: list[str] = attrs.field(factory=list)


async def everything_told(folder: Path) -> Told:
    """Run into all kinds of trouble and keep all that is said about it."""
    found = Told([APPKEY, APPSECRET, ACCOUNT, ACCOUNT.partition("-")[0]])
    config = attrs.evolve(config_for(folder), orders=Orders(enabled=True))
    async with (
        simulated() as sim,
        feed_on(sim, config, 1) as feed,
    ):
        feed.subscribe("trade.krx.005930")
        await trio.sleep(30)
        kis = feed.rest
        order = buy(feed)

        async def hear(asked: Callable[[], Awaitable[object]]) -> None:
            try:
                found.told.append(repr(await asked()))
            except KisfeedError as exc:
                found.told += [repr(exc), str(exc), repr(exc.__cause__), repr(exc.args)]
                found.told.append(repr(getattr(exc, "detail", "")))

        async def place(name: str) -> object:
            asked = {"client_order_id": name, "symbol": "005930", "side": "buy", "qty": 1}
            await feed.orders.calls.call("order.preview", asked, "bench")
            return await feed.orders.calls.call("order.place", asked, "bench")

        kinds = (
            "rest_down", "tokens_invalid", "token_expired", "rate_limited", "token_down",
            "order_lost_after", "order_html", "order_refused",
        )  # fmt: skip
        for kind in kinds:
            lasting = kind == "tokens_invalid" or kind.startswith("order")
            sim.inject(Fault(Kind(kind), lasts=None if lasting else 90.0))
            for call in (price(feed), balance(feed)):
                await hear(partial(kis.call, call))
            until = trio.current_time() + 5
            await hear(partial(kis.post_once, order, until=until, check=lambda: None))
            await hear(partial(place, kind))
            found.told += [repr(call), repr(order)]
            await trio.sleep(20 if kind.startswith("order") else 120)
        await hear(partial(feed.orders.calls.call, "balance", {}, "bench"))
        await hear(partial(feed.orders.calls.call, "order.list", {}, "bench"))
        found.told += [json.dumps(feed.status()), json.dumps(kis.status())]
        found.told.append(feed.metrics.text().decode())
        parts = (kis, kis.tokens, kis.gate, feed.metrics, feed.orders, feed.orders.desk)
        for thing in (feed, feed.config, feed.engine, *parts):
            found.told.append(repr(thing))
        found.told.append(repr(attrs.asdict(feed.config, recurse=False)))
        token: Any = kis.tokens.current()
        found.told += [repr(token), " ".join(sys.argv), repr(dict(os.environ))]
    read_back(folder, found)
    return found


def read_back(folder: Path, found: Told) -> None:
    """Add what was written to the state folder, and the keys that are in its key files."""
    for path in sorted(folder.iterdir()):
        found.told.append(path.name)
        if path.name.endswith((".token.json", ".approval.json")):
            found.canaries.append(json.loads(path.read_bytes())["data"]["value"])
            assert path.stat().st_mode & 0o777 == 0o600
        else:
            found.told.append(path.read_text("utf-8", "replace"))


def main() -> None:
    def virtual(function: Any, *arguments: Any) -> Any:
        return trio.run(function, *arguments, clock=MockClock(autojump_threshold=0))

    with tempfile.TemporaryDirectory() as folder:
        found = virtual(tokens_under_load, Path(folder), 1_000, 8)
    print(
        f"1,000 callers, {found.restarts} restarts, {found.hours:.0f} h: {found.calls} calls,"
        f" {found.failed} failed, most token issues in 60 s: {found.most_issues_a_minute},"
        f" most calls in 1 s: {found.most_calls_a_second}"
    )
    calls = failed = busy = most = 0
    for seed in range(20):
        found = virtual(two_hundred_callers, seed, 10)
        calls, failed, busy = calls + found.calls, failed + found.failed, busy + found.rate_limited
        most = max(most, found.most_calls_a_second)
    print(
        f"200 callers, 20 seeds with faults: {calls} calls, success {1 - failed / calls:.5f},"
        f" EGW00201 seen by callers: {busy}, most calls in 1 s: {most}"
    )
    for paper in (False, True):
        worst = virtual(order_delay, paper)
        print(f"an order under full quote load, {'paper' if paper else 'real'}: {worst:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        told = virtual(everything_told, Path(folder))
    hits = sum(canary in text for canary in told.canaries for text in told.told)
    print(
        f"{len(told.canaries)} secrets in {len(told.told)} texts"
        f" ({sum(map(len, told.told)):,} characters): {hits} hits"
    )


if __name__ == "__main__":
    main()
