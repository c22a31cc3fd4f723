"""Composites: functions of one value that exporters write as several nodes and onnxruntime runs as one kernel.

They are told by what they consist of, not by how they are wired: a set of elementwise nodes and reductions that reads
one value, shows one result, and has exactly the operators of a known function can hardly be anything else.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analysis.dataflow import Folded

_COMPOSITES = frozenset(
    {
        ("Add", "Div", "Erf", "Mul", "Mul"),  # Gelu by the error function,
        ("Add", "Erf", "Mul", "Mul", "Mul"),
        ("Add", "Add", "Mul", "Mul", "Mul", "Mul", "Pow", "Tanh"),  # and by tanh
        ("Mul", "Sigmoid"),  # Swish, QuickGelu
        ("Mul", "Mul", "Sigmoid"),
        ("Add", "Add", "Div", "Mul", "Pow", "ReduceMean", "ReduceMean", "Sqrt", "Sub"),  # layer normalization
        ("Add", "Div", "Mul", "Pow", "ReduceMean", "Sqrt"),  # RMS normalization
        ("Add", "Div", "Mul", "Mul", "Pow", "ReduceMean", "Sqrt"),
        ("Add", "Mul", "Mul", "Pow", "ReduceMean", "Reciprocal", "Sqrt"),
    }
)
_PARTS = frozenset(op_type for composite in _COMPOSITES for op_type in composite)
_LARGEST = max(map(len, _COMPOSITES))
_MOST_READERS = 8
"""A value with more readers is not looked at: the search would be quadratic in them."""

STARTS = frozenset({"Div", "Mul", "Pow", "Sigmoid", "ReduceMean"})
"""Operators of the nodes that a composite can begin with."""


def composite_from(first: ir.Node, folded: Folded) -> tuple[ir.Node, ...]:
    """The nodes from `first` on that together are a composite of its input, or nothing."""
    sources = {value for value in first.inputs if value is not None and not folded.is_constant(value)}
    if len(sources) != 1 or not 2 <= len(next(iter(sources)).uses()) <= _MOST_READERS:
        return ()
    inside = set(sources)
    nodes: list[ir.Node] = []
    candidates = [first]
    while candidates and len(nodes) < _LARGEST:
        node = candidates.pop(0)
        if node in nodes or node.op_type not in _PARTS or node.domain != "" or node.graph is not first.graph:
            continue
        if not all(value is None or value in inside or folded.is_constant(value) for value in node.inputs):
            continue
        nodes.append(node)
        inside.update(node.outputs)
        if tuple(sorted(member.op_type for member in nodes)) in _COMPOSITES and _shows_only_last(nodes):
            return tuple(nodes)
        candidates += [use.node for value in inside for use in value.uses()]
    return ()


def gelu_of(value: ir.Value, folded: Folded) -> tuple[ir.Node, ...]:
    """The Gelu that alone reads `value`, as one node or as several, or nothing."""
    readers = [use.node for use in value.uses()]
    if not readers or value.is_graph_output():
        return ()
    gelu: tuple[ir.Node, ...] = (readers[0],) if readers[0].op_type == "Gelu" else ()
    for reader in readers[:_MOST_READERS]:
        found = composite_from(reader, folded)
        if any(node.op_type in ("Erf", "Tanh") for node in found):
            gelu = found
    return gelu if all(reader in gelu for reader in readers) else ()


def _shows_only_last(nodes: list[ir.Node]) -> bool:
    members = set(nodes)
    inner = [value for node in nodes[:-1] for value in node.outputs]
    return not any(value.is_graph_output() or any(use.node not in members for use in value.uses()) for value in inner)
