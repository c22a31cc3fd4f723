"""Values that 16 bits may not hold: *delicate* ones.

* Numbers beyond 65504 or so small that they vanish: constants, values whose range was measured, squares and sums, and what
  elementwise operators, data movement and reductions make of them. It ends at operators whose result is bounded or scaled
  by weights (Softmax, Tanh, normalizations, matrix products), and where they only divide.
* Whole numbers of more than 8 bits that were cast to float: positions, extents, indices. float16 counts to 2048.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.tensors import CHUNK, chunks
from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import Contraction, operator

FLOAT = ir.DataType.FLOAT

LOWEST = 1e38
"""Constants beyond this stand for "lowest" and "largest" (masks before a Softmax, open bounds), in any type."""

_WIDE_INTEGERS = frozenset(
    {
        *(ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)

_GROWING = frozenset({"Pow", "ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"})
"""Operators whose result may be far larger than what they read, or is on the way there."""

_BOUNDED = frozenset(
    {
        *("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softsign", "Sin", "Cos", "Atan"),
        *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"),
        *("BatchNormalization", "MeanVarianceNormalization"),
    }
)
"""Operators whose result has its own size, whatever they read."""


class Delicate:
    """The delicate values of a model, filled by visiting its nodes in order."""

    def __init__(self, half: ir.DataType, ranges: Mapping[str, float]) -> None:
        """None yet.

        Args:
            half: the 16-bit type.
            ranges: measured largest magnitudes of values by name.
        """
        self._half = half
        self._ranges = ranges
        self._limits = limits(half)
        self._largest = float(self._limits.max) / 2  # samples do not show the largest number that will ever come
        self._values: set[ir.Value] = set()
        self._checked: dict[ir.Value, bool] = {}

    def visit(self, node: ir.Node) -> bool:
        """Find the delicate ones among the outputs of `node`; whether there are any."""
        found = self._outputs(node)
        self._values.update(found)
        return bool(found)

    def enter(self, node: ir.Node, bodies: Sequence[ir.Graph]) -> None:
        """Take over what was found in the `bodies` of `node`."""
        first = int(node.op_type == "Loop")  # its body says first whether to go on
        for outputs in (body.outputs[first:] for body in bodies):
            made = zip(node.outputs, outputs, strict=False)
            self._values.update(output for output, inner in made if inner in self._values)

    def __contains__(self, value: ir.Value) -> bool:
        """Whether `value` is delicate, as far as the nodes before it have been visited."""
        tensor = constant_tensor(value)
        if tensor is None or not is_float(value):
            measured = self._ranges.get(value.name or "", 0.0) if value.producer() is None else 0.0
            return value in self._values or not measured <= self._largest
        if value not in self._checked:
            self._checked[value] = self._constant_is_delicate(tensor)
        return self._checked[value]

    def _constant_is_delicate(self, tensor: ir.TensorProtocol) -> bool:
        """Whether numbers lie beyond the type's range, or are so few and small that they vanish."""
        largest = 0.0
        for numbers in float_chunks(tensor):
            magnitudes = np.abs(numbers)
            magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes < LOWEST)]
            largest = max(largest, float(magnitudes.max(initial=0.0)))
        least = self._limits.smallest_normal if tensor.size == 1 else self._limits.smallest_subnormal
        return largest > float(self._limits.max) or 0 < largest < float(least)

    def _outputs(self, node: ir.Node) -> list[ir.Value]:
        inherited = self._inherits(node)
        grows = node.op_type in _GROWING or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])
        counts = node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in _WIDE_INTEGERS
        found = []
        for output in node.outputs:
            if not is_float(output):
                continue
            measured = self._ranges.get(output.name or "")
            if measured is not None and not counts:
                if not measured <= self._largest:
                    found.append(output)
            elif inherited or counts or (grows and self._half == ir.DataType.FLOAT16) or self._fills(node):
                found.append(output)
        return found

    def _inherits(self, node: ir.Node) -> bool:
        """Whether `node` makes something delicate of what it reads."""
        if node.op_type in _BOUNDED or isinstance(operator(node), Contraction):
            return False
        delicate = [value is not None and value in self for value in node.inputs]
        if node.op_type == "Div":
            return delicate[0] or (delicate[1] and constant_tensor(node.inputs[1]) is not None)
        if node.op_type == "Clip" and len(delicate) == 3 and None not in node.inputs:
            return any(delicate[1:])
        return any(delicate)

    def _fills(self, node: ir.Node) -> bool:
        attribute = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
        return attribute is not None and self._constant_is_delicate(attribute.as_tensor())


def limits(dtype: ir.DataType) -> Any:
    """The limits of a float type."""
    import ml_dtypes

    return ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]


def float_chunks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """The float32 numbers of `tensor`, a piece at a time."""
    for chunk in chunks(tensor, CHUNK):
        yield np.frombuffer(chunk, "<f4")


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` is a float32 tensor."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == FLOAT
