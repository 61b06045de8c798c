"""Whatever befalls real processes, everybody knows afterwards what was traded."""

from __future__ import annotations

import itertools

import pytest

from tests import hardships
from tests.hardships import KINDS, Ledger

HALVES = (tuple(KINDS)[::2], tuple(KINDS)[1::2])


@pytest.mark.parametrize("kinds", HALVES, ids=("one half", "the other"))
async def test_after_every_hardship_the_accounts_close(kinds: tuple[str, ...]) -> None:
    # How quickly things happen is measured in bench.processes, not here.
    async with hardships.open_scene(seed=1, stall_s=1.5, exit_s=60.0) as scene:
        suffered = set()
        for blows in itertools.islice(hardships.rounds(1, kinds), -(-len(kinds) // 3)):
            assert await hardships.play(scene, blows) == []
            suffered |= {blow.kind for blow in blows}
        assert suffered == set(kinds)
        assert len(scene.counts["connects"]) > 1
        assert any(
            ledger.missed for reader in scene.readers.values() for ledger in reader.ledgers.values()
        )
        assert len(scene.secrets()) > len(hardships.SECRETS), "the proxies overheard some"
    assert scene.faults == []


def test_the_same_seed_brings_the_same_hardships() -> None:
    one, two, other = (list(itertools.islice(hardships.rounds(seed), 20)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def trade(sseq: int, qty: int, cum_qty: int, *, image: bool = False) -> dict[str, object]:
    return {"type": "trade", "flags": 0, "image": image, "sseq": sseq, "qty": qty} | {
        "cum_qty": cum_qty
    }


GAP = {"type": "gap", "next_sseq": 3, "missed_qty": 5}


@pytest.mark.parametrize(
    ("events", "faults"),
    [
        ([trade(1, 5, 15), trade(2, 5, 20)], 0),
        ([trade(1, 5, 15), trade(2, 5, 21)], 1),  # a share nobody told of
        ([trade(1, 5, 15), trade(3, 5, 20)], 1),  # a number that is missing
        ([trade(1, 5, 15), trade(1, 5, 15)], 3),  # the same row again
        ([trade(1, 5, 15), trade(2, 5, 20), GAP, trade(3, 5, 30)], 0),
        ([trade(1, 5, 15), trade(2, 5, 20), GAP, trade(3, 5, 31)], 1),
        ([trade(1, 5, 15), {"type": "lost", "n": 2}, trade(4, 5, 40)], 0),
        ([trade(1, 5, 15), {"type": "lost", "n": 2}, trade(5, 5, 40)], 1),
    ],
)
def test_a_ledger_finds_what_does_not_add_up(events: list[dict[str, object]], faults: int) -> None:
    ledger = Ledger()
    for event in events:
        ledger.take(event)
    assert len(ledger.faults) == faults, ledger.faults
    assert ledger.base == 10
