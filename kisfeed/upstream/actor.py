"""The actor that owns the one session: it performs what the engine decides.

One driver task hands out the engine's actions, one reader feeds frames to it, one writer sends.
Nothing between the socket and the outboxes waits: the reader calls the engine and the fan-out
synchronously, so PINGPONG is answered first and no local program can slow it down.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import trio

from kisfeed.core.connection import Close, Dial, DialFailure, FetchKey, Reason, SaveHygiene
from kisfeed.core.engine import Action, Instant, SendRegistration, SendText
from kisfeed.errors import KisRefused, KisUnreachable
from kisfeed.kis import control
from kisfeed.seams import SleepWatch
from kisfeed.upstream.transport import Link, NoHandshake, open_link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kisfeed.config import Secret, Session
    from kisfeed.core.engine import Engine
    from kisfeed.core.pacing import Hygiene
    from kisfeed.seams import Clock

    Dialler = Callable[[str, int], Awaitable[trio.abc.Stream]]

_SUSPEND_CHECK_S: Final = 5.0
_SUSPENDED_S: Final = 2.0  # a shorter sleep harms nothing
_SENDS_WAITING: Final = 256  # PINGPONG echoes and paced registrations; more means a stuck link


@attrs.define(eq=False)
class _Session:
    """The live session: its link and what waits to be sent on it."""

    epoch: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    link: Link | None = None
    ended: Reason = Reason.RESET
    sends: trio.MemorySendChannel[str] = attrs.field(init=False)
    outgoing: trio.MemoryReceiveChannel[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.sends, self.outgoing = trio.open_memory_channel[str](_SENDS_WAITING)

    def end(self, *, abort: bool, reason: str) -> None:
        if abort and self.link is not None:
            self.link.abort = True
        self.scope.cancel(reason=reason)


@attrs.define(eq=False)
class Upstream:
    """Drives *engine* against KIS.

    Args:
        engine: decides.
        clock: tells the time.
        url: the WebSocket's address, ``ws://host:port``.
        rules: the session's deadlines.
        dial: opens a TCP stream to (host, port).
        approval_key: fetches the key that registrations are signed with.
        publish: sends what the engine put into outboxes; synchronous.
        save: puts the hygiene record on disk before it returns.
    """

    _engine: Engine
    _clock: Clock
    _url: str
    _rules: Session
    _dial: Dialler
    _approval_key: Callable[[bool], Awaitable[Secret]]
    _publish: Callable[[], None]
    _save: Callable[[Hygiene], Awaitable[None]]
    _key: Secret | None = attrs.field(default=None, init=False)
    _session: _Session | None = attrs.field(default=None, init=False)
    _poked: trio.Event = attrs.field(factory=trio.Event, init=False)
    _saving: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _unsaved: Hygiene | None = attrs.field(default=None, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _ended: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _sleep: SleepWatch = attrs.field(init=False)
    _armed: float = attrs.field(default=-math.inf, init=False)

    def kick(self) -> None:
        """Perform what the engine wants and send what its outboxes hold; call after every change.

        Synchronous. Outside :meth:`run` only the outboxes are sent.
        """
        if self._nursery is not None:
            for action in self._engine.take_actions():
                self._perform(action)
        self._publish()
        # A deadline that moved later needs no wake: the driver looks again when it gets there.
        if self._engine.next_deadline() < self._armed:
            self._poked.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the session until cancelled; a live session is closed with a close frame."""
        self._sleep = SleepWatch(self._clock, _SUSPENDED_S)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.kick()
                task_status.started()
                while True:
                    soon = self._clock.now() + _SUSPEND_CHECK_S
                    self._armed = min(self._engine.next_deadline(), soon)
                    with trio.move_on_at(self._armed):
                        await self._poked.wait()
                    self._poked = trio.Event()
                    self._look_for_suspend()
                    self._engine.timer(self._at())
                    self.kick()
            finally:
                self._nursery = None

    def stop(self) -> None:
        """Begin to end the session, with a close frame, for good; :meth:`close` waits for it."""
        if not self._engine.stopped:
            self._engine.stop(self._at())
            self.kick()

    async def close(self) -> None:
        """Stop for good: the session ends with a close frame, and the disk knows that it did.

        Call while :meth:`run` still runs; takes at most a second over the close limit.
        """
        self.stop()
        with trio.move_on_after(self._rules.close_timeout_s + 1, shield=True):
            while self._session is not None:
                await self._ended.park()
            await self._save_hygiene()

    def _at(self) -> Instant:
        return Instant(self._clock.now(), self._clock.wall_ns())

    def _look_for_suspend(self) -> None:
        slept = self._sleep.slept()
        if slept:
            self._engine.suspended(slept, self._at())

    def _perform(self, action: Action) -> None:
        assert self._nursery is not None
        session = self._session
        match action:
            case SendText(epoch=epoch, text=text):
                self._send(epoch, text)
            case SendRegistration(epoch=epoch, key=key, register=register):
                assert self._key is not None, "a session is dialled with a key in hand"
                build = control.subscribe if register else control.unsubscribe
                self._send(epoch, build(self._key.reveal(), key))
            case FetchKey(fresh=fresh):
                self._nursery.start_soon(self._fetch_key, fresh, name="approval key")
            case SaveHygiene(record=record):
                self._unsaved = record
                self._nursery.start_soon(self._save_hygiene, name="save hygiene")
            case Dial(epoch=epoch):
                self._session = _Session(epoch)
                self._nursery.start_soon(self._run_session, self._session, name=f"session {epoch}")
            case Close(epoch=epoch, abort=abort, reason=reason):
                if session is not None and session.epoch == epoch:
                    session.end(abort=abort, reason=str(reason))

    def _send(self, epoch: int, text: str) -> None:
        session = self._session
        if session is None or session.epoch != epoch:
            return  # decided for a session that has ended since
        try:
            session.sends.send_nowait(text)
        except trio.WouldBlock:
            session.end(abort=True, reason="sends are stuck")

    async def _fetch_key(self, fresh: bool) -> None:
        try:
            self._key = await self._approval_key(fresh)
        except KisRefused:
            self._engine.key_failed(self._at(), refused=True)
        except KisUnreachable:
            self._engine.key_failed(self._at(), refused=False)
        else:
            self._engine.key_ready(self._at())
        self.kick()

    async def _save_hygiene(self) -> None:
        """Return once the newest record is on disk."""
        async with self._saving:
            record, self._unsaved = self._unsaved, None
            if record is not None:
                await self._save(record)

    async def _run_session(self, session: _Session) -> None:
        epoch = session.epoch
        # The charge for this dial reaches the disk before its first byte leaves.
        await self._save_hygiene()
        failure = DialFailure.TIMED_OUT
        with session.scope:
            failure = await self._connect_and_run(session)
        if self._session is session:
            self._session = None
        # First: a pause that begins now must not be shortened by a sleep that is over.
        self._look_for_suspend()
        if session.link is None:
            self._engine.dial_failed(epoch, failure, self._at())
        else:
            self._engine.lost(epoch, session.ended, self._at())
        self.kick()
        self._ended.unpark_all()

    async def _connect_and_run(self, session: _Session) -> DialFailure:
        parts = urlsplit(self._url)
        host, port = parts.hostname or "", parts.port or 80
        # One limit for TCP and upgrade together: what is charged for this dial assumes it.
        give_up_at = trio.current_time() + self._rules.dial_timeout_s
        try:
            with trio.fail_at(give_up_at):
                stream = await self._dial(host, port)
        except trio.TooSlowError:
            return DialFailure.TIMED_OUT
        except socket.gaierror:
            return DialFailure.DNS
        except ConnectionRefusedError:
            return DialFailure.REFUSED
        except OSError:
            return DialFailure.NO_ROUTE
        rules = attrs.evolve(self._rules, dial_timeout_s=max(0, give_up_at - trio.current_time()))
        try:
            async with open_link(
                stream, f"{host}:{port}", rules, sink=self._on_frames, heard=self._heard
            ) as link:
                session.link = link
                self._engine.opened(session.epoch, self._at())
                self.kick()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, session, link, name="session writer")
                    if await link.run():
                        session.ended = Reason.LOST
                    nursery.cancel_scope.cancel(reason="link ended")
        except* NoHandshake:
            pass
        return DialFailure.UPGRADE_FAILED

    async def _write(self, session: _Session, link: Link) -> None:
        async for text in session.outgoing:
            try:
                await link.send_text(text)
            except OSError:
                session.end(abort=True, reason="send failed")

    def _heard(self) -> None:
        if self._engine.heard(self._clock.now()):
            self.kick()

    def _on_frames(self, batch: list[bytes]) -> None:
        self._engine.on_frames(batch, self._clock.wall_ns(), self._clock.now())
        self.kick()
