"""``kisfeed slots``: what holds the session's registrations, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Group, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path


@click.group(
    "slots",
    cls=Group,
    invoke_without_command=True,
    help=N_("Show every slot: its topic, score, state and reason."),
)
@common
@daemon_options
@click.pass_context
def command(context: click.Context, /, as_json: bool, **where: Path | str | None) -> None:
    from kisfeed.cli import link, status

    if context.invoked_subcommand is not None:
        context.obj = where
        return
    with link.connect("slots", **where) as daemon:  # type: ignore[arg-type]  # click's options
        answer = daemon.call("slots")
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    from rich.console import Console

    click.echo(
        _("{used} of {cap} used, {reserved} reserved").format(
            used=answer["used"], cap=answer["cap"], reserved=answer["reserved"]
        )
    )
    if answer["slots"]:
        Console().print(status.slot_table(answer["slots"]))


@command.command("pin", cls=Command, help=N_("Hold a topic's slot whoever wants it."))
@click.argument("topic")
@common
@daemon_options
@click.pass_context
def pin(context: click.Context, /, topic: str, as_json: bool, **where: Path | str | None) -> None:
    _pin(context, "slots.pin", topic, where, as_json=as_json)


@command.command("unpin", cls=Command, help=N_("Hold it no longer than programs want it."))
@click.argument("topic")
@common
@daemon_options
@click.pass_context
def unpin(context: click.Context, /, topic: str, as_json: bool, **where: Path | str | None) -> None:
    _pin(context, "slots.unpin", topic, where, as_json=as_json)


def _pin(
    context: click.Context, call: str, topic: str, where: dict[str, Any], *, as_json: bool
) -> None:
    from kisfeed.cli import link

    # Options count wherever they stand: kisfeed slots --profile paper pin TOPIC.
    group = context.obj
    place = {name: group[name] if value is None else value for name, value in where.items()}
    with link.connect("slots", **place) as daemon:
        answer = daemon.call(call, topic=topic)
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    elif answer["pinned"]:
        click.echo(_("{topic} is pinned until the daemon ends.").format(topic=answer["topic"]))
    else:
        click.echo(_("{topic} is not pinned.").format(topic=answer["topic"]))
