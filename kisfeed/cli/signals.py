"""SIGINT and SIGTERM for the commands that stay: the first ends cleanly, the second at once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def run_until_signal(work: Callable[[], Awaitable[Any]]) -> bool:
    """Run *work* until it ends or a signal cancels it; a second signal kills this process.

    Returns:
        False if a signal ended it.
    """
    stopping = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(_listen, stopping)
        with stopping:
            await work()
        nursery.cancel_scope.cancel()
    return not stopping.cancel_called


async def _listen(
    stopping: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        async for number in received:
            if stopping.cancel_called:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            stopping.cancel()
