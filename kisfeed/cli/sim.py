"""``kisfeed sim``: a simulated KIS for anybody's tests, in any language."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from kisfeed.simulator import Simulator
    from kisfeed.simulator.options import Options

    F = TypeVar("F", bound=Callable[..., Any])


def market_options(function: F) -> F:
    """``--seed``, ``--rate`` and ``--scenario``: what the simulated market does."""
    for option in (
        click.option(
            "--scenario",
            cls=Option,
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help=N_("Faults on a timetable, as TOML or JSON."),
        ),
        click.option(
            "--rate",
            cls=Option,
            type=click.FloatRange(min=0, min_open=True),
            default=5.0,
            metavar="HZ",
            help=N_("Frames a second for each symbol (5)."),
        ),
        click.option(
            "--seed",
            cls=Option,
            type=int,
            default=1,
            metavar="N",
            help=N_("The same seed makes the same market (1)."),
        ),
    ):
        function = option(function)
    return function


def options_of(
    seed: int, rate: float, scenario: Path | None, *, rest_port: int = 0, ws_port: int = 0
) -> Options:
    """The simulator's options from the command line's.

    Its exchange is at today's date and time, trading at any hour: clients compare what KIS says,
    above all when a token expires, with their own clock.

    Raises:
        ConfigError: the scenario cannot be read.
    """
    from kisfeed import seams, seoul, simulator

    faults = () if scenario is None else simulator.load_scenario(scenario)
    now = seoul.time_of(seams.SystemClock().wall_ns())
    return simulator.Options(
        seed=seed,
        rate_hz=rate,
        scenario=faults,
        rest_port=rest_port,
        ws_port=ws_port,
        start=now,
    )


@click.command(
    "sim",
    cls=Command,
    help=N_(
        "Run a simulated KIS on this machine.\n\n"
        'The first line of stdout is {"rest": url, "ws": url}. Point any KIS client there.'
    ),
)
@click.option(
    "--rest-port",
    cls=Option,
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help=N_("Port of the REST side (0: any free one)."),
)
@click.option(
    "--ws-port",
    cls=Option,
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help=N_("Port of the WebSocket side (0: any free one)."),
)
@click.option(
    "--hold",
    cls=Option,
    type=click.FloatRange(min=0),
    default=18.0,
    metavar="S",
    help=N_("Seconds a session that broke keeps its appkey (18)."),
)
@click.option(
    "--control",
    cls=Option,
    is_flag=True,
    help=N_("Take faults from stdin, a JSON object a line; answer with what was counted."),
)
@market_options
@common
def command(
    rest_port: int,
    ws_port: int,
    hold: float,
    control: bool,
    seed: int,
    rate: float,
    scenario: Path | None,
    as_json: bool,
) -> None:
    import attrs
    import trio

    from kisfeed.cli import signals
    from kisfeed.simulator import Rules

    options = options_of(seed, rate, scenario, rest_port=rest_port, ws_port=ws_port)
    options = attrs.evolve(options, rules=Rules(hold_s=hold))
    trio.run(signals.run_until_signal, lambda: _run(options, as_json=as_json, control=control))


async def _run(options: Options, *, as_json: bool, control: bool) -> None:
    import trio

    from kisfeed import errors, simulator

    try:
        async with simulator.open_simulator(options) as running:
            click.echo(json.dumps({"rest": running.rest_url, "ws": running.ws_url}))
            if not as_json:
                click.echo(_("A simulated KIS is running; Ctrl-C ends it."), err=True)
            if control:
                await _obey(running)
            else:
                await trio.sleep_forever()
    except* OSError as group:
        raise errors.StateError(str(group.exceptions[0])) from None


async def _obey(running: Simulator) -> None:
    """Do what stdin says, line by line, until its end."""
    import trio

    pending = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for data in stdin:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                click.echo(json.dumps(_answer(running, line), ensure_ascii=False))


def _answer(running: Simulator, line: bytes) -> dict[str, Any]:
    """A fault is made, ``clear`` names a kind whose faults end, an empty object only asks."""
    from kisfeed import errors, simulator
    from kisfeed.cli import failures

    try:
        asked = json.loads(line)
    except ValueError as error:
        return failures.as_map(errors.UsageError(str(error)))
    try:
        if isinstance(asked, dict) and asked.keys() == {"clear"}:
            fault = simulator.read_fault({"kind": asked["clear"]})
            running.exchange.board.clear(fault.kind)
        elif asked != {}:
            running.inject(simulator.read_fault(asked))
    except errors.ConfigError as error:
        return failures.as_map(error)
    return {"type": "counts", **running.counts()}
