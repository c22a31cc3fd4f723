"""fuse-operators: which spellings are recognized, and what must stay as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import shapes

PIPELINE = "fuse-operators"
SCALARS = "float one = {1}, float two = {2}, float three = {3}, float six = {6}, float half = {0.5}, float zero = {0}"
ERF = "float root2 = {1.41421354}, float inv2 = {0.70710677}, float third = {0.33}"
TANH = "float k = {0.044715}, float q = {0.7978846}"


def model(body: str, constants: str = SCALARS, opset: int = 20, shape: str = "float[3,4]") -> str:
    return f'<ir_version: 10, opset_import: ["": {opset}]> g ({shape} x) => ({shape} y) <{constants}> {{ {body} }}'


def fused(rewriter: Any, text: str, pipeline: str = PIPELINE) -> list[str]:
    """Operators after the pass, whose results must be the same; constants that are not read are not asked for."""
    outcome = rewriter.run(rewriter.model(text), f"{pipeline},remove-unused-initializers")
    rewriter.same_outputs(rewriter.model(text), outcome.model)
    return [node.op_type for node in outcome.model.graph]


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        "a = Mul(inv2, x) b = Erf(a) c = Add(one, b) d = Mul(half, x) y = Mul(c, d)",
        "a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(c, half) y = Mul(d, x)",
        "a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Div(x, two) y = Mul(d, c)",
        "a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Div(d, two)",
    ],
)
def test_gelu_from_erf(rewriter: Any, body: str) -> None:
    assert fused(rewriter, model(body, f"{SCALARS}, {ERF}")) == ["Gelu"]
    assert "Gelu" not in fused(rewriter, model(body, f"{SCALARS}, {ERF}", opset=19))
    assert "Gelu" not in fused(rewriter, model(body, f"{SCALARS}, {ERF}"), "fuse-operators{gelu=false}")


@pytest.mark.parametrize(
    "inner",
    [
        "a = Pow(x, three) b = Mul(a, k) c = Add(x, b) d = Mul(c, q)",
        "s = Mul(x, x) a = Mul(x, s) b = Mul(k, a) c = Add(b, x) d = Mul(q, c)",
        "s = Mul(x, x) a = Mul(s, k) b = Add(a, one) c = Mul(x, b) d = Mul(c, q)",
        "m = Mul(x, q) s = Pow(x, two) a = Mul(s, k) b = Add(one, a) d = Mul(m, b)",
    ],
)
def test_gelu_from_tanh(rewriter: Any, inner: str) -> None:
    text = model(f"{inner} e = Tanh(d) f = Add(one, e) h = Mul(x, half) y = Mul(h, f)", f"{SCALARS}, {TANH}")
    outcome = rewriter.run(rewriter.model(text), PIPELINE)
    (node,) = outcome.model.graph
    assert (node.op_type, node.attributes.get_string("approximate")) == ("Gelu", "tanh")
    rewriter.same_outputs(rewriter.model(text), outcome.model)


CLIPPED = "a = Add(x, three) b = Clip(a, zero, six)"
MEAN = "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m)"
ROOT = "v = ReduceMean<axes = [-1]>(s) t = Add(v, e) r = Sqrt(t)"
AFFINE = "float two = {2}, float one = {1}, float e = {0.00001}, float[4] w = {1, 2, 3, -1}, float[4] b = {1, 0, 0, 2}"


@pytest.mark.parametrize(
    ("body", "opset", "expected"),
    [
        (f"{CLIPPED} c = Mul(x, b) y = Div(c, six)", 14, ["HardSwish"]),
        (f"{CLIPPED} c = Div(b, six) y = Mul(c, x)", 14, ["HardSwish"]),
        (f"{CLIPPED} c = Mul(x, b) y = Div(c, six)", 13, ["HardSigmoid", "Mul"]),
        (f"{CLIPPED} c = Div(b, six) y = Mul(c, x)", 13, ["HardSigmoid", "Mul"]),
        (f"{CLIPPED} y = Div(b, six)", 14, ["HardSigmoid"]),
        ("m = Mul(x, half) a = Add(m, half) y = Clip(a, zero, one)", 14, ["HardSigmoid"]),
        ("a = HardSigmoid<alpha = 0.16666667>(x) y = Mul(x, a)", 14, ["HardSwish"]),
        ("a = HardSigmoid<alpha = 0.2>(x) y = Mul(x, a)", 14, ["HardSigmoid", "Mul"]),
        ("a = Softplus(x) b = Tanh(a) y = Mul(b, x)", 18, ["Mish"]),
        ("a = Softplus(x) b = Tanh(a) y = Mul(b, x)", 17, ["Softplus", "Tanh", "Mul"]),
        ("a = Neg(x) b = Exp(a) c = Add(b, one) y = Div(one, c)", 14, ["Sigmoid"]),
        ("a = Neg(x) b = Exp(a) c = Add(one, b) y = Reciprocal(c)", 14, ["Sigmoid"]),
        ("b = Exp(x) c = Add(one, b) y = Reciprocal(c)", 14, ["Exp", "Add", "Reciprocal"]),
        ("a = Abs(x) b = Add(a, one) y = Div(x, b)", 14, ["Softsign"]),
        ("a = Exp(x) b = Add(a, one) y = Log(b)", 14, ["Exp", "Add", "Log"]),
        ("a = Max(x, zero) y = Min(a, six)", 14, ["Clip"]),
        ("a = Min(six, x) y = Max(zero, a)", 14, ["Clip"]),
        ("a = Min(zero, x) y = Max(six, a)", 14, ["Min", "Max"]),
        ("a = Sigmoid(x) y = Mul(x, a)", 24, ["Sigmoid", "Mul"]),
    ],
)
def test_activations(rewriter: Any, body: str, opset: int, expected: list[str]) -> None:
    assert fused(rewriter, model(body, opset=opset)) == expected


def test_swish_where_it_is_asked_for(rewriter: Any) -> None:
    text = model("s = Mul(x, two) a = Sigmoid(s) y = Mul(x, a)", opset=24)
    outcome = rewriter.run(rewriter.model(text), "fuse-operators{swish=true}")
    (node,) = outcome.model.graph
    assert (node.op_type, node.attributes.get_float("alpha")) == ("Swish", 2.0)


@pytest.mark.parametrize(
    ("body", "opset", "expected"),
    [
        (f"{MEAN} s = Pow(d, two) {ROOT} n = Div(d, r) p = Mul(n, w) y = Add(p, b)", 17, ["LayerNormalization"]),
        (f"{MEAN} s = Mul(d, d) {ROOT} n = Div(d, r) p = Mul(w, n) y = Add(b, p)", 17, ["LayerNormalization"]),
        (f"{MEAN} s = Mul(d, d) {ROOT} i = Reciprocal(r) n = Mul(d, i) y = Mul(n, w)", 17, ["LayerNormalization"]),
        (f"{MEAN} s = Mul(d, d) {ROOT} i = Div(one, r) y = Mul(d, i)", 17, ["LayerNormalization"]),
        (
            f"{MEAN} m2 = ReduceMean<axes = [1]>(x) d2 = Sub(x, m2) s = Pow(d2, two) {ROOT} y = Div(d, r)",
            17,
            ["LayerNormalization"],
        ),
        (
            f"{MEAN} s = Pow(d, two) {ROOT} y = Div(d, r)",
            16,
            ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div"],
        ),
        (
            f"{MEAN} s = Pow(d, two) {ROOT} y = Div(x, r)",
            17,
            ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div"],
        ),
        (
            f"{MEAN.replace('-1', '0')} s = Pow(d, two) {ROOT} y = Div(d, r)",
            17,
            ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div"],
        ),
        (f"s = Pow(x, two) {ROOT} y = Div(x, r)", 17, ["Pow", "ReduceMean", "Add", "Sqrt", "Div"]),
    ],
)
def test_layer_normalization(rewriter: Any, body: str, opset: int, expected: list[str]) -> None:
    assert fused(rewriter, model(body, AFFINE, opset)) == expected


ROOT23 = "v = ReduceMean(s, last) t = Add(v, e) r = Sqrt(t)"


@pytest.mark.parametrize(
    ("body", "opset", "expected"),
    [
        (f"s = Pow(x, two) {ROOT23} i = Div(one, r) n = Mul(x, i) y = Mul(w, n)", 23, ["RMSNormalization"]),
        (f"s = Mul(x, x) {ROOT23} i = Reciprocal(r) n = Mul(x, i) y = Mul(w, n)", 23, ["RMSNormalization"]),
        (f"s = Mul(x, x) {ROOT23} y = Div(x, r)", 23, ["RMSNormalization"]),
        (f"s = Mul(x, x) {ROOT23} n = Div(x, r) y = Mul(n, w)", 22, ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]),
    ],
)
def test_rms_normalization(rewriter: Any, body: str, opset: int, expected: list[str]) -> None:
    assert fused(rewriter, model(body, f"{AFFINE}, int64[1] last = {{-1}}", opset)) == expected


def test_float16_is_normalized_in_float32_as_before(rewriter: Any) -> None:
    before = (
        "u = Cast<to = 1>(x) m = ReduceMean<axes = [-1]>(u) d = Sub(u, m) s = Pow(d, two)"
        f" {ROOT} n = Div(d, r) c = Cast<to = 10>(n) p = Mul(c, w) y = Add(p, w)"
    )
    narrow = before.replace("Cast<to = 1>", "Identity").replace("Cast<to = 10>", "Identity")
    for body, dtype, fuses in ((before, np.float32, True), (narrow, np.float16, False)):
        tensors = {"two": dtype(2), "e": dtype(1e-5), "w": np.array([1, 2, 3, -1], np.float16)}
        text = model(body, "", 17, "float16[3,4]").replace("<>", "")
        before_inferred = rewriter.model(text, tensors)
        shapes.infer(before_inferred)
        outcome = rewriter.run(before_inferred, PIPELINE)
        assert ([node.op_type for node in outcome.model.graph] == ["LayerNormalization"]) == fuses
        rewriter.same_outputs(rewriter.model(text, tensors), outcome.model)


@pytest.mark.parametrize(
    ("body", "fuses"),
    [
        ("a = Div(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)", False),
        ("a = Div(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, half) y = Mul(d, c)", True),
    ],
)
def test_in_float16_no_product_may_overflow_that_gelu_does_not_show(rewriter: Any, body: str, fuses: bool) -> None:
    tensors = {"one": np.float16(1), "half": np.float16(0.5), "r": np.float16(2**0.5)}
    text = model(body, "", shape="float16[3,4]").replace("<>", "")
    outcome = rewriter.run(rewriter.model(text, tensors), PIPELINE)
    assert ([node.op_type for node in outcome.model.graph] == ["Gelu"]) == fuses


SHIFTED = "m = ReduceMax<axes = [1]>(x) s = Sub(x, m) p = Exp(s) t = ReduceSum(p, last)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{SHIFTED} y = Div(p, t)", ["Softmax"]),
        (f"{SHIFTED} l = Log(t) y = Sub(s, l)", ["LogSoftmax"]),
        (f"{SHIFTED.replace('last', 'first')} y = Div(p, t)", ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]),
        ("p = Exp(x) t = ReduceSum(p, last) y = Div(p, t)", ["Exp", "ReduceSum", "Div"]),
    ],
)
def test_softmax(rewriter: Any, body: str, expected: list[str]) -> None:
    assert fused(rewriter, model(body, "int64[1] last = {-1}, int64[1] first = {0}", 17)) == expected


GELU = "a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param(GELU.replace("half", "third"), 5, id="another factor"),
        pytest.param(GELU.replace("Add(b, one)", "Add(b, two)"), 5, id="another summand"),
        pytest.param(GELU.replace("root2)", "two)"), 5, id="another argument"),
        pytest.param(GELU.replace("Erf(a)", "Sin(a)"), 5, id="another function"),
        pytest.param(
            GELU.replace("y = Mul(d, half)", "h = Mul(d, half) y = Add(h, d)"), 6, id="product read elsewhere"
        ),
        pytest.param(GELU.replace("y = Mul(d, half)", "h = Mul(d, half) y = Add(h, b)"), 6, id="erf read elsewhere"),
    ],
)
def test_leaves_alone(rewriter: Any, text: str, left: int) -> None:
    assert len(fused(rewriter, model(text, f"{SCALARS}, {ERF}"))) == left


def test_a_constant_that_raises_the_rank_stays(rewriter: Any) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float x) => (float[1] y) <float[1] one = {1}, float six = {6}, '
    text += "float[1] zero = {0}> { a = Max(x, zero) y = Min(a, six) }"
    assert not rewriter.run(rewriter.model(text), PIPELINE).modified


def test_what_else_reads_stays_computed(rewriter: Any) -> None:
    text = model(GELU.replace("y = Mul(d, half)", "g = Mul(d, half) y = Add(g, a)"), f"{SCALARS}, {ERF}")
    assert fused(rewriter, text) == ["Div", "Gelu", "Add"]


def test_in_bodies_and_functions(rewriter: Any) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 20, "local": 1]> g (float[3,4] x, bool k) => (float[3,4] z) {{
                 f = local.f(x)
                 z = If (k) < then_branch = t () => (float[3,4] y) <{SCALARS}, {ERF}> {{ {GELU} }},
                              else_branch = e () => (float[3,4] p) {{ p = Identity(f) }}> }}
               <domain: "local", opset_import: ["": 20]> f (x) => (y) {{
                 root2 = Constant<value = float {{1.41421354}}>()  one = Constant<value = float {{1}}>()
                 half = Constant<value = float {{0.5}}>()  {GELU} }}"""
    outcome = rewriter.run(rewriter.model(text), PIPELINE)
    (function,) = outcome.model.functions.values()
    assert [node.op_type for node in function] == ["Gelu"]
    assert [node.op_type for node in ir.traversal.RecursiveGraphIterator(outcome.model.graph)][-2:] == [
        "Gelu",
        "Identity",
    ]
    rewriter.same_outputs(rewriter.model(text), outcome.model)


def test_excluded_nodes_stay(rewriter: Any) -> None:
    text = model(GELU.replace("c = Add", "[sum] c = Add"), f"{SCALARS}, {ERF}")
    assert not rewriter.run(rewriter.model(text), PIPELINE, exclude="sum").modified


def test_the_name_of_a_graph_output_stays(rewriter: Any) -> None:
    outcome = rewriter.golden(
        model(GELU, f"{SCALARS}, {ERF}"),
        f"{PIPELINE},remove-unused-initializers",
        model('[y_gelu_node] y = Gelu<approximate = "none">(x)', "").replace("<>", ""),
    )
    assert np.prod(outcome.model.graph.outputs[0].shape.numpy()) == 12
