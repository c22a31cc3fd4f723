from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter
from quantized_models import SATURATES, checked, counts, kernels, outputs, sqnr, weights

from graphopt.ir import emit
from graphopt.lift import lift
from graphopt.pipeline.base import PassContext
from graphopt_passes.quantization import dynamic

MODELS = Path(__file__).parents[2] / "models"
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((64, 48)).astype(np.float32) * RANDOM.lognormal(size=48).astype(np.float32)
DATA = RANDOM.standard_normal((2, 5, 64)).astype(np.float32)


def apply(model: ir.Model, exclude: str | None = None, *, saturates: bool = SATURATES, conv: bool = False) -> str:
    context = PassContext(exclude=re.compile(exclude) if exclude else None)
    return checked(model, dynamic.apply(model, context, saturates=saturates, conv=conv))


def test_golden(rewriter: Rewriter) -> None:
    model = rewriter.typed(
        "agraph (float[n,2] x) => (float[n,2] y) "
        "<float[2,2] w = {1, 127, -127, 2}, float[2] b = {1, 2}> { p = MatMul(x, w) y = Add(p, b) }"
    )
    apply(model, saturates=False)
    weight, scale = (weights(model)[name].numpy() for name in ("w_quantized", "w_scale"))
    np.testing.assert_array_equal(weight, [[1, 127], [-127, 2]])
    np.testing.assert_array_equal(scale, [1, 1])
    expected = """agraph (float[n,2] x) => (float[n,2] y)
        <float[2] b = {1, 2}, int8[2,2] w_quantized = {1, 127, -127, 2}, float[2] w_scale = {1, 1}> {
        x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear(x)
        sums = MatMulInteger(x_quantized, w_quantized, x_zero_point)
        float_sums = Cast<to = 1>(sums)
        step = Mul(x_scale, w_scale)
        p = Mul(float_sums, step)
        y = Add(p, b)
    }"""
    found, wanted = rewriter.model(expected), model
    assert [node.op_type for node in wanted.graph] == [node.op_type for node in found.graph]
    feeds = {"x": np.array([[0.5, -1], [3, 255]], np.float32)}
    np.testing.assert_array_equal(outputs(wanted, feeds, optimize=False)[0], outputs(found, feeds, optimize=False)[0])


def test_one_quantization_for_all_readers(rewriter: Rewriter) -> None:
    text = """agraph (float[b,5,64] x) => (float[b,5,48] q, float[b,5,48] k, float[n,48] v) <int64[2] rows = {-1, 64}> {
        q = MatMul(x, wq)
        p = MatMul(x, wk)
        k = Add(p, bk)
        flat = Reshape(x, rows)
        v = Gemm(flat, wv, bk)
    }"""
    tensors = {"wq": WEIGHT, "wk": WEIGHT + 1, "wv": WEIGHT - 1, "bk": np.ones(48, np.float32)}
    model = rewriter.typed(text, tensors)
    expected = outputs(model, {"x": DATA})
    apply(model)
    assert counts(model)["DynamicQuantizeLinear"] == 1
    assert kernels(model) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Reshape": 1}
    assert all(sqnr(a, b) > 35 for a, b in zip(expected, outputs(model, {"x": DATA}), strict=True))


def test_a_single_reader_becomes_one_kernel(rewriter: Rewriter) -> None:
    model = rewriter.typed("agraph (float[b,5,64] x) => (float[b,5,48] y) { y = MatMul(x, w) }", {"w": WEIGHT})
    apply(model)
    assert kernels(model) == {"DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (-0.5, 3.0), (2.0, 0.0)])
def test_gemm(rewriter: Rewriter, trans_a: int, trans_b: int, alpha: float, beta: float) -> None:
    shape = "64,7" if trans_a else "7,64"
    text = (
        f"agraph (float[{shape}] x, float[48] c) => (float[7,48] y) "
        f"{{ y = Gemm<transA={trans_a}, transB={trans_b}, alpha={alpha}, beta={beta}>(x, w, c) }}"
    )
    model = rewriter.typed(text, {"w": WEIGHT.T.copy() if trans_b else WEIGHT})
    data = DATA[0].repeat(2, 0)[:7]
    feeds = {"x": data.T.copy() if trans_a else data, "c": np.linspace(-3, 3, 48, dtype=np.float32)}
    expected = outputs(model, feeds)[0]
    apply(model)
    assert "Gemm" not in counts(model)
    assert sqnr(expected, outputs(model, feeds)[0]) > 35


def test_tied_weights_stay_tied_also_in_bodies(rewriter: Rewriter) -> None:
    text = """agraph (float[5,64] x, bool c) => (float[5,48] y, float[5,48] z) {
        y = MatMul(x, w)
        z = If(c) <
            then_branch = t () => (float[5,48] a) { a = MatMul(x, w) },
            else_branch = e () => (float[5,48] b) { b = Neg(y) }>
    }"""
    model = rewriter.typed(text, {"w": WEIGHT})
    feeds = {"x": DATA[0], "c": np.array(True)}
    expected = outputs(model, feeds)
    apply(model)
    assert list(model.graph.initializers) == ["w_quantized", "w_scale"]
    for a, b in zip(expected, outputs(model, feeds), strict=True):
        assert sqnr(a, b) > 35


def test_functions(rewriter: Rewriter) -> None:
    text = """agraph (float[5,64] x, float[64,48] w) => (float[5,48] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 17]>
        f (x) => (y) { w = Constant<value = float[2,2] {1, 2, 3, 4}>() y = MatMul(x, w) }"""
    model = rewriter.model(text)
    touched, _ = dynamic.apply(model, PassContext())
    assert [node.op_type for node in touched][:2] == ["DynamicQuantizeLinear", "MatMulInteger"]


@pytest.mark.parametrize(
    ("text", "tensors", "reason"),
    [
        ("agraph (float[5,64] x, float[64,48] w) => (float[5,48] y) { y = MatMul(x, w) }", {}, "not constant"),
        (
            "agraph (float[5,4] x) => (float[2,5,3] y) { y = MatMul(x, w) }",
            {"w": np.ones((2, 4, 3), np.float32)},
            "not a matrix",
        ),
        (
            "agraph (float16[5,4] x) => (float16[5,3] y) { y = MatMul(x, w) }",
            {"w": np.ones((4, 3), np.float16)},
            "FLOAT16",
        ),
        (
            "agraph (float[5,4] x) => (float[5,3] y) { y = MatMul(x, w) }",
            {"w": np.full((4, 3), np.nan, np.float32)},
            "not finite",
        ),
        (
            "agraph (uint8[5,4] q) => (float[5,3] y) <float s = {0.5}> { x = DequantizeLinear(q, s) y = MatMul(x, w) }",
            {"w": np.ones((4, 3), np.float32)},
            "quantized already",
        ),
        ("agraph (float[5,4] x) => (float[5,3] y) { [n] y = MatMul(x, w) }", {"w": np.ones((4, 3), np.float32)}, ""),
        (
            '<ir_version: 8, opset_import: ["": 10]> agraph (float[5,4] x) => (float[5,3] y) { y = MatMul(x, w) }',
            {"w": np.ones((4, 3), np.float32)},
            "too old an opset",
        ),
    ],
)
def test_left_alone(rewriter: Rewriter, text: str, tensors: dict[str, np.ndarray], reason: str) -> None:
    model = rewriter.typed(text, tensors)
    before = rewriter.printed(model)
    assert reason in apply(model, exclude="n")
    assert rewriter.printed(model) == before


def test_no_pair_of_products_can_saturate(rewriter: Rewriter) -> None:
    model = rewriter.typed("agraph (float[b,64] x) => (float[b,48] y) { y = MatMul(x, w) }", {"w": WEIGHT})
    apply(model, saturates=True)
    pairs = weights(model)["w_quantized"].numpy().astype(int).reshape(32, 2, 48)
    assert (np.maximum(pairs, 0).sum(axis=1) * 255).max() <= 32767
    assert (np.minimum(pairs, 0).sum(axis=1) * 255).min() >= -32768
    assert np.abs(pairs).max() > 63
    feeds = {"x": RANDOM.standard_normal((50, 64)).astype(np.float32)}
    assert sqnr(feeds["x"] @ WEIGHT, outputs(model, feeds)[0]) > 35


def test_embeddings_become_rows_of_8_bits(rewriter: Rewriter) -> None:
    table = (np.arange(1, 129)[:, None] * RANDOM.standard_normal((128, 64))).astype(np.float32)
    model = rewriter.typed("agraph (int64[b,t] i) => (float[b,t,64] y) { y = Gather(w, i) }", {"w": table})
    feeds = {"i": np.array([[0, 1, 127], [-1, 5, 3]])}
    apply(model)
    found = outputs(model, feeds)[0]
    assert all(sqnr(table[i], row) > 38 for i, row in zip(feeds["i"].flat, found.reshape(-1, 64), strict=True))
    assert "w" not in model.graph.initializers


def test_convolutions_only_on_request(rewriter: Rewriter) -> None:
    weight = RANDOM.standard_normal((8, 3, 3, 3)).astype(np.float32)
    text = (
        "agraph (float[1,3,9,9] x) => (float[1,8,5,5] y) { y = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w, b) }"
    )
    tensors = {"w": weight, "b": np.linspace(-1, 1, 8, dtype=np.float32)}
    feeds = {"x": RANDOM.standard_normal((1, 3, 9, 9)).astype(np.float32)}
    model = rewriter.typed(text, tensors)
    expected = outputs(model, feeds)[0]
    assert apply(model) == ""
    assert "Conv" in counts(model)
    apply(model, conv=True)
    assert counts(model)["ConvInteger"] == 1
    assert sqnr(expected, outputs(model, feeds)[0]) > 35


@pytest.mark.parametrize("name", ["transformer", "transformer.dynamo"])
def test_no_less_accurate_than_onnxruntimes_own(name: str, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source = MODELS / f"{name}.onnx"
    feeds = {"input": np.load(MODELS / "digits.eval.npz")["input"][:200]}
    model = lift(source).model
    expected = outputs(model, feeds)[0]
    quantize_dynamic(source, tmp_path / "peer.onnx", per_channel=True)
    peer = sqnr(expected, outputs(lift(tmp_path / "peer.onnx").model, feeds)[0])
    apply(model)
    assert sqnr(expected, outputs(model, feeds)[0]) >= peer
    assert len(emit.to_bytes(model)) < 0.6 * source.stat().st_size
    assert kernels(model)["DynamicQuantizeLinear"] == 3
    assert "MatMulInteger" not in kernels(model)
