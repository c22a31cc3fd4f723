"""A crash reproducer: the model as the failing pass got it, what remains of the pipeline, and the command to run it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from graphopt.errors import EmitError
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.pipeline import Pipeline

Save: TypeAlias = Callable[[ir.Model, Path], object]
"""Writes a model to a path; raises EmitError."""


def write(
    folder: Path,
    model: ir.Model,
    remaining: Pipeline,
    context: PassContext,
    reason: str,
    save: Save,
    options: Sequence[str] = (),
) -> Path:
    """Write a reproducer into a new folder `graphopt-crash-...` in `folder` and return it.

    Args:
        folder: where the new folder goes.
        model: as it was before the pass that failed.
        remaining: that pass and those after it.
        context: what they were run under.
        reason: what went wrong.
        save: writes the model.
        options: of the command line, beside those of the context.

    Raises:
        EmitError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        crash = Path(tempfile.mkdtemp(prefix="graphopt-crash-", dir=folder))
        path, pipeline = crash / "model.onnx", crash / "pipeline.txt"
        save(model, path)
        pipeline.write_text(f"{remaining}\n", encoding="utf-8")
        command = ["graphopt", "run", str(path), "-p", str(remaining), "--seed", str(context.seed)]
        if context.exclude is not None:
            command += ["--exclude", context.exclude.pattern]
        command += options
        (crash / "README.txt").write_text(f"{reason}\n\nTo reproduce:\n\n    {shlex.join(command)}\n", encoding="utf-8")
    except OSError as error:
        raise EmitError(f"{folder}: {error.strerror}") from error
    return crash
