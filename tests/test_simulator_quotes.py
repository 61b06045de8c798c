"""The simulator's quote calls tell the story of its stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from kisfeed.config import Environment
from kisfeed.simulator import quotes
from kisfeed.testing import MemorySimulator, Options, open_memory_simulator

if TYPE_CHECKING:
    from trio.testing import MockClock

TOKENS: dict[str, str] = {}


async def ask(sim: MemorySimulator, path: str, query: str) -> tuple[int, dict[str, Any]]:
    issued = sim.exchange.issue_token(path, "", trio.current_time())  # an appkey for each path
    token = issued.body.get("access_token") or TOKENS[path]
    TOKENS[path] = token
    headers = {
        "authorization": f"Bearer {token}",
        "appkey": path,
        "tr_id": quotes.TR_IDS[path],
    }
    status, _, body = await sim.rest("GET", f"{path}?{query}", headers, b"")
    return status, json.loads(body)


def pairs(*symbols: str) -> str:
    return "&".join(
        f"FID_COND_MRKT_DIV_CODE_{n}=J&FID_INPUT_ISCD_{n}={symbol}"
        for n, symbol in enumerate(symbols, 1)
    )


async def test_every_call_tells_the_tapes_price(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        tape = sim.market.tape("krx", "005930")
        one = "FID_COND_MRKT_DIV_CODE=J&FID_INPUT_ISCD=005930"
        _, single = await ask(sim, quotes.INQUIRE_PRICE, one)
        _, several = await ask(sim, quotes.MULTI_PRICE, pairs("005930", "000660"))
        dates = "&FID_INPUT_DATE_1=20260101&FID_INPUT_DATE_2=20261231"
        _, chart = await ask(sim, quotes.DAILY_CHART, one + dates)
        _, daily = await ask(sim, quotes.DAILY_PRICE, one)
        _, info = await ask(sim, quotes.STOCK_INFO, "PDNO=005930&PRDT_TYPE_CD=300")
    last = str(tape.last)
    assert single["output"]["stck_prpr"] == last
    assert [row["inter_shrn_iscd"] for row in several["output"]] == ["005930", "000660"]
    assert several["output"][0]["inter2_prpr"] == last
    assert len(several["output"][0]) == 29
    assert len(chart["output1"]) == 30
    assert (len(chart["output2"]), len(chart["output2"][0])) == (100, 13)
    assert chart["output2"][0]["stck_clpr"] == daily["output"][0]["stck_clpr"] == last
    assert chart["output2"][1]["stck_clpr"] == str(tape.base)
    assert (len(daily["output"]), len(daily["output"][0])) == (30, 14)
    assert info["output"]["bfdy_clpr"] == str(tape.base)
    texts = (single["output"], *several["output"], *chart["output2"], info["output"])
    assert all(isinstance(value, str) for row in texts for value in row.values())


async def test_unknown_symbols_are_left_out_or_not_found(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        _, several = await ask(sim, quotes.MULTI_PRICE, pairs("999999", "005930"))
        assert [row["inter_shrn_iscd"] for row in several["output"]] == ["005930"]
        status, nothing = await ask(sim, quotes.STOCK_INFO, "PDNO=999999")
        assert (status, nothing["rt_cd"], nothing["msg_cd"]) == (200, "7", "KIOK0560")


@pytest.mark.parametrize("path", sorted(quotes.NOT_ON_PAPER))
async def test_paper_lacks_these(autojump_clock: MockClock, path: str) -> None:
    async with open_memory_simulator(Options(environment=Environment.PAPER)) as sim:
        status, refusal = await ask(sim, path, pairs("005930"))
        assert (status, refusal["rt_cd"]) == (500, "1")
        assert "모의투자 TR" in refusal["msg1"]


async def test_a_symbol_without_a_stream_trades_on(autojump_clock: MockClock) -> None:

    async with open_memory_simulator() as sim:
        volumes = []
        for _ in range(3):
            _, body = await ask(sim, quotes.MULTI_PRICE, pairs("005930"))
            volumes.append(int(body["output"][0]["acml_vol"]))
            await trio.sleep(1)
    assert 0 == volumes[0] < volumes[1] < volumes[2]
