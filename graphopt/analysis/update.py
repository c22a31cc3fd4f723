"""Following a change: inference of some nodes and of what follows from them, until nothing changes any more.

What stands on values is then an earlier result rather than a declaration. It still holds where inference has nothing to
say now, unless it was derived from something that has changed since: then it is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from graphopt.analysis import annotate, calculate, contents, dims, facts
from graphopt.analysis.dims import Dim
from graphopt.analysis.facts import Fact
from graphopt.analysis.inference import Inference, Scope
from graphopt.ir import walk


class Update(Inference):
    """Inference that starts at some nodes and writes what it finds onto the model's values.

    The main graph is walked once, in order; a node is looked at where it was asked for, or where the extents or the
    known contents of one of its inputs turned out different. A node with bodies is looked at as a whole.
    """

    def __init__(self, model: ir.Model, *, first_symbol: int) -> None:
        super().__init__(model, first_symbol=first_symbol)
        self._first = first_symbol
        self._outputs = set(model.graph.outputs)
        self._before: dict[ir.Value, Fact] = {}
        self._stale: set[ir.Value] = set()
        self._holders = {
            graph: node
            for node in model.graph
            for body in walk.subgraphs(node)
            for graph in walk.graph_and_bodies(body)
        }

    def follow(self, nodes: Collection[ir.Node]) -> None:
        """Look at `nodes` and at what follows from them."""
        pending = set(self._in_main_graph(nodes))
        asked = set(pending)
        if not pending:
            return
        recalculated: set[ir.Value] = set()
        for node in self.model.graph:
            if node not in pending:
                continue
            self.run_node(node, self.main)
            changed = self._write(node)
            if node in asked or not recalculated.isdisjoint(node.inputs) or node.op_type in contents.FROM_SHAPE_ALONE:
                recalculated.update(self._calculated(node))
                changed.extend(value for value in node.outputs if value in recalculated)
            for value in changed:
                pending.update(self._in_main_graph(value.consumers()))

    def _in_main_graph(self, nodes: Collection[ir.Node]) -> Iterator[ir.Node]:
        """The nodes of the main graph that `nodes` are, or stand inside; those in functions are passed over."""
        for node in nodes:
            if node.graph is self.model.graph:
                yield node
            elif node.graph in self._holders:
                yield self._holders[node.graph]

    def _calculated(self, node: ir.Node) -> Iterator[ir.Value]:
        """The outputs of `node` on whose contents shapes may depend."""
        if node.op_type in calculate.RULES:
            yield from (value for value in node.outputs if self.main.contents.of(value) is not None)

    # --- Bringing together what was known and what was found

    def assign(self, value: ir.Value, inferred: Fact, scope: Scope) -> None:
        """Take `inferred` for the output of a node, and what was known earlier where that is still valid."""
        if scope.is_function:
            self.settle(value, inferred, scope)
            return
        before = self._earlier(value)
        found = self.named(inferred)
        if self._replaces(found, before):
            self._stale.add(value)
        if not self._derived_from_stale(value) and not facts.contradict(found, before):
            found = self._with_earlier(found, before)
        self.settle(value, found, scope)

    def enter(self, value: ir.Value, given: Fact, scope: Scope) -> None:
        """Take `given` for an input of a body, whatever was known of it earlier."""
        if not scope.is_function and self.named(given) != self._earlier(value):
            self._stale.add(value)
        self.settle(value, given, scope)

    def _earlier(self, value: ir.Value) -> Fact:
        """What was known of `value` before this update, however often it is looked at."""
        return self._before.setdefault(value, facts.declared(value))

    def _derived_from_stale(self, value: ir.Value) -> bool:
        node = value.producer()
        if node is None:
            return False
        sources = [*node.inputs, *(output for body in walk.subgraphs(node) for output in body.outputs)]
        return any(source in self._stale for source in sources)

    def _replaces(self, found: Fact, before: Fact) -> bool:
        """Whether `found` is something else than `before`, not merely more or less of it."""
        if facts.contradict(found, before):
            return True
        if found.dims is None or before.dims is None:
            return False
        return any(
            a != b and not dims.is_invented(b) and not self._new(a)
            for a, b in zip(found.dims, before.dims, strict=True)
            if b is not None
        )

    def _with_earlier(self, found: Fact, before: Fact) -> Fact:
        """`found`, where the extents that have just been given symbols are the ones known before."""
        if found.dims is None or before.dims is None:
            return facts.refine(found, before)
        pairs = zip(found.dims, before.dims, strict=True)
        return Fact(found.type or before.type, tuple(b if b is not None and self._new(a) else a for a, b in pairs))

    def _new(self, dim: Dim) -> bool:
        return dims.invented_since(dim, self._first)

    # --- Writing

    def _write(self, node: ir.Node) -> list[ir.Value]:
        """Write what was found about `node` and its bodies; return the outputs of `node` that changed."""
        for body in walk.subgraphs(node):
            for graph in walk.graph_and_bodies(body):
                for value in (*graph.inputs, *(output for inner in graph for output in inner.outputs)):
                    if value in self.main.facts:
                        annotate.write(value, self.main.facts[value])
        return [value for value in node.outputs if value in self.main.facts and self._write_output(value)]

    def _write_output(self, value: ir.Value) -> bool:
        fact = self.main.facts[value]
        if value not in self._outputs:
            return annotate.write(value, fact)
        # A graph output keeps what is declared on it, which says nothing about what its readers see.
        annotate.write(value, facts.refine(annotate.without_invented(self._earlier(value)), fact))
        return value in self._stale
