"""numerics.elimination against refits from scratch and against brute force over all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.numerics.elimination import Reader, eliminate
from graphopt_passes.numerics.least_squares import moments, penalty_of
from graphopt_passes.numerics.quantizer import Array


def _reader(seed: int, units: int = 5, size: int = 2, fixed: int = 1, outputs: int = 3, weight: float = 1.0) -> Reader:
    rng = np.random.default_rng(seed)
    width = units * size + fixed
    x = rng.normal(size=(width, width)) @ rng.normal(size=(width, 200)) + 1
    prior = rng.normal(size=(outputs, width))
    t = prior @ x + 0.3 * rng.normal(size=(outputs, 200))
    columns = rng.permutation(width)[: units * size].reshape(units, size)
    return Reader(moments(x, t), prior, columns, weight)


def _objective(reader: Reader, gone: tuple[int, ...], ridge: float = 1e-3) -> float:
    """min over W with the columns of `gone` at zero of E|t - Wx|² + λ|W - W0|², by a solve of its own."""
    found, prior = reader.found, reader.prior
    penalty = penalty_of(found.covariance, ridge)
    kept = np.setdiff1d(np.arange(prior.shape[1]), reader.columns[list(gone)].reshape(-1))
    gram = found.covariance[np.ix_(kept, kept)] + penalty * np.eye(len(kept))
    right = found.cross[:, kept] + penalty * prior[:, kept]
    weight = np.zeros_like(prior)
    weight[:, kept] = np.linalg.solve(gram, right.T).T
    return reader.weight * float(found.error(weight).sum() + penalty * np.sum((weight - prior) ** 2))


def _harm(readers: list[Reader], gone: tuple[int, ...]) -> float:
    return sum(_objective(reader, gone) - _objective(reader, ()) for reader in readers)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_running_sum_is_the_exact_harm_of_what_went(size: int) -> None:
    readers = [_reader(0, size=size), _reader(1, size=3, fixed=0, weight=0.4)]
    found = eliminate(readers)
    for gone in range(1, 5):
        chosen = tuple(int(unit) for unit in found.order[:gone])
        assert found.errors[gone] == pytest.approx(_harm(readers, chosen), rel=1e-8)
    assert found.errors[0] == 0
    assert np.isinf(found.errors[5])


def test_each_step_takes_the_least_harmful_unit() -> None:
    readers = [_reader(4), _reader(5)]
    found = eliminate(readers)
    gone: tuple[int, ...] = ()
    for unit in found.order[:4]:
        left = [other for other in range(5) if other not in gone]
        best = min(left, key=lambda other: _harm(readers, (*gone, other)))
        assert unit == best
        gone = (*gone, int(unit))


def test_the_first_unit_is_the_best_choice_of_one_and_the_last_steps_are_near_the_best_of_all() -> None:
    readers = [_reader(7, units=6)]
    found = eliminate(readers)
    best: list[float] = [
        min(_harm(readers, gone) for gone in itertools.combinations(range(6), count)) for count in range(1, 6)
    ]
    assert found.errors[1] == pytest.approx(best[0], rel=1e-8)
    assert np.all(found.errors[1:6] >= np.array(best) * (1 - 1e-9))
    assert found.errors[3] < 2 * best[2]


def test_several_at_once_cost_what_they_cost_together() -> None:
    readers = [_reader(2, units=8)]
    found = eliminate(readers, at_once=0.5, fewest=2)
    for gone in (4, 6):
        assert found.errors[gone] == pytest.approx(_harm(readers, tuple(int(u) for u in found.order[:gone])), rel=1e-8)
    assert found.errors[2] == pytest.approx(found.errors[4] / 2)


def test_units_to_keep_stay() -> None:
    found = eliminate([_reader(3)], keep=[1, 4])
    assert set(found.kept(2)) == {1, 4}
    assert np.isinf(found.curve()[1])
    assert np.isfinite(found.curve()[2])


def test_a_constant_unit_goes_first_and_costs_only_its_ridge() -> None:
    rng = np.random.default_rng(0)
    x: Array = rng.normal(size=(4, 100))
    x[2] = 3.0
    prior = rng.normal(size=(2, 4))
    found = eliminate([Reader(moments(x, prior @ x), prior, np.arange(4)[:, None])])
    assert found.order[0] == 2
    assert found.errors[1] < 1e-2 * found.errors[2]


def test_readers_must_agree() -> None:
    with pytest.raises(ValueError, match="agree"):
        eliminate([_reader(0), _reader(0, units=4)])
