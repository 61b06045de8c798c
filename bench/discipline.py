"""Session discipline and slot market, measured: ``python -m bench.discipline``.

Plays storms (the pure core against a model KIS), outages, and whole-stack scenes in virtual
time, and a real process that is killed again and again. Prints a table and exits 1 if anything
is not as it must be. A storm repeats from its number: ``--storm N``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kisfeed.chaos import outages, restarts, stages, storms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FULL_STORMS: Final = 10_000
QUICK_STORMS: Final = 200
FULL_RESTARTS: Final = 50
_SHOWN: Final = 10  # faults printed in full


@attrs.frozen
class Line:
    """One line of the table: what must be true, what was measured, and whether it is."""

    what: str
    bound: str
    measured: str
    well: bool


def at_most(what: str, measured: float, bound: float, unit: str = "") -> Line:
    """A figure with an upper bound."""
    return Line(what, f"<= {bound:g}{unit}", f"{measured:.4g}{unit}", measured <= bound)


def exactly(what: str, measured: float, wanted: float) -> Line:
    """A figure that has one right value."""
    return Line(what, f"{wanted:g}", f"{measured:g}", measured == wanted)


# Storms.


def storm(seed: int) -> storms.Verdict:
    """One storm; for a worker."""
    return storms.run(storms.plan(seed))


def storm_lines(verdicts: Sequence[storms.Verdict]) -> list[Line]:
    """What all of them say together."""
    worst = [max(v.most[n] for v in verdicts) for n in range(3)]
    held = sum(not v.faults for v in verdicts)
    return [
        at_most("storms: connects in any 60 s", worst[0], 3),
        at_most("storms: connects in any hour", worst[1], 12),
        at_most("storms: connects in any day", worst[2], 60),
        exactly(
            "storms: connects while the breaker is open",
            sum(v.breaker_connects for v in verdicts),
            0,
        ),
        exactly("storms: seconds with two sessions", sum(v.overlap_s for v in verdicts), 0),
        at_most("storms: registered at any instant", max(v.most_registered for v in verdicts), 41),
        at_most(
            "storms: subscribes of one key in a minute of a session",
            max(v.flips for v in verdicts),
            3,
        ),
        Line(
            "storms: both sides equal after quiet, no wrong active, shares add up",
            f"{len(verdicts)}",
            f"{held}",
            held == len(verdicts),
        ),
    ]


def storm_notes(verdicts: Sequence[storms.Verdict], seconds: float) -> str:
    """How much was rehearsed."""
    heals = sorted(v.heal_s for v in verdicts)
    return (
        f"{len(verdicts)} storms, {sum(v.connects for v in verdicts):,} connects, "
        f"{sum(v.events for v in verdicts):,} events in {seconds:.0f} s; "
        f"well again after p50 {heals[len(heals) // 2]:.0f} s, "
        f"p99 {heals[len(heals) * 99 // 100]:.0f} s, worst {heals[-1]:.0f} s "
        "(a day's budget that is spent takes a day)"
    )


# Outages.


def outage(case: tuple[outages.Outage, float, int]) -> tuple[outages.Outage, float]:
    """One outage; for a worker."""
    of, lasts, seed = case
    return of, outages.wait_after(of, lasts, seed)


def outage_lines(waits: Sequence[tuple[outages.Outage, float]]) -> list[Line]:
    """The worst wait of each kind."""
    worst: dict[outages.Outage, float] = {}
    for of, wait in waits:
        worst[of] = max(wait, worst.get(of, 0.0))
    return [
        at_most(f"heal to dial: {of.why}", wait, of.bound_s, " s") for of, wait in worst.items()
    ]


# Scenes.


@attrs.frozen
class Scene:
    """A whole-stack scene and what its figures must be."""

    name: str
    play: Callable[[], Any]
    judge: Callable[[dict[str, float]], list[Line]]


def _closed(name: str, redials: int) -> Callable[[dict[str, float]], list[Line]]:
    return lambda f: [
        exactly(f"{name}: reconnects", f["reconnects"], redials),
        exactly(f"{name}: live at the next open", f["live"], 1),
        *(
            [at_most(f"{name}: redialled before the open", f["first_before_open_s"], 601, " s")]
            if redials
            else []
        ),
    ]


def _half_open(name: str, suspect: float, dead: float) -> Callable[[dict[str, float]], list[Line]]:
    return lambda f: [
        at_most(f"{name}: told as suspect", f["suspect_s"], suspect, " s"),
        at_most(f"{name}: dead", f["dead_s"], dead, " s"),
    ]


def _missed(seed: int) -> Callable[[dict[str, float]], list[Line]]:
    return lambda f: [
        Line(
            f"missed shares, run {seed}",
            f"{f['withheld']:,.0f} withheld",
            f"{f['reported']:,.0f} reported",
            f["wrong"] == 0,
        )
    ]


def _slots(name: str) -> Callable[[dict[str, float]], list[Line]]:
    return lambda f: [
        exactly(f"{name}: swaps while interest is unchanged", f["swaps_at_rest"], 0),
        at_most(f"{name}: swaps an hour under two flapping clients", f["swaps_an_hour"], 6),
        at_most(f"{name}: registered", f["most_registered"], 41),
        exactly(f"{name}: subscribes before the release was acknowledged", f["over_cap"], 0),
        exactly(f"{name}: the two sides differ by", f["unequal"], 0),
    ]


def scenes(*, quick: bool) -> list[Scene]:
    """All of them; shorter ones for *quick*."""
    hours = 1.0 if quick else 3.0
    seeds = 2 if quick else 40
    return [
        Scene(
            "closed market",
            partial(stages.play, stages.closed_market),
            _closed("closed market, 12 h", 0),
        ),
        Scene(
            "closed market, session lost",
            partial(stages.play, partial(stages.closed_market, drop=True)),
            _closed("closed market, session lost", 1),
        ),
        Scene(
            "half-open, busy",
            partial(stages.play, stages.half_open, 500.0, 15.0 if quick else 60.0),
            _half_open("half-open at 500 frames/s", 6, 15),
        ),
        Scene(
            "half-open, quiet",
            partial(stages.play, stages.half_open, 0.0, 300.0),
            _half_open("half-open, quiet market", 46, 91),
        ),
        Scene(
            "ack then nothing",
            partial(stages.play, stages.ack_then_nothing),
            lambda f: [
                at_most("ACK then nothing: found", f["found_s"], 61, " s"),
                at_most("ACK then nothing: data again", f["repaired_s"], 75, " s"),
                exactly("ACK then nothing: dials", f["connects"], 1),
            ],
        ),
        Scene(
            "wrong HTS ID",
            partial(stages.play, stages.wrong_hts_id, hours),
            lambda f: [
                at_most("wrong HTS ID: dials", f["connects"], 3),
                Line(
                    "wrong HTS ID: market data in the last hour",
                    "> 700 trades",
                    f"{f['trades_in_last_hour']:g}",
                    f["trades_in_last_hour"] > 700,
                ),
                exactly("wrong HTS ID: the notice topic is closed", f["notice_closed"], 1),
            ],
        ),
        *(
            Scene(
                f"missed shares {seed}",
                partial(stages.play, stages.missed_shares, seed, 10.0 if quick else 60.0),
                _missed(seed),
            )
            for seed in range(seeds)
        ),
        Scene(
            "slots",
            partial(stages.play, stages.slot_market, hours),
            _slots("60 topics on 41 slots"),
        ),
        Scene(
            "slots, flapping only",
            partial(stages.play, partial(stages.slot_market, steady=False), hours),
            _slots("60 topics of two flapping clients"),
        ),
    ]


def scene(number: int, quick: bool) -> list[Line]:
    """One scene; for a worker."""
    found = scenes(quick=quick)[number]
    try:
        return found.judge(found.play())
    except Exception as exc:  # noqa: BLE001  # a scene that breaks is a line that is not well
        return [Line(found.name, "plays", f"{type(exc).__name__}: {exc}", well=False)]


# A real process.


def restart_lines(kills: int, console: Console) -> list[Line]:
    """Crash loops of a real daemon: the minute in real time, hour and day with faster rules."""
    found: list[Line] = []
    for what, lives, scale, watch_s in (
        ("fifty a minute", (0.0, 0.6), 1.0, 65.0),
        ("rules x60", (0.1, 4.0), 60.0, 10.0),
        ("rules x720", (0.1, 4.0), 720.0, 10.0),
    ):
        columns = (TextColumn(f"kill -9, {what}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("", total=kills)
            loop = trio.run(
                partial(
                    restarts.crash_loop,
                    kills,
                    lives,
                    scale=scale,
                    watch_s=watch_s,
                    killed=partial(progress.advance, bar),
                )
            )
        console.print(
            f"{kills} kills of a real daemon, {what}: {loop.connects} connects in "
            f"{loop.seconds:.0f} s, {loop.shortest_gap_s:.2f} s apart at least"
        )
        name = f"{kills} kill -9, {what}: connects in any"
        found += [
            at_most(f"{name} {60 / scale:g} s", loop.minute, 3),
            at_most(f"{name} {3600 / scale:g} s", loop.hour, 12),
            at_most(f"{name} {86400 / scale:g} s", loop.day, 60),
        ]
    return found


# The command.


def _report(lines: Iterable[Line], console: Console) -> bool:
    table = Table(title="Session discipline and slot market")
    table.add_column("What")
    table.add_column("Must be", justify="right")
    table.add_column("Measured", justify="right")
    table.add_column("")
    well = True
    for line in lines:
        well = well and line.well
        mark = "[green]ok[/]" if line.well else "[bold red]NOT OK[/]"
        table.add_row(line.what, line.bound, line.measured, mark)
    console.print(table)
    return well


def _report_markdown(lines: Sequence[Line], console: Console) -> bool:
    rows = [("What", "Must be", "Measured"), ("---", "--:", "--:")]
    rows += [(line.what, line.bound, line.measured) for line in lines]
    for row in rows:
        console.out(f"| {' | '.join(row)} |", highlight=False)
    return all(line.well for line in lines)


def _shares(lines: list[Line]) -> list[Line]:
    """The runs of missed shares as one line, unless one is wrong."""
    runs = [line for line in lines if line.what.startswith("missed shares")]
    if not runs or not all(line.well for line in runs):
        return lines
    total = sum(int(line.bound.split()[0].replace(",", "")) for line in runs)
    one = Line(
        f"missed shares over {len(runs)} runs of holes and disconnects",
        f"{total:,} withheld",
        f"{total:,} reported",
        well=True,
    )
    return [line for line in lines if line not in runs] + [one]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.discipline", description=__doc__)
    parser.add_argument("--schedules", type=int, help=f"storms; {FULL_STORMS} by default")
    parser.add_argument("--first", type=int, default=0, help="number of the first storm")
    parser.add_argument("--storm", type=int, help="play one storm and say what was wrong")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--restarts", type=int, help="kill a real daemon this often; 50 by default")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    if options.storm is not None:
        verdict = storm(options.storm)
        console.print(storms.plan(options.storm), verdict)
        return 1 if verdict.faults else 0
    count = options.schedules
    if count is None:
        count = QUICK_STORMS if options.quick else FULL_STORMS
    restarts = options.restarts
    if restarts is None:
        restarts = 0 if options.quick else FULL_RESTARTS
    started = time.monotonic()
    lines: list[Line] = []
    verdicts: list[storms.Verdict] = []
    waits: list[tuple[outages.Outage, float]] = []
    cases = [
        case
        for group in (outages.OUTAGES, outages.PUNISHED)
        for case in outages.cases(group, 2 if options.quick else 20)
    ]
    numbers = range(len(scenes(quick=options.quick)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress,
        context.Pool(options.workers) as pool,
    ):
        bars = {
            name: progress.add_task(name, total=total)
            for name, total in (
                ("scenes", len(numbers)),
                ("outages", len(cases)),
                ("storms", count),
            )
        }
        for found in pool.imap(partial(scene, quick=options.quick), numbers):
            lines += found
            progress.advance(bars["scenes"])
        for wait in pool.imap(outage, cases, chunksize=8):
            waits.append(wait)
            progress.advance(bars["outages"])
        storming = time.monotonic()
        seeds = range(options.first, options.first + count)
        for verdict in pool.imap_unordered(storm, seeds, chunksize=8):
            verdicts.append(verdict)
            progress.advance(bars["storms"])
        stormed = time.monotonic() - storming
    table = [*(storm_lines(verdicts) if verdicts else []), *outage_lines(waits), *_shares(lines)]
    if restarts:
        table += restart_lines(restarts, console)
    well = _report_markdown(table, console) if options.markdown else _report(table, console)
    if verdicts:
        console.print(storm_notes(verdicts, stormed))
    for verdict in sorted((v for v in verdicts if v.faults), key=lambda v: v.seed)[:_SHOWN]:
        console.print(f"storm {verdict.seed}: {verdict.faults[0]}")
    console.print(
        f"Python {platform.python_version()}, {options.workers} workers, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
