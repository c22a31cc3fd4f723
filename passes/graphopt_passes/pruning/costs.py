"""What a choice of widths costs: MACs and parameters of every layer as products of what it reads and writes.

A layer with weights costs in proportion to input channels times output channels; where whole groups of a grouped
convolution go, or channels pass a depthwise one, in proportion to the outputs alone. What a choice really costs is found by
removing the units from a clone and pricing it: the products only say in which direction to go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import input_at, operator
from graphopt_passes.numerics.allocation import Cost, Product
from graphopt_passes.pruning.structure import Structure

Measure: TypeAlias = Literal["macs", "params"]


def cost_of(model: ir.Model, structure: Structure, measure: Measure) -> Cost:
    """The cost of every layer of `model` that groups of `structure` touch."""
    extents = Extents(model)
    ends = _Ends(structure)
    products = []
    for node in model.graph:
        name = node.outputs[0].name or "" if node.outputs else ""
        amount = _amount(node, extents, measure)
        if amount and ends.touches(name):
            products.append(ends.product(name, amount))
    return Cost(products)


def _amount(node: ir.Node, extents: Extents, measure: Measure) -> float:
    if measure == "macs":
        return float(operator(node).macs(node, extents) or 0)
    weight = constant_tensor(input_at(node, 1))
    return float(weight.size) if weight is not None and len(weight.shape) > 1 else 0.0


class _Ends:
    """How many input and output channels of each layer a unit of each group holds."""

    def __init__(self, structure: Structure) -> None:
        coupling = structure.coupling
        self._widths = coupling.widths
        self._inputs: dict[str, dict[int, float]] = {}
        self._outputs: dict[str, dict[int, float]] = {}
        self._sizes = [len(group.units) for group in structure.groups]
        self._total_inputs = {name: len(ids) for name, ids in coupling.following.consumed.items()}
        self._passing = {name: coupling.component[ids.ravel()] for name, ids in coupling.following.through.items()}
        for number, group in enumerate(structure.groups):
            unit = group.units[0]
            for name, channels in unit.outputs.items():
                self._outputs.setdefault(name, {})[number] = len(channels)
            for name, channels in unit.inputs.items():
                self._inputs.setdefault(name, {})[number] = len(channels)
            for name in group.through:
                count = int(np.sum(self._passing[name] == unit.component))
                self._outputs.setdefault(name, {})[number] = count

    def touches(self, name: str) -> bool:
        return name in self._inputs or name in self._outputs

    def product(self, name: str, amount: float) -> Product:
        outputs = self._outputs.get(name, {})
        inputs = {} if name in self._passing else self._inputs.get(name, {})
        inputs = {number: count for number, count in inputs.items() if number not in outputs or not self._tied(name)}
        total_out = self._widths.get(name) or self._passing.get(name, np.zeros(1)).size
        total_in = self._total_inputs.get(name, 1) if inputs else 1
        scale = amount / (total_in * total_out)
        return Product(
            scale, self._fixed(total_in, inputs), self._fixed(total_out, outputs), dict(inputs), dict(outputs)
        )

    def _tied(self, name: str) -> bool:
        """Whether all inputs go with outputs of the same layer, as whole groups of a grouped convolution do."""
        return set(self._inputs.get(name, ())) <= set(self._outputs.get(name, ()))

    def _fixed(self, total: float, counts: Mapping[int, float]) -> float:
        return max(0.0, total - sum(count * self._sizes[number] for number, count in counts.items()))
