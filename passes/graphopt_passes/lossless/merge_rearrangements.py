"""Chains of Reshape, Transpose, Squeeze, Unsqueeze and Flatten, written with as few nodes as possible.

A chain is a permutation of atoms (`rearrangement`), and so never needs more than Reshape, Transpose, Reshape:

    no atom moves                               one Reshape, or nothing
    the axes of the input move as they are      Transpose, and a Reshape where the result is grouped otherwise
    the axes of the result move as they are     a Reshape into them, then Transpose
    else                                        Reshape, Transpose, Reshape

The transposed key of an attention export, [b, h, s, d] -> [b·h, s, d] -> [b·h, d, s] -> [b, h, d, s], is one Transpose.

A Gather that takes one position along an axis does not care where that axis stands: where all readers of a Transpose do so
and the other axes keep their order, they read what the Transpose read.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analysis import facts
from graphopt.analysis.dims import Dims
from graphopt_passes.lossless.partial_values import PartialValues
from graphopt_passes.lossless.rearrangement import Atom, Axes, Rearrangement
from graphopt_passes.lossless.shape_operands import reshape_target
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_CHAIN = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


@dataclasses.dataclass(frozen=True)
class MergeRearrangements(RulePass):
    """Merge chains of Reshape, Transpose, Squeeze, Unsqueeze and Flatten."""

    name: ClassVar[str] = "merge-rearrangements"

    def rules(self) -> Sequence[Rule]:
        """The rules."""
        values = PartialValues()
        return (MergeChain(values), GatherBeforeTranspose())


class MergeChain(Rule):
    """A chain of rearrangements -> at most Reshape, Transpose, Reshape."""

    roots: ClassVar = _CHAIN

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Merge the chain that ends with `node`."""
        after = site.only_reader(node.outputs[0])
        if after is not None and self._before(after, site) is node:
            return None
        chain = [node]
        while (before := self._before(chain[0], site)) is not None:
            chain.insert(0, before)
        if len(chain) == 1:
            return None
        rearrangement = self._followed(chain, site)
        dims = self._values.dims(chain[0].inputs[0], site)
        steps = None if rearrangement is None or dims is None else fewest(rearrangement, dims)
        if steps is None or len(steps) >= len(chain):
            return None
        return self._replaced(chain, steps, site)

    def _before(self, node: ir.Node, site: Site) -> ir.Node | None:
        """The rearrangement that `node`, a rearrangement itself, alone continues."""
        source = node.inputs[0] if node.inputs and node.op_type in _CHAIN and node.domain == "" else None
        before = site.producer(source, *_CHAIN)
        return before if before is not None and source is not None and site.only_reader(source) is node else None

    def _followed(self, chain: Sequence[ir.Node], site: Site) -> Rearrangement | None:
        """What the chain does, where all extents on the way are known."""
        dims = self._values.dims(chain[0].inputs[0], site)
        if dims is None or None in dims or 0 in dims:
            return None
        rearrangement = Rearrangement(dims, self._values.arithmetic)
        for node in chain:
            if node.op_type == "Transpose":
                rearrangement.transpose(node.attributes.get_ints("perm", range(len(rearrangement.result))[::-1]))
                continue
            dims = self._values.dims(node.outputs[0], site)
            if dims is None or None in dims or not rearrangement.reshape(dims):
                return None
        return rearrangement

    def _replaced(self, chain: Sequence[ir.Node], steps: Sequence[_Step], site: Site) -> Outcome:
        last, value = chain[-1], chain[0].inputs[0]
        if not steps:
            outcome = site.forward(last, value, "removed: it changes nothing")
            if not isinstance(outcome, Done):
                return outcome
            touched = outcome.touched
        else:
            new = []
            for step in steps:
                new.append(step.make(value, last, site))
                value = new[-1].outputs[0]
            touched = (*new, *site.replace(last, new[-1].outputs[0]))
        for node in reversed(chain[:-1]):
            site.remove_unread(node)
        return Done(f"{len(chain)} of them merged into {len(steps)}", touched)


class GatherBeforeTranspose(Rule):
    """Gather(Transpose(x), one position) -> Gather(x), where that is what all readers do."""

    roots: ClassVar = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Let the readers read along another axis."""
        output, perm = node.outputs[0], node.attributes.get_ints("perm", ())
        readers = list(output.consumers())
        if not perm or not readers or output.is_graph_output():
            return None
        axes = {self._axis(reader, output, len(perm), site) for reader in readers}
        axis = axes.pop()
        if axes or axis is None:
            return None
        rest = [source for source in perm if source != perm[axis]]
        if rest != sorted(rest):
            return None
        for reader in readers:
            reader.attributes["axis"] = ir.AttrInt64("axis", perm[axis])
            site.set_inputs(reader, [node.inputs[0], *reader.inputs[1:]])
        site.remove_unread(node)
        return Done("removed: its readers take one position along another axis", tuple(readers))

    def _axis(self, reader: ir.Node, value: ir.Value, rank: int, site: Site) -> int | None:
        """The axis along which `reader` takes one position of `value`."""
        if (reader.domain, reader.op_type) != ("", "Gather") or site.graph_of(reader) is None:
            return None
        position = site.constant(reader.inputs[1])
        if not site.may_touch(reader) or position is None or len(position.shape) or reader.inputs[0] is not value:
            return None
        return reader.attributes.get_int("axis", 0) % rank


# --- Plans ---------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """A node to make.

    Attributes:
        op_type: Reshape or Transpose.
        numbers: its shape or its permutation.
        dims: extents of its output.
    """

    op_type: str
    numbers: Sequence[int]
    dims: Dims

    def make(self, value: ir.Value | None, before: ir.Node, site: Site) -> ir.Node:
        """The node, reading `value`."""
        like, inputs, attributes = before.outputs[0], [value], {}
        if self.op_type == "Reshape":
            inputs.append(site.new_constant(np.array(self.numbers, np.int64), f"{like.name}_shape", before))
        else:
            attributes["perm"] = tuple(self.numbers)
        node = site.new_node(self.op_type, inputs, like, before, attributes)
        node.outputs[0].shape = facts.shape_of(self.dims)
        return node


_Plan = list[_Step] | None


def fewest(done: Rearrangement, dims: Dims) -> _Plan:
    """The fewest nodes that do what `done` did to a tensor of extents `dims`; None where Reshape cannot express it."""
    source, result = done.source, done.result
    after = done.extents(result)
    plans: list[_Plan] = []
    if _flat(source) == _flat(result):
        plans.append(_reshape(dims, after))
    moved = _axes_moved(source, result)
    if moved is not None:
        plans.append(_joined(_transpose(dims, moved), _reshape(_permuted(dims, moved), after)))
    grouped = _axes_moved(result, source)
    if grouped is not None:
        before = _permuted(after, grouped)
        plans.append(_joined(_reshape(dims, before), _transpose(before, _inverse(grouped))))
    blocks = done.extents(_blocks(source, result))
    order = _order_of_blocks(source, result)
    plans.append(_joined(_reshape(dims, blocks), _transpose(blocks, order), _reshape(_permuted(blocks, order), after)))
    return min((plan for plan in plans if plan is not None), key=len, default=None)


def _joined(*parts: _Plan) -> _Plan:
    known = [part for part in parts if part is not None]
    return [step for part in known for step in part] if len(known) == len(parts) else None


def _reshape(before: Dims, after: Dims) -> _Plan:
    if before == after:
        return []
    numbers = reshape_target(before, after, allowzero=False)
    return None if numbers is None else [_Step("Reshape", numbers, after)]


def _transpose(before: Dims, permutation: Sequence[int]) -> _Plan:
    if list(permutation) == list(range(len(before))):
        return []
    return [_Step("Transpose", permutation, _permuted(before, permutation))]


def _permuted(dims: Dims, permutation: Sequence[int]) -> Dims:
    return tuple(dims[axis] for axis in permutation)


def _inverse(permutation: Sequence[int]) -> list[int]:
    return [permutation.index(axis) for axis in range(len(permutation))]


def _flat(axes: Axes) -> list[Atom]:
    return [atom for axis in axes for atom in axis]


def _axes_moved(axes: Axes, order: Axes) -> list[int] | None:
    """The permutation of whole `axes` that puts their atoms into the order of `order`; None where it takes them apart.

    Axes without atoms go where `order` has such axes, the others to the end.
    """
    home = {atom: number for number, axis in enumerate(axes) for atom in axis}
    empty = [number for number, axis in enumerate(axes) if not axis]
    permutation: dict[int, None] = {}
    for group in order:
        if group:
            permutation.update((home[atom], None) for atom in group)
        elif empty:
            permutation[empty.pop(0)] = None
    permutation.update((number, None) for number in empty)
    moved = [atom for number in permutation for atom in axes[number]]
    return list(permutation) if moved == _flat(order) else None


def _blocks(source: Axes, result: Axes) -> list[list[Atom]]:
    """The longest runs of atoms that stay together, in the order of `source`."""
    following = dict(itertools.pairwise(_flat(result)))
    blocks: list[list[Atom]] = []
    for atom in _flat(source):
        if blocks and following.get(blocks[-1][-1]) is atom:
            blocks[-1].append(atom)
        else:
            blocks.append([atom])
    return blocks


def _order_of_blocks(source: Axes, result: Axes) -> list[int]:
    number = {block[0]: index for index, block in enumerate(_blocks(source, result))}
    return [number[atom] for atom in _flat(result) if atom in number]
