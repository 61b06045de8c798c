"""When an access token is used, renewed, given up, and when the next one may be asked for.

Nothing here reads a clock. ``now`` is seconds on a clock that runs on while the machine sleeps
and that no clock step touches; the wall clock is asked once, when a token comes, what its expiry
date means in seconds.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.config import Secret
from kisfeed.core.breaker import exact_fields, natural, seconds_of, text
from kisfeed.core.pacing import SlidingWindows
from kisfeed.limits import Window
from kisfeed.seoul import KST
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Mapping


_LIFE_S: Final = 86_400.0  # KIS: a token is valid for 24 hours
_CLOCK_OFF_S: Final = 300.0  # a life longer than that by more than this: our clock is wrong
_UNTOLD_S: Final = 3_600.0  # a token whose life cannot be read is used for this long
_THRESHOLD_S: Final = 1_800.0
_QUIET: Final = dt.time(7)
_NEVER_FROM, _NEVER_TO = dt.time(8), dt.time(20)  # no token may expire between these
_SLACK: Final = 1.05
_LADDER: Final = (60.0, 300.0, 900.0)
_UNSENT_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_PROBE_S: Final = (2.0, 60.0)  # the first pause between two probes, and the longest
_SAME_AGAIN_S: Final = 900.0
_SAME_MOMENT_S: Final = 1.0
_MOST_TRIES: Final = 1_000
_NONE: Final = Secret("")


@attrs.frozen
class Life:
    """What the answer says about a token's life.

    Attributes:
        left_s: seconds until it expires.
        renew_s: seconds until it should be renewed.
        expires: the date as KIS wrote it; empty where it could not be read.
        clock_off: by that date this machine's clock is wrong; the date was not used.
    """

    left_s: float
    renew_s: float
    expires: str = ""
    clock_off: bool = False


def life(body: Mapping[str, Any], wall_s: float) -> Life:
    """How long the token of this answer lives.

    ``access_token_token_expired`` is a date in Seoul and decides, whatever the time zone here;
    ``expires_in`` counts from an issue that may be hours ago, and stands in only where the date
    is missing or cannot be right.

    Args:
        body: the answer of ``/oauth2/tokenP``.
        wall_s: seconds since 1970 UTC.
    """
    in_s = body.get("expires_in")
    told = float(in_s) if isinstance(in_s, int | float) and not isinstance(in_s, bool) else 0.0
    fallback = min(told, _LIFE_S) if told > 0 else _UNTOLD_S
    written = str(body.get("access_token_token_expired", "")).strip()
    try:
        naive = dt.datetime.strptime(written, "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007  # next line
        expires_s = naive.replace(tzinfo=KST).timestamp()
    except (ValueError, OverflowError):
        return Life(fallback, max(0.0, fallback - _THRESHOLD_S))
    left = expires_s - wall_s
    if not 0 < left <= _LIFE_S + _CLOCK_OFF_S:
        return Life(fallback, max(0.0, fallback - _THRESHOLD_S), written, clock_off=True)
    return Life(left, max(0.0, renew_at(expires_s) - wall_s), written)


def renew_at(expires_s: float) -> float:
    """When a token that expires then should be renewed; both seconds since 1970 UTC.

    A threshold before its end; but one that would end in a day's trading hours is renewed before
    them, at 07:00 in Seoul.
    """
    due = expires_s - _THRESHOLD_S
    expires = dt.datetime.fromtimestamp(expires_s, KST)
    if _NEVER_FROM <= expires.time() <= _NEVER_TO:
        quiet = expires.replace(hour=_QUIET.hour, minute=0, second=0, microsecond=0)
        due = min(due, quiet.timestamp())
    return due


@attrs.define(eq=False)
class Token:
    """A token KIS gave; which one is told by identity: the same text can be given twice.

    Attributes:
        forced: it was asked for because KIS refused the one before.
    """

    value: Secret
    expires_at: float
    renew_at: float
    expires: str = ""
    forced: bool = False


@attrs.frozen
class TokenRecord:
    """What goes to disk. Times are ages or remaining seconds at the moment of writing.

    Attributes:
        value: the token; empty for none.
        tries: ages of the issues asked for that still count, the oldest first.
        failures: issues that failed in a row.
        wait_s: how long the next one waits because of them.
    """

    value: Secret = _NONE
    left_s: float = 0.0
    renew_s: float = 0.0
    expires: str = ""
    tries: tuple[float, ...] = ()
    failures: int = 0
    wait_s: float = 0.0

    def aged(self, seconds: float) -> TokenRecord:
        """The same record read *seconds* later."""
        return attrs.evolve(
            self,
            left_s=max(0.0, self.left_s - seconds),
            renew_s=max(0.0, self.renew_s - seconds),
            tries=tuple(age + seconds for age in self.tries),
            wait_s=max(0.0, self.wait_s - seconds),
        )

    def to_map(self) -> dict[str, object]:
        """A JSON-able map with the token in it; :meth:`from_map` reads it."""
        return {
            "value": self.value.reveal(),
            "left_s": self.left_s,
            "renew_s": self.renew_s,
            "expires": self.expires,
            "tries": list(self.tries),
            "failures": self.failures,
            "wait_s": self.wait_s,
        }

    @classmethod
    def from_map(cls, data: Any) -> TokenRecord:
        """Read what :meth:`to_map` wrote.

        Raises:
            ValueError: *data* is anything else.
        """
        fields = exact_fields(data, cls)
        tries = fields["tries"]
        if not isinstance(tries, list) or len(tries) > _MOST_TRIES:
            raise ValueError("TokenRecord: tries is not a list of ages")
        return cls(
            value=Secret(text(fields["value"])),
            left_s=min(seconds_of(fields["left_s"]), _LIFE_S + _CLOCK_OFF_S),
            renew_s=seconds_of(fields["renew_s"]),
            expires=text(fields["expires"]),
            tries=tuple(seconds_of(age) for age in tries),
            failures=natural(fields["failures"]),
            wait_s=min(seconds_of(fields["wait_s"]), 2 * _LADDER[-1]),
        )


class TokenBook:
    """One appkey's token.

    Args:
        record: what was on disk, as old as *now*.
        window: how often KIS issues one.
        now: seconds.
    """

    def __init__(self, record: TokenRecord, window: Window, now: float) -> None:
        self._tries = SlidingWindows([Window(window.count, window.seconds * _SLACK)])
        self._tries.put_back(record.tries, now)
        self._newest = now - record.tries[-1] if record.tries else -math.inf
        self._failures = record.failures
        self._wait_until = now + record.wait_s
        self._unsent = 0
        self._refusals = 0
        self._trying: float | None = None
        self._token: Token | None = None
        self._refused = False
        self._suspected_at: float | None = None
        self.refused_at = -math.inf
        self._probe_at = -math.inf
        self._probe_pause = _PROBE_S[0]
        self.why = Phrase("the last issue failed") if record.wait_s > 0 else ""
        if record.value and record.left_s > 0:
            self._token = Token(
                record.value, now + record.left_s, now + record.renew_s, record.expires
            )

    def usable(self, now: float) -> Token | None:
        """The token to call with: a valid one, however much it wants renewal."""
        token = self._token
        return None if token is None or self._refused or now >= token.expires_at else token

    def probe(self, now: float) -> Token | None:
        """The token that KIS refused, for one call now and then: KIS may have been wrong."""
        token = self._token
        if not self._refused or token is None or now >= token.expires_at or now < self._probe_at:
            return None
        self._probe_pause = min(2 * self._probe_pause, _PROBE_S[1])
        self._probe_at = now + self._probe_pause
        return token

    def probe_at(self) -> float:
        """When :meth:`probe` may have one; ``inf``: not at all."""
        return self._probe_at if self._refused and self._token is not None else math.inf

    def due(self, now: float) -> bool:
        """A token is wanted: there is none, or the one there is should be renewed."""
        token = self.usable(now)
        return token is None or now >= token.renew_at

    def due_at(self, now: float) -> float:
        """When the next issue should be asked for: *now* or later."""
        token = self.usable(now)
        wanted = now if token is None else max(now, token.renew_at)
        return max(wanted, self.ready(now))

    def ready(self, now: float) -> float:
        """When an issue may be asked for: *now* or later."""
        return max(self._tries.ready(now), self._wait_until)

    def issue_in(self, now: float) -> float:
        """Seconds until KIS's limit allows the next issue, whatever failed before."""
        return self._tries.ready(now) - now

    def stopped(self, now: float) -> float | None:
        """Without a token and after a failure: how long callers are turned away; else None.

        A wait that is only the minute between two issues stops nobody: callers wait it out.
        """
        if self.usable(now) is not None or now >= self._wait_until:
            return None
        return self.ready(now) - now

    def begin(self, now: float) -> None:
        """An issue is about to be asked for: it counts from here, whatever becomes of it.

        Raises:
            AssertionError: none may be asked for at *now*.
        """
        if self.ready(now) > now:
            raise AssertionError("a token was asked for before its time")
        self._trying = self._tries.take(now)
        self._newest = now

    def unsent(self, now: float) -> None:
        """Not a byte of it left: KIS has not seen it."""
        assert self._trying is not None
        self._tries.refund(self._trying)
        self._trying = None
        self._wait_until = now + _UNSENT_S[min(self._unsent, len(_UNSENT_S) - 1)]
        self._unsent += 1
        self._refused = False  # as in failed()
        self.why = Phrase("KIS cannot be reached")

    def failed(self, why: str, now: float, jitter: float) -> None:
        """It was refused, or its answer did not come; the token we have is used while it lives.

        That KIS refused it does not change this: without another one there is nothing to lose by
        asking KIS once more what it thinks of it.

        Args:
            why: for people, without secrets.
            now: seconds.
            jitter: uniform in [0, 1): up to a tenth is added to the pause.
        """
        self._settle(now)
        self._wait_until = now + _rung(self._failures) * (1 + jitter / 10)
        self._failures += 1
        self._refused = False
        self.why = why

    def issued(self, value: Secret, of: Life, now: float) -> bool:
        """A token came; False: it is the one we had."""
        self._settle(now)
        old = self._token
        is_new = old is None or old.value != value
        forced = self._refused
        renew = now + of.renew_s
        if not is_new and not forced:
            # KIS gives the same one within six hours: asking again soon changes nothing.
            renew = max(renew, now + _SAME_AGAIN_S)
        self._token = Token(value, now + of.left_s, renew, of.expires, forced)
        self._refused, self._suspected_at = False, None
        self._failures = self._unsent = 0
        self._wait_until = -math.inf
        self.why = ""
        return is_new

    def adopt(self, record: TokenRecord, now: float) -> bool:
        """Another process asked for a token after us and wrote *record*; True if we use its token.

        What does not tell of a later issue than ours is our own record, or an older one.
        """
        later = [age for age in record.tries if now - age > self._newest + _SAME_MOMENT_S]
        if not later:
            return False
        self._tries.put_back(later, now)
        self._newest = now - later[-1]
        ours = self._token
        if not record.value or record.left_s <= 0:
            return False
        if ours is not None and ours.value == record.value:
            return False
        self._token = Token(
            record.value,
            now + record.left_s,
            now + record.renew_s,
            record.expires,
            self._refused,
        )
        self._refused, self._suspected_at = False, None
        self._failures, self._wait_until = 0, -math.inf
        return True

    def refused(
        self, token: Token, sent_at: float, now: float, jitter: float, *, certain: bool = False
    ) -> None:
        """KIS did not take *token* in a request that was sent at *sent_at*.

        The first time it is tried once more, for KIS also refuses good ones now and then. Then one
        fresh token is asked for. If KIS does not take that one either, nothing is asked for until
        a pause is over, which grows.

        Args:
            token: the one that was sent.
            sent_at: seconds.
            now: seconds.
            jitter: uniform in [0, 1): up to a tenth is added to the pause.
            certain: nobody will try it once more.
        """
        if token is not self._token or self._refused:
            return  # others were told already
        if self._suspected_at is None and not certain:
            self._suspected_at = now
            return
        if not certain and self._suspected_at is not None and sent_at < self._suspected_at:
            return  # it was under way when the first was refused
        self._refused, self._suspected_at = True, None
        self._probe_pause = _PROBE_S[0]
        self.refused_at, self._probe_at = now, now + self._probe_pause
        self.why = Phrase("KIS refused it")
        if token.forced:
            self._wait_until = now + _rung(self._refusals) * (1 + jitter / 10)
            self._refusals += 1
            self.why = Phrase("KIS refused a fresh one too")

    def worked(self, token: Token, sent_at: float) -> bool:
        """KIS took *token* in a request that was sent at *sent_at*; True if it had refused it."""
        if token is not self._token:
            return False
        back = self._refused and sent_at > self.refused_at
        if self._refused and not back:
            return False
        if back:
            self._refused, self.why = False, ""
            self._wait_until = -math.inf
        token.forced = False
        self._refusals = 0
        if self._suspected_at is not None and sent_at >= self._suspected_at:
            self._suspected_at = None
        return back

    def renew(self) -> None:
        """A person wants a fresh one; it is asked for as soon as KIS's limit allows."""
        self._wait_until = -math.inf
        if self._token is not None:
            self._token.renew_at = -math.inf

    def change(self, window: Window, now: float) -> None:
        """Another limit is in force."""
        ages = self._tries.ages(now)
        self._tries = SlidingWindows([Window(window.count, window.seconds * _SLACK)])
        self._tries.put_back(ages, now)

    def record(self, now: float) -> TokenRecord:
        """What goes to disk. A token that KIS refused does not."""
        token = self.usable(now)
        waiting = max(0.0, self._wait_until - now)
        return TokenRecord(
            _NONE if token is None else token.value,
            0.0 if token is None else token.expires_at - now,
            0.0 if token is None else max(0.0, token.renew_at - now),
            "" if token is None else token.expires,
            self._tries.ages(now),
            self._failures,
            waiting if self._failures else 0.0,
        )

    def status(self, now: float) -> dict[str, object]:
        """For ``kisfeed token show``; JSON-able, and never the token itself."""
        token = self.usable(now)
        return {
            "state": "valid" if token else "refused" if self._refused else "none",
            "left_s": None if token is None else round(token.expires_at - now, 1),
            "renew_in_s": None if token is None else round(max(0.0, token.renew_at - now), 1),
            "expires_kst": None if token is None else token.expires,
            "next_issue_in_s": round(self.ready(now) - now, 1),
            "failures": self._failures,
            "why": self.why or None,
        }

    def _settle(self, now: float) -> None:
        if self._trying is not None:
            # KIS counts from when it saw the request, which is now at the latest.
            self._tries.restamp(self._trying, now)
            self._newest = now
            self._trying = None


def _rung(failures: int) -> float:
    return _LADDER[min(failures, len(_LADDER) - 1)]
