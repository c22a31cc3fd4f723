"""Integer kernels: a node between DequantizeLinear and QuantizeLinear runs on the integers themselves.

onnxruntime takes the group as one operator where there is an integer form of the node, all data comes dequantized, and
only one QuantizeLinear reads the result. A Relu or Clip in between is absorbed where the quantized range clips at
least as much. A matrix product may also leave its result in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import input_at

_DATA_INPUTS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("Conv", "Gemm"), 3),
        **dict.fromkeys(("MatMul", "Add", "Mul"), 2),
        **dict.fromkeys(("Sigmoid", "LeakyRelu", "Softmax", "GlobalAveragePool", "AveragePool", "ReduceMean"), 1),
        **dict.fromkeys(("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"), 1),
        **dict.fromkeys(("Gather", "Resize", "DepthToSpace", "SpaceToDepth", "Pad", "Expand", "Tile", "Split"), 1),
    }
)
"""Operators with an integer form, and how many of their first inputs must come dequantized."""

_FLOAT_RESULT = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that become one kernel, and the one among them that gives it its work."""

    main: ir.Node
    nodes: tuple[ir.Node, ...]
    integer: bool = False


@dataclass(frozen=True, slots=True)
class IntegerGroups:
    """The groups, and the DequantizeLinear nodes that nothing but such groups reads: their values never exist."""

    groups: tuple[Group, ...]
    dissolved: frozenset[ir.Node]


def integer_groups(nodes: Sequence[ir.Node]) -> IntegerGroups:
    """All groups among `nodes`, which are in the graph's order."""
    if not any(_is(node, "DequantizeLinear") for node in nodes):
        return IntegerGroups((), frozenset())
    groups = tuple(group for node in nodes if (group := _group_around(node)) is not None)
    inside = {node for group in groups for node in group.nodes}
    dissolved = frozenset(
        node for node in nodes if _is(node, "DequantizeLinear") and _read_only_by(node.outputs[0], inside)
    )
    return IntegerGroups(groups, dissolved)


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and node.op_type == op_type and node.domain in ("", "com.microsoft")


def _read_only_by(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in nodes for use in value.uses())


def _group_around(main: ir.Node) -> Group | None:
    count = len(main.inputs) if main.op_type == "Concat" else _DATA_INPUTS.get(main.op_type)
    if count is None or main.domain != "" or not main.outputs:
        return None
    data = [value for value in main.inputs[:count] if value is not None]
    if not data or not all(_is(value.producer(), "DequantizeLinear") for value in data):
        return None
    readers = [_quantizer(output) for output in main.outputs]
    if all(tail is not None for tail in readers):
        tails = [node for tail in readers if tail is not None for node in tail]
        return Group(main, (main, *tails), integer=True)
    return Group(main, (main,), integer=True) if main.op_type in _FLOAT_RESULT else None


def _quantizer(value: ir.Value) -> tuple[ir.Node, ...] | None:
    """The QuantizeLinear that alone reads `value`, with an absorbed activation before it."""
    reader = only_reader(value)
    if reader is not None and reader.op_type in ("Relu", "Clip") and reader.domain == "":
        quantize = only_reader(reader.outputs[0])
        if quantize is not None and _is(quantize, "QuantizeLinear") and absorbs(quantize, reader):
            return (reader, quantize)
        return None
    return (reader,) if reader is not None and _is(reader, "QuantizeLinear") else None


def absorbs(quantize: ir.Node, activation: ir.Node) -> bool:
    """Whether the range of `quantize` lies inside that of `activation`, which then changes nothing."""
    scale, zero = _scalar(input_at(quantize, 1)), _scalar(input_at(quantize, 2))
    point = constant_tensor(input_at(quantize, 2))
    if scale is None or zero is None or point is None or not point.dtype.is_integer():
        return False
    low, high = ((float(limit) - zero) * scale for limit in (point.dtype.min, point.dtype.max))
    if activation.op_type == "Relu":
        return low >= 0
    floor, ceiling = _bound(activation, 1, "min", -inf), _bound(activation, 2, "max", inf)
    return floor is not None and ceiling is not None and low >= floor and high <= ceiling


def _bound(clip: ir.Node, index: int, name: str, default: float) -> float | None:
    """A limit of a Clip, an attribute before opset 11; None where it is not constant."""
    value, attribute = input_at(clip, index), clip.attributes.get(name)
    if value is not None:
        return _scalar(value)
    if attribute is None:
        return default
    return attribute.as_float() if attribute.type == ir.AttributeType.FLOAT and not attribute.is_ref() else None


def _scalar(value: ir.Value | None) -> float | None:
    tensor = constant_tensor(value)
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None
