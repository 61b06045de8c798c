"""Public KIS clients, as published, on the simulated KIS.

Their pins are theirs: they have an environment of their own, whose interpreter is named by
``KISFEED_INTEROP_PYTHON`` (``.ci/run`` makes it from ``requirements.lock`` beside this file).
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kisfeed.simulator.market import NAMES
from kisfeed.testing import Happening, Options, open_simulator
from tests.processes import Place, Program, open_place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FOUND = shutil.which(os.environ.get("KISFEED_INTEROP_PYTHON", ""))
PYTHON = None if FOUND is None else Path(FOUND).absolute()
HERE = Path(__file__).parent
SYMBOL = "005930"
TRADES = 30
KST = dt.timezone(dt.timedelta(hours=9))

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(PYTHON is None, reason="KISFEED_INTEROP_PYTHON names no interpreter"),
]


@pytest.fixture
async def place() -> AsyncGenerator[Place]:
    async with open_place() as place:
        yield place


async def run_client(place: Place, name: str, rest: str, ws: str) -> Program:
    """Let one of the clients receive until it has seen enough, and end by itself."""
    assert PYTHON is not None
    program = await place.start(PYTHON, HERE / name, rest, ws, SYMBOL, str(TRADES))
    assert await program.ends(within=40.0) == 0, program.talk
    return program


def check_market(program: Program) -> None:
    """Nothing is missing, nothing has shifted: each volume is the one before and its own trade."""
    trades = program.of("trade")
    assert len(trades) >= TRADES
    before = None
    for trade in trades:
        assert trade["symbol"] == SYMBOL
        assert 30_000 < trade["price"] < 150_000
        # At midnight in Seoul the day's volume begins anew.
        assert trade["volume"] in {(before or 0) + trade["quantity"], trade["quantity"]}
        before = trade["volume"]
    for book in program.of("book"):
        assert book["symbol"] == SYMBOL
        assert book["asks"] == sorted(book["asks"])
        assert book["bids"] == sorted(book["bids"], reverse=True)
        assert len(book["asks"]) == len(book["bids"]) == 10
        assert book["bids"][0] < book["asks"][0]


def options() -> Options:
    # They judge a token's expiry by their own clock.
    return Options(rate_hz=10.0, pingpong_s=0.3, notice_s=1.0, start=dt.datetime.now(KST))


async def test_python_kis_receives_what_was_sent_and_leaves_in_order(place: Place) -> None:
    async with open_simulator(options()) as simulator:
        program = await run_client(
            place, "with_python_kis.py", simulator.rest_url, simulator.ws_url
        )
        check_market(program)
        assert program.of("stock")[0]["name"] == NAMES[SYMBOL]
        assert program.of("trade")[0]["volume"] == program.of("trade")[0]["quantity"]
        exchange = simulator.exchange
        assert len(exchange.times(Happening.SUBSCRIBE, "OPSP0000")) == 2
        assert len(exchange.times(Happening.UNSUBSCRIBE, "OPSP0001")) == 2
        assert not exchange.times(Happening.MALFORMED)
        (session,) = exchange.sessions
        assert set(session.pongs) == {"text"}
        assert session.clean


async def test_mojito_receives_what_was_sent_and_its_notices(place: Place) -> None:
    async with open_simulator(options()) as simulator:
        program = await run_client(place, "with_mojito.py", simulator.rest_url, simulator.ws_url)
        check_market(program)
        assert program.of("trade")[0]["volume"] == program.of("trade")[0]["quantity"]
        (notice, *_) = program.of("notice")
        assert notice == {"type": "notice", "user": "interop", "symbol": SYMBOL}
        exchange = simulator.exchange
        assert len(exchange.times(Happening.SUBSCRIBE, "OPSP0000")) == 3
        assert not exchange.times(Happening.MALFORMED)
        (session,) = exchange.sessions
        assert set(session.pongs) == {"text"}


@pytest.mark.parametrize("name", ["with_python_kis.py", "with_mojito.py"])
async def test_they_work_with_the_command(place: Place, name: str) -> None:
    scenario = place.folder / "notices.json"
    scenario.write_text(json.dumps({"fault": [{"kind": "notice", "at": n} for n in range(60)]}))
    simulator = await place.kisfeed("sim", "--rate", "10", "--scenario", scenario, "--json")
    (urls,) = await simulator.says(1)
    check_market(await run_client(place, name, urls["rest"], urls["ws"]))
