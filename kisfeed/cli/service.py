"""``kisfeed service``: the daemon as a systemd user service."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Group, Option, common, profile_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

_SECRETS: Final = ("appkey", "appsecret", "account")
# Where state and configuration are: a service that looked elsewhere would know of no budget.
_HANDED_ON: Final = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
_SEEN_BY_COMMANDS_ONLY: Final = ("KISFEED_PROFILE", "KISFEED_CONFIG", "KISFEED_LANG")


@click.group(
    "service",
    cls=Group,
    help=N_(
        "Run the daemon as a systemd user service.\n\n"
        "Started at boot, restarted when it fails, watched by its heartbeat."
    ),
)
def command() -> None:
    pass


def _credential_option(function: F) -> F:
    return click.option(
        "--credential",
        "credentials",
        cls=Option,
        multiple=True,
        metavar="NAME=FILE",
        callback=_credentials,
        help=N_("Let systemd hand over a secret: appkey=FILE, appsecret=FILE, account=FILE."),
    )(function)


def _credentials(
    ctx: click.Context,  # noqa: ARG001  # click's signature
    param: click.Parameter,  # noqa: ARG001
    values: tuple[str, ...],
) -> dict[str, Path]:
    found = {}
    for value in values:
        name, equals, file = value.partition("=")
        if name not in _SECRETS or not equals or not file:
            raise click.BadParameter(_("{value} is not like appkey=FILE").format(value=value))
        found[name] = Path(file).expanduser().absolute()
    return found


@command.command("print", cls=Command, help=N_("Show the unit."))
@_credential_option
@common
@profile_option
def show(
    credentials: Mapping[str, Path],
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
) -> None:
    name, text = _unit(profile, config_file, credentials)
    click.echo(json.dumps({"unit": name, "text": text}) if as_json else text, nl=as_json)


@command.command(
    "install", cls=Command, help=N_("Write the unit for you alone and say how to start it.")
)
@click.option("--force", cls=Option, is_flag=True, help=N_("Replace a unit that is different."))
@_credential_option
@common
@profile_option
def install(
    force: bool,
    credentials: Mapping[str, Path],
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
) -> None:
    name, text = _unit(profile, config_file, credentials)
    path = _units() / name
    replaced = _write(path, text, force=force)
    next_steps = [
        "systemctl --user daemon-reload",
        f"systemctl --user {'restart' if replaced else 'enable --now'} {name}",
        "loginctl enable-linger",
    ]
    if as_json:
        click.echo(json.dumps({"unit": name, "text": text, "path": str(path), "next": next_steps}))
        return
    click.echo(_("written: {path}").format(path=path))
    click.echo(_("Next (the last one lets it run while you are not logged in):"))
    for step in next_steps:
        click.echo(f"  {step}")
    click.echo(_("Its log: {command}").format(command=f"journalctl --user -u {name} -f"))
    if shutil.which("systemctl") is None:
        click.echo(_("There is no systemctl here."), err=True)


def _units() -> Path:
    import platformdirs

    return platformdirs.user_config_path("systemd") / "user"


def _unit(
    profile: str | None, config_file: Path | None, credentials: Mapping[str, Path]
) -> tuple[str, str]:
    """The unit's name and text, once the configuration it will run with is known to be right."""
    from kisfeed import errors
    from kisfeed.cli import settings
    from kisfeed.ops import service
    from kisfeed.places import config_folder

    choice = settings.choose(
        profile, config_file, os.environ, config_folder(), settings.Purpose.SERVE
    )
    if choice.file is None:
        raise errors.ConfigError(
            ("profile", _("a service reads a file: run `kisfeed init`, or give --config"))
        )
    # As the service will find it: without what this shell has set.
    environ = {k: v for k, v in os.environ.items() if not k.startswith(settings.PREFIX)}
    settings.load(
        purpose=settings.Purpose.SERVE,
        profile=choice.profile,
        file=choice.file,
        flags={
            f"credentials.{name}_file": (str(path), "--credential")
            for name, path in credentials.items()
        },
        environ=environ,
    )
    unseen = sorted(set(os.environ) - set(environ) - set(_SEEN_BY_COMMANDS_ONLY))
    if unseen:
        click.echo(
            _("The service will not see {names}: put that into {file}.").format(
                names=", ".join(unseen), file=choice.file
            ),
            err=True,
        )
    # -P: a file called kisfeed.py in the home folder must not be taken for this program.
    arguments = [sys.executable, "-P", "-m", "kisfeed", "serve", "--profile", choice.profile]
    if choice.file.absolute().parent != config_folder():
        arguments += ["--config", str(choice.file.absolute())]
    text = service.unit(
        choice.profile,
        arguments,
        environment={name: os.environ[name] for name in _HANDED_ON if os.environ.get(name)},
        credentials=credentials,
    )
    return service.unit_name(choice.profile), text


def _write(path: Path, text: str, *, force: bool) -> bool:
    """Put *text* at *path*; True if another unit was there before."""
    from kisfeed import errors, seams

    try:
        before = path.read_text("utf-8") if path.exists() else None
        if before is not None and before != text and not force:
            raise errors.ConfigError(
                (str(path), _("exists already and is different; --force replaces it"))
            )
        if before != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            seams.write_atomically(path, text.encode(), mode=0o644)
    except (OSError, UnicodeDecodeError) as error:
        raise errors.StateError(f"{path}: {error}") from None
    return before is not None and before != text
