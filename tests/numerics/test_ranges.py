"""numerics.ranges: chosen ranges against brute force on the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_passes.numerics.quantizer import S8_SYMMETRIC, U4, U8, U16, Grid, fake_quantize, parameters
from graphopt_passes.numerics.ranges import METHODS, Distribution, entropy, expected_error, minmax, mse, percentile

rng = np.random.default_rng(0)
BULK = rng.laplace(size=100_000)
SAMPLES = {
    "two-sided": BULK,
    "relu": np.maximum(BULK, 0),
    "relu6": np.clip(5 * BULK, 0, 6),
    "negative": -np.abs(BULK),
    "swish": 2 * BULK / (1 + np.exp(-2 * BULK)),
    "outlier": np.append(BULK / 4, [100.0]),
    "asymmetric": np.maximum(BULK, -0.5),
}


def distribution(x: np.ndarray, bins: int = 2048, slack: float = 0.0) -> Distribution:
    low, high = x.min() - slack, x.max() + slack
    counts, _ = np.histogram(x, bins, (low, high))
    return Distribution(counts.astype(np.float64), low, high, float(x.min()), float(x.max()))


def squared_error(x: np.ndarray, low: float, high: float, grid: Grid) -> float:
    scale, zero_point = parameters(low, high, grid)
    return float(np.mean((fake_quantize(x, scale, zero_point, grid) - x) ** 2))


@pytest.mark.parametrize("grid", [U8, S8_SYMMETRIC, U4], ids=["u8", "s8", "u4"])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("slack", [0.0, 0.7])
def test_the_error_is_what_quantizing_costs(name: str, grid: Grid, slack: float) -> None:
    x = SAMPLES[name]
    found = distribution(x, slack=slack)
    for part in (1.0, 0.7, 0.3):
        low, high = found.bounds[0] * part, found.bounds[1] * part
        predicted = float(expected_error(found, low, high, grid))
        assert predicted == pytest.approx(squared_error(x, low, high, grid), rel=0.1)
    lows, highs = np.linspace(0, found.bounds[0], 5), np.linspace(0, found.bounds[1], 5)
    each = [float(expected_error(found, low, high, grid)) for low, high in zip(lows, highs, strict=True)]
    np.testing.assert_allclose(expected_error(found, lows, highs, grid), each)


@pytest.mark.parametrize("grid", [U8, S8_SYMMETRIC, U4, U16], ids=["u8", "s8", "u4", "u16"])
@pytest.mark.parametrize("name", SAMPLES)
def test_mse_finds_the_best_of_all_ranges(name: str, grid: Grid) -> None:
    x = SAMPLES[name]
    found = distribution(x)
    low, high = found.bounds
    ends = np.linspace(0, 1, 60) ** 2
    best = min(float(expected_error(found, low * bottom, high * ends, grid).min()) for bottom in ends)
    chosen = mse(found, grid)
    assert float(expected_error(found, *chosen, grid)) <= 1.01 * best
    assert squared_error(x, *chosen, grid) <= 1.05 * squared_error(x, low, high, grid)


def test_mse_moves_both_ends() -> None:
    x = np.concatenate([BULK, [-60.0, 80.0]])
    low, high = mse(distribution(x), U4)
    assert -10 < low < -2
    assert 2 < high < 10


@pytest.mark.parametrize("percent", [99.0, 99.9, 100.0])
@pytest.mark.parametrize("name", ["two-sided", "relu", "negative", "asymmetric"])
def test_percentiles_are_those_of_the_samples(name: str, percent: float) -> None:
    x = SAMPLES[name]
    low, high = percentile(distribution(x), U8, percent)
    outside = (100 - percent) / 2
    tolerance = 0.02
    assert low == pytest.approx(min(np.percentile(x, outside), 0), abs=tolerance)
    assert high == pytest.approx(max(np.percentile(x, 100 - outside), 0), abs=tolerance)
    low, high = percentile(distribution(x), S8_SYMMETRIC, percent)
    assert max(-low, high) == pytest.approx(np.percentile(np.abs(x), percent), abs=tolerance)


def divergence(x: np.ndarray, low: float, high: float, levels: int, bins: int) -> float:
    """KL(p, q) straight from its definition: p clipped to the range, q spread over the bins of each level."""
    p, _ = np.histogram(np.clip(x, low, high), bins, (low, high))
    inside, _ = np.histogram(x, bins, (low, high))
    q = np.zeros(bins)
    level = np.minimum(np.arange(bins) * levels // bins, levels - 1)
    for index in range(levels):
        members = (level == index) & (p > 0)
        if members.any():
            q[members] = inside[level == index].sum() / members.sum()
    p, q = p / p.sum(), q / q.sum()
    if (q[p > 0] == 0).any():
        return np.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("name", ["two-sided", "asymmetric"])
def test_entropy_diverges_little(name: str) -> None:
    x = SAMPLES[name]
    low, high = entropy(distribution(x), Grid(0, 63))
    largest = float(np.abs(x).max())
    thresholds = largest * np.linspace(0.04, 1, 60)
    all_found = [divergence(x, max(x.min(), -t), min(x.max(), t), 64, 1024) for t in thresholds]
    assert divergence(x, low, high, 64, 1024) <= 1.3 * min(all_found)


def test_entropy_clips_outliers_and_ignores_zeros() -> None:
    assert entropy(distribution(SAMPLES["outlier"]), U8)[1] < 50
    few, many = np.maximum(BULK, 0), np.concatenate([np.maximum(BULK, 0), np.zeros(10_000_000)])
    assert entropy(distribution(many), U8) == pytest.approx(entropy(distribution(few), U8), rel=0.02)
    assert entropy(distribution(SAMPLES["relu6"]), U8)[1] == pytest.approx(6, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [U8, S8_SYMMETRIC, U16], ids=["u8", "s8", "u16"])
@pytest.mark.parametrize("number", [0.0, 3.0, -2.0])
def test_a_tensor_that_never_varies(method: str, grid: Grid, number: float) -> None:
    counts = np.zeros(16)
    counts[8] = 100
    for low, high in ((number - 1.0, number + 1.0), (number, number)):
        found = Distribution(counts, low, high, number, number)
        chosen = METHODS[method](found, grid)
        assert chosen[0] <= 0 <= chosen[1]
        scale, zero_point = parameters(*chosen, grid)
        result = float(fake_quantize(np.array(number, np.float32), scale, zero_point, grid))
        assert result == pytest.approx(number, abs=0.51 * float(scale))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SAMPLES)
def test_ranges_stay_inside_and_hold_zero(method: str, name: str) -> None:
    found = distribution(SAMPLES[name])
    low, high = METHODS[method](found, U8)
    bottom, top = minmax(found, U8)
    slack = (top - bottom) / 255
    assert bottom - slack <= low <= 0 <= high <= top + slack
    assert METHODS[method](Distribution(np.zeros(8), 0.0, 0.0, 0.0, 0.0), U8) == (0, 0)
