"""Lifting: from whatever holds a model to a typed, checked onnx-ir model.

What every exporter does differently is made one here, so that no pass needs to know: nodes are sorted, tensors given
as Constant nodes are initializers, initializers of models before IR version 4 are no graph inputs, large tensors stay
on disk, and every value has the type and shape that can be inferred. The input is never changed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.analysis import meaning
from graphopt.analysis import shapes as inference
from graphopt.errors import GraphoptError, InvalidModelError
from graphopt.ir import stub as stubs
from graphopt.ir import walk
from graphopt.ir.collection import collection_paused
from graphopt.ir.tensors import sha256

ModelLike = Any
"""A path, `onnx.ModelProto`, `onnx_ir.Model`, `onnx_graphsurgeon.Graph` or `torch.onnx.ONNXProgram`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        path: the `.onnx` file, or None for a model in memory.
        digest: SHA-256 of the `.onnx` file or the serialized model, computed beside the work.
        bytes: size on disk, external data included.
        external_files: paths of its external data files.
    """

    path: Path | None
    digest: Future[str]
    bytes: int
    external_files: tuple[Path, ...] = ()

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the `.onnx` file or the serialized model; waits until it is known."""
        return self.digest.result()


@dataclasses.dataclass(frozen=True)
class Lifted:
    """A model in the IR, where it came from, and what was noticed on the way."""

    model: ir.Model
    source: Source
    warnings: tuple[str, ...]
    stub: stubs.Stub
    fixed: Mapping[str, Sequence[int]]

    def relift(self) -> ir.Model:
        """The model once more as it was lifted; tensors are shared, nothing else is."""
        with collection_paused():
            return _normalize(self.stub, self.fixed)[0]


def lift(source: ModelLike, *, shapes: Mapping[str, Sequence[int]] | None = None) -> Lifted:
    """Lift a model.

    Args:
        source: a path, `onnx.ModelProto`, `onnx_ir.Model`, `onnx_graphsurgeon.Graph` or `torch.onnx.ONNXProgram`.
        shapes: extents to fix dynamic graph inputs to, by input name.

    Raises:
        InvalidModelError: it is no valid model; the message names the file and the place.
        UnsupportedModelError: it is valid, but holds what the IR cannot keep.
        OptionError: `shapes` names no input or contradicts one.
    """
    with collection_paused():
        return _lift(source, dict(shapes or {}))


def _lift(source: ModelLike, fixed: Mapping[str, Sequence[int]]) -> Lifted:
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    reading = stubs.read_file(path) if path is not None else _read_object(source)
    try:
        model, warnings = _normalize(reading.stub, fixed)
        meaning.check(model)
    except GraphoptError as error:
        raise _located(error, path) from error
    beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="graphopt-digest")
    digest = beside.submit(sha256, reading.content)
    beside.shutdown(wait=False)
    found = Source(path, digest, reading.size, tuple(file.path for file in reading.files))
    return Lifted(model, found, (*reading.warnings, *warnings), reading.stub, fixed)


def _located(error: GraphoptError, path: Path | None) -> GraphoptError:
    return error if path is None or str(path) in str(error) else type(error)(f"{path}: {error}")


def _read_object(source: ModelLike) -> stubs.Reading:
    if isinstance(source, ir.Model):
        return stubs.read_ir(source)
    if isinstance(source, onnx.ModelProto):
        return stubs.read_bytes(_serialize(source))
    module = type(source).__module__.split(".")[0]
    if module == "onnx_graphsurgeon":
        import onnx_graphsurgeon

        return stubs.read_bytes(_serialize(onnx_graphsurgeon.export_onnx(source)))
    if module == "torch" and isinstance(getattr(source, "model", None), ir.Model):
        return stubs.read_ir(source.model)
    raise InvalidModelError(
        f"cannot lift a {type(source).__name__}: give a path, an onnx.ModelProto, an onnx_ir.Model, "
        "an onnx_graphsurgeon.Graph or a torch.onnx.ONNXProgram"
    )


def _serialize(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except Exception as error:  # protobuf's C++ and upb implementations raise different types above 2 GiB
        raise InvalidModelError(f"this ModelProto cannot be serialized ({error}); give a path instead") from error


def _normalize(stub: stubs.Stub, fixed: Mapping[str, Sequence[int]]) -> tuple[ir.Model, list[str]]:
    model = stub.to_ir()
    legacy = model.ir_version < 4
    # Before IR version 4 every initializer must be an input too, which those of bodies cannot be.
    for graph in [model.graph] if legacy else walk.graph_and_bodies(model.graph):
        _lift_constants(graph)
    if legacy:
        _drop_initializer_inputs(model.graph)
    return model, inference.infer(model, fixed=fixed)


def _drop_initializer_inputs(graph: ir.Graph) -> None:
    """Before IR version 4 every initializer had to be listed as an input and could not be overridden."""
    kept = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(kept) != len(graph.inputs):
        graph.inputs[:] = kept


def _lift_constants(graph: ir.Graph) -> None:
    """Turn Constant nodes into initializers; one that is a graph output stays, for the runtimes that want it so."""
    for node in [node for node in graph if node.op_type == "Constant" and node.domain == ""]:
        output = node.outputs[0]
        tensor = _constant_of(node)
        if tensor is None or output.is_graph_output() or output.name in graph.initializers:
            continue
        value = ir.Value(
            name=output.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        value.metadata_props.update(node.metadata_props)
        value.doc_string = node.doc_string
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        output.name = None
        graph.register_initializer(value)


def _constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    if len(node.attributes) != 1:
        return None
    name, attribute = next(iter(node.attributes.items()))
    if attribute.is_ref():
        return None
    if name == "value":
        return walk.attribute_tensor(attribute)
    numeric = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name in numeric:
        return ir.Tensor(np.array(attribute.value, dtype=numeric[name]))
    if name in ("value_string", "value_strings"):
        strings = [attribute.value] if name == "value_string" else attribute.value
        encoded = [text if isinstance(text, bytes) else text.encode() for text in strings]
        return ir.StringTensor(encoded, shape=ir.Shape([] if name == "value_string" else [len(encoded)]))
    return None
