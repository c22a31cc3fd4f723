"""eliminate-dead-code and remove-unused-initializers: what nothing reads goes, in every kind of graph."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from graphopt.pipeline.base import PassContext
from graphopt_passes.lossless.eliminate_dead_code import EliminateDeadCode


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Abs(a)  y = Relu(x) }",
            "g (float[N] x) => (float[N] y) { y = Relu(x) }",
            id="chain",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { a = Neg(x)  b = Abs(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { d = Exp(a)  ty = Relu(b) },
                 else_branch = e () => (float[N] ey) { ey = Neg(x) }> }""",
            """g (float[N] x, bool c) => (float[N] y) { b = Abs(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Relu(b) },
                 else_branch = e () => (float[N] ey) { ey = Neg(x) }> }""",
            id="in a body, and then what only that read",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { a = Neg(x)  b = Abs(a)  z = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Relu(b) },
                 else_branch = e () => (float[N] ey) { ey = Relu(a) }>  y = Exp(x) }""",
            "g (float[N] x, bool c) => (float[N] y) { y = Exp(x) }",
            id="a dead If no longer reads what its bodies captured",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y)
                 { y = local.f(x)  z = local.lost(x) }
               <domain: "local", opset_import: ["": 17, "local": 1]> f (a) => (b) { c = Neg(a)  b = local.inner(a) }
               <domain: "local", opset_import: ["": 17]> inner (a) => (b) { b = Relu(a) }
               <domain: "local", opset_import: ["": 17]> lost (a) => (b) { b = Relu(a) }
               <domain: "local", opset_import: ["": 17]> uncalled (a) => (b) { b = Relu(a) }""",
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y) { y = local.f(x) }
               <domain: "local", opset_import: ["": 17, "local": 1]> f (a) => (b) { b = local.inner(a) }
               <domain: "local", opset_import: ["": 17]> inner (a) => (b) { b = Relu(a) }""",
            id="in functions, and functions that nothing calls",
        ),
        pytest.param(
            "g (float[1,1,4,4] x) => (float[1,1,3,3] y) { y, i = MaxPool<kernel_shape = [2, 2]>(x) }",
            "g (float[1,1,4,4] x) => (float[1,1,3,3] y) { y = MaxPool<kernel_shape = [2, 2]>(x) }",
            id="trailing optional output",
        ),
        pytest.param(
            """g (float[3,1,2] x, float[1,12,2] w, float[1,12,3] r) => (float[1,1,3] h)
               { y, h, c = LSTM<hidden_size = 3>(x, w, r) }""",
            """g (float[3,1,2] x, float[1,12,2] w, float[1,12,3] r) => (float[1,1,3] h)
               { y, h = LSTM<hidden_size = 3>(x, w, r) }""",
            id="only trailing outputs are cut",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    outcome = rewriter.golden(before, "eliminate-dead-code", after)
    rewriter.same_outputs(rewriter.model(before), outcome.model)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(
            "g (float[N] x) => (float[N] y) { a = acme.Log(x)  y = Relu(x) }",
            "acme.Log 'a': kept, though nothing reads it: its operator is unknown",
            id="unknown operator",
        ),
        pytest.param("g (float[4] x) => (float[2] b) { a, b = Split(x) }", "", id="variadic outputs"),
        pytest.param("g (float[N,M] x) => (int64[N,K] i) <int64[1] k = {1}> { v, i = TopK(x, k) }", "", id="required"),
        pytest.param(
            """<ir_version: 7, opset_import: ["": 9]> g (float[2,1,3] x) => (float[2,1,3] y)
               <float[1] s = {1}, float[1] b = {0}, float[1] m = {0}, float[1] v = {1}>
               { y, rm, rv, sm, sv = BatchNormalization(x, s, b, m, v) }""",
            "",
            id="outputs whose number is a mode",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.golden(before, "eliminate-dead-code").reasons


def test_excluded_nodes_and_what_they_read_stay(rewriter: Any) -> None:
    before = "g (float[N] x) => (float[N] y) { a = Neg(x)  [probe] b = Abs(a)  c = Exp(b)  y = Relu(x) }"
    after = "g (float[N] x) => (float[N] y) { a = Neg(x)  [probe] b = Abs(a)  y = Relu(x) }"
    rewriter.golden(before, "eliminate-dead-code", after, exclude="probe")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] u = {3, 4}> { y = Add(x, w) }",
            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }",
            id="main graph",
        ),
        pytest.param(
            """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}, float[2] u = {3, 4}> { y = If (c) <
                 then_branch = t () => (float[2] ty) <float[2] q = {5, 6}> { ty = Add(x, w) },
                 else_branch = e () => (float[2] ey) <float[2] r = {7, 8}> { ey = Add(x, r) }> }""",
            """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> { y = If (c) <
                 then_branch = t () => (float[2] ty) { ty = Add(x, w) },
                 else_branch = e () => (float[2] ey) <float[2] r = {7, 8}> { ey = Add(x, r) }> }""",
            id="in bodies, and read by bodies",
        ),
        pytest.param(
            "g (float[2] x, float[2] u) => (float[2] x2) <float[2] u = {3, 4}> { x2 = Relu(x) }",
            None,
            id="one that the caller can override",
        ),
    ],
)
def test_unused_initializers(rewriter: Any, before: str, after: str | None) -> None:
    rewriter.golden(before, "remove-unused-initializers", after)


def test_an_initializer_that_is_a_graph_output_stays(rewriter: Any) -> None:
    model = rewriter.model("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Relu(x) }")
    model.graph.outputs.append(model.graph.initializers["w"])
    assert not rewriter.run(model, "remove-unused-initializers").modified


def test_work_follows_the_size_of_the_graph() -> None:
    """A long dead chain goes in one run, without recursion."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    nodes, value = [], x
    for index in range(3000):
        nodes.append(ir.Node("", "Relu", [value], name=f"n{index}"))
        value = nodes[-1].outputs[0]
    kept = ir.Node("", "Neg", [x], name="kept")
    graph = ir.Graph([x], [kept.outputs[0]], nodes=[*nodes, kept], opset_imports={"": 17}, name="g")
    result = EliminateDeadCode().run(ir.Model(graph, ir_version=8), PassContext())
    assert list(graph) == [kept]
    (remark,) = result.remarks
    assert (
        str(remark)
        == "Relu 'n2999', Relu 'n2998', Relu 'n2997' and 2,997 more: removed: nothing reads what it computes"
    )
