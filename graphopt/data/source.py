"""What every kind of data is read through: samples by position, each an array per input and perhaps a label.

A source streams: it hands out one sample after the other and keeps none. `Elements` brings what Python code yields, which
is one sample or several at once, into this form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from graphopt.data.signature import Input, Signature, assign
from graphopt.errors import DataError, GraphoptError

LABELS = "labels"
"""The key of labels among arrays, unless the model has an input of that name."""

_LABEL_KINDS = "biuf"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example as it is stored: arrays by input name without an axis of samples, and its label if there is one."""

    arrays: Mapping[str, np.ndarray]
    label: np.ndarray | None = None


class Digest(Protocol):
    """A hash object of `hashlib`."""

    def update(self, data: Any, /) -> None: ...  # noqa: D102 - as in hashlib


class Source(Protocol):
    """Where samples come from.

    Attributes:
        labelled: whether samples have labels.
        indexable: whether any choice of samples is as cheap as the first ones.
    """

    @property
    def labelled(self) -> bool: ...  # noqa: D102 - said above

    @property
    def indexable(self) -> bool: ...  # noqa: D102 - said above

    def __len__(self) -> int:
        """How many samples there are; reads a stream to its end."""
        ...

    def read(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The samples at `positions`, in that order; ascending is fastest."""
        ...

    def labels(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Labels alone, without reading the arrays where that is possible; nothing where there are none."""
        ...

    def where(self, position: int) -> str:
        """What messages call a sample."""
        ...

    def update(self, digest: Digest) -> None:
        """Feed the content of all samples to `digest`, piece by piece."""
        ...


class Elements:
    """Reads what user code yields: dicts of arrays or plain arrays, alone or as `(inputs, label)`."""

    def __init__(self, signature: Signature, name: str, option: str) -> None:
        """`name` and `option` are what messages call the source."""
        self._signature = signature
        self._name = name
        self._option = option
        self._label_key = label_key(signature)

    def samples(self, element: Any, number: int) -> list[Sample]:
        """The samples in the `number`-th element: one, or as many as its arrays have along the batch axis.

        Raises:
            DataError: it is nothing that samples can be read from, or does not fit the model's inputs.
        """
        where = f"{self._option}: {self._name}, element {number}"
        try:
            arrays, label = self._split(element)
            return self._divide(arrays, label, where)
        except GraphoptError as error:
            raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from None

    def _split(self, element: Any) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        label = None
        # A data loader yields lists [inputs, labels]; any other list is a sample that is written out.
        pair = isinstance(element, tuple) or (
            isinstance(element, list) and element and hasattr(element[0], "__array__")
        )
        if pair:
            if len(element) not in (1, 2):
                raise DataError(f"{len(element)} things; yield inputs or (inputs, label)")
            label = as_array(element[1], "the label") if len(element) == 2 else None
            element = element[0]
        if not isinstance(element, Mapping):
            element = {"": element}
        arrays = {str(key): as_array(array, f"array '{key}'") for key, array in element.items()}
        if label is None and self._label_key in arrays:
            label = arrays.pop(self._label_key)
        return arrays, label

    def _divide(self, arrays: dict[str, np.ndarray], label: np.ndarray | None, where: str) -> list[Sample]:
        keys = assign(arrays, self._signature, where)
        parts, counts = {}, {}
        for value in self._signature.inputs:
            array = arrays[keys[value.name]]
            stacked, count = _samples_in(value, array)
            parts[value.name] = stacked
            if count is not None:
                counts[value.name] = count
        if len(set(counts.values())) > 1:
            raise DataError("inputs hold " + ", ".join(f"{n} samples ('{name}')" for name, n in counts.items()))
        count = next(iter(counts.values()), None)
        labels = self._labels(label, count)
        return [
            Sample({name: part[i if name in counts else 0] for name, part in parts.items()}, labels[i])
            for i in range(1 if count is None else count)
        ]

    @staticmethod
    def _labels(label: np.ndarray | None, count: int | None) -> Sequence[np.ndarray | None]:
        """One label per sample; `count` is None where the element holds one sample without a batch axis."""
        if label is None:
            return [None] * (1 if count is None else count)
        check_label(label.dtype)
        if count is None or (count == 1 and label.ndim == 0):
            return [label]
        if label.ndim == 0 or len(label) != count:
            raise DataError(f"{count} samples, but labels of shape {label.shape}")
        return [label[i] for i in range(count)]


def label_key(signature: Signature) -> str | None:
    """The key that labels have, unless an input of the model has it."""
    return None if any(value.name == LABELS for value in signature.inputs) else LABELS


def check_label(dtype: np.dtype[Any]) -> None:
    """Raise DataError where labels are no numbers."""
    if dtype.kind not in _LABEL_KINDS:
        raise DataError(f"labels of type {dtype}; labels are numbers, classes as their index")


def as_array(value: Any, what: str) -> np.ndarray:
    """`value` as an array of numbers or text; raises DataError where it is none."""
    try:
        array = np.asarray(value)
    except Exception as error:  # conversions of other libraries' tensors fail in their own ways
        raise DataError(f"{what} is no array: {type(error).__name__}: {error}") from error
    if array.dtype == object and array.size and all(isinstance(item, str) for item in array.flat):
        return array.astype(str)
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise DataError(f"{what} holds objects ({array.dtype}), not numbers")
    return array


def _samples_in(value: Input, array: np.ndarray) -> tuple[np.ndarray, int | None]:
    """`array` with samples along its first axis, and how many; None where it is one sample without a batch axis."""
    rank = array.ndim if value.dims is None else len(value.dims)
    if value.batch_axis is None:
        if array.ndim == rank - 1 and value.dims and value.dims[0] == 1:
            array = array[np.newaxis]
        if array.ndim == rank:
            return array[np.newaxis], None
    elif array.ndim == rank > 0:
        return np.moveaxis(array, value.batch_axis, 0), array.shape[value.batch_axis]
    elif array.ndim == rank - 1:
        return array[np.newaxis], None
    raise DataError(f"an array of shape {array.shape} for the input {value}")
