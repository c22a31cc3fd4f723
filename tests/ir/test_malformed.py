"""Bad files: one error that says what and where, in bounded time and memory, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError, InvalidModelError
from graphopt.ir import stub, verify

Edit = Callable[[onnx.ModelProto], None]


def good_model() -> onnx.ModelProto:
    return onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] x, bool c) => (float[2, 4] y)
        <float[3, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
        {
            a = MatMul (x, w)
            b = Relu (a)
            y = If (c) <then_branch = t () => (float[2, 4] r) { r = Neg (b) },
                        else_branch = e () => (float[2, 4] s) { s = Abs (b) }>
        }
    """)


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "b"


def undefined(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def undefined_in_body(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute[0].g.node[0].input[0] = "nowhere"


def twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "a"


def output_of_nobody(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "z"


def initializer_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def nameless_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = ""


def wrong_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 5


def negative_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -3


def absurd_dims(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**30, 2**30])


def absurd_raw_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(5000, np.float32), "w"))
    model.graph.initializer[0].dims[0] = 2**60


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 1000


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def no_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = ""


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def forged_mark(model: onnx.ModelProto) -> None:
    """The mark that stands for a tensor in a stub cannot be brought in from outside."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="\x01graphopt")
    tensor.external_data.add(key="offset", value="0")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cycle, "cycle"),
        (undefined, "Relu 'b' reads 'nowhere'"),
        (undefined_in_body, "then_branch.*reads 'nowhere'"),
        (twice, "'a' is produced twice"),
        (output_of_nobody, "output 'z'"),
        (initializer_twice, "initializer 'w' is there twice"),
        (nameless_initializer, "no name"),
        (wrong_dims, "initializer 'w'.*need 20"),
        (negative_dims, "initializer 'w'.*negative"),
        (absurd_dims, "initializer 'w'.*need 1152921504606846976"),
        (absurd_raw_dims, "initializer 'w'.*20000 bytes"),
        (unknown_type, "initializer 'w'.*1000"),
        (no_graph, "no graph"),
        (no_operator, "node 1"),
        (no_opset, "opset_import"),
        (forged_mark, "initializer 'w'.*not a path"),
    ],
)
def test_broken_graphs_are_named(tmp_path: Path, edit: Edit, message: str) -> None:
    model = good_model()
    edit(model)
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelError, match=message) as caught:
        stub.read_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is no model\n" * 50, os.urandom(5000), good_model().SerializeToString()[:-30], b"\0" * 100],
    ids=["empty", "text", "random", "truncated", "zeros"],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"bad\.onnx"):
        stub.read_file(path)


@pytest.mark.parametrize("name", ["missing.onnx", "folder"])
def test_paths_that_are_no_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidModelError, match=name):
        stub.read_file(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bit_flips_give_a_graphopt_error_or_a_sound_graph(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(good_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 8 * len(content) - 1))
        content[position // 8] ^= 1 << position % 8
    with contextlib.suppress(GraphoptError):
        verify.verify(stub.read_bytes(bytes(content)).stub.to_ir())


def external_model(folder: Path, location: str = "w.bin", offset: str = "0", length: str = "48") -> Path:
    model = good_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(bytes(64))
    return path


@pytest.mark.parametrize(
    ("location", "offset", "length", "message"),
    [
        ("gone.bin", "0", "48", "gone.bin.*cannot be read"),
        ("../outside.bin", "0", "48", "outside of the model's folder"),
        ("sub/../../outside.bin", "0", "48", "outside of the model's folder"),
        ("/etc/passwd", "0", "48", "not a relative path"),
        ("", "0", "48", "not a relative path"),
        ("link.bin", "0", "48", "through a link"),
        ("linked/outside.bin", "0", "48", "through a link"),
        (".", "0", "48", "not a regular file"),
        ("w.bin", "32", "48", "lie outside of"),
        ("w.bin", "-8", "48", "lie outside of"),
        ("w.bin", "0", "40", "needs 48"),
        ("w.bin", "x", "48", "whole numbers"),
    ],
)
def test_external_data_is_confined_and_measured(
    tmp_path: Path, location: str, offset: str, length: str, message: str
) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(64))
    path = external_model(tmp_path / "model", location, offset, length)
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    (path.parent / "linked").symlink_to(tmp_path)
    with pytest.raises(InvalidModelError, match=message) as caught:
        stub.read_file(path)
    assert "'w'" in str(caught.value)


def test_a_hub_cache_is_the_models_folder(tmp_path: Path) -> None:
    """Model hubs keep files in one folder and link to them from another: model and data link to the same place."""
    real = external_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in real.parent.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert len(stub.read_file(snapshot / "m.onnx").files) == 1


def test_data_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    path = external_model(tmp_path / "model")
    tensor = stub.read_file(path).stub.to_ir().graph.initializers["w"].const_value
    assert tensor is not None
    assert not tensor.numpy().any()
    (path.parent / "w.bin").write_bytes(bytes(65))
    with pytest.raises(InvalidModelError, match=r"w\.bin.*changed"):
        tensor.numpy()


def test_sparse_indices_are_checked() -> None:
    model = good_model()
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(2, np.float32), "w"), numpy_helper.from_array(np.array([1, 12])), [3, 4]
        )
    )
    with pytest.raises(InvalidModelError, match=r"sparse tensor 'w'.*index"):
        stub.read_bytes(model.SerializeToString())
