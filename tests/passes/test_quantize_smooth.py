"""quantize{smooth=...}: done where the outputs of the quantized model come closer, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser
from quantized_models import outputs, sqnr

import graphopt

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8,16] x) => (float[N,8,16] y) <float[16] scale, float[16] bias, float[16,16] w, float[16,16] v> {
    n = LayerNormalization(x, scale, bias) h = MatMul(n, w) r = Relu(h) y = MatMul(r, v)
}"""
X = {"x": np.random.default_rng(7).normal(size=(48, 8, 16)).astype(np.float32)}


RESIDUAL = TEXT.replace("y = MatMul(r, v)", "m = MatMul(r, v) y = Add(m, n)")
"""The normalization is read by a residual branch, too, and cannot be divided for nothing."""


def model(outlier: float, text: str = TEXT) -> onnx.ModelProto:
    """A normalization with one channel `outlier` times as large as the others, which the weight behind makes up for."""
    rng = np.random.default_rng(6)
    scale, w = np.ones(16, np.float32), rng.normal(size=(16, 16)).astype(np.float32)
    scale[3] *= outlier
    w[3] /= outlier
    arrays = {
        "scale": scale,
        "bias": np.zeros(16, np.float32),
        "w": w,
        "v": rng.normal(size=(16, 16)).astype(np.float32),
    }
    proto = parser.parse_model(text)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def run(outlier: float, options: str, text: str = TEXT) -> tuple[float, str]:
    """How near the outputs are, and what was said."""
    source = model(outlier, text)
    result = graphopt.optimize(source, f"quantize{{{options},sensitivity=false}}", data=X)
    exact, found = outputs(graphopt.load(source), X)[0], outputs(result.ir, X)[0]
    return sqnr(exact, found), "\n".join(map(str, result.report.passes[-1].remarks))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_large_channel_is_made_smaller(mode: str) -> None:
    never, _ = run(40.0, f"mode={mode},smooth=never")
    auto, said = run(40.0, f"mode={mode}")
    assert auto > never + 6
    assert "divided its channels by factors" in said


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_nothing_is_done_without_a_gain(mode: str) -> None:
    _, said = run(1.0, f"mode={mode},equalize=false")
    assert "divided its channels" not in said


def test_a_mul_divides_what_a_residual_branch_reads() -> None:
    never, _ = run(40.0, "mode=dynamic,smooth=never", RESIDUAL)
    auto, said = run(40.0, "mode=dynamic", RESIDUAL)
    assert auto > never + 6
    assert "Mul 'n_mul_node'" in said
    assert "divided its channels by factors" in said
    _, said = run(40.0, "mode=static", RESIDUAL)
    assert "mul_node" not in said


def test_no_mul_is_left_that_does_not_pay() -> None:
    result = graphopt.optimize(model(1.0, RESIDUAL), "quantize{mode=dynamic,prefer=integer}", data=X)
    alone = graphopt.optimize(model(1.0, RESIDUAL), "quantize{mode=dynamic,smooth=never,prefer=integer}", data=X)
    assert [node.op_type for node in result.ir.graph] == [node.op_type for node in alone.ir.graph]
    assert set(result.ir.graph.initializers) == set(alone.ir.graph.initializers)


def test_a_mul_must_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = iter((30.0, 30.9))
    monkeypatch.setattr("graphopt.pipeline.evidence.Evidence.sqnr", lambda *_: next(worth))
    _, said = run(40.0, "mode=dynamic", RESIDUAL)
    assert "SmoothQuant: left out: outputs come to 30.9 dB with it, to 30.0 without" in said


def test_a_trial_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = iter((30.0, 30.1))
    monkeypatch.setattr("graphopt.pipeline.evidence.Evidence.sqnr", lambda *_: next(worth))
    _, said = run(40.0, "mode=dynamic")
    assert "SmoothQuant: left out: outputs come to 30.1 dB with it, to 30.0 without" in said
    _, said = run(40.0, "mode=dynamic,smooth=always")
    assert "divided its channels by factors" in said
