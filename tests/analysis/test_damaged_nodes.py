"""Nodes that make no sense: inference survives them, checks name them, and nothing but graphopt's errors comes out."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from graphopt.analysis import meaning, opset, shapes
from graphopt.analysis.extents import Extents
from graphopt.errors import GraphoptError, InvalidModelError

VALUES: list[Any] = [1, 0, -7, 2**40, 1.5, "abc", [1, 2], [0], [1.5], ["x"], [-1, -1, 5, 2**62]]
OPERATORS = [
    "Attention", "Concat", "Conv", "Gather", "If", "Loop", "NoSuchThing", "Pad", "Relu", "Reshape", "Scan",
    "SequenceMap", "Shape", "Slice", "Split",
]  # fmt: skip


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def drop_input(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    if node.input:
        del node.input[rng.randrange(len(node.input))]


def add_input(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    node.input.append(rng.choice(["", *(value.name for value in graph.input)]))


def add_output(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    node.output.append(rng.choice(["", "one more"]))


def drop_graph_output(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    if graph.output:
        del graph.output[rng.randrange(len(graph.output))]


def drop_attribute(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def change_attribute(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    if node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.CopyFrom(helper.make_attribute(attribute.name, rng.choice(VALUES)))


def change_operator(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    node.op_type = rng.choice(OPERATORS)


def change_extents(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if rng.random() < 0.3:
                dim.dim_value = rng.choice([0, 1, 3, 2**60, -1])
            elif rng.random() < 0.3:
                dim.dim_param = rng.choice(["n", "m", "a b", "?", "2*n"])


def change_type(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    for value in graph.input:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = rng.choice([0, 1, 7, 8, 9, 10, 16])


DAMAGES: list[Callable[[onnx.GraphProto, onnx.NodeProto, random.Random], None]] = [
    drop_input, add_input, add_output, drop_graph_output, drop_attribute, change_attribute, change_operator,
    change_extents, change_type,
]  # fmt: skip


def look_at(model: ir.Model) -> None:
    """All that analysis does with a model that it is given."""
    for look in (
        lambda: shapes.infer(model),
        lambda: meaning.check(model),
        lambda: shapes.infer(model, nodes=list(model.graph)[:1]),
        lambda: [Extents(model, batch=2).dims(value) for value in model.graph.outputs],
        lambda: opset.upgrade(model, 21),
    ):
        with contextlib.suppress(GraphoptError):
            look()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_nothing_but_our_own_errors(
    damage: Callable[[onnx.GraphProto, onnx.NodeProto, random.Random], None],
    node_cases: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    rng = random.Random(damage.__name__)
    damaged = 0
    for case in rng.sample(node_cases, 80):
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        graph = rng.choice([graph for graph in graphs(proto.graph) if graph.node])
        damage(graph, rng.choice(graph.node), rng)
        try:
            model = ir.from_proto(proto)
        except (ir.serde.SerdeError, ValueError, TypeError):
            continue  # lifting makes errors of these
        look_at(model)
        damaged += 1
    assert damaged > 40


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [
        ("float[6] x", "y, z, u = Split<num_outputs=2>(x)", "has 3 outputs"),
        ("float[2,3,4] x, int64[2,0] i", "y = GatherND<batch_dims=-1>(x, i)", "'batch_dims' is negative"),
    ],
)
def test_what_ends_onnx_itself_is_refused(inputs: str, node: str, reason: str) -> None:
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 18]> g ({inputs}) => (float[n] y) {{ {node} }}')
    shapes.infer(model)
    with pytest.raises(InvalidModelError, match=reason):
        meaning.check(model)


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[2] x, int64[1152921504606846976] s) => (float[n] y) { y = Reshape(x, s) }",
        "g (int64[0,1152921504606846976] s) => (int64[n] y) { a = Abs(s) y = ConstantOfShape(a) }",
        "g () => (float[n] y) <int64[1] s = {1152921504606846976}> { a = ConstantOfShape(s) y = Expand(a, s) }",
        "g () => (int64[n] y) <int64 a = {0}, int64 b = {1152921504606846976}, int64 c = {1}> { y = Range(a, b, c) }",
    ],
)
def test_absurd_extents_cost_nothing(graph: str) -> None:
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 18]> {graph}')
    look_at(model)
    assert model.graph.outputs[0].dtype is not None
