"""Scales of weights, one per output channel.

    minmax            the largest weight of a channel is the largest integer
    least_squares     the error Σ_k h_k (w_k - ŵ_k)² is least; with h the second moments E[x_k²] of the inputs it is the
                      error of the channel's output instead of that of its weights, inputs taken as uncorrelated

An integer bias has no scale of its own, its scale is that of the input times that of the weight. A channel with tiny
weights and a large bias would need more than 32 bits: `fit_bias` gives such a channel a larger scale, as ORT's quantizer
does; its weights hardly matter beside such a bias.

Channels without any weight (all zero) take the smallest scale of the others, so that their bias, all that they have,
loses nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphopt_passes.numerics.quantizer import Array, Grid, parameters, representable

MOST_BIAS = 2**30
"""Largest integer bias: half of what int32 holds, the rest is for the products (255 · 127 · 33,000 of them)."""

_CHUNK = 2**16
"""Weights that are searched at a time: they and what is computed from them stay in the cache."""
_COARSE, _FINE = 24, 8
_HALVINGS = 12
"""How far below the largest weight scales are looked for, where it is known what weights meet: some meet nothing."""


def minmax(weight: Array, grid: Grid, dtype: npt.DTypeLike = np.float32) -> Array:
    """(C,) scales with which nothing is clipped.

    Args:
        weight: (C, K), or (C, ...), output channels first.
        grid: the integers, symmetric.
        dtype: of the scales.
    """
    rows = weight.reshape(len(weight), -1)
    largest = rows.max(axis=1, initial=0), rows.min(axis=1, initial=0)
    scale, _ = parameters(largest[1], largest[0], grid, dtype)
    return _of_dead(scale, (largest[0] == 0) & (largest[1] == 0), grid)


def least_squares(
    weight: Array,
    grid: Grid,
    importance: Array | None = None,
    smallest: float = 0.5,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """(C,) scales of least error; never worse than `minmax`, whose scale is one of the candidates.

    Args:
        weight: (C, K).
        grid: the integers, symmetric.
        importance: (K,) or (C, K) weights h of the squared errors; the diagonal of the inputs' Gram matrix.
        smallest: smallest fraction of the minmax scale that is tried, or with `importance` of the best of its halvings; 4 bits
            may want .3.
        dtype: of the scales.
    """
    largest = minmax(weight, grid, dtype)
    channels, inputs = weight.shape
    result = largest.copy()
    rows = max(1, _CHUNK // max(1, inputs))
    for start in range(0, channels, rows):
        part = slice(start, start + rows)
        h = importance[part] if importance is not None and importance.ndim == 2 else importance
        result[part] = _search(weight[part].astype(np.float32), largest[part], grid, h, smallest)
    return result


def rounding_error(weight: Array, scale: Array, grid: Grid, importance: Array | None = None) -> Array:
    """(C,) Σ_k h_k (w_k - ŵ_k)² of rounding (C, K) weights to the nearest integers times the (C,) scales."""
    integers = weight * (1 / scale)[:, None]
    np.rint(integers, out=integers)
    np.clip(integers, grid.low - grid.middle, grid.high - grid.middle, out=integers)
    integers *= scale[:, None]
    integers -= weight
    np.square(integers, out=integers)
    if importance is None:
        return np.asarray(integers.sum(axis=1))
    return np.asarray(np.einsum("ck,ck->c", integers, np.broadcast_to(importance, integers.shape)))


def fit_bias(scale: Array, input_scale: float, bias: Array, most: int = MOST_BIAS) -> Array:
    """(C,) scales, raised just enough that the integers of the bias fit.

    Args:
        scale: (C,) scales of the weight.
        input_scale: the scale of the input; with 16-bit activations it is small, and the integers are large.
        bias: (C,) in float.
        most: largest magnitude of an integer bias.

    Returns:
        scales with |bias / (input_scale · scale)| <= most, of the type of `scale`; their products with `input_scale` are
        legal scales of that type, too.
    """
    unit = float(input_scale)
    least = np.abs(bias.astype(np.float64)) / (unit * most)
    least = np.maximum(least, float(representable(np.finfo(np.float64).tiny, scale.dtype)) / unit)
    raised = np.where(
        scale.astype(np.float64) < least, np.nextafter(least.astype(scale.dtype), np.inf, dtype=scale.dtype), scale
    )
    return np.asarray(raised.astype(scale.dtype))


def _search(weight: Array, largest: Array, grid: Grid, importance: Array | None, smallest: float) -> Array:
    """(R,) the best scales of (R, K) float32 weights: a scan of halvings of `largest`, of fractions, and a finer one."""
    h = None if importance is None else importance.astype(np.float32)
    best = np.ones(len(weight))
    least = rounding_error(weight, largest, grid, h)

    def try_fractions(fractions: Array) -> None:
        error = rounding_error(weight, (largest * fractions).astype(np.float32), grid, h)
        better = error < least
        best[better], least[better] = fractions[better], error[better]

    for halvings in range(1, _HALVINGS + 1 if h is not None else 1):
        try_fractions(np.full(len(weight), 0.5**halvings))
    top, step = best.copy(), (1 - smallest) / _COARSE
    for index in range(_COARSE):
        try_fractions(top * (smallest + index * step))
    centre = best.copy()
    for offset in np.linspace(-step, step, _FINE):
        try_fractions(np.clip(centre + offset * top, top * smallest, 1.0))
    return np.asarray((largest * best).astype(largest.dtype))


def _of_dead(scale: Array, dead: Array, grid: Grid) -> Array:
    """`scale`, that of channels without weights replaced by the smallest of the others."""
    others = scale[~dead]
    return np.where(dead, others.min() if others.size else scale.dtype.type(1 / grid.steps), scale)
