"""Two-stage fits against the optimum where it is known, and against lstsq where one stage is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt_passes.numerics.pointwise_first import PointwiseFirst
from graphopt_passes.numerics.quadratic import Quadratic, root, solve_positive
from graphopt_passes.numerics.two_stage import TwoStage

Array = np.ndarray[Any, Any]

# per scheme: mixed axes of (C, k1, k2), and whether all positions share the first stage
LAYOUTS = {
    "channel": ((0, 1, 2), True),
    "input": ((0,), True),
    "spatial": ((0, 1), True),
    "horizontal": ((0, 2), True),
    "decoupling": ((1, 2), False),
}


def metric(quadratic: Quadratic) -> Array:
    """A root of the metric."""
    assert quadratic.gram is not None
    return np.linalg.cholesky(quadratic.gram)


def problem(outputs: int, kernel: tuple[int, ...], seed: int = 0) -> Quadratic:
    rng = np.random.default_rng(seed)
    width = int(np.prod(kernel))
    decay = np.exp(-4 * np.arange(width) / width)
    rows = rng.permutation(rng.normal(size=(width, width)) * decay[:, None]) @ rng.normal(size=(width, 5 * width))
    return Quadratic.of(rng.normal(size=(outputs, width)), rows @ rows.T / rows.shape[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("outputs", "kernel"), [(5, (4, 3, 3)), (2, (4, 3, 2)), (12, (3, 2, 3))])
def test_exact_at_full_rank(layout: str, outputs: int, kernel: tuple[int, ...]) -> None:
    mixed, shared = LAYOUTS[layout]
    quadratic = problem(outputs, kernel)
    stages = TwoStage(quadratic, kernel, mixed, shared=shared)
    composed = stages.composed(stages.fit(stages.most))
    np.testing.assert_allclose(composed, quadratic.target, atol=1e-6)


def test_decoupling_needs_the_smaller_of_kernel_and_outputs() -> None:
    mixed, shared = LAYOUTS["decoupling"]
    for outputs, expected in ((20, 9), (4, 4)):
        assert TwoStage(problem(outputs, (3, 3, 3)), (3, 3, 3), mixed, shared=shared).most == expected


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_channel_rank_reaches_the_eckart_young_optimum(rank: int) -> None:
    quadratic = problem(6, (4, 2, 2))
    stages = TwoStage(quadratic, (4, 2, 2), (0, 1, 2))
    composed = stages.composed(stages.fit(rank))
    values = np.linalg.svd(quadratic.target @ metric(quadratic), compute_uv=False)
    assert quadratic.error(composed) == pytest.approx(np.sum(values[rank:] ** 2) / np.sum(values**2), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_stage_is_the_least_squares_solution(layout: str) -> None:
    mixed, shared = LAYOUTS[layout]
    kernel = (4, 3, 3)
    quadratic = problem(7, kernel)
    stages = TwoStage(quadratic, kernel, mixed, shared=shared)
    found = stages.fit(2, rounds=0)
    # the dense form of the first stage, one feature per row, with an independent solver in the whitened space
    carried = found.second.shape[2]
    features = []
    for q in range(2):
        for s in range(carried):
            probe = np.zeros_like(found.second)
            probe[0, q, s] = 1
            features.append(stages.composed(type(found)(found.first, probe))[0])
    whitening = metric(quadratic)
    left, right = (np.array(features) @ whitening).T, (quadratic.target @ whitening).T
    best = right - left @ np.linalg.lstsq(left, right, rcond=None)[0]
    assert quadratic.error(stages.composed(found)) == pytest.approx(np.sum(best**2) / np.sum(right**2), rel=1e-5)


@pytest.mark.parametrize("layout", ["input", "spatial", "horizontal", "decoupling"])
def test_alternation_converges_to_a_stationary_point(layout: str) -> None:
    mixed, shared = LAYOUTS[layout]
    quadratic = problem(7, (4, 3, 3))
    stages = TwoStage(quadratic, (4, 3, 3), mixed, shared=shared)
    errors = [quadratic.error(stages.composed(stages.fit(2, rounds=rounds, steps=40))) for rounds in (0, 1, 4, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0]
    found = stages.fit(2, rounds=60, steps=40)
    rng = np.random.default_rng(1)
    for _ in range(20):  # no small step in any direction does better
        step = 1e-3 * rng.normal(size=found.first.shape) * np.abs(found.first).mean()
        moved = stages.fit(2, rounds=0, start=found.first + step)
        assert quadratic.error(stages.composed(moved)) >= errors[-1] * (1 - 1e-3)


def test_tucker_core_is_the_best_of_its_rank() -> None:
    quadratic = problem(7, (4, 3, 3))
    stages = TwoStage(quadratic, (4, 3, 3), (0,))
    free, bounded = stages.fit(2, rounds=0), stages.fit(2, rounds=0, inner=3)
    assert bounded.third is not None
    assert bounded.third.shape == (7, 3)
    assert bounded.second.shape == (3, 2, 9)
    # Eckart-Young on what the features explain
    gap = stages.composed(free) @ metric(quadratic)
    lost = np.sum(np.linalg.svd(gap, compute_uv=False)[3:] ** 2) / quadratic.energy
    expected = quadratic.error(stages.composed(free)) + lost
    assert quadratic.error(stages.composed(bounded)) == pytest.approx(expected, rel=1e-5)


def test_rank_deficient_weights_are_recognized_and_reached_without_data() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 4 * 9))
    quadratic = Quadratic.of(target.astype(np.float32))
    stages = TwoStage(quadratic, (4, 3, 3), (0, 1, 2))
    assert stages.rank() == 3
    assert quadratic.error(stages.composed(stages.fit(3))) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_metric_is_the_identity(layout: str) -> None:
    mixed, shared = LAYOUTS[layout]
    target = np.random.default_rng(0).normal(size=(7, 36))
    for inner in (None, 3) if layout == "input" else (None,):
        plain, explicit = (
            TwoStage(Quadratic.of(target, gram), (4, 3, 3), mixed, shared=shared) for gram in (None, np.eye(36))
        )
        found = [one.composed(one.fit(2, inner=inner, rounds=0)) for one in (plain, explicit)]
        np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["zero gram", "singular gram", "zero weights", "infinite gram"])
def test_degenerate_problems_give_finite_fits(layout: str, kind: str) -> None:
    mixed, shared = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    target, gram = rng.normal(size=(5, 36)), np.zeros((36, 36))
    if kind == "singular gram":
        rows = rng.normal(size=(36, 3))
        gram = rows @ rows.T
    elif kind == "zero weights":
        target, gram = np.zeros_like(target), np.eye(36)
    elif kind == "infinite gram":
        gram = np.full((36, 36), np.inf)
    quadratic = Quadratic.of(target, gram)
    stages = TwoStage(quadratic, (4, 3, 3), mixed, shared=shared)
    composed = stages.composed(stages.fit(2, rounds=2))
    assert np.isfinite(composed).all()
    assert 0 <= quadratic.error(composed) <= 1 + 1e-9


def test_pointwise_first_is_exact_at_the_smaller_of_kernel_and_channels() -> None:
    for kernel, most in (((4, 3, 3), 4), ((12, 3, 3), 9)):
        quadratic = problem(5, kernel)
        fits = PointwiseFirst(quadratic, kernel[0])
        assert fits.most == most
        np.testing.assert_allclose(fits.composed(*fits.fit(most)), quadratic.target, atol=1e-5)


def test_pointwise_first_starts_at_the_optimum_of_white_inputs_and_improves_on_others() -> None:
    white = Quadratic.of(np.random.default_rng(0).normal(size=(5, 36)))
    fits = PointwiseFirst(white, 4)
    values = np.linalg.svd(white.target.reshape(5, 4, 9), compute_uv=False)
    expected = np.sum(values[:, 2:] ** 2) / np.sum(values**2)
    assert white.error(fits.composed(*fits.fit(2, rounds=0))) == pytest.approx(expected, rel=1e-6)
    coloured = problem(5, (4, 3, 3))
    fits = PointwiseFirst(coloured, 4)
    errors = [coloured.error(fits.composed(*fits.fit(2, rounds=rounds))) for rounds in (0, 1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0]


def test_pointwise_first_solves_each_factor_as_lstsq_does() -> None:
    quadratic = problem(3, (4, 3, 3))
    fits = PointwiseFirst(quadratic, 4)
    pointwise, depthwise = fits.fit(2, rounds=1)  # ends with the depthwise solve
    whitening = metric(quadratic)
    for output in range(3):
        columns = []
        for t in range(2):
            for p in range(9):
                columns.append(np.outer(pointwise[output, t], np.eye(9)[p]).reshape(-1) @ whitening)
        wanted = quadratic.target[output] @ whitening
        solution = np.linalg.lstsq(np.array(columns).T, wanted, rcond=None)[0]
        np.testing.assert_allclose(depthwise[output].reshape(-1), solution, rtol=1e-4, atol=1e-6)


def test_roots_and_solutions_of_singular_stacks_are_finite() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 2))
    stack = np.stack([rows @ rows.T, np.zeros((6, 6)), np.eye(6)])
    roots = root(stack)
    np.testing.assert_allclose(roots @ roots.transpose(0, 2, 1), stack, atol=1e-8)
    assert np.isfinite(np.linalg.inv(roots)).all()
    inside = stack[0] @ rng.normal(size=(6, 1))
    np.testing.assert_allclose(stack[0] @ solve_positive(stack[0], inside), inside, atol=1e-6)
    assert not solve_positive(stack[1], np.zeros((6, 1))).any()
