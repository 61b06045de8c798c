from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.errors import ConfigError, UsageError
from kisfeed.kis import frames
from kisfeed.simulator import load_scenario
from kisfeed.simulator.faults import GARBAGE, Board
from kisfeed.simulator.player import Player
from kisfeed.testing import Fault, Happening, Kind, Options, open_memory_simulator

if TYPE_CHECKING:
    from trio.testing import MockClock

TRS = schemas.load_catalogue(Environment.SIM).trs
CAPTURED = Path(__file__).parent / "data" / "frames.jsonl"


@given(st.floats(0.1, 50.0), st.integers(1, 5), st.floats(0.0, 60.0))
def test_a_fault_ends_with_its_time_or_its_count(lasts: float, count: int, at: float) -> None:
    board = Board()
    board.post(Fault(Kind.ACK_LOST, lasts=lasts, count=count), 0.0)
    taken = sum(board.take(Kind.ACK_LOST, at) is not None for _ in range(10))
    assert taken == (count if at < lasts else 0)


def test_a_fault_without_a_count_hits_once_unless_it_lasts() -> None:
    board = Board()
    board.post(Fault(Kind.NACK), 0.0)
    assert board.active(Kind.NACK, 1.0)
    assert [bool(board.take(Kind.NACK, 1.0)) for _ in range(2)] == [True, False]
    board.post(Fault(Kind.NACK, lasts=5.0), 1.0)
    assert [bool(board.take(Kind.NACK, 2.0)) for _ in range(3)] == [True] * 3
    board.clear(Kind.NACK)
    assert board.take(Kind.NACK, 2.0) is None


def test_a_fault_hits_only_what_it_names() -> None:
    fault = Fault(Kind.NACK, tr_id="H0STCNT0", tr_key="005930", appkey="a")
    assert fault.hits(("H0STCNT0", "005930"), "a")
    assert not fault.hits(("H0STCNT0", "000660"), "a")
    assert not fault.hits(("H0STASP0", "005930"), "a")
    assert not fault.hits(("H0STCNT0", "005930"), "b")
    assert fault.hits(None, None)
    assert "appkey" not in repr(fault)


@pytest.mark.parametrize("piece", [piece for piece in GARBAGE if isinstance(piece, str)])
def test_no_garbage_is_a_record(piece: str) -> None:
    parsed = frames.parse(piece.encode())
    if isinstance(parsed, frames.DataFrame) and not parsed.encrypted and parsed.tr_id in TRS:
        tr = TRS[parsed.tr_id]
        cut = frames.records(tr, parsed.count, parsed.payload)
        assert tr.encrypted or not isinstance(cut, frames.Records)


def test_a_scenario_is_read_from_toml_or_json(tmp_path: Path) -> None:
    expected = (
        Fault(Kind.CUT, at=10.0),
        Fault(Kind.ACK_LOST, at=30.0, tr_id="H0STCNT0", count=2),
    )
    toml = tmp_path / "a.toml"
    toml.write_text(
        '[[fault]]\nat = 10\nkind = "cut"\n[[fault]]\nat = 30.0\nkind = "ack_lost"\n'
        'tr_id = "H0STCNT0"\ncount = 2\n'
    )
    assert load_scenario(toml) == expected
    listed = tmp_path / "a.json"
    entries = [attrs.asdict(fault) for fault in expected]
    listed.write_text(
        json.dumps({"fault": [{k: v for k, v in e.items() if v is not None} for e in entries]})
    )
    assert load_scenario(listed) == expected


def test_a_bad_scenario_names_every_problem_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('fault = [1, {kind = "no"}, {kind = "cut", at = "x"}, {kind = "cut", b = 1}]')
    with pytest.raises(ConfigError) as raised:
        load_scenario(path)
    assert [where for where, _ in raised.value.problems] == [
        "fault[0]",
        "fault[1].kind",
        "fault[2].at",
        "fault[3].b",
    ]
    for text in ("[[", "fault = 1", ""):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_scenario(path)
    with pytest.raises(ConfigError):
        load_scenario(tmp_path / "missing.toml")


async def test_a_scenario_happens_on_its_timetable(autojump_clock: MockClock) -> None:
    await trio.sleep(5)
    options = Options(scenario=(Fault(Kind.CUT, at=20.0), Fault(Kind.QUIET, at=3.0)))
    async with open_memory_simulator(options) as sim:
        await trio.sleep(30)
        faults = [x for x in sim.exchange.history if x.what is Happening.FAULT]
        assert [(x.at, x.code) for x in faults] == [(8.0, "quiet"), (25.0, "cut")]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(width=45), "no layout of 45 values"),
        (Options(widths={"H0NOSUCH": 3}), "no TR is called H0NOSUCH"),
        (Options(rate_hz=0.0), "above zero"),
        (Options(records=(4, 1)), "1 to 999"),
    ],
)
async def test_options_that_cannot_be_are_refused(
    autojump_clock: MockClock, options: Options, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        async with open_memory_simulator(options):
            pass


def test_captured_frames_are_played_round_and_round() -> None:
    player = Player.read(CAPTURED, TRS)
    assert {("H0STCNT0", "005930"), ("H0STASP0", "005930"), ("HDFSCNT0", "DNASAAPL")} <= set(
        player.keys
    )
    for key in player.keys:
        first = player.next(key)
        assert first is not None
        cut = frames.records(TRS[key[0]], first.count, first.payload.encode())
        assert isinstance(cut, frames.Records)
        again = player.next(key)
        while again is not first:
            assert again is not None
            again = player.next(key)
    assert player.next(("H0STCNT0", "000660")) is None
    apple = Player.read(CAPTURED, TRS).next(("HDFSCNT0", "DNASAAPL"))
    assert apple is not None
    assert apple.volume(TRS["HDFSCNT0"]) == 1 + 3
