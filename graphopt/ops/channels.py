"""What an operator is asked about channels, and the rules that several families share.

`Operator.flow(node, trace)` says how labels (see `graphopt.ops.labels`) go from a node's inputs to its outputs, which of
them are tied together, and how its constants follow. `Operator.shrink(node, change)` says which attributes and numbers
change once channels are gone. Both speak to whoever asks through the two protocols here, and know nothing of graphs.

A rule that has nothing to say raises `Opaque`: then everything that enters the node stays, which is always safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from graphopt.ops.labels import FIXED, Ids, Labels, Opaque


@dataclasses.dataclass(frozen=True)
class Option:
    """One of several ways to keep a tensor rectangular: labels that go together, labels that stay.

    Attributes:
        ties: pairs of arrays, broadcast against each other, whose labels go together.
        pins: labels that stay.
    """

    ties: tuple[tuple[Ids, Ids], ...] = ()
    pins: tuple[Ids, ...] = ()


class Trace(Protocol):
    """One node, as the analysis follows labels through it."""

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        ...

    def is_constant(self, index: int) -> bool:
        """Whether input `index` is given and follows from constants alone."""
        ...

    def dims(self, index: int) -> tuple[int, ...]:
        """Extents of an input. Raises Opaque where they are not known."""
        ...

    def output_dims(self, index: int = 0) -> tuple[int, ...]:
        """Extents of an output. Raises Opaque where they are not known."""
        ...

    def outputs(self) -> int:
        """The number of outputs."""
        ...

    def labels(self, index: int) -> Labels:
        """Labels of an input; a constant gets an atom for each of its elements, and is cut as they go."""
        ...

    def numbers(self, index: int) -> np.ndarray:
        """The elements of an input that says extents or positions. Raises Opaque where they are not known."""
        ...

    def fresh(self, *extents: int) -> Ids:
        """An array of new atoms."""
        ...

    def produce(self, count: int) -> Ids:
        """New atoms, the output channels of this node (a linear layer)."""
        ...

    def consume(self, ids: Ids) -> None:
        """`ids` (C,) are the input channels of this node (a linear layer)."""
        ...

    def passes_through(self) -> None:
        """This node is a layer with weights that passes its channels through."""
        ...

    def unite(self, a: Ids, b: Ids) -> None:
        """Labels at the same place, after broadcasting, go together."""
        ...

    def pin(self, ids: Ids, reason: str) -> None:
        """Labels stay."""
        ...

    def choose(self, reason: str, *options: Option) -> None:
        """One of `options` holds, whichever leaves most to remove."""
        ...

    def cut(self, index: int, axes: Mapping[int, Ids], *, shared: bool = False) -> None:
        """Input `index` shrinks with labels along its axes: a constant is cut, another input is tied to them.

        Args:
            index: which input.
            axes: labels (extent,) along an axis; of (groups, extent) each position stays while one of its column does.
            shared: whether all users of the same weights must agree (see `graphopt.analysis.coupling`).
        """
        ...

    def put(self, index: int, labels: Labels) -> None:
        """Labels of an output; of those that a rule does not mention, all stay."""
        ...


class Change(Protocol):
    """One node, once channels are gone."""

    def before(self, index: int) -> tuple[int, ...]:
        """Extents of an input as they were."""
        ...

    def kept(self, index: int, axis: int) -> np.ndarray:
        """Which positions of an input stay along an axis (extent,)."""
        ...

    def output_kept(self, index: int, axis: int) -> np.ndarray:
        """Which positions of an output stay along an axis (extent,)."""
        ...

    def output_rank(self, index: int = 0) -> int:
        """Number of axes of an output."""
        ...

    def numbers(self, index: int) -> np.ndarray:
        """The elements of an input as they were."""
        ...

    def symbolic(self, index: int) -> np.ndarray:
        """Which elements of an input depend on symbols (of the same extents)."""
        ...

    def set_numbers(self, index: int, numbers: Mapping[int, int] | np.ndarray) -> None:
        """The new elements of an input: some of them by position, or all of them."""
        ...

    def set_attribute(self, name: str, value: int | Sequence[int]) -> None:
        """Give an attribute a new value."""
        ...


# --- Rules that families share ------------------------------------------------------------------------


def channels(trace: Trace, labels: Labels, axis: int) -> Ids:
    """The labels (extent,) along an axis of which every position goes as a whole."""
    axis = labels.axis(axis)
    first = labels.ids
    for other in range(labels.rank):
        if other != axis:
            first = first.take([0], other)
    trace.unite(labels.ids, first)
    return np.broadcast_to(first.reshape(-1), (labels.dims[axis],))


def project(trace: Trace, labels: Labels, axes: Sequence[int], reason: str, *, mixing: bool = False) -> Labels:
    """What remains of `labels` where axes are folded to extent 1: a position stays while one of those folded does.

    Where labels differ along other axes too, either all that is folded at a position goes with it, or the same of each.

    Args:
        trace: the node.
        labels: of any tensor.
        axes: those that fold.
        reason: why labels stay, where that is so.
        mixing: whether elements along `axes` are computed with each other, so that none of them may go alone.
    """
    axes = [labels.axis(axis) for axis in axes]
    dims = tuple(1 if axis in axes else extent for axis, extent in enumerate(labels.dims))
    folded = [axis for axis in labels.varying if axis in axes]
    if not folded:
        return Labels(dims, labels.ids)
    if mixing and len(folded) == len(labels.varying):
        trace.pin(labels.ids, reason)
    if len(folded) == len(labels.varying):
        return Labels.fixed(dims)
    shape = [1 if axis in axes else extent for axis, extent in enumerate(labels.ids.shape)]
    whole = trace.fresh(*shape)
    goes_whole = Option(ties=((labels.ids, whole),))
    if mixing:
        trace.choose(reason, goes_whole, Option(pins=(whole, labels.ids)))
        return Labels(dims, whole)
    alike = labels.ids
    for axis in labels.varying:
        if axis not in axes:
            alike = alike.take([0], axis)
    trace.choose(reason, goes_whole, Option(ties=((labels.ids, alike),), pins=(whole,)))
    return Labels(dims, whole)


def mixed(trace: Trace, index: int, axes: Sequence[int], what: str) -> Labels:
    """The labels of an input whose elements along `axes` are computed with each other."""
    labels = trace.labels(index)
    project(trace, labels, axes, f"{what} over channels", mixing=True)
    return labels


def elementwise(trace: Trace, operands: Sequence[int], output: int = 0) -> None:
    """Operands that are broadcast against each other; constants follow the rest. Raises Opaque where they are not."""
    dims = trace.output_dims(output)
    operands = [index for index in operands if trace.has(index)]
    if np.broadcast_shapes(*(trace.dims(index) for index in operands)) != dims:
        raise Opaque("operands that are not broadcast against each other")
    moving = [trace.labels(index).aligned(len(dims)) for index in operands if not trace.is_constant(index)]
    result = meet(trace, moving, dims)
    for index in operands:
        if trace.is_constant(index):
            follow(trace, index, result)
    trace.put(output, result)


def meet(trace: Trace, operands: Sequence[Labels], dims: Sequence[int]) -> Labels:
    """The labels of the broadcast of `operands`, all of the rank of `dims`, whose elements meet."""
    if not operands:
        return Labels.fixed(dims)
    leading = max(operands, key=lambda labels: labels.ids.size)
    for other in operands:
        if other is not leading:
            _tie(trace, leading, other)
    return leading.expanded(dims)


def _tie(trace: Trace, leading: Labels, other: Labels) -> None:
    narrow = [axis for axis in range(leading.rank) if leading.dims[axis] == 1 < other.dims[axis]]
    if any(axis in narrow for axis in other.varying):
        trace.pin(other.ids, "is combined with another tensor along an axis that this one has not")
    wide = [axis for axis in range(leading.rank) if other.dims[axis] == 1 < leading.dims[axis]]
    reason = "meets a tensor that is the same for all of them"
    folded = project(trace, leading, wide, reason)
    trace.unite(folded.ids, other.ids)


def follow(trace: Trace, index: int, labels: Labels) -> None:
    """A constant that is broadcast against a tensor with `labels` is cut as these go. Raises Opaque where it has more axes."""
    dims = trace.dims(index)
    offset = labels.rank - len(dims)
    if offset < 0:
        raise Opaque("a constant has more axes than what it meets")
    axes: dict[int, Ids] = {}
    for axis in labels.varying:
        if axis >= offset and dims[axis - offset] == labels.dims[axis]:
            axes[axis - offset] = positions(labels, axis)
    trace.cut(index, axes)


def positions(labels: Labels, axis: int) -> Ids:
    """The labels of each position along an axis: (others, extent), which stays while one of its column does."""
    return np.moveaxis(labels.spread([axis]), axis, -1).reshape(-1, labels.dims[axis])


def grouped(trace: Trace, *arrays: Ids, reason: str) -> None:
    """Channels (groups, size) of which each group must keep as many: the same ones of each, or groups as a whole."""
    same = Option(ties=tuple((array, array[:1]) for array in arrays))
    together = tuple((array[:, :1], arrays[0][:, :1]) for array in arrays[1:])
    whole = Option(ties=(*((array, array[:, :1]) for array in arrays), *together))
    trace.choose(reason, same, whole)


__all__ = [
    "FIXED", "Change", "Ids", "Labels", "Opaque", "Option", "Trace", "channels", "elementwise", "follow",
     "grouped", "meet", "mixed", "positions", "project",
]  # fmt: skip
