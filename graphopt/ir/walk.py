"""Walking a model: every graph in it, every node, and which values are constants.

A model holds graphs in three places: the main graph, bodies of If/Loop/Scan nodes at any depth, and functions.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies that `node` itself holds, not deeper ones."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def graph_and_bodies(graph: ir.Graph) -> Iterator[ir.Graph]:
    """`graph`, then every body inside it at any depth, outer before inner."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current:
            pending.extend(subgraphs(node))


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model: the main one, all bodies, and function bodies with theirs."""
    yield from graph_and_bodies(model.graph)
    for function in model.functions.values():
        yield from graph_and_bodies(function.graph)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the model, in every graph."""
    for graph in all_graphs(model):
        yield from graph


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` always holds, or None.

    An initializer that is also a graph input can be overridden by the caller (IR version 4 and later), so it is no
    constant; lifting has taken the inputs of older models, where that was not possible, out of the way. A value of a
    Constant node counts.
    """
    if value is None:
        return None
    producer = value.producer()
    if producer is not None:
        if producer.op_type == "Constant" and producer.domain == "" and "value" in producer.attributes:
            attribute = producer.attributes["value"]
            plain = attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
            return attribute.as_tensor() if plain else None
        return None
    if not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def label(node: ir.Node) -> str:
    """How messages name a node: its name where it has one, else its first output."""
    name = node.name or next((output.name for output in node.outputs if output.name), None) or "<unnamed>"
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{kind} '{name}'"
