"""Prices of work, from measured kernels: what a kernel of any size takes on the machine that they were measured on.

Per family the seconds t of kernels with amounts of work a_1 ... a_n are taken as a sum of prices,

    t = p_0 + p_1 a_1 + ... + p_n a_n,    p >= 0,

fitted to the measured kernels by least squares of the relative error (nonnegative: Lawson and Hanson 1974). It extends
beyond what was measured as physics does. What it leaves over is systematic (a tail that the innermost loop takes slowly,
a tensor that just fits a cache), so the ratio of measured to fitted time is smoothed over the logarithms of the amounts
with a Gaussian kernel (Nadaraya 1964, Watson 1964), and shrunk to 1 where no measured kernel is near.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphopt.pricing.kernel_work import KernelWork

_FEWEST = 4
"""Kernels of a family without which it has no prices of its own."""

_BANDWIDTH = 0.35
"""Of the smoothing, in natural logarithms of amounts: kernels a third larger still count for most."""

_DISTURBED = np.log(2.5)
"""A kernel that took so much longer than the fit says, in logarithms, was disturbed: nothing makes one faster."""

_ROUNDS = 3

_DOUBT = 0.5
"""Weight of the fit against that of a measured kernel of the same size."""

_ANY = ("elements", "moved", "runs")
"""What the kernels of a family that was never measured are priced by, together."""


Row = tuple[str, Mapping[str, float], float]
"""A measured kernel as profiles hold it: family, amounts of work, seconds."""


class _Prices:
    """The fit of one family, and what it leaves over."""

    def __init__(self, rows: list[Row], names: tuple[str, ...]) -> None:
        from scipy.optimize import nnls

        self._names = names
        amounts = np.array([self._row(found) for _, found, _ in rows])
        seconds = np.array([seconds for _, _, seconds in rows])
        for _ in range(_ROUNDS):
            relative = amounts / seconds[:, None]
            scale = np.maximum(relative.max(axis=0), 1e-300)
            self._prices: NDArray[np.float64] = nnls(relative / scale, np.ones(len(seconds)))[0] / scale
            left = np.log(seconds / np.maximum(amounts @ self._prices, 1e-12))
            kept = left < _DISTURBED
            amounts, seconds, left = amounts[kept], seconds[kept], left[kept]
            if kept.all():
                break
        self._places = np.log1p(amounts[:, 1:])
        self._left = left

    def seconds(self, amounts: Mapping[str, float]) -> float:
        """Predicted seconds of a kernel of the family."""
        row = self._row(amounts)
        fitted = float(row @ self._prices)
        distance = ((self._places - np.log1p(row[1:])) ** 2).sum(axis=1)
        weights = np.exp(-distance / (2 * _BANDWIDTH**2))
        return fitted * float(np.exp(weights @ self._left / (weights.sum() + _DOUBT)))

    def _row(self, amounts: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array([1.0, *(amounts.get(name, 0.0) for name in self._names)])


class KernelTimes:
    """Seconds of kernels, from those measured on one machine."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)
        self._known: dict[tuple[object, ...], float | None] = {}

    def seconds(self, work: KernelWork) -> float | None:
        """Predicted seconds of a kernel, or None where nothing like it was measured."""
        key = (work.family, *work.amounts.items())
        if key not in self._known:
            self._known[key] = self._predicted(work)
        return self._known[key]

    def _predicted(self, work: KernelWork) -> float | None:
        prices = self._families.get(work.family)
        if prices is None and "elements" in work.amounts:
            prices = self._others
        return None if prices is None else prices.seconds(work.amounts)

    @cached_property
    def _families(self) -> dict[str, _Prices]:
        grouped: dict[str, list[Row]] = {}
        for row in self._rows:
            grouped.setdefault(row[0], []).append(row)
        return {
            family: _Prices(rows, tuple(dict.fromkeys(key for row in rows for key in row[1])))
            for family, rows in grouped.items()
            if len(rows) >= _FEWEST
        }

    @cached_property
    def _others(self) -> _Prices | None:
        passing = [row for row in self._rows if "moved" in row[1]]
        return _Prices(passing, _ANY) if len(passing) >= _FEWEST else None
