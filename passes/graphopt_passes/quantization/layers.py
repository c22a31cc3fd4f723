"""The constants of a layer on integers: weights, their scales, and the bias.

A weight is seen as a matrix (channels, inputs): one row per output channel, which has its own scale where the target
allows it. Its integers come from rounding to nearest here; `static` rounds again with what the inputs look like.

The bias joins int32 sums whose unit is the scale of the input times that of the weight. Where a bias would not fit, the
scale of the weight's channel is raised until it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.runtime.requests import Moments, MomentsResult
from graphopt_passes.numerics import weight_scales
from graphopt_passes.numerics.feedback_rounding import feedback_round
from graphopt_passes.numerics.quantizer import Grid
from graphopt_passes.numerics.quantizer import quantize as round_nearest
from graphopt_passes.quantization import saturation
from graphopt_passes.quantization.insertion import Array, LayerWeights, Quantizer
from graphopt_passes.quantization.placement import Layer
from graphopt_passes.quantization.targets import Target

Float = npt.NDArray[np.float64]

_ROOM = 1.02
"""By how much more than the nearest integers need a scale is raised: error feedback moves some weights up."""

_UNSEEN = 1e-3
"""Times the mean square of all inputs over the number of rows: what an input is taken to have that was 0 in all of them."""


def matrix(layer: Layer, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of the weight's shape as (channels, inputs)."""
    return np.moveaxis(array, layer.axis, 0).reshape(array.shape[layer.axis], -1)


def tensor(layer: Layer, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of `matrix`."""
    shape = layer.weight.shape.numpy()
    first, rest = shape[layer.axis], (*shape[: layer.axis], *shape[layer.axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(first, *rest), 0, layer.axis))


def matrix_inputs(layer: Layer) -> int:
    """How many inputs a row of the matrix has."""
    return layer.weight.size // layer.weight.shape.numpy()[layer.axis]


def grid(target: Target) -> Grid:
    """The grid of weights: symmetric, without the lowest integer, which has no opposite."""
    return Grid(int(target.weights.min) + 1, int(target.weights.max), symmetric=True)


def float_weight(layer: Layer) -> Float:
    """The weight as (channels, inputs) float64."""
    return matrix(layer, layer.weight.numpy()).astype(np.float64)


def float_bias(layer: Layer) -> Float | None:
    """The bias, (channels,); zeros where there is none but could be; None where the operator takes none."""
    if layer.form.bias is None:
        return None
    groups = layer.node.attributes.get_int("group", 1) if layer.node.op_type == "ConvTranspose" else 1
    channels = layer.weight.shape.numpy()[layer.axis] * groups
    if layer.bias is None:
        return np.zeros(channels)
    return np.broadcast_to(layer.bias.numpy().astype(np.float64).reshape(-1), (channels,)).copy()


def integers(layer: Layer, target: Target, rows: npt.NDArray[Any]) -> Array:
    """Integer rows as the weight's own shape and element type."""
    return tensor(layer, rows.astype(target.weights.numpy()))


def integer_bias(bias: Float, weights: LayerWeights, target: Target, data: Quantizer) -> Array:
    """A float bias as the target stores it: in units of the sums, or as it is."""
    if not target.quantized_bias:
        return bias.astype(np.float32)
    limits = np.iinfo(np.int32)
    return np.clip(np.rint(bias / weights.bias_scale(data, bias.size)), limits.min, limits.max).astype(np.int32)


def fits_bias(bias: Float, weights: LayerWeights, data: Quantizer) -> bool:
    """Whether a float bias fits 32 bits in units of the sums."""
    return bool(np.all(np.abs(bias / weights.bias_scale(data, bias.size)) < np.iinfo(np.int32).max))


def tied(found: Iterable[Layer]) -> frozenset[str]:
    """Keys of the layers whose weight another layer reads too: they are rounded to nearest, which keeps them tied."""
    readers: dict[ir.Value | None, list[str]] = {}
    for layer in found:
        assert layer.form.weight is not None
        readers.setdefault(layer.node.inputs[layer.form.weight], []).append(layer.key)
    return frozenset(key for keys in readers.values() if len(keys) > 1 for key in keys)


def importance(found: Iterable[Layer]) -> dict[str, Moments]:
    """By the layer's key, what tells how much each of its weights counts (`seen`); tied ones are left out."""
    layers = list(found)
    shared = tied(layers)
    return {
        layer.key: Moments(layer.data.name or "", layer.activation_axis) for layer in layers if layer.key not in shared
    }


def seen(layer: Layer, moments: MomentsResult) -> npt.NDArray[Any]:
    """(channels, inputs) the mean squares of what each weight meets, and a little for what the samples do not show."""
    squares = moments.mean**2 + moments.variance
    return layer.met(squares + _UNSEEN * squares.mean() / max(moments.count, 1))


def nearest(
    layer: Layer,
    target: Target,
    data: Quantizer,
    *,
    biased: bool,
    highest: npt.NDArray[Any] | None = None,
    squares: npt.NDArray[Any] | None = None,
) -> LayerWeights:
    """The constants of `layer`, rounded to nearest.

    Args:
        layer: a layer of the float model.
        target: what the runtime wants.
        data: the quantizer of the layer's input.
        biased: whether it gets a bias even where it had none.
        highest: (channels, inputs) the largest integers that meet its weights, where pairs of products may saturate.
        squares: (channels, inputs) what `seen` says, where weights may be clipped.
    """
    weight, bias = float_weight(layer), float_bias(layer)
    rows = weight if target.per_channel else weight.reshape(1, -1)
    if squares is not None and target.per_channel:
        scale = weight_scales.least_squares(rows, grid(target), squares)
    else:
        scale = weight_scales.minmax(rows, grid(target))
    if bias is not None and target.quantized_bias:
        largest = np.abs(bias).reshape(-1, len(weight)).max(axis=0)
        scale = weight_scales.fit_bias(scale, data.scale, largest if target.per_channel else largest.max(keepdims=True))
    if highest is not None:
        scale = _fit_pairs(layer, weight, scale, target, highest)
    found = LayerWeights(
        integers(layer, target, _round(layer, weight, scale, target, highest)),
        scale if target.per_channel else scale.reshape(()),
        None,
        highest,
    )
    if bias is None or not (biased or layer.bias is not None):
        return found
    return dataclasses.replace(found, bias=integer_bias(bias, found, target, data))


def with_feedback(layer: Layer, target: Target, weights: LayerWeights, moments: Float) -> LayerWeights:
    """`weights` rounded anew, with error feedback from the second moments of the inputs."""
    exact = float_weight(layer)
    scale = np.broadcast_to(weights.scale.reshape(-1), (len(exact),))
    rows = feedback_round(exact, moments, scale, grid(target))
    if weights.highest is not None:
        rows = saturation.fitted(layer, rows, weights.highest)
    return dataclasses.replace(weights, weight=integers(layer, target, rows))


def _fit_pairs(
    layer: Layer, weight: Float, scale: npt.NDArray[Any], target: Target, highest: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """`scale`, raised where pairs of products would saturate; a little is left to rounding with error feedback."""
    rounded = round_nearest(weight, scale[:, None], 0, grid(target))
    raised = np.maximum(saturation.excess(layer, rounded, highest) * _ROOM, 1)
    factors: Float = raised if target.per_channel else raised.max(keepdims=True)
    return (scale * factors).astype(np.float32)


def _round(
    layer: Layer, weight: Float, scale: npt.NDArray[Any], target: Target, highest: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    rows = round_nearest(weight, scale[:, None], 0, grid(target))
    return rows if highest is None else saturation.fitted(layer, rows, highest)
