"""A place on disk for tensors that passes compute, so that they do not add up in memory.

A `Spool` is a nameless temporary file: it takes tensors one after the other, hands out tensors that read their bytes
from it, and is gone with the last of them.
"""

from __future__ import annotations

import os
import tempfile
import weakref

import onnx_ir as ir

from graphopt.ir.tensors import StoredTensor

SPOOLED = 2**16
"""Bytes from which on a tensor goes to disk."""


class Spool:
    """Storage that grows at its end."""

    def __init__(self) -> None:
        """Make no file yet."""
        self._descriptor: int | None = None
        self._end = 0

    def keep(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """`tensor` as it is where it is small, else one that reads its bytes from here."""
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < SPOOLED:
            return tensor
        data = tensor.tobytes()
        try:
            offset = self.append(data)
        except OSError:  # no room on disk: then it stays in memory
            return tensor
        return StoredTensor(self, offset, len(data), tensor.dtype, ir.Shape(tensor.shape.numpy()), tensor.name or "")

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on."""
        assert self._descriptor is not None  # only what was appended is read
        parts = []
        while length:
            parts.append(os.pread(self._descriptor, length, offset))
            offset, length = offset + len(parts[-1]), length - len(parts[-1])
        return b"".join(parts)

    def append(self, data: bytes) -> int:
        """Write `data` at the end and return its offset. Raises OSError where the disk has no room."""
        if self._descriptor is None:
            self._descriptor, path = tempfile.mkstemp(prefix="graphopt-")
            os.unlink(path)  # the open file lives on without a name, and nothing is left behind however the run ends
            weakref.finalize(self, os.close, self._descriptor)
        offset, rest = self._end, memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, self._end)
            rest, self._end = rest[written:], self._end + written
        return offset
