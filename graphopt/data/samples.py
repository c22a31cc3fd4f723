"""Samples as the rest of graphopt sees them: batches of feeds that a model can be run on, as often as needed.

Nothing is kept: each iteration reads the source anew, prepares one sample after the other, and puts neighbours together.
Samples of different extents (texts of different lengths) are never padded; a batch ends where the extents change, so
that outputs come in the order of the samples and their labels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from graphopt.data.normalization import Normalization
from graphopt.data.preparation import Preparer
from graphopt.data.signature import Signature
from graphopt.data.source import Source
from graphopt.errors import DataError

HELD_OUT_SHARE = 4
"""One of so many samples is held out for the gate ..."""
LEAST_HELD_OUT = 32
"""... but at least so many."""

_BATCH = 32
_BATCH_BYTES = 32 << 20

_Prepared: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples that are run together.

    Attributes:
        feeds: inputs by name, as the model reads them: element type, layout, normalization, extents.
        count: how many samples are real; where they do not fill a fixed batch, the last one is repeated.
        labels: of the `count` samples; None where there are none.
    """

    feeds: Mapping[str, np.ndarray]
    count: int
    labels: np.ndarray | None = None


@dataclasses.dataclass
class Opened:
    """What all views of one source share.

    Attributes:
        source: where the samples are.
        signature: what the model reads.
        normalization: how integers are preprocessed.
        option: what messages call the source's option.
        warnings: what the user should know; grows while samples are read.
    """

    source: Source
    signature: Signature
    normalization: Normalization | None
    option: str
    warnings: list[str] = dataclasses.field(default_factory=list)
    digest: str | None = None

    def warn(self, text: str) -> None:
        """Say `text`, once."""
        if text not in self.warnings:
            self.warnings.append(text)


class Samples:
    """A choice of the samples of one source, made ready for one model."""

    def __init__(self, opened: Opened, positions: Sequence[int]) -> None:
        """`positions` are those of the source, in the order in which samples come."""
        self._opened = opened
        self._positions = positions
        self._preparer = Preparer(opened.signature, opened.normalization, opened.option, opened.warn)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def labelled(self) -> bool:
        """Whether samples have labels."""
        return self._opened.source.labelled

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know; more may come while samples are read."""
        return tuple(self._opened.warnings)

    @property
    def digest(self) -> str:
        """SHA-256 of the content of the whole source and of the normalization; the source is read once for it.

        Raises:
            DataError: it can no longer be read.
        """
        if self._opened.digest is None:
            sha = hashlib.sha256(repr(self._opened.normalization).encode())
            try:
                self._opened.source.update(sha)
            except OSError as error:
                raise DataError(f"{self._opened.option}: the samples cannot be read again: {error}") from error
            self._opened.digest = sha.hexdigest()
        return self._opened.digest

    def indices(self) -> Sequence[int]:
        """Positions of these samples in the source."""
        return tuple(self._positions)

    def subset(self, indices: Sequence[int]) -> Samples:
        """A view of the samples at `indices` (0 to length - 1) of these. Raises DataError where there is no such one."""
        wrong = next((index for index in indices if not 0 <= index < len(self)), None)
        if wrong is not None:
            raise DataError(f"{self._opened.option}: there is no sample {wrong}; there are {len(self)}")
        return Samples(self._opened, [self._positions[index] for index in indices])

    def labels(self) -> np.ndarray | None:
        """All labels in the order of the samples; the samples themselves are not read where that is possible."""
        if not self.labelled:
            return None
        return self._stack_labels(list(self._opened.source.labels(self._positions)))

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """All samples in order, some at a time.

        Args:
            size: how many at most, for a model that leaves that open; by default 32, fewer where they are large.

        Raises:
            DataError: a sample does not fit the model, or holds NaN or infinity; the message names it.
        """
        samples = self._prepared()
        first = next(samples, None)
        if first is None:
            return
        capacity = self._opened.signature.batch or size or _default_size(first[0])
        together: list[_Prepared] = []
        for sample in itertools.chain([first], samples):
            if together and (len(together) == capacity or not self._alike(together[0][0], sample[0])):
                yield self._batch(together)
                together = []
            together.append(sample)
        yield self._batch(together)

    def _prepared(self) -> Iterator[_Prepared]:
        source = self._opened.source
        for position, sample in zip(self._positions, source.read(self._positions), strict=True):
            yield self._preparer.prepare(sample.arrays, source.where(position)), sample.label

    def _alike(self, one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
        """Whether two samples can be run together: equal extents, and the same of what has no batch axis."""
        for value in self._opened.signature.inputs:
            a, b = one[value.name], other[value.name]
            if a.shape != b.shape or (value.batch_axis is None and not np.array_equal(a, b)):
                return False
        return True

    def _batch(self, samples: list[_Prepared]) -> Batch:
        fill = max(0, (self._opened.signature.batch or 0) - len(samples))
        feeds = {}
        for value in self._opened.signature.inputs:
            arrays = [feed[value.name] for feed, _ in samples]
            if value.batch_axis is None:
                feeds[value.name] = arrays[0]
            else:
                feeds[value.name] = np.stack(arrays + arrays[-1:] * fill, axis=value.batch_axis)
        labels = [label for _, label in samples if label is not None]
        return Batch(feeds, len(samples), self._stack_labels(labels) if labels else None)

    def _stack_labels(self, labels: list[np.ndarray]) -> np.ndarray:
        if len({label.shape for label in labels}) > 1:
            shapes = ", ".join(sorted({str(label.shape) for label in labels}))
            raise DataError(f"{self._opened.option}: labels of different shapes: {shapes}")
        stacked = np.stack(labels)
        if stacked.dtype.kind == "f" and not np.isfinite(stacked).all():
            raise DataError(f"{self._opened.option}: labels hold NaN or infinity")
        return stacked


def hold_out(samples: Samples, *, seed: int) -> tuple[Samples, Samples]:
    """Split into those that calibrate and those held out for the gate: a seeded quarter, at least 32; never the same.

    Raises:
        DataError: nothing would be left to calibrate on.
    """
    held = max(LEAST_HELD_OUT, len(samples) // HELD_OUT_SHARE)
    if len(samples) <= held:
        raise DataError(
            f"--max-drop holds {held} samples out of the calibration data to judge by, but there are only {len(samples)}; "
            f"give more than {held}"
        )
    chosen = np.random.default_rng(seed).permutation(len(samples))[:held].tolist()
    out = set(chosen)
    kept = [index for index in range(len(samples)) if index not in out]
    return samples.subset(kept), samples.subset(sorted(chosen))


def _default_size(sample: Mapping[str, np.ndarray]) -> int:
    return max(1, min(_BATCH, _BATCH_BYTES // max(1, sum(array.nbytes for array in sample.values()))))
