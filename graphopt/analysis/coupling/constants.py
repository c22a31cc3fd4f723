"""Constants, and the nodes between them and what reads them: Identity, Transpose, Cast, DequantizeLinear and the like.

A weight is often not an initializer itself but something computed from one. What is cut from such a weight must be cut
from the initializer instead; the operator table says which of its axes that is (`Operator.cut_through`).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.ir import walk
from graphopt.ops import base

_RANDOM = frozenset({"RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"})


def is_stored(value: ir.Value) -> bool:
    """Whether `value` is an initializer that nobody can override, or what a Constant node holds."""
    producer = value.producer()
    if producer is not None:
        return producer.op_type == "Constant" and producer.domain == ""
    return walk.constant_tensor(value) is not None


def computes_constants(node: ir.Node) -> bool:
    """Whether the outputs of `node` are constant where its inputs are."""
    return bool(node.inputs) and node.op_type not in _RANDOM and next(walk.subgraphs(node), None) is None


def cuts(value: ir.Value, axis: int) -> Mapping[int, int] | None:
    """The inputs of the producer of `value` that must be cut, and their axes; none for what is stored.

    Returns:
        None where `value` cannot be cut along `axis`.
    """
    producer = value.producer()
    if is_stored(value):
        return {} if walk.constant_tensor(value) is not None else None
    if producer is None or value.shape is None or value.graph is None:
        return None
    through = base.operator(producer).cut_through(producer, value.shape.rank(), axis)
    if through is None:
        return None
    found: dict[int, int] = {}
    for index, inner in through.items():
        source = base.input_at(producer, index)
        if source is None or source.shape is None:
            return None
        if source.shape[inner] != 1:
            found[index] = inner
    return found


def can_cut(value: ir.Value, axis: int) -> bool:
    """Whether `value`, a constant, can lose positions along `axis` by cutting what it is computed from."""
    inputs = cuts(value, axis)
    producer = value.producer()
    if inputs is None:
        return False
    sources = [] if producer is None else [(producer.inputs[index], inner) for index, inner in inputs.items()]
    return all(source is not None and can_cut(source, inner) for source, inner in sources)


def origin(value: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    """The stored constant that `value` is made of and the axis of it that `axis` is, or None."""
    while not is_stored(value):
        inputs, producer = cuts(value, axis), value.producer()
        source = None if producer is None or inputs is None or 0 not in inputs else producer.inputs[0]
        if source is None or inputs is None:
            return None
        value, axis = source, inputs[0]
    return value, axis
