"""``kisfeed chaos``: storms against a simulated KIS, the invariants measured, failures kept."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kisfeed.cli.failures import INTERRUPTED
from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Group, Option, common

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from rich.console import Console

    from kisfeed.chaos.campaign import Report, Verdict

FOUND = 3  # a check found something
_ENDLESS = 1_000_000_000
_SAY_S = 60.0


@click.group(
    "chaos",
    cls=Group,
    invoke_without_command=True,
    help=N_(
        "Rehearse what can go wrong, without an account.\n\n"
        "The daemon, a simulated KIS and local programs live through storms in virtual time. "
        "Prints what must hold with the worst figure of all runs. A failure is written to a "
        "replay file."
    ),
)
@click.option(
    "--seeds",
    cls=Option,
    type=click.IntRange(min=1),
    metavar="N",
    help=N_("Play so many storms (100; --digests 200, --planted 300, --minutes any)."),
)
@click.option(
    "--first", cls=Option, type=int, default=0, metavar="N", help=N_("The first seed (0).")
)
@click.option(
    "--minutes",
    cls=Option,
    type=click.FloatRange(min=0, min_open=True),
    metavar="M",
    help=N_("Stop after so many minutes."),
)
@click.option(
    "--jobs",
    cls=Option,
    type=click.IntRange(min=1),
    default=2,
    metavar="N",
    help=N_("Processes (2)."),
)
@click.option(
    "--digests",
    cls=Option,
    is_flag=True,
    help=N_("Only compare each seed's digest in two processes."),
)
@click.option(
    "--planted",
    cls=Option,
    is_flag=True,
    help=N_("Only look whether planted bugs are found."),
)
@click.option("--week", cls=Option, is_flag=True, help=N_("Only play one week, told by cause."))
@click.option(
    "--replays",
    cls=Option,
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("chaos-failures"),
    metavar="FOLDER",
    help=N_("Where failures are written (chaos-failures)."),
)
@common
@click.pass_context
def command(
    context: click.Context,
    /,
    seeds: int | None,
    first: int,
    minutes: float | None,
    jobs: int,
    replays: Path,
    *,
    digests: bool,
    planted: bool,
    week: bool,
    as_json: bool,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if seeds is None:
        seeds = 300 if planted else 200 if digests else 100 if minutes is None else _ENDLESS
    numbers = range(first, first + seeds)
    if digests:
        raise click.exceptions.Exit(_digests(numbers, as_json=as_json))
    if planted:
        raise click.exceptions.Exit(_planted(numbers, jobs, as_json=as_json))
    if week:
        raise click.exceptions.Exit(_week(as_json=as_json))
    from kisfeed.chaos.campaign import Report, run_seeds

    report, stopped = Report(), False
    try:
        with _ended_by_sigterm():
            for verdict in _watched(run_seeds(numbers, jobs), len(numbers), minutes):
                report.add(verdict)
    except KeyboardInterrupt:
        if not report.runs:
            raise
        stopped = True
    files = list(_kept(report.broken, replays, small=not stopped))
    if as_json:
        answer = {**report.to_map(), "replays": [str(file) for file in files]}
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        _show(report, files)
    raise click.exceptions.Exit(FOUND if report.broken else INTERRUPTED if stopped else 0)


@command.command("replay", cls=Command, help=N_("Play a failure again, step by step."))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--trace", cls=Option, is_flag=True, help=N_("Print everything that happened."))
@common
def replay(file: Path, *, trace: bool, as_json: bool) -> None:
    from kisfeed.chaos import invariants, run, schedule
    from kisfeed.errors import UsageError

    try:
        case, then = schedule.read_replay(file)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            _("{file} is no replay file: {error}").format(file=file, error=error)
        ) from None
    played = run.play(case)
    faults = {n: f.faults for n, f in invariants.measure(played).items() if f.faults}
    answer = {
        "digest": played.digest(),
        "same_as_then": played.digest() == then.get("digest"),
        "faults": faults,
    }
    if as_json:
        lines = [{"at": at, "what": what} for at, what in played.timeline()] if trace else []
        click.echo(json.dumps({**answer, "trace": lines}, ensure_ascii=False))
    else:
        for at, what in played.timeline() if trace else ():
            click.echo(f"{at:12.6f}  {what}")
        for name, found in faults.items():
            click.echo(f"{name}: {'; '.join(found)}")
        if not faults:
            click.echo(_("Nothing is wrong any more."))
    raise click.exceptions.Exit(FOUND if faults else 0)


def _bar(console: Console) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def _ended_by_sigterm() -> Generator[None]:
    """Let SIGTERM be a Ctrl-C: what was played is reported, and no process is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watched(verdicts: Iterable[Verdict], total: int, minutes: float | None) -> Iterator[Verdict]:
    """The same, with a bar and each violation on stderr, until the time is up.

    Where there is no terminal for a bar, a line a minute says how far it is.
    """
    from rich.console import Console

    from kisfeed.seams import SystemClock

    boot = SystemClock().boot
    ends = None if minutes is None else boot() + minutes * 60
    says_at = boot() + _SAY_S
    broken = 0
    with _bar(Console(stderr=True)) as progress:
        task = progress.add_task(_("storms"), total=None if total == _ENDLESS else total)
        for verdict in verdicts:
            yield verdict
            if verdict.faults:
                broken += 1
                progress.console.print(_first_fault(verdict), markup=False, highlight=False)
                text = _("storms, {bad} with violations").format(bad=broken)
                progress.update(task, description=f"[red]{text}[/]")
            progress.advance(task)
            if boot() > says_at and not progress.console.is_terminal:
                says_at = boot() + _SAY_S
                played = int(progress.tasks[task].completed)
                text = _("{count} storms, {bad} with violations").format(count=played, bad=broken)
                progress.console.print(text, highlight=False)
            if ends is not None and boot() > ends:
                return


def _first_fault(verdict: Verdict) -> str:
    name, faults = next(iter(verdict.faults.items()))
    return f"seed {verdict.seed}: {name}: {faults[0]}"


def _kept(broken: list[Verdict], folder: Path, *, small: bool) -> Iterator[Path]:
    """Write failures down; *small* makes the first one of each kind so, which takes minutes."""
    from rich.console import Console

    from kisfeed.chaos import run, schedule, shrink

    names = {next(iter(verdict.faults)) for verdict in broken} if small else set()

    def step(_case: object) -> None:
        progress.advance(task)

    with _bar(Console(stderr=True)) as progress:
        for verdict in broken:
            name = next(iter(verdict.faults))
            case = schedule.draw(verdict.seed)
            if name in names:
                names.remove(name)
                text = _("making seed {seed} small").format(seed=verdict.seed)
                task = progress.add_task(text, total=shrink.MOST_RUNS)
                case = shrink.shrink(case, name, step)
            path = folder / f"seed-{verdict.seed}-{name}.json"
            digest = run.play(case).digest()
            shrink.write_replay(path, case, digest, shrink.broken(case), _commit())
            yield path


def _commit() -> str:
    """The commit this is; the version where there is no repository."""
    import subprocess
    from importlib.metadata import version

    here = Path(__file__).parent
    found = subprocess.run(  # noqa: S603  # no word of anybody's
        ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or version("kisfeed")


def _show(report: Report, files: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    told = report.to_map(said)
    table = Table(title=_("What must hold"))
    for title in ("", _("What"), _("Worst over all storms"), ""):
        table.add_column(title, overflow="fold")
    for row in told["invariants"]:
        mark = "[dim]-[/]" if not row["measured"] else "[green]ok[/]"
        if row["broken_in"]:
            mark = f"[bold red]{row['broken_in']}[/]"
        table.add_row(row["id"], row["says"], row["figure"], mark)
    Console().print(table)
    click.echo(
        _(
            "{seeds} storms, {hours} hours, {faults} faults of {kinds} kinds, {bad} violations"
        ).format(
            seeds=told["seeds"],
            hours=told["virtual_hours"],
            faults=told["faults_injected"],
            kinds=len(told["fault_kinds"]),
            bad=told["violations"],
        )
    )
    for verdict, file in zip(report.broken, files, strict=True):
        click.echo(f"{_first_fault(verdict)}\n  kisfeed chaos replay {file} --trace")


def _digests(seeds: range, *, as_json: bool) -> int:
    from rich.console import Console

    from kisfeed.chaos.campaign import unlike

    with _bar(Console(stderr=True)) as progress:
        task = progress.add_task(_("storms"), total=len(seeds))
        found = unlike(seeds, lambda _seed: progress.advance(task))
    if as_json:
        click.echo(json.dumps({"seeds": len(seeds), "unlike": found}))
    else:
        click.echo(
            _("{seeds} seeds in two processes: {unlike} digests differ").format(
                seeds=len(seeds), unlike=len(found)
            )
        )
    return FOUND if found else 0


def _planted(seeds: range, jobs: int, *, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from kisfeed.chaos import planted
    from kisfeed.chaos.campaign import rehearse

    with _bar(Console(stderr=True)) as progress:
        every = progress.track(
            rehearse(seeds, jobs), total=len(planted.BUGS), description=_("planted bugs")
        )
        by_name = dict(every)
    found = {name: by_name[name] for name in planted.BUGS}
    if as_json:
        click.echo(json.dumps({name: caught and caught[0] for name, caught in found.items()}))
    else:
        table = Table(title=_("Planted bugs"))
        for title in (_("Bug"), _("Found in storm"), _("By")):
            table.add_column(title, overflow="fold")
        for name, caught in found.items():
            number, how = ("[bold red]-[/]", "") if caught is None else (str(caught[0]), caught[1])
            table.add_row(said(planted.BUGS[name].says), number, how[:90])
        Console().print(table)
    return 0 if all(found.values()) else FOUND


def _week(*, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from kisfeed.chaos import week

    told = week.play()
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False))
        return 0
    table = Table(title=_("One week, by cause"))
    for title in (_("Cause"), _("Not live"), _("No data"), _("Missed"), _("Told"), _("Dials")):
        table.add_column(title, justify="left" if title == _("Cause") else "right", overflow="fold")
    for row in told["causes"]:
        table.add_row(
            f"{row['at']} {said(row['cause'])}",
            f"{row['not_live_s']:,.0f} s",
            f"{row['no_data_s']:,.0f} s",
            f"{row['missed']:,}",
            f"{row['told']:,}",
            str(row["dials"]),
        )
    Console().print(table)
    return 0
