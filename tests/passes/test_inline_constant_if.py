"""inline-constant-if: the branch that is taken, its names, its initializers, and what it gives for each output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.errors import RuntimeFailureError
from graphopt.ir.walk import all_nodes

PIPELINE = "inline-constant-if"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """g (float[N] x) => (float[N] y) <bool c = {1}> { a = Exp(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { b = Neg(a)  ty = Abs(b) },
                 else_branch = e () => (float[N] ey) { ey = Sin(x) }> }""",
            "g (float[N] x) => (float[N] y) { a = Exp(x)  b = Neg(a)  y = Abs(b) }",
            id="then",
        ),
        pytest.param(
            """g (float[N] x) => (float[N] y) <bool[1] c = {0}> { r = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Exp(x) },
                 else_branch = e () => (float[N] ey) <float k = {2}> { ey = Mul(x, k) }>  y = Neg(r) }""",
            "g (float[N] x) => (float[N] y) <float k = {2}> { ey = Mul(x, k)  y = Neg(ey) }",
            id="else, with an initializer",
        ),
        pytest.param(
            """g (float[N] x, bool d) => (float[N] y) <bool c = {1}, bool f = {0}> { y = If (c) <
                 then_branch = t () => (float[N] ty) {
                   a = Exp(x)
                   ty = If (d) <
                     then_branch = t2 () => (float[N] uy) { p = If (f) <
                       then_branch = t3 () => (float[N] vy) { vy = Cos(a) },
                       else_branch = e3 () => (float[N] wy) { wy = Sin(a) }>  uy = Neg(p) },
                     else_branch = e2 () => (float[N] zy) { zy = Abs(a) }> },
                 else_branch = e () => (float[N] ey) { ey = Neg(x) }> }""",
            """g (float[N] x, bool d) => (float[N] y) { a = Exp(x)  y = If (d) <
                 then_branch = t2 () => (float[N] uy) { wy = Sin(a)  uy = Neg(wy) },
                 else_branch = e2 () => (float[N] zy) { zy = Abs(a) }> }""",
            id="one inside the other",
        ),
        pytest.param(
            """g (float[N] x) => (float[N] y) <bool c = {1}> {
                 p = If (c) <then_branch = t () => (float[N] r) { a = Exp(x)  r = Neg(a) },
                             else_branch = e () => (float[N] r) { r = Abs(x) }>
                 q = If (c) <then_branch = t () => (float[N] r) { a = Sin(x)  r = Neg(a) },
                             else_branch = e () => (float[N] r) { r = Abs(x) }>
                 y = Add(p, q) }""",
            """g (float[N] x) => (float[N] y)
               { a_2 = Exp(x)  r_2 = Neg(a_2)  a_3 = Sin(x)  r_3 = Neg(a_3)  y = Add(r_2, r_3) }""",
            id="names of another branch",
        ),
        pytest.param(
            """g (float[N] x) => (float[N] y) <bool c = {1}> {
                 p = If (c) <then_branch = t () => (float[N] ty) { ty = Exp(x) },
                             else_branch = e () => (float[N] ey) { ey = Abs(x) }>
                 y = If (c) <then_branch = t2 () => (float[N] uy) { uy = Neg(x) },
                             else_branch = e2 () => (float[N] vy) { vy = Sin(p) }> }""",
            "g (float[N] x) => (float[N] y) { ty = Exp(x)  y = Neg(x) }",
            id="the branch that goes reads what was inlined",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { c = Constant<value = bool {1}>()  b = If (c) <
                   then_branch = t () => (float[N] ty) <float k = {2}> { ty = Mul(a, k) },
                   else_branch = e () => (float[N] ey) { ey = Neg(a) }> }""",
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { k = Constant<value = float k {2}>()  b = Mul(a, k) }""",
            id="in functions",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param("g (float[N] x, bool c) => (float[N] y) {", id="input"),
        pytest.param("g (float[N] x, bool c) => (float[N] y) <bool c = {1}> {", id="default that may be overridden"),
        pytest.param(
            "g (float[N] x) => (float[N] y) <float k = {1}> { s = ReduceSum<keepdims = 0>(x)  c = Less(s, k)",
            id="computed",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, condition: str) -> None:
    branches = """y = If (c) <then_branch = t () => (float[N] ty) { ty = Exp(x) },
                              else_branch = e () => (float[N] ey) { ey = Neg(x) }> }"""
    rewriter.rewrites(condition + branches, PIPELINE)


RESULTS = """g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> { y, z = If (c) <
               then_branch = t () => (float[2] ty, float[2] tz) <float[2] k = {1, 2}> { ty = Exp(x)  tz = Add(ty, k) },
               else_branch = e () => (float[2] ey, float[2] ez) { ey = Neg(x)  ez = Abs(x) }> }"""


@pytest.mark.parametrize(
    ("results", "after"),
    [
        (["ty", "k"], "{ y = Exp(x)  tz = Add(y, k)  [z_identity_node] z = Identity(k) }"),
        (["ty", "ty"], "{ y = Exp(x)  tz = Add(y, k)  [z_identity_node] z = Identity(y) }"),
        (["tz", "ty"], "{ z = Exp(x)  y = Add(z, k) }"),
    ],
    ids=["an initializer", "one value for two outputs", "values of the branch"],
)
def test_results_for_graph_outputs(rewriter: Any, results: list[str], after: str) -> None:
    """ONNX's checker wants a body to compute its outputs; there are models in which it does not."""
    model = rewriter.typed(RESULTS)
    (node,) = model.graph
    branch = node.attributes["then_branch"].as_graph()
    values = {output.name: output for inner in branch for output in inner.outputs} | dict(branch.initializers)
    branch.outputs[:] = [values[name] for name in results]
    outcome = rewriter.run(model, PIPELINE)
    expected = f"g (float[2] x) => (float[2] y, float[2] z) <float[2] k = {{1, 2}}> {after}"
    assert rewriter.printed(outcome.model) == rewriter.printed(rewriter.model(expected))


def test_excluded_nodes_stay(rewriter: Any) -> None:
    before = """g (float[N] x) => (float[N] y) <bool c = {1}> { [keep] y = If (c) <
                  then_branch = t () => (float[N] ty) { ty = Exp(x) },
                  else_branch = e () => (float[N] ey) { ey = Neg(x) }> }"""
    rewriter.rewrites(before, PIPELINE, exclude="keep")


WEIGHTS = {"w": np.ones((4, 4), np.float32), "k": np.ones((2, 3, 1), np.float32), "l": np.ones((1, 12, 4), np.float32)}
WEIGHTS |= {"r": np.ones((1, 12, 3), np.float32), "o": np.ones((2, 1, 1, 1), np.float32)}


def ranks(reader: str, more: str = "") -> str:
    """An If that gives three axes, or two; and who reads it."""
    return f"""g (float[3,4] x, bool c) => (float y) <int64[1] z = {{0}}> {{ i = If (c) <
                 then_branch = t () => (float[1,3,4] ti) {{ ti = Unsqueeze(x, z) }},
                 else_branch = e () => (float[3,4] ei) {{ ei = Neg(x) }}>
               {more}  {reader}  y = ReduceSum<keepdims = 0>(q) }}"""


SECOND = """j = If (c) <then_branch = t2 () => (float[3,4] tj) { tj = Exp(x) },
                        else_branch = e2 () => (float[3,4] ej) { ej = Neg(x) }>"""


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        pytest.param(ranks("q = Gemm(i, w)"), False, id="Gemm"),
        pytest.param(ranks("q = Conv(i, k)"), True, id="as many axes as the weight"),
        pytest.param(ranks("p, q = LSTM<hidden_size = 3>(i, l, r)"), True, id="LSTM"),
        pytest.param(ranks("p = Unsqueeze(i, z)  q = Conv(p, o)"), True, id="an axis more"),
        pytest.param(ranks("n = Relu(i)  p = Squeeze(n, z)  q = Gemm(p, w)"), True, id="an axis less"),
        pytest.param(ranks("n = Gemm(i, w)  q = Add(n, j)", SECOND), False, id="another If with the same condition"),
    ],
)
def test_the_branch_whose_rank_readers_take(rewriter: Any, text: str, condition: bool) -> None:
    before, after = rewriter.typed(text, WEIGHTS), rewriter.run(rewriter.typed(text, WEIGHTS), PIPELINE).model
    assert not any(node.op_type == "If" for node in all_nodes(after))
    feeds = {"x": np.ones((3, 4), np.float32), "c": np.array(condition)}
    np.testing.assert_allclose(rewriter.outputs(after, feeds)["y"], rewriter.outputs(before, feeds)["y"], rtol=1e-5)
    with pytest.raises(RuntimeFailureError):
        rewriter.outputs(before, {**feeds, "c": np.array(not condition)})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ranks("q = MatMul(i, w)"), id="readers that take both"),
        pytest.param(ranks("q = Conv(i, o)"), id="readers that take neither"),
        pytest.param(ranks("p = Squeeze(i)  q = Gemm(p, w)"), id="an unknown number of axes"),
        pytest.param(
            ranks(
                """q = If (d) <then_branch = t2 () => (float[3,4] tq) { tq = Gemm(i, w) },
                               else_branch = e2 () => (float[3,4] eq) { eq = Neg(x) }>""",
                "s = ReduceSum<keepdims = 0>(x)  zero = Sub(s, s)  d = Less(s, zero)",
            ),
            id="a reader that may not be computed",
        ),
        pytest.param(
            ranks("q = Gemm(i, w)").replace("Unsqueeze(x, z)", "acme.Do(x)").replace("[1,3,4] ti", "[] ti"),
            id="a branch of unknown rank",
        ),
    ],
)
def test_a_branch_that_may_be_right_stays(rewriter: Any, text: str) -> None:
    assert not rewriter.run(rewriter.typed(text, WEIGHTS), PIPELINE).modified
