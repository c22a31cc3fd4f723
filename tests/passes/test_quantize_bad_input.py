"""quantize with bad samples and bad weights: each has one clear outcome, and nothing is left behind."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from quantized_models import counts, outputs, sqnr

import graphopt
from graphopt.cli.main import main
from graphopt.errors import DataError

if TYPE_CHECKING:
    from conftest import Rewriter

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(0, 1, (16, 2, 5, 5)).astype(np.float32)
W1, W, M = (RANDOM.normal(0, 0.5, shape).astype(np.float32) for shape in ((4, 2, 3, 3), (4, 4, 1, 1), (4, 4)))
B = np.ones(4, np.float32)
WEIGHTS = {"w1": W1, "w": W, "b": B, "m": M}


def network(
    rewriter: Rewriter, middle: str = "d = Relu(c)", weights: Mapping[str, np.ndarray] | None = None
) -> ir.Model:
    text = f"""agraph (float[n,2,5,5] x) => (float[n,4] y) {{
        c = Conv(x, w1, b) {middle} e = Conv(d, w) p = GlobalAveragePool(e) f = Flatten(p) y = Gemm(f, m)
    }}"""
    return rewriter.model(text, {**WEIGHTS, **(weights or {})})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, r"give them with -d FILE\.npz"),
        ({"x": X[:, :, :4]}, r"samples of shape \(2, 4, 5\), but the model reads \(2, 5, 5\)"),
        ({"x": X.astype(np.complex64)}, "samples of type complex64"),
        ({"x": np.where(X.max() - 0.01 < X, np.nan, X)}, "holds NaN or infinity"),
        ({"x": X, "labels": np.arange(15)}, r"16 samples, but labels of shape \(15,\)"),
        ({"x": X.astype(object)}, r"holds Python objects \(a pickle\)"),
        ({"x": X.astype(str)}, "samples of type <U32"),
        ({"x": X.reshape(16, -1)}, r"an array of shape \(16, 50\)"),
        ({"x": np.where(X.max() - 0.01 < X, -np.inf, X)}, "holds NaN or infinity"),
        ({"z": X, "q": X}, "no array for the input 'x'"),
        ({"x": X[:0]}, "there are no samples"),
    ],
)
def test_samples_that_do_not_fit(
    rewriter: Rewriter,
    arrays: dict[str, np.ndarray] | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ir.save(network(rewriter), tmp_path / "m.onnx")
    command = ["run", str(tmp_path / "m.onnx"), "-p", "quantize", "-o", str(tmp_path / "q.onnx")]
    if arrays is not None:
        np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
        command += ["-d", str(tmp_path / "d.npz")]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("graphopt: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"m.onnx", *(["d.npz"] if arrays else [])})


def test_a_pickle_is_no_archive(rewriter: Rewriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(network(rewriter), tmp_path / "m.onnx")
    (tmp_path / "d.npz").write_bytes(pickle.dumps({"x": X}))
    command = ["run", str(tmp_path / "m.onnx"), "-p", "quantize", "-d", str(tmp_path / "d.npz")]
    assert main([*command, "-o", str(tmp_path / "q.onnx")]) == 1
    assert re.search(r"d\.npz is no readable \.npz file", capsys.readouterr().err)
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int64])
def test_numbers_of_other_types_are_fed_as_float(rewriter: Rewriter, kind: type) -> None:
    model = network(rewriter)
    exact: np.ndarray = (2 * X).astype(kind)
    result = graphopt.optimize(model, "quantize", data={"x": exact})
    feeds = {"x": exact.astype(np.float32)}
    assert sqnr(outputs(model, feeds)[0], outputs(result.ir, feeds)[0]) > 25
    assert any("integers" in text for text in result.warnings) == (kind is np.int64)


def test_random_samples_are_warned_of(rewriter: Rewriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(network(rewriter), tmp_path / "m.onnx")
    target = tmp_path / "q.onnx"
    assert main(["run", str(tmp_path / "m.onnx"), "-p", "quantize", "-d", "random:8", "-o", str(target)]) == 0
    assert "RANDOM NUMBERS instead of samples" in capsys.readouterr().out
    assert counts(ir.load(target))["QuantizeLinear"] > 1


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_samples_than_asked(rewriter: Rewriter, count: int) -> None:
    model = network(rewriter)
    result = graphopt.optimize(model, "quantize", data={"x": X[:count]}, calibration_samples=100)
    assert any(f"100 samples were asked for, but there are only {count}" in text for text in result.warnings)
    assert sqnr(outputs(model, {"x": X[:count]})[0], outputs(result.ir, {"x": X[:count]})[0]) > 25


@pytest.mark.parametrize("middle", ["d = Log(c)", "h = Mul(c, c) i = Mul(h, h) g = Mul(i, i) d = Exp(g)"])
def test_activations_that_are_not_finite(rewriter: Rewriter, middle: str) -> None:
    with pytest.raises(DataError, match=r"value '[df]' holds NaN or infinity on the calibration samples"):
        graphopt.optimize(network(rewriter, middle), "quantize", data={"x": 3 * X})


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "node"), [("w1", "Conv 'c'"), ("b", "Conv 'c'"), ("w", "Conv 'e'")])
def test_weights_that_are_not_finite(rewriter: Rewriter, name: str, node: str, number: float) -> None:
    weight = WEIGHTS[name].copy()
    weight.flat[0] = number
    with pytest.raises(DataError, match=f"holds NaN or infinity.*the weight or bias of {node} does too"):
        graphopt.optimize(network(rewriter, weights={name: weight}), "quantize{mode=static}", data={"x": X})


def test_weights_that_are_not_finite_where_nothing_is_measured(rewriter: Rewriter) -> None:
    weight = M.copy()
    weight[1, 2] = np.inf
    model = network(rewriter, weights={"m": weight})
    result = graphopt.optimize(model, "quantize", data={"x": X})
    assert any("its weight or bias is not finite" in remark.what for remark in result.report.passes[-1].remarks)
    found, exact = outputs(result.ir, {"x": X})[0], outputs(model, {"x": X})[0]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(exact))


@pytest.mark.parametrize("number", [0, 1, -2.5])
@pytest.mark.parametrize(
    "middle", ["d = Relu(c)", "h = Relu(c) i = Neg(h) d = Sum(h, i)", "h = Conv(c, w, away) d = Relu(h)"]
)
def test_tensors_that_never_vary(rewriter: Rewriter, number: float, middle: str) -> None:
    away = {"away": np.full(4, -1000, np.float32)} if "away" in middle else {}
    model = network(rewriter, middle, away)
    feeds = {"x": np.full_like(X, number)}
    result = graphopt.optimize(model, "quantize", data=feeds)
    exact, found = outputs(model, feeds)[0], outputs(result.ir, feeds)[0]
    np.testing.assert_allclose(found, exact, atol=0.02 * max(1.0, float(np.abs(exact).max())))


@pytest.mark.parametrize("name", ["w1", "w", "m"])
def test_weights_that_are_zero(rewriter: Rewriter, name: str) -> None:
    for weight in (
        np.zeros_like(WEIGHTS[name]),
        WEIGHTS[name] * (np.arange(4).reshape(-1, *[1] * (WEIGHTS[name].ndim - 1)) > 1),
    ):
        model = network(rewriter, weights={name: weight.astype(np.float32)})
        result = graphopt.optimize(model, "quantize", data={"x": X})
        exact, found = outputs(model, {"x": X})[0], outputs(result.ir, {"x": X})[0]
        np.testing.assert_allclose(found, exact, atol=0.01 * max(1.0, float(np.abs(exact).max())))


def test_a_bias_beyond_what_the_products_hold(rewriter: Rewriter) -> None:
    model = network(rewriter, weights={"w1": W1 * np.float32(1e-9), "b": np.array([100, -100, 1, 0], np.float32)})
    result = graphopt.optimize(model, "quantize{equalize=false}", data={"x": X})
    biases = [v.const_value.numpy() for v in result.ir.graph.initializers.values() if v.const_value is not None]
    assert max(int(np.abs(array.astype(np.int64)).max()) for array in biases if array.dtype == np.int32) <= 2**30
    assert sqnr(outputs(model, {"x": X})[0], outputs(result.ir, {"x": X})[0]) > 25
