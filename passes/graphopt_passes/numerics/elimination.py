"""Which inputs of linear layers can go with the least harm: backward elimination by blocks with exact least squares.

A layer reads a unit (a channel) through a block c of columns of its input: k² of them for a k x k kernel. With
G = S + λI and W = H G⁻¹ the refitted layer (least_squares.py), H = C + λ W0, setting W_c to zero and refitting all other
columns raises the objective E |t - W x|² + λ |W - W0|² by exactly

    E_c = tr(W_c [(G⁻¹)_cc]⁻¹ W_cᵀ)

and leaves G⁻¹ - (G⁻¹)_:c [(G⁻¹)_cc]⁻¹ (G⁻¹)_c: and W - W_c [(G⁻¹)_cc]⁻¹ (G⁻¹)_c:, which are the inverse and the solution on the
remaining columns. The unit with the least E_c goes, again and again; the running sum is the harm at every width. A unit
that several layers read costs the sum of its harms. This is optimal brain surgery (Hassibi & Stork 1993) with the blocks of
Frantar & Alistarh 2022, "Optimal Brain Compression", section 4, with targets of the original network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from graphopt_passes.numerics.least_squares import RIDGE, Moments, penalty_of
from graphopt_passes.numerics.quantizer import Array


@dataclasses.dataclass(frozen=True)
class Reader:
    """A linear layer that reads the units.

    Attributes:
        found: moments of its inputs (K columns) and targets.
        prior: (M, K) W0.
        columns: (U, B) numbers of the columns through which it reads each unit; columns of no unit always stay.
        weight: what one unit of its squared error counts.
    """

    found: Moments
    prior: Array
    columns: Array
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Elimination:
    """Units in the order in which they went, and what that did.

    Attributes:
        order: (U,) numbers of units, first gone first; those that were never removed come last.
        errors: (U + 1,) harm by how many units went, weighted sum over the readers; errors[0] is 0, and inf stands for
            widths that were not reached.
    """

    order: Array
    errors: Array

    def kept(self, width: int) -> Array:
        """Numbers of the `width` units that stay, ascending."""
        return np.sort(self.order[len(self.order) - width :])

    def curve(self) -> Array:
        """(U + 1,) harm by width."""
        return self.errors[::-1]


def eliminate(
    readers: Sequence[Reader], *, fewest: int = 1, at_once: float = 0.0, ridge: float = RIDGE, keep: Sequence[int] = ()
) -> Elimination:
    """Remove unit after unit until `fewest` are left.

    Args:
        readers: all layers that read the units, each with as many rows of `columns`.
        fewest: how many stay at least.
        at_once: up to this share of the units left goes in one step, with the exact harm of the step spread evenly over
            it; 0 removes them one by one.
        ridge: λ over the mean variance.
        keep: numbers of units that never go.

    Raises:
        ValueError: no readers, or they disagree about the number of units.
    """
    counts = {len(reader.columns) for reader in readers}
    if len(counts) != 1:
        raise ValueError(f"readers must agree about the number of units, not {sorted(counts)}")
    (units,) = counts
    states = [_State(reader, ridge) for reader in readers]
    alive = np.arange(units)
    errors = np.full(units + 1, np.inf)
    errors[0] = 0.0
    gone: list[int] = []
    kept = np.isin(alive, np.asarray(keep, int))
    while len(alive) > max(fewest, int(kept.sum())):
        scores = np.sum([state.scores() for state in states], axis=0)
        scores[kept] = np.inf
        room = len(alive) - max(fewest, int(kept.sum()))
        step = min(room, max(1, int(at_once * len(alive))))
        chosen = np.argsort(scores, kind="stable")[:step]
        harm = sum(state.remove(chosen) for state in states)
        before = len(gone)
        gone.extend(int(unit) for unit in alive[chosen])
        errors[before + 1 : before + step + 1] = errors[before] + harm * np.arange(1, step + 1) / step
        alive, kept = np.delete(alive, chosen), np.delete(kept, chosen)
    return Elimination(np.array([*gone, *alive], int), errors)


class _State:
    """G⁻¹ and W of one reader on the columns that are left: those of no unit first, then block by block.

    Removed rows and columns are cut out in place, so that the matrices shrink without ever being allocated again.
    """

    def __init__(self, reader: Reader, ridge: float) -> None:
        from scipy.linalg import cho_factor, cho_solve

        self._weight = reader.weight
        self._units, self._size = reader.columns.shape
        total = reader.found.covariance.shape[0]
        flat = reader.columns.reshape(-1)
        fixed = np.setdiff1d(np.arange(total), flat)
        self._fixed = len(fixed)
        order = np.concatenate([fixed, flat])
        gram = reader.found.covariance[np.ix_(order, order)].copy()
        penalty = penalty_of(reader.found.covariance, ridge)
        gram[np.diag_indices(total)] += penalty
        right = reader.found.cross[:, order] + penalty * reader.prior[:, order]
        factor = cho_factor(gram, lower=True)
        self._inverse: Array = cho_solve(factor, np.eye(total))
        self._solution: Array = cho_solve(factor, right.T)  # (K, M)

    def _blocks(self, units: Array) -> Array:
        """(u, B) rows of the matrices that belong to `units`."""
        return np.asarray(self._fixed + units[:, None] * self._size + np.arange(self._size))

    def scores(self) -> Array:
        """(units left,) harm of removing each alone."""
        rows = self._blocks(np.arange(self._units))
        corners = self._inverse[rows[:, :, None], rows[:, None, :]]
        start = self._fixed
        weights = self._solution[start : start + self._units * self._size].reshape(self._units, self._size, -1)
        if self._size == 1:
            harms = np.einsum("ubm,ubm->u", weights, weights) / corners[:, 0, 0]
        else:
            harms = np.einsum("uab,uba->u", np.linalg.inv(corners), weights @ weights.transpose(0, 2, 1))
        return np.asarray(self._weight * harms)

    def remove(self, units: Array) -> float:
        """Take `units`, (n,) numbers of those that are left, out together; the harm of it."""
        rows = self._blocks(units).reshape(-1)
        corner = self._inverse[np.ix_(rows, rows)]
        weights = self._solution[rows]
        solved = np.linalg.solve(corner, np.concatenate([self._inverse[rows], weights], axis=1))
        total = len(self._inverse)
        columns = self._inverse[:, rows].copy()
        self._inverse -= columns @ solved[:, :total]
        self._solution -= columns @ solved[:, total:]
        harm = float(np.sum(weights * solved[:, total:]))
        self._cut(units)
        return self._weight * max(harm, 0.0)

    def _cut(self, units: Array) -> None:
        """Move what is behind the removed blocks forward; keep views of what is left."""
        left = np.delete(np.arange(self._units), units)
        rows = np.concatenate([np.arange(self._fixed), self._blocks(left).reshape(-1)])
        first = self._fixed + int(units.min()) * self._size  # everything before it stays where it is
        moved, count = rows[first:], len(rows)
        self._inverse[first:count] = self._inverse[moved]
        self._inverse[:count, first:count] = self._inverse[:count, moved]
        self._solution[first:count] = self._solution[moved]
        self._inverse, self._solution = self._inverse[:count, :count], self._solution[:count]
        self._units = len(left)
