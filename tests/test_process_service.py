"""The daemon under a service manager: ready, alive, alone, gone."""

from __future__ import annotations

import contextlib
import signal
import socket as sockets
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from kisfeed.kfp import codec
from kisfeed.kfp.messages import Type
from tests.processes import Place, open_place
from tests.test_cli_schemas import validator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

WATCHDOG_S = 0.5
# Nobody listens at either address: every dial fails, and the daemon waits for the next.
NOWHERE = """environment = "sim"
[credentials]
appkey = "an appkey"
appsecret = "its secret"
[endpoints]
rest = "http://127.0.0.1:9"
ws = "ws://127.0.0.1:9"
[subscriptions]
pinned = ["trade.krx.005930"]
"""


@attrs.define(eq=False)
class Manager:
    """What systemd would be told, and when."""

    socket: trio.socket.SocketType
    told: list[tuple[float, dict[str, str]]] = attrs.field(factory=list)
    news: trio.Event = attrs.field(factory=trio.Event)

    async def listen(self) -> None:
        while True:
            text = (await self.socket.recv(4096)).decode()
            fields = dict(line.split("=", 1) for line in text.splitlines())
            self.told.append((trio.current_time(), fields))
            news, self.news = self.news, trio.Event()
            news.set()

    def count(self, name: str, value: str = "1") -> int:
        return sum(fields.get(name) == value for _, fields in self.told)

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(15):
            while not done():
                await self.news.wait()


@pytest.fixture
async def place() -> AsyncGenerator[Place]:
    async with open_place() as place:
        place.configure(NOWHERE)
        yield place


@contextlib.asynccontextmanager
async def open_manager(place: Place) -> AsyncGenerator[Manager]:
    path = str(place.folder / "notify")
    with trio.socket.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as socket:
        await socket.bind(path)
        microseconds = str(round(WATCHDOG_S * 1e6))
        place.environ = {**place.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": microseconds}
        manager = Manager(socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.listen)
            yield manager
            nursery.cancel_scope.cancel()


async def test_ready_comes_once_clients_can_connect_and_the_heartbeat_goes_on_without_a_session(
    place: Place,
) -> None:
    async with open_manager(place) as manager:
        daemon = await place.kisfeed("serve", "--profile", "test")
        await manager.until(lambda: manager.count("READY") == 1)
        async with await trio.open_unix_socket(str(place.socket())) as stream:
            await stream.send_all(codec.frame(Type.HELLO, 1, {"proto": [1, 1], "client": "t"}))
            assert codec.Decoder().feed(bytes(await stream.receive_some()))[0][0] == Type.WELCOME

        # Nothing to be had from KIS: that is no reason to be restarted.
        await manager.until(lambda: manager.count("STATUS", "RECONNECT_BACKOFF") >= 4)
        beats = [at for at, fields in manager.told if fields.get("WATCHDOG") == "1"]
        assert max(b - a for a, b in pairwise(beats)) < WATCHDOG_S

        daemon.process.send_signal(signal.SIGSTOP)
        await trio.sleep(0.1)
        before = len(manager.told)
        await trio.sleep(3 * WATCHDOG_S)
        assert len(manager.told) == before
        daemon.process.send_signal(signal.SIGCONT)
        await manager.until(lambda: len(manager.told) > before)

        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.ends() == 0
        await manager.until(lambda: manager.count("STOPPING") == 1)
        assert manager.count("READY") == 1


async def test_a_second_daemon_of_the_appkey_is_75_and_names_the_first(place: Place) -> None:
    first = await place.serve()
    other = str(place.runtime / "other.sock")
    second = await place.kisfeed("serve", "--profile", "test", "--socket", other, "--json")
    assert await second.ends() == 75
    (error,) = second.said
    validator("error").validate(error)
    assert error["code"] == "appkey_in_use"
    pid, socket = first.process.pid, str(place.socket())
    for language, words in (
        ("en", "Another kisfeed has this appkey"),
        ("ko", "다른 kisfeed가 이 앱키를 쓰고"),
    ):
        refused = await place.kisfeed("serve", "--profile", "test", "--lang", language)
        assert await refused.ends() == 75
        (line,) = [line for line in refused.talk.splitlines() if words in line]
        assert f"pid {pid}" in line
        assert socket in line
        assert "20" in line.rpartition(socket)[2], "since when"
        assert "an appkey" not in refused.talk
    # Whoever has it lives on, and once it is gone the next one may.
    assert first.code is None
    first.process.send_signal(signal.SIGKILL)
    await first.ends()
    third = await place.serve()
    assert third.code is None


async def test_what_would_be_wrong_again_is_not_worth_a_restart(place: Place) -> None:
    """The exit codes that the unit's RestartPreventExitStatus names."""
    place.configure('environment = "nowhere"', "broken")
    place.configure(NOWHERE.replace("005930", "5930"), "typo")
    place.configure(NOWHERE + '[state]\ndir = "/dev/null/state"\n', "stateless")
    daemons = {
        78: [
            await place.kisfeed("serve", "--profile", profile, "--json")
            for profile in ("broken", "typo", "stateless", "not-configured")
        ],
        2: [await place.kisfeed("serve", "--no-such-option", "--json")],
    }
    for code, started in daemons.items():
        for daemon in started:
            assert await daemon.ends() == code
            validator("error").validate(daemon.said[0])
