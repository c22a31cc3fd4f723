"""numerics.allocation against brute force over all choices of widths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.numerics.allocation import Choices, Cost, Product, allocate, harm_of, least_cost


def _chain(seed: int, groups: int, units: int) -> tuple[list[Choices], Cost]:
    """Layers in a row: the cost of each is the product of its neighbours' widths."""
    rng = np.random.default_rng(seed)
    products = [Product(rng.uniform(1, 4), left_fixed=3, right_fixed=0, right={0: 1})]
    for group in range(groups):
        right = {group + 1: 1.0} if group + 1 < groups else {}
        products.append(Product(rng.uniform(1, 4), 0.0, 0.0 if right else 10.0, {group: 1.0}, right))
    curves = [np.cumsum(rng.uniform(0.1, 1, units + 1) ** 3)[::-1] * rng.uniform(0.3, 3) for _ in range(groups)]
    return [Choices.of(curve, np.arange(1, units + 1)) for curve in curves], Cost(products, fixed=7.0)


def test_cost_is_the_sum_of_products() -> None:
    cost = Cost([Product(2.0, 1, 0, {0: 3.0}, {1: 1.0}), Product(5.0, 0, 1, {1: 1.0})], fixed=10)
    assert cost.of(np.array([2, 4])) == 10 + 2 * (1 + 6) * 4 + 5 * 4
    along = cost.along(0, np.array([2, 4]), np.array([1, 2]))
    assert along[1] - along[0] == 2 * 3 * 4


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_near_the_best_of_all_choices(seed: int, share: float) -> None:
    groups, cost = _chain(seed, 4, 6)
    budget = share * cost.of(np.full(4, 6))
    found = allocate(groups, cost, budget)
    assert cost.of(found) <= budget
    fitting = [
        harm_of(groups, np.array(widths))
        for widths in itertools.product(range(1, 7), repeat=4)
        if cost.of(np.array(widths)) <= budget
    ]
    full = harm_of(groups, np.full(4, 6))
    assert harm_of(groups, found) - full <= 1.5 * (min(fitting) - full) + 1e-9


def test_what_costs_nothing_goes_although_there_is_room() -> None:
    curve = np.array([np.inf, 5.0, 0.0, 0.0, 0.0])
    groups, cost = [Choices.of(curve, np.arange(1, 5))], Cost([Product(1.0, right={0: 1.0}, right_fixed=0)])
    assert allocate(groups, cost, 100.0).tolist() == [2]


def test_only_widths_that_are_allowed() -> None:
    groups, cost = _chain(1, 4, 8)
    groups = [Choices(group.widths[[3, 7]], group.harms[[3, 7]]) for group in groups]
    found = allocate(groups, cost, 0.5 * cost.of(np.full(4, 8)))
    assert set(found.tolist()) <= {4, 8}


def test_the_narrowest_where_nothing_fits() -> None:
    groups, cost = _chain(2, 3, 5)
    assert allocate(groups, cost, 1.0).tolist() == [1, 1, 1]
    assert least_cost(groups, cost) == cost.of(np.ones(3))
