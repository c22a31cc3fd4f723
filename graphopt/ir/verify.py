"""Is the IR still a graph? The structural half of verification; `graphopt.analysis.meaning` is the other.

Checked: every value has one producer and a unique name in its scope, every node reads values that are visible where it
stands and defined before it, use lists agree with inputs, bodies likewise, and graph outputs exist. With `nodes`, only
these and their neighbours are looked at, which is what a pass manager can afford after every pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from graphopt.errors import VerificationError
from graphopt.ir.walk import all_graphs, label, subgraphs


def verify(model: ir.Model, nodes: Collection[ir.Node] | None = None) -> None:
    """Check the structure of `model`.

    Args:
        model: the model.
        nodes: look at these nodes and their neighbours only; None looks at everything.

    Raises:
        VerificationError: names the graph, node or value that is wrong.
    """
    if nodes is not None:
        _verify_touched(model, nodes)
        return
    _verify_graph(model.graph, frozenset(), "the main graph")
    for function in model.functions.values():
        _verify_graph(function.graph, frozenset(), f"function '{function.name}'")


def _verify_graph(graph: ir.Graph, outer: frozenset[ir.Value], where: str) -> None:
    visible = {*graph.inputs, *graph.initializers.values()}
    names: dict[str, ir.Value] = {}
    for value in visible:
        _claim_name(value, names, where)
    for name, value in graph.initializers.items():
        if value.const_value is None or value.name != name or value.producer() is not None:
            raise VerificationError(f"{where}: initializer '{name}' has no tensor, another name, or a producer")
    for node in graph:
        if node.graph is not graph:
            raise VerificationError(f"{where}: {label(node)} thinks it is in another graph")
        for index, read in enumerate(node.inputs):
            if read is not None and read not in visible and read not in outer:
                raise VerificationError(f"{where}: {label(node)} reads '{read.name}', which is not defined before it")
            _check_use(node, index, read, where)
        for body in subgraphs(node):
            _verify_graph(body, outer | visible, f"{where}, body of {label(node)}")
        for output in node.outputs:
            if output.producer() is not node:
                raise VerificationError(f"{where}: output '{output.name}' of {label(node)} has another producer")
            _claim_name(output, names, where)
            visible.add(output)
    for output in graph.outputs:
        if output not in visible and output not in outer:
            raise VerificationError(f"{where}: graph output '{output.name}' is produced by no node")
        if not output.name:
            raise VerificationError(f"{where}: a graph output has no name")
    for value in visible:
        _check_uses(value, where)


def _claim_name(value: ir.Value, names: dict[str, ir.Value], where: str) -> None:
    if not value.name:
        if value.uses():
            raise VerificationError(f"{where}: a value that is used has no name")
        return
    if names.setdefault(value.name, value) is not value:
        raise VerificationError(f"{where}: two values are called '{value.name}'")


def _check_use(node: ir.Node, index: int, value: ir.Value | None, where: str) -> None:
    if value is not None and (node, index) not in value.uses():
        raise VerificationError(f"{where}: '{value.name}' does not know that {label(node)} reads it")


def _check_uses(value: ir.Value, where: str) -> None:
    for node, index in value.uses():
        if index >= len(node.inputs) or node.inputs[index] is not value:
            raise VerificationError(f"{where}: '{value.name}' believes that {label(node)} reads it")
        if node.graph is None:
            raise VerificationError(f"{where}: '{value.name}' is read by {label(node)}, which is in no graph")


def _verify_touched(model: ir.Model, nodes: Collection[ir.Node]) -> None:
    graphs = set(all_graphs(model)) if nodes else set()
    for node in nodes:
        graph, where = node.graph, label(node)
        if graph is None or _owner(graph) not in graphs:
            raise VerificationError(f"{where} was reported as touched but is not in the model")
        for index, value in enumerate(node.inputs):
            _check_use(node, index, value, where)
            if value is not None:
                _check_defined(value, node, graphs)
        for output in node.outputs:
            if output.producer() is not node:
                raise VerificationError(f"output '{output.name}' of {where} has another producer")
            _check_uses(output, where)
        for body in subgraphs(node):
            _verify_graph(body, _visible_from(body), f"body of {where}")
    _names_unique(graphs, {_owner(node.graph) for node in nodes if node.graph is not None})


def _owner(graph: ir.Graph | ir.Function) -> ir.Graph:
    return graph.graph if isinstance(graph, ir.Function) else graph


def _check_defined(value: ir.Value, reader: ir.Node, graphs: set[ir.Graph]) -> None:
    producer = value.producer()
    if producer is None:
        if not value.is_graph_input() and not value.is_initializer():
            raise VerificationError(f"{label(reader)} reads '{value.name}', which nothing defines")
    elif producer.graph is None or _owner(producer.graph) not in graphs:
        raise VerificationError(f"{label(reader)} reads '{value.name}' from {label(producer)}, which is in no graph")


def _visible_from(body: ir.Graph) -> frozenset[ir.Value]:
    """Every value of the enclosing graphs that nodes of `body` read; whether they exist is checked per value."""
    captured: set[ir.Value] = set()
    pending: list[ir.Graph] = [body]
    while pending:
        for node in pending.pop():
            captured.update(value for value in node.inputs if value is not None and value.graph is not body)
            pending.extend(subgraphs(node))
    return frozenset(captured)


def _names_unique(graphs: Iterable[ir.Graph], touched: set[ir.Graph]) -> None:
    for graph in graphs:
        if graph not in touched:
            continue
        names: dict[str, ir.Value] = {}
        for value in (*graph.inputs, *graph.initializers.values()):
            _claim_name(value, names, f"graph '{graph.name}'")
        for node in graph:
            for output in node.outputs:
                _claim_name(output, names, f"graph '{graph.name}'")
