"""How fast, side by side: ``python -m bench.speed``, about 24 minutes.

Everything of one table is measured in one run, in turn, pass by pass as long as ``--minutes``
last, and compared as ratios of the medians: the figures belong to the machine, the ratios carry
over. CPU is process time (daemon, relay and broker), so that other work on the machine disturbs
it less than a clock would. KIS's end and the subscribers' are C (``bench/load.c``) in processes
of their own. Plots and the raw figures go to ``bench/out/``; ``--readme`` puts a summary into
README.md, between its ``bench`` marks, and the plots into ``bench/plots/``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from bench import clients, ends, pieces, wire
from bench.ends import PEERS, RAW, TYPED, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

UNIX, PIPELINE, AWAITED, NATS, ZMQ, PICOWS, COALESCED = PEERS
_WIDTH: Final = 150  # of the tables, where the terminal is narrower or there is none
_CASE_S: Final = 180  # a case that takes longer hangs
_PASSES: Final = 5  # more make no median better
_MARKS: Final = ("<!-- bench -->", "<!-- /bench -->")
OURS: Final = "kisfeed: row, gaps, last value, encoded"
STORMS: Final = {
    "200 programs of 40 topics come and go, garbage, status calls": 40,
    "the same with 15 programs of 512 topics": 512,
}
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
    """One row of the goals.

    Attributes:
        number: its name, V1 to V16.
        bound: what has to be reached, and *stretch*, what would be something to be proud of.
        measured: in this run; empty where it was not.
        reached: ``yes``, ``stretch``, ``no`` or empty.
    """

    number: str
    what: str
    bound: str
    stretch: str
    measured: str
    reached: str


@attrs.define(eq=False)
class Bench:
    """One run: what is to be measured, and what was.

    Attributes:
        quick: shorter loads, fewer sizes.
        again: a later pass, which leaves out what is only shown.
        counting: nothing is measured, only counted into *total*.
        ends_at: nothing is begun behind it, on the clock of ``time.monotonic``.
    """

    quick: bool
    again: bool = False
    counting: bool = False
    ends_at: float = math.inf
    total: int = 0
    progress: Progress | None = None
    task: TaskID = attrs.field(default=TaskID(0))
    samples: dict[tuple[str, str], list[Figures]] = attrs.field(factory=dict)
    notes: dict[tuple[str, str], str] = attrs.field(factory=dict)

    def table(self, table: str, cases: Mapping[str, Case], *, shown: bool = False) -> None:
        """Measure all *cases* once; those that are only *shown* in the first pass alone."""
        if shown and self.again:
            return
        for name, case in cases.items():
            if self.counting:
                self.total += 1
                continue
            if self.progress is not None:
                self.progress.update(self.task, description=f"{table}: {name}")
            self._measure((table, name), case)
            if self.progress is not None:
                self.progress.advance(self.task)

    def _measure(self, row: tuple[str, str], case: Case) -> None:
        found = self.samples.setdefault(row, [])
        if row in self.notes:
            return
        if time.monotonic() > self.ends_at:
            if not found:
                self.notes[row] = "no time was left"
            return
        try:
            with limited(_CASE_S):
                outcome = case()
        except (RuntimeError, OSError, ValueError) as exc:
            outcome = f"failed: {exc}"  # one peer's trouble is not the others'
        if isinstance(outcome, str):
            self.notes[row] = outcome
        else:
            found.append(outcome)

    @property
    def rows(self) -> list[Row]:
        """The median of each figure, by table and name."""
        rows = []
        for (table, name), found in self.samples.items():
            columns = dict.fromkeys(column for each in found for column in each)
            medians = {c: statistics.median(f[c] for f in found if c in f) for c in columns}
            rows.append(Row(table, name, medians, self.notes.get((table, name), "")))
        return rows

    def get(self, table: str, name: str, column: str) -> float | None:
        """A figure that was measured in this run, or None."""
        for row in self.rows:
            if row.table == table and row.name == name:
                return row.figures.get(column)
        return None


@contextmanager
def limited(seconds: int) -> Generator[None]:
    """Give up with RuntimeError after *seconds*."""

    def late(*_: object) -> None:
        raise RuntimeError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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
            OURS: lambda: {"us": pieces.decode_kisfeed()},
            "kisfeed, one frame a read": lambda: {"us": pieces.decode_kisfeed(per_read=1)},
            "mojito2, parser alone": needing("mojito", pieces.decode_mojito),
            "python-kis, parser alone": needing("pykis", pieces.decode_pykis),
            "pandas for each frame": needing("pandas", pieces.decode_pandas),
        },
    )


def client(bench: Bench) -> None:
    """What a tick costs the program that asked for it."""
    cases = {
        "without I/O": cost(clients.without_io, clients.TYPED),
        "the same, one tick a read": cost(clients.without_io, clients.TYPED, ticks_a_read=1),
        "every attribute set at once, nothing accounted": cost(clients.set_at_once),
        "msgpack.unpackb alone": cost(clients.unpacked, clients.TYPED),
    }
    cases |= {name: cost(clients.through_socket, name) for name in clients.CLIENTS}
    bench.table("client, CPU of a tick", cases)
    raw = {
        "without I/O": cost(clients.without_io, clients.RAW),
        "msgpack.unpackb alone": cost(clients.unpacked, clients.RAW),
    }
    bench.table("client, CPU of a raw tick", raw)


def cost(measured: Callable[..., float], *arguments: Any, **named: int) -> Case:
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
    load = Load(seconds=1.0 if bench.quick else 1.5)
    for n in (10, 50) if bench.quick else (1, 10, 50):
        names = (TYPED, RAW, PICOWS, COALESCED) if bench.quick and n == 50 else EVERYBODY
        table = f"end to end, saturated, {n} subscribers"
        bench.table(table, everybody(load, n, names), shown=n == 1)


def fan_out(bench: Bench) -> None:
    sizes = (1, 10, 100) if bench.quick else (1, 10, 100, 1000)
    load = Load(seconds=1.0)
    cases: dict[str, Case] = {str(n): partial(end, TYPED, n, load) for n in sizes}
    bench.table("fan-out, saturated, typed", cases, shown=True)


def paced(bench: Bench) -> None:
    seconds = 2.0 if bench.quick else 3.0
    for rate in (2000, 5000) if bench.quick else (1000, 2000, 5000, 10_000):
        load = Load(rate=rate, seconds=seconds)
        table = f"end to end, {rate} frames/s, 10 subscribers"
        bench.table(table, everybody(load, 10), shown=rate in {1000, 10_000})
    load = Load(rate=2000, seconds=seconds)
    bench.table(
        "one more subscriber, 2000 frames/s",
        {str(n): partial(end, TYPED, n, load) for n in (1, 10, 50, 100)},
    )


def bursts(bench: Bench) -> None:
    load = Load(rate=5000, burst=100, seconds=2.0 if bench.quick else 3.0)
    names = (TYPED, RAW, PIPELINE, COALESCED)
    bench.table("bursts of 100, 5000 frames/s, 10 subscribers", everybody(load, 10, names))


def crowd(bench: Bench) -> None:
    load = Load(rate=500, seconds=3.0 if bench.quick else 5.0)
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
        {
            name: partial(lambda topics: {"ms": pieces.reader_stall(topics)}, topics)
            for name, topics in STORMS.items()
        },
    )


SECTIONS: Final[Mapping[str, Callable[[Bench], None]]] = {
    "receive": receive,
    "decode": decode,
    "growth": growth,
    "client": client,
    "saturated": saturated,
    "fanout": fan_out,
    "paced": paced,
    "bursts": bursts,
    "crowd": crowd,
    "small": small,
    "stalls": stalls,
}


@attrs.define(eq=False)
class Goals:
    """The goals, and what a run has for each."""

    found: list[Goal] = attrs.field(factory=list)

    def least(self, number: str, what: str, bounds: tuple[float, float], got: float | None) -> None:
        """A ratio that has to be at least the bounds, goal and stretch."""
        goal, stretch = bounds
        reached = _reached(got is not None and got >= goal, got is not None and got >= stretch)
        self._add(number, what, ">=", bounds, "x", got, reached)

    def most(
        self, number: str, what: str, bounds: tuple[float, float], unit: str, got: float | None
    ) -> None:
        """A figure that has to be at most the bounds."""
        goal, stretch = bounds
        reached = _reached(got is not None and got <= goal, got is not None and got <= stretch)
        self._add(number, what, "<=", bounds, unit, got, reached)

    def _add(
        self,
        number: str,
        what: str,
        sign: str,
        bounds: tuple[float, float],
        unit: str,
        got: float | None,
        reached: str,
    ) -> None:
        bound, stretch = (f"{sign} {value:,g}{unit}" for value in bounds)
        measured = "" if got is None else f"{_figure(got)}{unit}"
        self.found.append(Goal(number, what, bound, stretch, measured, reached if measured else ""))


def _reached(goal: bool, stretch: bool) -> str:
    return "stretch" if stretch else "yes" if goal else "no"


def _ratio(ours: float | None, other: float | None) -> float | None:
    return other / ours if ours and other else None


def goals(bench: Bench) -> list[Goal]:
    """Every goal, with what this run has for it."""
    goals = Goals()
    get = bench.get
    ours = get("receive", "kisfeed", "us")
    other = get("receive", "trio-websocket, get_message", "us")
    goals.least("V1", "receive only, against trio-websocket", (20, 35), _ratio(ours, other))
    ours = get("decode", OURS, "us")
    for number, name, goal, stretch in (
        ("V2", "python-kis, parser alone", 6, 10),
        ("V3", "pandas for each frame", 200, 350),
    ):
        what = f"trade to encoded row, against {name}"
        goals.least(number, what, (goal, stretch), _ratio(ours, get("decode", name, "us")))
    against: tuple[tuple[str, int, str, str, tuple[float, float]], ...] = (
        ("V4", 10, TYPED, UNIX, (5, 8)),
        ("V5", 10, TYPED, PIPELINE, (4, 7)),
        ("V6", 10, TYPED, AWAITED, (15, 25)),
        ("V7", 10, RAW, PICOWS, (4, 6)),
        ("V7", 50, RAW, PICOWS, (8, 14)),
        ("V8", 10, RAW, COALESCED, (0.8, 1.1)),
        ("V8", 50, RAW, COALESCED, (0.8, 1.1)),
    )
    for number, n, who, name, bounds in against:
        table = f"end to end, saturated, {n} subscribers"
        got = _ratio(get(table, who, "us"), get(table, name, "us"))
        goals.least(number, f"{who}, {n} subscribers, against {name}", bounds, got)
    table = "end to end, 2000 frames/s, 10 subscribers"
    for share in ("p50", "p99", "p99.9"):
        late = get(table, TYPED, f"{share} us")
        known = [value for name in PEERS if (value := get(table, name, f"{share} us"))]
        best = late / min(known) if late and known else None
        bounds = (math.inf, 1.0) if share == "p99.9" else (1.1, 1.0)
        goals.most("V9", f"{share} at 2000 frames/s, of the best relay's", bounds, "x", best)
    table = "end to end, 5000 frames/s, 10 subscribers"
    cpu = get(table, TYPED, "CPU %")
    goals.most("V10", "CPU at 5000 frames/s, 10 subscribers", (30, 22), " %", cpu)
    table = "one more subscriber, 2000 frames/s"
    few, many = get(table, "10", "us"), get(table, "50", "us")
    one = (many - few) / 40 if few and many else None
    goals.most("V11", "one more subscriber, a frame at 2000/s", (1.9, 1.4), " us", one)
    idle = get("memory, bytes", "a connection, idle, one topic", "bytes")
    empty = get("memory, bytes", "a subscriber of 20 topics in the core", "bytes")
    full = get("memory, bytes", "the same, 1024 frames wait", "bytes")
    held = idle + full - empty if idle and empty and full else None
    kib = [None if size is None else size / 1024 for size in (idle, held)]
    goals.most("V12", "memory of an idle subscriber", (6, 4), " KiB", kib[0])
    goals.most("V12", "memory with 1,024 shared frames", (20, 12), " KiB", kib[1])
    missed = get("500 frames/s", "1000 subscribers", "missing")
    goals.most("V13", "ticks missing, 1,000 subscribers at 500 frames/s", (0, 0), "", missed)
    missed = get("1000 frames/s in reads of 4", "1000 subscribers", "missing")
    goals.most("V13", "the same at 1,000 frames/s in reads of 4", (math.inf, 0), "", missed)
    calm = get("500 frames/s", "100 subscribers", "p99 us")
    rough = get("500 frames/s", "100 subscribers, three more stalled", "p99 us")
    moved = max(0.0, (rough / calm - 1) * 100) if calm and rough else None
    goals.most("V13", "p99 of others moved by three stalled", (25, 10), " %", moved)
    table = "bursts of 100, 5000 frames/s, 10 subscribers"
    share_of = _ratio(get(table, PIPELINE, "p99 us"), get(table, TYPED, "p99 us"))
    goals.most("V13b", "p99 in bursts of 100, of the Redis pipeline's", (0.3, 0.2), "x", share_of)
    for name, topics in STORMS.items():
        stall = get("longest stall of the reader, ms", name, "ms")
        goals.most(
            "V14", f"longest stall of the reader, {topics} topics each", (5, 2), " ms", stall
        )
    # Starting waits for nothing, so its CPU is what it takes on a machine that does nothing else.
    for what, bounds, column in (
        ("kisfeed demo to the first tick", (2000, 1200), "ms"),
        ("import kisfeed", (150, 80), "CPU ms"),
        ("kisfeed --help", (150, 100), "CPU ms"),
    ):
        goals.most("V15", what, bounds, f" {column}", get("start-up, ms", what, column))
    table = "in process, batches of 100"
    got = _ratio(get(table, "a tick", "us"), get(table, "a tick", "memory channel us"))
    goals.least("V16", "in-process batch, against a memory channel", (5, 15), got)
    return goals.found


def tables(bench: Bench) -> dict[str, list[Row]]:
    """The rows by table, in order."""
    found: dict[str, list[Row]] = {}
    for row in bench.rows:
        found.setdefault(row.table, []).append(row)
    return found


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and body of one table; a column compares costs with the first row's."""
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    base = rows[0].figures.get("us")
    compared = bool(base) and len(rows) > 1
    noted = any(row.note for row in rows)
    head = ["", *columns] + ["x first"] * compared + ["note"] * noted
    body = []
    for row in rows:
        line = [row.name] + [_figure(row.figures.get(column)) for column in columns]
        if compared:
            us = row.figures.get("us")
            line.append(_figure(us / base if us and base else None))
        body.append(line + [row.note] * noted)
    return head, body


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def goal_cells(found: Sequence[Goal]) -> tuple[list[str], list[list[str]]]:
    head = ["", "what", "goal", "stretch", "measured", "reached"]
    return head, [
        [
            g.number,
            g.what,
            "-" if "inf" in g.bound else g.bound,
            g.stretch,
            g.measured or "not measured",
            g.reached or "-",
        ]
        for g in found
    ]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in body)])


def summary(bench: Bench) -> str:
    """What the README shows: what a trade costs in CPU, here and with what others would build."""
    saturated = "end to end, saturated, 10 subscribers"
    parsers = ("python-kis, parser alone", "pandas for each frame")
    body: list[list[str]] = []

    def add(what: str, table: str, ours: str, others: Sequence[str]) -> None:
        base = bench.get(table, ours, "us")
        if base:
            body.append([f"{what}: **{ours}**", _figure(base), ""])
        for name in others:
            us = bench.get(table, name, "us")
            if base and us:
                times = us / base
                shown = (
                    f"1/{_figure(times)}" if times > 1 else f"{_figure(1 / times)} times as much"
                )
                body.append([name, _figure(us), shown])

    add(
        "Receiving a frame",
        "receive",
        "kisfeed",
        [name for name in pieces.RECEIVERS if name != "kisfeed"],
    )
    add("Decoding a trade", "decode", OURS, parsers)
    add(
        "KIS to 10 subscribers, saturated",
        saturated,
        TYPED,
        [name for name in PEERS if name != PICOWS],
    )
    return markdown(["CPU", "us", "kisfeed needs"], body)


def refresh(readme: Path, bench: Bench) -> None:
    """Put the summary between the marks of *readme*."""
    text = readme.read_text()
    before, mark, rest = text.partition(_MARKS[0])
    _, other, after = rest.partition(_MARKS[1])
    if not (mark and other):
        raise SystemExit(f"{readme} has no {' ... '.join(_MARKS)}")
    readme.write_text(f"{before}{mark}\n{machine()}:\n\n{summary(bench)}\n{other}{after}")


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}"


def show(console: Console, bench: Bench, *, as_markdown: bool) -> None:
    every = [(name, *cells(rows)) for name, rows in tables(bench).items()]
    every.append(("goals", *goal_cells(goals(bench))))
    for name, head, body in every:
        if as_markdown:
            print(f"### {name}\n\n{markdown(head, body)}\n")
            continue
        table = Table(title=name, title_justify="left", min_width=len(name))
        for column in head:
            table.add_column(column, justify="left" if column in {"", "what"} else "right")
        for line in body:
            table.add_row(*line)
        console.print(table)


def measure(bench: Bench, sections: Sequence[str], passes: int, minutes: float) -> int:
    """Go through *sections* pass by pass, as far as *minutes* carry; how many passes it was."""

    def go() -> None:
        for name in sections:
            SECTIONS[name](bench)

    began = time.monotonic()
    bench.ends_at = began + minutes * 60
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    for n in range(passes):
        start = time.monotonic()
        bench.again = n > 0
        bench.counting, bench.total = True, 0
        go()
        bench.counting = False
        with Progress(*columns, console=Console(stderr=True)) as bench.progress:
            bench.task = bench.progress.add_task("", total=bench.total)
            try:
                go()
            except KeyboardInterrupt:
                return n + 1  # what is there can be shown
            bench.progress.update(bench.task, description=f"pass {n + 1}")
        now = time.monotonic()
        if now + (now - start) > bench.ends_at:
            return n + 1
    return passes


def main() -> None:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one pass, shorter loads: 6 minutes")
    parser.add_argument("--minutes", type=float, default=24.0, help="begin nothing after (24)")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="repeatable")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown on stdout")
    parser.add_argument("--readme", action="store_true", help="renew README.md and bench/plots/")
    options = parser.parse_args()
    wire.load_generator()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench = Bench(options.quick)
    sections = options.only or list(SECTIONS)
    passes = measure(bench, sections, 1 if options.quick else _PASSES, options.minutes)
    figures: dict[str, Any] = {
        "machine": machine(),
        "passes": passes,
        "rows": [attrs.asdict(row) for row in bench.rows],
        "goals": [attrs.asdict(goal) for goal in goals(bench)],
    }
    (wire.OUT / "speed.json").write_text(json.dumps(figures, indent=2))
    if pieces.available("matplotlib"):
        from bench import plots  # noqa: PLC0415  # only there

        plots.draw(tables(bench), wire.OUT)
        if options.readme:
            plots.draw(tables(bench), wire.HERE / "plots")
    if options.readme:
        refresh(wire.HERE.parent / "README.md", bench)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        wide = Console()
        wide.width = max(wide.width, _WIDTH)
        show(wide, bench, as_markdown=options.markdown)


if __name__ == "__main__":
    main()
