"""Trouble is told once, to whoever is named, and telling never holds up the daemon."""

from __future__ import annotations

import copy
import json
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed import seams
from kisfeed.config import Notify, Secret
from kisfeed.ops.notify import LOOK_S, Notifier, troubles
from kisfeed.rest.transport import post_notice
from tests.feeds import TRADE, WALL
from tests.test_rest_requests import world_at
from tests.test_rest_transport import open_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from trio.testing import MockClock

URL = "https://hooks.example/SECRET"
CALM: dict[str, Any] = {
    "connection": {
        "state": "STREAMING",
        "reason": "data",
        "for_s": 1.0,
        "breaker": {"phase": "closed", "reason": None},
    },
    "liveness": {"market_open": True},
    "rest": {
        "breaker": {"open": False},
        "token": {"state": "valid", "failures": 0, "why": None, "file": "ok"},
    },
    "orders": None,
    "counts": {"drifts": 0},
    "state_folder": "ok",
}


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    status = copy.deepcopy(CALM)
    for path, new in changes:
        place = status
        *parts, last = path.split(".")
        for part in parts:
            place = place[part]
        place[last] = new
    return status


WAITING = ("connection.state", "RECONNECT_BACKOFF")


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (CALM, []),
        (changed(WAITING, ("connection.for_s", 29.0)), []),
        (changed(WAITING, ("connection.for_s", 31.0)), ["session_down"]),
        (changed(WAITING, ("connection.for_s", 31.0), ("liveness.market_open", False)), []),
        (changed(WAITING, ("connection.reason", "in_use")), ["in_use"]),
        (changed(("connection.breaker", {"phase": "open", "reason": "x"})), ["breaker"]),
        (changed(("rest.breaker.open", True)), ["rest_down"]),
        (changed(("rest.token.state", "none")), []),
        (changed(("rest.token.state", "none"), ("rest.token.failures", 1)), ["token_dead"]),
        (changed(("rest.token.state", "refused")), ["token_dead"]),
        (changed(("orders", {"in_doubt": ["a"], "halted": None})), ["order_unknown"]),
        (changed(("orders", {"in_doubt": [], "halted": {"reason": "x"}})), ["halt"]),
        (changed(("counts.drifts", 1)), ["drift"]),
        (changed(("state_folder", "No space left")), ["disk"]),
        (changed(("rest.token.file", "No space left")), ["disk"]),
    ],
)
def test_trouble_is_seen_in_the_status(status: Mapping[str, Any], names: list[str]) -> None:
    assert list(troubles(status)) == names


async def test_the_status_of_a_real_feed_can_be_read(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        world.feed.subscribe(TRADE)
        await world.streaming()
        assert troubles(world.feed.status()) == {}


class Told:
    """Where the messages go."""

    def __init__(self, behave: Callable[[], Awaitable[None]] | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._behave = behave
        self.status: Mapping[str, Any] = CALM

    async def post(self, url: str, body: bytes) -> None:
        assert url == URL
        self.messages.append(json.loads(body))
        if self._behave is not None:
            await self._behave()

    def notifier(self, rules: Notify) -> Notifier:
        clock = seams.VirtualClock(WALL)
        names, status = {"profile": "p"}, lambda: self.status
        return Notifier(rules, names, status, clock, self.post, lambda text: f"say: {text}")


RULES = Notify(post=Secret(URL), again_s=300.0, timeout_s=10.0)
DRIFT = changed(("counts.drifts", 1))


async def test_what_begins_and_what_is_over_is_told_once(autojump_clock: MockClock) -> None:
    told = Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.notifier(RULES).run)
        await trio.sleep(60)
        told.status = DRIFT
        await trio.sleep(60)
        told.status = CALM
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert [(m["trouble"], m["over"], m["profile"]) for m in told.messages] == [
        ("drift", False, "p"),
        ("drift", True, "p"),
    ]
    assert {m["text"] for m in told.messages} == {"say: KIS sends records of an unknown width"}


async def test_trouble_that_flutters_is_not_told_each_time(autojump_clock: MockClock) -> None:
    told = Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.notifier(RULES).run)
        for _ in range(60):
            told.status = DRIFT
            await trio.sleep(2 * LOOK_S)
            told.status = CALM
            await trio.sleep(2 * LOOK_S)
        nursery.cancel_scope.cancel()
    begun = [m for m in told.messages if not m["over"]]
    assert 3 <= len(begun) <= 5  # in twenty minutes


async def fail() -> None:
    raise OSError("nobody there")


@pytest.mark.parametrize("behave", [trio.sleep_forever, fail])
async def test_a_receiver_that_hangs_or_fails_is_counted_and_holds_up_nothing(
    autojump_clock: MockClock, behave: Callable[[], Awaitable[None]]
) -> None:
    told = Told(behave)
    notifier = told.notifier(attrs.evolve(RULES, again_s=0.1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        for _ in range(200):
            told.status = DRIFT
            await trio.sleep(LOOK_S)
            told.status = CALM
            await trio.sleep(LOOK_S)
        nursery.cancel_scope.cancel()
    assert notifier.told == 0
    assert notifier.lost > 100


async def test_a_command_gets_the_message_on_its_standard_input(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    copy_it = f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"
    told = Told()
    told.status = DRIFT
    notifier = told.notifier(Notify(command=(sys.executable, "-c", copy_it)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        with trio.fail_after(20):
            while not notifier.told:  # noqa: ASYNC110  # a process ends when it does
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert json.loads(out.read_text())["trouble"] == "drift"


async def test_a_command_that_is_not_there_is_counted_and_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    told.status = DRIFT
    notifier = told.notifier(Notify(command=("/nowhere/nothing",)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert (notifier.told, notifier.lost) == (0, 1)
    assert [r.getMessage() for r in caplog.records] == ["notify_failed"]


async def test_nobody_to_tell_costs_nothing(autojump_clock: MockClock) -> None:
    await Told().notifier(Notify()).run()


async def test_a_notice_is_posted_as_json_and_its_address_is_in_no_error() -> None:
    async with open_server() as server:
        await post_notice(f"{server.url}/SECRET", b'{"a": 1}')
        assert b'{"a": 1}' in server.requests[0]
        url = server.url
    with pytest.raises(OSError, match="ConnectError") as caught:
        await post_notice(f"{url}/SECRET", b"{}")
    assert "SECRET" not in repr(caught.value)
    with pytest.raises(OSError, match=r"\w+"):
        await post_notice("http://[", b"{}")
