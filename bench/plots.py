"""The tables of a run as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.speed import Row

mpl.use("Agg")

from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.ticker import FuncFormatter, NullLocator

_OURS, _OTHERS, _TEXT = "#c8102e", "#b4b8bd", "#333740"
_LINES = (_OURS, "#2f5d8a")
_STYLE = {
    "font.size": 9.0,
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e6e9",
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.frameon": False,
}


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bars(rows: Sequence[Row], column: str, title: str, to: Path) -> None:
    """One bar for each row, ours in colour."""
    known = [row for row in rows if row.figures.get(column)]
    if len(known) < 2:
        return
    figure, axes = plt.subplots(figsize=(7.4, 0.36 * len(known) + 1.15))
    values = [row.figures[column] for row in known]
    ours = [row.name.startswith("kisfeed") for row in known]
    colours = [_OURS if our else _OTHERS for our in ours]
    drawn = axes.barh([row.name for row in known], values, color=colours, height=0.68)
    axes.bar_label(drawn, [_plain(value) for value in values], padding=4)
    for label, our in zip(axes.get_yticklabels(), ours, strict=True):
        label.set_fontweight("bold" if our else "normal")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 3)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("microseconds, logarithmic")
    _save(figure, title, to)


def curve(series: Mapping[str, Sequence[Row]], title: str, to: Path, across: str) -> None:
    """Cost by size, a line for each series."""
    figure, axes = plt.subplots(figsize=(7.4, 3.4))
    above = (0, 7), (0, -14)
    for (name, rows), colour, offset in zip(series.items(), _LINES, above, strict=False):
        known = [(int(row.name), row.figures["us"]) for row in rows if row.figures.get("us")]
        if not known:
            continue
        axes.plot(*zip(*known, strict=True), marker="o", label=name, color=colour)
        for at, us in known:
            axes.annotate(_plain(us), (at, us), offset, textcoords="offset points", ha="center")
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log")
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_locator(NullLocator())
    axes.margins(x=0.06, y=0.16)
    axes.set_xlabel(f"{across}, logarithmic")
    axes.set_ylabel("microseconds, logarithmic")
    axes.legend(loc="upper left")
    _save(figure, title, to)


def _save(figure: Any, title: str, to: Path) -> None:
    figure.suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=9.5)
    to.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(to, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw(tables: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Every picture there are figures for, as PNG into *folder*."""
    with plt.rc_context(_STYLE):
        _draw(tables, folder)


def _draw(tables: Mapping[str, Sequence[Row]], folder: Path) -> None:
    for table, name, title in (
        ("receive", "receive", "Receiving only, saturated: CPU for a frame"),
        ("decode", "decode", "One trade decoded: CPU"),
        (
            "end to end, saturated, 10 subscribers",
            "saturated",
            "KIS to 10 subscribers, saturated: CPU for a frame, broker included",
        ),
    ):
        bars(tables.get(table, ()), "us", title, folder / f"{name}.png")
    for rate in (1000, 2000, 5000, 10_000):
        rows = tables.get(f"end to end, {rate} frames/s, 10 subscribers", ())
        title = f"KIS to 10 subscribers, {rate:,} frames/s: delay, 99th percentile"
        bars(rows, "p99 us", title, folder / f"late_{rate}.png")
    crowd = {
        "1 frame a read": tables.get("subscribers, one frame a read", ()),
        "100 frames a read": tables.get("subscribers, 100 a read", ()),
    }
    if all(crowd.values()):
        title = "The core's CPU for a frame, by subscribers"
        curve(crowd, title, folder / "subscribers.png", "subscribers")
