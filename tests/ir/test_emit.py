"""Emission: whole or not at all, reproducible, and never over the input."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import EmitError
from graphopt.ir import emit, stub


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model with two weights of the same content and one that is computed in memory later."""
    array = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])
    tensors = [numpy_helper.from_array(array, "w"), numpy_helper.from_array(array, "v")]
    file = tmp_path / "in" / "m.onnx"
    file.parent.mkdir()
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [shape], [output], tensors)), file)
    return file


def read(path: Path) -> ir.Model:
    return stub.read_file(path).stub.to_ir()


def arrays(path: Path) -> dict[str, bytes]:
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in proto.graph.initializer}


@pytest.mark.parametrize("external", [False, True])
def test_same_bytes_every_time_and_the_predicted_size(path: Path, tmp_path: Path, external: bool) -> None:
    model = read(path)
    weight = ir.Tensor(np.full((40, 40), 2, np.float32))
    model.graph.initializers["v"].const_value = weight
    written = [
        emit.emit(model, tmp_path / name / "out.onnx", external=external) for name in ("a", "b") if make(tmp_path, name)
    ]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert [file.name for file in written[0]] == (["out.onnx.data", "out.onnx"] if external else ["out.onnx"])
    assert arrays(written[0][-1]) == {"w": arrays(path)["w"], "v": weight.tobytes()}
    if not external:
        assert written[0][0].stat().st_size == emit.serialized_size(model)


def make(folder: Path, name: str) -> bool:
    (folder / name).mkdir()
    return True


def test_external_data_stays_external_aligned_and_shared(path: Path, tmp_path: Path) -> None:
    model = read(path)
    model.graph.initializers["v"].const_value = model.graph.initializers["w"].const_value
    first = emit.emit(model, tmp_path / "e.onnx", external=True)
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(first[1], load_external_data=False).graph.initializer
    ]
    assert entries[0] == entries[1] == {"location": "e.onnx.data", "offset": "0", "length": "6400"}
    assert first[0].stat().st_size == 6400

    again = emit.emit(read(first[1]), tmp_path / "f.onnx")
    assert [file.name for file in again] == ["f.onnx.data", "f.onnx"]
    assert arrays(again[1]) == arrays(first[1])


def test_existing_files_and_the_input_are_safe(path: Path, tmp_path: Path) -> None:
    model = read(path)
    target = tmp_path / "out.onnx"
    target.write_text("precious")
    with pytest.raises(EmitError, match="exists already"):
        emit.emit(model, target)
    assert target.read_text() == "precious"
    emit.emit(model, target, overwrite=True)
    before = path.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    for disguise in (path, link, path.parent / ".." / "in" / "m.onnx"):
        with pytest.raises(EmitError, match="is the input"):
            emit.emit(model, disguise, overwrite=True, protected=[path])
    (tmp_path / "x.onnx.data").write_text("precious")
    with pytest.raises(EmitError, match=r"x\.onnx\.data.*exists"):
        emit.emit(model, tmp_path / "x.onnx", external=True)
    assert not (tmp_path / "x.onnx").exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_nothing_and_changes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, external: bool
) -> None:
    model = read(path)
    folder = tmp_path / "out"
    folder.mkdir()
    emit.emit(model, folder / "o.onnx", external=external)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(source: object, offset: int, length: int, file: BinaryIO, progress: object) -> None:
        file.write(b"partial")
        raise failure

    monkeypatch.setattr(emit, "_copy", fail)
    with pytest.raises((EmitError, KeyboardInterrupt)) as caught:
        emit.emit(model, folder / "o.onnx", overwrite=True, external=external)
    if isinstance(failure, OSError):
        assert "o.onnx: cannot be written (No space left on device)" in str(caught.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_failed_second_rename_undoes_the_first(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read(path)
    folder = tmp_path / "out"
    folder.mkdir()
    emit.emit(model, folder / "o.onnx", external=True)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model.graph.initializers["v"].const_value = ir.Tensor(np.zeros((40, 40), np.float32))
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(EmitError, match="Permission denied"):
        emit.emit(model, folder / "o.onnx", overwrite=True, external=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_unwritable_places(path: Path, tmp_path: Path) -> None:
    model = read(path)
    with pytest.raises(EmitError, match="nowhere"):
        emit.emit(model, tmp_path / "nowhere" / "o.onnx")
    with pytest.raises(EmitError, match="is a folder"):
        emit.emit(model, tmp_path, overwrite=True)


def test_a_proto_above_two_gib_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The limit is lowered here; the bench writes a model that really passes it."""
    monkeypatch.setattr(emit, "PROTO_LIMIT", 2**20 + 8000)
    model = read(path)
    assert [file.name for file in emit.emit(model, tmp_path / "big.onnx")] == ["big.onnx.data", "big.onnx"]
    monkeypatch.setattr(emit, "PROTO_LIMIT", 8000)
    with pytest.raises(EmitError, match=r"2 GiB.*save"):
        emit.to_proto(model)
