"""Which nodes of a float32 model compute in 16 bits, and which stay float32, and why.

What an operator takes is read from its schema: of each input and output whether its type parameter allows the 16-bit type
at all (the boxes of NonMaxSuppression, the scales of Resize and the limits of Range do not).

Beyond that, some values are delicate: 16 bits may not hold them (`half_range`). A node that reads or makes one stays
float32, and so do sums over many elements, whose error grows with their length, nodes beside quantized values, which
integer kernels take with float32 scales, and whatever is unknown. At last, light nodes between such nodes stay too:
casting there and back would cost more than it gains.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from graphopt.analysis import schemas
from graphopt.ir.walk import constant_tensor, subgraphs
from graphopt.ops.base import Contraction, input_at, operator
from graphopt.pipeline.base import PassContext
from graphopt_passes.quantization.half_range import Delicate, is_float

_SMALL = 1024
"""Elements up to which a constant is no weight."""

_LONG = 2048
"""Elements from which on a sum is taken in float32."""

_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

_ACCUMULATING = frozenset({"CumSum", "CumProd"})

_AVERAGING = frozenset({"Softmax", "LogSoftmax", "ReduceMean", "ReduceLogSum", "LpNormalization"})
"""Operators that sum along an axis of any length."""

_TYPED_BY_ATTRIBUTE = frozenset({"Cast", "ConstantOfShape"})
"""Operators whose output has the type that an attribute says."""

_PRECISE_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (1,)}
"""Inputs that may be 16 bits wide but hold places in an image."""


@dataclasses.dataclass(frozen=True)
class Slots:
    """The inputs and outputs of a node that are 16 bits wide, by index."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


class Decision:
    """What every node of the main graph and of all bodies computes in.

    Attributes:
        kept: nodes that stay float32 although they compute on floats, and why.
        half: the 16-bit type.
    """

    def __init__(
        self,
        model: ir.Model,
        context: PassContext,
        half: ir.DataType,
        ranges: Mapping[str, float],
        *,
        float_inputs: bool,
    ) -> None:
        """Decide.

        Args:
            model: float32.
            context: says which nodes are excluded.
            half: the 16-bit type.
            ranges: measured largest magnitudes of values by name.
            float_inputs: whether graph inputs and outputs stay float32.
        """
        self.half = half
        self.kept: dict[ir.Node, str] = {}
        self._model = model
        self._context = context
        self._float_inputs = float_inputs
        self._slots: dict[ir.Node, Slots] = {}
        self._delicate = Delicate(half, ranges)
        self._visit(model.graph)
        self._keep_between()

    def slots(self, node: ir.Node) -> Slots:
        """The 16-bit inputs and outputs of `node`."""
        return Slots() if node in self.kept else self._slots.get(node, Slots())

    def is_half(self, value: ir.Value) -> bool:
        """Whether the float `value`, the output of a node, is made in 16 bits."""
        node = value.producer()
        if node is None:
            return False
        if node.op_type == "If" and node.domain == "":
            made = [body.outputs[value.index() or 0] for body in subgraphs(node)]
            return value not in self._delicate and all(
                out.graph in set(subgraphs(node)) and self.is_half(out) for out in made
            )
        return value.index() in self.slots(node).outputs

    # --- Visiting nodes in order

    def _visit(self, graph: ir.Graph) -> None:
        for node in graph:
            for body in subgraphs(node):
                self._visit(body)
            if node.op_type != "Constant" and any(map(is_float, (*node.inputs, *node.outputs))):
                self._decide(node)

    def _decide(self, node: ir.Node) -> None:
        if any(True for _ in subgraphs(node)):
            self._delicate.enter(node, list(subgraphs(node)))
            return
        reason = self._why_unknown(node)
        makes_delicate = self._delicate.visit(node)
        if reason is None:
            self._slots[node] = self._allowed(node)
            reason = self._why_not(node, makes_delicate)
        if reason is not None:
            self.kept[node] = reason

    def _why_unknown(self, node: ir.Node) -> str | None:
        if self._context.excluded(node):
            return "excluded"
        if node.op_identifier() in self._model.functions:
            return "a call of a function"
        if schemas.normalized(node.domain) != "":
            return "operators of other domains are left alone"
        tensors = (ir.TensorType, type(None))
        if any(not isinstance(value.type, tensors) for value in (*node.inputs, *node.outputs) if value is not None):
            return "sequences and optional values are left alone"
        if any(value.dtype is None for value in (*node.inputs, *node.outputs) if value is not None and value.name):
            return "types are not known"
        return None

    def _why_not(self, node: ir.Node, makes_delicate: bool) -> str | None:
        """Why `node` stays float32 although all about it is known."""
        name = self.half.name.lower()
        if _beside_integers(node):
            return "it works on quantized values"
        if not self._slots[node].inputs and not self._slots[node].outputs:
            return f"its operator does not take {name}"
        if makes_delicate or any(value is not None and value in self._delicate for value in node.inputs):
            return f"{name} may not hold its numbers"
        if any(value is not None and value.is_initializer() and value.is_graph_input() for value in node.inputs):
            return "users may give other values for its weights, which are graph inputs"
        if node.op_type in _ACCUMULATING or (node.op_type in _AVERAGING and _is_long(node)):
            return "it sums up many numbers"
        return None

    def _allowed(self, node: ir.Node) -> Slots:
        """What the operator's schema allows."""
        version = schemas.opset_version(self._model.opset_imports, "") or 1
        takes, makes = _parameters(node.op_type, version, f"tensor({self.half.name.lower()})")
        precise = _PRECISE_INPUTS.get(node.op_type, ())
        inputs: dict[int, str] = {}
        for index, value in enumerate(node.inputs):
            parameter = takes.at(index)
            if is_float(value) and parameter is not None and index not in precise:
                inputs[index] = parameter
        tied = set(inputs.values())
        outputs = set()
        for index, value in enumerate(node.outputs):
            parameter = makes.at(index)
            free = index == 0 and node.op_type in _TYPED_BY_ATTRIBUTE
            if is_float(value) and parameter is not None and (parameter in tied or free):
                outputs.add(index)
        return Slots(frozenset(inputs), frozenset(outputs))

    # --- Nodes between nodes

    def _keep_between(self) -> None:
        """Keep light nodes that read nothing but float32 values and whose results are read as such."""
        nodes = [node for node in _in_order(self._model.graph) if node in self._slots]
        from_float: set[ir.Node] = set()
        for node in nodes:
            if node in self.kept or (self._is_light(node) and self._reads_float(node, from_float)):
                from_float.add(node)
        to_float: set[ir.Node] = set()
        for node in reversed(nodes):
            if node in self.kept or (node in from_float and self._read_as_float(node, to_float)):
                to_float.add(node)
        for node in nodes:
            if node in from_float and node in to_float:
                self.kept.setdefault(node, "it stands between nodes that stay float32")

    def _is_light(self, node: ir.Node) -> bool:
        constants = (constant_tensor(value) for value in node.inputs if is_float(value))
        weight = any(tensor is not None and tensor.size > _SMALL for tensor in constants)
        return not weight and not isinstance(operator(node), Contraction)

    def _reads_float(self, node: ir.Node, from_float: set[ir.Node]) -> bool:
        values = [value for value in node.inputs if is_float(value) and constant_tensor(value) is None]
        return all(self._comes_float(value, from_float) for value in values if value is not None)

    def _comes_float(self, value: ir.Value, from_float: set[ir.Node]) -> bool:
        producer = value.producer()
        if producer is None:
            return self._float_inputs or value.is_initializer() or value.graph is not self._model.graph
        return producer in from_float or (producer not in self._slots and producer in self.kept)

    def _read_as_float(self, node: ir.Node, to_float: set[ir.Node]) -> bool:
        for value in node.outputs:
            if value.is_graph_output() and not (self._float_inputs and value.graph is self._model.graph):
                return False
            if is_float(value) and not all(use.node in to_float or use.node in self.kept for use in value.uses()):
                return False
        return True


@dataclasses.dataclass(frozen=True)
class _Formals:
    """The formal inputs or outputs of an operator: of each the type parameter, None where it has none for the type."""

    parameters: tuple[str | None, ...] = ()
    is_variadic: bool = False

    def at(self, index: int) -> str | None:
        """The type parameter of the actual input or output `index`; the last formal one may stand for many."""
        if index >= len(self.parameters) and self.is_variadic:
            return self.parameters[-1]
        return self.parameters[index] if index < len(self.parameters) else None


@functools.cache
def _parameters(op_type: str, version: int, wanted: str) -> tuple[_Formals, _Formals]:
    """The formal inputs and outputs of an operator of ONNX's own domain that may be of the type `wanted`."""
    schema = schemas.schema("", op_type, version)
    if schema is None:
        return _Formals(), _Formals()
    variables = {constraint.type_param_str for constraint in schema.type_constraints}
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic

    def formals(listed: Sequence[onnx.defs.OpSchema.FormalParameter]) -> _Formals:
        names = (f.type_str if f.type_str in variables and wanted in f.types else None for f in listed)
        return _Formals(tuple(names), bool(listed) and listed[-1].option == variadic)

    return formals(schema.inputs), formals(schema.outputs)


def _beside_integers(node: ir.Node) -> bool:
    if node.op_type in _QUANTIZING:
        return True
    makers = [value.producer() for value in node.inputs if value is not None]
    readers = [use.node for output in node.outputs for use in output.uses()]
    return any(other is not None and other.op_type in _QUANTIZING for other in (*makers, *readers))


def _is_long(node: ir.Node) -> bool:
    """Whether `node` sums up many elements, or nobody knows how many."""
    dims = None if node.inputs[0] is None or node.inputs[0].shape is None else node.inputs[0].shape.dims
    if dims is None:
        return True
    axes = _axes(node)
    summed = dims if axes is None else [dims[axis] for axis in axes if -len(dims) <= axis < len(dims)]
    known = [dim for dim in summed if isinstance(dim, int)]
    return len(known) < len(summed) or math.prod(known) >= _LONG


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes along which `node` sums; None for all of them, or where they are not known."""
    if "axes" in node.attributes:
        return tuple(node.attributes.get_ints("axes", ()))
    if not node.op_type.startswith("Reduce"):
        return (node.attributes.get_int("axis", -1),)
    tensor = constant_tensor(input_at(node, 1))
    return None if tensor is None else tuple(int(axis) for axis in tensor.numpy().reshape(-1))


def _in_order(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of a graph and of its bodies, those of a body before the node that holds it."""
    for node in graph:
        for body in subgraphs(node):
            yield from _in_order(body)
        yield node
