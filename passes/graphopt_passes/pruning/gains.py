"""What widths gain on this machine, and which groups go back to wider ones where the network came out slower.

A draft, cut to its widths but not refitted, is as fast as the result will be. Where it is slower than the original beyond doubt,
kernels are timed layer by layer, and the groups whose layers take as long as before lose their narrow widths: those that the
device has no full blocks for, and where there are none left, all. Then widths are chosen anew under the same budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.analysis.coupling import Group
from graphopt.errors import TargetNotMetError
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.kernel_times import KernelTimes
from graphopt.runtime.latency import Latency
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning.branches import take_out
from graphopt_passes.pruning.structure import Structure
from graphopt_passes.pruning.widths import Budget
from graphopt_passes.reconstruction import stopwatch

_ROUNDS = 4
_SECONDS = 0.6

Gone = dict[int, Array]
"""Numbers of the units that go, by group."""


class Drafts:
    """A network, and drafts of what is left of it, timed against each other."""

    def __init__(self, model: ir.Model, structure: Structure, evidence: Evidence) -> None:
        """`model` is not changed; `evidence` gives inputs, and the clock."""
        self._model = model
        self._structure = structure
        self._evidence = evidence

    def whole(self, gone: Mapping[int, Array]) -> Latency:
        """Time without the units `gone`, against the original."""

        def measured() -> Latency:
            draft = self._model.clone()
            take_out(draft, self._structure, gone)
            return stopwatch.race(self._model, draft, self._evidence)

        return self._evidence.remember(("pruned", counts(gone)), self._model, measured)

    def ratios(self, gone: Mapping[int, Array]) -> dict[int, float]:
        """Time of the kernels that make, pass on and read a group, against the original, for each group that loses units."""

        def measured() -> dict[int, float]:
            layers = _layers(self._structure, gone)
            plain, draft = _numbered(self._model, layers), _numbered(self._model, layers)
            take_out(draft, self._structure, gone)
            before, after = map(_by_number, self._evidence.kernel_times([plain, draft], seconds=_SECONDS))
            groups = self._structure.groups
            return {number: _ratio(before, after, [layers[name] for name in _names(groups[number])]) for number in gone}

        return self._evidence.remember(("pruned groups", counts(gone)), self._model, measured)


def settle(drafts: Drafts, choose: Callable[[Budget], Gone], budget: Budget, align: int) -> tuple[Gone, list[int]]:
    """Units that go such that the result is not slower than the original, as far as the budget allows.

    Args:
        drafts: of the network.
        choose: the units that go for the widths that a budget allows, or TargetNotMetError.
        budget: with all widths.
        align: channels of the device's full blocks.

    Returns:
        The units that go, and the groups that went back to wider ones.

    Raises:
        TargetNotMetError: not even the first choice meets the budget.
    """
    gone, back = choose(budget), list[int]()
    for _ in range(_ROUNDS):
        if not gone or drafts.whole(gone).interval[0] <= 1:
            break
        found = _again(choose, budget, align, _losing(drafts.ratios(gone)))
        if found is None:
            break
        gone, budget, losing = found
        back += [number for number in losing if number not in back]
    return gone, sorted(back)


def _again(
    choose: Callable[[Budget], Gone], budget: Budget, align: int, losing: list[int]
) -> tuple[Gone, Budget, list[int]] | None:
    """The choice with fewer widths for as many of the `losing` groups, the worst ones first, as the budget can do without."""
    while losing:
        narrower = budget.narrowed(losing, align)
        try:
            return choose(narrower), narrower, losing
        except TargetNotMetError:
            losing = losing[: len(losing) // 2]
    return None


def _losing(ratios: Mapping[int, float]) -> list[int]:
    """Groups that gain nothing, the slowest first; where each gains and the network does not, the half that gains least."""
    ranked = sorted(ratios, key=lambda number: -ratios[number])
    return [number for number in ranked if ratios[number] >= 1] or ranked[: (len(ranked) + 1) // 2]


def counts(gone: Mapping[int, Array]) -> tuple[tuple[int, int], ...]:
    """How many units of each group go: all that time depends on."""
    return tuple((number, len(units)) for number, units in sorted(gone.items()))


def _names(group: Group) -> tuple[str, ...]:
    return (*group.producers, *group.through, *group.consumers)


def _layers(structure: Structure, gone: Mapping[int, Array]) -> dict[str, int]:
    """A number for each layer that touches a group which loses units, by its name."""
    names = dict.fromkeys(name for number in gone for name in _names(structure.groups[number]))
    return {name: index for index, name in enumerate(names)}


def _numbered(model: ir.Model, layers: Mapping[str, int]) -> ir.Model:
    """A copy whose nodes say which layer they are: onnxruntime names kernels after them."""
    copy = model.clone()
    for index, node in enumerate(copy.graph):
        number = layers.get(node.outputs[0].name or "") if node.outputs else None
        node.name = f"node{index}" if number is None else f"#{number}#"
    return copy


def _by_number(times: KernelTimes) -> dict[int, float]:
    found = stopwatch.by_number(times)
    return {number: float(sum(np.median(seconds) for seconds in kernels)) for number, kernels in found.items()}


def _ratio(before: Mapping[int, float], after: Mapping[int, float], layers: list[int]) -> float:
    """Time of `layers` over what they took; 1 where the runtime's profile does not name them."""
    old = sum(before.get(number, 0.0) for number in layers)
    return sum(after.get(number, 0.0) for number in layers) / old if old > 0 else 1.0
