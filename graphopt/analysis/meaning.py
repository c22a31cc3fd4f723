"""Meaning checks: whether every node is a legal use of its operator.

For operators that ONNX defines: the operator exists in the imported opset, inputs, outputs and attributes are those
of its schema, types satisfy its constraints, and ranks, channels and extents fit where they are known. ONNX's own
checker and shape inference decide, as they do in onnxruntime, so that nothing is rejected here that onnxruntime would
run. Operators of other domains are custom: anything goes.

How much is checked depends on where a node stands. The main graph runs, so whatever contradicts what is known there
is an error. A body may never run (exporters guard impossible branches with If), so its extents are not held against
it. In a function types depend on the call, so only the form of the nodes is checked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection

import onnx
import onnx.checker
import onnx.defs
import onnx_ir as ir

from graphopt.analysis import onnx_inference, schemas
from graphopt.analysis.call import Answers, Call
from graphopt.analysis.facts import Fact
from graphopt.analysis.inference import Inference, Scope
from graphopt.errors import GraphoptError, InvalidModelError, VerificationError
from graphopt.ir import walk


def check(model: ir.Model, nodes: Collection[ir.Node] | None = None, error: type[GraphoptError] | None = None) -> None:
    """Check that every node, or each of `nodes`, is a legal use of its operator.

    Args:
        model: a model whose values have their inferred types and shapes.
        nodes: the nodes to check; None for all of them, in bodies and functions too.
        error: what to raise; by default InvalidModelError for a whole model and VerificationError for some nodes.

    Raises:
        InvalidModelError, VerificationError: a node is not legal. The message names it and says why.
    """
    error = error or (InvalidModelError if nodes is None else VerificationError)
    version, newest = schemas.opset_version(model.opset_imports, ""), onnx.defs.onnx_opset_version()
    if version is not None and version > newest:
        raise error(f"the model uses opset {version}; the newest that onnx {onnx.__version__} knows is {newest}")
    checker = _Checker(model)
    wanted = None if nodes is None else set(nodes)
    for graph in walk.graph_and_bodies(model.graph):
        for node in graph:
            if wanted is None or node in wanted:
                checker.check(node, checker.inference.main, graph is model.graph, error)
    for function in model.functions.values():
        scope = Scope(checker.inference, function.opset_imports, {}, {}, depth=1)
        for graph in walk.graph_and_bodies(function.graph):
            for node in graph:
                if wanted is None or node in wanted:
                    checker.check(node, scope, False, error)


_LEGAL = Answers[list[Fact]]()
"""What ONNX says about the outputs of calls that were found legal."""


class _Checker:
    """Checks of single nodes; equal questions are asked once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.inference = Inference(model)
        self._context = type(onnx.checker.DEFAULT_CONTEXT)()
        self._context.ir_version = model.ir_version
        for value in model.graph.outputs:
            # What is declared on an output binds nobody: onnxruntime warns about it and goes on with what it inferred.
            if value.producer() is not None:
                self.inference.main.facts[value] = Fact(value.type, None)

    def check(self, node: ir.Node, scope: Scope, runs: bool, error: type[GraphoptError]) -> None:
        """Raise `error` where `node` is not legal; `runs` says whether it certainly runs."""
        if (node.domain, node.op_type, node.overload) in self.model.functions:
            return
        domain = schemas.normalized(node.domain)
        if domain not in schemas.defined_domains():
            return
        if schemas.opset_version(scope.imports, domain) is None:
            raise error(f"{walk.label(node)}: the model imports no opset of the domain '{domain or 'ai.onnx'}'")
        call = self.inference.call(node, scope)
        if scope.is_function:
            call = call._replace(attributes=node.attributes)
        key = (call.key(), runs, scope.is_function, self.model.ir_version)
        found = None if key[0] is None else _LEGAL.get(key)
        if found is None:
            try:
                found = self._answer(call, scope, runs)
            except _IllegalError as reason:
                raise error(f"{walk.label(node)}: {reason}") from reason
            if key[0] is not None:
                _LEGAL.keep(key, found)
        for output, fact in zip(node.outputs, found, strict=False):
            if fact.type is not None and output.type is not None and output.type != fact.type:
                raise error(
                    f"{walk.label(node)}: '{output.name}' is {output.type}, but the operator yields {fact.type}"
                )

    def _answer(self, call: Call, scope: Scope, runs: bool) -> list[Fact]:
        """Check `call` and return what ONNX says about its outputs."""
        schema = schemas.schema(call.domain, call.op_type, call.version)
        if schema is None:
            if call.domain == "" and call.op_type in schemas.RUNTIME_ONLY:
                return []
            raise _IllegalError(f"opset {call.version} of '{call.domain or 'ai.onnx'}' has no such operator")
        self._check_form(call)
        if scope.is_function:
            return []
        _check_types(schema, call)
        if any(attribute.type in _BODIES for attribute in call.attributes.values()):
            return []
        try:
            found = onnx_inference.infer(call)
        except onnx_inference.InferenceError as reason:
            if runs and all(fact is None or fact.type is not None for fact in call.inputs):
                raise _IllegalError(str(reason)) from reason
            return []
        if runs:
            _check_extents(call)
        return found

    def _check_form(self, call: Call) -> None:
        """Number of inputs and outputs, and names, types and presence of attributes, as ONNX's checker sees them."""
        node = onnx.NodeProto(
            op_type=call.op_type,
            domain=call.domain,
            input=["" if fact is None else f"i{index}" for index, fact in enumerate(call.inputs)],
            output=[f"o{index}" if used else "" for index, used in enumerate(call.outputs)],
        )
        node.attribute.extend(_stub(attribute) for attribute in call.attributes.values())
        self._context.opset_imports = {call.domain: call.version}
        try:
            onnx.checker.check_node(node, self._context)
        except onnx.checker.ValidationError as reason:
            raise _IllegalError(str(reason).strip().splitlines()[0].rstrip(".")) from reason


class _IllegalError(Exception):
    """Why a node is not legal."""


_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

_PLACEHOLDERS: dict[ir.AttributeType, onnx.AttributeProto] = {
    ir.AttributeType.FLOAT: onnx.AttributeProto(type=onnx.AttributeProto.FLOAT, f=0.0),
    ir.AttributeType.INT: onnx.AttributeProto(type=onnx.AttributeProto.INT, i=0),
    ir.AttributeType.STRING: onnx.AttributeProto(type=onnx.AttributeProto.STRING, s=b""),
    ir.AttributeType.GRAPH: onnx.AttributeProto(type=onnx.AttributeProto.GRAPH, g=onnx.GraphProto(name="body")),
    ir.AttributeType.TENSOR: onnx.AttributeProto(
        type=onnx.AttributeProto.TENSOR, t=onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=[0])
    ),
}
"""Attributes of each type, for those whose value does not matter or is too large to pass on."""

_LARGE = (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH)


def _stub(attribute: ir.Attr) -> onnx.AttributeProto:
    """An attribute of the same name and type without bodies and tensors; a reference stands for some value."""
    if attribute.type in _PLACEHOLDERS and (attribute.is_ref() or attribute.type in _LARGE):
        proto = onnx.AttributeProto()
        proto.CopyFrom(_PLACEHOLDERS[attribute.type])
        proto.name = attribute.name
        return proto
    if attribute.is_ref():  # to a list; an empty one will do
        return onnx.AttributeProto(name=attribute.name, type=attribute.type.name)
    return ir.serde.serialize_attribute(attribute)


# --- Types ----------------------------------------------------------------------------------------


def _check_types(schema: onnx.defs.OpSchema, call: Call) -> None:
    """The types of the inputs satisfy the operator's constraints, and those of one type parameter are the same."""
    bound: dict[str, str] = {}
    parameters = _parameters(schema)
    for index, fact in enumerate(call.inputs):
        if fact is None or fact.type is None or not parameters:
            continue
        name, parameter, allowed, homogeneous = parameters[min(index, len(parameters) - 1)]
        given = _onnx_name(fact.type)
        if given not in allowed:
            raise _IllegalError(f"input {index} ('{name}') is {given}, which the operator does not take")
        if homogeneous and bound.setdefault(parameter, given) != given:
            raise _IllegalError(
                f"input {index} ('{name}') is {given}, but must be {bound[parameter]} like another input"
            )


@functools.cache
def _parameters(schema: onnx.defs.OpSchema) -> list[tuple[str, str, frozenset[str], bool]]:
    """Of each formal input: name, type parameter, allowed types, and whether all its values have one type."""
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return [
        (formal.name, formal.type_str, frozenset(formal.types), formal.option != variadic or formal.is_homogeneous)
        for formal in schema.inputs
    ]


def _onnx_name(kind: ir.TypeProtocol) -> str:
    """A type as schemas write it: `tensor(float)`, `seq(tensor(int64))`."""
    if isinstance(kind, ir.SequenceType):
        return f"seq({_onnx_name(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({_onnx_name(kind.elem_type)})"
    name = "sparse_tensor" if isinstance(kind, ir.SparseTensorType) else "tensor"
    return f"{name}({kind.dtype.name.lower()})"


# --- Extents that ONNX's inference does not compare -----------------------------------------------


def _check_extents(call: Call) -> None:
    """Channels and sizes that no runtime accepts, but that show only when the node runs."""
    if call.domain == "" and call.op_type in _WEIGHTS:
        _check_channels(call, *_WEIGHTS[call.op_type])
    elif call.domain == "" and call.op_type == "Reshape":
        _check_reshape(call)


_WEIGHTS = {"Conv": (0, 1, 2), "ConvInteger": (0, 1, None), "QLinearConv": (0, 3, 8), "ConvTranspose": (0, 1, 2)}
"""Which inputs of a convolution are its data, its weight and its bias."""


def _check_channels(call: Call, data: int, weight: int, bias: int | None) -> None:
    x, w, group = call.dims(data), call.dims(weight), call.integer("group", 1)
    if x is None or w is None or len(x) < 2 or len(w) < 2:
        return
    outputs, inputs = (w[1], w[0]) if call.op_type == "ConvTranspose" else (w[0], w[1])
    if not all(isinstance(dim, int) for dim in (x[1], outputs, inputs)):
        return
    taken, made = int(inputs or 0), int(outputs or 0)
    if call.op_type == "ConvTranspose":
        made *= group
    else:
        taken *= group
    if x[1] != taken:
        raise _IllegalError(f"its weight takes {taken} input channels, but its input has {x[1]}")
    if made % group:
        raise _IllegalError(f"its {made} output channels cannot be divided into {group} groups")
    b = call.dims(bias) if bias is not None else None
    if b is not None and len(b) == 1 and isinstance(b[0], int) and b[0] != made:
        raise _IllegalError(f"its bias has {b[0]} elements for {made} output channels")


def _check_reshape(call: Call) -> None:
    dims, target = call.dims(0), call.content(1)
    if dims is None or target is None or target.dtype == object or not all(isinstance(dim, int) for dim in dims):
        return
    extents = [int(dim) for dim in dims if isinstance(dim, int)]
    sizes = [int(size) for size in target.reshape(-1)]
    if not call.integer("allowzero", 0):
        sizes = [extents[axis] if size == 0 and axis < len(extents) else size for axis, size in enumerate(sizes)]
    have, want = math.prod(extents), math.prod(size for size in sizes if size != -1)
    fits = have == want if -1 not in sizes else have == 0 or (want != 0 and have % want == 0)
    if not fits:
        raise _IllegalError(f"{have} elements of shape {extents} cannot become {sizes}")
