"""ConvTranspose as a product: every input position is multiplied with a matrix and its contributions are spread out.

    contributions[g] = weight[g] @ x[g]        weight: (G, O/G k1 .. kn, C/G), x: (G, C/G, input positions)

A product of low rank is a 1 x 1 Conv to r channels, then a ConvTranspose from there. The metric is the second moment of the
input's channels; contributions that overlap are taken as independent. There is no refit towards the original's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import Gram
from graphopt_passes.factorization.sites import Site
from graphopt_passes.numerics.quadratic import Array
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


def transposed_site(layer: TransposedLinear, extents: Extents) -> Site | str:
    """The site of a layer, as a product over its input positions."""
    source = extents.dims(layer.data)
    if source is None:
        return "the extents of its input are not known"
    return Site(layer, (), (), (), (math.prod(source[2:]),), source[0])


def second_moments(model: ir.Model, layers: Iterable[Linear], evidence: Evidence) -> Mapping[str, list[Array]]:
    """Per layer, by key, E[x xᵀ] of every group's input channels: (C/G, C/G)."""
    wanted = {layer.key: (layer, Gram(layer.data.name or "", 1)) for layer in layers}
    if not wanted:
        return {}
    found = evidence.collect(model, [request for _, request in wanted.values()])
    result = {}
    for key, (layer, request) in wanted.items():
        second, width = found[request].second, layer.width
        result[key] = [second[at : at + width, at : at + width] for at in range(0, len(second), width)]
    return result
