"""numerics.joint_refit: its gradients against finite differences, and what it reaches against layers fitted one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

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
    exact = _exact(pair)

    def error(values: list[Array]) -> float:
        h = np.clip(exact.x @ values[0].T + values[1], *exact.first_bounds) * exact.inside[:, :, None]
        return _squared(exact, h.reshape(12, -1) @ values[2].T + values[3])

    _check_gradients(exact, values, error)


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, 6.0)])
def test_gradients_with_a_depthwise_layer_between_are_those_of_the_error(bounds: tuple[float, float]) -> None:
    pair, layers = _chain(12, bounds)
    values = [array for layer in layers for array in layer]
    exact = _exact(pair)

    def error(values: list[Array]) -> float:
        return _squared(exact, _through(exact, [Layer(*values[at : at + 2]) for at in (0, 2, 4)]))

    _check_gradients(exact, values, error)


def test_a_chain_is_improved_and_its_error_is_that_of_its_layers() -> None:
    pair, layers = _chain(2000, (-math.inf, math.inf))
    assert pair_error(pair, layers) == pytest.approx(_squared(pair, _through(pair, layers)), rel=1e-4)
    best = refit_pair(pair, layers, steps=300, rng=np.random.default_rng(0))
    assert [layer.weight.shape for layer in best] == [layer.weight.shape for layer in layers]
    assert pair_error(pair, best) < 0.1 * pair_error(pair, layers)


def _chain(rows: int, bounds: tuple[float, float]) -> tuple[Pair, list[Layer]]:
    """A depthwise layer between two others, all of them somewhat off."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3, 5)).astype(np.float32)
    inside = (rng.random((rows, 3)) > 0.2).astype(np.float32)
    right = [Layer(rng.normal(size=shape), rng.normal(size=shape[0])) for shape in ((6, 5), (6, 3), (4, 6))]
    pair = Pair(x, inside, np.zeros((rows, 4), np.float32), None, (0.0, math.inf), bounds, (0.0, 4.0))
    wanted = _through(pair, right).astype(np.float32)
    off = [Layer(w + 0.2 * rng.normal(size=w.shape), b + 0.2 * rng.normal(size=b.shape)) for w, b in right]
    return dataclasses.replace(pair, wanted=wanted), off


def _through(pair: Pair, layers: list[Layer]) -> Array:
    """(R, C) p of a chain."""
    first, between, last = layers
    h = np.clip(pair.x @ first.weight.T + first.bias, *pair.first_bounds) * pair.inside[:, :, None]
    u = np.clip(np.einsum("rth,ht->rh", h, between.weight) + between.bias, *pair.between_bounds)
    return np.asarray(u @ last.weight.T + last.bias)


def _exact(pair: Pair) -> Pair:
    """The same in float64."""
    arrays = {name: getattr(pair, name) for name in ("x", "inside", "wanted", "offset")}
    return dataclasses.replace(
        pair, **{name: array.astype(np.float64) for name, array in arrays.items() if array is not None}
    )


def _squared(pair: Pair, p: Array) -> float:
    """The error of predictions without the offset."""
    p = p if pair.offset is None else p + pair.offset
    ends = (np.clip(array, *pair.second_bounds) for array in (p, pair.wanted))
    return float(np.mean(np.sum(np.subtract(*ends) ** 2, axis=1)))


def _check_gradients(pair: Pair, values: list[Array], error: Callable[[list[Array]], float]) -> None:
    found = _gradients(pair, np.arange(12), values)
    assert len(found) == len(values)
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
    best = refit_pair(pair, [first, alone], steps=300, rng=np.random.default_rng(0))
    assert pair_error(pair, [first, alone]) < pair_error(pair, [first, second])
    assert pair_error(pair, best) < 0.8 * pair_error(pair, [first, alone])


def test_error_and_columns_agree_with_a_convolution() -> None:
    pair, first, second = _pair(10, 3, (0.0, math.inf))
    h = np.maximum(pair.x @ first.weight.T + first.bias, 0) * pair.inside[:, :, None]
    p = np.einsum("rth,cht->rc", h, second.weight.reshape(4, 6, 3)) + second.bias + pair.offset
    expected = np.mean(np.sum((np.maximum(p, 0) - np.maximum(pair.wanted, 0)) ** 2, axis=1))
    assert pair_error(pair, [first, second]) == pytest.approx(expected, rel=1e-4)


def test_no_steps_change_nothing() -> None:
    pair, first, second = _pair(10, 3, (0.0, math.inf))
    for old, new in zip(
        (first, second), refit_pair(pair, [first, second], steps=0, rng=np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_allclose(new.weight, old.weight, rtol=1e-6)
        np.testing.assert_allclose(new.bias, old.bias, rtol=1e-6)
