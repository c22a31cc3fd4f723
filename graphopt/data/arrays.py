"""Samples from whole arrays, one per input, whose first axis is the samples: what `.npz` files hold.

A `Column` is such an array, in memory or in a file, that gives its rows one at a time; it is never read whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from graphopt.data.signature import Input, Signature, assign
from graphopt.data.source import LABELS, Digest, Sample, as_array, check_label, label_key
from graphopt.errors import DataError

_PIECE = 1 << 20


class Column(Protocol):
    """An array that is read row by row.

    Attributes:
        shape: of the array; the first axis is rows.
        dtype: of its elements.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102 - said above

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102 - said above

    def reshaped(self, shape: tuple[int, ...]) -> Column:
        """The same elements in another shape."""
        ...

    def rows(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """The rows at `positions`."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """All bytes in C order."""
        ...


class MemoryColumn:
    """A column of an array that the caller holds."""

    def __init__(self, array: np.ndarray) -> None:
        """Wrap `array`."""
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype

    def reshaped(self, shape: tuple[int, ...]) -> MemoryColumn:
        """The same elements in another shape."""
        return MemoryColumn(self._array.reshape(shape))

    def rows(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Views of the rows at `positions`."""
        return (self._array[position, ...] for position in positions)

    def pieces(self) -> Iterator[bytes]:
        """All bytes in C order, about a mebibyte at a time."""
        rows = self._array if self._array.ndim else self._array[np.newaxis]
        step = max(1, _PIECE // max(1, rows[:1].nbytes))
        return (rows[start : start + step].tobytes() for start in range(0, len(rows), step))


class ArraySource:
    """Samples from one column per input."""

    indexable = True

    def __init__(self, columns: Mapping[str, Column], signature: Signature, name: str, option: str) -> None:
        """Fit `columns` (by key) to the model's inputs; `name` and `option` are what messages call the source.

        Raises:
            DataError: an input has no column, or columns do not fit the inputs or each other.
        """
        self._name = name
        where = f"{option}: {name}"
        inputs = dict(columns)
        labels = inputs.pop(LABELS, None) if label_key(signature) else None
        keys = assign(inputs, signature, where)
        self.unused = sorted(inputs.keys() - keys.values())
        self._content = {key: columns[key] for key in keys.values()}
        try:
            self._columns, self._length = _fit({value: inputs[keys[value.name]] for value in signature.inputs})
            self._labels = None if labels is None else _fit_labels(labels, self._length)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if labels is not None:
            self._content[LABELS] = labels

    @property
    def labelled(self) -> bool:
        """Whether there is a column of labels."""
        return self._labels is not None

    def __len__(self) -> int:
        return self._length

    def read(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The samples at `positions`."""
        streams = [
            column.rows(positions if repeats else [0] * len(positions)) for column, repeats in self._columns.values()
        ]
        labels = self.labels(positions) if self.labelled else (None for _ in positions)
        for *arrays, label in zip(*streams, labels, strict=True):
            yield Sample(dict(zip(self._columns, arrays, strict=True)), label)

    def labels(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Labels of the samples at `positions`."""
        return iter(()) if self._labels is None else (np.asarray(row) for row in self._labels.rows(positions))

    def where(self, position: int) -> str:
        """What messages call a sample."""
        return f"{self._name}, sample {position}"

    def update(self, digest: Digest) -> None:
        """Type, shape and elements of every column that is used."""
        for key, column in sorted(self._content.items()):
            digest.update(repr((key, column.dtype.str, column.shape)).encode())
            for piece in column.pieces():
                digest.update(piece)


def array_source(arrays: Mapping[Any, Any], signature: Signature, name: str, option: str) -> ArraySource:
    """Samples from arrays in memory, by key. Raises DataError where one holds no numbers."""
    columns = {}
    for key in arrays:
        try:
            columns[str(key)] = MemoryColumn(as_array(arrays[key], f"array '{key}'"))
        except (DataError, ValueError) as error:  # numpy's own mappings refuse pickles with a ValueError
            raise DataError(f"{option}: {error}") from None
    return ArraySource(columns, signature, name, option)


def _fit(columns: Mapping[Input, Column]) -> tuple[dict[str, tuple[Column, bool]], int]:
    """Columns by input name in the shape (samples, *sample), with whether each has an entry per sample; and how many."""
    fitted, counts = {}, {}
    for value, column in columns.items():
        shape, has_samples = _rows_as_samples(value, column.shape)
        fitted[value.name] = (column.reshaped(shape), has_samples)
        if has_samples:
            counts[value.name] = shape[0]
    if len(set(counts.values())) > 1:
        raise DataError("inputs hold " + ", ".join(f"{count} samples ('{name}')" for name, count in counts.items()))
    return fitted, next(iter(counts.values()), 1)


def _rows_as_samples(value: Input, shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    """`shape` as (samples, *sample), and False where the array is one value for all samples."""
    rank = len(shape) if value.dims is None else len(value.dims)
    if value.batch_axis is None:
        if len(shape) == rank + 1:
            return shape, True
        if len(shape) == rank:
            one_each = bool(shape) and value.dims is not None and value.dims[0] == 1 != shape[0]
            return ((shape[0], 1, *shape[1:]), True) if one_each else ((1, *shape), False)
    elif shape and len(shape) == rank:
        return shape, True
    elif len(shape) == rank + 1:
        axis = 1 + value.batch_axis
        if shape[axis] == 1:
            return (*shape[:axis], *shape[axis + 1 :]), True
        if axis == 1:  # rows that are batches
            return (shape[0] * shape[1], *shape[2:]), True
    raise DataError(f"an array of shape {shape} for the input {value}; its first axis is samples")


def _fit_labels(labels: Column, count: int) -> Column:
    check_label(labels.dtype)
    shape = labels.shape
    if len(shape) > 1 and shape[0] != count and shape[0] * shape[1] == count:
        shape = (count, *shape[2:])
    if not shape or shape[0] != count:
        raise DataError(f"{count} samples, but labels of shape {labels.shape}")
    if len(shape) > 1 and math.prod(shape[1:]) == 1:  # a column of class indices
        shape = (count,)
    return labels.reshaped(shape)
