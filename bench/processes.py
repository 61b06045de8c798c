"""Real processes and what befalls them: ``python -m bench.processes [--rounds N] [--seed S]``.

``kisfeed serve``, ``kisfeed sim`` and three subscribers over loopback, a fault proxy on both of
the daemon's lines; each round has one to three hardships at random instants from the seed. After
each the accounts must close. Ends with 1 if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import sys
from typing import TYPE_CHECKING

import trio
from rich.console import Console
from rich.table import Table

from tests import hardships

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.hardships import Scene


async def suffer(rounds: int, seed: int, *, stall_s: float, scale: float, liveness: float) -> int:
    kinds: collections.Counter[str] = collections.Counter()
    console = Console(stderr=True, soft_wrap=True)
    opened = hardships.open_scene(seed, stall_s=stall_s, scale=scale, liveness=liveness)
    async with opened as scene:
        drawn = itertools.islice(hardships.rounds(seed), rounds)
        for number, blows in enumerate(drawn, 1):
            kinds.update(blow.kind for blow in blows)
            faults = await hardships.play(scene, blows)
            console.print(
                f"{number:4} live again in {scene.live_s[-1]:5.1f} s  "
                + ", ".join(f"{blow.kind} {blow.value:.2f}" for blow in blows)
            )
            for fault in faults:
                console.print(f"     [bold red]{fault}")
    show(scene, kinds, rounds)
    return 1 if scene.faults else 0


def show(scene: Scene, kinds: collections.Counter[str], rounds: int) -> None:
    ledgers = [led for reader in scene.readers.values() for led in reader.ledgers.values()]
    everybody = [*ledgers, *scene.gone]
    table = Table(title=f"{rounds} rounds with {sum(kinds.values())} hardships")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, count in sorted(kinds.items()):
        table.add_row(what, str(count))
    table.add_section()
    table.add_row("shares traded", f"{sum(scene.counts['traded'].values()):,}")
    table.add_row("rows received, all subscribers", f"{sum(led.rows for led in everybody):,}")
    table.add_row("shares told as missed", f"{sum(led.missed for led in everybody):,}")
    table.add_row("rows told as lost", f"{sum(led.lost for led in everybody):,}")
    table.add_section()
    table.add_row("live again after healing", spread(scene.live_s))
    table.add_row("SIGTERM to the end", spread(scene.exits_s))
    table.add_row("connects, as KIS counted", str(len(scene.counts["connects"])))
    for seconds, allowed in hardships.WINDOWS:
        most = scene.most_dials(seconds)
        table.add_row(f"most in {seconds:,.0f} s of KIS's pace", f"{most} of {allowed}")
    table.add_row("refused as in use", str(scene.counts["in_use"]))
    table.add_row("keys looked for in all that was said", str(len(scene.secrets())))
    table.add_row("violations", str(len(scene.faults)))
    Console().print(table)


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99))
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, max {ordered[-1]:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stall", type=float, default=17.0, help="of the event loop, s (17)")
    parser.add_argument(
        "--scale", type=float, default=60.0, help="divides pauses and windows of dialling (60)"
    )
    parser.add_argument(
        "--liveness", type=float, default=1.0, help="divides what judges a live session (1)"
    )
    given = parser.parse_args()
    run = functools.partial(
        suffer,
        given.rounds,
        given.seed,
        stall_s=given.stall,
        scale=given.scale,
        liveness=given.liveness,
    )
    return trio.run(run)


if __name__ == "__main__":
    sys.exit(main())
