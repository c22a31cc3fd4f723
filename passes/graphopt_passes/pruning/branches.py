"""Residual branches that go as a whole: the groups that take one along with their last unit, and the cut itself.

    y = Add(branch(x), x)

Where the layer at the end of a branch reads one group and nothing else, the branch gives a constant once none of the group's
units is left, and the sum is as good as its other operand: layers behind make up for the constant. Widths in multiples of what
kernels want leave narrow layers little choice; none at all is one more, and the one that saves most time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import onnx_ir as ir

from graphopt.analysis.coupling import remove
from graphopt_passes import residual_blocks
from graphopt_passes.pruning.structure import Structure
from graphopt_passes.residual_blocks import Block


def branches(model: ir.Model, structure: Structure, excluded: Callable[[ir.Node], bool]) -> dict[int, str]:
    """The sums that groups take a branch from, by the group's number: the key of the block (`residual_blocks.Block`).

    Args:
        model: that was analysed.
        structure: of the model.
        excluded: says which nodes must stay as they are; a branch with one of them stays.
    """
    found = {}
    for block in residual_blocks.residual_blocks(model.graph):
        if any(excluded(node) for node in block.nodes):
            continue
        number = _group_behind(block, structure)
        if number is not None:
            found[number] = block.key
    return found


def _group_behind(block: Block, structure: Structure) -> int | None:
    """The one group that the last layer of the branch reads, with all of its columns, and that nothing else reads."""
    last = block.add.inputs[1 - block.rest]
    layer = None if last is None else structure.layer(last.name or "")
    if layer is None or layer.groups != 1:
        return None
    groups = structure.readers.get(layer.key, [])
    if len(groups) != 1:
        return None
    readings, consumers = structure.readings[groups[0]], structure.groups[groups[0]].consumers
    alone = len(readings) == len(consumers) == 1 and readings[0].columns.size == layer.width
    return groups[0] if alone else None


def take_out(model: ir.Model, structure: Structure, gone: Mapping[int, Collection[int]]) -> set[ir.Node] | None:
    """Take units out of a clone of the model that was analysed, in place, and branches of which no unit is left.

    Args:
        model: its layers read zeros of all these units.
        structure: of the original.
        gone: numbers of the units that go, by group.

    Returns:
        The nodes that were made or changed; None where branches went, which concerns what lies behind them, too.
    """
    whole = [number for number in gone if structure.goes_whole(number, gone)]
    # first: which operand of a sum is its branch is a matter of the original's sizes
    residual_blocks.remove(model, [structure.branches[number] for number in whole])
    rest = {number: units for number, units in gone.items() if number not in whole}
    touched = remove(model, structure.coupling, structure.units(rest))
    return None if whole else touched
