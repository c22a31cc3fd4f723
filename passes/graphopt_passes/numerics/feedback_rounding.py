"""Rounding weights so that the errors make up for each other in the output (GPTQ).

For a layer y = W x with the second moments H = E[x xᵀ] of its inputs, the mean squared error of the output of integers Q
times scales s is, row by row,

    e H eᵀ,    e = w - s · q                                                                                          (1)

and rounding to nearest ignores all of H but its diagonal. Frantar et al. 2023 (GPTQ) round one input after the other
and let those to come make up for the error so far. With H = L Lᵀ (L lower triangular) (1) is ‖e L‖², whose component j

    L_jj (e_j + Σ_{i > j} e_i L_ij / L_jj)

is known once all i > j are: going from the last input to the first, w_j + Σ_{i>j} e_i L_ij / L_jj is what to round to the
nearest integer. That is Babai's nearest plane algorithm, and the same as GPTQ in its order (Chen et al. 2025, "The Geometry
of LLM Quantization"), without the inverse of H that GPTQ takes. Inputs of large second moment come first, while all others
can still make up for them.

Afterwards each weight in turn moves to the best integer given all others, which lowers (1) further (coordinate descent;
Behdin et al. 2023, QuantEase). Finally each row is compared with its nearest integers under (1), and the better one kept.

Everything works on blocks of inputs, so that nearly all the work is products of matrices, and on groups at once: each
group of channels of a grouped or depthwise convolution has an H of its own. Factors and comparisons are float64; what
only decides between two integers is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from graphopt_passes.numerics.quantizer import Array, Grid

Nearest: TypeAlias = Callable[[Array], Array]
"""Rounds elementwise."""

DAMPING = 1e-2
"""Share of the mean second moment that is added to the diagonal of H, so that weak inputs make up for less."""
SWEEPS = 1
"""Rounds of coordinate descent: the first wins 1 to 5 %, the next ones hardly anything."""

_BLOCK = 64
_BATCHED = 128
"""Largest K for which all groups are factorized in one call; larger ones pay for a copy and a slower routine there."""
_MOST_DAMPING = 1e3


def feedback_round(
    weight: Array,
    second: Array,
    scale: Array,
    grid: Grid,
    *,
    damping: float = DAMPING,
    sweeps: int = SWEEPS,
) -> Array:
    """Integers whose output error is small, for each row at most that of the nearest integers.

    Args:
        weight: (M, K).
        second: (K, K) second moments of the inputs, or (G, K, K) for G groups of M / G successive rows each. What a
            bias correction will take away, the mean error of the output, does not count if moments are centred.
        scale: (M,) scales.
        grid: the integers, symmetric.
        damping: see `DAMPING`.
        sweeps: rounds of coordinate descent behind; 0 is GPTQ alone.

    Returns:
        (M, K) integers, of the storage type of `grid`.

    Raises:
        ValueError: something is not finite.
    """
    steps = np.asarray(scale, np.float64)[:, None]
    exact = np.asarray(weight, np.float64) / steps  # in units of the scale, which leaves (1) as it is but for a factor
    low, high = float(grid.low - grid.middle), float(grid.high - grid.middle)
    rounded = feedback_choose(exact, second, lambda x: np.clip(np.rint(x), low, high), damping=damping, sweeps=sweeps)
    return np.asarray((rounded + grid.middle).astype(grid.storage))


def feedback_choose(
    weight: Array, second: Array, nearest: Nearest, *, damping: float = DAMPING, sweeps: int = SWEEPS
) -> Array:
    """`feedback_round` to any set of allowed numbers, each row's own.

    Args:
        weight: (M, K).
        second: (K, K) or (G, K, K), as in `feedback_round`.
        nearest: the allowed numbers next to the wanted ones, both (G, M / G): of one input, for all rows.
        damping: see `DAMPING`.
        sweeps: rounds of coordinate descent behind.

    Returns:
        (M, K) float64 allowed numbers, for each row with at most the output error of the nearest ones.

    Raises:
        ValueError: something is not finite.
    """
    moments = np.asarray(second, np.float64).reshape(-1, *second.shape[-2:])
    groups, inputs = moments.shape[:2]
    exact = np.asarray(weight, np.float64)
    if not (np.isfinite(exact).all() and np.isfinite(moments).all()):
        raise ValueError("weights or moments that are not finite cannot be rounded")
    rows = exact.reshape(groups, -1, inputs).swapaxes(1, 2)  # (G, K, M / G): successive inputs are successive in memory
    plain = np.stack([nearest(rows[:, j]) for j in range(inputs)], axis=1)
    chosen = _nearest_plane(rows.astype(np.float32), moments, nearest, damping)
    for _ in range(sweeps):
        _descend(rows.astype(np.float32), chosen, moments.astype(np.float32), nearest)
    # with errors a of plain and b of chosen: a H aᵀ - b H bᵀ = (a - b) H (a + b)ᵀ
    gain = np.einsum("gkm,gkm->gm", chosen - plain, moments @ (2 * rows - plain - chosen))
    best = np.where(gain[:, None, :] > 0, chosen, plain)
    return np.asarray(best.swapaxes(1, 2).reshape(weight.shape), np.float64)


def output_error(difference: Array, second: Array) -> Array:
    """(M,) d H dᵀ: the mean squared error of each output, for weights that differ by `difference`, (M, K)."""
    moments = np.asarray(second, np.float64).reshape(-1, *second.shape[-2:])
    rows = np.asarray(difference, np.float64).reshape(len(moments), -1, moments.shape[-1])
    return _error(rows.swapaxes(1, 2), moments).reshape(-1)


def centred(second: Array, mean: Array) -> Array:
    """The covariance (..., K, K) of inputs with the second moments `second` and the (..., K) `mean`."""
    return np.asarray(second - mean[..., :, None] * mean[..., None, :])


def _error(rows: Array, moments: Array) -> Array:
    """(G, M) of (G, K, M) differences."""
    return np.asarray(np.einsum("gkm,gkm->gm", rows, moments @ rows))


def _nearest_plane(rows: Array, moments: Array, nearest: Nearest, damping: float) -> Array:
    """(G, K, M) allowed numbers by error feedback."""
    diagonal = np.einsum("gkk->gk", moments)
    order = np.argsort(diagonal, axis=1, kind="stable")  # the last one is rounded first
    across = np.arange(len(moments))[:, None]
    factor = _cholesky(moments[across[:, :, None], order[:, :, None], order[:, None, :]], damping)
    factor /= np.einsum("gkk->gk", factor)[:, None, :].copy()
    factor = factor.astype(rows.dtype)
    sorted_rows = rows[across, order]
    chosen = np.empty_like(sorted_rows)
    errors = np.zeros_like(sorted_rows)
    for stop in range(rows.shape[1], 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        target = sorted_rows[:, start:stop] + factor[:, stop:, start:stop].swapaxes(1, 2) @ errors[:, stop:]
        for j in range(stop - 1, start - 1, -1):
            wanted = target[:, j - start]
            chosen[:, j] = nearest(wanted)
            errors[:, j] = sorted_rows[:, j] - chosen[:, j]
            target[:, : j - start] += factor[:, j, start:j, None] * errors[:, j, None, :]
    result = np.empty_like(chosen)
    result[across, order] = chosen
    return result


def _cholesky(moments: Array, damping: float) -> Array:
    """Lower triangular factors of damped moments; more damping where rounding has made them indefinite."""
    diagonal = np.einsum("gkk->gk", moments)
    mean = diagonal.mean(axis=1, keepdims=True)
    mean = np.where(mean > 0, mean, 1.0)
    added = max(damping, 1e-12)
    diagonal += added * mean
    while True:
        try:
            return _factors(moments)
        except np.linalg.LinAlgError:
            if added > _MOST_DAMPING:
                raise
            diagonal += 9 * added * mean
            added *= 10


def _factors(moments: Array) -> Array:
    if moments.shape[1] <= _BATCHED:
        return np.linalg.cholesky(moments)
    from scipy.linalg import cholesky

    factors = np.empty_like(moments)
    for matrix, factor in zip(moments, factors, strict=True):
        factor[...] = cholesky(matrix, lower=True, check_finite=False)
    return factors


def _descend(rows: Array, chosen: Array, moments: Array, nearest: Nearest) -> None:
    """Move each of the (G, K, M) `chosen` to where (1) is least with all others as they are, one input after the other.

    With e = rows - chosen the best change of number j is (H e)_j / H_jj, rounded.
    """
    diagonal = np.einsum("gkk->gk", moments)
    inverse = np.divide(1, diagonal, where=diagonal > 0, out=np.zeros_like(diagonal))
    errors = rows - chosen
    for start in range(0, rows.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rows.shape[1])
        gradient = moments[:, start:stop] @ errors
        for j in range(start, stop):
            wanted = chosen[:, j] + gradient[:, j - start] * inverse[:, j, None]
            new = nearest(wanted)
            change = new - chosen[:, j]
            chosen[:, j] = new
            errors[:, j] -= change
            gradient[:, j - start + 1 :] -= moments[:, j, j + 1 : stop, None] * change[:, None, :]
