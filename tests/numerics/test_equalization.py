"""numerics.equalization: equal ranges, bounded factors, and predicted noise against noise that is measured."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt_passes.numerics.equalization import (
    Channels,
    Noise,
    best_amplification,
    best_factors,
    chain,
    cross_layer,
    smooth,
)
from graphopt_passes.numerics.quantizer import S8_NARROW, U8, fake_quantize, parameters
from graphopt_passes.numerics.weight_scales import minmax

RNG = np.random.default_rng(0)


def test_both_sides_get_proportional_ranges() -> None:
    produced, consumed = RNG.uniform(0.5, 3, 8), RNG.uniform(0.5, 3, 8)
    s = cross_layer(produced, consumed)
    ratios = (produced / s) / (consumed * s)
    np.testing.assert_allclose(ratios, ratios[0])
    assert np.log(s).mean() == pytest.approx(0)


@pytest.mark.parametrize(("alpha", "even"), [(0.0, "weight"), (1.0, "activation")])
def test_the_ends_of_smoothing(alpha: float, even: str) -> None:
    activation, weight = RNG.uniform(0.1, 3, 8), RNG.uniform(0.1, 3, 8)
    s = smooth(activation, weight, alpha)
    result = activation / s if even == "activation" else weight * s
    np.testing.assert_allclose(result, result[0])


@pytest.mark.parametrize("dead", [0.0, np.inf, np.nan])
def test_dead_channels_keep_their_numbers(dead: float) -> None:
    activation, weight = np.array([1.0, dead, 3, 4]), np.array([1.0, 2, dead, 4])
    s = smooth(activation, weight, 0.5)
    assert s[[1, 2]].tolist() == [1, 1]
    assert smooth(np.zeros(3), np.ones(3), 0.5).tolist() == [1, 1, 1]


def test_factors_stay_within_their_ratio() -> None:
    s = smooth(np.array([1e-9, 1.0, 2.0]), np.ones(3), 1.0, ratio=16)
    assert s.max() / s.min() == pytest.approx(16)
    assert s[2] / s[1] == pytest.approx(2)  # among large channels nothing changes


def test_a_chain_converges() -> None:
    weights = [
        RNG.random((1, 6, 4)) * np.exp(RNG.standard_normal((1, 6, 1))),
        RNG.random((6, 1, 1)) * np.exp(RNG.standard_normal((6, 1, 1))),  # depthwise
        RNG.random((1, 5, 6)),
    ]
    factors = chain(weights)
    rows = weights[0].max(axis=2)[0] / factors[0]
    middle = weights[1].reshape(6) * factors[0] / factors[1]
    columns = weights[2].max(axis=1)[0] * factors[1]
    for a, b in ((rows, middle), (middle, columns)):
        np.testing.assert_allclose(a / b, (a / b)[0], rtol=5e-3)


def measured_noise(x: np.ndarray, weight: np.ndarray, s: np.ndarray) -> float:
    """Noise over signal of a layer y = W x, quantized with the factors s, averaged over outputs."""
    data, rows = x / s, weight * s
    scaled = fake_quantize(data, *parameters(data.min(), data.max(), U8), U8)
    rounded = fake_quantize(rows, minmax(rows, S8_NARROW), np.zeros(len(rows), np.int8), S8_NARROW, axis=0)
    y = x @ weight.T
    return float((((scaled @ rounded.T - y) ** 2).mean(axis=0) / (y**2).mean(axis=0)).mean())


def layer(spread: float) -> tuple[np.ndarray, np.ndarray, Channels]:
    x = np.maximum(RNG.standard_normal((4000, 24)), -0.1) * np.exp(spread * RNG.standard_normal(24))
    weight = RNG.standard_normal((16, 24))
    second = (x**2).mean(axis=0)
    return x, weight, Channels(x.min(axis=0), x.max(axis=0), [weight.reshape(1, 16, 24, 1)], second)


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_noise_is_predicted(spread: float, alpha: float) -> None:
    x, weight, channels = layer(spread)
    s = smooth(channels.largest, channels.read_by, alpha)
    assert Noise(channels, U8, S8_NARROW, bounded=True)(s) == pytest.approx(measured_noise(x, weight, s), rel=0.35)


def test_the_best_factors_lower_measured_noise() -> None:
    x, weight, channels = layer(1.5)
    choice = best_factors(channels, U8, S8_NARROW)
    assert choice.after < 0.5 * choice.before
    assert measured_noise(x, weight, choice.factors) < 0.5 * measured_noise(x, weight, np.ones(24))
    without = best_factors(channels._replace(second=None), U8, S8_NARROW).factors  # E[x²] guessed
    assert measured_noise(x, weight, without) < 0.6 * measured_noise(x, weight, np.ones(24))


def test_channels_that_are_even_are_left_alone() -> None:
    weight = np.ones((1, 3, 4, 9))
    choice = best_factors(Channels(np.zeros(4), np.ones(4), [weight]), U8, S8_NARROW)
    assert choice.factors.tolist() == [1, 1, 1, 1]
    assert choice.before == choice.after


def test_a_depthwise_reader_takes_any_factor() -> None:
    """Its weights have scales of their own: only the activation counts, and it is best when all channels fill it."""
    high = np.array([1.0, 6.0, 2.0])
    channels = Channels(np.zeros(3), high, [RNG.standard_normal((3, 1, 1, 9))])
    choice = best_factors(channels, U8, S8_NARROW)
    result = high / choice.factors
    assert result.max() / result.min() < 2
    assert choice.after < choice.before


def test_room_for_data_that_nobody_has_seen() -> None:
    """Channels that all end where the range ends are clipped on other data."""
    channels = Channels(np.zeros(2), np.array([1.0, 2.0]), [np.ones((1, 1, 2, 1))])
    even, uneven = np.array([1.0, 2.0]), np.ones(2)
    costs = [
        Noise(channels, U8, S8_NARROW)(s) - Noise(channels, U8, S8_NARROW, bounded=True)(s) for s in (even, uneven)
    ]
    assert costs[0] > costs[1] > 0


def test_amplification_keeps_below_the_ceiling() -> None:
    least = np.array([1.0, 0.25, 0.5])
    channels = Channels(np.zeros(3), 6 * least, [RNG.standard_normal((3, 1, 1, 9))])
    choice = best_amplification(channels, least, U8, S8_NARROW)
    np.testing.assert_allclose(choice.factors, least)
    assert choice.after < choice.before


def test_what_nobody_reads_is_made_small() -> None:
    x, weight, _ = layer(1.0)
    x[:, 3] *= 500
    weight[:, 3] = 0
    channels = Channels(x.min(axis=0), x.max(axis=0), [weight[None, :, :, None]], np.square(x).mean(axis=0))
    for choice in (
        best_factors(channels, U8, S8_NARROW),
        best_amplification(channels, np.full(len(channels.low), 0.5), U8, S8_NARROW),
    ):
        scaled = channels.largest / choice.factors
        assert scaled[3] <= np.delete(scaled, 3).max() * (1 + 1e-9)
        assert choice.after < choice.before / 10


def test_weights_that_meet_nothing_do_not_count() -> None:
    x, weight, _ = layer(1.0)
    x[:, 3] = 0
    huge = weight.copy()
    huge[:, 3] *= 1000
    noises = []
    for read in (weight, huge):
        channels = Channels(x.min(axis=0), x.max(axis=0), [read[None, :, :, None]], np.square(x).mean(axis=0))
        noises.append(Noise(channels, U8, S8_NARROW)(np.ones(len(channels.low))))
    assert noises[0] == noises[1]
