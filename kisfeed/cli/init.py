"""``kisfeed init``: write the profiles, from ``kis_devlp.yaml`` or from answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common

if TYPE_CHECKING:
    from kisfeed.cli.kisdevlp import Imported, Profile

DEFAULT_SOURCE: Final = Path("~/KIS/config/kis_devlp.yaml")


@click.command(
    "init",
    cls=Command,
    help=N_(
        "Write your profiles.\n\n"
        "With --from, takes keys and account over from kis_devlp.yaml; without, asks."
    ),
)
@click.option(
    "--from",
    "source",
    cls=Option,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=N_("Your kis_devlp.yaml."),
)
@click.option("--force", cls=Option, is_flag=True, help=N_("Replace profiles that exist."))
@common
def command(source: Path | None, force: bool, as_json: bool) -> None:
    imported = _ask() if source is None else _read(source)
    targets = _targets(imported, force=force)
    written = [str(_write(profile, path)) for profile, path in targets]
    if as_json:
        answer = {
            "written": written,
            "findings": [
                {"line": f.line, "key": f.key, "what": f.what, "fatal": f.fatal}
                for f in imported.findings
            ],
        }
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        _tell(imported, written, source)
    if any(finding.fatal for finding in imported.findings) or not written:
        raise click.exceptions.Exit(78)


def _read(source: Path) -> Imported:
    from kisfeed import errors
    from kisfeed.cli import kisdevlp

    try:
        text = source.expanduser().read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError((str(source), str(error))) from None
    return kisdevlp.read(text)


def _ask() -> Imported:
    """Ask a person; a program gives --from."""
    from kisfeed.cli import kisdevlp
    from kisfeed.config import Environment, Secret

    if not sys.stdin.isatty():
        raise click.UsageError(_("nobody to ask here: give --from kis_devlp.yaml"))
    found = DEFAULT_SOURCE.expanduser()
    if found.is_file() and click.confirm(
        _("Take keys and account over from {path}?").format(path=found), default=True, err=True
    ):
        return _read(found)
    environment = click.prompt(
        _("Paper trading or real"), type=click.Choice(["paper", "real"]), default="paper", err=True
    )
    appkey = click.prompt("appkey", err=True)
    appsecret = click.prompt(_("appsecret (not shown)"), hide_input=True, err=True)
    hts_id = click.prompt(_("HTS ID (for order notices; may be empty)"), default="", err=True)
    account = click.prompt(
        _("Account, like 12345678-01 (for orders; may be empty)"), default="", err=True
    )
    answers = kisdevlp.Profile(
        Environment(environment), Secret(appkey), Secret(appsecret), hts_id, Secret(account)
    )
    _check(answers)
    return kisdevlp.Imported((answers,), ())


def _check(profile: Profile) -> None:
    from kisfeed import config, errors
    from kisfeed.cli import settings

    made = config.Config(
        environment=profile.environment,
        credentials=config.Credentials(
            profile.appkey, profile.appsecret, profile.hts_id, profile.account
        ),
    )
    problems = list(settings.rules(made, settings.Purpose.SERVE))
    if problems:
        raise errors.ConfigError(*problems)


def _targets(imported: Imported, *, force: bool) -> list[tuple[Profile, Path]]:
    from kisfeed import errors, places

    folder = places.config_folder()
    targets = [(p, folder / f"{p.environment.value}.toml") for p in imported.profiles]
    taken = [path for _profile, path in targets if path.exists()]
    if taken and not force:
        raise errors.ConfigError(
            *((str(path), _("exists already; --force replaces it")) for path in taken)
        )
    return targets


def _write(profile: Profile, path: Path) -> Path:
    from kisfeed import errors, seams

    lines = [
        "# " + _("Written by `kisfeed init`. Keep it readable by you alone (mode 0600)."),
        f"environment = {json.dumps(profile.environment.value)}",
        "",
        "[credentials]",
        f"appkey = {json.dumps(profile.appkey.reveal())}",
        f"appsecret = {json.dumps(profile.appsecret.reveal())}",
    ]
    if profile.hts_id:
        lines.append(f"hts_id = {json.dumps(profile.hts_id)}")
    if profile.account:
        lines.append(f"account = {json.dumps(profile.account.reveal())}")
    lines += ["", "[orders]", "enabled = false", ""]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        seams.write_atomically(path, "\n".join(lines).encode())
    except OSError as error:
        raise errors.StateError(f"{path}: {error}") from None
    return path


def _tell(imported: Imported, written: list[str], source: Path | None) -> None:
    for finding in imported.findings:
        where = _("line {line}").format(line=finding.line) if finding.line else _("missing")
        mark = _("problem") if finding.fatal else _("note")
        name = source.name if source is not None else DEFAULT_SOURCE.name
        click.echo(f"{mark}: {name} {where}: {finding.key}: {finding.what}", err=True)
    for path in written:
        click.echo(_("written: {path} (mode 0600, orders off)").format(path=path))
    if not written:
        click.echo(_("Nothing was written."), err=True)
        return
    profile = "paper" if any(path.endswith("paper.toml") for path in written) else "real"
    click.echo(_("Next: kisfeed serve --profile {profile}").format(profile=profile))
