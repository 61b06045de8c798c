"""Receiving only: ``python -m bench.receivers NAME WS_PORT FRAMES`` counts text frames.

Prints ``{"frames": n, "cpu": seconds, "wall": seconds}`` when that many have come.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final


class Tally:
    """Counts frames from the first one on, to *most*."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.frames = 0
        self.cpu = self.wall = 0.0

    def add(self, n: int) -> bool:
        """Count *n* more; True when it is enough."""
        if not self.frames:
            self.cpu, self.wall = time.process_time(), time.perf_counter()
        self.frames += n
        return self.frames >= self.most

    def tell(self) -> None:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        print(json.dumps({"frames": self.frames, "cpu": cpu, "wall": wall}), flush=True)


def kisfeed_tap(port: int, tally: Tally) -> None:
    import trio  # noqa: PLC0415  # one client a process

    from kisfeed.config import Session  # noqa: PLC0415
    from kisfeed.upstream.transport import dial_tcp, open_link  # noqa: PLC0415

    async def run() -> None:
        with trio.CancelScope() as scope:

            def sink(frames: list[bytes]) -> None:
                if tally.add(len(frames)):
                    scope.cancel()

            stream = await dial_tcp("127.0.0.1", port)
            rules = Session(close_timeout_s=0.1)
            async with open_link(stream, "bench", rules, sink=sink, heard=lambda: None) as link:
                link.abort = True
                await link.run()

    trio.run(run)


def trio_websocket(port: int, tally: Tally) -> None:
    import trio  # noqa: PLC0415
    from trio_websocket import connect_websocket_url  # noqa: PLC0415

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            ws = await connect_websocket_url(nursery, f"ws://127.0.0.1:{port}/")
            while True:
                await ws.get_message()
                if tally.add(1):
                    break
            nursery.cancel_scope.cancel()

    trio.run(run)


def websockets(port: int, tally: Tally) -> None:
    from websockets.asyncio.client import connect  # noqa: PLC0415

    async def run() -> None:
        ws = await connect(f"ws://127.0.0.1:{port}", compression=None, ping_interval=None)
        while True:
            await ws.recv()
            if tally.add(1):
                return

    asyncio.run(run())


def aiohttp(port: int, tally: Tally) -> None:
    import aiohttp  # noqa: PLC0415

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            ws = await session.ws_connect(f"ws://127.0.0.1:{port}", autoping=False)
            while True:
                await ws.receive()
                if tally.add(1):
                    tally.tell()
                    sys.exit()

    asyncio.run(run())


def picows(port: int, tally: Tally) -> None:
    import uvloop  # noqa: PLC0415
    from picows import WSListener, ws_connect  # noqa: PLC0415

    class Client(WSListener):  # type: ignore[misc]  # not there where mypy runs
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            frame.get_payload_as_bytes()
            if tally.frames < tally.most and tally.add(1):
                transport.disconnect()

    async def run() -> None:
        transport, _ = await ws_connect(Client, f"ws://127.0.0.1:{port}")
        await transport.wait_disconnected()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


RECEIVERS: Final = {
    "kisfeed": kisfeed_tap,
    "trio-websocket, get_message": trio_websocket,
    "websockets (asyncio)": websockets,
    "aiohttp": aiohttp,
    "picows (uvloop)": picows,
}

if __name__ == "__main__":
    counted = Tally(int(sys.argv[3]))
    RECEIVERS[sys.argv[1]](int(sys.argv[2]), counted)
    counted.tell()
