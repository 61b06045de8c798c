"""How fast, side by side: ``python -m bench.speed [--quick] [--only NAME] [--json] [--markdown]``.

Everything of one table is measured in one run, round by round in turn, and compared as ratios:
the figures belong to the machine, the ratios carry over. CPU is process time (daemon, relay and
broker), so that other work on the machine disturbs it less than a clock would. KIS's end and the
subscribers' are C (``bench/load.c``) in processes of their own. Plots and the raw figures go to
``bench/out/``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import ends, pieces, wire
from bench.ends import PEERS, RAW, TYPED, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

UNIX, PIPELINE, AWAITED, NATS, ZMQ, PICOWS, COALESCED = PEERS
_WIDTH: Final = 130  # of the tables, where the terminal is narrower or there is none
EVERYBODY: Final = (TYPED, RAW, *PEERS)
Figures: TypeAlias = dict[str, float]
Case: TypeAlias = "Callable[[], Figures | str]"


@attrs.frozen
class Row:
    """One line of a table.

    Attributes:
        table: which.
        name: what was measured.
        figures: by column; what is missing was not measured.
        note: why it was not.
    """

    table: str
    name: str
    figures: Figures
    note: str = ""


@attrs.frozen
class Goal:
    """One row of the goals: what was measured, and whether it reaches the bound."""

    number: str
    what: str
    bound: str
    measured: str
    reached: bool | None


@attrs.define(eq=False)
class Bench:
    """One run: what is to be measured, and what was.

    Attributes:
        quick: shorter loads, fewer sizes.
        rounds: how often everything is measured; medians count.
    """

    quick: bool
    rounds: int
    progress: Progress
    rows: list[Row] = attrs.field(factory=list)

    def table(self, table: str, cases: Mapping[str, Case]) -> None:
        """Measure all *cases* in turn, round by round, and keep the median of each figure."""
        task = self.progress.add_task(table, total=self.rounds * len(cases))
        found: dict[str, list[Figures]] = {name: [] for name in cases}
        notes: dict[str, str] = {}
        for _ in range(self.rounds):
            for name, case in cases.items():
                self.progress.update(task, description=f"{table}: {name}")
                if name not in notes:
                    try:
                        outcome = case()
                    except RuntimeError as exc:
                        outcome = f"failed: {exc}"  # one peer's trouble is not the others'
                    if isinstance(outcome, str):
                        notes[name] = outcome
                    else:
                        found[name].append(outcome)
                self.progress.advance(task)
        self.progress.update(task, description=table)
        for name, figures in found.items():
            columns = dict.fromkeys(column for each in figures for column in each)
            medians = {c: statistics.median(f[c] for f in figures if c in f) for c in columns}
            self.rows.append(Row(table, name, medians, notes.get(name, "")))

    def get(self, table: str, name: str, column: str) -> float | None:
        """A figure that was measured in this run, or None."""
        for row in self.rows:
            if row.table == table and row.name == name:
                return row.figures.get(column)
        return None


def end(name: str, subscribers: int, load: Load, *, stalled: int = 0) -> Figures | str:
    """One end to end run as figures, or why there is none."""
    absent = ends.missing(name)
    if absent:
        return absent
    result = ends.measure(name, subscribers, load, stalled=stalled)
    figures = {"us": result.us, "frames/s": result.rate, "CPU %": result.cpu * 100}
    figures |= {f"{name} us": late for name, late in result.late.items()}
    if load.rate:
        figures |= {"missing": float(result.missing)}
    return figures | {"LOST": float(result.lost)}


def needing(module: str, measured: Callable[[], float]) -> Case:
    """A case that needs a peer's package."""

    def case() -> Figures | str:
        return {"us": measured()} if pieces.available(module) else f"skipped: no {module}"

    return case


def receive(bench: Bench) -> None:
    frames = {"kisfeed": 400_000, "picows (uvloop)": 400_000, "aiohttp": 100_000}

    def case(name: str) -> Case:
        count = frames.get(name, 30_000) // (4 if bench.quick else 1)
        module = {"kisfeed": "trio", "trio-websocket, get_message": "trio"}.get(
            name, name.split(maxsplit=1)[0]
        )
        return needing(module, lambda: pieces.receive(name, count))

    bench.table("receive", {name: case(name) for name in pieces.RECEIVERS})


def decode(bench: Bench) -> None:
    bench.table(
        "decode",
        {
            "kisfeed: row, gaps, last value, encoded": lambda: {"us": pieces.decode_kisfeed()},
            "the same, one frame a read": lambda: {"us": pieces.decode_kisfeed(per_read=1)},
            "mojito2, parser alone": needing("mojito", pieces.decode_mojito),
            "python-kis, parser alone": needing("pykis", pieces.decode_pykis),
            "pandas for each frame": needing("pandas", pieces.decode_pandas),
        },
    )


def cost(measured: Callable[..., float], *arguments: int, **named: int) -> Case:
    """A case of one figure."""
    return lambda: {"us": measured(*arguments, **named)}


def everybody(load: Load, subscribers: int, names: Sequence[str] = EVERYBODY) -> dict[str, Case]:
    """A case for kisfeed and each of its peers under the same load."""
    return {name: partial(end, name, subscribers, load) for name in names}


def growth(bench: Bench) -> None:
    """Cost as symbols, records in a frame, and subscribers grow."""
    bench.table("symbols", {str(n): cost(pieces.decode_kisfeed, symbols=n) for n in (1, 10, 40)})
    bench.table(
        "records in a frame, us a record",
        {str(n): cost(pieces.decode_kisfeed, n) for n in (1, 2, 4, 10)},
    )
    for per_read, name in ((1, "subscribers, one frame a read"), (100, "subscribers, 100 a read")):
        sizes = (1, 10, 100, 1000)
        bench.table(name, {str(n): cost(pieces.publish, n, per_read) for n in sizes})


def saturated(bench: Bench) -> None:
    load = Load(seconds=1.0 if bench.quick else 2.0)
    for n in (10, 50) if bench.quick else (1, 10, 50):
        names = (TYPED, RAW, PICOWS, COALESCED) if bench.quick and n == 50 else EVERYBODY
        bench.table(f"end to end, saturated, {n} subscribers", everybody(load, n, names))


def fan_out(bench: Bench) -> None:
    sizes = (1, 10, 100) if bench.quick else (1, 10, 100, 1000)
    load = Load(seconds=1.0)
    bench.table("fan-out, saturated, typed", {str(n): partial(end, TYPED, n, load) for n in sizes})


def paced(bench: Bench) -> None:
    seconds = 2.0 if bench.quick else 4.0
    for rate in (2000, 5000) if bench.quick else (1000, 2000, 5000, 10_000):
        load = Load(rate=rate, seconds=seconds)
        bench.table(f"end to end, {rate} frames/s, 10 subscribers", everybody(load, 10))
    load = Load(rate=2000, seconds=seconds)
    bench.table(
        "one more subscriber, 2000 frames/s",
        {str(n): partial(end, TYPED, n, load) for n in (1, 10, 50, 100)},
    )


def bursts(bench: Bench) -> None:
    load = Load(rate=5000, burst=100, seconds=2.0 if bench.quick else 4.0)
    names = (TYPED, RAW, PIPELINE, COALESCED)
    bench.table("bursts of 100, 5000 frames/s, 10 subscribers", everybody(load, 10, names))


def crowd(bench: Bench) -> None:
    load = Load(rate=500, seconds=3.0 if bench.quick else 6.0)
    cases: dict[str, Case] = {}
    for n in (1000, 100):
        cases[f"{n} subscribers"] = partial(end, TYPED, n, load)
        cases[f"{n} subscribers, three more stalled"] = partial(end, TYPED, n, load, stalled=3)
    bench.table("500 frames/s", cases)
    in_fours = Load(rate=1000, burst=4, seconds=load.seconds)
    bench.table(
        "1000 frames/s in reads of 4", {"1000 subscribers": partial(end, TYPED, 1000, in_fours)}
    )


def small(bench: Bench) -> None:
    """Memory, start-up and hand-over inside a program."""
    bench.table(
        "memory, bytes",
        {
            "a connection, idle, one topic": lambda: {"bytes": pieces.memory_of_connection()},
            "a subscriber of 20 topics in the core": lambda: {"bytes": pieces.memory_of_outbox(0)},
            "the same, 1024 frames wait": lambda: {"bytes": pieces.memory_of_outbox(1024)},
            "a registration with its topic": lambda: {"bytes": pieces.memory_of_registration()},
        },
    )
    bench.table(
        "start-up, ms",
        {
            "import kisfeed": lambda: pieces.startup("-c", "import kisfeed"),
            "kisfeed --help": lambda: pieces.startup("-m", "kisfeed", "--help"),
            "kisfeed demo to the first tick": lambda: {"ms": pieces.demo_first_tick() * 1e3},
        },
    )

    def hand_over() -> Figures:
        ours, theirs = pieces.in_process(100)
        return {"us": ours, "memory channel us": theirs}

    bench.table("in process, batches of 100", {"a tick": hand_over})


def stalls(bench: Bench) -> None:
    bench.table(
        "longest stall of the reader, ms",
        {"storm of 200 subscribers, garbage, status calls": lambda: {"ms": pieces.reader_stall()}},
    )


SECTIONS: Final[Mapping[str, Callable[[Bench], None]]] = {
    "receive": receive,
    "decode": decode,
    "growth": growth,
    "saturated": saturated,
    "fanout": fan_out,
    "paced": paced,
    "bursts": bursts,
    "crowd": crowd,
    "small": small,
    "stalls": stalls,
}


def goals(bench: Bench) -> list[Goal]:
    """The goals this run has figures for."""
    found: list[Goal] = []
    get = bench.get

    def ratio(
        number: str, what: str, least: float, ours: float | None, other: float | None
    ) -> None:
        if ours and other:
            x = other / ours
            found.append(Goal(number, what, f">= {least:g}x", f"{x:.3g}x", x >= least))

    def most(number: str, what: str, bound: float, unit: str, got: float | None) -> None:
        if got is not None:
            found.append(
                Goal(number, what, f"<= {bound:g}{unit}", f"{got:.3g}{unit}", got <= bound)
            )

    row = "kisfeed: row, gaps, last value, encoded"
    ratio(
        "V1",
        "receive, against trio-websocket",
        20,
        get("receive", "kisfeed", "us"),
        get("receive", "trio-websocket, get_message", "us"),
    )
    for number, name, least in (
        ("V2", "python-kis, parser alone", 6.0),
        ("V3", "pandas for each frame", 200.0),
    ):
        ratio(
            number,
            f"trade to encoded row, against {name}",
            least,
            get("decode", row, "us"),
            get("decode", name, "us"),
        )
    against: tuple[tuple[str, int, str, str, float], ...] = (
        ("V4", 10, TYPED, UNIX, 5),
        ("V5", 10, TYPED, PIPELINE, 4),
        ("V6", 10, TYPED, AWAITED, 15),
        ("V7", 10, RAW, PICOWS, 4),
        ("V7", 50, RAW, PICOWS, 8),
        ("V8", 10, RAW, COALESCED, 0.8),
        ("V8", 50, RAW, COALESCED, 0.8),
    )
    for number, n, ours, name, least in against:
        table = f"end to end, saturated, {n} subscribers"
        ratio(
            number,
            f"CPU a frame, {ours}, {n} subscribers, against {name}",
            least,
            get(table, ours, "us"),
            get(table, name, "us"),
        )
    table = "end to end, 2000 frames/s, 10 subscribers"
    for share in ("p50", "p99"):
        late = get(table, TYPED, f"{share} us")
        others = {n: get(table, n, f"{share} us") for n in PEERS}
        known = {n: value for n, value in others.items() if value}
        if late and known:
            name, best = min(known.items(), key=lambda item: item[1])
            measured = f"{late / best:.3g}x of {name}"
            found.append(Goal("V9", f"{share} at 2000/s", "<= 1.1x", measured, late / best <= 1.1))
    most(
        "V10",
        "CPU at 5000 frames/s, 10 subscribers",
        30,
        " %",
        get("end to end, 5000 frames/s, 10 subscribers", TYPED, "CPU %"),
    )
    table = "one more subscriber, 2000 frames/s"
    few, many = get(table, "10", "us"), get(table, "50", "us")
    if few and many:
        most("V11", "one more subscriber, a frame", 1.9, " us", (many - few) / 40)
    kib = 1024
    idle = get("memory, bytes", "a connection, idle, one topic", "bytes")
    empty = get("memory, bytes", "a subscriber of 20 topics in the core", "bytes")
    full = get("memory, bytes", "the same, 1024 frames wait", "bytes")
    if idle is not None and empty is not None and full is not None:
        most("V12", "memory of an idle subscriber", 6, " KiB", idle / kib)
        most("V12", "with 1,024 shared frames", 20, " KiB", (idle + full - empty) / kib)
    lost = get("500 frames/s", "1000 subscribers", "missing")
    most("V13", "ticks missing, 1,000 subscribers at 500/s", 0, "", lost)
    calm = get("500 frames/s", "100 subscribers", "p99 us")
    rough = get("500 frames/s", "100 subscribers, three more stalled", "p99 us")
    if calm and rough:
        most("V13", "p99 moved by three stalled", 25, " %", max(0.0, (rough / calm - 1) * 100))
    table = "bursts of 100, 5000 frames/s, 10 subscribers"
    burst, piped = get(table, TYPED, "p99 us"), get(table, PIPELINE, "p99 us")
    if burst and piped:
        most("V13b", "p99 in bursts of 100, against the Redis pipeline", 0.3, "x", burst / piped)
    most(
        "V14",
        "longest stall of the reader",
        5,
        " ms",
        get(
            "longest stall of the reader, ms",
            "storm of 200 subscribers, garbage, status calls",
            "ms",
        ),
    )
    # Starting waits for nothing, so its CPU is what it takes on a machine that does nothing else.
    for what, bound, column in (
        ("kisfeed demo to the first tick", 2000, "ms"),
        ("import kisfeed", 150, "CPU ms"),
        ("kisfeed --help", 150, "CPU ms"),
    ):
        most("V15", what, bound, f" {column}", get("start-up, ms", what, column))
    ratio(
        "V16",
        "in-process batch, against a memory channel",
        5,
        get("in process, batches of 100", "a tick", "us"),
        get("in process, batches of 100", "a tick", "memory channel us"),
    )
    return found


def tables(bench: Bench) -> dict[str, list[Row]]:
    """The rows by table, in order."""
    found: dict[str, list[Row]] = {}
    for row in bench.rows:
        found.setdefault(row.table, []).append(row)
    return found


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body of one table; the last column compares costs with the first row's."""
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    base = rows[0].figures.get("us")
    head = ["", *columns] + (["x first"] if base and len(rows) > 1 else [])
    body = []
    for row in rows:
        line = [row.name] + [_figure(row.figures.get(column)) for column in columns]
        if len(head) > len(line):
            us = row.figures.get("us")
            line.append(_figure(us / base) if us and base else row.note)
        body.append(line)
    return head, body


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def goal_cells(found: Sequence[Goal]) -> tuple[list[str], list[list[str]]]:
    head = ["", "what", "goal", "measured", "reached"]
    return head, [
        [g.number, g.what, g.bound, g.measured, "yes" if g.reached else "no"] for g in found
    ]


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}"


def show(console: Console, bench: Bench, *, markdown: bool) -> None:
    every = [(name, *cells(rows)) for name, rows in tables(bench).items()]
    found = goals(bench)
    if found:
        every.append(("goals", *goal_cells(found)))
    for name, head, body in every:
        if markdown:
            lines = [f"### {name}", "", "| " + " | ".join(head) + " |"]
            lines += ["|" + "---|" * len(head)]
            lines += ["| " + " | ".join(line) + " |" for line in body]
            print("\n".join([*lines, ""]))
            continue
        table = Table(title=name, title_justify="left")
        for column in head:
            table.add_column(column, justify="left" if column in {"", "what"} else "right")
        for line in body:
            table.add_row(*line)
        console.print(table)


def main() -> None:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, shorter loads")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (3)")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="repeatable")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown on stdout")
    parser.add_argument("--plots", action="store_true", help="also bench/plots/, for the README")
    options = parser.parse_args()
    talk = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    wire.library()
    with Progress(*columns, console=talk) as progress:
        bench = Bench(options.quick, options.rounds or (1 if options.quick else 3), progress)
        for name in options.only or SECTIONS:
            SECTIONS[name](bench)
    figures: dict[str, Any] = {
        "machine": machine(),
        "rows": [attrs.asdict(row) for row in bench.rows],
        "goals": [attrs.asdict(goal) for goal in goals(bench)],
    }
    (wire.OUT / "speed.json").write_text(json.dumps(figures, indent=2))
    if pieces.available("matplotlib"):
        from bench import plots  # noqa: PLC0415  # only there

        plots.draw(tables(bench), wire.OUT)
        if options.plots:
            plots.draw(tables(bench), wire.HERE / "plots")
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        wide = Console()
        wide.width = max(wide.width, _WIDTH)
        show(wide, bench, markdown=options.markdown)
    sys.exit(0)


if __name__ == "__main__":
    main()
