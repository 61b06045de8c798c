"""In-process subscriptions: batches, ends, and a full channel's losses told."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from kisfeed.core.outbox import Outbox
from kisfeed.gateway.channel import EventChannel, EventPump
from kisfeed.kfp.events import Event, Gap, Lost, Trade, row_maker
from kisfeed.kfp.messages import Code, Mode, Type

if TYPE_CHECKING:
    from collections.abc import Callable

TOPIC = "trade.krx.005930"
ROW = (71_000, 10, 100, *([None] * 12))


def tick(sseq: int, kind: Type = Type.TICK) -> Event:
    return row_maker("trade.v1", TOPIC, 0)([kind, 1, sseq, 0, None, 1, *ROW])


def gap(number: int = 0) -> Gap:
    return Gap(TOPIC, 1, number, number + 1, None, None, 5, Code.GAP_DETECTED)


def an_outbox(mode: Mode = Mode.ALL, hz: float = 0.0, protected: int = 1 << 20) -> Outbox[Event]:
    outbox: Outbox[Event] = Outbox(
        size=lambda _: 1,
        lost=lambda sid, first, last, n, code: Lost(TOPIC, sid, first, last, n, code),
        queue_bytes=1 << 20,
        max_age_s=math.inf,
        max_age_latest_s=math.inf,
        protected_bytes=protected,
    )
    outbox.open(1, mode, hz, 0, trades=True)
    return outbox


@attrs.define(eq=False)
class Source:
    """Feeds a channel or a pump."""

    outbox: Outbox[Event] = attrs.field(factory=an_outbox)
    closed: list[None] = attrs.field(factory=list)
    sink: EventChannel | EventPump | None = None

    def on_close(self) -> None:
        self.closed.append(None)

    def channel(self) -> EventChannel:
        self.sink = channel = EventChannel(self.outbox, trio.current_time, self.on_close)
        return channel

    def pump(self, size: float) -> tuple[EventPump, trio.MemoryReceiveChannel[Event]]:
        send, receive = trio.open_memory_channel[Event](size)
        self.sink = pump = EventPump(self.outbox, send, trio.current_time, self.on_close)
        return pump, receive

    def ticks(self, *numbers: int) -> None:
        for number in numbers:
            self.outbox.tick(1, number, tick(number), trio.current_time())
        self.flush()

    def control(self, *told: Event) -> None:
        for event in told:
            self.outbox.control(event, trio.current_time())
        self.flush()

    def flush(self) -> None:
        assert self.sink is not None
        self.sink.flush()


def numbers(got: list[Event]) -> list[int | str]:
    return [e.sseq if isinstance(e, Trade) else type(e).__name__ for e in got]


def drain(receive: trio.MemoryReceiveChannel[Event], most: int = 10**6) -> list[Event]:
    got: list[Event] = []
    while len(got) < most:
        try:
            got.append(receive.receive_nowait())
        except trio.WouldBlock:
            break
    return got


# The channel.


async def test_events_come_in_order_one_by_one_or_in_a_batch() -> None:
    source = Source()
    channel = source.channel()
    source.ticks(1, 2)
    source.control(gap())
    source.ticks(3)
    with assert_checkpoints():
        first = await channel.receive()
    with assert_checkpoints():
        rest = await channel.receive_batch()
    assert numbers([first, *rest]) == [1, 2, "Gap", 3]
    with pytest.raises(trio.WouldBlock):
        channel.receive_nowait()


async def test_a_waiting_receiver_is_woken(autojump_clock: MockClock) -> None:
    source = Source()
    channel = source.channel()
    got: list[Event] = []

    async def receive() -> None:
        got.extend(await channel.receive_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        source.ticks(1, 2)
    assert numbers(got) == [1, 2]


async def test_several_receivers_share_the_events(autojump_clock: MockClock) -> None:
    source = Source()
    channel = source.channel()
    got: list[Event] = []

    async def receive() -> None:
        got.extend([event async for event in channel])

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        for number in range(1, 10):
            source.ticks(number)
            await wait_all_tasks_blocked()
        channel.end()
    assert sorted(e.sseq for e in got if isinstance(e, Trade)) == list(range(1, 10))


async def test_closing_ends_the_subscription_once(autojump_clock: MockClock) -> None:
    source = Source()
    channel = source.channel()
    source.ticks(1)

    async def receive() -> None:
        await channel.receive()
        with pytest.raises(trio.ClosedResourceError):
            await channel.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        channel.close()
        await channel.aclose()
    assert source.closed == [None]
    with pytest.raises(trio.ClosedResourceError):
        channel.receive_nowait()


async def test_what_is_queued_outlives_the_feed() -> None:
    source = Source()
    channel = source.channel()
    source.ticks(1, 2)
    channel.end()
    assert numbers([event async for event in channel]) == [1, 2]
    with pytest.raises(trio.EndOfChannel):
        await channel.receive()


async def test_a_held_back_tick_comes_when_it_is_due(autojump_clock: MockClock) -> None:
    source = Source(an_outbox(Mode.HZ, hz=0.5))
    channel = source.channel()
    source.ticks(1)
    assert numbers([await channel.receive()]) == [1]
    source.ticks(2, 3)
    assert numbers([await channel.receive()]) == [3]
    assert trio.current_time() == 2
    source.ticks(4)
    channel.end()
    assert numbers([event async for event in channel]) == [4]
    assert trio.current_time() == 4


async def test_a_cancelled_receive_takes_nothing(autojump_clock: MockClock) -> None:
    source = Source()
    channel = source.channel()
    with trio.move_on_after(1) as scope:
        await channel.receive()
    assert scope.cancelled_caught
    source.ticks(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.receive()
    assert scope.cancelled_caught
    assert numbers([await channel.receive()]) == [1]


async def test_a_receiver_too_slow_for_gaps_loses_the_subscription_not_a_gap() -> None:
    source = Source(an_outbox(protected=3))
    channel = source.channel()
    source.control(*(gap(number) for number in range(10)))
    assert source.closed == [None]
    got = [await channel.receive() for _ in range(4)]
    assert [g.last_sseq for g in got if isinstance(g, Gap)] == [0, 1, 2, 3]
    with pytest.raises(trio.BrokenResourceError):
        await channel.receive()
    channel.close()
    assert source.closed == [None]


# The pump.


async def test_a_pump_fills_the_callers_channel_at_once() -> None:
    source = Source()
    pump, receive = source.pump(10)
    source.ticks(1, 2)
    source.control(gap())
    assert numbers(drain(receive)) == [1, 2, "Gap"]
    assert pump.lost == 0
    assert pump.due == math.inf


async def test_a_full_channel_loses_rows_only_and_tells_how_many() -> None:
    source = Source()
    pump, receive = source.pump(2)
    source.ticks(1, 2, 3, 4)
    source.control(gap())
    source.ticks(5)
    assert pump.lost == 3
    assert numbers(drain(receive)) == [1, 2]
    assert trio.current_time() < pump.due < trio.current_time() + 1
    source.ticks(6)
    assert numbers(drain(receive)) == ["Gap", "Lost"]
    assert pump.lost == 4  # there was no room yet for the sixth
    pump.flush()
    assert drain(receive) == [Lost(TOPIC, 1, 6, 6, 1, Code.OVER_LIMIT)]
    assert pump.due == math.inf


@given(st.lists(st.one_of(st.sampled_from(["tick", "gap", "flush"]), st.integers(1, 6))))
def test_every_row_is_received_or_told_as_lost_in_order(plan: list[str | int]) -> None:
    async def main() -> None:
        source = Source()
        pump, receive = source.pump(3)
        got: list[Event] = []
        sent = told = 0
        for step in plan:
            if step == "tick":
                sent += 1
                source.ticks(sent)
            elif step == "gap":
                told += 1
                source.control(gap(told))
            elif step == "flush":
                source.flush()
            else:
                assert isinstance(step, int)
                got += drain(receive, step)
        for _ in range(sent + told + 2):
            got += drain(receive)
            source.flush()
        lost = [e for e in got if isinstance(e, Lost)]
        rows = [e.sseq for e in got if isinstance(e, Trade)]
        assert rows == sorted(rows)
        assert len(rows) + sum(e.n for e in lost) == sent
        assert sum(e.n for e in lost) == pump.lost
        assert [e.last_sseq for e in got if isinstance(e, Gap)] == list(range(1, told + 1))
        # A jump is told before the row behind it.
        known = 0
        for event in got:
            if isinstance(event, Lost):
                known = max(known, event.to_sseq)
            elif isinstance(event, Trade):
                assert event.sseq == known + 1
                known = event.sseq

    trio.run(main)


@pytest.mark.parametrize("end", ["receiver", "sender"])
async def test_a_channel_that_its_owner_closed_ends_the_subscription(end: str) -> None:
    send, receive = trio.open_memory_channel[Event](1)
    source = Source()
    source.sink = pump = EventPump(source.outbox, send, trio.current_time, source.on_close)
    close: Callable[[], None] = receive.close if end == "receiver" else send.close
    close()
    source.ticks(1)
    assert pump.closed
    assert source.closed == [None]
    assert pump.due == math.inf
    source.ticks(2)
    pump.close()
    assert source.closed == [None]


async def test_a_channel_that_stays_full_for_ever_is_given_up() -> None:
    source = Source()
    pump, receive = source.pump(1)
    for number in range(5000):
        source.control(gap(number))
    assert pump.closed
    assert source.closed == [None]
    assert len(drain(receive)) == 1


async def test_an_image_is_never_lost() -> None:
    source = Source()
    pump, receive = source.pump(1)
    source.ticks(1)
    source.control(tick(1, Type.IMAGE))
    assert pump.lost == 0
    assert numbers(drain(receive)) == [1]
    pump.flush()
    (image,) = drain(receive)
    assert isinstance(image, Trade)
    assert image.image


async def test_a_pump_says_when_a_held_back_tick_is_due(autojump_clock: MockClock) -> None:
    source = Source(an_outbox(Mode.HZ, hz=0.5))
    pump, receive = source.pump(10)
    source.ticks(1, 2)
    source.ticks(3)
    assert numbers(drain(receive)) == [2]
    assert pump.due == 2
    await trio.sleep(2)
    pump.flush()
    assert numbers(drain(receive)) == [3]
    pump.end()
    assert pump.due == math.inf
