"""The subscribers: ``python -m bench.sinks``, driven line by line on stdin.

Connects as many subscribers as asked, then reads in C until told to stop. Each command is one
JSON object, and is answered with one line:

``{"do": "connect", "kind": k, "address": a, "count": n, "topics": [...], "stalled": m}``
``{"do": "read", "unit": bytes, "most": stamps}``  begins to read
``{"do": "count"}``  ticks so far of the slowest and of all
``{"do": "stop"}``  ends; how late the ticks were, and what was lost
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from bench import wire
from kisfeed.kfp import codec
from kisfeed.kfp.messages import Type

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def connect(address: str) -> socket.socket:
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
        return sock
    host, port = address.split(":")
    return socket.create_connection((host, int(port)))


def subscribe_kfp(sock: socket.socket, topics: list[str], name: str) -> None:
    """Subscribe and read the answer, to the end of a frame: no tick is on its way yet."""
    sock.sendall(codec.frame(Type.HELLO, 1, {"proto": [1, 1], "client": name, "pid": os.getpid()}))
    sock.sendall(codec.frame(Type.SUB, 2, {"subs": [{"topic": t, "image": False} for t in topics]}))
    data, answered = b"", False
    while data or not answered:
        data += sock.recv(65_536)
        while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
            (message,) = codec.Decoder().feed(data[:end])
            data = data[end:]
            if message[0] == Type.ERR:
                raise RuntimeError(f"refused: {message}")
            answered = answered or message[:2] == [Type.RES, 2]


def subscribe_redis(sock: socket.socket, channel: str) -> None:
    sock.sendall(b"SUBSCRIBE %s\r\n" % channel.encode())
    data = b""
    while not data.endswith(b":1\r\n"):
        data += sock.recv(4096)


def subscribe_nats(sock: socket.socket, subject: str) -> None:
    sock.recv(4096)
    sock.sendall(b'CONNECT {"verbose":false}\r\nSUB %s 1\r\nPING\r\n' % subject.encode())
    data = b""
    while not data.endswith(b"PONG\r\n"):
        data += sock.recv(4096)


def subscribe_zmq(sock: socket.socket) -> None:
    """ZMTP 3.0, NULL mechanism: greeting, READY, and a subscription to everything."""
    sock.sendall(_GREETING)
    exactly(sock, 64)
    ready = b"\x05READY\x0bSocket-Type" + (3).to_bytes(4, "big") + b"SUB"
    sock.sendall(b"\x04" + bytes((len(ready),)) + ready)
    exactly(sock, exactly(sock, 2)[1])
    sock.sendall(b"\x00\x01\x01")


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


class Sinks:
    """Everything that is connected."""

    def __init__(self, shared: str, stamps: int) -> None:
        self.lib = wire.load_generator()
        self.memory = wire.Shared(shared, stamps)
        self.size: int = self.lib.peer_bytes()
        self.socks: list[socket.socket] = []
        self.stalled = 0
        self.peers: Any = None
        self.late: Any = None
        self.most = 0
        self.thread: threading.Thread | None = None

    def connect(self, command: dict[str, Any]) -> dict[str, Any]:
        kind, count = command["kind"], command["count"]
        for n in range(count):
            sock = connect(command["address"])
            if kind == "kfp":
                subscribe_kfp(sock, command["topics"], f"sink {n}")
            elif kind == "redis":
                subscribe_redis(sock, "ticks")
            elif kind == "nats":
                subscribe_nats(sock, "ticks")
            elif kind == "zeromq":
                subscribe_zmq(sock)
            self.socks.append(sock)
        self.stalled = command.get("stalled", 0)
        return {"connected": len(self.socks)}

    def read(self, command: dict[str, Any]) -> dict[str, Any]:
        n, self.most = len(self.socks), command["most"]
        self.peers = (ctypes.c_char * (self.size * n))()
        for i, sock in enumerate(self.socks):
            head = (ctypes.c_int32 * 2).from_buffer(self.peers, i * self.size)
            head[0], head[1] = sock.fileno(), int(i < self.stalled)
        self.late = (ctypes.c_uint32 * (self.most * n))() if self.most else None
        self.memory.stop(really=False)
        self.thread = threading.Thread(
            target=self.lib.drain,
            args=(
                n,
                ctypes.addressof(self.peers),
                command["unit"],
                self.memory.stop_at,
                self.memory.stamps_at if self.most else None,
                ctypes.addressof(self.late) if self.most else None,
                self.most,
            ),
        )
        self.thread.start()
        return {}

    def numbers(self, i: int) -> tuple[int, int]:
        found = (ctypes.c_uint64 * 2).from_buffer(self.peers, i * self.size + 8)
        return found[0], found[1]

    def count(self) -> dict[str, Any]:
        counts = [self.numbers(i)[0] for i in range(self.stalled, len(self.socks))]
        return {"least": min(counts), "all": sum(counts), "at": time.monotonic()}

    def stop(self) -> dict[str, Any]:
        assert self.thread is not None
        self.memory.stop()
        self.thread.join()
        answer = self.count()
        readers = range(self.stalled, len(self.socks))
        answer["lost"] = sum(self.numbers(i)[1] for i in readers)
        if self.most:
            late = sorted(
                self.late[i * self.most + k]
                for i in readers
                for k in range(self.most // 10, min(self.numbers(i)[0], self.most))
            )
            if late:
                answer["us"] = {
                    name: late[min(len(late) - 1, int(len(late) * share))] / 1000
                    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
                }
        return answer


def main(shared: str, stamps: int) -> None:
    """Do as told; arguments as :func:`bench.exchange.main`."""
    sinks = Sinks(shared, stamps)
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "connect":
                answer = sinks.connect(command)
            case "read":
                answer = sinks.read(command)
            case "count":
                answer = sinks.count()
            case _:
                answer = sinks.stop()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
