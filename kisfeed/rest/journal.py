"""The order journal: what must be on disk before a byte of an order leaves.

Records are length, CRC32 and JSON, appended to one file. A crash can only cut the last one short,
which was then never acted upon; anything else that does not read is damage, and nothing is
guessed over it. What no day and no doubt needs any more is put aside: the whole file becomes an
archive, named after the day on which that happened, and a new one holds what is still needed.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import zlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.errors import LocalRefusal, StateError
from kisfeed.locks import LockFile
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
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

    async def put_aside(self, needed: Iterable[Mapping[str, Any]], day: str) -> None:
        """Keep only *needed*; everything that was written so far goes to the archive of *day*.

        After a crash at any moment the journal is as it was or as it shall be, never less.

        Args:
            needed: records.
            day: YYYYMMDD, today in Seoul.

        Raises:
            StateError: it could not be done; nothing is lost.
        """
        if self._broken:
            raise StateError(self._broken)
        try:
            _link(self.path, day)
            await self._disk.write(self.path, b"".join(encode(record) for record in needed))
        except OSError as exc:
            raise StateError(f"{self.path}: {exc.strerror or exc}") from exc
        finally:
            self._reopen()  # another file may stand there now

    def archived(self, day: str) -> list[dict[str, Any]]:
        """What was put aside after *day* (YYYYMMDD), the oldest first.

        Raises:
            StateError: an archive cannot be read, or is damaged.
        """
        found: list[dict[str, Any]] = []
        for file in sorted(self.path.parent.glob(f"{self.path.name}.*")):
            if file.suffix[1:9].isdecimal() and file.suffix[1:9] > day:
                try:
                    found += decode(file.read_bytes())[0]
                except OSError as exc:
                    raise StateError(f"{file}: {exc.strerror}") from exc
                except ValueError as exc:
                    raise StateError(f"{file} is damaged ({exc})") from exc
        return found

    def close(self) -> None:
        """Nothing is written any more."""
        os.close(self._fd)

    def _cut(self) -> None:
        try:
            os.ftruncate(self._fd, self._end)
            os.fdatasync(self._fd)
        except OSError as exc:
            self._broken = f"{self.path} cannot be written ({exc}): nothing can be ordered"

    def _reopen(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as exc:
            self._broken = f"{self.path} cannot be opened ({exc}): nothing can be ordered"
            return
        os.close(self._fd)
        self._fd, self._end = fd, os.fstat(fd).st_size


def _link(path: Path, day: str) -> None:
    """Give the file at *path* its name as an archive too."""
    archive = path.with_name(f"{path.name}.{day}")
    for n in itertools.count(2):
        try:
            archive.hardlink_to(path)
        except FileExistsError:
            if archive.samefile(path):
                return  # a crash came between this and the new file
            archive = path.with_name(f"{path.name}.{day}-{n}")
        else:
            return


@contextmanager
def open_journal(path: Path, disk: Disk) -> Generator[Journal]:
    """Open the journal at *path*, made 0600 if missing, for the length of the block.

    Raises:
        StateError: it cannot be opened or read, or is damaged; names the place.
        LocalRefusal: another process has it open.
    """
    with _locked(path):
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc
        try:
            records, end = _load(path, fd)
        except StateError:
            os.close(fd)
            raise
        journal = Journal(path, fd, end, disk, records)
        try:
            yield journal
        finally:
            journal.close()


def _load(path: Path, fd: int) -> tuple[list[dict[str, Any]], int]:
    """The records of the file behind *fd*, and where they end; a torn end is cut off."""
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
            Phrase(
                "{path} is damaged ({why}). It says which orders were sent: check today's orders "
                "at KIS, then move the file away",
                path=str(path),
                why=str(exc),
            )
        ) from exc
    return records, end


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Keep other processes out; by a file of its own, for the journal's is replaced now and then.

    Raises:
        StateError: the lock's file cannot be used.
        LocalRefusal: another process is in.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(LockFile(path.with_name(f"{path.name}.lock")))
            acquired = lock.acquire()
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc
        if not acquired:
            raise LocalRefusal(f"{path} is open in another process")
        yield


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
