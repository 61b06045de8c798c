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

MODULES: Final = frozenset(
    {
        "_thread",
        "asyncio",
        "concurrent",
        "multiprocessing",
        "random",
        "secrets",
        "threading",
        "time",
        "uuid",
    }
)
CALLS: Final = frozenset(
    {
        "os.urandom",
        "os.getrandom",
        "datetime.now",
        "datetime.utcnow",
        "datetime.today",
        "date.today",
        "to_thread.run_sync",
        "from_thread.run",
        "from_thread.run_sync",
        "hash",
        "id",
    }
)
UNORDERED: Final = frozenset(
    {"all", "any", "frozenset", "len", "max", "min", "set", "sorted", "sum", "Counter"}
)
"""What makes nothing of the order in which it is given things; sums here are of integers."""
IN_ORDER: Final = frozenset(
    {"enumerate", "iter", "join", "list", "map", "reversed", "tuple", "zip"}
)
SET_METHODS: Final = frozenset({"difference", "intersection", "symmetric_difference", "union"})
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


def named(node: ast.AST | None) -> str:
    """The last part of a name, whoever has it."""
    return dotted(node).rpartition(".")[2] if node is not None else ""


def sets_in(tree: ast.AST) -> frozenset[str]:
    """Names that are a set wherever this module says what they are."""
    said: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=target, annotation=kind):
                said.append((named(target), is_set_type(kind)))
            case ast.arg(arg=name, annotation=ast.AST() as kind):
                said.append((name, is_set_type(kind)))
            case ast.Assign(targets=targets, value=value):
                said += [(named(target), is_set(value, frozenset())) for target in targets]
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                said.append((f"{name}()", is_set_type(node.returns)))
            case _:
                pass
    others = {name for name, is_one in said if not is_one}
    return frozenset(name for name, is_one in said if is_one and name not in others)


def is_set_type(kind: ast.AST | None) -> bool:
    if isinstance(kind, ast.Subscript):
        kind = kind.value
    return named(kind) in {"set", "frozenset", "Set", "AbstractSet", "MutableSet"}


def is_set(node: ast.AST, known: frozenset[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Name() | ast.Attribute():
            return named(node) in known
        case ast.Call(func=func):
            return named(func) in {"set", "frozenset", *SET_METHODS} or f"{named(func)}()" in known
        case ast.BinOp(left=left, right=right, op=ast.BitOr() | ast.BitAnd() | ast.BitXor()):
            return any(is_set(side, known) or is_keys(side) for side in (left, right))
        case ast.BinOp(left=left, op=ast.Sub()):
            return is_set(left, known) or is_keys(left)
        case ast.IfExp(body=body, orelse=other):
            return is_set(body, known) or is_set(other, known)
        case _:
            return False


def is_keys(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and named(node.func) == "keys"


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    known = sets_in(tree)
    excused = {comprehension for node in ast.walk(tree) for comprehension in harmless(node)}
    for node in ast.walk(tree):
        loops: list[ast.AST] = []
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, f"imports {alias.name}")
                for alias in node.names
                if alias.name.partition(".")[0] in MODULES
            )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = {f"{module.rpartition('.')[2]}.{alias.name}" for alias in node.names}
            if (module.partition(".")[0] in MODULES and not node.level) or names & CALLS:
                yield node.lineno, f"imports from {module}"
        elif isinstance(node, ast.Call):
            name = ".".join(dotted(node.func).split(".")[-2:])
            if name in CALLS:
                yield node.lineno, f"calls {name}"
            if named(node.func) in IN_ORDER:
                loops = list(node.args)
            if named(node.func) == "pop" and not node.args and isinstance(node.func, ast.Attribute):
                loops = [node.func.value]
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.Starred)):
            loops = [node.value if isinstance(node, ast.Starred) else node.iter]
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.DictComp)):
            loops = [] if node in excused else [part.iter for part in node.generators]
        for loop in loops:
            if is_set(loop, known):
                yield getattr(loop, "lineno", 0), "takes a set in order"


def harmless(node: ast.AST) -> Iterator[ast.AST]:
    """Comprehensions whose order nobody sees."""
    if isinstance(node, ast.Call) and named(node.func) in UNORDERED:
        yield from node.args
    if isinstance(node, ast.Set):
        yield from node.elts


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
        "import concurrent.futures",
        "from os import urandom",
        "from trio.to_thread import run_sync",
        "from datetime import datetime\ndatetime.utcnow()",
        "import random as rng",
        "sort(key=lambda x: id(x))",
        "hash(key)",
        "pending = set()\nfor x in pending: pass",
        "def f(pending: set[str]): return [x for x in pending]",
        "class A:\n  _due: frozenset[int]\n  def f(self): return list(self._due)",
        "class A:\n  _due: set[int]\n  def f(self): return self._due.pop()",
        "def due() -> set[int]: ...\nfor x in due(): pass",
        "for x in a.keys() - b.keys(): pass",
        "for x in set(a) - b: pass",
        "', '.join({'a', 'b'})",
        "next(iter({1, 2}))",
        "f(*{1, 2})",
        "dict((x, 1) for x in {1, 2})",
    ],
)
def test_the_check_sees_what_it_looks_for(line: str) -> None:
    assert list(offences(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "for x in sorted({1, 2}): pass",
        "any(x for x in {1, 2})",
        "{x for x in {1, 2}}",
        "seen = set()\nfor x in [y for y in a if y not in seen]: pass",
        "due = set()\ndef f():\n  due = []\n  for x in due: pass",
        "d.pop('a')\nq.pop()",
        "timeout(1)\nfrom kisfeed.seams import now",
    ],
)
def test_and_nothing_else(line: str) -> None:
    assert not list(offences(ast.parse(line)))
