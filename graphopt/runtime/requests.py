"""What can be asked about the values of a model, and the answers.

A request names a value of the main graph (a node output, a graph input or an initializer) or a Conv node, and is
hashable, so that answers are kept by it. Every statistic is over the whole calibration stream, accumulated in float64;
"rows" are the positions of a value apart from its channel axis: the pixels of all images, the tokens of all texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

R = TypeVar("R")


class Batch(Protocol):
    """Samples that are run together (`graphopt.data.Batch` is one).

    Attributes:
        feeds: inputs by name, as the model reads them.
        count: how many samples of the batch are real; those after them fill up a fixed batch and do not count.
    """

    @property
    def feeds(self) -> Mapping[str, np.ndarray]: ...  # noqa: D102 - said above

    @property
    def count(self) -> int: ...  # noqa: D102 - said above


class Request(Generic[R]):
    """One question; `R` is the type of its answer."""


@dataclasses.dataclass(frozen=True)
class RangeResult:
    """Smallest and largest finite element; `finite` is whether there was no NaN and no infinity; `count` elements."""

    low: float
    high: float
    finite: bool
    count: int


@dataclasses.dataclass(frozen=True)
class Range(Request[RangeResult]):
    """The range of a whole tensor."""

    value: str


@dataclasses.dataclass(frozen=True)
class ChannelRangeResult:
    """Smallest and largest element per channel, float64 of shape (C,)."""

    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class ChannelRange(Request[ChannelRangeResult]):
    """The range per channel along `axis` (negative counts from the end)."""

    value: str
    axis: int


@dataclasses.dataclass(frozen=True)
class HistogramResult:
    """How often elements fall into equal bins.

    The bin width is a power of two and 0 is an edge or outside, so that counts do not depend on how the samples were
    batched; between half and all of the bins are within [minimum, maximum] (fewer where float32 cannot tell more).

    Attributes:
        counts: (bins,) float64; bin i holds low + i * width <= x < low + (i + 1) * width.
        low: left edge of the first bin.
        high: right edge of the last bin; low <= minimum <= maximum <= high.
        minimum: smallest element, exactly.
        maximum: largest element, exactly.
    """

    counts: np.ndarray
    low: float
    high: float
    minimum: float
    maximum: float

    @property
    def edges(self) -> np.ndarray:
        """(bins + 1,) float64."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centers(self) -> np.ndarray:
        """(bins,) float64."""
        edges = self.edges
        return np.asarray((edges[1:] + edges[:-1]) / 2)


@dataclasses.dataclass(frozen=True)
class Histogram(Request[HistogramResult]):
    """The histogram of a whole tensor."""

    value: str
    bins: int = 2048


@dataclasses.dataclass(frozen=True)
class MomentsResult:
    """Mean and (biased) variance per channel, float64 of shape (C,), over `count` rows."""

    mean: np.ndarray
    variance: np.ndarray
    count: int


@dataclasses.dataclass(frozen=True)
class Moments(Request[MomentsResult]):
    """Mean and variance per channel along `axis`, of x or, with `magnitudes`, of |x|."""

    value: str
    axis: int
    magnitudes: bool = False


@dataclasses.dataclass(frozen=True)
class GramResult:
    """Uncentred second moments E[x xᵀ] and means E[x] of `count` rows x.

    Attributes:
        second: float64; (C, C) for `Gram`, (G, K, K) for `PatchGram`.
        mean: float64; (C,) or (G, K).
        count: rows.
    """

    second: np.ndarray
    mean: np.ndarray
    count: int


@dataclasses.dataclass(frozen=True)
class Gram(Request[GramResult]):
    """E[x xᵀ] over the channels along `axis`; all other axes are rows.

    `rows` bounds how many rows are looked at, chosen at random under `seed`; None is all.
    """

    value: str
    axis: int
    rows: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PatchGram(Request[GramResult]):
    """E[x xᵀ] over what a Conv node multiplies its weight with, per group.

    A row is the input under the kernel at one output position, K = C/G * k1 * .. * kn elements in the order of the
    weight's own, padding counted as zeros. `node` is the name of the Conv's output, or the Conv's own.
    `rows` bounds how many positions are looked at, chosen at random under `seed` alike for all nodes whose outputs have
    the same extents, in this and any other model; None is all.
    """

    node: str
    rows: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Channels:
    """Rows for `CrossGram`: a value's elements along `axis`, one row per position of its other axes."""

    value: str
    axis: int


@dataclasses.dataclass(frozen=True)
class Patches:
    """Rows for `CrossGram`: what the Conv called `node` multiplies its weight with, as in `PatchGram`."""

    node: str


@dataclasses.dataclass(frozen=True)
class CrossGramResult:
    """Cross moments E[y xᵀ] of rows y of one model and rows x of another (or of the same).

    Attributes:
        cross: (G, A, B) float64. G is 1 unless a side is the patches of a grouped Conv; channels of the other side are
            split into as many groups.
        left_mean: (G, A) float64, E[y].
        right_mean: (G, B) float64, E[x].
        count: rows.
    """

    cross: np.ndarray
    left_mean: np.ndarray
    right_mean: np.ndarray
    count: int


@dataclasses.dataclass(frozen=True)
class CrossGram(Request[CrossGramResult]):
    """E[y xᵀ]: `left` gives y from the first model, `right` gives x from the second, row by row."""

    left: Channels | Patches
    right: Channels | Patches
    rows: int | None = None
    seed: int = 0


class Results(dict[Request[Any], Any]):
    """Answers by request; what comes out has the type that the request promises."""

    def __getitem__(self, request: Request[R]) -> R:
        answer: R = super().__getitem__(request)
        return answer
