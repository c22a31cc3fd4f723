"""Layers in a row refitted together: what the first gives is free, as long as the last makes the right thing of it.

    h = a(W1 x + b1),      p = W2 h + b2,                          minimize  E |r(p + s) - r(z)|²
    h = a(W1 x + b1),      u = d(D * h + e),      p = W2 u + b2    with a depthwise convolution D in between

with a, d and r the activations behind the layers, s a shortcut and z what the original has in place of p + s. Refitted one by
one, the first layer is held to the original's hidden channels although the channels that were removed next to them could
be made up for here. A layer alone is a least-squares problem; several together are not, so that a solution by least squares is
improved by stochastic gradient steps (Adam; Kingma & Ba 2015) on the very rows it was fitted on, as block reconstruction does
for quantization (Li et al. 2021, "BRECQ"). It needs no labels and no network around it: the gradients are a few products.

The second layer may be a convolution: each of its rows reads T positions of h, and x holds the first layer's row of each.
With a depthwise convolution in between it is that one that reads them, and the last layer reads its one result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt_passes.numerics.least_squares import Layer
from graphopt_passes.numerics.quantizer import Array

_BETAS = (0.9, 0.99)
_AT_ONCE = 2048
"""Rows whose error is computed at once."""


@dataclass(frozen=True)
class Pair:
    """R rows of the last layer and what they are made of; float32.

    Attributes:
        x: (R, T, K) rows of the first layer under each of the T taps of the next.
        inside: (R, T) 0 where a tap lies in the padding: h is 0 there, whatever the first layer gives; else 1.
        wanted: (R, C) z.
        offset: (R, C) s; None is 0.
        first_bounds: (low, high) of a.
        between_bounds: (low, high) of d, where a depthwise convolution lies in between.
        second_bounds: (low, high) of r.
    """

    x: Array
    inside: Array
    wanted: Array
    offset: Array | None
    first_bounds: tuple[float, float]
    second_bounds: tuple[float, float] = (-math.inf, math.inf)
    between_bounds: tuple[float, float] = (-math.inf, math.inf)


def refit_pair(
    pair: Pair, layers: Sequence[Layer], *, steps: int, batch: int = 256, rate: float = 0.04, rng: np.random.Generator
) -> list[Layer]:
    """The layers after `steps` gradient steps.

    Args:
        pair: the rows.
        layers: where to start: the first, (H, K); where there is one, the depthwise convolution, (H, T); the last, (C, H)
            behind one and else (C, H * T), whose columns run over (hidden channel, tap).
        steps: how many.
        batch: rows per step.
        rate: of the first step, as a share of a tensor's root mean square; it falls to zero like a cosine.
        rng: for the order of the rows.
    """
    rows = len(pair.x)
    values = [value.astype(np.float32) for value in _values(pair, layers)]
    moments = [(np.zeros_like(v), np.zeros_like(v)) for v in values]
    scales = _scales(pair, values)
    order = np.empty(0, int)
    for step in range(steps):
        if len(order) < min(batch, rows):
            order = rng.permutation(rows)
        chosen, order = order[:batch], order[batch:]
        gradients = _gradients(pair, chosen, values)
        size = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for value, gradient, (m, v), scale in zip(values, gradients, moments, scales, strict=True):
            m += (1 - _BETAS[0]) * (gradient - m)
            v += (1 - _BETAS[1]) * (gradient**2 - v)
            rise = math.sqrt(1 - _BETAS[1] ** (step + 1)) / (1 - _BETAS[0] ** (step + 1))
            value -= (size * scale * rise) * m / (np.sqrt(v) + 1e-12)
    return _layers(pair, [value.astype(np.float64) for value in values])


def pair_error(pair: Pair, layers: Sequence[Layer]) -> float:
    """E |r(p + s) - r(z)|² over all rows, of layers as for `refit_pair`."""
    values = [value.astype(np.float32) for value in _values(pair, layers)]
    total = 0.0
    for start in range(0, len(pair.x), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        p = _forward(pair, rows, values).prediction
        error = np.clip(p, *pair.second_bounds) - np.clip(pair.wanted[rows], *pair.second_bounds)
        total += float(np.sum(error**2, dtype=np.float64))
    return total / len(pair.x)


def _values(pair: Pair, layers: Sequence[Layer]) -> list[Array]:
    """Weight and bias of each layer; the columns of a last layer that reads all taps run over (tap, hidden channel)."""
    values = [array for layer in layers for array in layer]
    if len(layers) == 2:
        values[2] = _swapped(values[2], pair.x.shape[1], by_tap=True)
    return values


def _layers(pair: Pair, values: Sequence[Array]) -> list[Layer]:
    """The contrary of `_values`."""
    layers = [Layer(*values[place : place + 2]) for place in range(0, len(values), 2)]
    if len(layers) == 2:
        layers[1] = layers[1]._replace(weight=_swapped(layers[1].weight, pair.x.shape[1], by_tap=False))
    return layers


def _swapped(weight: Array, taps: int, *, by_tap: bool) -> Array:
    outputs = len(weight)
    return weight.reshape(outputs, *((-1, taps) if by_tap else (taps, -1))).transpose(0, 2, 1).reshape(outputs, -1)


def _scales(pair: Pair, values: Sequence[Array]) -> list[float]:
    """What a step of 1 is for each tensor: the root mean square of weights, of biases a tenth of the spread of z."""
    spread = float(np.sqrt(np.mean(np.var(pair.wanted, axis=0)))) + 1e-12
    return [
        spread * 0.1 if place % 2 else float(np.sqrt(np.mean(value**2))) + 1e-12 for place, value in enumerate(values)
    ]


@dataclass(frozen=True)
class _Forward:
    """n rows on their way: (n, T, H) before and behind a, (n, H) before and behind d, (n, C) p + s."""

    before: Array
    hidden: Array
    middle: Array | None
    read: Array
    prediction: Array


def _forward(pair: Pair, rows: slice | Array, values: Sequence[Array]) -> _Forward:
    x = pair.x[rows]
    count, taps, width = x.shape
    before = x.reshape(count * taps, width) @ values[0].T
    before += values[1]
    hidden = np.clip(before, *pair.first_bounds).reshape(count, taps, -1) * pair.inside[rows][:, :, None]
    middle = None
    read = hidden.reshape(count, -1)
    if len(values) > 4:
        middle = np.einsum("nth,ht->nh", hidden, values[2]) + values[3]
        read = np.clip(middle, *pair.between_bounds)
    prediction = read @ values[-2].T + values[-1]
    if pair.offset is not None:
        prediction += pair.offset[rows]
    return _Forward(before, hidden, middle, read, prediction)


def _gradients(pair: Pair, chosen: Array, values: Sequence[Array]) -> list[Array]:
    """Of the mean squared error of the chosen rows by all tensors."""
    run = _forward(pair, chosen, values)
    count, taps, hidden = run.hidden.shape
    low, high = pair.second_bounds
    error = np.clip(run.prediction, low, high) - np.clip(pair.wanted[chosen], low, high)
    error *= _passes(run.prediction, pair.second_bounds)
    error *= 2 / count
    result = [error.T @ run.read, error.sum(axis=0)]
    back = error @ values[-2]
    if run.middle is not None:
        back *= _passes(run.middle, pair.between_bounds)
        result = [np.einsum("nh,nth->ht", back, run.hidden), back.sum(axis=0), *result]
        back = back[:, None, :] * values[2].T
    back = back.reshape(count * taps, hidden) * _passes(run.before, pair.first_bounds)
    back *= pair.inside[chosen].reshape(-1, 1)
    return [back.T @ pair.x[chosen].reshape(count * taps, -1), back.sum(axis=0), *result]


def _passes(x: Array, bounds: tuple[float, float]) -> Array:
    low, high = bounds
    return np.asarray((x > low) & (x < high))
