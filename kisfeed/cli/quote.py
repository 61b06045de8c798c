"""``kisfeed quote``: what symbols cost now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import RenderableType

    from kisfeed.kfp.models import Answers, Price


@click.command(
    "quote",
    cls=Command,
    help=N_("Show what symbols cost now.\n\nSYMBOL is a code such as 005930."),
)
@click.argument("symbols", nargs=-1, required=True, metavar="SYMBOL...")
@click.option(
    "--venue",
    cls=Option,
    type=click.Choice(["krx", "nxt", "unified"]),
    default="krx",
    help=N_("Which market's price."),
)
@click.option("--fresh", cls=Option, is_flag=True, help=N_("Ask KIS in any case."))
@common
@daemon_options
def command(
    symbols: tuple[str, ...], venue: str, fresh: bool, as_json: bool, **where: Path | str | None
) -> None:
    from kisfeed import errors
    from kisfeed.cli import failures, link

    with link.connect("quote", **where) as daemon:  # type: ignore[arg-type]  # click's options
        answers = daemon.get_current_prices(*symbols, venue=venue, fresh=fresh)
    if as_json:
        click.echo(json.dumps(as_map(answers), ensure_ascii=False))
    else:
        if answers:
            from rich.console import Console

            Console().print(table(answers))
        for symbol, code in answers.missing.items():
            click.echo(f"{symbol}: {reason(code)}", err=True)
    if answers.missing:
        why = [errors.ServerRefused(code, "") for code in answers.missing.values()]
        raise click.exceptions.Exit(max(map(failures.exit_code, why)))


def as_map(answers: Answers[Price]) -> dict[str, Any]:
    """The answers as the call has them."""
    items = {symbol: price.to_map() for symbol, price in answers.items()}
    return {"items": items, "missing": dict(answers.missing)}


def table(prices: Mapping[str, Price]) -> RenderableType:
    """The prices, one line a symbol."""
    from rich.table import Table
    from rich.text import Text

    from kisfeed.cli.board import DOWN, UP

    found = Table(box=None, pad_edge=False)
    found.add_column(_("Symbol"))
    for title in (_("Price"), _("Change"), "%", _("Bid"), _("Ask"), _("Volume")):
        found.add_column(title, justify="right")
    found.add_column(_("From"))
    for symbol, price in prices.items():
        change, before = price.change, price.previous_close
        percent = f"{change * 100 / before:+.2f}" if change is not None and before else ""
        source = _("stream") if price.source == "stream" else "REST"
        style = "" if not change else UP if change > 0 else DOWN
        found.add_row(
            symbol,
            Text(_number(price, price.price), style=style),
            Text(_number(price, change, sign="+"), style=style),
            Text(percent, style=style),
            _number(price, price.bid),
            _number(price, price.ask),
            "" if price.volume is None else f"{price.volume:,}",
            _("{source}, stale").format(source=source) if price.stale else source,
        )
    return found


def reason(code: str) -> str:
    """Why there is no price, for a person."""
    known = {
        "unknown_symbol": _("KIS knows no such symbol"),
        "upstream_down": _("KIS does not answer, and nothing is known from earlier"),
        "rate_limited": _("too many questions wait for KIS already"),
        "timeout": _("KIS did not get to it in time"),
        "not_entitled": _("this environment has no such call"),
    }
    return known.get(code, code)


def _number(price: Price, value: int | None, sign: str = "") -> str:
    decimal = price.decimal(value)
    return "" if decimal is None else f"{decimal:{sign},}"
