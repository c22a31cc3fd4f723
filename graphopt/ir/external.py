"""External data: every tensor that lies in another file is found, confined and measured before anything is read.

A location is a path relative to the model's folder. It may not leave that folder, neither by `..` nor through links,
or a model could make graphopt copy any file of the machine into its output. The folder of the file that the model's
path links to counts as its folder too: that is how model hubs lay out their caches.
Source: onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import InvalidModelError
from graphopt.ir.tensors import StoredFile, StoredTensor, raw_size


class ExternalFiles:
    """The data files beside one model, each described once.

    Args:
        model: path of the `.onnx` file, or of a folder for a model in memory.
    """

    def __init__(self, model: Path) -> None:
        self.folder = model if model.is_dir() else model.parent
        target = Path(os.path.realpath(model))
        self._roots = {Path(os.path.realpath(self.folder)), target if target.is_dir() else target.parent}
        self.files: dict[str, StoredFile] = {}

    def tensor(self, external: ir.ExternalTensor) -> StoredTensor:
        """The stored tensor for an external one. Raises InvalidModelError naming the tensor and the file."""
        where = f"tensor '{external.name}'"
        file = self._file(os.fspath(external.location), where)
        dims = external.shape.numpy()
        expected = raw_size(external.dtype, dims)
        offset = external.offset or 0
        length = external.length if external.length is not None else expected
        if length != expected:
            raise InvalidModelError(
                f"{where}: external data has {length} bytes, but {external.dtype.name} {list(dims)} needs {expected}"
            )
        if offset < 0 or offset + length > file.size:
            raise InvalidModelError(
                f"{where}: bytes {offset} to {offset + length} lie outside of '{file.path}' ({file.size} bytes)"
            )
        return StoredTensor(file, offset, length, external.dtype, external.shape, external.name)

    def _file(self, location: str, where: str) -> StoredFile:
        if location in self.files:
            return self.files[location]
        if not location or "\0" in location or os.path.isabs(location):
            raise InvalidModelError(f"{where}: external data location {location!r} is not a relative path")
        path = self.folder / location
        normal = Path(os.path.normpath(os.path.abspath(path)))
        if not normal.is_relative_to(os.path.abspath(self.folder)):
            raise InvalidModelError(f"{where}: external data '{location}' lies outside of the model's folder")
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise InvalidModelError(
                f"{where}: external data '{location}' leads through a link out of the model's folder"
            )
        try:
            status = path.stat()
        except OSError as error:
            raise InvalidModelError(
                f"{where}: external data file '{path}' cannot be read ({error.strerror})"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelError(f"{where}: external data '{path}' is not a regular file")
        self.files[location] = StoredFile.of(path)
        return self.files[location]
