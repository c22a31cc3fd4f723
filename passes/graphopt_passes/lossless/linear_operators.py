"""The linear operators of a graph.

    Conv, ConvTranspose        channels are axis 1 of input and output
    Gemm, MatMul               channels are the last axis; the bias of a MatMul is the constant of an Add behind it
    BatchNormalization, InstanceNormalization, LayerNormalization, RMSNormalization
                               not linear in their input, but what they normalize goes through a scale and a bias per
                               channel, so that an affine map behind them can be taken in all the same

Each is found as a `Linear` where its weight is constant, and else with the reason why not. Ranks come from the weights;
where they do not say, from shape inference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from graphopt_passes.lossless import extents
from graphopt_passes.lossless.linear import Bias, Linear, Side
from graphopt_passes.rewriting import Site

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
BROADCAST_SINCE = 7
"""Before this opset Add, Mul and Gemm had attributes that said how to broadcast."""

Found = Linear | str | None
"""A linear operator, why an operator of such a kind cannot be changed, or nothing of the sort."""


def making(value: ir.Value, site: Site) -> Found:
    """The operator whose output, bias included, is `value`."""
    node = site.producer(value, "Add", *_OPERATORS)
    if node is None:
        return None
    if node.op_type != "Add":
        found = _OPERATORS[node.op_type](node, site)
        # an Add behind `value` is not included
        return (
            dataclasses.replace(found, bias=None) if isinstance(found, Linear) and node.op_type == "MatMul" else found
        )
    for index in (0, 1):
        product = site.producer(node.inputs[index], "MatMul")
        if product is not None and _added(product, site) == (node, 1 - index):
            return _matmul(product, site)
    return None


def reading(node: ir.Node, index: int, site: Site) -> Found:
    """The operator `node`, where its input `index` is the data that it works on."""
    if index != 0 or node.domain != "" or node.op_type not in _OPERATORS:
        return None
    return _OPERATORS[node.op_type](node, site)


def trains(norm: ir.Node, opset: int) -> str | None:
    """Why a BatchNormalization is not one affine map per channel; None where it is."""
    attributes = norm.attributes
    extra_outputs = any(output.name for output in norm.outputs[1:])
    training = attributes.get_int("training_mode", 0) != 0 if opset >= 14 else extra_outputs
    if opset < 7:
        training = attributes.get_int("is_test", 0) == 0
    if training or extra_outputs:
        return "it is in training mode"
    if opset < 9 and attributes.get_int("spatial", 1) == 0:
        return "it has statistics per element (spatial=0)"
    return None


def _conv(node: ir.Node, site: Site) -> Found:
    weight = _weight(node, site)
    if isinstance(weight, str):
        return weight
    first, second, *kernel = weight.shape.numpy()
    groups = node.attributes.get_int("group", 1)
    if not kernel or groups < 1 or first % groups:
        return None
    transposed = node.op_type == "ConvTranspose"
    outputs, inputs = (second * groups, first) if transposed else (first, second * groups)
    rank = 2 + len(kernel)
    return Linear(
        node,
        1,
        weight,
        (groups, first // groups, second, math.prod(kernel)),
        inputs_first=transposed,
        bias=_bias(node, 2, Side(outputs, -1, 1), site),
        output=Side(outputs, 1 - rank, rank),
        input=Side(inputs, 1 - rank, rank),
        uniform=not transposed and not _pads(node),
    )


def _pads(node: ir.Node) -> bool:
    attributes = node.attributes
    return any(attributes.get_ints("pads", ())) or attributes.get_string("auto_pad", "NOTSET").startswith("SAME")


def _gemm(node: ir.Node, site: Site) -> Found:
    weight = _weight(node, site)
    if isinstance(weight, str):
        return weight
    if site.opset < BROADCAST_SINCE or len(weight.shape) != 2:
        return None
    attributes = node.attributes
    first, second = weight.shape.numpy()
    transposed = attributes.get_int("transB", 0) != 0
    inputs, outputs = (second, first) if transposed else (first, second)
    output = Side(outputs, -1, 2)
    return Linear(
        node,
        1,
        weight,
        (1, first, second, 1),
        inputs_first=not transposed,
        bias=_bias(node, 2, output, site, attributes.get_float("beta", 1.0)),
        output=output,
        input=None if attributes.get_int("transA", 0) else Side(inputs, -1, 2),
        factor=attributes.get_float("alpha", 1.0),
    )


def _matmul(node: ir.Node, site: Site) -> Found:
    weight = _weight(node, site)
    if isinstance(weight, str):
        return weight
    if len(weight.shape) != 2:
        return None
    inputs, outputs = weight.shape.numpy()
    rank = extents.rank(node.inputs[0]) or 1
    output = Side(outputs, -1, rank)
    added = _added(node, site)
    return Linear(
        node,
        1,
        weight,
        (1, inputs, outputs, 1),
        inputs_first=True,
        bias=None if added is None else _bias(*added, output, site),
        output=output,
        input=Side(inputs, -1, rank),
    )


def _added(product: ir.Node, site: Site) -> tuple[ir.Node, int] | None:
    """The Add of a constant that alone reads what the MatMul `product` makes, and which of its inputs that is."""
    add = site.only_reader(product.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "" or site.opset < BROADCAST_SINCE:
        return None
    index = 1 if add.inputs[0] is product.outputs[0] else 0
    return None if site.constant(add.inputs[index]) is None else (add, index)


def _batch_norm(node: ir.Node, site: Site) -> Found:
    return None if trains(node, site.opset) is not None else _instance_norm(node, site)


def _instance_norm(node: ir.Node, site: Site) -> Found:
    rank = extents.rank(node.inputs[0])
    return None if rank is None else _normalization(node, site, axis=1 - rank, rank=rank, bias=2)


def _layer_norm(node: ir.Node, site: Site) -> Found:
    dims, scale = extents.dims(node.inputs[0]), extents.dims(node.inputs[1])
    if not dims or scale != dims[-1:] or node.attributes.get_int("axis", -1) not in (-1, len(dims) - 1):
        return None
    has_bias = node.op_type == "LayerNormalization"
    return _normalization(node, site, axis=-1, rank=len(dims), bias=2 if has_bias else None)


def _normalization(node: ir.Node, site: Site, axis: int, rank: int, bias: int | None) -> Found:
    """A normalization whose scale is input 1, one number per channel along `axis`; its bias is another input."""
    weight = _weight(node, site)
    if isinstance(weight, str):
        return weight
    if len(weight.shape) != 1:
        return None
    (channels,) = weight.shape.numpy()
    return Linear(
        node,
        1,
        weight,
        (channels, 1, 1, 1),
        inputs_first=False,
        bias=None if bias is None else _bias(node, bias, Side(channels, -1, 1), site),
        output=Side(channels, axis, rank),
    )


def _weight(node: ir.Node, site: Site) -> ir.TensorProtocol | str:
    weight = site.constant(node.inputs[1])
    if weight is None:
        return "its weight is not constant"
    return weight if weight.dtype in FLOATS else f"weights of type {weight.dtype} are left alone"


def _bias(node: ir.Node, index: int, side: Side, site: Site, factor: float = 1.0) -> Bias:
    """The bias that is input `index` of `node`, where it is broadcast as it would be with `side`."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return Bias(node, index)
    constant = site.constant(value)
    fits = constant is not None and constant.size in (1, side.channels)
    array = side.per_channel(constant.numpy()) if constant is not None and fits else None
    if array is None:
        return Bias(node, index, why_not="the bias is not constant, or not one number per channel")
    return Bias(node, index, array * factor)


_OPERATORS: Mapping[str, Callable[[ir.Node, Site], Found]] = MappingProxyType(
    {
        "BatchNormalization": _batch_norm,
        "Conv": _conv,
        "ConvTranspose": _conv,
        "Gemm": _gemm,
        "InstanceNormalization": _instance_norm,
        "LayerNormalization": _layer_norm,
        "MatMul": _matmul,
        "RMSNormalization": _layer_norm,
    }
)
