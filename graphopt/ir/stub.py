"""A model without its weights: the form in which models are read, written and kept.

A `Stub` is a serialized ModelProto in which every large tensor is a mark (see `graphopt.ir.wire`), and the list of
tensors that the marks name. Files, protos and IR models all become stubs; a stub becomes an IR model again as often as
one likes, and a file when its marks are spliced. It weighs what the graph's structure weighs.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import TensorProto

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.ir import carry as carrying
from graphopt.ir import wire
from graphopt.ir.external import ExternalFiles
from graphopt.ir.scan import check_tensor, scan, tensor_protos
from graphopt.ir.tensors import Buffer, SparseTensor, Storage, StoredFile, StoredTensor
from graphopt.ir.walk import all_graphs, all_nodes, attribute_tensor


@dataclasses.dataclass(frozen=True)
class Stub:
    """A serialized ModelProto with marks, and the tensors that they name."""

    data: bytes
    tensors: tuple[ir.TensorProtocol, ...]
    carry: carrying.Carry

    def to_ir(self) -> ir.Model:
        """A new IR model; its tensors are shared with every other model made from this stub.

        Raises:
            UnsupportedModelError: the IR cannot hold it.
        """
        try:
            model = ir.serde.deserialize_model(onnx.ModelProto.FromString(self.data))
        except ir.serde.SerdeError as error:
            raise UnsupportedModelError(f"the IR cannot hold this model: {_root_cause(error)}") from error
        _replace_marks(model, self.tensors)
        carrying.attach(model, self.carry)
        return model


@dataclasses.dataclass(frozen=True)
class Reading:
    """A stub that was read and checked, and what was found out on the way.

    Attributes:
        content: the `.onnx` file or the serialized model.
        size: bytes of the model with its external files.
        files: the external data files.
    """

    stub: Stub
    warnings: tuple[str, ...]
    content: StoredFile | Buffer
    size: int
    files: tuple[StoredFile, ...]


def read_file(path: Path) -> Reading:
    """Read and check an `.onnx` file; weights stay on disk. Raises InvalidModelError, UnsupportedModelError."""
    try:
        file = StoredFile.of(path)
        if not path.is_file():
            raise InvalidModelError("is not a file")
        if not file.size:
            raise InvalidModelError("is empty")
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                data, runs = wire.cut(view)
            finally:
                view.release()
        return _read(data, runs, file, path)
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read ({error.strerror})") from error
    except (InvalidModelError, UnsupportedModelError) as error:
        raise type(error)(f"{path}: {error}") from error


def read_bytes(data: bytes) -> Reading:
    """Read and check a serialized model; the tensors read from `data`, which is not copied."""
    view = memoryview(data)
    stub, runs = wire.cut(view)
    return _read(stub, runs, Buffer(view), None)


def read_ir(model: ir.Model) -> Reading:
    """Read and check a model that is in the IR already; it is not changed."""
    with _marked(model) as tensors:
        proto = ir.to_proto(model)
    folders: dict[str, ExternalFiles] = {}
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, ir.ExternalTensor):
            folder = str(tensor.base_dir or ".")
            tensors[index] = folders.setdefault(folder, ExternalFiles(Path(folder))).tensor(tensor)
    files = tuple(file for folder in folders.values() for file in folder.files.values())
    known = carrying.carry_of(model)
    warnings: list[str] = []
    carry = carrying.set_aside(proto, tensors, warnings)
    if known.outputs:
        carry = known
    scan(proto)
    data = proto.SerializeToString(deterministic=True)
    return Reading(
        Stub(data, tuple(tensors), dataclasses.replace(carry, external=bool(files))),
        tuple(warnings),
        Buffer(memoryview(data)),
        len(data) + sum(tensor.nbytes for tensor in tensors),
        files,
    )


def _read(data: bytes, runs: list[wire.Run], content: StoredFile | Buffer, path: Path | None) -> Reading:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise InvalidModelError(f"not a valid ONNX file: {error}") from None
    if not proto.HasField("graph"):
        raise InvalidModelError("not an ONNX model: it holds no graph")
    found, files = _locate(proto, runs, content, path)
    warnings: list[str] = []
    carry = carrying.set_aside(proto, found, warnings)
    scan(proto)
    return Reading(
        Stub(
            proto.SerializeToString(deterministic=True), tuple(found), dataclasses.replace(carry, external=bool(files))
        ),
        tuple(warnings),
        content,
        content.size + sum(file.size for file in files),
        files,
    )


def _locate(
    proto: onnx.ModelProto, runs: list[wire.Run], storage: Storage, path: Path | None
) -> tuple[list[ir.TensorProtocol], tuple[StoredFile, ...]]:
    """Check every tensor; those that were cut out or are external become stored tensors with new marks."""
    found: list[ir.TensorProtocol] = []
    external = ExternalFiles(path) if path is not None else None
    seen: set[int] = set()
    for where, tensor in tensor_protos(proto):
        mark = wire.mark_of(tensor)
        if mark is not None:
            if mark in seen or not 0 <= mark < len(runs):
                raise InvalidModelError(f"{where}: its external data location is not a path")
            seen.add(mark)
            run = runs[mark]
            check_tensor(tensor, where, run.length)
            dtype, shape = ir.DataType(tensor.data_type), ir.Shape(tensor.dims)
            stored = StoredTensor(storage, run.offset, run.length, dtype, shape, tensor.name)
        elif tensor.data_location == TensorProto.EXTERNAL:
            check_tensor(tensor, where)
            if external is None:
                raise InvalidModelError(f"{where}: a model in memory cannot have external data; give its path instead")
            stored = external.tensor(_external(tensor, where))
        else:
            check_tensor(tensor, where)
            continue
        _mark(tensor, len(found))
        found.append(stored)
    return found, tuple(external.files.values()) if external is not None else ()


def _external(tensor: TensorProto, where: str) -> ir.ExternalTensor:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = (int(entries[key]) if key in entries else None for key in ("offset", "length"))
    except ValueError:
        raise InvalidModelError(f"{where}: offset and length of its external data must be whole numbers") from None
    return ir.ExternalTensor(
        entries.get("location", ""),
        offset,
        length,
        ir.DataType(tensor.data_type),
        shape=ir.Shape(tensor.dims),
        name=where,
    )


def _mark(tensor: TensorProto, index: int) -> None:
    del tensor.external_data[:]
    tensor.MergeFrom(wire.marked_tensor(index))


def _replace_marks(model: ir.Model, tensors: tuple[ir.TensorProtocol, ...]) -> None:
    """Give every value and attribute whose tensor is a mark the tensor that the mark names."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = tensors[value.const_value.offset or 0]
    for node in all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            tensor = attribute_tensor(attribute)
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, tensors[tensor.offset or 0])


def stub_proto(model: ir.Model) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """Serialize `model` with marks in place of its large initializers, and the tensors that the marks name."""
    with _marked(model) as tensors:
        return ir.to_proto(model), tensors


@contextmanager
def _marked(model: ir.Model) -> Iterator[list[ir.TensorProtocol]]:
    """Within this context the large initializers of `model` are marks."""
    tensors: list[ir.TensorProtocol] = []
    replaced: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in all_graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and _is_large(tensor):
                    mark = ir.ExternalTensor(
                        wire.MARK,
                        len(tensors),
                        None,
                        tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()),
                        name=value.name or "",
                    )
                    tensors.append(tensor)
                    replaced.append((value, tensor))
                    value.const_value = mark
        yield tensors
    finally:
        for value, tensor in replaced:
            value.const_value = tensor


def _is_large(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, StoredTensor | SparseTensor | ir.ExternalTensor):
        return True
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= wire.MARKED_SIZE


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
