"""The state machine of the one WebSocket session: when to dial, when to wait, when to let go.

Pure: every method takes ``now`` (the scheduler's clock, seconds) and returns what is to be done.
Every change of state is one row of :data:`TRANSITIONS`; a pair that is missing there is a bug and
raises. What KIS blocks keys and addresses for is connecting and disconnecting in loops and
subscribing again and again without looking at the answer: the rules here exist so that no
sequence of faults, restarts and commands can make us look like that.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from kisfeed.core.breaker import Breaker
from kisfeed.core.pacing import Backoff, DialBudget, Hygiene

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kisfeed import config, limits


class State(enum.StrEnum):
    """Where the session is."""

    IDLE = "IDLE"
    CONNECTING = "CONNECTING"
    AUTHENTICATED = "AUTHENTICATED"
    SUBSCRIBED = "SUBSCRIBED"
    STREAMING = "STREAMING"
    DEGRADED = "DEGRADED"
    RECONNECT_BACKOFF = "RECONNECT_BACKOFF"


class Input(enum.StrEnum):
    """What can happen, as the table sees it."""

    DIAL = "dial"  # a session is wanted and every rule allows a dial
    HOLD = "hold"  # a session is wanted and some rule says wait
    STAND_DOWN = "stand down"  # no session is wanted, or it is lent
    KEY_READY = "key ready"
    KEY_FAILED = "key failed"
    KEY_REFUSED = "key refused"
    OPENED = "opened"
    DIAL_FAILED = "dial failed"
    ACKED = "acked"
    SETTLED = "settled"
    UNSETTLED = "unsettled"
    DATA = "data"
    PINGPONG = "pingpong"
    FLOWING = "flowing"  # settled or repaired, and this epoch had data
    SUSPECT = "suspect"
    REPAIRED = "repaired"
    REGISTERING = "registering"  # repaired while registrations are still out
    OVERDUE = "overdue"  # the state's deadline
    LOST = "lost"
    IN_USE = "in use"
    LINK_DEAD = "link dead"
    CLOSE = "close"  # a deliberate close, to dial again


class Reason(enum.StrEnum):
    """Why the state changed, or what RECONNECT_BACKOFF waits for."""

    WANTED = "wanted"
    RETRY = "retry"
    OPENED = "opened"
    SETTLED = "settled"
    UNSETTLED = "unsettled"
    DATA = "data"
    REPAIRED = "repaired"
    # no session wanted
    NO_INTEREST = "no_interest"
    STOPPED = "stopped"
    RELEASED = "released"
    CLOSED_HOURS = "closed_hours"
    # the session ended
    LOST = "lost"
    RESET = "reset"
    LINK_DEAD = "link_dead"
    PROTOCOL = "protocol"
    RESYNC = "resync"
    # a dial came to nothing
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    UPGRADE_FAILED = "upgrade_failed"
    NO_ROUTE = "no_route"
    DNS = "dns"
    KEY_UNAVAILABLE = "key_unavailable"
    # a rule says wait
    BUDGET = "budget"
    BREAKER = "breaker"
    IN_USE = "in_use"
    UNCLOSED = "unclosed"
    KEY_REJECTED = "key_rejected"
    MIN_LIFETIME = "min_lifetime"
    # the session lives, but
    LINK_SILENT = "link_silent"
    ACKS_MISSING = "acks_missing"
    NO_DATA = "no_data"
    FEED_STALLED = "feed_stalled"
    SUSPENDED = "suspended"
    BARREN_LOOPS = "barren_loops"


class DialFailure(enum.StrEnum):
    """How a dial came to nothing. Only what reached TCP is charged: KIS has seen the others not."""

    NO_ROUTE = "no_route"
    DNS = "dns"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    UPGRADE_FAILED = "upgrade_failed"

    @property
    def reached_tcp(self) -> bool:
        """A TCP connection stood, so KIS has counted it."""
        return self is DialFailure.UPGRADE_FAILED

    @property
    def local(self) -> bool:
        """The fault lies in this machine's own network; trying again soon costs nobody anything."""
        return self in (DialFailure.NO_ROUTE, DialFailure.DNS)


class IllegalInput(AssertionError):
    """Something happened that cannot happen in this state: a bug, never a fault of the peer's."""


_LIVE: Final = (State.AUTHENTICATED, State.SUBSCRIBED, State.STREAMING, State.DEGRADED)

#: Every legal change of state, self-loops included. A missing pair is a bug.
TRANSITIONS: Final[Mapping[tuple[State, Input], State]] = {
    (State.IDLE, Input.DIAL): State.CONNECTING,
    (State.IDLE, Input.HOLD): State.RECONNECT_BACKOFF,
    (State.IDLE, Input.STAND_DOWN): State.IDLE,
    (State.IDLE, Input.KEY_READY): State.IDLE,  # asked for before we stood down
    (State.IDLE, Input.KEY_FAILED): State.IDLE,
    (State.CONNECTING, Input.STAND_DOWN): State.IDLE,
    (State.CONNECTING, Input.KEY_READY): State.CONNECTING,
    (State.CONNECTING, Input.KEY_FAILED): State.RECONNECT_BACKOFF,
    (State.CONNECTING, Input.OPENED): State.AUTHENTICATED,
    (State.CONNECTING, Input.DIAL_FAILED): State.RECONNECT_BACKOFF,
    (State.CONNECTING, Input.LOST): State.RECONNECT_BACKOFF,
    (State.CONNECTING, Input.OVERDUE): State.RECONNECT_BACKOFF,
    (State.AUTHENTICATED, Input.SETTLED): State.SUBSCRIBED,
    (State.AUTHENTICATED, Input.FLOWING): State.STREAMING,
    (State.AUTHENTICATED, Input.UNSETTLED): State.AUTHENTICATED,
    (State.AUTHENTICATED, Input.DATA): State.AUTHENTICATED,
    (State.AUTHENTICATED, Input.OVERDUE): State.DEGRADED,
    (State.SUBSCRIBED, Input.SETTLED): State.SUBSCRIBED,
    (State.SUBSCRIBED, Input.UNSETTLED): State.AUTHENTICATED,
    (State.SUBSCRIBED, Input.DATA): State.STREAMING,
    (State.SUBSCRIBED, Input.OVERDUE): State.DEGRADED,
    (State.STREAMING, Input.SETTLED): State.STREAMING,
    (State.STREAMING, Input.UNSETTLED): State.STREAMING,
    (State.STREAMING, Input.DATA): State.STREAMING,
    (State.DEGRADED, Input.SETTLED): State.DEGRADED,
    (State.DEGRADED, Input.UNSETTLED): State.DEGRADED,
    (State.DEGRADED, Input.DATA): State.DEGRADED,
    (State.DEGRADED, Input.FLOWING): State.STREAMING,
    (State.DEGRADED, Input.REPAIRED): State.SUBSCRIBED,
    (State.DEGRADED, Input.REGISTERING): State.AUTHENTICATED,
    (State.DEGRADED, Input.OVERDUE): State.DEGRADED,
    **{(state, Input.ACKED): state for state in _LIVE},
    **{(state, Input.PINGPONG): state for state in _LIVE},
    **{(state, Input.KEY_READY): state for state in _LIVE},
    **{(state, Input.KEY_FAILED): state for state in _LIVE},
    **{(state, Input.KEY_REFUSED): state for state in _LIVE},
    **{(state, Input.SUSPECT): State.DEGRADED for state in _LIVE},
    **{(state, Input.LOST): State.RECONNECT_BACKOFF for state in _LIVE},
    **{(state, Input.IN_USE): State.RECONNECT_BACKOFF for state in _LIVE},
    **{(state, Input.LINK_DEAD): State.RECONNECT_BACKOFF for state in _LIVE},
    **{(state, Input.CLOSE): State.RECONNECT_BACKOFF for state in _LIVE},
    **{(state, Input.STAND_DOWN): State.IDLE for state in _LIVE},
    (State.RECONNECT_BACKOFF, Input.DIAL): State.CONNECTING,
    (State.RECONNECT_BACKOFF, Input.HOLD): State.RECONNECT_BACKOFF,
    (State.RECONNECT_BACKOFF, Input.STAND_DOWN): State.IDLE,
    (State.RECONNECT_BACKOFF, Input.KEY_READY): State.RECONNECT_BACKOFF,
    (State.RECONNECT_BACKOFF, Input.KEY_FAILED): State.RECONNECT_BACKOFF,
}


def diagram() -> str:
    """The table as a Mermaid state diagram; inputs that change nothing are left out."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (old, what), new in TRANSITIONS.items():
        if old is not new:
            arrows.setdefault((old, new), []).append(what.value)
    lines = [
        f"    {old} --> {new}: {', '.join(arrows[old, new])}"
        for old in State
        for new in State
        if (old, new) in arrows
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.IDLE}", *lines]) + "\n"


@attrs.frozen
class Change:
    """The state changed, or the reason for which RECONNECT_BACKOFF waits.

    Attributes:
        old: the state before.
        new: the state after; equal to *old* where only the reason changed, or where DEGRADED asks
            for another probe.
        reason: why.
        at: the scheduler's clock.
        epoch: the session's number; of the last one where none lives.
    """

    old: State
    new: State
    reason: Reason
    at: float
    epoch: int


@attrs.frozen
class FetchKey:
    """Get an approval key and answer with ``key_ready`` or ``key_failed``.

    Attributes:
        fresh: a key that was used before will not do.
    """

    fresh: bool


@attrs.frozen
class Dial:
    """Dial; answer with ``opened`` or ``dial_failed`` of this *epoch*."""

    epoch: int


@attrs.frozen
class Close:
    """Close this session, or give up this dial.

    Attributes:
        epoch: which.
        reason: why.
        abort: no close frame, the link is dead; otherwise a close frame with a short limit.
    """

    epoch: int
    reason: Reason
    abort: bool


@attrs.frozen
class SaveHygiene:
    """Put this on disk before performing the outputs that follow it."""

    record: Hygiene


Output: TypeAlias = Change | FetchKey | Dial | Close | SaveHygiene

#: An end after which KIS may think that the session still stands.
_UNCLOSED: Final = (Reason.LINK_DEAD, Reason.RESET, Reason.SUSPENDED)


@attrs.define(eq=False)
class _Session:
    """What is known of one dial and the session that came of it."""

    dialled_at: float
    opened_at: float = math.inf
    acked: bool = False
    had_data: bool = False
    had_pingpong: bool = False
    settled: bool = False
    proved: bool = False
    key_refused: bool = False
    heard_at: float = -math.inf
    quiet_probes: int = 0
    rekey_at: float = math.inf  # when to ask for a key again, because of a refused one
    rekeys: int = 0
    close_at: float = math.inf  # a deliberate close waits for the minimum lifetime
    close_reason: Reason = Reason.RESYNC
    close_to_idle: bool = False


class Connection:
    """The one session's state machine.

    The caller performs the returned outputs in their order, calls :meth:`timer` at
    :meth:`next_deadline`, and reports what came of a :class:`Dial` with the epoch it carries: what
    is late, of an epoch that is over, is ignored. Methods without an epoch speak of the live
    session and may only be called while :attr:`live`.

    Args:
        rules: ``[session]`` of the configuration.
        limits: the limits in force.
        jitter: uniform in [0, 1).
        hygiene: what the last process left, already :meth:`~kisfeed.core.pacing.Hygiene.aged` to
            this moment.
        now: this moment.
    """

    def __init__(
        self,
        rules: config.Session,
        limits: limits.Limits,
        jitter: Callable[[], float],
        hygiene: Hygiene,
        now: float,
    ) -> None:
        self._rules = rules
        self._jitter = jitter
        self.state = State.IDLE
        self.reason = Reason.NO_INTEREST
        #: When the state was entered.
        self.since = now
        #: Number of the last dial; rises with every one.
        self.epoch = 0
        #: While waiting: when the next dial may be made; ``inf`` where no time can be told.
        self.next_try: float | None = None

        self._wanted = False
        self._released_until = -math.inf
        self._market_open = True
        self._next_open: float | None = None
        self._ignore_hours = True  # the first dial, and one by override, may be made at any hour

        self._backoff = Backoff(rules.backoff_base_s, rules.backoff_cap_s)
        self._local_backoff = Backoff(rules.local_backoff_base_s, rules.local_backoff_cap_s)
        self._key_backoff = Backoff(rules.approval_retry_s, rules.backoff_cap_s)
        self._retry_at = -math.inf
        self._retry_reason = Reason.RETRY

        self._key_at: float | None = None
        self._key_must_be_fresh = False
        self._fetching = False
        self._reissued_in: int | None = None  # epoch in which a refused key was replaced

        self._session: _Session | None = None  # dialled or live
        self._asked_at = -math.inf  # when DEGRADED last asked for a probe
        self._gone_at = -math.inf  # from when on a closed socket is gone for certain
        self._deadline = math.inf
        self._restore(limits, hygiene, now)

    def _restore(self, limits: limits.Limits, hygiene: Hygiene, now: float) -> None:
        rules = self._rules
        dials = list(hygiene.dials)
        if hygiene.dialling and dials:
            # Nobody knows when that dial reached KIS, only that it was given up by then.
            dials[-1] = max(0.0, dials[-1] - rules.dial_timeout_s)
        self._budget = DialBudget(limits, rules, dials, now)
        self._breaker = Breaker(
            pauses_s=rules.breaker_pauses_s,
            young_to_trip=rules.young_sessions_to_trip,
            loops_to_trip=rules.barren_loops_to_trip,
            record=hygiene.breaker,
            now=now,
        )
        self._hold = hygiene.hold_s
        self._in_use = hygiene.in_use
        self._in_use_at = now - hygiene.in_use_s
        self._in_use_hurry = False
        self._unclosed_at = None if hygiene.unclosed_s is None else now - hygiene.unclosed_s
        self._restored = hygiene.open
        if hygiene.open:
            self._unclosed_at = now
            if not hygiene.proved:
                # How long it lived nobody can tell: count what KIS may have counted.
                self._breaker.died_young(now)
        self._young_until = -math.inf
        if self._breaker.young and dials:
            self._young_until = now - dials[-1] + rules.min_lifetime_s

    # what is wanted

    @property
    def live(self) -> bool:
        """A session stands: AUTHENTICATED, SUBSCRIBED, STREAMING or DEGRADED."""
        return self.state in _LIVE

    def want(self, now: float) -> list[Output]:
        """There is interest, or a pinned topic; calling it again changes nothing."""
        out: list[Output] = []
        if self._restored:
            # What the last process's end means must not be judged anew by every restart.
            self._restored = False
            out.append(SaveHygiene(self._record(now)))
        self._wanted = True
        session = self._session
        if session is not None and session.close_reason in (
            Reason.NO_INTEREST,
            Reason.CLOSED_HOURS,
        ):
            self._cancel_close(session)
        if self.state is State.IDLE:
            self._go(now, out)
        return out

    def unwant(self, now: float, reason: Reason) -> list[Output]:
        """No session is wanted any more.

        Args:
            now: the scheduler's clock.
            reason: ``STOPPED`` closes at once: the process ends. ``CLOSED_HOURS`` closes when the
                session has lived its minimum. ``NO_INTEREST`` does the same outside hours only;
                inside hours a session that stands stays.
        """
        out: list[Output] = []
        self._wanted = False
        if reason is Reason.STOPPED:
            self._stop(reason, now, out)
        elif self.live:
            if reason is Reason.CLOSED_HOURS or not self._market_open:
                self._plan_close(reason, now, out, to_idle=True)
        elif self._session is None and self.state is not State.IDLE:
            self._step(Input.STAND_DOWN, reason, now, out)
        return out

    def release(self, for_s: float, now: float) -> list[Output]:
        """Lend the session to another program: no session for *for_s* seconds.

        A session that stands is closed once it has lived its minimum.
        """
        out: list[Output] = []
        self._released_until = now + for_s
        if self.live:
            # The loan begins when there is something to lend.
            closes = self._current().opened_at + self._rules.min_lifetime_s
            self._released_until = max(now, closes) + for_s
            self._plan_close(Reason.RELEASED, now, out, to_idle=True)
        elif self._session is None:
            self._step(Input.STAND_DOWN, Reason.RELEASED, now, out)
        return out

    def override(self, now: float) -> list[Output]:
        """A person wants a session now: past breaker, backoff and hours, never past the budget.

        A minimum lifetime still binds, and so does the first wait after OPSP8996. A session that
        stands is reconnected, as by :meth:`resync`; one that is being lent is wanted back.
        """
        out: list[Output] = []
        lent = now < self._released_until
        self._released_until = -math.inf
        if self.live:
            session = self._current()
            if lent and session.close_reason is Reason.RELEASED:
                self._cancel_close(session)
                return out
            return self.resync(now)
        if self._session is None:
            self._breaker.override()
            self._retry_at = -math.inf
            self._ignore_hours = True
            self._in_use_hurry = True
            if self.state is not State.CONNECTING:
                self._go(now, out)
        return out

    def market(self, is_open: bool, next_open: float | None, now: float) -> list[Output]:
        """Whether a venue of a wanted topic is open, and when the next one opens.

        Args:
            is_open: one is.
            next_open: when the next session of a wanted venue starts, on the scheduler's clock;
                None if it is not known, and then a lost session stays lost until this is called
                again.
            now: the scheduler's clock.
        """
        out: list[Output] = []
        if is_open == self._market_open and _about_equal(next_open, self._next_open):
            return out
        self._market_open, self._next_open = is_open, next_open
        if self.state is State.SUBSCRIBED:
            self._deadline = self._state_deadline(now)
        elif self.state is State.RECONNECT_BACKOFF:
            self._go(now, out)
        if self.live and not self._wanted:
            session = self._current()
            if is_open and session.close_reason is Reason.NO_INTEREST:
                self._cancel_close(session)
            elif not is_open:
                self._plan_close(Reason.NO_INTEREST, now, out, to_idle=True)
        return out

    # the approval key

    def key_ready(self, now: float) -> list[Output]:
        """The approval key is in hand."""
        out: list[Output] = []
        self._key_at = now
        self._key_must_be_fresh = False
        self._fetching = False
        self._key_backoff.reset()
        self._step(Input.KEY_READY, self.reason, now, out)
        if self.state is State.CONNECTING and self._session is None:
            self._charge(now, out)
        return out

    def key_failed(self, now: float, *, refused: bool) -> list[Output]:
        """No approval key: no dial, and nothing is charged.

        Args:
            now: the scheduler's clock.
            refused: KIS said no, rather than nothing; asking again soon cannot help.
        """
        out: list[Output] = []
        self._fetching = False
        pause = self._key_backoff.failed(self._jitter())
        if refused:
            pause = max(pause, self._rules.breaker_pauses_s[0])
        if self.live:
            self._current().rekey_at = now + pause
        if self.state is State.CONNECTING and self._session is None:
            if refused:
                self._ignore_hours = False
            self._retry_at = now + pause
            self._retry_reason = Reason.KEY_UNAVAILABLE
            self._fall(Input.KEY_FAILED, Reason.KEY_UNAVAILABLE, now, out)
        elif self.state is not State.CONNECTING:
            self._step(Input.KEY_FAILED, self.reason, now, out)
        return out

    def key_refused(self, now: float) -> list[Output]:
        """KIS refused the approval key in answer to a registration (OPSP0011 and its like).

        The session is kept and one fresh key is taken: the caller repeats the registration when
        it is ready. A session that has had an ACK or data is never closed for this: if the fresh
        key is refused too, another is taken after the breaker's pauses. One that has not is closed
        after its minimum lifetime then, and dialled once more with it; refused there, the breaker
        opens.
        """
        out: list[Output] = []
        session = self._current()
        self._step(Input.KEY_REFUSED, self.reason, now, out)
        if self._reissued_in is None:
            session.key_refused = True
            self._reissued_in = self.epoch
            self._key_at = None
            self._key_must_be_fresh = True
            self._fetch(out)
        elif not (session.acked or session.had_data or self._fetching):
            session.key_refused = True
            if session.close_reason is Reason.KEY_REJECTED:
                return out
            if self.epoch > self._reissued_in:
                self._breaker.key_refused(now)
                self._key_at = None
                self._key_must_be_fresh = True
                out.append(SaveHygiene(self._record(now)))
            self._plan_close(Reason.KEY_REJECTED, now, out)
        elif not self._fetching and math.isinf(session.rekey_at):
            pauses = self._rules.breaker_pauses_s
            session.rekey_at = now + pauses[min(session.rekeys, len(pauses) - 1)]
            session.rekeys += 1
        return out

    # the dial

    def opened(self, epoch: int, now: float) -> list[Output]:
        """The WebSocket of *epoch* is open: registrations may go out."""
        out: list[Output] = []
        session = self._session
        if epoch != self.epoch or session is None or self.state is not State.CONNECTING:
            return out
        self._budget.settle(now)
        self._local_backoff.reset()
        session.opened_at = now
        self._step(Input.OPENED, Reason.OPENED, now, out)
        if now < self._released_until:
            self._plan_close(Reason.RELEASED, now, out, to_idle=True)
        elif not self._wanted and not self._market_open:
            self._plan_close(Reason.NO_INTEREST, now, out, to_idle=True)
        return out

    def dial_failed(self, epoch: int, how: DialFailure, now: float) -> list[Output]:
        """The dial of *epoch* came to nothing."""
        out: list[Output] = []
        if epoch != self.epoch or self._session is None or self.state is not State.CONNECTING:
            return out
        if how.reached_tcp:
            self._died(Input.DIAL_FAILED, Reason(how.value), now, out)
            return out
        self._budget.refund()
        self._breaker.undialled()
        self._session = None
        if how.local:
            pause = self._local_backoff.failed(self._jitter())
        else:
            pause = self._backoff.failed(self._jitter())
            self._ignore_hours = False
        self._retry_at = now + pause
        self._retry_reason = Reason(how.value)
        self._fall(Input.DIAL_FAILED, Reason(how.value), now, out, save=True)
        return out

    def lost(self, epoch: int, how: Reason, now: float) -> list[Output]:
        """The session of *epoch* ended, and not by our close.

        Args:
            epoch: of the :class:`Dial`.
            how: ``LOST`` if the peer closed it; ``RESET`` or ``LINK_DEAD`` if KIS may think that it
                still stands, and then the next dial waits until KIS has forgotten it.
            now: the scheduler's clock.
        """
        out: list[Output] = []
        session = self._session
        if epoch != self.epoch or session is None:
            return out
        if session.key_refused and not (session.acked or session.had_data):
            how = Reason.KEY_REJECTED
        self._died(Input.LOST, how, now, out)
        return out

    # the live session

    def acked(self, now: float) -> list[Output]:
        """KIS accepted a registration: the key is good and the appkey is ours."""
        out: list[Output] = []
        session = self._current()
        self._step(Input.ACKED, self.reason, now, out)
        session.heard_at = now
        if not session.acked:
            session.acked = True
            self._reissued_in = None
            if session.close_reason is Reason.KEY_REJECTED:
                self._cancel_close(session)
            if self._in_use and self._unclosed_at is not None:
                held = session.dialled_at - self._unclosed_at
                self._hold = min(held, self._longest_hold())
            if self._in_use or self._unclosed_at is not None:
                self._in_use = 0
                self._unclosed_at = None
                out.append(SaveHygiene(self._record(now)))
        self._prove(session, now, out)
        return out

    def settled(self, now: float) -> list[Output]:
        """Every wanted registration is acknowledged, or refused for good."""
        out: list[Output] = []
        session = self._current()
        session.settled = True
        if self.state is State.AUTHENTICATED and session.had_data:
            self._step(Input.FLOWING, Reason.DATA, now, out)
        else:
            self._step(Input.SETTLED, Reason.SETTLED, now, out)
            if self.state is State.DEGRADED and self.reason is Reason.ACKS_MISSING:
                out += self.repaired(now)
        return out

    def unsettled(self, now: float) -> list[Output]:
        """A registration is wanted that is not acknowledged yet."""
        out: list[Output] = []
        self._current().settled = False
        self._step(Input.UNSETTLED, Reason.UNSETTLED, now, out)
        return out

    def data(self, now: float) -> list[Output]:
        """Data came. Called for every read; cheap once the session is proved."""
        out: list[Output] = []
        session = self._current()
        if session.proved and self.state is State.STREAMING and not self._breaker.loops:
            return out
        session.had_data = True
        session.heard_at = now
        self._breaker.data()
        self._step(Input.DATA, Reason.DATA, now, out)
        if self.state is State.DEGRADED and self.reason is Reason.NO_DATA:
            out += self.repaired(now)
        self._prove(session, now, out)
        return out

    def pingpong(self, now: float) -> list[Output]:
        """A PINGPONG came."""
        out: list[Output] = []
        session = self._current()
        session.had_pingpong = True
        session.heard_at = now
        self._step(Input.PINGPONG, self.reason, now, out)
        self._prove(session, now, out)
        return out

    def degraded(self, reason: Reason, now: float) -> list[Output]:
        """Something is wrong that may be repaired inside the session; the caller probes."""
        out: list[Output] = []
        self._step(Input.SUSPECT, reason, now, out)
        return out

    def repaired(self, now: float) -> list[Output]:
        """What was wrong is right again; nothing happens unless DEGRADED.

        Back to STREAMING if this epoch had data, else to SUBSCRIBED, or to AUTHENTICATED while
        registrations are still out.
        """
        out: list[Output] = []
        session = self._current()
        if self.state is not State.DEGRADED:
            return out
        if self.reason is Reason.NO_DATA and not session.had_data:
            session.quiet_probes += 1
        if session.had_data:
            self._step(Input.FLOWING, Reason.REPAIRED, now, out)
        elif session.settled:
            self._step(Input.REPAIRED, Reason.REPAIRED, now, out)
        else:
            self._step(Input.REGISTERING, Reason.REPAIRED, now, out)
        return out

    def in_use(self, now: float) -> list[Output]:
        """OPSP8996: another session holds the appkey. Close, wait, keep the key."""
        out: list[Output] = []
        session = self._current()
        self._prove(session, now, out)
        self._breaker.in_use(now, young=now - session.opened_at < self._rules.min_lifetime_s)
        self._in_use += 1
        self._in_use_at = now
        self._end(Input.IN_USE, Reason.IN_USE, now, out, close=True)
        return out

    def link_dead(self, now: float) -> list[Output]:
        """The link is judged dead: abort, without a close frame nobody would read."""
        out: list[Output] = []
        self._died(Input.LINK_DEAD, Reason.LINK_DEAD, now, out)
        return out

    def resync(self, now: float, reason: Reason = Reason.RESYNC) -> list[Output]:
        """Reconnect on purpose: the only way to learn what the server holds.

        Charged like every dial. The session that stands is kept until it has lived its minimum
        and the budget has room for the next one.
        """
        out: list[Output] = []
        self._current()
        self._plan_close(reason, now, out)
        return out

    def looped(self, now: float) -> list[Output]:
        """A registration was given up and taken again, and still brought no data.

        KIS takes subscribing and unsubscribing without end for abuse; too many of these open the
        breaker, and the session is closed once it has lived its minimum.
        """
        out: list[Output] = []
        self._current()
        if self._breaker.looped(now):
            out.append(SaveHygiene(self._record(now)))
            self._plan_close(Reason.BARREN_LOOPS, now, out)
        return out

    def suspended(self, seconds: float, now: float) -> list[Output]:
        """The machine slept *seconds* that the scheduler's clock did not see.

        Pauses and windows went on meanwhile. A session that stands is suspect at once.
        """
        out: list[Output] = []
        self._budget.suspended(seconds)
        self._breaker.suspended(seconds)
        self._retry_at -= seconds
        self._young_until -= seconds
        self._gone_at -= seconds
        self._in_use_at -= seconds
        self._released_until -= seconds
        if self._key_at is not None:
            self._key_at -= seconds
        if self._unclosed_at is not None:
            self._unclosed_at -= seconds
        if self.live:
            self._current().rekey_at -= seconds
            self._step(Input.SUSPECT, Reason.SUSPENDED, now, out)
        elif self.state is State.RECONNECT_BACKOFF:
            self._go(now, out)
        elif self.state is State.IDLE:
            self._deadline = self._state_deadline(now)
            if self._wanted and now >= self._released_until:
                self._go(now, out)  # what was lent is due while the machine slept
        return out

    # time

    def next_deadline(self) -> float:
        """When :meth:`timer` is to be called; ``inf`` if nothing is waited for."""
        session = self._session
        if session is None:
            return self._deadline
        return min(self._deadline, session.close_at, session.rekey_at)

    def timer(self, now: float) -> list[Output]:
        """The time of :meth:`next_deadline` has come; too early a call does nothing."""
        out: list[Output] = []
        session = self._session
        if session is not None and self.live and now >= session.close_at:
            self._close_if_due(now, out)
        elif session is not None and now >= session.rekey_at:
            session.rekey_at = math.inf
            self._key_at = None
            self._key_must_be_fresh = True
            self._fetch(out)
        elif now >= self._deadline:
            self._overdue(now, out)
        return out

    def _overdue(self, now: float, out: list[Output]) -> None:
        match self.state:
            case State.IDLE | State.RECONNECT_BACKOFF:
                self._go(now, out)
            case State.CONNECTING if self._session is None:
                self._fetching = False
                self._retry_at = now + self._key_backoff.failed(self._jitter())
                self._retry_reason = Reason.KEY_UNAVAILABLE
                self._fall(Input.OVERDUE, Reason.KEY_UNAVAILABLE, now, out)
            case State.CONNECTING:
                self._died(Input.OVERDUE, Reason.TIMED_OUT, now, out)
            case State.AUTHENTICATED:
                self._step(Input.OVERDUE, Reason.ACKS_MISSING, now, out)
            case State.SUBSCRIBED:
                self._step(Input.OVERDUE, Reason.NO_DATA, now, out)
            case State.STREAMING:
                raise IllegalInput("STREAMING has no deadline")
            case State.DEGRADED:
                self._still_degraded(now, out)

    def _still_degraded(self, now: float, out: list[Output]) -> None:
        session = self._current()
        if session.heard_at < self._asked_at:
            self._died(Input.LINK_DEAD, Reason.LINK_DEAD, now, out)
            return
        if not session.settled:
            self._plan_close(Reason.RESYNC, now, out)
            if not self.live:
                return
        # Data silence alone never kills a session: ask for another probe.
        self._step(Input.OVERDUE, self.reason, now, out)
        self._asked_at = now
        out.append(Change(self.state, self.state, self.reason, now, self.epoch))

    # saying how it is

    def status(self, now: float) -> dict[str, object]:
        """State, reason, next try, budget, breaker and in_use; JSON-able, times in seconds."""
        session = self._session
        wait = self.next_try
        in_use: dict[str, object] | None = None
        if self._in_use:
            in_use = {
                "holder": "own" if self._unclosed_at is not None else "stranger",
                "times": self._in_use,
                "ago_s": round(now - self._in_use_at, 1),
            }
        return {
            "state": self.state.value,
            "reason": self.reason.value,
            "for_s": round(now - self.since, 1),
            "epoch": self.epoch,
            "next_try_in_s": (
                None if wait is None or math.isinf(wait) else round(max(0.0, wait - now), 1)
            ),
            "session_age_s": (
                round(now - session.opened_at, 1) if session is not None and self.live else None
            ),
            "closing": (
                {
                    "reason": session.close_reason.value,
                    "in_s": round(max(0.0, session.close_at - now), 1),
                }
                if session is not None and not math.isinf(session.close_at)
                else None
            ),
            "lent_for_s": (
                round(self._released_until - now, 1) if now < self._released_until else None
            ),
            "budget": self._budget.left(now),
            "breaker": self._breaker.status(now),
            "in_use": in_use,
            "hold_s": self._hold_s(),
            "backoff_failures": self._backoff.failures,
        }

    # the one place where the state changes

    def _step(self, what: Input, reason: Reason, now: float, out: list[Output]) -> None:
        old = self.state
        try:
            new = TRANSITIONS[old, what]
        except KeyError:
            raise IllegalInput(f"{what.value!r} while {old}") from None
        if new is old and (what not in _TELLS_REASON or reason is self.reason):
            if what in _RENEWS_DEADLINE:
                self._deadline = self._state_deadline(now)
            return
        self.reason = reason
        if new is not old:
            self.state = new
            self.since = now
        self._asked_at = now
        self._deadline = self._state_deadline(now)
        if new is not State.RECONNECT_BACKOFF:
            self.next_try = None
        out.append(Change(old, new, reason, now, self.epoch))

    def _state_deadline(self, now: float) -> float:
        rules = self._rules
        match self.state:
            case State.IDLE:
                lent = self._wanted and now < self._released_until
                return self._released_until if lent else math.inf
            case State.CONNECTING if self._session is None:
                return now + 3 * rules.dial_timeout_s
            case State.CONNECTING:
                return now + rules.dial_timeout_s + rules.close_timeout_s
            case State.AUTHENTICATED:
                return now + rules.settle_timeout_s
            case State.SUBSCRIBED:
                if not self._market_open:
                    return math.inf
                # A quiet market is probed ever more rarely.
                return now + rules.first_data_timeout_s * (
                    1 << min(self._current().quiet_probes, 4)
                )
            case State.STREAMING:
                return math.inf
            case State.DEGRADED:
                return now + rules.quiet_dead_s - rules.quiet_suspect_s
            case State.RECONNECT_BACKOFF:
                return now if self.next_try is None else self.next_try

    # dialling and waiting

    def _go(self, now: float, out: list[Output]) -> None:
        """From IDLE or RECONNECT_BACKOFF: dial, wait, or stand down."""
        if not self._wanted or now < self._released_until:
            reason = Reason.RELEASED if now < self._released_until else Reason.NO_INTEREST
            self._step(Input.STAND_DOWN, reason, now, out)
            return
        until, reason = self._gate(now)
        if until > now:
            self.next_try = until
            self._step(Input.HOLD, reason, now, out)
            self._deadline = until
            return
        first = self.state is State.IDLE
        self._step(Input.DIAL, Reason.WANTED if first else Reason.RETRY, now, out)
        key_is_old = (
            self._key_at is not None and now - self._key_at >= self._rules.approval_key_age_s
        )
        if self._key_at is None or key_is_old:
            self._key_at = None
            self._key_must_be_fresh |= key_is_old
            self._fetch(out)
        else:
            self._charge(now, out)

    def _gate(self, now: float) -> tuple[float, Reason]:
        """The moment from which a dial is allowed, and the rule that binds longest."""
        gates = [
            (self._retry_at, self._retry_reason),
            (self._gone_at, self._retry_reason),  # KIS never sees two sessions of ours
            (self._young_until, Reason.MIN_LIFETIME),
            (self._hold_until(), Reason.UNCLOSED),
            (self._in_use_until(), Reason.IN_USE),
            (self._breaker.until, Reason.BREAKER),
            (self._budget.ready(now), Reason.BUDGET),
        ]
        if not (self._market_open or self._ignore_hours or self._in_use):
            opens = math.inf if self._next_open is None else self._next_open
            gates.append((opens - self._rules.before_open_s, Reason.CLOSED_HOURS))
        return max(gates, key=lambda gate: gate[0])

    def _hold_s(self) -> float:
        return self._rules.in_use_hold_s if self._hold is None else self._hold

    def _longest_hold(self) -> float:
        return self._rules.in_use_waits_s[min(1, len(self._rules.in_use_waits_s) - 1)]

    def _hold_until(self) -> float:
        if self._unclosed_at is None or self._in_use:
            return -math.inf
        return self._unclosed_at + self._hold_s()

    def _in_use_until(self) -> float:
        if not self._in_use:
            return -math.inf
        rules = self._rules
        waits = rules.in_use_waits_s
        wait = waits[0] if self._in_use_hurry else waits[min(self._in_use, len(waits)) - 1]
        until = self._in_use_at + wait
        if self._breaker.young >= rules.young_sessions_to_trip and not self._in_use_hurry:
            until = max(until, self._in_use_at + rules.breaker_pauses_s[0])
        if self._market_open or self._in_use < len(waits) or self._in_use_hurry:
            return until
        hourly = self._in_use_at + rules.in_use_closed_wait_s
        if self._next_open is not None:
            hourly = min(hourly, self._next_open - rules.in_use_before_open_s)
        return max(until, hourly)

    def _fetch(self, out: list[Output]) -> None:
        if not self._fetching:
            self._fetching = True
            out.append(FetchKey(self._key_must_be_fresh))

    def _charge(self, now: float, out: list[Output]) -> None:
        self.epoch += 1
        self._breaker.dialled(now)
        self._budget.charge(now)
        self._in_use_hurry = False
        self._session = _Session(dialled_at=now)
        self._deadline = self._state_deadline(now)
        out += [SaveHygiene(self._record(now)), Dial(self.epoch)]

    # the end of a session

    def _died(self, what: Input, reason: Reason, now: float, out: list[Output]) -> None:
        session = self._current()
        self._prove(session, now, out)
        if now - session.opened_at < self._rules.min_lifetime_s:
            self._breaker.died_young(now)
            self._young_until = session.dialled_at + self._rules.min_lifetime_s
        elif not session.proved:
            self._breaker.ended_unproved(now)
        abort = what in (Input.LINK_DEAD, Input.OVERDUE)
        self._end(what, reason, now, out, close=abort, abort=abort)

    def _end(
        self,
        what: Input,
        reason: Reason,
        now: float,
        out: list[Output],
        *,
        close: bool,
        abort: bool = False,
    ) -> None:
        """Fall into RECONNECT_BACKOFF: the session is over, and every rule has been told."""
        if self.live and reason in _UNCLOSED:
            self._unclosed_at = now
        self._budget.settle(now)
        self._session = None
        self._ignore_hours = False
        self._retry_at = now + self._backoff.failed(self._jitter())
        self._retry_reason = reason
        closing: list[Output] = []
        if close:
            closing.append(Close(self.epoch, reason, abort))
            self._gone_at = now + self._rules.close_timeout_s
        self._fall(what, reason, now, out, *closing, save=True)

    def _fall(
        self,
        what: Input,
        reason: Reason,
        now: float,
        out: list[Output],
        *then: Output,
        save: bool = False,
    ) -> None:
        """Into RECONNECT_BACKOFF, and there tell at once what binds longest."""
        self._step(what, reason, now, out)
        out += then
        if save:
            out.append(SaveHygiene(self._record(now)))
        self._go(now, out)

    def _stop(self, reason: Reason, now: float, out: list[Output]) -> None:
        session = self._session
        self._released_until = -math.inf
        if session is None:
            self._step(Input.STAND_DOWN, reason, now, out)
            return
        if self.live:
            self._prove(session, now, out)
        self._stand_down(session, reason, now, out)

    def _stand_down(self, session: _Session, reason: Reason, now: float, out: list[Output]) -> None:
        if not session.proved:
            self._breaker.stood_down()
        self._budget.settle(now)
        abort = not self.live
        self._session = None
        self._step(Input.STAND_DOWN, reason, now, out)
        out += [Close(self.epoch, reason, abort), SaveHygiene(self._record(now))]
        self._gone_at = now + self._rules.close_timeout_s

    def _plan_close(
        self, reason: Reason, now: float, out: list[Output], *, to_idle: bool = False
    ) -> None:
        """Close on purpose, as soon as the session has lived its minimum."""
        session = self._current()
        if math.isinf(session.close_at) or to_idle:
            session.close_at = max(now, session.opened_at + self._rules.min_lifetime_s)
            session.close_reason = reason
            session.close_to_idle = to_idle
        self._close_if_due(now, out)

    def _cancel_close(self, session: _Session) -> None:
        session.close_at = math.inf
        session.close_reason = Reason.RESYNC

    def _close_if_due(self, now: float, out: list[Output]) -> None:
        session = self._current()
        if now < session.close_at:
            return
        reason = session.close_reason
        if reason is Reason.RELEASED and now >= self._released_until:
            self._cancel_close(session)  # the loan was over before the session could be closed
            return
        if session.close_to_idle:
            self._prove(session, now, out)
            self._stand_down(session, reason, now, out)
            return
        ready = self._budget.ready(now)
        if ready > now:
            # A session that stands is not given up before the next one may be dialled.
            session.close_at = ready
            return
        self._prove(session, now, out)
        if not session.proved:
            self._breaker.ended_unproved(now)
            if not (session.had_data or session.had_pingpong):
                self._breaker.looped(now)
        self._end(Input.CLOSE, reason, now, out, close=True)

    def _prove(self, session: _Session, now: float, out: list[Output]) -> None:
        if (
            not session.proved
            and session.acked
            and (session.had_data or session.had_pingpong)
            and now - session.opened_at >= self._rules.min_lifetime_s
        ):
            session.proved = True
            self._backoff.reset()
            self._breaker.proved()
            out.append(SaveHygiene(self._record(now)))

    def _current(self) -> _Session:
        if self._session is None:
            raise IllegalInput(f"there is no session while {self.state}")
        return self._session

    def _record(self, now: float) -> Hygiene:
        return Hygiene(
            dials=self._budget.ages(now),
            dialling=self._budget.open,
            open=self._session is not None,
            proved=self._session is not None and self._session.proved,
            unclosed_s=None if self._unclosed_at is None else max(0.0, now - self._unclosed_at),
            in_use=self._in_use,
            in_use_s=max(0.0, now - self._in_use_at) if self._in_use else 0.0,
            hold_s=self._hold,
            breaker=self._breaker.record(now),
        )


def _about_equal(one: float | None, other: float | None) -> bool:
    """The same moment: it was worked out from two clocks, which are never read at one instant."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < 1.0


#: Inputs that may change the reason alone.
_TELLS_REASON: Final = (Input.HOLD, Input.SUSPECT, Input.STAND_DOWN)

#: Self-loops after which the state's deadline starts anew.
_RENEWS_DEADLINE: Final = (Input.OVERDUE, Input.STAND_DOWN)
