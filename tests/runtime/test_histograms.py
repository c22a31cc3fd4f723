from __future__ import annotations

from fractions import Fraction
from math import floor, frexp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.histograms import GrowingHistogram


def filled(parts: list[np.ndarray], bins: int) -> GrowingHistogram:
    histogram = GrowingHistogram(bins)
    for part in parts:
        histogram.add(part, *((float(part.min()), float(part.max())) if part.size else (np.inf, -np.inf)))
    return histogram


FLOATS = st.floats(-(2.0**40), 2.0**40, width=32).map(lambda x: x if abs(x) > 2.0**-80 else 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(FLOATS, max_size=8), min_size=1, max_size=5), st.integers(2, 50))
def test_counts_are_exact_and_do_not_depend_on_batches(parts: list[list[float]], bins: int) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    together = np.concatenate(arrays)
    found, whole = filled(arrays, bins), filled([together], bins)
    assert (found.low, found.high) == (whole.low, whole.high)
    np.testing.assert_array_equal(found.counts, whole.counts)
    if together.size:
        assert found.low <= found.minimum == together.min() <= together.max() == found.maximum <= found.high
        # Against exact arithmetic.
        first, width = Fraction(found.low), Fraction(found.width)
        expected = np.bincount([floor((Fraction(float(x)) - first) / width) for x in together], minlength=bins)
        np.testing.assert_array_equal(found.counts, expected)


def test_the_bins_are_as_narrow_as_the_range_allows() -> None:
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    found = filled(np.array_split(x, 7), 1024)
    occupied = (found.maximum - found.minimum) / found.width
    assert 512 <= occupied <= 1024
    assert frexp(found.width)[0] == 0.5
    reference, _ = np.histogram(x.astype(np.float64), 1024, (found.low, found.high))
    np.testing.assert_array_equal(found.counts, reference)


@pytest.mark.parametrize("level", [0.0, 3.5, -1e-30, 1e30, 123456.789])
def test_a_constant_is_counted_in_one_bin(level: float) -> None:
    x = np.full(70_000, level, np.float32)
    found = filled([x[:10], x[10:]], 256)
    assert found.low <= x[0] <= found.high
    assert found.counts.max() == found.counts.sum() == 70_000


def test_zeros_before_data() -> None:
    found = filled([np.zeros(5, np.float32), np.array([-1.0, 3.0], np.float32)], 64)
    index = round((0 - found.low) / found.width)
    assert found.counts[index] == 5
    assert found.counts.sum() == 7
