"""Approval keys: one flight, one a second, and never an older key for a newer one."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed import seams
from kisfeed.config import Credentials, Secret, Session
from kisfeed.core.connection import Connection, Dial, FetchKey
from kisfeed.core.pacing import Hygiene
from kisfeed.errors import KisRefused, KisUnreachable
from kisfeed.kis.rest import RestCodes
from kisfeed.limits import Window, resolve
from kisfeed.rest.approval import ApprovalKeys
from kisfeed.rest.keyfile import KeyFile
from kisfeed.rest.transport import open_rest
from kisfeed.schemas import load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from trio.testing import MockClock

WALL = 1_795_140_000 * 10**9
AGE_S = 82_800.0


@attrs.define(eq=False)
class Kis:
    """Answers approval requests with numbered keys, or as it is told."""

    takes_s: float = 0.0
    asked: list[float] = attrs.field(factory=list)
    answers: list[tuple[int, Any]] = attrs.field(factory=list)
    bodies: list[dict[str, str]] = attrs.field(factory=list)

    async def __call__(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        assert (method, path) == ("POST", "/oauth2/Approval")
        assert headers["content-length"] == str(len(body))
        self.asked.append(trio.current_time())
        self.bodies.append(json.loads(body))
        number = len(self.asked)
        await trio.sleep(self.takes_s)
        usual: tuple[int, Any] = 200, {"approval_key": f"key {number}"}
        status, answer = self.answers.pop(0) if self.answers else usual
        if isinstance(answer, Exception):
            raise answer
        return status, {}, json.dumps(answer).encode()


@asynccontextmanager
async def keys_of(kis: Kis, folder: Path) -> AsyncGenerator[ApprovalKeys]:
    clock = seams.VirtualClock(WALL)
    credentials = Credentials(Secret("the appkey"), Secret("the secret"))
    async with open_rest("http://kis", handler=kis) as rest:
        yield ApprovalKeys(
            rest,
            credentials,
            clock,
            Window(1, 1.0),
            RestCodes(load("kis/codes.json")),
            KeyFile(folder / "approval.json", clock, seams.DirectDisk()),
            AGE_S,
            lambda _key: None,
        )


async def test_the_secret_goes_by_the_name_that_this_address_wants(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis()
    async with keys_of(kis, tmp_path) as keys:
        assert (await keys.get(fresh=False)).reveal() == "key 1"
    assert kis.bodies == [
        {
            "grant_type": "client_credentials",
            "appkey": "the appkey",
            "secretkey": "the secret",
        }
    ]


async def test_many_callers_are_one_request(autojump_clock: MockClock, tmp_path: Path) -> None:
    kis = Kis(takes_s=2.0)
    got: list[str] = []

    async def call(fresh: bool) -> None:
        got.append((await keys.get(fresh=fresh)).reveal())

    async with keys_of(kis, tmp_path) as keys, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(call, number % 2 == 0)
    assert got == ["key 1"] * 10
    assert len(kis.asked) == 1


async def test_a_flight_survives_the_first_callers_cancellation(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis(takes_s=2.0)
    async with keys_of(kis, tmp_path) as keys:
        with trio.move_on_after(1):
            await keys.get(fresh=False)
        assert (await keys.get(fresh=False)).reveal() == "key 2"
    assert kis.asked[1] - kis.asked[0] >= 1.0


async def test_a_young_key_is_kept_and_an_old_one_is_not(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis()
    async with keys_of(kis, tmp_path) as keys:
        await keys.get(fresh=False)
        await trio.sleep(AGE_S - 1)
        assert (await keys.get(fresh=False)).reveal() == "key 1"
        await trio.sleep(2)
        assert (await keys.get(fresh=False)).reveal() == "key 2"


async def test_a_fresh_key_is_issued_even_in_the_same_instant(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis()
    async with keys_of(kis, tmp_path) as keys:
        assert (await keys.get(fresh=False)).reveal() == "key 1"
        assert (await keys.get(fresh=True)).reveal() == "key 2"
        assert (await keys.get(fresh=True)).reveal() == "key 3"
    assert [b - a >= 1.0 for a, b in zip(kis.asked, kis.asked[1:], strict=False)] == [True, True]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, {"error_code": "EGW00103", "error_description": " no "}), KisRefused),
        ((403, {"error_code": "EGW00002", "error_description": "keys not set"}), KisRefused),
        ((403, {"error_code": "EGW00133"}), KisUnreachable),
        ((500, {"rt_cd": "1", "msg_cd": "EGW00001"}), KisUnreachable),
        ((500, {"rt_cd": "1", "msg_cd": "EGW00201", "msg1": "slow down"}), KisUnreachable),
        ((503, {"message": "upstream"}), KisUnreachable),
        ((200, {"approval_key": ""}), KisUnreachable),
        ((200, {"approval_key": 7}), KisUnreachable),
        ((200, {"approval_key": "x" * 5000}), KisUnreachable),
        ((200, []), KisUnreachable),
        ((200, OSError("reset")), KisUnreachable),
    ],
)
async def test_a_failure_is_told_paced_and_makes_no_old_key_young(
    autojump_clock: MockClock, tmp_path: Path, answer: tuple[int, Any], error: type[Exception]
) -> None:
    kis = Kis()
    async with keys_of(kis, tmp_path) as keys:
        await keys.get(fresh=False)
        await trio.sleep(AGE_S + 1)
        kis.answers.append(answer)
        with pytest.raises(error):
            await keys.get(fresh=False)
        assert (await keys.get(fresh=False)).reveal() == "key 3"
    assert kis.asked[2] - kis.asked[1] >= 1.0


async def test_a_server_that_fails_for_a_moment_is_asked_again_soon_and_ever_more_rarely(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis()
    kis.answers += [
        (500, {"rt_cd": "1", "msg_cd": "EGW00001"}),
        (503, {"message": "upstream"}),
        (500, {"rt_cd": "1", "msg_cd": "EGW00201"}),
    ]
    limits = resolve(load("limits.kis.json"), "real", dt.date(2026, 11, 20))
    session = Connection(Session(), limits, lambda: 0.5, Hygiene(), trio.current_time())
    async with keys_of(kis, tmp_path) as keys:
        out = session.want(trio.current_time())
        while FetchKey(fresh=False) in out:
            try:
                await keys.get(fresh=False)
            except (KisRefused, KisUnreachable) as exc:
                session.key_failed(trio.current_time(), refused=isinstance(exc, KisRefused))
                await trio.sleep_until(session.next_deadline())
                out = session.timer(trio.current_time())
            else:
                out = session.key_ready(trio.current_time())
    assert [b - a for a, b in itertools.pairwise(kis.asked)] == [7.5, 15, 30]
    assert Dial(epoch=1) in out


async def test_who_waited_for_a_refused_request_gets_no_old_key(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis(takes_s=1.0)
    got: list[str] = []

    async def call() -> None:
        try:
            got.append((await keys.get(fresh=True)).reveal())
        except KisRefused as exc:
            got.append(exc.code)

    async with keys_of(kis, tmp_path) as keys:
        await keys.get(fresh=False)
        kis.answers.append((403, {"error_code": "EGW00103"}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)
    assert sorted(got) == ["EGW00103", "key 3"]


async def test_a_key_outlives_the_process_and_shows_itself_nowhere(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    kis = Kis()
    async with keys_of(kis, tmp_path) as keys:
        await keys.get(fresh=False)
        assert "key 1" not in repr(keys)
    async with keys_of(kis, tmp_path) as keys:
        assert (await keys.get(fresh=False)).reveal() == "key 1"
        assert (await keys.get(fresh=True)).reveal() == "key 2"
    assert kis.asked[1] - kis.asked[0] >= 1.0
    assert (tmp_path / "approval.json").stat().st_mode & 0o777 == 0o600


async def test_a_file_that_is_not_ours_is_not_believed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "approval.json").write_text("{")
    (tmp_path / "approval.json").chmod(0o600)
    async with keys_of(Kis(), tmp_path) as keys:
        assert (await keys.get(fresh=False)).reveal() == "key 1"
