"""fold-scale: constant factors and summands beside linear operators, and those that must stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PIPELINE = "fold-scale"
CONV = "g (float[1,1,3,3] x) => (float[1,2,3,3] y) <float[2,1,1,1] w = {3, -1}, float[2] b = {1, 2}"
BEHIND = "g (float[1,2,3,3] x) => (float[1,1,3,3] y) <float[1,2,1,1] w = {3, -1}, float[1] b = {1}"
GEMM = "g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, 2}"


@pytest.mark.parametrize(
    ("constant", "expression", "weight", "bias"),
    [
        ("float[2,1,1] k = {2, 4}", "Mul(c, k)", "6, -4", "2, 8"),
        ("float[1,2,1,1] k = {2, 4}", "Mul(k, c)", "6, -4", "2, 8"),
        ("float k = {2}", "Mul(c, k)", "6, -2", "2, 4"),
        ("float[1,1,1,1] k = {2}", "Mul(c, k)", "6, -2", "2, 4"),
        ("float[2,1,1] k = {2, 4}", "Div(c, k)", "1.5, -0.25", "0.5, 0.5"),
        ("float[2,1,1] k = {2, 4}", "Add(c, k)", None, "3, 6"),
        ("float[1] k = {2}", "Add(k, c)", None, "3, 4"),
        ("float[2,1,1] k = {2, 4}", "Sub(c, k)", None, "-1, -2"),
        ("float[2,1,1] k = {2, 4}", "Sub(k, c)", "-3, 1", "1, 2"),
        ("float k = {0}", "Neg(c)", "-3, 1", "-1, -2"),
        ("float[2,1,1] k = {0, 1}", "Mul(c, k)", "0, -1", "0, 2"),
    ],
)
def test_behind_a_convolution(rewriter: Any, constant: str, expression: str, weight: str | None, bias: str) -> None:
    rest = f", {constant}" if "k" in expression else ""
    new_weight = "float[2,1,1,1] w = {3, -1}" if weight is None else f"float[2,1,1,1] w_folded = {{{weight}}}"
    name = "w" if weight is None else "w_folded"
    rewriter.rewrites(
        f"{CONV}{rest}> {{ c = Conv(x, w, b)  n = {expression}  y = Relu(n) }}",
        PIPELINE,
        f"""g (float[1,1,3,3] x) => (float[1,2,3,3] y) <{new_weight}, float[2] b_folded = {{{bias}}}>
            {{ c = Conv(x, {name}, b_folded)  y = Relu(c) }}""",
    )


@pytest.mark.parametrize(
    ("constant", "expression", "weight", "bias"),
    [
        ("float[2,1,1] k = {2, 4}", "Mul(x, k)", "6, -4", None),
        ("float k = {2}", "Div(x, k)", "1.5, -0.5", None),
        ("float[1,2,1,1] k = {2, 4}", "Add(x, k)", None, "3"),
        ("float[2,1,1] k = {2, 4}", "Sub(k, x)", "-3, 1", "3"),
        ("float k = {0}", "Neg(x)", "-3, 1", None),
    ],
)
def test_before_a_convolution(
    rewriter: Any, constant: str, expression: str, weight: str | None, bias: str | None
) -> None:
    rest = f", {constant}" if "k" in expression else ""
    new_weight = "float[1,2,1,1] w = {3, -1}" if weight is None else f"float[1,2,1,1] w_folded = {{{weight}}}"
    new_bias = "float[1] b = {1}" if bias is None else f"float[1] b_folded = {{{bias}}}"
    constants = (new_bias, new_weight) if bias is None else (new_weight, new_bias)  # new ones come last
    reads = f"x, {'w' if weight is None else 'w_folded'}, {'b' if bias is None else 'b_folded'}"
    rewriter.rewrites(
        f"{BEHIND}{rest}> {{ n = {expression}  y = Conv(n, w, b) }}",
        PIPELINE,
        f"g (float[1,2,3,3] x) => (float[1,1,3,3] y) <{', '.join(constants)}> {{ y = Conv({reads}) }}",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            GEMM + ", float[2] k = {2, 4}> { c = Gemm<beta = 0.5>(x, w, b)  y = Mul(c, k) }",
            """g (float[3,2] x) => (float[3,2] y) <float[2,2] w_folded = {2, 8, 6, 16}, float[2] b_folded = {1, 4}>
               { y = Gemm(x, w_folded, b_folded) }""",
            id="Gemm with beta",
        ),
        pytest.param(
            GEMM + ", float[2] k = {2, 4}> { c = Gemm<alpha = 0.5, beta = 0.5>(x, w, b)  y = Add(c, k) }",
            """g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] b_folded = {2.5, 5}>
               { y = Gemm<alpha = 0.5>(x, w, b_folded) }""",
            id="alpha stays where only the bias changes",
        ),
        pytest.param(
            GEMM + ", float[2] k = {2, 4}> { n = Add(x, k)  y = Gemm<transB = 1, alpha = 2.0>(n, w, b) }",
            """g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] b_folded = {21, 46}>
               { y = Gemm<transB = 1, alpha = 2.0>(x, w, b_folded) }""",
            id="a summand before Gemm",
        ),
        pytest.param(
            "g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[1,2] k = {2, 4}>"
            "{ c = Gemm(x, w)  y = Sub(c, k) }",
            """g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] c_bias_folded = {-2, -4}>
               { y = Gemm(x, w, c_bias_folded) }""",
            id="Gemm without a bias",
        ),
        pytest.param(
            """g (float[2,B,2] x) => (float[2,B,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, 2}, float s = {8}>
               { c = MatMul(x, w)  d = Add(b, c)  y = Div(d, s) }""",
            """g (float[2,B,2] x) => (float[2,B,2] y)
               <float[2,2] w_folded = {0.125, 0.25, 0.375, 0.5}, float[2] b_folded = {0.125, 0.25}>
               { c = MatMul(x, w_folded)  y = Add(b_folded, c) }""",
            id="the scale of attention",
        ),
        pytest.param(
            """g (float[2,B,2] x) => (float[2,B,2] y, float[2,B,1] z)
               <float[2,2] w = {1, 2, 3, 4}, float[2,1] u = {5, 6}, float[2] b = {1, 2}, float[2] s = {2, 3},
                float[1] t2 = {7}, float[2] t = {1, 10}>
               { m = Mul(x, s)  n = Add(m, t)  c = MatMul(n, w)  y = Add(c, b)  d = MatMul(n, u)  z = Add(d, t2) }""",
            """g (float[2,B,2] x) => (float[2,B,2] y, float[2,B,1] z) <float[2] b_folded = {32, 44},
                 float[1] t2_folded = {72}, float[2,2] w_folded = {2, 4, 9, 12}, float[2,1] u_folded = {10, 18}>
               { c = MatMul(x, w_folded)  y = Add(c, b_folded)  d = MatMul(x, u_folded)  z = Add(d, t2_folded) }""",
            id="two MatMul and Add behind a scale and a bias, as behind a normalization",
        ),
        pytest.param(
            """g (float[1,1,2] x) => (float[1,2,3] y) <float[1,2,2] w = {1, 2, 3, 4}, float[2,1] k = {2, 4}>
               { c = ConvTranspose(x, w)  y = Mul(c, k) }""",
            """g (float[1,1,2] x) => (float[1,2,3] y) <float[1,2,2] w_folded = {2, 4, 12, 16}>
               { y = ConvTranspose(x, w_folded) }""",
            id="ConvTranspose",
        ),
        pytest.param(
            """g (float[1,2,3] x) => (float[1,2,3] y)
               <float[2] g = {1, 2}, float[2] h = {3, 4}, float[2] m = {0, 1}, float[2] v = {1, 4},
                float[2,1] k = {2, 3}>
               { n = BatchNormalization(x, g, h, m, v)  p = Mul(n, k)  q = Add(p, k)  y = Relu(q) }""",
            """g (float[1,2,3] x) => (float[1,2,3] y)
               <float[2] m = {0, 1}, float[2] v = {1, 4}, float[2] g_folded = {2, 6},
                float[2] h_folded_2 = {8, 15}>
               { n = BatchNormalization(x, g_folded, h_folded_2, m, v)  y = Relu(n) }""",
            id="Caffe's Scale behind its BatchNorm",
        ),
        pytest.param(
            """g (float[1,2,3] x) => (float[1,2,3] y)
               <float[3] s = {1, 2, 3}, float[3] t = {1, 2, 3}, float[3] k = {2, 3, 4}>
               { n = LayerNormalization(x, s)  p = Mul(n, k)  y = Add(p, t) }""",
            """g (float[1,2,3] x) => (float[1,2,3] y)
               <float[3] s_folded = {2, 6, 12}, float[3] n_bias_folded = {1, 2, 3}>
               { y = LayerNormalization(x, s_folded, n_bias_folded) }""",
            id="LayerNormalization",
        ),
        pytest.param(
            f"""{CONV}, float[2,1,1] k = {{2, 4}}> {{ c = Conv(x, w, b)  y = If (t) <
                  then_branch = a () => (float[1,2,3,3] p) {{ d = Conv(x, w, b)  p = Mul(d, k) }},
                  else_branch = e () => (float[1,2,3,3] q) {{ q = Mul(c, k) }}> }}""".replace(
                ") =>", ", bool t) =>", 1
            ),
            f"""{CONV}, float[2,1,1] k = {{2, 4}}> {{ c = Conv(x, w, b)  y = If (t) <
                  then_branch = a () => (float[1,2,3,3] p)
                    <float[2,1,1,1] w_folded = {{6, -4}}, float[2] b_folded = {{2, 8}}>
                    {{ p = Conv(x, w_folded, b_folded) }},
                  else_branch = e () => (float[1,2,3,3] q) {{ q = Mul(c, k) }}> }}""".replace(
                ") =>", ", bool t) =>", 1
            ),
            id="in a body, but not from a body into what is around it",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,1,3,3] x) => (float[1,1,3,3] y)
                 { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (p) {
                 w = Constant<value = float[1,1,1,1] {3}>()  k = Constant<value = float[1,1,1] {2}>()
                 c = Conv(a, w)  m = Mul(c, k)  p = Sub(m, k) }""",
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,1,3,3] x) => (float[1,1,3,3] y)
                 { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (p) {
                 w_folded = Constant<value = float[1,1,1,1] w_folded {6}>()
                 c_bias_folded = Constant<value = float[1] c_bias_folded {-2}>()
                 p = Conv(a, w_folded, c_bias_folded) }""",
            id="in a function, where shapes are not known",
        ),
        pytest.param(
            CONV.replace("y)", "y, float[1,2,3,3] z)")
            + ", float[2,1,1] k = {2, 4}> { c = Conv(x, w, b)  y = Mul(c, k)  z = Conv(x, w, b) }",
            CONV.replace("y)", "y, float[1,2,3,3] z)")
            + ", float[2,1,1,1] w_folded = {6, -4}, float[2] b_folded = {2, 8}>"
            " { y = Conv(x, w_folded, b_folded)  z = Conv(x, w, b) }",
            id="constants that others read are copied",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(CONV + ", float k = {inf}> { c = Conv(x, w, b)  y = Mul(c, k) }", "not finite", id="infinite"),
        pytest.param(CONV + ", float k = {0}> { c = Conv(x, w, b)  y = Div(c, k) }", "not finite", id="division by 0"),
        pytest.param(CONV + ", float k = {2}> { c = Conv(x, w, b)  y = Div(k, c) }", "", id="division of a constant"),
        pytest.param(CONV + ", float k = {2}> { c = Conv(x, w, b)  y = Pow(c, k) }", "", id="power"),
        pytest.param(
            CONV.replace("3,3] ", "3,2] ") + ", float[2] k = {2, 4}> { c = Conv(x, w, b)  y = Mul(c, k) }",
            "not one map per channel",
            id="per column",
        ),
        pytest.param(
            CONV + ", float[1,2,1,3] k = {1, 2, 3, 4, 5, 6}> { c = Conv(x, w, b)  y = Mul(c, k) }",
            "not one map per channel",
            id="per channel and column",
        ),
        pytest.param(
            CONV.replace("[1,2,3,3] y", "[1,1,2,3,3] y")
            + ", float[1,1,1,1,1] k = {2}> { c = Conv(x, w, b)  y = Mul(c, k) }",
            "not one map per channel",
            id="broadcasting adds an axis",
        ),
        pytest.param(
            "g (float[1,2,3,3] x) => (float[1,4,3,3] y) <float[1,2,1,1] w = {1, 2}, float[4,1,1] k = {1, 2, 3, 4}>"
            "{ c = Conv(x, w)  y = Mul(c, k) }",
            "not one map per channel",
            id="broadcasting adds channels",
        ),
        pytest.param(
            "g (float[1,1,3,3] x) => (float[1,1,3,3] y) <float[1,2,1,1] w = {1, 2}, float[2,1,1] k = {1, 2}>"
            "{ n = Mul(x, k)  y = Conv(n, w) }",
            "",
            id="broadcasting adds channels to the input",
        ),
        pytest.param(
            "g (float[N,M] x) => (float[N,1] y) <float[2,1] w = {1, 2}, float[2] k = {1, 2}>"
            "{ n = Mul(x, k)  y = MatMul(n, w) }",
            "",
            id="the input may have one column",
        ),
        pytest.param(
            BEHIND
            + ", float[2,1,1] k = {2, 4}> { n = Add(x, k)  y = Conv<pads = [0,1,0,1], kernel_shape = [1, 1]>(n, w) }",
            "zero padding",
            id="a summand and zero padding",
        ),
        pytest.param(
            BEHIND + ", float[2,1,1] k = {2, 4}> { n = Mul(x, k)  c = Conv(n, w)  r = Abs(n)  y = Add(c, r) }",
            "",
            id="something else reads the product",
        ),
        pytest.param(
            BEHIND.replace("y)", "y, float[1,2,3,3] n)") + ", float k = {2}> { n = Mul(x, k)  y = Conv(n, w) }",
            "",
            id="the product is a graph output",
        ),
        pytest.param(
            GEMM.replace("b =", "s = {1, 2}, float[2] b =")
            + """, float r = {1.4142135}, float o = {1}, float h = {0.5}>
            { d = Div(x, r)  e = Erf(d)  f = Add(e, o)  p = Mul(x, f)  q = Mul(p, h)  y = Gemm(q, w, b) }""",
            "",
            id="a Gelu that is written out",
        ),
        pytest.param(
            GEMM.replace("b =", "s = {1, 2}, float[2] b =")
            + """, float[2] h = {1, 2}>
            { m = ReduceMean<axes = [1]>(x)  d = Sub(x, m)  v = ReduceL2<axes = [1]>(d)  n = Div(d, v)
              p = Mul(n, s)  q = Add(p, h)  y = Gemm(q, w, b) }""",
            "",
            id="a normalization that is written out",
        ),
        pytest.param(
            CONV.replace("y)", "y, float[1,2,3,3] c)") + ", float k = {2}> { c = Conv(x, w, b)  y = Mul(c, k) }",
            "read elsewhere too",
            id="the convolution is a graph output",
        ),
        pytest.param(
            CONV + ", float k = {2}> { c = Conv(x, w, b)  m = Mul(c, k)  y = Add(m, c) }",
            "read elsewhere too",
            id="a shared convolution",
        ),
        pytest.param(
            CONV.replace("x)", "x, float k)", 1) + "> { c = Conv(x, w, b)  y = Mul(c, k) }", "", id="not a constant"
        ),
        pytest.param(
            "g (int32[2,2] x) => (int32[2,2] y) <int32[2,2] w = {1, 2, 3, 4}, int32 k = {2}>"
            "{ c = MatMul(x, w)  y = Mul(c, k) }",
            "",
            id="integers",
        ),
        pytest.param(
            "g (float[3,2] x, float[2] b) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float k = {2}>"
            "{ c = Gemm(x, w, b)  y = Mul(c, k) }",
            "bias is not constant",
            id="bias given by the caller",
        ),
        pytest.param(
            "g (float[3,2] x) => (float[3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] k = {2, 4}>"
            "{ c = MatMul(x, w)  y = Add(c, k) }",
            "",
            id="the bias of a MatMul",
        ),
        pytest.param(
            "g (float[3,2] x) => (float[1,3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[1,1,2] k = {2, 4}, float s = {2}>"
            "{ c = MatMul(x, w)  d = Add(c, k)  y = Mul(d, s) }",
            "not one number per channel",
            id="the bias of a MatMul adds an axis",
        ),
        pytest.param(
            '<ir_version: 5, opset_import: ["": 6]> g (float[1,1,2,2] x) => (float[1,2,2,2] y) '
            "<float[2,1,1,1] w = {3, -1}, float[2] k = {2, 4}>"
            "{ c = Conv(x, w)  y = Mul<broadcast = 1, axis = 1>(c, k) }",
            "",
            id="before opset 7",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.golden(before, PIPELINE).reasons
    assert reason in rewriter.rewrites(before, PIPELINE).reasons


@pytest.mark.parametrize("excluded", ["conv", "mul"])
def test_excluded_nodes_stay(rewriter: Any, excluded: str) -> None:
    text = CONV + ", float k = {2}> { [conv] c = Conv(x, w, b)  [mul] y = Mul(c, k) }"
    assert not rewriter.run(rewriter.typed(text), PIPELINE, exclude=excluded).modified


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_types(rewriter: Any, dtype: type[np.floating[Any]]) -> None:
    kind = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    text = f"g ({kind}[3,4] x) => ({kind}[3,5] y) {{ c = MatMul(x, w)  d = Add(c, b)  y = Mul(d, s) }}"
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(5).astype(dtype) for name in "bs"}
    tensors["w"] = rng.standard_normal((4, 5)).astype(dtype)
    outcome = rewriter.run(rewriter.typed(text, tensors), PIPELINE)
    assert [node.op_type for node in outcome.model.graph] == ["MatMul", "Add"]
    rewriter.same_outputs(rewriter.typed(text, tensors), outcome.model)
    assert {value.dtype.numpy() for value in outcome.model.graph.initializers.values()} == {np.dtype(dtype)}


def test_float16_does_not_overflow(rewriter: Any) -> None:
    text = """g (float16[3,2] x) => (float16[3,1] y) <float16[2,1] w = {1000, 1}, float16 s = {100}>
              { c = MatMul(x, w)  y = Mul(c, s) }"""
    assert "would overflow FLOAT16" in rewriter.rewrites(text, PIPELINE).reasons


# each keeps its input's extents, which are all 2: an axis taken for another would not be noticed by its extent
OPERATORS = [
    ("Conv(p, w, b)", 4, [2, 2, 1, 1]),
    ("Conv<group = 2>(p, w, b)", 4, [2, 1, 1, 1]),
    ("Conv<pads = [1, 0, 0, 0]>(p, w, b)", 4, [2, 2, 2, 1]),
    ("ConvTranspose<group = 2>(p, w, b)", 4, [2, 1, 1, 1]),
    ("Gemm<transB = 1, beta = 0.5>(p, w, b)", 2, [2, 2]),
    ("MatMul(p, w)", 3, [2, 2]),
]
ELEMENTWISE = ["Mul({0}, {1})", "Mul({1}, {0})", "Div({0}, {1})", "Add({0}, {1})", "Sub({0}, {1})", "Sub({1}, {0})"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(OPERATORS),
    st.lists(st.tuples(st.sampled_from(ELEMENTWISE), st.integers(0, 31), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_outputs_stay(
    rewriter: Any, operator: tuple[str, int, list[int]], steps: list[tuple[str, int, bool]], split: int
) -> None:
    """Any chain of constants, of any shape that broadcasts, before and behind an operator."""
    expression, rank, w = operator
    rng = np.random.default_rng(0)
    tensors = {"w": rng.uniform(0.5, 2, w).astype(np.float32), "b": np.array([1, 2], np.float32)}
    lines, current = [], "x"
    for index, (step, bits, cut) in enumerate(steps):
        if index == min(split, len(steps) - 1):
            lines.append(f"c = {expression.replace('(p', f'({current}')}")
            current = "c"
        shape = [2 if bits >> axis & 1 else 1 for axis in range(rank - cut)]
        tensors[f"k{index}"] = rng.uniform(0.5, 2, shape).astype(np.float32)
        lines.append(f"v{index} = {step.format(current, f'k{index}')}")
        current = f"v{index}"
    text = f"g (float{[2] * rank} x) => (float{[2] * rank} y) {{ {'  '.join(lines)}  y = Relu({current}) }}"
    outcome = rewriter.run(rewriter.typed(text, tensors), PIPELINE)
    rewriter.same_outputs(rewriter.typed(text, tensors), outcome.model, seeds=1)
