"""binarize: signs and scales where the outputs bear it, the same in both forms."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Rewriter
from weight_models import error, images, network, outputs, run, weights

from graphopt.ir import emit
from graphopt_passes.reconstruction.linear import linear_layers

SAMPLES, OTHERS = images(60), images(seed=2)


@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_rows_are_signs_times_a_scale(rewriter: Rewriter, levels: str) -> None:
    model = network(rewriter)
    options = f"levels={levels},harm=1000,form=plain"
    result, remarks = run(model, f"binarize{{{options}}}", SAMPLES)
    assert result.modified
    assert f"100.0% of 3,720 weights are {levels}" in remarks
    for layer in linear_layers(model.graph):
        for row in layer.weight().reshape(layer.channels, layer.width):
            sizes = np.unique(np.abs(row))
            assert len(sizes) == 1 or (levels == "ternary" and len(sizes) == 2 and sizes[0] == 0)
    again, _ = run(model, f"binarize{{{options}}}", SAMPLES)
    assert not again.modified


def test_zeros_fit_better(rewriter: Rewriter) -> None:
    original, errors = network(rewriter), []
    for levels in ("binary", "ternary"):
        model = network(rewriter)
        run(model, f"binarize{{levels={levels},harm=1000,form=plain}}", SAMPLES)
        errors.append(error(original, model, OTHERS))
    assert errors[0] > errors[1]


def test_layers_take_more_bases_only_where_they_must(rewriter: Rewriter) -> None:
    original, one, more = network(rewriter), network(rewriter), network(rewriter)
    run(one, "binarize{harm=1000,form=plain}", SAMPLES)
    _, remarks = run(more, "binarize{bases=3,harm=0.001,form=plain}", SAMPLES)
    assert "1 x binary" in remarks
    assert "2 x binary" in remarks
    assert error(original, more, OTHERS) < error(original, one, OTHERS)


def test_only_layers_that_bear_it(rewriter: Rewriter) -> None:
    original, some = network(rewriter), network(rewriter)
    _, remarks = run(some, "binarize{harm=0.001,form=plain}", SAMPLES)
    assert "keeps its weights" in remarks
    assert "harm alone" in remarks
    every = network(rewriter)
    run(every, "binarize{harm=1000,form=plain}", SAMPLES)
    assert error(original, some, OTHERS) < 0.5 * error(original, every, OTHERS)
    result, remarks = run(network(rewriter), "binarize{harm=0}", SAMPLES)
    assert not result.modified
    assert "no layer bears" in remarks


@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_packed_bits_compute_the_same(rewriter: Rewriter, levels: str) -> None:
    plain, packed = network(rewriter), network(rewriter)
    size = len(emit.to_bytes(packed))
    run(plain, f"binarize{{levels={levels},harm=1000,form=plain}}", SAMPLES)
    run(packed, f"binarize{{levels={levels},harm=1000}}", SAMPLES)
    np.testing.assert_array_equal(outputs(plain, OTHERS), outputs(packed, OTHERS))
    assert "wb" not in weights(packed)
    assert len(emit.to_bytes(packed)) < size - weights(plain)["wb"].nbytes / 2
    result, remarks = run(packed, f"binarize{{levels={levels},harm=1000}}", SAMPLES)
    assert not result.modified
    assert "has such weights" in remarks


def test_float16_few_rows_and_zero_weights(rewriter: Rewriter) -> None:
    model = network(rewriter, np.float16)
    _, remarks = run(model, "binarize{harm=1000}", images(3, np.float16))
    assert "fewer calibration rows than inputs" in remarks
    assert np.isfinite(outputs(model, images(9, np.float16))).all()
    model = network(rewriter, factor=0.0)
    run(model, "binarize", SAMPLES)
    assert np.isfinite(outputs(model, SAMPLES)).all()
    result, _ = run(
        rewriter.typed("g (float[n,4] x) => (float[n,4] y) {y = Relu(x)}"), "binarize", np.ones((3, 4), np.float32)
    )
    assert not result.modified
