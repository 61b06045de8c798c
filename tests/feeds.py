"""A feed on a simulated KIS, in memory and in virtual time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from kisfeed import seams
from kisfeed.config import Config, Credentials, Endpoints, Secret, Session, State
from kisfeed.feed import Feed, open_feed
from kisfeed.simulator import Options
from kisfeed.testing import MemorySimulator, open_memory_simulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from kisfeed.gateway.channel import EventChannel
    from kisfeed.kfp.events import Event
    from kisfeed.seams import Disk

WALL = 1_795_140_000 * 10**9  # 2026-11-20 11:00 in Seoul
APPKEY = "an appkey of these tests"
TRADE = "trade.krx.005930"
KEY = ("H0STCNT0", "005930")


def config_for(folder: Path, rules: Session | None = None, **changes: object) -> Config:
    config = Config(
        credentials=Credentials(Secret(APPKEY), Secret("a secret of these tests")),
        endpoints=Endpoints("http://kis", "ws://kis:21000"),
        state=State(str(folder)),
        session=Session() if rules is None else rules,
    )
    return attrs.evolve(config, **changes)  # type: ignore[arg-type]  # fields by name


@attrs.define(eq=False)
class World:
    """A feed and the KIS it speaks to."""

    feed: Feed
    kis: MemorySimulator

    @property
    def state(self) -> str:
        return str(self.feed.engine.connection.state)

    async def until(self, reached: Callable[[], bool], within: float = 3600.0) -> None:
        """Wait until it is so, looking ten times a second."""
        with trio.fail_after(within):
            while not reached():  # noqa: ASYNC110  # nothing tells of a change in the engine
                await trio.sleep(0.1)

    async def streaming(self) -> None:
        await self.until(lambda: self.state == "STREAMING")


def drain(channel: EventChannel) -> list[Event]:
    """Everything that waits in *channel*."""
    got: list[Event] = []
    while True:
        try:
            got.append(channel.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return got


def open_feed_on(
    kis: MemorySimulator,
    folder: Path,
    *,
    rules: Session | None = None,
    disk: Disk | None = None,
    **changes: object,
) -> AbstractAsyncContextManager[Feed]:
    """A feed of its own, for the length of the block."""
    return open_feed(
        config_for(folder, rules, **changes),
        clock=seams.VirtualClock(WALL),
        rng=seams.seeded_rng(1),
        disk=disk or seams.DirectDisk(),
        dial=kis.dial,
        rest=kis.rest,
    )


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    rules: Session | None = None,
    disk: Disk | None = None,
    options: Options | None = None,
    **changes: object,
) -> AsyncGenerator[World]:
    """Both, for the length of the block."""
    options = Options(rate_hz=2) if options is None else options
    async with (
        open_memory_simulator(options) as kis,
        open_feed_on(kis, folder, rules=rules, disk=disk, **changes) as feed,
    ):
        yield World(feed, kis)
