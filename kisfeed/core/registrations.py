"""The market for the session's slots: which registrations to hold, and what KIS holds in truth.

The ledger is pessimistic: a slot counts from the moment its subscribe is handed out until its
unsubscribe is acknowledged, and a slot in doubt counts too, so the server never sees more than the
cap. ACKs carry only (tr_id, tr_key), therefore one operation is in flight at a time, a FIFO of
unanswered operations is kept by key, and an ACK changes the state only if nothing of another kind
was sent for its key since. KIS answers in the order in which it was asked.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, insort
from collections import deque
from heapq import merge
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from kisfeed.core.pacing import SlidingWindows
from kisfeed.kis.codes import SUBSCRIBED, Meaning
from kisfeed.limits import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from kisfeed.config import Session
    from kisfeed.core.interest import Interest, Score, Standing
    from kisfeed.kis.catalogue import RegKey

_HOUR_S: Final = 3600.0
# Swaps an hour in favour of interest that is not new: what flapping clients can move at most.
_OLD_INTEREST_SWAPS_PER_HOUR: Final = 6
_NOTICE_DEATHS_TO_CLOSE: Final = 2
_UNANSWERED_KEPT: Final = 16  # operations of one key whose ACK may still come


class State(enum.StrEnum):
    """Where a wanted registration stands; the first four occupy a slot."""

    SUBSCRIBING = "subscribing"
    HELD = "held"
    RELEASING = "releasing"
    DOUBT = "doubt"  # asked for and never told: may be held, is being given back to be sure
    WAITING = "waiting"
    QUARANTINED = "quarantined"
    CLOSED = "closed"


class Operation(enum.StrEnum):
    """What is sent for a key."""

    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"
    PROBE = "probe"  # a subscribe of what is held


class ResyncReason(enum.StrEnum):
    """Why only a fresh session can tell what KIS holds."""

    UNSUBSCRIBE_UNANSWERED = "unsubscribe_unanswered"
    UNSUBSCRIBE_REFUSED = "unsubscribe_refused"


@attrs.frozen
class Subscribe:
    """Send a subscribe for *key*."""

    key: RegKey


@attrs.frozen
class Unsubscribe:
    """Send an unsubscribe for *key*."""

    key: RegKey


@attrs.frozen
class Held:
    """KIS holds *key*: its ACK or its data came."""

    key: RegKey


@attrs.frozen
class Freed:
    """The slot of *key* is free: KIS acknowledged the unsubscribe."""

    key: RegKey


@attrs.frozen
class Refused:
    """*key* is not held and why.

    Attributes:
        key: the registration.
        msg_cd: what KIS said; empty where it said nothing (no ACK, or the session died of it).
        permanent: closed until :meth:`Registrations.reopen`; else it is tried again by itself.
    """

    key: RegKey
    msg_cd: str
    permanent: bool


@attrs.frozen
class Preempted:
    """The slot of *key* is being given to *by*."""

    key: RegKey
    by: RegKey


@attrs.frozen
class Promoted:
    """*key*, preempted before, is held again; follows its :class:`Held`."""

    key: RegKey


@attrs.frozen
class AckMissing:
    """No answer to the operation on *key*, sent *tries* times in a row."""

    key: RegKey
    tries: int


@attrs.frozen
class Resync:
    """Only a fresh session can tell what KIS holds; asked for once a session."""

    reason: ResyncReason


@attrs.frozen
class CapLearned:
    """KIS takes only *cap* registrations in this session."""

    cap: int


@attrs.frozen
class ProbePassed:
    """KIS answered for *key*: the session and the registration live.

    Attributes:
        renewed: KIS took it as a new one, hence had let the one before it go.
    """

    key: RegKey
    renewed: bool = False


@attrs.frozen
class ProbeFailed:
    """No answer, or a refusal, to the probe of *key*.

    Its slot stays counted and held, unless its data were overdue and KIS has no room for it: then
    :class:`Refused` follows.
    """

    key: RegKey


Output: TypeAlias = (
    Subscribe
    | Unsubscribe
    | Held
    | Freed
    | Refused
    | Preempted
    | Promoted
    | AckMissing
    | Resync
    | CapLearned
    | ProbePassed
    | ProbeFailed
)


@attrs.frozen
class Holder:
    """One slot and what holds it, for a refusal that names names."""

    key: RegKey
    score: Score
    state: State


@attrs.define(eq=False)
class _Slot:
    state: State
    since: float  # of the state
    asked_at: float
    tries: int = 0  # of the present operation, without an answer
    retry_at: float = math.inf
    by: RegKey | None = None  # whom the slot is being given to
    probed_at: float = -math.inf


@attrs.frozen
class _Flight:
    key: RegKey
    operation: Operation
    deadline: float


@attrs.frozen
class _Step:
    operation: Operation
    key: RegKey
    by: RegKey | None = None
    counts_as_return: bool = False


_Rank: TypeAlias = tuple[bool, bool, int, int, bool, float, int, "RegKey"]


@attrs.define(eq=False)
class _SwapAllowance:
    """A burst, then one in a period: the generic cell rate in its virtual-scheduling form."""

    _burst: int
    _period: float
    _theoretical: float = -math.inf

    def ready_at(self) -> float:
        return self._theoretical - (self._burst - 1) * self._period

    def take(self, now: float) -> None:
        self._theoretical = max(self._theoretical, now) + self._period


class Registrations:
    """Keeps the slots of one session busy with what is worth most, and never thrashes.

    Every method takes what happened and returns what to do or tell, in order. ``Subscribe`` and
    ``Unsubscribe`` are to be sent in that order at once: the pacing is done here.

    A higher score evicts a lower one. Among equals only a topic that is wanted anew evicts, the
    least recent first, those that can be polled before those that cannot; with
    ``rotation = "hold"`` equals keep their slots. A slot somebody wants is safe for ``dwell_s``.
    Registrations nobody wants any more stay until their slot is needed.

    Args:
        rules: the session's rules.
        cap: how many registrations a session may hold.
        ops: how many subscribe and unsubscribe messages may be sent.
        interest: who wants what; this is its only reader.
        reserved: order notices: held whatever the interest, never evicted, a slot kept for each.
        pollable: whether a topic lives on without a slot.
    """

    def __init__(
        self,
        rules: Session,
        cap: int,
        ops: Window,
        interest: Interest,
        *,
        reserved: Sequence[RegKey] = (),
        pollable: Callable[[RegKey], bool] = lambda _key: True,
    ) -> None:
        hour = _HOUR_S / rules.time_scale
        self._rules = rules
        self._configured_cap = cap
        self._cap = cap
        self._ops = SlidingWindows([Window(ops.count, ops.seconds / rules.time_scale)])
        self._interest = interest
        self._reserved = tuple(reserved)
        self._pollable = pollable
        self._rotates = rules.rotation == "lru"
        self._swaps = _SwapAllowance(rules.swap_burst, hour / rules.swaps_per_hour)
        self._returns = SlidingWindows([Window(_OLD_INTEREST_SWAPS_PER_HOUR, hour)])

        self._live = False
        self._epoch = -1
        self._slots: dict[RegKey, _Slot] = {}
        self._unanswered: dict[RegKey, deque[Operation]] = {}
        self._flight: _Flight | None = None
        self._probes: dict[RegKey, None] = {}  # asked for and not sent yet
        self._promised: RegKey | None = None
        self._key_refused = False
        self._resync_asked = False
        self._excused = False
        # Unsubscribed in this session, and when that was asked or answered: late data may come.
        self._left: dict[RegKey, float] = {}
        self._denied: dict[RegKey, None] = {}  # refused in this session, and not asked for since
        self._notice_asked: dict[RegKey, float] = {}
        self._no_subscribe_before = -math.inf
        self._refusals = 0
        self._wake = math.inf

        # What outlives a session.
        self._previous: dict[RegKey, None] = {}  # what the last session held
        self._preempted: dict[RegKey, None] = {}
        self._closed: dict[RegKey, str] = {}
        self._strikes: dict[RegKey, int] = {}
        self._blocked: dict[RegKey, float] = {}
        self._unblock_at = math.inf
        self._notice_deaths: dict[RegKey, int] = {}

        # Wanted topics without a slot, best first: the fresh ones may displace equals.
        self._fresh: list[_Rank] = []
        self._stale: list[_Rank] = []
        self._entries: dict[RegKey, tuple[list[_Rank], _Rank]] = {}

    # The face.

    @property
    def cap(self) -> int:
        """How many registrations this session may hold, as far as known."""
        return self._cap

    @property
    def used(self) -> int:
        """How many slots count as taken, those in doubt included."""
        return len(self._slots)

    @property
    def reserved(self) -> int:
        """How many slots are kept for order notices."""
        return sum(key not in self._closed for key in self._reserved)

    @property
    def settled(self) -> bool:
        """A session lives and everything there is room for is held, refused or in quarantine."""
        if not self._live or self._key_refused:
            return False
        if any(
            slot.state is State.SUBSCRIBING or slot.state is State.DOUBT
            for slot in self._slots.values()
        ):
            return False
        missing = self._missing_reserved()
        if any(key not in self._blocked for key in missing):
            return False
        return not self._entries or self._cap - len(self._slots) - len(missing) <= 0

    def state(self, key: RegKey) -> State | None:
        """Where *key* stands; None if it has no slot and is not wanted."""
        slot = self._slots.get(key)
        if slot is not None:
            return slot.state
        if key in self._closed:
            return State.CLOSED
        if not self._is_wanted(key):
            return None
        return State.QUARANTINED if key in self._strikes and key in self._blocked else State.WAITING

    def closed_by(self, key: RegKey) -> str | None:
        """The code that closed *key* for good, empty for a wrong HTS ID; None if it is open."""
        return self._closed.get(key)

    def admits(self, key: RegKey) -> bool:
        """Whether the wanted *key* has a slot, or gets one as things stand, dwell or not.

        Call after :meth:`changed`. False is ``over_limit``; :meth:`holders` tells who has them.
        """
        if key in self._slots or key in self._reserved:
            return key not in self._closed
        entry = self._entries.get(key)
        if entry is None:
            return False
        rank = entry[1]
        ahead = bisect_left(self._fresh, rank) + bisect_left(self._stale, rank)
        standing = self._interest.standing(key)
        beaten = sum(self._beats(standing, self._interest.standing(v)) for v in self._victims())
        room = self._cap - len(self._slots) - len(self._missing_reserved())
        return ahead < max(room, 0) + beaten

    def crowded_out(self, now: float) -> list[RegKey]:
        """Wanted topics for which this session has no slot as things stand.

        Not those whose turn has come: a slot is free or being given away, or one that they beat
        may be taken now. Call after the outputs of every other method.
        """
        if not self._live:
            return []
        leaving = sum(slot.state is State.RELEASING for slot in self._slots.values())
        room = max(0, self._cap - len(self._slots) - len(self._missing_reserved())) + leaving
        # Freed too lately to be asked for again, and the slots are taken until it may be.
        pausing = [
            key
            for key in self._blocked
            if key not in self._strikes and key not in self._slots and self._is_wanted(key)
        ]
        if len(self._entries) <= room:
            return pausing if len(self._entries) == room else []
        coming: set[RegKey] = set()
        victims = self._takeable(now)
        done = {True: not self._fresh, False: not self._stale}
        for ahead, rank in enumerate(merge(self._fresh, self._stale)):
            fresh = self._entries[rank[-1]][0] is self._fresh
            if done[fresh]:
                continue
            if ahead < room + self._obtainable(rank[-1], victims, now):
                coming.add(rank[-1])
            else:
                # What stands behind it in its queue beats no more and has more ahead.
                done[fresh] = True
                if all(done.values()):
                    break
        waiting = [rank[-1] for queue in (self._fresh, self._stale) for rank in queue]
        return [key for key in waiting if key not in coming] + pausing

    def _takeable(self, now: float) -> list[tuple[Standing, bool]]:
        """What the slots are worth in the order they are given away, and which may go now."""
        if self._swaps.ready_at() > now:
            return []
        standings = [(key, self._interest.standing(key)) for key in self._victims()]
        return [
            (standing, self._may_leave_at(self._slots[key], standing) <= now)
            for key, standing in standings
        ]

    def _obtainable(
        self, newcomer: RegKey, victims: Sequence[tuple[Standing, bool]], now: float
    ) -> int:
        """How many of *victims* lose their slot to *newcomer* if it asks now.

        The least recent one it beats goes first; while that one's dwell lasts, no other goes.
        """
        standing = self._interest.standing(newcomer)
        free = standing.fresh or self._returns.wait(now) <= 0
        found = 0
        for victim, may_leave in victims:
            if not self._beats(standing, victim):
                continue
            if not may_leave:
                break
            found += free or victim.idle_since + self._rules.same_interest_s <= now
        return found

    def holders(self) -> list[Holder]:
        """What holds the slots, the strongest first."""
        found = [
            Holder(key, self._interest.standing(key).score, slot.state)
            for key, slot in self._slots.items()
        ]
        return sorted(found, key=lambda holder: holder.score, reverse=True)

    def next_deadline(self) -> float:
        """When :meth:`timer` wants to be called; ``math.inf`` for never."""
        if not self._live:
            return math.inf
        return self._wake if self._flight is None else self._flight.deadline

    # What happened.

    def limits_changed(self, cap: int, ops: Window, now: float) -> list[Output]:
        """Other limits are in force; what is held above a lower cap stays, and is not refilled."""
        learned = self._cap < self._configured_cap
        self._configured_cap = cap
        self._cap = min(self._cap, cap) if learned else cap
        ages = self._ops.ages(now)
        self._ops = SlidingWindows([Window(ops.count, ops.seconds / self._rules.time_scale)])
        self._ops.put_back(ages, now)
        return self._plan(now)

    def session_up(self, epoch: int, now: float) -> list[Output]:
        """A session is open and holds nothing: reserved first, then pinned, then by score.

        Raises:
            AssertionError: the session before was not reported down, or had this epoch.
        """
        if self._live or epoch <= self._epoch:
            raise AssertionError(f"session {epoch} up after {self._epoch}, live={self._live}")
        self._live = True
        self._epoch = epoch
        self._cap = self._configured_cap
        self._key_refused = self._resync_asked = self._excused = False
        self._no_subscribe_before = -math.inf
        self._refusals = 0
        self._wake = math.inf
        return self._plan(now)

    def session_down(self, now: float, *, excused: bool = False) -> list[Output]:
        """The session is gone, and with it every registration.

        Args:
            now: seconds.
            excused: it did not die of what was subscribed (we closed it, the appkey is in use).
        """
        if not self._live:
            return []
        outputs: list[Output] = []
        for key, asked_at in self._notice_asked.items():
            if now - asked_at > self._rules.notice_death_s:
                self._notice_deaths.pop(key, None)
            elif not (excused or self._excused):
                deaths = self._notice_deaths[key] = self._notice_deaths.get(key, 0) + 1
                if deaths >= _NOTICE_DEATHS_TO_CLOSE:
                    self._closed[key] = ""
                    outputs.append(Refused(key, "", permanent=True))
        previous = {
            key: None
            for key, slot in self._slots.items()
            if slot.state is State.HELD or slot.state is State.SUBSCRIBING
        }
        changed = list(self._slots)
        # What was still to be taken up again of the session before counts as held, too.
        self._previous.update(previous)
        self._live = False
        self._flight = self._promised = None
        self._probes.clear()
        self._slots.clear()
        self._unanswered.clear()
        self._left.clear()
        self._denied.clear()
        self._notice_asked.clear()
        for key in changed:
            self._requeue(key)
        return outputs

    def changed(self, now: float) -> list[Output]:
        """The interest changed."""
        return self._plan(now)

    def ack(
        self, key: RegKey, meaning: Meaning, msg_cd: str, now: float, *, overdue: bool = False
    ) -> list[Output]:
        """KIS answered. Answers that nobody asked for, or that come too late, change nothing.

        ``KEY_REFUSED`` and ``IN_USE`` are not answers to the operation: it is put back as not sent
        and nothing at all is sent until :meth:`retry`.

        Args:
            key: the registration.
            meaning: of the code.
            msg_cd: the code.
            now: seconds.
            overdue: data of *key* should have come and did not: a probe of it that is refused for
                want of room proves that KIS does not hold it.
        """
        if meaning is Meaning.KEY_REFUSED or meaning is Meaning.IN_USE:
            return self._not_taken(key, now)
        unanswered = self._unanswered.get(key)
        probed = Operation.PROBE in (unanswered or ())
        operation = _answered(unanswered, meaning)
        if operation is None or unanswered is None:
            return []
        ends = operation is Operation.UNSUBSCRIBE
        if any((later is Operation.UNSUBSCRIBE) is not ends for later in unanswered):
            return []  # something else was sent for this key since
        flight = self._flight
        probe = flight is not None and flight.key == key and flight.operation is Operation.PROBE
        if flight is not None and flight.key == key:
            self._flight = None
        slot = self._slots.get(key)
        outputs: list[Output] = []
        if slot is None:
            pass
        elif operation is Operation.UNSUBSCRIBE:
            outputs += self._unsubscribe_answered(key, slot, meaning, now)
        elif meaning is Meaning.HELD:
            # Also where the answer to a probe comes late, or seems to be that to a subscribe before
            # it whose own was lost: whether it is, nobody can know.
            renewed = probed and slot.state is State.HELD and msg_cd == SUBSCRIBED
            outputs += self._held(key, slot, now)
            if probe or renewed:
                outputs.append(ProbePassed(key, renewed))
        elif slot.state is State.HELD:
            if probe:
                outputs.append(ProbeFailed(key))
                if overdue and meaning is Meaning.OVER_CAP:
                    # KIS forgot it and has no room for it any more. Should KIS look at its cap
                    # before at what it holds, an unsubscribe still makes both sides agree.
                    outputs += self._subscribe_refused(key, slot, meaning, msg_cd, now, doubt=True)
        else:
            outputs += self._subscribe_refused(
                key, slot, meaning, msg_cd, now, doubt=bool(unanswered)
            )
        return outputs + self._plan(now)

    def retry(self, key: RegKey, now: float) -> list[Output]:
        """A fresh approval key is in hand: send what was put back, *key* first, and go on."""
        self._key_refused = False
        slot = self._slots.get(key)
        if slot is not None and slot.retry_at < math.inf:
            slot.retry_at = now
        return self._plan(now)

    def data(self, key: RegKey, now: float) -> list[Output]:
        """A record of *key* came: proof of a subscribe whose ACK did not, or that was refused.

        Not after an unsubscribe in the same session: the record may be of the time before it. Long
        after KIS said that it let go, it is proof that KIS did not: it is asked to once more.
        """
        slot = self._slots.get(key)
        # By then what is wanted was asked for again, and KIS has said that it has it.
        kept = slot is None and now - self._left.get(key, now) > self._rules.dwell_s
        if key in self._left and not kept:
            return []
        if slot is None and key in self._denied:
            # The refusal was an answer to something else, for KIS sends what it holds.
            self._closed.pop(key, None)
            slot = self._occupy(key, now)
        elif kept:
            self._doubt(self._occupy(key, now), now)
            return self._plan(now)
        if slot is None or slot.state is State.HELD:
            return []
        if self._flight is not None and self._flight.key == key:
            self._flight = None
        return [*self._held(key, slot, now), *self._plan(now)]

    def probe(self, now: float, among: Collection[RegKey] = ()) -> list[Output]:
        """Ask KIS for a registration it holds: ``ProbePassed`` or ``ProbeFailed`` will tell.

        Nothing comes of it while nothing is held; an operation in flight is a probe already and
        its answer or ``AckMissing`` tells the same, before the probe's own.

        Args:
            now: seconds.
            among: the least recently probed of these; of all that are held by default.
        """
        held = {k: s.probed_at for k, s in self._slots.items() if s.state is State.HELD}
        wanted = [key for key in held if key in among] if among else list(held)
        if wanted and (among or not self._probes):
            self._probes[min(wanted, key=held.__getitem__)] = None
        return self._plan(now)

    def reopen(self, key: RegKey, now: float) -> list[Output]:
        """Forget what KIS refused about *key*: it may be tried again."""
        for record in (self._closed, self._strikes, self._blocked, self._notice_deaths):
            record.pop(key, None)
        self._requeue(key)
        return self._plan(now)

    def timer(self, now: float) -> list[Output]:
        """Time has passed: call at :meth:`next_deadline`."""
        flight = self._flight
        if flight is None or now < flight.deadline:
            return self._plan(now)
        self._flight = None
        outputs: list[Output] = []
        slot = self._slots[flight.key]
        if flight.operation is Operation.PROBE:
            outputs.append(ProbeFailed(flight.key))
        else:
            outputs.append(AckMissing(flight.key, slot.tries))
            if slot.tries <= self._rules.ack_retries:
                slot.retry_at = now
            elif flight.operation is Operation.SUBSCRIBE:
                outputs += self._doubted(flight.key, slot, "", now)
            else:
                outputs += self._give_up(slot, ResyncReason.UNSUBSCRIBE_UNANSWERED, now)
        return outputs + self._plan(now)

    def status(self, now: float) -> list[dict[str, object]]:
        """Every slot, then every wanted topic without one, JSON-able; for ``kisfeed slots``."""
        keys = dict.fromkeys([*self._slots, *self._reserved])
        waiting = [rank[-1] for rank in sorted([*self._fresh, *self._stale])]
        others = [key for key in [*self._blocked, *self._closed] if self._is_wanted(key)]
        return [self._row(key, now) for key in dict.fromkeys([*keys, *waiting, *others])]

    def _row(self, key: RegKey, now: float) -> dict[str, object]:
        slot = self._slots.get(key)
        standing = self._interest.standing(key)
        state = self.state(key)
        dwell = 0.0
        if slot is not None and slot.state is State.HELD:
            dwell = max(0.0, self._may_leave_at(slot, standing) - now)
        return {
            "key": list(key),
            "state": None if state is None else str(state),
            "for_s": None if slot is None else round(now - slot.since, 1),
            "reserved": key in self._reserved,
            "pinned": standing.score.pinned,
            "active": standing.score.active,
            "priority": standing.score.priority,
            "users": len(self._interest.holders(key)),
            "wanted_for_s": round(now - standing.since, 1) if standing.since > -math.inf else None,
            "fresh": standing.fresh,
            "dwell_left_s": round(dwell, 1),
            "tries": 0 if slot is None else slot.tries,
            "strikes": self._strikes.get(key, 0),
            "retry_in_s": (
                round(max(0.0, self._blocked[key] - now), 1) if key in self._blocked else None
            ),
            "closed_by": self._closed.get(key),
            "by": None if slot is None or slot.by is None else list(slot.by),
        }

    # Answers.

    def _held(self, key: RegKey, slot: _Slot, now: float) -> list[Output]:
        slot.retry_at = math.inf
        slot.tries = 0
        if slot.state is State.HELD:
            return []
        slot.state, slot.since, slot.by = State.HELD, now, None
        self._strikes.pop(key, None)
        self._blocked.pop(key, None)
        self._refusals = 0
        outputs: list[Output] = [Held(key)]
        if key in self._preempted:
            del self._preempted[key]
            outputs.append(Promoted(key))
        return outputs

    def _subscribe_refused(
        self, key: RegKey, slot: _Slot, meaning: Meaning, msg_cd: str, now: float, *, doubt: bool
    ) -> list[Output]:
        outputs: list[Output] = []
        permanent = meaning is Meaning.PERMANENT or meaning is Meaning.CLIENT_BUG
        if meaning is Meaning.OVER_CAP:
            outputs += self._learn_cap(now)
        elif permanent:
            self._closed[key] = msg_cd
        else:
            self._quarantine(key, now)
        outputs.append(Refused(key, msg_cd, permanent))
        # An earlier subscribe may have been taken and its ACK lost; an unknown code may mean yes.
        # Doubt once cast is only lifted by an answer to an unsubscribe, or by the data.
        if doubt or slot.state is State.DOUBT or meaning is Meaning.UNKNOWN:
            self._doubt(slot, now)
        else:
            del self._slots[key]
            self._denied[key] = None
        self._requeue(key)
        return outputs

    def _learn_cap(self, now: float) -> list[Output]:
        others = len(self._slots) - 1
        self._refusals += 1
        # One tells the cap. Another one on top: it fell below what is held, and every try gives
        # up a registration that works.
        if others == 0 or self._refusals > 1:
            self._no_subscribe_before = now + self._pause(self._refusals)
        cap = max(others, 1)
        if cap >= self._cap:
            return []
        self._cap = cap
        return [CapLearned(cap)]

    def _unsubscribe_answered(
        self, key: RegKey, slot: _Slot, meaning: Meaning, now: float
    ) -> list[Output]:
        # A key that KIS does not know cannot be held: it refuses to release it with the same code.
        if meaning is Meaning.FREE or (meaning is Meaning.PERMANENT and key in self._closed):
            del self._slots[key]
            self._left[key] = now
            self._promised = slot.by
            # A key comes and goes at most twice in a dwell, whatever the interest does.
            self._block(key, slot.asked_at + self._rules.dwell_s / 2)
            return [Freed(key)]
        if slot.tries <= self._rules.ack_retries:
            slot.retry_at = now + self._rules.ack_timeout_s
            return []
        return self._give_up(slot, ResyncReason.UNSUBSCRIBE_REFUSED, now)

    def _doubted(self, key: RegKey, slot: _Slot, msg_cd: str, now: float) -> list[Output]:
        self._quarantine(key, now)
        self._doubt(slot, now)
        return [Refused(key, msg_cd, permanent=False)]

    def _doubt(self, slot: _Slot, now: float) -> None:
        slot.state, slot.since, slot.tries, slot.retry_at = State.DOUBT, now, 0, now

    def _give_up(self, slot: _Slot, reason: ResyncReason, now: float) -> list[Output]:
        slot.state, slot.since, slot.by, slot.retry_at = State.DOUBT, now, None, math.inf
        if self._resync_asked:
            return []
        self._resync_asked = True
        return [Resync(reason)]

    def _not_taken(self, key: RegKey, now: float) -> list[Output]:
        self._excused = True
        flight = self._flight
        # Such an answer may come without a usable key; only one operation can be meant.
        if flight is None or (flight.key != key and self._unanswered.get(key)):
            return []
        self._key_refused = True
        self._flight = None
        probe = flight.operation is Operation.PROBE
        if flight.key == key or not probe:
            # A probe is not sent again, so what KIS may have said to it all the same still counts.
            self._unanswered[flight.key].pop()
        if not probe:
            slot = self._slots[flight.key]
            slot.tries -= 1
            slot.retry_at = now
        return []

    # Who waits.

    def _pause(self, strikes: int) -> float:
        rules = self._rules
        return min(rules.quarantine_cap_s, rules.quarantine_base_s * 2.0 ** min(strikes - 1, 30))

    def _quarantine(self, key: RegKey, now: float) -> None:
        strikes = self._strikes[key] = self._strikes.get(key, 0) + 1
        self._block(key, now + self._pause(strikes))

    def _block(self, key: RegKey, until: float) -> None:
        self._blocked[key] = max(until, self._blocked.get(key, -math.inf))
        self._unblock_at = min(self._unblock_at, self._blocked[key])
        self._requeue(key)

    def _is_wanted(self, key: RegKey) -> bool:
        return key in self._reserved or self._interest.wanted(key)

    def _missing_reserved(self) -> list[RegKey]:
        return [k for k in self._reserved if k not in self._slots and k not in self._closed]

    def _requeue(self, key: RegKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            queue, rank = entry
            del queue[bisect_left(queue, rank)]
        if (
            key in self._slots
            or key in self._closed
            or key in self._blocked
            or key in self._reserved
        ):
            return
        standing = self._interest.standing(key)
        if standing.wanted:
            queue = self._fresh if standing.fresh else self._stale
            rank = self._rank(key, standing)
            insort(queue, rank)
            self._entries[key] = queue, rank
        else:
            self._previous.pop(key, None)
            if not self._interest.holders(key):  # else a passive one was told
                self._preempted.pop(key, None)

    def _rank(self, key: RegKey, standing: Standing) -> _Rank:
        # Ascending order is best first.
        score = standing.score
        entitled = key in self._previous or (standing.fresh and self._rotates)
        return (
            not score.pinned,
            not score.active,
            -score.priority,
            -score.users,
            not entitled,
            -standing.since if self._rotates else standing.since,
            standing.order,
            key,
        )

    def _beats(self, newcomer: Standing, incumbent: Standing) -> bool:
        if newcomer.score != incumbent.score:
            return newcomer.score > incumbent.score
        return self._rotates and newcomer.fresh and newcomer.since > incumbent.since

    def _victims(self) -> list[RegKey]:
        """The slots that can be given away at all, the weakest first."""

        def weakness(key: RegKey) -> tuple[Score, bool, float, int]:
            standing = self._interest.standing(key)
            last_wanted = standing.since if standing.wanted else standing.idle_since
            return standing.score, not self._pollable(key), last_wanted, standing.order

        free_to_go = (
            key
            for key, slot in self._slots.items()
            if slot.state is State.HELD
            and key not in self._reserved
            and not self._interest.standing(key).score.pinned
        )
        return sorted(free_to_go, key=weakness)

    def _may_leave_at(self, slot: _Slot, standing: Standing) -> float:
        return slot.since + self._rules.dwell_s if standing.wanted else -math.inf

    # What to do next.

    def _plan(self, now: float) -> list[Output]:
        for key in self._interest.take_touched():
            self._requeue(key)
        if now >= self._unblock_at:
            due = [key for key, until in self._blocked.items() if until <= now]
            for key in due:
                del self._blocked[key]
                self._requeue(key)
            self._unblock_at = min(self._blocked.values(), default=math.inf)
        if not self._live or self._flight is not None or self._key_refused:
            self._wake = math.inf
            return []
        self._wake = self._unblock_at
        step = self._next_step(now)
        if step is None:
            return []
        wait = self._ops.wait(now)
        if wait > 0:
            self._wake = max(now + wait, math.nextafter(now, math.inf))
            return []
        self._ops.take(now)
        return self._perform(step, now)

    def _next_step(self, now: float) -> _Step | None:
        for key, slot in self._slots.items():
            if slot.retry_at <= now:
                subscribing = slot.state is State.SUBSCRIBING
                operation = Operation.SUBSCRIBE if subscribing else Operation.UNSUBSCRIBE
                return _Step(operation, key, by=slot.by)
            self._wake_by(slot.retry_at)
        for key in list(self._probes):
            if key in self._slots and self._slots[key].state is State.HELD:
                # Kept until it is sent: pacing may still hold it back.
                return _Step(Operation.PROBE, key)
            del self._probes[key]
        return self._take_room(now) or self._swap(now)

    def _take_room(self, now: float) -> _Step | None:
        missing = self._missing_reserved()
        room = self._cap - len(self._slots)
        ready = [key for key in missing if key not in self._blocked]
        if room <= 0 or not (ready or self._entries):
            return None
        if now < self._no_subscribe_before:
            self._wake_by(self._no_subscribe_before)
            return None
        for key in ready:
            if key not in self._notice_deaths:
                return _Step(Operation.SUBSCRIBE, key)
        if room > len(missing) and self._entries:
            promised = self._promised
            if promised is None or promised not in self._entries:
                promised = min(queue[0] for queue in (self._fresh, self._stale) if queue)[-1]
            return _Step(Operation.SUBSCRIBE, promised)
        return _Step(Operation.SUBSCRIBE, ready[0]) if ready else None

    def _swap(self, now: float) -> _Step | None:
        wanting: list[RegKey] = []
        if self._cap <= len(self._slots):
            wanting += [key for key in self._missing_reserved() if key not in self._blocked]
        if not wanting and not self._entries:
            return None
        victims = self._victims()
        self._spend_vain_freshness(victims)
        newcomers = wanting + [
            rank[-1] for rank in sorted(queue[0] for queue in (self._fresh, self._stale) if queue)
        ]
        given = [slot.by for slot in self._slots.values() if slot.by is not None]
        for newcomer in newcomers:
            if newcomer in given:
                continue
            standing = self._interest.standing(newcomer)
            reserved = newcomer in self._reserved
            for key in victims:
                incumbent = self._interest.standing(key)
                if reserved or self._beats(standing, incumbent):
                    step, at = self._swap_for(newcomer, standing, key, incumbent, now)
                    if at <= now:
                        return step
                    self._wake_by(at)
                    break
        return None

    def _spend_vain_freshness(self, victims: Sequence[RegKey]) -> None:
        """A newcomer that is worth more than nobody's slot waits like one that was evicted."""
        incumbents = [self._interest.standing(key) for key in victims]
        while self._fresh:
            newcomer = self._fresh[0][-1]
            standing = self._interest.standing(newcomer)
            if any(self._beats(standing, incumbent) for incumbent in incumbents):
                return
            self._interest.served(newcomer)
            self._requeue(newcomer)

    def _swap_for(
        self,
        newcomer: RegKey,
        standing: Standing,
        key: RegKey,
        incumbent: Standing,
        now: float,
    ) -> tuple[_Step, float]:
        """The swap and from when on it may be."""
        at = max(self._may_leave_at(self._slots[key], incumbent), self._swaps.ready_at())
        forgotten_at = incumbent.idle_since + self._rules.same_interest_s
        counts = not (standing.fresh or newcomer in self._reserved or forgotten_at <= now)
        if counts:
            wait = self._returns.wait(now)
            allowed_at = max(now + wait, math.nextafter(now, math.inf)) if wait > 0 else now
            at = max(at, min(allowed_at, forgotten_at))
        return _Step(Operation.UNSUBSCRIBE, key, by=newcomer, counts_as_return=counts), at

    def _wake_by(self, at: float) -> None:
        self._wake = min(self._wake, at)

    def _perform(self, step: _Step, now: float) -> list[Output]:
        key = step.key
        probe = step.operation is Operation.PROBE
        timeout = self._rules.probe_timeout_s if probe else self._rules.ack_timeout_s
        self._flight = _Flight(key, step.operation, now + timeout)
        self._unanswered.setdefault(key, deque(maxlen=_UNANSWERED_KEPT)).append(step.operation)
        if probe:
            del self._probes[key]
            self._slots[key].probed_at = now
            return [Subscribe(key)]
        if step.operation is Operation.SUBSCRIBE:
            self._subscribe(key, now)
            return [Subscribe(key)]
        return self._unsubscribe(step, now)

    def _subscribe(self, key: RegKey, now: float) -> None:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._occupy(key, now)
            self._promised = None
            if key in self._reserved:
                self._notice_asked[key] = now
        slot.tries += 1
        slot.retry_at = math.inf

    def _occupy(self, key: RegKey, now: float) -> _Slot:
        slot = self._slots[key] = _Slot(State.SUBSCRIBING, now, now)
        self._denied.pop(key, None)
        self._previous.pop(key, None)
        self._requeue(key)
        self._interest.served(key)
        return slot

    def _unsubscribe(self, step: _Step, now: float) -> list[Output]:
        key = step.key
        slot = self._slots[key]
        outputs: list[Output] = []
        if slot.state is State.HELD and step.by is not None:
            self._swaps.take(now)
            if step.counts_as_return:
                self._returns.take(now)
            self._preempted[key] = None
            self._interest.served(key)
            outputs.append(Preempted(key, step.by))
            slot.tries = 0
        if slot.state is not State.RELEASING:
            slot.state, slot.since, slot.by = State.RELEASING, now, step.by
        slot.tries += 1
        slot.retry_at = math.inf
        self._left[key] = now
        return [*outputs, Unsubscribe(key)]


def _answered(unanswered: deque[Operation] | None, meaning: Meaning) -> Operation | None:
    """Take the operation that *meaning* answers off the FIFO, and those before it.

    KIS answers in order: what was asked before and is still unanswered lost its ACK.
    """
    if not unanswered:
        return None
    answered: tuple[Operation, ...]
    if meaning is Meaning.HELD or meaning is Meaning.OVER_CAP:
        answered = (Operation.SUBSCRIBE, Operation.PROBE)
    elif meaning is Meaning.FREE:
        answered = (Operation.UNSUBSCRIBE,)
    else:
        answered = (unanswered[0],)
    if not any(operation in answered for operation in unanswered):
        return None
    while (operation := unanswered.popleft()) not in answered:
        pass
    return operation
