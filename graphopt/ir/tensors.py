"""Tensors whose bytes stay where they are until somebody reads them.

A weight may lie in the middle of an `.onnx` file, in an external data file, or in a buffer. `StoredTensor` stands for
all three: it knows where its bytes are and reads them when asked, every time anew, so that a model's weights never add
up in memory. Files are read with `pread`, not mapped (a mapped page counts as resident), and a file that changed since
it was opened is an error rather than another model's numbers.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.errors import InvalidModelError

CHUNK = 16 * 2**20
"""Bytes read at a time; no larger piece of a tensor needs to be in memory to copy or compare it."""


class Storage(Protocol):
    """Where bytes lie."""

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return `length` bytes from `offset` on."""
        ...


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Bytes in memory; reading them copies nothing."""

    view: memoryview

    @property
    def size(self) -> int:
        """Bytes in the buffer."""
        return len(self.view)

    def read(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset` on."""
        return self.view[offset : offset + length]


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file on disk, as it was when the model was lifted."""

    path: Path
    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """Describe the file at `path` as it is now. Raises OSError where there is none."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)

    def open(self) -> int:
        """Open for reading and return the descriptor. Raises InvalidModelError if the file is no longer the same."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InvalidModelError(f"{self.path}: cannot be read any more ({error.strerror})") from error
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns, status.st_ino) != (self.size, self.modified_ns, self.inode):
            os.close(descriptor)
            raise InvalidModelError(f"{self.path}: changed while graphopt was working on it; run again")
        return descriptor

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on."""
        descriptor = self.open()
        try:
            return self._read(descriptor, offset, length)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(descriptor, length, offset)
            if not part:
                raise InvalidModelError(f"{self.path}: ends at byte {offset}, where tensor data should go on")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def sha256(content: StoredFile | Buffer) -> str:
    """Hexadecimal SHA-256 of a file or buffer, read a chunk at a time."""
    digest = hashlib.sha256()
    for start in range(0, content.size, CHUNK):
        digest.update(content.read(start, min(CHUNK, content.size - start)))
    return digest.hexdigest()


class OwnTensor(ir.TensorProtocol, abc.ABC):
    """What every tensor class must say and no storage changes: names, sizes, and numpy's and DLPack's view of it."""

    def __init__(self, dtype: ir.DataType, shape: ir.ShapeProtocol, name: str) -> None:
        self.dtype = dtype
        self.shape = shape
        self.name = name
        self.doc_string: str | None = None
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape.numpy())

    @property
    def nbytes(self) -> int:
        """Bytes of the raw form."""
        return raw_size(self.dtype, self.shape.numpy())

    @abc.abstractmethod
    def numpy(self) -> np.ndarray[Any, Any]:
        """Read the whole tensor into an array."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Read the whole tensor, as numpy expects it."""
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Export the tensor through DLPack."""
        return self.numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say on which device `__dlpack__` exports: the host."""
        return self.numpy().__dlpack_device__()

    def tofile(self, file: Any) -> None:
        """Write the raw form to a binary file, a chunk at a time where the storage allows it."""
        for chunk in chunks(self):
            file.write(chunk)

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.dtype},{self.shape}>(name={self.name!r})"


class StoredTensor(OwnTensor):
    """A tensor that reads its bytes from a `Storage` each time they are asked for.

    The bytes are in ONNX's raw form: little endian, types below 8 bits packed.
    """

    def __init__(
        self, storage: Storage, offset: int, length: int, dtype: ir.DataType, shape: ir.ShapeProtocol, name: str
    ) -> None:
        super().__init__(dtype, shape, name)
        self.raw = storage
        self.storage = storage
        self.offset = offset
        self.length = length

    def numpy(self) -> np.ndarray[Any, Any]:
        """Read the whole tensor into a new, read-only array."""
        data = np.frombuffer(self.storage.read(self.offset, self.length), dtype=np.uint8)
        return array_of(data, self.dtype, self.shape)

    def tobytes(self) -> bytes:
        """Read the whole tensor in raw form."""
        return bytes(self.storage.read(self.offset, self.length))


class SparseTensor(OwnTensor):
    """A sparse initializer (ONNX `SparseTensorProto`), kept as it is and made dense only where somebody reads it.

    Args:
        values: (NNZ,) the non-zero elements.
        indices: (NNZ,) linear, or (NNZ, rank) per axis.
        shape: extents of the dense tensor.
    """

    def __init__(
        self, values: ir.TensorProtocol, indices: ir.TensorProtocol, shape: ir.ShapeProtocol, name: str
    ) -> None:
        super().__init__(values.dtype, shape, name)
        self.raw = values, indices
        self.values = values
        self.indices = indices

    def numpy(self) -> np.ndarray[Any, Any]:
        """Make the tensor dense."""
        values, indices = self.values.numpy(), self.indices.numpy()
        dense = np.zeros(self.shape.numpy(), dtype=values.dtype)
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
        return dense

    def tobytes(self) -> bytes:
        """Return the dense tensor in raw form."""
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()


def array_of(data: np.ndarray[Any, Any], dtype: ir.DataType, shape: ir.ShapeProtocol) -> np.ndarray[Any, Any]:
    """Turn ONNX raw bytes, (nbytes,) uint8, into an array of `dtype` and `shape` without copying where possible."""
    if dtype.bitwidth < 8:
        return ir.PackedTensor(data, dtype, shape=shape.numpy()).numpy()
    numpy_type = np.dtype(dtype.numpy())
    return data.view(numpy_type.newbyteorder("<") if numpy_type.isbuiltin else numpy_type).reshape(shape.numpy())


def raw_size(dtype: ir.DataType, dims: Sequence[int]) -> int:
    """Bytes of a tensor in ONNX's raw form; types below 8 bits are packed and rounded up to whole bytes."""
    return -(-math.prod(dims) * dtype.bitwidth // 8)


def chunks(tensor: ir.TensorProtocol, size: int = CHUNK) -> Iterator[bytes | memoryview]:
    """The raw form of any tensor, in pieces of at most `size` bytes where its storage allows it."""
    if not isinstance(tensor, StoredTensor):
        data = memoryview(tensor.tobytes())
        yield from (data[start : start + size] for start in range(0, len(data), size))
        return
    for start in range(0, tensor.length, size):
        yield tensor.storage.read(tensor.offset + start, min(size, tensor.length - start))
