"""Hidden units in a graph: two products with nothing but a function of single elements between them.

    Gemm -> Gelu, however it is spelled -> Gemm

Between the layers lie only operators that compute an element from the one at its own position and from numbers; all of them
may have several readers, as long as these lie between the layers, too.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.ir.walk import is_number
from graphopt_passes.factorization.pairs import Pair
from graphopt_passes.reconstruction.linear import Linear, linear_layers

_OF_ONE = frozenset(
    {
        *("Abs", "Erf", "Exp", "Neg", "Sqrt", "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Clip", "Sigmoid", "Tanh"),
        *("HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Gelu", "Identity"),
    }
)
_OF_TWO = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})


def feed_forward_pairs(graph: ir.Graph, extents: Extents) -> list[Pair]:
    """All pairs of a graph."""
    layers = [layer for layer in linear_layers(graph) if layer.node.op_type in ("Gemm", "MatMul")]
    readers = {layer.node: layer for layer in layers}
    pairs = (_pair(layer, readers, extents) for layer in layers)
    return [pair for pair in pairs if pair is not None]


def _pair(first: Linear, readers: dict[ir.Node, Linear], extents: Extents) -> Pair | None:
    dims = extents.dims(first.output)
    if dims is None:
        return None
    between, second = [first.output], None
    for value in between:  # grows
        if value.is_graph_output():
            return None
        for node, index in value.uses():
            layer = readers.get(node)
            if layer is not None and index == 0:
                if second not in (None, layer):
                    return None
                second = layer
            elif not _is_elementwise(node):
                return None
            elif node.outputs[0] not in between:
                between.append(node.outputs[0])
    if second is None or second.data not in between or not all(_within(value, between, first) for value in between):
        return None
    if any(len(extents.dims(value) or ()) != len(dims) for value in between):  # a number of higher rank moves the axis
        return None
    values = between if first.adder is None else [first.node.outputs[0], *between]
    axes = tuple((value, len(dims) - 1) for value in values)
    return Pair("hidden", first, second, 1, first.channels, False, (), axes)


def _is_elementwise(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _OF_ONE | _OF_TWO and len(node.outputs) == 1


def _within(value: ir.Value, between: list[ir.Value], first: Linear) -> bool:
    """Whether a value is made of others between the layers, and of numbers."""
    node = value.producer()
    if value is first.output or node is None:
        return node is not None
    return all(one is None or one in between or is_number(one) for one in node.inputs)
