"""Who gets no slot is told so, and nobody else: ``Registrations.crowded_out``."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from kisfeed.core.registrations import State
from kisfeed.kis.codes import Meaning
from tests.test_core_registrations import NOTICE, World, full, key, keys

WAITS = st.sampled_from([0.0, 0.5, 5.0, 61.0, 700.0])
STEPS = st.lists(
    st.tuples(st.sampled_from(["want", "leave", "wait"]), st.integers(1, 9), WAITS), max_size=25
)


@settings(max_examples=60, deadline=None)
@given(
    plan=STEPS, cap=st.integers(1, 5), prio=st.dictionaries(st.integers(1, 9), st.integers(0, 2))
)
def test_whose_turn_has_come_gets_a_slot_and_the_others_do_not_yet(
    plan: list[tuple[str, int, float]], cap: int, prio: dict[int, int]
) -> None:
    world = World(cap=cap).up()
    wanted: dict[int, None] = {}
    for what, n, wait in plan:
        if what == "want" and n not in wanted:
            wanted[n] = None
            world.interest.add(key(n), n, world.now, prio=prio.get(n, 0))
        elif what == "leave" and n in wanted:
            del wanted[n]
            world.interest.remove(key(n), n, world.now)
        world.do(world.regs.changed(world.now))
        crowded = world.regs.crowded_out(world.now)
        assert len(set(crowded)) == len(crowded)
        for lost in crowded:
            assert world.regs.state(lost) is State.WAITING
        coming = [
            key(n)
            for n in wanted
            if world.regs.state(key(n)) is State.WAITING
            and key(n) not in crowded
            # A slot is free, but what was freed a moment ago is not asked for again so soon.
            and key(n) not in world.regs._blocked
        ]
        # The wire's time, and nobody wants anything else meanwhile.
        world.run(3.0)
        for next_one in coming:
            assert world.regs.state(next_one) is not State.WAITING
        world.run(wait)
    world.run(4000.0)
    waiting = [key(n) for n in wanted if world.regs.state(key(n)) is State.WAITING]
    assert sorted(world.regs.crowded_out(world.now)) == sorted(waiting)
    assert len(waiting) == max(0, len(wanted) - cap)


def test_without_a_session_nobody_is_told() -> None:
    world = World(cap=1)
    world.want(*keys(1, 3))
    assert world.regs.crowded_out(0.0) == []
    world.up()
    assert len(world.regs.crowded_out(0.0)) == 2
    world.down()
    assert world.regs.crowded_out(0.0) == []


def test_a_newcomer_past_everybodys_dwell_is_not_told() -> None:
    world = full()
    world.want(key(50))
    assert world.regs.crowded_out(world.now) == []
    assert key(50) in world.run(1.0).held


def test_within_the_dwell_it_is() -> None:
    world = World(cap=2).up()
    world.want(*keys(1, 2)).run(5.0)
    world.want(key(3))
    assert world.regs.crowded_out(world.now) == [key(3)]


def test_the_slot_that_is_kept_for_a_notice_is_nobody_elses() -> None:
    world = World(cap=2, reserved=[NOTICE])
    world.server.bad[NOTICE] = Meaning.TRANSIENT
    world.up().want(*keys(1, 2)).run(1.0)
    assert world.held == [key(1)]
    assert world.regs.crowded_out(world.now) == [key(2)]


def test_whose_slot_is_being_emptied_is_not_told() -> None:
    world = World(cap=1).up()
    world.want(key(1)).run(100.0).want(key(2))
    assert world.regs.state(key(1)) is State.RELEASING
    assert world.regs.crowded_out(world.now) == []


def test_several_newcomers_past_everybodys_dwell_are_not_told_and_the_one_too_many_is() -> None:
    world = World(cap=2).up()
    world.want(*keys(1, 2)).run(100.0).want(*keys(3, 4))
    assert world.regs.crowded_out(world.now) == []
    world = World(cap=2).up()
    world.want(*keys(1, 2)).run(100.0).want(*keys(3, 5))
    assert len(world.regs.crowded_out(world.now)) == 1
