"""Gram and cross-moment matrices: E[x xᵀ] and E[y xᵀ] over rows.

Products run in the precision of the data (float32, as a rule) over pieces of bounded size; the pieces are added up in
float64, so that the error does not grow with the number of samples: about 1e-6 of the largest entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.accumulators import View
from graphopt.runtime.requests import CrossGramResult, GramResult
from graphopt.runtime.rows import Choice, Positions, RowSource

_PIECE = 1 << 21  # elements of a matrix of rows; 8 MiB in float32


class GramOf:
    """`Gram`, and `PatchGram`, whose result is `grouped`."""

    def __init__(self, source: RowSource, choice: Choice, *, grouped: bool) -> None:
        self._source = source
        self._choice = choice
        self._grouped = grouped
        self._sums = _Sums()

    def add(self, *views: View) -> None:
        """See `Accumulator`."""
        for (rows,) in _pieces((self._source,), views, self._choice):
            self._sums.add(rows, rows, views)

    def result(self) -> GramResult:
        """Matrices without channels where there was no row."""
        count = self._sums.count
        if not count:
            rank = 3 if self._grouped else 2
            return GramResult(np.zeros((0,) * rank), np.zeros((0,) * (rank - 1)), 0)
        second, mean = self._sums.products / count, self._sums.left / count
        return GramResult(second, mean, count) if self._grouped else GramResult(second[0], mean[0], count)


class CrossGramOf:
    """`CrossGram`."""

    def __init__(self, left: RowSource, right: RowSource, choice: Choice) -> None:
        self._sources = (left, right)
        self._choice = choice
        self._sums = _Sums()

    def add(self, *views: View) -> None:
        """See `Accumulator`; two views, of the first model's value and of the second's."""
        for left, right in _pieces(self._sources, views, self._choice):
            self._sums.add(left, right, views)

    def result(self) -> CrossGramResult:
        """Matrices without channels where there was no row."""
        sums = self._sums
        if not sums.count:
            return CrossGramResult(np.zeros((0, 0, 0)), np.zeros((0, 0)), np.zeros((0, 0)), 0)
        return CrossGramResult(sums.products / sums.count, sums.left / sums.count, sums.right / sums.count, sums.count)


class _Sums:
    """Σ y xᵀ, Σ y and Σ x over rows, per group, float64."""

    def __init__(self) -> None:
        self.products: Any = 0.0
        self.left: Any = 0.0
        self.right: Any = 0.0
        self.count = 0

    def add(self, left: np.ndarray, right: np.ndarray, views: tuple[View, ...]) -> None:
        """Add matrices (G, A, rows) and (G, B, rows), which may be the same one."""
        left_sum = left.sum(axis=2).astype(np.float64)
        right_sum = left_sum if right is left else right.sum(axis=2).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            products = _product(left, right).astype(np.float64)
        if not np.isfinite(products).all():
            raise DataError(f"value '{views[0].name}' is too large to be squared in {left.dtype}")
        if self.count and products.shape != self.products.shape:
            raise DataError(f"value '{views[0].name}' has other channels on some samples than on others")
        self.products, self.left, self.right = self.products + products, self.left + left_sum, self.right + right_sum
        self.count += left.shape[2]


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(G, A, rows) and (G, B, rows) -> (G, A, B)."""
    if left.shape[0] == 1:  # numpy takes half the time for a matrix and its own transpose, but not in a stack
        return np.asarray(left[0] @ right[0].T)[None]
    return np.asarray(left @ right.transpose(0, 2, 1))


def _pieces(
    sources: tuple[RowSource, ...], views: tuple[View, ...], choice: Choice
) -> Iterator[tuple[np.ndarray, ...]]:
    """The same rows of each view, as many at a time as fit. Raises DataError where rows differ or are not finite."""
    for view in views:
        view.finite_extremes()
    shapes = [view.array.shape for view in views]
    found = [(source.samples(shape), source.positions(shape)) for source, shape in zip(sources, shapes, strict=True)]
    if len(set(found)) > 1:
        described = " and ".join(f"'{view.name}' has {n} x {p}" for view, (n, p) in zip(views, found, strict=True))
        raise DataError(f"cross moments need as many rows on both sides: {described}")
    samples, positions = found[0]
    width = max(source.width(shape) for source, shape in zip(sources, shapes, strict=True))
    for part, chosen in _portions(samples, positions, max(1, _PIECE // max(1, width)), views[0].first, choice):
        yield tuple(source.take(view.array[part], chosen) for source, view in zip(sources, views, strict=True))


def _portions(
    samples: int, positions: int, most: int, first: int, choice: Choice
) -> Iterator[tuple[slice, Positions | None]]:
    """Rows to take together, at most `most`: whole samples, or chosen positions of all samples."""
    if not samples or not positions:
        return
    chosen = [choice.of_sample(first + sample, positions) for sample in range(samples)]
    if positions <= most and all(rows is None for rows in chosen):
        step = samples if samples == 1 else most // positions  # a lone sample may be an array without sample axis
        for start in range(0, samples, step):
            yield slice(None) if samples == 1 else slice(start, start + step), None
        return
    picked = [np.arange(positions) if rows is None else rows for rows in chosen]
    numbers = np.repeat(np.arange(samples), [len(rows) for rows in picked])
    rows = np.concatenate(picked)
    for start in range(0, len(rows), most):
        yield slice(None), (numbers[start : start + most], rows[start : start + most])
