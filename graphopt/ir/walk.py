"""Walking a model: every graph in it, every node, and which values are constants.

A model holds graphs in three places: the main graph, bodies of If/Loop/Scan nodes at any depth, and functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies that `node` itself holds, not deeper ones."""
    for attribute in node.attributes.data.values():
        if attribute.type in _BODIES:
            yield from _bodies(attribute)


def _bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    return (attribute.as_graph(),) if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()


def graph_and_bodies(graph: ir.Graph) -> Iterator[ir.Graph]:
    """`graph`, then every body inside it at any depth, outer before inner."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current:  # no generator per node: every pass comes through here
            for attribute in node.attributes.data.values():
                if attribute.type in _BODIES:
                    pending.extend(_bodies(attribute))


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
            return attribute_tensor(attribute)
        return None
    if not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def is_number(value: ir.Value | None) -> bool:
    """Whether `value` is one constant number, of any rank."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1


def attribute_tensor(attribute: ir.Attr) -> ir.TensorProtocol | None:
    """The tensor that an attribute holds; None for one of another type, or one that refers to a function's parameter.

    `Attr.as_tensor` does the same, and asks an object of 15 properties whether it is a tensor each time.
    """
    if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
        return None
    tensor: ir.TensorProtocol = attribute.value
    return tensor


def label(node: ir.Node) -> str:
    """How messages name a node: its name where it has one, else its first output."""
    name = node.name or next((output.name for output in node.outputs if output.name), None) or "<unnamed>"
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{kind} '{name}'"
