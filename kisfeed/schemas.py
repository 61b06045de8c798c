"""The one loader of ``schemas/``: contracts that are data, shipped in the wheel.

In a checkout they are read from ``schemas/`` beside the package, in an installed wheel from
``kisfeed/_schemas``. Nothing else in the package opens these files.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kisfeed.config import Environment
    from kisfeed.kis.catalogue import Catalogue

_INSTALLED: Final = Path(__file__).with_name("_schemas")
_CHECKOUT: Final = Path(__file__).parent.parent / "schemas"


def folder() -> Path:
    """Where the schemas are on this machine.

    Raises:
        FileNotFoundError: neither place holds them: a broken installation.
    """
    for place in (_INSTALLED, _CHECKOUT):
        if (place / "kis" / "realtime.json").is_file():
            return place
    raise FileNotFoundError(f"no schemas at {_INSTALLED} or {_CHECKOUT}")


@functools.cache
def load(name: str) -> Any:
    """The parsed JSON of ``schemas/<name>``, read once a process; treat it as read-only.

    Args:
        name: a path below ``schemas/``, such as ``"kis/realtime.json"``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return json.loads((folder() / name).read_text("utf-8"))


@functools.cache
def load_catalogue(environment: Environment) -> Catalogue:
    """The TRs that *environment* serves, read once a process; treat it as read-only."""
    from kisfeed.kis.catalogue import Catalogue  # noqa: PLC0415  # programs that only ask need none

    return Catalogue(load("kis/realtime.json"), environment)
