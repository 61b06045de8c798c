from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import kisfeed
from kisfeed import blocking
from kisfeed.client import core as core_module
from kisfeed.client.core import Phase
from kisfeed.errors import BadFrame, Disconnected, NoDaemon, ServerRefused
from kisfeed.kfp import events
from kisfeed.kfp.messages import Type
from tests.kfp_daemon import TRADE, ScriptedDaemon, listening

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from kisfeed.client.core import ClientCore
    from kisfeed.client.structured import Client

OTHER = "trade.krx.000660"
LARGE = 1_000_000  # more than the socket, its peer and the transport hold together


def _over_two_daemons(happened: list[events.Event]) -> None:
    """What any client sees when the first of two daemons dies behind its trades."""
    assert [type(event).__name__ for event in happened] == [
        "Session", "Status", "Trade", "Trade",
        "Session", "Session", "Status", "Gap", "Trade", "Trade",
    ]  # fmt: skip
    (gap,) = (event for event in happened if isinstance(event, events.Gap))
    assert gap.missed_qty == 100
    down = happened[4]
    assert isinstance(down, events.Session)
    assert (down.state, down.data, down.code) == ("RECONNECT_BACKOFF", 2, "upstream_down")
    trades = [event for event in happened if isinstance(event, events.Trade)]
    assert {trade.topic for trade in trades} == {TRADE}
    assert sum(trade.qty or 0 for trade in trades) == 40


_SEEN = 10  # events of _over_two_daemons


def in_a_fork(claim: Callable[[], bool]) -> bool:
    """Whether *claim* holds in a child of this process."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        done = False
        try:
            done = claim()
        finally:
            os._exit(0 if done else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_has_a_connection_of_its_own(tmp_path: Path) -> None:
    daemon = ScriptedDaemon()

    def works() -> bool:
        events_of_child = kf.events(timeout=5)
        fresh = next(e for e in events_of_child if isinstance(e, events.Trade))
        with kf:
            return kf.call("status") == {"instance": "fake"} and fresh.qty == 10

    with (
        listening(tmp_path / "s", daemon),
        kisfeed.connect(socket=tmp_path / "s") as kf,
    ):
        kf.subscribe(TRADE)
        assert [type(e) for e in kf.events(timeout=0.1)][-1] is events.Trade
        assert in_a_fork(works)
        assert daemon.connections == 2
        # The child has come, gone and closed what it had: the parent's is untouched.
        assert kf.call("status") == {"instance": "fake"}
        assert daemon.connections == 2
        assert list(kf.events(timeout=0.1)) == []


def test_a_child_that_uses_nothing_does_not_hold_its_parents_connection(tmp_path: Path) -> None:
    daemon = ScriptedDaemon()
    with listening(tmp_path / "s", daemon):
        kf = kisfeed.connect(socket=tmp_path / "s")
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os.read(reads, 1)
            os._exit(0)
        kf.close()
        patience = blocking.monotonic() + 5
        while not daemon.left and blocking.monotonic() < patience:
            blocking.sleep(0.01)
        left = daemon.left
        os.write(writes, b"x")
        os.waitpid(child, 0)
        os.close(reads)
        os.close(writes)
    assert left == 1


def test_threads_of_a_child_share_its_new_connection(tmp_path: Path) -> None:
    def works() -> bool:
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(kf.call("status"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers == [{"instance": "fake"}] * 4

    daemon = ScriptedDaemon()
    with (
        listening(tmp_path / "s", daemon),
        kisfeed.connect(socket=tmp_path / "s"),
        kisfeed.connect(socket=tmp_path / "s") as kf,
    ):
        assert in_a_fork(works)
        assert daemon.connections == 3


def test_a_child_forked_within_another_threads_call_says_so(tmp_path: Path) -> None:
    def refused() -> bool:
        with pytest.raises(Disconnected, match="another thread"):
            kf.ping()
        kf.close()
        return True

    with (
        listening(tmp_path / "s", ScriptedDaemon()),
        kisfeed.connect(socket=tmp_path / "s") as kf,
    ):
        held, forked = threading.Event(), threading.Event()

        def hold() -> None:
            with kf._lock:
                held.set()
                forked.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            assert in_a_fork(refused)
        finally:
            forked.set()
            thread.join()
        assert kf.ping() < 5


def test_sync_outlives_its_daemon(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon(dying=1)):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            happened = []
            for event in kf.subscribe(TRADE):
                happened.append(event)
                if len(happened) == _SEEN:
                    break
    _over_two_daemons(happened)


def test_sync_says_what_was_asked(tmp_path: Path) -> None:
    daemon = ScriptedDaemon()
    with listening(tmp_path / "s", daemon):
        with kisfeed.connect(socket=tmp_path / "s", client="me/1", role="trader") as kf:
            kf.subscribe(TRADE, OTHER, mode="latest", prio=2, image=False)
            assert list(kf.subscriptions) == [TRADE, OTHER]
            kf.retune(TRADE, hz=3, mode="hz")
            kf.unsubscribe(OTHER)
            assert kf.status() == {"instance": "fake"}
            assert kf.ping() >= 0
            row = kf.get(OTHER)
            assert isinstance(row, events.Trade)
            assert row.image
            assert kf.welcome["instance"] == "instance 1"
            assert kf.heartbeat is None
    hello, sub, retune, unsub, *_ = daemon.heard
    assert (hello[2]["client"], hello[2]["role"]) == ("me/1", "trader")
    more = {"mode": "latest", "prio": 2, "image": False}
    assert sub[2] == {"subs": [{"topic": TRADE, **more}, {"topic": OTHER, **more}]}
    assert retune[2] == {"sid": 1, "mode": "hz", "hz": 3}
    assert unsub[2] == {"sids": [2]}


def test_sync_refusals_are_errors(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            with pytest.raises(ServerRefused, match="unknown_topic"):
                kf.subscribe(TRADE, "trade.mars.1")
            with pytest.raises(ServerRefused, match="bad_request"):
                kf.call("order.place", qty=1)
            assert list(kf.subscriptions) == [TRADE]


def test_sync_nobody_there_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match=str(tmp_path)):
        kisfeed.connect(socket=tmp_path / "nobody")


def test_sync_waits_for_the_first_daemon_if_told_to(tmp_path: Path) -> None:
    got = threading.Event()

    def run() -> None:
        with kisfeed.connect(socket=tmp_path / "s", wait=True):
            got.set()

    thread = threading.Thread(target=run)
    thread.start()
    with listening(tmp_path / "s", ScriptedDaemon()):
        assert got.wait(10)
        thread.join()


def test_sync_iteration_ends_when_nothing_comes_for_a_while(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            kf.subscribe(TRADE)
            kinds = [event.type for event in kf.events(timeout=0.05)]
            assert kinds == ["session", "status", "trade", "trade"]
            assert list(kf.events(timeout=0)) == []


def test_sync_a_second_thread_asks_while_the_first_one_waits(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            seen: list[events.Event] = []
            reader = threading.Thread(target=lambda: seen.extend(kf.subscribe(TRADE)))
            reader.start()
            for _ in range(50):
                assert kf.status() == {"instance": "fake"}
            kf.close()
            reader.join(10)
            assert not reader.is_alive()
    assert [event.type for event in seen] == ["session", "status", "trade", "trade"]


def test_sync_a_wait_that_is_cut_off_by_close_is_an_error(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        kf = kisfeed.connect(socket=tmp_path / "s")
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                kf.call("never")
            except Disconnected as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        kf.ping()
        kf.close()
        kf.close()
        for thread in threads:
            thread.join(10)
        assert len(errors) == 2
        with pytest.raises(Disconnected):
            kf.ping()
        assert [event.type for event in kf] == ["session"]


def test_sync_what_is_no_daemon_is_said_to_be_none(tmp_path: Path) -> None:
    daemon = ScriptedDaemon()
    with listening(tmp_path / "s", daemon), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tests.kfp_daemon.Conversation.answer", lambda *_: b"HTTP/1.1 400 Bad Request\r\n"
        )
        with pytest.raises(BadFrame):
            kisfeed.connect(socket=tmp_path / "s")


class _Interrupted:
    """A socket whose next send is cut by Ctrl-C."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def sendall(self, data: bytes) -> None:
        self._link.sendall(data[:7])
        raise KeyboardInterrupt


def test_sync_a_send_that_was_interrupted_drops_the_connection(tmp_path: Path) -> None:
    daemon = ScriptedDaemon()
    with listening(tmp_path / "s", daemon):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            assert kf._socket is not None
            kf._socket = _Interrupted(kf._socket)  # type: ignore[assignment]
            with pytest.raises(KeyboardInterrupt):
                kf.call("order.place")
            happened = kf.subscribe(TRADE)
            kinds = [next(happened).type for _ in range(6)]
    assert kinds == ["session", "session", "session", "status", "trade", "trade"]
    assert daemon.connections == 2
    assert calls(daemon) == []


def _interrupted_at_the_second_row(core: ClientCore) -> None:
    """Ctrl-C comes when the second row of the next read is worked on, and never again."""
    real = core._on_row
    rows: list[list[Any]] = []

    def on_row(message: list[Any]) -> None:
        rows.append(message)
        if len(rows) == 2:
            raise KeyboardInterrupt
        real(message)

    core._on_row = on_row  # type: ignore[method-assign]


def _told_after_an_interrupt(happened: list[events.Event]) -> None:
    """The row that was read and thrown away is within the Gap, and nothing is conflated."""
    assert [event.type for event in happened] == [
        "session", "status", "trade", "session", "session", "status", "gap", "trade", "trade",
    ]  # fmt: skip
    (gap,) = (event for event in happened if isinstance(event, events.Gap))
    assert gap.missed_qty == 110


_INTERRUPTED = 9  # events of _told_after_an_interrupt


def test_sync_rows_of_a_read_that_was_interrupted_are_told_as_missed(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            _interrupted_at_the_second_row(kf._core)
            with pytest.raises(KeyboardInterrupt):
                kf.subscribe(TRADE)
            _told_after_an_interrupt(list(islice(kf.events(timeout=5), _INTERRUPTED)))
            assert kf.subscriptions[TRADE].conflated == 0


def test_sync_an_interrupt_right_behind_the_read_itself_is_told_too(tmp_path: Path) -> None:
    class Link(_Interrupted):
        def sendall(self, data: bytes) -> None:
            self._link.sendall(data)

        def recv(self, size: int) -> bytes:
            self._link.recv(size)
            raise KeyboardInterrupt

    with listening(tmp_path / "s", ScriptedDaemon()):
        with kisfeed.connect(socket=tmp_path / "s") as kf:
            list(islice(kf.subscribe(TRADE), 4))
            kf._socket = Link(kf._socket)  # type: ignore[assignment, arg-type]
            with pytest.raises(KeyboardInterrupt):
                kf.ping()
            kinds = [event.type for event in islice(kf.events(timeout=5), 4)]
    assert kinds == ["session", "session", "status", "gap"]


def calls(daemon: ScriptedDaemon) -> list[str]:
    """The names of the calls that it heard."""
    return [message[2]["m"] for message in daemon.heard if message[0] == Type.CALL]


def test_asyncio_outlives_its_daemon(tmp_path: Path) -> None:
    async def main() -> list[events.Event]:
        happened: list[events.Event] = []
        async with kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            await kf.subscribe(TRADE)
            async for event in kf:
                happened.append(event)
                if len(happened) == _SEEN:
                    break
        return happened

    with listening(tmp_path / "s", ScriptedDaemon(dying=1)):
        _over_two_daemons(asyncio.run(main()))


def test_asyncio_asks_while_another_task_waits_and_ends_when_closed(tmp_path: Path) -> None:
    async def main() -> None:
        async with kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            seen: list[str] = []

            async def read() -> None:
                seen.extend([event.type async for event in kf])

            reader = asyncio.create_task(read())
            await kf.subscribe(TRADE)
            for _ in range(20):
                assert await kf.status() == {"instance": "fake"}
            row = await kf.get(OTHER)
            assert isinstance(row, events.Trade)
            assert await kf.ping() >= 0
            await kf.unsubscribe(TRADE)
            with pytest.raises(ServerRefused):
                await kf.call("order.place")
        await asyncio.wait_for(reader, 10)
        assert seen == ["session", "status", "trade", "trade"]

    with listening(tmp_path / "s", ScriptedDaemon()):
        asyncio.run(main())


def test_asyncio_a_cancelled_wait_leaves_the_client_usable(tmp_path: Path) -> None:
    async def main() -> None:
        async with kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await kf.call("never")
            assert await kf.status() == {"instance": "fake"}

    daemon = ScriptedDaemon()
    with listening(tmp_path / "s", daemon):
        asyncio.run(main())
    assert daemon.connections == 1


def test_asyncio_rows_of_a_read_that_was_interrupted_are_told_as_missed(tmp_path: Path) -> None:
    async def main() -> None:
        async with kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            _interrupted_at_the_second_row(kf._core)
            with pytest.raises(KeyboardInterrupt):
                await kf.subscribe(TRADE)
            async with asyncio.timeout(5):
                _told_after_an_interrupt([await anext(kf) for _ in range(_INTERRUPTED)])

    with listening(tmp_path / "s", ScriptedDaemon()):
        asyncio.run(main())


def test_asyncio_a_call_cancelled_before_its_turn_to_be_sent_is_never_sent(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            async with kf._sending:
                order = asyncio.create_task(kf.call("order.place"))
                await asyncio.sleep(0)
                order.cancel()
            with pytest.raises(asyncio.CancelledError):
                await order
            assert await kf.status() == {"instance": "fake"}

    daemon = ScriptedDaemon()
    with listening(tmp_path / "s", daemon):
        asyncio.run(main())
    assert calls(daemon) == ["status"]
    assert daemon.connections == 1


def test_asyncio_what_is_left_of_a_cancelled_send_never_goes_out(tmp_path: Path) -> None:
    async def main() -> int:
        arrived = asyncio.Event()
        reads = asyncio.Event()
        counted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(daemon.accept().answer(await reader.read(65_536)))
            arrived.set()
            await reads.wait()
            total = 0
            while data := await reader.read(65_536):
                total += len(data)
            counted.set_result(total)
            writer.close()

        daemon = ScriptedDaemon()
        server = await asyncio.start_unix_server(converse, tmp_path / "s")
        async with server, kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await kf.call("order.place", reason="x" * LARGE)
            await kf.aclose()
            reads.set()
            return await asyncio.wait_for(counted, 10)

    assert asyncio.run(main()) < LARGE


def test_asyncio_a_daemon_that_takes_nothing_more_is_left_for_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        frozen: list[asyncio.StreamWriter] = []
        daemon = ScriptedDaemon()

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            conversation = daemon.accept()
            writer.write(conversation.answer(await reader.read(65_536)))
            if not frozen:
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                frozen.append(writer)
                return
            while data := await reader.read(65_536):
                writer.write(conversation.answer(data))
            writer.close()

        server = await asyncio.start_unix_server(converse, tmp_path / "s")
        async with server, kisfeed.aio.connect(socket=tmp_path / "s") as kf:
            order = asyncio.create_task(kf.call("order.place", reason="x" * LARGE))
            await asyncio.sleep(0.05)
            kf._core.lost("nothing from the daemon", kf._now())
            async with asyncio.timeout(5):
                while kf._core.phase is not Phase.READY:
                    await anext(kf)
                with pytest.raises(Disconnected):
                    await order
                assert await kf.status() == {"instance": "fake"}
        frozen[0].close()
        assert daemon.connections == 2

    asyncio.run(main())


def test_asyncio_nobody_there_is_no_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with kisfeed.aio.connect(socket=tmp_path / "nobody"):
            pass

    with pytest.raises(NoDaemon):
        asyncio.run(main())


@contextlib.asynccontextmanager
async def in_memory(
    daemon: ScriptedDaemon, make: Callable[[], trio.abc.Stream] | None = None
) -> AsyncGenerator[Client, None]:
    """A Trio client of *daemon* over memory streams."""
    async with trio.open_nursery() as nursery:

        async def dial() -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(converse, theirs)
            return ours

        async def converse(stream: trio.abc.Stream) -> None:
            conversation = daemon.accept()
            with contextlib.suppress(trio.BrokenResourceError):
                while not conversation.over and (data := await stream.receive_some()):
                    await stream.send_all(conversation.answer(bytes(data)))
            await stream.aclose()

        async with kisfeed.open_client(dial=dial) as kf:
            yield kf
        nursery.cancel_scope.cancel()


async def test_trio_outlives_its_daemon(autojump_clock: trio.abc.Clock) -> None:
    happened: list[events.Event] = []
    async with in_memory(ScriptedDaemon(dying=1)) as kf:
        await kf.subscribe(TRADE)
        async for event in kf:
            happened.append(event)
            if len(happened) == _SEEN:
                break
    _over_two_daemons(happened)
    assert 0.1 <= trio.current_time() <= 0.2


async def test_trio_a_silent_daemon_is_left_after_fifteen_seconds(
    autojump_clock: trio.abc.Clock,
) -> None:
    daemon = ScriptedDaemon(mute=True)
    async with in_memory(daemon) as kf:
        await kf.subscribe(TRADE)
        seen: list[events.Event] = []
        while daemon.connections == 1:
            seen.append(await anext(kf))
    assert trio.current_time() == pytest.approx(core_module.SILENCE_S, abs=0.5)
    assert [event.type for event in seen] == ["session", "status", "session", "session"]


async def test_trio_a_caller_that_was_busy_finds_its_daemon_alive(
    autojump_clock: trio.abc.Clock,
) -> None:
    daemon = ScriptedDaemon()
    async with in_memory(daemon) as kf:
        request = kf._core.subscribe(core_module.specs([TRADE]), trio.current_time())
        await kf._flush()
        await trio.sleep(60)
        assert not request.done
        kinds = [(await anext(kf)).type for _ in range(4)]
    assert kinds == ["session", "status", "trade", "trade"]
    assert daemon.connections == 1


async def test_trio_a_cancelled_reader_hands_the_reading_on(autojump_clock: trio.abc.Clock) -> None:
    async with in_memory(ScriptedDaemon()) as kf:
        answers = []

        async def ask(name: str) -> None:
            with trio.move_on_after(1) as scope:
                answers.append(await kf.call(name))
            assert scope.cancelled_caught is (name == "never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "never")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, "status")
        assert answers == [{"instance": "fake"}]
        assert await kf.ping() == 0


async def test_trio_a_send_that_was_cut_off_drops_the_connection(
    autojump_clock: trio.abc.Clock,
) -> None:
    daemon = ScriptedDaemon()
    async with in_memory(daemon) as kf:
        link = kf._link
        assert link is not None

        async def stuck(data: bytes) -> None:
            await trio.sleep_forever()

        link.send = stuck  # type: ignore[method-assign]
        with trio.move_on_after(1):
            await kf.status()
        await kf.subscribe(TRADE)
        seen = [(await anext(kf)).type for _ in range(6)]
    assert seen == ["session", "session", "session", "status", "trade", "trade"]
    assert daemon.connections == 2


async def test_trio_rows_of_a_read_that_was_interrupted_are_told_as_missed(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with in_memory(ScriptedDaemon()) as kf:
        _interrupted_at_the_second_row(kf._core)
        with pytest.raises(KeyboardInterrupt):
            await kf.subscribe(TRADE)
        with trio.fail_after(1):
            _told_after_an_interrupt([await anext(kf) for _ in range(_INTERRUPTED)])


async def test_trio_a_call_in_a_scope_that_is_cancelled_is_never_sent(
    autojump_clock: trio.abc.Clock,
) -> None:
    daemon = ScriptedDaemon()
    async with in_memory(daemon) as kf:

        async def beat() -> None:
            # Each turn of the scheduler something else goes out, and would take it along.
            while True:
                await kf._flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            await trio.lowlevel.checkpoint()
            with trio.CancelScope() as scope:
                scope.cancel()
                await kf.call("order.place")
            assert await kf.call("status") == {"instance": "fake"}
            nursery.cancel_scope.cancel()
    assert calls(daemon) == ["status"]
    assert daemon.connections == 1


@pytest.mark.parametrize("late", [False, True])
async def test_trio_a_call_cancelled_before_its_turn_to_be_sent_is_never_sent(
    late: bool, autojump_clock: trio.abc.Clock
) -> None:
    daemon = ScriptedDaemon()
    async with in_memory(daemon) as kf:
        scope = trio.CancelScope()

        async def order() -> None:
            with scope:
                await kf.call("order.place")

        async with trio.open_nursery() as nursery:
            await kf._sending.__aenter__()
            nursery.start_soon(order)
            await trio.testing.wait_all_tasks_blocked()
            if late:  # its turn has come, and it has not run yet
                await kf._sending.__aexit__(None, None, None)
                scope.cancel()
            else:
                scope.cancel()
                await kf._sending.__aexit__(None, None, None)
        assert scope.cancelled_caught
        assert await kf.call("status") == {"instance": "fake"}
    assert calls(daemon) == ["status"]
    assert daemon.connections == 1


async def test_trio_what_is_wanted_goes_out_though_nobody_waits_for_the_answer(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with in_memory(ScriptedDaemon()) as kf:
        with trio.CancelScope() as scope:
            scope.cancel()
            await kf.subscribe(TRADE)
        assert await kf.ping() == 0
        assert kf.subscriptions[TRADE].sid == 1


async def test_trio_the_callers_exception_passes_as_it_is() -> None:
    daemon = ScriptedDaemon()
    ours, theirs = trio.testing.memory_stream_pair()

    async def dial() -> trio.abc.Stream:
        await theirs.send_all(daemon.accept()._answer([1, 1, {}]))
        return ours

    with pytest.raises(KeyError, match="mine"):
        async with kisfeed.open_client(dial=dial):
            raise KeyError("mine")


async def test_trio_closing_ends_the_iteration_of_another_task(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with in_memory(ScriptedDaemon()) as kf:
        seen: list[str] = []

        async def read() -> None:
            seen.extend([event.type async for event in kf])

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await kf.subscribe(TRADE)
                await trio.testing.wait_all_tasks_blocked()
                await kf.aclose()
    assert seen == ["session", "status", "trade", "trade"]


@pytest.mark.parametrize("dialling", [False, True])
async def test_trio_a_client_that_was_closed_while_it_waited_to_dial_stays_closed(
    dialling: bool, autojump_clock: trio.abc.Clock
) -> None:
    daemon = ScriptedDaemon(dying=1)
    async with in_memory(daemon) as kf:
        await kf.subscribe(TRADE)
        opened: list[trio.abc.Stream] = []
        dial = kf._open

        async def slow() -> trio.abc.Stream:
            await trio.sleep(1)
            opened.append(await dial())
            return opened[-1]

        kf._open = slow
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                async for _ in kf:
                    pass

            nursery.start_soon(read)
            await trio.sleep(0.9 if dialling else 0.01)
            await kf.aclose()
        assert kf._core.phase is Phase.CLOSED
        assert kf._link is None
        assert len(opened) == dialling
        for stream in opened:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")
    assert daemon.connections == 1 + dialling


async def test_trio_a_real_socket_serves_as_well(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        async with kisfeed.open_client(socket=tmp_path / "s") as kf:
            await kf.subscribe(TRADE)
            kinds = [(await anext(kf)).type for _ in range(4)]
            assert await kf.get(OTHER) is not None
    assert kinds == ["session", "status", "trade", "trade"]


async def test_trio_nobody_there_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="nobody"):
        async with kisfeed.open_client(socket=tmp_path / "nobody"):
            pass


def test_jitter_is_in_its_range_and_the_clock_goes_forward() -> None:
    assert all(0 <= blocking.jitter() < 1 for _ in range(1000))
    assert blocking.monotonic() <= blocking.monotonic()
