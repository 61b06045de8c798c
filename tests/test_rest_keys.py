"""Keys and tokens on disk: whose they are, who may read them, and one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from kisfeed import open_feed, seams
from kisfeed.errors import NoToken
from kisfeed.rest.keyfile import KeyFile
from kisfeed.testing import Fault, Happening, Kind, open_memory_simulator
from tests.feeds import TRADE, WALL, config_for
from tests.test_rest_requests import price, world_at

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.feeds import World


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def key_file(path: Path) -> KeyFile:
    return KeyFile(path, seams.VirtualClock(WALL), seams.DirectDisk())


async def test_what_is_written_is_read_with_its_age(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    file = key_file(tmp_path / "k.json")
    assert file.read() is None
    await file.write({"value": "x"})
    await trio.sleep(50)
    found = file.read()
    assert found is not None
    assert found[0] == {"value": "x"}
    assert found[1] == pytest.approx(50)
    assert (tmp_path / "k.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"data": 1, "stamp": 2}', b"\xff", b'"CANARY', b"[" * 100_000]
)
async def test_a_file_of_somebody_elses_making_is_refused_without_its_content(
    autojump_clock: MockClock, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "k.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="not written by kisfeed") as caught:
        key_file(path).read()
    assert caught.value.__context__ is None


async def test_a_file_that_others_may_read_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "k.json"
    await key_file(path).write({})
    path.chmod(0o640)
    with pytest.raises(ValueError, match="alone"):
        key_file(path).read()
    path.unlink()
    (tmp_path / "other").write_text("{}")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="cannot be read"):
        key_file(path).read()


async def test_a_disk_that_fails_is_told_and_goes_no_further(tmp_path: Path) -> None:
    file = key_file(tmp_path / "nowhere" / "k.json")
    await file.write({})
    assert file.failed == "No such file or directory"
    async with file.locked():
        pass


async def test_one_process_at_a_time_and_a_stuck_one_is_not_waited_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "k.json"
    holder = subprocess.Popen(  # noqa: ASYNC220  # virtual time waits for nobody
        [
            sys.executable,
            "-c",
            HOLD,
            path.with_suffix(".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        started = trio.current_time()
        async with key_file(path).locked():
            assert 25 < trio.current_time() - started < 35
        holder.kill()
    async with key_file(path).locked():
        with trio.move_on_after(5) as waited:
            async with key_file(path).locked():
                pass
        assert waited.cancelled_caught


async def test_a_spoilt_token_file_costs_a_minute_and_no_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        await world.feed.rest.call(price(world.feed.rest))
        (path,) = tmp_path.glob("*.token.json")
    path.write_bytes(path.read_bytes()[:-7])
    async with world_at(tmp_path) as world:
        assert "not written by kisfeed" in str(world.feed.rest.tokens.status()["file"])
        await world.feed.rest.call(price(world.feed.rest))
        (issued,) = world.kis.exchange.times(Happening.TOKEN)
        assert 60 <= issued <= 70
    assert json.loads(path.read_bytes())["data"]["value"]


async def test_the_file_is_named_after_environment_and_hash_never_the_key(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        await world.feed.rest.call(price(world.feed.rest))
    names = [path.name for path in tmp_path.iterdir()]
    assert all(name.startswith("sim-") for name in names)
    assert "appkey" not in str(names)
    assert oct(tmp_path.stat().st_mode)[-2:] in {"00", "55"}


async def test_an_approval_key_outlives_the_process(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    issued = []
    async with open_memory_simulator() as kis:
        for _ in range(2):
            async with open_feed(
                config_for(tmp_path),
                clock=seams.VirtualClock(WALL),
                disk=seams.DirectDisk(),
                dial=kis.dial,
                rest=kis.rest,
            ) as feed:
                feed.subscribe(TRADE)
                await trio.sleep(100)
                assert str(feed.engine.connection.state) == "STREAMING"
            issued.append(len(kis.exchange.times(Happening.APPROVAL)))
            await trio.sleep(100)
    assert issued == [1, 1]


async def test_a_renewal_that_a_person_wants_waits_for_the_minute(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        tokens = world.feed.rest.tokens
        await tokens.renew()
        await tokens.renew()
        first, second = world.kis.exchange.times(Happening.TOKEN)
        assert 60 <= second - first <= 65
        status: dict[str, Any] = tokens.status()
        assert status["issues"] == {"ok": 1, "same": 1}
        assert status["masked"].startswith("*** (")


async def pass_hours(world: World, hours: float) -> None:
    """The machine sleeps, and the token's keeper has time to see that it did."""
    assert isinstance(world.feed.clock, seams.VirtualClock)
    world.feed.clock.suspended_s += hours * 3600
    await trio.sleep(65)


async def test_the_token_is_renewed_in_the_quiet_hour(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:  # 11:00
        await world.feed.rest.call(price(world.feed.rest))
        await pass_hours(world, 19.9)  # 06:55
        assert len(world.kis.exchange.times(Happening.TOKEN)) == 1
        await pass_hours(world, 0.1)
        assert len(world.kis.exchange.times(Happening.TOKEN)) == 2


async def test_hours_without_a_token_host_fail_no_request(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        kis = world.feed.rest
        await kis.call(price(kis))
        await pass_hours(world, 19.9)
        world.kis.inject(Fault(Kind.TOKEN_DOWN, lasts=1e9))
        for _ in range(39):
            await kis.call(price(kis))
            await pass_hours(world, 0.08)
        assert kis.failed == 0
        assert kis.tokens.issues["unreachable"] > 10
        await pass_hours(world, 1.0)
        with pytest.raises(NoToken):
            await kis.call(price(kis))
