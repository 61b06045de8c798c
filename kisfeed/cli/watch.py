"""``kisfeed watch``: prices for a person."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from kisfeed.cli.i18n import N_
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path

    from kisfeed.cli.board import Board
    from kisfeed.client.sync import Client

REFRESH_S: Final = 0.25


def topic_of(symbol: str, venue: str) -> str:
    """``005930`` means its trades; a whole topic means itself."""
    return symbol if "." in symbol else f"trade.{venue}.{symbol}"


def _live(daemon: Client, board: Board) -> None:
    from rich.live import Live

    from kisfeed import blocking
    from kisfeed.cli.board import render

    shown_at = blocking.monotonic()
    with Live(auto_refresh=False) as live:
        while True:
            live.update(render(board, live.console.width), refresh=True)
            # Ends when all is quiet for a moment, so that the picture is never an old one.
            for event in daemon.events(timeout=REFRESH_S):
                board.apply(event)
                if blocking.monotonic() - shown_at >= REFRESH_S:
                    break
            shown_at = blocking.monotonic()


@click.command(
    "watch",
    cls=Command,
    help=N_(
        "Show prices as they come, in a table.\n\n"
        "SYMBOL is a code such as 005930, or a whole topic such as trade.nxt.005930."
    ),
)
@click.argument("symbols", nargs=-1, required=True, metavar="SYMBOL...")
@click.option(
    "--venue",
    cls=Option,
    default="krx",
    metavar="VENUE",
    help=N_("Where a bare code trades: krx, nxt or unified."),
)
@common
@daemon_options
def command(
    symbols: tuple[str, ...],
    venue: str,
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed.cli import link, stream
    from kisfeed.cli.board import Board, plain

    topics = [topic_of(symbol, venue) for symbol in symbols]
    with link.connect("watch", profile, config_file, socket) as daemon:
        daemon.subscribe(*topics, mode="latest")
        if not as_json and sys.stdout.isatty():
            _live(daemon, Board.of(topics))
            return
        for event in daemon:
            text = stream.line(event) if as_json else plain(event)
            if text is not None:
                click.echo(text)
