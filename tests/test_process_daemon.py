"""The daemon as people run it: real processes, real sockets, a simulated KIS on loopback."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from kisfeed.kfp import codec
from kisfeed.kfp.messages import MAX_FRAME, Data, Stream, Type
from kisfeed.testing import Fault, Happening, Kind, Options, Rules, open_simulator
from tests.processes import Place, Program, open_place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from kisfeed.testing import Simulator

SAMSUNG, HYNIX = "trade.krx.005930", "trade.krx.000660"
NODE = shutil.which("node")
NODE_CLIENT = Path(__file__).with_name("clients") / "client.mjs"


@pytest.fixture
async def place() -> AsyncGenerator[Place]:
    async with open_place() as place:
        yield place


def trades(program: Program, topic: str) -> list[dict[str, Any]]:
    return [event for event in program.of("trade") if event["topic"] == topic]


def assert_nothing_amiss(program: Program) -> None:
    """It has had every tick since its first, and nobody told it of a loss."""
    seen: dict[str, int] = {}
    for trade in program.of("trade"):
        before = seen.setdefault(trade["topic"], trade["sseq"] - 1)
        assert trade["sseq"] == before + 1
        seen[trade["topic"]] += 1
    assert not program.of("lost")
    assert not program.of("gap")
    assert not program.of("goaway")


def opened(program: Program) -> set[str]:
    return {event["topic"] for event in program.of("status") if event["stream"] == Stream.OPEN}


def told_volume(program: Program, topic: str) -> int:
    """The day's shares before the first row, those received, and those known to be missed."""
    first, *_ = rows = trades(program, topic)
    earlier = first["cum_qty"] - (0 if first["image"] else first["qty"])
    received = sum(row["qty"] for row in rows if not row["image"])
    missed = sum(gap["missed_qty"] for gap in program.of("gap") if gap["topic"] == topic)
    return int(earlier + received + missed)


def traded(simulator: Simulator, topic: str) -> int:
    """Shares traded since the simulator's start, whoever was there."""
    return simulator.market.tape("krx", topic.rpartition(".")[2]).volume


@attrs.define(eq=False)
class Stranger:
    """A client made of bytes, so that it can be wrong."""

    stream: trio.SocketStream
    decoder: codec.Decoder = attrs.field(factory=codec.Decoder)
    heard: list[list[Any]] = attrs.field(factory=list)

    async def hello(self) -> None:
        await self.say(Type.HELLO, 1, {"proto": [1, 1], "client": "stranger"})
        await self.hears(Type.WELCOME)

    async def say(self, *message: object) -> None:
        await self.stream.send_all(codec.frame(*message))

    async def hears(self, *kinds: Type) -> list[Any]:
        """The next message of these kinds; others are passed over."""
        while True:
            while self.heard:
                message = self.heard.pop(0)
                if message[0] in kinds:
                    return message
            data = await self.stream.receive_some()
            assert data, "the daemon hung up"
            self.heard += self.decoder.feed(bytes(data))

    async def last_words(self) -> list[Any] | None:
        """What the daemon says last before it hangs up."""
        async for data in self.stream:
            self.heard += self.decoder.feed(bytes(data))
        return self.heard[-1] if self.heard else None


@contextlib.asynccontextmanager
async def meet(place: Place) -> AsyncGenerator[Stranger]:
    async with await trio.open_unix_socket(str(place.socket())) as stream:
        yield Stranger(stream)


async def programs(stranger: Stranger) -> list[dict[str, Any]]:
    """Who is connected, as the daemon sees it."""
    await stranger.say(Type.CALL, 9, {"m": "clients", "a": {}})
    answer = await stranger.hears(Type.RES)
    found: list[dict[str, Any]] = answer[2]["result"]["clients"]
    return found


async def test_the_simulated_daemon_serves_stream_and_status(place: Place) -> None:
    daemon = await place.kisfeed("serve", "--sim")
    (ready,) = await daemon.says(1)
    assert str(place.socket("sim")) in ready
    stream = await place.kisfeed("stream", SAMSUNG, "--profile", "sim", "--count", "5")
    assert await stream.ends() == 0
    received = trades(stream, SAMSUNG)
    assert [trade["sseq"] for trade in received] == [1, 2, 3, 4, 5]
    assert received[-1]["cum_qty"] == told_volume(stream, SAMSUNG)
    status = await place.kisfeed("status", "--profile", "sim", "--json")
    assert await status.ends() == 0
    assert "STREAMING" in str(status.said)
    assert "simulated" not in daemon.talk, "a key is never logged"


async def test_three_clients_survive_the_daemons_death_and_know_what_they_missed(
    place: Place,
) -> None:
    topics = (SAMSUNG, HYNIX)
    async with open_simulator(Options(rate_hz=20.0, rules=Rules(hold_s=0.2))) as simulator:
        place.configure_for(simulator)
        daemon = await place.serve()
        clients = [await place.follow(kind, *topics) for kind in ("sync", "asyncio", "stream")]
        for client in clients:
            await client.until(lambda c: all(len(trades(c, t)) >= 5 for t in topics))
        daemon.process.send_signal(signal.SIGKILL)
        await daemon.ends()
        for client in clients:
            await client.until(lambda c: c.of("session")[-1]["data"] == Data.SUSPECT)

        await place.serve()
        for client in clients:
            await client.until(lambda c: len(c.of("gap")) >= len(topics))
            had = len(client.of("trade"))
            await client.says(had + 20, "trade")
        simulator.inject(Kind.QUIET)
        for client in clients:
            await client.until(
                lambda c: all(told_volume(c, t) == traded(simulator, t) for t in topics)
            )
            away = [event for event in client.of("session") if "daemon" in event["text"]]
            assert len(away) == 1
            assert sorted(gap["topic"] for gap in client.of("gap")) == sorted(topics)
            assert not client.of("lost")
            assert client.code is None
        for topic in topics:
            gaps = [gap for client in clients for gap in client.of("gap") if gap["topic"] == topic]
            sent = simulator.exchange.tallies["H0STCNT0", topic[-6:]].volume
            unseen = traded(simulator, topic) - sent
            assert min(gap["missed_qty"] for gap in gaps) >= unseen > 0


async def test_two_subscribers_get_every_record_of_fifteen_symbols_in_order(place: Place) -> None:
    symbols = [f"{number:06}" for number in range(100_010, 100_160, 10)]
    topics = [f"trade.krx.{symbol}" for symbol in symbols]
    async with open_simulator(Options(rate_hz=20.0, records=(1, 4))) as simulator:
        place.configure_for(simulator)
        await place.serve()
        simulator.inject(Kind.QUIET)
        clients = [await place.follow(kind, *topics) for kind in ("sync", "asyncio")]
        for client in clients:
            await client.until(lambda c: opened(c) >= set(topics))
        simulator.exchange.board.clear(Kind.QUIET)
        tallies = [simulator.exchange.tallies["H0STCNT0", symbol] for symbol in symbols]
        await clients[0].until(lambda _: all(tally.frames >= 60 for tally in tallies))
        simulator.inject(Kind.QUIET)
        sent = sum(tally.records for tally in tallies)
        for client in clients:
            await client.says(sent, "trade")
            assert_nothing_amiss(client)
            for topic, tally in zip(topics, tallies, strict=True):
                received = trades(client, topic)
                assert len(received) == tally.records
                assert sum(trade["qty"] for trade in received) == tally.volume
                assert [trade["sseq"] for trade in received] == list(range(1, tally.records + 1))
                volumes = [trade["cum_qty"] for trade in received]
                assert volumes == list(accumulate(trade["qty"] for trade in received))
        one, two = (
            [(trade["topic"], trade["sseq"], trade["px"]) for trade in client.of("trade")]
            for client in clients
        )
        assert one == two


async def test_sigterm_ends_everything_in_order(place: Place) -> None:
    async with open_simulator() as simulator:
        place.configure_for(simulator)
        daemon = await place.serve()
        stream = await place.follow("stream", SAMSUNG)
        await stream.says(3, "trade")
        asked = trio.current_time()
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.ends() == 0
        took = trio.current_time() - asked
        assert took < 5.0
        assert not place.socket().exists()
        (goaway,) = await stream.says(1, "goaway")
        assert goaway["code"] == "draining"
        assert [
            line.code for line in simulator.exchange.history if line.what is Happening.CLOSED
        ] == ["clean"]
        assert stream.code is None, "a client outlives its daemon"


async def test_a_second_sigterm_ends_it_at_once(place: Place) -> None:
    options = Options(acknowledge_close=False)
    async with open_simulator(options) as simulator:
        place.configure_for(simulator, "close_timeout_s = 60.0\n")
        daemon = await place.serve()
        stream = await place.follow("stream", SAMSUNG)
        await stream.says(1, "trade")
        daemon.process.send_signal(signal.SIGTERM)
        await stream.says(1, "goaway")
        # By now it waits a minute for an answer to its close frame.
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.ends() == -signal.SIGTERM


async def test_a_closed_pipe_ends_stream_quietly(place: Place) -> None:
    await place.serve("--sim", profile="sim")
    stream = await place.follow("stream", SAMSUNG, profile="sim")
    await stream.says(1, "trade")
    assert stream.process.stdout is not None
    await stream.process.stdout.aclose()
    assert await stream.ends() == 141
    assert stream.talk == ""


async def refused(program: Program) -> dict[str, Any]:
    """What a command that could not begin said, checked against its exit code."""
    code = await program.ends()
    (answer,) = program.said
    assert answer["type"] == "error"
    assert answer["exit_code"] == code
    assert answer["message"] in program.talk or answer["message"].split("\n")[0] in program.talk
    return dict(answer)


CREDENTIALS = f'[credentials]\nappkey = "{"k" * 36}"\nappsecret = "{"s" * 180}"\n'


async def test_what_is_wrong_with_a_configuration_is_told_by_the_keys_path(place: Place) -> None:
    expected = {
        "typo": ('environment = "sim"\n[sesion]\n', "sesion"),
        "type": (
            'environment = "paper"\n[session]\nmin_lifetime_s = "soon"\n',
            "session.min_lifetime_s",
        ),
        "hurry": (
            f'environment = "paper"\n{CREDENTIALS}[session]\nmin_lifetime_s = 1.0\n',
            "session.min_lifetime_s",
        ),
        "nowhere": ('environment = "sim"\n', "endpoints.rest"),
        "keyless": ('environment = "paper"\n', "credentials.appkey"),
    }
    started = {}
    for profile, (text, key) in expected.items():
        place.configure(text, profile)
        started[profile] = (await place.kisfeed("serve", "--json", "--profile", profile), key)
    broken = place.configure("environment = ", "broken")
    started["broken"] = (await place.kisfeed("serve", "--json", "--profile", "broken"), str(broken))
    started["absent"] = (await place.kisfeed("serve", "--json", "--profile", "absent"), "profile")
    for program, key in started.values():
        answer = await refused(program)
        assert answer["exit_code"] == 78
        assert key in [problem["key"] for problem in answer["problems"]]
        assert "kkkk" not in program.talk


async def test_a_socket_path_that_cannot_be_used_is_told(place: Place) -> None:
    runtime = place.runtime
    runtime.mkdir(mode=0o700)
    (runtime / "file").write_text("precious")
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX) as alive:
        stale.bind(str(runtime / "stale"))
        alive.bind(str(runtime / "alive"))
        alive.listen()
        paths = {
            "long": runtime / ("x" * 100),
            "file": runtime / "file",
            "alive": runtime / "alive",
        }
        programs = {
            name: await place.kisfeed("serve", "--sim", "--json", "--socket", path)
            for name, path in paths.items()
        }
        answers = {name: await refused(program) for name, program in programs.items()}
    assert (answers["long"]["exit_code"], answers["long"]["code"]) == (78, "state_error")
    assert (answers["file"]["exit_code"], answers["file"]["code"]) == (75, "socket_in_use")
    assert (answers["alive"]["exit_code"], answers["alive"]["code"]) == (75, "socket_in_use")
    for name, path in paths.items():
        assert str(path) in answers[name]["message"]
    assert (runtime / "file").read_text() == "precious"
    await place.serve("--sim", "--socket", str(runtime / "stale"), profile="sim")


async def test_a_second_daemon_of_an_appkey_names_the_first(place: Place) -> None:
    async with open_simulator() as simulator:
        place.configure_for(simulator)
        place.configure_for(simulator, profile="other")
        first = await place.serve()
        for profile in ("test", "other"):
            answer = await refused(await place.kisfeed("serve", "--json", "--profile", profile))
            assert (answer["exit_code"], answer["code"]) == (75, "appkey_in_use")
            for told in (str(first.process.pid), str(place.socket()), "since 2"):
                assert told in answer["message"]
        assert len(simulator.exchange.connects) == 0


async def test_without_a_daemon_clients_say_so(place: Place) -> None:
    for command in (["status"], ["stream", SAMSUNG]):
        program = await place.kisfeed(*command, "--json", "--profile", "sim")
        answer = await refused(program)
        assert (answer["exit_code"], answer["code"]) == (69, "no_daemon")


@contextlib.asynccontextmanager
async def unharmed(place: Place) -> AsyncGenerator[Program]:
    """A daemon with a client to whom nothing must happen, whatever the block does."""
    async with open_simulator(Options(rate_hz=20.0)) as simulator:
        place.configure_for(simulator, "[gateway]\nhello_deadline_s = 0.3\n")
        daemon = await place.serve()
        witness = await place.follow("sync", SAMSUNG)
        await witness.says(3, "trade")
        yield witness
        had = len(witness.of("trade"))
        await witness.says(had + 5, "trade")
        assert_nothing_amiss(witness)
        assert daemon.code is None
        assert "Traceback" not in daemon.talk
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.ends() == 0


HELLO = codec.frame(Type.HELLO, 1, {"proto": [1, 1], "client": "stranger"})


async def test_clients_that_break_the_protocol_harm_nobody_else(place: Place) -> None:
    endings: dict[str, tuple[bytes, str | None]] = {
        "garbage": (bytes(range(255, 0, -1)), "bad_frame"),
        "no msgpack": (HELLO + b"\x00\x00\x00\x05hello", "bad_frame"),
        "a giant length": (HELLO + (MAX_FRAME + 1).to_bytes(4, "big"), "bad_frame"),
        "a length of zero": (HELLO + bytes(4), "bad_frame"),
        "no HELLO": (codec.frame(Type.SUB, 1, {"subs": []}), "bad_frame"),
        "another version": (codec.frame(Type.HELLO, 1, {"proto": [7, 9]}), "proto_mismatch"),
        "silence": (b"", None),
        "half a HELLO": (HELLO[:10], None),
    }
    async with unharmed(place):
        for name, (data, code) in endings.items():
            async with meet(place) as stranger:
                await stranger.stream.send_all(data)
                words = await stranger.last_words()
            if code is None:
                assert words is None, name
            else:
                assert words is not None, name
                assert (words[0], words[2], words[3]) == (Type.ERR, code, True), name


async def test_half_a_frame_and_an_unknown_topic_cost_nothing(place: Place) -> None:
    async with unharmed(place) as witness, meet(place) as silent, meet(place) as stranger:
        await silent.hello()
        await silent.stream.send_all(codec.frame(Type.PING, 2, None)[:3])
        await stranger.hello()
        await stranger.say(Type.SUB, 2, {"subs": [{"topic": "trade.mars.1"}, {"topic": HYNIX}]})
        refused, taken = (await stranger.hears(Type.RES))[2]["items"]
        assert (refused["sid"], refused["stream"], refused["code"]) == (None, 4, "unknown_topic")
        assert taken["topic"] == HYNIX
        await stranger.hears(Type.TICK)
        assert "stranger" in [program["name"] for program in await programs(stranger)]
        assert witness.code is None


async def test_a_reader_killed_while_it_is_written_to_harms_nobody(place: Place) -> None:
    async with open_simulator(Options(rate_hz=20.0)) as simulator:
        place.configure_for(simulator)
        daemon = await place.serve()
        witness = await place.follow("sync", SAMSUNG)
        slow = await place.follow("stream", SAMSUNG)
        await witness.says(3, "trade")
        await slow.says(3, "trade")
        slow.process.send_signal(signal.SIGSTOP)
        async with meet(place) as observer:
            await observer.hello()

            async def behind() -> int:
                """Bytes that wait for the slow reader; -1 when the daemon knows it no more."""
                known = {p["pid"]: p["q_bytes"] for p in await programs(observer)}
                return int(known.get(slow.process.pid, -1))

            while await behind() == 0:
                had = len(witness.of("trade"))
                simulator.inject(Fault(Kind.BURST, count=100))
                await witness.says(had + 1200, "trade")
            slow.process.send_signal(signal.SIGKILL)
            while await behind() >= 0:
                await trio.testing.wait_all_tasks_blocked(0.01)
        simulator.inject(Kind.QUIET)
        await witness.until(lambda w: w.of("trade")[-1]["cum_qty"] == traded(simulator, SAMSUNG))
        assert told_volume(witness, SAMSUNG) == traded(simulator, SAMSUNG)
        assert_nothing_amiss(witness)
        assert daemon.code is None
        assert "Traceback" not in daemon.talk


@pytest.mark.skipif(NODE is None, reason="node is not installed")
async def test_a_client_in_another_language_receives_ticks(place: Place) -> None:
    assert NODE is not None
    await place.serve("--sim", profile="sim")
    client = await place.start(NODE, NODE_CLIENT, place.socket("sim"), SAMSUNG, "5")
    assert await client.ends() == 0
    ticks = [message for message in client.said if message[0] == Type.TICK]
    assert [tick[2] for tick in ticks] == list(range(1, len(ticks) + 1))
    assert len(ticks) >= 5
    assert ticks[-1][8] == sum(tick[7] for tick in ticks)
