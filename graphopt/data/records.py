"""Samples kept on disk, so that they can be read again: in a nameless temporary file that is gone with its last user."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from graphopt.data.source import Digest, Sample
from graphopt.errors import DataError
from graphopt.ir.spool import Spool

_Layout: TypeAlias = tuple[tuple[str | None, np.dtype[Any], tuple[int, ...]], ...]
"""Name, type and shape of each array of a sample; the label has no name."""


class Records:
    """Samples in the order in which they were added."""

    def __init__(self, option: str) -> None:
        """`option` is what messages call the source's option."""
        self._option = option
        self._spool = Spool()
        self._places: list[tuple[int, _Layout]] = []
        self._layouts: dict[_Layout, _Layout] = {}  # most samples share one
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, sample: Sample) -> int:
        """Keep `sample` and return its place. Raises DataError where the disk has no room."""
        arrays: list[tuple[str | None, np.ndarray]] = [*sample.arrays.items()]
        if sample.label is not None:
            arrays.append((None, sample.label))
        layout = tuple((name, array.dtype, array.shape) for name, array in arrays)
        data = b"".join(array.tobytes() for _, array in arrays)
        try:
            offset = self._spool.append(data)
        except OSError as error:
            raise DataError(f"{self._option}: no room to keep the samples in a temporary file ({error})") from error
        self._places.append((offset, self._layouts.setdefault(layout, layout)))
        self.bytes += len(data)
        return len(self._places) - 1

    def __getitem__(self, place: int) -> Sample:
        offset, layout = self._places[place]
        data = self._spool.read(offset, sum(_bytes(dtype, shape) for _, dtype, shape in layout))
        arrays: dict[str, np.ndarray] = {}
        label, start = None, 0
        for name, dtype, shape in layout:
            array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
            start += _bytes(dtype, shape)
            if name is None:
                label = array
            else:
                arrays[name] = array
        return Sample(arrays, label)

    def label(self, place: int) -> np.ndarray:
        """The label of a sample that has one, without its arrays."""
        offset, layout = self._places[place]
        _, dtype, shape = layout[-1]
        before = sum(_bytes(dtype, shape) for _, dtype, shape in layout[:-1])
        return np.frombuffer(self._spool.read(offset + before, _bytes(dtype, shape)), dtype).reshape(shape)

    def update(self, place: int, digest: Digest) -> None:
        """Feed the content of a sample to `digest`."""
        offset, layout = self._places[place]
        digest.update(repr([(name, dtype.str, shape) for name, dtype, shape in layout]).encode())
        digest.update(self._spool.read(offset, sum(_bytes(dtype, shape) for _, dtype, shape in layout)))


def _bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
