"""A gain and a shift per output channel that bring a quantized layer back to what it computed before.

Let y be an output of the original layer and ŷ that of the quantized one, on its own, already quantized inputs. The affine
map of ŷ with the least squared error from y is

    a ŷ + b,    a = cov(y, ŷ) / var(ŷ),    b = E[y] - a E[ŷ]

b with a = 1 is bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2, from data here). The gain costs nothing at run time either: it goes into the scale of the weight.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_passes.numerics.quantizer import Array

_MOST_GAIN = 1.25
"""Gains beyond this, or below its reciprocal, are no rounding errors: the layer's inputs have hardly any variance."""


class Correction(NamedTuple):
    """y ≈ gain · ŷ + shift; both (M,) float64, gains positive."""

    gain: Array
    shift: Array


def bias_correction(mean: Array, quantized_mean: Array) -> Correction:
    """Only the mean; (M,) means E[y] and E[ŷ]."""
    difference = np.asarray(mean, np.float64) - quantized_mean
    return Correction(np.ones_like(difference), difference)


def affine_correction(mean: Array, quantized_mean: Array, covariance: Array, variance: Array) -> Correction:
    """The map of least squared error.

    Args:
        mean: (M,) E[y].
        quantized_mean: (M,) E[ŷ].
        covariance: (M,) cov(y, ŷ).
        variance: (M,) var(ŷ).
    """
    usable = variance > 0
    gain = np.divide(covariance, variance, where=usable, out=np.ones(np.shape(variance)))
    gain = np.where(gain > 0, np.clip(gain, 1 / _MOST_GAIN, _MOST_GAIN), 1.0)
    return Correction(gain, np.asarray(mean, np.float64) - gain * quantized_mean)


def layer_correction(
    weight: Array,
    rounded: Array,
    second: Array,
    mean: Array,
    cross: Array | None = None,
    original_mean: Array | None = None,
) -> Correction:
    """`affine_correction` of a linear layer, from moments of its inputs; biases left out on both sides.

    Args:
        weight: (M, K) original weights w, y = w x.
        rounded: (M, K) what they are after quantizing, as floats: ŷ = ŵ x̂.
        second: (K, K) E[x̂ x̂ᵀ] of the quantized network's inputs, or (G, K, K) for groups of successive rows.
        mean: (K,) or (G, K) E[x̂].
        cross: E[x x̂ᵀ] of the shape of `second`, x the original network's inputs; without it x is x̂.
        original_mean: E[x], likewise.
    """
    moments = np.asarray(second, np.float64).reshape(-1, *second.shape[-2:])
    groups, inputs = moments.shape[:2]
    mixed = moments if cross is None else np.asarray(cross, np.float64).reshape(moments.shape)
    after = np.asarray(mean, np.float64).reshape(groups, inputs)
    before = after if original_mean is None else np.asarray(original_mean, np.float64).reshape(groups, inputs)
    w = np.asarray(weight, np.float64).reshape(groups, -1, inputs)
    w_hat = np.asarray(rounded, np.float64).reshape(groups, -1, inputs)
    mean_y, mean_hat = np.einsum("gmk,gk->gm", w, before), np.einsum("gmk,gk->gm", w_hat, after)
    covariance = np.einsum("gmk,gmk->gm", w @ mixed, w_hat) - mean_y * mean_hat
    variance = np.einsum("gmk,gmk->gm", w_hat @ moments, w_hat) - mean_hat**2
    return affine_correction(*(array.reshape(-1) for array in (mean_y, mean_hat, covariance, variance)))
