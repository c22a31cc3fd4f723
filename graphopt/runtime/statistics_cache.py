"""Statistics that were asked for before: kept per version of the model, and between runs where a folder is given.

A version is known by a digest of its structure and of the bytes of its weights, so that a model which was changed and
changed back, or lifted again, finds its answers. On disk each answer is an `.npz` file named by the digest of all that
it depends on: model, samples, request, and the runtime that computed it. Files are written whole or not at all; one that
cannot be read is computed anew. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.stub import stub_proto
from graphopt.ir.tensors import chunks
from graphopt.runtime import requests as ask
from graphopt.runtime.statistics import collect
from graphopt.runtime.streaming import Batches, Progress

FORMAT = 1
"""Of the files; raised whenever what a request means changes."""

_MOST_BYTES = 256 << 20
_ANSWERS: Mapping[type, type] = {
    ask.Range: ask.RangeResult,
    ask.ChannelRange: ask.ChannelRangeResult,
    ask.Histogram: ask.HistogramResult,
    ask.Moments: ask.MomentsResult,
    ask.Gram: ask.GramResult,
    ask.PatchGram: ask.GramResult,
}


class Digests:
    """Digests of models; that of a tensor's bytes is computed once as long as the tensor lives."""

    def __init__(self) -> None:
        self._tensors: dict[int, str] = {}

    def model(self, model: ir.Model) -> str:
        """Hexadecimal SHA-256 of a model's structure and weights."""
        proto, tensors = stub_proto(model)
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
        for tensor in tensors:
            digest.update(self._tensor(tensor).encode())
        return digest.hexdigest()

    def _tensor(self, tensor: ir.TensorProtocol) -> str:
        known = self._tensors.get(id(tensor))
        if known is not None:
            return known
        digest = hashlib.sha256()
        for chunk in chunks(tensor):
            digest.update(chunk)
        with suppress(TypeError):  # a class of tensors without weak references is read anew each time
            weakref.finalize(tensor, self._tensors.pop, id(tensor), None)
            self._tensors[id(tensor)] = digest.hexdigest()
        return digest.hexdigest()


class Cache:
    """Answers about models on one set of samples.

    Args:
        data: digest of the samples, their order and their normalization; answers on disk depend on it.
        folder: where answers are kept between runs; None is nowhere. It is made where it is missing.
        most_bytes: how much is kept in memory; what was asked for longest ago goes first.
    """

    def __init__(self, data: str, folder: Path | None = None, *, most_bytes: int = _MOST_BYTES) -> None:
        self._data = data
        self._folder = folder
        self._most_bytes = most_bytes
        self._digests = Digests()
        self._answers: OrderedDict[tuple[str, ask.Request[Any]], Any] = OrderedDict()
        self._bytes = 0

    def collect(
        self,
        model: ir.Model,
        requests: Collection[ask.Request[Any]],
        batches: Batches,
        *,
        samples: int | None = None,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> ask.Results:
        """As `graphopt.runtime.statistics.collect`, which is asked only for what is not known yet."""
        version = self.version(model)
        known = {request: self._known(version, request) for request in requests}
        missing = [request for request, answer in known.items() if answer is None]
        if missing:
            found = collect(model, missing, batches, samples=samples, threads=threads, progress=progress)
            for request, answer in found.items():
                known[request] = answer
                self._remember(version, request, answer)
                self._write(version, request, answer)
        return ask.Results(known)

    def version(self, model: ir.Model) -> str:
        """The digest that tells this version of `model` from others."""
        return self._digests.model(model)

    def _known(self, version: str, request: ask.Request[Any]) -> Any:
        answer = self._answers.get((version, request))
        if answer is not None:
            self._answers.move_to_end((version, request))
            return answer
        answer = self._read(version, request)
        if answer is not None:
            self._remember(version, request, answer)
        return answer

    def _remember(self, version: str, request: ask.Request[Any], answer: Any) -> None:
        self._answers[version, request] = answer
        self._bytes += _size(answer)
        while self._bytes > self._most_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= _size(oldest)

    def _path(self, version: str, request: ask.Request[Any]) -> Path | None:
        if self._folder is None or type(request) not in _ANSWERS:
            return None
        import onnxruntime

        text = "\n".join((str(FORMAT), onnxruntime.__version__, self._data, version, repr(request)))
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"

    def _read(self, version: str, request: ask.Request[Any]) -> Any:
        path = self._path(version, request)
        if path is None or not path.is_file():
            return None
        kind = _ANSWERS[type(request)]
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {field.name: file[field.name] for field in dataclasses.fields(kind)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return kind(**{name: array if array.ndim else array.item() for name, array in arrays.items()})

    def _write(self, version: str, request: ask.Request[Any], answer: Any) -> None:
        path = self._path(version, request)
        if path is None:
            return
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".npz", delete=False) as file:
                temporary = file.name
                np.savez(file, **{field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)})
            os.replace(temporary, path)
        except OSError:  # no room or no right to write: the answer is kept in memory only
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)


def _size(answer: Any) -> int:
    """Bytes of an answer's arrays."""
    return sum(np.asarray(getattr(answer, field.name)).nbytes for field in dataclasses.fields(answer))
