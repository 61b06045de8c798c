"""Counting how long things took, without keeping each of them."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MILLISECONDS: Final = (1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000)


class Histogram:
    """How many values fell at or below each bound.

    Attributes:
        counts: per bound, values above the bound before it; the last is above every bound.
        total: the sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = MILLISECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values so far."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The bound below which this *share* of the values lies; None without any.

        The largest bound stands for everything above it.
        """
        left = share * self.count
        if not self.count:
            return None
        for bound, count in zip(self.bounds, self.counts, strict=False):
            left -= count
            if left <= 0:
                return bound
        return self.bounds[-1]

    def status(self) -> dict[str, object]:
        """For ``kisfeed status``; JSON-able."""
        count = self.count
        return {
            "count": count,
            "mean": round(self.total / count, 1) if count else None,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
        }
