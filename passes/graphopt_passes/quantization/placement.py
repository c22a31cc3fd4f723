"""Where a model runs on integers: which nodes, and which values are quantized for them.

It starts from the operators with constant weights, which do nearly all of the work. Each needs its input quantized and,
unless its kernel can leave the result in float, its output too, behind an activation that the output's range absorbs.
Operators without weights join where they lie between such nodes, for there the integers are at hand on both sides: what
they read comes from integer kernels, and an integer kernel reads what they make. All others stay float, between a
DequantizeLinear and a QuantizeLinear where that lets their neighbours run on integers.

Values that hold the same numbers (data movement, MaxPool, and what the target ties) form one group with one scale.

What stays float on purpose: heads, the last layers before graph outputs or before NonMaxSuppression, TopK and ArgMax
with nothing but elementwise work in between, where an error of one step shows in a box or changes an order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import IntegerForm, input_at, operator
from graphopt_passes.quantization.groups import Groups
from graphopt_passes.quantization.targets import Target

SELECTORS = frozenset({"NonMaxSuppression", "TopK", "ArgMax", "ArgMin"})
"""Operators that turn small differences of their input into other results."""

NOT_FINITE = "its weight or bias is not finite"
"""Why a layer stays float that makes the values behind it NaN or infinity."""

EXCLUDED = "excluded"
"""Why a node stays float that the caller asked for."""

QUANTIZED = "it is quantized already"
"""Why a layer is left alone whose weight is stored in integers."""

_AVERAGING = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """An operator with constant weights that runs on integers.

    Attributes:
        node: the operator.
        form: where its inputs stand.
        data: the value that it works on.
        weight: the float32 weight.
        bias: the float32 bias, None where it has none or cannot have one.
    """

    node: ir.Node
    form: IntegerForm
    data: ir.Value
    weight: ir.TensorProtocol
    bias: ir.TensorProtocol | None

    @property
    def key(self) -> str:
        """What the layer is called in recipes: the name of its output, which is unique."""
        return self.node.outputs[0].name or ""

    @property
    def axis(self) -> int:
        """The axis of the weight that holds the output channels."""
        assert self.form.channel_axis is not None
        return self.form.channel_axis % len(self.weight.shape)

    @property
    def activation_axis(self) -> int:
        """The axis of the data, and of the output, that holds the channels."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1

    def met(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(C,) numbers of the data's channels, as each weight of the matrix (channels, inputs) meets them."""
        shape = self.weight.shape.numpy()
        if self.node.op_type not in ("Conv", "ConvTranspose"):
            return np.broadcast_to(numbers, (shape[self.axis], len(numbers)))
        taps = math.prod(shape[2:])
        if self.node.op_type == "ConvTranspose":  # its groups share rows
            return np.broadcast_to(np.repeat(numbers, taps), (shape[1], len(numbers) * taps))
        groups = self.node.attributes.get_int("group", 1)
        inputs = np.repeat(numbers.reshape(groups, shape[1]), taps, axis=1)
        return np.repeat(inputs, shape[0] // groups, axis=0)


@dataclasses.dataclass
class Placement:
    """The decision for one graph.

    Attributes:
        layers: operators with weights on integers, in topological order.
        others: operators without weights on integers.
        absorbed: activations that run inside the kernel before them.
        groups: the quantized values.
        kept: nodes with an integer kernel that stay float, and why.
    """

    layers: list[Layer] = dataclasses.field(default_factory=list)
    others: dict[ir.Node, IntegerForm] = dataclasses.field(default_factory=dict)
    absorbed: set[ir.Node] = dataclasses.field(default_factory=set)
    groups: Groups = dataclasses.field(default_factory=Groups)
    kept: dict[ir.Node, str] = dataclasses.field(default_factory=dict)

    def integer_nodes(self) -> Iterator[ir.Node]:
        """All nodes that run on integers."""
        yield from (layer.node for layer in self.layers)
        yield from self.others


def place(
    graph: ir.Graph,
    target: Target,
    *,
    excluded: Callable[[ir.Node], bool] = lambda node: False,
    keep_heads: bool = True,
) -> Placement:
    """Decide for `graph`, whose nodes are in topological order, without what is in its bodies.

    Args:
        graph: a graph with types and shapes.
        target: what the runtime can do.
        excluded: nodes that stay float.
        keep_heads: whether heads stay float.
    """
    return _Placing(graph, target, excluded, keep_heads).run()


class _Placing:
    def __init__(self, graph: ir.Graph, target: Target, excluded: Callable[[ir.Node], bool], keep_heads: bool) -> None:
        self.nodes = tuple(graph)
        self.target = target
        self.excluded = excluded
        self.heads = _heads(self.nodes, target) if keep_heads else frozenset()
        self.found = Placement()
        self.integer: dict[ir.Node, IntegerForm] = {}
        self.limits: dict[ir.Value, tuple[float, float] | None] = {}

    def run(self) -> Placement:
        for node in self.nodes:
            layer = self._layer(node)
            if isinstance(layer, Layer):
                self.found.layers.append(layer)
                self.integer[node] = layer.form
            elif layer is not None:
                self.found.kept[node] = layer
        self._join()
        self._absorb()
        for node, form in self.integer.items():
            self._quantize_around(node, form)
        return self.found

    def _layer(self, node: ir.Node) -> Layer | str | None:
        """The layer that `node` is; why it stays float; None where it has no weights."""
        form = self._form(node)
        if form is None or form.weight is None:
            return None
        data, weight = input_at(node, form.data[0]), input_at(node, form.weight)
        if data is None or weight is None:
            return None
        if _is_quantized(weight):
            return QUANTIZED
        if _is_quantized(data) or self._is_quantized_behind(node):
            return "what it reads or makes is quantized already"
        tensor = constant_tensor(weight)
        if tensor is None:
            return self._product(node, form)
        if self.excluded(node):
            return EXCLUDED
        if constant_tensor(data) is not None:
            return "both of its inputs are constant"
        if tensor.dtype != ir.DataType.FLOAT or data.dtype != ir.DataType.FLOAT:
            return f"its weight is {tensor.dtype.name.lower()}, not float32"
        if len(tensor.shape) < 2 or (node.op_type == "MatMul" and len(tensor.shape) != 2):
            return f"its weight has {len(tensor.shape)} axes"
        if node in self.heads:
            return "it is a head: what it computes reaches an output or a selection as it is"
        bias = None if form.bias is None else input_at(node, form.bias)
        constant = constant_tensor(bias)
        if bias is not None and constant is None:
            return "its bias is not constant"
        if constant is not None and constant.size != 1 and constant.size != constant.shape[-1]:
            return "its bias differs from row to row"
        if not all(np.isfinite(array.numpy()).all() for array in (tensor, constant) if array is not None):
            return NOT_FINITE
        return Layer(node, form, data, tensor, constant)

    def _product(self, node: ir.Node, form: IntegerForm) -> str | None:
        """A product of two activations: it may join as an operator without weights."""
        if not self.target.products or node.op_type != "MatMul":
            return "its weight is not constant"
        if not self.excluded(node) and all(_may_quantize(value) for value in node.inputs):
            self.integer[node] = form
            self.found.others[node] = form
        return None

    def _form(self, node: ir.Node) -> IntegerForm | None:
        if node.domain != "" or node.op_type not in self.target.kernels:
            return None
        return operator(node).integer_form(node)

    def _join(self) -> None:
        """Let the operators between integer nodes join them."""
        at_hand = {value for node, form in self.integer.items() for value in _data(node, form)}
        candidates: dict[ir.Node, IntegerForm] = {}
        for node in self.nodes:
            if node in self.integer:
                at_hand.update(node.outputs)
                continue
            form = self._candidate(node)
            if form is None:
                continue
            ready = [value in at_hand for value in _data(node, form)]
            if ready and (all(ready) or (node.op_type == "Concat" and any(ready))):
                candidates[node] = form
                at_hand.update(node.outputs)
        for node in reversed(self.nodes):
            form = candidates.get(node)
            if form is not None and any(self._wants(use.node, use.idx) for out in node.outputs for use in out.uses()):
                self.integer[node] = self.found.others[node] = form

    def _candidate(self, node: ir.Node) -> IntegerForm | None:
        form = self._form(node)
        if form is None or form.weight is not None or self.excluded(node):
            return None
        data = [input_at(node, index) for index in form.data]
        return form if all(_may_quantize(value) for value in data) else None

    def _wants(self, node: ir.Node, index: int) -> bool:
        form = self.integer.get(node)
        return form is not None and index in form.data

    def _absorb(self) -> None:
        """Leave activations to the kernels before them, and note between which numbers these keep values."""
        for node in self.nodes:
            form = self.integer.get(node)
            reader = self._absorbed(node)
            if reader is not None:
                self.found.absorbed.add(reader)
                self.found.others.pop(reader, None)
                self.integer.pop(reader, None)
                self.limits[reader.outputs[0]] = bounds(reader)
            elif form is not None and form.same_scale:
                limits = {self.limits.get(value) for value in _data(node, form)}
                if len(limits) == 1:
                    self.limits.update(dict.fromkeys(node.outputs, limits.pop()))

    def _absorbed(self, node: ir.Node) -> ir.Node | None:
        """The activation that runs inside the kernel of `node`."""
        form = self.integer.get(node)
        if form is None or form.same_scale or len(node.outputs) != 1:
            return None
        reader = only_reader(node.outputs[0])
        return None if reader is None or self.excluded(reader) or not self._may_absorb(reader) else reader

    def _may_absorb(self, node: ir.Node) -> bool:
        limits = bounds(node) if node.domain == "" and node.op_type in self.target.absorbed else None
        return limits is not None and limits[0] <= 0 <= limits[1]

    def _is_quantized_behind(self, node: ir.Node) -> bool:
        """Whether what `node` makes is quantized already, behind an activation or not."""
        reader = only_reader(node.outputs[0])
        behind = reader.outputs if reader is not None and self._may_absorb(reader) else ()
        return any(use.node.op_type == "QuantizeLinear" for value in (*node.outputs, *behind) for use in value.uses())

    def _quantize_around(self, node: ir.Node, form: IntegerForm) -> None:
        """Quantize what `node` reads and what it makes, and tie what holds the same numbers."""
        values = inputs = _data(node, form)
        for output in node.outputs:
            reader = only_reader(output)
            made = reader.outputs[0] if reader is not None and reader in self.found.absorbed else output
            wanted = any(self._wants(use.node, use.idx) for use in made.uses())
            needed = made.uses() or made.is_graph_output()
            if wanted or (needed and node.op_type not in self.target.float_results):
                values = [*values, made]
        for value in values:
            self.found.groups.add(value)
        if node.op_type in self.target.tied:
            alike = len({self.limits.get(value) for value in inputs}) == 1
            values = [value for value in values if value not in inputs or self._may_tie(value, alike=alike)]
        elif not form.same_scale:
            return
        for value in values:
            self.found.groups.tie(values[-1], value)

    def _may_tie(self, value: ir.Value, *, alike: bool) -> bool:
        """Whether a kernel makes `value` for one reader, whose scale it may take without a loss for others.

        An activation is only absorbed by a range inside its limits, which is not the case once it is shared with values
        that are not `alike`.
        """
        if not alike and self.limits.get(value) is not None:
            return False
        producer = value.producer()
        form = None if producer is None else self.integer.get(producer)
        return only_reader(value) is not None and not (form is not None and form.same_scale)


def _data(node: ir.Node, form: IntegerForm) -> list[ir.Value]:
    """The activations that `node` reads as quantized numbers."""
    values = (input_at(node, index) for index in form.data)
    return [value for value in values if value is not None and constant_tensor(value) is None]


def _may_quantize(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.dtype == ir.DataType.FLOAT
        and constant_tensor(value) is None
        and not _is_quantized(value)
    )


def bounds(activation: ir.Node) -> tuple[float, float] | None:
    """Between which numbers a Relu or Clip keeps its output; None where that is not known."""
    if activation.op_type == "Relu":
        return 0.0, math.inf
    bounds = [-math.inf, math.inf]
    for index in (0, 1):
        value = input_at(activation, index + 1)
        tensor = constant_tensor(value)
        if tensor is not None and tensor.size == 1:
            bounds[index] = float(tensor.numpy().reshape(()))
        elif value is not None:
            return None
    return bounds[0], bounds[1]


def _is_quantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _heads(nodes: Iterable[ir.Node], target: Target) -> frozenset[ir.Node]:
    """Layers whose result, but for elementwise work and data movement, is a graph output or is selected from.

    A result that is averaged on the way is not meant, nor one that the kernel leaves in float anyway.
    """
    exposed: set[ir.Value] = set()
    heads = set()
    for node in reversed(tuple(nodes)):
        outputs = [output for output in node.outputs if output.is_graph_output() or output in exposed]
        if node.op_type in SELECTORS:
            exposed.update(value for value in node.inputs if value is not None)
            continue
        if not outputs:
            continue
        form = operator(node).integer_form(node)
        if form is not None and form.weight is not None and constant_tensor(input_at(node, form.weight)) is not None:
            if node.op_type not in target.float_results:
                heads.add(node)
        elif node.op_type not in _AVERAGING:
            exposed.update(value for value in node.inputs if value is not None)
    return frozenset(heads)
