"""``kisfeed release``: lend the session to another program of the same appkey."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_S: Final = 86_400
_UNITS_S: Final = (3_600, 60, 1)
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


def _seconds(
    ctx: click.Context,  # noqa: ARG001  # click's signature
    param: click.Parameter,  # noqa: ARG001
    value: str,
) -> float:
    """``90``, ``90s``, ``30m``, ``1h30m`` in seconds."""
    found = _DURATION.fullmatch(value.strip().lower())
    parts = found.groups() if found is not None else ()
    seconds = sum(
        int(part) * unit for part, unit in zip(parts, _UNITS_S, strict=False) if part is not None
    )
    if not 0 < seconds <= _LONGEST_S:
        raise click.BadParameter(
            _("{value} is not a time like 30m, at most 24h").format(value=value)
        )
    return float(seconds)


@click.command(
    "release",
    cls=Command,
    help=N_(
        "Lend the session to another program.\n\n"
        "kisfeed closes it, once it has lived its minimum, and takes it back afterwards;"
        " `kisfeed reconnect` takes it back sooner."
    ),
)
@click.option(
    "--for",
    "for_s",
    cls=Option,
    default="30m",
    callback=_seconds,
    metavar="TIME",
    help=N_("How long: 90s, 30m, 1h30m (30m)."),
)
@common
@daemon_options
def command(
    for_s: float,
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed.cli import link, status

    with link.connect("release", profile, config_file, socket) as daemon:
        answer = daemon.call("release", for_s=for_s)
    click.echo(json.dumps(answer) if as_json else status.session_line(answer))
