"""Watching a run: progress, dumps and whatever else wants to see the model between passes."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import EmitError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.records import PassRecord


class Instrument:
    """Told what happens; does nothing by itself. The model must not be changed, and is not to be kept."""

    def run_started(self, pipeline: Pipeline, model: ir.Model) -> None:
        """The passes of `pipeline`, as it was understood, are about to run."""

    def pass_started(self, pass_: Pass, model: ir.Model) -> None:
        """`pass_` is about to run."""

    def pass_finished(self, record: PassRecord, model: ir.Model) -> None:
        """A pass has run, or was taken back; `model` is what came of it."""


class Dump(Instrument):
    """Writes the model as text before the first pass and after each one that changes it, in numbered files.

    Large tensors are left out. A file is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        """Write to `folder`, which is made where it is missing. Raises EmitError where that cannot be."""
        self.folder = folder
        self._count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmitError(f"--dump {folder}: {error.strerror}") from error

    def run_started(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Write the lifted model."""
        self._write("lifted", model)

    def pass_finished(self, record: PassRecord, model: ir.Model) -> None:
        """Write what the pass made."""
        self._count += 1
        if record.modified:
            self._write(record.name, model)

    def _write(self, name: str, model: ir.Model) -> None:
        path = self.folder / f"{self._count:03d}-{name}.txt"
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{path.name}-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(model_text(model))
            os.replace(temporary, path)
        except OSError as error:
            raise EmitError(f"--dump {path}: {error.strerror}") from error


def model_text(model: ir.Model) -> str:
    """The model as onnx-ir prints it: tensors of more than a few elements left out, the same text in every run."""
    return re.sub(r":anonymous_node:\d+", "unnamed", str(model)) + "\n"


class Steps(Instrument):
    """Tells a callback how many of the passes have run."""

    def __init__(self, progress: Callable[[str, float, float], None]) -> None:
        """Call `progress(step, done, total)`."""
        self._progress = progress
        self._done = 0
        self._total = 0

    def run_started(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Nothing is done yet."""
        self._total = len(pipeline)

    def pass_finished(self, record: PassRecord, model: ir.Model) -> None:
        """One more is done; passes that run again after another was taken back do not count twice."""
        self._done = min(self._done + 1, self._total)
        self._progress("passes", self._done, self._total)
