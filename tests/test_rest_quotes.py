"""Quotes for many callers and topics without a slot: a whole feed against the simulator."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed import open_feed
from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Environment,
    Quotes,
    Secret,
    State,
    Subscriptions,
)
from kisfeed.errors import UsageError
from kisfeed.kfp.events import Event, Gap, Status, Trade
from kisfeed.kfp.messages import Code, Data, Source, Stream
from kisfeed.seams import DirectDisk, VirtualClock, seeded_rng
from kisfeed.seoul import KST
from kisfeed.simulator import quotes as endpoints
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
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trio.testing import MockClock

    from kisfeed.feed import Feed

SAMSUNG, HYNIX = "trade.krx.005930", "trade.krx.000660"
MANY = [f"{100_010 + 10 * n}" for n in range(200)]
START_NS = 1_795_000_000 * 10**9  # a Wednesday morning in Seoul


@contextlib.asynccontextmanager
async def open_world(
    folder: Path,
    *,
    options: Options | None = None,
    quotes: Quotes | None = None,
    environment: Environment = Environment.SIM,
    pinned: tuple[str, ...] = (),
    clock: VirtualClock | None = None,
) -> AsyncGenerator[tuple[MemorySimulator, Feed]]:
    options = attrs.evolve(options or Options(), environment=environment)
    config = Config(
        environment=environment,
        credentials=Credentials(Secret("a"), Secret("s")),
        endpoints=Endpoints("http://kis", "ws://kis"),
        state=State(str(folder)),
        subscriptions=Subscriptions(pinned),
        quotes=quotes or Quotes(),
    )
    async with (
        open_memory_simulator(options) as sim,
        open_feed(
            config,
            clock=clock or VirtualClock(START_NS),
            rng=seeded_rng(1),
            disk=DirectDisk(),
            dial=sim.dial,
            rest=sim.rest,
        ) as feed,
    ):
        yield sim, feed


def calls(sim: MemorySimulator, *paths: str) -> int:
    lines = [x for x in sim.exchange.history if x.what is Happening.REST]
    return sum(not paths or (x.key is not None and x.key[0] in paths) for x in lines)


def refused(sim: MemorySimulator) -> int:
    return len(sim.exchange.times(Happening.REST, "EGW00201"))


async def collect(feed: Feed, *topics: str, seconds: float) -> list[Event]:
    heard: list[Event] = []
    with trio.move_on_after(seconds):
        await read(feed, heard, *topics)
    return heard


async def read(feed: Feed, heard: list[Event], *topics: str) -> None:
    async for event in feed.subscribe(*topics):
        heard.append(event)  # noqa: PERF401  # whoever reads is cancelled


def polled(heard: list[Event], topic: str) -> list[Trade]:
    rows = [e for e in heard if isinstance(e, Trade) and e.topic == topic]
    return [row for row in rows if row.source is Source.POLL]


async def test_prices_days_and_symbols_come_in_domain_words(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as (sim, feed):
        prices = await feed.get_current_prices("005930", "000660", "999999", "abc")
        days = await feed.get_daily_prices("005930", days=5)
        infos = await feed.get_symbol_infos("005930", "069500")
    tape = sim.market.tape("krx", "005930")
    assert list(prices) == ["005930", "000660"]
    assert prices["005930"].previous_close == tape.base
    assert prices["005930"].source == "rest"
    assert prices.missing == {"999999": "unknown_symbol", "abc": "unknown_symbol"}
    dates = [bar.date for bar in days["005930"].bars]
    assert len(dates) == 5
    assert dates == sorted(dates, reverse=True)
    # Today is not over, so it is not among the days.
    assert days["005930"].bars[0].close == tape.base
    assert (infos["005930"].name, infos["005930"].market) == ("삼성전자", "kospi")
    assert infos["069500"].kind == "etf"


@pytest.mark.parametrize(
    ("symbols", "venue"), [((), "krx"), (("005930",), "nyse"), (tuple(MANY) * 3, "krx")]
)
async def test_what_cannot_be_asked_is_refused(
    autojump_clock: MockClock, tmp_path: Path, symbols: tuple[str, ...], venue: str
) -> None:
    async with open_world(tmp_path) as (_, feed):
        with pytest.raises(UsageError):
            await feed.get_current_prices(*symbols, venue=venue)


async def test_a_streaming_symbol_costs_no_call(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(tmp_path) as (sim, feed):
        feed.subscribe(SAMSUNG)
        await trio.sleep(10)
        before = calls(sim)
        for _ in range(50):
            found = await feed.get_current_prices("005930")
            assert found["005930"].source == "stream"
            assert found["005930"].price == sim.market.tape("krx", "005930").last
            await trio.sleep(0.5)
        assert calls(sim) == before
        fresh = await feed.get_current_prices("005930", fresh=True)
        assert fresh["005930"].source == "rest"


async def test_forty_callers_of_one_symbol_are_one_call(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as (sim, feed):
        found = []

        async def caller() -> None:
            found.append((await feed.get_current_prices("005930"))["005930"].price)

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(caller)
        assert len(found) == 40
        assert len(set(found)) == 1
        assert calls(sim) == 1


async def test_a_cancelled_caller_hurts_nobody(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(tmp_path) as (sim, feed):
        found = []

        async def caller(patience_s: float) -> None:
            with trio.move_on_after(patience_s):
                found.append((await feed.get_current_prices("005930"))["005930"].price)

        async with trio.open_nursery() as nursery:
            for patience_s in (0.0, 0.01, 0.05, math.inf, 0.07):
                nursery.start_soon(caller, patience_s)
        assert len(found) == 1
        assert calls(sim) == 1


async def test_3000_questions_a_minute_over_200_symbols(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rng = seeded_rng(3)
    async with open_world(tmp_path) as (sim, feed):
        answered = 0

        async def caller(symbol: str) -> None:
            nonlocal answered
            found = await feed.get_current_prices(symbol)
            answered += found[symbol].price is not None

        await feed.get_current_prices("005930")  # the token
        before = calls(sim)
        async with trio.open_nursery() as nursery:
            for _ in range(3000):
                nursery.start_soon(caller, MANY[int(rng.random() * 200)])
                await trio.sleep(0.02)
        assert answered == 3000
        assert calls(sim) - before <= 300
        assert refused(sim) == 0


async def test_callers_never_see_a_rate_limit(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_world(tmp_path) as (sim, feed):
        await feed.get_current_prices("005930")
        sim.inject(Fault(Kind.RATE_LIMITED, lasts=3.0))
        missing: list[str] = []

        async def caller(number: int) -> None:
            found = await feed.get_current_prices(*MANY[number : number + 20])
            missing.extend(found.missing.values())

        async with trio.open_nursery() as nursery:
            for number in range(0, 180, 20):
                nursery.start_soon(caller, number)
        assert refused(sim) > 0
        assert missing == []


async def test_while_kis_is_down_the_last_value_is_served_marked(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as (sim, feed):
        known = (await feed.get_current_prices("005930"))["005930"]
        sim.inject(Fault(Kind.REST_DOWN, lasts=300.0))
        await trio.sleep(30)
        found = await feed.get_current_prices("005930", "000660")
        assert found["005930"] == attrs.evolve(known, stale=True)
        assert found.missing == {"000660": "upstream_down"}
        # From then on nobody waits for what is known.
        begun = trio.current_time()
        for _ in range(100):
            assert (await feed.get_current_prices("005930"))["005930"].stale
        assert trio.current_time() - begun < 1.0
        await trio.sleep(900)
        await feed.get_current_prices("005930")
        await trio.sleep(60)
        assert not (await feed.get_current_prices("005930"))["005930"].stale


async def test_paper_has_a_call_for_each_symbol(autojump_clock: MockClock, tmp_path: Path) -> None:
    options = Options(rules=Rules(rest_per_s=1))
    world = open_world(tmp_path, options=options, environment=Environment.PAPER)
    async with world as (sim, feed):
        found = await feed.get_current_prices("005930", "000660", "035420")
        assert len(found) == 3
        assert calls(sim, endpoints.INQUIRE_PRICE) == calls(sim) == 3
        infos = await feed.get_symbol_infos("005930")
        assert infos["005930"].name == "삼성전자"
        assert refused(sim) == 0


async def test_without_a_session_prices_come_as_images(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as (sim, feed):
        sim.inject(Fault(Kind.REFUSE, lasts=120.0))
        heard = await collect(feed, SAMSUNG, HYNIX, seconds=60)
    for topic in (SAMSUNG, HYNIX):
        rows = polled(heard, topic)
        assert len(rows) > 40
        assert all(row.image and row.qty is None and row.sseq == 0 for row in rows)
        volumes = [row.cum_qty or 0 for row in rows]
        assert volumes == sorted(volumes)
        assert volumes[-1] > volumes[0]
        told = [e for e in heard if isinstance(e, Status) and e.topic == topic]
        assert (told[-1].stream, told[-1].data) == (Stream.SNAPSHOT, Data.OK)
        assert told[-1].code == Code.SOURCE_POLL
    assert not [e for e in heard if isinstance(e, Trade) and not e.image]
    # Two topics, one call a second.
    assert calls(sim) <= 62


async def test_an_evicted_topic_is_polled_and_comes_back_with_an_exact_gap(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    options = Options(rules=Rules(cap=1))
    async with open_world(tmp_path, options=options) as (sim, feed):
        heard: list[Event] = []

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, feed, heard, SAMSUNG)
            await trio.sleep(120)
            stronger = feed.subscribe(HYNIX, prio=9)
            await trio.sleep(120)
            stronger.close()
            await trio.sleep(120)
            nursery.cancel_scope.cancel()
    codes = [e.code for e in heard if isinstance(e, Status)]
    wanted = [Code.PREEMPTED, Code.SOURCE_POLL, Code.PROMOTED]
    assert [code for code in codes if code in wanted] == wanted
    rows = [e for e in heard if isinstance(e, Trade)]
    images = polled(heard, SAMSUNG)
    assert len(images) > 60
    assert all(row.image and row.qty is None for row in images)
    # The images take no numbers: those of the ticks stay dense.
    ticks = [row for row in rows if not row.image]
    assert [row.sseq for row in ticks] == list(range(1, len(ticks) + 1))
    assert {row.sseq for row in images} == {images[0].sseq}
    (gap,) = (e for e in heard if isinstance(e, Gap))
    before = next(row for row in ticks if row.sseq == gap.last_sseq)
    after = next(row for row in ticks if row.sseq == gap.next_sseq)
    assert gap.code == Code.PROMOTED
    assert after.after_gap
    assert None not in (before.cum_qty, after.cum_qty, after.qty)
    assert gap.missed_qty == (after.cum_qty or 0) - (before.cum_qty or 0) - (after.qty or 0)
    assert gap.missed_qty > 0
    sent = sim.exchange.tallies["H0STCNT0", "005930"]
    assert sum(row.qty or 0 for row in ticks) == sent.volume


async def test_a_new_subscriber_begins_with_the_polled_price(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as (sim, feed):
        sim.inject(Fault(Kind.REFUSE, lasts=120.0))
        feed.subscribe(SAMSUNG)
        await trio.sleep(20)
        (image,) = polled(await collect(feed, SAMSUNG, seconds=0.1), SAMSUNG)
        assert image.px == sim.market.tape("krx", "005930").last


async def test_who_wants_no_polled_prices_gets_none(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    off = Quotes(poll_s=0)
    async with open_world(tmp_path, quotes=off) as (sim, feed):
        sim.inject(Fault(Kind.REFUSE, lasts=120.0))
        assert polled(await collect(feed, SAMSUNG, seconds=30), SAMSUNG) == []
        assert calls(sim) == 0


async def test_a_poll_that_fails_makes_the_price_suspect(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_world(tmp_path) as (sim, feed):
        sim.inject(Fault(Kind.REFUSE, lasts=600.0))
        heard: list[Event] = []
        with trio.move_on_after(120):
            async for event in feed.subscribe(SAMSUNG):
                heard.append(event)
                if len(polled(heard, SAMSUNG)) == 10:
                    sim.inject(Fault(Kind.REST_DOWN, lasts=600.0))
        last = [e for e in heard if isinstance(e, Status)][-1]
    assert (last.stream, last.data) == (Stream.RECOVERING, Data.SUSPECT)
    assert last.code != Code.SOURCE_POLL


async def test_before_the_open_days_and_names_are_at_hand(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    early = int(dt.datetime(2026, 11, 18, 7, 30, tzinfo=KST).timestamp()) * 10**9
    world = open_world(
        tmp_path, environment=Environment.PAPER, pinned=(SAMSUNG,), clock=VirtualClock(early)
    )
    async with world as (sim, feed):
        await trio.sleep(15 * 60)
        assert calls(sim) == 0
        await trio.sleep(10 * 60)  # the first market opens at 08:00
        before = calls(sim, endpoints.DAILY_CHART)
        assert before == 2
        assert (await feed.get_daily_prices("005930"))["005930"].bars
        assert (await feed.get_symbol_infos("005930"))["005930"].name == "삼성전자"
        assert calls(sim) == before


EVENING = int(dt.datetime(2026, 11, 19, 18, 30, tzinfo=KST).timestamp()) * 10**9
NIGHT_S = 14 * 3600.0  # less than a token lives


async def test_days_and_names_of_before_a_suspend_are_asked_again_on_the_next_day(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    clock = VirtualClock(EVENING)
    async with open_world(tmp_path, clock=clock) as (sim, feed):

        async def asked() -> tuple[int, int]:
            await feed.get_daily_prices("005930")
            await feed.get_symbol_infos("005930")
            return calls(sim, endpoints.DAILY_CHART), calls(sim, endpoints.STOCK_INFO)

        assert await asked() == (1, 1)
        clock.suspended_s += 1800.0
        assert await asked() == (1, 1), "the same day"
        clock.suspended_s += NIGHT_S
        assert await asked() == (2, 2)


async def test_days_of_before_a_suspend_are_stale_where_kis_cannot_be_asked(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    clock = VirtualClock(EVENING)
    async with open_world(tmp_path, clock=clock) as (sim, feed):
        await feed.get_daily_prices("005930")
        sim.inject(Fault(Kind.REST_DOWN, lasts=600.0))
        clock.suspended_s += NIGHT_S
        assert (await feed.get_daily_prices("005930"))["005930"].stale


async def test_a_price_is_no_fresher_for_a_suspend(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    clock = VirtualClock(START_NS)
    async with open_world(tmp_path, clock=clock) as (sim, feed):
        await feed.get_current_prices("005930", "999999")
        before = calls(sim)
        clock.suspended_s += 1800.0
        await feed.get_current_prices("005930")
        assert calls(sim) == before + 1
        await feed.get_current_prices("999999")
        assert calls(sim) == before + 2


async def test_an_answer_over_which_the_machine_slept_is_asked_for_again(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock(EVENING)
    targets: list[str] = []
    answer = MemorySimulator.rest

    async def rest(sim: MemorySimulator, method: str, target: str, *rest: Any) -> Any:
        answered = await answer(sim, method, target, *rest)
        if target.startswith(endpoints.DAILY_CHART):
            targets.append(target)
            if len(targets) == 1:
                clock.suspended_s += NIGHT_S
        return answered

    monkeypatch.setattr(MemorySimulator, "rest", rest)
    async with open_world(tmp_path, clock=clock) as (_, feed):
        assert (await feed.get_daily_prices("005930"))["005930"].bars
        assert ["20261120" in target for target in targets] == [False, True]
        await feed.get_daily_prices("005930")
        assert len(targets) == 2
