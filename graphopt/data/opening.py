"""From what the user gave as data to samples for a model: which kind of source it is, and which of its samples to use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.npyio import NpzFile

from graphopt.data import drawn
from graphopt.data.arrays import ArraySource, array_source
from graphopt.data.images import ImageSource, holds_images
from graphopt.data.normalization import Normalization, parse_normalize
from graphopt.data.npyfile import npy_column, npz_columns
from graphopt.data.recorded import RecordedSource, data_sets
from graphopt.data.samples import Opened, Samples
from graphopt.data.signature import Signature, signature_of
from graphopt.data.source import Source
from graphopt.data.streams import CalibrationReader, StreamSource, elements_of
from graphopt.errors import DataError, GraphoptError
from graphopt.runtime.user_code import load_function

_KINDS = (
    "FILE.npz, FILE.npy, a folder of images, of class folders or of test_data_set_*, file.py:function, "
    "package.module:function or random:N"
)
_RANDOM = re.compile(r"random:(\d+)")
_FUNCTION = re.compile(r".+:[A-Za-z_]\w*")


def open_samples(
    source: Any,
    model: ir.Model,
    *,
    normalize: str | Mapping[str, Any] | Normalization | None = None,
    limit: int | None = None,
    default_limit: int | None = None,
    seed: int = 0,
    option: str = "--data",
) -> Samples:
    """Samples of `source`, made ready for `model`. The first one is read, so that most mistakes show here.

    Args:
        source: what `-d` takes, as text or path; or a dict of arrays, an array, an object with `get_next`, a function, or
            an iterable of samples (dicts of arrays, arrays, or pairs of these and a label).
        model: what the samples are for.
        normalize: preprocessing of integers, as `--normalize`.
        limit: how many samples were asked for. Of an indexable source so many are chosen by `seed`, in their order; of a
            stream they are the first. Where there are fewer, a warning says so.
        default_limit: the same where nobody asked: fewer are no reason for a warning.
        seed: of the choice, and of `random:N`.
        option: what messages call the source's option.

    Raises:
        DataError: there are no such samples, or they do not fit the model.
        OptionError: `normalize` cannot be read.
    """
    normalization = None if normalize is None else parse_normalize(normalize)
    signature = signature_of(model, option)
    most = limit if limit is not None else default_limit
    opening = _Opening(model, signature, option, seed, most)
    opened = Opened(opening.open(source), signature, normalization, option, opening.warnings)
    positions = _choose(opened.source, most, seed)
    if not positions:
        raise DataError(f"{option}: there are no samples in {_name(source)}")
    if limit is not None and len(positions) < limit:
        opened.warn(f"{option}: {limit} samples were asked for, but there are only {len(positions)}")
    samples = Samples(opened, positions)
    next(samples.subset([0]).batches())
    return samples


def _choose(source: Source, most: int | None, seed: int) -> Sequence[int]:
    count = len(source)
    if most is None or count <= most:
        return range(count)
    if not source.indexable:
        return range(most)
    return sorted(np.random.default_rng(seed).choice(count, most, replace=False).tolist())


class _Opening:
    """Tells kinds of sources apart."""

    def __init__(self, model: ir.Model, signature: Signature, option: str, seed: int, most: int | None) -> None:
        self._model = model
        self._signature = signature
        self._option = option
        self._seed = seed
        self._most = most
        self.warnings: list[str] = []

    def open(self, source: Any) -> Source:
        """The source that `source` means."""
        if isinstance(source, str):
            return self._text(source)
        if isinstance(source, os.PathLike):
            return self._path(Path(source))
        return self._object(source, f"data of type {type(source).__name__}")

    def _text(self, text: str) -> Source:
        if match := _RANDOM.fullmatch(text):
            return self._random(int(match[1]))
        if text.startswith("random:") and not os.path.exists(text):
            raise DataError(f"{self._option}: {text}: write random:N with a number of samples, such as random:64")
        if os.path.exists(text) or not _FUNCTION.fullmatch(text):
            return self._path(Path(text))
        return self._object(load_function(text, self._option), text)

    def _path(self, path: Path) -> Source:
        if path.is_dir():
            try:
                return self._folder(path)
            except OSError as error:
                raise DataError(f"{self._option}: the folder {path} cannot be read: {error}") from error
        if not path.is_file():
            raise DataError(f"{self._option}: there is no file or folder {path}; give {_KINDS}")
        if path.suffix == ".npz":
            return self._arrays(npz_columns(path, self._option), str(path))
        if path.suffix == ".npy":
            return self._arrays({"": npy_column(path, self._option)}, str(path))
        raise DataError(f"{self._option}: {path} is no kind of file that holds samples; give {_KINDS}")

    def _folder(self, path: Path) -> Source:
        if recorded := data_sets(path):
            return RecordedSource(recorded, self._signature, self._option)
        if holds_images(path):
            return ImageSource(path, self._signature, self._option)
        raise DataError(f"{self._option}: the folder {path} holds neither images nor test_data_set_*/input_*.pb")

    def _arrays(self, columns: Mapping[str, Any], name: str) -> Source:
        return self._mentioning_unused(ArraySource(columns, self._signature, name, self._option), name)

    def _mentioning_unused(self, source: ArraySource, name: str) -> Source:
        if source.unused:
            keys = ", ".join(f"'{key}'" for key in source.unused)
            self.warnings.append(f"{self._option}: {name}: no input of the model is called {keys}; not used")
        return source

    def _object(self, given: Any, name: str) -> Source:
        if isinstance(given, type) or (callable(given) and not isinstance(given, CalibrationReader)):
            given = self._call(given, name)
        if isinstance(given, CalibrationReader):
            return self._stream(elements_of(given), name)
        if isinstance(given, NpzFile) and given.zip is not None and given.zip.filename:
            return self._arrays(npz_columns(Path(given.zip.filename), self._option), given.zip.filename)
        if isinstance(given, Mapping):
            return self._mentioning_unused(array_source(given, self._signature, name, self._option), name)
        if hasattr(given, "__array__"):
            return array_source({"": given}, self._signature, name, self._option)
        if isinstance(given, Iterable) and not isinstance(given, str | bytes):
            return self._stream(given, name)
        if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str | bytes):
            return self._stream((given[i] for i in range(len(given))), name)  # a data set without an iterator
        raise DataError(f"{self._option}: {name} gives no samples; give {_KINDS}, arrays, or an iterable of samples")

    def _call(self, function: Any, name: str) -> Any:
        try:
            return function()
        except GraphoptError:
            raise
        except Exception as error:  # the user's code may fail in any way, and it is the user who must be told
            raise DataError(f"{self._option}: {name} failed: {type(error).__name__}: {error}") from error

    def _stream(self, elements: Iterable[Any], name: str) -> Source:
        return StreamSource(elements, self._signature, name, self._option, limit=self._most)

    def _random(self, count: int) -> Source:
        self.warnings.append(drawn.warning(count, self._option))
        elements = drawn.draws(self._model, self._signature, self._seed, self._option)
        name = f"random:{count}"
        return StreamSource(elements, self._signature, name, self._option, limit=min(count, self._most or count))


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"data of type {type(source).__name__}"
