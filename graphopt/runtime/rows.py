"""The rows of Gram and cross-moment matrices: where they come from, and which of them are looked at.

A row source turns samples of a value into matrices (G, width, rows). Which rows a bounded request looks at is drawn per
sample from (seed, number of the sample) alone: the same for every value with as many positions, in every version of a
model, whatever the batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from graphopt.errors import DataError
from graphopt.runtime.patches import Window, patches

Positions = tuple[np.ndarray, np.ndarray]
"""(rows,) numbers of samples within an array, and (rows,) numbers of positions within a sample."""


class RowSource(Protocol):
    """Makes matrices of rows."""

    def samples(self, shape: tuple[int, ...]) -> int:
        """How many samples an array of this shape holds."""
        ...

    def positions(self, shape: tuple[int, ...]) -> int:
        """How many rows each sample has."""
        ...

    def width(self, shape: tuple[int, ...]) -> int:
        """Elements of a row, over all groups."""
        ...

    def take(self, x: np.ndarray, positions: Positions | None = None) -> np.ndarray:
        """(G, width / G, rows) of all of x, or of the chosen positions."""
        ...


class ChannelRows:
    """One row per position of all axes but `axis`, split into `groups`."""

    def __init__(self, axis: int, groups: int = 1) -> None:
        self._axis = axis
        self._groups = groups

    def samples(self, shape: tuple[int, ...]) -> int:
        """The first axis holds samples, unless it is the channels' own. Raises DataError without a channel axis."""
        if not -len(shape) <= self._axis < len(shape):
            raise DataError(f"there are no channels along axis {self._axis} of a value with {len(shape)} axes")
        return 1 if self._axis % len(shape) == 0 else shape[0]

    def positions(self, shape: tuple[int, ...]) -> int:
        """The product of the other axes."""
        return math.prod(shape) // max(1, self.samples(shape) * self.width(shape))

    def width(self, shape: tuple[int, ...]) -> int:
        """The extent of the channel axis."""
        return shape[self._axis]

    def take(self, x: np.ndarray, positions: Positions | None = None) -> np.ndarray:
        """See `RowSource`; rows in the order of the other axes."""
        width = x.shape[self._axis]
        if positions is None:
            rows = np.moveaxis(x, self._axis, 0).reshape(width, -1)
        else:
            samples = self.samples(x.shape)
            by_sample = np.moveaxis(x, self._axis, -1).reshape(samples, -1, width)
            rows = by_sample[positions].T
        return rows.reshape(self._groups, width // self._groups, -1)


class SlidingWindow(Protocol):
    """How a kernel moves over n spatial axes: its extents (k1..kn), and those of the output for an input of `spatial`."""

    @property
    def kernel(self) -> tuple[int, ...]:
        """Extents of the kernel."""
        ...

    def extents(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Extents (o1..on) of the output."""
        ...


WindowT = TypeVar("WindowT", bound=SlidingWindow)


class WindowRows(Generic[WindowT]):
    """The counts of a `RowSource` with one row per pixel of the output, of shape (N, C, ...): channels times kernel."""

    def __init__(self, window: WindowT) -> None:
        self._window = window

    def samples(self, shape: tuple[int, ...]) -> int:
        """The batch axis."""
        return shape[0]

    def positions(self, shape: tuple[int, ...]) -> int:
        """Pixels of the output."""
        return math.prod(self._window.extents(shape[2:]))

    def width(self, shape: tuple[int, ...]) -> int:
        """Channels times kernel."""
        return shape[1] * math.prod(self._window.kernel)


class PatchRows(WindowRows[Window]):
    """What a Conv multiplies its weight with."""

    def take(self, x: np.ndarray, positions: Positions | None = None) -> np.ndarray:
        """See `RowSource`."""
        return patches(x, self._window, positions)


class Choice:
    """Which rows are looked at.

    Args:
        rows: at most how many of the whole stream; None is all.
        seed: of the choice.
        samples: how many samples the stream has; `rows` are spread over them evenly.
    """

    def __init__(self, rows: int | None, seed: int, samples: int) -> None:
        self._rows = rows
        self._seed = seed
        self._samples = max(1, samples)

    def of_sample(self, number: int, positions: int) -> np.ndarray | None:
        """Numbers of the rows to take of one sample, ascending; None is all of them.

        One row is drawn from each of as many equal stretches of the sample.
        """
        if self._rows is None:
            return None
        due = (number + 1) * self._rows // self._samples - number * self._rows // self._samples
        if due >= positions:
            return None
        random = np.random.default_rng((self._seed, number)).random(due)
        return np.minimum(((np.arange(due) + random) * (positions / max(1, due))).astype(np.int64), positions - 1)
