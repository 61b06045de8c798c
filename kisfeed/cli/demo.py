"""``kisfeed demo``: everything in one screen, without an account."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from kisfeed.cli.i18n import N_, _
from kisfeed.cli.options import Command, Option, common

if TYPE_CHECKING:
    from kisfeed import Trade
    from kisfeed.cli.demo_view import Show


@click.command(
    "demo",
    cls=Command,
    help=N_(
        "See it work in 20 seconds: no account, no network.\n\n"
        "A simulated KIS, the daemon and three programs that share its one session: one reads "
        "too slowly, the line is cut once, and 42 topics want 41 slots."
    ),
)
@click.option(
    "--seconds",
    cls=Option,
    type=click.FloatRange(min=15, max=600),
    default=20.0,
    metavar="N",
    help=N_("How long it takes (20)."),
)
@click.option("--plain", cls=Option, is_flag=True, help=N_("Plain lines instead of a picture."))
@common
def command(seconds: float, plain: bool, as_json: bool) -> None:
    import trio

    from kisfeed.cli import demo_story, demo_view, signals
    from kisfeed.ops import logs

    logs.configure(sys.stderr, level="error")
    show = demo_view.Show(seconds, demo_story.SCALE)
    if as_json:
        screen: demo_story.Screen = JsonScreen(show)
    elif plain or not sys.stdout.isatty():
        screen = PlainScreen(show)
    else:
        screen = LiveScreen(show)
    with screen:
        finished = trio.run(signals.run_until_signal, lambda: demo_story.run(show, screen))
    if not finished:
        raise KeyboardInterrupt
    missing = demo_view.missing(show)
    if as_json:
        click.echo(json.dumps(demo_view.summary(show), ensure_ascii=False))
    else:
        click.echo("\n".join(["", *demo_view.closing(show)]))
    for text in missing:
        click.echo(_("The demo did not show: {what}").format(what=text), err=True)
    if missing:
        raise click.exceptions.Exit(3)


class PlainScreen:
    """Lines as things happen, and a real tick every half second."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._told = 0
        self._tick_at = 0.0
        self._shown: Trade | None = None

    def __enter__(self) -> None:
        from kisfeed.cli import demo_view

        click.echo(demo_view.heading(self._show))

    def __exit__(self, *_exc: object) -> None:
        self.update()

    def update(self) -> None:
        from kisfeed.cli import demo_view

        show = self._show
        for at, text in show.told[self._told :]:
            click.echo(f"{at:5.1f} s  {text}")
        self._told = len(show.told)
        last = show.last
        if last is None or last == self._shown or show.elapsed - self._tick_at < 0.5:
            return  # while the line is cut no tick comes, and none is shown
        self._tick_at, self._shown = show.elapsed, last
        click.echo(f"{show.elapsed:5.1f} s    {demo_view.price_line(last)}")


class JsonScreen:
    """The same story, one JSON object a line."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._told = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_exc: object) -> None:
        self.update()

    def update(self) -> None:
        for at, text in self._show.told[self._told :]:
            told = {"type": "told", "at_s": round(at, 1), "text": text}
            click.echo(json.dumps(told, ensure_ascii=False))
        self._told = len(self._show.told)


class LiveScreen:
    """The picture, drawn in place."""

    def __init__(self, show: Show) -> None:
        from rich.live import Live

        from kisfeed.cli import demo_view

        self._show = show
        self._render = demo_view.render
        self._live = Live(self._render(show), auto_refresh=False)

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *exc: object) -> None:
        self.update()
        self._live.__exit__(None, None, None)

    def update(self) -> None:
        self._live.update(self._render(self._show), refresh=True)
