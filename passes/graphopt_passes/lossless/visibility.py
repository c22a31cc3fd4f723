"""Which values a node in a body can read: those of its own graph, and of the graphs around it unless a name hides them.

Values are read by name in the file, and a body may use a name that a graph around it uses too. To let a body read one
more value from outside, that name must mean this value there.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


class Visibility:
    """The names that each graph defines, gathered when first asked for."""

    def __init__(self) -> None:
        self._names: dict[ir.Graph, frozenset[str | None]] = {}

    def visible(self, value: ir.Value, graphs: Sequence[ir.Graph]) -> bool:
        """Whether a node in the last of `graphs` can read `value`, as far as names go.

        Args:
            value: an initializer, or the output of a node that stands before.
            graphs: a graph, and in it one inside the other the bodies that lead to the node.
        """
        owner = value.graph
        for graph in reversed(graphs):
            if graph is owner:
                return True
            if value.name in self._defined_in(graph):
                return False
        return False

    def _defined_in(self, graph: ir.Graph) -> frozenset[str | None]:
        if graph not in self._names:
            outputs = (output.name for node in graph for output in node.outputs)
            self._names[graph] = frozenset((*(v.name for v in (*graph.inputs, *graph.initializers.values())), *outputs))
        return self._names[graph]
