"""Shape arithmetic: what a graph computes about extents, told from what is known of them.

Exporters write x.view(b, s, 12, 64) as Shape -> Gather -> Unsqueeze -> Concat -> Reshape, even where nearly all of it
is known. The elements of such small tensors are evaluated as numbers, symbols and expressions over symbols
(`partial_values`). What follows from them, in any graph:

    known numbers          a node whose elements are all known is a constant
    known before           a node whose elements are those of a value that it is computed from is that value
    known to the reader    Reshape, Expand, Slice and Resize read constants that say the same (`shape_operands`)
    broadcast anyway       Expand before an operator that broadcasts to the same extents is not needed (`broadcasts`)
    asked directly         Shape, Gather, Unsqueeze and Concat of extents are fewer nodes (`shape_sources`)

An extent that is not known stays not known: nothing here fixes a dim of a graph input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis import calculate
from graphopt_passes.lossless.broadcasts import BroadcastLater
from graphopt_passes.lossless.partial_values import PartialValues
from graphopt_passes.lossless.shape_operands import ConstantExpand, ConstantReshape, ConstantSlice, ScaledResize
from graphopt_passes.lossless.shape_sources import AskDirectly, AskOnce
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_LARGEST = calculate.LARGEST // 8
_FARTHEST = 12
"""Nodes between a value and an earlier one of the same elements."""


@dataclasses.dataclass(frozen=True)
class SimplifyShapes(RulePass):
    """Compute extents now where they are known, and let operators read constant shapes."""

    name: ClassVar[str] = "simplify-shapes"

    def rules(self) -> Sequence[Rule]:
        """Readers first: a chain that nothing reads any more needs no simplification."""
        values = PartialValues()
        return (
            ConstantReshape(values),
            ConstantExpand(values),
            ConstantSlice(values),
            ScaledResize(values),
            KnownElements(values),
            BroadcastLater(values),
            AskDirectly(values),
            AskOnce(values),
        )


class KnownElements(Rule):
    """Shape arithmetic whose elements are known numbers -> a constant; those of an earlier value -> that value."""

    roots: ClassVar = frozenset(calculate.RULES) - {"Constant", "Identity"}

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Replace `node` where its elements are known."""
        output = node.outputs[0]
        if len(node.outputs) != 1 or not _is_small_integer(output) or output.is_graph_output() or not output.uses():
            return None
        array = self._values.contents(output, site)
        if array is None:
            return None
        if array.dtype != object:
            return Done("computed", site.replace(node, site.new_constant(array, output.name or "extents", node)))
        earlier = None if None in array.reshape(-1).tolist() else self._earlier(node, array, site)
        return (
            None
            if earlier is None
            else site.forward(node, earlier, "removed: what it was computed from has the same elements")
        )

    def _earlier(self, node: ir.Node, array: np.ndarray, site: Site) -> ir.Value | None:
        """The farthest value that `node` was computed from, through a few nodes, and that has its elements."""
        found, pending, seen = None, [node], set[ir.Node]()
        while pending and len(seen) < _FARTHEST:
            current = pending.pop(0)
            for read in current.inputs:
                producer = site.producer(read)
                if read is None or producer is None or producer in seen or not _is_small_integer(read):
                    continue
                seen.add(producer)
                pending.append(producer)
                if read.dtype == node.outputs[0].dtype and _same(self._values.contents(read, site), array):
                    found = read
        return found


def _is_small_integer(value: ir.Value) -> bool:
    dtype, shape = value.dtype, value.shape
    if dtype is None or shape is None or not (dtype.is_integer() or dtype == ir.DataType.BOOL):
        return False
    return shape.is_static() and int(np.prod(shape.numpy())) <= _LARGEST


def _same(a: np.ndarray | None, b: np.ndarray) -> bool:
    return a is not None and a.shape == b.shape and a.tolist() == b.tolist()
