"""What all commands share: help in the reader's language, and the options every command takes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from kisfeed.cli import i18n
from kisfeed.cli.i18n import N_, _

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

CLOSED_PIPE: Final = 141  # what a shell shows for SIGPIPE
STOP_HELP: Final = N_("Show this message and exit.")


def own_command() -> str:
    """How this program can be started again from here: ``kisfeed``, or the path to it."""
    if shutil.which("kisfeed"):
        return "kisfeed"
    path = Path(sys.argv[0])
    return str(path) if path.name == "kisfeed" else "python -m kisfeed"


class _TranslatedHelp:
    """Keeps the help text as written and gives it in the language in force when it is shown."""

    _written: str | None = None

    @property
    def help(self) -> str | None:
        return _(self._written) if self._written else None

    @help.setter  # noqa: A003  # click's name
    def help(self, text: str | None) -> None:
        self._written = text


class Option(_TranslatedHelp, click.Option):
    """An option whose help is translated when it is shown."""


class _HelpOption:
    """Gives ``--help`` its translated text."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option: click.Option | None = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.help = _(STOP_HELP)
        return option


class _KeptLines(_TranslatedHelp):
    """Shows a translation's lines as they were written.

    click measures lines in characters; a Korean one takes two columns, so it breaks its own.
    """

    @property
    def help(self) -> str | None:
        text = super().help
        return text if text == self._written or text is None else text.replace("\n\n", "\n\n\b\n")

    @help.setter  # noqa: A003  # click's name
    def help(self, text: str | None) -> None:
        self._written = text


class Command(_KeptLines, _HelpOption, click.Command):
    """A command whose help is translated when it is shown."""


class Group(_KeptLines, _HelpOption, click.Group):
    """A group whose help is translated when it is shown, its commands in the order given."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; ``| head`` ends it quietly."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Point stdout nowhere: the flush at exit would complain about the closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(CLOSED_PIPE) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.commands)


def _language(ctx: click.Context, param: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    if value is not None:
        i18n.use(value)


def language_option(function: F) -> F:
    """``--lang``, effective before anything else is read or shown."""
    return click.option(
        "--lang",
        cls=Option,
        type=click.Choice(i18n.LANGUAGES),
        is_eager=True,
        expose_value=False,
        callback=_language,
        help=N_("Language of texts: ko or en (also KISFEED_LANG)."),
    )(function)


def common(function: F) -> F:
    """The options every command takes: ``--json`` and ``--lang``."""
    function = language_option(function)
    return click.option(
        "--json",
        "as_json",
        cls=Option,
        is_flag=True,
        help=N_("Answer on stdout as JSON; talk stays on stderr."),
    )(function)


def profile_option(function: F) -> F:
    """``--profile`` and ``--config``: which configuration is meant."""
    function = click.option(
        "--config",
        "config_file",
        cls=Option,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help=N_("Read this configuration file (also KISFEED_CONFIG)."),
    )(function)
    return click.option(
        "--profile",
        cls=Option,
        metavar="NAME",
        help=N_("Use this profile (also KISFEED_PROFILE)."),
    )(function)


def daemon_options(function: F) -> F:
    """``--profile``, ``--config`` and ``--socket``: which daemon is meant."""
    function = click.option(
        "--socket",
        cls=Option,
        type=click.Path(path_type=Path),
        metavar="PATH",
        help=N_("The daemon's socket, instead of the profile's."),
    )(function)
    return profile_option(function)
