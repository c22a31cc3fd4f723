"""Inference of a part: after a rewrite, the touched nodes and what follows from them come out as the whole would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import dims, shapes
from graphopt.lift import lift

MODELS = Path(__file__).parents[2] / "models"


def parsed(text: str) -> ir.Model:
    """A model with inferred shapes; the text cannot leave a rank open, so outputs written as scalars are undeclared."""
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 18, "d" : 1]> {text}')
    for output in model.graph.outputs:
        output.shape = output.shape or None
    shapes.infer(model)
    return model


def node_of(model: ir.Model, name: str) -> ir.Node:
    return next(node for graph in model.graphs() for node in graph if any(out.name == name for out in node.outputs))


def shape(model: ir.Model, name: str) -> ir.Shape | None:
    return next(out.shape for out in node_of(model, name).outputs if out.name == name)


NETWORK = """g (float[n,3,8,8] x, float[16,3,3,3] w, float[32,3,3,3] v, bool c) => (float[n,k] y)
    <int64[2] flat = {0,-1}> {
    a = Conv(x, w) b = Relu(a) p = GlobalAveragePool(b)
    i = If(c) <then_branch = t () => (float[?,?] t1) { t1 = Reshape(p, flat) },
               else_branch = e () => (float[?,?] e1) { e0 = Flatten(p) e1 = Relu(e0) }>
    q = Flatten(b) s = Shape(b) z = ConstantOfShape(s) y = Abs(i) }"""


def test_what_follows_from_a_changed_node_is_inferred_again() -> None:
    model = parsed(NETWORK)
    conv = node_of(model, "a")
    conv.replace_input_with(1, model.graph.inputs[2])
    untouched = node_of(model, "s").outputs[0].shape
    shapes.infer(model, nodes=[conv])
    assert shape(model, "a") == shape(model, "b") == shape(model, "z") == ["n", 32, 6, 6]
    assert [shape(model, name) for name in ("p", "i", "t1", "e1", "q")] == [
        ["n", 32, 1, 1], ["n", 32], ["n", 32], ["n", 32], ["n", 1152],
    ]  # fmt: skip
    assert shape(model, "y") == ["n", "k"]
    assert node_of(model, "s").outputs[0].shape is untouched


def test_a_change_inside_a_body_reaches_what_the_body_yields() -> None:
    model = parsed(NETWORK)
    flatten = node_of(model, "e0")
    flatten.attributes["axis"] = ir.AttrInt64("axis", 0)
    shapes.infer(model, nodes=[flatten])
    assert shape(model, "e1") == [1, "16*n"]
    inferred = shape(model, "i")
    assert inferred is not None
    assert all(map(dims.is_invented, inferred))


def test_new_nodes_get_shapes() -> None:
    model = parsed(NETWORK)
    relu = node_of(model, "b")
    new = ir.node("Sigmoid", [relu.inputs[0]])
    model.graph.insert_before(relu, new)
    relu.outputs[0].replace_all_uses_with(new.outputs[0])
    model.graph.remove(relu)
    shapes.infer(model, nodes=[new, relu])
    assert new.outputs[0].shape == ["n", 16, 6, 6]
    assert new.outputs[0].dtype == ir.DataType.FLOAT


def test_what_was_derived_from_something_else_is_forgotten() -> None:
    model = parsed(
        "g (float[n,4] x, float[n,5] z) => (float y) <float[n,4] c> { a = Relu(x) c = d.Custom(a) y = Relu(c) }"
    )
    assert shape(model, "y") == ["n", 4]
    relu = node_of(model, "a")
    shapes.infer(model, nodes=[relu])
    assert shape(model, "c") == ["n", 4]  # nothing before it changed
    relu.replace_input_with(0, model.graph.inputs[1])
    shapes.infer(model, nodes=[relu])
    assert shape(model, "a") == ["n", 5]
    assert shape(model, "c") is None


def test_open_extents_keep_their_symbols() -> None:
    model = parsed("g (float[n] x) => (float y) { i = NonZero(x) j = Transpose(i) y = Cast<to=1>(j) }")
    before = shape(model, "y")
    assert before is not None
    shapes.infer(model, nodes=[node_of(model, "i")])
    assert shape(model, "y") is before
    other = parsed("g (float[n] x) => (float y) { i = NonZero(x) j = NonZero(i) y = Add(i, j) }")
    i, j = shape(other, "i"), shape(other, "j")
    assert i is not None
    assert j is not None
    assert i[1] != j[1]
    shapes.infer(other, nodes=[node_of(other, "j")])
    assert shape(other, "j") == j


def test_nodes_of_functions_and_removed_nodes_are_passed_over() -> None:
    model = parsed("g (float[n] x) => (float[n] y) { y = Relu(x) }")
    shapes.infer(model, nodes=[ir.node("Relu", [model.graph.inputs[0]])])
    assert shape(model, "y") == ["n"]


def halve_classes(model: ir.Model) -> list[ir.Node]:
    """Cut the last weight of a classifier in two."""
    last = next(node for node in reversed(model.graph) if node.op_type in ("Gemm", "MatMul"))
    touched = [last]
    axis = 0 if "transB" in last.attributes and last.attributes["transB"].as_int() else 1
    for index, value in enumerate(last.inputs[1:], 1):
        assert value is not None
        assert value.const_value is not None
        half = np.split(value.const_value.numpy(), 2, axis=axis if index == 1 else 0)[0]
        cut = ir.Value(
            name=f"{value.name}.half",
            const_value=ir.tensor(half),
            shape=ir.Shape(half.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        model.graph.register_initializer(cut)
        last.replace_input_with(index, cut)
    return touched


def without_shapes(model: ir.Model) -> ir.Model:
    clone = model.clone()
    for graph in clone.graphs():
        for node in graph:
            for output in node.outputs:
                output.shape = None
    return clone


@pytest.mark.parametrize("rewrite", [halve_classes])
@pytest.mark.parametrize("name", ["residual.onnx", "shuffle.dynamo.onnx", "mlp.onnx"])
def test_a_part_comes_out_as_the_whole(name: str, rewrite: Callable[[ir.Model], list[ir.Node]]) -> None:
    model = lift(MODELS / name).model
    for value in model.graph.outputs:
        value.shape = None
    shapes.infer(model, nodes=rewrite(model))
    whole = without_shapes(model)
    shapes.infer(whole)
    for node, other in zip(model.graph, whole.graph, strict=True):
        for value, expected in zip(node.outputs, other.outputs, strict=True):
            assert value.shape == expected.shape, node
    assert model.graph.outputs[0].shape == ["batch", 5]
