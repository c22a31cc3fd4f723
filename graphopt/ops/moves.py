"""How channels go through data movement: the operator itself, run on labels, and its numbers derived again afterwards.

There is a rule for each operator, and for some a second one that brings extents and positions up to date: of a target
shape or a list of sizes only the entries whose extent changed are written anew, so that -1, 0 and symbols stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.channels import Change, Trace, project
from graphopt.ops.labels import Labels, Opaque, concatenated

GATHERED = "picked by positions that are computed"
PADDED = "padded with copies of channels"


def identity(node: ir.Node, trace: Trace) -> None:
    """The first output is the input; Dropout's mask holds no channels."""
    trace.put(0, trace.labels(0))


def view(node: ir.Node, trace: Trace) -> None:
    """The same elements in the same order under other extents. Raises Opaque for a Squeeze of unstated axes that differ."""
    labels = trace.labels(0)
    if node.op_type == "Squeeze" and labels.varying and not (trace.has(1) or "axes" in node.attributes):
        raise Opaque("a Squeeze that does not say which axes")
    trace.put(0, labels.reshaped(trace.output_dims()))


def reshape_again(node: ir.Node, change: Change) -> None:
    """Entries of the target whose extent changed; 0 stays where the axis of the input changed alike."""
    if node.op_type != "Reshape":
        return
    target = change.numbers(1) if "shape" not in node.attributes else np.array(attributes.integers(node, "shape"))
    copies = not attributes.integer(node, "allowzero", 0)
    new = target.copy()
    for axis, entry in enumerate(target):
        after = change.output_kept(0, axis)
        if after.all() and entry != 0:
            continue
        alike = entry == 0 and copies and change.kept(0, axis).sum() == after.sum()
        if entry != -1 and not alike:
            new[axis] = after.sum()
    if "shape" in node.attributes:
        change.set_attribute("shape", new.tolist())
        return
    for axis in map(int, np.flatnonzero(change.symbolic(1) & (target != new))):
        # Its number would hold for one batch only: it becomes the -1, and what was -1 the number that it came to.
        for other in np.flatnonzero(new == -1):
            new[other] = change.output_kept(0, int(other)).sum()
        new[axis] = -1
    change.set_numbers(1, _differences(target, new))


def _differences(old: np.ndarray, new: np.ndarray) -> dict[int, int]:
    return {int(position): int(new[position]) for position in np.flatnonzero(old != new)}


def transpose(node: ir.Node, trace: Trace) -> None:
    """Axes in another order."""
    labels = trace.labels(0)
    trace.put(0, labels.transposed(permutation(node, labels.rank)))


def permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The order of axes of a Transpose; reversed by default."""
    return attributes.integers(node, "perm") or tuple(reversed(range(rank)))


def concat(node: ir.Node, trace: Trace) -> None:
    """One after the other; what differs along other axes goes from all parts, constants among them."""
    rank = len(trace.output_dims())
    axis = Labels.fixed(trace.output_dims()).axis(attributes.integer(node, "axis", 1))
    moving = [trace.labels(index) for index in range(len(node.inputs)) if not trace.is_constant(index)]
    beside = [labels for labels in moving if labels.ids.shape[axis] == 1]
    pattern = max((labels.ids for labels in beside), key=np.size, default=np.zeros((1,) * rank, np.int64))
    if pattern.size > 1:  # these parts go on under one name, so that nothing differs along the axis of the Concat
        for labels in beside:
            trace.unite(pattern, labels.ids)
        moving = [Labels(labels.dims, pattern) if labels in beside else labels for labels in moving]
    parts = iter(moving)
    trace.put(
        0,
        concatenated(
            [
                _constant_part(trace, index, axis, pattern) if trace.is_constant(index) else next(parts)
                for index in range(len(node.inputs))
            ],
            axis,
        ),
    )


def _constant_part(trace: Trace, index: int, axis: int, pattern: np.ndarray) -> Labels:
    """A constant beside tensors with labels: it differs where they do, or else along the axis of the Concat."""
    dims = trace.dims(index)
    if pattern.size > 1:
        others = {other: pattern.reshape(-1) for other, extent in enumerate(pattern.shape) if extent == pattern.size}
        if not others:
            raise Opaque("a constant beside channels that differ along several axes")
        trace.cut(index, others)
        return Labels(dims, pattern)
    ids = trace.fresh(dims[axis])
    trace.cut(index, {axis: ids})
    return Labels.along(dims, axis, ids)


def split(node: ir.Node, trace: Trace) -> None:
    """Runs of positions."""
    labels = trace.labels(0)
    axis, start = labels.axis(attributes.integer(node, "axis", 0)), 0
    for index in range(trace.outputs()):
        extent = trace.output_dims(index)[axis]
        trace.put(index, labels.take(axis, np.arange(start, start + extent)))
        start += extent


def split_again(node: ir.Node, change: Change) -> None:
    """Sizes of the runs, given anew where any of them changed."""
    axis = attributes.integer(node, "axis", 0) % change.output_rank()
    kept = [change.output_kept(index, axis) for index in range(len(node.outputs))]
    if all(mask.all() for mask in kept):
        return
    sizes = np.array([mask.sum() for mask in kept], np.int64)
    if attributes.version(node) < 13:
        change.set_attribute("split", sizes.tolist())
    else:
        change.set_numbers(1, sizes)


def slice_(node: ir.Node, trace: Trace) -> None:
    """Positions from a start to an end; steps over channels are not followed."""
    labels = trace.labels(0)
    for axis, _, _, step, indices in _slices(node, labels.dims, trace):
        if abs(step) != 1 and axis in labels.varying:
            trace.pin(labels.ids, "only every so many of them are taken")
        labels = labels.take(axis, indices)
    trace.put(0, labels)


def _slices(
    node: ir.Node, dims: tuple[int, ...], numbers: Trace | Change
) -> list[tuple[int, int, int, int, np.ndarray]]:
    """For each axis that is sliced: axis, start, end, step, and the positions taken."""
    lists: list[list[int] | None]
    if attributes.version(node) < 10:
        given = [attributes.integers(node, name) for name in ("starts", "ends", "axes")]
        lists = [None if found is None else list(found) for found in given] + [None]
    else:
        present = [index < len(node.inputs) and node.inputs[index] is not None for index in range(1, 5)]
        lists = [numbers.numbers(i + 1).tolist() if here else None for i, here in enumerate(present)]
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        raise Opaque("a Slice without bounds")
    found = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = Labels.fixed(dims).axis(axes[i] if axes is not None else i)
        step = steps[i] if steps is not None else 1
        stop = None if step < 0 and end < -dims[axis] else end  # numpy reads -1 as the last element
        found.append((axis, start, end, step, np.arange(dims[axis])[start:stop:step]))
    return found


def slice_again(node: ir.Node, change: Change) -> None:
    """Bounds along axes that shrank: the run of positions that stay, among those that stay."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for position, (axis, start, end, step, indices) in enumerate(_slices(node, change.before(0), change)):
        kept = change.kept(0, axis)
        if kept.all():
            continue
        taken = (np.cumsum(kept) - 1)[indices[kept[indices]]]
        first, last = int(taken[0]), int(taken[-1])
        beyond = last + 1 if step > 0 else last - 1 if last > 0 else -int(kept.sum()) - 1
        if start < 0 or indices[0] > 0:
            starts[position] = first
        if end < len(kept) and end > -len(kept):
            ends[position] = beyond
    if attributes.version(node) < 10:
        for name, new in (("starts", starts), ("ends", ends)):
            old = attributes.integers(node, name) or ()
            change.set_attribute(name, [new.get(position, entry) for position, entry in enumerate(old)])
    else:
        change.set_numbers(1, starts)
        change.set_numbers(2, ends)


def gather(node: ir.Node, trace: Trace) -> None:
    """Positions along one axis. A constant table of rows is a linear layer on one-hot vectors."""
    axis = attributes.integer(node, "axis", 0)
    if trace.is_constant(0):
        _table(trace, axis)
        return
    labels = trace.labels(0)
    axis = labels.axis(axis)
    if axis not in labels.varying:
        trace.put(0, labels.take(axis, np.zeros(trace.dims(1), np.int64)))
        return
    try:
        indices = trace.numbers(1)
    except Opaque:
        folded = project(trace, labels, [axis], GATHERED, mixing=True)
        trace.put(0, folded.take(axis, np.zeros(trace.dims(1), np.int64)))
        return
    trace.put(0, labels.take(axis, indices % labels.dims[axis]))


def _table(trace: Trace, axis: int) -> None:
    table, out = trace.dims(0), trace.output_dims()
    if len(table) != 2 or axis not in (0, -2):
        trace.put(0, Labels.fixed(out))
        return
    ids = trace.produce(table[1])
    trace.cut(0, {1: ids}, shared=True)
    trace.put(0, Labels.along(out, len(out) - 1, ids))


def gather_again(node: ir.Node, change: Change) -> None:
    """Positions among those that stay."""
    axis = attributes.integer(node, "axis", 0) % len(change.before(0))
    kept = change.kept(0, axis)
    if kept.all():
        return
    indices = change.numbers(1) % len(kept)
    masks = [change.output_kept(0, axis + offset) for offset in range(indices.ndim)]
    change.set_numbers(1, np.asarray((np.cumsum(kept) - 1)[indices[np.ix_(*masks)]]))


def pad(node: ir.Node, trace: Trace) -> None:
    """Constant cells get atoms of their own, so that they can go with the channels that they are added to."""
    labels, mode = trace.labels(0), attributes.text(node, "mode", "constant")
    for axis, before, after in _pads(node, labels.rank, trace):
        dims = (*labels.dims[:axis], labels.dims[axis] + before + after, *labels.dims[axis + 1 :])
        if axis not in labels.varying:
            labels = Labels(dims, labels.ids)
            continue
        if mode != "constant":
            trace.pin(labels.ids, PADDED)
            labels = Labels.fixed(dims)
            continue
        inner = labels.take(axis, np.arange(max(0, -before), labels.dims[axis] - max(0, -after)))
        cells = [
            _cells(trace, inner, axis, max(0, before)),
            inner,
            _cells(trace, inner, axis, max(0, after)),
        ]
        labels = concatenated(cells, axis)
    trace.put(0, labels)


def _cells(trace: Trace, labels: Labels, axis: int, count: int) -> Labels:
    shape = (*labels.ids.shape[:axis], count, *labels.ids.shape[axis + 1 :])
    dims = (*labels.dims[:axis], count, *labels.dims[axis + 1 :])
    return Labels(dims, trace.fresh(*shape))


def _pads(node: ir.Node, rank: int, numbers: Trace | Change) -> list[tuple[int, int, int]]:
    """For each axis that is padded: axis, cells before, cells after; negative ones are cut off."""
    listed = next((found for name in ("pads", "paddings") if (found := attributes.integers(node, name))), None)
    pads = list(listed) if listed is not None else numbers.numbers(1).tolist()
    some = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = [axis % rank for axis in numbers.numbers(3).tolist()] if some else list(range(rank))
    return [(axis, pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]]


def pad_again(node: ir.Node, change: Change) -> None:
    """The cells that stay."""
    rank = len(change.before(0))
    some = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = [axis % rank for axis in change.numbers(3).tolist()] if some else list(range(rank))
    new: dict[int, int] = {}
    for axis, before, after in _pads(node, rank, change):
        source, kept = change.kept(0, axis), change.output_kept(0, axis)
        if source.all() and kept.all():
            continue
        position = axes.index(axis)
        new[position] = int(kept[:before].sum()) if before > 0 else -int(source[:-before].sum())
        end = len(source) + after if after < 0 else len(kept) - after
        new[position + len(axes)] = -int(source[end:].sum()) if after < 0 else int(kept[end:].sum())
    name = next((name for name in ("pads", "paddings") if name in node.attributes), None)
    if name is None:
        change.set_numbers(1, new)
    else:
        old = attributes.integers(node, name) or ()
        change.set_attribute(name, [new.get(position, entry) for position, entry in enumerate(old)])


def tile(node: ir.Node, trace: Trace) -> None:
    """Copies beside each other."""
    labels = trace.labels(0)
    trace.put(0, labels.tiled(trace.numbers(1).tolist()))


def expand(node: ir.Node, trace: Trace) -> None:
    """Broadcasting to given extents."""
    dims = trace.output_dims()
    trace.put(0, trace.labels(0).aligned(len(dims)).expanded(dims))


def expand_again(node: ir.Node, change: Change) -> None:
    """Extents that changed; an entry of 1 leaves the axis as it is."""
    old = change.numbers(1)
    offset = change.output_rank() - len(old)
    new = old.copy()
    for position, entry in enumerate(old):
        kept = change.output_kept(0, position + offset)
        if entry != 1 and not kept.all():
            new[position] = kept.sum()
    change.set_numbers(1, _differences(old, new))


def depth_to_space(node: ir.Node, trace: Trace) -> None:
    """Blocks of channels become squares, as the operator is defined: reshape, transpose, reshape."""
    labels, block = trace.labels(0), attributes.integer(node, "blocksize", 1)
    batch, depth, height, width = labels.dims
    if node.op_type == "SpaceToDepth":
        blocks = labels.reshaped((batch, depth, height // block, block, width // block, block))
        trace.put(0, blocks.transposed((0, 3, 5, 1, 2, 4)).reshaped(trace.output_dims()))
        return
    inner = depth // block**2
    if attributes.text(node, "mode", "DCR") == "DCR":
        moved = labels.reshaped((batch, block, block, inner, height, width)).transposed((0, 3, 4, 1, 5, 2))
    else:
        moved = labels.reshaped((batch, inner, block, block, height, width)).transposed((0, 1, 4, 2, 5, 3))
    trace.put(0, moved.reshaped(trace.output_dims()))


FLOWS: Mapping[str, Callable[[ir.Node, Trace], None]] = {
    "Identity": identity, "Dropout": identity,
    "Reshape": view, "Flatten": view, "Squeeze": view, "Unsqueeze": view,
    "Transpose": transpose, "Concat": concat, "Split": split, "Slice": slice_, "Gather": gather, "Pad": pad,
    "Tile": tile, "Expand": expand, "DepthToSpace": depth_to_space, "SpaceToDepth": depth_to_space,
}  # fmt: skip
"""Rules for operators of the standard domain."""

SHRINKS: Mapping[str, Callable[[ir.Node, Change], None]] = {
    "Reshape": reshape_again, "Split": split_again, "Slice": slice_again, "Gather": gather_again, "Pad": pad_again,
    "Expand": expand_again,
}  # fmt: skip
"""Rules for those whose numbers change."""
