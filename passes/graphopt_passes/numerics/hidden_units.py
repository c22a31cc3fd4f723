"""Fewer hidden units between two products: those that the others can best make up for go first.

With S the covariance of the hidden units and W the second layer, units are removed one by one, each time the one whose loss
costs least once all other weights are solved for again (optimal brain surgery; `elimination`). For the k units that are left

    W' = W S_:k S_kk⁻¹
"""

from __future__ import annotations

import numpy as np

from graphopt_passes.numerics.elimination import Reader, eliminate
from graphopt_passes.numerics.head_ranks import Bases
from graphopt_passes.numerics.least_squares import Moments
from graphopt_passes.numerics.quadratic import Array, Quadratic, solve_positive

_FEW = 256
"""Units up to which they go one by one."""
_AT_ONCE = 0.02
"""Share of what is left that goes in one step where there are more."""


class UnitBases:
    """All numbers of units between one pair of layers."""

    def __init__(self, quadratic: Quadratic) -> None:
        """From the objective of the second layer, whose inputs are the hidden units."""
        target = quadratic.target
        gram = np.eye(target.shape[1]) if quadratic.gram is None else quadratic.gram
        nothing = np.zeros(len(target))
        found = Moments(gram, quadratic.cross, np.zeros(len(gram)), nothing, nothing, 1)
        self._quadratic = quadratic
        self._gram: Array = gram
        at_once = 0.0 if len(gram) <= _FEW else _AT_ONCE
        self._order = eliminate([Reader(found, target, np.arange(len(gram))[:, None])], at_once=at_once)

    def fit(self, count: int, rounds: int = 0) -> Bases:
        """The best choice of `count` units, with the weights behind them, in closed form."""
        kept = self._order.kept(count)
        second = solve_positive(self._gram[np.ix_(kept, kept)], self._quadratic.cross[:, kept].T).T
        dense = np.zeros_like(self._quadratic.target)
        dense[:, kept] = second
        first = np.eye(len(self._gram))[None, kept]
        return Bases(first, second, dense, self._quadratic.error(dense))
