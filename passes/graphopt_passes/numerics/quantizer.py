"""Uniform quantizers: integers on a grid, a scale, and a zero point.

    q = clip(rint(x / scale) + zero_point, low, high)          x̂ = scale · (q - zero_point)

as QuantizeLinear and DequantizeLinear define them (ONNX Operators.md); rint rounds half to even. Zero is always on the
grid, because zero padding, Relu and sparse weights need it exactly: a range is widened to hold 0 before anything else.

A scale must be a positive normal number, so that neither it nor its reciprocal is lost. A tensor that is always 0 gets
the scale 1, and one that hardly differs from 0 the smallest normal number.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Bound: TypeAlias = float | Array

_STORAGE = (np.uint8, np.int8, np.uint16, np.int16, np.int32)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The integers low, low + 1, ..., high.

    Attributes:
        low: the smallest one.
        high: the largest one.
        symmetric: whether the zero point is fixed in the middle; else it is wherever the range wants it.
    """

    low: int
    high: int
    symmetric: bool = False

    @property
    def steps(self) -> int:
        """The number of steps from one end to the other."""
        return self.high - self.low

    @property
    def middle(self) -> int:
        """The zero point of a symmetric range: 0 where integers are signed, 2**(bits - 1) where not."""
        return (self.low + self.high + 1) // 2

    @property
    def storage(self) -> np.dtype[Any]:
        """The smallest integer type of numpy that holds the grid."""
        fitting = (t for t in _STORAGE if np.iinfo(t).min <= self.low and self.high <= np.iinfo(t).max)
        return np.dtype(next(fitting))


U8 = Grid(0, 255)
S8 = Grid(-128, 127)
S8_SYMMETRIC = Grid(-128, 127, symmetric=True)
S8_NARROW = Grid(-127, 127, symmetric=True)
U16 = Grid(0, 65535)
S16_SYMMETRIC = Grid(-32768, 32767, symmetric=True)
U4 = Grid(0, 15)
S4_SYMMETRIC = Grid(-8, 7, symmetric=True)


def parameters(low: Bound, high: Bound, grid: Grid, dtype: npt.DTypeLike = np.float32) -> tuple[Array, Array]:
    """The quantizer whose grid covers the range from `low` to `high`, and 0.

    Args:
        low: smallest numbers, of any shape, () for one tensor, (C,) for channels.
        high: largest numbers, of the same shape.
        grid: the integers.
        dtype: the float type in which the scale will be stored.

    Returns:
        scale: of type `dtype`, positive and finite.
        zero_point: integers of `grid`, of its storage type; both of the shape of `low`.

    Raises:
        ValueError: a bound is not finite, or a range is empty.
    """
    bottom = np.minimum(np.asarray(low, np.float64), 0)
    top = np.maximum(np.asarray(high, np.float64), 0)
    if not (np.isfinite(bottom).all() and np.isfinite(top).all()):
        raise ValueError("a range that is not finite cannot be quantized")
    if (np.asarray(low) > np.asarray(high)).any():
        raise ValueError("the lower bound of a range is above the upper one")
    if grid.symmetric:
        exact = np.maximum(top / (grid.high - grid.middle), -bottom / (grid.middle - grid.low))
        scale = representable(exact, dtype)
        return scale, np.full(scale.shape, grid.middle, grid.storage)
    scale = representable(top / grid.steps - bottom / grid.steps, dtype)
    zero_point = np.clip(np.rint(grid.low - bottom / scale.astype(np.float64)), grid.low, grid.high)
    return scale, zero_point.astype(grid.storage)


def representable(scale: Bound, dtype: npt.DTypeLike = np.float32) -> Array:
    """`scale`, at least 0, as a legal scale of type `dtype`: 1 for 0, else a positive normal number."""
    exact = np.asarray(scale, np.float64)
    limits: Any = ml_dtypes.finfo(np.dtype(dtype))  # type: ignore[no-untyped-call]
    within = np.clip(exact, float(limits.smallest_normal), float(limits.max))
    return np.where(exact > 0, within, 1.0).astype(dtype)


def quantize(x: Array, scale: Bound, zero_point: Bound, grid: Grid, axis: int | None = None) -> Array:
    """The integers nearest to `x`, of the storage type of `grid`.

    Args:
        x: of any float type; computed in the wider one of its type and that of `scale`, as QuantizeLinear does.
        scale: (), or (C,) with `axis`, or anything that is broadcast with `x`.
        zero_point: likewise.
        grid: the integers.
        axis: the axis of `x` along which the C channels are.
    """
    step, zero = _along(scale, x, axis), _along(zero_point, x, axis)
    with np.errstate(over="ignore"):  # infinity saturates
        integers = np.rint(x / step) + zero.astype(step.dtype)
    return np.asarray(np.clip(integers, grid.low, grid.high), grid.storage)


def dequantize(q: Array, scale: Bound, zero_point: Bound, axis: int | None = None) -> Array:
    """The numbers that the integers `q`, of any shape, stand for, of the type of `scale`; arguments as for `quantize`."""
    step, zero = _along(scale, q, axis), _along(zero_point, q, axis)
    return np.asarray((q.astype(np.int32) - zero.astype(np.int32)).astype(step.dtype) * step)


def fake_quantize(x: Array, scale: Bound, zero_point: Bound, grid: Grid, axis: int | None = None) -> Array:
    """What is left of `x`, of any shape, after quantizing and dequantizing; arguments as for `quantize`."""
    return dequantize(quantize(x, scale, zero_point, grid, axis), scale, zero_point, axis)


def _along(numbers: Bound, x: Array, axis: int | None) -> Array:
    """`numbers` in a shape in which they are broadcast with `x` along `axis`."""
    array = np.asarray(numbers)
    if axis is None or array.ndim != 1:
        return array
    shape = [1] * x.ndim
    shape[axis] = -1
    return array.reshape(shape)
