from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import jsonschema
import pytest

from kisfeed import cli, schemas
from kisfeed.core.connection import diagram

TEXT = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def of(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_first_block_runs_the_demo_and_the_second_the_tests() -> None:
    (first, demo), (second, tests) = BLOCKS[:2]
    assert (first, second) == ("sh", "sh")
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.rstrip().endswith(".venv/bin/kisfeed demo")
    assert "-m pytest" in tests
    for command in (demo, tests):
        assert command.startswith("python3 -m venv .venv && ")


def test_the_state_diagram_is_the_table() -> None:
    assert of("mermaid") == [diagram()]


@pytest.mark.parametrize("text", of("python"))
def test_python_examples_compile(text: str) -> None:
    compile(text, "README.md", "exec", dont_inherit=True)


@pytest.mark.parametrize("text", of("toml"))
def test_configuration_examples_fit_the_schema(text: str) -> None:
    jsonschema.validate(tomllib.loads(text), schemas.load("config.schema.json"))


COMMANDS = re.findall(r"\.venv/bin/kisfeed ([^|#\n]+)", "\n".join(of("sh")))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_shown_can_be_parsed(line: str) -> None:
    name, *arguments = shlex.split(line)
    command = cli.group.commands[name]
    with click.Context(command, info_name=name) as context:
        command.parse_args(context, arguments)
