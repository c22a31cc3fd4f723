"""Where the results of a command go: files that appear whole or not at all, stdout, stderr.

A model replaces a file only with `--overwrite`, a report any file but a model; neither ever replaces what the command reads.
What is no file on a disk (a pipe, `/dev/null`) is written to as it is.

With `--json -` or `--report -` stdout holds that report and nothing else; the table moves to stderr. Targets are
checked before the work starts, so that an hour of it is not lost to a missing folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from graphopt.cli.options import Settings
from graphopt.errors import EmitError

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = Path("-")


def default_output(model: Path) -> Path:
    """`a.onnx` gives `a.opt.onnx` beside it."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.opt.onnx")


def table_console(settings: Settings) -> Console | None:
    """Where the table goes; None where none is wanted."""
    from graphopt.report import terminal

    if settings.quiet:
        return None
    return terminal.console(sys.stderr if STDOUT in (settings.json, settings.report) else sys.stdout)


def print_warnings(warnings: Iterable[str], shown: Console | None) -> None:
    """Warnings that no table shows, on stderr."""
    if shown is None:
        for warning in warnings:
            click.echo(f"graphopt: warning: {warning}", err=True)


_MODELS = frozenset({".onnx", ".ort"})
"""Endings of files that hold models."""


def check_targets(settings: Settings, *inputs: Path, model: Path | None = None) -> None:
    """Refuse targets that cannot be written, before any work is done.

    Args:
        settings: the reports that were asked for, and the files that are read beside the models.
        inputs: the models that are read.
        model: the new model, for commands that write one; it must not exist without `--overwrite`.

    Raises:
        EmitError: a target is an input, a model that would have to go, a folder, or in a folder that cannot be written to.
        UsageError: two reports would go to the same place, or the model to stdout.
    """
    if model == STDOUT:
        raise click.UsageError("--output: a model is written to a file, not to stdout")
    targets = [path for path in (model, settings.json, settings.report) if path is not None]
    if len(targets) != len({path if path == STDOUT else path.absolute() for path in targets}):
        raise click.UsageError("--output, --json and --report need different targets")
    for target in targets:
        if target != STDOUT:
            _check_target(target, [*inputs, *_read_besides(settings)])
            if target is not model and target.suffix.lower() in _MODELS and target.exists():
                raise EmitError(f"{target}: is a model; a report does not replace one")
    if model is None:
        return
    if _is_device(model):
        raise EmitError(f"{model}: is no regular file; a model is written to one")
    if not settings.overwrite and os.path.lexists(model):
        raise EmitError(f"{model}: exists already; --overwrite replaces it")


def write_text(path: Path, text: str, protected: Iterable[Path]) -> None:
    """Write a report to `path` whole, or to stdout for `-`. Raises EmitError."""
    if path == STDOUT:
        _write_stdout(sys.stdout, text)
        return
    from graphopt.ir.emit import written_whole

    _check_target(path, protected)
    if _is_device(path):
        path.write_text(text, encoding="utf-8")
        return
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))


def _write_stdout(stream: IO[str], text: str) -> None:
    stream.write(text)
    stream.flush()


def _is_device(path: Path) -> bool:
    """Whether `path` is there and no file on a disk: a pipe, a terminal, `/dev/null`."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _read_besides(settings: Settings) -> Iterator[Path]:
    """The files with samples, plans and devices."""
    for given in (settings.data, settings.eval_data, settings.plan, settings.device):
        if given is not None:
            yield Path(given)
            yield Path(str(given).rsplit(":", 1)[0])  # file.py:function


def _check_target(target: Path, protected: Iterable[Path]) -> None:
    if target.is_dir():
        raise EmitError(f"{target}: is a folder")
    if any(_same_file(target, other) for other in protected):
        raise EmitError(f"{target}: is the input, or part of it; it is never written to")
    if not target.parent.is_dir():
        raise EmitError(f"{target}: there is no folder {target.parent}")
    if not _is_device(target) and not os.access(target.parent, os.W_OK):
        raise EmitError(f"{target}: the folder {target.parent} cannot be written to")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)
