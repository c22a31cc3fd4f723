"""Prices of work, from measured kernels: what a kernel of any size takes on the machine that they were measured on.

Per family the seconds t of kernels with amounts of work a_1 ... a_n are taken as a sum of prices,

    t = p_0 + p_1 a_1 + ... + p_n a_n,    p >= 0,

fitted to the measured kernels by least squares of the relative error (nonnegative: Lawson and Hanson 1974). It extends
beyond what was measured as physics does. What it leaves over is systematic (a tail that the innermost loop takes slowly,
a tensor that just fits a cache), so the logarithm of measured over fitted time is interpolated over the logarithms of the
amounts by a Gaussian process with a squared exponential kernel (kriging; Rasmussen and Williams 2006, section 2.2), which
falls back to 0 where no measured kernel is near. Its length and height are those that predict each measured kernel best from
the others (their section 5.4.2), and a kernel that took far longer than these say was disturbed and does not count.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphopt.pricing.kernel_work import KernelWork

_FEWEST = 3
"""Kernels of a family without which it has no prices of its own."""

_LENGTHS, _HEIGHTS = (0.7, 1.4, 2.8, 5.6), (0.1, 0.3, 0.6)
"""Of the Gaussian process, in natural logarithms of amounts and of seconds."""

_NOISE, _RESOLUTION = 0.03, 0.1e-6
"""Standard deviations of a measurement: relative, and in seconds."""

_REWEIGHTED, _HUBER = 4, 0.3

_QUICK = (1.4, 0.3)

_ENOUGH = 100
"""Kernels by which length and height are chosen."""

_SAME_PLACE, _MOST = 0.15, 250
"""Distance in logarithms of amounts below which kernels are one, and most kernels that a family is interpolated by."""

_ANY = ("elements", "moved", "runs", "cold", "fetched")
"""What the kernels of a family that was never measured are priced by, together."""


_NEAR, _FAR = 1e5, 32e6
"""Bytes of caches, near a core and of the whole processor."""

Row = tuple[str, Mapping[str, float], float]
"""A measured kernel as profiles hold it: family, amounts of work, seconds."""

Array = NDArray[np.float64]


class _Prices:
    """The fit of one family, and what it leaves over."""

    def __init__(self, rows: list[Row], names: tuple[str, ...], *, quick: bool) -> None:
        self._names = names
        amounts = np.array([self._row(found) for _, found, _ in rows])
        seconds = np.array([seconds for _, _, seconds in rows])
        self._prices = _sum_of_prices(amounts, seconds)
        left = np.log(seconds / np.maximum(amounts @ self._prices, 1e-12))
        noise = _NOISE**2 + (_RESOLUTION / seconds) ** 2
        self._rest = _Interpolation(np.log1p(amounts[:, 1:]), left, noise, quick=quick)

    def seconds(self, kernels: Sequence[Mapping[str, float]]) -> Array:
        """Predicted seconds, (K,), of kernels of the family."""
        rows = np.array([self._row(amounts) for amounts in kernels])
        predicted: Array = (rows @ self._prices) * np.exp(self._rest.at(np.log1p(rows[:, 1:])))
        return predicted

    def _row(self, amounts: Mapping[str, float]) -> Array:
        return np.array([1.0, *[amounts.get(name, 0.0) for name in self._names]])


def _sum_of_prices(amounts: Array, seconds: Array) -> Array:
    """Prices, (1 + A,), of amounts, (K, 1 + A), that predict `seconds` with the least error of their logarithm.

    Squares of relative errors are minimized under weights that turn them into Huber's function of logarithms (1964), as
    iteratively reweighted least squares do.
    """
    from scipy.optimize import nnls

    certain = 1 / (1 + _RESOLUTION / seconds)
    weights = certain
    for _ in range(_REWEIGHTED):
        relative = amounts / seconds[:, None] * weights[:, None]
        scale = np.maximum(relative.max(axis=0), 1e-300)
        prices: Array = nnls(relative / scale, weights)[0] / scale
        ratio = np.clip(amounts @ prices / seconds, 1e-3, 1e3)
        error = np.abs(np.log(ratio)) + 1e-9
        weights = certain * error / (np.abs(ratio - 1) + 1e-9) * np.sqrt(np.minimum(1, _HUBER / error))
    return prices


class _Interpolation:
    """A Gaussian process through `values`, (K,), at `places`, (K, A), with variances `noise`, (K,).

    Its length and height are those that predict each value best from the others, or `quick` ones.
    """

    def __init__(self, places: Array, values: Array, noise: Array, *, quick: bool) -> None:
        places, values, noise = _thinned(places, values, noise)
        self._places = places
        squares = _squares(places, places)
        some = np.arange(len(values))[:: -(-len(values) // _ENOUGH)]

        def error(shape: tuple[float, float]) -> float:
            return float(np.abs(_alone(squares[np.ix_(some, some)], values[some], noise[some], *shape)).mean())

        shapes = itertools.product(_LENGTHS, _HEIGHTS)
        self._length, self._height = _QUICK if quick else min(shapes, key=error)
        covariance = _covariance(squares, noise, self._length, self._height)
        self._weights = _solved(covariance, values)

    def at(self, places: Array) -> Array:
        """The values, (K,), at `places`, (K, A)."""
        squares = _squares(places, self._places)
        values: Array = self._height**2 * np.exp(-squares / (2 * self._length**2)) @ self._weights
        return values


def _thinned(places: Array, values: Array, noise: Array) -> tuple[Array, Array, Array]:
    """The same with values at nearly the same place as one, their mean, and of the rest as many as can be dealt with."""
    _, group = np.unique(np.round(places / _SAME_PLACE), axis=0, return_inverse=True)
    counts = np.bincount(group.reshape(-1))
    columns = [np.bincount(group.reshape(-1), column) / counts for column in (*places.T, values, noise)]
    kept = np.arange(len(counts))[:: -(-len(counts) // _MOST)]
    return np.stack(columns[:-2], axis=1)[kept], columns[-2][kept], (columns[-1] / counts**0.5)[kept]


def _covariance(squares: Array, noise: Array, length: float, height: float) -> Array:
    covariance: Array = height**2 * np.exp(-squares / (2 * length**2)) + np.diag(noise)
    return covariance


def _solved(covariance: Array, values: Array) -> Array:
    return np.asarray(np.linalg.solve(covariance, values), np.float64)


def _alone(squares: Array, values: Array, noise: Array, length: float, height: float) -> Array:
    """How far each value lies above what the others predict, (K,)."""
    inverse = np.linalg.inv(_covariance(squares, noise, length, height))
    alone: Array = inverse @ values / np.diag(inverse)
    return alone


def _squares(first: Array, second: Array) -> Array:
    """Squared distances, (M, N)."""
    norms = [(places**2).sum(axis=1) for places in (first, second)]
    squares: Array = np.maximum(norms[0][:, None] + norms[1][None] - 2 * first @ second.T, 0)
    return squares


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Kernels with the same amounts as one, with the median of their seconds."""
    found: dict[tuple[tuple[str, float], ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[1].items()), []).append(row)
    return [(*same[0][:2], statistics.median(seconds for _, _, seconds in same)) for same in found.values()]


class Footprint(NamedTuple):
    """Bytes that the kernels of one inference touch, about: all of them, and each on average.

    What a kernel finds in the caches is what the others leave there.
    """

    total: float
    each: float


def footprint(amounts: Sequence[Mapping[str, float]]) -> Footprint:
    """The footprint of kernels with these amounts of work."""
    total = 4 * sum(found.get("elements", 0.0) + found.get("weights", 0.0) for found in amounts)
    return Footprint(total, total / max(len(amounts), 1))


def among(amounts: Mapping[str, float], around: Footprint) -> dict[str, float]:
    """The amounts of a kernel in a network with the footprint `around`: what it has to fetch is work too."""
    touched = amounts.get("elements", 0.0) + amounts.get("weights", 0.0)
    near, far = around.each / (around.each + _NEAR), around.total / (around.total + _FAR)
    return {
        **amounts,
        "cold": near,
        "fetched": touched * near,
        "streamed": amounts.get("weights", 0.0) * far,
    }


class KernelTimes:
    """Seconds of kernels, from those measured on one machine; amounts are those in a network (see `among`)."""

    def __init__(self, rows: Iterable[Row], *, quick: bool = False) -> None:
        self._rows, self._quick = tuple(rows), quick
        self._known: dict[tuple[object, ...], float | None] = {}

    def fitted(self) -> KernelTimes:
        """The same, with all prices fitted now rather than when they are asked for."""
        _ = self._families, self._others
        return self

    def seconds(self, work: KernelWork, around: Footprint | None = None) -> float | None:
        """Predicted seconds of a kernel in a network, or None where nothing like it was measured.

        Args:
            work: the kernel; as rows have it, if there is no `around`.
            around: footprint of the network.
        """
        key = (work.family, around, *work.amounts.items())
        if key not in self._known:
            amounts = work.amounts if around is None else among(work.amounts, around)
            self._known[key] = self._predicted(work.family, amounts)
        return self._known[key]

    def _predicted(self, family: str, amounts: Mapping[str, float]) -> float | None:
        prices = self._families.get(family)
        if prices is None and "elements" in amounts:
            prices = self._others
        return None if prices is None else float(prices.seconds([amounts])[0])

    def seconds_of_rows(self, rows: Sequence[Row]) -> Array:
        """Predicted seconds, (K,), of the kernels that `rows` hold, all at once; 0 where nothing like one was measured."""
        found = np.zeros(len(rows))
        places: dict[str, list[int]] = {}
        for place, (family, _, _) in enumerate(rows):
            places.setdefault(family, []).append(place)
        for family, own in places.items():
            prices = self._families.get(family)
            if prices is not None:
                found[own] = prices.seconds([rows[place][1] for place in own])
            else:
                found[own] = [self._predicted(family, rows[place][1]) or 0.0 for place in own]
        return found

    @cached_property
    def _families(self) -> dict[str, _Prices]:
        grouped: dict[str, list[Row]] = {}
        for row in self._rows:
            if row[2] > 0:
                grouped.setdefault(row[0], []).append(row)
        grouped = {family: _merged(rows) for family, rows in grouped.items()}
        return {
            family: _Prices(rows, tuple(dict.fromkeys(key for row in rows for key in row[1])), quick=self._quick)
            for family, rows in grouped.items()
            if len(rows) >= _FEWEST or not rows[0][1]
        }

    @cached_property
    def _others(self) -> _Prices | None:
        passing = [row for row in self._rows if "moved" in row[1] and row[2] > 0]
        passing = passing[:: -(-len(passing) // _MOST) or 1]
        return _Prices(passing, _ANY, quick=self._quick) if len(passing) >= _FEWEST else None
