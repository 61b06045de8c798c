"""``kisfeed halt``: stop all ordering, with the daemon or without it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import click

from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from pathlib import Path

    from kisfeed.rest.halt import HaltSwitch

_PATIENCE_S: Final = 20.0  # an order that is being sent is over by then
_POLL_S: Final = 0.01
_CANCELLING: Final = N_(
    "cancelling takes longer and goes on in the daemon; `kisfeed order ls` shows each cancellation"
)


@click.command(
    "halt",
    cls=Command,
    help=N_(
        "Stop all ordering, now.\n\n"
        "When it returns, no order leaves any more; cancellations still may. It works with the"
        " daemon dead, and holds until `kisfeed resume`."
    ),
)
@click.option(
    "--cancel-open", cls=Option, is_flag=True, help=N_("Cancel what kisfeed placed and is open.")
)
@click.option("--reason", cls=Option, metavar="TEXT", help=N_("Why; shown to whoever orders."))
@common
@daemon_options
def command(
    cancel_open: bool,
    reason: str | None,
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed import errors
    from kisfeed.cli import failures, link
    from kisfeed.kfp.orders import DOUBTFUL, OrderState

    why = reason or _("halted from the command line")
    switch = switch_of(profile, config_file, socket)
    answer: dict[str, Any] = {"halted": None, "cancelled": None, "daemon": False}
    failed = None
    if switch is not None:
        try:
            answer["halted"] = _stop(switch, why)
        except errors.StateError as exc:
            failed = exc  # a daemon halts, and cancels, without the file too
    try:
        with link.connect("halt", profile, config_file, socket) as daemon:
            answer |= daemon.call("halt", reason=why, cancel_open=cancel_open)
            answer["daemon"] = True
    except errors.NoDaemon:
        if switch is None:
            raise
        if failed is not None:
            raise failed from None
    except errors.ServerRefused as exc:
        if cancel_open and exc.code == "timeout":
            raise errors.ServerRefused(exc.code, _(_CANCELLING)) from exc
        # A daemon without orders has none to stop; any other refusal is one to be told.
        if switch is None or exc.code != "orders_disabled":
            raise
        if failed is not None:
            raise failed from None
    click.echo(json.dumps(answer, ensure_ascii=False) if as_json else _told(answer))
    if cancel_open and answer["cancelled"] is None:
        click.echo(_("Nothing was cancelled: no daemon that could."), err=True)
        raise click.exceptions.Exit(69)
    doubts = [order["reason"] == "unknown" for order in answer.get("not_cancelled", ())]
    states = {order["state"] for order in answer["cancelled"] or ()} - {OrderState.ACCEPTED}
    if doubts or states:
        in_doubt = any(doubts) or not states.isdisjoint(DOUBTFUL)
        raise click.exceptions.Exit(failures.UNKNOWN_OUTCOME if in_doubt else 75)


def switch_of(
    profile: str | None, config_file: Path | None, socket: Path | None
) -> HaltSwitch | None:
    """The kill switch of the profile's appkey; None where only the daemon knows which that is."""
    from kisfeed import places
    from kisfeed.appkeys import appkey_name
    from kisfeed.cli import settings
    from kisfeed.rest.halt import HaltSwitch

    named = profile is not None or config_file is not None
    if not named and (socket is not None or os.environ.get("KISFEED_SOCKET")):
        return None
    config = settings.load(purpose=settings.Purpose.CLIENT, profile=profile, file=config_file)
    appkey = config.credentials.appkey
    if not appkey:
        return None
    return HaltSwitch(
        places.state_folder(config.state.dir), appkey_name(config.environment, appkey)
    )


def _stop(switch: HaltSwitch, why: str) -> dict[str, Any]:
    from kisfeed import blocking, errors, seams

    found = switch.halt(why, seams.SystemClock().wall_ns())
    patience = blocking.monotonic() + _PATIENCE_S
    while not switch.quiet():
        if blocking.monotonic() > patience:
            raise errors.StateError(_("An order is still being sent; no other one will be."))
        blocking.sleep(_POLL_S)
    return found.to_map()


def _told(answer: dict[str, Any]) -> str:
    from kisfeed.cli import order

    text = _("Ordering is halted: {why}").format(why=answer["halted"]["reason"])
    if answer["cancelled"]:
        listed = ", ".join(
            f"{o['client']}/{o['target']} ({order.state(o)})" for o in answer["cancelled"]
        )
        text += "\n" + _("Cancellations: {orders}").format(orders=listed)
    for left in answer.get("not_cancelled", ()):
        if left["reason"] == "unknown":
            line = _("In doubt, perhaps open, not cancelled: {order} ({why})")
        else:
            line = _("Still open, not cancelled: {order} ({why})")
        text += "\n" + line.format(
            order=f"{left['client']}/{left['id']}", why=said(left["text"], left)
        )
    return text
