"""A real daemon that is killed again and again dials no more often than one process may."""

from __future__ import annotations

from kisfeed.chaos.restarts import crash_loop


async def test_a_crash_loop_dials_no_more_often_than_one_process_may() -> None:
    # A minute of the rules is a second here, an hour a minute.
    loop = await crash_loop(5, (0.1, 1.5), scale=60.0, watch_s=2.0)
    assert loop.connects >= 1
    assert loop.minute <= 3
    assert loop.hour <= 12
