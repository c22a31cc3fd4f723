"""A model as channel pruning sees it: groups of units, the layers that read them, and through which columns.

Coupling analysis says which channels can only go together. Here its answer is joined with the linear layers as matrices:
removing a unit means that its columns of every layer that reads it are zero. A network whose layers have such zeros
computes what the pruned one will, so that everything is tried and repaired at full width, and channels are cut out last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphopt.analysis.coupling import Coupling, Group, Unit
from graphopt.runtime.blas import one_thread
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of

MOST_COLUMNS = 6_000
"""Wider layers are not refitted: matrices of their columns would take more than 300 MB each, and several are needed."""

_NARROW = 1024
"""Columns of the widest layer up to which products are too small for several threads."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One block of a linear layer, and the columns through which it reads the units of a group.

    Attributes:
        key: of the layer (`Linear.key`).
        block: number of the group of channels, for grouped convolutions; else 0.
        columns: (U, B) numbers of columns.
    """

    key: str
    block: int
    columns: Array


class Structure:
    """Groups and the layers that read them; names only, so that it holds for every clone of the model.

    Attributes:
        branches: sums whose branch goes with the last unit of a group, by the group's number (branches.py); none by default.
    """

    def __init__(self, model: ir.Model, coupling: Coupling) -> None:
        """`coupling` is that of `model`."""
        self.coupling = coupling
        self.groups: tuple[Group, ...] = coupling.groups
        layers = layers_of(model.graph)
        self.order = [layer.key for layer in layers]
        self._widest = max((layer.width for layer in layers), default=0)
        self._by_node = {layer.node.outputs[0].name or "": layer for layer in layers}
        self.readings = [self._readings(group) for group in self.groups]
        self.branches: dict[int, str] = {}

    def threads(self) -> AbstractContextManager[None]:
        """How many threads products use within: one where all matrices are small, for several wait by spinning."""
        return one_thread() if self._widest <= _NARROW else nullcontext()

    @cached_property
    def readers(self) -> Mapping[str, list[int]]:
        """Numbers of the groups that each layer reads."""
        found: dict[str, list[int]] = {}
        for number, readings in enumerate(self.readings):
            for reading in readings:
                if number not in found.setdefault(reading.key, []):
                    found[reading.key].append(number)
        return found

    def layer(self, node: str) -> Linear | None:
        """The linear layer whose node has the first output `node`, in the model that was analysed."""
        return self._by_node.get(node)

    def is_seen(self, number: int) -> bool:
        """Whether all layers that read group `number` are matrices that are not too wide for their moments to be held."""
        group = self.groups[number]
        inside = [self._by_node.get(name) for name in group.consumers if not self._reads_whole_blocks(group, name)]
        return bool(inside) and all(layer is not None and layer.width <= MOST_COLUMNS for layer in inside)

    def units(self, gone: Mapping[int, Collection[int]]) -> list[Unit]:
        """The units with the numbers `gone` of each group."""
        return [self.groups[number].units[unit] for number, units in gone.items() for unit in units]

    def goes_whole(self, number: int, gone: Mapping[int, Collection[int]]) -> bool:
        """Whether `gone` takes all units of a group, and with them a branch."""
        return number in self.branches and len(gone.get(number, ())) == len(self.groups[number].units)

    def gone_columns(self, key: str, shape: tuple[int, int], gone: Mapping[int, Collection[int]]) -> Array:
        """(G, K) bool: columns of layer `key` that read removed units."""
        mask = np.zeros(shape, bool)
        for number in self.readers.get(key, ()):
            units = np.fromiter(gone.get(number, ()), int)
            for reading in self.readings[number]:
                if reading.key == key:
                    mask[reading.block, reading.columns[units].reshape(-1)] = True
        return mask

    def _reads_whole_blocks(self, group: Group, name: str) -> bool:
        """Whether units are whole groups of channels of a grouped layer: what reads them goes with them."""
        layer = self._by_node.get(name)
        return layer is not None and layer.groups > 1 and name in group.producers

    def _readings(self, group: Group) -> list[Reading]:
        found = []
        for name in group.consumers:
            layer = self._by_node.get(name)
            if layer is None or self._reads_whole_blocks(group, name):
                continue
            found += _blocks(layer, [unit.inputs[name] for unit in group.units])
        return found


def _blocks(layer: Linear, channels: Sequence[tuple[int, ...]]) -> list[Reading]:
    """The readings of a layer whose input channels `channels` belong to each unit; none where units lie unevenly."""
    channels_per_block, size = _kernel(layer)
    by_unit = np.array(channels)  # (U, lanes)
    blocks = by_unit // channels_per_block
    found = []
    for block in range(layer.groups):
        inside = blocks == block
        counts = inside.sum(axis=1)
        if not counts[0] or (counts != counts[0]).any():
            continue
        local = by_unit[inside].reshape(len(by_unit), counts[0]) - block * channels_per_block
        columns = local[:, :, None] * size + np.arange(size)
        found.append(Reading(layer.key, block, columns.reshape(len(by_unit), -1)))
    return found


def _kernel(layer: Linear) -> tuple[int, int]:
    """Input channels per block, and columns per channel."""
    if layer.node.op_type not in ("Conv", "ConvTranspose"):
        return layer.width, 1
    weight = layer.node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    size = int(np.prod(weight.shape.numpy()[2:]))
    return layer.width // size, size
