"""The breaker over one REST host: a host that does not answer is left alone for a while."""

from __future__ import annotations

import math
from typing import Final

TO_TRIP: Final = 5
PAUSES_S: Final = (5.0, 10.0, 20.0, 40.0, 60.0)


class HostBreaker:
    """Opens on failures in a row; lets one call through after each pause, which grows.

    Any readable answer closes it, a refusal too: the host is there.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._level = 0
        self._until = -math.inf
        self._probing = False

    @property
    def open(self) -> bool:
        """Calls are turned away, but for the one that probes."""
        return self._level > 0

    def wait(self, now: float) -> float:
        """Seconds until a call is worth its wait; 0.0: now."""
        if not self.open:
            return 0.0
        return max(0.1, self._until - now) if self._probing else max(0.0, self._until - now)

    def enter(self, now: float) -> bool:
        """Whether a call may be made now; while open, the one that may is the probe."""
        if not self.open:
            return True
        if self._probing or now < self._until:
            return False
        self._probing = True
        return True

    def worked(self) -> None:
        """The host answered."""
        self._failures = self._level = 0
        self._probing = False

    def failed(self, now: float) -> None:
        """It did not; of the calls that were out when it opened only the probe counts."""
        if self.open:
            if self._probing:
                self._probing = False
                self._open(now)
            return
        self._failures += 1
        if self._failures >= TO_TRIP:
            self._open(now)

    def left(self) -> None:
        """The call that entered ended without telling."""
        self._probing = False

    def status(self, now: float) -> dict[str, object]:
        """For ``kisfeed status``; JSON-able."""
        return {
            "open": self.open,
            "failures": self._failures,
            "next_try_in_s": round(max(0.0, self._until - now), 1) if self.open else None,
        }

    def _open(self, now: float) -> None:
        self._until = now + PAUSES_S[min(self._level, len(PAUSES_S) - 1)]
        self._level += 1
