"""Runs repeat only if nothing draws, looks at a clock or starts a thread on its own.

Such calls live in the seam modules. A line that needs one says why: ``# sim-ok: reason``.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import kisfeed

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path(kisfeed.__file__).parent
SEAMS: Final = ("seams.py", "blocking.py")
OUTSIDE: Final = ("cli/", "ops/", "client/sync.py", "client/aio.py", "chaos/campaign.py")
"""Rooms that are not part of a simulated run: people's screens, and clients with a clock."""

MODULES: Final = frozenset({"time", "random", "secrets", "uuid", "threading"})
CALLS: Final = frozenset(
    {
        "os.urandom",
        "datetime.now",
        "datetime.utcnow",
        "datetime.today",
        "date.today",
        "to_thread.run_sync",
        "from_thread.run",
        "from_thread.run_sync",
    }
)
MOST_ESCAPES: Final = 12


def sources() -> list[Path]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in SEAMS and not name.startswith(OUTSIDE):
            found.append(path)
    return found


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return ".".join(reversed(parts))


def is_set(node: ast.AST) -> bool:
    if isinstance(node, (ast.Set, ast.SetComp)):
        return True
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in {"set", "frozenset"}
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd, ast.BitXor)):
        return is_set(node.left) or is_set(node.right)
    return False


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((node.lineno, f"imports {n}") for n in names if n in MODULES)
        elif isinstance(node, ast.Call):
            name = ".".join(dotted(node.func).split(".")[-2:])
            if name in CALLS:
                yield node.lineno, f"calls {name}"
        loops = [node.iter] if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)) else []
        yield from ((i.lineno, "iterates over a set") for i in loops if is_set(i))


def findings(path: Path) -> Iterator[tuple[int, str, bool]]:
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for number, what in sorted(set(offences(ast.parse(text)))):
        yield number, what, "# sim-ok: " in lines[number - 1]


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_nothing_outside_the_seams_draws_or_looks_at_a_clock(path: Path) -> None:
    assert [f"{n}: {what}" for n, what, excused in findings(path) if not excused] == []


def test_the_excuses_are_few() -> None:
    excuses = sum(excused for path in sources() for _, _, excused in findings(path))
    assert excuses <= MOST_ESCAPES


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from random import random",
        "datetime.datetime.now()",
        "os.urandom(4)",
        "trio.to_thread.run_sync(f)",
        "for x in {1, 2}: pass",
        "[x for x in set(a) | b]",
        "import threading",
    ],
)
def test_the_check_sees_what_it_looks_for(line: str) -> None:
    assert list(offences(ast.parse(line)))
