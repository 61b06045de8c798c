"""``kisfeed clients``: who listens, and what each one lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_
from kisfeed.cli.options import Command, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "clients", cls=Command, help=N_("Show every connected program, its queue and its losses.")
)
@common
@daemon_options
def command(
    as_json: bool, profile: str | None, config_file: Path | None, socket: Path | None
) -> None:
    from kisfeed.cli import link, status

    with link.connect("clients", profile, config_file, socket) as daemon:
        answer = daemon.call("clients")
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(status.client_table(answer["clients"]))
