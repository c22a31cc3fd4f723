"""Questions about values: who alone reads one, which are known before the first run, and how large they are."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from graphopt.ir.carry import carry_of
from graphopt.ir.walk import constant_tensor, subgraphs
from graphopt.ops.base import OPAQUE, Extents, operator

_NOT_COMPUTED_BEFORE = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "DequantizeLinear",  # integer kernels want the weight as it is stored
    }
)


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value`, once and in the same graph; None where anything else can see it."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (use,) = uses
    producer = value.producer()
    return use.node if producer is None or use.node.graph is producer.graph else None


class Folded:
    """The nodes of a graph that a runtime does away with when the session is made.

    Those are nodes that depend on constants alone, and nodes that change nothing (Identity, Dropout). Shape and Size of
    a value with static dims are constants, because exporters derive masks and position tables from them; operators
    outside of the table and control flow never are.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._constant: dict[ir.Value, bool] = {}
        self._sources: dict[ir.Value, ir.Value] = {}
        self._nodes: set[ir.Node] = set()
        for node in graph:
            if self._is_known(node):
                self._nodes.add(node)
                self._constant.update(dict.fromkeys(node.outputs, True))
            elif node.op_type in ("Identity", "Dropout") and (unchanged := _unchanged(node)) is not None:
                self._nodes.add(node)
                self._sources[node.outputs[0]] = self.source(unchanged)

    def __contains__(self, node: ir.Node) -> bool:
        return node in self._nodes

    def is_constant(self, value: ir.Value) -> bool:
        """Whether `value` is an initializer or computed from initializers alone."""
        known = self._constant.get(value)
        if known is None:
            known = self._constant[value] = constant_tensor(value) is not None
        return known

    def source(self, value: ir.Value) -> ir.Value:
        """What is really read where `value` is: the value before nodes that change nothing."""
        return self._sources.get(value, value)

    def _is_known(self, node: ir.Node) -> bool:
        if node.op_type == "Constant" and node.domain == "":
            return True
        if node.op_type in ("Shape", "Size") and node.domain == "":
            shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
            if shape is not None and shape.is_static():
                return True
        for value in node.inputs:
            if value is not None and not self.is_constant(value):
                return False
        if node.op_type in _NOT_COMPUTED_BEFORE or operator(node) is OPAQUE:
            return False
        return next(subgraphs(node), None) is None


def _unchanged(node: ir.Node) -> ir.Value | None:
    """The input that an Identity or Dropout hands on, where nobody can tell the difference."""
    mask_is_read = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if node.domain != "" or not node.inputs or mask_is_read or node.outputs[0].is_graph_output():
        return None
    return node.inputs[0]


class Remembered:
    """Extents that are looked up once per value: for one look at a model that does not change meanwhile."""

    def __init__(self, extents: Extents) -> None:
        self._extents = extents
        self._dims: dict[ir.Value, tuple[int, ...] | None] = {}

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Extents of a tensor, or None where its shape is not known."""
        if value is None:
            return None
        if value not in self._dims:
            self._dims[value] = self._extents.dims(value)
        return self._dims[value]

    def size(self, value: ir.Value | None) -> int | None:
        """Number of elements of a tensor, or None where its shape is not known."""
        dims = self.dims(value)
        return None if dims is None else prod(dims)


class Planned:
    """The values of which onnxruntime knows the extents when it plans memory, before it has seen any input.

    Extents are known that are numbers; those that the file states; and symbols of the graph's inputs that reach a value
    through operators whose result has the extents of their operands. Where a shape is computed (Reshape to a shape made
    of Shape, Gather and Concat), onnxruntime's own inference gives up, and so it does on axes that an input leaves open
    without a name.
    """

    def __init__(self, model: ir.Model) -> None:
        self._described = carry_of(model).described
        self._symbols: set[str] = set()
        self._symbolic: set[ir.Value] = set()

    def add(self, graph: ir.Graph) -> None:
        """Look at the values of `graph`; graphs around it come first."""
        for value in graph.inputs:
            if value.shape is not None and not value.shape.has_unknown_dim():
                self._symbols.update(d.value for d in value.shape if isinstance(d, ir.SymbolicDim) and d.value)
                self._symbolic.add(value)
        if not self._symbols:
            return
        for node in graph:
            inferred = node.op_type not in _COMPUTED_SHAPE and all(v is None or v in self for v in node.inputs)
            for value in node.outputs:
                if (inferred or value.name in self._described) and self._has_known_symbols(value):
                    self._symbolic.add(value)

    def __contains__(self, value: ir.Value) -> bool:
        return value in self._symbolic or value.const_value is not None or _is_static(value)

    def _has_known_symbols(self, value: ir.Value) -> bool:
        if value.shape is None:
            return False
        return all(isinstance(dim, int) or dim.value in self._symbols for dim in value.shape)


_COMPUTED_SHAPE = frozenset({"Reshape", "Expand", "Resize", "Slice", "Tile", "Pad", "ConstantOfShape", "Range"})


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()
