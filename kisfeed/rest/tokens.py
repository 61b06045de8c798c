"""Access tokens: what every REST call is signed with."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from kisfeed.config import Credentials, Secret
from kisfeed.core.tokens import Token, TokenBook, TokenRecord, life
from kisfeed.errors import KisUnreachable, LocalRefusal, NoToken, NotSent
from kisfeed.kis.rest import Kind
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable

    from kisfeed.kis.rest import RestCodes
    from kisfeed.limits import Window
    from kisfeed.rest.keyfile import KeyFile
    from kisfeed.rest.transport import RestTransport
    from kisfeed.seams import Clock, Rng

_log = logging.getLogger(__name__)

PATH: Final = "/oauth2/tokenP"
_LONGEST: Final = 4_096
_LOOK_S: Final = 60.0  # a machine that slept wakes up to a token that is due


@attrs.define(eq=False)
class Tokens:
    """One appkey's access token: one issue at a time, on this whole machine, and none too many.

    The issue runs in :meth:`run`'s task, so that it outlives whoever asked first. A valid token is
    used while its renewal fails. Nothing is asked for until somebody wants a token.

    Attributes:
        issues: how the issues went: ``ok``, ``same``, ``refused``, ``too_soon``, ``unreachable``,
            ``not_sent``; ``adopted`` is another process's.
        renewed: called with every new token, for whoever must keep it out of the logs.
    """

    _rest: RestTransport
    _credentials: Credentials
    _codes: RestCodes
    _file: KeyFile
    _clock: Clock
    _rng: Rng
    _window: Window
    renewed: Callable[[Secret], None]
    issues: Counter[str] = attrs.field(factory=Counter, init=False)
    _book: TokenBook = attrs.field(init=False)
    _used: trio.Event = attrs.field(factory=trio.Event, init=False)
    _nudge: trio.Event = attrs.field(factory=trio.Event, init=False)
    _flight: trio.Event | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        try:
            record = self._read()
        except ValueError as exc:
            # Nothing of it is believed but the worst: that a token was asked for just now.
            self._file.failed = str(exc)
            record = TokenRecord(tries=(0.0,))
        self._book = TokenBook(record, self._window, self._clock.boot())
        self._tell()

    async def get(self, *, patience: float | None = None) -> Token:
        """The token to call with; waits for an issue that is under way or only a minute early.

        Args:
            patience: a token that KIS refused will do now and then, to see whether it meant it;
                a stop because of refusals is waited out until then (``boot`` clock). None: it
                will not do, and a stop is one.

        Raises:
            NoToken: there is none, and the last try failed; says when the next one is made.
        """
        self._used.set()
        probe = patience is not None
        while True:
            now = self._clock.boot()
            if self._book.due_at(now) <= now:
                self._nudge.set()
            token = self._book.usable(now) or (self._book.probe(now) if probe else None)
            if token is not None:
                await trio.lowlevel.checkpoint()
                return token
            stopped, next_probe = self._book.stopped(now), self._book.probe_at()
            hopeless = patience is None or now >= patience or next_probe == float("inf")
            if stopped is not None and hopeless:
                raise NoToken(self._book.why, stopped)
            ahead = [at for at in (next_probe, patience) if at is not None and at > now]
            with trio.move_on_after(min(ahead, default=float("inf")) - now):
                await self._landing()

    def current(self) -> Token | None:
        """The token to call with, if there is one at this moment."""
        return self._book.usable(self._clock.boot())

    @property
    def refused_at(self) -> float:
        """When KIS last refused a token for good (``boot`` clock)."""
        return self._book.refused_at

    def refused(self, token: Token, ago_s: float, *, certain: bool) -> None:
        """KIS did not take *token* in a request sent so long ago.

        It is tried once more, unless *certain*; then a fresh one is asked for, once.
        """
        now = self._clock.boot()
        self._book.refused(token, now - ago_s, now, self._rng.random(), certain=certain)
        self._nudge.set()

    def worked(self, token: Token, ago_s: float) -> None:
        """KIS took *token* in a request sent so long ago."""
        if self._book.worked(token, self._clock.boot() - ago_s):
            self._land()

    async def renew(self, patience_s: float = float("inf")) -> None:
        """A person wants a fresh token: ask for one as soon as KIS's limit allows, and wait.

        Within six hours of an issue KIS gives the same token again.

        Args:
            patience_s: if KIS's limit allows none within this, none is asked for.

        Raises:
            LocalRefusal: it does not.
            NoToken: the issue failed and there is no other; the renewal of a valid token may fail
                and leaves that one in use.
        """
        wait = self._book.issue_in(self._clock.boot())
        if wait > patience_s:
            raise LocalRefusal(
                Phrase("KIS gives one token a minute: the next one in {wait:.0f} s", wait=wait)
            )
        before = self.issues.total()
        self._book.renew()
        self._used.set()
        self._nudge.set()
        while self.issues.total() == before:
            await self._landing()
        await self.get()

    def change(self, window: Window) -> None:
        """Another limit is in force."""
        self._book.change(window, self._clock.boot())

    def status(self) -> dict[str, object]:
        """For ``kisfeed token show``; JSON-able, and never the token itself."""
        token = self.current()
        return {
            **self._book.status(self._clock.boot()),
            "masked": None if token is None else mask(token.value),
            "issues": dict(sorted(self.issues.items())),
            "file": self._file.failed or "ok",
        }

    async def run(self) -> None:
        """Issue and renew, until cancelled."""
        await self._used.wait()
        while True:
            now = self._clock.boot()
            due = self._book.due_at(now)
            if due <= now:
                await self._issue()
                continue
            self._nudge = trio.Event()
            with trio.move_on_after(min(due - now, _LOOK_S)):
                await self._nudge.wait()

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.set()

    async def _landing(self) -> None:
        """Wait for the end of the issue that is under way or comes next, or for better news."""
        if self._flight is None:
            self._flight = trio.Event()
        await self._flight.wait()

    async def _issue(self) -> None:
        try:
            async with self._file.locked():
                await self._issue_alone()
        finally:
            self._land()

    async def _issue_alone(self) -> None:
        book, clock = self._book, self._clock
        with suppress(ValueError):  # spoilt since; it is written anew below
            if book.adopt(self._read(), clock.boot()):
                self.issues["adopted"] += 1
                self._tell()
                return
        if not book.due(clock.boot()) or book.ready(clock.boot()) > clock.boot():
            return  # another process asked in the meantime
        book.begin(clock.boot())
        # On disk before the wire: killed here, the next process knows that one was asked for.
        await self._save()
        result = "unreachable"
        try:
            result = await self._ask()
        except NotSent:
            result = "not_sent"
            book.unsent(clock.boot())
        except KisUnreachable as exc:
            book.failed(str(exc), clock.boot(), self._rng.random())
        finally:
            self.issues[result] += 1
            _log.info("token_issue", extra={"result": result, "why": book.why or None})
        await self._save()

    async def _ask(self) -> str:
        book, clock = self._book, self._clock
        answer = await self._rest.post(
            PATH,
            {
                "grant_type": "client_credentials",
                "appkey": self._credentials.appkey.reveal(),
                "appsecret": self._credentials.appsecret.reveal(),
            },
        )
        verdict = self._codes.verdict(answer.status, answer.body)
        token = answer.body.get("access_token")
        if verdict.kind is not Kind.OK:
            why = f"{verdict.code}: {verdict.text}"
            book.failed(why, clock.boot(), self._rng.random())
            return "too_soon" if verdict.kind is Kind.TOKEN_TOO_SOON else "refused"
        if not isinstance(token, str) or not token or not token.isascii() or len(token) > _LONGEST:
            raise KisUnreachable(f"{PATH}: no access_token in the answer")
        is_new = book.issued(Secret(token), life(answer.body, clock.wall_ns() / 1e9), clock.boot())
        self._tell()
        return "ok" if is_new else "same"

    async def _save(self) -> None:
        await self._file.write(self._book.record(self._clock.boot()).to_map())

    def _read(self) -> TokenRecord:
        found = self._file.read()
        return TokenRecord() if found is None else TokenRecord.from_map(found[0]).aged(found[1])

    def _tell(self) -> None:
        token = self.current()
        if token is not None:
            self.renewed(token.value)


def mask(secret: Secret) -> str:
    """Enough of *secret* to tell two apart by their length, and nothing to use."""
    return f"*** ({len(secret.reveal())})"
