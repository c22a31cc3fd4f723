"""What the weights of a layer should do, as a quadratic form: the harm of any weights follows from moments alone.

For rows x from the compressed network and targets t from the original one, weights W of one group cost, at the best bias,

    tr((W - W*) S (W - W*)ᵀ) + what no W can avoid,      S = cov(x) + λI,    W* = W0 + (cov(t, x) - W0 cov(x)) S⁻¹

with the original weights W0 as the prior (`numerics.least_squares`). A layer that takes no bias has second moments about
zero in the place of covariances. Behind an activation that cuts off, only what it lets through has to fit: targets move to
where the prediction is free to be, and W* with them (`numerics.relu_refit`), while S stays.

Without samples S is the identity and W* is W0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt_passes.numerics.least_squares import Ridge, cross_moments
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.numerics.relu_refit import flat_targets, penalized_targets
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.walk import Observed

MOST_INPUTS = 4608
"""Largest K whose second moments are gathered: 170 MB in float64."""

PENALTIES = (0.1, 0.1, 1.0, 1.0)
"""λ of the rounds that look through a Relu (Zhang et al. 2015)."""


@dataclass
class Problem:
    """A layer's weights, and what they should be.

    Attributes:
        original: (C, K) W0, groups in turn.
        best: (C, K) W*.
        second: (G, K, K) S; None is the identity.
        groups: G.
        bias: the layer's own, (C,) or None.
        seen: its rows; None without samples.
    """

    original: Array
    best: Array
    second: Array | None
    groups: int
    bias: Array | None = None
    seen: Observed | None = None
    _ridges: list[Ridge] = field(default_factory=list)
    _centred: bool = True
    _target_mean: Array | None = None

    @classmethod
    def alone(cls, layer: Linear) -> Problem:
        """From the weights alone."""
        weight = layer.weight().reshape(layer.channels, layer.width)
        return cls(weight, weight, None, layer.groups)

    @classmethod
    def of(cls, layer: Linear, seen: Observed, ridge: float) -> Problem:
        """From what the layer sees; λ is `ridge` times the mean of S's diagonal."""
        weight = layer.weight().reshape(layer.channels, layer.width)
        ridges = [_ridge(x, ridge, centred=layer.takes_bias) for x in seen.inputs]
        problem = cls(
            weight,
            weight,
            np.stack([one.gram for one in ridges]),
            layer.groups,
            layer.bias(),
            seen,
            ridges,
            layer.takes_bias,
        )
        problem._aim(seen.targets)
        return problem

    def harm(self, weight: Array) -> float:
        """Summed squared error of the outputs that (C, K) weights cost more than W*."""
        return self._size(weight - self.best)

    def energy(self) -> float:
        """Summed variance of the outputs that W* gives."""
        return self._size(self.best)

    def _size(self, weight: Array) -> float:
        if self.second is None:
            return float(np.square(weight).sum())
        rows = self._by_group(weight)
        return float(np.einsum("gmk,gmk->", rows @ self.second, rows))

    def _by_group(self, weight: Array) -> Array:
        return weight.reshape(self.groups, -1, weight.shape[-1])

    def by_group(self) -> list[tuple[Array | None, Array]]:
        """S (K, K), None for the identity, and W* (C / G, K) of each group."""
        if self.second is None:
            return [(None, self.best)]
        return list(zip(self.second, self._by_group(self.best), strict=True))

    def bias_for(self, weight: Array) -> Array | None:
        """(C,) the best bias for (C, K) weights; None where the layer takes none, or keeps its own."""
        if self._target_mean is None or not self._centred:
            return None
        means = np.stack([ridge.input_mean for ridge in self._ridges])
        rows = self._by_group(weight)
        return np.asarray(self._target_mean - np.einsum("gmk,gk->gm", rows, means).reshape(-1))

    def look_through(self, weight: Array, penalty: float) -> bool:
        """Move W* to where it is free to be behind the activation, from what `weight` (C, K) predicts.

        Says whether there is such an activation.
        """
        seen = self.seen
        if seen is None or seen.activation is None:
            return False
        bias = self.bias_for(weight)
        bias = self.bias if bias is None else bias
        rows = self._by_group(weight).astype(np.float32)
        prediction = (rows @ seen.inputs).reshape(seen.targets.shape)
        if bias is not None:
            prediction += bias.astype(np.float32)[:, None]
        offset = np.float32(0) if seen.offset is None else seen.offset
        low, high = seen.activation.low, seen.activation.high
        if low == 0 and high == np.inf:
            moved = penalized_targets(prediction + offset, seen.targets + offset, penalty)
        else:
            moved = flat_targets(prediction + offset, seen.targets + offset, low, high)
        self._aim(np.asarray(moved - offset, np.float32))
        return True

    def _aim(self, targets: Array) -> None:
        """Set W* for (C, R) targets."""
        seen = self.seen
        assert seen is not None
        count = len(targets) // self.groups
        best, means = [], []
        for group, (ridge, x) in enumerate(zip(self._ridges, seen.inputs, strict=True)):
            own = slice(group * count, (group + 1) * count)
            if self._centred:
                cross, mean = cross_moments(x, targets[own], ridge.input_mean)
            else:
                shift = np.float32(0) if self.bias is None else self.bias[own].astype(np.float32)[:, None]
                cross = np.asarray((targets[own] - shift) @ x.T, np.float64) / x.shape[1]
                mean = np.zeros(count)
            best.append(ridge.solve(cross, mean, self.original[own]).weight)
            means.append(mean)
        self.best, self._target_mean = np.concatenate(best), np.concatenate(means)


def _ridge(x: Array, ridge: float, *, centred: bool) -> Ridge:
    mean = x.mean(axis=1, dtype=np.float64) if centred else np.zeros(len(x))
    rows = x - mean.astype(x.dtype)[:, None]
    return Ridge(np.asarray(rows @ rows.T, np.float64) / x.shape[1], mean, ridge)
