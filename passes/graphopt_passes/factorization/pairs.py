"""Two layers that share dimensions between them: what both lose together, and how it is written.

    scores, values   the dimensions of attention heads           (`attention`)
    hidden           the units between two products, behind an elementwise function      (`feed_forward`)

Either way the first layer gets fewer outputs, and the other one as many fewer outputs or inputs; the extents between them are
named by Reshapes alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames, drop_unread
from graphopt.ir.walk import constant_tensor
from graphopt_passes.numerics.head_ranks import Bases
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.linear import Linear


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair of layers.

    Attributes:
        kind: what lies between them.
        first: makes queries, values, or hidden units.
        second: makes keys, or reads what became of the values or the hidden units.
        count: H, heads; 1 for hidden units.
        size: d, dimensions of each; hidden units.
        shifts: whether a constant per query does not matter, because a Softmax over keys follows.
        named: Reshapes, with the element of their shape that names d or H d.
        axes: values between the layers, with the axis that has the extent d or H d.
    """

    kind: Literal["scores", "values", "hidden"]
    first: Linear
    second: Linear
    count: int
    size: int
    shifts: bool
    named: tuple[tuple[ir.Node, int], ...]
    axes: tuple[tuple[ir.Value, int], ...]

    @property
    def scheme(self) -> str:
        """What it is called in options."""
        return "hidden" if self.kind == "hidden" else "heads"

    @property
    def judged(self) -> Linear:
        """The layer that a smaller rank can be written into with all extents as they are."""
        return self.first if self.kind == "scores" else self.second

    @property
    def other(self) -> Linear:
        """The other one."""
        return self.second if self.kind == "scores" else self.first


def shrink(pair: Pair, bases: Bases, names: FreshNames) -> dict[str, Array]:
    """Give a pair as many dimensions as `bases` have.

    Returns, by the layers' keys, what the output of a layer was multiplied with: (H r, H d).
    """
    rank = bases.first.shape[1]
    turned = {pair.first.key: _block_diagonal(bases.first)}
    if pair.kind == "scores":
        turned[pair.second.key] = _block_diagonal(bases.second)
    for layer in (pair.first, pair.second):
        matrix = turned.get(layer.key)
        if matrix is None:
            layer.store(bases.second[None], None, names)
            continue
        bias = layer.bias()
        layer.store((matrix @ layer.weight()[0])[None], None if bias is None else matrix @ bias, names)
    for node, index in dict.fromkeys(pair.named):
        _name(node, index, pair, rank, names)
    for value, axis in pair.axes:
        if value.shape is not None:
            dims = list(value.shape)
            dims[axis] = rank if dims[axis] == pair.size else pair.count * rank
            value.shape = ir.Shape(dims)
    return turned


def _name(node: ir.Node, index: int, pair: Pair, rank: int, names: FreshNames) -> None:
    old = node.inputs[1]
    tensor = constant_tensor(old)
    assert old is not None
    assert tensor is not None
    assert isinstance(node.graph, ir.Graph)
    shape = np.array(tensor.numpy())
    shape[index] = rank if shape[index] == pair.size else pair.count * rank
    name = names.fresh(f"{old.name}_heads")
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(shape.shape),
        const_value=ir.Tensor(shape, name=name),
    )
    node.graph.register_initializer(value)
    node.replace_input_with(1, value)
    drop_unread([old])


def _block_diagonal(blocks: Array) -> Array:
    """(H r, H d) from (H, r, d)."""
    count, rank, size = blocks.shape
    whole = np.zeros((count, rank, count, size))
    whole[np.arange(count), :, np.arange(count), :] = blocks
    return whole.reshape(count * rank, -1)


def disjoint(pairs: Iterable[Pair]) -> list[Pair]:
    """Those of `pairs` that have no layer in common with one before, nor with themselves."""
    taken: set[str] = set()
    found = []
    for pair in pairs:
        keys = {pair.first.key, pair.second.key}
        if len(keys) == 2 and not keys & taken:
            taken |= keys
            found.append(pair)
    return found
