"""The only module of the daemon that touches clocks, randomness and threads.

Everything else is handed a :class:`Clock` and an :class:`Rng`, so that a run can be repeated
from its seed and hours of it fit into milliseconds.
"""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Three clocks, never mixed: deadlines, ages across suspend, and the date."""

    def now(self) -> float:
        """Seconds on the scheduler's clock: every deadline and window uses this one."""
        ...

    def boot(self) -> float:
        """Seconds since boot, running on while the machine is suspended."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 UTC; may step."""
        ...

    def boot_id(self) -> str:
        """Names this boot, so that a stamp of an earlier one can be told."""
        ...


class SystemClock:
    """The real clocks, to be used inside a Trio run."""

    def now(self) -> float:
        return trio.current_time()

    def boot(self) -> float:
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def wall_ns(self) -> int:
        return time.time_ns()

    def boot_id(self) -> str:
        try:
            return _BOOT_ID.read_text("ascii").strip()
        except OSError:
            # Not Linux: without a boot id every stamp is judged by the wall clock.
            return ""


class SleepWatch:
    """Tells that the machine was suspended, which the scheduler's clock alone does not show."""

    def __init__(self, clock: Clock, least_s: float) -> None:
        """Watch from this moment on; less than *least_s* between two calls is no sleep."""
        self._clock = clock
        self._least_s = least_s
        self._ahead = clock.boot() - clock.now()

    def slept(self) -> float:
        """Seconds slept since the last call; 0.0 for none.

        What was too short to be told is never added to what comes later: it would shorten a pause
        that began behind it.
        """
        ahead = self._clock.boot() - self._clock.now()
        slept, self._ahead = ahead - self._ahead, ahead
        return slept if slept >= self._least_s else 0.0


@attrs.define
class VirtualClock:
    """Follows Trio's clock (a ``MockClock`` in tests) from a chosen date on.

    Attributes:
        base_wall_ns: the date, nanoseconds since 1970 UTC, at Trio time 0.
        step_ns: how far the wall clock was stepped; tests write it.
        suspended_s: seconds spent suspended; tests write it.
    """

    base_wall_ns: int
    step_ns: int = 0
    suspended_s: float = 0.0
    boot_name: str = "virtual"

    def now(self) -> float:
        return trio.current_time()

    def boot(self) -> float:
        return trio.current_time() + self.suspended_s

    def wall_ns(self) -> int:
        return self.base_wall_ns + self.step_ns + int(self.boot() * 1e9)

    def boot_id(self) -> str:
        return self.boot_name


class Rng(Protocol):
    """What is drawn by chance: jitter, and names that must not collide."""

    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """An integer of *k* random bits."""
        ...


def system_rng() -> Rng:
    """Randomness from the operating system."""
    return random.SystemRandom()


Seeded: TypeAlias = random.Random
"""Randomness that can be repeated, with every kind of draw."""


def seeded_rng(seed: int) -> Seeded:
    """Randomness that can be repeated."""
    return Seeded(seed)


_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(clock: Clock, rng: Rng) -> str:
    """A new ULID: 48 bits of wall-clock milliseconds, then 80 random bits."""
    value = (clock.wall_ns() // 1_000_000) << 80 | rng.getrandbits(80)
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


class Resolver(trio.abc.HostnameResolver):
    """Looks names up in a few threads of its own, and not for long.

    A look-up cannot be cancelled, only left behind, and then it keeps its thread until the system
    gives up. With threads of their own, look-ups that hang hold up neither the disk nor the end
    of the program; the next ones are refused in time. Where the name server fails, the last good
    answer is used.

    Args:
        lookup: asks the system; blocks.
        threads: how many look-ups run at a time.
        within_s: a look-up that takes longer has failed, seconds.
        keep_s: how long a good answer may stand in for a failure, seconds.
    """

    def __init__(
        self,
        lookup: Callable[..., list[Any]] = socket.getaddrinfo,
        *,
        threads: int = 2,
        within_s: float = 3.0,
        keep_s: float = 86_400.0,
    ) -> None:
        self._lookup = lookup
        self._threads = trio.CapacityLimiter(threads)
        self._within_s = within_s
        self._keep_s = keep_s
        self._good: dict[tuple[object, ...], tuple[float, list[Any]]] = {}

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002  # trio's own name
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As :func:`socket.getaddrinfo`.

        Raises:
            socket.gaierror: the name does not resolve, or did not in time.
        """
        asked = (host, port, family, type, proto, flags)
        try:
            with trio.fail_after(self._within_s):
                found = await trio.to_thread.run_sync(
                    self._lookup, *asked, abandon_on_cancel=True, limiter=self._threads
                )
        except (trio.TooSlowError, socket.gaierror) as exc:
            at, found = self._good.get(asked, (-float("inf"), []))
            if trio.current_time() - at > self._keep_s:
                if isinstance(exc, socket.gaierror):
                    raise
                text = f"no answer to a name look-up within {self._within_s} s"
                raise socket.gaierror(socket.EAI_AGAIN, text) from exc
        else:
            self._good[asked] = trio.current_time(), found
        return found

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """As :func:`socket.getnameinfo`; numeric, nothing here asks for names of addresses."""
        await trio.lowlevel.checkpoint()
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        return socket.getnameinfo(sockaddr, flags | numeric)


class Disk(Protocol):
    """Puts small files on disk without holding up the program."""

    async def write(self, path: Path, data: bytes) -> None:
        """Replace *path* with *data*, durably, mode 0600, before returning.

        Raises:
            OSError: the folder is missing, full or read-only; *path* is unchanged.
        """
        ...

    async def append(self, fd: int, data: bytes) -> None:
        """Write *data* at the end of an open file, durably, before returning.

        A caller that is cancelled gets no answer, but waits until the disk is done.

        Raises:
            OSError: all, some or nothing of *data* is there.
        """
        ...


class ThreadDisk:
    """Writes in a worker thread: a disk that takes its time stalls nobody."""

    async def write(self, path: Path, data: bytes) -> None:
        await trio.to_thread.run_sync(write_atomically, path, data)

    async def append(self, fd: int, data: bytes) -> None:
        await trio.to_thread.run_sync(append_durably, fd, data)


class DirectDisk:
    """Writes at once: for virtual time, which does not wait for threads."""

    async def write(self, path: Path, data: bytes) -> None:
        write_atomically(path, data)
        await trio.lowlevel.checkpoint()

    async def append(self, fd: int, data: bytes) -> None:
        append_durably(fd, data)
        await trio.lowlevel.checkpoint()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace *path* with *data*: a reader sees the old or the new bytes, also after a crash.

    Raises:
        OSError: the folder is missing, full or read-only; *path* is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def append_durably(fd: int, data: bytes) -> None:
    """Write *data* at the end of the file behind *fd*, which is opened to append, and sync it.

    Raises:
        OSError: all, some or nothing of it is there.
    """
    while data:
        data = data[os.write(fd, data) :]
    os.fdatasync(fd)
