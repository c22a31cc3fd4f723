"""Which weights of a layer are zero, and what the others become: magnitude, optimal brain surgery, and alternating directions.

With S the damped second moments of the inputs and W* the weights of least error, sparse weights W cost

    tr((W - W*) S (W - W*)ᵀ)                                                                                          (1)

* `magnitude` keeps the largest |w|; with S, the largest w² S_jj, which is what a zero costs if nothing makes up for it.
* `surgery` is SparseGPT (Frantar & Alistarh 2023): input after input, in blocks of columns, weights of small
  w_j² / [(S⁻¹)_jj] become zero and the inputs to come make up for it. With S = L Lᵀ and the inputs in reverse order that
  needs no inverse: see `feedback_rounding`.
* `alternate` starts from a support and moves it by alternating directions (ADMM; Meng et al. 2024, "ALPS"): weights that
  follow (1) and sparse ones are pulled together harder and harder, so that all inputs count at once; all of it is products
  of matrices with one eigendecomposition.

Whichever chose the support, `fit_support` then solves (1) on it: conjugate gradients for all rows at once, each row with
its own zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt_passes.numerics.quantizer import Array

MOST_ALTERNATED = 1024
"""Largest K for which `chosen` alternates: an eigendecomposition and 60 products of (M, K) by (K, K)."""

_BLOCK = 64
_STEPS = 60
_FIRST_PENALTY = 0.02
_GROWTH = 1.3
"""Factor of the penalty every three steps; slower growth gains nothing."""
_MOST_STEPS = 300
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Sparsity:
    """How many weights are zero.

    Attributes:
        share: of the weights of a group, where `pattern` is None.
        pattern: (n, m): at most n of m successive inputs are not zero. Inputs that fill no whole m are a stretch of
            their own, of which as many may stay.
    """

    share: float = 0.5
    pattern: tuple[int, int] | None = None

    def keep(self, scores: Array) -> Array:
        """(M, K) bool: the weights of the highest `scores`, (M, K); ties go to the first."""
        if self.pattern is None:
            kept = np.zeros(scores.size, bool)
            count = scores.size - round(self.share * scores.size)
            kept[np.argsort(-scores, axis=None, kind="stable")[:count]] = True
            return kept.reshape(scores.shape)
        n, m = self.pattern
        padded = np.full((len(scores), -(-scores.shape[1] // m) * m), -np.inf)
        padded[:, : scores.shape[1]] = scores
        blocks = padded.reshape(len(scores), -1, m)
        kept = np.zeros(blocks.shape, bool)
        np.put_along_axis(kept, np.argsort(-blocks, axis=2, kind="stable")[..., :n], values=True, axis=2)
        return kept.reshape(padded.shape)[:, : scores.shape[1]]


def magnitude(weight: Array, second: Array | None, sparsity: Sparsity) -> Array:
    """(M, K) bool: which weights stay, by |w|, or by w² S_jj for `second` (K, K)."""
    scores = np.square(weight)
    return sparsity.keep(scores if second is None else scores * np.diag(second))


def surgery(weight: Array, second: Array, sparsity: Sparsity) -> tuple[Array, Array]:
    """SparseGPT: (M, K) bool which weights stay, and (M, K) weights that make up for the others.

    Args:
        weight: (M, K) W*.
        second: (K, K) S, positive definite.
        sparsity: holds within each block of columns.
    """
    rows, width = weight.shape
    m = 1 if sparsity.pattern is None else sparsity.pattern[1]
    block = max(m, _BLOCK // m * m)
    inverse = np.linalg.inv(second)
    upper = np.linalg.cholesky(
        (inverse + inverse.T) / 2
    ).T  # rows of inverses of what is left, one input after the other
    weight, kept = weight.copy(), np.zeros(weight.shape, bool)
    for start in range(0, width, block):
        stop = min(start + block, width)
        diagonal = np.diag(upper)[start:stop]
        kept[:, start:stop] = sparsity.keep(np.square(weight[:, start:stop] / diagonal))
        errors = np.zeros((rows, stop - start))
        for j in range(start, stop):
            gone = np.where(kept[:, j], 0.0, weight[:, j])
            errors[:, j - start] = gone / upper[j, j]
            weight[:, j:stop] -= np.outer(errors[:, j - start], upper[j, j:stop])
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return kept, np.where(kept, weight, 0.0)


def alternate(weight: Array, second: Array, sparsity: Sparsity, start: Array, steps: int = _STEPS) -> Array:
    """(M, K) bool: the support that alternating directions find from `start`, as a rule one of lower cost (1).

    Args:
        weight: (M, K) W*.
        second: (K, K) S, positive definite.
        sparsity: of the support.
        start: (M, K) weights, zero where the support has none.
        steps: of the iteration.
    """
    scale = np.sqrt(np.diag(second))  # inputs of unit size: one penalty fits all
    values, vectors = np.linalg.eigh(second / np.outer(scale, scale))
    wanted, sparse = weight * scale, start * scale
    right = (wanted @ vectors) * values
    dual = np.zeros_like(wanted)
    for step in range(steps):
        penalty = _FIRST_PENALTY * _GROWTH ** (step // 3)
        free = ((right + (penalty * sparse - dual) @ vectors) / (values + penalty)) @ vectors.T
        pulled = free + dual / penalty
        sparse = np.where(sparsity.keep(np.square(pulled)), pulled, 0.0)
        dual += penalty * (free - sparse)
    return np.asarray(sparse != 0)


def chosen(weight: Array, second: Array, sparsity: Sparsity) -> tuple[Array, Array]:
    """The best support that `surgery` and `alternate` find: (M, K) bool, and (M, K) weights fitted on it."""
    kept, start = surgery(weight, second, sparsity)
    fitted = fit_support(weight, second, kept, start)
    if weight.shape[1] > MOST_ALTERNATED:
        return kept, fitted
    moved = alternate(weight, second, sparsity, fitted)
    other = fit_support(weight, second, moved)
    better = cost(other, weight, second).sum() < cost(fitted, weight, second).sum()
    return (moved, other) if better else (kept, fitted)


def fit_support(
    weight: Array, second: Array | None, kept: Array, start: Array | None = None, steps: int = _MOST_STEPS
) -> Array:
    """(M, K) weights of least cost (1) that are zero where `kept`, (M, K) bool, says so.

    Args:
        weight: (M, K) W*.
        second: (K, K) S, positive definite; None is the identity.
        kept: which may differ from zero.
        start: (M, K) where to start; by default W* without its zeros.
        steps: of conjugate gradients, at most.
    """
    found = np.where(kept, weight if start is None else start, 0.0)
    if second is None:
        return np.where(kept, weight, 0.0)
    scale = 1 / np.diag(second)
    residual = np.where(kept, (weight - found) @ second, 0.0)
    direction = residual * scale
    size = np.einsum("mk,mk->m", residual, direction)
    limit = _TOLERANCE * np.maximum(np.einsum("mk,k->m", np.square(weight), 1 / scale), np.finfo(float).tiny)
    for _ in range(steps):
        if (size <= limit).all():
            break
        moved = np.where(kept, direction @ second, 0.0)
        curvature = np.einsum("mk,mk->m", direction, moved)
        step = np.divide(size, curvature, out=np.zeros_like(size), where=curvature > 0)
        found += step[:, None] * direction
        residual -= step[:, None] * moved
        new = np.einsum("mk,mk,k->m", residual, residual, scale)
        turn = np.divide(new, size, out=np.zeros_like(size), where=size > 0)
        direction = residual * scale + turn[:, None] * direction
        size = new
    return found


def cost(weight: Array, wanted: Array, second: Array | None) -> Array:
    """(M,) of (1)."""
    lost = weight - wanted
    return np.asarray(np.einsum("mk,mk->m", lost if second is None else lost @ second, lost))
