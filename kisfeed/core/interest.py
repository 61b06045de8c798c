"""Who wants which registration, and what each one's claim to a slot is worth.

Reference counts by holder, pins, and the memory that keeps a flapping client from moving anything:
interest that returns within ``same_interest_s`` is the interest that left.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable

    from kisfeed.config import Session
    from kisfeed.kis.catalogue import RegKey

USERS_CAP: Final = 8  # more users than this do not make a topic worth more


class Score(NamedTuple):
    """What a topic is worth, compared in the order of the attributes.

    Attributes:
        pinned: held whether or not anybody wants it.
        active: somebody who is not passive wants it.
        priority: the highest priority of its active holders, 0-9.
        users: how many active holders, at most ``USERS_CAP``.
    """

    pinned: bool = False
    active: bool = False
    priority: int = 0
    users: int = 0


NOBODY: Final = Score()


@attrs.frozen
class Standing:
    """One topic's claim to a slot.

    Attributes:
        score: what it is worth.
        since: when it was last wanted anew, seconds; ``-inf`` for never.
        order: arrival number of that moment; decides between topics wanted at the same time.
        fresh: wanted anew, or worth more than it lately was, and not served for it yet. Only a
            fresh topic displaces an equal.
        idle_since: when the last interest left; ``inf`` while wanted, ``-inf`` if it never was.
    """

    score: Score = NOBODY
    since: float = -math.inf
    order: int = 0
    fresh: bool = False
    idle_since: float = -math.inf

    @property
    def wanted(self) -> bool:
        """Pinned, or wanted by somebody who is not passive."""
        return self.score > NOBODY


UNKNOWN: Final = Standing()


@attrs.frozen
class _Hold:
    priority: int
    passive: bool


_hold: Final = lru_cache(maxsize=64)(_Hold)  # there are twenty, for any number of holders


@attrs.define(eq=False)
class _Want:
    holders: dict[Hashable, _Hold] = attrs.Factory(dict)
    active: dict[int, int] = attrs.Factory(dict)  # how many who are not passive, by priority
    pinned: bool = False
    standing: Standing = UNKNOWN
    # The best score of the last same_interest_s, when it was left, and the best score since then.
    peak: Score = NOBODY
    fell_at: float = -math.inf
    after_peak: Score = NOBODY

    def hold(self, holder: Hashable, hold: _Hold) -> None:
        self._count(self.holders.get(holder), -1)
        self.holders[holder] = hold
        self._count(hold, 1)

    def let_go(self, holder: Hashable) -> None:
        self._count(self.holders.pop(holder), -1)

    def _count(self, hold: _Hold | None, n: int) -> None:
        if hold is not None and not hold.passive:
            left = self.active.get(hold.priority, 0) + n
            if left:
                self.active[hold.priority] = left
            else:
                del self.active[hold.priority]

    def worth(self) -> Score:
        return Score(
            pinned=self.pinned,
            active=bool(self.active),
            priority=max(self.active, default=0),
            users=min(sum(self.active.values()), USERS_CAP),
        )


class Interest:
    """Reference-counted interest in registrations, and each one's :class:`Standing`.

    A holder is any hashable that stands for one subscription. One ``Registrations`` reads an
    ``Interest``; tell it with ``changed`` after a batch of calls here.
    """

    def __init__(self, rules: Session) -> None:
        self._same_interest_s = rules.same_interest_s
        self._wants: dict[RegKey, _Want] = {}
        self._lapsed: dict[RegKey, None] = {}  # in the order in which they were left
        self._touched: dict[RegKey, None] = {}
        self._arrivals = 0
        self._wanted = 0

    def add(
        self, key: RegKey, holder: Hashable, now: float, *, prio: int = 0, passive: bool = False
    ) -> None:
        """*holder* wants *key*; a holder it already has is replaced.

        Args:
            key: the registration.
            holder: the subscription that wants it.
            now: seconds.
            prio: 0-9.
            passive: never creates nor keeps a slot (recorder, dashboard).
        """
        self._forget(now)
        want = self._wants.get(key)
        if want is None:
            want = self._wants[key] = _Want()
        want.hold(holder, _hold(prio, passive))
        self._update(key, want, now)

    def remove(self, key: RegKey, holder: Hashable, now: float) -> None:
        """*holder* no longer wants *key*.

        Raises:
            KeyError: it never did.
        """
        self._forget(now)
        want = self._wants[key]
        want.let_go(holder)
        self._update(key, want, now)
        if not want.standing.wanted:
            self._lapsed.setdefault(key)

    def retune(
        self,
        key: RegKey,
        holder: Hashable,
        now: float,
        *,
        prio: int | None = None,
        passive: bool | None = None,
    ) -> None:
        """Change how *holder* wants *key*; None keeps what is.

        Raises:
            KeyError: it does not want it.
        """
        hold = self._wants[key].holders[holder]
        self.add(
            key,
            holder,
            now,
            prio=hold.priority if prio is None else prio,
            passive=hold.passive if passive is None else passive,
        )

    def pin(self, key: RegKey, now: float) -> None:
        """Hold *key* whether or not anybody wants it; never evicted."""
        self._forget(now)
        want = self._wants.setdefault(key, _Want())
        want.pinned = True
        self._update(key, want, now)

    def unpin(self, key: RegKey, now: float) -> None:
        """*key* is worth again what its holders make it; does nothing if it is not pinned."""
        want = self._wants.get(key)
        if want is not None and want.pinned:
            want.pinned = False
            self._update(key, want, now)

    def wanted(self, key: RegKey) -> bool:
        """Pinned, or wanted by somebody who is not passive."""
        return self.standing(key).wanted

    def holders(self, key: RegKey) -> list[Hashable]:
        """Everybody who follows *key*, passive ones too."""
        want = self._wants.get(key)
        return [] if want is None else list(want.holders)

    def any_active(self) -> bool:
        """Whether any registration at all is wanted: the reason to have a session."""
        return self._wanted > 0

    def all_wanted(self) -> list[RegKey]:
        """Every registration that is wanted."""
        return [key for key, want in self._wants.items() if want.standing.wanted]

    def standing(self, key: RegKey) -> Standing:
        """The claim of *key*; an empty one if nobody lately wanted it."""
        want = self._wants.get(key)
        return UNKNOWN if want is None else want.standing

    def served(self, key: RegKey) -> None:
        """*key* had its chance of a slot: until it is wanted anew it displaces no equal."""
        want = self._wants.get(key)
        if want is not None and want.standing.fresh:
            want.standing = attrs.evolve(want.standing, fresh=False)
            self._touched[key] = None

    def take_touched(self) -> list[RegKey]:
        """The registrations whose standing changed since the last call."""
        touched = list(self._touched)
        self._touched.clear()
        return touched

    def _update(self, key: RegKey, want: _Want, now: float) -> None:
        before = want.standing
        score = want.worth()
        if score == before.score:
            return
        outdone = _outdoes_its_past(want, before.score, score, now, self._same_interest_s)
        since, order = before.since, before.order
        if not before.wanted and now - before.idle_since >= self._same_interest_s:
            self._arrivals += 1
            since, order, outdone = now, self._arrivals, True
        wanted = score > NOBODY
        self._wanted += wanted - before.wanted
        want.standing = Standing(
            score=score,
            since=since,
            order=order,
            fresh=before.fresh or outdone,
            idle_since=math.inf if wanted else now,
        )
        self._lapsed.pop(key, None)
        if not wanted:
            self._lapsed[key] = None
        self._touched[key] = None

    def _forget(self, now: float) -> None:
        """Drop what was left so long ago that its return would be new interest."""
        for key in list(itertools.islice(self._lapsed, 2)):  # more than one call can add
            want = self._wants[key]
            if now - want.standing.idle_since < self._same_interest_s:
                return
            del self._lapsed[key]
            if not want.holders:
                del self._wants[key]
                self._touched[key] = None


def _outdoes_its_past(want: _Want, old: Score, new: Score, now: float, memory_s: float) -> bool:
    """Keep the peak of the last *memory_s* and tell whether *new* is above it.

    A topic whose score falls and rises in turn (a second client that comes and goes) is lifted
    once, not at each return.
    """
    if old < want.peak and now - want.fell_at >= memory_s:
        want.peak, want.fell_at, want.after_peak = want.after_peak, now, old
    if new > want.peak:
        want.peak = new
        return True
    if old == want.peak:
        want.fell_at, want.after_peak = now, new
    else:
        want.after_peak = max(want.after_peak, new)
    return False
