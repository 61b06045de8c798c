"""Clock, chance and waiting for code outside Trio: the clients that must not import it.

What :mod:`kisfeed.seams` is for the daemon; importing Trio alone would cost a script three times
what the rest of a client does.
"""

from __future__ import annotations

import os
import time
from threading import Condition, RLock

__all__ = ["Condition", "RLock", "jitter", "monotonic", "sleep"]


def monotonic() -> float:
    """Seconds on a clock that never steps."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    """Do nothing for so long."""
    time.sleep(seconds)


def jitter() -> float:
    """Uniform in [0, 1), from the operating system."""
    return int.from_bytes(os.urandom(6), "big") / (1 << 48)
