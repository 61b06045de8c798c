"""The kill switch: a file that stops all ordering, also of a daemon that cannot be reached.

Whoever halts writes the file and then waits until nobody holds the sending lock; whoever sends
takes that lock before the first byte and looks for the file under it. So once :func:`quiet` is
true after the file was written, no order leaves any more. Where the file cannot be written, as on
a full disk, the process that was told halts all the same, as long as it lives.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.errors import StateError
from kisfeed.locks import LockFile
from kisfeed.seams import write_atomically
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from pathlib import Path


@attrs.frozen
class Halt:
    """Why ordering is halted, and since when (nanoseconds since 1970 UTC; 0: not known)."""

    reason: str
    since_ts: int

    def to_map(self) -> dict[str, Any]:
        """JSON-able."""
        return {"reason": self.reason, "since_ts": self.since_ts}


@attrs.define(eq=False)
class HaltSwitch:
    """The halt file and the sending lock of one appkey.

    Args:
        folder: the state folder.
        name: the appkey's name there.
    """

    _folder: Path
    _name: str
    _held: LockFile | None = attrs.field(default=None, init=False)
    _unwritten: Halt | None = attrs.field(default=None, init=False)

    @property
    def path(self) -> Path:
        """The halt file; ordering is halted while it exists."""
        return self._folder / f"{self._name}.halt"

    @property
    def journal(self) -> Path:
        """The order journal of the same appkey."""
        return self._folder / f"{self._name}.orders"

    def halted(self) -> Halt | None:
        """Who halted, if anybody did. A file that cannot be read halts as well."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return self._unwritten
        except OSError as exc:
            return Halt(f"{self.path}: {exc.strerror}", 0)
        try:
            found = json.loads(content)
            return Halt(str(found["reason"]), int(found["since_ts"]))
        except (ValueError, KeyError, TypeError):
            return Halt("", 0)  # somebody made the file by hand: it means the same

    def halt(self, reason: str, wall_ns: int) -> Halt:
        """Write the file; the first reason stands. Wait for :meth:`quiet` before relying on it.

        Raises:
            StateError: it cannot be written. This process is halted all the same; another try
                may write it.
        """
        standing = self.halted()
        if standing is not None and standing is not self._unwritten:
            return standing
        found = standing or Halt(reason, wall_ns)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(found.to_map(), ensure_ascii=False).encode())
        except OSError as exc:
            self._unwritten = found
            text = Phrase(
                "{path}: {why}: a daemon that was told is halted until it ends, and no other one",
                path=str(self.path),
                why=exc.strerror,
            )
            raise StateError(text) from exc
        self._unwritten = None
        return found

    def resume(self) -> None:
        """Remove the file; nothing halts this process any more.

        Raises:
            StateError: it cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as exc:
            raise StateError(f"{self.path}: {exc.strerror}") from exc
        self._unwritten = None

    def quiet(self) -> bool:
        """Nobody is sending an order at this moment.

        Raises:
            StateError: the lock's file cannot be used.
        """
        with self._lock() as lock:
            return self._acquired(lock)

    def begin_sending(self) -> bool:
        """Take the sending lock if ordering is not halted; False: nothing may be sent.

        Where the lock cannot be used nothing may be sent either: who halts could not tell.
        """
        assert self._held is None, "one order at a time"
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(self._lock())
                free = self._acquired(lock)
            except StateError:
                return False
            if not free or self.halted() is not None:
                return False  # somebody halts just now, or has halted
            stack.pop_all()
            self._held = lock
        return True

    def end_sending(self) -> None:
        """Give the lock back, if it is held."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _lock(self) -> LockFile:
        try:
            return LockFile(self._sending)
        except OSError as exc:
            raise StateError(f"{self._sending}: {exc.strerror}") from exc

    def _acquired(self, lock: LockFile) -> bool:
        try:
            return lock.acquire()
        except OSError as exc:  # no locks on this file system
            raise StateError(f"{self._sending}: {exc.strerror}") from exc

    @property
    def _sending(self) -> Path:
        return self._folder / f"{self._name}.sending"
