"""What becomes of a layer's output: the shortcut that is added to it, and the activation behind.

A refit that knows both can do better than one towards the layer's own output: the branch makes up for what the shortcut
has lost, and errors that the activation cuts off do not count (Zhang et al. 2015, "Accelerating Very Deep Convolutional
Networks for Classification and Detection").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import input_at


@dataclass(frozen=True)
class Activation:
    """An activation that cuts off: `low <= result <= high`, the identity in between. Relu is (0, inf)."""

    low: float
    high: float

    def apply(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The activation of `x`, elementwise."""
        return np.asarray(np.clip(x, x.dtype.type(self.low), x.dtype.type(self.high)))


@dataclass(frozen=True)
class Following:
    """What follows an output.

    Attributes:
        shortcut: the value of the same rank that is added to the output, where that Add alone reads the output.
        activation: what alone reads the output, or the sum; None where it is nothing that only cuts off.
    """

    shortcut: ir.Value | None = None
    activation: Activation | None = None


def following(output: ir.Value) -> Following:
    """What follows `output`, a value of the main graph."""
    reader = only_reader(output)
    shortcut = None
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        shortcut = next((value for value in reader.inputs if value is not output), None)
        if shortcut is None or not _may_be_shortcut(shortcut, output):
            return Following()
        reader = only_reader(reader.outputs[0])
    return Following(shortcut, None if reader is None else _activation(reader))


def _may_be_shortcut(value: ir.Value, output: ir.Value) -> bool:
    if constant_tensor(value) is not None or value.shape is None or output.shape is None:
        return False
    return len(value.shape) == len(output.shape)


def _activation(node: ir.Node) -> Activation | None:
    if node.domain != "":
        return None
    if node.op_type == "Relu":
        return Activation(0.0, math.inf)
    if node.op_type != "Clip":
        return None
    if len(node.inputs) == 1:
        return Activation(attributes.number(node, "min", -math.inf), attributes.number(node, "max", math.inf))
    low, high = _bound(node, 1, -math.inf), _bound(node, 2, math.inf)
    return None if low is None or high is None else Activation(low, high)


def _bound(node: ir.Node, index: int, default: float) -> float | None:
    value = input_at(node, index)
    if value is None:
        return default
    tensor = constant_tensor(value)
    return None if tensor is None or tensor.size != 1 else float(tensor.numpy().reshape(-1)[0])
