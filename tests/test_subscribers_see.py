"""What a subscriber is told of the session's troubles: at once, one by one, in shares.

The whole feed against the simulator, in memory and in virtual time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from kisfeed import feed as feeds
from kisfeed.config import Config, Credentials, Endpoints, Environment, Secret, Session, State
from kisfeed.core.connection import State as SessionState
from kisfeed.errors import AppkeyInUse
from kisfeed.gateway.channel import EventChannel
from kisfeed.kfp.events import Event, Gap, Session as SessionEvent, Status, Trade
from kisfeed.kfp.messages import Code, Data, Stream
from kisfeed.seams import DirectDisk, VirtualClock, seeded_rng
from kisfeed.testing import Fault, Kind, MemorySimulator, Options, Rules, open_memory_simulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

SAMSUNG, HYNIX = "trade.krx.005930", "trade.krx.000660"
MANY = [f"trade.krx.{100_010 + 10 * n}" for n in range(45)]
WAITED = [Code.PENDING, Code.OVER_LIMIT, Code.PENDING, Code.NONE]
START_NS = 1_795_000_000 * 10**9


def cum_qty(trade: Trade) -> int:
    assert trade.cum_qty is not None
    return trade.cum_qty


def volume_before(trade: Trade) -> int:
    assert trade.qty is not None
    return cum_qty(trade) - trade.qty


@attrs.define(eq=False)
class Reader:
    """A subscription and everything it was told: (seconds, event)."""

    channel: EventChannel
    heard: list[tuple[float, Event]] = attrs.field(factory=list)

    async def run(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            async for event in self.channel:
                self.heard.append((trio.current_time(), event))

    def of(self, topic: str) -> list[Event]:
        return [e for _, e in self.heard if getattr(e, "topic", None) == topic]

    def trades(self, topic: str) -> list[Trade]:
        return [e for e in self.of(topic) if isinstance(e, Trade) and not e.image]

    def gaps(self, topic: str) -> list[Gap]:
        return [e for e in self.of(topic) if isinstance(e, Gap)]

    def statuses(self, topic: str) -> list[Status]:
        """What is told of the registration; polled rows that stand in for it are another story."""
        found = [e for e in self.of(topic) if isinstance(e, Status)]
        return [e for e in found if e.code != Code.SOURCE_POLL]

    def codes(self, topic: str) -> list[Code | str]:
        return [status.code for status in self.statuses(topic)]

    def told_at(self, kind: type[Event], topic: str | None = None) -> list[tuple[float, Event]]:
        return [
            (at, e)
            for at, e in self.heard
            if isinstance(e, kind) and topic in {None, getattr(e, "topic", None)}
        ]

    def unexplained(self, topic: str) -> list[tuple[Trade, Trade]]:
        """Neighbouring trades whose volumes leave shares that no GAP between them tells."""
        found: list[tuple[Trade, Trade]] = []
        before: Trade | None = None
        missed = 0
        for event in self.of(topic):
            if isinstance(event, Gap):
                assert event.missed_qty is not None
                missed += event.missed_qty
            elif isinstance(event, Trade) and not event.image:
                if before is not None and volume_before(event) != cum_qty(before) + missed:
                    found.append((before, event))
                before, missed = event, 0
        return found


@attrs.define(eq=False)
class World:
    feed: feeds.Feed
    simulator: MemorySimulator
    nursery: trio.Nursery

    def read(self, *topics: str, prio: int = 0) -> Reader:
        channel = self.feed.subscribe(*topics, prio=prio)
        assert isinstance(channel, EventChannel)
        reader = Reader(channel)
        self.nursery.start_soon(reader.run)
        return reader

    def volume(self, topic: str) -> int:
        """Shares traded, whoever was there."""
        return self.simulator.market.tape("krx", topic.rpartition(".")[2]).volume


def config(folder: Path | str, **rules: object) -> Config:
    return Config(
        environment=Environment.SIM,
        credentials=Credentials(Secret("an appkey"), Secret("its secret")),
        endpoints=Endpoints("http://127.0.0.1:1", "ws://127.0.0.1:1"),
        state=State(str(folder)),
        session=Session(**rules),  # type: ignore[arg-type]  # field by field
    )


@contextlib.asynccontextmanager
async def open_world(
    folder: Path | str, options: Options | None = None, *, seed: int = 1, **rules: object
) -> AsyncGenerator[World]:
    options = options or Options(rate_hz=0.2, rules=Rules(hold_s=1.0))
    async with (
        open_memory_simulator(options) as simulator,
        feeds.open_feed(
            config(folder, **rules),
            clock=VirtualClock(START_NS),
            rng=seeded_rng(seed),
            disk=DirectDisk(),
            dial=simulator.dial,
            rest=simulator.rest,
        ) as feed,
        trio.open_nursery() as nursery,
    ):
        yield World(feed, simulator, nursery)
        nursery.cancel_scope.cancel()


async def test_a_broken_line_is_suspect_at_once_for_all_and_ok_one_by_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        readers = [world.read(SAMSUNG, HYNIX), world.read(SAMSUNG), world.read(HYNIX)]
        await trio.sleep(90)
        before = [len(reader.heard) for reader in readers]
        world.simulator.inject(Kind.CUT)
        cut_at = trio.current_time()
        await trio.sleep(0.2)
        for reader, n in zip(readers, before, strict=True):
            at, first = next((at, e) for at, e in reader.heard[n:] if not isinstance(e, Trade))
            assert isinstance(first, SessionEvent)
            assert (first.data, first.state) == (Data.SUSPECT, SessionState.RECONNECT_BACKOFF)
            assert at - cut_at < 0.1
        await trio.sleep(120)
        for reader, n in zip(readers, before, strict=True):
            since = [e for _, e in reader.heard[n:]]
            for topic in {e.topic for e in since if isinstance(e, Trade)}:
                # Nothing of a topic passes as good before the topic itself is told to be.
                own = [e for e in since if getattr(e, "topic", None) == topic]
                (status,) = [s for s in reader.statuses(topic) if s in own]
                assert (status.stream, status.data) == (Stream.OPEN, Data.OK)
                after_gap = next(e for e in own if isinstance(e, Trade) and e.flags & 4)
                assert own.index(status) < own.index(after_gap)
        both = readers[0].told_at(Status)
        resumed = [e for _, e in both if isinstance(e, Status) and e.code == Code.REALTIME_RESUMED]
        assert [e.topic for e in resumed] == [SAMSUNG, HYNIX]


async def test_the_gap_tells_from_when_to_when_and_how_many_shares(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        reader = world.read(SAMSUNG)
        await trio.sleep(90)
        before = reader.trades(SAMSUNG)[-1]
        world.simulator.inject(Kind.CUT)
        await trio.sleep(90)
        world.simulator.inject(Kind.QUIET)
        await trio.sleep(1)
        (gap,) = reader.gaps(SAMSUNG)
        after = reader.trades(SAMSUNG)[before.sseq]
        assert gap.code == Code.GAP_DETECTED
        assert (
            (gap.last_sseq, gap.next_sseq)
            == (before.sseq, after.sseq)
            == (
                before.sseq,
                before.sseq + 1,
            )
        )
        assert (gap.from_rts, gap.to_rts) == (before.rts, after.rts)
        assert gap.missed_qty is not None
        assert gap.missed_qty > 0
        received = sum(t.qty or 0 for t in reader.trades(SAMSUNG))
        first = reader.trades(SAMSUNG)[0]
        assert volume_before(first) + received + gap.missed_qty == world.volume(SAMSUNG)
        assert reader.unexplained(SAMSUNG) == []


async def test_shares_the_server_withheld_in_a_living_session_are_a_jump(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        reader = world.read(SAMSUNG)
        await trio.sleep(30)
        world.simulator.inject(Fault(Kind.WITHHOLD, count=7))
        await trio.sleep(60)
        tally = world.simulator.exchange.tallies["H0STCNT0", "005930"]
        (gap,) = reader.gaps(SAMSUNG)
        assert gap.code == Code.VOLUME_JUMP
        assert gap.missed_qty == tally.withheld_volume > 0
        assert reader.unexplained(SAMSUNG) == []


async def test_whoever_gets_no_slot_is_told_so_and_told_when_it_comes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        holding = [world.read(topic) for topic in MANY[:41]]
        await trio.sleep(30)
        assert world.feed.engine.slots_map()["used"] == 41
        late = world.read(MANY[41])
        await wait_all_tasks_blocked()
        first, status = late.statuses(MANY[41])
        assert first.code == Code.PENDING
        assert (status.stream, status.data) == (Stream.RECOVERING, Data.NONE)
        assert (status.code, status.text) == (Code.OVER_LIMIT, "41 of 41 slots are taken")
        again = world.read(MANY[41])
        await trio.sleep(1)
        holding[7].channel.close()  # nobody wants that one any more
        await trio.sleep(20)
        assert late.codes(MANY[41]) == WAITED
        assert again.codes(MANY[41]) == WAITED[1:]
        assert late.trades(MANY[41])
        assert world.simulator.exchange.most_registrations == 41


async def test_a_newcomer_waits_for_the_oldest_slots_dwell_and_takes_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        holders = {topic: world.read(topic) for topic in MANY[:41]}
        await trio.sleep(30)
        late = world.read(MANY[41])
        await trio.sleep(90)
        assert late.codes(MANY[41]) == [Code.PENDING, Code.OVER_LIMIT, Code.NONE]
        polled = [s for s in late.of(MANY[41]) if isinstance(s, Status) and s.stream == 2]
        assert {status.code for status in polled} == {Code.SOURCE_POLL}
        preempted = [t for t, r in holders.items() if Code.PREEMPTED in r.codes(t)]
        assert preempted == MANY[:1]
        assert [status.stream for status in holders[MANY[0]].statuses(MANY[0])] == [
            Stream.RECOVERING,
            Stream.OPEN,
            Stream.RECOVERING,
        ]


async def test_more_wanted_than_slots_before_there_is_a_session_is_told_with_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        reader = world.read(*MANY[:43])
        await trio.sleep(30)
        over = [topic for topic in MANY[:43] if Code.OVER_LIMIT in reader.codes(topic)]
        assert len(over) == 2
        for topic in over:
            assert reader.codes(topic) == [Code.PENDING, Code.OVER_LIMIT]
            assert not reader.trades(topic)
        for topic in MANY[:43]:
            assert (topic in over) is not bool(reader.trades(topic))


async def test_a_better_topic_preempts_and_the_old_one_is_promoted_back_with_its_gap(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        reader = world.read(*MANY[:41])
        await trio.sleep(90)
        urgent = world.read(MANY[41], prio=9)
        await trio.sleep(10)
        assert urgent.codes(MANY[41]) == [Code.PENDING, Code.NONE]
        (victim,) = (t for t in MANY[:41] if Code.PREEMPTED in reader.codes(t))
        status = reader.statuses(victim)[-1]
        assert (status.stream, status.data) == (Stream.RECOVERING, Data.SUSPECT)
        await trio.sleep(60)
        assert reader.codes(victim)[-1] == Code.PREEMPTED
        urgent.channel.close()
        await trio.sleep(30)
        status = reader.statuses(victim)[-1]
        assert (status.stream, status.data, status.code) == (
            Stream.OPEN,
            Data.OK,
            Code.PROMOTED,
        )
        (gap,) = reader.gaps(victim)
        assert gap.code == Code.PROMOTED
        assert gap.missed_qty
        assert reader.unexplained(victim) == []
        for topic in MANY[:41]:
            assert topic == victim or not reader.gaps(topic)


async def test_the_preempted_are_promoted_also_over_a_broken_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        reader = world.read(*MANY[:41])
        await trio.sleep(90)
        urgent = world.read(MANY[41], prio=9)
        await trio.sleep(10)
        (victim,) = (t for t in MANY[:41] if Code.PREEMPTED in reader.codes(t))
        world.simulator.inject(Kind.CLOSE)
        await trio.sleep(120)
        assert reader.statuses(victim)[-1].stream is not Stream.OPEN
        urgent.channel.close()
        await trio.sleep(30)
        assert reader.codes(victim)[-1] == Code.PROMOTED
        assert reader.unexplained(victim) == []


async def test_a_refused_topic_is_closed_with_what_kis_said(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        reader = world.read("trade.krx.999999", SAMSUNG)
        await trio.sleep(30)
        _, status = reader.statuses("trade.krx.999999")
        assert (status.stream, status.code) == (Stream.CLOSED, Code.REJECTED)
        assert status.text.startswith("OPSP")
        assert reader.trades(SAMSUNG)


async def test_a_second_feed_of_the_appkey_is_told_who_has_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path):
        with pytest.raises(AppkeyInUse) as caught:
            async with feeds.open_feed(
                config(tmp_path), clock=VirtualClock(START_NS), disk=DirectDisk()
            ):
                pass
    assert caught.value.pid is not None
    assert caught.value.since_ts is not None
    assert caught.value.since_ts // 10**9 == START_NS // 10**9


TROUBLES = st.sampled_from(
    [
        Fault(Kind.CUT),
        Fault(Kind.DROP),
        Fault(Kind.CLOSE),
        Fault(Kind.SILENCE, lasts=200.0),
        Fault(Kind.SILENCE, lasts=8.0),
        Fault(Kind.WITHHOLD, count=3),
        Fault(Kind.WITHHOLD, tr_key="005930", count=5),
        Fault(Kind.REFUSE, lasts=30.0),
        Fault(Kind.DROP_KEY, tr_id="H0STCNT0", tr_key="000660"),
        Fault(Kind.ACK_LOST, count=2),
        Fault(Kind.GARBAGE),
        Fault(Kind.QUIET, lasts=20.0),
    ]
)


@settings(max_examples=4, deadline=None)
@given(
    plan=st.lists(st.tuples(TROUBLES, st.floats(0.1, 90.0)), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_no_storm_leaves_a_silent_hole(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[Fault, float]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("state")

    async def main() -> None:
        options = Options(seed=seed, rate_hz=0.1, rules=Rules(hold_s=1.0))
        async with open_world(folder, options, seed=seed) as world:
            reader = world.read(SAMSUNG, HYNIX)
            await trio.sleep(20)
            for fault, then in plan:
                world.simulator.inject(fault)
                await trio.sleep(then)
            await trio.sleep(2500)
            world.simulator.inject(Kind.QUIET)
            await trio.sleep(1)
            for topic in (SAMSUNG, HYNIX):
                assert reader.unexplained(topic) == []
                first, last = reader.trades(topic)[0], reader.trades(topic)[-1]
                missed = sum(gap.missed_qty or 0 for gap in reader.gaps(topic))
                received = sum(t.qty or 0 for t in reader.trades(topic))
                assert volume_before(first) + received + missed == cum_qty(last)
                assert cum_qty(last) == world.volume(topic)
                status = reader.statuses(topic)[-1]
                assert (status.stream, status.data) == (Stream.OPEN, Data.OK)
            assert world.feed.engine.connection.state is SessionState.STREAMING
            assert world.simulator.exchange.most_registrations <= 41

    trio.run(main, clock=MockClock(autojump_threshold=0))
