from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trio
from trio_websocket import open_websocket_url

from kisfeed.kis import control
from kisfeed.testing import Fault, Kind, Options, open_simulator

CAPTURED = Path(__file__).parent / "data" / "frames.jsonl"


async def approval_key(url: str) -> str:
    body = {"grant_type": "client_credentials", "appkey": "a", "secretkey": "s"}
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/oauth2/Approval", json=body)
    key: str = response.json()["approval_key"]
    return key


async def test_both_protocols_work_over_tcp() -> None:
    async with open_simulator(Options(rate_hz=50.0, play=CAPTURED)) as sim:
        with trio.fail_after(5):
            key = await approval_key(sim.rest_url)
            async with open_websocket_url(f"{sim.ws_url}/tryitout") as ws:
                for symbol in ("005930", "000660"):
                    await ws.send_message(control.subscribe(key, ("H0STCNT0", symbol)))
                seen: set[str] = set()
                while len(seen) < 3:
                    message = str(await ws.get_message())
                    if message[0] == "{":
                        seen.add(json.loads(message)["body"]["msg_cd"])
                    else:
                        seen.add(message.split("|")[3].split("^", maxsplit=1)[0])
        assert seen == {"OPSP0000", "005930", "000660"}


async def test_a_refusing_port_refuses_and_listens_again() -> None:
    async with open_simulator() as sim:
        port = int(sim.ws_url.rsplit(":", 1)[1])
        sim.inject(Fault(Kind.REFUSE, lasts=0.2))
        with trio.fail_after(5):
            await trio.sleep(0.05)
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream("127.0.0.1", port)
            await trio.sleep(0.25)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.aclose()


async def test_a_cut_is_a_reset() -> None:
    async with open_simulator() as sim:
        with trio.fail_after(5):
            stream = await trio.open_tcp_stream("127.0.0.1", int(sim.ws_url.rsplit(":", 1)[1]))
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b"101" in await stream.receive_some()
            sim.inject(Kind.CUT)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.receive_some()
            assert isinstance(broken.value.__cause__, ConnectionResetError)
            await stream.aclose()
