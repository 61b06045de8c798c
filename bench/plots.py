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

_OURS, _OTHERS = "#c8102e", "#8a8d91"


def bars(rows: Sequence[Row], column: str, title: str, to: Path, *, log: bool = True) -> None:
    """One bar for each row, ours in colour."""
    known = [row for row in rows if row.figures.get(column)]
    if len(known) < 2:
        return
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(known) + 1.1))
    values = [row.figures[column] for row in known]
    colours = [_OURS if row.name.startswith("kisfeed") else _OTHERS for row in known]
    drawn = axes.barh([row.name for row in known], values, color=colours)
    axes.bar_label(drawn, [f" {value:,.3g}" for value in values])
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    _save(figure, to)


def curve(series: Mapping[str, Sequence[Row]], title: str, to: Path, across: str) -> None:
    """Cost by size, a line for each series."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for name, rows in series.items():
        known = [(int(row.name), row.figures["us"]) for row in rows if row.figures.get("us")]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    axes.legend()
    _save(figure, to)


def _save(figure: Any, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(to, dpi=80, metadata={"Software": None})
    plt.close(figure)


def draw(tables: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Every picture there are figures for, as PNG into *folder*."""
    us = "CPU us a frame (lower is better)"
    for table, name, title in (
        ("receive", "receive", f"Receive only, saturated: {us}"),
        ("decode", "decode", "One trade decoded: CPU us (lower is better)"),
        (
            "end to end, saturated, 10 subscribers",
            "saturated",
            f"KIS to 10 subscribers, saturated: {us}, broker included",
        ),
    ):
        bars(tables.get(table, ()), "us", title, folder / f"{name}.png")
    for rate in (1000, 2000, 5000, 10_000):
        rows = tables.get(f"end to end, {rate} frames/s, 10 subscribers", ())
        title = f"{rate} frames/s to 10 subscribers: p99, us (lower is better)"
        bars(rows, "p99 us", title, folder / f"late_{rate}.png")
    crowd = {name: rows for name, rows in tables.items() if name.startswith("subscribers, ")}
    if crowd:
        title = "The core's cost of a frame by subscribers, CPU us"
        curve(crowd, title, folder / "subscribers.png", "subscribers")
