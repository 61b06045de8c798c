"""Mutation testing of the pure core: ``python -m bench.mutation``.

Changes one operator, constant, condition or statement at a time and runs the tests of that module
on it; a change that no test notices is a survivor. Mutants are drawn at random from each module
(``--per-module``, all of them with 0), the same ones for the same ``--seed``; the rate of all
modules counts each by its size, and one below ``--least`` is exit status 1.

Each module's tests run once to see which lines each of them comes by. Then every mutant runs in a
fork of a process that has collected the tests, with those that come by it, the quickest first;
what only an import runs has a process that imports it changed. A mutant that takes several times
as long as its tests, or gigabytes, is noticed. Nothing is written to the source tree.

Not mutated: docstrings, texts, annotations, ``assert``, ``raise``, imports, ``init`` and
``repr`` of attrs fields, and the maps that a ``status`` makes for screens, which decide nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import importlib.abc
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType

    import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
#: Module of kisfeed.core -> the test files that are to notice, quickest first.
TESTS: Final = {
    "breaker": ("core_breaker", "core_pacing", "core_connection"),
    "pacing": ("core_pacing", "core_connection"),
    "connection": ("core_connection", "core_engine"),
    "interest": ("core_interest", "core_registrations"),
    "registrations": ("core_registrations", "core_crowding", "core_engine"),
    "liveness": ("core_liveness", "core_engine"),
    "gaps": ("core_gaps",),
    "outbox": ("core_outbox", "core_streams", "gateway_channel"),
    "streams": ("core_streams", "core_engine"),
    "market": ("core_market", "core_engine"),
    "topics": ("core_topics", "core_engine", "core_streams", "feed"),
    "subscriptions": ("core_subscriptions", "core_engine", "core_crowding", "feed"),
    "noticelog": ("core_noticelog", "core_engine", "feed"),
    "prices": ("core_prices", "core_engine", "feed"),
    "engine": (
        *("core_engine", "core_subscriptions", "core_prices", "core_short_way"),
        *("core_crowding", "feed"),
    ),
    "limiter": ("core_limiter",),
    "tokens": ("core_tokens",),
    "counters": ("core_counters",),
    "hostbreaker": ("core_hostbreaker",),
    "pollplan": ("core_pollplan",),
    "quotes": ("core_quotes",),
    "quoting": ("core_quoting", "core_engine"),
    "ordercheck": ("core_ordercheck", "core_orders"),
    "orders": ("core_orders",),
    "told": ("core_told",),
}
_BASELINE_S: Final = 600  # for the tests of a module as it is written
_PATIENCE: Final = 4  # a mutant may take this many times as long, and ...
_GRACE_S: Final = 10  # ... this much more
_AT_ONCE: Final = 40  # mutants for one collection of the tests
_DIED: Final = 9
_NOT_IN_PLACE: Final = 10
_UNCHANGED: Final = -1
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
    function: str  # outermost one, as its qualified name; empty: run by the import
    first: int  # lines of the statement, or of the head of one with a body
    last: int


@attrs.frozen
class _Place:
    line: int
    what: str
    function: str
    first: int
    last: int


@attrs.frozen
class _Seen:
    """What one test did to a module."""

    seconds: float
    lines: frozenset[int]


class _Changer(ast.NodeTransformer):
    """Counts the places that can be changed, and changes the one numbered *wanted*."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted = wanted
        self.found: list[_Place] = []
        self._names: list[str] = []  # of the classes and the function around
        self._inside = False  # of a function
        self._lines = (0, 0)

    def _here(self, node: ast.AST, what: str) -> bool:
        name = ".".join(self._names) if self._inside else ""
        self.found.append(_Place(getattr(node, "lineno", 0), what, name, *self._lines))
        return len(self.found) - 1 == self.wanted

    # What is left alone.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name in _SHOWN and node.returns and "dict" in ast.unparse(node.returns):
            return node
        node.args.defaults = [self.visit(default) for default in node.args.defaults]
        node.args.kw_defaults = [
            default and self.visit(default) for default in node.args.kw_defaults
        ]
        outermost = not self._inside
        if outermost:
            self._inside = True
            self._names.append(node.name)
        node.body = [self._statement(child) for child in node.body]
        if outermost:
            self._inside = False
            self._names.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._names.append(node.name)
        node.body = [self._statement(child) for child in node.body]
        self._names.pop()
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
        around = self._lines
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else (node.end_lineno or node.lineno)
        self._lines = (node.lineno, max(node.lineno, last))
        try:
            return self._changed(node)
        finally:
            self._lines = around

    def _changed(self, node: ast.stmt) -> ast.stmt:
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

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg in {"init", "repr"} and isinstance(node.value, ast.Constant):
            return node
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
    return [Mutant(module, n, **attrs.asdict(place)) for n, place in enumerate(changer.found)]


def _compiled(mutant: Mutant) -> CodeType:
    path = _path(mutant.module)
    tree = _Changer(mutant.number).visit(ast.parse(path.read_text("utf-8")))
    code: CodeType = compile(ast.fix_missing_locations(tree), str(path), "exec")
    return code


class _Loader(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    """Gives the changed module in place of the one on disk."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = f"kisfeed.core.{mutant.module}"
        self._path = _path(mutant.module)
        self._code = _compiled(mutant)

    def find_spec(
        self, fullname: str, _path: object = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def _functions(module: str) -> dict[str, list[FunctionType]]:
    """The functions of *module* that are alive, by qualified name."""
    found: dict[str, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename == str(_path(module)):
            found.setdefault(thing.__code__.co_qualname, []).append(thing)
    return found


def _codes(code: CodeType, name: str) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_qualname == name:
                yield inner
            yield from _codes(inner, name)


def _put_in_place(mutant: Mutant, functions: Sequence[FunctionType]) -> None:
    """Exchange the code of *functions*, which *mutant* changes."""
    changed = {code.co_firstlineno: code for code in _codes(_compiled(mutant), mutant.function)}
    for function in functions:
        function.__code__ = changed[function.__code__.co_firstlineno]


def _forked(work: Callable[[], int], within_s: float) -> int:
    """Run *work* in a fork; its result, or less than 0 if it died or was not done in time."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.setitimer(signal.ITIMER_REAL, within_s)
        try:
            os._exit(work())
        except BaseException:  # noqa: BLE001  # whatever a mutant does
            os._exit(_DIED)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests started and did not end
    return os.waitstatus_to_exitcode(status)


def _pytest(tests: Sequence[str], *plugins: object) -> int:
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
    files = [f"tests/test_{name}.py" for name in tests]
    return int(pytest.main([*_PYTEST, *files], plugins=list(plugins)))


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


class _Watching:
    """A pytest plugin: runs every test and writes what each did to *module* to *path*."""

    def __init__(self, module: str, path: Path) -> None:
        self._file = str(_path(module))
        self._path = path

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        seen: dict[str, tuple[float, list[int]]] = {}
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            lines: set[int] = set()

            def trace(
                frame: FrameType, _event: str, _: object, lines: set[int] = lines
            ) -> Callable[..., Any] | None:
                if frame.f_code.co_filename != self._file:
                    return None
                lines.add(frame.f_lineno)
                return trace

            started = time.monotonic()
            sys.settrace(trace)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.settrace(None)
            seen[item.nodeid] = time.monotonic() - started, sorted(lines)
        if not session.testsfailed:
            self._path.write_text(json.dumps(seen), "utf-8")
        return True


class _Judging:
    """A pytest plugin: runs on each mutant the tests that come by, and writes who survived."""

    def __init__(self, chosen: Sequence[Mutant], seen: Mapping[str, _Seen], path: Path) -> None:
        self._chosen = chosen
        self._seen = seen
        self._path = path

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        survivors = []
        functions = _functions(self._chosen[0].module)
        gc.freeze()  # the forks share it
        # What is changed to itself first: if that is noticed, all that follows says nothing.
        for mutant in (attrs.evolve(self._chosen[0], number=_UNCHANGED), *self._chosen):
            names = [n for n, seen in self._seen.items() if _comes_by(seen, mutant)]
            names.sort(key=lambda name: self._seen[name].seconds)
            within_s = _PATIENCE * sum(self._seen[name].seconds for name in names) + _GRACE_S
            tests = [items[name] for name in names]
            judging = functools.partial(_judged, session, mutant, functions[mutant.function], tests)
            result = _forked(judging, within_s)
            if result == _NOT_IN_PLACE or (result and mutant.number == _UNCHANGED):
                return True  # and the missing file tells
            if not result:
                survivors.append(mutant.number)
        self._path.write_text(json.dumps(survivors), "utf-8")
        return True


def _comes_by(seen: _Seen, mutant: Mutant) -> bool:
    return not seen.lines.isdisjoint(range(mutant.first, mutant.last + 1))


def _judged(
    session: pytest.Session,
    mutant: Mutant,
    functions: Sequence[FunctionType],
    tests: Sequence[pytest.Item],
) -> int:
    try:
        _put_in_place(mutant, functions)
    except (KeyError, ValueError):
        return _NOT_IN_PLACE
    _limit_memory()
    for item, following in zip(tests, [*tests[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def _import_changed(mutant: Mutant, tests: Sequence[str]) -> int:
    sys.meta_path.insert(0, _Loader(mutant))
    _limit_memory()
    return _pytest(tests)


def _watch(module: str) -> dict[str, _Seen]:
    """What each test of *module* does to it; empty if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seen"
        watching = functools.partial(_pytest, TESTS[module], _Watching(module, path))
        if _forked(watching, _BASELINE_S) or not path.exists():
            return {}
        read = json.loads(path.read_text("utf-8"))
        return {name: _Seen(seconds, frozenset(lines)) for name, (seconds, lines) in read.items()}


def _judge(task: tuple[list[Mutant], dict[str, _Seen]]) -> tuple[int, list[Mutant]]:
    """How many mutants were tried, and which of them no test noticed."""
    chosen, seen = task
    module = chosen[0].module
    within_s = _PATIENCE * sum(test.seconds for test in seen.values()) + _GRACE_S
    survivors = [
        mutant
        for mutant in chosen
        if not mutant.function
        and not _forked(functools.partial(_import_changed, mutant, TESTS[module]), within_s)
    ]
    inside = [mutant for mutant in chosen if mutant.function]
    if inside:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "survivors"
            judging = _Judging(inside, seen, path)
            _forked(functools.partial(_pytest, TESTS[module], judging), within_s * len(inside))
            if not path.exists():
                raise RuntimeError(f"the tests of {module} notice what is not changed")
            numbers = set(json.loads(path.read_text("utf-8")))
        survivors += [mutant for mutant in inside if mutant.number in numbers]
    return len(chosen), survivors


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


def _results(
    chosen: Mapping[str, list[Mutant]], workers: int
) -> Iterator[tuple[int, list[Mutant]]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_prepare) as pool:
        seen = dict(zip(chosen, pool.map(_watch, chosen, 1), strict=True))
        for module, tests in seen.items():
            if not tests:
                raise SystemExit(f"the tests of {module} fail as it is written")
        tasks = [
            (mutants[at : at + _AT_ONCE], seen[module])
            for module, mutants in chosen.items()
            for at in range(0, len(mutants), _AT_ONCE)
        ]
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
    unknown = {path.stem for path in _path("x").parent.glob("[!_]*.py")} ^ set(TESTS)
    if unknown:
        parser.error(f"TESTS and kisfeed/core differ: {', '.join(sorted(unknown))}")
    drawn = {name: _drawn(name, options.per_module, options.seed) for name in modules}
    chosen = [mutant for found in drawn.values() for mutant in found]
    started = time.monotonic()
    survivors: list[Mutant] = []
    columns = (TextColumn("mutants"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(chosen))
        for tried, found in _results(drawn, options.workers):
            survivors += found
            progress.advance(bar, tried)
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
    in_all = killed = 0.0
    for name in modules:
        tried = sum(m.module == name for m in chosen)
        noticed = tried - sum(m.module == name for m in survivors)
        total = len(mutants(name))
        in_all += total
        killed += total * noticed / tried
        table.add_row(name, str(total), str(tried), str(noticed), f"{noticed / tried:.1%}")
    table.add_section()
    noticed = len(chosen) - len(survivors)
    rate = killed / in_all
    table.add_row("all", f"{in_all:.0f}", str(len(chosen)), str(noticed), f"{rate:.1%}")
    for mutant in survivors:
        source = _path(mutant.module).read_text("utf-8").splitlines()[mutant.line - 1].strip()
        console.print(
            f"{mutant.module}.py:{mutant.line}: {mutant.what}: {source}", markup=False, width=140
        )
    console.print(table)
    drawn = f"at most {options.per_module} of each module, seed {options.seed}"
    console.print(
        f"{len(chosen)} mutants ({drawn if options.per_module else 'all there are'})"
        f" in {seconds:.0f} s on {options.workers} workers"
    )
    if options.json is not None:
        options.json.write_text(json.dumps([attrs.asdict(m) for m in survivors]), "utf-8")
    return 0 if 100 * rate >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
