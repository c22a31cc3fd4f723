"""cluster-weights: few numbers per codebook, the same in both forms, better with samples than without."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Rewriter
from hypothesis import given
from hypothesis import strategies as st
from weight_models import error, images, named, network, outputs, run, weights

from graphopt.ir import emit
from graphopt_passes.reconstruction.linear import linear_layers
from graphopt_passes.weights.packing import digits_table, pack, per_byte

SAMPLES, OTHERS = images(), images(seed=2)


@given(st.integers(2, 256), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_packed_numbers_come_back(entries: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, entries, count)
    packed, table = pack(numbers, entries), digits_table(entries)
    np.testing.assert_array_equal(table[packed].reshape(-1)[:count], numbers)
    assert packed.dtype == np.uint8
    assert len(packed) == -(-count // per_byte(entries))


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("samples", [None, SAMPLES], ids=["alone", "samples"])
def test_every_codebook_has_few_numbers(rewriter: Rewriter, per: str, samples: np.ndarray | None) -> None:
    original, model = network(rewriter), network(rewriter)
    result, _ = run(model, f"cluster-weights{{values=8,per={per},form=plain}}", samples)
    assert result.modified
    for layer in linear_layers(model.graph):
        weight = layer.weight().reshape(layer.channels, layer.width)
        rows = weight if per == "channel" else weight.reshape(1, -1)
        assert max(len(np.unique(row)) for row in rows) <= 8
    assert error(original, model, OTHERS) > 1e-6
    assert samples is None or error(original, model, OTHERS) < 0.5


def test_samples_help(rewriter: Rewriter) -> None:
    original, alone, fitted = network(rewriter), network(rewriter), network(rewriter)
    run(alone, "cluster-weights{values=4,form=plain}")
    run(fitted, "cluster-weights{values=4,form=plain}", images(200))
    assert error(original, fitted, OTHERS) < 0.7 * error(original, alone, OTHERS)


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("values", [3, 16, 200])
def test_both_forms_compute_the_same(rewriter: Rewriter, per: str, values: int) -> None:
    plain, packed = network(rewriter), network(rewriter)
    run(plain, f"cluster-weights{{values={values},per={per},form=plain}}")
    _, remarks = run(packed, f"cluster-weights{{values={values},per={per}}}")
    np.testing.assert_array_equal(outputs(plain, SAMPLES), outputs(packed, SAMPLES))
    assert "too small for a table to pay" in remarks or values == 200


def test_packed_files_are_smaller(rewriter: Rewriter) -> None:
    model = network(rewriter)
    before = len(emit.to_bytes(model))
    weight = weights(model)["wb"].nbytes
    _, remarks = run(model, "cluster-weights")
    assert len(emit.to_bytes(model)) < before - weight / 2
    assert "deflated" in remarks
    assert "wb" not in weights(model)


def test_a_second_run_has_nothing_to_do(rewriter: Rewriter) -> None:
    for form in ("plain", "gather"):
        model = network(rewriter)
        run(model, f"cluster-weights{{values=5,form={form}}}", SAMPLES)
        before = emit.to_bytes(model)
        result, remarks = run(model, f"cluster-weights{{values=5,form={form}}}", SAMPLES)
        assert not result.modified
        assert emit.to_bytes(model) == before
        assert "no more than 5 numbers" in remarks


def test_excluded_and_shared_weights_stay(rewriter: Rewriter) -> None:
    text = "g (float[n,4] x) => (float[n,4] y) {h = MatMul(x, w) i = MatMul(h, w) j = Gemm(i, u) y = Gemm(j, v)}"
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in ("w", "u", "v")}
    model = named(rewriter.typed(text, tensors))
    samples = rng.normal(size=(60, 4)).astype(np.float32)
    result, remarks = run(model, "cluster-weights{values=2,form=plain}", samples, exclude="y")
    assert result.modified
    found = weights(model)
    for name, array in tensors.items():
        assert np.array_equal(found[name], array) == (name in ("w", "v"))
    assert "other nodes read its weight" in remarks


def test_float16_and_fewer_rows_than_inputs(rewriter: Rewriter) -> None:
    original, model = network(rewriter, np.float16), network(rewriter, np.float16)
    few = images(3, np.float16)
    _, remarks = run(model, "cluster-weights{values=8}", few)
    assert "fewer calibration rows than inputs" in remarks
    found = outputs(model, few)
    assert found.dtype == np.float16
    assert np.isfinite(found).all()
    assert error(original, model, images(20, np.float16, seed=5)) < 0.5


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_constant_samples_and_zero_weights(rewriter: Rewriter, factor: float) -> None:
    model = network(rewriter, factor=factor)
    result, remarks = run(model, "cluster-weights{values=4,form=plain}", np.zeros_like(SAMPLES))
    assert np.isfinite(outputs(model, SAMPLES)).all()
    assert remarks
    assert result.modified == (factor > 0)


def test_nothing_to_do(rewriter: Rewriter) -> None:
    result, remarks = run(rewriter.typed("g (float[n,4] x) => (float[n,4] y) {y = Relu(x)}"), "cluster-weights")
    assert not result.modified
    assert "no layer has weights to share" in remarks
