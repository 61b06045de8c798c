"""Ten minutes at ten times the rate of a busy open, with faults: ``python -m bench.soak``.

Real processes as in :mod:`bench.processes`; the daemon lives through all of it. Every few seconds
its memory, file descriptors, threads and Trio tasks are read; after a warm-up the slope of each
is fitted by least squares and held against a bound. Ends with 1 on a slope or a violation.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio
from rich.console import Console
from rich.table import Table

from tests import hardships

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.hardships import Scene

BUSY_OPEN: Final = 1_000  # trades a second on a full session: what a busy open is taken to be
SYMBOLS: Final = tuple(f"{number:06}" for number in range(100_010, 100_410, 10))
RECORDS: Final = 2.5  # the simulator's mean of a frame
BURST: Final = 12  # and of one frame of a burst
BURST_S: Final = 0.05
MOST_BURSTS: Final = 4.0  # at once
MOST_BACKLOG: Final = 32_768
ENDS: Final = {"daemon_killed", "daemon_loop", "daemon_ended", "daemon_ended_young"}
KINDS: Final = [kind for kind in hardships.KINDS if kind not in ENDS]
EVERY_S: Final = 2.0
ROUND_S: Final = 12.0
WARM: Final = 0.2  # of the time, before anything is fitted
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TASKS: Final = re.compile(r"^kisfeed_tasks (\S+)", re.MULTILINE)

# What may grow in an hour: memory in MB by the noise of an allocator, the rest not at all.
BOUNDS: Final = {"memory, MB": 12.0, "file descriptors": 6.0, "threads": 6.0, "tasks": 6.0}


@attrs.frozen
class Fit:
    """A least-squares line: its slope in an hour, and the half width of its 95 % interval."""

    slope: float
    within: float


def fit(at: Sequence[float], values: Sequence[float]) -> Fit:
    slope, base = statistics.linear_regression(at, values)
    rest = [value - base - slope * x for x, value in zip(at, values, strict=True)]
    middle = statistics.fmean(at)
    spread = math.fsum((x - middle) ** 2 for x in at)
    error = math.sqrt(math.fsum(r * r for r in rest) / (len(at) - 2) / spread)
    return Fit(slope * 3600, 1.96 * error * 3600)


@attrs.define(eq=False)
class Samples:
    """What was read of the daemon, and when."""

    at: list[float] = attrs.field(factory=list)
    values: dict[str, list[float]] = attrs.field(factory=lambda: {name: [] for name in BOUNDS})

    def take(self, scene: Scene) -> None:
        assert scene.daemon is not None
        process = Path(f"/proc/{scene.daemon.process.pid}")
        resident = int((process / "statm").read_text().split()[1]) * PAGE / 2**20
        metrics = scene.place.folder / "state" / "kisfeed" / "metrics-test.prom"
        found = TASKS.search(metrics.read_text() if metrics.exists() else "")
        if found is None:
            return
        self.at.append(trio.current_time())
        values = (
            resident,
            len(list((process / "fd").iterdir())),
            len(list((process / "task").iterdir())),
            float(found[1]),
        )
        for name, value in zip(self.values, values, strict=True):
            self.values[name].append(value)

    def newest(self) -> str:
        return ", ".join(f"{name} {values[-1]:g}" for name, values in self.values.items() if values)

    def warm(self) -> Iterator[tuple[str, list[float], Fit]]:
        first = int(len(self.at) * WARM)
        for name, values in self.values.items():
            yield name, values[first:], fit(self.at[first:], values[first:])


async def watch(scene: Scene, samples: Samples) -> None:
    while True:
        samples.take(scene)
        await trio.sleep(EVERY_S)


@attrs.define(eq=False)
class Storm:
    """What is traded beyond a busy open comes in bursts on every symbol, while it is on."""

    trades: float
    _turn: trio.Lock = attrs.field(factory=trio.Lock)

    def calm(self) -> trio.Lock:
        """No burst comes while this is held."""
        return self._turn

    async def run(self, scene: Scene) -> None:
        due, before = 0.0, trio.current_time()
        while True:
            await trio.sleep(BURST_S)
            now = trio.current_time()
            # What a busy machine did not get to is made up for, within reason.
            due += (now - before) * self.trades / BURST / len(SYMBOLS)
            before = now
            due = min(due, MOST_BURSTS)
            if due < 1:
                continue
            async with self._turn:
                # A simulator that cannot keep up would only grow a queue of its own.
                if scene.counts.get("backlog", 0) > MOST_BACKLOG:
                    await scene.ask({})
                    continue
                await scene.ask({"kind": "burst", "count": int(due)})
                due %= 1


def cpu_s(scene: Scene) -> float:
    assert scene.daemon is not None
    stat = Path(f"/proc/{scene.daemon.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


async def soak(minutes: float, trades: float, seed: int) -> int:
    console = Console(stderr=True, soft_wrap=True)
    kinds: collections.Counter[str] = collections.Counter()
    samples, storm = Samples(), Storm(max(trades - BUSY_OPEN, 0.0))
    opened = hardships.open_scene(
        seed,
        rate_hz=min(trades, BUSY_OPEN) / RECORDS / len(SYMBOLS),
        symbols=dict.fromkeys(hardships.READERS, SYMBOLS[:4]),
        pinned=[f"trade.krx.{symbol}" for symbol in SYMBOLS],
        liveness=1.0,
        log_level="info",
    )
    async with opened as scene, trio.open_nursery() as nursery:
        nursery.start_soon(watch, scene, samples)
        nursery.start_soon(storm.run, scene)
        began, cpu = trio.current_time(), cpu_s(scene)
        records = (await scene.ask({}))["records"]
        for blows in hardships.rounds(seed, KINDS):
            now = trio.current_time()
            if now > began + minutes * 60:
                break
            kinds.update(blow.kind for blow in blows)
            known = len(scene.faults)
            await scene.suffer(blows)
            await scene.heal()
            async with storm.calm():
                await scene.close()
            console.print(
                f"{trio.current_time() - began:6.0f} s  {samples.newest()}  "
                + ", ".join(blow.kind for blow in blows)
            )
            for fault in scene.faults[known:]:
                console.print(f"    [bold red]{fault}")
            await trio.sleep_until(now + ROUND_S)
        took, used = trio.current_time() - began, cpu_s(scene) - cpu
        records = (await scene.ask({}))["records"] - records
        nursery.cancel_scope.cancel()
    table = Table(title=f"{took / 60:.1f} minutes, {sum(kinds.values())} hardships")
    for title in ("what", "begin", "end", "slope in an hour", "bound", ""):
        table.add_column(title, justify="left" if title == "what" else "right")
    bad = 0
    for name, values, line in samples.warm():
        well = line.slope - line.within <= BOUNDS[name]
        bad += not well
        table.add_row(
            name,
            f"{values[0]:.1f}",
            f"{values[-1]:.1f}",
            f"{line.slope:+.2f} ± {line.within:.2f}",
            f"{BOUNDS[name]:g}",
            "flat" if well else "[bold red]grows[/]",
        )
    out = Console()
    out.print(table)
    out.print(
        f"{records / took:,.0f} trades a second on {len(SYMBOLS)} symbols for {took:.0f} s, the "
        f"daemon used {used / took:.0%} of a core; {len(scene.counts['connects'])} connects; "
        f"{len(samples.at)} samples; {len(scene.faults)} violations"
    )
    return 1 if bad or scene.faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--trades", type=float, default=10.0 * BUSY_OPEN, help="a second (10,000)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return trio.run(soak, given.minutes, given.trades, given.seed)


if __name__ == "__main__":
    sys.exit(main())
