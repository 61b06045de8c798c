"""A program that follows topics and prints every event as a JSON line.

``python follower.py sync|asyncio SOCKET TOPIC...``; ends with its stdin.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import TYPE_CHECKING

import kisfeed
import kisfeed.aio

if TYPE_CHECKING:
    from collections.abc import Sequence


def _say(event: kisfeed.Event) -> None:
    sys.stdout.write(json.dumps(event.to_map()) + "\n")
    sys.stdout.flush()


def _follow(socket: str, topics: Sequence[str]) -> None:
    with kisfeed.connect(socket=socket, client="sync") as kf:
        for event in kf.subscribe(*topics):
            _say(event)


async def _follow_async(socket: str, topics: Sequence[str]) -> None:
    async with kisfeed.aio.connect(socket=socket, client="asyncio") as kf:
        await kf.subscribe(*topics)
        async for event in kf:
            _say(event)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    kind, where, *wanted = sys.argv[1:]
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if kind == "sync":
        _follow(where, wanted)
    else:
        asyncio.run(_follow_async(where, wanted))
