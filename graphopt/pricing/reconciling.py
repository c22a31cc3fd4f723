"""Seconds of single kernels that agree with those of the chains in which they were measured.

A kernel's own measurement d is exact in proportion, but cut off to whole microseconds; the time T of an inference is exact
to a per cent, but says nothing of a single kernel. What kernels of the same family and size took in other chains says
something too: the prediction p of the fit. The estimate of a kernel is the mean of d and p, each weighed by its inverse variance,

    s_d = (resolution, share of d),    s_p = share of p,    t = (d / s_d² + p / s_p²) / (1 / s_d² + 1 / s_p²)

and what a chain's sum lacks to T is shared out by the standard deviations of these means: errors within a chain have a common
cause, the pace of the machine or the profiler's own work. Prices are then fitted anew to what came out, and so on in turns
(expectation and maximization, Dempster et al. 1977).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.pricing.kernel_times import KernelTimes, Row, among, footprint

_ROUNDS = 4
_RESOLUTION, _CUT_OFF = 0.4e-6, 0.25e-6
"""Standard deviation of what is cut off to microseconds, and what a kernel took about that is cut off to nothing."""

_LEAST = 0.5
_MEASURED, _PREDICTED = 0.05, 0.3
"""Standard deviations of a long kernel's measurement and of a prediction, relative."""


def reconciled(rows: Sequence[Row], chains: Sequence[tuple[int, float]], inference: float) -> list[Row]:
    """Kernels with seconds that sum up to those of their chains.

    Args:
        rows: measured kernels, seconds by the profiler or 0.
        chains: how many of the rows are each chain's, in order, and seconds of one inference.
        inference: seconds that an inference takes beside its kernels.
    """
    rows = _in_context(rows, chains)
    if not chains:
        return rows
    measured = np.maximum([seconds for _, _, seconds in rows], _CUT_OFF)
    found = measured.copy()
    spans = _spans(chains, inference)
    for first, last, total in spans:
        found[first:last] *= total / found[first:last].sum()
    for _ in range(_ROUNDS):
        predicted = KernelTimes(_with(rows, found), quick=True).seconds_of_rows(rows)
        for first, last, total in spans:
            part = slice(first, last)
            found[part] = _shared(measured[part], predicted[part], total)
    return _with(rows, found)


def _with(rows: Sequence[Row], seconds: NDArray[np.float64]) -> list[Row]:
    return [(family, amounts, float(each)) for (family, amounts, _), each in zip(rows, seconds, strict=True)]


def _in_context(rows: Sequence[Row], chains: Sequence[tuple[int, float]]) -> list[Row]:
    """The rows, with what each had to fetch in its chain."""
    found: list[Row] = []
    for count in [count for count, _ in chains] or [1] * len(rows):
        chain = rows[len(found) : len(found) + count]
        around = footprint([amounts for _, amounts, _ in chain])
        found += [(family, among(amounts, around), seconds) for family, amounts, seconds in chain]
    return found


def _spans(chains: Sequence[tuple[int, float]], inference: float) -> list[tuple[int, int, float]]:
    spans, first = [], 0
    for count, seconds in chains:
        if count and seconds > inference:
            spans.append((first, first + count, seconds - inference))
        first += count
    return spans


def _shared(measured: NDArray[np.float64], predicted: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Seconds of a chain's kernels, (K,), that sum up to `total`."""
    predicted = np.where(predicted > 0, predicted, measured)
    scale = min(1.0, total / measured.sum())  # the profiler's own work is in it
    precision = 1 / (_RESOLUTION**2 + (_MEASURED * measured) ** 2)
    prior = 1 / (_PREDICTED * predicted) ** 2
    mean = (precision * measured * scale + prior * predicted) / (precision + prior)
    deviation = (precision + prior) ** -0.5
    lacking = total - mean.sum()
    shared: NDArray[np.float64] = np.maximum(mean + lacking * deviation / deviation.sum(), _LEAST * mean)
    return shared
