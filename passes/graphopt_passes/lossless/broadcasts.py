"""Expand and ConstantOfShape in front of operators that broadcast anyway.

An elementwise operator repeats an axis of extent 1 by itself. What it computes from expanded tensors are repetitions of
what it computes from the tensors as they were, so an Expand may be left out where, further on, every operator that reads
its consequences has another operand of the full extents:

    Expand(mask, [b, 1, s, s]) -> Cast -> Sub -> Where -> Add(scores: [b, h, s, s])

Everything on the way then works on the small tensor. A ConstantOfShape, all of whose elements are equal, is likewise a
scalar. Extents count as equal only where they are known to be, so nothing changes for any input; the rank of a result stays.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis import facts
from graphopt.analysis.dims import Dim, Dims
from graphopt_passes.lossless.partial_values import PartialValues
from graphopt_passes.rewriting import Done, Outcome, Rule, Site

_BROADCAST_SINCE = 7
_FARTHEST = 32
"""Nodes that are followed."""

_UNARY = frozenset(
    {
        *("Abs", "Cast", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log"),
        *("Neg", "Not", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Tanh"),
    }
)
_MANY = frozenset(
    {
        *("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"),
        *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Where", "Xor"),
    }
)


class BroadcastLater(Rule):
    """Expand(x) or ConstantOfShape -> x or a scalar, where all that follows broadcasts to the same extents."""

    roots: ClassVar = frozenset({"Expand", "ConstantOfShape"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Leave the node out, where nothing behind its consequences changes."""
        if site.opset < _BROADCAST_SINCE or not node.outputs[0].uses():
            return None
        small = self._values.dims(node.inputs[0], site) if node.op_type == "Expand" else ()
        smaller = None if small is None else self._consequences(node.outputs[0], small, site)
        if smaller is None:
            return None
        value = node.inputs[0] if node.op_type == "Expand" else self._scalar(node, site)
        assert value is not None  # Expand has its first input
        readers = site.replace(node, value)
        for changed, dims in smaller.items():
            changed.shape = facts.shape_of(dims)
        self._values.forget()
        return Done("removed: what follows broadcasts anyway", readers)

    def _consequences(self, start: ir.Value, small: Dims, site: Site) -> dict[ir.Value, Dims] | None:
        """The values that become smaller with `start`, and their new extents; None where a result would change."""
        smaller: dict[ir.Value, Dims] = {start: small}
        pending = [start]
        followed = 0
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                return None
            for reader in value.consumers():
                followed += 1
                if followed > _FARTHEST or site.graph_of(reader) is None or not site.may_touch(reader):
                    return None
                dims = self._result(reader, smaller, site)
                before = self._values.dims(reader.outputs[0], site)
                if dims is None or before is None:
                    return None
                output = reader.outputs[0]
                if dims != smaller.get(output, before):
                    smaller[output] = dims
                    pending.append(output)
        del smaller[start]
        return smaller

    def _result(self, node: ir.Node, smaller: dict[ir.Value, Dims], site: Site) -> Dims | None:
        """The extents of the result of an elementwise `node`, where they follow for certain."""
        if node.domain != "" or node.op_type not in _UNARY | _MANY or any(read is None for read in node.inputs):
            return None
        known = [
            smaller.get(read) if read in smaller else self._values.dims(read, site) for read in node.inputs if read
        ]
        result: Dims = ()
        for dims in known:
            if dims is None or None in dims:
                return None
            joined = _broadcast(result, dims)
            if joined is None:
                return None
            result = joined
        return result

    def _scalar(self, node: ir.Node, site: Site) -> ir.Value:
        value = node.attributes.get("value")
        element = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
        return site.new_constant(element.reshape(()), f"{node.outputs[0].name}_element", node)


def _broadcast(a: Dims, b: Dims) -> Dims | None:
    """The extents of two tensors broadcast together; None where a pair of extents is not known to fit."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    result: list[Dim] = []
    for x, y in pairs:
        if x != y and 1 not in (x, y):
            return None
        result.append(y if x == 1 else x)
    return tuple(result)
