"""Every text a person can meet is translated.

After changing a text, ``python -m tests.test_cli_i18n`` brings the catalogue's messages up to
date; translate what it lists in ``kisfeed.po`` and run it again to compile ``kisfeed.mo``.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import click
import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir, extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from rich.cells import cell_len

import kisfeed.cli
from kisfeed.cli import i18n

PACKAGE = Path(kisfeed.cli.__file__).parent.parent
FOLDER = i18n.CATALOGUES / "ko" / "LC_MESSAGES"
KEYWORDS = {"_": None, "N_": None, "ngettext": (1, 2), "Phrase": None}
CLICK_WITHOUT_TEXTS = {"_winconsole", "_termui_impl", "shell_completion", "testing"}


def extracted() -> dict[str, str | tuple[str, ...]]:
    """Every message of the package, and of click, by its (singular) text."""
    found = [
        message
        for _file, _line, message, _comments, _context in extract_from_dir(
            PACKAGE, method_map=[("**.py", "python")], keywords=KEYWORDS
        )
    ]
    for path in sorted(Path(click.__file__).parent.glob("*.py")):
        if path.stem not in CLICK_WITHOUT_TEXTS:
            found += [m for _line, m, _c, _x in extract_from_file("python", path, KEYWORDS)]
    return {m if isinstance(m, str) else m[0]: m for m in found}


def catalogue() -> Catalog:
    with (FOLDER / "kisfeed.po").open("rb") as file:
        return read_po(file, locale="ko")


def entries() -> dict[str, Message]:
    return {m.id if isinstance(m.id, str) else m.id[0]: m for m in catalogue() if m.id}


def compiled(po: Catalog) -> bytes:
    stream = io.BytesIO()
    write_mo(stream, po)
    return stream.getvalue()


def fields(text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:  # braces that are no placeholders
        return set()


def test_every_text_is_in_the_catalogue_and_no_other() -> None:
    assert entries().keys() == extracted().keys()


def test_every_text_is_translated() -> None:
    for text, message in entries().items():
        strings = message.string if isinstance(message.string, tuple) else (message.string,)
        assert all(strings), text
        assert not message.fuzzy, text


def test_translations_keep_the_placeholders() -> None:
    for text, message in entries().items():
        if isinstance(message.id, str):
            assert isinstance(message.string, str)
            assert fields(text) == fields(message.string), text
            words = r"`kisfeed[^`]*`|--[a-z]+"
            assert re.findall(words, text) == re.findall(words, message.string), text
        else:
            known = set().union(*(fields(form) for form in message.id))
            strings = message.string if isinstance(message.string, tuple) else ("{?}",)
            assert all(fields(form) <= known for form in strings), text


def test_the_compiled_catalogue_is_the_written_one() -> None:
    assert (FOLDER / "kisfeed.mo").read_bytes() == compiled(catalogue())


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "KISFEED_LANG": "ko"}, "ko"),
    ],
)
def test_the_language_is_chosen_by_the_environment(environ: dict[str, str], language: str) -> None:
    assert i18n.preferred(environ) == language


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kisfeed", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1", **environ},
    )


def test_clicks_own_words_change_language_too() -> None:
    done = run("stream", KISFEED_LANG="ko")
    assert done.returncode == 2
    assert "사용법: kisfeed stream" in done.stderr
    assert "오류: 인자가 없습니다" in done.stderr
    done = run("stream", "--lang", "en", KISFEED_LANG="ko")
    assert "Usage: kisfeed stream" in done.stderr


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_help_fits_80_columns(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "")
    i18n.use(language)
    group = kisfeed.cli.group
    for command in (group, *group.commands.values()):
        context = click.Context(command, info_name=command.name, terminal_width=80)
        for line in command.get_help(context).splitlines():
            assert cell_len(line) <= 80, line


def update() -> None:
    """Bring the catalogue's messages up to date, keep translations, compile."""
    old = entries() if (FOLDER / "kisfeed.po").exists() else {}
    new = Catalog(
        locale="ko",
        domain="kisfeed",
        project="kisfeed",
        version="0",
        msgid_bugs_address="-",
        header_comment="# Korean texts of kisfeed; English is the message itself.",
        creation_date=dt.datetime(2026, 11, 20, tzinfo=dt.UTC),
        revision_date=dt.datetime(2026, 11, 20, tzinfo=dt.UTC),
        last_translator="kisfeed",
        language_team="ko",
        fuzzy=False,
    )
    for text, message in sorted(extracted().items()):
        known = old.get(text)
        new.add(message, known.string if known is not None else None)
        if known is None or not known.string:
            sys.stderr.write(f"not translated: {text!r}\n")
    with (FOLDER / "kisfeed.po").open("wb") as file:
        write_po(file, new, omit_header=False, sort_output=True, width=100)
    (FOLDER / "kisfeed.mo").write_bytes(compiled(catalogue()))


if __name__ == "__main__":
    update()
