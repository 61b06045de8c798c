"""The order journal: what must be on disk before a byte of an order leaves.

Records are length, CRC32 and JSON, appended to one file. A crash can only cut the last one short,
which was then never acted upon; anything else that does not read is damage, and nothing is
guessed over it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.errors import LocalRefusal, StateError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from kisfeed.seams import Disk

_HEAD: Final = struct.Struct(">II")
MAX_RECORD: Final = 65_536


def encode(record: Mapping[str, Any]) -> bytes:
    """One record as it stands in the file."""
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(body) <= MAX_RECORD, "a record is one order"
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def decode(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records in *data*, and where the last whole one ends.

    Raises:
        ValueError: what follows there is not the torn end of an append: whole records do.
    """
    records: list[dict[str, Any]] = []
    at = 0
    while at < len(data):
        record, end = _record(data, at)
        if record is None:
            break
        records.append(record)
        at = end
    if at < len(data) and any(_record(data, n)[0] is not None for n in range(at + 1, len(data))):
        raise ValueError(f"byte {at}: no record, and more behind it")
    return records, at


def _record(data: bytes, at: int) -> tuple[dict[str, Any] | None, int]:
    """The record that begins at *at* and where it ends; None where none does."""
    if len(data) - at < _HEAD.size:
        return None, at
    size, crc = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + size
    if not 0 < size <= MAX_RECORD or end > len(data):
        return None, at
    body = data[at + _HEAD.size : end]
    if zlib.crc32(body) != crc:
        return None, at
    try:
        record = json.loads(body)
    except ValueError:
        return None, at
    return (record, end) if isinstance(record, dict) else (None, at)


@attrs.define(eq=False)
class Journal:
    """An open journal, locked against other processes.

    Attributes:
        records: what it held when it was opened.
    """

    path: Path
    _fd: int
    _end: int
    _disk: Disk
    records: list[dict[str, Any]]
    _broken: str = attrs.field(default="", init=False)

    async def append(self, *records: Mapping[str, Any]) -> None:
        """Put *records* on disk before returning.

        Raises:
            StateError: they are not there, wholly or in part; nothing of them will be read back.
        """
        if self._broken:
            raise StateError(self._broken)
        data = b"".join(encode(record) for record in records)
        try:
            await self._disk.append(self._fd, data)
        except OSError as exc:
            self._cut()
            raise StateError(f"{self.path}: {exc.strerror or exc}") from exc
        except BaseException:
            # Cancelled: the bytes may be there or not. As an intent without an answer they would
            # be in doubt for ever, so they are taken back.
            self._cut()
            raise
        self._end += len(data)

    def _cut(self) -> None:
        try:
            os.ftruncate(self._fd, self._end)
            os.fdatasync(self._fd)
        except OSError as exc:
            self._broken = f"{self.path} cannot be written ({exc}): nothing can be ordered"


@contextmanager
def open_journal(path: Path, disk: Disk) -> Generator[Journal]:
    """Open the journal at *path*, made 0600 if missing, for the length of the block.

    Raises:
        StateError: it cannot be opened or read, or is damaged; names the place.
        LocalRefusal: another process has it open.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc
    try:
        _lock(fd, path)
        try:
            data = path.read_bytes()
            records, end = decode(data)
            if end < len(data):
                os.ftruncate(fd, end)
            os.fdatasync(fd)
            _sync_folder(path.parent)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc
        except ValueError as exc:
            raise StateError(
                f"{path} is damaged ({exc}). It says which orders were sent: check today's orders "
                "at KIS, then move the file away"
            ) from exc
        yield Journal(path, fd, end, disk, records)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in {errno.EAGAIN, errno.EACCES}:
            raise StateError(f"{path}: {exc.strerror}") from exc
        raise LocalRefusal(f"{path} is open in another process") from exc


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
