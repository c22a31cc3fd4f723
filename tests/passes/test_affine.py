"""numerics.affine: compositions against sums written out, and what rounding may lose."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt_passes.numerics.affine import Affine, normalization, per_channel, response, rounded, scaled

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


def linear(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Σ over inputs and taps of (G, O, I, T) · (G, I, T), written out; (G, O)."""
    groups, outputs, inputs, taps = weight.shape
    result = np.zeros((groups, outputs))
    for g, o, i, t in np.ndindex(groups, outputs, inputs, taps):
        result[g, o] += weight[g, o, i, t] * x[g, i, t]
    return result


@given(SIZES, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_compositions_are_linear(sizes: tuple[int, int, int, int], inputs_first: bool, scalar: bool, seed: int) -> None:
    groups, outputs, inputs, _ = sizes
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal(sizes), rng.standard_normal((groups, outputs))
    x = rng.standard_normal((groups, inputs, sizes[3]))
    stored = weight.swapaxes(1, 2) if inputs_first else weight

    def new(factor: np.ndarray) -> np.ndarray:
        result = scaled(stored, factor.swapaxes(1, 2) if inputs_first else factor)
        assert result is not None
        return result.swapaxes(1, 2) if inputs_first else result

    s, t = rng.standard_normal((2, groups, outputs))
    after = linear(new(s[:, :, None, None]), x) + s * bias + t
    np.testing.assert_allclose(after, s * (linear(weight, x) + bias) + t, atol=1e-12)

    s, t = rng.standard_normal((2, 1, 1)) * np.ones((2, groups, inputs)) if scalar else rng.random((2, groups, inputs))
    shift = t[0, 0] if scalar else t.reshape(-1)
    before = (
        linear(new(s[:, None, :, None]), x)
        + bias
        + response(stored, np.asarray(shift), inputs_first).reshape(groups, outputs)
    )
    np.testing.assert_allclose(before, linear(weight, s[..., None] * x + t[..., None]) + bias, atol=1e-12)


def test_a_batch_normalization_is_an_affine_map() -> None:
    x, gamma, beta, mean, variance = np.random.default_rng(0).random((5, 7))
    affine = normalization(gamma, beta, mean, variance, 1e-3)
    np.testing.assert_allclose(
        affine.scale * x + affine.shift, gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta, atol=1e-12
    )
    assert affine.finite
    assert not normalization(gamma, beta, mean, variance - 1, 1e-3).finite


@pytest.mark.parametrize(
    ("scale", "shift", "scales", "shifts"), [([1, 1], [0, 0], False, False), ([1, 2], [0, -1], True, True)]
)
def test_what_a_map_does(scale: list[float], shift: list[float], scales: bool, shifts: bool) -> None:
    affine = Affine(np.array(scale, float), np.array(shift, float))
    assert (affine.scales, affine.shifts, affine.finite) == (scales, shifts, True)


@pytest.mark.parametrize(
    ("shape", "axis", "rank", "expected"),
    [
        ((), -3, 4, ()),
        ((1,), -3, 4, ()),
        ((1, 1, 1, 1), -3, 4, ()),
        ((1, 1, 1, 1, 1), -3, 4, None),
        ((3, 1, 1), -3, 4, (3,)),
        ((1, 3, 1, 1), -3, 4, (3,)),
        ((3,), -3, 4, None),
        ((1, 3), -3, 4, None),
        ((2, 3, 1, 1), -3, 4, None),
        ((3, 1, 3), -3, 4, None),
        ((2, 1, 1), -3, 4, None),
        ((3,), -1, 1, (3,)),
        ((1, 3), -1, 1, None),
        ((1, 3), -1, 2, (3,)),
        ((3, 1), -1, 2, None),
        ((0,), -1, 2, None),
    ],
)
def test_one_number_per_channel(shape: tuple[int, ...], axis: int, rank: int, expected: tuple[int, ...] | None) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    found = per_channel(array, 3, axis, rank)
    assert (None if found is None else found.shape) == expected
    assert found is None or (found.dtype == np.float64 and found.tolist() == array.reshape(expected or ()).tolist())


@pytest.mark.parametrize(
    ("dtype", "weight", "scale", "fits"),
    [
        (np.float16, [60000, 1], [2, 1], False),
        (np.float16, [1e-3, 1], [1e-6, 1], False),
        (np.float16, [1e-3, 1], [1e-2, 1e-2], True),
        (np.float16, [0, 1], [1e-6, 1], True),
        (ml_dtypes.bfloat16, [60000, 1e-3], [2, 1e-6], True),
        (ml_dtypes.bfloat16, [3e38, 1], [2, 1], False),
        (np.float32, [1e38, 1], [10, 1], False),
        (np.float32, [1, np.inf], [1, 1], False),
        (np.float32, [0.3, 1], [1e-43, 1], True),
        (ml_dtypes.bfloat16, [0.3, 1], [1e-39, 1], True),
        (np.float32, [np.nan, 1], [1, 1], False),
        (np.float64, [1e300, 1], [1e5, 1], True),
        (np.float64, [1e300, 1], [1e10, 1], False),
    ],
)
def test_no_more_is_lost_than_by_rounding(dtype: type, weight: list[float], scale: list[float], fits: bool) -> None:
    result = scaled(np.array(weight, dtype).reshape(2, 1), np.array(scale, dtype=np.float64).reshape(2, 1))
    assert (result is not None) == fits
    assert result is None or result.dtype == dtype


def test_a_slice_is_judged_by_its_largest_element() -> None:
    weight = np.array([[1, 1e-3], [1, 1]], np.float16)
    assert scaled(weight, np.array([[1e-2], [1]])) is not None  # 1e-5 is subnormal, but beside 1e-2 it is rounding
    assert scaled(weight, np.array([[1, 1e-6]])) is None  # a column of its own


@pytest.mark.parametrize("shape", [(3, 2**20 + 1), (2**20 + 1, 3)])
def test_large_weights_are_taken_in_pieces(shape: tuple[int, int]) -> None:
    factor = np.array([1.0, 2.0, 4.0]).reshape(tuple(3 if extent == 3 else 1 for extent in shape))
    weight = np.ones(shape, np.float32)
    np.testing.assert_array_equal(scaled(weight, factor), factor * weight)
    spoiled = weight.copy()
    spoiled[-1, -1] = 3e38
    assert scaled(spoiled, factor) is None
    outputs = response(weight.reshape(1, *shape, 1), np.ones(()), inputs_first=False)
    assert outputs.tolist() == [float(shape[1])] * shape[0]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3)])
def test_empty_weights(shape: tuple[int, int]) -> None:
    result = scaled(np.ones(shape, np.float32), np.ones((shape[0], 1)))
    assert result is not None
    assert result.shape == shape
    assert response(np.ones((1, *shape, 1)), np.ones(()), inputs_first=False).tolist() == [shape[1]] * shape[0]


def test_rounding_a_bias() -> None:
    assert rounded(np.array([1e-3, 2]), np.dtype(np.float16)) is not None
    assert rounded(np.array([7e4]), np.dtype(np.float16)) is None
    assert rounded(np.array([np.nan]), np.dtype(np.float32)) is None
