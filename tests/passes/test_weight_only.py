from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter
from quantized_models import checked, counts, kernels, outputs, sqnr, weights

from graphopt.analysis import opset
from graphopt.ir import emit
from graphopt.lift import lift
from graphopt.pipeline.base import PassContext
from graphopt_passes.numerics import blockwise
from graphopt_passes.numerics.quantizer import Array, Grid
from graphopt_passes.quantization import weight_only
from graphopt_passes.quantization.weight_only import Form, RoundWeights

MODELS = Path(__file__).parents[2] / "models"
OPSET = '<ir_version: 8, opset_import: ["": 21, "local": 1]>\n'
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((64, 48)).astype(np.float32)
DATA = RANDOM.standard_normal((5, 64)).astype(np.float32)
DEFAULT = Form()
FORMS = [Form(bits, block, symmetric) for bits in (4, 8) for block in (16, 32, 64, 128) for symmetric in (False, True)]


def apply(
    model: ir.Model, form: Form = DEFAULT, exclude: str | None = None, round_weights: RoundWeights | None = None
) -> str:
    context = PassContext(exclude=re.compile(exclude) if exclude else None)
    return checked(model, weight_only.apply(model, context, form, round_weights=round_weights))


def restored(weight: np.ndarray, form: Form) -> np.ndarray:
    """The (K, N) `weight` as it is after rounding."""
    scale, zero_point = blockwise.ranges(weight.T, form.block, form.grid)
    integers = blockwise.quantize(weight.T, scale, zero_point, form.block, form.grid)
    return blockwise.dequantize(integers, scale, zero_point, form.block).T


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("inputs", [64, 61])
def test_matmul(rewriter: Rewriter, form: Form, inputs: int) -> None:
    text = f"{OPSET} agraph (float[b,{inputs}] x) => (float[b,48] y) {{ y = MatMul(x, w) }}"
    weight, data = WEIGHT[:inputs], DATA[:, :inputs]
    model = rewriter.typed(text, {"w": weight})
    apply(model, form)
    found = outputs(model, {"x": data}, optimize=False)[0]
    np.testing.assert_allclose(found, data @ restored(weight, form), atol=1e-4)
    assert kernels(model) == {"MatMulNBits": 1}
    assert weights(model)["w_quantized"].nbytes == (inputs * 48 * form.bits + 7) // 8
    assert model.ir_version == 10


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(rewriter: Rewriter, trans_a: int, trans_b: int) -> None:
    shape = "64,5" if trans_a else "5,64"
    text = (
        f"{OPSET} agraph (float[{shape}] x, float[48] c) => (float[5,48] y) "
        f"{{ y = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0>(x, w, c) }}"
    )
    model = rewriter.typed(text, {"w": WEIGHT.T.copy() if trans_b else WEIGHT})
    bias = np.linspace(-3, 3, 48, dtype=np.float32)
    apply(model)
    feeds = {"x": DATA.T.copy() if trans_a else DATA, "c": bias}
    expected = 0.5 * DATA @ restored(WEIGHT, Form()) + 2 * bias
    np.testing.assert_allclose(outputs(model, feeds, optimize=False)[0], expected, atol=1e-4)


def test_gemm_with_a_transposed_weight_becomes_one_kernel(rewriter: Rewriter) -> None:
    text = f"{OPSET} agraph (float[b,64] x) => (float[b,48] y) {{ y = Gemm<transB=1>(x, w, c) }}"
    model = rewriter.typed(text, {"w": WEIGHT.T.copy(), "c": np.ones(48, np.float32)})
    apply(model)
    assert kernels(model) == {"MatMulNBits": 1}


def test_float16_weights(rewriter: Rewriter) -> None:
    text = f"{OPSET} agraph (float16[b,64] x) => (float16[b,48] y) {{ y = MatMul(x, w) }}"
    model = rewriter.typed(text, {"w": WEIGHT.astype(np.float16)})
    data = DATA.astype(np.float16)
    expected = outputs(model, {"x": data})[0]
    apply(model, Form(8))
    assert sqnr(expected, outputs(model, {"x": data})[0]) > 35


def test_tied_weights_stay_tied_also_in_bodies(rewriter: Rewriter) -> None:
    text = f"""{OPSET} agraph (float[5,64] x, bool c) => (float[5,48] y, float[5,48] z) {{
        y = MatMul(x, w)
        z = If(c) <
            then_branch = t () => (float[5,48] a) {{ a = MatMul(x, w) }},
            else_branch = e () => (float[5,48] b) {{ b = Neg(y) }}>
    }}"""
    model = rewriter.typed(text, {"w": WEIGHT})
    assert "shares its weight" in apply(model)
    assert list(model.graph.initializers) == ["w_quantized", "w_scale", "w_zero_point"]
    y, z = outputs(model, {"x": DATA, "c": np.array(True)}, optimize=False)
    np.testing.assert_array_equal(y, z)


@pytest.mark.parametrize("form", [Form(4, 16), Form(4, 32, True), Form(8)], ids=str)
def test_tables(rewriter: Rewriter, form: Form) -> None:
    table = (np.arange(1, 129)[:, None] * RANDOM.standard_normal((128, 80))).astype(np.float32)
    model = rewriter.typed(f"{OPSET} agraph (int64[b,t] i) => (float[b,t,80] y) {{ y = Gather(w, i) }}", {"w": table})
    indices = np.array([[0, 1, 127], [-1, 5, 3]])
    apply(model, form)
    found = outputs(model, {"i": indices})[0]
    if form.bits == 4:
        scale, zero_point = blockwise.ranges(table, form.block, Form(4).grid)
        integers = blockwise.quantize(table, scale, zero_point, form.block, Form(4).grid)
        expected = blockwise.dequantize(integers, scale, zero_point, form.block)[indices]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert sqnr(table[indices], found) > (18 if form.bits == 4 else 40)
    sizes = sum(tensor.nbytes for tensor in weights(model).values())
    assert sizes < table.nbytes * (0.22 if form.bits == 4 else 0.27)


def test_a_table_that_is_a_weight_too_stays_as_it_is(rewriter: Rewriter) -> None:
    text = (
        f"{OPSET} agraph (int64[b] i) => (float[b,48] z) "
        f"{{ x = Gather(w, i) y = Gemm<transB=1>(x, w) z = Slice(y, s, e, a) }}"
    )
    constants = {"s": np.array([0]), "e": np.array([48]), "a": np.array([1])}
    model = rewriter.typed(text, {"w": RANDOM.standard_normal((64, 64)).astype(np.float32), **constants})
    before = rewriter.printed(model)
    reasons = apply(model)
    assert "read elsewhere" in reasons
    assert "also read by Gather" in reasons
    assert rewriter.printed(model) == before


def test_rounding_can_be_plugged_in(rewriter: Rewriter) -> None:
    seen = []

    expected = []

    def down(node: ir.Node, weight: Array, scale: Array, zero_point: Array, block: int, grid: Grid) -> Array:
        seen.append((node.op_type, weight.shape, scale.shape, zero_point.shape, block, grid))
        steps, zeros = (blockwise.spread(array, block, weight.shape[1]) for array in (scale, zero_point))
        integers: Array = np.clip(np.floor(weight / steps) + zeros, grid.low, grid.high).astype(grid.storage)
        expected.append(blockwise.dequantize(integers, scale, zero_point, block).T)
        return integers

    model = rewriter.typed(f"{OPSET} agraph (float[b,64] x) => (float[b,48] y) {{ y = MatMul(x, w) }}", {"w": WEIGHT})
    apply(model, round_weights=down)
    assert seen == [("MatMul", (48, 64), (48, 2), (48, 2), 32, Form().grid)]
    found = outputs(model, {"x": np.eye(64, dtype=np.float32)}, optimize=False)[0]
    np.testing.assert_allclose(found, expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("agraph (float[5,64] x, float[64,48] w) => (float[5,48] y) { y = MatMul(x, w) }", None, "not constant"),
        ("agraph (float[5,4] x) => (float[5,3] y) { y = MatMul(x, w) }", WEIGHT[:4, :3], "fewer than 1024"),
        ("agraph (float[5,64] x) => (float[5,48] y) { y = MatMul(x, w) }", WEIGHT + np.inf, "not finite"),
        (
            "agraph (float[5,64] x) => (float[5,48] y, float[64,48] z) { y = MatMul(x, w) z = Neg(w) }",
            WEIGHT,
            "also read by Neg",
        ),
        ("agraph (float[5,64] x) => (float[5,48] y) { [n] y = MatMul(x, w) }", WEIGHT, ""),
        (
            '<ir_version: 8, opset_import: ["": 17]> agraph (float[5,64] x) => (float[5,48] y) { y = MatMul(x, w) }',
            WEIGHT,
            "need opset 21",
        ),
    ],
)
def test_left_alone(rewriter: Rewriter, text: str, weight: np.ndarray | None, reason: str) -> None:
    model = rewriter.typed(text if text.startswith("<") else OPSET + text, {} if weight is None else {"w": weight})
    before = rewriter.printed(model)
    assert reason in apply(model, exclude="n")
    assert rewriter.printed(model) == before
    assert model.ir_version == 8


@pytest.mark.parametrize("name", ["transformer", "transformer.dynamo"])
def test_trained_transformer(name: str) -> None:
    source = MODELS / f"{name}.onnx"
    feeds = {"input": np.load(MODELS / "digits.eval.npz")["input"][:200]}
    model = lift(source).model
    expected = outputs(model, feeds)[0]
    opset.upgrade(model, weight_only.SINCE)
    reasons = apply(model, Form(8))
    assert sqnr(expected, outputs(model, feeds)[0]) > 35
    assert re.search(r"1\d weights: stored in 8 bits.*SQNR of the weights 4\d\.\d dB", reasons)
    assert kernels(model)["MatMulNBits"] == counts(model)["DequantizeLinear"]
    assert len(emit.to_bytes(model)) < 0.6 * source.stat().st_size
