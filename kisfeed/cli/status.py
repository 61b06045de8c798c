"""``kisfeed status``: the daemon on one screen."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Final

import click

from kisfeed.cli.i18n import N_, _, said
from kisfeed.cli.options import Command, Option, common, daemon_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from rich.console import RenderableType

LAST_EVENTS: Final = 5
_GOOD: Final = ("STREAMING", "SUBSCRIBED")


@click.command("status", cls=Command, help=N_("Show the session, the slots and who listens."))
@click.option("--events", "all_events", cls=Option, is_flag=True, help=N_("Show all events kept."))
@common
@daemon_options
def command(
    all_events: bool,
    as_json: bool,
    profile: str | None,
    config_file: Path | None,
    socket: Path | None,
) -> None:
    from kisfeed.cli import link

    with link.connect("status", profile, config_file, socket) as daemon:
        answer = daemon.call("status")
        if as_json:
            click.echo(json.dumps(answer, ensure_ascii=False))
            return
        clients, slots = daemon.call("clients")["clients"], daemon.call("slots")["slots"]
    from rich.console import Console

    last = len(answer["events"]) if all_events else LAST_EVENTS
    Console().print(render(answer, clients, slots, last))


def render(
    status: Mapping[str, Any],
    clients: Sequence[Mapping[str, Any]],
    slots: Sequence[Mapping[str, Any]],
    last_events: int = LAST_EVENTS,
) -> RenderableType:
    """The answers of the calls status, clients and slots as one screen."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in summary(status):
        style = "" if name != _("Session") else _session_style(status)
        facts.add_row(name, Text(value, style=style))
    parts: list[RenderableType] = [facts]
    if slots:
        parts += ["", slot_table(slots)]
    if clients:
        parts += ["", client_table(clients)]
    events = list(status["events"])[-last_events:]
    if events:
        parts += ["", Text(_("Last events"), style="bold")]
        parts += [Text("  " + event_line(event)) for event in events]
    return Group(*parts)


def _session_style(status: Mapping[str, Any]) -> str:
    return "green" if status["session"]["state"] in _GOOD else "yellow"


def summary(status: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The facts above the tables: (name, value)."""
    connection = status["connection"]
    yield _("Session"), session_line(connection)
    slots = status["slots"]
    yield (
        _("Slots"),
        _("{used} of {cap} used, {reserved} reserved").format(
            used=slots["used"], cap=slots["cap"], reserved=slots["reserved"]
        ),
    )
    yield _("Programs"), str(status["clients"])
    age = status["liveness"]["last_byte_age_s"]
    if age is not None:
        yield _("Last byte"), _("{time} ago").format(time=duration(age))
    yield (
        _("Dials left"),
        ", ".join(
            _("{left} of {count} in {time}").format(
                left=w["left"], count=w["count"], time=duration(w["seconds"])
            )
            for w in connection["budget"]
        ),
    )
    rest = status.get("rest")  # a daemon of an earlier version tells nothing of it
    if rest and rest["calls"]:
        yield _("REST calls"), _rest_line(rest)
    quotes = status.get("quotes")
    if quotes and quotes["counts"]["asked"]:
        yield _("Quotes"), _quotes_line(quotes)
    if status.get("orders") is not None:
        yield _("Orders"), _orders_line(status["orders"])
    breaker = connection["breaker"]
    if breaker["phase"] != "closed" or breaker["young_sessions"]:
        yield _("Breaker"), _breaker_line(breaker)
    if connection["in_use"] is not None:
        yield _("Appkey"), _in_use_line(connection["in_use"])
    if status["state_folder"] != "ok":
        yield _("State folder"), status["state_folder"]


def _rest_line(rest: Mapping[str, Any]) -> str:
    told = _("{calls}, {rate} answered, {recent} in the last second").format(
        calls=f"{rest['calls']:,}",
        rate=f"{rest['success_rate']:.2%}",
        recent=rest["last_second"],
    )
    waits = rest["throttle_wait_ms"]
    if waits["p99"]:
        told += _("; waits for the rate limit {mean} ms, at most {most} ms (99 %)").format(
            mean=waits["mean"], most=waits["p99"]
        )
    if rest["shadow"]:
        told += _("; shadow: delays nothing")
    if rest["breaker"]["open"]:
        told += _("; KIS does not answer")
    if rest["token"]["state"] != "valid" and rest["token"]["why"]:
        told += _("; no access token: {why}").format(why=said(rest["token"]["why"]))
    return told


def _quotes_line(quotes: Mapping[str, Any]) -> str:
    told = _(
        "{asked:,} asked: {streamed:,} answered by the stream, {cached:,} known; {calls:,} calls"
    ).format(**quotes["counts"])
    waiting = sum(quotes["waiting"].values())
    if waiting:
        told += _("; {n:,} wait").format(n=waiting)
    if quotes["counts"]["stale"]:
        told += _("; {n:,} answered with an old value").format(n=quotes["counts"]["stale"])
    return told


def _orders_line(orders: Mapping[str, Any]) -> str:
    told = _("{today:,} today, {open:,} open").format(**orders)
    if orders["in_doubt"]:
        told += _("; in doubt: {ids}").format(ids=", ".join(orders["in_doubt"]))
    if not orders["ready"]:
        told += _("; waiting for KIS's list of the day")
    if orders["halted"] is not None:
        told += _("; halted: {why}").format(why=orders["halted"]["reason"])
    return told


def session_line(connection: Mapping[str, Any]) -> str:
    """State, reason, since when, and what comes next."""
    told = _("{state}, {why}, for {time}").format(
        state=connection["state"],
        why=connection["reason"],
        time=duration(connection["for_s"]),
    )
    if connection["next_try_in_s"] is not None:
        told += _("; next try in {time}").format(time=duration(connection["next_try_in_s"]))
    if connection["closing"] is not None:
        told += _("; closes in {time} ({why})").format(
            time=duration(connection["closing"]["in_s"]), why=connection["closing"]["reason"]
        )
    if connection["lent_for_s"] is not None:
        told += _("; lent for {time}").format(time=duration(connection["lent_for_s"]))
    return told


def _breaker_line(breaker: Mapping[str, Any]) -> str:
    if breaker["phase"] == "closed":
        return _("closed; sessions that died young in a row: {n}").format(
            n=breaker["young_sessions"]
        )
    told = _("{phase} because of {reason}, for {time}").format(
        phase=breaker["phase"], reason=breaker["reason"], time=duration(breaker["open_for_s"])
    )
    if breaker["next_try_in_s"] is not None:
        told += _("; next try in {time}").format(time=duration(breaker["next_try_in_s"]))
    return told


def _in_use_line(in_use: Mapping[str, Any]) -> str:
    text = (
        _("our own last session remains at KIS: {n} refused, the last {time} ago")
        if in_use["holder"] == "own"
        else _("another program holds it: {n} refused, the last {time} ago")
    )
    return text.format(n=in_use["times"], time=duration(in_use["ago_s"]))


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.3 s, 42 s, 5 min, 3 h 20 min."""
    if seconds < 10:
        return _("{n:.1f} s").format(n=seconds)
    if seconds < 60:
        return _("{n:.0f} s").format(n=seconds)
    minutes = round(seconds / 60)
    if minutes < 60:
        return _("{n} min").format(n=minutes)
    hours, minutes = divmod(minutes, 60)
    if not minutes:
        return _("{n} h").format(n=hours)
    return _("{hours} h {minutes} min").format(hours=hours, minutes=minutes)


def slot_table(slots: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The answer of the call slots as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=_("Registrations"),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for title in (_("Topic"), _("State"), _("Score")):
        table.add_column(title, no_wrap=True)
    table.add_column(_("Why"), overflow="fold")
    for slot in slots:
        table.add_row(slot["topic"], slot["state"] or "-", score(slot), why(slot))
    return table


def score(slot: Mapping[str, Any]) -> str:
    """The parts of a slot's score, in the order in which they count."""
    parts = []
    if slot["reserved"]:
        parts.append(_("reserved"))
    if slot["pinned"]:
        parts.append(_("pinned"))
    if slot["active"]:
        parts.append(_("prio {n}").format(n=slot["priority"]))
        parts.append(f"×{slot['users']}")
    elif not parts:
        parts.append(_("passive") if slot["users"] else _("nobody"))
    return ", ".join(parts)


def why(slot: Mapping[str, Any]) -> str:
    """Why a slot is as it is, and when it is tried again; empty where all is well."""
    parts = []
    if slot["by"] is not None:
        parts.append(_("gives way to {topic}").format(topic=slot["by"]))
    if slot["state"] != "held" and slot["code"] not in {"none", "pending"}:
        parts.append(slot["text"] or slot["code"])
    elif slot["state"] == "held" and slot["code"] in {"resyncing", "halted"}:
        parts.append(slot["code"])
    if slot["dwell_left_s"]:
        parts.append(_("stays {time}").format(time=duration(slot["dwell_left_s"])))
    if slot["tries"] > 1:
        parts.append(_("asked {n} times").format(n=slot["tries"]))
    if slot["retry_in_s"] is not None:
        parts.append(_("again in {time}").format(time=duration(slot["retry_in_s"])))
    return "; ".join(parts)


def client_table(clients: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The answer of the call clients as a table."""
    from rich.table import Table

    table = Table(title=_("Programs"), title_justify="left", title_style="bold")
    table.add_column(_("Name"), overflow="fold")
    for title in ("pid", _("Topics"), _("Sent"), _("Lost"), _("Passed over"), _("Behind")):
        table.add_column(title, justify="right")
    for client in clients:
        table.add_row(
            client["name"],
            str(client["pid"] or "-"),
            str(len(client["topics"])),
            f"{client['sent']:,}",
            f"{client['dropped']:,}",
            f"{client['conflated']:,}",
            duration(client["q_age_ms"] / 1000),
        )
    return table


def event_line(event: Mapping[str, Any]) -> str:
    """One line of the daemon's history: local time, name, details."""
    moment = dt.datetime.fromtimestamp(event["ts"] / 1e9, dt.UTC).astimezone()
    details = " ".join(f"{k}={v}" for k, v in event.items() if k not in {"ts", "event"})
    return f"{moment:%H:%M:%S} {event['event']} {details}".rstrip()
