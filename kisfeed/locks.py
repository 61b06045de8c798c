"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

_HELD_BY_ANOTHER: Final = frozenset({errno.EAGAIN, errno.EACCES})
_MOST: Final = 4096  # bytes; who holds it writes a line


class LockFile:
    """A file that one process at a time can lock: made 0600 if missing, and never removed.

    Whoever unlinked it would let two processes lock two files of one name. The kernel lets go of
    the lock when its holder ends, however that ends. A child that the holder forks does so at
    once: it would keep the lock after the holder's death, and nobody would know who that is.
    """

    def __init__(self, path: Path) -> None:
        """Open it; raises OSError where that cannot be done, as for a symbolic link."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        _open_files.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def acquire(self) -> bool:
        """Lock it until :meth:`close`, at once or not at all; False: another process holds it.

        Raises:
            OSError: there are no locks on this file system.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno in _HELD_BY_ANOTHER:
                return False
            raise
        return True

    def read(self) -> bytes:
        """What its holder wrote; empty for the instant in which it has not yet."""
        return os.pread(self._fd, _MOST, 0)

    def write(self, content: bytes) -> None:
        """Say who holds it, for whoever is refused; raises OSError."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, content, 0)

    def close(self) -> None:
        """Let go of the lock, if it is held; closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_open_files: Final[weakref.WeakSet[LockFile]] = weakref.WeakSet()


def _after_fork() -> None:
    for file in list(_open_files):
        file.close()


os.register_at_fork(after_in_child=_after_fork)
