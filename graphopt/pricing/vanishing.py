"""Nodes that cost nothing, because onnxruntime has rid itself of them when it has loaded the model.

Beyond kernels that take several nodes (`graphopt.analysis.fusion`): of nodes that compute the same it keeps the first, of
shape computations there are many; a Cast to the type that a value has is dropped; and a matrix product takes in a scale
before or behind it, a single constant number (its `CommonSubexpressionElimination`, `EliminateIdentity`/`CastElimination` and
`MatMulScaleFusion`). Memory is not concerned: all of these values are small, or have the size of their neighbour.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.ir.walk import constant_tensor, is_number
from graphopt.ops.base import input_at

_SHAPES = frozenset(
    {"Shape", "Size", "Gather", "Unsqueeze", "Squeeze", "Slice", "Concat", "Cast", "Add", "Sub", "Mul", "Div"}
)
"""What shapes are computed with."""

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_SMALL = 16


def vanishing(graph: ir.Graph) -> set[ir.Node]:
    """The nodes of `graph` that onnxruntime makes no kernel of."""
    found: set[ir.Node] = set()
    first: dict[Hashable, ir.Node] = {}
    keys: dict[ir.Value, Hashable] = {}
    for node in graph:
        if node.op_type in _SHAPES and node.domain == "" and node.outputs[0].dtype in _INTEGERS:
            key = (node.op_type, *(_key(value, keys) for value in node.inputs), _attributes(node))
            keys[node.outputs[0]] = key
            if first.setdefault(key, node) is not node and not node.outputs[0].is_graph_output():
                found.add(node)
        if _casts_nothing(node) or _scales_product(node):
            found.add(node)
    return found


def _key(value: ir.Value | None, keys: dict[ir.Value, Hashable]) -> Hashable:
    """What a value is, the same for values that are computed alike and for small constants that are equal."""
    if value is None:
        return None
    tensor = constant_tensor(value)
    if tensor is not None and tensor.size <= _SMALL and tensor.dtype in _INTEGERS:
        return (tuple(tensor.shape.numpy()), tensor.dtype, *tensor.numpy().reshape(-1).tolist())
    return keys.get(value, value)


def _attributes(node: ir.Node) -> Hashable:
    return tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()))


def _casts_nothing(node: ir.Node) -> bool:
    value = input_at(node, 0)
    if node.outputs[0].is_graph_output():
        return False
    return (
        node.op_type == "Cast"
        and value is not None
        and value.dtype is not None
        and value.dtype == node.outputs[0].dtype
    )


def _scales_product(node: ir.Node) -> bool:
    """Whether `node` multiplies what a MatMul makes or reads, and nothing else does, by one number."""
    if node.op_type not in ("Mul", "Div") or node.domain != "":
        return False
    data = [value for value in node.inputs if not is_number(value)]
    if len(data) != 1 or data[0] is None or (node.op_type == "Div" and data[0] is not node.inputs[0]):
        return False
    producer, reader = data[0].producer(), only_reader(node.outputs[0])
    return (reader is not None and reader.op_type == "MatMul") or (
        producer is not None and producer.op_type == "MatMul" and only_reader(data[0]) is node
    )
