from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from kisfeed.kis import control, frames, notices
from kisfeed.simulator import websocket
from kisfeed.simulator.websocket import FrameScanner, raw_frame
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
    from collections.abc import AsyncGenerator, Callable

    from kisfeed.kis.catalogue import RegKey

TRADE = ("H0STCNT0", "005930")
BOOK = ("H0STASP0", "005930")
NOTICE = ("H0STCNI0", "me")


class Wire:
    """A client of the simulator: trio-websocket's client side on a memory stream."""

    def __init__(self, ws: WebSocketConnection, stream: trio.abc.Stream, approval: str) -> None:
        self.ws = ws
        self.stream = stream
        self.approval = approval

    async def subscribe(self, *keys: RegKey) -> list[str]:
        return [await self._ask(control.subscribe(self.approval, key)) for key in keys]

    async def unsubscribe(self, key: RegKey) -> str:
        return await self._ask(control.unsubscribe(self.approval, key))

    async def _ask(self, text: str) -> str:
        await self.ws.send_message(text)
        while True:
            answer = await self.ws.get_message()
            if answer[:1] == "{" and "PINGPONG" not in answer:
                code: str = json.loads(answer)["body"]["msg_cd"]
                return code

    async def until(self, wanted: Callable[[str | bytes], bool]) -> str | bytes:
        with trio.fail_after(3600):
            while True:
                message = await self.ws.get_message()
                if wanted(message):
                    return message

    async def data(self) -> str:
        found = await self.until(lambda m: m[:2] in ("0|", "1|"))
        assert isinstance(found, str)
        return found

    async def collect(self, seconds: float) -> list[str | bytes]:
        """Everything that arrives in this time, echoing nothing; ends early with the line."""
        found: list[str | bytes] = []
        with trio.move_on_after(seconds), contextlib.suppress(ConnectionClosed):
            while True:
                found.append(await self.ws.get_message())
        return found


@contextlib.asynccontextmanager
async def open_wire(
    sim: MemorySimulator, appkey: str = "a", path: str = "/tryitout"
) -> AsyncGenerator[Wire]:
    approval = sim.exchange.approval_key(appkey, trio.current_time())
    stream = await sim.dial("ops", 21000)
    async with trio.open_nursery() as nursery:
        # The annotation names sockets only; any stream works.
        ws = await wrap_client_stream(nursery, cast("Any", stream), "ops", path)
        yield Wire(ws, stream, approval)
        with trio.move_on_after(1):
            await ws.aclose()
        nursery.cancel_scope.cancel()


def quiet_options(**more: Any) -> Options:
    """No data of its own for a long time."""
    return Options(rate_hz=0.0001, notice_s=1e6, **more)


@pytest.mark.parametrize("path", ["/", "/tryitout", "/tryitout/H0STCNT0"])
async def test_any_path_is_served(autojump_clock: MockClock, path: str) -> None:
    async with open_memory_simulator() as sim, open_wire(sim, path=path) as wire:
        assert await wire.subscribe(TRADE) == ["OPSP0000"]


async def test_malformed_messages_are_answered_with_their_code(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(quiet_options()) as sim, open_wire(sim) as wire:
        for text, code in (
            ("not json", "OPSP9999"),
            ("{}", "OPSP9998"),
            ('{"header":{}}', "OPSP9992"),
            (b"\xff\xfe", "OPSP9999"),
        ):
            await wire.ws.send_message(text)
            answer = json.loads(await wire.ws.get_message())
            assert answer["body"]["msg_cd"] == code
        assert await wire.subscribe(TRADE) == ["OPSP0000"]


async def test_what_the_client_got_is_what_the_oracle_counted(autojump_clock: MockClock) -> None:
    options = Options(seed=7, rate_hz=20.0, records=(1, 12))
    async with open_memory_simulator(options) as sim, open_wire(sim) as wire:
        await wire.ws.send_message(control.subscribe(wire.approval, TRADE))
        got = await wire.collect(20.0)
        records = volume = cum = 0
        for message in got:
            if message[:2] == "0|":
                _, tr_id, count, payload = str(message).split("|")
                values = payload.split("^")
                assert tr_id == "H0STCNT0"
                assert len(values) == int(count) * 46
                for row in range(int(count)):
                    cum += int(values[row * 46 + 12])
                    assert int(values[row * 46 + 13]) == cum
                records += int(count)
                volume = cum
        tally = sim.exchange.tallies[TRADE]
        assert (records, volume) == (tally.records, tally.volume)
        assert tally.withheld_records == 0
        assert 398 <= tally.frames <= 402


def test_the_same_seed_gives_every_key_the_same_frames() -> None:
    async def run(seed: int) -> dict[str, list[str]]:
        options = Options(seed=seed, rate_hz=10.0)
        found: dict[str, list[str]] = {}
        async with open_memory_simulator(options) as sim, open_wire(sim) as wire:
            for key in (TRADE, BOOK, ("HDFSCNT0", "DNASAAPL")):
                await wire.ws.send_message(control.subscribe(wire.approval, key))
            for message in map(str, await wire.collect(10.0)):
                found.setdefault(message.split("|")[1] if message[0] == "0" else "", []).append(
                    message
                )
        return found

    def fresh(seed: int) -> dict[str, list[str]]:
        return trio.run(run, seed, clock=MockClock(autojump_threshold=0))

    assert fresh(3) == fresh(3)
    assert fresh(3) != fresh(4)


async def test_every_tr_streams_something(autojump_clock: MockClock) -> None:
    options = Options(rate_hz=0.5, notice_s=5.0, rules=Rules(cap=60))
    async with open_memory_simulator(options) as sim, open_wire(sim) as wire:
        examples = {
            "elw": "57LA24", "etf": "069500", "index": "0001", "cmdfut": "175T11",
            "idxfut": "A05608", "idxopt": "201W08427", "stkfut": "111W08", "stkopt": "211V05059",
            "nightfut": "101W9000", "nightopt": "301V06362", "overseas": "DNASAAPL",
            "overseas-asia": "DHKS00003", "osfut": "FCAZ22", "bond": "KR103502GA34",
            "bondidx": "KBPR01",
        }  # fmt: skip
        trs = sim.market._trs
        keys = [
            (tr_id, "me" if tr.encrypted else examples.get(tr.venue, "005930"))
            for tr_id, tr in trs.items()
        ]
        assert len(keys) == 60
        assert await wire.subscribe(*keys) == ["OPSP0000"] * 60
        seen = {str(m).split("|")[1] for m in await wire.collect(30.0) if str(m)[0] != "{"}
        assert seen == set(trs)


async def test_a_second_session_is_dropped_without_a_close_frame_and_the_first_streams_on(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator() as sim, open_wire(sim) as first:
        await first.subscribe(TRADE)
        async with open_wire(sim) as second:
            await second.ws.send_message(control.subscribe(second.approval, BOOK))
            answer = json.loads(await second.ws.get_message())
            assert answer["header"]["tr_id"] == "(null)"
            assert answer["body"]["msg_cd"] == "OPSP8996"
            with pytest.raises(ConnectionClosed) as closed:
                await second.ws.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1006
        assert await first.data()


@pytest.mark.parametrize(
    ("leave", "held"),
    [("close", False), ("vanish", True)],
)
async def test_only_a_close_frame_frees_the_slot_at_once(
    autojump_clock: MockClock, leave: str, held: bool
) -> None:
    async with open_memory_simulator(quiet_options()) as sim:
        async with open_wire(sim) as wire:
            await wire.subscribe(TRADE)
            if leave == "vanish":
                await trio.aclose_forcefully(wire.stream)
        await trio.sleep(1)
        async with open_wire(sim) as wire:
            assert await wire.subscribe(TRADE) == ["OPSP8996" if held else "OPSP0000"]
        await trio.sleep(20)
        async with open_wire(sim) as wire:
            assert await wire.subscribe(TRADE) == ["OPSP0000"]


async def test_a_close_frame_may_stay_unanswered_and_still_counts(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator(quiet_options(acknowledge_close=False)) as sim:
        async with open_wire(sim) as wire:
            await wire.subscribe(TRADE)
            await wire.ws.aclose()
            assert wire.ws.closed is not None
        await trio.sleep(1)
        assert sim.exchange.sessions[0].clean


async def test_pingpong_comes_every_ten_seconds_and_any_reply_is_taken(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator(quiet_options()) as sim, open_wire(sim) as wire:
        ping: str | bytes = ""
        for number, reply in enumerate(("text", "pong", "silence"), start=1):
            ping = await wire.ws.get_message()
            assert trio.current_time() == pytest.approx(10.0 * number)
            assert json.loads(ping)["header"]["datetime"] == f"20261118100{number * 10:03d}"
            if reply == "text":
                await wire.ws.send_message(ping)
            elif reply == "pong":
                await wire.ws.pong(str(ping).encode())
        with trio.move_on_after(1):
            await wire.ws.ping(str(ping).encode())
        (session,) = sim.exchange.sessions
        assert session.pongs == {"text": 1, "pong": 1, "ping": 1}
        assert session.closed_at is None


async def test_in_strict_mode_silence_is_punished_and_a_pong_is_not(
    autojump_clock: MockClock,
) -> None:
    options = quiet_options(rules=Rules(strict_pong_s=25.0))
    async with open_memory_simulator(options) as sim:
        async with open_wire(sim) as wire:
            messages = await wire.collect(100.0)
            assert len(messages) < 6
            assert 30.0 <= trio.current_time() <= 50.0
        start = trio.current_time()
        async with open_wire(sim) as wire:
            while trio.current_time() < start + 100.0:
                await wire.ws.pong(str(await wire.ws.get_message()).encode())


async def test_notices_are_encrypted_with_the_key_of_the_ack(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(Options(notice_s=5.0)) as sim, open_wire(sim) as wire:
        await wire.ws.send_message(control.subscribe(wire.approval, NOTICE))
        ack = control.parse(str(await wire.ws.get_message()).encode())
        assert isinstance(ack, control.Ack)
        assert ack.aes is not None
        ring = notices.KeyRing()
        ring.put(1, "H0STCNI0", ack.aes)
        kinds = []
        for _ in range(4):
            frame = frames.parse((await wire.data()).encode())
            assert isinstance(frame, frames.DataFrame)
            assert frame.encrypted
            plain = ring.open(1, frame.tr_id, frame.payload)
            assert isinstance(plain, bytes)
            values = plain.decode().split("^")
            assert (len(values), values[0]) == (26, "me")
            kinds.append(values[13])
        assert kinds == ["1", "2", "2", "1"]


async def test_a_notice_can_be_injected_acceptance_before_fill(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(quiet_options()) as sim, open_wire(sim) as wire:
        await wire.subscribe(NOTICE, TRADE)
        sim.inject(Kind.NOTICE)
        messages = [m for m in await wire.collect(1.0) if m[:2] == "1|"]
        assert len(messages) == 2


async def test_the_wrong_hts_id_loses_the_line(autojump_clock: MockClock) -> None:
    options = quiet_options(rules=Rules(hts_id="right"))
    async with open_memory_simulator(options) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        await wire.ws.send_message(control.subscribe(wire.approval, ("H0STCNI0", "wrong")))
        await wire.collect(1.0)
        assert wire.ws.closed is not None


@pytest.mark.parametrize(
    ("kind", "value", "code", "clean"),
    [
        (Kind.CUT, 0, 1006, False),
        (Kind.DROP, 0, 1006, False),
        (Kind.CLOSE, 1001, 1001, True),
    ],
)
async def test_the_line_ends_in_every_way(
    autojump_clock: MockClock, kind: Kind, value: float, code: int, clean: bool
) -> None:
    async with open_memory_simulator(quiet_options()) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        sim.inject(Fault(kind, value=value))
        await wire.collect(5.0)
        assert wire.ws.closed is not None
        assert wire.ws.closed.code == code
        await trio.sleep(5)
        assert sim.exchange.sessions[0].clean is clean


async def test_a_silent_line_delivers_nothing_until_it_heals_then_everything(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator(Options(rate_hz=1.0)) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        await wire.data()
        sim.inject(Fault(Kind.SILENCE, lasts=30.0))
        await wire.ws.send_message(control.subscribe(wire.approval, BOOK))
        assert await wire.collect(29.0) == []
        assert list(sim.exchange.registered()) == [TRADE]
        late = await wire.collect(2.0)
        assert sum(m[:2] == "0|" for m in late) >= 29
        assert list(sim.exchange.registered()) == [TRADE, BOOK]
        tally = sim.exchange.tallies[TRADE]
        assert (tally.withheld_records, sim.exchange.sessions[0].clean) == (0, None)


async def test_what_a_silent_line_swallowed_is_counted_as_withheld(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator(Options(rate_hz=1.0, records=(2, 2))) as sim:
        async with open_wire(sim) as wire:
            await wire.subscribe(TRADE)
            await wire.collect(4.5)
            sim.inject(Kind.SILENCE)
            await trio.sleep(10)
            await trio.aclose_forcefully(wire.stream)
        await trio.sleep(1)
        tally = sim.exchange.tallies[TRADE]
        assert (tally.records, tally.withheld_records) == (10, 20)
        assert sim.exchange.sessions[0].clean is False


async def test_a_hole_has_the_size_that_the_cumulative_volume_shows(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator(Options(rate_hz=5.0, records=(1, 1))) as sim:
        async with open_wire(sim) as wire:
            await wire.subscribe(TRADE)
            before = (await wire.data()).split("^")
            sim.inject(Fault(Kind.WITHHOLD, count=3, tr_id="H0STCNT0"))
            after = (await wire.data()).split("^")
            hole = int(after[13]) - int(after[12]) - int(before[13])
            tally = sim.exchange.tallies[TRADE]
            assert (tally.withheld_records, tally.withheld_volume) == (3, hole)
            assert hole > 0


async def test_trading_goes_on_while_nobody_is_connected(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(Options(rate_hz=5.0, records=(1, 1))) as sim:
        async with open_wire(sim) as wire:
            await wire.subscribe(TRADE)
            before = (await wire.data()).split("^")
        await trio.sleep(7200)
        async with open_wire(sim) as wire:
            await wire.subscribe(TRADE)
            after = (await wire.data()).split("^")
        assert int(after[13]) - int(before[13]) > 7200 * 5 * 20


async def test_quiet_and_no_pingpong_stop_one_and_not_the_other(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(Options(rate_hz=1.0)) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        sim.inject(Fault(Kind.QUIET, lasts=100.0))
        await wire.collect(0.1)
        got = await wire.collect(95.0)
        assert len(got) >= 9
        assert all("PINGPONG" in str(m) for m in got)
        await trio.sleep(10)
        sim.inject(Fault(Kind.NO_PINGPONG, lasts=100.0))
        await wire.collect(0.1)
        got = await wire.collect(90.0)
        assert len(got) >= 89
        assert not any("PINGPONG" in str(m) for m in got)


@pytest.mark.parametrize(("kind", "ends"), [(Kind.HANG, False), (Kind.ACCEPT_CLOSE, True)])
async def test_a_connection_may_be_accepted_and_go_nowhere(
    autojump_clock: MockClock, kind: Kind, ends: bool
) -> None:
    async with open_memory_simulator() as sim:
        sim.inject(Fault(kind, lasts=60.0))
        stream = await sim.dial("ops", 1)
        received: bytes | bytearray | None = None
        with trio.move_on_after(30):
            received = await stream.receive_some()
        assert received == (b"" if ends else None)
        await trio.aclose_forcefully(stream)
        await trio.sleep(60)
        assert sim.exchange.times(Happening.HANDSHAKE) == []
        async with open_wire(sim) as wire:
            assert await wire.subscribe(TRADE) == ["OPSP0000"]


async def test_a_refused_dial_raises_and_is_counted(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        sim.inject(Fault(Kind.REFUSE, lasts=5.0))
        with pytest.raises(ConnectionRefusedError):
            await sim.dial("ops", 1)
        assert sim.exchange.times(Happening.REFUSED_DIAL) == [trio.current_time()]
        await trio.sleep(5)
        async with open_wire(sim) as wire:
            assert await wire.subscribe(TRADE) == ["OPSP0000"]


async def test_late_and_stray_acks_arrive(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(quiet_options()) as sim, open_wire(sim) as wire:
        sim.inject(Fault(Kind.ACK_LATE, value=4.0))
        start = trio.current_time()
        assert await wire.subscribe(TRADE) == ["OPSP0000"]
        assert trio.current_time() - start == pytest.approx(4.0)
        sim.inject(Fault(Kind.STRAY_ACK, code="OPSP0002", tr_id="H0STASP0", tr_key="000660"))
        stray = json.loads(await wire.until(lambda m: "OPSP0002" in str(m)))
        assert stray["header"]["tr_key"] == "000660"


async def test_more_columns_and_bad_values_leave_price_and_volume_alone(
    autojump_clock: MockClock,
) -> None:
    options = Options(width=47, book_width=63, records=(2, 2))
    async with open_memory_simulator(options) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        await wire.data()
        sim.inject(Fault(Kind.EXTRA_COLUMN, value=1))
        wide = (await wire.data()).split("|")[3].split("^")
        assert len(wide) == 2 * 48
        sim.inject(Kind.BAD_VALUES)
        values = (await wire.data()).split("|")[3].split("^")
        assert len(values) == 2 * 47
        assert {"", "(null)", "-nan"} <= set(values)
        assert all(values[at].isdigit() for at in (2, 12, 13, 2 + 47, 12 + 47, 13 + 47))
        await wire.unsubscribe(TRADE)
        await wire.subscribe(BOOK)
        book = await wire.until(lambda m: "H0STASP0|" in str(m))
        assert len(str(book).split("^")) == 63


async def test_an_invalid_byte_kills_a_strict_client(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(Options(rate_hz=1.0)) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        sim.inject(Kind.INVALID_UTF8)
        await wire.collect(5.0)
        assert wire.ws.closed is not None
        assert wire.ws.closed.code == 1007


async def test_garbage_and_huge_frames_arrive_between_good_ones(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(Options(rate_hz=1.0)) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        sim.inject(Fault(Kind.GARBAGE, count=15))
        sim.inject(Fault(Kind.GARBAGE, text="0|mine"))
        messages = await wire.collect(3.0)
        assert sum(isinstance(m, bytes) for m in messages) == 1
        assert "0|mine" in messages
        assert str(messages[-1]).startswith("0|H0STCNT0|00")
        sim.inject(Kind.HUGE)
        await wire.collect(5.0)
        assert wire.ws.closed is not None
        assert wire.ws.closed.code == 1009


async def test_a_burst_comes_in_frames_of_twelve(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(quiet_options()) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE, ("H0STCNT0", "000660"))
        sim.inject(Fault(Kind.BURST, count=50))
        messages = await wire.collect(1.0)
        assert len(messages) == 100
        assert all(str(m).split("|")[2] == "012" for m in messages)


async def test_a_closed_market_has_pingpong_only(autojump_clock: MockClock) -> None:
    options = Options(rate_hz=1.0, always_open=False, time_scale=60.0)
    async with open_memory_simulator(options) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        await wire.collect(331.0)  # a minute a second from 10:00: past 15:30
        later = await wire.collect(100.0)
        assert all("PINGPONG" in str(m) for m in later)
        assert len(later) == 10


async def test_a_client_that_speaks_no_http_is_let_go(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        for noise in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /", b""):
            stream = await sim.dial("ops", 1)
            await stream.send_all(noise)
            await trio.sleep(30)
            await trio.aclose_forcefully(stream)
        async with open_wire(sim) as wire:
            assert await wire.subscribe(TRADE) == ["OPSP0000"]
        assert len(sim.exchange.connects) == 5


@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "ping", "pong"]), st.binary(max_size=125)), max_size=6
    ),
    st.integers(0, 70_000),
    st.data(),
)
def test_control_frames_are_found_wherever_the_bytes_are_cut(
    sent: list[tuple[str, bytes]], big: int, data: st.DataObject
) -> None:
    client = Connection(ConnectionType.CLIENT)
    stream = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + client.send(BytesMessage(b"x" * big))
    for form, payload in sent:
        match form:
            case "ping":
                stream += client.send(Ping(payload))
            case "pong":
                stream += client.send(Pong(payload))
            case _:
                stream += client.send(BytesMessage(payload))
    stream += client.send(CloseConnection(1000))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    scanner = FrameScanner()
    found: list[tuple[int, bytes]] = []
    for start, end in itertools.pairwise([0, *cuts, len(stream)]):
        found += scanner.feed(stream[start:end])
    opcodes = {"ping": 9, "pong": 10}
    expected = [(opcodes[form], payload) for form, payload in sent if form in opcodes]
    assert found == [*expected, (8, b"\x03\xe8")]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_raw_frame_is_a_whole_text_message(size: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(raw_frame(b"x" * size))
    assert "".join(e.data for e in client.events() if isinstance(e, TextMessage)) == "x" * size


async def test_a_client_that_reads_nothing_is_cut_off_in_the_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "MAX_BACKLOG", 10_000)
    async with open_memory_simulator(Options(rate_hz=1.0)) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        sim.inject(Kind.SILENCE)
        await trio.sleep(120)
        assert sim.exchange.open_sessions == []
        tally = sim.exchange.tallies[TRADE]
        assert tally.withheld_records > 10


@pytest.mark.parametrize("turns", range(1, 10))
async def test_what_is_still_sent_to_a_client_that_was_cut_off_harms_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    monkeypatch.setattr(websocket, "MAX_BACKLOG", 10_000)
    async with open_memory_simulator(Options(rate_hz=1.0)) as sim, open_wire(sim) as wire:
        await wire.subscribe(TRADE)
        sim.inject(Kind.SILENCE)
        # So many turns of the scheduler apart, to meet the one in which the line is just over.
        for _ in range(60):
            sim.inject(Fault(Kind.BURST, count=1))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
        await trio.sleep(10)
        assert [line.code for line in sim.exchange.history if line.what is Happening.CLOSED] == [
            "unclean"
        ]
