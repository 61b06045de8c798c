"""Mutation testing of the pure core: ``python -m bench.mutation``.

Changes one operator, constant, condition or statement at a time and runs the tests of that module
on it; a change that no test notices is a survivor. Mutants are drawn evenly over each module
(``--per-module``, all of them with 0), the same ones for the same ``--seed``. Every mutant runs
in a fork of a process that has the libraries imported; nothing is written to the source tree.

Not mutated: docstrings, texts, annotations, ``assert``, ``raise``, imports, and the maps that a
``status`` makes for screens, which decide nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

ROOT: Final = Path(__file__).resolve().parent.parent
#: Module of kisfeed.core -> the test files that are to notice, quickest first.
TESTS: Final = {
    "breaker": ("core_breaker", "core_pacing", "core_connection"),
    "pacing": ("core_pacing", "core_connection", "upstream_lease"),
    "connection": ("core_connection", "core_engine"),
    "interest": ("core_interest", "core_registrations"),
    "registrations": ("core_registrations", "core_crowding", "core_engine"),
    "liveness": ("core_liveness", "core_engine"),
    "gaps": ("core_gaps",),
    "outbox": ("core_outbox", "core_streams", "gateway_channel"),
    "streams": ("core_streams", "core_engine", "gateway_server"),
    "market": ("core_market", "core_engine"),
    "topics": ("core_engine", "core_streams"),
    "subscriptions": ("core_engine", "core_crowding"),
    "noticelog": ("core_engine",),
    "prices": ("core_engine", "core_quoting"),
    "engine": ("core_engine", "core_short_way", "core_crowding", "core_quoting"),
    "limiter": ("core_limiter", "rest_requests"),
    "tokens": ("core_tokens", "rest_requests"),
    "counters": ("core_counters",),
    "hostbreaker": ("core_hostbreaker", "rest_requests"),
    "pollplan": ("core_pollplan",),
    "quotes": ("core_quotes",),
    "quoting": ("core_quoting", "core_engine"),
    "ordercheck": ("core_orders",),
    "orders": ("core_orders", "rest_orders"),
    "told": ("core_told", "rest_orders"),
}
_BASELINE_S: Final = 600  # for the tests of a module as it is written
_PATIENCE: Final = 4  # a mutant may take this many times as long, and ...
_GRACE_S: Final = 10  # ... this much more
_MEMORY: Final = 2 << 30  # bytes: a mutant that piles up without end is noticed
# The profile by its option, since the one of conftest.py would replace what is loaded here.
_PYTEST: Final = (
    "-x",
    "-q",
    "--assert=plain",
    "--hypothesis-profile=mutation",
    *("-p", "no:cacheprovider"),
)
_SHOWN: Final = frozenset({"status", "_row"})  # where they make maps: for screens

_COMPARED: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_SWAPPED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


@attrs.frozen
class Mutant:
    """One change of one module."""

    module: str
    number: int
    line: int
    what: str


class _Changer(ast.NodeTransformer):
    """Counts the places that can be changed, and changes the one numbered *wanted*."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted = wanted
        self.found: list[tuple[int, str]] = []

    def _here(self, node: ast.AST, what: str) -> bool:
        self.found.append((getattr(node, "lineno", 0), what))
        return len(self.found) - 1 == self.wanted

    # What is left alone.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name in _SHOWN and node.returns and "dict" in ast.unparse(node.returns):
            return node
        node.body = [self._statement(child) for child in node.body]
        node.args.defaults = [self.visit(default) for default in node.args.defaults]
        node.args.kw_defaults = [
            default and self.visit(default) for default in node.args.kw_defaults
        ]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node
        for value in (True, False):
            if self._here(node, f"if {value}"):
                node.test = ast.copy_location(ast.Constant(value), node.test)
        node.test = self.visit(node.test)
        node.body = [self._statement(child) for child in node.body]
        node.orelse = [self._statement(child) for child in node.orelse]
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            return node  # a docstring
        node.value = self.visit(node.value)
        return node

    # What is changed.

    def _statement(self, node: ast.stmt) -> ast.stmt:
        gone = ast.copy_location(ast.Pass(), node)
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if (call or isinstance(node, ast.AugAssign)) and self._here(node, "statement left out"):
            return gone
        attribute = isinstance(node, ast.Assign) and any(
            isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets
        )
        if (attribute or isinstance(node, ast.Delete)) and self._here(node, "statement left out"):
            return gone
        changed: ast.stmt = self.visit(node)
        return changed

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        for place, operator in enumerate(node.ops):
            for other in _COMPARED[type(operator)]:
                if self._here(node, f"{type(operator).__name__} -> {other.__name__}"):
                    node.ops[place] = other()
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        other: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        if self._here(node, f"{type(node.op).__name__} -> {type(other).__name__}"):
            node.op = other
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not) and self._here(node, "not left out"):
            return self.visit(node.operand)  # type: ignore[no-any-return]  # an expression
        if isinstance(node.op, ast.USub) and self._here(node, "minus left out"):
            return self.visit(node.operand)  # type: ignore[no-any-return]  # an expression
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        other = _COMPUTED.get(type(node.op))
        if other is not None and self._here(node, f"{type(node.op).__name__} -> {other.__name__}"):
            node.op = other()
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        other = _COMPUTED.get(type(node.op))
        if other is not None and self._here(node, f"{type(node.op).__name__} -> {other.__name__}"):
            node.op = other()
        node.value = self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _SWAPPED and self._here(node, f"{name} -> {_SWAPPED[name]}"):
            node.func = ast.copy_location(ast.Name(_SWAPPED[name], ast.Load()), node.func)
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        if self._here(node, "branches exchanged"):
            node.body, node.orelse = node.orelse, node.body
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = node.value
        if isinstance(value, bool):
            if self._here(node, f"{value} -> {not value}"):
                return ast.copy_location(ast.Constant(not value), node)
        elif isinstance(value, (int, float)) and self._here(node, f"{value} -> {value + 1}"):
            return ast.copy_location(ast.Constant(value + 1), node)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field, value in ast.iter_fields(node):
            if field in {"annotation", "returns", "decorator_list", "type_comment"}:
                continue
            if isinstance(value, list):
                value[:] = [
                    self._statement(child)
                    if isinstance(child, ast.stmt)
                    else self.visit(child)
                    if isinstance(child, ast.AST)
                    else child
                    for child in value
                ]
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))
        return node


def _path(module: str) -> Path:
    return ROOT / "kisfeed" / "core" / f"{module}.py"


def mutants(module: str) -> list[Mutant]:
    """Every change of *module*."""
    changer = _Changer()
    changer.visit(ast.parse(_path(module).read_text("utf-8")))
    return [Mutant(module, n, line, what) for n, (line, what) in enumerate(changer.found)]


class _Loader(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    """Gives the changed module in place of the one on disk."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = f"kisfeed.core.{mutant.module}"
        self._path = _path(mutant.module)
        tree = ast.parse(self._path.read_text("utf-8"))
        changed = ast.fix_missing_locations(_Changer(mutant.number).visit(tree))
        self._code = compile(changed, str(self._path), "exec")

    def find_spec(
        self, fullname: str, _path: object = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def survives(mutant: Mutant | None, tests: Sequence[str], within_s: int) -> bool:
    """Run *tests* on *mutant* (None: on what is written) in a fork; True if all pass in time."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.alarm(within_s)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        os._exit(_run_tests(mutant, tests))
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests started and did not end
    return os.waitstatus_to_exitcode(status) == 0


def _run_tests(mutant: Mutant | None, tests: Sequence[str]) -> int:
    import hypothesis  # noqa: PLC0415  # in the worker only
    import pytest  # noqa: PLC0415

    os.chdir(ROOT)
    hypothesis.settings.register_profile(
        "mutation",
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        if mutant is not None:
            sys.meta_path.insert(0, _Loader(mutant))
        files = [f"tests/test_{name}.py" for name in tests]
        with contextlib.redirect_stdout(io.StringIO()):
            return int(pytest.main([*_PYTEST, *files]))
    except BaseException:  # noqa: BLE001  # it does not even import: noticed
        return 1


def _judge(task: tuple[Mutant, int]) -> tuple[Mutant, bool]:
    mutant, within_s = task
    return mutant, survives(mutant, TESTS[mutant.module], within_s)


def _prepare() -> None:
    """Import in the worker what no mutant changes."""
    sys.path.insert(0, str(ROOT))
    for name in ("attrs", "hypothesis", "hypothesis.strategies", "pytest", "trio"):
        importlib.import_module(name)


def _drawn(module: str, count: int, seed: int) -> list[Mutant]:
    found = mutants(module)
    if count == 0 or len(found) <= count:
        return found
    return sorted(random.Random(seed).sample(found, count), key=lambda m: m.number)


def _baseline(module: str) -> int:
    """Seconds that a mutant of *module* may take; 0 if its tests fail as it is written."""
    started = time.monotonic()
    passes = survives(None, TESTS[module], _BASELINE_S)
    return int(_PATIENCE * (time.monotonic() - started)) + _GRACE_S if passes else 0


def _results(
    modules: Sequence[str], chosen: Sequence[Mutant], workers: int
) -> Iterator[tuple[Mutant, bool]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_prepare) as pool:
        within_s = dict(zip(modules, pool.map(_baseline, modules, 1), strict=True))
        for module, seconds in within_s.items():
            if not seconds:
                raise SystemExit(f"the tests of {module} fail as it is written")
        tasks = [(mutant, within_s[mutant.module]) for mutant in chosen]
        yield from pool.imap_unordered(_judge, tasks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--per-module", type=int, default=100, help="mutants; 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--least", type=float, default=90, help="per cent killed, else exit 1")
    parser.add_argument("--json", type=Path, help="write the survivors here")
    options = parser.parse_args(arguments)
    console = Console()
    modules = options.modules or list(TESTS)
    chosen = [
        mutant for name in modules for mutant in _drawn(name, options.per_module, options.seed)
    ]
    # Spread, so that the slow ones do not come all at once.
    random.Random(options.seed).shuffle(chosen)
    started = time.monotonic()
    survivors: list[Mutant] = []
    columns = (TextColumn("mutants"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(chosen))
        for mutant, survived in _results(modules, chosen, options.workers):
            if survived:
                survivors.append(mutant)
            progress.advance(bar)
    return _report(modules, chosen, survivors, time.monotonic() - started, options, console)


def _report(
    modules: Sequence[str],
    chosen: Sequence[Mutant],
    survivors: list[Mutant],
    seconds: float,
    options: argparse.Namespace,
    console: Console,
) -> int:
    survivors.sort(key=lambda m: (m.module, m.line, m.number))
    table = Table(title="Mutation testing of kisfeed.core")
    for heading in ("Module", "Mutants in all", "Tried", "Killed", "Rate"):
        table.add_column(heading, justify="left" if heading == "Module" else "right")
    for name in [*modules, ""]:
        tried = sum(m.module == name or not name for m in chosen)
        left = sum(m.module == name or not name for m in survivors)
        total = sum(len(mutants(m)) for m in modules) if not name else len(mutants(name))
        rate = f"{(tried - left) / tried:.1%}" if tried else "-"
        table.add_row(name or "all", str(total), str(tried), str(tried - left), rate)
    for mutant in survivors:
        source = _path(mutant.module).read_text("utf-8").splitlines()[mutant.line - 1].strip()
        console.print(
            f"{mutant.module}.py:{mutant.line}: {mutant.what}: {source}", markup=False, width=140
        )
    console.print(table)
    console.print(f"{len(chosen)} mutants in {seconds:.0f} s on {options.workers} workers")
    if options.json is not None:
        options.json.write_text(json.dumps([attrs.asdict(m) for m in survivors]), "utf-8")
    return 0 if len(survivors) <= (1 - options.least / 100) * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
