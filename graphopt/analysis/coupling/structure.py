"""What coupling analysis finds: the smallest sets of channels that can go, and why the others cannot.

Nodes are named by their first output, which every node has and no other shares, so that an analysis of a model holds
for every clone of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.analysis.coupling.following import Following

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """Channels that can only go together.

    Attributes:
        outputs: of linear producers (Conv, ConvTranspose, Gemm, MatMul, a table of rows): output channels.
        inputs: of linear consumers: input channels, counted over all groups of a grouped convolution.
        component: the number of the unit within its analysis.
    """

    outputs: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, tuple[int, ...]]
    component: int


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units that play the same role: what a ratio applies to.

    Attributes:
        name: of the first producer.
        units: they all hold as many channels of the same nodes.
        producers: linear layers whose outputs the units are, in the order of the graph.
        consumers: linear layers whose inputs they are.
        through: depthwise convolutions that the channels pass.
        lanes: channels of the first producer that one unit holds.
    """

    name: str
    units: tuple[Unit, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    through: tuple[str, ...]
    lanes: int


@dataclasses.dataclass(frozen=True)
class Pinned:
    """Output channels of one producer that must stay, and why."""

    producer: str
    channels: int
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
    """All units of a model.

    Attributes:
        groups: of units that can go, in the order of the graph.
        pinned: channels that must stay.
        widths: the number of output channels of each linear producer.
        following: the labels of all tensors, for surgery.
        component: the unit of each label; 0 for those that stay.
    """

    groups: tuple[Group, ...]
    pinned: Sequence[Pinned]
    widths: Mapping[str, int]
    following: Following
    component: np.ndarray

    def to_networkx(self) -> nx.Graph:
        """Groups and layers, joined where a group's channels are outputs or inputs of a layer."""
        import networkx as nx

        graph = nx.Graph()
        for name, width in self.widths.items():
            graph.add_node(name, kind="layer", channels=width)
        for number, group in enumerate(self.groups):
            node = f"group {number}: {group.name}"
            graph.add_node(node, kind="group", units=len(group.units), lanes=group.lanes)
            unit = group.units[0]
            for role, ends in (("output", unit.outputs), ("input", unit.inputs)):
                for name, indices in ends.items():
                    graph.add_edge(node, name, role=role, channels=len(indices))
        for pin in self.pinned:
            known = graph.nodes[pin.producer].setdefault("pinned", {})
            known[pin.reason] = pin.channels
        return graph
