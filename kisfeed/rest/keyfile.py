"""Secrets that outlive the process: one small file each, for one user, one writer at a time."""

from __future__ import annotations

import json
import os
import stat
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.core.pacing import Stamp, ages
from kisfeed.locks import LockFile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from kisfeed.seams import Clock, Disk

_POLL_S: Final = 0.1
_STUCK_S: Final = 30.0  # an issue takes 15 s at most


@attrs.define(eq=False)
class KeyFile:
    """A JSON map with the moment at which it was written, mode 0600.

    Attributes:
        failed: why the last write failed, None if it did not.
    """

    _path: Path
    _clock: Clock
    _disk: Disk
    failed: str | None = None

    def read(self) -> tuple[Any, float] | None:
        """What was written, and how many seconds ago; None if there is nothing.

        Raises:
            ValueError: the file is there and is not one of ours, or others may read or write it.
        """
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ValueError(f"{self._path.name} cannot be read: {exc.strerror}") from exc
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise ValueError(f"{self._path.name} is not this user's alone")
            content = file.read()
        stamp, data = None, None
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            written = json.loads(content)
            data, stamp = written["data"], Stamp.from_map(written["stamp"])
        if stamp is None:  # raised here, for a JSON error carries the content
            raise ValueError(f"{self._path.name} was not written by kisfeed")
        clock = self._clock
        (age,) = ages([stamp], clock.boot_id(), clock.boot(), clock.wall_ns() / 1e9)
        return data, age

    async def write(self, data: Mapping[str, object]) -> None:
        """Replace the content, durably; a failure is told in ``failed`` and goes no further."""
        clock = self._clock
        stamp = Stamp(clock.boot_id(), clock.boot(), clock.wall_ns() / 1e9)
        content = json.dumps({"stamp": stamp.to_map(), "data": data}).encode()
        try:
            await self._disk.write(self._path, content)
        except OSError as exc:
            self.failed = exc.strerror or str(exc)
        else:
            self.failed = None

    @asynccontextmanager
    async def locked(self) -> AsyncGenerator[None]:
        """Keep other processes out for the length of the block; waits for one that is in.

        A holder that does not come to an end is stuck, and is waited for no longer. Where the
        folder cannot be written no other process can write the file either: then there is nothing
        to keep out.
        """
        try:
            lock = LockFile(self._path.with_suffix(".lock"))
        except OSError as exc:
            self.failed = exc.strerror or str(exc)
            yield
            return
        with lock:
            with trio.move_on_after(_STUCK_S):
                while not lock.acquire():  # noqa: ASYNC110  # the lock is a file's
                    await trio.sleep(_POLL_S)
            yield
