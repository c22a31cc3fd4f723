"""fuse-matmul-add: which products and sums are a Gemm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PIPELINE = "fuse-matmul-add"
WEIGHT = "float[2,3] w = {1, 2, 3, 4, 5, 6}"


def model(nodes: str, *constants: str, inputs: str = "float[M,2] x", output: str = "float[M,3] y") -> str:
    return f"g ({inputs}) => ({output}) <{', '.join((WEIGHT, *constants))}> {{ {nodes}  z = Relu(w) }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            model("c = MatMul(x, w)  y = Add(c, b)", "float[3] b = {1, 2, 3}"),
            model("[c_gemm_node] y = Gemm(x, w, b)", "float[3] b = {1, 2, 3}"),
            id="bias",
        ),
        pytest.param(
            model("c = MatMul(x, w)  y = Add(b, c)", "float[1,1] b = {1}"),
            model("[c_gemm_node] y = Gemm(x, w, b)", "float[1,1] b = {1}"),
            id="bias first",
        ),
        pytest.param(
            model("r = Relu(s)  c = MatMul(x, w)  y = Add(c, r)", inputs="float[M,2] x, float[M,3] s"),
            model("r = Relu(s)  [c_gemm_node] y = Gemm(x, w, r)", inputs="float[M,2] x, float[M,3] s"),
            id="a sum of two computed tensors of the same extents",
        ),
        pytest.param(
            model("c = MatMul(x, v)  y = Add(c, s)", inputs="float[M,2] x, float[2,3] v, float[3] s"),
            model("[c_gemm_node] y = Gemm(x, v, s)", inputs="float[M,2] x, float[2,3] v, float[3] s"),
            id="nothing constant",
        ),
        pytest.param(
            model(
                "c = Gemm<alpha = 0.5, beta = 2.0, transA = 1>(x, w)  y = Add(c, b)", "float[3] b = {1, 2, 3}"
            ).replace("M,2", "2,M"),
            model("[c_gemm_node] y = Gemm<alpha = 0.5, transA = 1>(x, w, b)", "float[3] b = {1, 2, 3}").replace(
                "M,2", "2,M"
            ),
            id="a Gemm without C, whose beta meant nothing",
        ),
        pytest.param(
            model("t = Transpose(x)  y = MatMul(t, w)", inputs="float[2,M] x"),
            model("[y_gemm_node] y = Gemm<transA = 1>(x, w)", inputs="float[2,M] x"),
            id="transposed A",
        ),
        pytest.param(
            model("t = Transpose<perm = [1, 0]>(v)  c = MatMul(x, t)  y = Add(c, b)", "float[3] b = {1, 2, 3}").replace(
                "x)", "x, float[3,2] v)", 1
            ),
            model("[y_gemm_node] y = Gemm<transB = 1>(x, v, b)", "float[3] b = {1, 2, 3}").replace(
                "x)", "x, float[3,2] v)", 1
            ),
            id="transposed B and a bias",
        ),
        pytest.param(
            model(
                "t = Transpose<perm = [1, 0]>(x)  y = Gemm<transA = 1, beta = 2.0>(t, w, b)", "float[3] b = {1, 2, 3}"
            ),
            model("[y_gemm_node] y = Gemm<transA = 0, beta = 2.0>(x, w, b)", "float[3] b = {1, 2, 3}"),
            id="transposed twice",
        ),
        pytest.param(
            """g (bool k, float[4,2] x) => (float[4,3] y)
               <float[2,3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}> { y = If (k) <
                 then_branch = t () => (float[4,3] p) { c = MatMul(x, w)  p = Add(c, b) },
                 else_branch = e () => (float[4,3] q) { q = MatMul(x, w) }> }""",
            """g (bool k, float[4,2] x) => (float[4,3] y)
               <float[2,3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}> { y = If (k) <
                 then_branch = t () => (float[4,3] p) { [p_gemm_node] p = Gemm(x, w, b) },
                 else_branch = e () => (float[4,3] q) { q = MatMul(x, w) }> }""",
            id="in a body",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after.replace("c_gemm_node", "y_gemm_node"))


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(
            model(
                "c = MatMul(x, w)  y = Add(c, b)",
                "float[3] b = {1, 2, 3}",
                inputs="float[B,M,2] x",
                output="float[B,M,3] y",
            ),
            "",
            id="three axes",
        ),
        pytest.param(
            model("c = MatMul(x, w)  y = Add(c, b)", "float[1,1,3] b = {1, 2, 3}", output="float[1,M,3] y"),
            "more elements",
            id="the summand adds an axis",
        ),
        pytest.param(
            model(
                "c = MatMul(x, w)  y = Add(c, b)",
                "float[4,3] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}",
                output="float[4,3] y",
            ),
            "more elements",
            id="the product may have one row",
        ),
        pytest.param(
            model("c = MatMul(x, w)  y = Add(c, s)", inputs="float[M,2] x, float[L,3] s"),
            "more elements",
            id="other symbols",
        ),
        pytest.param(
            model("c = MatMul(x, w)  y = Add(c, b)", "float[3] b = {1, 2, 3}", output="float[M,3] y, float[M,3] c"),
            "",
            id="the product is a graph output",
        ),
        pytest.param(
            model("c = MatMul(x, w)  d = Add(c, b)  y = Mul(d, c)", "float[3] b = {1, 2, 3}"), "", id="another reader"
        ),
        pytest.param(model("c = Gemm(x, w, b)  y = Add(c, b)", "float[3] b = {1, 2, 3}"), "", id="a Gemm that has a C"),
        pytest.param(
            "g (int32[4,2] x) => (int32[4,3] y) <int32[2,3] w = {1, 2, 3, 4, 5, 6}, int32 b = {1}>"
            "{ c = MatMul(x, w)  y = Add(c, b) }",
            "",
            id="integers",
        ),
        pytest.param(
            "g (int8[4,2] x) => (float[4,3] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}, float b = {1}, float s = {2}>"
            "{ d = DequantizeLinear(x, s)  c = MatMul(d, w)  y = Add(c, b) }",
            "",
            id="quantized",
        ),
        pytest.param(
            '<ir_version: 5, opset_import: ["": 6]> g (float[4,2] x) => (float[4,3] y) '
            "<float[2,3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}>"
            "{ c = MatMul(x, w)  y = Add<broadcast = 1>(c, b) }",
            "",
            id="before opset 7",
        ),
        pytest.param(
            '<ir_version: 5, opset_import: ["": 10]> g (float[2,4] x) => (float[4,3] y) '
            "<float[2,3] w = {1, 2, 3, 4, 5, 6}>"
            "{ t = Transpose(x)  y = MatMul(t, w) }",
            "",
            id="Gemm needs a C before opset 11",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[4,2] x) => (float[4,3] y) { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (d) { b = Constant<value = float[3] {1, 2, 3}>()
                 w = Constant<value = float[2,3] {1, 2, 3, 4, 5, 6}>()  c = MatMul(a, w)  d = Add(c, b) }""",
            "",
            id="in a function, where the rank is not known",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.rewrites(before, PIPELINE).reasons


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_float_types(rewriter: Any, kind: str, dtype: type[np.floating[Any]]) -> None:
    text = f"g ({kind}[4,2] x) => ({kind}[4,3] y) {{ c = MatMul(x, w)  y = Add(c, b) }}"
    tensors = {"w": np.arange(6).reshape(2, 3).astype(dtype), "b": np.arange(3).astype(dtype)}
    outcome = rewriter.run(rewriter.typed(text, tensors), PIPELINE)
    assert [node.op_type for node in outcome.model.graph] == ["Gemm"]
    rewriter.same_outputs(rewriter.typed(text, tensors), outcome.model)


@pytest.mark.parametrize("excluded", ["product", "sum"])
def test_excluded_nodes_stay(rewriter: Any, excluded: str) -> None:
    text = model("[product] c = MatMul(x, w)  [sum] y = Add(c, b)", "float[3] b = {1, 2, 3}")
    assert not rewriter.run(rewriter.typed(text), PIPELINE, exclude=excluded).modified
