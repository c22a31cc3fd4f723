"""Answering requests batch by batch, in numpy: each accumulator holds its result so far and nothing else.

Means and variances of pieces are merged by the formula of Chan, Golub and LeVeque (1979), which is stable where
E[x²] - E[x]² is not.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.histograms import GrowingHistogram
from graphopt.runtime.requests import (
    ChannelRangeResult,
    HistogramResult,
    MomentsResult,
    RangeResult,
)

_PIECE = 1 << 18  # elements that are worked on at a time, 2 MiB in float64


class View:
    """One value on some consecutive samples.

    Attributes:
        name: of the value.
        array: float32 or float64; integers and narrower floats are widened.
        first: number of the first sample within the stream.
    """

    def __init__(self, name: str, array: np.ndarray, first: int) -> None:
        self.name = name
        self.array = _widened(name, array)
        self.first = first

    @functools.cached_property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest element: NaN where there is one, (inf, -inf) where there are no elements."""
        if not self.array.size:
            return math.inf, -math.inf
        return float(self.array.min()), float(self.array.max())

    def finite_extremes(self) -> tuple[float, float]:
        """The same. Raises DataError where an element is NaN or infinite."""
        low, high = self.extremes
        if self.array.size and not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"value '{self.name}' holds NaN or infinity on the calibration samples from {self.first} on"
            )
        return low, high

    def channel_axis(self, axis: int) -> int:
        """`axis` counted from the front. Raises DataError where the value has no such axis."""
        rank = self.array.ndim
        if not -rank <= axis < rank:
            raise DataError(f"value '{self.name}' has {rank} axes; there are no channels along axis {axis}")
        return axis % rank


def _widened(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind in "USOc":
        raise DataError(f"value '{name}' is of type {array.dtype}, of which there are no statistics")
    wide = np.float64 if array.dtype.kind in "iu" and array.dtype.itemsize > 2 else np.float32
    return array.astype(wide)


class Accumulator(Protocol):
    """Takes a value, or a pair of them, piece by piece."""

    def add(self, *views: View) -> None:
        """Add some samples. Raises DataError where they cannot be added."""
        ...

    def result(self) -> Any:
        """The answer so far."""
        ...


class RangeOf:
    """`Range`."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf
        self._finite = True
        self._count = 0

    def add(self, *views: View) -> None:
        """See `Accumulator`; never raises."""
        (view,) = views
        low, high = view.extremes
        if view.array.size and not (math.isfinite(low) and math.isfinite(high)):
            self._finite = False
            finite = view.array[np.isfinite(view.array)]
            low, high = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._count += view.array.size

    def result(self) -> RangeResult:
        """Zeros where there was no finite element."""
        empty = self._low > self._high
        return RangeResult(
            0.0 if empty else self._low, 0.0 if empty else self._high, finite=self._finite, count=self._count
        )


class HistogramOf:
    """`Histogram`."""

    def __init__(self, bins: int) -> None:
        self._histogram = GrowingHistogram(bins)

    def add(self, *views: View) -> None:
        """See `Accumulator`."""
        (view,) = views
        self._histogram.add(view.array, *view.finite_extremes())

    def result(self) -> HistogramResult:
        """All counts zero where there was no element."""
        found = self._histogram
        empty = found.minimum > found.maximum
        extremes = (0.0, 0.0) if empty else (found.minimum, found.maximum)
        return HistogramResult(found.counts.astype(np.float64), found.low, found.high, *extremes)


class ChannelRangeOf:
    """`ChannelRange`."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._low: Any = np.inf
        self._high: Any = -np.inf

    def add(self, *views: View) -> None:
        """See `Accumulator`."""
        x = _finite_channels(views, self._axis, self._low)
        if not x.size:
            return
        self._low = np.minimum(self._low, x.min(axis=2).min(axis=0)).astype(np.float64)
        self._high = np.maximum(self._high, x.max(axis=2).max(axis=0)).astype(np.float64)

    def result(self) -> ChannelRangeResult:
        """Arrays without channels where there was no element."""
        return ChannelRangeResult(*(np.zeros(0) if np.ndim(x) == 0 else x for x in (self._low, self._high)))


class MomentsOf:
    """`Moments`."""

    def __init__(self, axis: int, *, magnitudes: bool = False) -> None:
        self._axis = axis
        self._magnitudes = magnitudes
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0  # sums of squared distances from the mean

    def add(self, *views: View) -> None:
        """See `Accumulator`."""
        x = _finite_channels(views, self._axis, self._mean)
        if not x.size:
            return
        step = max(1, _PIECE // (x.shape[1] * x.shape[2]))
        for start in range(0, x.shape[0], step):
            piece = x[start : start + step].astype(np.float64)
            self._merge(np.abs(piece, out=piece) if self._magnitudes else piece)

    def _merge(self, x: np.ndarray) -> None:
        count = x.shape[0] * x.shape[2]
        mean = x.sum(axis=2).sum(axis=0) / count
        x -= mean[:, None]
        squares = np.square(x, out=x).sum(axis=2).sum(axis=0)
        total = self._count + count
        delta = mean - self._mean
        self._squares = self._squares + squares + delta**2 * (self._count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._count = total

    def result(self) -> MomentsResult:
        """Arrays without channels where there was no element."""
        if not self._count:
            return MomentsResult(np.zeros(0), np.zeros(0), 0)
        return MomentsResult(self._mean, self._squares / self._count, self._count)


def _finite_channels(views: tuple[View, ...], axis: int, so_far: Any) -> np.ndarray:
    """(before, C, after) of the one view. Raises DataError unless all is finite, and C what it is in `so_far`."""
    (view,) = views
    view.finite_extremes()
    shape, axis = view.array.shape, view.channel_axis(axis)
    x = view.array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    if x.size and np.ndim(so_far) and len(so_far) != x.shape[1]:
        raise DataError(f"value '{view.name}' has {len(so_far)} channels on some samples and {x.shape[1]} on others")
    return x
