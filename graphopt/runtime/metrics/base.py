"""What a metric is: columns gathered sample by sample, and a value computed from them.

A metric that is a mean gathers one number per sample, a ratio of sums two, the area under a curve the scores, a user's
function the outputs themselves. Whatever it is, the value of any choice of samples follows from their rows alone, so
that a bootstrap resamples rows and never runs a model again, and memory follows from what a row holds.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

Columns: TypeAlias = Mapping[str, np.ndarray]
"""Arrays by name whose first axis is samples."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """One batch as a metric sees it.

    Attributes:
        outputs: of the model that is judged, by name; only tensors are arrays.
        original: the same of the model that counts as right.
        size: samples that both models were fed.
        count: how many of them are real; the rest fill up a fixed batch and do not count.
        labels: of the real ones.
    """

    outputs: Mapping[str, Any]
    original: Mapping[str, Any]
    size: int
    count: int
    labels: np.ndarray | None = None


class Metric(abc.ABC):
    """A way to judge outputs.

    Attributes:
        name: what reports call it.
        unit: of its value; empty for fractions and for the unit of the outputs.
        higher_is_better: the direction in which it improves.
        against: what counts as right.
        resamples: how many bootstrap samples its value is computed for.
    """

    name: str
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    against: Literal["labels", "original"]
    resamples: ClassVar[int] = 1000

    @abc.abstractmethod
    def gather(self, batch: Observed) -> Columns:
        """The rows of a batch's real samples. Raises DataError where labels or outputs do not fit."""

    @abc.abstractmethod
    def value(self, columns: Columns) -> float:
        """The metric over rows; NaN where they do not define it."""

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is than `before`; for errors that is the increase."""
        return before - after if self.higher_is_better else after - before


def samples_of(array: np.ndarray, size: int) -> np.ndarray | None:
    """A batch's output, of any shape, with the `size` samples as its first axis; None where they cannot be told apart.

    A batch of one sample is that sample's, whatever its shape.
    """
    if array.ndim and array.shape[0] == size:
        return array
    return array[np.newaxis] if size == 1 else None


def is_float(value: Any) -> bool:
    """Whether an output is a tensor of real floating-point numbers, those that numpy does not know included."""
    return isinstance(value, np.ndarray) and (
        value.dtype.kind == "f" or value.dtype.name.startswith(("bfloat", "float"))
    )


def described(outputs: Mapping[str, Any]) -> str:
    """The outputs for an error message: names, types and shapes."""
    return ", ".join(
        f"'{name}' {value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"'{name}' (no tensor)"
        for name, value in outputs.items()
    )
