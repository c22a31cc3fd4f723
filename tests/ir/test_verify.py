"""Structural verification finds every kind of damage that a pass could do."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from graphopt.errors import VerificationError
from graphopt.ir import verify

TEXT = """
<ir_version: 10, opset_import: ["" : 18]>
g (bool c, float[2] x) => (float[2] y)
<float[2] w = {1, 2}>
{
    a = Add (x, w)
    b = Relu (a)
    y = If (c) <then_branch = t () => (float[2] r) { r = Mul (b, x) },
                else_branch = e () => (float[2] s) { s = Neg (b) }>
}
"""


def body(model: ir.Model) -> ir.Graph:
    return model.graph[2].attributes["then_branch"].as_graph()


def swap_order(model: ir.Model) -> ir.Node:
    node = model.graph[0]
    model.graph.remove(node)
    model.graph.append(node)
    return node


def dangling_input(model: ir.Model) -> ir.Node:
    model.graph[1].replace_input_with(0, ir.Value(name="ghost"))
    return model.graph[1]


def removed_producer(model: ir.Model) -> ir.Node:
    reader = model.graph[1]
    model.graph.remove(model.graph[0])
    return reader


def same_name(model: ir.Model) -> ir.Node:
    model.graph[0].outputs[0].name = "b"
    return model.graph[0]


def nameless(model: ir.Model) -> ir.Node:
    model.graph[0].outputs[0].name = ""
    return model.graph[0]


def lost_tensor(model: ir.Model) -> ir.Node:
    model.graph.initializers["w"].const_value = None
    return model.graph[0]


def body_reads_ghost(model: ir.Model) -> ir.Node:
    body(model)[0].replace_input_with(1, ir.Value(name="ghost"))
    return body(model)[0]


def output_of_nobody(model: ir.Model) -> ir.Node:
    model.graph.outputs[0] = ir.Value(name="z")
    return model.graph[2]


DAMAGE = [dangling_input, removed_producer, same_name, nameless, body_reads_ghost]


@pytest.mark.parametrize("damage", [swap_order, lost_tensor, output_of_nobody, *DAMAGE])
def test_whole_verification(damage: Callable[[ir.Model], ir.Node]) -> None:
    model = ir.from_onnx_text(TEXT)
    verify.verify(model)
    damage(model)
    with pytest.raises(VerificationError):
        verify.verify(model)


@pytest.mark.parametrize("damage", DAMAGE)
def test_verification_of_touched_nodes(damage: Callable[[ir.Model], ir.Node]) -> None:
    model = ir.from_onnx_text(TEXT)
    verify.verify(model, [*model.graph, *body(model)])
    node = damage(model)
    with pytest.raises(VerificationError):
        verify.verify(model, [node])


def test_a_touched_node_must_be_in_the_model() -> None:
    model = ir.from_onnx_text(TEXT)
    node = model.graph[0]
    model.graph.remove(node)
    with pytest.raises(VerificationError, match="not in the model"):
        verify.verify(model, [node])
