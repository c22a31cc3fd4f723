"""Linear layers refitted by least squares from second moments alone, with a ridge towards the weights they had.

For rows x: (K,) and targets t: (M,) the layer y = W x + b that minimizes

    E |t - W x - b|²  +  λ |W - W0|²,      λ = ridge · mean(diag S)

is, with S = cov(x), C = cov(t, x) and the intercept eliminated by centring,

    W = W0 + (C - W0 S)(S + λI)⁻¹,         b = E[t] - W E[x]

A ridge towards W0 instead of towards zero costs nothing where the data say much, and where they say nothing (directions
in which x never varies) the layer stays what it was. Asymmetric reconstruction (He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks", section 3.2) is the same with x from the compressed and t from the original network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_passes.numerics.quantizer import Array

RIDGE = 1e-3
"""λ as a fraction of the mean variance of an input: what worked on convolutions with 10 rows per unknown and more."""


class Moments(NamedTuple):
    """First and second centred moments of rows x: (K,) and t: (M,), all float64.

    Attributes:
        covariance: (K, K) cov(x, x).
        cross: (M, K) cov(t, x).
        input_mean: (K,) E[x].
        target_mean: (M,) E[t].
        variance: (M,) var(t).
        rows: over how many rows.
    """

    covariance: Array
    cross: Array
    input_mean: Array
    target_mean: Array
    variance: Array
    rows: int

    def selected(self, columns: Array) -> Moments:
        """The same for the inputs with numbers `columns`, (n,), only."""
        covariance = self.covariance[np.ix_(columns, columns)]
        return self._replace(covariance=covariance, cross=self.cross[:, columns], input_mean=self.input_mean[columns])

    def error(self, weight: Array) -> Array:
        """(M,) E (t - W x - b)² at the best b for `weight`: (M, K)."""
        fitted = weight @ self.covariance
        error: Array = (
            self.variance - 2 * np.einsum("mk,mk->m", weight, self.cross) + np.einsum("mk,mk->m", weight, fitted)
        )
        return np.maximum(error, 0)


class Layer(NamedTuple):
    """y = weight x + bias; (M, K) and (M,) float64."""

    weight: Array
    bias: Array


def moments(x: Array, t: Array) -> Moments:
    """Of x: (K, R) and t: (M, R), column by column; products in the precision of x and t, means and the rest in float64.

    Raises:
        ValueError: no rows, or not as many in x as in t.
    """
    rows = x.shape[1]
    if not rows or t.shape[1] != rows:
        raise ValueError(f"{rows} rows of inputs and {t.shape[1]} rows of targets")
    input_mean, target_mean = x.mean(axis=1, dtype=np.float64), t.mean(axis=1, dtype=np.float64)
    centred = x - input_mean.astype(x.dtype)[:, None]
    targets = t - target_mean.astype(t.dtype)[:, None]
    covariance = np.asarray(centred @ centred.T, np.float64) / rows
    cross = np.asarray(targets @ centred.T, np.float64) / rows
    variance = np.einsum("mr,mr->m", targets, targets, dtype=np.float64) / rows
    return Moments(covariance, cross, input_mean, target_mean, variance, rows)


def cross_moments(x: Array, t: Array, input_mean: Array) -> tuple[Array, Array]:
    """cov(t, x): (M, K) and E[t]: (M,) of new targets t: (M, R) on rows x: (K, R) whose mean is known."""
    rows = x.shape[1]
    target_mean = t.mean(axis=1, dtype=np.float64)
    targets = t - target_mean.astype(t.dtype)[:, None]
    # The targets are centred, so that the mean of x falls out of the product but for rounding.
    cross = np.asarray(targets @ x.T, np.float64) - np.outer(targets.sum(axis=1, dtype=np.float64), input_mean)
    return cross / rows, target_mean


class Ridge:
    """S + λI, factored once for any number of targets and priors.

    Args:
        covariance: (K, K) cov(x, x).
        input_mean: (K,) E[x].
        ridge: λ over the mean of S's diagonal.
    """

    def __init__(self, covariance: Array, input_mean: Array, ridge: float = RIDGE) -> None:
        from scipy.linalg import cho_factor

        self.covariance = covariance
        self.input_mean = input_mean
        self.penalty = penalty_of(covariance, ridge)
        self.gram = covariance + self.penalty * np.eye(len(covariance))
        self._factor = cho_factor(self.gram, lower=True)

    def solve(self, cross: Array, target_mean: Array, prior: Array) -> Layer:
        """The best layer for cov(t, x) `cross`: (M, K), E[t] `target_mean`: (M,) and W0 `prior`: (M, K)."""
        from scipy.linalg import cho_solve

        missing = cross - prior @ self.covariance
        weight = prior + cho_solve(self._factor, missing.T).T
        return Layer(weight, target_mean - weight @ self.input_mean)


def penalty_of(covariance: Array, ridge: float = RIDGE) -> float:
    """λ for S = `covariance`, (K, K); 1 where no input varies at all, so that S + λI can be factored and W stays W0."""
    mean = float(np.trace(covariance)) / max(1, len(covariance))
    return ridge * mean if mean > 0 else 1.0


def refit(found: Moments, prior: Array, ridge: float = RIDGE) -> Layer:
    """The layer of least squared error from moments, towards W0 `prior`: (M, K)."""
    return Ridge(found.covariance, found.input_mean, ridge).solve(found.cross, found.target_mean, prior)
