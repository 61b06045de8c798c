"""Calls to KIS against the simulated one, in virtual time."""

from __future__ import annotations

import datetime as dt
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed import schemas
from kisfeed.config import Environment, Rest
from kisfeed.core import limiter
from kisfeed.core.limiter import SLACK
from kisfeed.errors import (
    KisBusy,
    KisfeedError,
    KisRefused,
    KisUnreachable,
    LocalRefusal,
    NoToken,
    NotSent,
    UnknownOutcome,
    UsageError,
)
from kisfeed.kis.rest import Endpoints, Kind, Priority, RestCodes, has_more
from kisfeed.rest.transport import _InProcess
from kisfeed.seoul import KST
from kisfeed.testing import Fault, Happening, Kind as Trouble, Options, Rules
from tests.feeds import WALL, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from trio.testing import MockClock

    from kisfeed.kis.rest import Call
    from kisfeed.rest.requests import Kis
    from tests.feeds import World

START = dt.datetime.fromtimestamp(WALL / 1e9, KST)
SAMSUNG = {"FID_COND_MRKT_DIV_CODE": "J", "FID_INPUT_ISCD": "005930"}
CODES = RestCodes(schemas.load("kis/codes.json"))


@asynccontextmanager
async def world_at(
    folder: Path, *, options: Options | None = None, **changes: Any
) -> AsyncGenerator[World]:
    options = attrs.evolve(options or Options(), start=START)
    async with open_world(folder, options=options, **changes) as world:
        yield world


def price(kis: Kis) -> Call:
    return kis.endpoints.call("inquire_price", SAMSUNG)


def order(kis: Kis) -> Call:
    values = {"CANO": "12345678", "ACNT_PRDT_CD": "01", "PDNO": "005930", "ORD_DVSN": "00"}
    return kis.endpoints.call("order_cash_buy", values)


def later(world: World, seconds: float = 2.0) -> float:
    return world.feed.clock.now() + seconds


class Scripted:
    """Answers for KIS: a list of (status, body), or what a callable does."""

    def __init__(self, world: World, *answers: Any) -> None:
        self._kis = world.kis
        self.answers = list(answers)
        self.seen: list[Mapping[str, str]] = []

    async def __call__(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if "/oauth2/" in path or not self.answers:
            return await self._kis.rest(method, path, headers, body)
        self.seen.append({**headers, "target": path, "body": body.decode()})
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = await answer()
        status, content = answer
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        return status, {"tr_cont": "M"}, content


def script(world: World, *answers: Any) -> Scripted:
    """From here on KIS's answers are these, then the simulator's."""
    scripted = Scripted(world, *answers)
    rest = world.feed.rest._rest
    rest._pool = _InProcess(scripted)
    rest._fresh = lambda: _InProcess(scripted)
    return scripted


OK = (200, {"rt_cd": "0", "msg_cd": "MCA00000", "msg1": "ok   ", "output": {"a": "1"}})
BUSY = (500, {"rt_cd": "1", "msg_cd": "EGW00201", "msg1": "x", "message": "EGW00201"})
EXPIRED = (500, {"rt_cd": "1", "msg_cd": "EGW00123", "msg1": "x", "message": "EGW00123"})


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (200, OK[1], Kind.OK, ""),
        (200, {"access_token": "t"}, Kind.OK, ""),
        (500, BUSY[1], Kind.RATE_LIMITED, "EGW00201"),
        (200, BUSY[1], Kind.RATE_LIMITED, "EGW00201"),
        (500, {"rt_cd": "1", "msg1": "", "message": "EGW00201"}, Kind.RATE_LIMITED, "EGW00201"),
        (500, {"rt_cd": "1", "msg_cd": "EGW00215"}, Kind.RATE_LIMITED, "EGW00215"),
        (200, EXPIRED[1], Kind.TOKEN_DEAD, "EGW00123"),
        (500, {"rt_cd": "1", "msg_cd": "EGW00121"}, Kind.TOKEN_DEAD, "EGW00121"),
        (403, {"error_code": "EGW00133"}, Kind.TOKEN_TOO_SOON, "EGW00133"),
        (403, {"error_code": "EGW00103"}, Kind.REFUSED, "EGW00103"),
        (200, {"rt_cd": "7", "msg_cd": "KIOK0560"}, Kind.BUSINESS, "KIOK0560"),
        (200, {"rt_cd": "1", "msg_cd": "APBK9999"}, Kind.BUSINESS, "APBK9999"),
        (200, {"rt_cd": "1", "msg_cd": "APBK0013"}, Kind.BUSINESS, "APBK0013"),
        (200, {"rt_cd": "1"}, Kind.BUSINESS, "HTTP200"),
        (500, {"rt_cd": "1", "msg_cd": "EGW02004"}, Kind.REFUSED, "EGW02004"),
        (500, {"rt_cd": "1", "msg_cd": "EGW00202"}, Kind.SERVER, "EGW00202"),
        (200, {"rt_cd": "1", "msg_cd": "EGW00202"}, Kind.SERVER, "EGW00202"),
        (200, {"rt_cd": "1", "msg_cd": "EGW00301"}, Kind.SERVER, "EGW00301"),
        (200, {"rt_cd": "1", "msg_cd": "EGW00304"}, Kind.REFUSED, "EGW00304"),
        (200, {"rt_cd": "1", "msg_cd": "OPSQ3001"}, Kind.SERVER, "OPSQ3001"),
        (500, {"rt_cd": "1", "msg_cd": "EGW99999"}, Kind.SERVER, "EGW99999"),
        (200, {"rt_cd": "1", "msg_cd": "EGW99999"}, Kind.SERVER, "EGW99999"),
        (200, {"rt_cd": "1", "msg_cd": "OPSQ8888"}, Kind.SERVER, "OPSQ8888"),
        (500, {"rt_cd": "0", "msg_cd": "MCA00000"}, Kind.SERVER, "MCA00000"),
        (502, {}, Kind.SERVER, "HTTP502"),
        (404, {"status": 404, "error": "Not Found"}, Kind.SERVER, "HTTP404"),
        (200, {"rt_cd": None, "msg_cd": ["x"]}, Kind.BUSINESS, "['x']"),
    ],
)
def test_the_body_decides(status: int, body: dict[str, Any], kind: Kind, code: str) -> None:
    verdict = CODES.verdict(status, body)
    assert (verdict.kind, verdict.code) == (kind, code)


def test_padding_is_not_text() -> None:
    body = {"rt_cd": "7", "msg_cd": "KIOK0560 ", "msg1": "없습니다" + " " * 60}
    assert (CODES.verdict(200, body).text, CODES.verdict(200, body).code) == (
        "없습니다",
        "KIOK0560",
    )


@pytest.mark.parametrize(
    ("sent", "more"), [("M", True), ("F ", True), ("D", False), ("E", False), ("", False)]
)
def test_the_header_tells_of_another_page(sent: str, *, more: bool) -> None:
    assert has_more({"tr_cont": sent}) is more
    assert not has_more({})


def test_paper_lacks_some_and_has_its_own_ids() -> None:
    calls = Endpoints(schemas.load("kis/endpoints.json"), Environment.PAPER)
    assert "intstock_multprice" not in calls
    with pytest.raises(UsageError, match="paper host"):
        calls.call("intstock_multprice", {})
    with pytest.raises(UsageError, match="unknown"):
        calls.call("nonsense", {})
    assert calls["order_cash_buy"].tr_id == "VTTC0012U"
    real = Endpoints(schemas.load("kis/endpoints.json"), Environment.REAL)
    assert real["order_cash_buy"].tr_id == "TTTC0012U"
    assert real["intstock_multprice"].most == 30


def test_blank_values_are_sent() -> None:
    calls = Endpoints(schemas.load("kis/endpoints.json"), Environment.REAL)
    call = calls.call("inquire_balance", {"CANO": "1", "CTX_AREA_FK100": ""}, more=True)
    assert call.target().endswith("inquire-balance?CANO=1&CTX_AREA_FK100=")
    assert call.body() == b""
    assert "12345678" not in repr(calls.call("order_cash_buy", {"CANO": "12345678"}))


async def test_kis_is_asked_with_its_headers(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        answer = await kis.call(price(kis))
        assert answer.body["output"]["stck_shrn_iscd"] == "005930"
        seen = script(world, OK).seen
        call = kis.endpoints.call("inquire_balance", {"CANO": "1"}, more=True)
        assert (await kis.call(call)).more
        assert seen[0]["tr_id"] == "TTTC8434R"
        assert (seen[0]["tr_cont"], seen[0]["custtype"]) == ("N", "P")
        assert seen[0]["authorization"].startswith("Bearer ey")


async def test_nothing_found_is_a_refusal_with_its_code(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        with pytest.raises(KisRefused, match="KIOK0560"):
            await kis.call(kis.endpoints.call("inquire_price", {"FID_INPUT_ISCD": "999999"}))
        assert (kis.calls, kis.failed) == (1, 0)


@pytest.mark.parametrize(
    "trouble",
    [
        (500, b"<html>error</html>"),
        (200, b'{"rt_cd": "0", "output'),
        (200, b"[]"),
        (200, b"\xff"),
        (502, {"rt_cd": "1"}),
        (500, {"rt_cd": "1", "msg_cd": "EGW00202"}),
        ConnectionResetError("reset"),
        BUSY,
        EXPIRED,
    ],
)
async def test_what_passes_is_tried_again(
    autojump_clock: MockClock, tmp_path: Path, trouble: Any
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        await trio.sleep(100)
        scripted = script(world, trouble, OK)
        assert (await kis.call(price(kis))).body["output"] == {"a": "1"}
        assert len(scripted.seen) == 2


@pytest.mark.parametrize(
    ("answer", "tries", "error"),
    [
        ((500, b"<html>"), 4, KisUnreachable),
        ((500, {"rt_cd": "1", "msg_cd": "EGW00300"}), 4, KisUnreachable),
        (BUSY, 10, KisBusy),
        ((200, {"rt_cd": "1", "msg_cd": "APBK0656"}), 1, KisRefused),
        ((500, {"rt_cd": "1", "msg_cd": "EGW02004"}), 1, KisRefused),
    ],
)
async def test_tries_are_bounded(
    autojump_clock: MockClock,
    tmp_path: Path,
    answer: Any,
    tries: int,
    error: type[KisfeedError],
) -> None:
    async with world_at(tmp_path) as world:
        scripted = script(world, *[answer] * 20)
        with pytest.raises(error) as caught:
            await world.feed.rest.call(price(world.feed.rest))
        assert type(caught.value) is error
        assert len(scripted.seen) == tries


async def test_an_answer_without_end_is_not_read(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        script(world, *[(200, b'{"a": "' + b"x" * (1 << 20) + b'"}')] * 4)
        with pytest.raises(KisUnreachable, match="more than"):
            await world.feed.rest.call(price(world.feed.rest))


async def test_every_call_has_a_deadline(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        script(world, *[trio.sleep_forever] * 4)
        started = trio.current_time()
        with pytest.raises(KisUnreachable):
            await world.feed.rest.call(price(world.feed.rest))
        assert trio.current_time() - started < 70


async def test_a_host_that_does_not_answer_is_left_alone_for_a_while(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        scripted = script(world, *[ConnectionResetError()] * 1000)
        for _ in range(600):
            with pytest.raises(KisUnreachable):
                await kis.call(price(kis))
            await trio.sleep(0.1)
        assert kis.status()["breaker"] == {
            "open": True,
            "failures": 5,
            "next_try_in_s": pytest.approx(30, abs=30),
        }
        assert len(scripted.seen) <= 5 + 4  # probes after 5, 10, 20 and 40 s
        scripted.answers.clear()
        await trio.sleep(61)
        await kis.call(price(kis))
        assert kis.status()["breaker"]["open"] is False  # type: ignore[index]


async def test_a_host_that_is_gone_for_a_second_fails_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        await trio.sleep(10)
        world.kis.inject(Fault(Trouble.REST_DOWN, lasts=1.0))
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(kis.call, price(kis))
            await trio.sleep(1.0)
            assert kis.breaker.open
        assert trio.current_time() - started < 12
        assert kis.failed == 0


async def test_a_long_outage_is_told_without_waiting(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        script(world, *[ConnectionResetError()] * 1000)
        with trio.move_on_after(120):
            while True:
                with pytest.raises(KisUnreachable):
                    await kis.call(price(kis))
                await trio.sleep(1)
        started = trio.current_time()
        with pytest.raises(KisUnreachable, match="next try in"):
            await kis.call(price(kis))
        assert trio.current_time() == started


async def test_the_queue_is_bounded(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "MOST_WAITING", 40)
    async with world_at(tmp_path) as world:
        kis, refused = world.feed.rest, []

        async def ask() -> None:
            try:
                await kis.call(price(kis))
            except LocalRefusal as exc:
                refused.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert len(refused) == 60


async def test_shadow_delays_nothing_and_tells_what_it_would_have(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    options = Options(rules=Rules(rest_per_s=1000))
    async with world_at(tmp_path, options=options, rest=Rest(shadow=True)) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(kis.call, price(kis))
        assert trio.current_time() == started
        await trio.sleep(60)
        status: Any = kis.status()
        assert status["shadow"]
        assert status["throttle_wait_ms"]["count"] == 101
        assert status["throttle_wait_ms"]["p99"] >= 5_000


async def test_an_order_goes_once_on_a_connection_of_its_own(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis, checks = world.feed.rest, []
        scripted = script(world, OK)
        await kis.post_once(order(kis), until=later(world), check=lambda: checks.append(1))
        assert len(scripted.seen) == len(checks) == 1
        assert json.loads(scripted.seen[0]["body"])["PDNO"] == "005930"
        assert scripted.seen[0]["content-length"] == str(len(scripted.seen[0]["body"]))
        assert "transfer-encoding" not in scripted.seen[0]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (BUSY, KisBusy),
        (EXPIRED, KisRefused),
        ((200, {"rt_cd": "1", "msg_cd": "APBK0919", "msg1": "closed"}), KisRefused),
        ((200, {"rt_cd": "7", "msg_cd": "APBK9999", "msg1": "?"}), KisRefused),
        ((500, {"rt_cd": "1", "msg_cd": "EGW00202"}), UnknownOutcome),
        ((200, {"rt_cd": "1", "msg_cd": "EGW00202"}), UnknownOutcome),
        ((200, {"rt_cd": "1", "msg_cd": "EGW00302", "msg1": "check"}), UnknownOutcome),
        ((200, {"rt_cd": "1", "msg_cd": "OPSQ0008"}), UnknownOutcome),
        ((500, {"rt_cd": "1", "msg_cd": "EGW99999"}), UnknownOutcome),
        ((200, {"rt_cd": "1", "msg_cd": "EGW99999"}), UnknownOutcome),
        ((500, {"rt_cd": "0", "msg_cd": "APBK0013"}), UnknownOutcome),
        ((200, {}), UnknownOutcome),
        ((200, {"output": {"ODNO": "1"}}), UnknownOutcome),
        ((500, b"<html>"), UnknownOutcome),
        ((200, b'{"rt_cd": "0"'), UnknownOutcome),
        (ConnectionResetError(), UnknownOutcome),
        (trio.sleep_forever, UnknownOutcome),
    ],
)
async def test_no_evidence_is_an_unknown_outcome_and_nothing_is_sent_twice(
    autojump_clock: MockClock,
    tmp_path: Path,
    answer: Any,
    error: type[KisfeedError],
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        scripted = script(world, answer, OK, OK)
        with pytest.raises(error) as caught:
            await kis.post_once(order(kis), until=later(world), check=lambda: None)
        assert type(caught.value) is error
        assert len(scripted.seen) == 1


async def test_what_the_check_raises_travels_and_nothing_is_sent(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    def halted() -> None:
        raise LocalRefusal("halted")

    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        scripted = script(world, OK)
        with pytest.raises(LocalRefusal, match="halted"):
            await kis.post_once(order(kis), until=later(world), check=halted)
        assert not scripted.seen
        assert kis.gate.limiter.status(0.0)["unsent"] == 0


async def test_an_order_whose_time_is_up_is_not_sent(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        scripted = script(world, OK)
        for _ in range(17):  # with the call before, the window is full
            ticket = await kis.gate.permit(Priority.ORDER, "order_cash_buy")
            kis.gate.sent(ticket)
        before = trio.current_time()
        with pytest.raises(NotSent):
            await kis.post_once(order(kis), until=later(world, 0.5), check=lambda: None)
        assert trio.current_time() - before == pytest.approx(0.5)
        assert not scripted.seen


@pytest.mark.parametrize(
    ("environment", "most"), [(Environment.SIM, 0.0), (Environment.PAPER, SLACK * 1.1)]
)
async def test_an_order_waits_behind_no_quote(
    autojump_clock: MockClock, tmp_path: Path, environment: Environment, most: float
) -> None:
    options = Options(environment=environment)
    async with (
        world_at(tmp_path, options=options, environment=environment) as world,
        trio.open_nursery() as nursery,
    ):
        kis, waits = world.feed.rest, []
        await kis.call(price(kis))
        for _ in range(300):
            nursery.start_soon(kis.call, price(kis))
        for tenth in range(8):
            await trio.sleep(3 + tenth / 10)
            asked = trio.current_time()
            script(world)
            with pytest.raises(KisfeedError):
                # What the simulator makes of it does not matter; when it is sent does.
                await kis.post_once(
                    order(kis),
                    until=later(world, 20),
                    check=lambda asked=asked: waits.append(trio.current_time() - asked),  # type: ignore[misc]
                )
        assert kis.gate.limiter.waiting(Priority.PRICE) or environment is Environment.SIM
        assert len(waits) == 8
        assert max(waits) <= most + 1e-6
        nursery.cancel_scope.cancel()


async def test_forty_callers_of_a_revoked_token_cost_one_issue_and_lose_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        await trio.sleep(100)
        world.kis.inject(Trouble.TOKENS_INVALID)
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(kis.call, price(kis))
        assert len(world.kis.exchange.times(Happening.TOKEN)) == 2


async def test_a_token_refused_within_the_minute_is_waited_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        world.kis.inject(Trouble.TOKENS_INVALID)
        await kis.call(price(kis))
        asked = world.kis.exchange.times(Happening.TOKEN)
        assert 60 <= asked[1] - asked[0] <= 65


async def test_a_stop_is_waited_out_anew_however_long_a_call_is_under_way(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis, issued = world.feed.rest, world.kis.exchange.times
        await kis.call(price(kis))

        async def answer() -> Any:
            fresh = len(issued(Happening.TOKEN)) == 2
            good = fresh and trio.current_time() > issued(Happening.TOKEN)[1] + 1.0
            return OK if good else EXPIRED

        script(world, *[answer] * 50)
        assert (await kis.call(price(kis))).body["output"] == {"a": "1"}
        assert 60 < trio.current_time() < 70


async def test_a_fresh_token_that_is_refused_too_is_a_clear_stop(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis, exchange = world.feed.rest, world.kis.exchange
        await kis.call(price(kis))
        await trio.sleep(100)
        world.kis.inject(Fault(Trouble.TOKEN_EXPIRED, lasts=1500))
        started = trio.current_time()
        for _ in range(2):
            with pytest.raises(NoToken, match="a fresh one too") as caught:
                await kis.call(price(kis))
            assert caught.value.retry_in_s == pytest.approx(55, abs=10)
        assert trio.current_time() - started < 20
        failures = 0
        with trio.move_on_after(1400):
            while True:
                with pytest.raises(KisfeedError):
                    await kis.call(price(kis))
                failures += 1
                await trio.sleep(1)
        asked = exchange.times(Happening.TOKEN)
        assert len(asked) == 2 + 3  # after 60 s, 5 min, 15 min
        await trio.sleep(200)
        await kis.call(price(kis))  # the refusals are over: found out before the next issue


async def test_a_token_lives_through_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.feed.rest.call(price(world.feed.rest))
    files = {p.name.partition(".")[2]: p for p in tmp_path.iterdir()}
    assert files["token.json"].stat().st_mode & 0o777 == 0o600
    handler = world.kis.rest
    async with world_at(tmp_path) as again:
        # The same KIS as before: it knows its token.
        again.kis.simulator.rest = world.kis.simulator.rest
        del handler
        await again.feed.rest.call(price(again.feed.rest))
        assert not again.kis.exchange.times(Happening.TOKEN)
        assert again.feed.rest.tokens.status()["state"] == "valid"
