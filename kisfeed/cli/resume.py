"""``kisfeed resume``: allow ordering again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path

    from kisfeed.rest.halt import HaltSwitch


@click.command("resume", cls=Command, help=N_("Allow ordering again after `kisfeed halt`."))
@click.option(
    "--reason",
    cls=Option,
    required=True,
    metavar="TEXT",
    help=N_("Why it is safe again; kept in the journal."),
)
@common
@daemon_options
def command(
    reason: str,
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed import errors
    from kisfeed.cli import halt, link

    if not reason.strip():
        raise click.UsageError(_("A reason is needed."))
    switch = halt.switch_of(profile, config_file, socket)
    try:
        with link.connect("resume", profile, config_file, socket, role="trader") as daemon:
            daemon.call("resume", reason=reason)
    except errors.NoDaemon:
        if switch is None:
            raise
        _resume(switch, reason)
    click.echo(json.dumps({"halted": None}) if as_json else _("Orders are taken again."))


def _resume(switch: HaltSwitch, reason: str) -> None:
    """Without a daemon: write the reason down and remove the file."""
    import trio

    from kisfeed import seams
    from kisfeed.rest.journal import open_journal

    record = {"resume": {"reason": reason, "by": "kisfeed resume", "ts": 0}}
    record["resume"]["ts"] = seams.SystemClock().wall_ns()
    with open_journal(switch.journal, seams.DirectDisk()) as journal:
        trio.run(journal.append, record)
    switch.resume()
