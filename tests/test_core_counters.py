"""Histograms: what they say of values they did not keep."""

from __future__ import annotations

import bisect
import math

import pytest
from hypothesis import given, strategies as st

from kisfeed.core.counters import MILLISECONDS, Histogram

values = st.lists(st.one_of(st.floats(0, 40_000), st.sampled_from(MILLISECONDS)), max_size=60)


def filled(found: list[float]) -> Histogram:
    histogram = Histogram()
    for value in found:
        histogram.add(value)
    return histogram


@given(values)
def test_every_value_is_counted_once_at_the_lowest_bound_that_holds_it(found: list[float]) -> None:
    histogram = filled(found)
    expected = [0] * (len(MILLISECONDS) + 1)
    for value in found:
        expected[sum(value > bound for bound in MILLISECONDS)] += 1
    assert histogram.counts == expected
    assert histogram.count == len(found)
    assert histogram.total == pytest.approx(math.fsum(found))


@given(values.filter(bool), st.integers(1, 100))
def test_a_quantile_is_the_lowest_bound_that_holds_that_share(
    found: list[float], per_cent: int
) -> None:
    least = next(n for n in range(1, 61) if 100 * n >= per_cent * len(found))
    value = sorted(found)[least - 1]
    at = min(bisect.bisect_left(MILLISECONDS, value), len(MILLISECONDS) - 1)
    assert filled(found).quantile(per_cent / 100) == MILLISECONDS[at]


def test_without_values_there_is_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None


def test_bounds_are_what_is_asked_for() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.5, 9.0):
        histogram.add(value)
    assert (histogram.bounds, histogram.counts) == ((1.0, 2.0), [1, 1, 1])


def test_milliseconds_reach_from_one_to_half_a_minute() -> None:
    assert Histogram().bounds == (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
