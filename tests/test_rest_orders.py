"""The order desk in a feed, against the simulated KIS in virtual time."""

from __future__ import annotations

import datetime as dt
import errno
import functools
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed import schemas
from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Environment,
    Orders,
    Secret,
    State,
)
from kisfeed.errors import ConfigError, OrderRefused, StateError, UsageError
from kisfeed.feed import Feed, open_feed
from kisfeed.kfp.events import Notice
from kisfeed.rest import halt as halts
from kisfeed.rest.halt import HaltSwitch
from kisfeed.seams import DirectDisk, VirtualClock, seeded_rng
from kisfeed.simulator.brokerage import Dealing
from kisfeed.simulator.trading import ORDER_CASH, ORDER_CHANGE
from kisfeed.testing import Fault, MemorySimulator, Options, open_memory_simulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trio.testing import MockClock

    from kisfeed.gateway.channel import EventChannel

QUIET = Options(notice_s=1e9, dealing=Dealing(lag_s=(0.5, 5.5)))
PAPER = attrs.evolve(QUIET, environment=Environment.PAPER)
BIG = Orders(enabled=True, max_value=10**10, max_day_value=10**12, max_qty=10_000)


@attrs.define
class Bench:
    """One feed on a simulator, and a program that calls it."""

    sim: MemorySimulator
    feed: Feed

    async def call(self, name: str, client: str = "bot/1.0", **arguments: Any) -> Any:
        return await self.feed.orders.calls.call(name, arguments, client)

    async def buy(self, name: str, **changes: Any) -> Any:
        asked: dict[str, Any] = {"client_order_id": name, "symbol": "005930", "side": "buy"}
        asked |= {"qty": 10, "price": self.ask} | changes
        await self.call("order.preview", **asked)
        return await self.call("order.place", **asked)

    async def refused(self, name: str, **changes: Any) -> OrderRefused:
        with pytest.raises(OrderRefused) as error:
            await self.buy(name, **changes)
        return error.value

    async def show(self, name: str) -> Any:
        return await self.call("order.show", client_order_id=name)

    async def until(self, name: str, *states: str, within: float = 60.0) -> Any:
        with trio.fail_after(within):
            while (order := await self.show(name))["state"] not in states:  # noqa: ASYNC110
                await trio.sleep(0.5)
        return order

    @property
    def ask(self) -> int:
        return self.sim.market.tape("krx", "005930").ask

    @property
    def executed(self) -> int:
        return sum(1 for o in self.sim.simulator.brokerage.orders if o.action == "new")

    @property
    def posts(self) -> list[tuple[float, str]]:
        return [(at, path) for at, path, _ in self.sim.simulator.trading.posts]


def config(folder: Path, orders: Orders, environment: Environment = Environment.SIM) -> Config:
    return Config(
        environment=environment,
        credentials=Credentials(Secret("K" * 36), Secret("S" * 180), "hts1", Secret("12345678-01")),
        endpoints=Endpoints("http://sim", "ws://sim"),
        state=State(str(folder)),
        orders=orders,
    )


@asynccontextmanager
async def serving(
    sim: MemorySimulator,
    folder: Path,
    orders: Orders = BIG,
    environment: Environment = Environment.SIM,
    settings: Config | None = None,
) -> AsyncGenerator[Bench]:
    now = trio.current_time()
    base = int(sim.market.clock.at(now).timestamp() * 1e9) - int(now * 1e9)
    async with open_feed(
        settings or config(folder, orders, environment),
        clock=VirtualClock(base),
        rng=seeded_rng(7),
        disk=DirectDisk(),
        dial=sim.dial,
        rest=sim.rest,
    ) as feed:
        yield Bench(sim, feed)


@asynccontextmanager
async def bench(
    folder: Path, orders: Orders = BIG, options: Options = QUIET
) -> AsyncGenerator[Bench]:
    async with open_memory_simulator(options) as sim:
        async with serving(sim, folder, orders, options.environment) as opened:
            yield opened


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_an_order_is_placed_filled_and_followed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        placed = await b.buy("a")
        assert (placed["state"], placed["evidence"]) == ("accepted", "answer")
        assert placed["open_qty"] is None
        await trio.sleep(20)
        order = await b.show("a")
        assert (order["filled_qty"], order["open_qty"]) == (10, 0)
        assert await b.buy("a") == order
        assert b.executed == 1


@pytest.mark.parametrize(
    ("fault", "executed"),
    [
        ("order_lost_before", False),
        ("order_not_done", False),
        ("order_lost_after", True),
        ("order_html", True),
        ("order_cut", True),
    ],
)
async def test_a_lost_answer_is_in_doubt_until_the_list_tells(
    fault: str, executed: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        await b.buy("first")
        b.sim.inject(fault)
        error = await b.refused("a")
        assert (error.code, error.reason) == ("unknown_outcome", "unknown")
        assert error.detail["order"]["state"] == "unknown"
        frozen = await b.refused("b")
        assert frozen.reason == "frozen"
        again = await b.refused("a")
        assert again.code == "unknown_outcome"
        assert len(b.posts) == 2
        if executed:
            order = await b.until("a", "accepted", within=30)
            real = b.sim.simulator.brokerage.orders[-1]
            assert (order["order_no"], order["evidence"]) == (str(real.number), "list")
            await b.buy("b")
            assert b.executed == 3
        else:
            await b.until("a", "human", within=300)
            with pytest.raises(UsageError):
                await b.call("order.resolve", client_order_id="a", not_executed=True)
            settled = await b.call(
                "order.resolve", client_order_id="a", not_executed=True, reason="not in HTS"
            )
            assert settled["state"] == "not_executed"
            await b.buy("b")
            assert b.executed == 2


async def test_a_doubt_is_looked_up_at_once_where_no_notice_comes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        with_notices = config(tmp_path, BIG)
        quiet = attrs.evolve(with_notices.credentials, hts_id="")
        async with serving(
            sim, tmp_path, settings=attrs.evolve(with_notices, credentials=quiet)
        ) as b:
            await trio.sleep(30)  # what is read at the start is read
            sim.inject(Fault("order_html", count=1))
            await b.refused("a")
            assert (await b.until("a", "accepted", within=30))["evidence"] == "list"


async def test_an_order_that_a_person_places_too_is_never_guessed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        b.sim.inject("order_twin")
        b.sim.inject("order_lost_after")
        await b.refused("a")
        order = await b.until("a", "human", within=40)
        assert len(order["candidates"]) == 2
        settled = await b.call(
            "order.resolve", client_order_id="a", order_no=order["candidates"][1], reason="mine"
        )
        assert settled["state"] == "accepted"


async def test_what_a_person_settled_is_written_though_he_left_while_it_was(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: object) -> None:
        await trio.sleep_forever()

    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            b.sim.inject("order_twin")
            b.sim.inject("order_lost_after")
            await b.refused("a", price=b.ask - 5_000)
            order = await b.until("a", "human", within=40)
            settled = {"order_no": order["candidates"][1], "reason": "mine"}
            with monkeypatch.context() as patch, trio.move_on_after(1) as patience:
                patch.setattr(DirectDisk, "append", hangs)
                await b.call("order.resolve", client_order_id="a", **settled)
            assert patience.cancelled_caught
            await trio.sleep(120)  # the list is read, and what waits is written
        async with serving(sim, tmp_path) as b:
            assert (await b.show("a"))["state"] == "accepted"


async def test_a_refusal_of_kis_is_no_doubt(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench(tmp_path) as b:
        b.sim.inject("order_refused")
        error = await b.refused("a")
        assert (error.code, error.reason) == ("order_rejected", "kis")
        assert error.detail["order"]["code"] == "APBK0919"
        b.sim.inject("rate_limited")
        error = await b.refused("b")
        assert error.detail["order"]["code"] == "EGW00201"
        assert (await b.buy("c"))["state"] == "accepted"
        b.sim.inject("order_bounced")
        await b.buy("d")
        bounced = await b.until("d", "rejected")
        assert (bounced["rejected_qty"], bounced["evidence"]) == (10, "list")
        assert b.executed == 2


async def test_no_connection_is_nothing_sent(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench(tmp_path) as b:
        await b.buy("warm")
        journal = next(tmp_path.glob("*.orders"))
        size = journal.stat().st_size
        b.sim.inject(Fault("order_lost_before"))
        await b.refused("a")
        assert journal.stat().st_size > size


async def test_an_order_expires_rather_than_go_out_late(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        await b.buy("warm", symbol="000660", price=None)
        b.sim.inject(Fault("order_late", value=6.0))
        ends: dict[str, Any] = {}

        async def order(name: str) -> None:
            try:
                ends[name] = (trio.current_time(), await b.buy(name))
            except OrderRefused as exc:
                ends[name] = (trio.current_time(), exc)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order, "slow")
            await trio.sleep(0.5)
            nursery.start_soon(order, "late")
        assert ends["slow"][1]["state"] == "accepted"
        when, error = ends["late"]
        assert (error.code, error.reason) == ("rate_limited", "expired")
        assert when - began < 3.0
        assert len(b.posts) == 2


async def test_an_order_that_waited_over_a_suspend_is_not_sent_after_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        await b.buy("warm", symbol="000660", price=None)
        b.sim.inject(Fault("order_late", value=1.0))
        clock = b.feed.clock
        assert isinstance(clock, VirtualClock)
        ends: dict[str, Any] = {}

        async def late() -> None:
            ends["late"] = await b.refused("late", symbol="000660", price=None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.buy, "slow")
            await trio.sleep(0.5)
            nursery.start_soon(late)
            await trio.sleep(0.2)
            clock.suspended_s += 18 * 3600.0
        assert ends["late"].reason == "expired"
        assert len(b.posts) == 2


async def test_halt_stops_every_order_and_no_cancellation(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("rests", price=low)
        ends: list[str] = []

        async def flood(n: int) -> None:
            try:
                await b.buy(f"o{n}", price=low)
                ends.append("accepted")
            except OrderRefused as exc:
                ends.append(exc.reason)

        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(flood, n)
            await trio.sleep(0.6)
            answer = await b.call("halt", cancel_open=True, reason="enough")
            halted_at = trio.current_time()
        assert answer["halted"]["reason"] == "enough"
        orders = [at for at, path in b.posts if path == ORDER_CASH]
        assert 1 < len(orders) < 41
        assert max(orders) <= halted_at
        cancelled = [o for o in answer["cancelled"] if o["state"] == "accepted"]
        assert len(cancelled) == len(orders)
        assert any(path == ORDER_CHANGE for _, path in b.posts)
        assert (await b.refused("more")).code == "halted"
        with pytest.raises(UsageError):
            await b.call("resume")
        await b.call("resume", reason="looked at it")
        await b.buy("more")


async def test_halt_cancels_each_open_order_whatever_ids_and_cancellations_there_are(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low, long = b.ask - 5_000, "x" * 64
        await b.buy("1", price=low)
        await b.buy("1", price=low, client="alg/2.0")
        await b.buy("1", client="filled/1.0")
        await b.buy("x", price=low)
        await b.buy(long, price=low)
        await trio.sleep(20)
        await b.call("order.cancel", target="x", qty=4)
        answer = await b.call("halt", client="alg/2.0", cancel_open=True)
        assert answer["not_cancelled"] == []
        told = [(o["target_client"], o["target"], o["state"]) for o in answer["cancelled"]]
        names = [("bot", "1"), ("alg", "1"), ("bot", "x"), ("bot", long)]
        assert told == [(*name, "accepted") for name in names]
        assert [o.open for o in b.sim.simulator.brokerage.orders if o.action == "new"] == [0] * 5


def amended_in_an_app(b: Bench, price: int, *shares: int) -> None:
    """So many shares of the first order go on under numbers of their own."""
    brokerage = b.sim.simulator.brokerage
    first = brokerage.orders[0]
    for qty in shares:
        now = trio.current_time()
        brokerage.change(first.account, first.number, "01", "00", qty, price, now)


@pytest.mark.parametrize("refused", [0, 1])
async def test_halt_cancels_every_number_that_an_amendment_in_an_app_left_open(
    refused: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("a", price=low)
        await b.buy("b", price=low)
        amended_in_an_app(b, low - 500, 4, 3)
        await trio.sleep(60)
        assert len((await b.show("a"))["numbers"]) == 3
        if refused:
            b.sim.inject(Fault("order_refused", count=1))
        answer = await b.call("halt", cancel_open=True)
        assert sum(o.open > 0 for o in b.sim.simulator.brokerage.orders) == refused
        assert answer["not_cancelled"] == []
        told = [(o["target"], o["state"]) for o in answer["cancelled"]]
        first = ("a", "rejected" if refused else "accepted")
        assert told == [first, ("a", "accepted"), ("a", "accepted"), ("b", "accepted")]


async def test_halt_before_the_first_list_cancels_what_was_amended_while_nobody_ran(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            low = b.ask - 5_000
            await b.buy("a", price=low)
            await trio.sleep(20)
            amended_in_an_app(b, low - 500, 4)
        await trio.sleep(20)
        async with serving(sim, tmp_path) as b:
            answer = await b.call("halt", cancel_open=True)
            assert not any(o.open for o in sim.simulator.brokerage.orders)
            assert [o["state"] for o in answer["cancelled"]] == ["accepted"] * 2


async def test_all_that_is_open_is_cancelled_though_the_caller_leaves_half_way(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path, options=PAPER) as b:
        for n in range(40):
            await b.buy(f"o{n}", price=b.ask - 5_000)
        await trio.sleep(20)
        with trio.move_on_after(30) as patience:
            await b.call("halt", cancel_open=True)
        assert patience.cancelled_caught
        assert any(o.open for o in b.sim.simulator.brokerage.orders)
        await trio.sleep(30)
        assert not any(o.open for o in b.sim.simulator.brokerage.orders)
        listed = (await b.call("order.list"))["orders"]
        assert [o["state"] for o in listed if o["action"] == "cancel"] == ["accepted"] * 40


async def test_an_order_that_is_being_sent_is_cancelled_though_who_halts_leaves_before_it_is_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("rests", price=low)
        b.sim.inject(Fault("order_late", value=3.0, count=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(b.buy, "slow", price=low))
            await trio.sleep(1.0)
            with trio.move_on_after(0.5) as patience:
                await b.call("halt", cancel_open=True)
        assert patience.cancelled_caught
        assert (await b.show("slow"))["state"] == "accepted"
        await trio.sleep(5)
        assert (await b.show("slow.cancel"))["state"] == "accepted"
        assert not any(o.open for o in b.sim.simulator.brokerage.orders)


async def test_two_who_cancel_all_that_is_open_hear_of_the_same_cancellations(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        for n in range(5):
            await b.buy(f"o{n}", price=b.ask - 5_000)
        answers: list[Any] = []

        async def halt(client: str) -> None:
            answers.append((await b.call("halt", client=client, cancel_open=True))["cancelled"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(halt, "bot/1")
            nursery.start_soon(halt, "alg/1")
        assert answers[0] == answers[1]
        assert [o["state"] for o in answers[0]] == ["accepted"] * 5


async def test_halt_names_what_it_could_not_cancel(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path, attrs.evolve(BIG, queue=1)) as b:
        await b.buy("a", price=b.ask - 5_000)
        await b.buy("b", price=b.ask - 5_000)
        b.sim.inject(Fault("order_late", value=3.0, count=1))
        async with trio.open_nursery() as nursery:

            async def cancel(target: str) -> None:
                with suppress(OrderRefused):
                    await b.call("order.cancel", target=target, client_order_id=f"{target}.c")

            nursery.start_soon(cancel, "a")
            await trio.sleep(0.5)  # it is being sent
            nursery.start_soon(cancel, "b")
            await trio.sleep(0.1)  # and this one waits, in a queue for one
            answer = await b.call("halt", cancel_open=True)
        assert answer["cancelled"] == []
        left = [(o["client"], o["id"], o["reason"]) for o in answer["not_cancelled"]]
        assert left == [("bot", "a", "queue_full"), ("bot", "b", "queue_full")]


async def test_halt_names_the_order_in_doubt_that_it_cannot_cancel(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("rests", price=low)
        b.sim.inject(Fault("order_lost_after", count=1))
        await b.refused("lost", price=low)
        answer = await b.call("halt", cancel_open=True)
        assert [(o["target"], o["state"]) for o in answer["cancelled"]] == [("rests", "accepted")]
        (left,) = answer["not_cancelled"]
        assert (left["client"], left["id"], left["reason"]) == ("bot", "lost", "unknown")
        assert (await b.until("lost", "accepted"))["open_qty"] != 0


async def test_halt_cancels_an_order_whose_amendment_is_in_doubt_and_names_that(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("a", price=low)
        b.sim.inject(Fault("order_lost_before", count=1))
        with pytest.raises(OrderRefused):
            await b.call("order.amend", target="a", client_order_id="to", price=low - 500)
        answer = await b.call("halt", cancel_open=True)
        assert [(o["target"], o["state"]) for o in answer["cancelled"]] == [("a", "accepted")]
        assert [(o["id"], o["reason"]) for o in answer["not_cancelled"]] == [("to", "unknown")]
        assert not any(o.open for o in b.sim.simulator.brokerage.orders)


async def test_a_full_disk_halts_and_cancels_all_the_same_and_is_told(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as b:
        await b.buy("rests", price=b.ask - 5_000)
        with monkeypatch.context() as patch:
            patch.setattr(halts, "write_atomically", no_space)
            with pytest.raises(StateError, match=r"No space.*until it ends"):
                await b.call("halt", cancel_open=True, reason="enough")
            await trio.sleep(5)
            assert not any(o.open for o in b.sim.simulator.brokerage.orders)
            assert (await b.refused("more")).code == "halted"
        assert list(tmp_path.glob("*.halt")) == []
        again = await b.call("halt", reason="again")
        assert again["halted"]["reason"] == "enough"
        assert len(list(tmp_path.glob("*.halt"))) == 1
        await b.call("resume", reason="looked at it")
        await b.buy("more")


async def test_a_full_disk_keeps_nobody_from_cancelling(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            low = b.ask - 5_000
            await b.buy("rests", price=low)
            await b.buy("stays", price=low)
            with monkeypatch.context() as patch:
                patch.setattr(DirectDisk, "append", no_space)
                assert (await b.refused("more")).reason == "journal"
                with pytest.raises(OrderRefused, match="No space"):
                    await b.call("order.cancel", target="stays", qty=3)
                gone = await b.call("order.cancel", target="rests")
                assert gone["state"] == "accepted"
                assert [o.open for o in sim.simulator.brokerage.orders].count(10) == 1
            await trio.sleep(60)  # the list is read, and what waits is written
        async with serving(sim, tmp_path) as b:
            assert (await b.show(gone["id"]))["state"] == "accepted"
            await trio.sleep(30)
            assert [(await b.show(name))["open_qty"] for name in ("rests", "stays")] == [0, 10]


async def test_a_restart_on_a_full_disk_forgets_a_cancellation_and_not_what_it_did(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            await b.buy("rests", price=b.ask - 5_000)
            monkeypatch.setattr(DirectDisk, "append", no_space)
            gone = await b.call("order.cancel", target="rests")
        monkeypatch.undo()
        async with serving(sim, tmp_path) as b:
            with pytest.raises(OrderRefused, match="no order"):
                await b.show(gone["id"])
            await trio.sleep(30)
            assert (await b.show("rests"))["open_qty"] == 0


def test_resume_ends_a_halt_that_no_disk_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halts, "write_atomically", no_space)
    switch = HaltSwitch(tmp_path, "k")
    with pytest.raises(StateError):
        switch.halt("enough", 1)
    assert not switch.begin_sending()
    switch.resume()
    assert switch.begin_sending()
    switch.end_sending()


async def test_a_queued_cancellation_survives_that_its_caller_places_an_order_of_that_id(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        first = await b.buy("7", price=low, client="a/1")
        await b.buy("rests", price=low, client="a/1")
        async with trio.open_nursery() as nursery:
            b.sim.inject(Fault("order_late", value=3.0, count=1))

            async def busy() -> None:
                with suppress(OrderRefused):
                    await b.call("order.cancel", target="rests", client="a/1")

            nursery.start_soon(busy)
            await trio.sleep(0.5)
            nursery.start_soon(
                functools.partial(b.call, "order.cancel", client="c/1", target="7", ttl_s=60.0)
            )
            await trio.sleep(0.1)
            other = functools.partial(b.buy, "7", price=low, client="c/1", ttl_s=60.0)
            nursery.start_soon(other)
        gone = await b.call("order.show", client="c/1", client_order_id="7.cancel")
        assert (gone["state"], gone["original_no"]) == ("accepted", first["order_no"])


async def test_a_halt_file_made_by_hand_holds_over_a_restart(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            await b.buy("a")
            name = next(tmp_path.glob("*.orders")).name.removesuffix(".orders")
        (tmp_path / f"{name}.halt").touch()
        async with serving(sim, tmp_path) as b:
            assert (await b.refused("b")).code == "halted"
            HaltSwitch(tmp_path, name).resume()
            await b.buy("b")


async def test_who_halts_waits_for_the_order_that_is_being_sent(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        await b.buy("warm")
        b.sim.inject(Fault("order_late", value=3.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(b.buy, "slow"))
            await trio.sleep(1.0)
            began = trio.current_time()
            await b.call("halt")
            assert trio.current_time() - began > 1.0


@pytest.mark.parametrize("fault", ["order_late", "order_lost_after", "order_lost_before"])
async def test_a_restart_in_the_middle_sends_nothing_twice(
    fault: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            await b.buy("warm", symbol="000660", price=None)
            sim.inject(Fault(fault, value=5.0))
            with trio.move_on_after(1.0), pytest.raises(OrderRefused):
                await b.buy("a")
        async with serving(sim, tmp_path) as b:
            assert (await b.refused("a")).code == "unknown_outcome"
            assert (await b.refused("b")).reason == "frozen"
            if fault == "order_lost_before":
                await b.until("a", "human", within=300)
                assert b.executed == 1
            else:
                await b.until("a", "accepted")
                assert b.executed == 2
        async with serving(sim, tmp_path) as b:
            state = (await b.show("a"))["state"]
            assert state == ("human" if fault == "order_lost_before" else "accepted")


async def test_nothing_is_sent_before_the_list_was_read(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        sim.inject(Fault("rest_down", lasts=20.0))
        async with serving(sim, tmp_path) as b:
            assert (await b.refused("a", qty=1)).reason == "expired"
            assert b.posts == []
            with trio.fail_after(300):
                while not b.feed.status()["orders"]["ready"]:  # noqa: ASYNC110
                    await trio.sleep(1)
            assert (await b.buy("b"))["state"] == "accepted"


async def test_amend_and_cancel(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("a", price=low)
        changed = await b.call("order.amend", client_order_id="a2", target="a", price=low + 100)
        assert changed["state"] == "accepted"
        first = await b.call("order.cancel", target="a")
        assert first["original_no"] == changed["order_no"]
        assert await b.call("order.cancel", target="a") == first
        await trio.sleep(20)
        order = await b.show("a")
        assert (order["open_qty"], order["filled_qty"]) == (0, 0)
        with pytest.raises(OrderRefused) as error:
            await b.call("order.cancel", target="a", client_order_id="again")
        assert error.value.reason == "kis"


async def test_an_amended_stop_limit_order_carries_its_stop_price(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("a", price=low, stop_price=low - 100, type="stop-limit")
        amend = functools.partial(b.call, "order.amend", target="a", price=low + 100)
        with pytest.raises(OrderRefused, match="stop price"):
            await amend(client_order_id="no")
        await amend(client_order_id="a2", stop_price=low)
        await b.call("order.cancel", target="a")
        await b.buy("b", price=low)
        await b.call("order.amend", client_order_id="b2", target="b", price=low + 100)
        sent = [values for _, _, values in b.sim.simulator.trading.posts]
        told = [(v["ORD_DVSN"], v["ORD_UNPR"], v.get("CNDT_PRIC")) for v in sent]
        assert told == [
            ("22", str(low), str(low - 100)),
            ("22", str(low + 100), str(low)),
            ("22", "0", None),
            ("00", str(low), ""),
            ("00", str(low + 100), None),
        ]


async def test_an_amended_order_is_never_called_gone_while_it_is_open(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        low = b.ask - 5_000
        await b.buy("a", price=low)
        for n in range(1, 4):
            await trio.sleep(10)
            await b.call("order.amend", client_order_id=f"a{n}", target="a", price=low - n * 1_000)
            for _ in range(14):
                shown = await b.call("order.show", client_order_id="a", fresh=True)
                assert shown["open_qty"] in {None, 10}
                await trio.sleep(0.5)
        assert (await b.show("a"))["open_qty"] == 10


async def test_paper_pages_are_read_to_the_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench(tmp_path, options=PAPER) as b:
        low = b.ask - 5_000
        for n in range(40):
            await b.buy(f"o{n}", price=low, qty=1 + n)
        await trio.sleep(60)
        answer = await b.call("order.list", fresh=True)
        assert [o["open_qty"] for o in answer["orders"]] == [1 + n for n in range(40)]


async def notices(channel: EventChannel, seconds: float) -> list[Notice]:
    found: list[Notice] = []
    with trio.move_on_after(seconds):
        while True:
            event = await channel.receive()
            found += [event] if isinstance(event, Notice) else []
    return found


async def test_notices_name_the_order_they_are_about(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        channel = b.feed.subscribe("notice.krx.hts1")
        await trio.sleep(15)
        b.sim.inject(Fault("order_late", value=1.0))
        await b.buy("a")
        found = [n for n in await notices(channel, 30) if n.fields["symbol"] == "005930"]
        ours = [n for n in found if n.fields["order_no"] == "0000005001"]
        assert [n.kind for n in ours] == ["accepted", "fill"]
        assert not any(n.fields.get("recovered") for n in ours)


async def test_a_fill_names_its_order_and_only_the_list_changes_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        channel = b.feed.subscribe("notice.krx.hts1")
        await trio.sleep(15)
        await b.buy("a")
        await trio.sleep(0.4)
        assert (await b.show("a"))["filled_qty"] == 0
        found = await notices(channel, 20)
        fill = next(n for n in found if n.kind == "fill")
        assert (fill.fields["client"], fill.fields["client_order_id"]) == ("bot", "a")
        assert (await b.show("a"))["filled_qty"] == 10


async def test_a_fill_is_heard_of_though_no_program_subscribes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        await trio.sleep(15)
        await b.buy("low", price=b.ask - 5_000)
        await trio.sleep(70)
        assert (await b.show("low"))["open_qty"] == 10
        b.sim.simulator.brokerage.orders[0].price = b.ask + 1_000  # the market comes to it
        await trio.sleep(12)
        assert (await b.show("low"))["filled_qty"] == 10


async def test_what_was_missed_while_away_is_told_once_as_recovered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        channel = b.feed.subscribe("notice.krx.hts1")
        await trio.sleep(90)
        b.sim.inject("drop")
        b.sim.inject(Fault("refuse", lasts=8.0))
        await trio.sleep(1)
        await b.buy("a")
        found = await notices(channel, 120)
        ours = [n for n in found if n.fields.get("client_order_id") == "a"]
        assert [(n.kind, n.fields["qty"], n.fields["recovered"]) for n in ours] == [
            ("accepted", 10, True),
            ("fill", 10, True),
        ]
        assert [n.nseq for n in found] == sorted({n.nseq for n in found})


async def test_account_calls(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench(tmp_path) as b:
        balance = await b.call("balance")
        assert {h["symbol"]: h["qty"] for h in balance["holdings"]}["005930"] == 500
        assert balance["cash"] == 100_000_000
        amounts = await b.call("orderable", symbol="005930", price=70_000)
        assert amounts["qty"] == 100_000_000 // 70_000
        levels = await b.call("book", symbol="005930")
        assert levels["asks"][0][0] > levels["bids"][0][0]
        assert len(levels["asks"]) == 10


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"symbol": "5930"}, "bad_request"),
        ({"symbol": "999999"}, "unknown_symbol"),
        ({"qty": 0}, "bad_request"),
        ({"price": 71_050}, "bad_request"),
        ({"qty": 10_001}, "over_limit"),
        ({"exchange": "NASDAQ"}, "bad_request"),
        ({"client_order_id": "x" * 65}, "bad_request"),
    ],
)
async def test_bad_input_is_refused_before_a_byte_is_written(
    changes: dict[str, Any], code: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        changes = dict(changes)
        name = changes.pop("client_order_id", "a")
        error = await b.refused(name, **changes)
        assert error.code == code
        assert b.posts == []
        assert next(tmp_path.glob("*.orders")).stat().st_size == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"client_order_id": 5},
        {"client_order_id": "a", "symbol": "005930", "side": "hold", "qty": 1},
        {"client_order_id": "a", "symbol": "005930", "side": "buy", "qty": "1"},
        {"client_order_id": "a", "symbol": "005930", "side": "buy", "qty": True},
        {"client_order_id": "a", "symbol": "005930", "side": "buy", "qty": 1, "ttl_s": 1e9},
        {"client_order_id": "a", "symbol": "005930", "side": "buy", "qty": 1, "priority": 10},
    ],
)
async def test_malformed_arguments_are_a_usage_error(
    arguments: dict[str, Any], tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with bench(tmp_path) as b:
        with pytest.raises(UsageError):
            await b.call("order.preview", **arguments)


async def test_off_by_default(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench(tmp_path, Orders()) as b:
        for name in ("order.preview", "order.place", "order.list", "halt", "resume"):
            with pytest.raises(OrderRefused) as error:
                await b.call(name)
            assert error.value.code == "orders_disabled"
        assert "holdings" in await b.call("balance")
        assert b.feed.status()["orders"] is None


async def test_orders_need_an_account(tmp_path: Path, autojump_clock: MockClock) -> None:
    wanted = config(tmp_path, BIG)
    for account in ("", "1234567801"):
        credentials = attrs.evolve(wanted.credentials, account=Secret(account))
        with pytest.raises(ConfigError, match=r"credentials\.account"):
            async with open_feed(attrs.evolve(wanted, credentials=credentials)):
                pass


async def test_a_damaged_journal_stops_the_daemon_before_it_starts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            await b.buy("a")
        journal = next(tmp_path.glob("*.orders"))
        data = bytearray(journal.read_bytes())
        data[20] ^= 1
        journal.write_bytes(data)
        with pytest.raises(StateError, match="damaged"):
            async with serving(sim, tmp_path):
                pass


async def test_a_journal_cut_at_any_byte_never_leads_to_a_second_order(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What a crash can leave: everything durable, and of the last append any part."""
    async with open_memory_simulator(QUIET) as sim:
        async with serving(sim, tmp_path) as b:
            await b.buy("warm", symbol="000660", price=None)
            journal = next(tmp_path.glob("*.orders"))
            durable = journal.stat().st_size
            await b.buy("a", symbol="000660", price=None)
        data = journal.read_bytes()
        intent = durable + 8 + int.from_bytes(data[durable : durable + 4], "big")
        codes: list[str] = []
        for cut in (*range(intent, len(data), 97), len(data)):
            journal.write_bytes(data[:cut])
            async with serving(sim, tmp_path) as b:
                try:
                    await b.buy("a", symbol="000660", price=None)
                except OrderRefused as exc:
                    codes.append(exc.code)
            assert b.executed == 2
        assert set(codes) == {"unknown_outcome"}


async def test_the_next_day_puts_aside_what_is_settled_and_keeps_what_is_in_doubt(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def archives() -> list[str]:
        return [p.name.rpartition(".")[2] for p in sorted(tmp_path.glob("*.orders.2*"))]

    late = dt.datetime(2026, 11, 20, 23, 45, tzinfo=QUIET.start.tzinfo)
    async with open_memory_simulator(attrs.evolve(QUIET, start=late)) as sim:
        async with serving(sim, tmp_path) as b:
            await b.buy("settled", symbol="000660", price=None)
            sim.inject(Fault("order_lost_before"))
            await b.refused("doubt")
            day = (await b.until("doubt", "human", within=300))["day"]
            (journal,) = tmp_path.glob("*.orders")
            size = journal.stat().st_size
            await trio.sleep(1_500)
            assert journal.stat().st_size < size / 2
            assert archives() == [str(int(day) + 1)]
            listed = (await b.call("order.list", day=day))["orders"]
            assert [o["id"] for o in listed] == ["settled", "doubt"]
            assert listed[0]["filled_qty"] == 10
            assert await b.call("order.show", client_order_id="settled", day=day) == listed[0]
            assert (await b.call("order.list"))["orders"] == []
            # An id belongs to its day.
            again = await b.buy("settled", symbol="000660", price=None)
            assert again["day"] != day
        async with serving(sim, tmp_path) as b:
            await trio.sleep(60)
            assert len(archives()) == 1
            assert (await b.show("doubt"))["state"] == "human"
            assert (await b.refused("like it")).reason == "frozen"
            assert (await b.show("settled"))["day"] != day


async def test_every_line_about_orders_names_the_limits_in_force(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kisfeed.orders")
    async with bench(tmp_path) as b:
        await b.buy("a", price=b.ask - 5_000)
        await b.call("order.amend", target="a", client_order_id="a2", price=b.ask - 6_000)
        b.sim.inject(Fault("order_lost_before"))
        await b.refused("b", symbol="000660", price=None)
        b.sim.inject(Fault("rest_down", lasts=30.0))
        await b.refused("c", symbol="035720", price=50_000)
        await b.call("order.resolve", client_order_id="b", not_executed=True, reason="seen")
        await b.call("halt", reason="lunch", cancel_open=True)
        await b.call("resume", reason="back")
        await trio.sleep(60)
    lines = [record for record in caplog.records if record.name == "kisfeed.orders"]
    assert {line.getMessage() for line in lines} >= {
        "order_queued", "order_intended", "order_accepted", "order_unknown", "order_resolved",
        "order_followed", "order_expired", "no_quote", "day_list_unread", "orders_halted",
        "orders_resumed",
    }  # fmt: skip
    version = schemas.load("limits.kis.json")["version"]
    assert {getattr(line, "limit_version", None) for line in lines} == {version}
