"""The one objective that all factorizations of a linear layer minimize, given by second moments alone.

A layer y = M x + b is replaced by a composed map M' that has the structure of two or three thinner layers. With the
centred covariance S of x and the best dense map M*, the expected squared error of the outputs is, up to a constant,

    E(M') = tr((M' - M*) S (M' - M*)ᵀ)

(Zhang et al. 2015, "Accelerating very deep convolutional networks", section 3.1), so that rows are looked at once and
every candidate is fitted from matrices (O, K) and (K, K) only. Everything is float64; S is made positive definite by the
smallest ridge that serves, so that singular and zero covariances give finite results.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_FLOOR = 1e-10
"""Ridge, relative to the mean diagonal, below which a covariance counts as singular."""


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic:
    """E(M') for one layer.

    Attributes:
        target: (O, K) the best dense map M*.
        gram: (K, K) symmetric, positive definite; None is the identity, plain squared distance of weights.
    """

    target: Array
    gram: Array | None

    @classmethod
    def of(cls, target: Array, gram: Array | None = None) -> Quadratic:
        """From float arrays of any precision, (O, K) and (K, K).

        A `gram` that is zero or not finite says nothing, and counts as the identity.
        """
        wanted = np.asarray(target, np.float64)
        width = wanted.shape[1]
        if gram is None or not np.isfinite(gram).all():
            return cls(wanted, None)
        given = np.asarray(gram, np.float64)
        scale = float(np.trace(given)) / max(1, width)
        if scale <= 0:
            return cls(wanted, None)
        return cls(wanted, (given + given.T) / 2 + _FLOOR * scale * np.eye(width))

    def weighted(self, rows: Array) -> Array:
        """`rows` S: (n, K)."""
        return rows if self.gram is None else rows @ self.gram

    def reordered(self, order: Array) -> Quadratic:
        """The same for inputs in another order, (K,) their numbers."""
        gram = None if self.gram is None else self.gram[np.ix_(order, order)]
        return Quadratic(self.target[:, order], gram)

    @functools.cached_property
    def cross(self) -> Array:
        """M* S: (O, K)."""
        return self.weighted(self.target)

    @functools.cached_property
    def energy(self) -> float:
        """tr(M* S M*ᵀ), what all errors are relative to."""
        return float(np.sum(self.cross * self.target))

    def error(self, composed: Array) -> float:
        """E(M') / E(0) of a map (O, K); 0 where both vanish."""
        difference = composed - self.target
        distance = float(np.sum(self.weighted(difference) * difference))
        return max(0.0, distance) / self.energy if self.energy > 0 else 0.0 if distance <= 0 else 1.0


def root(gram: Array) -> Array:
    """L with L Lᵀ = gram for a positive semi-definite matrix or a stack of them: (..., n, n).

    By eigenvectors where Cholesky's algorithm finds no root; eigenvalues below 1e-12 of the largest are raised to that,
    and a zero matrix has the root 1e-6 I, so that L is always invertible.
    """
    try:
        found = np.linalg.cholesky(gram)
        diagonal = np.abs(np.diagonal(found, axis1=-2, axis2=-1))
        if (diagonal.min(-1) > 1e-6 * diagonal.max(-1)).all():
            return found
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(gram)
    floor = np.maximum(values.max(-1, keepdims=True) * 1e-12, 1e-12 * (values.max(-1, keepdims=True) <= 0))
    roots: Array = vectors * np.sqrt(np.maximum(values, floor))[..., None, :]
    return roots


def solve_positive(matrix: Array, right: Array) -> Array:
    """X with matrix X = right for positive semi-definite matrices (..., n, n) and (..., n, m).

    A relative ridge of 1e-10 makes singular ones solvable; the part of `right` outside their range then has no effect.
    """
    size = matrix.shape[-1]
    scale = np.trace(matrix, axis1=-2, axis2=-1) / max(1, size)
    scale = np.where(scale > 0, scale, 1.0)
    ridged = matrix + (_FLOOR * scale)[..., None, None] * np.eye(size)
    try:
        solution: Array = np.linalg.solve(ridged, right)
    except np.linalg.LinAlgError:
        solution = np.linalg.pinv(ridged, hermitian=True) @ right
    return solution
