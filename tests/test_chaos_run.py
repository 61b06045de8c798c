"""A few whole runs; ``kisfeed chaos`` plays thousands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import Phase, given, settings

from kisfeed.chaos import campaign, planted, schedule
from kisfeed.chaos.invariants import INVARIANTS, measure
from kisfeed.chaos.run import play
from tests.chaos_cases import storms

REGRESSIONS: Final = sorted((Path(__file__).parent / "regressions").glob("*.json"))


def faults_of(case: schedule.Case) -> list[str]:
    found = measure(play(case))
    return [f"{name}: {fault}" for name, finding in found.items() for fault in finding.faults]


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_once_went_wrong_goes_right(path: Path) -> None:
    case, said = schedule.read_replay(path)
    assert said["was_wrong"], "each file says in one line what was wrong"
    assert faults_of(case) == []


def test_a_case_is_the_same_after_its_file() -> None:
    for seed in range(50):
        case = schedule.draw(seed)
        assert schedule.Case.from_map(json.loads(json.dumps(case.to_map()))) == case


def test_the_same_case_gives_the_same_digest_and_another_another() -> None:
    case = schedule.draw(2)
    assert play(case).digest() == play(case).digest() != play(schedule.draw(34)).digest()


def test_every_invariant_is_measured_or_says_where_it_is() -> None:
    assert [i.id for i in INVARIANTS] == [f"I{n}" for n in range(1, 51)]
    assert all((i.measure is None) is bool(i.instead) for i in INVARIANTS)


@pytest.mark.parametrize("name", planted.BUGS)
def test_a_planted_bug_has_its_place(name: str) -> None:
    bug = planted.BUGS[name]
    right = vars(bug.target)[bug.name]
    with planted.plant(name):
        assert vars(bug.target)[bug.name] is not right
    assert vars(bug.target)[bug.name] is right


@given(storms())
@settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
def test_no_storm_breaks_an_invariant(case: schedule.Case) -> None:
    assert faults_of(case) == []


def test_a_run_that_spins_is_told_wherever_the_signal_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spins(_case: object) -> None:
        raise trio.TrioInternalError from campaign._TooLong()

    def breaks(_case: object) -> None:
        raise trio.TrioInternalError from ValueError()

    monkeypatch.setattr(campaign, "play", spins)
    (told,) = campaign.judge(1).faults["I9"]
    assert "did not end" in told
    monkeypatch.setattr(campaign, "play", breaks)
    with pytest.raises(trio.TrioInternalError):
        campaign.judge(1)
