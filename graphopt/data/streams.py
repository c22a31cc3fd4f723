"""Samples from Python code: generators, lists, data loaders, functions, and readers with `get_next`.

Such a stream can be gone through only once, or gives other samples the second time, so that its samples go to disk as they
are first read, and every later reading comes from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from graphopt.data.records import Records
from graphopt.data.signature import Signature
from graphopt.data.source import Digest, Elements, Sample
from graphopt.errors import DataError, GraphoptError


@runtime_checkable
class CalibrationReader(Protocol):
    """What `onnxruntime.quantization.CalibrationDataReader` asks for."""

    def get_next(self) -> Any:
        """The next feeds by input name; None (or nothing in them) at the end."""
        ...


class StreamSource:
    """Samples from an iterable, kept on disk from their first reading on."""

    indexable = False

    def __init__(
        self, elements: Iterable[Any], signature: Signature, name: str, option: str, *, limit: int | None = None
    ) -> None:
        """Read at most `limit` samples; `name` and `option` are what messages call the source."""
        self._elements = Elements(signature, name, option)
        self._iterator = _guarded(elements, f"{option}: {name}")
        self._samples = itertools.islice(self._divided(), limit)
        self._name = name
        self._option = option
        self._records = Records(option)
        self._labelled: bool | None = None

    @property
    def labelled(self) -> bool:
        """Whether the samples have labels, as the first one says."""
        self._reach(1)
        return bool(self._labelled)

    def __len__(self) -> int:
        self._reach(None)
        return len(self._records)

    def read(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The samples at `positions`."""
        for position in positions:
            self._reach(position + 1)
            yield self._records[position]

    def labels(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Labels of the samples at `positions`."""
        for position in positions if self.labelled else ():
            self._reach(position + 1)
            yield self._records.label(position)

    def where(self, position: int) -> str:
        """What messages call a sample."""
        return f"{self._name}, sample {position}"

    def update(self, digest: Digest) -> None:
        """Type, shape and elements of every sample."""
        for position in range(len(self)):
            self._records.update(position, digest)

    def _reach(self, count: int | None) -> None:
        """Read on until there are `count` samples, or to the end."""
        missing = None if count is None else max(0, count - len(self._records))
        for sample in itertools.islice(self._samples, missing):
            if self._labelled is None:
                self._labelled = sample.label is not None
            if self._labelled != (sample.label is not None):
                without = "has no label" if self._labelled else "has a label"
                raise DataError(f"{self._option}: {self.where(len(self._records))} {without}, unlike those before it")
            self._records.add(sample)

    def _divided(self) -> Iterator[Sample]:
        for number, element in enumerate(self._iterator):
            yield from self._elements.samples(element, number)


def elements_of(reader: CalibrationReader) -> Iterator[Any]:
    """What `reader` gives until it has no more."""
    while True:
        feeds = reader.get_next()
        if feeds is None or (hasattr(feeds, "__len__") and not len(feeds)):
            return
        yield feeds


def _guarded(elements: Iterable[Any], where: str) -> Iterator[Any]:
    """`elements`, with whatever the user's code raises as a DataError."""
    number = 0
    try:
        for number, element in enumerate(elements, start=1):  # noqa: B007 - the number is for the message
            yield element
    except GraphoptError:
        raise
    except Exception as error:  # the user's code may fail in any way, and it is the user who must be told
        raise DataError(f"{where} failed after {number} elements: {type(error).__name__}: {error}") from error
