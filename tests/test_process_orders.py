"""An order's path as a process walks it: what strace sees, and what a kill leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kisfeed.testing import open_simulator
from tests import killing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(killing.STRACE is None, reason="needs strace")


async def test_no_byte_of_an_order_before_its_record_and_no_kill_makes_two(tmp_path: Path) -> None:
    async with open_simulator(killing.options()) as sim:
        traced = tmp_path / "traced"
        traced.mkdir()
        calls = await killing.trace(sim, traced, "traced")
        sim.brokerage.orders.clear()
        posts = [i for i, c in enumerate(calls) if "POST /uapi" in c.text]
        synced = [i for i, c in enumerate(calls) if c.name == "fdatasync"]
        written = [i for i, c in enumerate(calls) if c.name == "write" and '\\"order\\"' in c.text]
        assert len(posts) == 1
        assert written[0] < synced[0] < posts[0]
        for point in (calls[synced[0]], calls[posts[0]], calls[synced[-1]]):
            state = tmp_path / f"{point.name}{point.nth}"
            state.mkdir()
            outcome = await killing.kill(sim, state, "a", point)
            assert outcome.killed
            assert outcome.executed <= 1
            assert outcome.right, outcome
