"""``kisfeed order``: place, change, see and settle orders through the daemon."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Group, Option, common, daemon_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])


@click.group(
    "order",
    cls=Group,
    help=N_(
        "Place, change, see and settle orders.\n\n"
        "Each has an id of yours: the same id on the same day is the same order and is never"
        " sent twice."
    ),
)
def command() -> None:
    pass


def _id_option(function: F) -> F:
    return click.option(
        "--id",
        "name",
        cls=Option,
        required=True,
        metavar="ID",
        help=N_("Your own name for it; again, it gives the first result."),
    )(function)


def _yes_option(function: F) -> F:
    return click.option("--yes", cls=Option, is_flag=True, help=N_("Do not ask."))(function)


def _kind_options(function: F) -> F:
    function = click.option(
        "--allow-closed", cls=Option, is_flag=True, help=N_("Place it though the market is closed.")
    )(function)
    return click.option(
        "--type",
        "kind",
        cls=Option,
        metavar="TYPE",
        help=N_("limit, market, best, limit-ioc ... (limit with a price, else market)."),
    )(function)


def _place_command(side: str, text: str) -> click.Command:
    @click.command(side, cls=Command, help=text)
    @click.argument("symbol")
    @click.option(
        "--qty", cls=Option, type=int, required=True, metavar="N", help=N_("How many shares.")
    )
    @click.option(
        "--price", cls=Option, type=int, metavar="P", help=N_("Won a share; none for market.")
    )
    @click.option(
        "--stop-price", cls=Option, type=int, metavar="P", help=N_("What sets a stop-limit off.")
    )
    @_id_option
    @click.option(
        "--exchange",
        cls=Option,
        type=click.Choice(["KRX", "NXT", "SOR"]),
        default="KRX",
        help=N_("Where it goes (KRX)."),
    )
    @click.option(
        "--ttl",
        "ttl_s",
        cls=Option,
        type=float,
        metavar="SECONDS",
        help=N_("Give up what is not sent by then."),
    )
    @_kind_options
    @_yes_option
    @common
    @daemon_options
    def place(
        symbol: str,
        qty: int,
        price: int | None,
        stop_price: int | None,
        name: str,
        exchange: str,
        ttl_s: float | None,
        kind: str | None,
        allow_closed: bool,
        yes: bool,
        as_json: bool,
        **where: Any,
    ) -> None:
        from kisfeed.cli import link

        asked: dict[str, Any] = {
            "client_order_id": name,
            "symbol": symbol,
            "side": side,
            "qty": qty,
            "price": price,
            "stop_price": stop_price,
            "type": kind,
            "exchange": exchange,
            "ttl_s": ttl_s,
            "allow_closed": allow_closed,
        }
        asked = {key: value for key, value in asked.items() if value is not None}
        with link.connect("order", **where, role="trader") as daemon:
            preview = daemon.call("order.preview", **asked)
            if preview["state"] == "previewed":
                _confirm(preview, yes=yes)
            order = _decide(lambda: daemon.call("order.place", **asked), name)
        _show(order, as_json=as_json)

    return place


command.add_command(_place_command("buy", N_("Buy shares.")))
command.add_command(_place_command("sell", N_("Sell shares.")))


@command.command("amend", cls=Command, help=N_("Change the price of what is open of an order."))
@click.argument("target", metavar="ID_OF_THE_ORDER")
@click.option("--price", cls=Option, type=int, metavar="P", help=N_("The new price."))
@_id_option
@_kind_options
@_yes_option
@common
@daemon_options
def amend(
    target: str,
    price: int | None,
    name: str,
    kind: str | None,
    allow_closed: bool,
    yes: bool,
    as_json: bool,
    **where: Any,
) -> None:
    from kisfeed.cli import link

    asked: dict[str, Any] = {"client_order_id": name, "target": target, "price": price}
    if kind is not None:
        asked["type"] = kind
    with link.connect("order", **where, role="trader") as daemon:
        _confirm(
            daemon.call("order.show", client_order_id=target),
            yes=yes,
            to=_("to {price}").format(price="-" if price is None else f"{price:,}"),
        )
        order = _decide(
            lambda: daemon.call("order.amend", **asked, allow_closed=allow_closed), name
        )
    _show(order, as_json=as_json)


@command.command(
    "cancel", cls=Command, help=N_("Cancel what is open of an order; works while halted too.")
)
@click.argument("target", metavar="ID_OF_THE_ORDER")
@click.option("--qty", cls=Option, type=int, metavar="N", help=N_("Only so many shares."))
@common
@daemon_options
def cancel(target: str, qty: int | None, as_json: bool, **where: Any) -> None:
    from kisfeed.cli import link

    asked = {"target": target} if qty is None else {"target": target, "qty": qty}
    with link.connect("order", **where, role="trader") as daemon:
        order = _decide(lambda: daemon.call("order.cancel", **asked), target)
    _show(order, as_json=as_json)


@command.command("ls", cls=Command, help=N_("Show the orders of a day."))
@click.option("--day", cls=Option, metavar="YYYYMMDD", help=N_("Another day than today in Seoul."))
@click.option("--fresh", cls=Option, is_flag=True, help=N_("Ask KIS first."))
@common
@daemon_options
def ls(day: str | None, fresh: bool, as_json: bool, **where: Any) -> None:
    from kisfeed.cli import link

    asked = {"fresh": fresh} if day is None else {"fresh": fresh, "day": day}
    with link.connect("order", **where, role="trader") as daemon:
        answer = daemon.call("order.list", **asked)
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    if answer["halted"] is not None:
        click.echo(_("Ordering is halted: {why}").format(why=answer["halted"]["reason"]))
    if not answer["orders"]:
        click.echo(_("No orders."))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("ID", _("Order"), _("State"), _("Filled"), _("Number")):
        table.add_column(title, overflow="fold")
    for order in answer["orders"]:
        table.add_row(
            f"{order['client']}/{order['id']}",
            what(order),
            state(order),
            f"{order['filled_qty']:,}/{order['qty']:,}" if order["action"] == "new" else "",
            order["order_no"] or ", ".join(order["candidates"]),
        )
    Console().print(table)


@command.command("show", cls=Command, help=N_("Show one order."))
@click.argument("name", metavar="ID")
@click.option("--client", cls=Option, metavar="NAME", help=N_("The program that placed it."))
@click.option("--day", cls=Option, metavar="YYYYMMDD", help=N_("Another day than the last."))
@click.option("--fresh", cls=Option, is_flag=True, help=N_("Ask KIS first."))
@common
@daemon_options
def show(
    name: str, client: str | None, day: str | None, fresh: bool, as_json: bool, **where: Any
) -> None:
    from kisfeed.cli import link

    with link.connect("order", **where, role="trader") as daemon:
        order = daemon.call("order.show", fresh=fresh, **_named(name, client, day))
    _show(order, as_json=as_json)


@command.command(
    "resolve",
    cls=Command,
    help=N_(
        "Settle an order in doubt by what you found out.\n\n"
        "Look into KIS's own app first: nothing like it goes out until it is settled."
    ),
)
@click.argument("name", metavar="ID")
@click.option("--odno", cls=Option, metavar="N", help=N_("KIS's number for it."))
@click.option("--not-executed", cls=Option, is_flag=True, help=N_("It never reached KIS."))
@click.option("--reason", cls=Option, metavar="TEXT", help=N_("Why; kept in the journal."))
@click.option("--client", cls=Option, metavar="NAME", help=N_("The program that placed it."))
@click.option("--day", cls=Option, metavar="YYYYMMDD", help=N_("Another day than the last."))
@common
@daemon_options
def resolve(
    name: str,
    odno: str | None,
    not_executed: bool,
    reason: str | None,
    client: str | None,
    day: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    from kisfeed.cli import link

    if (odno is None) is not not_executed:
        raise click.UsageError(_("Give --odno N, or --not-executed with --reason."))
    if not_executed and not reason:
        raise click.UsageError(_("--not-executed needs --reason."))
    asked = _named(name, client, day)
    asked |= {"not_executed": True} if odno is None else {"order_no": odno}
    if reason:
        asked["reason"] = reason
    with link.connect("order", **where, role="trader") as daemon:
        order = daemon.call("order.resolve", **asked)
    _show(order, as_json=as_json)


def what(order: Mapping[str, Any]) -> str:
    """The order itself in one line: side, symbol, quantity, price."""
    told = {**order, "side": _("buy") if order["side"] == "buy" else _("sell")}
    if order["action"] == "cancel":
        if order["qty"]:
            return _("cancel {qty:,} of {target}: {side} {symbol}").format(**told)
        return _("cancel {target}: {side} {symbol}").format(**told)
    told["price"] = order["type"] if order["price"] is None else f"{order['price']:,}"
    text = _("{side} {symbol} {qty:,} @ {price} {exchange}").format(**told)
    if order["action"] == "new":
        return text
    return _("amend {target}: {order}").format(target=order["target"], order=text)


def state(order: Mapping[str, Any]) -> str:
    """How it stands, in a word."""
    known = {
        "previewed": _("previewed"),
        "queued": _("queued"),
        "sending": _("being sent"),
        "accepted": _("accepted"),
        "rejected": _("rejected"),
        "unknown": _("in doubt"),
        "human": _("in doubt, yours to settle"),
        "not_executed": _("not executed"),
        "not_sent": _("not sent"),
        "expired": _("expired"),
    }
    return known.get(order["state"], str(order["state"]))


def _named(name: str, client: str | None, day: str | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"client_order_id": name}
    if client is not None:
        asked["client"] = client
    if day is not None:
        asked["day"] = day
    return asked


def _confirm(order: Mapping[str, Any], *, yes: bool, to: str = "") -> None:
    click.echo(f"{what(order)} {to}".rstrip(), err=True)
    for warning in order["warnings"]:
        click.echo(_("Warning: {text}").format(text=said(warning)), err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(_("Nobody is there to ask: give --yes."))
    click.confirm(_("Place it?"), abort=True, err=True)


def _decide(call: Callable[[], Any], name: str) -> Any:
    """Make a call that places something.

    Raises:
        UnknownOutcome: the daemon went before it answered.
    """
    from kisfeed import errors

    try:
        return call()
    except errors.Disconnected as exc:
        raise errors.UnknownOutcome(_lost(name)) from exc
    except errors.ServerRefused as exc:
        if exc.code == "timeout":
            raise errors.UnknownOutcome(_lost(name)) from exc
        raise


def _lost(name: str) -> str:
    return _(
        "The daemon did not answer: the order may have been sent. `kisfeed order show {name}`"
        " tells; the same id never sends it twice, another one would."
    ).format(name=name)


def _show(order: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(order, ensure_ascii=False))
        return
    click.echo(f"{order['client']}/{order['id']}: {what(order)}")
    told = [state(order), _("number {number}").format(number=order["order_no"] or "-")]
    if order["action"] == "new":
        told.append(_("filled {filled_qty:,} of {qty:,}").format(**order))
        if order["avg_price"]:
            told.append(_("at {avg_price} on average").format(**order))
        if order["open_qty"]:
            told.append(_("open {open_qty:,}").format(**order))
        if order["cancelled_qty"]:
            told.append(_("cancelled {cancelled_qty:,}").format(**order))
    click.echo(", ".join(told))
    if order["candidates"]:
        click.echo(_("May be: {numbers}").format(numbers=", ".join(order["candidates"])))
    if order["text"]:
        click.echo(said(order["text"]))
