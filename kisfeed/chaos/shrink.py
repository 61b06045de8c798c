"""A failure made small, and kept: fewer steps, shorter ones, an easier world."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.chaos.invariants import measure
from kisfeed.chaos.run import play
from kisfeed.chaos.schedule import Case, Setup, halves

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOST_RUNS: Final = 150
_EASIER: Final[tuple[dict[str, Any], ...]] = (
    {"orders": False},
    {"debug": False},
    {"notices": False},
    {"pinned": False},
    {"priorities": False},
    {"chopped": False},
    {"before_midnight_s": 0.0},
    {"acknowledge_close": True},
    {"latency_s": 0.02},
    {"cap": 41},
    {"topics": 1},
    {"topics": 3},
    {"rate_hz": 1.0},
)


def broken(case: Case) -> dict[str, tuple[str, ...]]:
    """The faults of a case, by invariant."""
    return {name: found.faults for name, found in measure(play(case)).items() if found.faults}


def shrink(case: Case, name: str, look: Callable[[Case], object] | None = None) -> Case:
    """The smallest case found that still breaks the invariant *name*.

    Args:
        case: breaks it.
        name: such as ``I20``.
        look: told of every case that is tried.
    """
    tries = 0

    def still(candidate: Case) -> bool:
        nonlocal tries
        tries += 1
        if look is not None:
            look(candidate)
        return name in broken(candidate)

    pieces = 2
    while len(case.steps) > 1 and tries < MOST_RUNS:
        smaller = next(
            (
                found
                for steps in halves(case.steps, pieces)
                if tries < MOST_RUNS and still(found := attrs.evolve(case, steps=steps))
            ),
            None,
        )
        if smaller is not None:
            case, pieces = smaller, max(2, pieces - 1)
        elif pieces >= len(case.steps):
            break
        else:
            pieces = min(len(case.steps), pieces * 2)
    for change in _EASIER:
        setup = Setup(**{**attrs.asdict(case.setup), **change})
        candidate = attrs.evolve(case, setup=setup)
        if candidate != case and tries < MOST_RUNS and still(candidate):
            case = candidate
    return case


def write_replay(
    path: Path, case: Case, digest: str, faults: dict[str, tuple[str, ...]], commit: str
) -> None:
    """Write the file that ``kisfeed chaos replay`` reads."""
    content = {
        "commit": commit,
        "was_wrong": "; ".join(f"{name}: {f[0]}" for name, f in faults.items()),
        "digest": digest,
        **case.to_map(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
