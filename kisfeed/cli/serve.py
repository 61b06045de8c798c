"""``kisfeed serve``: the daemon."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
import tempfile
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Option, common, daemon_options, own_command
from kisfeed.cli.sim import market_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kisfeed.config import Config, Secret
    from kisfeed.simulator.options import Options


@click.command(
    "serve",
    cls=Command,
    help=N_(
        "Run the daemon: hold the one KIS session and share it.\n\n"
        "With --sim it brings its own simulated KIS and needs no account."
    ),
)
@click.option("--sim", cls=Option, is_flag=True, help=N_("Serve a simulated KIS."))
@market_options
@click.option(
    "--log-level",
    cls=Option,
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help=N_("Least level of the log on stderr."),
)
@click.option(
    "--shadow",
    cls=Option,
    is_flag=True,
    help=N_("Let the REST limiter delay nothing and tell what it would have delayed."),
)
@common
@daemon_options
def command(
    sim: bool,
    seed: int,
    rate: float,
    scenario: Path | None,
    log_level: str,
    shadow: bool,
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed.cli import settings
    from kisfeed.config import State

    flags = {} if socket is None else {"gateway.socket": (str(socket.absolute()), "--socket")}
    if shadow:
        flags["rest.shadow"] = ("true", "--shadow")
    config = settings.load(
        purpose=settings.Purpose.SERVE_SIM if sim else settings.Purpose.SERVE,
        profile=profile,
        file=config_file,
        flags=flags,
    )
    import attrs
    import trio

    from kisfeed.cli import signals, sim as simulated, startup
    from kisfeed.ops import logs

    options = simulated.options_of(seed, rate, scenario) if sim else None
    redactor = logs.configure(
        sys.stderr,
        as_json=True if as_json else None,
        level=log_level,
        credentials=[config.credentials],
    )
    startup.check(config)
    with contextlib.ExitStack() as stack:
        if sim and not config.state.dir:
            # A simulated key is never blocked: nothing of one run may hold back the next.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kisfeed-sim-"))
            config = attrs.evolve(config, state=State(folder))
        work = functools.partial(_serve, config, options, redactor.hide, as_json=as_json)
        trio.run(signals.run_until_signal, work)


async def _serve(
    config: Config, options: Options | None, hide: Callable[[Secret], None], *, as_json: bool
) -> None:
    import trio

    from kisfeed import feed, places

    runtime = places.runtime_folder()
    async with trio.open_nursery() as nursery:
        socket = await nursery.start(
            functools.partial(
                feed.run_daemon, config, runtime_dir=runtime, sim=options, hide=hide, say=said
            )
        )
        _announce(config, socket, as_json=as_json)
        # A full collection stands between KIS and everybody for 20 ms: what is here now stays, and
        # what comes makes little garbage that refers to itself.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], 1000)


def _announce(config: Config, socket: Path, *, as_json: bool) -> None:
    from kisfeed import places

    if as_json:
        ready = {
            "type": "ready",
            "socket": str(socket),
            "profile": config.profile,
            "environment": config.environment.value,
            "pid": os.getpid(),
        }
        click.echo(json.dumps(ready))
        return
    click.echo(
        _("ready: {socket} (profile {profile}, environment {environment})").format(
            socket=socket, profile=config.profile, environment=config.environment.value
        )
    )
    which = "" if config.profile == places.SIM_PROFILE else f" --profile {config.profile}"
    example = f"{own_command()} watch 005930 000660{which}"
    click.echo(_("In another terminal: {command}").format(command=example), err=True)
