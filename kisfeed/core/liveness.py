"""Is the session alive: the link, and each feed, judged apart (design section 6).

Three verdicts, never mixed. *Link*: any byte counts, PINGPONG too; silence is told, probed, and
only then called dead. *Registration*: how old its ACK is; it informs and decides nothing here.
*Feed*: how old a key's last record is, counted only while its venue lets it flow and the symbol is
neither halted nor interrupted. A silent feed is told and repaired; it never ends a session.

How long a silence is odd follows from the traffic. The usual gap is a mean weighted by time (the
length of the gap that a random instant falls into), so a burst does not make a quiet link look
busy, one lull makes a busy link count as quieter at once, and steady traffic of any
rate gives its own gap.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from kisfeed.config import Session
    from kisfeed.kis.catalogue import RegKey


@attrs.frozen
class LinkSuspect:
    """Nothing was heard for longer than this traffic explains: every subscriber is told at once."""

    silent_s: float


@attrs.frozen
class LinkOk:
    """A byte ended the suspicion."""


@attrs.frozen
class LinkDead:
    """Silence, and the probe brought nothing: the session is to be aborted."""

    silent_s: float


@attrs.frozen
class Probe:
    """Make the server speak: subscribe a held key again and expect OPSP0002."""


@attrs.frozen
class FeedStalled:
    """This key is silent while it should flow: register it again, once, inside the session."""

    key: RegKey


@attrs.frozen
class FeedOk:
    """A stalled key is no longer one: data came, its quiet was explained, or it need not flow."""

    key: RegKey


Output: TypeAlias = LinkSuspect | LinkOk | LinkDead | Probe | FeedStalled | FeedOk


@attrs.define(eq=False)
class _Feed:
    """One held key.

    Attributes:
        held_at: when its registration became held (the registration verdict's age).
        since: silence counts from here: its last record, or when it began to be expected.
        usual_gap: of its records, weighted by time.
        flows: the market lets it flow.
        data_at: its last record; None before the first.
        halted: trading in the symbol is stopped.
        stalled: told as such.
    """

    held_at: float
    since: float
    usual_gap: float
    flows: bool
    data_at: float | None = None
    halted: bool = False
    stalled: bool = False

    @property
    def expected(self) -> bool:
        return self.flows and not self.halted


def _always(_key: RegKey) -> bool:
    return True


@attrs.define(eq=False)
class Liveness:
    """The verdicts on one session at a time.

    Every method that returns a list returns what to tell and to do; ``now`` is seconds, monotonic.
    Each :class:`FeedStalled` is followed by one :class:`FeedOk`, unless its session ends first.
    """

    _rules: Session
    _link: str = attrs.field(default="down", init=False)  # down, ok, suspect, dead
    _heard_at: float = attrs.field(default=0.0, init=False)
    _usual_gap: float = attrs.field(default=0.0, init=False)
    _memory_s: float = attrs.field(init=False)
    _dead_at: float = attrs.field(default=math.inf, init=False)
    _feeds: dict[RegKey, _Feed] = attrs.field(factory=dict, init=False)
    _thin: dict[RegKey, float] = attrs.field(factory=dict, init=False)
    _feed_due: float = attrs.field(default=math.inf, init=False)
    _market_open: bool = attrs.field(default=False, init=False)
    _flows: Callable[[RegKey], bool] = attrs.field(default=_always, init=False)

    def __attrs_post_init__(self) -> None:
        # Twice the busy bound: a lull of that bound is remembered at a third of its weight, which
        # stops a second suspicion; a link at hundreds of frames a second counts as busy in 20 s.
        self._memory_s = 2 * self._rules.busy_suspect_floor_s

    def session_up(self, now: float) -> None:
        """A session opened: nothing is held in it yet, and it counts as quiet until it is busy."""
        self._link = "ok"
        self._heard_at = now
        self._usual_gap = self._rules.quiet_suspect_s / self._rules.busy_suspect_gaps
        self._dead_at = math.inf
        self._forget_feeds()

    def session_down(self, _now: float) -> None:
        """The session ended: nothing is judged until the next one."""
        self._link = "down"
        self._dead_at = math.inf
        self._forget_feeds()

    def _forget_feeds(self) -> None:
        for key, feed in self._feeds.items():
            self._remember(key, feed)
        self._feeds.clear()
        self._feed_due = math.inf
        self._market_open = False

    # The link ---------------------------------------------------------------

    def heard(self, now: float) -> list[Output]:
        """Bytes came, whatever they mean. Call it once a read; it costs next to nothing."""
        gap = now - self._heard_at
        self._heard_at = now
        self._usual_gap += (gap - self._usual_gap) * (gap / (gap + self._memory_s))
        if self._link != "suspect":
            return []
        self._link = "ok"
        self._dead_at = math.inf
        return [LinkOk()]

    def probe_answered(self, now: float) -> list[Output]:
        """The probe's answer arrived on this link; the same as any other byte."""
        return self.heard(now)

    def doubt(self, now: float) -> list[Output]:
        """Something outside, such as a resume from suspend, makes the link doubtful: probe it."""
        return self._suspect(now) if self._link == "ok" else []

    def _suspect_after_s(self) -> float:
        rules = self._rules
        if not self._market_open:
            return rules.quiet_suspect_s
        busy = max(rules.busy_suspect_floor_s, rules.busy_suspect_gaps * self._usual_gap)
        return min(busy, rules.quiet_suspect_s)

    def _suspect(self, now: float) -> list[Output]:
        rules = self._rules
        # Dead comes at the same multiple of the suspicion at every rate, and never before the
        # probe had its time: a process that was itself asleep must not kill a healthy link.
        dead_s = self._suspect_after_s() * rules.quiet_dead_s / rules.quiet_suspect_s
        self._dead_at = max(self._heard_at + dead_s, now + rules.probe_timeout_s)
        self._link = "suspect"
        return [LinkSuspect(now - self._heard_at), Probe()]

    # The feeds --------------------------------------------------------------

    def watch(self, key: RegKey, now: float) -> None:
        """*key* became held (ACKed) in this session: its feed is judged from here on."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = _Feed(now, now, self._thin.get(key, 0.0), self._flows(key))
            self._feeds[key] = feed
        else:
            feed.held_at = now
        self._market_open = self._market_open or feed.flows
        self._schedule(feed, now)

    def unwatch(self, key: RegKey, now: float) -> list[Output]:
        """*key* is no longer held; what is known of its usual gap is kept for the next time."""
        feed = self._feeds.pop(key, None)
        if feed is None:
            return []
        self._market_open = any(other.flows for other in self._feeds.values())
        if not feed.stalled:
            self._remember(key, feed)
            return []
        self._tolerate(feed, now)
        self._remember(key, feed)
        return [FeedOk(key)]

    def _remember(self, key: RegKey, feed: _Feed) -> None:
        # A symbol that trades every ten minutes is not to be asked about again after each
        # reconnect; busy ones need no memory, so this holds only the thin ones.
        if self._patience_s(feed) > self._rules.feed_stalled_s:
            self._thin[key] = feed.usual_gap
        else:
            self._thin.pop(key, None)

    def _tolerate(self, feed: _Feed, now: float) -> None:
        silence = now - feed.since
        feed.usual_gap = max(feed.usual_gap, 2 * silence / self._rules.busy_suspect_gaps)

    def data(self, key: RegKey, now: float) -> list[Output]:
        """A record of *key* came; call it beside :meth:`heard`."""
        feed = self._feeds.get(key)
        if feed is None:
            return []
        if feed.expected:  # the pause before a closing print is the market's, not the symbol's
            gap = now - feed.since
            feed.usual_gap += (gap - feed.usual_gap) * (gap / (gap + self._rules.feed_stalled_s))
        feed.since = feed.data_at = now
        if not feed.stalled:
            return []
        feed.stalled = False
        self._schedule(feed, now)
        return [FeedOk(key)]

    def quiet_explained(self, key: RegKey, now: float) -> list[Output]:
        """Why *key* is silent is known: KIS said that it holds it.

        The key gets twice this silence before it is asked about again, also where KIS had let it
        go: whatever KIS answers, it is asked ever less often.
        """
        feed = self._feeds.get(key)
        if feed is None or not feed.stalled:
            return []
        self._tolerate(feed, now)
        return self._excuse(key, feed, now)

    def market(self, flows: Callable[[RegKey], bool], now: float) -> list[Output]:
        """The market's phase changed: *flows* tells which keys should have data from here on.

        Call it at the start and at every change of phase; *flows* is a snapshot, asked now and when
        a key is watched. Silence of a key that begins to flow counts from *now*.
        """
        self._flows = flows
        outputs: list[Output] = []
        for key, feed in self._feeds.items():
            before, feed.flows = feed.expected, flows(key)
            outputs += self._expectation(key, feed, before, now)
        self._market_open = any(feed.flows for feed in self._feeds.values())
        return outputs

    def flows(self, key: RegKey) -> bool:
        """Whether the market lets *key* flow, as last told."""
        return self._flows(key)

    def halted(self, key: RegKey, halted: bool, now: float) -> list[Output]:
        """Trading in this symbol stopped (halt, VI) or went on; a stopped one never stalls."""
        feed = self._feeds.get(key)
        if feed is None or feed.halted == halted:
            return []
        before, feed.halted = feed.expected, halted
        return self._expectation(key, feed, before, now)

    def _expectation(self, key: RegKey, feed: _Feed, before: bool, now: float) -> list[Output]:
        if feed.expected == before:
            return []
        if feed.expected:
            feed.since = now
            self._schedule(feed, now)
            return []
        return self._excuse(key, feed, now) if feed.stalled else []

    def _excuse(self, key: RegKey, feed: _Feed, now: float) -> list[Output]:
        feed.stalled = False
        feed.since = now
        self._schedule(feed, now)
        return [FeedOk(key)]

    def _patience_s(self, feed: _Feed) -> float:
        rules = self._rules
        return max(rules.feed_stalled_s, rules.busy_suspect_gaps * feed.usual_gap)

    def _schedule(self, feed: _Feed, now: float) -> None:
        # Records only move a stall later, by at least feed_stalled_s from the record on, so a look
        # that often misses none, and the hot path never touches the deadline.
        if feed.expected and not feed.stalled:
            due = min(feed.since + self._patience_s(feed), now + self._rules.feed_stalled_s)
            self._feed_due = min(self._feed_due, due)

    def _sweep(self, now: float) -> list[Output]:
        outputs: list[Output] = []
        self._feed_due = math.inf
        for key, feed in self._feeds.items():
            if feed.expected and not feed.stalled and now >= feed.since + self._patience_s(feed):
                feed.stalled = True
                outputs.append(FeedStalled(key))
            self._schedule(feed, now)
        return outputs

    # Time -------------------------------------------------------------------

    def timer(self, now: float) -> list[Output]:
        """Whatever is due at *now*; call it at :meth:`next_deadline`, earlier calls do no harm."""
        if self._link == "ok":
            if now >= self._heard_at + self._suspect_after_s():
                return self._suspect(now)
            if now >= self._feed_due:
                return self._sweep(now)
        elif self._link == "suspect" and now >= self._dead_at:
            self._link = "dead"
            return [LinkDead(now - self._heard_at)]
        return []

    def next_deadline(self) -> float:
        """When :meth:`timer` has something to look at; infinite without a session.

        Feeds are judged only on a sound link, where a suspect link is what there is to say.
        """
        if self._link == "ok":
            return min(self._heard_at + self._suspect_after_s(), self._feed_due)
        return self._dead_at if self._link == "suspect" else math.inf

    def status(self, now: float) -> dict[str, object]:
        """The verdicts as JSON: ages in seconds, keys as ``TR_ID.tr_key``."""
        up = self._link != "down"
        return {
            "link": self._link,
            "last_byte_age_s": now - self._heard_at if up else None,
            "suspect_after_s": self._suspect_after_s() if up else None,
            "market_open": self._market_open,
            "feeds": {
                f"{tr_id}.{tr_key}": {
                    "verdict": _verdict(feed),
                    "ack_age_s": now - feed.held_at,
                    "data_age_s": None if feed.data_at is None else now - feed.data_at,
                }
                for (tr_id, tr_key), feed in self._feeds.items()
            },
        }


def _verdict(feed: _Feed) -> str:
    if feed.stalled:
        return "stalled"
    if feed.halted:
        return "halted"
    if not feed.flows:
        return "closed"
    return "none_yet" if feed.data_at is None else "ok"
