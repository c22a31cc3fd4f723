"""Conversions that look at one node after the other, in the main graph, in bodies and in functions."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.ir.surgery import FreshNames, scopes
from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.quantization.derived import Derived
from graphopt_passes.rewriting import Site, still_there


class NodeByNode(abc.ABC):
    """One run over a model: gathers what was done."""

    def __init__(self, model: ir.Model, context: PassContext, only: Callable[[ir.Node], bool] | None) -> None:
        """Convert `model`; `only` says which nodes may be converted, None is all that are not excluded."""
        self.model = model
        self.context = context
        self.only = only
        self.names = FreshNames(model)
        self.derived = Derived(self.names)
        self.remarks = Remarks()
        self.touched: dict[ir.Node, None] = {}

    @abc.abstractmethod
    def rewrite(self, node: ir.Node, site: Site) -> Sequence[ir.Node] | str | None:
        """New and changed nodes; why there are none; None where there is nothing to do. ValueError: not finite."""

    def run(self) -> list[ir.Node]:
        """Convert all nodes in place; returns those that are new or changed."""
        for scope in scopes(self.model):
            for graph in list(scope.graphs()):
                site = Site(self.model, graph, scope, self.names, self.context)
                self.convert(site)
                site.editor.commit()
        return still_there(self.touched, self.model)

    def convert(self, site: Site) -> None:
        """Convert one graph."""
        for node in list(site.graph):
            if self.allowed(node) and site.may_touch(node):
                self._visit(node, site)

    def allowed(self, node: ir.Node) -> bool:
        """Whether the caller lets `node` be converted."""
        return self.only is None or self.only(node)

    def _visit(self, node: ir.Node, site: Site) -> None:
        where = label(node)
        try:
            outcome = self.rewrite(node, site)
        except ValueError:  # of a quantizer's parameters
            outcome = "its weight is not finite"
        if isinstance(outcome, str):
            self.remarks.missed(where, f"left float: {outcome}")
        elif outcome is not None:
            self.touched.update(dict.fromkeys(outcome))
