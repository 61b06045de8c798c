"""``kisfeed limits``: what KIS allows, by which source, and your own limits over it."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Group, common, daemon_options, profile_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kisfeed.config import Config

_FOUND: Final = 3
_OLD_DAYS: Final = 180


@click.group(
    "limits", cls=Group, help=N_("Show, check and compare what KIS allows, and apply changes.")
)
def command() -> None:
    pass


@command.command("show", cls=Command, help=N_("Show what is in force, and by which source."))
@common
@profile_option
def show(as_json: bool, profile: str | None, config_file: Path | None) -> None:
    from kisfeed import limits
    from kisfeed.feed import limits_file
    from kisfeed.rest import limits_watch

    config = _config(profile, config_file)
    file = limits_file(config)
    data = limits_watch.read(file)
    rules = limits.origins(data, config.environment, _today())
    answer = {
        "environment": str(config.environment),
        "version": data["version"],
        "asOf": data["asOf"],
        "file": str(file),
        "share": data.get("share", 1),
        "rules": [
            {"name": r.name, "what": r.what, "value": r.value, "why": r.why, "used": list(r.used)}
            for r in rules
        ],
    }
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=_("{version} for {environment}").format(**answer),
        title_justify="left",
        title_style="bold",
    )
    for title in (_("Limit"), _("Value"), _("Source"), _("Date")):
        table.add_column(title, overflow="fold")
    kinds = {
        "notice": _("notice"),
        "faq": _("FAQ"),
        "sample": _("sample"),
        "measured": _("measured"),
    }
    for rule in rules:
        sources = {f"{c['source_kind']} {c['date']}": c for c in rule.used}
        kind, _blank, date = next(iter(sorted(sources, reverse=True))).partition(" ")
        table.add_row(rule.name, said(rule.value), kinds.get(kind, kind), date)
    Console().print(table)
    if answer["share"] != 1:
        click.echo(_("kisfeed uses {share} of the REST limit.").format(share=answer["share"]))


@command.command(
    "check",
    cls=Command,
    help=N_("Check your limits file: typing errors, limits above KIS's, sources grown old."),
)
@click.argument(
    "file", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
@common
@profile_option
def check(
    file: Path | None, as_json: bool, profile: str | None, config_file: Path | None
) -> int | None:
    from kisfeed.feed import limits_file

    config = _config(profile, config_file)
    found = _findings(limits_file(config) if file is None else file, config)
    if as_json:
        problems = [{"where": where, "what": what} for where, what in found]
        click.echo(json.dumps({"problems": problems}, ensure_ascii=False))
    elif not found:
        click.echo(_("Nothing is wrong with the limits."))
    else:
        for where, what in found:
            click.echo(f"{where}: {said(what)}")
    return _FOUND if found else None


@command.command(
    "diff",
    cls=Command,
    help=N_("Compare a limits file, yours or the one named, with what comes with kisfeed."),
)
@click.argument(
    "file", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
@common
@profile_option
def diff(file: Path | None, as_json: bool, profile: str | None, config_file: Path | None) -> None:
    from kisfeed import limits, schemas
    from kisfeed.feed import limits_file
    from kisfeed.rest import limits_watch

    config = _config(profile, config_file)
    file = limits_file(config) if file is None else file
    sides = [
        {r.name: r.value for r in limits.origins(data, config.environment, _today())}
        | {"share": f"{data.get('share', 1):g}"}
        for data in (schemas.load("limits.kis.json"), limits_watch.read(file))
    ]
    names = dict.fromkeys([*sides[0], *sides[1]])
    changed = [
        {"name": n, "shipped": sides[0].get(n), "file": sides[1].get(n)}
        for n in names
        if sides[0].get(n) != sides[1].get(n)
    ]
    if as_json:
        click.echo(json.dumps({"file": str(file), "changed": changed}, ensure_ascii=False))
    elif not changed:
        click.echo(_("{file} changes no limit.").format(file=file))
    else:
        for line in changed:
            old, new = (said(value) if value else "-" for value in (line["shipped"], line["file"]))
            click.echo(f"{line['name']}: {old} -> {new}")


@command.command(
    "reload", cls=Command, help=N_("Apply your limits file now; the daemon does so in 5 s anyway.")
)
@common
@daemon_options
def reload(as_json: bool, **where: Any) -> None:
    from kisfeed import errors
    from kisfeed.cli import link

    with link.connect("limits", **where) as daemon:
        try:
            answer = daemon.call("limits.reload")
        except errors.ServerRefused as exc:
            problems = exc.detail.get("problems")
            if not problems:
                raise
            raise errors.ConfigError(*((place, what) for place, what in problems)) from exc
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        click.echo(_("In force: {version}").format(version=answer["version"]))


def _config(profile: str | None, config_file: Path | None) -> Config:
    from kisfeed.cli import settings

    return settings.load(purpose=settings.Purpose.CLIENT, profile=profile, file=config_file)


def _today() -> dt.date:
    from kisfeed.rest.limits_watch import today
    from kisfeed.seams import SystemClock

    return today(SystemClock())


def _findings(file: Path, config: Config) -> list[tuple[str, str]]:
    """Everything that a person should look at: (where, what)."""
    from kisfeed import errors, limits, schemas
    from kisfeed.rest import limits_watch

    shipped = schemas.load("limits.kis.json")
    day = _today()
    found: list[tuple[str, str]] = []
    age = (day - dt.date.fromisoformat(shipped["asOf"])).days
    if age > _OLD_DAYS:
        what = _("the shipped limits are {days} days old").format(days=age)
        found.append(("limits.kis.json", what))
    try:
        merged = limits_watch.read(file)
        limits_watch.resolve(file, config.environment, day)
    except errors.ConfigError as error:
        return found + list(error.problems)
    ours = {r.name: r for r in limits.origins(merged, config.environment, day)}
    for theirs in limits.origins(shipped, config.environment, day):
        mine = ours.get(theirs.name)
        if mine is None or mine.used == theirs.used:
            continue
        if _rate(mine.used) > _rate(theirs.used):
            what = _("{mine} is more than the shipped {theirs}").format(
                mine=said(mine.value), theirs=said(theirs.value)
            )
            found.append((theirs.name, what))
        if max(c["date"] for c in mine.used) < max(c["date"] for c in theirs.used):
            what = _("its newest source is older than the shipped one")
            found.append((theirs.name, what))
    return found


def _rate(used: tuple[Mapping[str, Any], ...]) -> float:
    return min(float(c["count"] / c.get("per_s", 1)) for c in used)
