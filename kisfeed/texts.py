"""Texts for people from rooms that know no language: said in the reader's where they are shown."""

from __future__ import annotations

from typing import Any, Self


class Phrase(str):
    """An English text that remembers how it was made.

    Attributes:
        template: the text before its values were put in; what translations are found by.
        values: JSON-able.
    """

    __slots__ = ("template", "values")

    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, **values: Any) -> Self:
        """Put *values* into *template*, as ``str.format`` does."""
        made = super().__new__(cls, template.format(**values))
        made.template = template
        made.values = values
        return made


def parts(text: object) -> dict[str, Any]:
    """What a program needs to say *text* in another language: JSON-able; empty if not known.

    Args:
        text: of an exception, its first argument.
    """
    if isinstance(text, Exception):
        text = text.args[0] if text.args else None
    return {"template": text.template, "values": text.values} if isinstance(text, Phrase) else {}
