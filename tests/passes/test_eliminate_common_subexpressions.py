"""eliminate-common-subexpressions: what is computed twice, and what only looks like it."""

from __future__ import annotations

from typing import Any

import pytest

PIPELINE = "eliminate-common-subexpressions"
XY = "g (float[N] x) => (float[N] y)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            f"{XY} {{ a = Exp(x)  b = Exp(x)  c = Neg(a)  d = Neg(b)  y = Add(c, d) }}",
            f"{XY} {{ a = Exp(x)  c = Neg(a)  y = Add(c, c) }}",
            id="and what is computed from it",
        ),
        pytest.param(
            f"{XY} {{ a = Softmax(x)  b = Softmax<axis = -1>(x)  y = Add(a, b) }}",
            f"{XY} {{ a = Softmax(x)  y = Add(a, a) }}",
            id="a default written out",
        ),
        pytest.param(
            f"{XY} {{ a = Neg(x)  b = Mul(a, x)  c = Mul(x, a)  y = Sub(b, c) }}",
            f"{XY} {{ a = Neg(x)  b = Mul(a, x)  y = Sub(b, b) }}",
            id="operands in another order",
        ),
        pytest.param(
            f"{XY} <float[1] u = {{2}}, float[1] v = {{2}}> {{ a = Sub(x, u)  b = Sub(x, v)  y = Mul(a, b) }}",
            f"{XY} <float[1] u = {{2}}> {{ a = Sub(x, u)  y = Mul(a, a) }}",
            id="equal constants",
        ),
        pytest.param(
            """g (float[4] x) => (float[2] y)
               { a, b = Split(x)  c, d = Split(x)  e = Sub(a, b)  f = Sub(c, d)  y = Mul(e, f) }""",
            "g (float[4] x) => (float[2] y) { a, b = Split(x)  e = Sub(a, b)  y = Mul(e, e) }",
            id="several outputs",
        ),
        pytest.param(
            f"{XY[:-1]}, float[N] z) {{ a = Exp(x)  y = Neg(a)  z = Exp(x) }}",
            f"{XY[:-1]}, float[N] z) {{ z = Exp(x)  y = Neg(z) }}",
            id="a graph output keeps its name",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y, float[N] a) { a = Exp(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { b = Exp(x)  ty = Neg(b) },
                 else_branch = e () => (float[N] ey) { d = Exp(x)  f = Exp(x)  ey = Add(d, f) }> }""",
            """g (float[N] x, bool c) => (float[N] y, float[N] a) { a = Exp(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Neg(a) },
                 else_branch = e () => (float[N] ey) { ey = Add(a, a) }> }""",
            id="in bodies, from outside",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { k = Constant<value = float {2}>()  m = Constant<value = float {2}>()
                 c = Mul(a, k)  d = Mul(a, m)  b = Add(c, d) }""",
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { k = Constant<value = float {2}>()  c = Mul(a, k)  b = Add(c, c) }""",
            id="in functions",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(f"{XY} {{ a = Exp(x)  b = Sin(x)  y = Add(a, b) }}", "", id="operator"),
        pytest.param(f"{XY} {{ a = Elu(x)  b = Elu<alpha = 0.5>(x)  y = Add(a, b) }}", "", id="attribute"),
        pytest.param(f"{XY} {{ a = Elu<alpha = 0.0>(x)  b = Elu<alpha = -0.0>(x)  y = Add(a, b) }}", "", id="zeros"),
        pytest.param(f"{XY} {{ a = Neg(x)  b = Sub(a, x)  c = Sub(x, a)  y = Add(b, c) }}", "", id="order matters"),
        pytest.param(
            f"{XY} <float u = {{0.0}}, float v = {{-0.0}}> {{ a = Add(x, u)  b = Add(x, v)  y = Mul(a, b) }}",
            "",
            id="constants that are equal but not the same",
        ),
        pytest.param(
            f"{XY} <float u = {{1}}, float[1] v = {{1}}> {{ a = Add(x, u)  b = Add(x, v)  y = Mul(a, b) }}",
            "",
            id="constants of another shape",
        ),
        pytest.param(
            f"{XY} {{ a = RandomUniformLike(x)  b = RandomUniformLike(x)  y = Add(a, b) }}", "", id="random numbers"
        ),
        pytest.param(f"{XY} {{ a = acme.Do(x)  b = acme.Do(x)  y = Add(a, b) }}", "", id="unknown operator"),
        pytest.param(
            f"{XY[:-1]}, float[N] z) {{ y = Exp(x)  z = Exp(x) }}",
            "two graph outputs would become one value",
            id="two graph outputs",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { y = If (c) <
                 then_branch = t () => (float[N] ty) { b = Exp(x)  ty = Neg(b) },
                 else_branch = e () => (float[N] ey) { d = Exp(x)  ey = Abs(d) }> }""",
            "",
            id="one branch for another",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { r = If (c) <
                 then_branch = t () => (float[N] ty) { b = Exp(x)  ty = Neg(b) },
                 else_branch = e () => (float[N] ey) { ey = Abs(x) }>  d = Exp(x)  y = Add(r, d) }""",
            "",
            id="what follows for what stands in a body",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y, float[N] a) { a = Exp(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { ty = Exp(x) },
                 else_branch = e () => (float[N] ey) { ey = Abs(x) }> }""",
            "a body must produce its outputs itself",
            id="the output of a body",
        ),
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) {
                 p = If (c) <then_branch = t () => (float[N] ty) { ty = Abs(x) },
                             else_branch = e () => (float[N] ey) { ey = Exp(x) }>
                 q = If (c) <then_branch = t2 () => (float[N] uy) { uy = Abs(x) },
                             else_branch = e2 () => (float[N] vy) { vy = Exp(x) }>
                 y = Add(p, q) }""",
            "",
            id="nodes with bodies",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    outcome = rewriter.golden(before, PIPELINE)
    assert reason in outcome.reasons


def test_a_name_of_the_body_hides_the_value_outside(rewriter: Any) -> None:
    model = rewriter.typed(
        """g (float[N] x, bool c) => (float[N] y, float[N] a) { a = Exp(x)  y = If (c) <
             then_branch = t () => (float[N] ty) { p = Neg(x)  b = Exp(x)  ty = Add(p, b) },
             else_branch = e () => (float[N] ey) { ey = Abs(x) }> }"""
    )
    branch = next(node for node in model.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    branch[0].outputs[0].name = "a"
    assert not rewriter.run(model, PIPELINE).modified


def test_excluded_nodes_stay(rewriter: Any) -> None:
    rewriter.rewrites(f"{XY} {{ [keep] a = Exp(x)  b = Exp(x)  y = Add(a, b) }}", PIPELINE, exclude="keep")
    rewriter.rewrites(f"{XY} {{ a = Exp(x)  [keep] b = Exp(x)  y = Add(a, b) }}", PIPELINE, exclude="keep")
