"""What the fuzzer asks of any bytes (``python -m tests.fuzz``) holds for those it begins with."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.fuzz import oracles

SEEDS = {target: list(oracles.seeds(target)) for target in oracles.ORACLES}


@pytest.mark.parametrize("target", SEEDS)
def test_every_seed_passes_its_oracle(target: str) -> None:
    assert len(SEEDS[target]) > 20
    for seed in SEEDS[target]:
        oracles.ORACLES[target](seed)


@given(st.sampled_from(list(SEEDS)), st.data())
def test_so_does_a_seed_with_a_hole_or_a_splice(target: str, data: st.DataObject) -> None:
    one, two = (data.draw(st.sampled_from(SEEDS[target])) for _ in range(2))
    start, stop = (data.draw(st.integers(0, len(one))) for _ in range(2))
    oracles.ORACLES[target](one[:start] + data.draw(st.binary(max_size=4)) + two[stop:])
