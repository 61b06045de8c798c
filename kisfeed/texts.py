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


def parts(error: Exception) -> dict[str, Any]:
    """What a program needs to say *error* in another language: JSON-able; empty if not known."""
    text = error.args[0] if error.args else None
    return {"template": text.template, "values": text.values} if isinstance(text, Phrase) else {}
