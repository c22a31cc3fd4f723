"""ConvTranspose as a linear layer: a product with patches of its input, as a Conv is one (`runtime.transposed_patches`).

    y[g] = weight[g] @ x[g] + bias[g]        weight: (G, M/G, C/G k1 .. kn), one column of x per output position

It is fitted, observed and refitted like any other layer. Few passes take it in: those that ask for `layers_of`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import UnsupportedModelError
from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import input_at
from graphopt.runtime.rows import RowSource
from graphopt.runtime.transposed_patches import TransposedRows, TransposedWindow
from graphopt_passes.reconstruction.linear import FLOATS, Linear, Matrix, bias_fits, linear_of


@dataclass(frozen=True)
class TransposedLinear(Linear):
    """A ConvTranspose."""

    @property
    def window(self) -> TransposedWindow:
        """How its kernel spreads."""
        return TransposedWindow.of(self.node)

    @property
    def channel_axis(self) -> int:
        """The axis of `output` that holds the channels."""
        return 1

    def rows(self) -> RowSource:
        """Turns `data` into the matrices (G, K, rows) that the weight is multiplied with."""
        return TransposedRows(self.window)

    def weight(self) -> Matrix:
        """(G, M/G, K) float64."""
        tensor = constant_tensor(self.node.inputs[1])
        assert tensor is not None
        stored = np.asarray(tensor.numpy(), dtype=np.float64)  # (C, M/G, k1 .. kn)
        by_group = stored.reshape(self.groups, len(stored) // self.groups, stored.shape[1], -1)
        return np.ascontiguousarray(by_group.transpose(0, 2, 1, 3)).reshape(self.groups, stored.shape[1], self.width)

    def as_stored(self, weight: npt.NDArray[np.floating], extents: tuple[int, ...]) -> npt.NDArray[np.floating]:
        """See `Linear`."""
        by_group = weight.reshape(self.groups, extents[1], extents[0] // self.groups, -1)
        return by_group.transpose(0, 2, 1, 3).reshape(extents)


def transposed_of(node: ir.Node) -> TransposedLinear | None:
    """`node` as a layer; None where it is none, or its weight or bias is no constant of a floating type."""
    if node.op_type != "ConvTranspose" or node.domain != "":
        return None
    weight = constant_tensor(input_at(node, 1))
    if weight is None or weight.dtype not in FLOATS or len(weight.shape) < 3 or 0 in weight.shape.numpy():
        return None
    try:
        window = TransposedWindow.of(node)
    except UnsupportedModelError:
        return None
    inputs, outputs, *kernel = weight.shape.numpy()
    channels = window.groups * outputs
    if inputs % window.groups or not bias_fits(node, channels):
        return None
    return TransposedLinear(node, None, window.groups, channels, inputs // window.groups * int(np.prod(kernel)))


def transposed_layers(graph: Iterable[ir.Node]) -> list[TransposedLinear]:
    """All layers of a graph that are ConvTransposes, in its order."""
    return [layer for layer in map(transposed_of, graph) if layer is not None]


def layers_of(graph: Iterable[ir.Node]) -> list[Linear]:
    """All linear layers of a graph, ConvTransposes included, in its order."""
    found = (linear_of(node) or transposed_of(node) for node in graph)
    return [layer for layer in found if layer is not None]
