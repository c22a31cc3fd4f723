"""Choosing the range that a quantizer covers, from a histogram.

What lies outside the range is clipped, what lies inside is rounded: a smaller range clips more and rounds less.

    minmax        nothing is clipped
    percentile    a fixed share of the numbers is clipped
    entropy       the distribution, clipped and rounded, diverges least from what it was (Kullback-Leibler; Migacz,
                  "8-bit Inference with TensorRT", GTC 2017)
    mse           the expected squared error is least: clipping error at both ends plus rounding error between them

Within a bin numbers are taken as uniformly spread, so that both criteria are integrals in closed form and bins need not
be aligned with anything. Many numbers may be exactly 0, behind a Relu, or exactly at an end, behind a Clip. What the bins
of these numbers hold more than their larger neighbour is therefore taken as a spike: 0 costs nothing in any range, and an
end costs its distance from the grid. The divergence leaves spikes out, because they would outweigh everything else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from types import MappingProxyType

import numpy as np

from graphopt_passes.numerics.quantizer import Array, Grid

_ENTROPY_CANDIDATES = 192
_COARSE, _FINE = 32, 8
"""Candidates of the first search along a line, and of each refinement."""
_REFINEMENTS = 3
_ROUNDS = 2
_SMALLEST = 1 / 64
"""The smallest part of the full range that is tried."""


@dataclasses.dataclass(frozen=True)
class Distribution:
    """How the elements of a tensor are distributed.

    Attributes:
        counts: (bins,) how many fell into each of the equally wide bins from `low` to `high`.
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        minimum: smallest element.
        maximum: largest element.
        limits: between which numbers all elements are, also those not seen here.
    """

    counts: Array
    low: float
    high: float
    minimum: float
    maximum: float
    limits: tuple[float, float] = (-math.inf, math.inf)

    @cached_property
    def edges(self) -> Array:
        """(bins + 1,) edges of the bins."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @cached_property
    def smooth(self) -> Array:
        """(bins,) counts without the `spikes`."""
        counts = np.array(self.counts, np.float64)
        if self.low == self.high:
            return np.zeros_like(counts)
        for place in self._places():
            index = self._bin(place)
            beside = counts[max(index - 1, 0) : index + 2].copy()
            beside[index - max(index - 1, 0)] = 0
            counts[index] = min(counts[index], beside.max(initial=0)) if len(counts) > 1 else counts[index]
        return counts

    @cached_property
    def spikes(self) -> tuple[tuple[float, float], ...]:
        """Numbers that many elements are exactly equal to, and how many: 0 and both ends, where activations saturate."""
        if self.low == self.high:
            return ((self.low, float(np.sum(self.counts))),)
        excess = self.counts - self.smooth
        bins = {self._bin(place): place for place in self._places()}
        return tuple((place, float(excess[index])) for index, place in bins.items() if excess[index] > 0)

    def _places(self) -> tuple[float, ...]:
        return tuple(place for place in (self.minimum, self.maximum, 0.0) if self.low <= place <= self.high)

    def _bin(self, place: float) -> int:
        return min(max(int(np.searchsorted(self.edges, place, "right")) - 1, 0), len(self.counts) - 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest element, or 0 where that is outside."""
        return min(self.minimum, 0.0), max(self.maximum, 0.0)

    def within(self, low: float, high: float) -> Distribution:
        """The distribution of the elements moved to the nearest number between `low` and `high`, exactly but for bins."""
        if low <= self.minimum and self.maximum <= high:
            return dataclasses.replace(self, limits=(low, high))
        smallest, largest = (min(max(end, low), high) for end in (self.minimum, self.maximum))
        first, last = self._bin(smallest), self._bin(largest)
        counts = np.array(self.counts[first : last + 1], np.float64)
        counts[0] += np.sum(self.counts[:first])
        counts[-1] += np.sum(self.counts[last + 1 :])
        edges = float(self.edges[first]), float(self.edges[last + 1])
        return Distribution(counts, *edges, smallest, largest, (low, high))


Range = tuple[float, float]


def minmax(distribution: Distribution, grid: Grid) -> Range:
    """The range of all elements."""
    del grid
    return distribution.bounds


def percentile(distribution: Distribution, grid: Grid, percent: float) -> Range:
    """The range that holds `percent` of the elements; equally many are clipped at both ends.

    On a symmetric grid the share is that of the magnitudes.
    """
    low, high = distribution.bounds
    cumulative = np.concatenate([[0.0], np.cumsum(distribution.counts, dtype=np.float64)])
    total = cumulative[-1]
    if total == 0:
        return low, high
    outside = (1 - percent / 100) * total
    if grid.symmetric:
        within = np.unique(np.abs(distribution.edges))
        inside = np.interp(within, distribution.edges, cumulative) - np.interp(-within, distribution.edges, cumulative)
        largest = float(np.interp(total - outside, inside, within))
        return max(low, -largest), min(high, largest)
    rises = np.concatenate([[True], np.diff(cumulative) > 0])  # np.interp wants to know where a flat stretch ends
    bottom = float(np.interp(outside / 2, cumulative[rises], distribution.edges[rises]))
    top = float(np.interp(total - outside / 2, cumulative[rises], distribution.edges[rises]))
    return min(max(low, bottom), 0.0), max(min(high, top), 0.0)


def entropy(distribution: Distribution, grid: Grid) -> Range:
    """The range [-t, t], cut to where there are elements, in which the distribution diverges least from itself rounded.

    With p the distribution where what is clipped is added to the outermost bins, and q the one in which each of the
    grid's levels is spread evenly over its bins that are not empty,

        KL(p, q) = Σ p log(p / q) / N + log(M / N)        N: all elements;  M: those inside

    A level's part is -m log(m / n), m its elements and n its bins that are not empty, and all three sums are differences
    of cumulative sums: a candidate costs as many operations as there are levels, not bins.
    """
    low, high = distribution.bounds
    counts, edges, levels = distribution.smooth, distribution.edges, grid.steps + 1
    largest, total = max(high, -low), float(counts.sum())
    if total == 0 or largest == 0 or levels >= len(counts):
        return low, high
    thresholds = np.linspace(largest * levels / len(counts), largest, _ENTROPY_CANDIDATES)
    bottoms = -thresholds if grid.symmetric else np.maximum(low, -thresholds)
    tops = thresholds if grid.symmetric else np.minimum(high, thresholds)
    borders = bottoms[:, None] + (tops - bottoms)[:, None] * np.linspace(0, 1, levels + 1)

    def between(amounts: Array) -> Array:
        return np.diff(np.interp(borders, edges, np.concatenate([[0.0], np.cumsum(amounts)])), axis=1)

    present = counts > 0
    logs = np.log(counts, where=present, out=np.zeros_like(counts))
    masses, bins = between(counts), between(present.astype(np.float64))
    inside = masses.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(masses > 0, np.log(masses / bins), 0.0)  # log q of the bins of a level
        divergence = between(counts * logs).sum(axis=1) - (masses * spread).sum(axis=1)
        for border, level, side in ((bottoms, 0, -1), (tops, -1, 1)):
            clipped = _beyond(counts, edges, border, side)
            divergence += _of_clipped(clipped, counts, edges, border, side, np.where(masses, spread, -np.inf)[:, level])
        divergence = divergence / total + np.log(inside / total)
    best = int(np.argmin(np.where(np.isnan(divergence), np.inf, divergence)))
    return max(low, float(bottoms[best])), min(high, float(tops[best]))


def mse(distribution: Distribution, grid: Grid) -> Range:
    """The range of least expected squared error; both ends are moved unless the grid is symmetric."""
    low, high = distribution.bounds
    if low == high or not distribution.counts.any():
        return low, high

    def error(bottom: float | Array, top: float | Array) -> Array:
        return expected_error(distribution, low * bottom, high * top, grid)

    bottom = top = _line_search(lambda part: error(part, part), _SMALLEST)
    if not grid.symmetric and low and high:
        for _ in range(_ROUNDS):
            top = _line_search(partial(error, bottom), 0.0)
            bottom = _line_search(partial(error, top=top), 0.0)
    return _on_grid(low * bottom, high * top, grid)


METHODS: Mapping[str, Callable[[Distribution, Grid], Range]] = MappingProxyType(
    {
        "minmax": minmax,
        "percentile-99.9": partial(percentile, percent=99.9),
        "percentile-99.99": partial(percentile, percent=99.99),
        "percentile-99.999": partial(percentile, percent=99.999),
        "entropy": entropy,
        "mse": mse,
    }
)


def expected_error(distribution: Distribution, low: float | Array, high: float | Array, grid: Grid) -> Array:
    """The mean squared error of quantizing to each of the ranges `low` to `high`, (n,) or (); of the same shape.

    Rounding to multiples of s has the squared error e(x)² = (x - n s)², n = rint(x / s); its integral from 0 to x is
    n s³ / 12 + (x - n s)³ / 3. Beyond the grid's ends the error is the distance from them.
    """
    total = float(np.sum(distribution.counts))
    if total == 0:
        return np.zeros(np.broadcast(low, high).shape)
    step, bottom, top = _covered(low, high, grid)
    step = np.where(step > 0, step, 1)  # of an empty range: everything is clipped to 0, and nothing rounded
    at_spikes = sum(
        count * np.square(np.rint(np.clip(place, bottom, top) / step) * step - place)
        for place, count in distribution.spikes
    )
    step, bottom, top = step[..., None], bottom[..., None], top[..., None]
    inside = np.clip(distribution.edges, bottom, top)
    n = np.rint(inside / step)
    integral = n * (step**3 / 12) + (_cube(inside - n * step) + _cube(distribution.edges - inside)) / 3
    width = (distribution.high - distribution.low) / len(distribution.counts) or 1.0
    return np.asarray((np.diff(integral, axis=-1) @ distribution.smooth / width + at_spikes) / total)


def _cube(x: Array) -> Array:
    return np.asarray(x * x * x)  # many times faster than x**3


def _covered(low: float | Array, high: float | Array, grid: Grid) -> tuple[Array, Array, Array]:
    """The step of a quantizer for each range, and the numbers at both ends of its grid."""
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if grid.symmetric:
        step = np.maximum(top / (grid.high - grid.middle), -bottom / (grid.middle - grid.low))
        zero_point = np.full(step.shape, float(grid.middle))
    else:
        step = (top - bottom) / grid.steps
        zero_point = np.clip(np.rint(grid.low - bottom / np.where(step > 0, step, 1)), grid.low, grid.high)
    return step, (grid.low - zero_point) * step, (grid.high - zero_point) * step


def _on_grid(low: float, high: float, grid: Grid) -> Range:
    """The range itself where the grid is symmetric, else the one whose ends are multiples of the step."""
    if grid.symmetric:
        return float(low), float(high)
    _, bottom, top = _covered(low, high, grid)
    return float(bottom), float(top)


def _line_search(error: Callable[[Array], Array], first: float) -> float:
    """The number between `first` and 1 where `error` is least: a scan, and finer ones around the best."""
    points = np.linspace(first, 1, _COARSE)
    reach = float(points[1] - points[0])
    best = float(points[int(np.argmin(error(points)))])
    for _ in range(_REFINEMENTS):
        points = np.append(np.linspace(max(first, best - reach), min(1.0, best + reach), _FINE), best)
        best = float(points[int(np.argmin(error(points)))])
        reach *= 2 / (_FINE - 1)
    return best


def _beyond(counts: Array, edges: Array, border: Array, side: int) -> Array:
    """(n,) elements below each of the borders (`side` -1) or above (1)."""
    below = np.interp(border, edges, np.concatenate([[0.0], np.cumsum(counts)]))
    return np.asarray(below if side < 0 else counts.sum() - below)


def _of_clipped(clipped: Array, counts: Array, edges: Array, border: Array, side: int, log_q: Array) -> Array:
    """(n,) what the divergence gains when `clipped` elements are added to the bin at each border."""
    inner = np.searchsorted(edges, border, "right" if side < 0 else "left") - 1
    own = counts[np.clip(inner, 0, len(counts) - 1)]
    log_own = np.log(own, where=own > 0, out=np.zeros_like(own))
    together = own + clipped
    gain = together * np.log(np.maximum(together, 1e-300)) - own * log_own - clipped * log_q
    return np.where(clipped > 0, gain, 0.0)
