"""The best dense map of a layer on observed rows, from which every replacement is fitted.

With x the layer's inputs in the compressed network and y what it should give, centred, over R rows

    S = E[x xᵀ],   G = E[y xᵀ],   M* = W + (G - W S)(S + λI)⁻¹,   bias = ȳ - M x̄

a ridge regression towards the weights W that the layer has, not towards zero, so that directions without data keep them.
Where an activation follows, errors that it cuts off do not count (Zhang et al. 2015, section 3.2): an auxiliary z takes the
place of the targets,

    min  (a(z) - a(y))² + λ_z (z - p)²      p: the present prediction, a: the activation, cutting off below low, above high

solved for each element in closed form on the three branches of a.

Of more than `MOST_INPUTS` inputs no moments are gathered: what fits such a layer fits its weights alone, and its bias the rows.
"""

from __future__ import annotations

import numpy as np

from graphopt_passes.numerics.quadratic import Array, Quadratic, solve_positive
from graphopt_passes.reconstruction.following import Activation
from graphopt_passes.reconstruction.problem import MOST_INPUTS
from graphopt_passes.reconstruction.walk import Observed

RIDGE = 3e-2
"""λ over the mean diagonal of S. On held-out samples 0.01 to 0.05 came out alike, smaller ones worse."""


class Regression:
    """One layer's rows and their second moments."""

    def __init__(self, seen: Observed, weight: Array, *, centred: bool, ridge: float = RIDGE) -> None:
        """Of a layer.

        Args:
            seen: its rows.
            weight: (G, O, K) that it has.
            centred: whether its bias may change; otherwise means count as signal.
            ridge: λ over the mean diagonal of S.
        """
        self.inputs = seen.inputs
        self.weight = weight
        self.centred = centred
        self._seen = seen
        rows = max(1, seen.rows)
        groups, width, _ = seen.inputs.shape
        self.mean = seen.inputs.mean(axis=-1, dtype=np.float64) if centred else np.zeros((groups, width))
        self.silent = 0
        """How many inputs never vary (or, where means count, are always 0)."""
        self._inverse: Array | None = None
        self.gram: Array | None = None
        if width > MOST_INPUTS:
            return
        second = np.matmul(seen.inputs, seen.inputs.transpose(0, 2, 1)).astype(np.float64) / rows
        self._raw = second - self.mean[:, :, None] * self.mean[:, None, :]
        self.silent = int((np.diagonal(self._raw, axis1=1, axis2=2) <= 0).sum())
        scale = np.maximum(np.trace(self._raw, axis1=1, axis2=2) / width, 0)
        self.gram = self._raw + (ridge * scale)[:, None, None] * np.eye(width)

    def quadratics(self, targets: Array | None = None) -> list[Quadratic]:
        """The objective of every group, for `targets` (C, R) or those that were observed."""
        if self.gram is None:
            return [Quadratic.of(one) for one in self.weight]
        best = self._best(self.gram, self._seen.targets if targets is None else targets)
        return [Quadratic.of(one, gram) for one, gram in zip(best, self.gram, strict=True)]

    def bias(self, dense: Array, targets: Array | None = None) -> Array | None:
        """(C,) for a map (G, O, K); None where the bias stays."""
        if not self.centred:
            return None
        wanted = (self._seen.targets if targets is None else targets).mean(axis=-1, dtype=np.float64)
        shift: Array = wanted - np.einsum("gok,gk->go", dense, self.mean).reshape(-1)
        return shift

    def cut_off_targets(self, dense: Array, bias: Array | None, penalty: float) -> Array | None:
        """Targets (C, R) that allow for the activation; None where none follows. `penalty` is λ_z."""
        activation, offset = self._seen.activation, self._seen.offset
        if activation is None:
            return None
        present = np.matmul(dense.astype(np.float32), self.inputs).reshape(self._seen.targets.shape)
        shift = np.zeros((1, 1), np.float32) if bias is None else bias.astype(np.float32)[:, None]
        present = present + shift
        wanted = self._seen.targets
        if offset is not None:
            present, wanted = present + offset, wanted + offset
        found = cut_off(present, wanted, activation, penalty)
        return found if offset is None else found - offset

    def _best(self, gram: Array, targets: Array) -> Array:
        groups, outputs, width = self.weight.shape
        rows = max(1, self.inputs.shape[-1])
        wanted = targets.reshape(groups, outputs, -1).astype(np.float32, copy=False)
        cross = np.matmul(wanted, self.inputs.transpose(0, 2, 1)).astype(np.float64) / rows
        if self.centred:
            cross -= wanted.mean(axis=-1, dtype=np.float64)[:, :, None] * self.mean[:, None, :]
        if self._inverse is None:
            self._inverse = solve_positive(gram, np.broadcast_to(np.eye(width), gram.shape))
        best: Array = self.weight + (cross - self.weight @ self._raw) @ self._inverse
        return best


def cut_off(present: Array, wanted: Array, activation: Activation, penalty: float) -> Array:
    """z, elementwise; see the module. Arrays of one shape."""
    goal = activation.apply(wanted)
    inside = activation.apply((penalty * present + goal) / (penalty + 1))
    best, least = inside, np.square(inside - goal) + penalty * np.square(inside - present)
    for limit, z in (
        (activation.low, np.minimum(present, activation.low)),
        (activation.high, np.maximum(present, activation.high)),
    ):
        if not np.isfinite(limit):
            continue
        cost = np.square(limit - goal) + penalty * np.square(z - present)
        best, least = np.where(cost < least, z, best), np.minimum(cost, least)
    return best.astype(np.float32, copy=False)
