"""sparsify: as many zeros as asked for, where they may be, with less harm than plain magnitude."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import Rewriter
from weight_models import error, images, network, outputs, run, weights

from graphopt.errors import GraphoptError
from graphopt.ir import emit
from graphopt.lift import lift
from graphopt.runtime.session import Session
from graphopt_passes.reconstruction.linear import linear_layers

SAMPLES, MANY, OTHERS = images(), images(150), images(seed=2)


def zeros(model: ir.Model) -> float:
    arrays = [layer.weight() for layer in linear_layers(model.graph)]
    return sum(np.count_nonzero(array == 0) for array in arrays) / sum(array.size for array in arrays)


@pytest.mark.parametrize("spread", ["harm", "even"])
@pytest.mark.parametrize("samples", [None, SAMPLES], ids=["alone", "samples"])
def test_as_many_zeros_as_asked_for(rewriter: Rewriter, spread: str, samples: np.ndarray | None) -> None:
    model = network(rewriter)
    result, remarks = run(model, f"sparsify{{sparsity=0.6,spread={spread}}}", samples)
    assert result.modified
    assert zeros(model) == pytest.approx(0.6, abs=0.01)
    assert "deflated" in remarks
    shares = [np.mean(layer.weight() == 0) for layer in linear_layers(model.graph)]
    assert (max(shares) - min(shares) > 0.1) == (spread == "harm")
    again, _ = run(model, f"sparsify{{sparsity=0.6,spread={spread}}}", samples)
    assert not again.modified


def test_patterns_run_along_input_channels(rewriter: Rewriter) -> None:
    model = network(rewriter)
    run(model, "sparsify{pattern=2:4}", SAMPLES)
    kept = weights(model)["wb"] != 0  # (16, 16, 3, 3)
    assert kept.reshape(16, 4, 4, 3, 3).sum(axis=2).max() == 2
    assert (weights(model)["wm"].T != 0).reshape(40, 4, 4).sum(axis=2).max() == 2
    result, remarks = run(model, "sparsify{pattern=2:4}", SAMPLES)
    assert not result.modified
    assert "as sparse as it should be" in remarks


def test_surgery_and_measured_harm_are_better(rewriter: Rewriter) -> None:
    errors = {}
    original = network(rewriter)
    for options in ("criterion=magnitude,spread=even", "spread=even", "spread=harm"):
        model = network(rewriter)
        run(model, f"sparsify{{sparsity=0.6,{options}}}", MANY)
        errors[options] = error(original, model, OTHERS)
    model = network(rewriter)
    run(model, "sparsify{sparsity=0.6,spread=even}")
    assert errors["spread=even"] < 0.8 * error(original, model, OTHERS)
    assert errors["spread=even"] < errors["criterion=magnitude,spread=even"]
    assert errors["spread=harm"] < errors["spread=even"]


def test_sparse_initializers_where_they_are_smaller(rewriter: Rewriter) -> None:
    dense, sparse = network(rewriter), network(rewriter)
    run(dense, "sparsify{sparsity=0.9,spread=even}", SAMPLES)
    _, remarks = run(sparse, "sparsify{sparsity=0.9,spread=even,form=sparse}", SAMPLES)
    data = emit.to_bytes(sparse)
    assert len(data) < len(emit.to_bytes(dense))
    proto = onnx.load_model_from_string(data)
    assert {one.values.name for one in proto.graph.sparse_initializer} >= {"wb", "wm"}
    np.testing.assert_array_equal(outputs(lift(proto).model, OTHERS), outputs(dense, OTHERS))
    np.testing.assert_array_equal(Session(sparse).run({"x": OTHERS})["y"], Session(dense).run({"x": OTHERS})["y"])
    model = network(rewriter)
    _, remarks = run(model, "sparsify{sparsity=0.5,spread=even,form=sparse}", SAMPLES)
    assert "indices would take more" in remarks


def test_float16_few_rows_zero_weights_and_constant_samples(rewriter: Rewriter) -> None:
    model = network(rewriter, np.float16)
    _, remarks = run(model, "sparsify", images(3, np.float16))
    assert "fewer calibration rows than inputs" in remarks
    assert np.isfinite(outputs(model, images(9, np.float16))).all()
    assert zeros(model) == pytest.approx(0.5, abs=0.01)
    model = network(rewriter)
    run(model, "sparsify", np.zeros_like(SAMPLES))
    assert np.isfinite(outputs(model, SAMPLES)).all()
    result, remarks = run(network(rewriter, factor=0.0), "sparsify", SAMPLES)
    assert not result.modified
    assert "no layer has weights to set to zero" in remarks


def test_options_that_make_no_sense(rewriter: Rewriter) -> None:
    for text in ("sparsify{pattern=4:2}", "sparsify{pattern=2}", "sparsify{sparsity=1.5}"):
        with pytest.raises(GraphoptError):
            run(network(rewriter), text)
