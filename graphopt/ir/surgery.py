"""Surgery: the few operations on a graph that nearly every rewrite needs, with the cases that are easy to get wrong.

One value standing in for another must respect graph outputs (each has a name and a type that users rely on, and must be
produced in its own graph); removing a node must also take back what the nodes in its bodies read from outside; a new
name must be free in every graph of the model, because bodies see the names around them. Edits of one graph are gathered
in an `Editor`, so that their cost follows what they touch and not the size of the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from graphopt.ir.walk import all_graphs, graph_and_bodies, subgraphs


@dataclasses.dataclass(frozen=True)
class Scope:
    """A graph that starts a scope of its own: the main graph or a function body. Bodies inside it see what it defines.

    Attributes:
        graph: the graph; `graphs()` adds the bodies inside it.
        opset_imports: domain to version, for all nodes of the scope.
        is_function: whether it is a function body, where shapes depend on the caller and initializers do not exist.
        ir_version: of the model.
    """

    graph: ir.Graph
    opset_imports: Mapping[str, int]
    is_function: bool
    ir_version: int

    def graphs(self) -> Iterator[ir.Graph]:
        """The graph and every body inside it, outer before inner."""
        return graph_and_bodies(self.graph)

    def opset(self, domain: str = "") -> int:
        """The version of the operators of `domain`; 1 where the scope does not import it."""
        return self.opset_imports.get(domain, 1)

    def has_initializers(self, graph: ir.Graph) -> bool:
        """Whether `graph`, one of the scope's, may have initializers; bodies may since IR version 4."""
        return not self.is_function and (graph is self.graph or self.ir_version >= 4)


def scopes(model: ir.Model) -> Iterator[Scope]:
    """The main graph, then each function."""
    yield Scope(model.graph, model.opset_imports, is_function=False, ir_version=model.ir_version)
    for function in model.functions.values():
        yield Scope(function.graph, function.opset_imports, is_function=True, ir_version=model.ir_version)


class FreshNames:
    """Names that no value and no node of the model has. The model is walked when the first one is asked for."""

    def __init__(self, model: ir.Model) -> None:
        """Names free in `model`, and different from each other."""
        self._model = model
        self._taken: set[str | None] | None = None
        self._last: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        """`base` with the smallest suffix that makes it free."""
        if self._taken is None:
            self._taken = set(_all_names(self._model))
        name, suffix = base, self._last.get(base, 1)
        while name in self._taken:
            suffix += 1
            name = f"{base}_{suffix}"
        self._last[base] = suffix
        self._taken.add(name)
        return name


def _all_names(model: ir.Model) -> Iterator[str | None]:
    for graph in all_graphs(model):
        yield from (value.name for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            yield node.name
            yield from (output.name for output in node.outputs)


class Editor:
    """Replacements of values and removals of nodes in one graph; `commit` removes the nodes, all at once."""

    def __init__(self, graph: ir.Graph) -> None:
        """Edit `graph`."""
        self.graph = graph
        self._doomed: dict[ir.Node, None] = {}
        self._positions: dict[ir.Value, list[int]] | None = None

    def why_not_replace(self, old: ir.Value, new: ir.Value) -> str | None:
        """Why `new` cannot stand for `old`, a value of this graph; None where it can."""
        if not old.is_graph_output():
            return None
        if new.producer() is None:
            return "a graph input or initializer cannot take the name of a graph output"
        if new.graph is not self.graph:
            return "a body must produce its outputs itself"
        if new.is_graph_output() or len(self._output_positions()[old]) > 1:
            return "two graph outputs would become one value"
        return None

    def replace(self, old: ir.Value, new: ir.Value) -> list[ir.Node]:
        """Let `new` stand for `old` wherever it is read, also in bodies, and return the nodes that read it now.

        As a graph output, `new` takes over the name, type, dims, doc string and metadata that users know. Elsewhere it
        keeps its own and learns what it did not know. Call `why_not_replace` first.
        """
        readers = list(old.consumers())
        if old.is_graph_output():
            (position,) = self._output_positions().pop(old)
            self.graph.outputs[position] = new
            self._output_positions()[new] = [position]
            name, old.name = old.name, None
            new.name = name
            new.type = old.type or new.type
            new.shape = new.shape if old.shape is None else old.shape
            new.doc_string = old.doc_string or new.doc_string
            new.metadata_props.update(old.metadata_props)
        else:
            _learn(new, old)
        old.replace_all_uses_with(new)
        return readers

    def remove(self, node: ir.Node) -> None:
        """Take `node` out of the graph at the next commit. It reads nothing from now on."""
        self._doomed[node] = None
        _detach(node)

    def doomed(self, node: ir.Node) -> bool:
        """Whether `node` is going to be removed."""
        return node in self._doomed

    def commit(self) -> None:
        """Remove the nodes. Raises ValueError where something still reads one."""
        if self._doomed:
            self.graph.remove(self._doomed, safe=True)
            self._doomed = {}

    def _output_positions(self) -> dict[ir.Value, list[int]]:
        if self._positions is None:
            self._positions = {}
            for position, output in enumerate(self.graph.outputs):
                self._positions.setdefault(output, []).append(position)
        return self._positions


def _learn(new: ir.Value, old: ir.Value) -> None:
    """Give `new` what is known of `old`, a value that equals it."""
    new.type = new.type or old.type
    signature = new.is_graph_input() or new.is_graph_output()  # what users see is not refined behind their back
    if old.shape is not None and old.shape != new.shape and not signature:
        known = new.shape
        new.shape = None if known is None else known.copy()
        try:
            new.merge_shapes(old.shape)
        except ValueError:  # the two contradict each other: one annotation is wrong, and it is not for us to say which
            new.shape = known
    for key, text in old.metadata_props.items():
        new.metadata_props.setdefault(key, text)


def _detach(node: ir.Node) -> None:
    """Take back every read of `node` and of the nodes in its bodies."""
    node.resize_inputs(0)
    for body in subgraphs(node):
        for inner in body:
            _detach(inner)


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, before: ir.Node, scope: Scope) -> ir.Value:
    """A new value of `graph` that holds `tensor`: an initializer where it may have one, or else a Constant node.

    Args:
        graph: one of the graphs of `scope`.
        name: of the new value; it must be free.
        tensor: what it holds; as an initializer it takes the name over.
        before: where a Constant node goes.
        scope: of `graph`.
    """
    tensor_type, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    if scope.has_initializers(graph):
        tensor.name = name
        value = ir.Value(name=name, type=tensor_type, shape=shape, const_value=tensor)
        graph.register_initializer(value)
        return value
    value = ir.Value(name=name, type=tensor_type, shape=shape)
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name="")
    graph.insert_before(before, node)
    return value


def drop_unread(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    """Remove those constants among `values` that nothing reads any more, and return them."""
    dropped = []
    for value in values:
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input() or value.graph is None:
            continue
        producer = value.producer()
        if value.is_initializer():
            del value.graph.initializers[value.name or ""]
        elif producer is not None and producer.op_type == "Constant" and producer.domain == "":
            value.graph.remove(producer, safe=True)
        else:
            continue
        dropped.append(value)
    return dropped
