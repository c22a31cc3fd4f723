"""Control flow: operators that run graphs of their own.

Their cost is that of their bodies, so the table says only how often a body runs; `graphopt.cost` prices the bodies. One
branch of an If runs; the body of a Loop or Scan runs once per iteration, where their number can be known beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import Extents, Operator, input_at


class ControlFlow(Operator):
    """Operators with bodies; their own `macs` and `flops` stay unknown because only a pricer can look inside."""

    def iterations(self, node: ir.Node, extents: Extents) -> int | None:
        """How often a body runs in one run of `node`, or None where that depends on data."""
        return None


class Branch(ControlFlow):
    """If runs one of its two bodies."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("If",)}

    def iterations(self, node: ir.Node, extents: Extents) -> int | None:
        """Once."""
        return 1


class Loop(ControlFlow):
    """Loop runs `M` times, if its condition stays true."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Loop",)}

    def iterations(self, node: ir.Node, extents: Extents) -> int | None:
        """The constant `M`, where neither the initial condition nor the body can end the loop before."""
        limit, condition = constant_tensor(input_at(node, 0)), input_at(node, 1)
        body = _body(node)
        if limit is None or limit.size != 1 or body is None or len(body.inputs) < 2 or not body.outputs:
            return None
        if condition is not None and _constant_truth(condition) is not True:
            return 0 if _constant_truth(condition) is False else None
        goes_on = _behind_identities(body.outputs[0])
        if goes_on is not body.inputs[1] and _constant_truth(goes_on) is not True:
            return None
        return max(0, int(limit.numpy().item()))


class Scan(ControlFlow):
    """Scan runs once per slice of its scan inputs."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Scan",)}

    def iterations(self, node: ir.Node, extents: Extents) -> int | None:
        """Extent of the first scan input along its axis; in opset 8 batch items times steps."""
        body, scanned = _body(node), attributes.integer(node, "num_scan_inputs", 0)
        if body is None or not 0 < scanned <= len(node.inputs):
            return None
        dims = extents.dims(node.inputs[-scanned])
        if not dims:
            return None
        if len(node.inputs) == len(body.inputs) + 1:  # opset 8: the lengths of the sequences come first
            return dims[0] * dims[1] if len(dims) > 1 else None
        axis = (attributes.integers(node, "scan_input_axes") or (0,))[0]
        return dims[axis] if -len(dims) <= axis < len(dims) else None


class SequenceMap(ControlFlow):
    """SequenceMap runs its body once per element of a sequence, of unknown length."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("SequenceMap",)}


def _body(node: ir.Node) -> ir.Graph | None:
    attribute = node.attributes.get("body")
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.GRAPH:
        return None
    return attribute.as_graph()


def _behind_identities(value: ir.Value | None) -> ir.Value | None:
    while value is not None:
        producer = value.producer()
        if producer is None or producer.op_type not in ("Identity", "Cast") or not producer.inputs:
            return value
        value = producer.inputs[0]
    return None


def _constant_truth(value: ir.Value | None) -> bool | None:
    """What a condition always is, or None where it depends on data."""
    tensor = constant_tensor(value)
    return None if tensor is None or tensor.size != 1 else bool(tensor.numpy().item())


FAMILIES = (Branch(), Loop(), Scan(), SequenceMap())
