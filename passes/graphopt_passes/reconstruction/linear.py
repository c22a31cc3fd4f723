"""A linear layer as a matrix: what Conv, Gemm and MatMul have in common, read and written in one form.

    y[g] = weight[g] @ x[g] + bias[g]        weight: (G, C/G, K), x: (G, K, rows), one column per output position

For a Conv the rows are patches of its input (`graphopt.runtime.patches`), K = C_in/G * k1 * .. * kn in the order of the
weight's own axes; for Gemm and MatMul they are all positions of the input apart from its last axis, and G is 1. The
constant Add behind a MatMul counts as its bias.

A layer is known by the name of its output, which a rewrite keeps: it names the same activations in every version of a
model, however many nodes compute them there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.errors import UnsupportedModelError
from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import constant_tensor, label
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt.runtime.patches import Window
from graphopt.runtime.rows import ChannelRows, PatchRows, RowSource

Matrix: TypeAlias = npt.NDArray[np.float64]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class Linear:
    """One linear layer of a graph.

    Attributes:
        node: the Conv, Gemm or MatMul.
        adder: the Add that holds the bias of a MatMul, or None.
        groups: G, 1 but for grouped convolutions.
        channels: C, output channels over all groups.
        width: K, elements of one row of one group.
    """

    node: ir.Node
    adder: ir.Node | None
    groups: int
    channels: int
    width: int

    @property
    def output(self) -> ir.Value:
        """The layer's result, before any activation."""
        return (self.adder or self.node).outputs[0]

    @property
    def key(self) -> str:
        """The name of `output`: the layer's own in every version of the model."""
        return self.output.name or ""

    @property
    def data(self) -> ir.Value:
        """The activations that it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def channel_axis(self) -> int:
        """The axis of `output` that holds the channels."""
        return 1 if self.node.op_type == "Conv" else -1

    @property
    def takes_bias(self) -> bool:
        """Whether it has a bias or can be given one without another node."""
        return self.node.op_type != "MatMul" or self.adder is not None

    def rows(self) -> RowSource:
        """Turns `data` into the matrices (G, K, rows) that the weight is multiplied with."""
        return PatchRows(Window.of(self.node)) if self.node.op_type == "Conv" else ChannelRows(-1)

    def weight(self) -> Matrix:
        """(G, C/G, K) float64, a scale of Gemm's included."""
        stored = _array(self.node.inputs[1])
        if self.node.op_type == "Conv":
            return stored.reshape(self.groups, self.channels // self.groups, self.width)
        transposed = self.node.op_type == "Gemm" and attributes.integer(self.node, "transB", 0)
        matrix = stored if transposed else stored.T
        return np.ascontiguousarray(matrix)[None] * _alpha(self.node)

    def bias(self) -> Matrix | None:
        """(C,) float64; None where there is none."""
        if self.adder is not None:
            return np.broadcast_to(_array(_bias_operand(self.adder)).reshape(-1), (self.channels,)).copy()
        value = input_at(self.node, 2)
        if value is None:
            return None
        return np.broadcast_to(_array(value).reshape(-1), (self.channels,)) * _beta(self.node)

    def store(self, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating] | None, names: FreshNames) -> None:
        """Give the layer another weight and bias, in the element type of the old weight.

        Initializers that other nodes read as well stay as they are; the layer gets its own.

        Args:
            weight: (G, C/G, K).
            bias: (C,); None leaves the bias as it is.
            names: free names of the model.

        Raises:
            UnsupportedModelError: a bias for a layer that cannot take one.
        """
        old = self.node.inputs[1]
        assert old is not None
        assert old.shape is not None
        _put(self.node, 1, self.as_stored(weight, old.shape.numpy()), old, names)
        if bias is not None:
            self.store_bias(bias, names)

    def as_stored(self, weight: npt.NDArray[np.floating], extents: tuple[int, ...]) -> npt.NDArray[np.floating]:
        """A weight (G, C/G, K) as the node holds it, in these `extents`."""
        if self.node.op_type == "Conv":
            return weight.reshape(extents)
        transposed = self.node.op_type == "Gemm" and attributes.integer(self.node, "transB", 0)
        return np.asarray((weight[0] if transposed else weight[0].T) / _alpha(self.node))

    def store_bias(self, bias: npt.NDArray[np.floating], names: FreshNames) -> None:
        """Give the layer another bias, (C,), and leave its weight alone; see `store`.

        Raises:
            UnsupportedModelError: it takes none.
        """
        if not self.takes_bias:
            raise UnsupportedModelError(f"{label(self.node)} takes no bias")
        if self.adder is not None:
            value = _bias_operand(self.adder)
            _put(self.adder, self.adder.inputs.index(value), bias, value, names)
            return
        if len(self.node.inputs) < 3:
            self.node.resize_inputs(3)
        if _beta(self.node) != 1:
            self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        like = self.node.inputs[2] or self.node.inputs[1]
        assert like is not None
        _put(self.node, 2, bias, like, names)


def linear_of(node: ir.Node) -> Linear | None:
    """`node` as a linear layer; None where it is none, or its weight or bias is no constant of a floating type."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = constant_tensor(input_at(node, 1))
    if weight is None or weight.dtype not in FLOATS or len(weight.shape) < 2 or 0 in weight.shape.numpy():
        return None
    extents = weight.shape.numpy()
    if node.op_type == "Conv":
        groups = attributes.integer(node, "group", 1)
        layer = Linear(node, None, groups, extents[0], int(np.prod(extents[1:])))
        return layer if extents[0] % groups == 0 and bias_fits(node, extents[0]) else None
    if len(extents) != 2:
        return None
    if node.op_type == "Gemm":
        width, channels = extents[::-1] if attributes.integer(node, "transB", 0) else extents
        usable = not attributes.integer(node, "transA", 0) and _alpha(node) != 0 and bias_fits(node, channels)
        return Linear(node, None, 1, channels, width) if usable else None
    return Linear(node, _adder(node, extents[1]), 1, extents[1], extents[0])


def linear_layers(graph: Iterable[ir.Node]) -> list[Linear]:
    """All linear layers of a graph, in its order."""
    return [layer for layer in map(linear_of, graph) if layer is not None]


def _array(value: ir.Value | None) -> Matrix:
    tensor = constant_tensor(value)
    assert tensor is not None
    return np.asarray(tensor.numpy(), dtype=np.float64)


def _alpha(node: ir.Node) -> float:
    return attributes.number(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0


def _beta(node: ir.Node) -> float:
    return attributes.number(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0


def bias_fits(node: ir.Node, channels: int) -> bool:
    """Whether the bias is left out or one constant number per channel, or one for all."""
    return input_at(node, 2) is None or _per_channel(input_at(node, 2), channels)


def _per_channel(value: ir.Value | None, channels: int) -> bool:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in FLOATS or tensor.size not in (1, channels):
        return False
    extents = tensor.shape.numpy()
    return all(extent == 1 for extent in extents[:-1]) and len(extents) <= 2


def _adder(node: ir.Node, channels: int) -> ir.Node | None:
    """The Add of one constant number per channel that alone reads a MatMul."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add" or reader.domain != "":
        return None
    operand = next((value for value in reader.inputs if value is not node.outputs[0]), None)
    tensor = constant_tensor(operand)
    fits = tensor is not None and tensor.size == channels and _per_channel(operand, channels)
    return reader if fits and node.graph is reader.graph else None


def _bias_operand(adder: ir.Node) -> ir.Value:
    return next(value for value in adder.inputs if value is not None and constant_tensor(value) is not None)


def _put(node: ir.Node, index: int, array: npt.NDArray[np.floating], like: ir.Value, names: FreshNames) -> None:
    """Let input `index` of `node` be `array`, in the element type of `like`; in its place where nothing else reads it."""
    old = node.inputs[index]
    assert like.dtype is not None
    assert like.name is not None
    values = np.asarray(array, order="C").astype(like.dtype.numpy())
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(values, name=old.name)
        old.shape = ir.Shape(values.shape)
        return
    name = names.fresh(like.name if old is not None else f"{like.name}_bias")
    tensor = ir.Tensor(values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(like.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(value)
    node.replace_input_with(index, value)
