"""Quotes for many callers: figures for what they cost at KIS.

Everything runs in virtual time against the simulated KIS, whose own history is the judge:
``python -m bench.quotes``.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from bench.rest import config_for, feed_on
from kisfeed.config import Environment
from kisfeed.kfp.events import Gap, Trade
from kisfeed.kfp.messages import Source
from kisfeed.testing import (
    Fault,
    Happening,
    Kind,
    MemorySimulator,
    Options,
    Rules,
    open_memory_simulator,
)

SYMBOLS = [f"{100_000 + n}" for n in range(200)]
Scene = Callable[[Path], Awaitable[dict[str, Any]]]


def calls(sim: MemorySimulator) -> int:
    return len(sim.exchange.times(Happening.REST))


def seen_by_kis(sim: MemorySimulator, before: int = 0) -> dict[str, int]:
    return {
        "calls": calls(sim) - before,
        "most_in_a_second": sim.exchange.most_within(Happening.REST, 1.0),
        "refused_by_kis": len(sim.exchange.times(Happening.REST, "EGW00201")),
    }


async def a_minute_of_questions(folder: Path, environment: Environment) -> dict[str, Any]:
    """3,000 questions in a minute, one symbol of 200 each, at random moments."""
    rng = random.Random(11)
    rules = Rules(rest_per_s=1 if environment is Environment.PAPER else 18)
    options = Options(environment=environment, rules=rules)
    answered, missing, waits = 0, 0, []
    async with open_memory_simulator(options) as sim:
        async with feed_on(sim, config_for(folder, environment), 1, wire_s=0.05) as feed:

            async def ask() -> None:
                nonlocal answered, missing
                begun = trio.current_time()
                found = await feed.get_current_prices(rng.choice(SYMBOLS))
                waits.append(trio.current_time() - begun)
                answered += len(found)
                missing += len(found.missing)

            await feed.get_current_prices(SYMBOLS[0])
            await trio.sleep(2)
            before = calls(sim)
            async with trio.open_nursery() as nursery:
                for _ in range(3000):
                    nursery.start_soon(ask)
                    await trio.sleep(rng.expovariate(50))
            waits.sort()
            return {
                "questions": 3000,
                "answered": answered,
                "missing": missing,
                **seen_by_kis(sim, before),
                "p50_ms": round(waits[1500] * 1000, 1),
                "p99_ms": round(waits[2970] * 1000, 1),
                "desk": feed.status()["quotes"]["counts"],
            }


async def real_minute(folder: Path) -> dict[str, Any]:
    return await a_minute_of_questions(folder, Environment.SIM)


async def streaming_symbols(folder: Path) -> dict[str, Any]:
    """40 streaming symbols, asked 3,000 times; the 41st slot is the order notice's."""
    topics = [f"trade.krx.{symbol}" for symbol in SYMBOLS[:40]]
    async with open_memory_simulator() as sim:
        async with feed_on(sim, config_for(folder), 1) as feed:
            feed.subscribe(*topics)
            await trio.sleep(20)
            before = calls(sim)
            for n in range(3000):
                await feed.get_current_prices(SYMBOLS[n % 40])
                await trio.sleep(0.01)
            return {"questions": 3000, **seen_by_kis(sim, before)}


async def two_hundred_callers(folder: Path) -> dict[str, Any]:
    """200 callers at once for a minute, while KIS refuses the rate again and again."""
    asked, stale, missing = 0, 0, 0
    rng = random.Random(5)
    async with open_memory_simulator() as sim:
        async with feed_on(sim, config_for(folder), 1, wire_s=0.05) as feed:
            until = trio.current_time() + 60

            async def caller() -> None:
                nonlocal asked, stale, missing
                while trio.current_time() < until:
                    symbols = rng.sample(SYMBOLS, 3)
                    found = await feed.get_current_prices(*symbols, fresh=rng.random() < 0.05)
                    asked += 3
                    stale += sum(price.stale for price in found.values())
                    missing += len(found.missing)
                    await trio.sleep(rng.random())

            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(caller)
                for _ in range(5):
                    await trio.sleep(10)
                    sim.inject(Fault(Kind.RATE_LIMITED, count=5))
            return {"questions": asked, "stale": stale, "missing": missing, **seen_by_kis(sim)}


async def evicted(folder: Path) -> dict[str, Any]:
    """A topic that loses its slot for ten minutes: polled, and its gap to the share."""
    topic = "trade.krx.005930"
    images: list[Trade] = []
    ticks: list[Trade] = []
    gaps: list[Gap] = []
    rules = Rules(cap=2)  # one slot is the order notice's
    async with open_memory_simulator(Options(rules=rules)) as sim:
        async with feed_on(sim, config_for(folder), 1) as feed, trio.open_nursery() as nursery:

            async def read() -> None:
                async for event in feed.subscribe(topic):
                    if isinstance(event, Gap):
                        gaps.append(event)
                    elif isinstance(event, Trade):
                        (images if event.source is Source.POLL else ticks).append(event)

            nursery.start_soon(read)
            await trio.sleep(120)
            stronger = feed.subscribe("trade.krx.000660", prio=9)
            await trio.sleep(600)
            stronger.close()
            await trio.sleep(120)
            nursery.cancel_scope.cancel()
        volume = sim.market.tape("krx", "005930").volume
        received = sum(tick.qty or 0 for tick in ticks)
        first = (ticks[0].cum_qty or 0) - (ticks[0].qty or 0)
        return {
            "polled_images": len(images),
            "images_that_are_ticks": [image.image for image in images].count(False),
            "gaps": len(gaps),
            "missed_qty": sum(gap.missed_qty or 0 for gap in gaps),
            "unaccounted_shares": volume - first - received - sum(g.missed_qty or 0 for g in gaps),
            **seen_by_kis(sim),
        }


async def no_session(folder: Path) -> dict[str, Any]:
    """300 topics and no session for five minutes."""
    topics = [f"trade.krx.{200_000 + n}" for n in range(300)]
    images: dict[str, int] = {}
    async with open_memory_simulator() as sim:
        sim.inject(Fault(Kind.REFUSE, lasts=600.0))
        async with feed_on(sim, config_for(folder), 1, wire_s=0.05) as feed:
            with trio.move_on_after(300):
                async for event in feed.subscribe(*topics):
                    if isinstance(event, Trade):
                        images[event.topic] = images.get(event.topic, 0) + 1
                        assert event.image
            return {
                "topics": len(images),
                "least_images": min(images.values()),
                "most_images": max(images.values()),
                **seen_by_kis(sim),
            }


SCENES: dict[str, Scene] = {
    "a_minute_of_questions": real_minute,
    "streaming_symbols": streaming_symbols,
    "two_hundred_callers": two_hundred_callers,
    "evicted": evicted,
    "no_session": no_session,
}


@attrs.frozen
class _Scene:
    run: Scene

    async def __call__(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return await self.run(Path(folder))


def main() -> None:
    for name, scene in SCENES.items():
        figures = trio.run(_Scene(scene), clock=MockClock(autojump_threshold=0))
        sys.stdout.write(json.dumps({name: figures}) + "\n")


if __name__ == "__main__":
    main()
