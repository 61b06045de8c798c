"""Who wants what, and what a claim is worth."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.config import Session
from kisfeed.core.interest import UNKNOWN, USERS_CAP, Interest, Score

A, B = ("H0STCNT0", "000001"), ("H0STCNT0", "000002")
SAME_S = Session().same_interest_s


@attrs.frozen
class Step:
    kind: str
    which: int
    who: int
    prio: int
    passive: bool
    dt: float


STEPS = st.builds(
    Step,
    kind=st.sampled_from(["add", "add", "remove", "remove", "pin", "unpin"]),
    which=st.integers(0, 3),
    who=st.integers(0, 2),
    prio=st.integers(0, 9),
    passive=st.booleans(),
    dt=st.sampled_from([0.0, 1.0, 300.0, 601.0]),
)


@given(plan=st.lists(STEPS, max_size=40))
@settings(max_examples=150)
def test_a_score_is_what_its_holders_make_it_and_nothing_is_kept_for_ever(plan: list[Step]) -> None:
    interest = Interest(Session())
    holds: dict[tuple[str, str], dict[int, tuple[int, bool]]] = {}
    pinned: dict[tuple[str, str], None] = {}
    now = 0.0
    for step in plan:
        now += step.dt
        key = ("H0STCNT0", str(step.which))
        mine = holds.setdefault(key, {})
        before = {k: interest.standing(k) for k in holds}
        interest.take_touched()
        if step.kind == "add":
            mine[step.who] = (step.prio, step.passive)
            interest.add(key, step.who, now, prio=step.prio, passive=step.passive)
        elif step.kind == "pin":
            pinned[key] = None
            interest.pin(key, now)
        elif step.kind == "unpin":
            pinned.pop(key, None)
            interest.unpin(key, now)
        elif mine.pop(step.who, None) is not None:
            interest.remove(key, step.who, now)
        else:
            with pytest.raises(KeyError):
                interest.remove(key, step.who, now)
        touched = interest.take_touched()
        assert [k for k in holds if interest.standing(k) != before[k] and k not in touched] == []
        for k, holders in holds.items():
            active = [prio for prio, passive in holders.values() if not passive]
            score = Score(k in pinned, bool(active), max(active, default=0), len(active))
            assert interest.standing(k).score == score
            assert interest.wanted(k) == bool(active or k in pinned)
            assert sorted(map(str, interest.holders(k))) == sorted(map(str, holders))
        wanted = [k for k in holds if interest.wanted(k)]
        assert sorted(interest.all_wanted()) == sorted(wanted)
        assert interest.any_active() == bool(wanted)
    for key, holders in holds.items():
        interest.unpin(key, now)
        for who in holders:
            interest.remove(key, who, now)
    for turn in range(len(holds) + 1):  # two are looked at by each call
        interest.add(("other", ""), "last", now + SAME_S + turn)
    assert [key for key in holds if interest.standing(key) != UNKNOWN] == []


def test_scores_compare_pin_activity_priority_users() -> None:
    assert Score(pinned=True) > Score(active=True, priority=9, users=USERS_CAP)
    assert Score(active=True) > Score()
    assert Score(active=True, priority=1, users=1) > Score(active=True, users=USERS_CAP)
    assert Score(active=True, users=2) > Score(active=True, users=1)


def test_more_than_eight_users_count_as_eight() -> None:
    interest = Interest(Session())
    for user in range(20):
        interest.add(A, user, 0.0)
    assert interest.standing(A).score.users == USERS_CAP == 8


def test_interest_that_returns_in_time_is_the_old_interest() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 5.0)
    assert interest.standing(A).fresh
    interest.served(A)
    interest.remove(A, "x", 100.0)
    assert interest.standing(A).idle_since == 100.0
    interest.add(A, "x", 100.0 + SAME_S - 0.1)
    standing = interest.standing(A)
    assert (standing.since, standing.fresh, standing.idle_since) == (5.0, False, math.inf)


def test_interest_that_returns_late_is_wanted_anew() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 5.0)
    interest.served(A)
    interest.remove(A, "x", 100.0)
    interest.add(A, "x", 100.0 + SAME_S)
    standing = interest.standing(A)
    assert (standing.since, standing.fresh) == (100.0 + SAME_S, True)


def test_topics_wanted_at_the_same_time_keep_their_order() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0)
    interest.add(B, "x", 0.0)
    assert (interest.standing(A).order, interest.standing(B).order) == (1, 2)


def test_a_priority_that_comes_and_goes_lifts_a_topic_once() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0)
    interest.served(A)
    interest.retune(A, "x", 10.0, prio=5)
    assert interest.standing(A).fresh
    interest.served(A)
    for turn in range(200):  # well over the memory of a single fall
        interest.retune(A, "x", 20.0 + 20 * turn, prio=0)
        interest.retune(A, "x", 30.0 + 20 * turn, prio=5)
        assert not interest.standing(A).fresh
    interest.retune(A, "x", 5000.0, prio=6)
    assert interest.standing(A).fresh


def test_a_second_user_long_gone_counts_as_more_again() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0)
    interest.add(A, "y", 0.0)
    interest.served(A)
    interest.remove(A, "y", 10.0)
    interest.add(A, "y", 10.0 + SAME_S)
    assert interest.standing(A).fresh


def test_an_old_peak_is_no_excuse_for_a_short_absence() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0)
    interest.add(A, "y", 0.0)
    interest.served(A)
    interest.remove(A, "y", 10.0)
    interest.remove(A, "x", 700.0)
    interest.add(A, "x", 705.0)
    assert not interest.standing(A).fresh


def test_retuning_keeps_what_is_not_named() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0, prio=4)
    interest.retune(A, "x", 0.0, passive=True)
    assert not interest.wanted(A)
    interest.retune(A, "x", 1.0, passive=False)
    assert interest.standing(A).score.priority == 4
    with pytest.raises(KeyError):
        interest.retune(A, "nobody", 0.0, prio=1)


def test_who_only_watches_makes_no_claim_and_nothing_to_judge() -> None:
    interest = Interest(Session())
    assert not interest.standing(A).fresh
    interest.add(A, "x", 0.0, passive=True)
    assert interest.standing(A) == UNKNOWN
    assert interest.take_touched() == []
    assert interest.holders(A) == ["x"]


def test_those_who_only_watched_are_forgotten_when_they_left() -> None:
    interest = Interest(Session())
    for number in range(100):
        key = ("H0STCNT0", str(number))
        interest.add(key, "x", float(number), passive=True)
        interest.remove(key, "x", float(number))
    assert len(interest._wants) <= 2


def test_what_was_left_is_forgotten_two_at_a_call_and_not_before_its_time() -> None:
    interest = Interest(Session())
    left = [("H0STCNT0", str(number)) for number in range(5)]
    for key in left:
        interest.add(key, "x", 0.0)
        interest.remove(key, "x", 100.0)

    def known() -> int:
        return sum(interest.standing(key) != UNKNOWN for key in left)

    interest.take_touched()
    interest.add(A, "x", 100.0 + SAME_S - 0.001)
    assert (known(), interest.take_touched()) == (5, [A])
    interest.add(A, "x", 100.0 + SAME_S)
    assert (known(), interest.take_touched()) == (3, left[:2])
    interest.add(A, "x", 100.0 + SAME_S)
    assert known() == 1


def test_who_still_watches_is_kept_when_the_claim_is_forgotten() -> None:
    interest = Interest(Session())
    interest.add(A, "watcher", 0.0, passive=True)
    interest.add(A, "x", 0.0)
    interest.remove(A, "x", 10.0)
    for turn in range(3):
        interest.add(B, "x", 10.0 + SAME_S + turn)
    assert interest.holders(A) == ["watcher"]
    interest.remove(A, "watcher", 5000.0)
    assert interest.holders(A) == []


def test_the_best_since_the_peak_is_what_the_next_rise_is_measured_by() -> None:
    interest = Interest(Session())
    for who in "xyz":
        interest.add(A, who, 0.0)
    interest.served(A)
    interest.remove(A, "z", 10.0)
    interest.remove(A, "y", 500.0)
    interest.add(A, "y", 10.0 + SAME_S)  # three users are long ago, two are not
    assert not interest.standing(A).fresh
    interest.add(A, "z", 11.0 + SAME_S)
    assert interest.standing(A).fresh


def test_what_returns_before_it_was_forgotten_is_new_all_the_same() -> None:
    interest = Interest(Session())
    third = ("H0STCNT0", "000003")
    for key in (A, B, third):
        interest.add(key, "x", 0.0)
        interest.served(key)
        interest.remove(key, "x", 100.0)
    interest.add(third, "x", 100.0 + SAME_S)  # a call forgets two
    assert interest.standing(third).fresh
    assert interest.standing(third).since == 100.0 + SAME_S


def test_who_came_back_does_not_keep_others_from_being_forgotten() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0)
    interest.remove(A, "x", 1.0)
    interest.add(A, "x", 2.0)
    interest.add(B, "x", 3.0)
    interest.remove(B, "x", 4.0)
    interest.add(A, "y", 4.0 + SAME_S)
    assert interest.standing(B) == UNKNOWN


def test_what_was_served_has_to_be_looked_at_again() -> None:
    interest = Interest(Session())
    interest.add(A, "x", 0.0)
    assert interest.standing(A).score == Score(active=True, priority=0, users=1)
    assert interest.take_touched() == [A]
    interest.served(A)
    assert interest.take_touched() == [A]
    interest.served(A)
    assert interest.take_touched() == []
