"""Dead code: what contributes to no graph output is not computed.

A node is dead when every value it produces is unread, by nodes and by bodies, and no graph output. Walking each graph
backwards, bodies included where they stand, finds in one pass everything that only the dead read. Three cases:

* nodes of operators that ONNX does not define stay: they may do more than compute their outputs;
* trailing optional outputs that nobody reads are cut off, except where their number itself means something;
* functions that nothing calls any more go.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx
import onnx_ir as ir

from graphopt.ir.surgery import Editor, Scope, scopes
from graphopt.ir.walk import graph_and_bodies, label, subgraphs
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.remarks import Remarks

_COUNTED = frozenset({"Attention", "BatchNormalization"})
"""Attention has both of its caches or none; BatchNormalization before opset 14 trains when it has more than one."""


@dataclasses.dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes, optional outputs and functions that nothing reads."""

    name: ClassVar[str] = "eliminate-dead-code"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove them from the main graph, from bodies and from functions."""
        sweep = _Sweep(model, context)
        for scope in scopes(model):
            sweep.graph(scope.graph, scope)
        sweep.functions()
        return PassResult(sweep.modified, sweep.touched, sweep.remarks.listed())


class _Sweep:
    """One run over the model."""

    def __init__(self, model: ir.Model, context: PassContext) -> None:
        self.model = model
        self.context = context
        self.remarks = Remarks()
        self.touched: list[ir.Node] = []
        self.modified = False
        self._schemas: dict[tuple[ir.OperatorIdentifier, int], onnx.defs.OpSchema | None] = {}

    def graph(self, graph: ir.Graph, scope: Scope) -> None:
        """Sweep `graph` and its bodies, last node first, so that one walk is enough."""
        editor = Editor(graph)
        for node in reversed(graph):
            if self.context.excluded(node):
                continue
            if all(map(_is_unread, node.outputs)):
                if self._may_go(node, scope):
                    editor.remove(node)
                    self.modified = True
                    self.remarks.applied(label(node), "removed: nothing reads what it computes")
                    continue
            elif _is_unread(node.outputs[-1]):
                self._cut_outputs(node, scope)
            for body in subgraphs(node):
                self.graph(body, scope)
        editor.commit()

    def functions(self) -> None:
        """Remove functions that no node calls, directly or through another function."""
        functions = self.model.functions
        called: set[ir.OperatorIdentifier] = set()
        pending = [self.model.graph]
        while pending:
            for graph in graph_and_bodies(pending.pop()):
                for node in graph:
                    identifier = node.op_identifier()
                    if identifier in functions and identifier not in called:
                        called.add(identifier)
                        pending.append(functions[identifier].graph)
        for identifier in [identifier for identifier in functions if identifier not in called]:
            del functions[identifier]
            self.modified = True
            self.remarks.applied(f"function '{identifier[1]}'", "removed: nothing calls it")

    def _may_go(self, node: ir.Node, scope: Scope) -> bool:
        if self._schema(node, scope) is not None or node.op_identifier() in self.model.functions:
            return True
        self.remarks.missed(label(node), "kept, though nothing reads it: its operator is unknown and may do more")
        return False

    def _cut_outputs(self, node: ir.Node, scope: Scope) -> None:
        schema = self._schema(node, scope)
        if schema is None or node.op_type in _COUNTED:
            return
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
        kept = len(node.outputs)
        while _is_unread(node.outputs[kept - 1]) and kept <= len(schema.outputs):
            if schema.outputs[kept - 1].option != optional:
                break
            kept -= 1
        if kept < len(node.outputs):
            node.resize_outputs(kept)
            self.touched.append(node)
            self.modified = True
            self.remarks.applied(label(node), "optional outputs removed: nothing reads them")

    def _schema(self, node: ir.Node, scope: Scope) -> onnx.defs.OpSchema | None:
        version = scope.opset(node.domain)
        key = (node.op_identifier(), version)
        if key not in self._schemas:
            known = onnx.defs.has(node.op_type, version, node.domain) and key[0] not in self.model.functions
            self._schemas[key] = onnx.defs.get_schema(node.op_type, version, node.domain) if known else None
        return self._schemas[key]


def _is_unread(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
