"""``kisfeed token``: the access token that every REST call is signed with, never shown itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Group, common, daemon_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PATIENCE_S: Final = 10.0


@click.group("token", cls=Group, help=N_("Show or renew KIS's access token; it is never printed."))
def command() -> None:
    pass


@command.command("show", cls=Command, help=N_("Show whether there is one, and until when."))
@common
@daemon_options
def show(as_json: bool, **where: Path | str | None) -> None:
    answer = _daemon("token", where)
    if answer is None:
        answer = _alone(where, renew=False)
    _tell(answer, as_json=as_json)


@command.command(
    "refresh",
    cls=Command,
    help=N_(
        "Ask KIS for a fresh token.\n\n"
        "KIS gives one a minute, and the same one again within six hours."
    ),
)
@common
@daemon_options
def refresh(as_json: bool, **where: Path | str | None) -> None:
    answer = _daemon("token.refresh", where)
    if answer is None:
        answer = _alone(where, renew=True)
    _tell(answer, as_json=as_json)


def _daemon(call: str, where: Mapping[str, Any]) -> Any:
    """What the daemon answers; None where none runs."""
    from kisfeed import errors
    from kisfeed.cli import link

    try:
        with link.connect("token", **where) as daemon:
            return daemon.call(call)
    except errors.NoDaemon:
        if where["socket"] is not None:
            raise
        return None


def _alone(where: Mapping[str, Any], *, renew: bool) -> Mapping[str, Any]:
    import trio

    from kisfeed import feed
    from kisfeed.cli import settings

    config = settings.load(
        purpose=settings.Purpose.SERVE, profile=where["profile"], file=where["config_file"]
    )

    async def look() -> Mapping[str, Any]:
        async with feed.open_tokens(config) as tokens:
            if renew:
                await tokens.renew(_PATIENCE_S)
            return tokens.status()

    return trio.run(look)


def _tell(answer: Mapping[str, Any], *, as_json: bool) -> None:
    from kisfeed.cli.status import duration

    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    if answer["left_s"] is None:
        click.echo(_("There is no access token."))
    else:
        click.echo(
            _("Access token {masked}, valid for {left}, renewed in {renew}.").format(
                masked=answer["masked"],
                left=duration(answer["left_s"]),
                renew=duration(answer["renew_in_s"]),
            )
        )
    if answer["why"]:
        click.echo(
            _("The last issue failed: {why}. Next try in {time}.").format(
                why=said(answer["why"]), time=duration(answer["next_issue_in_s"])
            )
        )
    if answer["file"] != "ok":
        click.echo(_("Its file: {why}").format(why=answer["file"]))
