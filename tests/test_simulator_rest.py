from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio

from kisfeed.kis import server
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
    from trio.testing import MockClock

PRICE = "/uapi/domestic-stock/v1/quotations/inquire-price"
INFO = "/uapi/domestic-stock/v1/quotations/search-info"
CREDENTIALS = {"grant_type": "client_credentials", "appkey": "a", "appsecret": "s"}


async def post(
    sim: MemorySimulator, path: str, body: dict[str, Any], **headers: str
) -> tuple[int, dict[str, Any]]:
    status, _, answer = await sim.rest("POST", path, headers, json.dumps(body).encode())
    return status, json.loads(answer)


async def quote(sim: MemorySimulator, target: str, token: str, tr_id: str) -> Any:
    headers = {"authorization": f"Bearer {token}", "appkey": "a", "tr_id": tr_id}
    status, sent, answer = await sim.rest("GET", target, headers, b"")
    return status, sent, json.loads(answer)


async def token_of(sim: MemorySimulator) -> str:
    _, answer = await post(sim, "/oauth2/tokenP", CREDENTIALS)
    token: str = answer["access_token"]
    return token


async def test_a_token_comes_once_a_minute(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        status, first = await post(sim, "/oauth2/tokenP", CREDENTIALS)
        assert (status, first["token_type"], first["expires_in"]) == (200, "Bearer", 86_400)
        await trio.sleep(59)
        status, refused = await post(sim, "/oauth2/tokenP", CREDENTIALS)
        assert (status, refused) == (403, server.oauth_error("EGW00133"))
        await trio.sleep(1)
        assert await post(sim, "/oauth2/tokenP", CREDENTIALS) == (200, first)
        assert sim.exchange.times(Happening.TOKEN, "ok") == [0.0, 60.0]


async def test_approval_wants_secretkey_and_token_wants_appsecret(
    autojump_clock: MockClock,
) -> None:
    options = Options(rules=Rules(accounts={"a": "s"}))
    async with open_memory_simulator(options) as sim:
        status, refused = await post(sim, "/oauth2/Approval", CREDENTIALS)
        assert (status, refused["error_code"]) == (403, "EGW00105")
        good = {"grant_type": "client_credentials", "appkey": "a", "secretkey": "s"}
        status, answer = await post(sim, "/oauth2/Approval", good)
        assert status == 200
        assert len(answer["approval_key"]) == 36
        assert (await post(sim, "/oauth2/tokenP", CREDENTIALS))[0] == 200
        status, refused = await post(sim, "/oauth2/Approval", {**good, "appkey": "b"})
        assert refused["error_code"] == "EGW00103"


async def test_a_price_is_the_markets(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        token = await token_of(sim)
        sim.market.records(("H0STCNT0", "005930"), 9, 0.0)
        tape = sim.market.tape("krx", "005930")
        target = f"{PRICE}?FID_COND_MRKT_DIV_CODE=J&FID_INPUT_ISCD=005930"
        status, headers, answer = await quote(sim, target, token, "FHKST01010100")
        assert (status, answer["rt_cd"], answer["msg_cd"]) == (200, "0", "MCA00000")
        output = answer["output"]
        assert (output["stck_prpr"], output["acml_vol"]) == (str(tape.last), str(tape.volume))
        assert len(output) == 81
        assert all(isinstance(value, str) for value in output.values())
        for name in headers:
            assert name.islower() is (name in {"tr_id", "tr_cont", "gt_uid"})
        lower = target.lower().replace("=j", "=J")
        assert (await quote(sim, lower, token, "FHKST01010100"))[2]["output"] == output


async def test_a_symbol_has_a_name(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        token = await token_of(sim)
        target = f"{INFO}?PRDT_TYPE_CD=300&PDNO=005930"
        _, _, answer = await quote(sim, target, token, "CTPF1604R")
        assert answer["output"]["prdt_abrv_name"] == "삼성전자"
        _, _, nothing = await quote(sim, f"{INFO}?PDNO=999999", token, "CTPF1604R")
        assert (nothing["rt_cd"], "output" in nothing) == ("7", False)


async def test_refusals_keep_kis_shapes(autojump_clock: MockClock) -> None:
    async with open_memory_simulator(Options(rules=Rules(rest_per_s=2))) as sim:
        token = await token_of(sim)
        target = f"{PRICE}?FID_INPUT_ISCD=005930"
        status, _, answer = await quote(sim, target, "wrong", "FHKST01010100")
        assert (status, answer["msg_cd"]) == (500, "EGW00121")
        status, _, answer = await quote(sim, target, token, "NOSUCH")
        assert (status, answer["msg_cd"]) == (500, "MCA00124")
        status, _, answer = await quote(sim, target, token, "FHKST01010100")
        assert (status, answer) == (500, server.gateway_error("EGW00201"))
        await trio.sleep(1)
        sim.inject(Kind.RATE_LIMITED)
        status, _, answer = await quote(sim, target, token, "FHKST01010100")
        assert answer["message"] == "EGW00201"
        await trio.sleep(1)
        sim.inject(Kind.TOKENS_INVALID)
        assert (await quote(sim, target, token, "FHKST01010100"))[2]["msg_cd"] == "EGW00121"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("GET", "/oauth2/tokenP"),
        ("POST", "/uapi/domestic-stock/v1/trading/order-credit"),
        ("GET", "/uapi/domestic-stock/v1/trading/inquire-credit-psamount"),
    ],
)
async def test_what_is_not_served_is_not_found(
    autojump_clock: MockClock, method: str, path: str
) -> None:
    async with open_memory_simulator() as sim:
        status, _, _ = await sim.rest(method, path, {}, b"{}")
        assert status == 404


async def test_hashkey_and_revoke_answer(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        status, answer = await post(sim, "/uapi/hashkey", {"ORD_QTY": "1"}, appkey="a")
        assert (status, answer["BODY"], len(answer["HASH"])) == (200, {"ORD_QTY": "1"}, 64)
        token = await token_of(sim)
        revoked = {"appkey": "a", "appsecret": "s", "token": token}
        assert await post(sim, "/oauth2/revokeP", revoked) == (200, server.revoke_reply())


async def test_a_chunked_body_is_a_routing_error(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        status, answer = await post(
            sim, "/oauth2/tokenP", CREDENTIALS, **{"Transfer-Encoding": "chunked"}
        )
        assert (status, answer["msg_cd"]) == (500, "EGW00202")


async def test_hosts_go_down_and_come_back(autojump_clock: MockClock) -> None:
    async with open_memory_simulator() as sim:
        sim.inject(Fault(Kind.REST_DOWN, lasts=5.0))
        sim.inject(Fault(Kind.APPROVAL_DOWN, lasts=10.0))
        with pytest.raises(ConnectionResetError):
            await sim.rest("POST", "/oauth2/Approval", {}, b"{}")
        await trio.sleep(5)
        status, headers, body = await sim.rest("POST", "/oauth2/Approval", {}, b"{}")
        assert (status, headers["Content-Type"]) == (500, "text/html")
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)
        await trio.sleep(5)
        assert (await post(sim, "/oauth2/Approval", {"appkey": "a"}))[0] == 200


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"appkey": 1}'])
async def test_a_body_that_is_no_request_is_refused(autojump_clock: MockClock, body: bytes) -> None:
    async with open_memory_simulator() as sim:
        for path in ("/oauth2/tokenP", "/oauth2/Approval", "/oauth2/revokeP"):
            status, _, _ = await sim.rest("POST", path, {}, body)
            assert status == 403


async def test_http_keeps_the_connection_and_the_case_of_header_names(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_simulator() as sim:
        stream = await sim.dial_rest()
        client = h11.Connection(h11.CLIENT)
        for number in range(3):
            body = json.dumps({**CREDENTIALS, "appkey": f"a{number}"}).encode()
            headers = [("Host", "kis"), ("Content-Length", str(len(body))), ("tr_id", "x")]
            request = h11.Request(method="POST", target="/oauth2/tokenP", headers=headers)
            parts = (request, h11.Data(data=body), h11.EndOfMessage())
            await stream.send_all(b"".join(client.send(part) or b"" for part in parts))
            raw = bytes(await stream.receive_some())
            assert b"\r\nContent-Type: application/json" in raw
            client.receive_data(raw)
            response = client.next_event()
            assert isinstance(response, h11.Response)
            assert response.status_code == 200
            data = client.next_event()
            assert isinstance(data, h11.Data)
            assert json.loads(data.data)["token_type"] == "Bearer"
            assert isinstance(client.next_event(), h11.EndOfMessage)
            client.start_next_cycle()


@pytest.mark.parametrize(
    "noise", [b"\x00\x01\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n"]
)
async def test_a_peer_that_breaks_http_is_let_go(autojump_clock: MockClock, noise: bytes) -> None:
    async with open_memory_simulator() as sim:
        stream = await sim.dial_rest()
        await stream.send_all(noise)
        with trio.fail_after(120):
            assert await stream.receive_some() == b""
