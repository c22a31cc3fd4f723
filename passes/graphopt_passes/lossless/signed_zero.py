"""Whether the sign of a zero can make a difference.

IEEE 754 has two zeros that are equal, -0.0 == 0.0, and yet 1 / -0.0 = -inf and 1 / 0.0 = inf. A rewrite that turns one
zero into the other is exact where no division can see it. So we ask which values an *observer* reads, directly or
through operators that pass a zero's sign on:

    observers    Reciprocal, the divisor of Div, the base of Pow, operators that ONNX does not define, calls, bodies
    absorbers    the sign does not change their result: Exp, Abs, comparisons ..., sums with a constant other than 0

All other operators are taken to pass the sign on. One walk backwards from all observers answers for a whole scope.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.surgery import Scope
from graphopt.ir.walk import constant_tensor, subgraphs

_SMALL = 4096
_ABSORBERS = frozenset(
    {
        "Abs", "ArgMax", "ArgMin", "Cos", "Cosh", "Equal", "Exp", "Greater", "GreaterOrEqual", "HardSigmoid", "IsInf",
        "IsNaN", "Less", "LessOrEqual", "Log", "LogSoftmax", "NonZero", "QuantizeLinear", "ReduceL1", "ReduceL2",
        "ReduceLogSumExp", "ReduceSumSquare", "Shape", "Sigmoid", "Size", "Softmax", "Softplus",
    }
)  # fmt: skip
_OBSERVED = {"Reciprocal": 0, "Div": 1, "Pow": 0}
"""Which input of an observer of the standard domain shows the sign of its zeros."""


class SignedZeros:
    """The values of each scope whose zeros' sign may be observed; found when first asked for."""

    def __init__(self) -> None:
        self._observed: dict[ir.Graph, set[ir.Value]] = {}

    def matter(self, value: ir.Value, scope: Scope) -> bool:
        """Whether the sign of the zeros in `value`, which was there at the first call for `scope`, can be observed."""
        if scope.graph not in self._observed:
            self._observed[scope.graph] = _observed(scope)
        return value in self._observed[scope.graph]


def _observed(scope: Scope) -> set[ir.Value]:
    pending = [value for graph in scope.graphs() for value in _seen_in(graph, is_body=graph is not scope.graph)]
    observed: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        if value in observed:
            continue
        observed.add(value)
        producer = value.producer()
        if producer is not None and not _absorbs(producer):
            pending += (read for read in producer.inputs if read is not None)
    return observed


def _seen_in(graph: ir.Graph, *, is_body: bool) -> Iterator[ir.Value]:
    """What observers in `graph` read. What leaves a body, or a function, may be observed where it arrives."""
    if is_body:
        yield from graph.outputs
    for node in graph:
        if node.domain != "" or next(subgraphs(node), None) is not None:
            yield from (read for read in node.inputs if read is not None)
        elif node.op_type in _OBSERVED:
            index = _OBSERVED[node.op_type]  # a node that is about to be removed reads nothing any more
            yield from (read for read in node.inputs[index : index + 1] if read is not None)


def _absorbs(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type in _ABSORBERS:
        return True
    return node.op_type in ("Add", "Sub") and any(map(_has_no_zero, node.inputs))


def _has_no_zero(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size <= _SMALL and bool((tensor.numpy() != 0).all())
