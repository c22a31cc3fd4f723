"""Sequences that only hold the parts of one tensor, written as Split.

    SequenceAt(SplitToSequence(x, size), i), for every i that is read  ->  Split(x), its output i

torch's chunk and split come as sequences, which no other rewrite and few runtimes look into. All readers of the sequence
must take a part at a constant position, and the extent that is split must be known, so that the parts are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt.analysis import facts
from graphopt_passes.lossless import parameters
from graphopt_passes.lossless.partial_values import PartialValues
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_MOST = 256
"""Parts."""


@dataclasses.dataclass(frozen=True)
class SplitTensors(RulePass):
    """Split tensors with Split instead of sequences."""

    name: ClassVar[str] = "split-tensors"

    def rules(self) -> Sequence[Rule]:
        """The rule."""
        return (SequenceToSplit(PartialValues()),)


class SequenceToSplit(Rule):
    """SplitToSequence and SequenceAt -> Split."""

    roots: ClassVar = frozenset({"SplitToSequence"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Put a Split in the place of the sequence."""
        x, sequence = node.inputs[0], node.outputs[0]
        dims = self._values.dims(x, site)
        readers = list(sequence.consumers())
        if x is None or not dims or not readers or sequence.is_graph_output():
            return None
        axis = parameters.axis(node.attributes.get_int("axis", 0), len(dims))
        sizes = self._sizes(node, dims[axis], site)
        positions = [_position(reader, site) for reader in readers]
        if sizes is None or any(position is None or not -len(sizes) <= position < len(sizes) for position in positions):
            return "kept: not all parts are taken at known positions, or their sizes are not known"
        split = self._split(node, axis, sizes, site)
        touched: list[ir.Node] = [split]
        for reader, position in zip(readers, positions, strict=True):
            part = split.outputs[position or 0]
            if site.editor.why_not_replace(reader.outputs[0], part) is None:
                touched += site.replace(reader, part)
            else:
                same = site.new_node("Identity", [part], part, reader)
                touched += (same, *site.replace(reader, same.outputs[0]))
        site.remove_unread(node)
        return Done("split without a sequence", tuple(touched))

    def _sizes(self, node: ir.Node, extent: object, site: Site) -> list[int] | None:
        """The extents of the parts."""
        split = node.inputs[1] if len(node.inputs) > 1 else None
        given = site.array(split)
        if not isinstance(extent, int) or given is None or not extent:
            return None
        if given.ndim:
            return [int(size) for size in given]
        size = int(given)
        if size <= 0 or extent > size * _MOST:
            return None
        return [min(size, extent - start) for start in range(0, extent, size)]

    def _split(self, node: ir.Node, axis: int, sizes: Sequence[int], site: Site) -> ir.Node:
        x = node.inputs[0]
        assert x is not None  # rewrite looked
        dims = self._values.dims(x, site) or ()
        inputs, attributes = parameters.spelled(site, "Split", {"split": sizes}, f"{x.name}", node)
        names = [f"{x.name}_part_{number}" for number in range(len(sizes))]
        outputs = [
            ir.Value(name=site.fresh(name), type=x.type, shape=facts.shape_of((*dims[:axis], size, *dims[axis + 1 :])))
            for name, size in zip(names, sizes, strict=True)
        ]
        present = ir.convenience.convert_attributes({**attributes, "axis": axis})
        split = ir.Node("", "Split", [x, *inputs], present, outputs=outputs, name=site.fresh(f"{x.name}_split_node"))
        site.graph.insert_before(node, split)
        return split


def _position(reader: ir.Node, site: Site) -> int | None:
    """The position at which `reader` takes a part."""
    if (reader.domain, reader.op_type) != ("", "SequenceAt") or site.graph_of(reader) is None:
        return None
    position = site.array(reader.inputs[1])
    return None if position is None or not site.may_touch(reader) else int(position.reshape(-1)[0])
