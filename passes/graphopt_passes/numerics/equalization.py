"""Factors per channel that move the spread of activations into the weights behind them, or the other way round.

Dividing the channels of an activation by s, and multiplying what reads them by s, changes nothing in float:

    W2 f(W1 x + b1) + b2  =  (W2 diag(s)) f(diag(1/s) (W1 x + b1)) + b2         f(x / s) = f(x) / s for s > 0

but a quantizer has one step for all channels of the activation, and one for all inputs of an output of W2. Three choices of s:

    between two layers     s = √(r1 / r2), r the ranges of the channels on both sides (Nagel et al. 2019, eq. 11): afterwards
                           both are √(r1 r2), but for a common factor that makes the geometric mean of s 1
    along a chain          the same between all neighbours in turn, until nothing changes any more
    SmoothQuant            s = r^α / w^(1 - α), r the largest activation of a channel, w the largest weight that reads it (Xiao et
                           al. 2023, eq. 4); α = ½ is the first choice. `best_factors` takes the α of least predicted noise, or
                           none where no factor helps.

Channels that are dead on either side keep the factor 1, and factors stay within a bounded ratio: what calibration has
hardly seen must not become a thousand times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from graphopt_passes.numerics.quantizer import Array, Grid

MOST_RATIO = 1024.0
"""Largest factor over smallest: networks with channels 256 times as large as others are found."""

_CONVERGED = 1e-3
_MOST_ROUNDS = 20
_ALPHAS = np.linspace(0, 1, 11)
_EXCESS, _DECAY = 2e-5, 6.0
"""A and k of `Noise`; these gave the best SQNR on held-out samples of small networks calibrated on 200."""
_WORTH, _WORTH_BOUNDED = 0.8, 0.95
"""Factors that do not lower the predicted noise to this part are not taken: a prediction is not that exact. Where nothing
can be clipped it is."""
_SPREAD = 1 / 16
"""E[x²] over max |x|², where nobody has measured it: a half-normal distribution with its maximum at 3.2 deviations and
half of it cut off by a Relu."""


def cross_layer(produced: Array, consumed: Array, ratio: float = MOST_RATIO) -> Array:
    """(C,) factors s; with them the ranges `produced` / s are to each other as `consumed` · s, by the same factor for all.

    Args:
        produced: (C,) ranges of the channels that are made: of the rows of a weight, or of the activation.
        consumed: (C,) ranges of the weights that read them.
        ratio: largest factor over smallest.
    """
    return smooth(produced, consumed, 0.5, ratio)


def smooth(activation: Array, weight: Array, alpha: float, ratio: float = MOST_RATIO) -> Array:
    """(C,) factors activation^α / weight^(1 - α), with a geometric mean of 1; 1 for channels dead on either side.

    Args:
        activation: (C,) largest magnitudes.
        weight: (C,) largest magnitudes of the weights that read a channel.
        alpha: 0 equalizes the weights, 1 the activation.
        ratio: largest factor over smallest.
    """
    alive = (activation > 0) & (weight > 0) & np.isfinite(activation) & np.isfinite(weight)
    if not alive.any():
        return np.ones(len(activation))
    logs = alpha * np.log(activation[alive].astype(np.float64)) - (1 - alpha) * np.log(weight[alive].astype(np.float64))
    logs -= logs.mean()
    if logs.max() - logs.min() > np.log(ratio):  # the small ones give way: to divide by them is what amplifies
        logs = np.maximum(logs, logs.max() - np.log(ratio))
        logs -= logs.mean()
    factors = np.ones(len(activation))
    factors[alive] = np.exp(logs)
    return factors


def chain(weights: Sequence[Array], ratio: float = MOST_RATIO) -> list[Array]:
    """Factors between the successive layers of a chain: on both sides of each pair, channels have proportional ranges.

    Args:
        weights: of each layer the largest magnitudes (G, O, I) over the taps, G groups of O outputs and I inputs; layer
            n + 1 reads the G · O channels of layer n as its own G · I.
        ratio: largest factor over smallest between two layers.

    Returns:
        For each pair of neighbours the (C,) factors: divide the outputs of the first, multiply the inputs of the second.
    """
    current = [np.abs(weight).astype(np.float64) for weight in weights]
    factors = [np.ones(weight.shape[0] * weight.shape[1]) for weight in weights[:-1]]
    for _ in range(_MOST_ROUNDS):
        change = 0.0
        for index in range(len(factors)):
            first, second = current[index], current[index + 1]
            step = smooth(first.max(axis=2).reshape(-1), second.max(axis=1).reshape(-1), 0.5, np.inf)
            bounded = _bounded(factors[index] * step, ratio)
            step = bounded / factors[index]
            factors[index] = bounded
            current[index] = first / step.reshape(*first.shape[:2], 1)
            current[index + 1] = second * step.reshape(second.shape[0], 1, second.shape[2])
            change = max(change, float(np.abs(np.log(step)).max(initial=0)))
        if change < _CONVERGED:
            break
    return factors


class Channels(NamedTuple):
    """The channels of an activation, and the weights that read them.

    Attributes:
        low: (C,) smallest numbers.
        high: (C,) largest numbers.
        weights: of each reader the weights (G, O, I, T), with G · I = C; T taps.
        second: (C,) E[x²], where it is known.
    """

    low: Array
    high: Array
    weights: Sequence[Array]
    second: Array | None = None

    @property
    def largest(self) -> Array:
        """(C,) largest magnitudes of the activation."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)), np.float64)

    @property
    def read_by(self) -> Array:
        """(C,) largest magnitudes of the weights that read a channel."""
        return np.asarray(np.max([np.abs(weight).max(axis=(1, 3)).reshape(-1) for weight in self.weights], axis=0))


class Noise:
    """Predicted noise of the readers' outputs over their signal, as a function of the factors.

    With one step Δ for the activation, steps δ_o for the outputs o of a reader, and rounding errors uniform and
    independent, an output has the noise

        Σ_i w_oi² s_i² (Δ² / 12 + c_i)  +  Σ_i E[x_i²] / s_i² δ_o² / 12

        Δ = range(x / s) / steps,    δ_o = max_i |w_oi s_i| / (steps / 2)

    (sums over inputs and taps), which is taken relative to Σ_i w_oi² E[x_i²] and averaged over the outputs.

    c_i is what is clipped on data that calibration has not seen: a channel that ends where the range ends will pass it
    there, one that has room will not. Without it the best factors would let all channels end together, and the noise on
    held-out samples grows up to twofold. With m_i the channel's end, r the range's, it is A m_i² exp(-k (r / m_i - 1)).
    """

    def __init__(self, channels: Channels, activation: Grid, weight: Grid, *, bounded: bool = False) -> None:
        """Noise for these channels and grids; `bounded`: no number will ever be outside of the ranges."""
        self._low, self._high = np.minimum(channels.low, 0.0), np.maximum(channels.high, 0.0)
        self._second = np.square(channels.largest) * _SPREAD if channels.second is None else channels.second
        self._readers = [
            (self._met(np.abs(w).max(axis=3)), self._met(np.square(w).sum(axis=3, dtype=np.float64)), w.shape[3])
            for w in channels.weights
        ]
        self._activation, self._weight_steps, self._bounded = activation, weight.steps / 2, bounded

    def _met(self, numbers: Array) -> Array:
        """(G, O, I) numbers of weights, those left out that meet nothing but 0: that is exact, and they can be clipped."""
        return np.asarray(numbers * (self._second > 0).reshape(len(numbers), 1, -1), np.float64)

    def __call__(self, factors: Array) -> float:
        """The mean over all outputs of noise / signal."""
        low, high = -self._low / factors, self._high / factors
        ends = float(low.max()), float(high.max())
        if self._activation.symmetric:
            ends = max(ends), max(ends)
        noise = np.full(len(factors), (sum(ends) / self._activation.steps) ** 2 / 12)
        if not self._bounded:
            noise += _excess(low, ends[0]) + _excess(high, ends[1])
        noise *= factors**2
        total, outputs = 0.0, 0
        for largest, squares, taps in self._readers:
            groups, _, inputs = largest.shape
            s, second = factors.reshape(groups, 1, inputs), self._second.reshape(groups, 1, inputs)
            step = (largest * s).max(axis=2) / self._weight_steps
            of_weights = step**2 / 12 * (second / s**2).sum(axis=2) * taps
            of_data = (squares * noise.reshape(groups, 1, inputs)).sum(axis=2)
            signal = (squares * second).sum(axis=2)
            alive = signal > 0
            total += float(((of_data + of_weights)[alive] / signal[alive]).sum())
            outputs += int(alive.sum())
        return total / max(outputs, 1)


def _excess(ends: Array, end: float) -> Array:
    """(C,) mean squared excess over the range's `end` of channels that end at `ends`, on data that nobody has seen."""
    alive = ends > 0
    room = np.divide(end, ends, where=alive, out=np.ones_like(ends)) - 1
    return np.asarray(np.where(alive, _EXCESS * ends**2 * np.exp(-_DECAY * room), 0.0))


class Choice(NamedTuple):
    """Factors (C,), and the predicted noise over signal without and with them."""

    factors: Array
    before: float
    after: float


def best_factors(
    channels: Channels, activation: Grid, weight: Grid, ratio: float = MOST_RATIO, *, bounded: bool = False
) -> Choice:
    """The factors of least predicted noise among those of `smooth` for α in 0, .1, ..., 1, and none (all 1).

    Repeated on the result as long as that is worth it: what comes out is left alone when it comes in.

    Args:
        channels: statistics and weights.
        activation: the grid of the activation.
        weight: the grid of the weights, each output with a scale of its own.
        ratio: largest factor over smallest.
        bounded: whether no number will ever be outside of the ranges.
    """
    noise, before, factors = _start(channels, activation, weight, bounded=bounded)
    least = noise(factors)
    for _ in range(_MOST_ROUNDS):
        largest, read_by = channels.largest / factors, channels.read_by * factors
        steps = [smooth(largest, read_by, float(alpha), ratio) for alpha in _ALPHAS]
        choice = _least(noise, [factors, *(_bounded(factors * step, ratio) for step in steps)], _WORTH)
        if choice.after == choice.before:
            break
        factors, least = choice.factors, choice.after
    return Choice(_hide(channels, factors), before, least)


def best_amplification(channels: Channels, least: Array, activation: Grid, weight: Grid) -> Choice:
    """The factors of least predicted noise between (C,) `least`, at most 1, and 1: the powers least^α.

    For activations that are clipped to [0, c]: clip(x / s, 0, c) = clip(x, 0, s c) / s, and with s <= 1 nothing changes
    as long as no x is above s c.
    """
    noise, before, _ = _start(channels, activation, weight, bounded=True)
    choice = _least(noise, [least ** float(alpha) for alpha in _ALPHAS], _WORTH_BOUNDED)
    return Choice(_hide(channels, choice.factors), before, choice.after)


def _start(channels: Channels, activation: Grid, weight: Grid, *, bounded: bool = False) -> tuple[Noise, float, Array]:
    """The noise without the channels that nobody reads, the noise as it is, and no factors.

    A channel that nobody reads takes any factor, and a large one makes it small.
    """
    read, ones = channels.read_by > 0, np.ones(len(channels.low))
    seen = channels._replace(low=channels.low * read, high=channels.high * read)
    noise = Noise(seen, activation, weight, bounded=bounded)
    return noise, Noise(channels, activation, weight, bounded=bounded)(ones), ones


def _hide(channels: Channels, factors: Array) -> Array:
    """`factors`, raised where nobody reads a channel until it is no larger than those that are read."""
    read = channels.read_by > 0
    room = float((channels.largest / factors)[read].max(initial=0.0))
    needed = channels.largest / (room or 1.0)
    return np.where(read, factors, np.maximum(needed, 1.0) if room else factors)


def _least(noise: Noise, candidates: Sequence[Array], worth: float) -> Choice:
    """The best candidate, or the first one, which changes nothing, where none lowers the noise to the part `worth`."""
    noises = [noise(factors) for factors in candidates]
    best = int(np.argmin(noises))
    best = best if noises[best] <= worth * noises[0] else 0
    return Choice(candidates[best], noises[0], noises[best])


def _bounded(factors: Array, ratio: float) -> Array:
    return np.asarray(np.maximum(factors, factors.max(initial=0) / ratio))
