"""``kisfeed stress``: many threads, one daemon, and what KIS sees of them."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kisfeed.client.sync import Client

ENOUGH: Final = 0.999
_WATCH_S: Final = 0.25
_STRIDE: Final = 7919  # a prime: threads meet on symbols without asking in the same order


class Count:
    """What one thread asked and got.

    Attributes:
        took_ms: of each question, in order.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.answered = 0
        self.took_ms: list[float] = []


@click.command(
    "stress",
    cls=Command,
    help=N_(
        "Ask for prices from many threads at once, on a simulator only.\n\n"
        "Shows how many questions were answered and how few calls they cost."
    ),
)
@click.option(
    "--threads", cls=Option, type=click.IntRange(1, 500), default=50, help=N_("How many (50).")
)
@click.option(
    "--symbols",
    cls=Option,
    type=click.IntRange(1, 5000),
    default=200,
    help=N_("Among how many symbols (200)."),
)
@click.option(
    "--seconds",
    cls=Option,
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    help=N_("How long (10)."),
)
@click.option("--each", cls=Option, is_flag=True, help=N_("A connection for each thread."))
@common
@daemon_options
def command(
    threads: int,
    symbols: int,
    seconds: float,
    each: bool,
    as_json: bool,
    **where: Path | str | None,
) -> None:
    from kisfeed.cli import link
    from kisfeed.errors import NotPermitted

    with link.connect("stress", **where) as daemon:  # type: ignore[arg-type]  # click's options
        environment = daemon.status()["environment"]
        if environment != "sim":
            text = _("this daemon speaks to KIS ({environment}), not to a simulator")
            raise NotPermitted(text.format(environment=environment))
        path = link.socket_path(**where)  # type: ignore[arg-type]  # click's options
        names = [f"{100_000 + number}" for number in range(symbols)]
        report = run(daemon, path if each else None, threads, names, seconds)
    if as_json:
        click.echo(json.dumps(report))
    else:
        for line in lines(report):
            click.echo(line)
    if report["success_rate"] < ENOUGH or report["kis"]["throttled"]:
        raise click.exceptions.Exit(3)


def run(
    daemon: Client, path: Path | None, threads: int, symbols: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Ask, and report; *path* opens a connection for each thread, None lets them share *daemon*."""
    from kisfeed import blocking
    from kisfeed.client import sync

    until = blocking.monotonic() + seconds
    counts = [Count() for _ in range(threads)]

    def ask(number: int, client: Client) -> None:
        count = counts[number]
        for turn in itertools.count():
            begun = blocking.monotonic()
            if begun >= until:
                return
            symbol = symbols[(number * 31 + turn * _STRIDE) % len(symbols)]
            found = client.get_current_prices(symbol)
            count.asked += 1
            count.answered += symbol in found
            count.took_ms.append((blocking.monotonic() - begun) * 1000)

    def thread(number: int) -> None:
        if path is None:
            ask(number, daemon)
            return
        with sync.connect(socket=path, client="kisfeed stress") as own:
            ask(number, own)

    before, most = daemon.status()["rest"], 0
    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(thread, number) for number in range(threads)]
        while blocking.monotonic() < until and not any(task.done() for task in running):
            most = max(most, daemon.status()["rest"]["last_second"])
            blocking.sleep(_WATCH_S)
        for task in running:
            task.result()
    after = daemon.status()["rest"]
    asked, answered = (sum(getattr(c, name) for c in counts) for name in ("asked", "answered"))
    took = sorted(ms for count in counts for ms in count.took_ms)
    return {
        "threads": threads,
        "connections": threads if path is not None else 1,
        "symbols": len(symbols),
        "seconds": seconds,
        "questions": asked,
        "answered": answered,
        "success_rate": answered / asked if asked else 0.0,
        "p50_ms": round(took[len(took) // 2], 3) if took else None,
        "p99_ms": round(took[len(took) * 99 // 100], 3) if took else None,
        "kis": {
            "calls": after["calls"] - before["calls"],
            "failed": after["failed"] - before["failed"],
            "most_in_a_second": max(most, after["last_second"]),
            "last_second": after["last_second"],
            "throttled": after["limiter"]["throttled"] - before["limiter"]["throttled"],
        },
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a person."""
    kis = report["kis"]
    return [
        _("{questions:,} questions from {threads} threads over {connections} connections").format(
            **report
        ),
        _("answered {rate:.3%}, half of them within {p50_ms} ms, 99 % within {p99_ms} ms").format(
            rate=report["success_rate"], p50_ms=report["p50_ms"], p99_ms=report["p99_ms"]
        ),
        _("calls to KIS: {calls}, at most {most_in_a_second} a second, {throttled} refused").format(
            **kis
        ),
    ]
