"""Emission: from the IR to an `.onnx` file that is there whole or not at all, the same bytes every time.

The model is serialized as a stub (see `graphopt.ir.stub`), and weights are copied from where they lie straight into the
new file, a chunk at a time. Above protobuf's limit of 2 GiB, or where the input had external data, they go into
one file `OUT.data` beside the model. Both files are written under temporary names and renamed at the end, data first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from graphopt.errors import EmitError
from graphopt.ir import carry as carrying
from graphopt.ir import wire
from graphopt.ir.stub import stub_proto
from graphopt.ir.tensors import CHUNK, StoredFile, StoredTensor, chunks

PROTO_LIMIT = 2**31 - 1
"""Protobuf cannot read a message of this many bytes or more."""

ALIGNMENT = 4096
"""External tensors of at least one page start on a page, so that runtimes can map them."""

Progress = Callable[[int], None]
"""Called with the number of bytes written since the last call."""


def serialize(model: ir.Model, *, fixed_shapes: bool = False) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """The ModelProto that would be written, with marks for large tensors, and these tensors.

    Args:
        model: the model; not changed.
        fixed_shapes: whether the user fixed dims, so that outputs take inferred types instead of declared ones.
    """
    proto, tensors = stub_proto(model)
    carrying.put_back(proto, carrying.carry_of(model), tensors, keep_outputs=not fixed_shapes)
    return proto, tensors


def to_bytes(model: ir.Model, *, fixed_shapes: bool = False, exposed: Iterable[str] = ()) -> bytes:
    """The whole model, serialized; the values named in `exposed` are outputs too. Raises EmitError beyond 2 GiB."""
    proto, tensors = serialize(model, fixed_shapes=fixed_shapes)
    for name in exposed:
        proto.graph.output.add(name=name)
    spliced = wire.splice(proto.SerializeToString(deterministic=True), [tensor.nbytes for tensor in tensors])
    if spliced.size >= PROTO_LIMIT:
        raise EmitError("the model is larger than 2 GiB and cannot be one ModelProto; save it to a file instead")
    return b"".join(_bytes_of(spliced, tensors))


def to_proto(model: ir.Model, *, fixed_shapes: bool = False) -> onnx.ModelProto:
    """The whole model as a ModelProto. Raises EmitError where it would pass 2 GiB."""
    proto = onnx.ModelProto()
    proto.ParseFromString(to_bytes(model, fixed_shapes=fixed_shapes))
    return proto


def serialized_size(model: ir.Model, *, fixed_shapes: bool = False) -> int:
    """Bytes on disk of the file, or files, that `emit` would write, but for the alignment of external data."""
    proto, tensors = serialize(model, fixed_shapes=fixed_shapes)
    return wire.splice(proto.SerializeToString(deterministic=True), [tensor.nbytes for tensor in tensors]).size


def data_path(path: Path) -> Path:
    """Where the external data of the model at `path` goes."""
    return path.with_name(path.name + ".data")


def emit(
    model: ir.Model,
    path: Path,
    *,
    overwrite: bool = False,
    protected: Iterable[Path] = (),
    external: bool | None = None,
    fixed_shapes: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Write `model` to `path` and return the files written.

    Args:
        model: the model; not changed.
        path: the `.onnx` file to make; external data goes to `path` + `.data`.
        overwrite: whether existing files may be replaced.
        protected: files that are never replaced: the input and its data.
        external: keep large tensors in a file of their own; by default where the input had them so, or at 2 GiB.
        fixed_shapes: whether the user fixed dims, so that outputs take inferred types instead of declared ones.
        progress: told how many bytes were written.

    Raises:
        EmitError: the target exists, is protected, or cannot be written. Nothing is left behind.
    """
    proto, tensors = serialize(model, fixed_shapes=fixed_shapes)
    lengths = [tensor.nbytes for tensor in tensors]
    stub = proto.SerializeToString(deterministic=True)
    if external is None:
        external = carrying.carry_of(model).external
    external = bool(tensors) and (external or len(stub) + sum(lengths) >= PROTO_LIMIT - 2**20)
    targets = (data_path(path), path) if external else (path,)
    for target in targets:
        _check_target(target, overwrite, protected)
    with _written_together(targets) as files:
        if external:
            layout = _layout(tensors)
            _reference(proto, targets[0].name, layout)
            _write(files[0], _external_pieces(layout), progress)
            _write(files[1], [proto.SerializeToString(deterministic=True)], progress)
        else:
            pieces = wire.splice(stub, lengths).pieces
            _write(files[0], [tensors[piece] if isinstance(piece, int) else piece for piece in pieces], progress)
    return targets


def _check_target(target: Path, overwrite: bool, protected: Iterable[Path]) -> None:
    if any(_same_file(target, other) for other in protected):
        raise EmitError(f"{target}: is the input, or part of it; it is never written to (choose another --output)")
    if target.is_dir():
        raise EmitError(f"{target}: is a folder")
    if not overwrite and (target.exists() or target.is_symlink()):
        raise EmitError(f"{target}: exists already; --overwrite replaces it")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)


def _bytes_of(spliced: wire.Spliced, tensors: Sequence[ir.TensorProtocol]) -> Iterator[bytes | memoryview]:
    for piece in spliced.pieces:
        if isinstance(piece, int):
            yield from chunks(tensors[piece])
        else:
            yield piece


class _Layout:
    """Where in the data file each tensor goes; tensors that are the same bytes of the same storage go there once."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.pieces: list[tuple[int, ir.TensorProtocol]] = []
        self.end = 0

    def add(self, tensor: ir.TensorProtocol, places: dict[object, int]) -> None:
        """Give `tensor` a place."""
        key: object = id(tensor)
        if isinstance(tensor, StoredTensor):
            key = (id(tensor.storage), tensor.offset, tensor.length)
        if key not in places:
            if tensor.nbytes >= ALIGNMENT:
                self.end += -self.end % ALIGNMENT
            places[key] = self.end
            self.pieces.append((self.end, tensor))
            self.end += tensor.nbytes
        self.offsets.append(places[key])


def _layout(tensors: Sequence[ir.TensorProtocol]) -> _Layout:
    layout, places = _Layout(), dict[object, int]()
    for tensor in tensors:
        layout.add(tensor, places)
    return layout


def _reference(proto: onnx.ModelProto, location: str, layout: _Layout) -> None:
    """Turn the marks of a stub into external data entries."""
    lengths = {offset: tensor.nbytes for offset, tensor in layout.pieces}
    for graph in carrying.all_proto_graphs(proto):
        for tensor in graph.initializer:
            index = wire.mark_of(tensor)
            if index is not None:
                offset = layout.offsets[index]
                del tensor.external_data[:]
                for key, value in (("location", location), ("offset", offset), ("length", lengths[offset])):
                    tensor.external_data.add(key=key, value=str(value))


def _external_pieces(layout: _Layout) -> Iterator[bytes | ir.TensorProtocol]:
    position = 0
    for offset, tensor in layout.pieces:
        if offset > position:
            yield bytes(offset - position)
        yield tensor
        position = offset + tensor.nbytes


def _write(file: BinaryIO, pieces: Iterable[bytes | ir.TensorProtocol], progress: Progress | None) -> None:
    for piece in pieces:
        if isinstance(piece, bytes):
            file.write(piece)
        elif isinstance(piece, StoredTensor) and isinstance(piece.storage, StoredFile):
            _copy(piece.storage, piece.offset, piece.length, file, progress)
            continue
        else:
            for chunk in chunks(piece):
                file.write(chunk)
        if progress is not None:
            progress(len(piece) if isinstance(piece, bytes) else piece.nbytes)


def _copy(source: StoredFile, offset: int, length: int, file: BinaryIO, progress: Progress | None) -> None:
    """Copy bytes from file to file, inside the kernel where it can."""
    file.flush()
    descriptor = source.open()
    try:
        while length:
            count = _kernel_copy(descriptor, file.fileno(), min(length, CHUNK), offset)
            if not count:
                data = os.pread(descriptor, min(length, CHUNK), offset)
                if not data:
                    raise EmitError(f"{source.path}: ends at byte {offset}, where tensor data should go on")
                file.write(data)
                file.flush()
                count = len(data)
            offset += count
            length -= count
            if progress is not None:
                progress(count)
    finally:
        os.close(descriptor)
    file.seek(0, os.SEEK_END)


def _kernel_copy(source: int, target: int, count: int, offset: int) -> int:
    """Copy inside the kernel; 0 where the platform or the file systems do not offer it."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, offset_src=offset)
    except OSError as error:
        if error.errno in _NO_KERNEL_COPY:
            return 0
        raise


def _no_kernel_copy() -> frozenset[int]:
    import errno

    return frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EBADF})


_NO_KERNEL_COPY = _no_kernel_copy()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends well, and not at all otherwise. Raises EmitError."""
    with _written_together((path,)) as files:
        yield files[0]


@contextmanager
def _written_together(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Files that replace `paths` in this order when the block ends well; on any failure nothing has changed."""
    files: list[BinaryIO] = []
    temporary: list[Path] = []
    try:
        for path in paths:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=".tmp", dir=path.parent)
            temporary.append(Path(name))
            files.append(os.fdopen(descriptor, "wb"))
            os.chmod(name, _usual_mode())
        yield files
        for file in files:
            file.close()
        _rename_all(temporary, paths)
    except OSError as error:
        raise EmitError(f"{paths[-1]}: cannot be written ({error.strerror or error})") from error
    finally:
        for file in files:
            with suppress(OSError):
                file.close()
        for left_over in temporary:
            left_over.unlink(missing_ok=True)


def _usual_mode() -> int:
    """The mode that a file made by `open` has; temporary files are private otherwise."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _rename_all(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Rename in order; if a later one fails, earlier targets get their old content back."""
    backups: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for source, target in zip(sources, targets, strict=True):
            if target.exists() and target != targets[-1]:
                backups[target] = target.with_name(f".{target.name[:64]}.{os.getpid()}.old")
                os.link(target, backups[target])
            os.replace(source, target)
            done.append(target)
    except BaseException:
        for target in done:
            if target in backups:
                os.replace(backups[target], target)
            else:
                target.unlink()
        raise
    finally:
        for backup in backups.values():
            backup.unlink(missing_ok=True)
