"""How many units each group may keep, and what a choice of widths really costs.

Widths are multiples of what the runtime's kernels want, or stay as they are. The budget is for the whole model: a choice is
priced by removing its units from a clone, and the products of costs.py are only the direction in which to search.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.errors import TargetNotMetError
from graphopt.pricing import price
from graphopt_passes.lossy import count_said
from graphopt_passes.numerics.allocation import Choices, allocate
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning.branches import take_out
from graphopt_passes.pruning.costs import Measure, cost_of
from graphopt_passes.pruning.structure import Structure

_TRIALS = 8
_NEAR = 0.99
"""A choice that uses this share of the budget is near enough."""
_FINEST = 4
"""Other widths than multiples of it leave the blocked kernels of any processor."""
_HALF, _CHOICE = 8, 3
"""A group that has fewer widths than this to choose from may have half-full blocks."""


@dataclass(frozen=True)
class Limits:
    """What a group may keep.

    Attributes:
        align: channels are a multiple of this, or all of them. In a group that this leaves less than three widths it is
            halved, down to 8, and where there is no choice at all to 4: with blocks of 16, half of ResNet-20 in widths of 16 and
            8 lost half as much again as with 8 throughout the narrow layers, and was 3 % faster.
        fewest: channels that stay at least.
    """

    align: int = 1
    fewest: int = 1

    def widths(self, units: int, lanes: int) -> Array:
        """Numbers of units that a group of `units` units of `lanes` channels may keep, ascending; all is always among them."""
        align = self.align
        found = self._widths(units, lanes, align)
        while align % 2 == 0 and align > (_FINEST if len(found) == 1 else _HALF if len(found) < _CHOICE else align):
            align //= 2
            found = self._widths(units, lanes, align)
        return found

    def _widths(self, units: int, lanes: int, align: int) -> Array:
        every = np.arange(1, units + 1)
        channels = every * lanes
        fits = (channels % align == 0) & (channels >= min(self.fewest, units * lanes))
        return np.flatnonzero(fits | (every == units)) + 1


class Budget:
    """Widths within a cost of the whole model."""

    def __init__(
        self, model: ir.Model, structure: Structure, measure: Measure, limits: Limits, *, asked: float | None = None
    ) -> None:
        """`model` is not changed; `asked` is the option that bounds it, for messages."""
        self._asked = asked
        self._model = model
        self._structure = structure
        self._measure: Measure = measure
        self._cost = cost_of(model, structure, measure)
        self._priced: dict[tuple[int, ...], float] = {}
        self.full = np.array([len(group.units) for group in structure.groups], int)
        self._lanes = np.array([group.lanes for group in structure.groups], int)
        self.allowed = [limits.widths(len(group.units), group.lanes) for group in structure.groups]

    def narrowed(self, numbers: Collection[int], align: int) -> Budget:
        """The same with fewer widths for some groups: multiples of `align` channels, and where these rule none out, all units."""
        other = copy.copy(self)
        other.allowed = list(self.allowed)
        for number in numbers:
            allowed = self.allowed[number]
            blocks = allowed[(allowed * self._lanes[number] % align == 0) | (allowed == self.full[number])]
            other.allowed[number] = blocks if len(blocks) < len(allowed) else allowed[-1:]
        return other

    def real(self, widths: Array) -> float:
        """What the model costs at `widths`."""
        key = tuple(int(width) for width in widths)
        if key not in self._priced:
            model = self._model.clone()
            gone = {number: range(self.full[number] - width) for number, width in enumerate(key)}
            take_out(model, self._structure, gone)
            self._priced[key] = float(getattr(price(model), self._measure))
        return self._priced[key]

    def uniform(self, ratio: float) -> Array:
        """Every group loses this share of its units, as near as its widths allow."""
        return np.array(
            [
                allowed[int(np.argmin(np.abs(allowed - (1 - ratio) * full)))]
                for allowed, full in zip(self.allowed, self.full, strict=True)
            ],
            int,
        )

    def share_gone(self, widths: Array) -> float:
        """The share of the channels that can go which `widths` take."""
        return float(1 - np.sum(widths * self._lanes) / np.sum(self.full * self._lanes))

    def uniform_within(self, budget: float) -> Array:
        """The smallest uniform ratio that fits."""
        low, high = 0.0, 1.0
        self._check(budget, self.allowed)
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if self.real(self.uniform(middle)) <= budget else (middle, high)
        return self._filled(self.uniform(high), self.uniform(low), budget)

    def least_harm(self, curves: Mapping[int, Array], budget: float, *, whole: bool = False) -> Array:
        """The widths of least harm that fit.

        Args:
            curves: by group (U + 1,) harm by width; groups without one keep all.
            budget: of the whole model.
            whole: whether groups that take a branch along may go as a whole, where the curve says what that costs.

        Raises:
            TargetNotMetError: not even the narrowest widths fit.
        """
        widths_of = self._with_none() if whole else self.allowed
        self._check(budget, widths_of)
        choices = [
            Choices.of(curves[number], allowed) if number in curves else Choices(allowed[-1:], np.zeros(1))
            for number, allowed in enumerate(widths_of)
        ]
        fixed = self.real(self.full) - self._cost.of(self.full)
        aim, best = budget - fixed, None
        for _ in range(_TRIALS):
            widths = allocate(choices, self._cost, aim)
            real = self.real(widths)
            if real <= budget and (best is None or real > self.real(best)):
                best = widths
            if _NEAR * budget <= real <= budget or np.array_equal(widths, self.full):
                break
            aim += (budget - real) * (1.0 if real > budget else 0.7)
        return _narrowest(widths_of) if best is None else best

    def _with_none(self) -> list[Array]:
        """Widths that groups may keep, and 0 where a branch goes with them."""
        return [
            np.append(0, allowed) if number in self._structure.branches else allowed
            for number, allowed in enumerate(self.allowed)
        ]

    def _check(self, budget: float, allowed: Sequence[Array]) -> None:
        least = self.real(_narrowest(allowed))
        if least > budget:
            full = self.real(self.full)
            possible = math.ceil(1e3 * least / full) / 1e3
            raise TargetNotMetError(
                f"prune-channels: {budget:,.0f} of {full:,.0f} {self._measure} cannot be met: the narrowest widths keep "
                f"{least:,.0f}, {self._measure}={possible:g}; lower align or min_width, or ask for that much"
                f"{count_said(self._measure, self._asked)}"
            )

    def _filled(self, widths: Array, wider: Array, budget: float) -> Array:
        """`widths` with as many groups as wide as `wider` as fit, in the order of the graph."""
        for number in range(len(widths)):
            trial = widths.copy()
            trial[number] = wider[number]
            if self.real(trial) <= budget:
                widths = trial
        return widths


def _narrowest(allowed: Sequence[Array]) -> Array:
    """The fewest units of every group."""
    return np.array([widths[0] for widths in allowed], int)


def removed(order: Sequence[Array], widths: Array) -> dict[int, Array]:
    """Numbers of the units that go: the first ones of each group's order."""
    return {
        number: np.asarray(units[: len(units) - width], int)
        for number, (units, width) in enumerate(zip(order, widths, strict=True))
        if width < len(units)
    }
