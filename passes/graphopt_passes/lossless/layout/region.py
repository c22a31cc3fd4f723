"""A region: nodes that can work in another axis order, and the values that connect them with each other and the rest.

For an order p, let T_p be the Transposes with that order and T_q those with its inverse. Every node of a region works
in the order that is there or in p, and the values that the region reads or makes are needed in one order or the other
by

* the nodes of the region, as they decide;
* T_p, which *wants* its input in order p: there it is the same as the output, and the Transpose not needed;
* T_q, which *gives* its output in order p: there it is the same as the input;
* all others, which need it as it is.

A value that is needed in both orders costs one Transpose. Which nodes work in order p at the lowest cost is a minimum
cut. A Transpose is counted at one value: where an order is its own inverse and both its input and its output belong
to the region, at its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from graphopt.analysis import facts
from graphopt_passes.lossless.layout.forms import Form, Order, form_of
from graphopt_passes.lossless.layout.minimum_cut import Net, minimum_cut
from graphopt_passes.lossless.no_ops.movement import permutation
from graphopt_passes.rewriting import Site

OVERHEAD = 1024
"""What a Transpose costs besides its elements, in elements: the call of a kernel."""


class Costs:
    """What it costs to transpose values: their elements, symbols counted as one, and the overhead."""

    def __init__(self) -> None:
        """Know no value yet."""
        self._known: dict[ir.Value, int] = {}

    def of(self, value: ir.Value) -> int:
        """The cost for `value`, by the extents that it is declared to have."""
        if value not in self._known:
            extents = facts.declared(value).dims or ()
            self._known[value] = OVERHEAD + math.prod(dim for dim in extents if isinstance(dim, int))
        return self._known[value]


def order_of(node: ir.Node | None, site: Site) -> tuple[int, ...] | None:
    """The axis order of a Transpose that may be touched; None for other nodes."""
    if node is None or node.op_type != "Transpose" or node.domain != "" or not site.may_touch(node):
        return None
    return permutation(node) if site.graph_of(node) is not None else None


class Forms:
    """The nodes of a graph that can work in an order, found when first asked for."""

    def __init__(self, order: Order, costs: Costs, site: Site) -> None:
        self.order = order
        self.costs = costs
        self.site = site
        self._known: dict[ir.Node, Form | None] = {}

    def of(self, node: ir.Node | None) -> Form | None:
        """The form of `node` in the order, None where it has none or may not be touched."""
        if node is None or node.op_type == "Transpose":
            return None
        if node not in self._known:
            free = self.site.graph_of(node) is not None and self.site.may_touch(node)
            self._known[node] = form_of(node, self.order, self.site) if free else None
        return self._known[node]

    def made_by(self, value: ir.Value) -> ir.Node | None:
        """The node that makes `value` in the order if it works in it."""
        node = value.producer()
        form = self.of(node)
        return node if form is not None and form.results else None

    def readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, bool]]:
        """What reads `value`, and whether it reads it in the order if it works in it."""
        for node, index in value.uses():
            form = self.of(node)
            yield node, form is not None and index in form.carried

    def carried(self, node: ir.Node) -> Iterator[ir.Value]:
        """The values that `node` reads or makes in the order if it works in it."""
        form = self.of(node)
        assert form is not None  # only nodes that have one are asked about
        yield from (value for index in form.carried if (value := node.inputs[index]) is not None)
        if form.results:
            yield from node.outputs


class Transposes:
    """The Transposes of a graph that have an order, or its inverse."""

    def __init__(self, nodes: Iterable[ir.Node], order: Order) -> None:
        """Find them among `nodes`, all Transposes that may be touched."""
        known = {node: permutation(node) for node in nodes}
        self.wants = {node: None for node, found in known.items() if found == order.order}
        self.gives = {node: None for node, found in known.items() if found == order.inverse}

    def ends(self) -> Iterator[ir.Value]:
        """The values that they want or give in the order."""
        yield from (value for node in self.wants if (value := node.inputs[0]) is not None)
        yield from (node.outputs[0] for node in self.gives)


class Region:
    """Nodes that are connected by values which they carry."""

    def __init__(
        self, nodes: Sequence[ir.Node], values: Sequence[ir.Value], forms: Forms, transposes: Transposes
    ) -> None:
        """A region of `nodes` and `values`; `transposes` are those of the whole graph."""
        self.nodes = nodes
        self.values = values
        self.forms = forms
        makers = dict.fromkeys(node for value in values if (node := value.producer()) is not None)
        readers = dict.fromkeys(node for value in values for node in value.consumers())
        self.gives = {node: None for node in makers if node in transposes.gives}
        self.wants = {node: None for node in readers if node in transposes.wants and node not in self.gives}
        self.neighbours = {node for node in makers | readers if node.op_type == "Transpose"}

    def improvement(self) -> list[ir.Node]:
        """The nodes that should work in the order; none where that saves nothing."""
        numbers = {node: number for number, node in enumerate(self.nodes)}
        nets = [self._net(value, numbers) for value in self.values]
        now = sum(net.cost for net in nets if net.left and (net.right or net.nodes))
        cost, left = minimum_cut(nets, len(self.nodes))
        return [node for node, number in numbers.items() if number in left] if cost < now else []

    def _net(self, value: ir.Value, numbers: dict[ir.Node, int]) -> Net:
        """`value` as a net; its left side is the order, its right side what is there."""
        maker = self.forms.made_by(value)
        gives = value.producer() in self.gives
        nodes = set() if maker is None else {numbers[maker]}
        left, right = gives, value.is_graph_output() or (maker is None and not gives)
        for node, carries in self.forms.readers(value):
            if carries:
                nodes.add(numbers[node])
            elif node in self.wants:
                left = True
            else:
                right = True
        return Net(self.forms.costs.of(value), sorted(nodes), left, right)


def regions(transposes: Transposes, forms: Forms) -> Iterator[Region]:
    """The regions beside `transposes`."""
    seen: set[ir.Value] = set()
    for end in transposes.ends():
        if end not in seen:
            nodes, values = _grown(end, forms)
            seen.update(values)
            if nodes:
                yield Region(nodes, values, forms, transposes)


def _grown(start: ir.Value, forms: Forms) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes and values that are connected with `start`."""
    nodes: dict[ir.Node, None] = {}
    values: dict[ir.Value, None] = {start: None}
    pending = [start]
    while pending:
        value = pending.pop()
        maker = forms.made_by(value)
        found = [] if maker is None else [maker]
        found += [node for node, carries in forms.readers(value) if carries]
        for node in found:
            if node not in nodes:
                nodes[node] = None
                for carried in forms.carried(node):
                    if carried not in values:
                        values[carried] = None
                        pending.append(carried)
    return list(nodes), list(values)
