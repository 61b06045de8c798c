"""The Unix listener: private, takes over what is dead, never what is alive."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from kisfeed.errors import SocketInUse, StateError
from kisfeed.gateway.listener import MAX_PATH, open_unix_listener, peer_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "k.sock"


def stale(path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))


async def test_the_socket_is_private_and_goes_with_the_block(path: Path) -> None:
    async with open_unix_listener(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_the_mode_does_not_depend_on_the_umask(path: Path, umask: int) -> None:
    path.parent.mkdir(mode=0o700)
    Path(f"{path}.lock").touch(0o600)
    before = os.umask(umask)
    try:
        async with open_unix_listener(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


async def test_it_knows_its_peer(path: Path) -> None:
    async with open_unix_listener(path) as listener:
        client = await trio.open_unix_socket(path)
        async with client, await listener.accept() as server:
            peer = peer_of(server)
            assert peer is not None
            assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())


async def test_a_peer_that_cannot_be_told_is_an_error(nursery: trio.Nursery) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.testing.open_stream_to_socket_listener(listener)
        async with client:
            with pytest.raises(OSError, match="Unix socket"):
                peer_of(client)


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    stale(path)
    async with open_unix_listener(path):
        (await trio.open_unix_socket(path)).socket.close()


async def test_a_live_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()
        with pytest.raises(SocketInUse, match="another program"):
            async with open_unix_listener(path):
                pass
        assert path.is_socket()


async def test_a_full_backlog_is_alive(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(os.fspath(path))
        other.listen(0)
        waiting.connect(os.fspath(path))
        with pytest.raises(SocketInUse):
            async with open_unix_listener(path):
                pass


async def test_what_is_not_a_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("mine")
    with pytest.raises(SocketInUse, match="not a socket"):
        async with open_unix_listener(path):
            pass
    assert path.read_text() == "mine"


async def test_of_two_that_start_one_listens(path: Path) -> None:
    stale(path)
    won = []
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            try:
                async with open_unix_listener(path):
                    won.append(1)
                    await trio.testing.wait_all_tasks_blocked()
                    (await trio.open_unix_socket(path)).socket.close()
            except SocketInUse:
                won.append(0)

        nursery.start_soon(start)
        nursery.start_soon(start)
    assert sorted(won) == [0, 1]


async def test_who_is_refused_is_told_by_which_process(path: Path) -> None:
    async with open_unix_listener(path):
        with pytest.raises(SocketInUse, match=rf"\(pid {os.getpid()}\)"):
            async with open_unix_listener(path):
                pass


async def test_only_our_own_file_is_unlinked(path: Path) -> None:
    async with open_unix_listener(path):
        path.unlink()
        stale(path)
    assert path.is_socket()


async def test_somebody_else_may_tidy_up_first(path: Path) -> None:
    async with open_unix_listener(path):
        path.unlink()


async def test_a_path_that_is_too_long_is_refused_before_anything(tmp_path: Path) -> None:
    path = tmp_path / ("x" * MAX_PATH) / "k.sock"
    with pytest.raises(StateError, match="at most"):
        async with open_unix_listener(path):
            pass
    assert not path.parent.exists()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
async def test_a_folder_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(StateError, match="open to others"):
        async with open_unix_listener(path):
            pass


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="folder"):
        async with open_unix_listener(tmp_path / "file" / "run" / "k.sock"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own a folder as somebody else")
async def test_a_folder_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, 65534, -1)
    with pytest.raises(StateError, match="65534"):
        async with open_unix_listener(path):
            pass


async def test_errors_of_the_block_pass_untouched(path: Path) -> None:
    with pytest.raises(PermissionError):
        async with open_unix_listener(path):
            raise PermissionError("mine")
    assert not path.exists()


async def test_a_killed_daemon_leaves_a_socket_that_the_next_takes_over(path: Path) -> None:
    code = (
        "import os, sys, trio\n"
        "from pathlib import Path\n"
        "from kisfeed.gateway.listener import open_unix_listener\n"
        "async def main():\n"
        "    async with open_unix_listener(Path(sys.argv[1])):\n"
        "        os._exit(9)\n"
        "trio.run(main)\n"
    )
    # Blocks the loop, in which nothing else runs.
    died = subprocess.run([sys.executable, "-c", code, str(path)], check=False)  # noqa: ASYNC221
    assert died.returncode == 9
    assert path.is_socket()
    async with open_unix_listener(path):
        (await trio.open_unix_socket(path)).socket.close()
