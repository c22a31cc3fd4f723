"""numerics.affine_correction: against numpy.linalg.lstsq on the samples."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_passes.numerics.affine_correction import affine_correction, bias_correction, layer_correction

RNG = np.random.default_rng(0)
X = RNG.random((500, 6))
X_HAT = X + 0.1 * RNG.standard_normal((500, 6)) + 0.05
WEIGHT = RNG.standard_normal((4, 6))
ROUNDED = np.rint(WEIGHT * 4) / 4


def least_squares(y: np.ndarray, y_hat: np.ndarray) -> np.ndarray:
    columns = [
        np.linalg.lstsq(np.stack([b, np.ones_like(b)], 1), a, rcond=None)[0] for a, b in zip(y.T, y_hat.T, strict=True)
    ]
    return np.array(columns).T


def test_a_layer_on_other_inputs() -> None:
    found = layer_correction(
        WEIGHT, ROUNDED, X_HAT.T @ X_HAT / 500, X_HAT.mean(axis=0), X.T @ X_HAT / 500, X.mean(axis=0)
    )
    np.testing.assert_allclose(found, least_squares(X @ WEIGHT.T, X_HAT @ ROUNDED.T), rtol=1e-6)


def test_a_layer_on_the_same_inputs() -> None:
    found = layer_correction(WEIGHT, ROUNDED, X.T @ X / 500, X.mean(axis=0))
    np.testing.assert_allclose(found, least_squares(X @ WEIGHT.T, X @ ROUNDED.T), rtol=1e-6)
    np.testing.assert_allclose(
        layer_correction(WEIGHT, WEIGHT, X.T @ X / 500, X.mean(axis=0)), [[1] * 4, [0] * 4], atol=1e-9
    )


def test_groups() -> None:
    parts = [X[:, :3], X[:, 3:]]
    second, mean = np.stack([p.T @ p / 500 for p in parts]), np.stack([p.mean(axis=0) for p in parts])
    found = layer_correction(WEIGHT[:, :3], ROUNDED[:, :3], second, mean)
    for group, part in enumerate(parts):
        rows = slice(2 * group, 2 * group + 2)
        expected = least_squares(part @ WEIGHT[rows, :3].T, part @ ROUNDED[rows, :3].T)
        np.testing.assert_allclose(np.array(found)[:, rows], expected, rtol=1e-6)


@pytest.mark.parametrize(("covariance", "variance"), [(1.0, 0.0), (-1.0, 1.0), (0.0, 0.0)])
def test_outputs_that_do_not_vary_only_get_a_bias(covariance: float, variance: float) -> None:
    found = affine_correction(np.ones(1), np.zeros(1), np.full(1, covariance), np.full(1, variance))
    np.testing.assert_array_equal(found, bias_correction(np.ones(1), np.zeros(1)))
    np.testing.assert_array_equal(found, [[1], [1]])


def test_gains_are_bounded() -> None:
    found = affine_correction(np.zeros(2), np.ones(2), np.array([9.0, 1.0]), np.array([1.0, 9.0]))
    assert found.gain.tolist() == [1.25, 0.8]
    assert found.shift.tolist() == [-1.25, -0.8]
