"""Many seeds in several processes, and one report of them all."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.chaos import planted, schedule
from kisfeed.chaos.findings import Finding
from kisfeed.chaos.invariants import INVARIANTS, measure
from kisfeed.chaos.run import play
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

LONGEST_S: Final = 180.0
"""A run that takes more of a processor's time than this does not end."""


class _TooLong(BaseException):
    """A run spins."""


@attrs.frozen
class Verdict:
    """What came of one seed."""

    seed: int
    digest: str
    virtual_s: float
    steps: dict[str, int]
    findings: dict[str, Finding]

    @property
    def faults(self) -> dict[str, tuple[str, ...]]:
        """By invariant; empty is well."""
        return {name: found.faults for name, found in self.findings.items() if found.faults}


def judge(seed: int, horizon: float = schedule.HORIZON_S, *, bug: str = "") -> Verdict:
    """Play a seed and measure it; with *bug*, on a program with that mistake planted."""
    case = schedule.draw(seed, horizon)
    steps = dict(Counter(step.kind for step in case.steps))
    try:
        with planted.plant(bug) if bug else contextlib.nullcontext(), _limit(LONGEST_S):
            run = play(case)
        return Verdict(seed, run.digest(), min(run.ended_at, 1e6), steps, measure(run))
    except (_TooLong, trio.TrioInternalError) as exc:
        if not (isinstance(exc, _TooLong) or isinstance(exc.__cause__, _TooLong)):
            raise  # the signal may come within the scheduler, and nothing else ends it so
        fault = Finding(faults=(f"did not end within {LONGEST_S:g} s of a processor's time",))
        return Verdict(seed, "", 0.0, steps, {"I9": fault})


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run_seeds(
    seeds: Sequence[int], jobs: int, horizon: float = schedule.HORIZON_S
) -> Iterator[Verdict]:
    """The verdict of each seed, as they come."""
    task = partial(judge, horizon=horizon)
    if jobs <= 1:
        yield from map(task, seeds)
        return
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(jobs, _begin_worker, maxtasksperchild=250) as pool:
        yield from pool.imap_unordered(task, seeds, chunksize=2)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    gc.freeze()  # what is imported stays: to look through it again and again costs 6 %


@attrs.define
class Report:
    """The figures of all seeds together."""

    runs: int = 0
    virtual_s: float = 0.0
    steps: Counter[str] = attrs.field(factory=Counter)
    worst: dict[str, dict[str, float]] = attrs.field(factory=dict)
    samples: dict[str, dict[str, list[float]]] = attrs.field(factory=dict)
    counts: dict[str, Counter[str]] = attrs.field(factory=dict)
    marks: dict[str, Counter[str]] = attrs.field(factory=dict)
    broken: list[Verdict] = attrs.field(factory=list)

    def add(self, verdict: Verdict) -> None:
        """Take one more."""
        self.runs += 1
        self.virtual_s += verdict.virtual_s
        self.steps.update(verdict.steps)
        if verdict.faults:
            self.broken.append(verdict)
        for name, found in verdict.findings.items():
            worst = self.worst.setdefault(name, {})
            for what, value in found.worst.items():
                worst[what] = max(value, worst.get(what, value))
            samples = self.samples.setdefault(name, {})
            for what, values in found.samples.items():
                samples.setdefault(what, []).extend(values)
            self.counts.setdefault(name, Counter()).update(found.counts)
            self.marks.setdefault(name, Counter()).update(found.marks)

    def figure(self, name: str, say: Callable[[str], str] = str) -> str:
        """What was measured of an invariant, in the reader's language; empty for nothing."""
        parts = [f"{say(what)} {value:.6g}" for what, value in self.worst.get(name, {}).items()]
        for what, values in self.samples.get(name, {}).items():
            ordered = sorted(values)
            if ordered:
                p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
                figures = f"p50 {p50:.4g}, p99 {p99:.4g}, max {ordered[-1]:.4g}"
                parts.append(f"{say(what)} {figures} ({len(ordered):,})")
        counts = self.counts.get(name, Counter())
        parts += [f"{say(what)} {value:,}" for what, value in counts.items()]
        if self.marks.get(name):
            parts.append(say(Phrase("{count} kinds of change seen", count=len(self.marks[name]))))
        return "; ".join(parts)

    def to_map(self, say: Callable[[str], str] = str) -> dict[str, Any]:
        """JSON-able; *say* gives words in the reader's language."""
        broken = Counter(name for verdict in self.broken for name in verdict.faults)
        found = {i.id: self.figure(i.id, say) for i in INVARIANTS}
        nothing = Phrase("nothing to measure in these seeds")
        return {
            "seeds": self.runs,
            "virtual_hours": round(self.virtual_s / 3600, 2),
            "faults_injected": sum(self.steps.values()),
            "fault_kinds": dict(sorted(self.steps.items())),
            "violations": len(self.broken),
            "invariants": [
                {
                    "id": i.id,
                    "says": say(i.says),
                    "measured": bool(found[i.id]),
                    "figure": found[i.id] or say(i.instead or nothing),
                    "broken_in": broken[i.id],
                }
                for i in INVARIANTS
            ],
        }


# The same seed, the same digest.


def unlike(seeds: Sequence[int], tell: Callable[[int], object]) -> list[int]:
    """Seeds whose digests differ between two processes with different hash seeds."""
    found = []
    processes = [_spawn_digests(seeds, hash_seed) for hash_seed in ("0", "4242")]
    streams = [process.stdout for process in processes]
    try:
        for seed in seeds:
            one, two = (stream.readline() for stream in streams if stream is not None)
            if one != two or not one:
                found.append(seed)
            tell(seed)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return found


def _spawn_digests(seeds: Sequence[int], hash_seed: str) -> subprocess.Popen[str]:
    program = (
        "import sys; from kisfeed.chaos.campaign import judge;"
        "[print(judge(int(s)).digest, flush=True) for s in sys.argv[1:]]"
    )
    return subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-c", program, *map(str, seeds)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        text=True,
    )


# Does the harness find what is wrong?


def first_caught(bug: str, seeds: Sequence[int]) -> tuple[int, str] | None:
    """The number of seeds until a planted bug was seen, and what gave it away."""
    for number, seed in enumerate(seeds, 1):
        faults = judge(seed, bug=bug).faults
        if faults:
            name, told = next(iter(faults.items()))
            return number, f"{name}: {told[0]}"
    return None


def rehearse(seeds: Sequence[int], jobs: int) -> Iterator[tuple[str, tuple[int, str] | None]]:
    """Every planted bug, by name, as they are found or not."""
    task = partial(_rehearse, seeds=seeds)
    if jobs <= 1:
        yield from map(task, planted.BUGS)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(task, planted.BUGS)


def _rehearse(bug: str, seeds: Sequence[int]) -> tuple[str, tuple[int, str] | None]:
    return bug, first_caught(bug, seeds)
