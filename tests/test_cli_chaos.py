"""``kisfeed chaos``: a violation is told at once; a run that is stopped reports what it played."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import attrs
import pytest

from kisfeed.chaos import campaign
from kisfeed.chaos.findings import Finding
from kisfeed.cli import chaos, failures, run
from kisfeed.cli.chaos import FOUND

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SHORT_S = 5.0


@pytest.fixture(scope="module")
def verdict() -> campaign.Verdict:
    return campaign.judge(0, _SHORT_S)


def stopped_after(monkeypatch: pytest.MonkeyPatch, *verdicts: campaign.Verdict) -> None:
    def seeds(_seeds: Sequence[int], _jobs: int) -> Iterator[campaign.Verdict]:
        yield from verdicts
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "run_seeds", seeds)


def test_a_run_that_is_stopped_reports_what_it_played(
    verdict: campaign.Verdict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped_after(monkeypatch, verdict)
    assert run(["chaos", "--seeds", "9"]) == failures.INTERRUPTED
    told = capsys.readouterr()
    assert "1 storms" in told.out
    assert "0 violations" in told.out


def test_a_violation_is_told_when_it_is_found_and_kept(
    verdict: campaign.Verdict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    broken = attrs.evolve(verdict, findings={"I1": Finding(faults=("4 connects in 60 s",))})
    stopped_after(monkeypatch, broken)
    assert run(["chaos", "--seeds", "9", "--replays", str(tmp_path)]) == FOUND
    told = capsys.readouterr()
    assert "seed 0: I1: 4 connects in 60 s" in told.err
    (kept,) = tmp_path.iterdir()
    assert f"kisfeed chaos replay {kept} --trace" in told.out


def test_sigterm_is_a_ctrl_c(
    verdict: campaign.Verdict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def seeds(_seeds: Sequence[int], _jobs: int) -> Iterator[campaign.Verdict]:
        yield verdict
        os.kill(os.getpid(), signal.SIGTERM)
        yield verdict

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(campaign, "run_seeds", seeds)
    assert run(["chaos", "--seeds", "9"]) == failures.INTERRUPTED
    assert "1 storms" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_a_terminal_a_line_says_how_far_it_is(
    verdict: campaign.Verdict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(chaos, "_SAY_S", -1.0)
    stopped_after(monkeypatch, verdict, verdict)
    run(["chaos", "--seeds", "9"])
    said = [line for line in capsys.readouterr().err.splitlines() if "violations" in line]
    assert said == ["1 storms, 0 with violations", "2 storms, 0 with violations"]


def test_one_stopped_before_its_first_storm_ended_has_nothing_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_after(monkeypatch)
    assert run(["chaos", "--seeds", "9"]) == failures.INTERRUPTED
    assert not capsys.readouterr().out
