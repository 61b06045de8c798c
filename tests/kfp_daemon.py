"""A daemon of few words for client tests: KFP/1 in, KFP/1 out, no KIS behind it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.kfp import codec
from kisfeed.kfp.messages import Type

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T = 1_763_600_400 * 10**9
TRADE = "trade.krx.005930"


@attrs.define(eq=False)
class ScriptedDaemon:
    """What a run of clients meets.

    Every connection answers SUB with two trades of ten shares for each topic. The first
    ``dying`` connections end right behind them. Each connection is a daemon of its own: sequence
    numbers start over, and 100 shares are traded while nobody is connected.
    """

    dying: int = 0
    mute: bool = False
    connections: int = 0
    left: int = 0
    cum: int = 1000
    heard: list[list[Any]] = attrs.field(factory=list)

    def accept(self) -> Conversation:
        self.connections += 1
        self.cum += 100
        return Conversation(self, dies=self.connections <= self.dying)


@attrs.define(eq=False)
class Conversation:
    """One connection, without I/O."""

    daemon: ScriptedDaemon
    dies: bool
    over: bool = False
    decoder: codec.Decoder = attrs.field(factory=codec.Decoder)

    def answer(self, data: bytes) -> bytes:
        """What to send back; close once ``over``."""
        messages = self.decoder.feed(data)
        self.daemon.heard += messages
        return b"".join(self._answer(message) for message in messages)

    def _answer(self, message: list[Any]) -> bytes:
        kind, number, body = message
        if kind == Type.HELLO:
            instance = f"instance {self.daemon.connections}"
            session = {"epoch": 1, "state": "STREAMING", "data": 1, "code": "none", "since_ts": T}
            welcome = {"proto": 1, "instance": instance, "session": session}
            return codec.frame(Type.WELCOME, number, welcome)
        if kind == Type.SUB:
            return self._subscribe(number, [sub["topic"] for sub in body["subs"]])
        if kind == Type.GET:
            items = {"items": [_item(body["topic"], 9)], "image": True}
            row = (71000, None, self.daemon.cum)
            image = codec.tick_frame(Type.IMAGE, 9, 5, 1, T, T, row)
            return codec.frame(Type.RES, number, items) + image
        if kind == Type.CALL and body["m"] == "never":
            return b""
        if kind == Type.CALL and body["m"] != "status":
            return codec.frame(Type.ERR, number, "bad_request", False, "no such call", {})
        return codec.frame(Type.RES, number, {"result": {"instance": "fake"}, "sids": []})

    def _subscribe(self, number: int, topics: list[str]) -> bytes:
        items = [_item(topic, sid) for sid, topic in enumerate(topics, 1)]
        frames = [codec.frame(Type.RES, number, {"items": items, "schemas": {}})]
        for item in items:
            if item["sid"] is None or self.daemon.mute:
                continue
            for sseq in (1, 2):
                self.daemon.cum += 10
                row = (71000, 10, self.daemon.cum)
                frames.append(codec.tick_frame(Type.TICK, item["sid"], sseq, 0, T, T + sseq, row))
        self.over = self.dies
        return b"".join(frames)


def _item(topic: str, sid: int) -> dict[str, Any]:
    if "mars" in topic:
        return {"topic": topic, "sid": None, "stream": 4, "data": 3, "code": "unknown_topic"}
    return {
        "topic": topic, "sid": sid, "schema": "trade.v1", "scale": 0, "sseq": 0,
        "stream": 1, "data": 1, "code": "none",
    }  # fmt: skip


@contextlib.contextmanager
def listening(path: Path, daemon: ScriptedDaemon) -> Iterator[None]:
    """Serve *daemon* on a real Unix socket, from threads of its own."""
    links: list[socket.socket] = []

    def converse(link: socket.socket) -> None:
        conversation = daemon.accept()
        with contextlib.suppress(OSError), link:
            while not conversation.over and (data := link.recv(65_536)):
                link.sendall(conversation.answer(data))
        daemon.left += 1

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                links.append(link)
                threads.append(threading.Thread(target=converse, args=(link,)))
                threads[-1].start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for link in links:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
