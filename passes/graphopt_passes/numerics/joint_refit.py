"""Two layers in a row refitted together: what the first gives is free, as long as the second makes the right thing of it.

    h = a(W1 x + b1),      p = W2 h + b2,      minimize  E |r(p + s) - r(z)|²

with a and r the activations behind the layers, s a shortcut and z what the original has in place of p + s. Refitted one by
one, the first layer is held to the original's hidden channels although the channels that were removed next to them could
be made up for here. A layer alone is a least-squares problem; both together are not, so that a solution by least squares is
improved by stochastic gradient steps (Adam; Kingma & Ba 2015) on the very rows it was fitted on, as block reconstruction does
for quantization (Li et al. 2021, "BRECQ"). It needs no labels and no network around it: the gradients are four products.

The second layer may be a convolution: each of its rows reads T positions of h, and x holds the first layer's row of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt_passes.numerics.least_squares import Layer
from graphopt_passes.numerics.quantizer import Array

_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Pair:
    """R rows of the second layer and what they are made of; float32.

    Attributes:
        x: (R, T, K) rows of the first layer under each of the T taps of the second.
        inside: (R, T) 0 where a tap lies in the padding: h is 0 there, whatever the first layer gives; else 1.
        wanted: (R, C) z.
        offset: (R, C) s; None is 0.
        first_bounds: (low, high) of a.
        second_bounds: (low, high) of r.
    """

    x: Array
    inside: Array
    wanted: Array
    offset: Array | None
    first_bounds: tuple[float, float]
    second_bounds: tuple[float, float] = (-math.inf, math.inf)


def refit_pair(
    pair: Pair,
    first: Layer,
    second: Layer,
    *,
    steps: int,
    batch: int = 256,
    rate: float = 0.04,
    rng: np.random.Generator,
) -> tuple[Layer, Layer]:
    """Both layers after `steps` gradient steps.

    Args:
        pair: the rows.
        first: (H, K) weight, where to start.
        second: (C, H * T) weight; columns run over (hidden channel, tap).
        steps: how many.
        batch: rows per step.
        rate: of the first step, as a share of a tensor's root mean square; it falls to zero like a cosine.
        rng: for the order of the rows.
    """
    rows, taps, _ = pair.x.shape
    hidden, outputs = len(first.weight), len(second.weight)
    w2 = second.weight.reshape(outputs, hidden, taps).transpose(0, 2, 1).reshape(outputs, taps * hidden)
    values = [np.array(v, np.float32) for v in (first.weight, first.bias, w2, second.bias)]
    moments = [(np.zeros_like(v), np.zeros_like(v)) for v in values]
    weights = [float(np.sqrt(np.mean(values[place] ** 2))) + 1e-12 for place in (0, 0, 2, 2)]
    scales = [weights[0], _spread(pair.wanted) * 0.1, weights[2], _spread(pair.wanted) * 0.1]
    order = np.empty(0, int)
    for step in range(steps):
        if len(order) < min(batch, rows):
            order = rng.permutation(rows)
        chosen, order = order[:batch], order[batch:]
        gradients = _gradients(pair, chosen, *values)
        size = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for value, gradient, (m, v), scale in zip(values, gradients, moments, scales, strict=True):
            m += (1 - _BETAS[0]) * (gradient - m)
            v += (1 - _BETAS[1]) * (gradient**2 - v)
            rise = math.sqrt(1 - _BETAS[1] ** (step + 1)) / (1 - _BETAS[0] ** (step + 1))
            value -= (size * scale * rise) * m / (np.sqrt(v) + 1e-12)
    w2 = values[2].reshape(outputs, taps, hidden).transpose(0, 2, 1).reshape(outputs, hidden * taps)
    return Layer(values[0].astype(np.float64), values[1].astype(np.float64)), Layer(
        w2.astype(np.float64), values[3].astype(np.float64)
    )


def pair_error(pair: Pair, first: Layer, second: Layer) -> float:
    """E |r(p + s) - r(z)|² over all rows."""
    rows, taps, _ = pair.x.shape
    hidden, outputs = len(first.weight), len(second.weight)
    h = np.clip(pair.x @ first.weight.T.astype(np.float32) + first.bias.astype(np.float32), *pair.first_bounds)
    h *= pair.inside[:, :, None]
    w2 = second.weight.reshape(outputs, hidden, taps).transpose(0, 2, 1).reshape(outputs, taps * hidden)
    p = h.reshape(rows, taps * hidden) @ w2.T.astype(np.float32) + second.bias.astype(np.float32)
    p = p if pair.offset is None else p + pair.offset
    error = np.clip(p, *pair.second_bounds) - np.clip(pair.wanted, *pair.second_bounds)
    return float(np.mean(np.sum(error**2, axis=1)))


def _spread(wanted: Array) -> float:
    return float(np.sqrt(np.mean(np.var(wanted, axis=0)))) + 1e-12


def _gradients(
    pair: Pair, chosen: Array, w1: Array, b1: Array, w2: Array, b2: Array
) -> tuple[Array, Array, Array, Array]:
    """Of the mean squared error of the chosen rows by all four tensors."""
    x = pair.x[chosen]
    count, taps, width = x.shape
    flat = x.reshape(count * taps, width)
    before = flat @ w1.T
    before += b1
    low, high = pair.first_bounds
    passes = (before > low) & (before < high) & (pair.inside[chosen].reshape(-1, 1) > 0)
    h = np.clip(before, low, high) * pair.inside[chosen].reshape(-1, 1)
    h = h.reshape(count, -1)
    p = h @ w2.T
    p += b2
    if pair.offset is not None:
        p += pair.offset[chosen]
    low, high = pair.second_bounds
    error = np.clip(p, low, high) - np.clip(pair.wanted[chosen], low, high)
    error *= (p > low) & (p < high)
    error *= 2 / count
    behind = (error @ w2).reshape(count * taps, -1) * passes
    return behind.T @ flat, behind.sum(axis=0), error.T @ h, error.sum(axis=0)
