"""Paired bootstrap: how certain a change of a metric is, when both models are judged on the same samples.

Samples are drawn with replacement, the same ones for both models, and the difference of the metric is taken for each
draw; the spread of these differences is the standard error, their quantiles the interval (Efron and Tibshirani 1993,
chapters 6 and 13). Errors that both models make on the same samples cancel, which intervals of the two metrics by
themselves would not see.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.metrics import Columns

CONFIDENCE = 0.90
"""Of every interval of a metric: 5 % of the draws lie below it and 5 % above."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far the difference of a metric may be off.

    Attributes:
        standard_error: of the difference.
        low: lower bound of the difference.
        high: upper bound of the difference.
    """

    standard_error: float
    low: float
    high: float


UNKNOWN = Spread(float("nan"), float("nan"), float("nan"))


def paired(
    before: Columns,
    after: Columns,
    value: Callable[[Columns], float],
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = CONFIDENCE,
) -> Spread:
    """The spread of `value(after) - value(before)`.

    Args:
        before: rows of the original, the same samples in the same order as those of `after`.
        after: rows of the result.
        value: the metric over rows; draws that it is not defined for are left out.
        seed: of the draws.
        resamples: how many draws.
        confidence: of the interval.

    Returns:
        NaNs where there are fewer than two samples, or most draws define no value.
    """
    samples = len(next(iter(before.values())))
    if samples < 2:
        return UNKNOWN
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        drawn = rng.integers(samples, size=samples)
        with contextlib.suppress(DataError):  # a user's function on a draw that lacks what it needs
            differences.append(value(_rows(after, drawn)) - value(_rows(before, drawn)))
    known = np.asarray(differences)[np.isfinite(differences)]
    if 2 * len(known) < resamples:
        return UNKNOWN
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Spread(float(known.std(ddof=1)), float(low), float(high))


def _rows(columns: Columns, drawn: np.ndarray) -> Columns:
    return {name: column[drawn] for name, column in columns.items()}
