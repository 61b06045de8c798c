from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kisfeed


@pytest.mark.parametrize("name", kisfeed.__all__)
def test_every_promised_name_is_there(name: str) -> None:
    assert getattr(kisfeed, name) is not None
    assert name in dir(kisfeed)


def test_the_names_that_types_see_are_the_promised_ones() -> None:
    assert kisfeed.__file__ is not None
    tree = ast.parse(Path(kisfeed.__file__).read_text("utf-8"))
    (seen,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imported = {
        alias.name for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == set(kisfeed.__all__)
    assert kisfeed.__all__ == sorted(kisfeed.__all__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kisfeed.no_such_name


@pytest.mark.parametrize("name", ["connect", "Trade", "NoDaemon"])
def test_a_script_imports_neither_trio_nor_asyncio_nor_httpx(name: str) -> None:
    heavy = ("trio", "asyncio", "httpx", "click", "rich", "platformdirs", "jsonschema")
    code = f"import sys, kisfeed; kisfeed.{name};print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
