"""The cheapest way to divide nodes into two sides, where nets that end up on both sides cost something.

A net joins any number of nodes, and may be tied to either side. Which nodes go where at the lowest cost of nets that
are torn is a minimum cut: for a net of cost w we add two vertices, in and out, with an edge of capacity w from in to
out, and edges that cannot be cut from every node of the net to in and from out to every node. All of the net on one
side cuts nothing; otherwise the one edge is cut. A maximum flow finds the cut (Ford & Fulkerson 1956; Dinic 1970).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

_SOURCE, _SINK, _FIRST = 0, 1, 2
_UNCUTTABLE = 2**62


class Net(NamedTuple):
    """Nodes that should be on one side.

    Attributes:
        cost: of having them on both.
        nodes: numbers of the nodes.
        left: whether the net is tied to the left side.
        right: whether it is tied to the right side.
    """

    cost: int
    nodes: Sequence[int]
    left: bool
    right: bool


def minimum_cut(nets: Sequence[Net], count: int) -> tuple[int, set[int]]:
    """The cost of the cheapest division of `count` nodes, and the smallest set that can be its left side."""
    flow = _Flow(_FIRST + count + 2 * len(nets))
    for number, net in enumerate(nets):
        inlet = _FIRST + count + 2 * number
        flow.connect(inlet, inlet + 1, net.cost)
        for node in net.nodes:
            flow.connect(_FIRST + node, inlet, _UNCUTTABLE)
            flow.connect(inlet + 1, _FIRST + node, _UNCUTTABLE)
        if net.left:
            flow.connect(_SOURCE, inlet, _UNCUTTABLE)
        if net.right:
            flow.connect(inlet + 1, _SINK, _UNCUTTABLE)
    cost = flow.maximum()
    reached = flow.levels()
    return cost, {node for node in range(count) if reached[_FIRST + node] >= 0}


class _Flow:
    """A flow from source to sink; edge e and its reverse e ^ 1 stand side by side."""

    def __init__(self, vertices: int) -> None:
        self.edges: list[list[int]] = [[] for _ in range(vertices)]
        self.head: list[int] = []
        self.capacity: list[int] = []

    def connect(self, tail: int, head: int, capacity: int) -> None:
        """Add an edge."""
        for vertex, other, room in ((tail, head, capacity), (head, tail, 0)):
            self.edges[vertex].append(len(self.head))
            self.head.append(other)
            self.capacity.append(room)

    def maximum(self) -> int:
        """Push what can be pushed along shortest paths, until no path is left; returns how much that was."""
        total = 0
        while (levels := self.levels())[_SINK] >= 0:
            next_edge = [0] * len(self.edges)
            while pushed := self._push(levels, next_edge):
                total += pushed
        return total

    def levels(self) -> list[int]:
        """The distance of each vertex from the source along edges with room; -1 for those out of reach."""
        levels = [-1] * len(self.edges)
        levels[_SOURCE] = 0
        pending = deque([_SOURCE])
        while pending:
            vertex = pending.popleft()
            for edge in self.edges[vertex]:
                if self.capacity[edge] and levels[self.head[edge]] < 0:
                    levels[self.head[edge]] = levels[vertex] + 1
                    pending.append(self.head[edge])
        return levels

    def _push(self, levels: Sequence[int], next_edge: list[int]) -> int:
        """Push along one path that climbs the levels; returns how much, 0 where there is none."""
        path: list[int] = []
        vertex = _SOURCE
        while vertex != _SINK:
            edge = self._climb(vertex, levels, next_edge)
            if edge is not None:
                path.append(edge)
                vertex = self.head[edge]
            elif path:  # a dead end: one step back, and the next edge there
                vertex = self.head[path.pop() ^ 1]
                next_edge[vertex] += 1
            else:
                return 0
        pushed = min(self.capacity[edge] for edge in path)
        for edge in path:
            self.capacity[edge] -= pushed
            self.capacity[edge ^ 1] += pushed
        return pushed

    def _climb(self, vertex: int, levels: Sequence[int], next_edge: list[int]) -> int | None:
        edges = self.edges[vertex]
        while next_edge[vertex] < len(edges):
            edge = edges[next_edge[vertex]]
            if self.capacity[edge] and levels[self.head[edge]] == levels[vertex] + 1:
                return edge
            next_edge[vertex] += 1
        return None
