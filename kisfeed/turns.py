"""Turns of Trio tasks."""

from __future__ import annotations

import trio


class Turn:
    """A fair lock that is no checkpoint while it is free.

    For a block that is one itself: another would cost each read or send a pass of the scheduler.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        if self._lock.locked():
            await self._lock.acquire()
        else:
            self._lock.acquire_nowait()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
