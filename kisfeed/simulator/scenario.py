"""Scenario files: faults on a timetable, as TOML or JSON.

::

    [[fault]]
    at = 10.0
    kind = "cut"

    [[fault]]
    at = 30.0
    kind = "ack_lost"
    tr_id = "H0STCNT0"
    count = 2
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.errors import ConfigError
from kisfeed.simulator.faults import Fault, Kind

if TYPE_CHECKING:
    from pathlib import Path


def load_scenario(path: Path) -> tuple[Fault, ...]:
    """Read a scenario file, ``.json`` or TOML.

    Raises:
        ConfigError: it cannot be read, or says something that is no fault; all faults at once.
    """
    try:
        text = path.read_text("utf-8")
        parsed: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError((str(path), str(error))) from error
    entries = parsed.get("fault") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ConfigError((str(path), "a scenario is a list called fault"))
    problems: list[tuple[str, str]] = []
    faults = [_fault(entry, f"fault[{n}]", problems) for n, entry in enumerate(entries)]
    if problems:
        raise ConfigError(*problems)
    return tuple(fault for fault in faults if fault is not None)


def read_fault(entry: object) -> Fault:
    """One fault, as an entry of a scenario file has it.

    Raises:
        ConfigError: it says something that is no fault.
    """
    problems: list[tuple[str, str]] = []
    fault = _fault(entry, "fault", problems)
    if fault is None:
        raise ConfigError(*problems)
    return fault


_TYPES = {
    "at": (int, float),
    "lasts": (int, float),
    "count": (int,),
    "value": (int, float),
}


def _fault(entry: Any, path: str, problems: list[tuple[str, str]]) -> Fault | None:
    if not isinstance(entry, dict):
        problems.append((path, "not a table"))
        return None
    before = len(problems)
    names = [field.name for field in attrs.fields(Fault)]
    for name, value in entry.items():
        if name not in names:
            problems.append((f"{path}.{name}", f"unknown; a fault has {', '.join(names)}"))
        elif isinstance(value, bool) or not isinstance(value, _TYPES.get(name, (str,))):
            problems.append((f"{path}.{name}", f"{value!r} is of the wrong type"))
    if entry.get("kind") not in list(Kind):
        problems.append((f"{path}.kind", f"one of {', '.join(Kind)}"))
    return Fault(**entry) if len(problems) == before else None
