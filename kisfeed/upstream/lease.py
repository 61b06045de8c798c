"""The lease on an appkey: one holder a machine, and the hygiene that outlives it.

Two files in the state folder, named after the environment and a hash of the appkey (never the
appkey): ``<name>.lease``, locked with flock for as long as its holder lives, says who holds it;
``<name>.hygiene.json`` keeps dial budget, breaker and in_use, so that a crash loop dials no
more often than one long-lived process may.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from kisfeed.appkeys import appkey_name
from kisfeed.core.pacing import Hygiene, Stamp, ages
from kisfeed.errors import AppkeyInUse, StateError
from kisfeed.locks import LockFile

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from kisfeed.config import Environment, Secret
    from kisfeed.seams import Clock, Disk


@attrs.define(eq=False)
class Lease:
    """A held lease: reads and writes the hygiene of its appkey.

    Attributes:
        failed: why the last write failed, None if it did not. The budget then goes on in memory.
    """

    _path: Path
    _clock: Clock
    _disk: Disk
    failed: str | None = None

    def load(self) -> Hygiene:
        """What earlier processes left behind, aged to this moment.

        Raises:
            StateError: the file is there and not readable as hygiene. Nothing is guessed: a
                budget that forgets is a budget that lets an abuser through.
        """
        try:
            written = json.loads(self._path.read_bytes())
            stamp = Stamp.from_map(written["stamp"])
            record = Hygiene.from_map(written["hygiene"])
        except FileNotFoundError:
            return Hygiene()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise StateError(
                f"{self._path} cannot be read ({exc}). It keeps the reconnect budget; "
                "remove it only if no kisfeed ran for this appkey in the last day"
            ) from exc
        now = self._now()
        return record.aged(ages([stamp], now.boot_id, now.boot, now.wall)[0])

    async def save(self, record: Hygiene) -> None:
        """Put *record* on disk before returning; a failure is kept in :attr:`failed`."""
        stamp = self._now()
        content = json.dumps({"stamp": stamp.to_map(), "hygiene": record.to_map()}).encode()
        try:
            await self._disk.write(self._path, content)
        except OSError as exc:
            self.failed = str(exc)
        else:
            self.failed = None

    def _now(self) -> Stamp:
        return Stamp(self._clock.boot_id(), self._clock.boot(), self._clock.wall_ns() / 1e9)


@contextmanager
def hold(
    folder: Path,
    environment: Environment,
    appkey: Secret,
    socket: str,
    clock: Clock,
    disk: Disk,
) -> Generator[Lease]:
    """Hold the appkey for the length of the block.

    Args:
        folder: the state folder; made 0700 if missing.
        environment: which KIS the appkey belongs to.
        appkey: only its hash is written.
        socket: where this holder listens, for whoever is refused.
        clock: stamps what is written.
        disk: writes it.

    Raises:
        AppkeyInUse: another process holds it; names its pid, socket and since when.
        StateError: the folder cannot be used.
    """
    name = appkey_name(environment, appkey)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = LockFile(folder / f"{name}.lease")
    except OSError as exc:
        raise StateError(f"the state folder {folder} cannot be written: {exc.strerror}") from exc
    with lock:
        try:
            if not lock.acquire():
                raise _in_use(lock.read())
        except OSError as exc:  # no locks on this file system
            raise StateError(f"the state folder {folder} cannot be locked: {exc}") from exc
        holder = {"pid": os.getpid(), "socket": socket, "since_ts": clock.wall_ns()}
        try:
            lock.write(json.dumps(holder).encode())
        except OSError as exc:
            raise StateError(f"the state folder {folder} is full or read-only: {exc}") from exc
        yield Lease(folder / f"{name}.hygiene.json", clock, disk)


def _in_use(content: bytes) -> AppkeyInUse:
    try:
        holder = json.loads(content)
        return AppkeyInUse(holder["pid"], holder["socket"], holder["since_ts"])
    except (ValueError, KeyError, TypeError):
        return AppkeyInUse(None, None, None)  # its holder has not written yet
