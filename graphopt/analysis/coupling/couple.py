"""Coupling analysis: follow labels through the graph, decide what goes together, and say why the rest stays.

Symbolic extents are bound to numbers. The analysis is done for two choices of them, and a unit counts only where both
find the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from graphopt.analysis.coupling import units
from graphopt.analysis.coupling.binding import Bound, bindings
from graphopt.analysis.coupling.following import follow
from graphopt.analysis.coupling.resolution import Resolution, resolve
from graphopt.analysis.coupling.structure import Coupling, Unit
from graphopt.ops.labels import FIXED

SYMBOLIC = "depends on an extent that is not fixed"


def couple(model: ir.Model, *, excluded: Callable[[ir.Node], bool] = lambda node: False) -> Coupling:
    """Find the smallest sets of channels of `model` that can go.

    Args:
        model: a lifted model (its values have types and shapes); it is not changed.
        excluded: nodes that must not change, so that nothing that enters or leaves them goes.
    """
    first, *others = bindings(model)
    found = follow(model, Bound(model, first), excluded)
    resolution = resolve(found)
    all_units = units.units(found, resolution.component)
    for binding in others:
        other = follow(model, Bound(model, binding), excluded)
        same = {_content(unit) for unit in units.units(other, resolve(other).component)}
        differing = {unit.component for unit in all_units if _content(unit) not in same}
        if differing:
            all_units = [unit for unit in all_units if unit.component not in differing]
            resolution = _pin(resolution, differing)
    return Coupling(
        groups=units.groups(found, all_units, resolution.component),
        pinned=tuple(units.pinned(found, resolution)),
        widths={name: len(ids) for name, ids in found.produced.items()},
        following=found,
        component=resolution.component,
    )


def _content(unit: Unit) -> tuple[object, ...]:
    return tuple(unit.outputs.items()), tuple(unit.inputs.items())


def _pin(resolution: Resolution, components: Collection[int]) -> Resolution:
    stays = np.isin(resolution.component, list(components))
    reasons = {**resolution.reason, **dict.fromkeys(np.flatnonzero(stays).tolist(), SYMBOLIC)}
    return Resolution(np.where(stays, FIXED, resolution.component), reasons)
