"""The Unix socket the daemon listens on: safe to take over when stale, never when alive."""

from __future__ import annotations

import functools
import os
import socket
import stat
import struct
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from kisfeed.errors import SocketInUse, StateError
from kisfeed.gateway.unixsocket import UnixListener, UnixStream
from kisfeed.locks import LockFile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

# sockaddr_un.sun_path is 108 bytes on Linux, 104 on macOS and the BSDs, the final NUL included.
MAX_PATH: Final = 107 if sys.platform == "linux" else 103
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_BACKLOG: Final = 4096  # as many as may be connected: they all come at once after a restart


@attrs.frozen
class Peer:
    """Who is at the other end, as the kernel knows it; the pid is for people, it may be reused."""

    pid: int
    uid: int


def peer_of(stream: trio.abc.Stream) -> Peer | None:
    """The program at the other end of a Unix socket; None for a stream that is not a socket.

    Raises:
        OSError: the kernel cannot tell (not a Unix socket): refuse such a peer.
    """
    if isinstance(stream, trio.SocketStream):
        raise OSError("only a Unix socket tells who is at its other end")
    if not isinstance(stream, UnixStream):
        return None
    pid, uid, _ = _UCRED.unpack(
        stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return Peer(pid, uid)


@asynccontextmanager
async def open_unix_listener(path: Path) -> AsyncGenerator[UnixListener, None]:
    """Listen on *path* (mode 0600) for the length of the block, then remove it.

    The folder is made, mode 0700, if it is missing. A socket file that nobody listens on is
    replaced. ``<path>.lock`` is held throughout and stays behind.

    Raises:
        StateError: the path is too long for a socket, or its folder is not ours alone.
        SocketInUse: another program listens there, or it is not a socket.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise StateError(f"a Unix socket path has at most {MAX_PATH} bytes: {path}")
    try:
        _private_folder(path.parent)
        with _lock(path):
            _remove_stale(path)
            listening, ours = _bind(path)
            listener = UnixListener(listening)
            try:
                yield listener
            finally:
                listener.close()
                _unlink_ours(path, ours)
    except _Unusable as exc:
        raise StateError(str(exc)) from exc.__cause__


class _Unusable(Exception):
    """The system refused; told apart from an OSError of the caller's block."""


@contextmanager
def _refusals(what: str) -> Generator[None, None, None]:
    try:
        yield
    except OSError as exc:
        raise _Unusable(f"{what}: {exc.strerror}") from exc


def _private_folder(folder: Path) -> None:
    with _refusals(f"the socket's folder {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    if found.st_uid != os.geteuid():
        raise StateError(f"the socket's folder {folder} belongs to uid {found.st_uid}, not to us")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise StateError(f"the socket's folder {folder} is open to others ({mode:04o}, not 0700)")


@contextmanager
def _lock(path: Path) -> Generator[None, None, None]:
    """Hold ``<path>.lock``: two daemons that find the same stale socket must not both take it.

    It holds our pid, for whoever is refused.
    """
    refusals = functools.partial(_refusals, f"the lock beside the socket {path}")
    with ExitStack() as stack:
        with refusals():
            lock = stack.enter_context(LockFile(path.with_name(f"{path.name}.lock")))
            acquired = lock.acquire()
        if not acquired:
            pid = lock.read().decode("ascii", "replace").strip() or "unknown"
            raise SocketInUse(f"another daemon (pid {pid}) owns {path}")
        with refusals():
            lock.write(f"{os.getpid()}\n".encode())
        yield


def _remove_stale(path: Path) -> None:
    """Unlink a socket that nobody listens on: only connecting can tell."""
    with _refusals(f"the socket {path}"):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise SocketInUse(f"{path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
                return
            except BlockingIOError:
                pass  # its backlog is full: very much alive
            except OSError as exc:
                raise SocketInUse(f"{path} is not ours to replace: {exc.strerror}") from exc
    raise SocketInUse(f"another program listens on {path}")


def _bind(path: Path) -> tuple[socket.socket, os.stat_result]:
    listening = socket.socket(socket.AF_UNIX)
    try:
        with _refusals(f"the socket {path}"):
            # The mode has to be right before bind() creates the file, and the umask, which is
            # the whole process's, can only narrow it: set it again afterwards.
            os.fchmod(listening.fileno(), 0o600)
            listening.bind(os.fspath(path))
            path.chmod(0o600)
            ours = path.lstat()
            listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening, ours


def _unlink_ours(path: Path, ours: os.stat_result) -> None:
    try:
        if os.path.samestat(path.lstat(), ours):
            path.unlink()
    except FileNotFoundError:
        pass  # somebody tidied up before us
