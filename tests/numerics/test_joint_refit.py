"""numerics.joint_refit: its gradients against finite differences, and what it reaches against layers fitted one by one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from graphopt_passes.numerics.joint_refit import Pair, _gradients, pair_error, refit_pair
from graphopt_passes.numerics.least_squares import Layer, moments, refit
from graphopt_passes.numerics.quantizer import Array


def _pair(
    rows: int, taps: int, bounds: tuple[float, float], hidden: int = 6, seed: int = 0
) -> tuple[Pair, Layer, Layer]:
    """A pair of twice as many hidden channels as the layers that are returned, which are half of the right ones."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, taps, 5)).astype(np.float32)
    inside = (rng.random((rows, taps)) > 0.2).astype(np.float32)
    first = Layer(rng.normal(size=(2 * hidden, 5)), rng.normal(size=2 * hidden))
    second = Layer(rng.normal(size=(4, 2 * hidden, taps)), rng.normal(size=4))
    h = np.maximum(x @ first.weight.T + first.bias, 0) * inside[:, :, None]
    offset = rng.normal(size=(rows, 4)).astype(np.float32)
    wanted = np.einsum("rth,cht->rc", h, second.weight) + second.bias + offset
    pair = Pair(x, inside, wanted.astype(np.float32), offset, (0.0, math.inf), bounds)
    start = Layer(first.weight[:hidden], first.bias[:hidden])
    return pair, start, Layer(second.weight[:, :hidden].reshape(4, -1), second.bias)


def _by_tap(second: Layer, hidden: int, taps: int) -> Array:
    return second.weight.reshape(4, hidden, taps).transpose(0, 2, 1).reshape(4, -1)


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)])
def test_gradients_are_those_of_the_error(bounds: tuple[float, float]) -> None:
    pair, first, second = _pair(12, 3, bounds)
    values = [first.weight, first.bias, _by_tap(second, 6, 3), second.bias]
    assert pair.offset is not None
    exact = dataclasses.replace(
        pair,
        x=pair.x.astype(np.float64),
        inside=pair.inside.astype(np.float64),
        wanted=pair.wanted.astype(np.float64),
        offset=pair.offset.astype(np.float64),
    )
    found = _gradients(exact, np.arange(12), *values)

    def error(values: list[Array]) -> float:
        h = np.clip(exact.x @ values[0].T + values[1], *exact.first_bounds) * exact.inside[:, :, None]
        p = h.reshape(12, -1) @ values[2].T + values[3] + exact.offset
        return float(np.mean(np.sum((np.clip(p, *bounds) - np.clip(exact.wanted, *bounds)) ** 2, axis=1)))

    for place, gradient in enumerate(found):
        for index in list(np.ndindex(gradient.shape))[:7]:
            ends = []
            for step in (1e-6, -1e-6):
                moved = [value.copy() for value in values]
                moved[place][index] += step
                ends.append(error(moved))
            assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-5)


def test_both_layers_together_do_better_than_the_second_alone() -> None:
    pair, first, second = _pair(2000, 1, (-math.inf, math.inf))
    h = np.maximum(pair.x[:, 0] @ first.weight.T + first.bias, 0) * pair.inside
    assert pair.offset is not None
    alone = refit(moments(h.T, (pair.wanted - pair.offset).T), second.weight)
    best = refit_pair(pair, first, alone, steps=300, rng=np.random.default_rng(0))
    assert pair_error(pair, first, alone) < pair_error(pair, first, second)
    assert pair_error(pair, *best) < 0.8 * pair_error(pair, first, alone)


def test_error_and_columns_agree_with_a_convolution() -> None:
    pair, first, second = _pair(10, 3, (0.0, math.inf))
    h = np.maximum(pair.x @ first.weight.T + first.bias, 0) * pair.inside[:, :, None]
    p = np.einsum("rth,cht->rc", h, second.weight.reshape(4, 6, 3)) + second.bias + pair.offset
    expected = np.mean(np.sum((np.maximum(p, 0) - np.maximum(pair.wanted, 0)) ** 2, axis=1))
    assert pair_error(pair, first, second) == pytest.approx(expected, rel=1e-4)


def test_no_steps_change_nothing() -> None:
    pair, first, second = _pair(10, 3, (0.0, math.inf))
    for old, new in zip(
        (first, second), refit_pair(pair, first, second, steps=0, rng=np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_allclose(new.weight, old.weight, rtol=1e-6)
        np.testing.assert_allclose(new.bias, old.bias, rtol=1e-6)
