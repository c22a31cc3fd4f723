"""numerics.sparse_support and numerics.shares: against least squares and exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.numerics.shares import shares
from graphopt_passes.numerics.sparse_support import (
    Sparsity,
    alternate,
    chosen,
    cost,
    fit_support,
    magnitude,
    surgery,
)

RNG = np.random.default_rng(11)
BOUNDS = [Sparsity(0.5), Sparsity(0.75), Sparsity(pattern=(2, 4)), Sparsity(pattern=(1, 3))]


def moments(width: int, factors: int = 8) -> np.ndarray:
    mixed = RNG.normal(size=(400, factors)) @ RNG.normal(size=(factors, width))
    x = np.maximum(mixed + 0.3 * RNG.normal(size=(400, width)), 0)
    x -= x.mean(axis=0)
    found = x.T @ x / 400
    return np.asarray(found + 1e-3 * np.trace(found) / width * np.eye(width))


def least_squares(weight: np.ndarray, second: np.ndarray, kept: np.ndarray) -> np.ndarray:
    factor = np.linalg.cholesky(second)
    found = np.zeros_like(weight)
    for row, own, result in zip(weight, kept, found, strict=True):
        result[own] = np.linalg.lstsq(factor[own].T, row @ factor)[0]
    return found


def test_a_fit_on_a_support_is_least_squares() -> None:
    second, weight = moments(20), RNG.normal(size=(6, 20))
    kept = RNG.random((6, 20)) < 0.5
    kept[0] = False
    kept[1] = True
    right = least_squares(weight, second, kept)
    np.testing.assert_allclose(fit_support(weight, second, kept), right, atol=1e-4)
    np.testing.assert_allclose(fit_support(weight, second, kept, RNG.normal(size=(6, 20))), right, atol=1e-4)
    np.testing.assert_array_equal(fit_support(weight, None, kept), np.where(kept, weight, 0))


@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("width", [24, 70])
def test_every_choice_keeps_its_bound(bound: Sparsity, width: int) -> None:
    second, weight = moments(width), RNG.laplace(size=(5, width))
    kept, fitted = surgery(weight, second, bound)
    supports = [magnitude(weight, second, bound), kept, fitted != 0, alternate(weight, second, bound, fitted)]
    supports.append(chosen(weight, second, bound)[1] != 0)
    for support in supports:
        if bound.pattern is None:
            assert (~support).mean() >= bound.share - 0.02
        else:
            n, m = bound.pattern
            padded = np.pad(support, ((0, 0), (0, -width % m)))
            assert padded.reshape(5, -1, m).sum(axis=2).max() <= n


def test_surgery_is_the_published_sweep() -> None:
    """Frantar & Alistarh 2023, algorithm 1, for one block: every update with the inverse of what is left."""
    second, weight, bound = moments(12), RNG.laplace(size=(4, 12)), Sparsity(0.5)
    kept, found = surgery(weight, second, bound)
    expected = weight.copy()
    for j in range(12):
        inverse = np.linalg.inv(second[j:, j:])
        gone = np.where(kept[:, j], 0, expected[:, j])
        expected[:, j:] -= np.outer(gone / inverse[0, 0], inverse[0])
    np.testing.assert_allclose(found, np.where(kept, expected, 0), atol=1e-9)
    saliency = np.square(weight) / np.array([np.linalg.inv(second[j:, j:])[0, 0] for j in range(12)])
    assert saliency[kept].min() >= saliency[~kept].max()


def test_choices_that_know_the_inputs_are_better_and_alternating_is_best() -> None:
    costs = np.zeros(4)
    for _ in range(5):
        second, weight, bound = moments(40), RNG.laplace(size=(6, 40)), Sparsity(0.6)
        start = surgery(weight, second, bound)
        supports = [magnitude(weight, None, bound), start[0]]
        fits = [fit_support(weight, second, one) for one in supports] + [chosen(weight, second, bound)[1], start[1]]
        costs += [cost(one, weight, second).sum() for one in fits]
    by_magnitude, by_surgery, best, unfitted = costs
    assert best < 0.9 * by_surgery < 0.9 * unfitted
    assert best < 0.9 * by_magnitude


def test_chosen_is_near_the_best_of_all_supports() -> None:
    second, weight = moments(8, factors=3), RNG.normal(size=(1, 8))
    kept, fitted = chosen(weight, second, Sparsity(0.5))
    costs = []
    for places in itertools.combinations(range(8), 4):
        every = np.zeros((1, 8), bool)
        every[0, list(places)] = True
        costs.append(float(cost(least_squares(weight, second, every), weight, second).sum()))
    rank = np.searchsorted(np.sort(costs), float(cost(fitted, weight, second).sum()) * (1 - 1e-6))
    assert rank <= 5  # of 70
    assert kept.sum() == 4


def test_degenerate_problems() -> None:
    bound = Sparsity(pattern=(2, 4))
    kept, fitted = chosen(np.zeros((3, 8)), np.eye(8), bound)
    assert kept.sum() == 12
    assert not fitted.any()
    singular = np.zeros((8, 8)) + 1e-3 * np.eye(8)
    assert np.isfinite(chosen(RNG.normal(size=(3, 8)), singular, bound)[1]).all()
    assert not Sparsity(1.0).keep(np.ones((2, 3))).any()
    assert Sparsity(0.0).keep(np.ones((2, 3))).all()


def test_shares_are_the_best_on_convex_curves() -> None:
    grid = np.linspace(0, 1, 6)
    curves = [scale * grid**power for scale, power in ((1.0, 2), (5.0, 2), (0.5, 4))]
    sizes = [10, 40, 20]
    found = shares(curves, grid, sizes, 0.5)
    assert float(np.dot(found, sizes)) == pytest.approx(35)
    harm = sum(np.interp(one, grid, curve) for one, curve in zip(found, curves, strict=True))
    best = min(
        sum(np.interp(one, grid, curve) for one, curve in zip(every, curves, strict=True))
        for every in itertools.product(np.linspace(0, 1, 41), repeat=3)
        if np.dot(every, sizes) >= 35
    )
    assert harm <= best + 1e-9


def test_shares_do_not_stop_in_a_dent() -> None:
    found = shares([np.array([0.0, 3.0, 3.0]), np.array([0.0, 2.0, 4.0])], np.array([0, 0.5, 1]), [10, 10], 0.5)
    np.testing.assert_allclose(found, [1, 0])  # the whole of the first costs 3, half of both 5
