"""Where factorization applies: the linear layers of a graph, with what the cost of their replacements depends on.

A replacement runs some of its parts at the input's positions, some at the output's, and spatial pairs in between; the
number of each per sample, with the layer's own shape, prices every candidate without touching the graph.
"""

from __future__ import annotations

import dataclasses
import math

from graphopt.analysis.extents import Extents
from graphopt.ops import attributes
from graphopt_passes.reconstruction.linear import Linear


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A layer that may be replaced.

    Attributes:
        layer: the layer, in the network that is going to be compressed.
        kernel: extents (k1..kn) of the kernel of a Conv or ConvTranspose; () for products of matrices.
        strides: steps along the same axes.
        before: extents of the layer's input along these axes; () for products.
        after: extents of the output along these axes; for products, the number of rows.
        batch: samples that the extents are for.
        transposed: whether it is a ConvTranspose, whose weight meets every input position, not every output position.
    """

    layer: Linear
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    batch: int
    transposed: bool = False

    @property
    def groups(self) -> int:
        """Groups of channels that do not mix."""
        return self.layer.groups

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return self.layer.channels // self.layer.groups

    @property
    def channels(self) -> int:
        """Input channels of a group."""
        return self.layer.width // self.pixels

    @property
    def pixels(self) -> int:
        """Elements of the kernel; 1 for products."""
        return math.prod(self.kernel)

    @property
    def axes(self) -> tuple[int, ...]:
        """Extents (C, k1..kn) of the inputs of one group, in the order of the weight."""
        return (self.channels, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer as it is, for the batch."""
        return self.weights * (self.positions_between(()) if self.transposed else self.positions)

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.layer.channels * self.layer.width

    @property
    def positions(self) -> int:
        """Output positions, for the batch."""
        return self.batch * math.prod(self.after)

    def positions_between(self, strided: tuple[int, ...]) -> int:
        """Positions, for the batch, where only the spatial axes `strided` have the output's extent."""
        extents = [self.after[axis] if axis in strided else extent for axis, extent in enumerate(self.before)]
        return self.batch * math.prod(extents) if self.kernel else self.positions


def site_of(layer: Linear, extents: Extents) -> Site | str:
    """The site of a layer, or why it cannot be one."""
    node = layer.node
    source, target = extents.dims(layer.data), extents.dims(node.outputs[0])
    if source is None or target is None:
        return "the extents of its input or output are not known"
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = node.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        kernel = weight.shape.numpy()[2:]
        strides = attributes.integers(node, "strides") or (1,) * len(kernel)
        batch = source[0]
        return Site(
            layer, tuple(kernel), tuple(strides), tuple(source[2:]), tuple(target[2:]), batch, node.op_type != "Conv"
        )
    rows = math.prod(target) // max(1, layer.channels)
    return Site(layer, (), (), (), (rows,), 1)
