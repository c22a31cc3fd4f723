"""Quantizing a matrix in blocks: every run of B numbers of a row has a scale of its own, and a zero point.

    q = clip(rint(w / s_b) + z_b, low, high)        b = k // B

With few bits the range of a block is better chosen smaller than what is in it: what sticks out is clipped, all the
others are rounded less. The range of least squared error is searched among fractions of the full one; the last block of a
row may be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphopt_passes.numerics.quantizer import Array, Grid, parameters

_CHUNK = 2**17
"""Numbers that are worked on at a time: they and what is computed from them stay in the cache."""

_FEW_STEPS = 32
"""Grids of fewer steps are worth the search."""

_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.62)


def dequantize(integers: Array, scale: Array, zero_point: Array, block: int) -> Array:
    """(N, K) the numbers that (N, K) integers stand for, of the type of the (N, ⌈K/B⌉) scales."""
    step, zero = (spread(array, block, integers.shape[1]) for array in (scale, zero_point))
    return np.asarray((integers.astype(np.int32) - zero.astype(np.int32)).astype(step.dtype) * step)


def spread(numbers: Array, block: int, columns: int) -> Array:
    """(N, K) one number per element from (N, ⌈K/B⌉) one per block."""
    return np.repeat(numbers, block, axis=1)[:, :columns]


def ranges(weight: Array, block: int, grid: Grid, dtype: npt.DTypeLike = np.float32) -> tuple[Array, Array]:
    """Scales and zero points, (N, ⌈K/B⌉) each, of least squared error.

    Args:
        weight: (N, K).
        block: numbers per scale.
        grid: the integers.
        dtype: of the scales.

    Raises:
        ValueError: a weight is not finite.
    """
    rows, columns = weight.shape
    count = -(-columns // block)
    scale, zero_point = np.empty((rows, count), dtype), np.empty((rows, count), grid.storage)
    step = max(1, _CHUNK // max(1, columns))
    fractions = _FRACTIONS if grid.steps < _FEW_STEPS else (1.0,)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        padded = np.pad(weight[part].astype(np.float32), ((0, 0), (0, count * block - columns)))
        scale[part], zero_point[part] = _search(padded.reshape(-1, count, block), grid, fractions, dtype)
    return scale, zero_point


def quantize(weight: Array, scale: Array, zero_point: Array, block: int, grid: Grid) -> Array:
    """(N, K) the nearest integers of (N, K) weights with (N, ⌈K/B⌉) scales and zero points."""
    integers = np.empty(weight.shape, grid.storage)
    columns = weight.shape[1]
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        exact = weight[part] / spread(scale[part].astype(np.float32), block, columns)
        rounded = np.rint(exact) + spread(zero_point[part].astype(np.float32), block, columns)
        integers[part] = np.clip(rounded, grid.low, grid.high)
    return integers


def sums(weight: Array, scale: Array, zero_point: Array, integers: Array, block: int) -> tuple[float, float]:
    """Σ w² and Σ (w - ŵ)² of a matrix (N, K) and its integers."""
    signal = noise = 0.0
    step = max(1, _CHUNK // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        exact = weight[part].astype(np.float64)
        signal += float(np.vdot(exact, exact))
        exact -= dequantize(integers[part], scale[part], zero_point[part], block)
        noise += float(np.vdot(exact, exact))
    return signal, noise


def _search(blocks: Array, grid: Grid, fractions: Sequence[float], dtype: npt.DTypeLike) -> tuple[Array, Array]:
    """The best scale and zero point of (R, blocks, B) numbers."""
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    best = parameters(low, high, grid, dtype)
    if len(fractions) == 1:
        return best
    least = _error(blocks, *best, grid)
    for fraction in fractions[1:]:
        tried = parameters(low * fraction, high * fraction, grid, dtype)
        error = _error(blocks, *tried, grid)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1])
    return best


def _error(blocks: Array, scale: Array, zero_point: Array, grid: Grid) -> Array:
    """(R, blocks) squared error of rounding to nearest."""
    step, zero = scale.astype(np.float32)[..., None], zero_point.astype(np.float32)[..., None]
    numbers = np.rint(blocks / step)
    np.clip(numbers, grid.low - zero, grid.high - zero, out=numbers)
    numbers *= step
    numbers -= blocks
    return np.asarray(np.einsum("rnb,rnb->rn", numbers, numbers))
