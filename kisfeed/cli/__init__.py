"""The command line: one module a command, each imports what it runs with when it runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from kisfeed.cli import (
    chaos,
    clients,
    demo,
    failures,
    halt,
    i18n,
    init,
    limits,
    order,
    quote,
    reconnect,
    release,
    resume,
    serve,
    service,
    sim,
    slots,
    status,
    stream,
    stress,
    token,
    watch,
)
from kisfeed.cli.i18n import N_
from kisfeed.cli.options import Group, Option, language_option

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=N_(
        "One KIS session, shared by any number of local programs.\n\n"
        "Try it without an account: kisfeed demo"
    ),
)
@click.version_option(
    package_name="kisfeed",
    message="%(prog)s %(version)s",
    cls=Option,
    help=N_("Show the version and exit."),
)
@language_option
def group() -> None:
    pass


for module in (demo, init, serve, stream, watch, status, slots, clients, reconnect, release):
    group.add_command(module.command)
for module in (quote, order, halt, resume, limits, token, service, sim, stress, chaos):
    group.add_command(module.command)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; never raises.

    Args:
        arguments: the command line without the program's name.
    """
    i18n.use(i18n.preferred(os.environ))
    as_json = "--json" in arguments
    try:
        code = group.main(list(arguments), prog_name="kisfeed", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return failures.INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last line: told, kept, and an exit code
        return failures.report(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def main() -> None:
    """The ``kisfeed`` command."""
    sys.exit(run(sys.argv[1:]))
