"""Identity elimination: y = x, so whoever reads y can read x.

    y = Identity(x)          any type
    y = Dropout(x)           in inference, where dropping out is the identity; its mask must be unread

Dropout is in inference for good up to opset 6 with `is_test`, in opsets 7 to 11 always, and from opset 12 on where
`training_mode` is absent or constant false.

Where y is a graph output, x takes over its name; it cannot where x is a graph input or initializer, comes from outside
the body, or is a graph output itself. Those nodes stay.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.surgery import Editor, drop_unread, scopes
from graphopt.ir.walk import constant_tensor, label
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.remarks import Remarks


@dataclasses.dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove Identity, and Dropout in inference."""

    name: ClassVar[str] = "eliminate-identity"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove them from the main graph, from bodies and from functions."""
        remarks = Remarks()
        touched: dict[ir.Node, None] = {}
        modified = False
        for scope in scopes(model):
            for graph in scope.graphs():
                editor = Editor(graph)
                for node in graph:
                    if _is_identity(node, scope.opset()) and not context.excluded(node):
                        modified |= _eliminate(node, editor, touched, remarks)
                editor.commit()
        return PassResult(modified, [node for node in touched if node.graph is not None], remarks.listed())


def _is_identity(node: ir.Node, opset: int) -> bool:
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Identity":
        return True
    return node.op_type == "Dropout" and _is_inference(node, opset)


def _is_inference(node: ir.Node, opset: int) -> bool:
    if opset < 7:
        return node.attributes.get_int("is_test", 0) != 0
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = constant_tensor(node.inputs[2])
    return training is not None and not training.numpy().any()


def _eliminate(node: ir.Node, editor: Editor, touched: dict[ir.Node, None], remarks: Remarks) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None  # _is_identity looked
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        remarks.missed(label(node), "kept: its mask is read")
        return False
    why_not = editor.why_not_replace(output, source)
    if why_not is not None:
        remarks.missed(label(node), f"kept: {why_not}")
        return False
    producer = source.producer()
    if output.is_graph_output() and producer is not None:
        touched[producer] = None
    reads = list(node.inputs)
    touched.update(dict.fromkeys(editor.replace(output, source)))
    editor.remove(node)
    drop_unread(reads[1:])
    remarks.applied(label(node), "removed: its output equals its input")
    return True
