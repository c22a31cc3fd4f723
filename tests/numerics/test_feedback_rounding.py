"""numerics.feedback_rounding: against brute force, the published form of GPTQ, and rounding to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.numerics.feedback_rounding import centred, feedback_round, output_error
from graphopt_passes.numerics.quantizer import S4_SYMMETRIC, S8_NARROW, Grid

BITS2 = Grid(-2, 1, symmetric=True)


def inputs(rng: np.random.Generator, count: int, width: int, rank: int) -> np.ndarray:
    mixed = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, width))
    return np.asarray(np.maximum(mixed + 0.2 * rng.standard_normal((count, width)), 0))


def errors(weight: np.ndarray, integers: np.ndarray, scale: np.ndarray, second: np.ndarray) -> np.ndarray:
    return output_error(weight - integers * scale[:, None].astype(np.float64), second)


def nearest(weight: np.ndarray, scale: np.ndarray, grid: Grid) -> np.ndarray:
    return np.asarray(np.clip(np.rint(weight / scale[:, None]), grid.low, grid.high))


def gptq(weight: np.ndarray, second: np.ndarray, scale: np.ndarray, grid: Grid, damping: float) -> np.ndarray:
    """Frantar et al. 2023, algorithm 1, with activation order, without blocks."""
    order = np.argsort(-np.diag(second), kind="stable")
    h = second[np.ix_(order, order)] + damping * np.mean(np.diag(second)) * np.eye(len(second))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w, q = weight[:, order].astype(np.float64), np.zeros(weight.shape)
    for i in range(w.shape[1]):
        q[:, i] = np.clip(np.rint(w[:, i] / scale), grid.low, grid.high)
        w[:, i + 1 :] -= np.outer((w[:, i] - q[:, i] * scale) / upper[i, i], upper[i, i + 1 :])
    result = np.empty_like(q)
    result[:, order] = q
    return result


def test_output_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    x, difference = inputs(rng, 50, 7, 3), rng.standard_normal((4, 7))
    np.testing.assert_allclose(output_error(difference, x.T @ x / 50), ((x @ difference.T) ** 2).mean(axis=0))
    covariance = centred(x.T @ x / 50, x.mean(axis=0))
    np.testing.assert_allclose(output_error(difference, covariance), (x @ difference.T).var(axis=0))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 150), st.sampled_from([S8_NARROW, S4_SYMMETRIC, BITS2]))
def test_never_worse_than_nearest(seed: int, width: int, grid: Grid) -> None:
    rng = np.random.default_rng(seed)
    x = inputs(rng, 30, width, int(rng.integers(1, 4))) * rng.integers(0, 2, width)  # some inputs are dead
    weight, scale = rng.laplace(size=(5, width)), rng.uniform(0.01, 1, 5)
    second = x.T @ x / 30
    integers = feedback_round(weight, second, scale, grid)
    assert integers.dtype == np.int8
    assert integers.min() >= grid.low
    assert integers.max() <= grid.high
    before = errors(weight, nearest(weight, scale, grid), scale, second)
    assert (errors(weight, integers, scale, second) <= before * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("width", [40, 64, 200])
def test_without_descent_it_is_gptq(width: int) -> None:
    rng = np.random.default_rng(1)
    x, weight = inputs(rng, 1000, width, 20), rng.standard_normal((10, width))
    scale = np.abs(weight).max(axis=1) / 7
    second = x.T @ x / 1000
    expected = gptq(weight, second, scale, S4_SYMMETRIC, 0.01)
    found = feedback_round(weight, second, scale, S4_SYMMETRIC, damping=0.01, sweeps=0)
    assert (expected == found).mean() > 0.99  # a tie may go either way, and what follows with it
    ratio = errors(weight, found, scale, second).sum() / errors(weight, expected, scale, second).sum()
    assert ratio == pytest.approx(1, abs=0.03)


def test_close_to_the_best_of_all_integers() -> None:
    rng = np.random.default_rng(2)
    choices = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float64)
    ratios = []
    for _ in range(40):
        x, weight = inputs(rng, 100, 6, 3), rng.uniform(-2, 1, (1, 6))
        second, scale = x.T @ x / 100, np.ones(1)
        best = output_error(weight - choices, second).min()
        ratios.append(
            (
                best,
                *(
                    errors(weight, q, scale, second)[0]
                    for q in (feedback_round(weight, second, scale, BITS2), nearest(weight, scale, BITS2))
                ),
            )
        )
    best_sum, found, before = np.sum(ratios, axis=0)
    assert found <= 1.6 * best_sum
    assert found <= 0.5 * before


def test_descent_lowers_the_error() -> None:
    rng = np.random.default_rng(3)
    x, weight = inputs(rng, 2000, 100, 10), rng.laplace(size=(30, 100))
    scale, second = np.abs(weight).max(axis=1) / 127, x.T @ x / 2000
    totals = [
        errors(weight, feedback_round(weight, second, scale, S8_NARROW, sweeps=n), scale, second).sum()
        for n in (0, 1, 3)
    ]
    assert totals[0] > totals[1] >= totals[2]
    assert totals[1] < 0.5 * errors(weight, nearest(weight, scale, S8_NARROW), scale, second).sum()


@pytest.mark.parametrize("width", [9, 130])
def test_groups_are_rounded_each_on_its_own(width: int) -> None:
    rng = np.random.default_rng(4)
    second = np.stack([(x := inputs(rng, 300, width, 3)).T @ x / 300 for _ in range(4)])
    weight, scale = rng.standard_normal((8, width)), rng.uniform(0.05, 0.2, 8)
    together = feedback_round(weight, second, scale, S4_SYMMETRIC)
    for group in range(4):
        rows = slice(2 * group, 2 * group + 2)
        np.testing.assert_array_equal(
            together[rows], feedback_round(weight[rows], second[group], scale[rows], S4_SYMMETRIC)
        )


def test_dead_and_equal_inputs() -> None:
    weight, scale = np.array([[0.4, 1.4, -1.6]]), np.ones(1)
    assert feedback_round(weight, np.zeros((3, 3)), scale, S8_NARROW).tolist() == [[0, 1, -2]]
    assert feedback_round(weight, np.ones((3, 3)), scale, S8_NARROW).sum() == 0  # only the sum matters, and it is .2
    only = np.diag([1.0, 0, 0])
    assert feedback_round(weight, only, scale, S8_NARROW).tolist() == [[0, 1, -2]]


def test_a_matrix_that_rounding_made_indefinite() -> None:
    second = np.ones((4, 4)) - 1e-3 * np.eye(4)
    integers = feedback_round(np.full((1, 4), 0.3), second, np.ones(1), S8_NARROW, damping=1e-6)
    assert np.isin(integers, [-1, 0, 1, 2]).all()


def test_what_is_not_finite() -> None:
    for weight, second in ((np.full((1, 2), np.nan), np.eye(2)), (np.ones((1, 2)), np.full((2, 2), np.inf))):
        with pytest.raises(ValueError, match="finite"):
            feedback_round(weight, second, np.ones(1), S8_NARROW)
