"""``open_feed``: one KIS session inside a Trio program."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from kisfeed import seams
from kisfeed.config import Endpoints, Environment, State, Subscriptions
from kisfeed.errors import AppkeyInUse, ConfigError, StateError, UnknownTopic, UsageError
from kisfeed.feed import open_feed
from kisfeed.kfp.events import Book, Event, Lost, Raw, Session, Status, Trade
from kisfeed.simulator import Options
from kisfeed.testing import Happening, open_memory_simulator
from tests.feeds import APPKEY, TRADE, World, config_for, drain, open_feed_on, open_world

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from kisfeed.gateway.channel import EventChannel


async def test_a_subscription_yields_typed_events(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    topics = (TRADE, "book.krx.005930", "raw.H0STCNT0.005930")
    async with open_world(tmp_path) as world, world.feed.subscribe(*topics) as channel:
        got: list[Event] = []
        while len([e for e in got if isinstance(e, Raw)]) < 20:
            got += await channel.receive_batch()
    kinds = [type(e) for e in got]
    assert kinds[:4] == [Session, Status, Status, Status]
    assert {Trade, Book, Raw} <= set(kinds)
    trades = [e for e in got if isinstance(e, Trade)]
    assert [t.sseq for t in trades] == list(range(1, len(trades) + 1))
    assert all(t.topic == TRADE and t.scale == 0 and isinstance(t.px, int) for t in trades)


async def test_fifteen_symbols_and_two_subscribers_miss_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    topics = [f"trade.krx.{100_000 + n}" for n in range(15)]
    got: list[list[Event]] = [[], []]

    async def listen(channel: EventChannel, into: list[Event]) -> None:
        async for event in channel:
            into.append(event)  # noqa: PERF401  # it is looked at while it grows

    options = Options(rate_hz=20, records=(1, 4))
    async with (
        open_world(tmp_path, options=options) as world,
        trio.open_nursery() as nursery,
    ):
        for into in got:
            nursery.start_soon(listen, world.feed.subscribe(*topics), into)
        await trio.sleep(4)
        tallies = {key: (t.records, t.volume) for key, t in world.kis.exchange.tallies.items()}
        nursery.cancel_scope.cancel()
    assert len(tallies) == 15
    assert sum(records for records, _ in tallies.values()) > 15 * 20 * 2
    for events in got:
        rows = [e for e in events if isinstance(e, Trade)]
        for topic in topics:
            mine = [r for r in rows if r.topic == topic]
            assert [r.sseq for r in mine] == list(range(1, len(mine) + 1))
            symbol = topic.rpartition(".")[2]
            assert (len(mine), sum(r.qty or 0 for r in mine)) == tallies["H0STCNT0", symbol]
        assert not [e for e in events if isinstance(e, Lost)]
    rows_of_both = [[e for e in events if isinstance(e, Trade)] for events in got]
    assert rows_of_both[0] == rows_of_both[1]  # the same objects, in the same order


async def test_events_are_fanned_into_the_callers_own_channel(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        send, receive = trio.open_memory_channel[Event](10)
        with send, receive:
            pump = world.feed.subscribe(TRADE, into=send)
            await trio.sleep(30)
            assert pump.lost > 0
            got: list[Event] = []
            while not any(isinstance(e, Lost) for e in got):
                got.append(await receive.receive())
            lost = next(e for e in got if isinstance(e, Lost))
            assert lost.topic == TRADE
            assert lost.n == lost.to_sseq - lost.from_sseq + 1
            pump.close()
            assert world.feed.engine.subscriptions.clients(0.0) == []


async def test_losses_are_told_though_nothing_more_arrives(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        send, receive = trio.open_memory_channel[Event](8)
        with send, receive:
            pump = world.feed.subscribe(TRADE, into=send)
            await world.until(lambda: pump.lost > 3)
            world.kis.inject("quiet")
            await trio.sleep(1)
            began = trio.current_time()
            with trio.fail_after(5):
                while not isinstance(await receive.receive(), Lost):
                    pass
            assert trio.current_time() - began < 1


async def test_a_tick_held_back_by_hz_reaches_the_callers_channel(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        send, receive = trio.open_memory_channel[Event](100)
        with send, receive:
            world.feed.subscribe(TRADE, hz=0.1, into=send)
            times: list[float] = []
            while len(times) < 4:
                if isinstance(await receive.receive(), Trade):
                    times.append(trio.current_time())
            assert [round(b - a, 3) for a, b in itertools.pairwise(times)] == [10.0] * 3


async def test_a_channel_that_its_owner_closed_does_not_harm_the_feed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        other = world.feed.subscribe(TRADE)
        send, receive = trio.open_memory_channel[Event](100)
        pump = world.feed.subscribe(TRADE, into=send)
        await world.streaming()
        send.close()
        receive.close()
        await trio.sleep(5)
        assert pump.closed
        assert [client["conn"] for client in world.feed.engine.subscriptions.clients(0.0)] == [1]
        assert any(isinstance(e, Trade) for e in drain(other))


async def test_what_cannot_be_subscribed_leaves_nothing_behind(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(UnknownTopic):
            world.feed.subscribe(TRADE, "trade.mars.1")
        with pytest.raises(UsageError, match="mode is one of"):
            world.feed.subscribe(TRADE, mode="fast")
        for hz in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match="hz"):
                world.feed.subscribe(TRADE, mode="hz", hz=hz)
        with pytest.raises(UsageError, match="prio"):
            world.feed.subscribe(TRADE, prio=10)
        assert world.feed.engine.subscriptions.clients(0.0) == []
        await trio.sleep(5)
        assert world.state == "IDLE"


async def test_a_refused_topic_is_told_to_who_comes_later(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        world.feed.subscribe("trade.krx.999999")
        await trio.sleep(5)
        late = world.feed.subscribe("trade.krx.999999")
        told = [e for e in drain(late) if isinstance(e, Status)]
        assert told[0].code == "rejected"
        assert told[0].text.startswith("OPSP8992")


async def test_one_appkey_has_one_feed(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(tmp_path):
        with pytest.raises(AppkeyInUse, match=f"pid {os.getpid()}") as caught:
            async with open_feed(config_for(tmp_path)):
                raise AssertionError("two sessions of one appkey")
    assert caught.value.pid == os.getpid()
    async with open_world(tmp_path):
        pass
    for path in tmp_path.iterdir():
        assert APPKEY not in path.name
        assert APPKEY.encode() not in path.read_bytes()


async def test_a_state_folder_that_cannot_be_is_told_before_anything(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StateError):
        async with open_feed(config_for(tmp_path, state=State(str(tmp_path / "file" / "x")))):
            raise AssertionError("there is no folder")


async def test_a_simulator_needs_its_addresses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_feed(config_for(tmp_path, endpoints=Endpoints())):
            raise AssertionError("there is no address")
    assert [path for path, _ in caught.value.problems] == ["endpoints.rest", "endpoints.ws"]


async def test_a_pinned_topic_that_does_not_exist_is_a_configuration_error(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    pinned = Subscriptions((TRADE, "trade.mars.1"))
    with pytest.raises(ConfigError) as caught:
        async with open_feed(config_for(tmp_path, subscriptions=pinned)):
            raise AssertionError("there is no such topic")
    assert [path for path, _ in caught.value.problems] == ["subscriptions.pinned"]


async def test_a_pinned_topic_is_held_from_the_start(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path, subscriptions=Subscriptions((TRADE,))) as world:
        await world.streaming()


async def test_what_the_body_raises_comes_out(autojump_clock: MockClock, tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="mine"), flatten_subgroups=True):
        async with open_world(tmp_path):
            raise ValueError("mine")


@pytest.mark.parametrize("ticks", range(12))
async def test_a_feed_can_be_cancelled_at_any_moment(
    autojump_clock: MockClock, tmp_path: Path, ticks: int
) -> None:
    async def run() -> None:
        async with open_world(tmp_path) as world:
            world.feed.subscribe(TRADE)
            await trio.sleep_forever()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    async with open_world(tmp_path):
        pass  # the lease is free again


async def test_a_feed_in_a_cancelled_block_does_not_hang(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    with trio.move_on_after(0):
        async with open_world(tmp_path):
            await trio.sleep_forever()
    assert trio.current_time() < 30


async def test_a_cancelled_feed_closes_its_session_before_the_body_is_done(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_memory_simulator(Options(rate_hz=2)) as kis:
        with trio.CancelScope() as program:
            async with open_feed_on(kis, tmp_path) as feed:
                feed.subscribe(TRADE)
                await World(feed, kis).streaming()
                program.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.9)
                        history = kis.exchange.history
                        closed = [h.code for h in history if h.what is Happening.CLOSED]
    assert closed == ["clean"]


async def test_status_is_what_kisfeed_status_shows(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        world.feed.subscribe(TRADE)
        await world.streaming()
        status = world.feed.status()
        assert status["environment"] == Environment.SIM
        assert status["state_folder"] == "ok"
        assert status["counts"]["records"] > 0
        assert APPKEY not in str(status)


async def test_closing_a_subscription_after_the_feed_is_harmless(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        channel = world.feed.subscribe(TRADE)
        await world.streaming()
    assert [e async for e in channel]
    channel.close()


async def test_a_feed_of_real_disk_and_clock_works_too(tmp_path: Path) -> None:
    # The system's own clock, randomness and threads, for half a second.
    async with (
        open_memory_simulator(Options(rate_hz=50)) as kis,
        open_feed(config_for(tmp_path), dial=kis.dial, rest=kis.rest) as feed,
    ):
        with trio.fail_after(5):
            async for event in feed.subscribe(TRADE):
                if isinstance(event, Trade):
                    break
    assert isinstance(feed.clock, seams.SystemClock)
