"""How a command ends when it fails: one message for a person, one object for a program, a code."""

from __future__ import annotations

import datetime as dt
import json
import os
import traceback
from typing import TYPE_CHECKING, Any, Final

import click

from kisfeed import errors, places, texts
from kisfeed.cli.i18n import _, ngettext, said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUG: Final = 1
USAGE: Final = 2
NO_DAEMON: Final = 69
NOT_PERMITTED: Final = 77
UNKNOWN_OUTCOME: Final = 79
INTERRUPTED: Final = 130

_BY_SERVER_CODE: Final = {
    "bad_request": USAGE,
    "unknown_topic": USAGE,
    "unknown_symbol": USAGE,
    "not_entitled": NOT_PERMITTED,
    "unauthorized": NOT_PERMITTED,
    "orders_disabled": NOT_PERMITTED,
    "halted": NOT_PERMITTED,
    "internal": BUG,
    "bad_frame": BUG,
    "unknown_outcome": UNKNOWN_OUTCOME,
}


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested exception groups, in order; *error* itself if it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def exit_code(error: BaseException) -> int:
    """What the command line exits with after *error*."""
    if isinstance(error, click.ClickException):
        return USAGE
    if isinstance(error, errors.ServerRefused):
        return _BY_SERVER_CODE.get(error.code, error.exit_code)
    if isinstance(error, errors.KisfeedError):
        return error.exit_code
    return BUG


def code(error: BaseException) -> str:
    """A stable English name for *error*, for programs: ``no_daemon``, ``config_error`` ..."""
    if isinstance(error, errors.ServerRefused):
        return error.code
    if isinstance(error, click.ClickException):
        return "usage_error"
    if isinstance(error, errors.KisfeedError):
        name = type(error).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return "bug"


def message(error: BaseException) -> str:
    """What happened and what to do about it, in the reader's language."""
    match error:
        case errors.ConfigError(problems=problems):
            head = ngettext(
                "The configuration has {count} problem:",
                "The configuration has {count} problems:",
                len(problems),
            ).format(count=len(problems))
            return "\n".join([head, *(f"  {path}: {said(what)}" for path, what in problems)])
        case errors.NoDaemon():
            told = _("{detail}\nStart one with `kisfeed serve`, or `kisfeed serve --sim`.")
            others = sorted(path.stem for path in places.runtime_folder().glob("*.sock"))
            if others:
                told += "\n" + _("Sockets that exist: {names}; choose by --profile.")
            return told.format(detail=said(str(error), texts.parts(error)), names=", ".join(others))
        case errors.AppkeyInUse(pid=pid, socket=socket, since_ts=since_ts):
            return _(
                "Another kisfeed has this appkey: pid {pid}, socket {socket}, since {since}."
            ).format(pid=pid or "?", socket=socket or "-", since=local_time(since_ts))
        case errors.UnknownTopic(topic=topic, why=why):
            return _("{topic} is not a topic: {why}").format(topic=topic, why=why)
        case errors.ServerRefused(code=refusal, text=text, detail=detail):
            told = said(text, detail)
            return _("The daemon refused ({code}): {text}").format(code=refusal, text=told)
        case click.ClickException():
            return error.format_message()
        case errors.KisfeedError():
            return said(str(error), texts.parts(error))
        case _:
            return _("This is a bug in kisfeed: {kind}: {detail}").format(
                kind=type(error).__name__, detail=error
            )


def local_time(ts: int | None) -> str:
    """Nanoseconds since 1970 UTC as the date and time of this machine; ``-`` for None."""
    if ts is None:
        return "-"
    moment = dt.datetime.fromtimestamp(ts // 10**9, dt.UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def as_map(error: BaseException) -> dict[str, Any]:
    """*error* as ``schemas/cli/error.schema.json`` has it."""
    answer: dict[str, Any] = {
        "type": "error",
        "code": code(error),
        "exit_code": exit_code(error),
        "message": message(error),
    }
    if isinstance(error, errors.ConfigError):
        answer["problems"] = [{"key": path, "problem": what} for path, what in error.problems]
    if isinstance(error, errors.ServerRefused) and error.detail:
        answer["detail"] = dict(error.detail)
    return answer


def save_traceback(error: BaseException) -> Path | None:
    """Append the traceback of a bug to the user's log; None if it cannot be written there."""
    import platformdirs

    path = platformdirs.user_log_path("kisfeed") / "crash.log"
    text = "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "a", encoding="utf-8") as log:
            log.write(text + "\n")
    except OSError:
        # The traceback must not be lost with the folder: the caller shows it instead.
        return None
    return path


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell the person (stderr) or the program (stdout) what went wrong.

    Returns:
        The exit code. Of several errors at once the first that is no bug is told; if any is a
        bug, it is the bug.
    """
    found = list(leaves(error))
    told = next((e for e in found if exit_code(e) == BUG), found[0])
    if as_json:
        click.echo(json.dumps(as_map(told), ensure_ascii=False))
    if isinstance(told, click.UsageError):
        told.show()
        return USAGE
    click.echo(_("Error: {message}").format(message=message(told)), err=True)
    is_deliberate = isinstance(told, (errors.KisfeedError, click.ClickException))
    if not is_deliberate:
        path = save_traceback(error)
        if path is None:
            click.echo("".join(traceback.format_exception(error)), err=True)
        else:
            click.echo(_("The traceback is in {path}.").format(path=path), err=True)
    return exit_code(told)
