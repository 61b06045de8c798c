"""A KIS that does nothing but send: ``python -m bench.exchange``, driven line by line on stdin.

Prints ``{"ws": port, "rest": port}``, acknowledges every registration, and answers each command,
one JSON object a line, with one line when it is done:

``{"do": "registered", "count": n}``  waits until n registrations are acknowledged
``{"do": "blast", "seconds": s, "symbols": n, "records": r, "window": w}``  as fast as it is taken
``{"do": "pace", "rate": hz, "burst": b, "count": n, "symbols": n, "records": r}``
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from bench import wire
from kisfeed.kis import server

if TYPE_CHECKING:
    import ctypes

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ANSWER: Final = b'{"approval_key": "00000000-0000-0000-0000-000000000000"}'


def listen() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


def serve_rest(listener: socket.socket) -> None:
    """Answer every request with an approval key."""
    while True:
        sock, _ = listener.accept()
        with sock:
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(65_536)
            head, _, body = data.partition(b"\r\n\r\n")
            (length,) = [
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ] or [0]
            while len(body) < length:
                body += sock.recv(65_536)
            sock.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(_ANSWER), _ANSWER)
            )


class Peer:
    """The client that is being measured."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.registered = 0
        self.changed = threading.Condition()
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65_536)
        head, _, self.rest = data.partition(b"\r\n\r\n")
        (key,) = [
            line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        ]
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Acknowledge registrations until the client leaves."""
        while True:
            try:
                head = self.exactly(2)
                size = head[1] & 127
                if size > 125:
                    size = int.from_bytes(self.exactly(2 if size == 126 else 8), "big")
                mask = self.exactly(4)
                body = bytes(b ^ mask[i & 3] for i, b in enumerate(self.exactly(size)))
                if head[0] & 15 != 1:
                    continue
                asked = json.loads(body)["body"]["input"]
                ack = server.build_ack((asked["tr_id"], asked["tr_key"]), "OPSP0000")
                self.sock.sendall(wire.websocket(ack.encode()))
            except OSError:
                return
            with self.changed:
                self.registered += 1
                self.changed.notify_all()

    def exactly(self, size: int) -> bytes:
        while len(self.rest) < size:
            data = self.sock.recv(65_536)
            if not data:
                raise ConnectionResetError
            self.rest += data
        found, self.rest = self.rest[:size], self.rest[size:]
        return found


def main(shared: str, stamps: int) -> None:
    """Serve one client at a time, and do as told.

    Args:
        shared: path of the memory with the stamps.
        stamps: how many fit it.
    """
    lib = wire.load_generator()
    memory = wire.Shared(shared, stamps)
    rest, ws = listen(), listen()
    threading.Thread(target=serve_rest, args=(rest,), daemon=True).start()
    peers: list[Peer] = []

    def accept() -> None:
        while True:
            peers.append(Peer(ws.accept()[0]))

    threading.Thread(target=accept, daemon=True).start()
    say({"ws": ws.getsockname()[1], "rest": rest.getsockname()[1]})
    for line in sys.stdin:
        say(obey(json.loads(line), lib, memory, peers))


def obey(
    command: dict[str, Any], lib: ctypes.CDLL, memory: wire.Shared, peers: list[Peer]
) -> dict[str, Any]:
    if command["do"] == "registered":
        if not peers:
            return {"registered": -1}
        with peers[-1].changed:
            done = peers[-1].changed.wait_for(
                lambda: peers[-1].registered >= command["count"], command.get("within", 60)
            )
        return {"registered": peers[-1].registered if done else -1}
    peer = peers[-1]
    frames = wire.trades(command["symbols"], command["records"])
    ring = b"".join(map(wire.websocket, frames))
    size = len(ring) // len(frames)
    if command["do"] == "blast":
        # No timeout: a peer that stops reading is stopped by the one who drives this.
        sent = lib.blast(
            peer.sock.fileno(),
            ring,
            size,
            len(frames),
            command["seconds"],
            command["records"],
            command["window"],
            memory.stop_at,
        )
    else:
        sent = lib.pace(
            peer.sock.fileno(),
            ring,
            size,
            len(frames),
            command["rate"],
            command["burst"],
            command["count"],
            memory.stamps_at,
        )
    return {"sent": sent}


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
