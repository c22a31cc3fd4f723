"""fold-batch-norm: what is folded, into which side, and what must not be. The mathematics is tested in test_affine."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

PIPELINE = "fold-batch-norm"
PARAMETERS = "float[2] s = {2, -0.5}, float[2] b = {1, 0}, float[2] m = {0.5, -1}, float[2] v = {4, 0.25}"
WEIGHT = "float[2,1,1,1] w = {3, -1}"
MODEL = f"""g (float[1,1,3,3] x) => (float[1,2,3,3] y) <{WEIGHT}, {PARAMETERS}>
            {{ c = Conv(x, w)  n = BatchNormalization<epsilon = 0.0>(c, s, b, m, v)  y = Relu(n) }}"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            MODEL,
            """g (float[1,1,3,3] x) => (float[1,2,3,3] y)
               <float[2,1,1,1] w_folded = {3, 1}, float[2] c_bias_folded = {0.5, -1}>
               { c = Conv(x, w_folded, c_bias_folded)  y = Relu(c) }""",
            id="a bias is made",
        ),
        pytest.param(
            f"""g (float[1,1,3,3] x) => (float[1,2,3,3] y) <{WEIGHT}, float[2] cb = {{1, 2}}, {PARAMETERS}>
                {{ c = Conv(x, w, cb)  y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v) }}""",
            """g (float[1,1,3,3] x) => (float[1,2,3,3] y)
               <float[2,1,1,1] w_folded = {3, 1}, float[2] cb_folded = {1.5, -3}>
               { y = Conv(x, w_folded, cb_folded) }""",
            id="a bias is merged, and the graph output keeps its name",
        ),
        pytest.param(
            f"""g (float[1,1,3,3] x) => (float[1,2,3,3] y, float[1,2,3,3] z) <{WEIGHT}, {PARAMETERS}>
                {{ c = Conv(x, w)  y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v)  z = Conv(x, w) }}""",
            f"""g (float[1,1,3,3] x) => (float[1,2,3,3] y, float[1,2,3,3] z)
               <{WEIGHT}, float[2,1,1,1] w_folded = {{3, 1}}, float[2] c_bias_folded = {{0.5, -1}}>
               {{ y = Conv(x, w_folded, c_bias_folded)  z = Conv(x, w) }}""",
            id="a weight that others read is copied",
        ),
        pytest.param(
            MODEL.replace("w = {", "w_folded = {").replace("(x, w)", "(x, w_folded)"),
            """g (float[1,1,3,3] x) => (float[1,2,3,3] y)
               <float[2,1,1,1] w_folded_2 = {3, 1}, float[2] c_bias_folded = {0.5, -1}>
               { c = Conv(x, w_folded_2, c_bias_folded)  y = Relu(c) }""",
            id="names are fresh",
        ),
        pytest.param(
            f"""g (float[1,1,3,3] x, bool k) => (float[1,2,3,3] y) <{WEIGHT}, {PARAMETERS}> {{ y = If (k) <
                  then_branch = t () => (float[1,2,3,3] p)
                    {{ c = Conv(x, w)  p = BatchNormalization<epsilon = 0.0>(c, s, b, m, v) }},
                  else_branch = e () => (float[1,2,3,3] q) {{ q = Conv(x, w) }}> }}""",
            f"""g (float[1,1,3,3] x, bool k) => (float[1,2,3,3] y) <{WEIGHT}> {{ y = If (k) <
                  then_branch = t () => (float[1,2,3,3] p)
                    <float[2,1,1,1] w_folded = {{3, 1}}, float[2] c_bias_folded = {{0.5, -1}}>
                    {{ p = Conv(x, w_folded, c_bias_folded) }},
                  else_branch = e () => (float[1,2,3,3] q) {{ q = Conv(x, w) }}> }}""",
            id="in a body, with a captured weight",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,1,3,3] x) => (float[1,1,3,3] y)
                 { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (p) {
                 w = Constant<value = float[1,1,1,1] {3}>()  s = Constant<value = float[1] {2}>()
                 c = Conv(a, w)  p = BatchNormalization<epsilon = 0.0>(c, s, s, s, s) }""",
            """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,1,3,3] x) => (float[1,1,3,3] y)
                 { y = local.f(x) }
               <domain: "local", opset_import: ["": 17]> f (a) => (p) {
                 w2 = Constant<value = float[1,1,1,1] w2 {4.242640495300293}>()
                 b2 = Constant<value = float[1] b2 {-0.8284271359443665}>()  p = Conv(a, w2, b2) }""",
            id="in a function",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    outcome = rewriter.golden(before, PIPELINE, after.replace("w2", "w_folded").replace("b2", "c_bias_folded"))
    rewriter.same_outputs(rewriter.model(before), outcome.model)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(MODEL.replace("Conv(x, w)", "Mul(x, w)"), "nothing linear is beside it", id="no Conv"),
        pytest.param(MODEL.replace("Conv(x, w)", "acme.Conv(x, w)"), "nothing linear is beside it", id="another Conv"),
        pytest.param(MODEL.replace("Relu(n)", "Add(n, c)"), "read elsewhere too", id="two uses"),
        pytest.param(
            MODEL.replace("(float[1,2,3,3] y)", "(float[1,2,3,3] y, float[1,2,3,3] c)"), "read elsewhere", id="output"
        ),
        pytest.param(
            MODEL.replace("(float[1,1,3,3] x)", "(float[1,1,3,3] x, float[2,1,1,1] w)"),
            "its weight is not constant",
            id="overridable weight",
        ),
        pytest.param(
            MODEL.replace("(float[1,1,3,3] x)", "(float[1,1,3,3] x, float[2] m)").replace(
                "float[2] m = {0.5, -1}, ", ""
            ),
            "not all of its parameters are constant",
            id="mean is an input",
        ),
        pytest.param(
            MODEL.replace("epsilon = 0.0", "epsilon = 0.0, training_mode = 1"), "in training mode", id="training"
        ),
        pytest.param(MODEL.replace("v = {4, 0.25}", "v = {4, -1}"), "not finite", id="negative variance"),
        pytest.param(
            MODEL.replace("s = {2, -0.5}", "s = {1e38, 1}").replace("v = {4,", "v = {1e-4,"), "overflow", id="overflow"
        ),
        pytest.param(
            '<ir_version: 7, opset_import: ["": 9]> '
            + MODEL.replace("n = Batch", "n, n1, n2, n3, n4 = Batch").replace("epsilon = 0.0", "momentum = 0.5"),
            "in training mode",
            id="training before opset 14",
        ),
        pytest.param(
            '<ir_version: 7, opset_import: ["": 8]> ' + MODEL.replace("epsilon = 0.0", "spatial = 0"),
            "statistics per element",
            id="not spatial",
        ),
        pytest.param(
            '<ir_version: 7, opset_import: ["": 6]> ' + MODEL, "in training mode", id="before opset 7 without is_test"
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.golden(before, PIPELINE).reasons


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
def test_every_opset(rewriter: Any, opset: int) -> None:
    text = f'<ir_version: 7, opset_import: ["": {opset}]> ' + MODEL
    outcome = rewriter.run(rewriter.model(text), PIPELINE)
    assert outcome.modified
    rewriter.same_outputs(rewriter.model(text), outcome.model)


def test_opset_6_in_test_mode(rewriter: Any) -> None:
    text = '<ir_version: 7, opset_import: ["": 6]> ' + MODEL.replace("epsilon = 0.0", "epsilon = 0.0, is_test = 1")
    assert rewriter.run(rewriter.model(text), PIPELINE).modified


@pytest.mark.parametrize("excluded", ["conv", "norm"])
def test_excluded_nodes_stay(rewriter: Any, excluded: str) -> None:
    text = MODEL.replace("c = Conv", "[conv] c = Conv").replace("n = Batch", "[norm] n = Batch")
    assert not rewriter.run(rewriter.model(text), PIPELINE, exclude=excluded).modified


# operator, input, output, weight; the bias, where there is one, has as many elements as the output has channels
OPERATORS = [
    pytest.param("Conv(x, w, b)", (2, 4, 7), (2, 6, 5), (6, 4, 3), id="1-D"),
    pytest.param("Conv<group = 2>(x, w)", (2, 4, 5, 5), (2, 6, 3, 3), (6, 2, 3, 3), id="grouped"),
    pytest.param("Conv<group = 4>(x, w, b)", (2, 4, 5, 5), (2, 4, 2, 3), (4, 1, 4, 3), id="depthwise"),
    pytest.param("Conv<strides = [2, 1, 1]>(x, w, b)", (1, 2, 5, 4, 4), (1, 3, 2, 2, 3), (3, 2, 3, 3, 2), id="3-D"),
    pytest.param("Gemm(x, w, b)", (3, 4), (3, 5), (4, 5), id="Gemm"),
    pytest.param("Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)", (3, 4), (3, 5), (5, 4), id="Gemm, scaled"),
    pytest.param("Gemm<alpha = 0.5>(x, w)", (3, 4), (3, 5), (4, 5), id="Gemm without a bias"),
    pytest.param("MatMul(x, w)  d = Add(c, b)", (3, 4), (3, 5), (4, 5), id="MatMul and Add"),
    pytest.param("MatMul(x, w)  d = Add(b, c)", (3, 4), (3, 5), (4, 5), id="Add and MatMul"),
]
ONLY_BEFORE = [
    pytest.param(
        "ConvTranspose<group = 2, strides = [2, 2]>(x, w)", (1, 4, 3, 3), (1, 6, 7, 7), (4, 3, 3, 3), id="transposed"
    ),
    pytest.param("Conv<pads = [1, 1, 1, 1]>(x, w, b)", (1, 4, 3, 3), (1, 6, 3, 3), (6, 4, 3, 3), id="padded"),
    pytest.param('Conv<auto_pad = "SAME_UPPER">(x, w)', (1, 4, 3, 3), (1, 6, 3, 3), (6, 4, 3, 3), id="auto_pad"),
    pytest.param("Gemm<transA = 1>(x, w)", (4, 3), (3, 5), (4, 5), id="transposed Gemm"),
    pytest.param("MatMul(x, w)", (3, 4), (3, 5), (4, 5), id="MatMul"),
    pytest.param("InstanceNormalization(x, w, b)", (2, 4, 3, 3), (2, 4, 3, 3), (4,), id="InstanceNormalization"),
    pytest.param("LayerNormalization(x, w, b)", (3, 4), (3, 4), (4,), id="LayerNormalization"),
]
NORMALIZATION = pytest.param("BatchNormalization(x, w, b, b, w)", (2, 4, 3), (2, 4, 3), (4,), id="BatchNormalization")
Shape = tuple[int, ...]


def linear_model(operator: str, x: Shape, y: Shape, w: Shape, norm_first: bool) -> tuple[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    last = "d" if " d = " in operator else "c"
    norm = "BatchNormalization({}, s, t, m, v)"
    if norm_first:
        body = f"n = {norm.format('x')}  c = {operator.replace('(x,', '(n,')}  y = Relu({last})"
    else:
        body = f"c = {operator}  n = {norm.format(last)}  y = Relu(n)"
    tensors = {name: rng.uniform(0.5, 2, x[1] if norm_first else y[1]).astype(np.float32) for name in "stmv"}
    tensors["w"] = rng.uniform(0.1, 1, w).astype(np.float32)
    if ", b" in operator or "(b" in operator:
        tensors["b"] = rng.standard_normal(y[1]).astype(np.float32)
        if "BatchNorm" in operator:
            tensors["b"] = np.abs(tensors["b"])
    return f"g (float{[*x]} x) => (float{[*y]} y) {{ {body} }}", tensors


@pytest.mark.parametrize(("operator", "x", "y", "w"), [*OPERATORS, *ONLY_BEFORE, NORMALIZATION])
def test_into_what_is_before(rewriter: Any, operator: str, x: Shape, y: Shape, w: Shape) -> None:
    check_linear(rewriter, *linear_model(operator, x, y, w, norm_first=False))


@pytest.mark.parametrize(("operator", "x", "y", "w"), OPERATORS)
def test_into_what_is_behind(rewriter: Any, operator: str, x: Shape, y: Shape, w: Shape) -> None:
    check_linear(rewriter, *linear_model(operator, x, y, w, norm_first=True))


@pytest.mark.parametrize(("operator", "x", "y", "w"), ONLY_BEFORE)
def test_not_into_what_is_behind(rewriter: Any, operator: str, x: Shape, y: Shape, w: Shape) -> None:
    text, tensors = linear_model(operator, x, y, w, norm_first=True)
    assert not rewriter.run(rewriter.typed(text, tensors), PIPELINE).modified


@pytest.mark.parametrize(("operator", "x", "y", "w"), [*ONLY_BEFORE[:3], ONLY_BEFORE[4]])
def test_a_mere_scale_goes_behind(rewriter: Any, operator: str, x: Shape, y: Shape, w: Shape) -> None:
    text, tensors = linear_model(operator, x, y, w, norm_first=True)
    tensors["t"], tensors["m"] = np.zeros_like(tensors["t"]), np.zeros_like(tensors["m"])
    check_linear(rewriter, text, tensors)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            f"""g (float[3,4] x) => (float[3,2] y) <float[4,2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, {PARAMETERS}>
                {{ c = MatMul(x, w)  y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v) }}""",
            """g (float[3,4] x) => (float[3,2] y)
               <float[4,2] w_folded = {1, -2, 3, -4, 5, -6, 7, -8}, float[2] c_bias_folded = {0.5, -1}>
               { c = MatMul(x, w_folded)  [y_add_node] y = Add(c, c_bias_folded) }""",
            id="an Add remains behind a MatMul",
        ),
        pytest.param(
            f"""g (float[1,2,3,3] x) => (float[1,1,3,3] y, float[1,1,2,3] z)
                <float[1,2,1,1] w = {{1, 2}}, float[1,2,2,1] u = {{1, 2, 3, 4}}, float[1] cb = {{10}}, {PARAMETERS}>
                {{ n = BatchNormalization<epsilon = 0.0>(x, s, b, m, v)  y = Conv(n, w, cb)  z = Conv(n, u) }}""",
            """g (float[1,2,3,3] x) => (float[1,1,3,3] y, float[1,1,2,3] z)
               <float[1,2,1,1] w_folded = {1, -2}, float[1] cb_folded = {8.5},
                float[1,2,2,1] u_folded = {1, 2, -3, -4}, float[1] z_bias_folded = {-5.5}>
               { y = Conv(x, w_folded, cb_folded)  z = Conv(x, u_folded, z_bias_folded) }""",
            id="two convolutions behind it",
        ),
        pytest.param(
            f"""g (float[1,2,3,3] x) => (float[1,1,3,3] y, float[1,2,3,3] z) <float[1,2,1,1] w = {{1, 2}}, {PARAMETERS}>
                {{ n = BatchNormalization(x, s, b, m, v)  y = Conv(n, w)  z = Relu(n) }}""",
            None,
            id="not all that reads it is linear",
        ),
        pytest.param(
            f"""g (float[2,3,4] x) => (float[2,2,2] y) <float[4,2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, {PARAMETERS}>
                {{ c = MatMul(x, w)  y = BatchNormalization(c, s, b, m, v) }}""".replace("2,3,4", "2,2,4"),
            None,
            id="the features of a MatMul are no channels in three axes",
        ),
        pytest.param(
            f"""g (float[2,2] x, float[2] cb) => (float[2,2] y) <float[2,2] w = {{1, 2, 3, 4}}, {PARAMETERS}>
                {{ c = Gemm(x, w, cb)  y = BatchNormalization(c, s, b, m, v) }}""",
            None,
            id="a bias that is not constant",
        ),
        pytest.param(
            f"""g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {{1, 2, 3, 4}}, {PARAMETERS}>
                {{ c = Gemm(x, w, w)  y = BatchNormalization(c, s, b, m, v) }}""",
            None,
            id="a bias for each element",
        ),
        pytest.param(
            f"""g (float[2,2] x, bool k) => (float[2,2] y) <float[2,2] w = {{1, 2, 3, 4}}, {PARAMETERS}>
                {{ n = BatchNormalization(x, s, b, m, v)  y = If (k) <
                  then_branch = t () => (float[2,2] p) {{ p = Gemm(n, w) }},
                  else_branch = e () => (float[2,2] q) {{ q = Relu(n) }}> }}""",
            None,
            id="what reads it is in a body",
        ),
    ],
)
def test_neighbours(rewriter: Any, before: str, after: str | None) -> None:
    rewriter.rewrites(before, PIPELINE, after)


def test_a_large_weight_is_not_doubled(rewriter: Any) -> None:
    text = """g (float[1,2] x) => (float[1,200000] y, float[1,200000] z)
              { y = Gemm(x, w)  n = BatchNormalization(x, s, s, s, s)  z = Gemm(n, w) }"""
    tensors = {"w": np.ones((2, 200000), np.float32), "s": np.ones(2, np.float32)}
    assert "a copy would take 1600000 bytes" in rewriter.run(rewriter.typed(text, tensors), PIPELINE).reasons


def test_bfloat16(rewriter: Any) -> None:
    bfloat16 = ir.DataType.BFLOAT16.numpy()
    text = """g (bfloat16[1,2,3] x) => (bfloat16[1,2,3] y)
              { c = Conv(x, w)  y = BatchNormalization<epsilon = 0.0>(c, s, s, s, s) }"""
    tensors = {"w": np.array([1, 2, 3, 4], bfloat16).reshape(2, 2, 1), "s": np.array([4, 0.25], bfloat16)}
    outcome = rewriter.run(rewriter.typed(text, tensors), PIPELINE)
    folded = {name: value.const_value.numpy() for name, value in outcome.model.graph.initializers.items()}
    assert folded["w_folded"].reshape(-1).tolist() == [2, 4, 1.5, 2]
    assert folded["c_bias_folded"].tolist() == [-4, 0.125]
    assert {array.dtype for array in folded.values()} == {bfloat16}


def check_linear(rewriter: Any, text: str, tensors: dict[str, np.ndarray]) -> None:
    """The normalization that reads s, t, m and v goes, and the outputs stay."""
    before = rewriter.typed(text, tensors)
    outcome = rewriter.run(rewriter.typed(text, tensors), PIPELINE)
    assert not {"s", "t", "m", "v"} & {value.name for value in outcome.model.graph.initializers.values()}
    rewriter.same_outputs(before, outcome.model)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])  # onnxruntime has no Conv in float64
def test_grouped_convolution_in_float_types(rewriter: Any, dtype: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(0)
    kind = {np.float16: "float16", np.float32: "float"}[dtype]
    text = f"""g ({kind}[2,4,5,5] x) => ({kind}[2,6,3,3] y)
               {{ c = Conv<group = 2>(x, w, b)  y = BatchNormalization(c, s, t, m, v) }}"""
    tensors = {name: rng.uniform(0.5, 2, 6).astype(dtype) for name in "bstmv"}
    tensors["w"] = rng.standard_normal((6, 2, 3, 3)).astype(dtype)
    outcome = rewriter.run(rewriter.model(text, tensors), PIPELINE)
    assert outcome.modified
    rewriter.same_outputs(rewriter.model(text, tensors), outcome.model)
    assert {value.dtype.numpy() for value in outcome.model.graph.initializers.values()} == {np.dtype(dtype)}
