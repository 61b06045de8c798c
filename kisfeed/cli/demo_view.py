"""What ``kisfeed demo`` shows: the state of the show, as a live picture or as plain lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.cli.i18n import _
from kisfeed.cli.options import own_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kisfeed.kfp.events import Trade

TOLD_LINES: Final = 8
SPARK_WIDTH: Final = 32
_BARS: Final = "▁▂▃▄▅▆▇█"
_GOOD: Final = ("STREAMING", "SUBSCRIBED")


@attrs.define(eq=False)
class Program:
    """One local program of the demo.

    Attributes:
        what: what it does, for the reader.
        mode: how it asked for its ticks.
        ticks: received.
        lost: dropped for it alone, as it was told.
        gaps: holes upstream, as it was told.
        missed_qty: shares in those holes.
    """

    name: str
    what: str
    mode: str
    topics: int = 0
    ticks: int = 0
    lost: int = 0
    gaps: int = 0
    missed_qty: int = 0


@attrs.define(eq=False)
class Account:
    """Shares of one topic, as the first program sees them.

    Attributes:
        before: cumulative volume before its first row.
        received: in the rows it got.
        after: cumulative volume at its newest row.
    """

    before: int
    received: int = 0
    after: int = 0


@attrs.define(eq=False)
class Show:
    """Everything the picture is made of.

    Attributes:
        seconds: how long the whole show takes.
        scale: the session's times are divided by this.
        told: what happened so far: (seconds since the start, text).
        accounts: the first program's, by topic.
        yielded: topics that gave their slot up.
    """

    seconds: float
    scale: float
    elapsed: float = 0.0
    session: str = "IDLE"
    why: str = ""
    slots_used: int = 0
    slots_cap: int = 41
    programs: list[Program] = attrs.Factory(list)
    last: Trade | None = None
    prices: list[int] = attrs.Factory(list)
    told: list[tuple[float, str]] = attrs.Factory(list)
    accounts: dict[str, Account] = attrs.Factory(dict)
    yielded: int = 0

    def tell(self, text: str) -> None:
        """Add one line to the story."""
        self.told.append((self.elapsed, text))

    def trade(self, trade: Trade) -> None:
        """Show *trade* as the newest of the shown symbol."""
        self.last = trade
        if trade.px is not None:
            self.prices.append(trade.px)
            del self.prices[:-SPARK_WIDTH]

    def account(self, trade: Trade) -> None:
        """Count the shares of *trade*, a row of the first program."""
        if trade.qty is None or trade.cum_qty is None or trade.image:
            return
        account = self.accounts.setdefault(trade.topic, Account(trade.cum_qty - trade.qty))
        account.received += trade.qty
        account.after = trade.cum_qty

    def unaccounted(self) -> int:
        """Shares traded that were neither received nor told as missed."""
        traded = sum(account.after - account.before for account in self.accounts.values())
        received = sum(account.received for account in self.accounts.values())
        return traded - received - sum(program.missed_qty for program in self.programs[:1])


def spark(prices: list[int]) -> str:
    """The prices as a line of bars, the lowest at the bottom."""
    if not prices:
        return ""
    low, high = min(prices), max(prices)
    steps = len(_BARS) - 1
    return "".join(
        _BARS[(price - low) * steps // (high - low) if high > low else steps // 2]
        for price in prices
    )


def heading(show: Show) -> str:
    """What this is, in one line."""
    return _("kisfeed demo: a simulated KIS on this machine, times shortened {scale:g}x").format(
        scale=show.scale
    )


def price_line(trade: Trade) -> str:
    """One trade as a person reads it."""
    price, change = trade.price(trade.px), trade.price(trade.change)
    told = f"{trade.topic}  {price:,}" if price is not None else trade.topic
    if change is not None:
        told += f"  {change:+,}"
    if trade.qty is not None:
        told += f"  x {trade.qty:,}"
    return told


def program_line(program: Program) -> str:
    """One program's account as plain text."""
    told = _("{name}: {ticks} ticks").format(name=program.name, ticks=f"{program.ticks:,}")
    if program.lost:
        told += _("; {lost} lost by not reading, all told").format(lost=f"{program.lost:,}")
    if program.gaps:
        told += _("; {missed} shares missed in the cut").format(missed=f"{program.missed_qty:,}")
    return told


def next_steps() -> list[tuple[str, str]]:
    """Commands to try next, and what each shows."""
    kisfeed = own_command()
    return [
        (f"{kisfeed} serve --sim", _("the daemon and a simulated KIS")),
        (f"{kisfeed} watch 005930 000660", _("another terminal: prices")),
        (f"{kisfeed} stream trade.krx.005930", _("the same, as JSON lines")),
        (f"{kisfeed} status", _("session, slots, who listens")),
        (f"{kisfeed} init --from FILE", _("your own kis_devlp.yaml")),
    ]


def render(show: Show) -> RenderableType:
    """The picture: at most 80 columns and 23 lines."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    top = Table.grid(expand=True)
    top.add_column()
    top.add_column(justify="right", no_wrap=True)
    top.add_row(Text(heading(show), style="bold"), f"{show.elapsed:4.1f} / {show.seconds:g} s")
    state = Text.assemble(
        (_("KIS session") + "  ", "bold"),
        (show.session, "green" if show.session in _GOOD else "yellow"),
        f"  {show.why}",
    )
    slots = Text.assemble((_("Slots") + "  ", "bold"), f"{show.slots_used} / {show.slots_cap}")
    second = Table.grid(expand=True)
    second.add_column()
    second.add_column(justify="right", no_wrap=True)
    second.add_row(state, slots)
    parts: list[RenderableType] = [top, second, "", _program_table(show)]
    price = Text()
    if show.last is not None:
        price = Text.assemble((price_line(show.last), "bold"), "  ", (spark(show.prices), "cyan"))
    parts += [price, ""]
    story = Table.grid(padding=(0, 2))
    story.add_column(justify="right", style="dim", no_wrap=True)
    story.add_column(no_wrap=True, overflow="ellipsis")
    for at, text in show.told[-TOLD_LINES:]:
        story.add_row(f"{at:.1f} s", text)
    return Group(*parts, story)


def _program_table(show: Show) -> RenderableType:
    from rich.table import Table

    table = Table(expand=True)
    table.add_column(_("Program"), no_wrap=True)
    table.add_column(_("Does"), no_wrap=True)
    for title in (_("Topics"), _("Ticks"), _("Lost"), _("Missed")):
        table.add_column(title, justify="right", no_wrap=True)
    for program in show.programs:
        missed = f"{program.missed_qty:,}" if program.gaps else "0"
        table.add_row(
            program.name,
            program.what,
            str(program.topics),
            f"{program.ticks:,}",
            f"[red]{program.lost:,}[/]" if program.lost else "0",
            f"[yellow]{missed}[/]" if program.missed_qty else missed,
        )
    return table


def missing(show: Show) -> list[str]:
    """What the show should have shown and did not; empty when all went well."""
    first = show.programs[0] if show.programs else Program("", "", "")
    found = []
    if not first.ticks:
        found.append(_("ticks"))
    if not any(program.lost for program in show.programs):
        found.append(_("losses of the slow program"))
    if not first.gaps:
        found.append(_("the gap after the cut"))
    if not show.yielded:
        found.append(_("who gives way to the 42nd topic"))
    if show.unaccounted():
        found.append(_("where {n} shares went").format(n=f"{show.unaccounted():,}"))
    return found


def summary(show: Show) -> dict[str, object]:
    """The outcome for a program (``--json``)."""
    return {
        "type": "summary",
        "seconds": round(show.elapsed, 1),
        "programs": [attrs.asdict(program) for program in show.programs],
        "unaccounted_qty": show.unaccounted(),
        "ok": not missing(show),
    }


def closing(show: Show) -> list[str]:
    """The last lines: each program's account, and what to try next."""
    lines = [program_line(program) for program in show.programs]
    received = sum(account.received for account in show.accounts.values())
    if received and not show.unaccounted():
        missed = show.programs[0].missed_qty
        lines.append(
            _("{received} shares received + {missed} told as missed = {traded} traded").format(
                received=f"{received:,}", missed=f"{missed:,}", traded=f"{received + missed:,}"
            )
        )
    lines += ["", _("Try next:")]
    steps = next_steps()
    width = max(len(step) for step, _what in steps)
    return lines + [f"  {step:<{width}}  {what}" for step, what in steps]
