"""What a chain of Reshape, Transpose, Squeeze, Unsqueeze and Flatten does, as one thing: atoms and their order.

Such a chain never touches an element. Cut the axes of its input so finely that every later axis is a run of the pieces:
these are the *atoms*, extents whose product is the number of elements. The chain then is a permutation of atoms, and its
result a grouping of them into axes. Atoms of extent 1 mean nothing and are left out.

    [b, 48, h, w] -> Reshape [b, 24, 2, h·w] -> Transpose (0, 2, 1, 3) -> Reshape [b, 48, h, w]
    atoms b, 24, 2, h, w; result (b) (2 24) (h) (w)

An extent may be a symbol: 4·b is cut into b and 4, but b is not cut into 4 and b/4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from graphopt.analysis.dims import Arithmetic, Dim, Dims


class Atom:
    """A piece of an axis.

    Attributes:
        extent: its number of elements, not 1.
        parts: the two pieces that it has been cut into, outer before inner; empty while it is whole.
    """

    def __init__(self, extent: Dim) -> None:
        self.extent = extent
        self.parts: tuple[Atom, Atom] | tuple[()] = ()

    def cut(self, outer: Dim, inner: Dim) -> tuple[Atom, Atom]:
        """Cut it into pieces of these extents."""
        self.parts = (Atom(outer), Atom(inner))
        return self.parts

    def whole(self) -> list[Atom]:
        """The pieces that it consists of now."""
        return [self] if not self.parts else [atom for part in self.parts for atom in part.whole()]


Axes = list[list[Atom]]
"""For each axis the atoms that it is made of, outer before inner; none where its extent is 1."""


class Rearrangement:
    """A tensor of extents `dims`, and what has been done to it.

    Attributes:
        source: its axes as they were, in atoms.
        result: its axes as they are now.
    """

    def __init__(self, dims: Dims, arithmetic: Arithmetic) -> None:
        """Nothing has been done yet; no extent is None."""
        self._arithmetic = arithmetic
        self._source: Axes = [[] if dim == 1 else [Atom(dim)] for dim in dims]
        self._result: Axes = [list(axis) for axis in self._source]

    @property
    def source(self) -> Axes:
        """The axes at the start."""
        return _cut(self._source)

    @property
    def result(self) -> Axes:
        """The axes now."""
        return _cut(self._result)

    def transpose(self, permutation: Sequence[int]) -> None:
        """Axis i of the result is axis `permutation[i]` of what there is."""
        self._result = [self._result[axis] for axis in permutation]

    def reshape(self, dims: Dims) -> bool:
        """Group the atoms anew into axes of extents `dims`, cutting where needed; False where that is not possible."""
        pending = deque(atom for axis in self.result for atom in axis)
        axes: Axes = []
        for dim in dims:
            axis = self._take(dim, pending)
            if axis is None:
                return False
            axes.append(axis)
        self._result = axes
        return not pending

    def _take(self, dim: Dim, pending: deque[Atom]) -> list[Atom] | None:
        """Atoms from the start of `pending` whose product is `dim`."""
        axis: list[Atom] = []
        missing = dim
        while missing != 1:
            if not pending:
                return None
            atom = pending.popleft()
            if atom.extent != missing:
                rest, remainder = self._ratio(missing, atom.extent), self._ratio(atom.extent, missing)
                if rest is None and remainder is None:
                    return None
                if rest is None:
                    atom, inner = atom.cut(missing, remainder)
                    pending.appendleft(inner)
                axis.append(atom)
                missing = 1 if rest is None else rest
                continue
            axis.append(atom)
            missing = 1
        return axis

    def _ratio(self, a: Dim, b: Dim) -> Dim:
        """a / b where it is a whole number for certain, else None."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b if b and a % b == 0 else None
        quotient = self._arithmetic.quotient(a, b)
        if isinstance(quotient, str) and "/" in quotient:
            return None
        return quotient if quotient is not None and self._arithmetic.multiply(quotient, b) == a else None

    def extents(self, axes: Iterable[Sequence[Atom]]) -> Dims:
        """The extents of axes."""
        return tuple(self._arithmetic.product(atom.extent for atom in axis) for axis in axes)


def _cut(axes: Axes) -> Axes:
    return [[piece for atom in axis for piece in atom.whole()] for axis in axes]
