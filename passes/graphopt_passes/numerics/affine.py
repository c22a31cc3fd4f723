"""Affine maps per channel, taken into the weight and bias of the linear operator before or behind them.

An affine map multiplies each channel by a number and adds one, x[c] -> scale[c] · x[c] + shift[c]. A linear operator
with groups is, seen from far enough,

    L(x)[g, o] = Σ_{i,τ} W[g, o, i, τ] · x[g, i, τ] + b[g, o]       o, i: channels of group g;  τ: taps of the kernel

so that the composition of the two is a linear operator of the same form:

    scale · L(x) + shift  =  Σ (scale[g, o] · W[g, o, i, τ]) · x[g, i, τ]  +  (scale · b + shift)[g, o]         after
    L(scale · x + shift)  =  Σ (W[g, o, i, τ] · scale[g, i]) · x[g, i, τ]  +  b[g, o] + Σ W · shift[g, i]       before

The last sum is the operator's *response* to a constant input; it is the same everywhere only where every output sees
all taps, so not beside zero padding. Weights are stored with the output channels before the input channels or behind
them; nothing here depends on it.

Everything is computed in float64 and rounded once to the type of the weight. Where that would lose more than rounding
does, because a channel overflows or sinks among the subnormal numbers, the answer is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_CHUNK = 2**20
"""Elements of a weight that are in float64 at a time."""
_TINY = 1e-30


class Affine(NamedTuple):
    """y = scale · x + shift per channel; each (channels,), or () where it is the same for all channels; float64."""

    scale: Array
    shift: Array

    @property
    def finite(self) -> bool:
        """Whether all coefficients are numbers."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def scales(self) -> bool:
        """Whether any channel is multiplied by another number than 1."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether anything other than 0 is added to any channel."""
        return bool((self.shift != 0).any())


def normalization(gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Affine:
    """The affine map that a batch normalization is in inference; (C,) parameters of any float type.

    y = gamma · (x - mean) / sqrt(variance + epsilon) + beta. Coefficients are not finite where `variance + epsilon` is
    not positive.
    """
    gamma, beta, mean, variance = (array.astype(np.float64) for array in (gamma, beta, mean, variance))
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        return Affine(scale, beta - scale * mean)


def per_channel(array: Array, channels: int, axis: int, rank: int) -> Array | None:
    """`array` as one number per channel of a tensor with which it is broadcast: (channels,) or (), float64.

    Args:
        array: what is broadcast with the tensor.
        channels: extent of the tensor along `axis`.
        axis: the channel axis, counted from the end: -1 is the last.
        rank: number of axes of the tensor, or fewer where that is all that is known.

    Returns:
        None where `array` differs along another axis, or where broadcasting changes the extents of the tensor.
    """
    if array.ndim > rank:
        return None
    if array.size == 1:
        return array.reshape(()).astype(np.float64)
    if array.size != channels or array.ndim < -axis or array.shape[axis] != channels:
        return None
    return array.reshape(channels).astype(np.float64)


def scaled(weight: Array, factor: Array) -> Array | None:
    """`weight` · `factor` in the type of `weight`, or None where rounding loses too much.

    Args:
        weight: of any shape and float type.
        factor: of the same rank, float64; its extents are those of `weight` or 1. One element of it scales one slice.

    A slice's largest error may be two units in the last place of its largest element: plain rounding stays within half
    a unit, overflow and float16's subnormals do not. In types with the exponents of float32 subnormals are allowed, too:
    trained networks have channels that have died out to 1e-40, and nobody will miss 1e-45.
    """
    result = np.empty(weight.shape, weight.dtype)
    error, largest = np.zeros(factor.shape), np.zeros(factor.shape)
    within = tuple(axis for axis, extent in enumerate(factor.shape) if extent == 1)
    for part in _parts(weight):
        here = tuple(slice(None) if extent == 1 else piece for extent, piece in zip(factor.shape, part, strict=True))
        with np.errstate(all="ignore"):  # what is not finite is found below
            exact = weight[part].astype(np.float64) * factor[here]
            result[part] = exact.astype(weight.dtype)
            loss = np.abs(result[part].astype(np.float64) - exact).max(axis=within, keepdims=True, initial=0)
        error[here] = np.maximum(error[here], loss)
        largest[here] = np.maximum(largest[here], np.abs(exact).max(axis=within, keepdims=True, initial=0))
    allowed = np.maximum(2 * _resolution(weight.dtype) * largest, _negligible(weight.dtype))
    fits = np.isfinite(largest) & (error <= allowed)  # an error of NaN does not fit
    return result if fits.all() else None


def response(weight: Array, shift: Array, inputs_first: bool) -> Array:
    """What a linear operator answers to an input that is constant per channel: (G · O,), float64.

    Args:
        weight: (G, O, I, T), or (G, I, O, T) with `inputs_first`.
        shift: (G · I,), or () for one number.
        inputs_first: how `weight` is stored.
    """
    groups, channels = len(weight), weight.shape[1 if inputs_first else 2]
    per_input = np.broadcast_to(shift, (groups * channels,)).reshape(groups, channels)
    formula = "giot,gi->go" if inputs_first else "goit,gi->go"
    total = np.zeros((groups, weight.shape[2 if inputs_first else 1]))
    for part in _parts(weight):
        group, first, second, _ = part
        outputs, inputs = (second, first) if inputs_first else (first, second)
        with np.errstate(all="ignore"):  # callers look whether it is finite
            total[group, outputs] += np.einsum(formula, weight[part].astype(np.float64), per_input[group, inputs])
    return total.reshape(-1)


def rounded(exact: Array, dtype: np.dtype[Any]) -> Array | None:
    """`exact`, of any shape, in another float type, or None where something in it is not finite there."""
    with np.errstate(all="ignore"):
        result = exact.astype(dtype)
    return result if np.isfinite(result.astype(np.float64)).all() else None


def _parts(weight: Array) -> Iterator[tuple[slice, ...]]:
    """Index `weight` piece by piece, cut along its longest axis."""
    axis = int(np.argmax(weight.shape))
    length = weight.shape[axis]
    step = max(1, _CHUNK * length // max(1, weight.size))
    for start in range(0, length, step):
        yield tuple(slice(start, start + step) if i == axis else slice(None) for i in range(weight.ndim))


def _resolution(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number; unlike finfo this knows the types of ml_dtypes."""
    one, two = np.ones((), dtype), np.full((), 2, dtype)
    return float(np.nextafter(one, two).astype(np.float64)) - 1


def _negligible(dtype: np.dtype[Any]) -> float:
    """The smallest number above 0, where it is so small that losing it makes no difference; else 0."""
    zero, one = np.zeros((), dtype), np.ones((), dtype)
    smallest = float(np.nextafter(zero, one).astype(np.float64))
    return smallest if smallest < _TINY else 0.0
