"""Unused initializers: a tensor that no node reads, and that is neither graph input nor graph output, goes.

Bodies have initializers of their own, and read those of the graphs around them; both count.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.surgery import drop_unread
from graphopt.ir.walk import all_graphs
from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark


@dataclasses.dataclass(frozen=True)
class RemoveUnusedInitializers(Pass):
    """Remove initializers that nothing reads."""

    name: ClassVar[str] = "remove-unused-initializers"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove them from the main graph and from bodies."""
        values = [value for graph in all_graphs(model) for value in graph.initializers.values()]
        dropped = drop_unread(values)
        if not dropped:
            return PassResult(modified=False)
        return PassResult(True, (), (Remark("initializers", f"{len(dropped):,} removed: nothing reads them", True),))
