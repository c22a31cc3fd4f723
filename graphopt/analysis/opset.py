"""Opset upgrade that loses nothing.

Only the nodes whose operators changed between the opsets are replaced, each by what it becomes (see
`graphopt.analysis.conversion`); everything else is left alone, so that names, metadata, doc strings, functions,
bodies, custom operators and weights need not be carried across. The whole upgrade is planned before the first node is
touched: where something stands in the way, the model is as it was.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import onnx
import onnx.defs
import onnx_ir as ir

from graphopt.analysis import conversion, schemas, shapes
from graphopt.analysis.conversion import Converted
from graphopt.analysis.inference import Inference, Scope
from graphopt.errors import UnsupportedModelError
from graphopt.ir import walk


def upgrade(model: ir.Model, version: int) -> list[str]:
    """Bring `model` to opset `version` of ONNX's own domain, in place.

    The model computes the same as before, up to what the runtime makes of it: compare the two before relying on that.
    A model that has this opset or a newer one is left alone. Functions stay functions, unless a node in one takes an
    attribute from the call that would have to become something else: then all calls are inlined.

    Returns:
        What was done, a sentence for each kind of operator.

    Raises:
        UnsupportedModelError: a node cannot be expressed in that opset; the message names it. The model is as it was.
    """
    if not _is_older(model, version):
        return []
    if version > onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise UnsupportedModelError(f"opset {version} is newer than what onnx {onnx.__version__} knows ({newest})")
    remarks = []
    try:
        plan = list(_plan(model, version))
    except UnsupportedModelError:
        if not model.functions:
            raise
        trial = model.clone()
        _inline(trial)
        list(_plan(trial, version))
        _inline(model)
        remarks.append(f"all function calls were inlined, since one of them cannot be kept in opset {version}")
        plan = list(_plan(model, version))
    return [*remarks, *_carry_out(model, plan, version)]


def _is_older(model: ir.Model, version: int) -> bool:
    current = schemas.opset_version(model.opset_imports, "")
    return current is not None and current < version


def _inline(model: ir.Model) -> None:
    from onnx_ir.passes.common import InlinePass

    try:
        InlinePass()(model)
    except (ValueError, ir.passes.PassError) as error:
        raise UnsupportedModelError(f"the model's functions can be neither upgraded nor inlined: {error}") from error
    shapes.infer(model)


# --- Planning -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Change:
    node: ir.Node
    becomes: Converted


def _plan(model: ir.Model, version: int) -> Iterator[_Change]:
    """What has to change, in every graph of the model."""
    inference = Inference(model)
    if model.functions:
        inference.run()  # which tells what enters the functions
    known: dict[object, Converted | None] = {}
    yield from _plan_graph(model, model.graph, inference.main, inference, version, known)
    for function in model.functions.values():
        scope = Scope(inference, function.opset_imports, {}, {}, depth=1)
        scope.facts = inference.inside
        yield from _plan_graph(model, function.graph, scope, inference, version, known)


def _plan_graph(
    model: ir.Model,
    outermost: ir.Graph,
    scope: Scope,
    inference: Inference,
    version: int,
    known: dict[object, Converted | None],
) -> Iterator[_Change]:
    current = schemas.opset_version(scope.imports, "")
    if current is None or current >= version:
        return
    for graph in walk.graph_and_bodies(outermost):
        for node in graph:
            if node.domain not in schemas.DEFAULT_DOMAINS or node.op_identifier() in model.functions:
                continue
            becomes = _becomes(node, inference, scope, version, known)
            if becomes is not None:
                yield _Change(node, becomes)


def _becomes(
    node: ir.Node, inference: Inference, scope: Scope, version: int, known: dict[object, Converted | None]
) -> Converted | None:
    if node.op_type == "Constant":
        return None
    call = inference.call(node, scope)._replace(attributes=node.attributes)
    if not conversion.changes(call, version):
        return None
    if any(True for _ in walk.subgraphs(node)):
        if node.op_type == "Scan" and call.version < 9:
            raise UnsupportedModelError(f"{walk.label(node)}: Scan of opset 8 cannot be expressed in opset {version}")
        return None
    key = call.key()
    if key is not None and key in known:
        return known[key]
    try:
        becomes = conversion.convert(call, version)
    except conversion.ConversionError as error:
        raise UnsupportedModelError(f"{walk.label(node)}: cannot be upgraded to opset {version}: {error}") from error
    if key is not None:
        known[key] = becomes
    return becomes


# --- Carrying it out ------------------------------------------------------------------------------


def _carry_out(model: ir.Model, plan: Sequence[_Change], version: int) -> list[str]:
    names = _Names(model)
    in_functions = {graph for function in model.functions.values() for graph in walk.graph_and_bodies(function.graph)}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    made: list[ir.Node] = []
    for change in plan:
        kinds = [node.op_type for node in change.becomes.nodes]
        counts[change.node.op_type, " + ".join(kinds)] += 1
        made.extend(_replace(change, names, change.node.graph in in_functions))
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        for domain in schemas.DEFAULT_DOMAINS:
            if imports.get(domain, version) < version:
                imports[domain] = version
    shapes.infer(model, nodes=made)
    return [
        f"{count} x {old} rewritten for opset {version}" + ("" if old == new else f" as {new}")
        for (old, new), count in counts.items()
    ]


class _Names:
    """Names for new values, and the constants made so far."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {
            value.name
            for graph in walk.all_graphs(model)
            for value in (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs))
        }
        self.constants: dict[tuple[int, bytes], ir.Value] = {}

    def new(self, stem: str) -> str:
        """A name that no value has."""
        for number in itertools.count():
            name = f"{stem}_{number}" if number else stem
            if name not in self._taken:
                self._taken.add(name)
                return name
        raise AssertionError("counting never ends")


def _replace(change: _Change, names: _Names, in_function: bool) -> list[ir.Node]:
    """Put what `change.node` becomes in its place; return the new nodes."""
    node, graph = change.node, change.node.graph
    assert graph is not None
    stem = node.outputs[0].name or node.op_type
    values: dict[str, ir.Value | None] = {"": None}
    values.update((f"i{index}", value) for index, value in enumerate(node.inputs))
    new: list[ir.Node] = []
    for name, tensor in change.becomes.constants.items():
        values[name] = _constant(graph, tensor, f"{stem}_{name}", names, new if in_function else None)
    heir = _heir(change)
    for proto in change.becomes.nodes:
        made = ir.Node(
            "",
            proto.op_type,
            [values[name] for name in proto.input],
            [ir.serde.deserialize_attribute(attribute) for attribute in proto.attribute],
            num_outputs=len(proto.output),
            name=node.name if proto is heir or not node.name else f"{node.name}_{proto.op_type}",
            doc_string=node.doc_string if proto is heir else None,
            metadata_props=dict(node.metadata_props),
        )
        for name, value in zip(proto.output, made.outputs, strict=True):
            values[name] = value
            value.name = names.new(f"{stem}_{proto.op_type}") if name else ""
        new.append(made)
    outputs = [_carried(value, values.get(f"o{index}")) for index, value in enumerate(node.outputs)]
    kept = [(old, replacement) for old, replacement in zip(node.outputs, outputs, strict=True) if replacement]
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], new, [old for old, _ in kept], [replacement for _, replacement in kept]
    )
    return new


def _heir(change: _Change) -> onnx.NodeProto:
    """The new node that takes the old one's name: the one that is still the same operator, or else the last."""
    nodes = change.becomes.nodes
    return next((node for node in nodes if node.op_type == change.node.op_type), nodes[-1])


def _carried(old: ir.Value, new: ir.Value | None) -> ir.Value | None:
    """`new` with what was noted on `old`, which it stands for from now on."""
    if new is not None:
        new.metadata_props.update(old.metadata_props)
        new.meta.update(old.meta)
        new.doc_string = old.doc_string
    return new


def _constant(
    graph: ir.Graph, tensor: onnx.TensorProto, name: str, names: _Names, nodes: list[ir.Node] | None
) -> ir.Value:
    """A value that holds `tensor`: an initializer of `graph`, equal ones shared, or a Constant among `nodes`."""
    tensor.name = ""
    constant = ir.serde.deserialize_tensor(tensor)
    if nodes is not None:
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", constant)])
        node.outputs[0].name = names.new(name)
        nodes.append(node)
        return node.outputs[0]
    key = (id(graph), tensor.SerializeToString())
    if key not in names.constants:
        value = ir.Value(
            name=names.new(name),
            type=ir.TensorType(constant.dtype),
            shape=ir.Shape(constant.shape.numpy()),
            const_value=constant,
        )
        constant.name = value.name
        graph.register_initializer(value)
        names.constants[key] = value
    return names.constants[key]
