"""``kisfeed reconnect``: a session now, as far as the rules let a person say so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_
from kisfeed.cli.options import Command, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "reconnect",
    cls=Command,
    help=N_(
        "Connect now, as far as the dial budget allows.\n\n"
        "Past the breaker and every pause. A session that stands is replaced once it has lived"
        " its minimum."
    ),
)
@common
@daemon_options
def command(
    as_json: bool, profile: str | None, config_file: Path | None, socket: Path | None
) -> None:
    from kisfeed.cli import link, status

    with link.connect("reconnect", profile, config_file, socket) as daemon:
        answer = daemon.call("reconnect")
    click.echo(json.dumps(answer) if as_json else status.session_line(answer))
