"""``kisfeed stream``: events as JSON, one object a line, for any other program."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path

    from kisfeed.kfp.events import Event


def line(event: Event) -> str:
    """*event* as ``schemas/cli/stream.schema.json`` has it, without the line's end."""
    return json.dumps(event.to_map(), ensure_ascii=False, separators=(",", ":"))


@click.command(
    "stream",
    cls=Command,
    help=N_(
        "Print events as JSON, one object a line.\n\n"
        "A topic is CHANNEL.VENUE.SYMBOL, such as trade.krx.005930. Rows, gaps, losses, states "
        'and the session all come; each has a "type". Prices are integers: divide by 10^scale. '
        "Goes on by itself when the daemon is restarted."
    ),
)
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option(
    "--mode",
    cls=Option,
    type=click.Choice(["all", "latest", "trade_safe"]),
    default="all",
    help=N_("What happens when you read too slowly: all tells each loss, latest keeps one."),
)
@click.option(
    "--hz",
    cls=Option,
    type=click.FloatRange(min=0, min_open=True, max=1000),
    metavar="N",
    help=N_("At most N rows a second a topic."),
)
@click.option(
    "--passive", cls=Option, is_flag=True, help=N_("Never take a slot for this, only listen in.")
)
@click.option(
    "--count", cls=Option, type=click.IntRange(min=1), metavar="N", help=N_("End after N rows.")
)
@common
@daemon_options
def command(
    topics: tuple[str, ...],
    mode: str,
    hz: float | None,
    passive: bool,
    count: int | None,
    as_json: bool,  # noqa: ARG001  # it always is
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed.cli import link
    from kisfeed.kfp.events import Row

    left = count
    with link.connect("stream", profile, config_file, socket) as daemon:
        daemon.subscribe(*topics, mode=mode, hz=hz or 0, passive=passive)
        for event in daemon:
            sys.stdout.write(line(event) + "\n")
            sys.stdout.flush()
            if left is not None and isinstance(event, Row):
                left -= 1
                if left == 0:
                    return
