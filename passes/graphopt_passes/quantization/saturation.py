"""Layers in which pairs of products may saturate, on processors that add them in 16 bits (`numerics.pair_sums`).

Which products are neighbours is onnxruntime's: a Conv adds them position by position of its kernel, all channels of one
after the other (onnxruntime/core/providers/cpu/quantization/qlinearconv.cc); a product along its inputs. A depthwise Conv
has a kernel of its own that widens first, and so is never at risk.

Whether this machine's processor is such a one is found out by multiplying (`measured`): flags of processors say what could
be used, not what onnxruntime uses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import RuntimeFailureError
from graphopt.ops.base import input_at
from graphopt.pipeline.base import PassContext
from graphopt.runtime.requests import ChannelRange, Results
from graphopt_passes.numerics import pair_sums
from graphopt_passes.quantization.insertion import Array, Quantizer
from graphopt_passes.quantization.placement import Layer


def measured(context: PassContext) -> bool:
    """Whether onnxruntime's integer kernels saturate on this machine; yes where it cannot be tried."""
    if context.evaluate is None:
        return True
    size = 16
    inputs, weights = np.full((size, size), 255, np.uint8), np.full((size, size), 127, np.int8)
    values = []
    for name, array in (("inputs", inputs), ("weights", weights)):
        tensor = ir.Tensor(array, name=name)
        shape = ir.Shape(array.shape)
        values.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor))
    product = ir.Value(name="product", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape((size, size)))
    node = ir.Node("", "MatMulInteger", values, outputs=[product])
    graph = ir.Graph([], [product], nodes=[node], initializers=values, opset_imports={"": 13}, name="pairs")
    try:
        (found,) = context.evaluate(ir.Model(graph, ir_version=8))
    except RuntimeFailureError:
        return True
    return bool((found.numpy() != size * 255 * 127).any())


def requests(layers: Iterable[Layer]) -> list[ChannelRange]:
    """What `highest` wants to know."""
    return [_request(layer) for layer in layers if _is_at_risk(layer)]


def highest(layers: Iterable[Layer], results: Results, values: Mapping[str, Quantizer]) -> dict[str, Array]:
    """By the layer's key (M, K) the largest integer that meets each weight on calibration data.

    Layers of which nothing saturates are left out. Where layers share a weight it must fit for all of them.

    Args:
        layers: all layers.
        results: answers to `requests`.
        values: the quantizers of what they read, by name.
    """
    found: dict[str, Array] = {}
    tied: dict[ir.Value | None, list[str]] = {}
    for layer in layers:
        if _is_at_risk(layer):
            found[layer.key] = _highest(layer, results, values[layer.data.name or ""])
            tied.setdefault(input_at(layer.node, layer.form.weight or 0), []).append(layer.key)
    for keys in tied.values():
        if len({found[key].shape for key in keys}) == 1:
            largest = np.max([found[key] for key in keys], axis=0)
            found.update(dict.fromkeys(keys, largest))
    return found


def _highest(layer: Layer, results: Results, data: Quantizer) -> Array:
    limits = np.iinfo(data.dtype.numpy())
    largest = np.rint(results[_request(layer)].high / data.scale) + data.zero_point
    largest = np.clip(largest, data.zero_point, limits.max)  # what pads a Conv is the zero point
    return layer.met(largest)


def order(layer: Layer) -> Array:
    """(K,) the columns of the weight's matrix (`layers.matrix`) in the order in which the runtime adds their products."""
    shape = layer.weight.shape.numpy()
    if layer.node.op_type != "Conv":
        return np.arange(layer.weight.size // shape[layer.axis])
    return np.arange(math.prod(shape[1:])).reshape(shape[1], -1).T.reshape(-1)


def excess(layer: Layer, rows: Array, inputs: Array) -> pair_sums.Float:
    """(M,) of `pair_sums.excess`, for a matrix of integers and what `highest` says of the layer."""
    sequence = order(layer)
    return pair_sums.excess(rows[:, sequence], inputs[:, sequence])


def fitted(layer: Layer, rows: Array, inputs: Array) -> Array:
    """`pair_sums.fitted` for a matrix of integers and what `highest` says of the layer."""
    sequence = order(layer)
    result = rows.copy()
    result[:, sequence] = pair_sums.fitted(rows[:, sequence], inputs[:, sequence])
    return result


def _is_at_risk(layer: Layer) -> bool:
    if layer.node.op_type == "ConvTranspose":
        return False
    channels, inputs = layer.weight.shape.numpy()[:2]
    return not (layer.node.op_type == "Conv" and inputs == 1 and layer.node.attributes.get_int("group", 1) == channels)


def _request(layer: Layer) -> ChannelRange:
    return ChannelRange(layer.data.name or "", layer.activation_axis)
