"""From candidates to one per layer: the least harm under a budget of the whole model, or each layer on its own without one.

What is decided together, layers that share dimensions, is one unit of the integer program (`units`, `choice`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import TargetNotMetError
from graphopt.pricing import price
from graphopt_passes.factorization.candidates import Candidate, Search
from graphopt_passes.factorization.choice import choose
from graphopt_passes.factorization.units import Option, Proposal, total, units_of
from graphopt_passes.lossy import count_said

_COSTS = {"macs": "macs", "params": "weights"}
"""What is bounded, and the attribute of candidates that counts it."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bounds on sums over the whole model: a fraction of what it has where at most 1, else absolute. None: no bound."""

    macs: float | None = None
    params: float | None = None

    def __bool__(self) -> bool:
        return self.macs is not None or self.params is not None


def decide(model: ir.Model, proposals: Mapping[str, Proposal], budget: Budget, search: Search, title: str) -> Option:
    """One candidate for every layer, by its key.

    Args:
        model: what proposals were made for.
        proposals: by the layers' keys, in topological order.
        budget: of the whole model.
        search: where candidates come from.
        title: of the pass, for messages.

    Raises:
        TargetNotMetError: not even the smallest candidates keep the budget; the message says what they come to.
    """
    if budget:
        return _within_budget(model, proposals, budget, title)
    chosen: Option = {}
    for options in units_of(proposals):
        chosen |= _alone(options, search)
    return chosen


def _alone(options: list[Option], search: Search) -> Option:
    """The cheapest of what is accurate enough; where the amount is fixed, the most accurate replacement."""
    keep, *others = options
    if search.fixed:
        return min(others, key=lambda one: (total(one, "error"), total(one, "macs")), default=keep)
    order = ("seconds", "error") if search.faster else ("macs", "weights", "error")
    return min(options, key=lambda one: tuple(total(one, what) for what in order))


def _within_budget(
    model: ir.Model, proposals: Mapping[str, Proposal], budget: Budget, title: str
) -> dict[str, Candidate]:
    options = units_of(proposals)
    room = _room(model, options, budget, title)
    harms = [np.array([total(each, "harm") for each in one]) for one in options]
    costs = [np.array([[total(each, _COSTS[what]) for what in room] for each in one], float) for one in options]
    picked = choose(harms, costs, list(room.values()))
    if picked is None:
        raise TargetNotMetError(
            f"{title}: no choice of replacements keeps both macs and params; allow more of one of them"
        )
    chosen: Option = {}
    for one, index in zip(options, picked, strict=True):
        chosen |= one[index]
    return {key: chosen[key] for key in proposals}


def _room(model: ir.Model, options: list[list[Option]], budget: Budget, title: str) -> dict[str, float]:
    """What the layers may cost of everything that is bounded: the budget without what cannot be replaced."""
    totals, room = price(model), {}
    for what, attribute in _COSTS.items():
        asked, whole = getattr(budget, what), getattr(totals, what)
        if asked is None:
            continue
        bound = asked if asked > 1 else asked * whole
        fixed = whole - sum(total(one[0], attribute) for one in options)
        least = fixed + sum(min(total(each, attribute) for each in one) for one in options)
        if least > bound:
            raise TargetNotMetError(
                f"{title}: {bound:,.0f} of {whole:,} {what} ({what}={asked:g}) cannot be met: the least that these schemes can "
                f"reach is {least:,.0f}, {what}={math.ceil(1e3 * least / whole) / 1e3:g}; allow more of it, or more replacements "
                f"by prefer=macs{count_said(what, asked)}"
            )
        room[what] = bound - fixed
    return room
