"""Units and groups from components: what a pruner is shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from graphopt.analysis.coupling.following import Following
from graphopt.analysis.coupling.resolution import Resolution
from graphopt.analysis.coupling.structure import Group, Pinned, Unit
from graphopt.ops.labels import FIXED, Ids


def units(found: Following, component: np.ndarray) -> list[Unit]:
    """The components that hold output channels of linear layers, in the order of the graph."""
    outputs = _by_component(found.produced, component)
    inputs = _by_component(found.consumed, component)
    return [Unit(ends, inputs.get(number, {}), number) for number, ends in outputs.items()]


def _by_component(layers: Mapping[str, Ids], component: np.ndarray) -> dict[int, dict[str, tuple[int, ...]]]:
    """For each component the channels that it holds of each layer."""
    found: dict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, ids in layers.items():
        labels = component[ids]
        order = np.argsort(labels, kind="stable")
        numbers, starts = np.unique(labels[order], return_index=True)
        for number, run in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number != FIXED:
                found[number][name] = tuple(run.tolist())
    return found


def groups(found: Following, all_units: list[Unit], component: np.ndarray) -> tuple[Group, ...]:
    """Units that hold as many channels of the same layers."""
    passing = _by_component({name: ids.ravel() for name, ids in found.through.items()}, component)
    alike: dict[object, list[Unit]] = defaultdict(list)
    for unit in all_units:
        ends = (*_sizes(unit.outputs), None, *_sizes(unit.inputs), None, *passing.get(unit.component, {}))
        alike[ends].append(unit)
    made = []
    for members in alike.values():
        first = members[0]
        producers = tuple(first.outputs)
        made.append(
            Group(
                name=found.names[producers[0]],
                units=tuple(members),
                producers=producers,
                consumers=tuple(first.inputs),
                through=tuple(passing.get(first.component, {})),
                lanes=len(first.outputs[producers[0]]),
            )
        )
    return tuple(made)


def _sizes(ends: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, int], ...]:
    return tuple((name, len(indices)) for name, indices in ends.items())


def pinned(found: Following, resolution: Resolution) -> list[Pinned]:
    """Output channels that stay, by layer and reason."""
    result: list[Pinned] = []
    for name, ids in found.produced.items():
        counts: dict[str, int] = defaultdict(int)
        for atom in ids[resolution.component[ids] == FIXED].tolist():
            counts[resolution.reason[atom]] += 1
        result.extend(Pinned(name, count, reason) for reason, count in counts.items())
    return result
