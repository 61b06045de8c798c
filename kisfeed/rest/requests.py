"""Calls to KIS: paced, signed, told apart, tried again where that is safe, and counted."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs
import trio

from kisfeed.core.counters import Histogram
from kisfeed.core.hostbreaker import HostBreaker
from kisfeed.core.pacing import Backoff
from kisfeed.errors import KisBusy, KisRefused, KisUnreachable, NotSent, UnknownOutcome
from kisfeed.kis.rest import Answer, Call, Kind, Verdict
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable

    from kisfeed.config import Credentials, Environment
    from kisfeed.core.limiter import Profile, Ticket
    from kisfeed.core.tokens import Token
    from kisfeed.kis.rest import Endpoints, RestCodes
    from kisfeed.limits import Limits
    from kisfeed.rest.gate import Gate
    from kisfeed.rest.tokens import Tokens
    from kisfeed.rest.transport import RestTransport
    from kisfeed.seams import Clock, Rng

_TRIES: Final = 4  # of a read, where KIS or the network failed
_BUSY_TRIES: Final = 10  # of a read that KIS's rate limit refused: nothing was done
_TOKEN_TRIES: Final = 8  # of a read whose token KIS refused; a stop for all ends it before
_PATIENCE_S: Final = 7.0  # of a read: two probes of a refused token, one of a host that is down
_BACKOFF_S: Final = (0.25, 2.0)
_LEDGER_BUSY: Final = "EGW00215"  # the ledger's own limit, which only its calls meet


def _unchecked() -> None:
    pass


class _HeldBack(Exception):
    """The breaker opened while a call waited for its turn; another one probes."""


@attrs.define(eq=False)
class _Run:
    """One call on its way, over all its tries."""

    call: Call
    fresh: bool = False
    check: Callable[[], None] = _unchecked
    ticket: Ticket | None = None
    probes: bool = False  # with a token that KIS refused before
    came: float | None = None  # when it first found no token
    outage: float | None = None  # until when an open breaker is


@attrs.define(eq=False)
class Kis:
    """One appkey's REST side: the only way from this program to KIS's REST host.

    Attributes:
        endpoints: makes the calls that can be given here.
        limits: what is in force; ``limits.version`` belongs in every order line.
        requests: requests made, by endpoint and what came of them: a :class:`Kind`'s value,
            ``unreachable`` or ``not_sent``.
        latencies: milliseconds from the first byte out to the whole answer, by endpoint.
        calls, failed: calls given to us that are over, and those of them without an answer of
            KIS's about the matter.
        in_flight: requests that are out.
    """

    environment: Environment
    endpoints: Endpoints
    limits: Limits
    tokens: Tokens
    gate: Gate
    _rest: RestTransport
    _credentials: Credentials
    _codes: RestCodes
    _clock: Clock
    _rng: Rng
    breaker: HostBreaker = attrs.field(factory=HostBreaker, init=False)
    requests: Counter[tuple[str, str]] = attrs.field(factory=Counter, init=False)
    latencies: dict[str, Histogram] = attrs.field(factory=dict, init=False)
    calls: int = attrs.field(default=0, init=False)
    failed: int = attrs.field(default=0, init=False)
    in_flight: int = attrs.field(default=0, init=False)

    async def call(self, call: Call) -> Answer:
        """Make a call that changes nothing at KIS and return its answer (``rt_cd`` 0).

        Waits for the rate limit in the call's class, takes a fresh token when KIS wants one, and
        tries again a few times where KIS or the network failed. It waits as long as that takes,
        but for a host or a token of which nothing is to be learnt within seconds: a caller in a
        hurry sets a deadline, and leaving costs nothing.

        Raises:
            KisBusy: its rate limit, again after waiting.
            KisRefused: it said no (``KIOK0560``: nothing found); carries its code.
            KisUnreachable: no readable answer.
            NoToken: there is no access token, and none to be had now.
            LocalRefusal: too many calls of its class wait already.
        """
        assert call.endpoint.method == "GET", "what changes something goes through post_once"
        self.calls += 1
        try:
            verdict, answer = await self._read(_Run(call))
        except BaseException:
            self.failed += 1
            raise
        if verdict.kind is Kind.OK:
            return answer
        if verdict.kind is not Kind.BUSINESS:
            self.failed += 1
        raise _error(verdict)

    async def post_once(self, call: Call, *, until: float, check: Callable[[], None]) -> Answer:
        """Make a call that changes something at KIS, once, on a connection of its own.

        It is never sent twice, whatever happens. A caller that is cancelled while this runs must
        take the outcome as unknown if *check* was called: shield it.

        Args:
            call: a POST.
            until: on the scheduler's clock; what has not begun to be sent by then is not sent.
                The answer to what was sent is waited for past it, as long as the transport's own
                deadlines allow.
            check: called last before the first byte; what it raises travels, and nothing is sent.

        Raises:
            NotSent: provably not a byte left.
            KisRefused: KIS said no before or instead of doing it; carries its code
                (``KisBusy``: its rate limit).
            NoToken: there is no access token; nothing was sent.
            LocalRefusal: too many calls of its class wait already; nothing was sent.
            UnknownOutcome: anything else.
        """
        assert call.endpoint.method == "POST", "reads go through call"
        name = call.endpoint.name
        self.calls += 1
        self.failed += 1  # until it is known better
        with trio.CancelScope(deadline=until) as patience:

            def last() -> None:
                if self._clock.now() > until:
                    raise NotSent(f"{name}: its time was up before it could be sent")
                check()
                patience.deadline = float("inf")  # under way: its answer is waited for

            try:
                verdict, answer = await self._once(_Run(call, fresh=True, check=last))
            except NotSent:
                raise
            except KisUnreachable as exc:
                raise UnknownOutcome(f"{name}: {exc}") from exc
            if verdict.kind is Kind.OK and str(answer.body.get("rt_cd", "")).strip() == "0":
                self.failed -= 1
                return answer
            if verdict.kind in {Kind.OK, Kind.SERVER}:
                raise UnknownOutcome(f"{name}: {verdict.code} {verdict.text}".strip())
            if verdict.kind is Kind.BUSINESS:
                self.failed -= 1
            raise _error(verdict)
        raise NotSent(f"{name}: its time was up before it could be sent")

    def change(self, limits: Limits, profile: Profile) -> None:
        """Other limits are in force."""
        self.limits = limits
        self.gate.limiter.change(limits.rest, limits.spacing, profile, self._clock.now())
        self.gate.pump()
        self.tokens.change(limits.tokens)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand out permits and keep the token fresh, until cancelled; no call ends without it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.gate.run)
            nursery.start_soon(self.tokens.run)
            task_status.started()

    def status(self) -> dict[str, object]:
        """What ``kisfeed status`` shows of the REST side; JSON-able."""
        now = self._clock.now()
        return {
            "calls": self.calls,
            "failed": self.failed,
            "success_rate": round(1 - self.failed / self.calls, 5) if self.calls else None,
            "last_second": self.gate.limiter.last_second(now),
            "in_flight": self.in_flight,
            "shadow": self.gate.shadow,
            "would_refuse": self.gate.would_refuse,
            "limit_version": self.limits.version,
            "limiter": self.gate.limiter.status(now),
            "throttle_wait_ms": self.gate.waits.status(),
            "latency_ms": {name: h.status() for name, h in sorted(self.latencies.items())},
            "breaker": self.breaker.status(now),
            "token": self.tokens.status(),
        }

    async def _read(self, run: _Run) -> tuple[Verdict, Answer]:
        backoff = Backoff(*_BACKOFF_S)
        tries: Counter[str] = Counter()
        while True:
            await self._sit_out(run)
            try:
                verdict, answer = await self._once(run)
            except _HeldBack:
                continue
            except KisUnreachable:
                tries["failed"] += 1
                if tries["failed"] >= _TRIES:
                    raise
                await trio.sleep(backoff.failed(self._rng.random()))
                continue
            if verdict.kind is not Kind.TOKEN_DEAD or not run.probes:
                tries[verdict.kind] += 1
            match verdict.kind:
                case Kind.RATE_LIMITED if tries[verdict.kind] < _BUSY_TRIES:
                    pass  # at the head of its class, at the slower speed
                case Kind.TOKEN_DEAD if tries[verdict.kind] < _TOKEN_TRIES:
                    pass
                case Kind.SERVER if tries[verdict.kind] < _TRIES:
                    await trio.sleep(backoff.failed(self._rng.random()))
                case _:
                    return verdict, answer

    async def _once(self, run: _Run) -> tuple[Verdict, Answer]:
        endpoint = run.call.endpoint
        token, ticket = await self._admit(run)
        probing = False
        if not run.fresh:
            # Orders are not turned away: whoever sends one is told how it went.
            probing = self.breaker.open
            if not self.breaker.enter(self._clock.now()):
                self.gate.cancel(ticket)
                raise _HeldBack
        started: list[float] = []

        def sending() -> None:
            run.check()
            started.append(self._clock.now())
            self.gate.sent(ticket)

        result = "cancelled"
        self.in_flight += 1
        try:
            answer = await self._rest.send(
                endpoint.method,
                run.call.target(),
                self._headers(run.call, token),
                run.call.body(),
                fresh=run.fresh,
                sending=sending,
            )
            verdict = self._codes.verdict(answer.status, answer.body)
            result = verdict.kind.value
        except KisUnreachable:
            result = "unreachable"
            self.breaker.failed(self._clock.now())
            raise
        finally:
            self.in_flight -= 1
            if started:
                took_ms = (self._clock.now() - started[0]) * 1000
                self.latencies.setdefault(endpoint.name, Histogram()).add(took_ms)
            else:
                self.gate.cancel(ticket)
                result = "not_sent"
            if probing and result in {"cancelled", "not_sent"}:
                self.breaker.left()
            self.requests[endpoint.name, result] += 1
        self._learn(run, verdict, token, self._clock.now() - started[0])
        return verdict, answer

    async def _admit(self, run: _Run) -> tuple[Token, Ticket | None]:
        """A token and a permit, both good at the same moment."""
        while True:
            if run.came is None and not run.fresh and self.tokens.current() is None:
                run.came = self._clock.boot()
            patience = None
            if run.came is not None:
                # A call may have waited its turn while an earlier stop came and went.
                patience = max(run.came, self.tokens.refused_at) + _PATIENCE_S
            token = await self.tokens.get(patience=patience)
            run.probes = token is not self.tokens.current()
            ticket = await self.gate.permit(run.call.priority, run.call.endpoint.name, run.ticket)
            run.ticket = ticket
            # The queue was long: another may be in use.
            current = self.tokens.current() or (token if run.probes else None)
            if current is not None:
                return current, ticket
            self.gate.cancel(ticket)

    async def _sit_out(self, run: _Run) -> None:
        """Wait while the breaker is open.

        Raises:
            KisUnreachable: it will be for longer than the call is worth.
        """
        while wait := self.breaker.wait(now := self._clock.now()):
            if run.outage is None:
                run.outage = now + _PATIENCE_S
            if now + wait > run.outage:
                await trio.lowlevel.checkpoint()  # a caller that asks at once again stops nobody
                text = Phrase("KIS does not answer; next try in {wait:.0f} s", wait=wait)
                raise KisUnreachable(text)
            await trio.sleep(wait)

    def _learn(self, run: _Run, verdict: Verdict, token: Token, ago_s: float) -> None:
        now, name = self._clock.now(), run.call.endpoint.name
        if verdict.kind is Kind.SERVER:
            self.breaker.failed(now)
            return
        self.breaker.worked()
        match verdict.kind:
            case Kind.RATE_LIMITED:
                self.gate.limiter.throttled(now, name if verdict.code == _LEDGER_BUSY else None)
                self.gate.pump()
            case Kind.TOKEN_DEAD:
                self.tokens.refused(token, ago_s, certain=run.fresh)
            case Kind.OK | Kind.BUSINESS:
                self.tokens.worked(token, ago_s)
            case _:
                pass

    def _headers(self, call: Call, token: Token) -> dict[str, str]:
        return {
            "authorization": f"Bearer {token.value.reveal()}",
            "appkey": self._credentials.appkey.reveal(),
            "appsecret": self._credentials.appsecret.reveal(),
            "tr_id": call.endpoint.tr_id,
            "tr_cont": "N" if call.more else "",
            "custtype": "P",
        }


def _error(verdict: Verdict) -> KisRefused | KisUnreachable:
    if verdict.kind is Kind.RATE_LIMITED:
        return KisBusy(verdict.code, verdict.text)
    if verdict.kind is Kind.SERVER:
        return KisUnreachable(f"{verdict.code}: {verdict.text}")
    return KisRefused(verdict.code, verdict.text)
