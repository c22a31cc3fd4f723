"""Bases of attention heads: exact with all dimensions, and against what random bases reach with fewer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.numerics.head_ranks import ScoreBases, ValueBases, by_head
from graphopt_passes.numerics.hidden_units import UnitBases
from graphopt_passes.numerics.quadratic import Quadratic


def moments(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    rows = rng.normal(size=(count, size, size)) * np.exp(-np.arange(size))[:, None]
    return np.asarray(rows @ rows.transpose(0, 2, 1))


def score_error(queries: np.ndarray, keys: np.ndarray, through: np.ndarray) -> float:
    """E |qᵀ (I - through) k|² over heads, relative."""
    missing = np.eye(queries.shape[1]) - through
    error = np.einsum("hij,hjk,hkl,hil->", queries, missing, keys, missing)
    return float(error / np.einsum("hij,hji->", queries, keys))


def test_all_dimensions_are_exact() -> None:
    rng = np.random.default_rng(0)
    scores = ScoreBases(moments(rng, 2, 4), moments(rng, 2, 4)).fit(4)
    np.testing.assert_allclose(scores.dense, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-7)
    target = rng.normal(size=(5, 8))
    gram = rng.normal(size=(8, 8))
    values = ValueBases(Quadratic.of(target, gram @ gram.T), 2).fit(4)
    np.testing.assert_allclose(values.dense, target, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_error_of_scores_is_what_it_says_and_the_least(rank: int) -> None:
    rng = np.random.default_rng(rank)
    queries, keys = moments(rng, 2, 4), moments(rng, 2, 4)
    best = ScoreBases(queries, keys).fit(rank)
    assert best.first.shape == best.second.shape == (2, rank, 4)
    assert score_error(queries, keys, best.dense) == pytest.approx(best.error)
    for _ in range(20):
        first = best.first + 0.01 * rng.normal(size=best.first.shape)
        second = best.second + 0.01 * rng.normal(size=best.second.shape)
        assert score_error(queries, keys, first.transpose(0, 2, 1) @ second) >= best.error


def test_values_share_out_what_heads_have_in_common() -> None:
    """Heads that say the same can make up for each other's lost dimensions: behind refitted weights, not one by one."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 400))
    rows[4:] = rows[:4] + 0.05 * rng.normal(size=(4, 400))
    quadratic = Quadratic.of(rng.normal(size=(5, 8)), rows @ rows.T / 400)
    found = ValueBases(quadratic, 2).fit(2)
    assert found.error == pytest.approx(quadratic.error(found.dense))
    assert found.error < 0.02
    alone = ValueBases(Quadratic.of(quadratic.target, np.eye(8)), 2).fit(2)
    assert found.error < 0.2 * quadratic.error(alone.dense)


def test_singular_moments_give_finite_bases() -> None:
    nothing, some = np.zeros((2, 3, 3)), np.tile(np.diag([1.0, 0, 0]), (2, 1, 1))
    for queries, keys in ((nothing, nothing), (nothing, some), (some, some)):
        found = ScoreBases(queries, keys).fit(2)
        assert np.isfinite(found.dense).all()
        assert np.isfinite(found.first).all()
    found = ValueBases(Quadratic.of(np.zeros((4, 6)), np.zeros((6, 6))), 2).fit(1)
    assert np.isfinite(found.dense).all()


def test_blocks_on_the_diagonal() -> None:
    whole = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(by_head(whole, 2), [[[0, 1], [4, 5]], [[10, 11], [14, 15]]])


def test_hidden_units_that_others_make_up_for_go_first() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 300))
    rows[4] = rows[0] - rows[1]
    rows[5] = 0.5 * rows[2]
    quadratic = Quadratic.of(rng.normal(size=(3, 6)), rows @ rows.T / 300)
    fits = UnitBases(quadratic)
    assert fits.fit(4).error < 1e-5
    errors = [fits.fit(count).error for count in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    best = fits.fit(3)
    subsets = [list(one) for one in itertools.combinations(range(6), 3)]
    least = min(quadratic.error(restricted(quadratic, one)) for one in subsets)
    assert least * (1 - 1e-6) <= best.error < 2 * least
    np.testing.assert_allclose(best.second @ best.first[0], best.dense)


def restricted(quadratic: Quadratic, kept: list[int]) -> np.ndarray:
    """The best map that reads only the inputs `kept`, by lstsq."""
    assert quadratic.gram is not None
    root = np.linalg.cholesky(quadratic.gram + 1e-9 * np.eye(6))
    found = np.zeros_like(quadratic.target)
    found[:, kept] = np.linalg.lstsq(root.T[:, kept], root.T @ quadratic.target.T, rcond=None)[0].T
    return found
