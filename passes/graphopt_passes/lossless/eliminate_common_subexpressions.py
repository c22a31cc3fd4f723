"""Common subexpressions: what was computed already is not computed again.

Two nodes compute the same when operator, attributes and inputs are the same, and the operator always gives the same
result for the same inputs. One walk in topological order keeps a table from these to the first such node; a node found
in it gives way at once, so that nodes which read from it can be found equal in turn.

* Attributes that are left out have their defaults. Floats are equal bit by bit.
* The operands of commutative operators have no order.
* Small constants are equal by value, large ones only if they are one.
* Random operators, nodes with bodies and operators that ONNX does not define are left alone.
* A body can use what is computed before its node in the graphs around it; the reverse, and one branch for another, not.
* Two graph outputs that hold the same stay two values.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Hashable, Sequence
from typing import ClassVar

import onnx
import onnx_ir as ir

from graphopt.ir.surgery import Editor, Scope, drop_unread, scopes
from graphopt.ir.walk import constant_tensor, label, subgraphs
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossless.visibility import Visibility

_SMALL_BYTES = 256
_COMMUTATIVE = frozenset({"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor"})


@dataclasses.dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Compute once what several nodes compute from the same inputs."""

    name: ClassVar[str] = "eliminate-common-subexpressions"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Walk the main graph, bodies where they stand, and functions."""
        remarks = Remarks()
        touched: dict[ir.Node, None] = {}
        modified = False
        for scope in scopes(model):
            walk = _Walk(model, scope, context, remarks, touched)
            walk.graph((scope.graph,), ({},))
            modified |= walk.modified
        return PassResult(modified, [node for node in touched if node.graph is not None], remarks.listed())


class _Walk:
    """One walk through a scope."""

    def __init__(
        self, model: ir.Model, scope: Scope, context: PassContext, remarks: Remarks, touched: dict[ir.Node, None]
    ) -> None:
        self.context = context
        self.remarks = remarks
        self.touched = touched
        self.modified = False
        self._keys = _Keys(model, scope)
        self._visibility = Visibility()

    def graph(self, graphs: Sequence[ir.Graph], tables: Sequence[dict[Hashable, _Bucket]]) -> None:
        """Walk the last of `graphs`; `tables` hold what was computed before in it, and in those around it."""
        graph = graphs[-1]
        editor = Editor(graph)
        for node in graph:
            bodies = list(subgraphs(node)) if node.attributes else []
            for body in bodies:
                self.graph((*graphs, body), (*tables, {}))
            key = None if bodies or self.context.excluded(node) else self._keys.of(node)
            if key is None:
                continue
            buckets = [table[key] for table in tables if key in table]
            first = next((found for bucket in buckets if (found := bucket.find(node)) is not None), None)
            if first is None:
                tables[-1].setdefault(key, _Bucket(self._keys)).add(node)
            elif self._visible(first, graphs):
                self._give_way(node, first, editor)
        editor.commit()

    def _visible(self, node: ir.Node, graphs: Sequence[ir.Graph]) -> bool:
        if node.graph is graphs[-1]:
            return True
        return all(self._visibility.visible(output, graphs) for output in node.outputs if output.name)

    def _give_way(self, node: ir.Node, first: ir.Node, editor: Editor) -> None:
        """Let the outputs of `first` stand for those of `node`."""
        pairs = [(mine, theirs) for mine, theirs in zip(node.outputs, first.outputs, strict=True) if mine.name]
        for mine, theirs in pairs:
            why_not = editor.why_not_replace(mine, theirs)
            if why_not is not None:
                self.remarks.missed(label(node), f"kept, though it computes the same as another node: {why_not}")
                return
        where = label(node)
        for mine, theirs in pairs:
            if mine.is_graph_output():
                self.touched[first] = None
            self.touched.update(dict.fromkeys(editor.replace(mine, theirs)))
        reads = [read for read in node.inputs if read is not None]
        editor.remove(node)
        drop_unread(dict.fromkeys(reads))
        self.remarks.applied(where, "removed: another node computes the same")
        self.modified = True


class _Bucket:
    """Nodes that compute the same if their constants are the same; these are read when there are two such nodes."""

    def __init__(self, keys: _Keys) -> None:
        self._keys = keys
        self._unread: ir.Node | None = None
        self._by_constants: dict[Hashable, ir.Node] = {}

    def add(self, node: ir.Node) -> None:
        """Add a node that none in here is equal to."""
        if self._by_constants:
            self._by_constants[self._keys.constants(node)] = node
        else:
            self._unread = node

    def find(self, node: ir.Node) -> ir.Node | None:
        """The node in here that computes the same as `node`."""
        if self._unread is not None:
            self._by_constants[self._keys.constants(self._unread)] = self._unread
            self._unread = None
        return self._by_constants.get(self._keys.constants(node))


class _Keys:
    """What makes two nodes of a scope compute the same, as something to look up in a table."""

    def __init__(self, model: ir.Model, scope: Scope) -> None:
        self._functions = model.functions
        self._scope = scope
        self._contents: dict[ir.Value, Hashable] = {}
        self._defaults: dict[ir.OperatorIdentifier, dict[str, Hashable] | None] = {}

    def of(self, node: ir.Node) -> Hashable | None:
        """The key of `node` but for its constants; None where its operator is random or not known."""
        defaults = self._of_operator(node)
        if defaults is None:
            return None
        attributes = {**defaults, **{name: _of_attribute(attr) for name, attr in node.attributes.items()}}
        inputs = [_CONSTANT if constant_tensor(value) is not None else value for value in _operands(node)]
        outputs = tuple(bool(output.name) for output in node.outputs)
        return node.op_identifier(), tuple(inputs), frozenset(attributes.items()), outputs

    def constants(self, node: ir.Node) -> Hashable:
        """The constants of `node`: small ones by what they hold, large ones by their value."""
        return tuple(
            self._content(value, tensor) for value in _operands(node) if (tensor := constant_tensor(value)) is not None
        )

    def _of_operator(self, node: ir.Node) -> dict[str, Hashable] | None:
        """The defaults of its attributes; None where it is not known, or not deterministic."""
        identifier = node.op_identifier()
        if identifier not in self._defaults:
            self._defaults[identifier] = None
            version = self._scope.opset(node.domain)
            if identifier not in self._functions and onnx.defs.has(node.op_type, version, node.domain):
                schema = onnx.defs.get_schema(node.op_type, version, node.domain)
                determinism = schema.node_determinism  # type: ignore[attr-defined]  # missing in onnx's stubs
                if determinism == onnx.defs.OpSchema.NodeDeterminism.Deterministic:
                    self._defaults[identifier] = {
                        name: _of_attribute(ir.serde.deserialize_attribute(attribute.default_value))
                        for name, attribute in schema.attributes.items()
                        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
                    }
        return self._defaults[identifier]

    def _content(self, value: ir.Value | None, tensor: ir.TensorProtocol) -> Hashable:
        assert value is not None  # it has a tensor
        if value not in self._contents:
            content = _of_tensor(tensor)
            self._contents[value] = value if content is None else content
        return self._contents[value]


_CONSTANT = object()


def _operands(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of `node` without missing ones at the end; those of commutative operators in an order of their own."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if node.domain == "" and node.op_type in _COMMUTATIVE:
        inputs.sort(key=lambda value: (constant_tensor(value) is not None, id(value)))
    return inputs


def _of_tensor(tensor: ir.TensorProtocol) -> Hashable | None:
    """Type, extents and bytes of a small tensor; None for a large one."""
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes > _SMALL_BYTES:
        return None
    return tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()


def _of_attribute(attribute: ir.Attr) -> Hashable:
    """The value of an attribute: equal ones are equal bit by bit, large tensors only if they are one."""
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name
    value = attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        return struct.pack("d", value)
    if attribute.type == ir.AttributeType.FLOATS:
        return struct.pack(f"{len(value)}d", *value)
    if attribute.type == ir.AttributeType.TENSOR:
        content = _of_tensor(value)
        return id(value) if content is None else content
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.STRING):
        return attribute.type, value
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return attribute.type, tuple(value)
    return id(value)
