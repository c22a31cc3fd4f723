"""numerics.weight_scales: scales against brute force, dead channels, and biases that would not fit."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_passes.numerics.quantizer import S4_SYMMETRIC, S8_NARROW, S8_SYMMETRIC, Grid, fake_quantize
from graphopt_passes.numerics.weight_scales import MOST_BIAS, fit_bias, least_squares, minmax, rounding_error

RNG = np.random.default_rng(0)
WEIGHT = RNG.laplace(size=(6, 200)).astype(np.float32) * np.exp(RNG.standard_normal((6, 1))).astype(np.float32)


@pytest.mark.parametrize("grid", [S8_NARROW, S8_SYMMETRIC, S4_SYMMETRIC])
def test_minmax_clips_nothing(grid: Grid) -> None:
    scale = minmax(WEIGHT, grid)
    integers = WEIGHT / scale[:, None]
    assert scale.dtype == np.float32
    assert integers.max() <= grid.high + 1e-3
    assert integers.min() >= grid.low - 1e-3
    assert (np.maximum(integers.max(axis=1) - grid.high, grid.low - integers.min(axis=1)) > -1e-3).all()


def test_rounding_error_is_that_of_the_quantizer() -> None:
    scale = 0.6 * minmax(WEIGHT, S4_SYMMETRIC)
    error = fake_quantize(WEIGHT, scale, np.zeros(6, np.int8), S4_SYMMETRIC, axis=0) - WEIGHT
    np.testing.assert_allclose(rounding_error(WEIGHT, scale, S4_SYMMETRIC), (error**2).sum(axis=1), rtol=1e-4)
    h = RNG.random(200).astype(np.float32)
    np.testing.assert_allclose(rounding_error(WEIGHT, scale, S4_SYMMETRIC, h), (error**2 * h).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("grid", [S8_NARROW, S4_SYMMETRIC])
@pytest.mark.parametrize("importance", [None, "inputs", "each"])
def test_least_squares_is_nearly_the_best_scale(grid: Grid, importance: str | None) -> None:
    h = {None: None, "inputs": RNG.random(200) ** 4, "each": RNG.random(WEIGHT.shape) ** 4}[importance]
    largest = minmax(WEIGHT, grid)
    found = rounding_error(WEIGHT, least_squares(WEIGHT, grid, h, smallest=0.3), grid, h)
    all_errors = [rounding_error(WEIGHT, largest * np.float32(f), grid, h) for f in np.linspace(0.3, 1, 701)]
    assert (found <= 1.15 * np.min(all_errors, axis=0)).all()
    assert (found <= rounding_error(WEIGHT, largest, grid, h) * (1 + 1e-5)).all()


def test_large_weights_are_searched_in_pieces() -> None:
    weight = RNG.standard_normal((5, 40_000))
    each = [least_squares(row[None], S8_NARROW)[0] for row in weight]
    np.testing.assert_array_equal(least_squares(weight, S8_NARROW), each)


def test_channels_without_weights_take_the_smallest_scale() -> None:
    weight = WEIGHT.copy()
    weight[[1, 4]] = 0
    for scale in (minmax(weight, S8_NARROW), least_squares(weight, S8_NARROW)):
        assert scale[1] == scale[4]
        assert scale[1] <= minmax(weight, S8_NARROW)[[0, 2, 3, 5]].min()
    assert np.isfinite(minmax(np.zeros((2, 3)), S8_NARROW)).all()
    assert (minmax(np.zeros((2, 3)), S8_NARROW) > 0).all()
    assert minmax(np.zeros((2, 0)), S8_NARROW).shape == (2,)


@pytest.mark.parametrize("input_scale", [0.1, 1e-4, 1e-20])
def test_biases_fit(input_scale: float) -> None:
    scale = np.array([1e-3, 1e-7, 1e-3, 1e-12], np.float32)
    bias = np.array([5.0, 5.0, 1e9, -3.0], np.float32)
    raised = fit_bias(scale, input_scale, bias)
    integers = bias.astype(np.float64) / (np.float64(input_scale) * raised)
    assert raised.dtype == np.float32
    assert (np.abs(integers) <= MOST_BIAS).all()
    needed = (np.abs(bias) / (input_scale * MOST_BIAS) > scale) | (input_scale * scale.astype(float) < 2.0**-126)
    assert (raised[~needed] == scale[~needed]).all()
    assert (
        raised[needed]
        <= np.maximum(np.abs(bias) / (input_scale * MOST_BIAS), 2.0**-126 / input_scale)[needed] * 1.00001
    ).all()
    assert (np.float32(input_scale) * raised >= np.finfo(np.float32).smallest_normal).all()


def test_weights_that_meet_nothing_are_clipped() -> None:
    rng = np.random.default_rng(5)
    weight, h = rng.standard_normal((4, 60)), np.ones(60)
    weight[:, ::10] *= 1000
    h[::10] = 1e-12
    scale, alive = least_squares(weight, S8_NARROW, h), np.delete(weight, np.s_[::10], axis=1)
    assert (scale < 1.5 * minmax(alive, S8_NARROW)).all()
    seen = rounding_error(alive, scale, S8_NARROW)
    assert (seen < 1.5 * rounding_error(alive, minmax(alive, S8_NARROW), S8_NARROW)).all()
