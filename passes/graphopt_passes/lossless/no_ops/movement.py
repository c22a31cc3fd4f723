"""Data movement that moves nothing.

* Reshape, Flatten, Squeeze, Unsqueeze to the extents that are there: the number of elements is the same before and
  after, so that all axes but one need to be known to be equal.
* Transpose with axes in order, or that only swaps axes of one element each.
* Expand and Tile to what is there; Pad by nothing; Split into one.
* Slice of everything. A slice with positive steps that is as long as its axis takes the whole of it; where the length
  is not known, it must start at 0 (not at some negative number) with step 1 and end beyond any extent. A negative
  step reverses.
* Gather of all positions in order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dims import Dims
from graphopt_passes.lossless.extents import all_same, broadcasts_into, dims, rank, same, same_but_one
from graphopt_passes.lossless.no_ops.base import Check
from graphopt_passes.lossless.parameters import axes, axis, given, integers
from graphopt_passes.rewriting import Site

BEYOND = 2**31 - 1
"""A slice that ends here or later goes to the end of its axis: exporters write the largest int32 or int64."""


def reshape(node: ir.Node, site: Site) -> ir.Value | None:
    """Reshape to the extents that are there."""
    x = node.inputs[0]
    before, after = dims(x), dims(node.outputs[0])
    target = integers(site, node, "shape")
    if before is None or (target is None and (after is None or len(after) != len(before))):
        return None
    if target is not None and len(target) != len(before):
        return None
    equal = [after is not None and same(a, b) for a, b in zip(before, after or before, strict=True)]
    if target is not None:
        copies = not node.attributes.get_int("allowzero", 0)
        equal = [
            known or (entry == 0 and copies) or same(dim, entry)
            for known, dim, entry in zip(equal, before, target, strict=True)
        ]
    return x if same_but_one(before, equal) else None


def flatten(node: ir.Node, site: Site) -> ir.Value | None:
    """Flatten of a matrix between its axes, or of anything to the extents that are there."""
    x = node.inputs[0]
    if rank(x) == 2 and axis(node.attributes.get_int("axis", 1), 2) == 1:
        return x
    return x if _same_elements(dims(x), dims(node.outputs[0])) else None


def squeeze(node: ir.Node, site: Site) -> ir.Value | None:
    """Squeeze of all axes of one element, where there are none; a symbol might stand for one."""
    before = dims(node.inputs[0])
    if given(site, node, "axes") or before is None:
        return None
    return node.inputs[0] if all(isinstance(dim, int) and dim != 1 for dim in before) else None


def unsqueeze(node: ir.Node, site: Site) -> ir.Value | None:
    """Unsqueeze of no axis."""
    return node.inputs[0] if integers(site, node, "axes") == () else None


def transpose(node: ir.Node, site: Site) -> ir.Value | None:
    """Transpose that leaves every element where it is, and the extents as they are."""
    x = node.inputs[0]
    before = dims(x)
    order = permutation(node)
    if order is None:
        return None
    if list(order) == sorted(order):
        return x
    if before is None or len(before) != len(order) or not all_same(tuple(before[i] for i in order), before):
        return None
    return x if keeps_order(order, before) else None


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The axis order of a Transpose, which reverses the axes by default; None where the rank is not known."""
    order = node.attributes.get_ints("perm")
    if order is not None:
        return tuple(order)
    axes_of_input = rank(node.inputs[0])
    return None if axes_of_input is None else tuple(reversed(range(axes_of_input)))


def keeps_order(order: tuple[int, ...], before: Dims) -> bool:
    """Whether a Transpose only moves axes of one element, so that the elements stay where they are in memory."""
    moved = [i for i in order if before[i] != 1]
    return moved == sorted(moved)


def expand(node: ir.Node, site: Site) -> ir.Value | None:
    """Expand to the extents that are there, or to ones."""
    x = node.inputs[0]
    before, target = dims(x), integers(site, node, "shape")
    if target is not None and broadcasts_into(target, before):
        return x
    return x if all_same(before, dims(node.outputs[0])) else None


def tile(node: ir.Node, site: Site) -> ir.Value | None:
    """Tile once."""
    if site.opset < 6:
        return None
    repeats = integers(site, node, "repeats")
    return node.inputs[0] if repeats is not None and all(count == 1 for count in repeats) else None


def slice_(node: ir.Node, site: Site) -> ir.Value | None:
    """Slice of everything."""
    x = node.inputs[0]
    before = dims(x)
    starts = integers(site, node, "starts")
    steps = integers(site, node, "steps", ()) if site.opset >= 10 else ()
    if steps is None or any(step <= 0 for step in steps):
        return None
    if all_same(before, dims(node.outputs[0])):
        return x
    ends = integers(site, node, "ends")
    if starts is None or ends is None or not len(starts) == len(ends) == len(steps or starts):
        return None
    cut = integers(site, node, "axes", range(len(starts)))
    cut = None if cut is None or before is None else axes(cut, len(before))
    extents = [None] * len(starts) if cut is None or before is None else [before[i] for i in cut]
    whole = map(takes_all, extents, starts, ends, steps or (1,) * len(starts))
    return x if all(whole) else None


def takes_all(extent: int | str | None, start: int, end: int, step: int) -> bool:
    """Whether a slice with positive step takes a whole axis of `extent` elements."""
    if isinstance(extent, int):
        return len(range(*slice(start, end, step).indices(extent))) == extent
    return start == 0 and step == 1 and end >= BEYOND


def pad(node: ir.Node, site: Site) -> ir.Value | None:
    """Pad by nothing."""
    if site.opset < 2:
        return None
    amounts = integers(site, node, "pads")
    return node.inputs[0] if amounts is not None and not any(amounts) else None


def split(node: ir.Node, site: Site) -> ir.Value | None:
    """Split into one."""
    return node.inputs[0] if len(node.outputs) == 1 else None


def gather(node: ir.Node, site: Site) -> ir.Value | None:
    """Gather of all positions of an axis in order."""
    x, indices = node.inputs
    before, positions = dims(x), site.array(indices)
    if before is None or positions is None or positions.ndim != 1:
        return None
    extent = before[axis(node.attributes.get_int("axis", 0), len(before))]
    return x if isinstance(extent, int) and np.array_equal(positions, np.arange(extent)) else None


def blocks(node: ir.Node, site: Site) -> ir.Value | None:
    """DepthToSpace or SpaceToDepth in blocks of one."""
    return node.inputs[0] if node.attributes.get_int("blocksize") == 1 else None


def _same_elements(before: Dims | None, after: Dims | None) -> bool:
    if before is None or after is None or len(before) != len(after):
        return False
    return same_but_one(before, [same(a, b) for a, b in zip(before, after, strict=True)])


def checks() -> dict[str, Check]:
    """The checks of this family by operator."""
    return {
        "DepthToSpace": blocks,
        "Expand": expand,
        "Flatten": flatten,
        "Gather": gather,
        "Pad": pad,
        "Reshape": reshape,
        "Slice": slice_,
        "SpaceToDepth": blocks,
        "Split": split,
        "Squeeze": squeeze,
        "Tile": tile,
        "Transpose": transpose,
        "Unsqueeze": unsqueeze,
    }
