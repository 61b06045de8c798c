"""Plays captured frames from a JSON-lines file.

A line is an object with ``raw``; ``form`` says what it is: ``full`` (a whole text message, the
default) or ``payload`` (values only, which needs ``tr``). Lines that are no plain data,
``direction`` C->S, and any other ``form`` are passed over.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kisfeed.kis.catalogue import RegKey, Tr


@attrs.frozen
class Take:
    """One captured frame, cut into records."""

    tr_id: str
    count: int
    payload: str

    def volume(self, tr: Tr) -> int:
        """The shares traded in it, as far as the layout says."""
        values = self.payload.split("^")
        width = len(values) // self.count
        layout = tr.layout_for(width)
        if tr.channel != "trade" or layout is None:
            return 0
        for name in ("CNTG_VOL", "LAST_CNQN", "EVOL", "LAST_QNTT", "PCAS_VOL"):
            if name in layout.fields:
                column = values[layout.fields.index(name) :: width]
                return sum(int(v) for v in column if v.isdigit())
        return 0


class Player:
    """Captured frames by registration key, played round and round in the file's order."""

    def __init__(self, lines: list[Mapping[str, Any]], trs: Mapping[str, Tr]) -> None:
        self._takes: dict[RegKey, list[Take]] = {}
        self._next: dict[RegKey, int] = {}
        for line in lines:
            take = _take(line)
            if take is None or take.tr_id not in trs:
                continue
            layout = trs[take.tr_id].layout_for(len(take.payload.split("^")) // take.count)
            if layout is None or layout.key_index is None:
                continue
            tr_key = take.payload.split("^")[layout.key_index]
            self._takes.setdefault((take.tr_id, tr_key), []).append(take)

    @classmethod
    def read(cls, path: Path, trs: Mapping[str, Tr]) -> Player:
        """Read a file.

        Raises:
            OSError, ValueError: it cannot be read, or a line is not JSON.
        """
        return cls([json.loads(x) for x in path.read_text("utf-8").splitlines() if x], trs)

    @property
    def keys(self) -> list[RegKey]:
        """What it can play."""
        return list(self._takes)

    def next(self, key: RegKey) -> Take | None:
        """The next captured frame of *key*; None if there is none."""
        takes = self._takes.get(key)
        if takes is None:
            return None
        at = self._next.get(key, 0)
        self._next[key] = (at + 1) % len(takes)
        return takes[at]


def _take(line: Mapping[str, Any]) -> Take | None:
    raw, form, tr_id = line.get("raw", ""), line.get("form", "full"), line.get("tr", "")
    if line.get("direction", "S->C") != "S->C":
        return None
    if form == "full" and raw.startswith("0|"):
        _, tr_id, count, payload = raw.split("|", 3)
        return Take(tr_id, int(count), payload)
    if form == "payload" and tr_id:
        return Take(tr_id, int(line.get("count") or 1), raw)
    return None
