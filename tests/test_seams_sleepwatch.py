"""A suspend is told once, and by what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from kisfeed.seams import SleepWatch, VirtualClock

if TYPE_CHECKING:
    from trio.testing import MockClock


async def test_a_sleep_is_told_once(autojump_clock: MockClock) -> None:
    clock = VirtualClock(0)
    watch = SleepWatch(clock, 2.0)
    await trio.sleep(100)
    assert watch.slept() == 0.0
    clock.suspended_s += 10
    assert watch.slept() == 10.0
    assert watch.slept() == 0.0


async def test_short_sleeps_are_not_added_to_a_later_one(autojump_clock: MockClock) -> None:
    clock = VirtualClock(0)
    watch = SleepWatch(clock, 2.0)
    for _ in range(5):
        clock.suspended_s += 1
        assert watch.slept() == 0.0
    clock.suspended_s += 10
    assert watch.slept() == 10.0
