"""The quote board of ``kisfeed watch``: what is known, as a table or as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.cli.i18n import _
from kisfeed.kfp import events
from kisfeed.kfp.messages import Code, Data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

UP: Final = "red"  # as every Korean quote board has it
DOWN: Final = "blue"
WIDE: Final = 110  # columns


@attrs.define(eq=False)
class Line:
    """What is known of one topic."""

    row: events.Row | None = None
    state: str = Code.PENDING
    ticks: int = 0
    missed_qty: int = 0
    lost: int = 0


@attrs.define(eq=False)
class Board:
    """What the table shows, kept up to date by events."""

    lines: dict[str, Line]
    session: str = ""

    @classmethod
    def of(cls, topics: Sequence[str]) -> Board:
        return cls({topic: Line() for topic in topics})

    def apply(self, event: events.Event) -> None:
        match event:
            case events.Row(topic=topic) if topic in self.lines:
                self.lines[topic].row = event
                self.lines[topic].ticks += not event.image
            case events.Status(topic=topic, code=code, data=data) if topic in self.lines:
                self.lines[topic].state = state_word(data, code)
            case events.Gap(topic=topic, missed_qty=missed) if topic in self.lines:
                self.lines[topic].missed_qty += missed or 0
            case events.Lost(topic=topic, n=n) if topic in self.lines:
                self.lines[topic].lost += n
            case events.Session(state=state):
                self.session = state
            case _:
                pass


def state_word(data: int, code: str) -> str:
    """What became of a topic, in a word: live, or the code that says why not."""
    return _("live") if data == Data.OK and code == Code.NONE else code


def number(row: events.Row, name: str) -> str:
    """One price of *row* as people write it: 71,300 or 2,601.57; empty where it has none."""
    value = row.price(getattr(row, name, None))
    return "" if value is None else f"{value:,}"


def _price(row: events.Row) -> str:
    """The price; of a book, its best bid and ask."""
    if not isinstance(row, events.Book):
        return number(row, "px")
    best = [row.price(side[0]) for side in (row.bids, row.asks) if side]
    return " / ".join("-" if price is None else f"{price:,}" for price in best)


def _change(row: events.Row) -> tuple[str, str]:
    change = row.price(getattr(row, "change", None))
    if not change:
        return ("0", "") if change is not None else ("", "")
    price = row.price(getattr(row, "px", None))
    before = price - change if price is not None else None
    percent = f" {change / before * 100:+.2f}%" if before else ""
    return f"{change:+,}{percent}", UP if change > 0 else DOWN


def render(board: Board, width: int) -> RenderableType:
    """The board as a rich table; best bid and ask are shown where there is room for them."""
    from rich import box
    from rich.table import Table

    wide = width >= WIDE
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1) if wide else (0, 0),
        caption=_("Session: {state}. Ctrl-C ends.").format(state=board.session or "-"),
        caption_justify="left",
    )
    table.add_column(_("Topic"), no_wrap=True)
    always = [_("Price"), _("Change"), _("Volume")]
    for title in [*always, _("Quantity"), _("Bid"), _("Ask")] if wide else always:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(_("Time"), no_wrap=True)
    table.add_column(_("State"), overflow="fold")
    for topic, line in board.lines.items():
        name = topic if wide else topic.removeprefix("trade.krx.")
        table.add_row(name, *_cells(line, wide=wide))
    return table


def _cells(line: Line, *, wide: bool) -> list[str]:
    row = line.row
    told = [line.state]
    if line.missed_qty:
        told.append(_("missed {shares} shares").format(shares=f"{line.missed_qty:,}"))
    if line.lost:
        told.append(_("lost {n}").format(n=line.lost))
    state = ", ".join(told)
    if row is None:
        return [""] * (7 if wide else 4) + [state]
    change, style = _change(row)
    moment = row.exchange_time or row.received_time
    return [
        f"[{style}]{_price(row)}[/]" if style else _price(row),
        f"[{style}]{change}[/]" if style else change,
        _count(getattr(row, "cum_qty", None)),
        *(
            (_count(getattr(row, "qty", None)), number(row, "bid"), number(row, "ask"))
            if wide
            else ()
        ),
        f"{moment:%H:%M:%S}",
        state,
    ]


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def plain(event: events.Event) -> str | None:
    """One event as one line without a terminal; None for what a reader of prices can do without."""
    match event:
        case events.Row(topic=topic):
            moment = event.exchange_time or event.received_time
            change, _style = _change(event)
            parts = [
                f"{moment:%H:%M:%S}",
                topic,
                _price(event),
                change,
                _count(getattr(event, "qty", None)),
            ]
            return "  ".join(part for part in parts if part)
        case events.Gap(topic=topic, missed_qty=missed):
            shares = "?" if missed is None else f"{missed:,}"
            return _("{topic}: gap, {shares} shares missed").format(topic=topic, shares=shares)
        case events.Lost(topic=topic, n=n):
            return _("{topic}: {n} rows lost, this terminal was too slow").format(topic=topic, n=n)
        case events.Status(topic=topic, data=data, code=code, text=text):
            return f"{topic}: {state_word(data, code)} {text}".rstrip()
        case events.Session(state=state, code=code):
            return _("session: {state} ({code})").format(state=state, code=code)
        case _:
            return None
