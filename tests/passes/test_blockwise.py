from __future__ import annotations

import numpy as np
import pytest

from graphopt_passes.numerics.blockwise import dequantize, quantize, ranges, spread, sums
from graphopt_passes.numerics.quantizer import S4_SYMMETRIC, S8_SYMMETRIC, U4, U8, Grid, parameters

GRIDS = (U4, S4_SYMMETRIC, U8, S8_SYMMETRIC)


def matrix(rows: int = 5, columns: int = 37) -> np.ndarray:
    return np.random.default_rng(0).standard_t(3, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_integers_are_the_nearest_of_the_grid(grid: Grid) -> None:
    weight = matrix()
    scale, zero_point = ranges(weight, 16, grid)
    assert scale.shape == zero_point.shape == (5, 3)
    integers = quantize(weight, scale, zero_point, 16, grid)
    candidates = np.arange(grid.low, grid.high + 1)
    steps, zeros = (spread(array.astype(np.float32), 16, 37)[..., None] for array in (scale, zero_point))
    distance = np.abs((candidates - zeros) * steps - weight[..., None])
    chosen = np.abs(dequantize(integers, scale, zero_point, 16) - weight)
    np.testing.assert_allclose(chosen, distance.min(axis=-1), atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_range_is_never_worse_than_the_full_one(grid: Grid) -> None:
    weight = matrix(columns=64)
    blocks = weight.reshape(5, 4, 16)
    full = parameters(blocks.min(axis=-1), blocks.max(axis=-1), grid)
    errors = []
    for scale, zero_point in (ranges(weight, 16, grid), full):
        integers = quantize(weight, scale, zero_point, 16, grid)
        errors.append(sums(weight, scale, zero_point, integers, 16)[1])
        expected = np.square(weight - dequantize(integers, scale, zero_point, 16).astype(np.float64)).sum()
        assert errors[-1] == pytest.approx(expected)
    assert errors[0] <= errors[1]
    assert errors[0] < 0.98 * errors[1] or grid.steps > 32


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(7, 33)
    whole = ranges(weight, 16, U4)
    monkeypatch.setattr("graphopt_passes.numerics.blockwise._CHUNK", 70)
    for piece, expected in zip(ranges(weight, 16, U4), whole, strict=True):
        np.testing.assert_array_equal(piece, expected)
    np.testing.assert_array_equal(quantize(weight, *whole, 16, U4).shape, weight.shape)


def test_zeros_and_infinities() -> None:
    scale, zero_point = ranges(np.zeros((2, 16), np.float32), 16, U4)
    assert (scale > 0).all()
    assert not dequantize(quantize(np.zeros((2, 16)), scale, zero_point, 16, U4), scale, zero_point, 16).any()
    with pytest.raises(ValueError, match="not finite"):
        ranges(np.full((1, 16), np.nan, np.float32), 16, U4)
