"""One holder an appkey, and hygiene that outlives it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed import seams
from kisfeed.config import Environment, Secret
from kisfeed.core.breaker import BreakerRecord
from kisfeed.core.pacing import Hygiene
from kisfeed.errors import AppkeyInUse, StateError
from kisfeed.upstream import lease

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

APPKEY = "PSnotAnAppkeyOfAnybodyButLongEnough1"
WALL_S = 1_795_140_000
HELD_ELSEWHERE = """
import sys
from pathlib import Path
from kisfeed import seams
from kisfeed.config import Environment, Secret
from kisfeed.upstream import lease

class Clock(seams.SystemClock):
    def wall_ns(self):
        return 1_795_140_000 * 10**9

folder, appkey = Path(sys.argv[1]), Secret(sys.argv[2])
with lease.hold(folder, Environment.SIM, appkey, "/run/x.sock", Clock(), seams.DirectDisk()):
    print("held", flush=True)
    sys.stdin.read()
"""


@attrs.define
class StillClock:
    """A clock that stands where it is put."""

    boot_s: float = 1000.0
    wall_s: float = float(WALL_S)
    name: str = "this boot"

    def now(self) -> float:
        return 0.0

    def boot(self) -> float:
        return self.boot_s

    def wall_ns(self) -> int:
        return int(self.wall_s * 1e9)

    def boot_id(self) -> str:
        return self.name


class FullDisk(seams.DirectDisk):
    """Has no room."""

    async def write(self, path: Path, data: bytes) -> None:  # noqa: ARG002
        raise OSError(errno.ENOSPC, "No space left on device")


def holding(
    folder: Path,
    clock: seams.Clock | None = None,
    disk: seams.Disk | None = None,
    environment: Environment = Environment.SIM,
) -> AbstractContextManager[lease.Lease]:
    return lease.hold(
        folder,
        environment,
        Secret(APPKEY),
        "/run/mine.sock",
        clock or StillClock(),
        disk or seams.DirectDisk(),
    )


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the same appkey."""
    command = [sys.executable, "-c", HELD_ELSEWHERE, str(tmp_path), APPKEY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_holder_is_told_who_has_it_where_and_since_when(
    tmp_path: Path, elsewhere: subprocess.Popen[str]
) -> None:
    with pytest.raises(AppkeyInUse) as caught, holding(tmp_path):
        raise AssertionError("two holders")
    refusal = caught.value
    assert (refusal.pid, refusal.socket) == (elsewhere.pid, "/run/x.sock")
    assert refusal.since_ts == WALL_S * 10**9
    assert str(refusal) == (
        f"this appkey is held by pid {elsewhere.pid} at /run/x.sock since 2026-11-20 02:00:00Z"
    )
    assert refusal.exit_code == 75
    # Its death frees the lease, however it dies.
    elsewhere.kill()
    elsewhere.wait()
    with holding(tmp_path):
        pass


def test_another_environment_is_another_session(tmp_path: Path) -> None:
    with holding(tmp_path), holding(tmp_path, environment=Environment.REAL):
        assert len(list(tmp_path.glob("*.lease"))) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b"\xff"])
def test_a_holder_that_has_not_written_yet_is_a_holder(tmp_path: Path, content: bytes) -> None:
    with holding(tmp_path):
        (path,) = tmp_path.glob("*.lease")
        path.write_bytes(content)
        with pytest.raises(AppkeyInUse, match="held by another process") as caught:
            holding(tmp_path).__enter__()
        assert caught.value.pid is None


async def test_the_appkey_is_never_on_disk(tmp_path: Path) -> None:
    with holding(tmp_path) as held:
        await held.save(Hygiene())
        for path in tmp_path.iterdir():
            assert APPKEY not in path.name
            assert APPKEY.encode() not in path.read_bytes()
            assert path.stat().st_mode & 0o777 == 0o600
        assert APPKEY not in repr(held)


def test_the_state_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with holding(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("obstacle", ["a file", "no right"])
def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "state"
    if obstacle == "a file":
        folder.write_text("")
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        folder.mkdir(mode=0o500)
    with pytest.raises(StateError, match="cannot be written"), holding(folder):
        raise AssertionError("it was used")


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StateError, match="cannot be locked"), holding(tmp_path):
        raise AssertionError("it was held")


# What is kept.

RECORD = Hygiene(
    dials=(300.0, 100.0, 5.0),
    open=True,
    proved=True,
    unclosed_s=20.0,
    in_use=2,
    in_use_s=40.0,
    hold_s=18.5,
    breaker=BreakerRecord(),
)


def test_without_a_past_there_is_nothing_to_remember(tmp_path: Path) -> None:
    with holding(tmp_path) as held:
        assert held.load() == Hygiene()


@settings(max_examples=40)
@given(
    lived=st.floats(0, 1e6),
    stepped=st.floats(-1e6, 1e6),
    rebooted=st.booleans(),
)
async def test_what_is_read_is_as_old_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, lived: float, stepped: float, rebooted: bool
) -> None:
    folder = tmp_path_factory.mktemp("state")
    with holding(folder, StillClock()) as held:
        await held.save(RECORD)
    later = StillClock(wall_s=WALL_S + lived + stepped)
    if rebooted:
        later = attrs.evolve(later, boot_s=10.0, name="the next boot")
        age = max(0.0, lived + stepped)  # only the wall clock can tell, and never the future
    else:
        later = attrs.evolve(later, boot_s=1000.0 + lived)
        age = lived  # whatever the wall clock says
    with holding(folder, later) as held:
        found = held.load()
    assert found.dials == pytest.approx([300 + age, 100 + age, 5 + age], abs=1e-3)
    assert found.unclosed_s == pytest.approx(20 + age, abs=1e-3)
    assert (found.open, found.in_use, found.hold_s) == (True, 2, 18.5)


def test_without_a_boot_id_the_wall_clock_decides(tmp_path: Path) -> None:
    import trio  # noqa: PLC0415

    with holding(tmp_path, StillClock(name="")) as held:
        trio.run(held.save, RECORD)
    with holding(tmp_path, StillClock(name="", boot_s=5.0, wall_s=WALL_S + 60)) as held:
        assert held.load().dials == (360.0, 160.0, 65.0)


def good(folder: Path) -> tuple[Path, bytes]:
    import trio  # noqa: PLC0415

    with holding(folder) as held:
        trio.run(held.save, RECORD)
    (path,) = folder.glob("*.hygiene.json")
    return path, path.read_bytes()


def test_a_cut_record_is_never_guessed_at(tmp_path: Path) -> None:
    path, content = good(tmp_path)
    with holding(tmp_path) as held:
        for length in range(0, len(content), 5):
            path.write_bytes(content[:length])
            with pytest.raises(StateError, match="cannot be read"):
                held.load()
        path.write_bytes(content)
        assert held.load().in_use == 2


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{}",
        b'{"stamp": {}, "hygiene": {}}',
        b'{"stamp": null, "hygiene": null}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 5000,
    ],
)
def test_what_is_no_record_is_told_with_its_place(tmp_path: Path, content: bytes) -> None:
    path, _ = good(tmp_path)
    path.write_bytes(content)
    with holding(tmp_path) as held, pytest.raises(StateError, match=path.name):
        held.load()


@settings(max_examples=15)
@given(
    st.sampled_from(["dials", "open", "unclosed_s", "in_use", "hold_s", "breaker", "proved"]),
    st.one_of(
        st.none(), st.text(max_size=3), st.just([-1.0]), st.just(-1), st.just([[]]), st.just({})
    ),
)
def test_a_value_that_cannot_be_is_told_or_means_nothing_was(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("state")
    path, content = good(folder)
    written = json.loads(content)
    if value is None and name in {"unclosed_s", "hold_s"}:
        return
    written["hygiene"][name] = value
    path.write_text(json.dumps(written))
    with holding(folder) as held, pytest.raises(StateError):
        held.load()


async def test_a_full_disk_is_remembered_until_a_write_succeeds(tmp_path: Path) -> None:
    with holding(tmp_path) as held:
        await held.save(RECORD)
    with holding(tmp_path, disk=FullDisk()) as held:
        await held.save(Hygiene())
        assert "No space left" in str(held.failed)
        assert held.load().in_use == 2  # what was there is still there
    with holding(tmp_path) as held:
        held.failed = "earlier"
        await held.save(Hygiene())
        assert held.load() == Hygiene()
        assert not held.failed


async def test_a_write_that_breaks_off_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(tmp_path) as held:
        await held.save(RECORD)

        def breaks(_fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", breaks)
        await held.save(Hygiene())
        monkeypatch.undo()
        assert held.failed is not None
        assert held.load().in_use == 2
        assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".json", ".lease"]
