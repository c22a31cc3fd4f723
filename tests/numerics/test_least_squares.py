"""numerics.least_squares and relu_refit against numpy.linalg.lstsq and against what they minimize."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt_passes.numerics.least_squares import Layer, Ridge, cross_moments, moments, penalty_of, refit
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.numerics.relu_refit import flat_targets, penalized_targets, refit_through


def _problem(seed: int = 0, inputs: int = 7, outputs: int = 4, rows: int = 90) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(inputs, inputs)) @ rng.normal(size=(inputs, rows)) + rng.normal(size=(inputs, 1))
    prior = rng.normal(size=(outputs, inputs))
    return x, prior @ x + rng.normal(size=(outputs, rows)) + 3, prior


def _lstsq(x: Array, t: Array, prior: Array, penalty: float) -> Layer:
    """The stacked problem: rows of data, then one row per weight for the ridge; the intercept goes free."""
    rows, inputs = x.shape[1], len(x)
    data = np.column_stack([x.T, np.ones(rows)]) / math.sqrt(rows)
    ridge = math.sqrt(penalty) * np.eye(inputs, inputs + 1)
    right = np.concatenate([t.T / math.sqrt(rows), math.sqrt(penalty) * prior.T])
    solution = np.linalg.lstsq(np.concatenate([data, ridge]), right, rcond=None)[0]
    return Layer(solution[:-1].T, solution[-1])


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_refit_is_the_stacked_least_squares_problem(ridge: float) -> None:
    x, t, prior = _problem()
    found = moments(x, t)
    layer, expected = refit(found, prior, ridge), _lstsq(x, t, prior, penalty_of(found.covariance, ridge))
    np.testing.assert_allclose(layer.weight, expected.weight, rtol=1e-8)
    np.testing.assert_allclose(layer.bias, expected.bias, rtol=1e-8)


def test_what_never_varies_keeps_its_weights() -> None:
    x, t, prior = _problem()
    x[2] = 5.0
    layer = refit(moments(x, t), prior)
    np.testing.assert_allclose(layer.weight[:, 2], prior[:, 2])
    still = refit(moments(np.ones_like(x), t), prior)
    np.testing.assert_allclose(still.weight, prior)
    np.testing.assert_allclose(still.weight @ np.ones(len(x)) + still.bias, t.mean(axis=1))


def test_error_is_that_of_the_residual() -> None:
    x, t, prior = _problem()
    residual = t - prior @ x
    np.testing.assert_allclose(moments(x, t).error(prior), residual.var(axis=1), rtol=1e-9)


def test_moments_of_new_targets_and_of_a_choice_of_inputs() -> None:
    x, t, _ = _problem()
    found, other = moments(x, t), t**2
    cross, mean = cross_moments(x, other, found.input_mean)
    np.testing.assert_allclose(cross, moments(x, other).cross)
    np.testing.assert_allclose(mean, other.mean(axis=1))
    columns = np.array([4, 1])
    few, direct = found.selected(columns), moments(x[columns], t)
    for name in ("covariance", "cross", "input_mean", "target_mean", "variance"):
        np.testing.assert_allclose(getattr(few, name), getattr(direct, name))


def test_single_precision_rows_with_a_large_mean() -> None:
    x, t, prior = _problem(rows=400)
    x += 1000.0
    single = refit(moments(x.astype(np.float32), t.astype(np.float32)), prior)
    np.testing.assert_allclose(single.weight, refit(moments(x, t), prior).weight, atol=2e-3)


def test_rows_must_agree() -> None:
    with pytest.raises(ValueError, match="3 rows of inputs and 2"):
        moments(np.ones((2, 3)), np.ones((1, 2)))


def test_flat_targets_follow_the_prediction_where_the_activation_is_flat() -> None:
    prediction = np.array([-2.0, 1.0, 1.0, 9.0, 5.0])
    wanted = np.array([-1.0, -1.0, 2.0, 7.0, 7.0])
    np.testing.assert_array_equal(flat_targets(prediction, wanted), [-2, 0, 2, 7, 7])
    np.testing.assert_array_equal(flat_targets(prediction, wanted, 0, 6), [-2, 0, 2, 9, 6])
    np.testing.assert_array_equal(flat_targets(prediction, wanted, -math.inf), wanted)


@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0])
def test_penalized_targets_are_the_best_there_are(penalty: float) -> None:
    rng = np.random.default_rng(0)
    prediction, wanted = rng.normal(size=50), rng.normal(size=50)
    grid = np.linspace(-6, 6, 12001)[:, None]

    def cost(z: Array) -> Array:
        return (np.maximum(z, 0) - np.maximum(wanted, 0)) ** 2 + penalty * (z - prediction) ** 2

    found = cost(penalized_targets(prediction, wanted, penalty))
    best = cost(grid).min(axis=0)
    assert np.all(found <= best + 1e-12)
    np.testing.assert_allclose(found, best, atol=1e-5)


@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("high", [math.inf, 1.5])
def test_refits_through_an_activation_lower_the_error_behind_it(with_offset: bool, high: float) -> None:
    rng = np.random.default_rng(3)
    full = rng.normal(size=(12, 600))
    weights = rng.normal(size=(5, 12))
    offset = rng.normal(size=(5, 600)) if with_offset else None
    z = weights @ full + (0 if offset is None else offset)
    x, prior = full[:7], weights[:, :7]
    found = moments(x, z if offset is None else z - offset)
    ridge = Ridge(found.covariance, found.input_mean)

    def output(layer: Layer) -> Array:
        return np.asarray(layer.weight @ x + layer.bias[:, None] + (0 if offset is None else offset))

    def hinge(layer: Layer) -> float:
        p = output(layer)
        fit = float(np.sum((flat_targets(p, z, 0, high) - p) ** 2)) / x.shape[1]
        return float(fit + ridge.penalty * np.sum((layer.weight - prior) ** 2))

    def behind(layer: Layer) -> float:
        return float(np.mean((np.clip(output(layer), 0, high) - np.clip(z, 0, high)) ** 2))

    plain = refit(found, prior)
    errors = [hinge(plain)]
    for rounds in range(1, 5):
        layer = refit_through(
            ridge, x, z, prior, lambda p, w, _: flat_targets(p, w, 0, high), offset=offset, rounds=rounds
        )
        errors.append(hinge(layer))
    assert errors == sorted(errors, reverse=True)
    assert behind(layer) < 0.99 * behind(plain)


def test_no_rounds_is_the_plain_fit() -> None:
    x, t, prior = _problem()
    found = moments(x, t)
    layer = refit_through(Ridge(found.covariance, found.input_mean), x, t, prior, lambda p, w, _: p, rounds=0)
    np.testing.assert_allclose(layer.weight, refit(found, prior).weight)
