"""Arrays in `.npy` and `.npz` files, row by row, without ever unpickling.

A `.npy` file is a header and the elements; an `.npz` file is a zip archive of them. Members that are stored as they are
(`numpy.savez`) are read at their place in the archive, compressed ones (`numpy.savez_compressed`) as a stream that seeks
forward. Arrays in Fortran order have no rows to seek to and are read whole, up to a limit.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.data.arrays import Column, MemoryColumn
from graphopt.errors import DataError

_PIECE = 1 << 20
_LARGEST_FORTRAN = 256 << 20
_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name
_SUFFIX = ".npy"

# zipfile reports damage, unknown compression and encryption each in its own way.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)


def npy_column(path: Path, option: str) -> Column:
    """The array in a `.npy` file. Raises DataError where there is none that can be read row by row."""
    return _column(_Place(path, None, f"{option}: {path}"))


def npz_columns(path: Path, option: str) -> dict[str, Column]:
    """The arrays of an `.npz` file by key. Raises DataError, also for an array of objects, which is never loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
    except _DAMAGE as error:
        raise DataError(f"{option}: {path} is no readable .npz file ({error})") from error
    return {
        key: _column(_Place(path, name, f"{option}: {path}, array '{key}'"))
        for key, name in ((name.removesuffix(_SUFFIX), name) for name in names)
    }


@dataclasses.dataclass(frozen=True)
class _Place:
    """A file, or a member of an archive, and what messages call it."""

    path: Path
    member: str | None
    where: str

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[IO[bytes], int, int]]:
        """The file to read, where in it the content starts, and how many bytes it has.

        Raises:
            DataError: it is damaged, which also reading may find.
        """
        try:
            if self.member is None:
                with self.path.open("rb") as file:
                    yield file, 0, self.path.stat().st_size
                return
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(self.member)
                if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:  # bit 0: encrypted
                    with self.path.open("rb") as file:
                        yield file, self._start(file, info), info.file_size
                else:
                    with archive.open(info) as member:
                        yield member, 0, info.file_size
        except _DAMAGE as error:
            raise DataError(f"{self.where} cannot be read: {error}") from error

    @staticmethod
    def _start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER:
            raise EOFError("the archive is cut off")
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        return info.header_offset + _LOCAL_HEADER + name + extra


@dataclasses.dataclass(frozen=True)
class _FileColumn:
    """An array whose elements start `offset` bytes into a place."""

    place: _Place
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def reshaped(self, shape: tuple[int, ...]) -> _FileColumn:
        """The same elements in another shape."""
        return dataclasses.replace(self, shape=shape)

    def rows(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Read the rows at `positions`, seeking to each."""
        shape = self.shape[1:]
        length = math.prod(shape) * self.dtype.itemsize
        with self.place.open() as (file, start, _):
            for position in positions:
                file.seek(start + self.offset + position * length)
                yield np.frombuffer(_exactly(file, length), dtype=self.dtype).reshape(shape)

    def pieces(self) -> Iterator[bytes]:
        """All bytes, a mebibyte at a time."""
        rest = math.prod(self.shape) * self.dtype.itemsize
        with self.place.open() as (file, start, _):
            file.seek(start + self.offset)
            while rest:
                piece = _exactly(file, min(rest, _PIECE))
                rest -= len(piece)
                yield piece


def _column(place: _Place) -> Column:
    with place.open() as (file, start, size):
        file.seek(start)
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f"format version {version} is for arrays with named fields")
            shape, fortran, dtype = read_header[version](file)
        except (ValueError, SyntaxError, tokenize.TokenError) as error:  # the header is text, which numpy evaluates
            raise DataError(f"{place.where} is no array in numpy's format ({error})") from error
        offset = file.tell() - start
    if dtype.hasobject:
        raise DataError(
            f"{place.where} holds Python objects (a pickle), which are never loaded; save arrays of numbers, where lengths "
            "differ one per sample through a reader function (file.py:function)"
        )
    if dtype.fields is not None or dtype.itemsize == 0:
        raise DataError(f"{place.where} has elements of type {dtype}, which no model reads")
    length = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or offset + length != size:
        raise DataError(f"{place.where} is damaged: {length} bytes of elements announced, {size - offset} there")
    column = _FileColumn(place, offset, shape, dtype)
    return _transposed(column) if fortran and len(shape) > 1 else column


def _transposed(column: _FileColumn) -> MemoryColumn:
    """An array in Fortran order, read whole."""
    length = math.prod(column.shape) * column.dtype.itemsize
    if length > _LARGEST_FORTRAN:
        raise DataError(
            f"{column.place.where} is stored in Fortran order, where samples cannot be read one by one, and too large to "
            "read whole; save numpy.ascontiguousarray of it"
        )
    elements = np.frombuffer(b"".join(column.pieces()), dtype=column.dtype)
    return MemoryColumn(elements.reshape(column.shape, order="F"))


def _exactly(file: IO[bytes], length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise EOFError("it ends too early")
    return data
