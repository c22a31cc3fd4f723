"""ConvTranspose as a product: every input position is multiplied with a matrix and its contributions are spread out.

    contributions[g] = weight[g] @ x[g]        weight: (G, O/G k1 .. kn, C/G), x: (G, C/G, input positions)

Contributions that overlap add up behind the product, so that rows of its result cannot be seen, and it is not refitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt_passes.reconstruction.linear import Linear, Matrix

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class TransposedLinear(Linear):
    """A ConvTranspose as a linear layer; `channels` counts contributions, `width` is C/G."""

    @property
    def takes_bias(self) -> bool:
        """The bias is added behind the sum of contributions, and stays."""
        return False

    def weight(self) -> Matrix:
        """(G, O/G k1 .. kn, C/G) float64."""
        tensor = constant_tensor(self.node.inputs[1])
        assert tensor is not None
        stored = np.asarray(tensor.numpy(), dtype=np.float64)
        return np.ascontiguousarray(stored.reshape(self.groups, self.width, -1).transpose(0, 2, 1))

    def bias(self) -> Matrix | None:
        """None: see `takes_bias`."""
        return None

    def store(self, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating] | None, names: FreshNames) -> None:
        """Give the layer another weight (G, O/G k1 .. kn, C/G), as an initializer of its own."""
        old, graph = self.node.inputs[1], self.node.graph
        assert old is not None
        assert old.shape is not None
        assert old.dtype is not None
        assert isinstance(graph, ir.Graph)
        array = weight.transpose(0, 2, 1).reshape(old.shape.numpy()).astype(old.dtype.numpy())
        name = names.fresh(f"{old.name}_part")
        tensor = ir.Tensor(np.ascontiguousarray(array), dtype=old.dtype, name=name)
        value = ir.Value(name=name, type=ir.TensorType(old.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        graph.register_initializer(value)
        self.node.replace_input_with(1, value)


def transposed_layers(graph: Iterable[ir.Node]) -> list[TransposedLinear]:
    """All ConvTranspose nodes with constant weights of a floating type."""
    found = []
    for node in graph:
        if node.op_type != "ConvTranspose" or node.domain != "":
            continue
        weight = constant_tensor(input_at(node, 1))
        if weight is None or weight.dtype not in _FLOATS or len(weight.shape) < 3 or 0 in weight.shape.numpy():
            continue
        inputs, outputs, *kernel = weight.shape.numpy()
        groups = attributes.integer(node, "group", 1)
        if inputs % groups == 0:
            channels = groups * outputs * math.prod(kernel)
            found.append(TransposedLinear(node, None, groups, channels, inputs // groups))
    return found
