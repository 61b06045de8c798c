"""Korean or English: every text a person reads passes through :func:`_` on its way out.

English is the message itself. click looks its own words up with the same ``gettext`` functions,
so one catalogue serves both and ``Usage``, ``Options`` and ``Error`` change language with the rest.
"""

from __future__ import annotations

import gettext
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kisfeed import texts

if TYPE_CHECKING:
    from collections.abc import Mapping

DOMAIN: Final = "kisfeed"
LANGUAGES: Final = ("ko", "en")
CATALOGUES: Final = Path(__file__).parent.parent / "locale"

_ = gettext.gettext
ngettext = gettext.ngettext


def N_(text: str) -> str:  # noqa: N802  # the conventional name, which extraction tools look for
    """Mark *text* for translation where it is written; :func:`_` translates it where shown."""
    return text


def said(text: str, parts: Mapping[str, Any] | None = None) -> str:
    """A text of another room in this language, as far as the catalogue knows it.

    Args:
        text: as it was made, in English.
        parts: :func:`kisfeed.texts.parts` of it, where it came without them.
    """
    parts = texts.parts(text) if parts is None else parts
    template, values = parts.get("template"), parts.get("values")
    if not isinstance(template, str) or not isinstance(values, dict):
        return _(text) if text else text
    known = {n: _(v) if isinstance(v, str) and v else v for n, v in values.items()}
    try:
        return _(template).format(**known)
    except (LookupError, ValueError, TypeError, AttributeError):
        return text  # a daemon of another version


def preferred(environ: Mapping[str, str]) -> str:
    """The language of this environment: ``KISFEED_LANG``, else the locale, else English."""
    for name in ("KISFEED_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = environ.get(name, "")
        if value:
            return "ko" if value.lower().startswith("ko") else "en"
    return "en"


def use(language: str) -> None:
    """Speak *language* from here on, in this process."""
    gettext.bindtextdomain(DOMAIN, str(CATALOGUES))
    gettext.textdomain(DOMAIN)
    os.environ["LANGUAGE"] = language
