"""Samples from `test_data_set_*/input_*.pb`, the folders that published ONNX models come with.

Each folder holds one serialized tensor per input, in the order of the graph's inputs, with its batch axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from graphopt.data.signature import Signature
from graphopt.data.source import Digest, Elements, Sample
from graphopt.errors import DataError


def data_sets(folder: Path) -> list[Path]:
    """The sets in `folder` in order of number; `folder` itself where it is one."""
    if (folder / "input_0.pb").is_file():
        return [folder]
    return sorted((path for path in folder.glob("test_data_set_*") if path.is_dir()), key=_number)


class RecordedSource:
    """Samples from folders of serialized tensors."""

    indexable = True
    labelled = False

    def __init__(self, folders: Sequence[Path], signature: Signature, option: str) -> None:
        """Look into every set, one at a time, for how many samples it has. Raises DataError where one does not fit."""
        self._folders = folders
        self._signature = signature
        self._option = option
        self._places = [
            (number, inner) for number in range(len(folders)) for inner in range(len(self._samples(number)))
        ]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The samples at `positions`; neighbours of one set are read once."""
        current, samples = -1, list[Sample]()
        for number, inner in (self._places[position] for position in positions):
            if number != current:
                current, samples = number, self._samples(number)
            yield samples[inner]

    def labels(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """Nothing: the sets have no labels."""
        del positions
        return iter(())

    def where(self, position: int) -> str:
        """The folder, and which of its samples."""
        number, inner = self._places[position]
        return f"{self._folders[number]}, sample {inner}"

    def update(self, digest: Digest) -> None:
        """Name and bytes of every file."""
        for folder in self._folders:
            for path in self._files(folder):
                digest.update(repr((folder.name, path.name)).encode())
                digest.update(path.read_bytes())

    def _samples(self, number: int) -> list[Sample]:
        folder = self._folders[number]
        names = [value.name for value in self._signature.inputs]
        arrays = dict(zip(names, map(self._load, self._files(folder)), strict=True))
        return Elements(self._signature, str(folder), self._option).samples(arrays, 0)

    def _files(self, folder: Path) -> list[Path]:
        paths = sorted(folder.glob("input_*.pb"), key=_number)
        if len(paths) != len(self._signature.inputs):
            raise DataError(
                f"{self._option}: {folder} holds {len(paths)} input_*.pb; the model has the inputs {self._signature}"
            )
        return paths

    def _load(self, path: Path) -> np.ndarray:
        try:
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError("its elements are in another file")
            return onnx.numpy_helper.to_array(tensor)
        except (OSError, DecodeError, ValueError, TypeError, KeyError) as error:  # to_array reports unknown types so
            raise DataError(f"{self._option}: {path} is no readable tensor: {error}") from error


def _number(path: Path) -> tuple[int, str]:
    match = re.search(r"(\d+)(?:\.pb)?$", path.name)
    return (int(match[1]) if match else -1, path.name)
