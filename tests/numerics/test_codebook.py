"""numerics.codebook: against exhaustive search and numpy's least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.numerics.codebook import Coded, codebooks, entries, harm, k_means, refit, share
from graphopt_passes.numerics.feedback_rounding import feedback_choose

RNG = np.random.default_rng(3)


def moments(width: int, groups: int = 1) -> np.ndarray:
    x = np.maximum(RNG.normal(size=(groups, width, 60)) + RNG.normal(size=(groups, 1, 60)), 0)
    return x @ x.swapaxes(1, 2) / 60 + 1e-3 * np.eye(width)


def spread(numbers: np.ndarray, weight: np.ndarray, centres: np.ndarray) -> float:
    return float((weight * np.square(numbers[:, None] - centres).min(axis=1)).sum())


@pytest.mark.parametrize("values", [1, 2, 3])
def test_k_means_finds_the_best_cut(values: int) -> None:
    numbers, weight = RNG.normal(size=9), RNG.uniform(0.1, 2, 9)
    order = np.argsort(numbers)
    best = np.inf
    for cut in itertools.combinations(range(1, 9), values - 1):
        parts = np.split(order, list(cut))
        centres = np.array([np.average(numbers[part], weights=weight[part]) for part in parts])
        best = min(best, spread(numbers, weight, centres))
    found = k_means(numbers, weight, values)
    assert np.all(np.diff(found) > 0)
    assert spread(numbers, weight, found) == pytest.approx(best, rel=1e-4)  # weights are lifted a little off zero


def test_k_means_of_many_numbers_is_near_that_of_uniform_density() -> None:
    numbers = np.linspace(0, 1, 5000)  # the best centres are the middles of equal stretches
    found = k_means(numbers, np.ones(5000), 8)
    np.testing.assert_allclose(found, (np.arange(8) + 0.5) / 8, atol=2e-3)


def test_k_means_without_choice() -> None:
    np.testing.assert_array_equal(k_means(np.array([2.0, 1.0, 2.0]), np.ones(3), 4), [1, 2, 2, 2])
    np.testing.assert_array_equal(k_means(np.zeros(5), np.zeros(5), 2), [0, 0])
    assert np.isfinite(k_means(np.array([1.0, 2.0, 4.0]), np.zeros(3), 2)).all()


@pytest.mark.parametrize("shared", [False, True])
def test_refit_is_least_squares(shared: bool) -> None:
    second, weight = moments(7, groups=2), RNG.normal(size=(6, 7))
    choice = RNG.integers(0, 3, (6, 7))
    choice[:, :3] = [0, 1, 2]
    start = RNG.normal(size=(1 if shared else 6, 3))
    fitted = refit(Coded(start, np.eye(3), choice), weight, second)
    factors = np.repeat(np.linalg.cholesky(second), 3, axis=0)  # |(w - ŵ) L|²
    designs = np.stack([np.eye(3)[row].T @ factor for row, factor in zip(choice, factors, strict=True)])
    wanted = np.stack([row @ factor for row, factor in zip(weight, factors, strict=True)])
    if shared:
        right = np.linalg.lstsq(np.concatenate(list(designs), axis=1).T, wanted.reshape(-1))[0][None]
    else:
        right = np.stack([np.linalg.lstsq(a.T, b)[0] for a, b in zip(designs, wanted, strict=True)])
    np.testing.assert_allclose(fitted.parameters, right, rtol=1e-6)


def test_an_entry_that_nothing_takes_stays() -> None:
    coded = Coded(np.array([[1.0, 5.0, -1.0]]), np.eye(3), np.array([[0, 2, 0]]))
    fitted = refit(coded, np.array([[2.0, -3.0, 4.0]]), None)
    np.testing.assert_allclose(fitted.parameters, [[3, 5, -3]])


def test_feedback_choice_is_near_the_best_of_all() -> None:
    second, weight = moments(6), RNG.normal(size=(20, 6))
    books = codebooks(weight, second, 3, shared=False)
    coded = share(weight, second, books, rounds=1)
    every = np.array(list(itertools.product(range(3), repeat=6)))
    best = [
        min(float(d @ second[0] @ d) for d in row - book[every])
        for row, book in zip(weight, coded.codebooks, strict=True)
    ]
    nearest = [row - book[np.abs(row[:, None] - book).argmin(axis=1)] for row, book in zip(weight, books, strict=True)]
    plain = sum(float(d @ second[0] @ d) for d in nearest)
    found = harm(weight, coded.weight, second)
    assert np.all(found >= np.array(best) - 1e-9)
    assert found.sum() < 0.5 * plain + 0.5 * sum(best)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_sharing_lowers_the_harm_and_keeps_its_promise(shared: bool, alone: bool) -> None:
    second, weight = moments(30, groups=2), RNG.laplace(size=(8, 30))
    given = None if alone else second
    start = codebooks(weight, given, 4, shared=shared)
    coded = share(weight, given, start)
    assert coded.codebooks.shape == (1 if shared else 8, 4)
    numbers = coded.weight.reshape(1, -1) if shared else coded.weight
    assert max(len(np.unique(row)) for row in numbers) <= 4
    once = share(weight, given, start, rounds=0)
    assert harm(weight, coded.weight, given).sum() <= harm(weight, once.weight, given).sum()


def test_signed_scales_are_their_pattern() -> None:
    second, weight = moments(12), RNG.normal(size=(3, 12))
    pattern = np.array(list(itertools.product([-1, 1], repeat=2)))
    coded = share(weight, second, np.abs(RNG.normal(size=(3, 2))), pattern)
    signs = pattern[coded.choice]  # (M, K, 2)
    np.testing.assert_allclose(coded.weight, np.einsum("mkb,mb->mk", signs, coded.parameters))
    again = refit(coded, weight, second)
    assert harm(weight, again.weight, second).sum() <= harm(weight, coded.weight, second).sum() * (1 + 1e-9)


def test_entries() -> None:
    choice = np.array([[0, 1], [1, 1]])
    np.testing.assert_array_equal(entries(np.array([[5.0, 6.0]]), choice), [[5, 6], [6, 6]])
    np.testing.assert_array_equal(entries(np.array([[5.0, 6.0], [7.0, 8.0]]), choice), [[5, 6], [8, 8]])


def test_only_allowed_numbers_are_chosen_and_infinities_refused() -> None:
    second, weight = moments(9), RNG.normal(size=(4, 9))
    found = feedback_choose(weight, second, lambda x: np.sign(x) * 0.5)
    assert set(np.unique(found)) <= {-0.5, 0.0, 0.5}
    with pytest.raises(ValueError, match="not finite"):
        feedback_choose(np.full((4, 9), np.inf), second, np.sign)
