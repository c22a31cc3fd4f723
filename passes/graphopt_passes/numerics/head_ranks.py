"""Fewer dimensions per attention head: two layers whose results meet inside a head share one rank.

Scores are products q_h · k_h over the d dimensions of a head h, and values pass through d dimensions between two layers.
What lies in these dimensions is free, up to an invertible matrix per head, so that r of d of them serve, chosen in the best
basis: both layers become thinner, and nothing is added (two parts of rank r of a square layer pay below half of its width
only).

    scores   q' = C_h q,  k' = D_h k      minimize  E |q_hᵀ k_h - q_hᵀ C_hᵀ D_h k_h|²  over independent q and k
    values   z' = C_h z                   minimize  E |W z - W' z'|²

The first is solved exactly by a singular value decomposition of L_qᵀ L_k, with L Lᵀ the second moments of either side; the
second is `two_stage` with a first stage of its own for every head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt_passes.numerics.quadratic import Array, Quadratic, root
from graphopt_passes.numerics.two_stage import TwoStage


@dataclass(frozen=True)
class Bases:
    """What both sides of a pair are multiplied with; heads in turn.

    Attributes:
        first: (H, r, d) C of every head.
        second: (H, r, d) D of every head for scores; (O, H r) W' for values.
        dense: what they amount to with d dimensions: (H, d, d) Cᵀ D for scores; (O, H d) W' C for values.
        error: squared error over the energy.
    """

    first: Array
    second: Array
    dense: Array
    error: float


class ScoreBases:
    """All ranks of one pair of layers whose products are scores."""

    def __init__(self, queries: Array, keys: Array) -> None:
        """From second moments (H, d, d) of both sides.

        Where a constant per query does not matter, as in front of a Softmax over keys, those of the keys are centred.
        """
        self._roots = root(queries), root(keys)
        left, self._values, right = np.linalg.svd(_turned(self._roots[0]) @ self._roots[1])
        self._vectors = left, _turned(right)

    def fit(self, rank: int, rounds: int = 0) -> Bases:
        """The best bases of `rank` dimensions, in closed form."""
        share = np.sqrt(self._values[:, None, :rank])
        # C = √s Uᵀ L^-1, so that L_qᵀ Cᵀ D L_k = U s Vᵀ
        first, second = (
            _turned(np.linalg.solve(_turned(root), vectors[:, :, :rank] * share))
            for root, vectors in zip(self._roots, self._vectors, strict=True)
        )
        energy = np.square(self._values)
        error = float(energy[:, rank:].sum() / max(float(energy.sum()), 1e-300))
        return Bases(first, second, _turned(first) @ second, error)


class ValueBases:
    """All ranks of one pair of layers with values between them."""

    def __init__(self, quadratic: Quadratic, heads: int) -> None:
        """From the objective of the second layer, whose inputs are the values of all heads in turn."""
        self._quadratic = quadratic
        self._heads = heads
        self._stages = TwoStage(quadratic, (heads, quadratic.target.shape[1] // heads), (1,), shared=False)

    def fit(self, rank: int, rounds: int = 4) -> Bases:
        """The best bases of `rank` dimensions that `rounds` of alternation find."""
        stages = self._stages.fit(rank, rounds=rounds)
        dense = self._stages.composed(stages)
        second = stages.second.transpose(0, 2, 1).reshape(len(dense), -1)
        return Bases(stages.first, second, dense, self._quadratic.error(dense))


def by_head(matrix: Array, heads: int) -> Array:
    """The blocks (H, d, d) on the diagonal of (H d, H d)."""
    size = len(matrix) // heads
    each = matrix.reshape(heads, size, heads, size)
    return each[np.arange(heads), :, np.arange(heads), :]


def _turned(matrices: Array) -> Array:
    return np.swapaxes(matrices, -1, -2)
