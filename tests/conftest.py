"""Settings for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Two cores shared with everything else: how long an example takes says nothing about the code.
# CI repeats what it ran before; new examples are looked for where somebody can read the failure.
settings.register_profile("kisfeed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("kisfeed")
