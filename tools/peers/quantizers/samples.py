"""Calibration samples as the peers want them: one dict of arrays per sample. Needs numpy alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Sample = dict[str, NDArray[np.generic]]


class Arguments(NamedTuple):
    """What the command line of a peer says."""

    model: Path
    samples: list[Sample]
    output: Path
    variant: str


def arguments() -> Arguments:
    """Read the command line: MODEL SAMPLES.npz OUTPUT VARIANT."""
    model, samples, output, variant = sys.argv[1:]
    return Arguments(Path(model), read(Path(samples)), Path(output), variant)


def read(path: Path) -> list[Sample]:
    """The samples of an npz file, each with a first axis of 1."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    count = min(len(array) for array in arrays.values())
    return [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]


class Reader:
    """The samples one after the other, as onnxruntime's `CalibrationDataReader` hands them out."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples
        self.rewind()

    def get_next(self) -> Sample | None:
        """The next sample, None after the last."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._samples)
