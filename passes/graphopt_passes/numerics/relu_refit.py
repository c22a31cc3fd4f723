"""Least-squares refits of a layer that an activation follows: what the activation hides need not be fitted.

The layer's output p = W x + b goes, with an offset s (the shortcut of a residual block, else 0), through r(p + s), and
r(z) is wanted. Where the activation is flat, every z on the flat side will do, so the target is as near to the current
prediction as it may be, and the fit is done again with the factor of the same Gram matrix. Two ways to choose targets:

* `flat_targets`: where z <= low, min(p + s, low); where z >= high, max(p + s, high); z itself elsewhere.
* `penalized_targets`: Zhang et al. 2015 ("Accelerating Very Deep Convolutional Networks for Classification and
  Detection", section 2.2.2, equation 11): z may also leave its side where that costs less. With t = relu(z), of
  z0 = min(0, p + s) and z1 = max(0, (λ (p + s) + t) / (λ + 1)) the one with the lower (relu(z') - t)² + λ (z' - p - s)².
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from graphopt_passes.numerics.least_squares import Layer, Ridge, cross_moments
from graphopt_passes.numerics.quantizer import Array

Targets: TypeAlias = Callable[[Array, Array, int], Array]
"""(p + s, z, number of the round) -> new targets for p + s; all (M, R)."""


def flat_targets(prediction: Array, wanted: Array, low: float = 0.0, high: float = math.inf) -> Array:
    """Targets for an activation that is flat below `low` and above `high`.

    Args:
        prediction: p + s, any shape.
        wanted: z, the original's input of the activation, of the same shape.
        low: -inf where the activation is flat nowhere below.
        high: inf where it is flat nowhere above.
    """
    target = np.where(wanted <= low, np.minimum(prediction, low), wanted) if low > -math.inf else wanted
    return np.where(wanted >= high, np.maximum(prediction, high), target) if high < math.inf else target


def penalized_targets(prediction: Array, wanted: Array, penalty: float) -> Array:
    """Targets after Zhang et al. for a Relu; λ is `penalty`, shapes as in `flat_targets`."""
    t = np.maximum(wanted, 0)
    below = np.minimum(prediction, 0)
    above = np.maximum((penalty * prediction + t) / (penalty + 1), 0)
    cost_below = t**2 + penalty * (below - prediction) ** 2
    cost_above = (above - t) ** 2 + penalty * (above - prediction) ** 2
    return np.where(cost_below < cost_above, below, above)


def refit_through(
    ridge: Ridge,
    x: Array,
    wanted: Array,
    prior: Array,
    targets: Targets,
    *,
    offset: Array | None = None,
    start: Layer | None = None,
    rounds: int = 4,
) -> Layer:
    """The layer refitted so that r(W x + b + s) comes near to r(z).

    Args:
        ridge: of the rows x.
        x: (K, R) inputs of the layer in the compressed network.
        wanted: (M, R) z, the original's input of the activation.
        prior: (M, K) W0.
        targets: new targets from a prediction, e.g. `flat_targets` with its bounds.
        offset: (M, R) s; None is 0.
        start: where the first prediction comes from; by default the fit to z - s itself.
        rounds: how many times targets are chosen and fitted again.
    """
    layer = start
    if layer is None:
        layer = ridge.solve(*cross_moments(x, wanted if offset is None else wanted - offset, ridge.input_mean), prior)
    for number in range(rounds):
        prediction = layer.weight.astype(x.dtype) @ x + layer.bias.astype(x.dtype)[:, None]
        if offset is None:
            target = targets(prediction, wanted, number)
        else:
            target = targets(prediction + offset, wanted, number) - offset
        layer = ridge.solve(*cross_moments(x, target, ridge.input_mean), prior)
    return layer
