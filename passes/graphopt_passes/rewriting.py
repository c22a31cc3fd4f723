"""Rules on a worklist: how most exact passes are written.

A `Rule` names the operators that it starts from and, given one such node, either rewrites the graph around it, says why
it does not (a sentence for the remarks), or finds that the node is none of its business. A `RulePass` runs its rules
to a fixed point: every node whose operator some rule starts from is visited once, and again only when something beside
it changed. The cost of a pass is thus one look at each node plus the work around matches, however many rules it has.

    class DoubleNegation(Rule):
        roots = frozenset({"Neg"})
        def rewrite(self, node, site):
            inner = site.producer(node.inputs[0], "Neg")
            if inner is None:
                return None
            return site.forward(node, inner.inputs[0])
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import Editor, FreshNames, Scope, add_constant, drop_unread, scopes
from graphopt.ir.walk import all_graphs, constant_tensor, label
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.remarks import Remarks

SMALL = 4096
"""Elements of a constant that rules read freely: shapes, scales, permutations."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A rewrite took place.

    Attributes:
        what: one phrase for the remarks, the same for all places.
        touched: nodes that were made or changed.
    """

    what: str
    touched: tuple[ir.Node, ...] = ()


Outcome = Done | str | None
"""What a rule says of a node: done; a reason why a near match was left alone; or nothing."""


class Rule(abc.ABC):
    """One rewrite.

    Attributes:
        roots: operators of the standard domain that it starts from.
    """

    roots: ClassVar[frozenset[str]]

    @abc.abstractmethod
    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Rewrite around `node`, whose operator is one of `roots`, or say why not. Check everything before changing."""


class Site:
    """The graph that a rule works in, and the few ways to look at it and to change it."""

    def __init__(self, model: ir.Model, graph: ir.Graph, scope: Scope, names: FreshNames, context: PassContext) -> None:
        self.model = model
        self.graph = graph
        self.scope = scope
        self.context = context
        self.editor = Editor(graph)
        self.disturbed: list[ir.Value] = []
        self._names = names

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.scope.opset()

    # Looking

    def producer(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """The node of this graph that makes `value`, where it is one of `op_types` and may be touched."""
        node = None if value is None else value.producer()
        if node is None or node.domain != "" or (op_types and node.op_type not in op_types):
            return None
        return node if node.graph is self.graph_of(node) and self.may_touch(node) else None

    def may_touch(self, node: ir.Node) -> bool:
        """Whether rules may look into `node`: it is not excluded, and its attributes do not depend on a caller."""
        if self.context.excluded(node):
            return False
        return not self.scope.is_function or not any(attribute.is_ref() for attribute in node.attributes.values())

    def graph_of(self, node: ir.Node) -> ir.Graph | ir.Function | None:
        """The graph of `node` where it is the one that is worked on, else None."""
        owner = node.graph
        same = owner is self.graph or (isinstance(owner, ir.Function) and owner.graph is self.graph)
        return owner if same else None

    def only_reader(self, value: ir.Value) -> ir.Node | None:
        """The node of this graph that alone reads `value`, once, where it is no graph output; else None."""
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return None
        node = next(iter(uses)).node
        return node if self.graph_of(node) is not None and self.may_touch(node) else None

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor that `value` always holds, or None."""
        return constant_tensor(value)

    def array(self, value: ir.Value | None, limit: int = SMALL) -> np.ndarray[Any, Any] | None:
        """The constant that `value` holds, where it has at most `limit` elements."""
        tensor = constant_tensor(value)
        return None if tensor is None or tensor.size > limit else tensor.numpy()

    def dims(self, value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...] | None:
        """Extents of `value`, numbers or symbols, where its rank is known."""
        return None if value is None or value.shape is None else tuple(value.shape.dims)

    def static_dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Extents of `value` where all are numbers."""
        dims = self.dims(value)
        if dims is None:
            return None
        numbers = tuple(dim for dim in dims if isinstance(dim, int))
        return numbers if len(numbers) == len(dims) else None

    # Changing

    def fresh(self, base: str) -> str:
        """A name like `base` that no value and no node of the model has."""
        return self._names.fresh(base)

    def new_constant(self, array: np.ndarray[Any, Any] | ir.TensorProtocol, base: str, before: ir.Node) -> ir.Value:
        """A new constant; `base` is the stem of its name, `before` the node that will read it."""
        tensor = ir.Tensor(np.asarray(array, order="C")) if isinstance(array, np.ndarray) else array
        tensor.name = self._names.fresh(base)
        return add_constant(self.graph, tensor.name, tensor, before, self.scope)

    def new_node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        before: ir.Node,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Node:
        """A new node of the standard domain with one output, inserted before `before`.

        The output takes its element type, and where the caller does not set another, its shape from `like`; its name is
        derived from that of `like`.
        """
        present = ir.convenience.convert_attributes(dict(attributes or {}))
        name = self._names.fresh(f"{like.name or op_type}_{op_type.lower()}")
        output = ir.Value(name=name, type=copy.copy(like.type), shape=None if like.shape is None else like.shape.copy())
        node = ir.Node("", op_type, inputs, present, outputs=[output], name=self._names.fresh(f"{name}_node"))
        self.graph.insert_before(before, node)
        return node

    def forward(self, node: ir.Node, value: ir.Value | None, what: str = "removed") -> Outcome:
        """Let `value` stand for the one output of `node` and remove the node, or say why that cannot be."""
        assert value is not None
        why_not = self.editor.why_not_replace(node.outputs[0], value)
        if why_not is not None:
            return f"kept: {why_not}"
        readers = self.replace(node, value)
        return Done(what, readers)

    def replace(self, node: ir.Node, value: ir.Value) -> tuple[ir.Node, ...]:
        """Let `value` stand for the one output of `node` and remove the node; returns what reads `value` now.

        Call `editor.why_not_replace` first where `value` is not the output of a new node.
        """
        readers = self.editor.replace(node.outputs[0], value)
        self.remove(node)
        return tuple(readers)

    def remove(self, node: ir.Node) -> None:
        """Remove `node`, which nothing reads, and the constants that it alone read."""
        reads = [read for read in node.inputs if read is not None]
        self.editor.remove(node)
        self._lost_reader(reads)

    def remove_unread(self, node: ir.Node) -> None:
        """Remove `node` where nothing reads any more what it computes."""
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            self.remove(node)

    def set_inputs(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        """Let `node` read `inputs`; constants that nothing reads any more go."""
        lost = [read for read in node.inputs[len(inputs) :] if read is not None]
        node.resize_inputs(len(inputs))
        for index, (old, new) in enumerate(zip(node.inputs, inputs, strict=True)):
            if old is not new:
                node.replace_input_with(index, new)
                lost += [] if old is None else [old]
        self._lost_reader(lost)

    def _lost_reader(self, values: Sequence[ir.Value]) -> None:
        dropped = drop_unread(dict.fromkeys(values))
        self.disturbed += dict.fromkeys(value for value in values if value not in dropped)


class RulePass(Pass):
    """A pass made of rules; subclasses say which."""

    @abc.abstractmethod
    def rules(self) -> Sequence[Rule]:
        """The rules, the first that matches wins."""

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Run the rules to a fixed point in the main graph, in bodies and in functions."""
        remarks, names = Remarks(), FreshNames(model)
        touched: dict[ir.Node, None] = {}
        by_root: dict[str, list[Rule]] = {}
        for rule in self.rules():
            for root in rule.roots:
                by_root.setdefault(root, []).append(rule)
        modified = False
        for scope in scopes(model):
            again = True
            while again:  # a body that reads less than before may leave a value around it with one reader
                again = False
                for graph in scope.graphs():
                    site = Site(model, graph, scope, names, context)
                    if _Worklist(site, by_root, remarks, touched).run():
                        modified = True
                        again |= graph is not scope.graph
        return PassResult(modified, still_there(touched, model), remarks.listed())


def still_there(nodes: Iterable[ir.Node], model: ir.Model) -> list[ir.Node]:
    """Those of `nodes` that are in `model`, not removed nor in a body that was."""
    left = [node for node in nodes if node.graph is not None]
    graphs: set[ir.Graph | ir.Function | None] = {model.graph}
    if any(node.graph is not model.graph for node in left):
        graphs.update(all_graphs(model), model.functions.values())
    return [node for node in left if node.graph in graphs]


class _Worklist:
    """The nodes of one graph that some rule may still match."""

    def __init__(
        self, site: Site, by_root: Mapping[str, Sequence[Rule]], remarks: Remarks, touched: dict[ir.Node, None]
    ) -> None:
        self.site = site
        self.by_root = by_root
        self.remarks = remarks
        self.touched = touched
        self.pending: deque[ir.Node] = deque()
        self.queued: set[ir.Node] = set()
        self.reasons: dict[ir.Node, str] = {}

    def run(self) -> bool:
        """Visit until nothing matches; whether anything did."""
        self.enqueue(self.site.graph)
        modified = False
        while self.pending:
            node = self.pending.popleft()
            self.queued.discard(node)
            if not self.site.editor.doomed(node) and self.site.graph_of(node) is not None:
                modified |= self.visit(node)
        for node, reason in self.reasons.items():
            if not self.site.editor.doomed(node):
                self.remarks.missed(label(node), reason)
        self.site.editor.commit()
        return modified

    def visit(self, node: ir.Node) -> bool:
        """Try the rules of one node; whether one matched."""
        if not self.site.may_touch(node):
            return False
        self.reasons.pop(node, None)
        where = label(node)
        for rule in self.by_root[node.op_type]:
            outcome = rule.rewrite(node, self.site)
            if isinstance(outcome, str):
                self.reasons.setdefault(node, outcome)
            elif outcome is not None:
                self.reasons.pop(node, None)
                self.remarks.applied(where, outcome.what)
                self.touched.update(dict.fromkeys(outcome.touched))
                for changed in (node, *outcome.touched):
                    self.enqueue(_neighbourhood(changed))
                self.enqueue(self.disturbed())
                return True
        return False

    def disturbed(self) -> Iterable[ir.Node]:
        """Nodes beside a value that has one reader less, and now only one."""
        values, self.site.disturbed = self.site.disturbed, []
        for value in values:
            producer, readers = value.producer(), value.uses()
            if producer is not None and len(readers) == 1:
                yield producer
                yield from (use.node for use in readers)

    def enqueue(self, nodes: Iterable[ir.Node]) -> None:
        """Add those nodes that a rule starts from."""
        for node in nodes:
            if node.op_type in self.by_root and node.domain == "" and node not in self.queued:
                self.queued.add(node)
                self.pending.append(node)


def _neighbourhood(node: ir.Node) -> Iterable[ir.Node]:
    """`node`, what it reads from, and what reads it."""
    yield node
    yield from node.predecessors()
    yield from node.successors()
