"""Attention heads in a graph: pairs of linear layers with the dimensions of heads between them, and how to make these fewer.

    scores   Gemm -> Reshape, Transpose, .. -> MatMul <- .. Transpose, Reshape <- Gemm
    values   Gemm -> Reshape, Transpose, .. -> MatMul -> Transpose, Reshape -> Gemm

Along the way the channels of a layer are followed as one axis, and from the Reshape that splits it as the axis of the d
dimensions of each head; heads may have been merged with other axes. Only what one reader follows, through Reshape, Transpose
and scaling by one number, can be changed: then d is named by the Reshapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.analysis.extents import Extents
from graphopt.ir.surgery import FreshNames, drop_unread
from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt_passes.numerics.head_ranks import Bases
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.linear import Linear, linear_layers


@dataclass(frozen=True, eq=False)
class Heads:
    """A pair of layers.

    Attributes:
        kind: what lies between them.
        first: makes queries, or values.
        second: makes keys, or reads what attention made of the values.
        count: H, heads.
        size: d, dimensions of each.
        shifts: whether a constant per query does not matter, because a Softmax over keys follows.
        named: Reshapes, with the element of their shape that names d or H d.
        axes: values between the layers, with the axis that has the extent d or H d.
    """

    kind: Literal["scores", "values"]
    first: Linear
    second: Linear
    count: int
    size: int
    shifts: bool
    named: tuple[tuple[ir.Node, int], ...]
    axes: tuple[tuple[ir.Value, int], ...]

    @property
    def judged(self) -> Linear:
        """The layer that a smaller rank can be written into with all extents as they are."""
        return self.first if self.kind == "scores" else self.second

    @property
    def other(self) -> Linear:
        """The other one."""
        return self.second if self.kind == "scores" else self.first


def attention_heads(graph: ir.Graph, extents: Extents) -> list[Heads]:
    """All pairs of a graph, of which no two have a layer in common."""
    products = [layer for layer in linear_layers(graph) if layer.node.op_type in ("Gemm", "MatMul")]
    traces: dict[ir.Node, list[_Trace]] = {}
    for layer in products:
        dims = extents.dims(layer.output)
        if dims is None or layer.output.is_graph_output():
            continue
        trace = _Trace(layer, extents, layer.output, len(dims) - 1)
        end = trace.follow()
        if end is not None:
            traces.setdefault(end, []).append(trace)
    readers = {layer.data: layer for layer in products}
    pairs = (_scores(node, ends) or _values(node, ends, readers) for node, ends in traces.items())
    found: dict[str, Heads] = {}
    for pair in pairs:
        if pair is not None and pair.first is not pair.second and not {pair.first.key, pair.second.key} & set(found):
            found |= {pair.first.key: pair, pair.second.key: pair}
    return list(dict.fromkeys(found.values()))


@dataclass
class _Trace:
    """Where the channels of a layer are, from its output on.

    Attributes:
        layer: the layer.
        extents: of all values.
        value: as far as they were followed.
        axis: of `value`, that holds the channels, or the dimensions of each head.
        outer: of `value`, that holds the heads, alone or as its fastest part; None before they are split, and for one head.
        size: d, 0 before the channels are split.
        named: see `Heads`.
        axes: see `Heads`.
    """

    layer: Linear
    extents: Extents
    value: ir.Value
    axis: int
    outer: int | None = None
    size: int = 0
    named: list[tuple[ir.Node, int]] = field(default_factory=list)
    axes: list[tuple[ir.Value, int]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """H, once they are split."""
        return self.layer.channels // self.size

    def follow(self) -> ir.Node | None:
        """The MatMul that reads the heads; None where something else comes first."""
        if self.layer.adder is not None:
            self.axes.append((self.layer.node.outputs[0], self.axis))
        self.axes.append((self.value, self.axis))
        while (node := only_reader(self.value)) is not None and node.domain == "":
            if node.op_type == "MatMul":
                self.size = self.size or self.layer.channels
                return node
            if not self.step(node):
                return None
        return None

    def step(self, node: ir.Node) -> bool:
        """Go on behind a node that only moves or scales the channels; whether it does."""
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or not self._moves(node):
            return False
        self.value = node.outputs[0]
        self.axes.append((self.value, self.axis))
        return True

    def _moves(self, node: ir.Node) -> bool:
        if node.op_type == "Mul" and node.inputs[1] is self.value:
            return _is_number(node.inputs[0])
        if node.inputs[0] is not self.value:
            return False
        if node.op_type in ("Mul", "Div"):
            return _is_number(node.inputs[1])
        before, after = self.extents.dims(self.value), self.extents.dims(node.outputs[0])
        if before is None or after is None:
            return False
        if node.op_type == "Transpose":
            order = attributes.integers(node, "perm") or tuple(range(len(before)))[::-1]
            self.axis = order.index(self.axis)
            self.outer = None if self.outer is None else order.index(self.outer)
            return True
        return node.op_type == "Reshape" and self._reshaped(node, before, after)

    def _reshaped(self, node: ir.Node, before: Sequence[int], after: Sequence[int]) -> bool:
        axis = _same_place(before, self.axis, after)
        if axis is None or not self._names(node, axis, after[axis]):
            return False
        channels, kept = self.layer.channels, after[axis] == before[self.axis]
        if not kept and not self.size and channels % after[axis] == 0:
            self.size = after[axis]
            heads = axis - 1 if axis and after[axis - 1] % self.count == 0 else None
            self.outer = heads if self.count > 1 else None
            split = heads is not None or self.count == 1
            self.axis = axis
            return split
        if not kept and after[axis] == channels and self.size:
            inner = self.size * math.prod(before[self.axis + 1 :])
            merges = self.outer is None or math.prod(before[self.outer + 1 :]) == inner
            self.axis, self.outer = axis, None
            return merges
        if kept and self.outer is not None:
            outer = _same_place(before, self.outer, after)
            if outer is None or after[outer] % self.count:
                return False
            self.outer = outer
        self.axis = axis
        return kept

    def _names(self, node: ir.Node, index: int, extent: int) -> bool:
        """Whether the shape of a Reshape names an extent so that it can be changed."""
        shape = constant_tensor(input_at(node, 1))
        given = None if shape is None else int(shape.numpy().reshape(-1)[index])
        if given == extent:
            self.named.append((node, index))
        return given in (extent, -1)


def _same_place(before: Sequence[int], axis: int, after: Sequence[int]) -> int | None:
    """The axis of `after` that begins where `axis` of `before` does, in a row-major array of another shape."""
    behind = math.prod(before[axis + 1 :])
    places = (index for index, extent in enumerate(after) if extent > 1 and math.prod(after[index + 1 :]) == behind)
    return next(places, None)


def _is_number(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1 and all(extent == 1 for extent in tensor.shape.numpy())


def _scores(node: ir.Node, traces: Sequence[_Trace]) -> Heads | None:
    left = next((one for one in traces if one.value is node.inputs[0]), None)
    right = next((one for one in traces if one.value is node.inputs[1]), None)
    if left is None or right is None or left is right:
        return None
    rank = len(left.extents.dims(left.value) or ())
    meets = rank == len(right.extents.dims(right.value) or ()) and (left.axis, right.axis) == (rank - 1, rank - 2)
    alike = (left.layer.channels, left.size, left.outer) == (right.layer.channels, right.size, right.outer)
    if not meets or not alike or (left.outer is not None and left.outer >= rank - 2):
        return None
    named, axes = (*left.named, *right.named), (*left.axes, *right.axes)
    shifts = _is_normalized(node.outputs[0])
    return Heads("scores", left.layer, right.layer, left.count, left.size, shifts, named, axes)


def _is_normalized(scores: ir.Value) -> bool:
    """Whether a Softmax over the last axis follows, behind scaling and what is added to all queries alike."""
    while (node := only_reader(scores)) is not None and node.domain == "":
        if node.op_type == "Softmax":
            rank = None if scores.shape is None else len(scores.shape)
            return attributes.integer(node, "axis", -1) in (-1, None if rank is None else rank - 1)
        scaled = node.op_type in ("Mul", "Div") and any(_is_number(value) for value in node.inputs)
        if not scaled and node.op_type != "Add":
            return False
        scores = node.outputs[0]
    return False


def _values(node: ir.Node, traces: Sequence[_Trace], readers: Mapping[ir.Value, Linear]) -> Heads | None:
    trace = next((one for one in traces if one.value is node.inputs[1] and one.value is not node.inputs[0]), None)
    if trace is None or node.outputs[0].is_graph_output():
        return None
    ranks = [len(trace.extents.dims(value) or ()) for value in (*node.inputs, *node.outputs)]
    inside = trace.axis == ranks[1] - 1 and (trace.outer is None or trace.outer < ranks[1] - 2)
    if len(set(ranks)) > 1 or not inside:
        return None
    count, trace.value = trace.count, node.outputs[0]
    trace.axes.append((trace.value, trace.axis))
    while (reader := only_reader(trace.value)) is not None and reader.domain == "":
        layer = readers.get(trace.value)
        if layer is not None and layer.node is reader:
            whole = trace.extents.dims(trace.value) or ()
            merged = trace.axis == len(whole) - 1 and whole[-1] == layer.width == trace.layer.channels
            named, axes = tuple(trace.named), tuple(trace.axes)
            return Heads("values", trace.layer, layer, count, trace.size, False, named, axes) if merged else None
        if not trace.step(reader):
            return None
    return None


def shrink(pair: Heads, bases: Bases, names: FreshNames) -> dict[str, Array]:
    """Give the heads of a pair as many dimensions as `bases` have.

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


def _name(node: ir.Node, index: int, pair: Heads, rank: int, names: FreshNames) -> None:
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
