"""Transposes moved to where they cancel, as in models from frameworks that put the channels last:

    Conv -> Transpose -> Relu -> Transpose -> Conv        ->        Conv -> Relu -> Conv

Many operators work in any axis order (`layout/forms.py`). Around each Transpose, the nodes that do and are connected
form a region; which of them work in the order of the Transpose is decided for the whole region at once, as the
cheapest division of its nodes into those that do and those that do not (`layout/region.py`), and then carried out
(`layout/reordering.py`).

The cost is the sum over all Transposes of the graph of the elements that they move, plus a constant for each. A move
is made only where it falls. It is a natural number, so there is an end, at which no move of one region saves
anything: running the pass again changes nothing, and no Transpose goes back and forth.

Transposes of constants are left for fold-constants; two in a row, for merge-consecutive. Inside functions extents are
not known, and nothing is moved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.surgery import FreshNames, scopes
from graphopt.ir.walk import label
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossless.layout.forms import Order
from graphopt_passes.lossless.layout.region import Costs, Forms, Transposes, order_of, regions
from graphopt_passes.lossless.layout.reordering import Reordering
from graphopt_passes.rewriting import Site


@dataclasses.dataclass(frozen=True)
class MoveTransposes(Pass):
    """Move Transposes through operators that do not mind, to where they cancel or move less."""

    name: ClassVar[str] = "move-transposes"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Move them in the main graph and in bodies, each by itself."""
        remarks, names = Remarks(), FreshNames(model)
        touched: dict[ir.Node, None] = {}
        for scope in scopes(model):
            for graph in () if scope.is_function else scope.graphs():
                moves = _Moves(Site(model, graph, scope, names, context), remarks, touched)
                moves.run()
        return PassResult(bool(touched), [node for node in touched if node.graph is not None], remarks.listed())


class _Moves:
    """The moves in one graph."""

    def __init__(self, site: Site, remarks: Remarks, touched: dict[ir.Node, None]) -> None:
        self.site = site
        self.remarks = remarks
        self.touched = touched
        self.costs = Costs()

    def run(self) -> None:
        """Move until the cost falls no more."""
        cost = self._cost()
        falls = cost > 0
        while falls:
            for order in self._orders():
                self._sweep(Order(order))
            before, cost = cost, self._cost()
            falls = cost < before

    def _transposes(self) -> Iterator[ir.Node]:
        return (node for node in self.site.graph if node.op_type == "Transpose" and node.domain == "")

    def _cost(self) -> int:
        return sum(self.costs.of(node.outputs[0]) for node in self._transposes())

    def _orders(self) -> list[tuple[int, ...]]:
        """The orders of the Transposes that may be moved, and their inverses, that are no identity."""
        found = {order: None for node in self._transposes() if (order := order_of(node, self.site)) is not None}
        found.update({Order(order).inverse: None for order in found})
        return [order for order in found if list(order) != sorted(order)]

    def _sweep(self, order: Order) -> None:
        """Make the moves that pay in the regions beside the Transposes with `order`."""
        movable = [node for node in self._transposes() if order_of(node, self.site) is not None]
        transposes = Transposes(movable, order)
        used: set[ir.Node] = set()
        for region in list(regions(transposes, Forms(order, self.costs, self.site))):
            if not used.isdisjoint(region.neighbours):
                continue  # it is not what it was; the next sweep will look at it
            moved = region.improvement()
            if moved:
                used |= region.neighbours
                for node in moved:
                    self.remarks.applied(label(node), "works in another axis order, which saves Transposes")
                move = Reordering(region, moved, self.site)
                move.carry_out()
                self.site.editor.commit()
                self.touched.update(move.touched)
