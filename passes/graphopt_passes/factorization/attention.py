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

import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.analysis.extents import Extents
from graphopt.ir.walk import constant_tensor, is_number
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt_passes.factorization.pairs import Pair
from graphopt_passes.reconstruction.linear import Linear, linear_layers


def attention_pairs(graph: ir.Graph, extents: Extents) -> list[Pair]:
    """All pairs of a graph."""
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
    return [pair for pair in pairs if pair is not None]


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
        named: see `Pair`.
        axes: see `Pair`.
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
        before, after = self.extents.dims(self.value), self.extents.dims(node.outputs[0])
        if before is None or after is None:
            return False
        if node.op_type == "Mul" and node.inputs[1] is self.value:
            return is_number(node.inputs[0]) and len(after) == len(before)
        if node.inputs[0] is not self.value:
            return False
        if node.op_type in ("Mul", "Div"):
            return is_number(node.inputs[1]) and len(after) == len(before)
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


def _scores(node: ir.Node, traces: Sequence[_Trace]) -> Pair | None:
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
    return Pair("scores", left.layer, right.layer, left.count, left.size, shifts, named, axes)


def _is_normalized(scores: ir.Value) -> bool:
    """Whether a Softmax over the last axis follows, behind scaling and what is added to all queries alike."""
    while (node := only_reader(scores)) is not None and node.domain == "":
        if node.op_type == "Softmax":
            rank = None if scores.shape is None else len(scores.shape)
            return attributes.integer(node, "axis", -1) in (-1, None if rank is None else rank - 1)
        scaled = node.op_type in ("Mul", "Div") and any(is_number(value) for value in node.inputs)
        if not scaled and node.op_type != "Add":
            return False
        scores = node.outputs[0]
    return False


def _values(node: ir.Node, traces: Sequence[_Trace], readers: Mapping[ir.Value, Linear]) -> Pair | None:
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
            return Pair("values", trace.layer, layer, count, trace.size, False, named, axes) if merged else None
        if not trace.step(reader):
            return None
    return None
