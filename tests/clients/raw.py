"""A subscriber made of a socket and msgpack, as somebody would write it in any language.

``python raw.py SOCKET TOPIC...`` prints a JSON line for every trade, gap and loss, and ``anew``
whenever it had to dial again: what it was told before is then of another account.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from typing import Any, BinaryIO, cast

import msgpack

HELLO, SUB, WELCOME, RES, TICK, IMAGE, GAP, LOST = 1, 2, 16, 17, 20, 21, 23, 24


def send(stream: BinaryIO, *message: object) -> None:
    body = msgpack.packb(message)
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> list[Any]:
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    body = stream.read(struct.unpack(">I", head)[0])
    message: list[Any] = msgpack.unpackb(body)
    return message


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def follow(stream: BinaryIO, topics: list[str]) -> None:
    send(stream, HELLO, 1, {"proto": [1, 1], "client": "raw"})
    send(stream, SUB, 2, {"subs": [{"topic": topic} for topic in topics]})
    names: dict[int, str] = {}
    while True:
        kind, *rest = receive(stream)
        if kind == RES:
            names = {item["sid"]: item["topic"] for item in rest[1]["items"]}
            say(type="anew")
        elif kind in {TICK, IMAGE}:
            sid, sseq, flags, _xts, _rts, _px, qty, cum_qty, *_ = rest
            trade = {"sseq": sseq, "flags": flags, "qty": qty, "cum_qty": cum_qty}
            say(type="trade", topic=names[sid], image=kind == IMAGE, **trade)
        elif kind == GAP:
            sid, _last, next_sseq, _from, _to, missed, _code = rest
            say(type="gap", topic=names[sid], next_sseq=next_sseq, missed_qty=missed)
        elif kind == LOST:
            sid, _from, to_sseq, n, _code = rest
            say(type="lost", topic=names[sid], to_sseq=to_sseq, n=n)


if __name__ == "__main__":
    where, *wanted = sys.argv[1:]
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(15.0)
                link.connect(where)
                with link.makefile("rwb") as file:
                    follow(cast("BinaryIO", file), wanted)
        except (OSError, EOFError):
            time.sleep(0.1)
