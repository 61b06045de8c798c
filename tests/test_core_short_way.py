"""Frames that begin alike take a short way through the engine: it must lead to the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from hypothesis import given, settings, strategies as st

from kisfeed.core.engine import Count
from kisfeed.kis import server
from tests.engine_bench import BOOK, TRADE, Bench, record, trade

if TYPE_CHECKING:
    from kisfeed.kfp.events import Event

OTHER = "trade.krx.000660"
RAW = "raw.H0STCNT0.005930"

Read: TypeAlias = list[bytes]


def frame(tr_id: str, rows: list[list[str]], count: bytes | None = None) -> bytes:
    made = server.data_frame(tr_id, rows).encode()
    return made if count is None else b"|".join([*made.split(b"|")[:2], count, made.split(b"|")[3]])


SYMBOLS = st.sampled_from(["005930", "000660", "999999"])
TRADES = st.builds(
    trade,
    st.integers(1, 500),
    st.integers(1, 30),
    SYMBOLS,
    STCK_PRPR=st.sampled_from(["71000", "+71000", "", "7.5", "x", str(1 << 70)]),
    TRHT_YN=st.sampled_from("YN"),
    NEW_MKOP_CLS_CODE=st.sampled_from(["20", "21", "30", "99", ""]),
    BSOP_DATE=st.sampled_from(["20261120", "20261121", "junk"]),
)
BOOKS = st.builds(lambda symbol: record("H0STASP0", MKSC_SHRN_ISCD=symbol), SYMBOLS)
FRAMES = st.one_of(
    st.builds(lambda rows: frame("H0STCNT0", rows), st.lists(TRADES, min_size=1, max_size=4)),
    st.builds(lambda row: frame("H0STASP0", [row]), BOOKS),
    st.builds(lambda row, n: frame("H0STCNT0", [row], n), TRADES, st.sampled_from([b"1", b"002"])),
    st.builds(lambda row: frame("H0STCNT0", [[*row, "more"]]), TRADES),
    st.builds(lambda row: frame("H0STCNT0", [row[:-1]]), TRADES),
    st.builds(lambda row: b"1" + frame("H0STCNT0", [row])[1:], TRADES),
    st.builds(lambda row: frame("H0STCNT0", [row]).replace(b"71000", b"\xff"), TRADES),
    st.sampled_from([b"", b"^", b"0|H0STCNT0|001|005930", server.pingpong("20261120110000")]).map(
        lambda text: text.encode() if isinstance(text, str) else text
    ),
)
STEPS = st.one_of(
    st.lists(FRAMES, min_size=1, max_size=6), st.sampled_from(["lose", "wait", "unsubscribe"])
)


class Way:
    """An engine with three subscribers and all that they were told."""

    def __init__(self, *, short: bool) -> None:
        self.short = short
        self.bench = Bench()
        self.subscribers = [
            self.bench.subscribe(TRADE, BOOK, RAW),
            self.bench.subscribe(OTHER, TRADE),
            self.bench.subscribe(RAW),
        ]
        self.told: list[list[Event]] = [[], [], []]

    def do(self, step: Read | str) -> None:
        bench = self.bench
        if step == "lose":
            bench.lose()
            bench.reconnect()
        elif step == "wait":
            bench.wait(2.0)
        elif step == "unsubscribe":
            bench.engine.unsubscribe(self.subscribers[1], None, bench.at())
        else:
            assert isinstance(step, list)
            bench.engine.heard(bench.now)
            self.read(step)
        for told, subscriber in zip(self.told, self.subscribers, strict=True):
            told.extend(bench.take(subscriber))

    def read(self, frames: Read) -> None:
        engine, bench = self.bench.engine, self.bench
        if self.short:
            engine.on_frames(frames, bench.rts, bench.now)
            return
        for one in frames:
            engine._lanes.clear()
            engine.on_frames([one], bench.rts, bench.now)

    def state(self) -> dict[str, Any]:
        status = self.bench.engine.status(self.bench.now)
        return {name: status[name] for name in ("counts", "rejects", "liveness", "session")}


@settings(max_examples=70, deadline=None)
@given(st.lists(STEPS, max_size=8))
def test_the_short_way_tells_and_counts_the_same(plan: list[Read | str]) -> None:
    short, long = Way(short=True), Way(short=False)
    for step in plan:
        short.do(step)
        long.do(step)
        assert short.told == long.told
    assert short.state() == long.state()


def test_the_short_way_is_taken() -> None:
    way = Way(short=True)
    one, four = [trade(100)], [trade(110 + 10 * n) for n in range(4)]
    way.do([frame("H0STCNT0", one), frame("H0STCNT0", four)])
    assert sorted(way.bench.engine._lanes) == [
        b"0|H0STCNT0|001|005930",
        b"0|H0STCNT0|004|005930",
    ]
    assert way.bench.engine.counts[Count.RECORDS] == 5
    way.bench.lose()
    assert way.bench.engine._lanes == {}
