"""Duplicate initializers: of several tensors with the same type, extents and bytes, one is kept.

Equal means equal byte for byte: 0.0 and -0.0 differ, and a NaN equals one with the same payload. Weights may be larger
than memory, so as little as possible is read, and never more than a chunk is held:

1. tensors whose type and extents no other has are not read;
2. two that lie at the same place of the same file are equal unread;
3. of the others, 64 KiB from the middle are read and digested;
4. those that agree so far are compared in chunks, or, where more than two do, digested whole, each once.

The first in graph order stays, in an outer graph rather than in a body. An initializer that is a graph input can be
overridden and is no constant; one that is a graph output keeps its name. Both stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.tensors import SparseTensor, StoredFile, StoredTensor, chunks, raw_size
from graphopt.ir.walk import subgraphs
from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark
from graphopt_passes.lossless.visibility import Visibility

_SAMPLE = 64 * 1024


@dataclasses.dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Keep one of several equal initializers."""

    name: ClassVar[str] = "deduplicate-initializers"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Look at the main graph and at bodies; functions have no initializers."""
        visibility, touched = Visibility(), dict[ir.Node, None]()
        dropped: list[_Candidate] = []
        for equal in _equal(list(_candidates(model.graph))):
            kept: list[_Candidate] = []
            for candidate in equal:
                value = candidate.value
                first = next((k for k in kept if visibility.visible(k.value, candidate.graphs)), None)
                if first is None or value.is_graph_output() or any(map(context.excluded, value.consumers())):
                    kept.append(candidate)
                    continue
                touched.update(dict.fromkeys(value.consumers()))
                value.replace_all_uses_with(first.value)
                del candidate.graphs[-1].initializers[value.name or ""]
                dropped.append(candidate)
        if not dropped:
            return PassResult(modified=False)
        size = sum(candidate.nbytes for candidate in dropped)
        what = f"{len(dropped):,} with {size:,} bytes removed: others are equal to them"
        return PassResult(True, touched, (Remark("initializers", what, applied=True),))


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """An initializer that may equal another.

    Attributes:
        position: in graph order, outer graphs first.
        graphs: the graphs around it, its own last.
    """

    position: int
    value: ir.Value
    tensor: ir.TensorProtocol
    dtype: ir.DataType
    dims: tuple[int, ...]
    graphs: Sequence[ir.Graph]

    @property
    def nbytes(self) -> int:
        """Bytes of the raw form."""
        return raw_size(self.dtype, self.dims)


def _candidates(graph: ir.Graph) -> Iterator[_Candidate]:
    """Initializers of `graph` and of the bodies in it."""
    position = itertools.count()
    pending: deque[Sequence[ir.Graph]] = deque([(graph,)])
    while pending:
        graphs = pending.popleft()
        for value in graphs[-1].initializers.values():
            tensor = value.const_value
            if tensor is not None and not isinstance(tensor, SparseTensor) and not value.is_graph_input():
                dtype, dims = tensor.dtype, tuple(tensor.shape.numpy())
                if dtype != ir.DataType.STRING:
                    yield _Candidate(next(position), value, tensor, dtype, dims, graphs)
        pending.extend((*graphs, body) for node in graphs[-1] for body in subgraphs(node))


def _equal(candidates: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """The sets of equal initializers, in order, each with at least two."""
    for alike in _groups(((c.dtype, c.dims), c) for c in candidates):
        at_place = {places[0]: places for places in _by_place(alike)}
        for equal in _equal_bytes(list(at_place)):
            yield sorted((c for first in equal for c in at_place.pop(first)), key=lambda c: c.position)
        yield from (places for places in at_place.values() if len(places) > 1)


def _by_place(candidates: Sequence[_Candidate]) -> Iterable[list[_Candidate]]:
    """The candidates in sets that share one tensor, or one place in one file."""
    places: dict[Hashable, list[_Candidate]] = {}
    for candidate in candidates:
        places.setdefault(_place(candidate.tensor), []).append(candidate)
    return places.values()


def _place(tensor: ir.TensorProtocol) -> Hashable:
    if not isinstance(tensor, StoredTensor):
        return id(tensor)
    storage = tensor.storage if isinstance(tensor.storage, StoredFile) else id(tensor.storage)
    return storage, tensor.offset, tensor.length


def _equal_bytes(candidates: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """The sets of those with equal bytes among candidates of one type and extents."""
    if len(candidates) < 2:
        return
    for alike in _groups((_sample(c.tensor), c) for c in candidates):
        if alike[0].nbytes <= _SAMPLE:
            yield alike
        elif len(alike) == 2:
            if _same_bytes(alike[0].tensor, alike[1].tensor):
                yield alike
        else:
            yield from _groups((_digest(chunks(c.tensor)), c) for c in alike)


def _groups(keyed: Iterable[tuple[Hashable, _Candidate]]) -> Iterator[list[_Candidate]]:
    """The candidates that share a key with another, by key."""
    groups: dict[Hashable, list[_Candidate]] = {}
    for key, candidate in keyed:
        groups.setdefault(key, []).append(candidate)
    yield from (group for group in groups.values() if len(group) > 1)


def _sample(tensor: ir.TensorProtocol) -> bytes:
    """A digest of 64 KiB from the middle of a tensor, or of all of it where it is not larger."""
    if not isinstance(tensor, StoredTensor):
        return _digest(_middle(memoryview(tensor.tobytes())))
    start = max(0, (tensor.length - _SAMPLE) // 2)
    return _digest([tensor.storage.read(tensor.offset + start, min(_SAMPLE, tensor.length))])


def _middle(data: memoryview) -> list[memoryview]:
    start = max(0, (len(data) - _SAMPLE) // 2)
    return [data[start : start + _SAMPLE]]


def _digest(parts: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _same_bytes(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    return all(bytes(x) == bytes(y) for x, y in zip(chunks(a), chunks(b), strict=True))
