"""How many units each group keeps, so that the summed harm is least under a budget of cost.

Groups g keep k_g of their units at a harm H_g(k_g). Layers cost products of what they read and write,

    cost = fixed + Σ scale · (a0 + Σ a_g k_g) · (b0 + Σ b_g k_g)

so that neighbours' widths multiply. For a multiplier λ coordinate descent takes, group by group, the k_g that minimizes
H_g + λ · cost given all others, until nothing changes; bisection finds the smallest λ whose result fits the budget. The
multiplier skips over widths off the convex hull of the harms, so the room that is left is filled greedily by gain per
cost, with steps of any length, and then pairs of groups trade: one shrinks, another grows, while the total harm falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt_passes.numerics.quantizer import Array

_SWEEPS = 30
_HALVINGS = 50
_TRADES = 200


@dataclass(frozen=True)
class Product:
    """scale · (left_fixed + Σ left[g] k_g) · (right_fixed + Σ right[g] k_g)."""

    scale: float
    left_fixed: float = 1.0
    right_fixed: float = 1.0
    left: Mapping[int, float] = field(default_factory=dict)
    right: Mapping[int, float] = field(default_factory=dict)


class Cost:
    """The cost of any choice of widths."""

    def __init__(self, products: Sequence[Product], fixed: float = 0.0) -> None:
        """`fixed` is what nothing changes."""
        self._products = list(products)
        self._fixed = fixed
        self._by_group: dict[int, list[Product]] = {}
        for product in products:
            for group in {*product.left, *product.right}:
                self._by_group.setdefault(group, []).append(product)

    def of(self, widths: Array) -> float:
        """The cost where group g keeps widths[g] units, (G,)."""
        return self._fixed + sum(float(_value(product, widths, -1, np.zeros(1))[0]) for product in self._products)

    def along(self, group: int, widths: Array, choices: Array) -> Array:
        """(n,) what depends on `group`, for each width of it in `choices` while all others keep theirs."""
        total = np.zeros(len(choices))
        for product in self._by_group.get(group, []):
            total += _value(product, widths, group, choices)
        return total


def _value(product: Product, widths: Array, group: int, choices: Array) -> Array:
    left, right = product.left_fixed, product.right_fixed
    left += sum(count * widths[other] for other, count in product.left.items() if other != group)
    right += sum(count * widths[other] for other, count in product.right.items() if other != group)
    sides = left + product.left.get(group, 0.0) * choices, right + product.right.get(group, 0.0) * choices
    return np.asarray(product.scale * sides[0] * sides[1])


@dataclass(frozen=True)
class Choices:
    """Widths that one group may take, ascending, and the harm of each; both (n,)."""

    widths: Array
    harms: Array

    @classmethod
    def of(cls, curve: Array, allowed: Array) -> Choices:
        """From the harm at every width, (U + 1,), the finite ones among the widths `allowed`, (n,) ascending."""
        widths = np.array([width for width in allowed if np.isfinite(curve[width])], int)
        return cls(widths, np.asarray(curve[widths], np.float64))


def allocate(groups: Sequence[Choices], cost: Cost, budget: float) -> Array:
    """(G,) widths of least summed harm whose cost is at most `budget`; the narrowest ones where nothing fits.

    Args:
        groups: what each may take.
        cost: of all widths together.
        budget: in the unit of `cost`.
    """
    widest = np.array([group.widths[-1] for group in groups], int)
    low, high = 0.0, 1.0
    total = max(1.0, cost.of(widest))
    scale = max(sum(float(group.harms[0]) for group in groups), 1e-30) / total
    found = _descend(groups, cost, 0.0)
    if cost.of(found) <= budget:
        return _grown(groups, cost, budget, found)
    while cost.of(found := _descend(groups, cost, high * scale)) > budget:
        low, high = high, high * 8
        if high > 1e18:
            return np.array([group.widths[0] for group in groups], int)
    best = found
    for _ in range(_HALVINGS):
        middle = (low + high) / 2 if low == 0 or high / low < 4 else float(np.sqrt(low * high))
        found = _descend(groups, cost, middle * scale)
        if cost.of(found) <= budget:
            high, best = middle, found
        else:
            low = middle
        if high - low < 1e-6 * high:
            break
    return _traded(groups, cost, budget, _grown(groups, cost, budget, best))


def least_cost(groups: Sequence[Choices], cost: Cost) -> float:
    """The cost of the narrowest widths."""
    return cost.of(np.array([group.widths[0] for group in groups], int))


def harm_of(groups: Sequence[Choices], widths: Array) -> float:
    """The summed harm of `widths` (G,), one that each group may take."""
    return float(
        sum(group.harms[np.searchsorted(group.widths, width)] for group, width in zip(groups, widths, strict=True))
    )


def _descend(groups: Sequence[Choices], cost: Cost, multiplier: float) -> Array:
    widths = np.array([group.widths[-1] for group in groups], int)
    for _ in range(_SWEEPS):
        before = widths.copy()
        for number, group in enumerate(groups):
            total = group.harms + multiplier * cost.along(number, widths, group.widths)
            widths[number] = group.widths[int(np.argmin(total))]
        if np.array_equal(before, widths):
            break
    return widths


def _grown(groups: Sequence[Choices], cost: Cost, budget: float, widths: Array) -> Array:
    """Widen groups into the room that is left, the best gain per cost first."""
    widths = widths.copy()
    room = budget - cost.of(widths)
    while True:
        best: tuple[float, int, int, float] | None = None
        for number, group in enumerate(groups):
            step = _best_step(number, group, cost, widths, room)
            if step is not None and (best is None or step[0] > best[0]):
                best = (step[0], number, step[1], step[2])
        if best is None:
            return widths
        widths[best[1]] = best[2]
        room -= best[3]


def _best_step(number: int, group: Choices, cost: Cost, widths: Array, room: float) -> tuple[float, int, float] | None:
    """(gain per cost, width, cost) of the best widening of one group that fits into `room`."""
    here = int(np.searchsorted(group.widths, widths[number]))
    if here + 1 >= len(group.widths):
        return None
    costs = cost.along(number, widths, group.widths[here:])
    extra, gain = costs[1:] - costs[0], group.harms[here] - group.harms[here + 1 :]
    fits = (extra <= room) & (gain > 0)
    if not fits.any():
        return None
    rates = np.where(fits, gain / np.maximum(extra, 1e-12), -np.inf)
    chosen = int(np.argmax(rates))
    return float(rates[chosen]), int(group.widths[here + 1 + chosen]), float(extra[chosen])


def _traded(groups: Sequence[Choices], cost: Cost, budget: float, widths: Array) -> Array:
    """Let one group shrink by a step and others grow into the room, as long as the summed harm falls."""
    harm = harm_of(groups, widths)
    for _ in range(_TRADES):
        best = None
        for number, group in enumerate(groups):
            here = int(np.searchsorted(group.widths, widths[number]))
            for back in (1, 2, 3, 5, 8):
                if here < back:
                    break
                trial = widths.copy()
                trial[number] = group.widths[here - back]
                trial = _grown(groups, cost, budget, trial)
                found = harm_of(groups, trial)
                if found < harm * (1 - 1e-9) and (best is None or found < best[0]):
                    best = (found, trial)
        if best is None:
            return widths
        harm, widths = best
    return widths
