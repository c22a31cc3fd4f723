"""Labels: which channel each element of a tensor belongs to, as an integer array of the tensor's own shape.

An element's label is the name of an *atom*, "channel 17 of conv_3". Label 0 is that of all elements that must stay.
Most tensors hold one atom per channel, whatever their height and width, so an axis along which labels are constant is
stored once: `ids` has extent 1 there. Operators that move data move labels the same way, with numpy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

FIXED = 0
"""The label of elements that must stay."""

LARGEST = 1 << 22
"""Labels that one tensor may store; beyond it the tensor's channels stay."""

Ids = np.ndarray


class Opaque(Exception):  # noqa: N818 - no error: it says that a rule has nothing to say
    """What flows through this node cannot be followed; the message says why. Caught by whoever asked the operator."""


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a tensor.

    Attributes:
        dims: the tensor's extents.
        ids: one axis for each of `dims`, of the same extent, or 1 where labels are constant along it.
    """

    dims: tuple[int, ...]
    ids: Ids

    @classmethod
    def of(cls, dims: Sequence[int], ids: Ids) -> Labels:
        """Labels stored once along all axes along which they are constant."""
        for axis, extent in enumerate(ids.shape):
            if extent > 1:
                first = ids.take([0], axis)
                if np.array_equal(np.broadcast_to(first, ids.shape), ids):
                    ids = first
        return cls(tuple(dims), ids)

    @classmethod
    def fixed(cls, dims: Sequence[int]) -> Labels:
        """Labels of a tensor all of which must stay."""
        return cls(tuple(dims), np.zeros((1,) * len(dims), np.int64))

    @classmethod
    def along(cls, dims: Sequence[int], axis: int, ids: Ids) -> Labels:
        """Labels that differ along one axis: `ids` (extent of the axis,)."""
        shape = [1] * len(dims)
        shape[axis] = len(ids)
        return cls.of(dims, ids.reshape(shape))

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.dims)

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which labels differ."""
        return tuple(axis for axis, extent in enumerate(self.ids.shape) if extent > 1)

    def axis(self, axis: int) -> int:
        """`axis`, counted from the front. Raises Opaque where the tensor has no such axis."""
        if not -self.rank <= axis < self.rank:
            raise Opaque(f"axis {axis} of a tensor of rank {self.rank}")
        return axis % self.rank

    def spread(self, axes: Sequence[int]) -> Ids:
        """`ids`, with the tensor's own extents along `axes`. Raises Opaque where that is too much to store."""
        shape = list(self.ids.shape)
        for axis in axes:
            shape[axis] = self.dims[axis]
        if math.prod(shape) > LARGEST:
            raise Opaque(f"a tensor of {self.dims} has too many elements to follow one by one")
        return np.broadcast_to(self.ids, shape)

    # --- Data movement

    def aligned(self, rank: int) -> Labels:
        """The same with axes of extent 1 in front, as broadcasting adds them."""
        front = (1,) * (rank - self.rank)
        return Labels(front + self.dims, self.ids.reshape(front + self.ids.shape))

    def transposed(self, permutation: Sequence[int]) -> Labels:
        """Axes in another order."""
        return Labels(tuple(self.dims[axis] for axis in permutation), self.ids.transpose(permutation))

    def take(self, axis: int, indices: Ids) -> Labels:
        """The elements at `indices` along an axis; `indices` of any rank take its place."""
        dims = (*self.dims[:axis], *indices.shape, *self.dims[axis + 1 :])
        if self.ids.shape[axis] == 1:
            here = (1,) * indices.ndim
            return Labels(dims, self.ids.reshape(*self.ids.shape[:axis], *here, *self.ids.shape[axis + 1 :]))
        return Labels.of(dims, np.take(self.ids, indices, axis=axis))

    def reshaped(self, dims: Sequence[int]) -> Labels:
        """The same elements under other extents; only axes that are split or merged are spread.

        Raises:
            Opaque: the number of elements differs, or there are none.
        """
        if 0 in self.dims or math.prod(self.dims) != math.prod(dims):
            raise Opaque(f"a reshape of {self.dims} to {tuple(dims)}")
        after: list[int] = []
        spread: list[int] = []
        for old, new in _groups(self.dims, dims):
            if any(self.ids.shape[axis] > 1 for axis in old):
                spread.extend(old)
                after.extend(dims[axis] for axis in new)
            else:
                after.extend(1 for _ in new)
        return Labels.of(dims, self.spread(spread).reshape(after))

    def expanded(self, dims: Sequence[int]) -> Labels:
        """Broadcast to `dims`, of the same rank."""
        return Labels(tuple(dims), self.ids)

    def tiled(self, repeats: Sequence[int]) -> Labels:
        """Copies beside each other."""
        inner = [1 if extent == 1 else count for extent, count in zip(self.ids.shape, repeats, strict=True)]
        dims = tuple(extent * count for extent, count in zip(self.dims, repeats, strict=True))
        return Labels.of(dims, np.tile(self.ids, inner))


def concatenated(parts: Sequence[Labels], axis: int) -> Labels:
    """Tensors one after the other along `axis`; elsewhere their extents are equal.

    Raises:
        Opaque: there are more elements than can be followed one by one.
    """
    varying = {other for part in parts for other in part.varying if other != axis}
    spread = [part.spread([axis, *varying]) for part in parts]
    dims = list(parts[0].dims)
    dims[axis] = sum(part.dims[axis] for part in parts)
    if math.prod(extent for other, extent in enumerate(dims) if other in varying or other == axis) > LARGEST:
        raise Opaque(f"a tensor of {tuple(dims)} has too many elements to follow one by one")
    return Labels.of(dims, np.concatenate(spread, axis=axis))


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The smallest runs of axes of both shapes that hold the same number of elements."""
    i = j = 0
    while i < len(old) and j < len(new):
        first_i, first_j = i, j
        a, b = old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        yield range(first_i, i), range(first_j, j)
    if i < len(old) or j < len(new):  # extents of 1 are left over
        yield range(i, len(old)), range(j, len(new))
