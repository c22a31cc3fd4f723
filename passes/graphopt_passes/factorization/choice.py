"""The multiple-choice program: each site takes exactly one of its options, budgets bound the sums of costs.

    minimize  Σ harm[i, j] x[i, j]     Σ_j x[i, j] = 1,   Σ cost_k[i, j] x[i, j] <= budget_k,   x binary

Solved by `scipy.optimize.milp`. Options that another of the same site beats in harm and in every cost are left out
first, which leaves a few dozen per site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt_passes.numerics.quadratic import Array

_SECONDS = 10.0
_GAP = 1e-4


def choose(harms: Sequence[Array], costs: Sequence[Array], budgets: Sequence[float]) -> list[int] | None:
    """The option of every site; None where no choice keeps the budgets.

    Args:
        harms: per site (options,), finite.
        costs: per site (options, kinds of cost), finite.
        budgets: (kinds of cost,).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, vstack

    kept = [undominated(harm, cost) for harm, cost in zip(harms, costs, strict=True)]
    if not kept:
        return []
    objective = np.concatenate([harm[one] for harm, one in zip(harms, kept, strict=True)])
    spent = np.concatenate([cost[one] for cost, one in zip(costs, kept, strict=True)])
    site = np.repeat(np.arange(len(kept)), [len(one) for one in kept])
    scale = np.maximum(np.abs(spent).max(axis=0), 1e-300)
    one_each = csr_matrix((np.ones(len(site)), (site, np.arange(len(site)))), shape=(len(kept), len(site)))
    rows = vstack([one_each, csr_matrix((spent / scale).T)], format="csr")
    low = np.concatenate([np.ones(len(kept)), np.full(len(budgets), -np.inf)])
    high = np.concatenate([np.ones(len(kept)), np.asarray(budgets, float) / scale])
    unit = max(float(np.abs(objective).max()), 1e-300)
    solution = milp(
        objective / unit,
        integrality=np.ones(len(site)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(rows, low, high),
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )
    if solution.x is None:
        return None
    taken = np.asarray(solution.x) > 0.5
    return [int(one[np.flatnonzero(taken[site == index])[0]]) for index, one in enumerate(kept)]


def undominated(harm: Array, cost: Array) -> Array:
    """Numbers of the options that no other is at least as good as in every respect; of equal ones the first."""
    order = np.lexsort((np.arange(len(harm)), *cost.T, harm))
    kept: list[int] = []
    for index in order:
        if not any((cost[other] <= cost[index]).all() for other in kept):
            kept.append(int(index))
    return np.array(sorted(kept), dtype=np.intp)
