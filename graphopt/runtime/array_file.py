"""Arrays of one value, one per batch, in a nameless temporary file instead of in memory.

They are read back with `read`, not mapped: a mapped page counts as resident memory. The file is gone with its object,
however the run ends.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import weakref

import numpy as np

from graphopt.errors import DataError


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in the file an array lies."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


class ArrayFile:
    """A list of arrays on disk that grows at its end."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Make a file in `folder`, by default where the system has its temporary files."""
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with this object
        self.close = weakref.finalize(self, self._file.close)
        self._places: list[_Place] = []
        self._end = 0

    def append(self, array: np.ndarray) -> None:
        """Write `array` behind the others. Raises DataError where there is no room."""
        data = np.ascontiguousarray(array)
        view = _bytes(data)
        try:
            self._file.seek(self._end)
            rest = view
            while rest.nbytes:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise DataError(f"intermediate values cannot be written to disk: {error.strerror}") from error
        self._places.append(_Place(self._end, data.dtype, array.shape))
        self._end += view.nbytes

    def read(self, index: int) -> np.ndarray:
        """The array that was appended as number `index`, as a new one."""
        place = self._places[index]
        array = np.empty(place.shape, place.dtype)
        if array.size:
            self._file.seek(place.offset)
            rest = _bytes(array)
            while rest.nbytes:
                rest = rest[self._file.readinto(rest) :]
        return array

    @property
    def dtype(self) -> np.dtype:
        """Element type of the first array."""
        return self._places[0].dtype


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
