"""What a user would build instead: ``python -m bench.relays NAME WS_PORT ADDRESS``.

Each takes KIS's frames from a WebSocket client and hands them to every subscriber: through a
broker, or by a Unix socket of its own. Prints a line when it is ready for subscribers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import wire
from kisfeed.kis import control

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Publish = Callable[[bytes], Awaitable[None]]

FIELDS: Final = wire.field_names()
_HELD: Final = 200  # frames of one pipeline at most


def to_json(frame: str) -> bytes:
    """A data frame as most programs pass it on: a JSON object of its columns."""
    return json.dumps(dict(zip(FIELDS, frame.split("|", 3)[3].split("^"), strict=True))).encode()


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def ready() -> None:
    print("{}", flush=True)


def registrations(count: int) -> list[str]:
    return [control.subscribe("key", (wire.TR_ID, symbol)) for symbol in wire.symbols(count)]


async def with_websockets(port: int, symbols: int, publish: Publish) -> None:
    from websockets.asyncio.client import connect  # noqa: PLC0415  # one peer a process

    async with connect(
        f"ws://127.0.0.1:{port}", compression=None, ping_interval=None, max_queue=1024
    ) as ws:
        for text in registrations(symbols):
            await ws.send(text)
        async for frame in ws:
            assert isinstance(frame, str)
            if frame[0] == "0":
                await publish(to_json(frame))


async def redis_awaited(port: int, address: str, symbols: int) -> None:
    from redis.asyncio import Redis  # noqa: PLC0415

    broker = Redis(unix_socket_path=address)

    async def publish(data: bytes) -> None:
        await broker.publish("ticks", data)

    ready()
    await with_websockets(port, symbols, publish)


async def redis_pipelined(port: int, address: str, symbols: int) -> None:
    from redis.asyncio import Redis  # noqa: PLC0415

    broker = Redis(unix_socket_path=address)
    waiting: asyncio.Queue[bytes] = asyncio.Queue(4096)

    async def flush() -> None:
        while True:
            pipeline = broker.pipeline(transaction=False)
            pipeline.publish("ticks", await waiting.get())
            for _ in range(_HELD):
                if waiting.empty():
                    break
                pipeline.publish("ticks", waiting.get_nowait())
            await pipeline.execute()

    async with asyncio.TaskGroup() as group:
        group.create_task(flush())
        ready()
        await with_websockets(port, symbols, waiting.put)


async def nats(port: int, address: str, symbols: int) -> None:
    import nats as client  # noqa: PLC0415

    broker = await client.connect(f"nats://{address}")

    async def publish(data: bytes) -> None:
        await broker.publish("ticks", data)

    ready()
    await with_websockets(port, symbols, publish)


async def zeromq(port: int, address: str, symbols: int) -> None:
    import zmq  # noqa: PLC0415
    import zmq.asyncio  # noqa: PLC0415

    sock = zmq.asyncio.Context().socket(zmq.PUB)
    sock.setsockopt(zmq.SNDHWM, 0)
    sock.bind(f"ipc://{address}")

    async def publish(data: bytes) -> None:
        await sock.send(data)

    ready()
    await with_websockets(port, symbols, publish)


async def unix_sockets(port: int, address: str, symbols: int) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async def publish(data: bytes) -> None:
        message = framed(data)
        for writer in writers:
            writer.write(message)
        for writer in writers:
            if writer.transport.get_write_buffer_size() > 65_536:
                await writer.drain()

    await asyncio.start_unix_server(client, address)
    ready()
    await with_websockets(port, symbols, publish)


async def picows(port: int, address: str, symbols: int, *, coalesced: bool) -> None:
    from picows import (  # noqa: PLC0415
        WSFrame,
        WSListener,
        WSMsgType,
        WSTransport,
        ws_connect,
    )

    writers: list[asyncio.Transport] = []
    held: list[bytes] = []
    loop = asyncio.get_running_loop()

    class Door(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            writers.append(transport)

    def flush() -> None:
        message = b"".join(held)
        held.clear()
        for writer in writers:
            writer.write(message)

    class Client(WSListener):  # type: ignore[misc]  # not there where mypy runs
        def on_ws_connected(self, transport: WSTransport) -> None:
            for text in registrations(symbols):
                transport.send(WSMsgType.TEXT, text.encode())

        def on_ws_frame(self, _: WSTransport, frame: WSFrame) -> None:
            payload = frame.get_payload_as_bytes()
            if payload[:1] != b"0":
                return
            message = framed(payload)
            if not coalesced:
                for writer in writers:
                    writer.write(message)
                return
            if not held:
                loop.call_soon(flush)
            held.append(message)

    await loop.create_unix_server(Door, address)
    ready()
    transport, _ = await ws_connect(Client, f"ws://127.0.0.1:{port}")
    await transport.wait_disconnected()


async def picows_plain(port: int, address: str, symbols: int) -> None:
    await picows(port, address, symbols, coalesced=False)


async def picows_coalesced(port: int, address: str, symbols: int) -> None:
    await picows(port, address, symbols, coalesced=True)


RELAYS: Final = {
    relay.__name__: relay
    for relay in (
        redis_awaited,
        redis_pipelined,
        nats,
        zeromq,
        unix_sockets,
        picows_plain,
        picows_coalesced,
    )
}


def main(name: str, port: int, address: str, symbols: int) -> None:
    """Relay until killed."""
    Path(address).unlink(missing_ok=True) if name in {"zeromq", "unix_sockets"} else None
    runner = asyncio.Runner()
    if name.startswith("picows"):
        import uvloop  # noqa: PLC0415

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner:
        runner.run(RELAYS[name](port, address, symbols))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
