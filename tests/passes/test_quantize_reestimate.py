"""quantize{reestimate=true}: the scales of weights give channels the variance back that clipping and rounding took."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser
from quantized_models import outputs

import graphopt

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,8,8] x) => (float[N,5] y) <float[8,3,3,3] w1, float[8,8,3,3] w2, float[5,8] w3> {
    c = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w2) s = Relu(d)
    p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, w3)
}"""
RNG = np.random.default_rng(3)
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (5, 8)}
# heavy tails, which a range at the 99.9th percentile cuts off
X = {"x": RNG.standard_t(3, size=(96, 3, 8, 8)).astype(np.float32)}


def spread(options: str) -> float:
    """By how much standard deviations of the outputs are off those in float, on average."""
    proto = parser.parse_model(TEXT)
    del proto.graph.initializer[:]
    for name, shape in WEIGHTS.items():
        array = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    common = "prefer=integer,sensitivity=false,keep_heads=false,ranges=percentile-99.9"
    result = graphopt.optimize(proto, f"quantize{{{common},{options}}}", data=X)
    exact, found = outputs(graphopt.load(proto), X)[0], outputs(result.ir, X)[0]
    return float(np.mean(np.abs(np.log(found.std(axis=0) / exact.std(axis=0)))))


def test_variance_comes_back() -> None:
    assert spread("reestimate=true") < 0.7 * spread("reestimate=false")


@pytest.mark.parametrize("target", ["ort-x86", "tensorrt", "qnn", "generic"])
def test_targets_of_all_kinds_stay_valid(target: str) -> None:
    """Those that keep float biases, and those with one scale per weight, which is left alone."""
    assert spread(f"reestimate=true,target={target}") < 1
