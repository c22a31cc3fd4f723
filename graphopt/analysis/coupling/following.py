"""Following labels through a graph: each operator's rule runs on one node after the other.

What comes out (`Following`) are the labels of every tensor, which labels go together, which must stay and why, where
there is a choice, and along which labels each constant is cut. Nothing is decided here yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.analysis import contents
from graphopt.analysis.coupling import constants
from graphopt.analysis.coupling.binding import Bound
from graphopt.ir import walk
from graphopt.ops import base
from graphopt.ops.channels import Option
from graphopt.ops.labels import FIXED, LARGEST, Ids, Labels, Opaque

MOST_ELEMENTS = 1 << 20
"""Elements of a constant that get an atom each."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})

COMBINED = "is combined with a tensor that keeps its channels"


def key(node: ir.Node) -> str:
    """What a node is called in an analysis: its first output."""
    return next((output.name for output in node.outputs if output.name), "")


@dataclasses.dataclass
class Following:
    """Labels of one model under one choice of its symbols, and what was found out about them.

    Attributes:
        labels: of each tensor of the main graph, by name.
        atoms: how many there are, 0 included.
        ties: pairs of arrays (n,), (n,) of labels that go together.
        pins: arrays of labels that stay, with the reason.
        choices: alternatives, of which one must hold, and why.
        cuts: by node and input, labels of the axes along which it is cut (see `Trace.cut`).
        produced: output channels of linear layers.
        consumed: their input channels.
        through: channels that pass through a layer with weights.
        names: how messages call those nodes.
    """

    labels: dict[str, Labels] = dataclasses.field(default_factory=dict)
    atoms: int = 1
    ties: list[tuple[Ids, Ids]] = dataclasses.field(default_factory=list)
    pins: list[tuple[Ids, str]] = dataclasses.field(default_factory=list)
    choices: list[tuple[str, tuple[Option, ...]]] = dataclasses.field(default_factory=list)
    cuts: dict[tuple[str, int], dict[int, Ids]] = dataclasses.field(default_factory=dict)
    produced: dict[str, Ids] = dataclasses.field(default_factory=dict)
    consumed: dict[str, Ids] = dataclasses.field(default_factory=dict)
    through: dict[str, Ids] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def fresh(self, *extents: int) -> Ids:
        """New atoms."""
        count = int(np.prod(extents, dtype=np.int64))
        ids = np.arange(self.atoms, self.atoms + count).reshape(extents)
        self.atoms += count
        return ids

    def tie(self, a: Ids, b: Ids, reason: str = COMBINED) -> None:
        """Labels at the same place go together; what meets one that stays, stays."""
        a, b = np.broadcast_arrays(a, b)
        differ = a != b
        a, b = a[differ], b[differ]
        stays = (a == FIXED) | (b == FIXED)
        if stays.any():
            self.pin(np.maximum(a, b)[stays], reason)
            a, b = a[~stays], b[~stays]
        if a.size:
            self.ties.append((a, b))

    def pin(self, ids: Ids, reason: str) -> None:
        """Labels that stay."""
        ids = ids[ids != FIXED]
        if ids.size:
            self.pins.append((np.unique(ids), reason))


def follow(model: ir.Model, bound: Bound, excluded: Callable[[ir.Node], bool]) -> Following:
    """Lead labels through the main graph of `model`."""
    return _Walk(model, bound, excluded).run()


class _Walk:
    def __init__(self, model: ir.Model, bound: Bound, excluded: Callable[[ir.Node], bool]) -> None:
        self.model = model
        self.bound = bound
        self.excluded = excluded
        self.found = Following()
        self.labels: dict[ir.Value, Labels | None] = {}
        self.constant: set[ir.Value] = set()
        self.weights: dict[ir.Value, Mapping[int, Ids]] = {}

    def run(self) -> Following:
        graph = self.model.graph
        for value in graph.inputs:
            self.settle(value, self.fixed(value))
        for value in graph.initializers.values():
            if constants.is_stored(value):
                self.constant.add(value)
        for node in graph:
            self.visit(node)
        for value in graph.outputs:
            labels = self.labels.get(value)
            if labels is not None:
                self.found.pin(labels.ids, f"feeds graph output '{value.name}'")
            self.keep_extents(value)
        return self.found

    def keep_extents(self, output: ir.Value) -> None:
        """Where a graph output is calculated from extents, the tensors that have these keep them."""
        pending, seen = [output], {output}
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or value in self.constant or self.bound.numbers(value) is None:
                continue
            sources = {source for source in node.inputs if source is not None} - seen
            seen |= sources
            pending.extend(sources)
            for labels in map(self.labels.get, sources) if node.op_type in contents.FROM_SHAPE_ALONE else ():
                if labels is not None:
                    self.found.pin(labels.ids, f"its extents are in graph output '{output.name}'")

    def visit(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        stored = any(map(constants.is_stored, node.outputs))
        if stored or (constants.computes_constants(node) and all(value in self.constant for value in inputs)):
            self.constant.update(node.outputs)
        elif all(self.bound.numbers(value) is not None for value in node.outputs if value.name):
            self.fix_outputs(node)
        else:
            self.flow(node)

    def flow(self, node: ir.Node) -> None:
        trace = _Trace(self, node)
        try:
            if self.excluded(node):
                raise Opaque("excluded")
            if node.op_identifier() in self.model.functions:
                raise Opaque(f"function {node.op_type}")
            if next(walk.subgraphs(node), None) is not None:
                raise Opaque(f"used by the bodies of {walk.label(node)}")
            base.operator(node).flow(node, trace)
        except Opaque as opaque:
            self.stop(node, str(opaque))
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            # The model's own numbers do not fit the operator, or an extent is not what a rule expects.
            self.stop(node, f"operator {node.op_type} that cannot be followed ({error})")
        else:
            trace.commit()

    def stop(self, node: ir.Node, reason: str) -> None:
        """Whatever enters `node` stays."""
        entering = [value for value in node.inputs if value is not None]
        for body in walk.subgraphs(node):
            for graph in walk.graph_and_bodies(body):
                entering.extend(value for inner in graph for value in inner.inputs if value is not None)
                entering.extend(graph.outputs)
        for value in entering:
            labels = self.labels.get(value)
            if labels is not None:
                self.found.pin(labels.ids, reason)
        self.fix_outputs(node)

    def fix_outputs(self, node: ir.Node) -> None:
        for value in node.outputs:
            self.settle(value, self.fixed(value))

    def fixed(self, value: ir.Value) -> Labels | None:
        dims = self.bound.dims(value)
        return None if dims is None else Labels.fixed(dims)

    def settle(self, value: ir.Value, labels: Labels | None) -> None:
        self.labels[value] = labels
        if labels is not None and value.name:
            self.found.labels[value.name] = labels

    def agree(self, value: ir.Value, axes: Mapping[int, Ids]) -> None:
        """All layers with one weight cut it alike."""
        origins = {axis: constants.origin(value, axis) for axis in range(len(value.shape or ()))}
        roots = {found[0] for found in origins.values() if found is not None}
        if len(roots) != 1:
            return
        (root,) = roots
        mine = {found[1]: axes[axis] for axis, found in origins.items() if found is not None and axis in axes}
        first = self.weights.setdefault(root, mine)
        if first is mine:
            return
        for axis in {*first, *mine}:
            a, b = first.get(axis, np.zeros(1, np.int64)), mine.get(axis, np.zeros(1, np.int64))
            if a.shape != b.shape and 1 not in (a.size, b.size):
                self.found.pin(a, SHARED)
                self.found.pin(b, SHARED)
                continue
            self.found.tie(a, b, SHARED)


SHARED = "shares its weight with a layer that keeps it"


class _Trace:
    """The `Trace` of one node. What its rule says counts once the rule has come to its end."""

    def __init__(self, walk_: _Walk, node: ir.Node) -> None:
        self._walk = walk_
        self._node = node
        self._found = walk_.found
        self._put: dict[int, Labels] = {}
        self._cuts: dict[int, dict[int, Ids]] = {}
        self._shared: set[int] = set()
        self._produced: Ids | None = None
        self._consumed: Ids | None = None
        self._through = False
        self._choices: list[tuple[str, tuple[Option, ...]]] = []

    def commit(self) -> None:
        """Note what the rule said."""
        found, name = self._found, key(self._node)
        found.choices.extend(self._choices)
        if self._produced is not None:
            found.produced[name] = self._produced
        if self._consumed is not None:
            found.consumed[name] = self._consumed
        found.names[name] = self._node.name or name
        for index, axes in self._cuts.items():
            self._commit_cut(name, index, axes)
        for index, value in enumerate(self._node.outputs):
            labels = self._put.get(index)
            self._walk.settle(value, labels if labels is not None else self._walk.fixed(value))
            if labels is not None and index == 0 and self._through:
                found.through[name] = labels.ids

    def _commit_cut(self, name: str, index: int, axes: dict[int, Ids]) -> None:
        value = self._input(index)
        for axis, ids in axes.items():
            if not constants.can_cut(value, axis):
                self._found.pin(ids, f"its parameter '{value.name}' is computed")
        self._found.cuts[name, index] = axes
        if index in self._shared:
            self._walk.agree(value, axes)

    def _input(self, index: int) -> ir.Value:
        value = base.input_at(self._node, index)
        if value is None:
            raise Opaque(f"{self._node.op_type} without input {index}")
        return value

    # --- What rules ask

    def has(self, index: int) -> bool:
        return base.input_at(self._node, index) is not None

    def is_constant(self, index: int) -> bool:
        return base.input_at(self._node, index) in self._walk.constant

    def dims(self, index: int) -> tuple[int, ...]:
        return self._dims(self._input(index))

    def output_dims(self, index: int = 0) -> tuple[int, ...]:
        return self._dims(self._node.outputs[index])

    def _dims(self, value: ir.Value) -> tuple[int, ...]:
        dims = self._walk.bound.dims(value)
        if dims is None:
            raise Opaque(f"{self._node.op_type} on tensors of unknown extents")
        return dims

    def outputs(self) -> int:
        return len(self._node.outputs)

    def labels(self, index: int) -> Labels:
        value = self._input(index)
        if value in self._walk.constant:
            return self._constant(index, value)
        labels = self._walk.labels.get(value)
        if labels is None:
            raise Opaque(f"{self._node.op_type} on tensors of unknown extents")
        return labels

    def _constant(self, index: int, value: ir.Value) -> Labels:
        dims = self._dims(value)
        size = int(np.prod(dims))
        if not 1 < size <= min(MOST_ELEMENTS, LARGEST) or value.dtype not in FLOATS:
            return Labels.fixed(dims)
        labels = Labels(dims, self._found.fresh(*dims))
        axes = {axis: np.moveaxis(labels.ids, axis, -1).reshape(-1, dims[axis]) for axis in labels.varying}
        self.cut(index, axes)
        return labels

    def numbers(self, index: int) -> np.ndarray:
        value = self._input(index)
        found = self._walk.bound.numbers(value)
        if found is None:
            tensor = walk.constant_tensor(value)
            if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
                raise Opaque(f"{self._node.op_type} by numbers that are computed")
            found = tensor.numpy()
        return found

    # --- What rules say

    def fresh(self, *extents: int) -> Ids:
        return self._found.fresh(*extents)

    def produce(self, count: int) -> Ids:
        self._produced = self._found.fresh(count)
        return self._produced

    def consume(self, ids: Ids) -> None:
        self._consumed = ids

    def passes_through(self) -> None:
        self._through = True

    def unite(self, a: Ids, b: Ids) -> None:
        self._found.tie(a, b)

    def pin(self, ids: Ids, reason: str) -> None:
        self._found.pin(ids, reason)

    def choose(self, reason: str, *options: Option) -> None:
        self._choices.append((reason, options))

    def cut(self, index: int, axes: Mapping[int, Ids], *, shared: bool = False) -> None:
        value = self._input(index)
        dims = self._dims(value)
        for axis, ids in axes.items():
            if dims[axis] != ids.shape[-1]:
                raise Opaque(f"'{value.name}' has {dims[axis]} elements along axis {axis}, not {ids.shape[-1]}")
        if value in self._walk.constant:
            self._cuts.setdefault(index, {}).update(axes)
            if shared:
                self._shared.add(index)
            return
        labels = self.labels(index)
        source = "may be given by the caller" if value.is_graph_input() else "is computed"
        for axis, ids in axes.items():
            shape = [1] * labels.rank
            shape[axis] = -1
            for row in ids.reshape(-1, ids.shape[-1]):
                self._found.tie(labels.ids, row.reshape(shape), f"its parameter '{value.name}' {source}")

    def put(self, index: int, labels: Labels) -> None:
        if labels.dims != self.output_dims(index):
            raise Opaque(f"{self._node.op_type} whose output is not of the extents that were inferred")
        self._put[index] = labels
