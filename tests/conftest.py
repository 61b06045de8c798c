"""Settings for every test."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Two cores shared with everything else: how long an example takes says nothing about the code.
# CI repeats what it ran before; new examples are looked for where somebody can read the failure.
settings.register_profile("kisfeed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("kisfeed")


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that spoke Korean in this process leaves no test after it Korean."""
    monkeypatch.setenv("LANGUAGE", "en")
