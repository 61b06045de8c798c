"""Tells a person of trouble: one JSON object by POST, or to one program's standard input."""

from __future__ import annotations

import json
import logging
import subprocess
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kisfeed.config import Notify
    from kisfeed.seams import Clock

    Post = Callable[[str, bytes], Awaitable[None]]

_log: Final = logging.getLogger(__name__)

LOOK_S: Final = 5.0
_WAITING: Final = 32
_DOWN_S: Final = 30.0  # a session down for less than this is no trouble


def troubles(status: Mapping[str, Any]) -> dict[str, str]:
    """What a person should know of, from the map that ``kisfeed status --json`` shows.

    Returns:
        A stable name for each, and a text.
    """
    found: dict[str, str] = {}
    connection, rest = status["connection"], status["rest"]
    waiting = connection["state"] == "RECONNECT_BACKOFF"
    if waiting and connection["reason"] == "in_use":
        found["in_use"] = Phrase("another program holds this appkey's session")
    elif waiting and status["liveness"]["market_open"] and connection["for_s"] >= _DOWN_S:
        found["session_down"] = Phrase("no session in open hours: {why}", why=connection["reason"])
    if connection["breaker"]["phase"] != "closed":
        why = connection["breaker"]["reason"]
        found["breaker"] = Phrase("the session's breaker is open: {why}", why=why)
    if rest["breaker"]["open"]:
        found["rest_down"] = Phrase("KIS's REST host does not answer")
    token = rest["token"]
    if token["state"] != "valid" and token["failures"]:
        found["token_dead"] = Phrase("no access token: {why}", why=token["why"])
    if token["state"] == "refused":
        found["token_dead"] = Phrase("no access token: {why}", why=token["why"])
    orders = status.get("orders") or {}
    if orders.get("in_doubt"):
        ids = ", ".join(orders["in_doubt"])
        found["order_unknown"] = Phrase("orders in doubt: {ids}", ids=ids)
    if orders.get("halted"):
        found["halt"] = Phrase("orders are halted: {why}", why=orders["halted"]["reason"])
    if status["counts"]["drifts"]:
        found["drift"] = Phrase("KIS sends records of an unknown width")
    if status["state_folder"] != "ok" or token["file"] != "ok":
        found["disk"] = Phrase("the state folder cannot be written")
    return found


@attrs.define(eq=False)
class Notifier:
    """Looks for trouble every few seconds and tells of what began and what is over.

    Telling happens in a task of its own: one that takes long or fails holds up nothing but the
    next message. Only so many messages wait; what comes on top is counted and lost.

    Args:
        rules: whom to tell, and how often.
        names: what else is in every message.
        status: what ``kisfeed status --json`` shows.
        clock: for pauses and stamps.
        post: sends a message to an address.
        say: gives a text in the language of whoever is told.

    Attributes:
        told, lost: messages delivered, and not.
    """

    _rules: Notify
    _names: Mapping[str, str]
    _status: Callable[[], Mapping[str, Any]]
    _clock: Clock
    _post: Post
    _say: Callable[[str], str] = str
    told: int = attrs.field(default=0, init=False)
    lost: int = attrs.field(default=0, init=False)
    _present: dict[str, str] = attrs.field(factory=dict, init=False)
    _told_at: dict[str, float] = attrs.field(factory=dict, init=False)

    async def run(self) -> None:
        """Look and tell, until cancelled; does nothing where nobody wants to be told."""
        if not self._rules.post and not self._rules.command:
            return
        send, receive = trio.open_memory_channel[bytes](_WAITING)
        with send, receive:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver_all, receive)
                while True:
                    for message in self.look():
                        try:
                            send.send_nowait(message)
                        except trio.WouldBlock:
                            self.lost += 1
                    await trio.sleep(LOOK_S)

    def look(self) -> list[bytes]:
        """What is to be told now."""
        now, found, messages = self._clock.now(), troubles(self._status()), []
        for name, text in found.items():
            due = self._told_at.get(name, -float("inf")) + self._rules.again_s
            if name not in self._present and now >= due:
                self._told_at[name] = now
                self._present[name] = text
                messages.append(self._message(name, text, over=False))
        ended = [name for name in self._present if name not in found]
        messages += [self._message(n, self._present.pop(n), over=True) for n in ended]
        return messages

    def _message(self, name: str, text: str, *, over: bool) -> bytes:
        message = {
            "type": "trouble",
            "trouble": name,
            "over": over,
            "text": self._say(text),
            "ts": self._clock.wall_ns(),
            **self._names,
        }
        return json.dumps(message, ensure_ascii=False).encode()

    async def _deliver_all(self, messages: trio.MemoryReceiveChannel[bytes]) -> None:
        async for message in messages:
            done, why = False, "timeout"
            with trio.move_on_after(self._rules.timeout_s):
                try:
                    await self._deliver(message)
                    done = True
                except (OSError, subprocess.SubprocessError) as exc:
                    why = type(exc).__name__  # its text may hold the address, which is a secret
            self.told, self.lost = self.told + done, self.lost + (not done)
            if not done:
                _log.warning("notify_failed", extra={"why": why, "lost": self.lost})

    async def _deliver(self, message: bytes) -> None:
        if self._rules.post:
            await self._post(self._rules.post.reveal(), message)
        else:
            await trio.run_process(
                list(self._rules.command),
                stdin=message,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
