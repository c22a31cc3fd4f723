"""Float layers between integers stay float in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser
from quantized_models import checked, kernels
from quantized_models import outputs as written

import graphopt
from graphopt.lift import lift
from graphopt_passes.quantization.islands import keep_float

QUANTIZED = "q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero)"
RESULT = "r = QuantizeLinear(c, scale, zero) y = DequantizeLinear(r, scale, zero)"


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (f"{QUANTIZED} c = Conv(d, w)", RESULT, 2),
        (f"{QUANTIZED} f = Conv(d, w) g = Clip(f, scale) c = Transpose<perm=[0,1,3,2]>(g)", RESULT, 2),
        (f"{QUANTIZED} t = Transpose<perm=[0,1,3,2]>(d) c = Conv(t, w)", RESULT, 2),
        (f"{QUANTIZED} f = Conv(d, w) g = BatchNormalization(f, k, k, k, k) c = Relu(g)", RESULT, 2),
        (f"{QUANTIZED} f = Conv(d, w) g = Mul(f, factors) c = Add(factors, g)", RESULT, 2),
        (f"{QUANTIZED} c = Conv(d, w)", "y = Relu(c)", 0),
        (f"{QUANTIZED} f = Conv(d, w) c = HardSwish(f)", RESULT, 0),
        ("c = Conv(x, w)", RESULT, 0),
    ],
)
def test_layers_between_integers_stay_float_in_onnxruntime(before: str, after: str, changed: int) -> None:
    head = '<ir_version: 8, opset_import: ["" : 14]> net (float[1,3,6,6] x) => (float[1,4,6,6] y)'
    proto = parser.parse_model(f"{head} {{ {before} {after} }}")
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(0, 1, (4, 3, 1, 1)),
        "scale": 0.02,
        "k": np.full(4, 0.9),
        "factors": np.full((4, 1, 1), 0.9),
    }
    constants = {name: np.asarray(array, np.float32) for name, array in arrays.items()} | {"zero": np.uint8(100)}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    model = lift(proto).model
    feeds = {"x": rng.normal(0, 1, (1, 3, 6, 6)).astype(np.float32)}
    (exact,) = written(model, feeds, optimize=False)
    touched = keep_float(model, model.graph)
    checked(model, (touched, ()))
    assert len(touched) == changed
    assert kernels(model)["QLinearConv"] == 0
    for optimize in (False, True):
        np.testing.assert_allclose(written(model, feeds, optimize=optimize)[0], exact, atol=0.021)
    assert keep_float(model, model.graph) == []  # a second time there is nothing to do


def test_a_layer_that_the_user_keeps_is_not_rounded_behind_his_back() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]> net (float[N,3,6,6] x) => (float[N,4] y)
    <float[4,3,3,3] w1, float[4,4,3,3] w2, float[4,4,3,3] w3>
    { a = Conv(x, w1) b = Conv<pads=[1,1,1,1]>(a, w2) c = Conv(b, w3) p = GlobalAveragePool(c) y = Flatten(p) }
    """
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.normal(0, 1, shape).astype(np.float32), name)
        for name, shape in {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3)}.items()
    )
    model.graph.node[1].name = "mine"
    data = {"x": rng.normal(0, 1, (16, 3, 6, 6)).astype(np.float32)}
    result = graphopt.optimize(model, "quantize{keep=mine,equalize=false}", data=data)
    assert kernels(result.ir)["QLinearConv"] == 2
