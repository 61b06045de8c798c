"""The session as it is lived: a feed, a simulated KIS, and everything that goes wrong between."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed import seams
from kisfeed.config import Session as Rules
from kisfeed.core.engine import Count
from kisfeed.feed import open_feed
from kisfeed.gateway.channel import EventChannel
from kisfeed.kfp.events import Gap, Session, Status, Trade
from kisfeed.kfp.messages import Code, Data
from kisfeed.simulator import Fault, Happening, Options
from kisfeed.simulator.faults import GARBAGE, Kind
from kisfeed.testing import open_memory_simulator
from tests.feeds import KEY, TRADE, WALL, World, config_for, drain, open_world

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from kisfeed.kfp.events import Event


def hygiene(folder: Path) -> dict[str, Any]:
    """What the next process would read."""
    (path,) = folder.glob("*.hygiene.json")
    written: dict[str, Any] = json.loads(path.read_bytes())["hygiene"]
    return written


@attrs.define(eq=False)
class Ledger:
    """What a subscriber of one trade topic can add up."""

    channel: EventChannel
    told: list[Event] = attrs.field(factory=list)

    async def listen(self) -> None:
        async for event in self.channel:
            self.told.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [e for e in self.told if isinstance(e, kind)]

    def check(self) -> None:
        """Received and missed add up to what was traded, and nothing is out of order."""
        trades = [t for t in self.of(Trade) if not t.image]
        first, *rest = trades
        missed = [g.missed_qty for g in self.of(Gap)]
        assert None not in missed
        assert first.cum_qty + sum(t.qty for t in rest) + sum(missed) == trades[-1].cum_qty
        assert [t.sseq for t in trades] == list(range(1, len(trades) + 1))


async def listening(world: World, nursery: trio.Nursery) -> Ledger:
    channel = world.feed.subscribe(TRADE)
    assert isinstance(channel, EventChannel)
    ledger = Ledger(channel)
    nursery.start_soon(ledger.listen)
    await world.streaming()
    return ledger


# Faults.

# The fault, how long the session may take to come back, whether its epoch changes.
FAULTS = {
    "reset": (Fault(Kind.CUT), 60.0, True),
    "dropped": (Fault(Kind.DROP), 60.0, True),
    "closed": (Fault(Kind.CLOSE), 60.0, True),
    "half-open": (Fault(Kind.SILENCE), 80.0, True),
    "too long a frame": (Fault(Kind.HUGE), 60.0, True),
    "short silence": (Fault(Kind.SILENCE, lasts=12.0), 20.0, False),
    "garbage": (Fault(Kind.GARBAGE, count=len(GARBAGE)), 10.0, False),
    "invalid utf-8": (Fault(Kind.INVALID_UTF8, count=5), 10.0, False),
    "bad values": (Fault(Kind.BAD_VALUES, count=5), 10.0, False),
    "a new column": (Fault(Kind.EXTRA_COLUMN, count=5, value=3), 10.0, False),
    "withheld": (Fault(Kind.WITHHOLD, count=3), 10.0, False),
    "burst": (Fault(Kind.BURST, count=50), 10.0, False),
    "nobody asked": (Fault(Kind.STRAY_ACK, tr_id=KEY[0], tr_key="000660"), 10.0, False),
    "nobody asked to refuse": (
        Fault(Kind.STRAY_ACK, tr_id=KEY[0], tr_key=KEY[1], code="OPSP8992"), 10.0, False,
    ),
    "no pingpong": (Fault(Kind.NO_PINGPONG, lasts=60.0), 65.0, False),
    "rest down": (Fault(Kind.REST_DOWN, lasts=20.0), 30.0, False),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_under_a_running_session_costs_nothing_untold(
    autojump_clock: MockClock, tmp_path: Path, fault: str
) -> None:
    what, within, changes = FAULTS[fault]
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        ledger = await listening(world, nursery)
        await trio.sleep(61)
        assert world.feed.engine.connection.epoch == 1
        world.kis.inject(what)
        await trio.sleep(within)
        await world.streaming()
        await trio.sleep(5)
        assert world.feed.engine.connection.epoch == (2 if changes else 1)
        ledger.check()
        counts = world.feed.engine.counts
        assert counts[Count.GAPS] == (1 if changes else 0)
        if changes:
            suspect = [s for s in ledger.of(Session) if s.data == Data.SUSPECT and s.epoch == 1]
            assert suspect
            assert ledger.of(Status)[-1].code == Code.REALTIME_RESUMED
            (gap,) = ledger.of(Gap)
            after = next(t for t in ledger.of(Trade) if t.after_gap)
            assert ledger.told.index(gap) == ledger.told.index(after) - 1
        tally = world.kis.exchange.tallies[KEY]
        jumped = counts[Count.JUMPED_QTY]
        if not changes:
            assert jumped == tally.withheld_volume
            assert sum(t.qty for t in ledger.of(Trade)) == tally.volume
            assert len(ledger.of(Trade)) == tally.records
        nursery.cancel_scope.cancel()


async def test_garbage_is_counted_piece_by_piece(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        await listening(world, nursery)
        counts = world.feed.engine.counts
        before = counts[Count.REJECTED]
        world.kis.inject(Fault(Kind.GARBAGE, count=len(GARBAGE)))
        await trio.sleep(1)
        assert counts[Count.REJECTED] == before + len(GARBAGE)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(Kind.REFUSE, lasts=20.0), "refused"),
        (Fault(Kind.ACCEPT_CLOSE, count=1), "upgrade_failed"),
        (Fault(Kind.HANG, count=1), "upgrade_failed"),
        (Fault(Kind.APPROVAL_DOWN, lasts=20.0), "key_unavailable"),
        (Fault(Kind.REST_DOWN, lasts=20.0), "key_unavailable"),
        (Fault(Kind.STRANGER, lasts=30.0), "in_use"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
async def test_a_session_that_cannot_begin_says_why_and_begins_later(
    autojump_clock: MockClock, tmp_path: Path, fault: Fault, reason: str
) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        world.kis.inject(fault)
        ledger = await listening(world, nursery)
        reasons = [s.text for s in ledger.of(Session)]
        assert reason in reasons
        exchange = world.kis.exchange
        left = world.feed.status()["connection"]["budget"][1]
        # What reached no TCP is not charged.
        assert left["count"] - left["left"] == len(exchange.connects)
        assert len(exchange.connects) <= 2
        nursery.cancel_scope.cancel()


async def test_pingpong_is_answered_at_once_as_text(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        await listening(world, nursery)
        opened = world.kis.exchange.sessions[0].opened_at
        await trio.sleep(95)
        times = world.kis.exchange.times(Happening.PONG, "text")
        assert times == [opened + 10.0 * n for n in range(1, len(times) + 1)]
        assert len(times) >= 9
        assert world.kis.exchange.sessions[0].pongs == {"text": len(times)}
        nursery.cancel_scope.cancel()


async def test_a_refused_key_is_replaced_inside_the_session(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        ledger = await listening(world, nursery)
        world.kis.inject(Kind.KEY_EXPIRED)
        other = world.feed.subscribe("trade.krx.000660")
        await trio.sleep(10)
        assert isinstance(other, EventChannel)
        assert any(isinstance(e, Trade) for e in drain(other))
        assert world.feed.engine.connection.epoch == 1
        assert len(world.kis.exchange.times(Happening.APPROVAL)) == 2
        ledger.check()
        nursery.cancel_scope.cancel()


async def test_a_sleep_of_the_machine_is_noticed(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        ledger = await listening(world, nursery)
        await trio.sleep(10)
        clock = world.feed.clock
        assert isinstance(clock, seams.VirtualClock)
        clock.suspended_s += 600
        await trio.sleep(10)
        assert any(s.data == Data.SUSPECT for s in ledger.of(Session)[4:])
        assert world.state == "STREAMING"
        nursery.cancel_scope.cancel()


# The record on disk.


@attrs.define(eq=False)
class SlowDisk(seams.DirectDisk):
    """Takes its time, and says what it was given."""

    takes_s: float = 0.0
    fails: bool = False
    written: list[tuple[float, dict[str, Any]]] = attrs.field(factory=list)

    async def write(self, path: Path, data: bytes) -> None:
        await trio.sleep(self.takes_s)
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        seams.write_atomically(path, data)
        if path.name.endswith(".hygiene.json"):
            self.written.append((trio.current_time(), json.loads(data)["hygiene"]))


async def test_a_dial_is_on_disk_before_it_is_made(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    disk = SlowDisk(takes_s=3.0)
    async with open_world(tmp_path, disk=disk) as world, trio.open_nursery() as nursery:
        await listening(world, nursery)
        (dialled,) = world.kis.exchange.connects
        charges = [at for at, record in disk.written if record["dialling"]]
        assert charges
        assert min(charges) <= dialled
        nursery.cancel_scope.cancel()


async def test_a_full_disk_stops_nothing_and_is_shown(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    disk = SlowDisk(fails=True)
    async with open_world(tmp_path, disk=disk) as world, trio.open_nursery() as nursery:
        await listening(world, nursery)
        assert "No space left" in world.feed.status()["state_folder"]
        disk.fails = False
        world.kis.inject(Kind.CUT)
        await trio.sleep(1)
        assert world.feed.status()["state_folder"] == "ok"
        nursery.cancel_scope.cancel()


# Ends.


@pytest.mark.parametrize("how", ["left", "cancelled", "raised"])
async def test_the_end_closes_the_session_and_says_so_on_disk(
    autojump_clock: MockClock, tmp_path: Path, how: str
) -> None:
    channel = None
    async with open_memory_simulator(Options()) as kis:
        try:
            with trio.CancelScope() as scope:
                async with open_feed(
                    config_for(tmp_path),
                    clock=seams.VirtualClock(WALL),
                    rng=seams.seeded_rng(1),
                    disk=seams.DirectDisk(),
                    dial=kis.dial,
                    rest=kis.rest,
                ) as feed:
                    channel = feed.subscribe(TRADE)
                    await trio.sleep(5)
                    if how == "cancelled":
                        scope.cancel()
                        await trio.sleep_forever()
                    if how == "raised":
                        raise ValueError("mine")  # noqa: TRY301  # what a body may do
        except* ValueError:
            assert how == "raised"
        assert kis.exchange.open_sessions == []
        (session,) = kis.exchange.sessions
        assert session.clean
        record = hygiene(tmp_path)
        assert (record["open"], record["unclosed_s"]) == (False, None)
        assert len(record["dials"]) == 1
        assert isinstance(channel, EventChannel)
        last = drain(channel)[-1]
        assert isinstance(last, Session)
        assert last.text == "stopped"


async def test_the_end_waits_only_so_long_for_a_dead_peer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rules = Rules()
    async with open_world(tmp_path) as world:
        world.feed.subscribe(TRADE)
        await world.streaming()
        world.kis.inject(Kind.SILENCE)
        began = trio.current_time()
    assert trio.current_time() - began <= rules.close_timeout_s + 1


async def test_an_end_while_dialling_leaves_nothing_behind(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as world:
        world.kis.inject(Fault(Kind.HANG))
        world.feed.subscribe(TRADE)
        await trio.sleep(3)
        began = trio.current_time()
        assert world.state == "CONNECTING"
    assert trio.current_time() - began <= 3
    assert hygiene(tmp_path)["open"] is False


async def test_a_second_feed_waits_out_what_the_first_left_unclosed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_memory_simulator(Options()) as kis:
        for _ in range(2):
            async with open_feed(
                config_for(tmp_path),
                clock=seams.VirtualClock(WALL),
                rng=seams.seeded_rng(1),
                disk=seams.DirectDisk(),
                dial=kis.dial,
                rest=kis.rest,
            ) as feed:
                feed.subscribe(TRADE)
                await trio.sleep(70)
                kis.inject(Kind.CUT)
                await trio.sleep(1)
        # KIS holds an unclosed session for a while: nobody ran into it.
        assert kis.exchange.times(Happening.IN_USE) == []
        assert len(kis.exchange.connects) >= 2
