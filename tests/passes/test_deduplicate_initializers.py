"""deduplicate-initializers: which tensors are equal, which of them stays, and how little is read to find out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.ir.tensors import StoredFile, StoredTensor
from graphopt.lift import lift
from graphopt.pipeline.base import PassContext
from graphopt_passes.lossless.deduplicate_initializers import DeduplicateInitializers

PIPELINE = "deduplicate-initializers"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """g (float[2] x) => (float[2] y) <float[2] b = {1, 2}, float[2] a = {1, 2}, float[2] c = {1, 3}>
               { p = Add(x, a)  q = Add(p, b)  y = Mul(q, c) }""",
            """g (float[2] x) => (float[2] y) <float[2] b = {1, 2}, float[2] c = {1, 3}>
               { p = Add(x, b)  q = Add(p, b)  y = Mul(q, c) }""",
            id="the first stays",
        ),
        pytest.param(
            """g (float[2] x, bool c) => (float[2] y) <float[2] a = {1, 2}> { d = Add(x, a)  y = If (c) <
                 then_branch = t () => (float[2] ty) <float[2] b = {1, 2}> { ty = Add(d, b) },
                 else_branch = e () => (float[2] ey) <float[2] f = {1, 2}, float[2] h = {1, 2}>
                   { k = Add(d, f)  ey = Mul(k, h) }> }""",
            """g (float[2] x, bool c) => (float[2] y) <float[2] a = {1, 2}> { d = Add(x, a)  y = If (c) <
                 then_branch = t () => (float[2] ty) { ty = Add(d, a) },
                 else_branch = e () => (float[2] ey) { k = Add(d, a)  ey = Mul(k, a) }> }""",
            id="one outside of the body stays",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y, float[2] b)
               <float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 2}>
               { p = Add(x, a)  q = Add(p, b)  y = Mul(q, c) }""",
            """g (float[2] x) => (float[2] y, float[2] b) <float[2] a = {1, 2}, float[2] b = {1, 2}>
               { p = Add(x, a)  q = Add(p, b)  y = Mul(q, a) }""",
            id="a graph output stays",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(
            """g (float[2] x) => (float[2] y) <float[2] a = {0.0, 1}, float[2] b = {-0.0, 1}>
               { p = Add(x, a)  y = Mul(p, b) }""",
            id="zeros of another sign",
        ),
        pytest.param(
            "g (float[2] x) => (float[2] y) <float[1] a = {1}, float b = {1}> { p = Add(x, a)  y = Mul(p, b) }",
            id="extents",
        ),
        pytest.param(
            """g (float[2] x, float[2] b) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}>
               { p = Add(x, a)  y = Mul(p, b) }""",
            id="a default that the caller can override",
        ),
        pytest.param(
            """g (float[2] x, bool c) => (float[2] y) { y = If (c) <
                 then_branch = t () => (float[2] ty) <float[2] b = {1, 2}> { ty = Add(x, b) },
                 else_branch = e () => (float[2] ey) <float[2] f = {1, 2}> { ey = Mul(x, f) }> }""",
            id="two branches",
        ),
        pytest.param(
            """g (float[2] x) => (float[2] y) <int32[2] a = {0, 0}, float[2] b = {0, 0}>
               { c = Cast<to = 1>(a)  p = Add(x, c)  y = Mul(p, b) }""",
            id="types",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str) -> None:
    rewriter.rewrites(before, PIPELINE)


def test_nan_is_equal_by_its_payload(rewriter: Any) -> None:
    quiet, other = (np.array([bits], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FC00001))
    text = "g (float[1] x) => (float[1] y) { p = Add(x, a)  q = Add(p, b)  y = Add(q, c) }"
    model = rewriter.model(text, {"a": quiet, "b": other, "c": quiet})
    rewriter.run(model, PIPELINE)
    assert list(model.graph.initializers) == ["a", "b"]


def large_model(arrays: dict[str, np.ndarray], folder: Path, external: bool) -> Path:
    rows, columns = next(iter(arrays.values())).shape
    nodes = [onnx.helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in arrays]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, rows])],
        [onnx.helper.make_tensor_value_info(f"y_{name}", onnx.TensorProto.FLOAT, [1, columns]) for name in arrays],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = folder / "m.onnx"
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=external, location="m.data" if external else None)
    return path


@pytest.mark.parametrize("external", [False, True])
def test_large_tensors(tmp_path: Path, external: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 400)).astype(np.float32)
    at_the_end, in_the_middle = a.copy(), a.copy()
    at_the_end[-1, -1] += 1
    in_the_middle[150, 200] += 1
    arrays = {"a": a, "b": at_the_end, "c": a, "d": in_the_middle, "e": at_the_end, "f": a}
    model = lift(large_model(arrays, tmp_path, external)).model
    assert DeduplicateInitializers().run(model, PassContext()).modified
    assert list(model.graph.initializers) == ["a", "b", "d"]
    assert [node.inputs[1].name for node in model.graph if node.inputs[1] is not None] == ["a", "b", "a", "d", "b", "a"]


def test_two_large_tensors_are_compared_to_the_end(tmp_path: Path) -> None:
    a = np.zeros((300, 400), np.float32)
    b = a.copy()
    b[-1, -1] = 1
    for other, left in ((b, ["a", "b"]), (a, ["a"])):
        model = lift(large_model({"a": a, "b": other}, tmp_path, external=False)).model
        DeduplicateInitializers().run(model, PassContext())
        assert list(model.graph.initializers) == left


class Counting:
    """Storage that counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return self.data[offset : offset + length]


def stored(model: ir.Model, name: str, storage: Any, offset: int, dims: tuple[int, ...]) -> None:
    length = int(np.prod(dims)) * 4
    tensor = StoredTensor(storage, offset, length, ir.DataType.FLOAT, ir.Shape(dims), name)
    model.graph.register_initializer(
        ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
    )


def test_as_little_as_possible_is_read(rewriter: Any) -> None:
    size = 2**20
    once = Counting(np.arange(4 * size, dtype=np.float32).tobytes())
    model = rewriter.model("g (float[1] x) => (float[1] y) { y = Neg(x) }")
    stored(model, "unique", once, 0, (size // 2,))
    stored(model, "place", once, 0, (size,))
    stored(model, "same_place", once, 0, (size,))
    assert DeduplicateInitializers().run(model, PassContext()).modified
    assert once.bytes_read == 0
    stored(model, "other", once, 4 * size, (size,))
    stored(model, "third", once, 8 * size, (size,))
    assert not DeduplicateInitializers().run(model, PassContext()).modified
    assert once.bytes_read == 3 * 64 * 1024


def test_files_are_told_apart(tmp_path: Path, rewriter: Any) -> None:
    (tmp_path / "a").write_bytes(bytes(400_000))
    (tmp_path / "b").write_bytes(bytes(399_999) + b"\1")
    model = rewriter.model("g (float[1] x) => (float[1] y) { y = Neg(x) }")
    for name in ("a", "b"):
        stored(model, name, StoredFile.of(tmp_path / name), 0, (100_000,))
    assert not DeduplicateInitializers().run(model, PassContext()).modified
    stored(model, "c", StoredFile.of(tmp_path / "b"), 0, (100_000,))
    assert DeduplicateInitializers().run(model, PassContext()).modified
    assert list(model.graph.initializers) == ["a", "b"]


def test_excluded_nodes_read_what_they_read(rewriter: Any) -> None:
    before = """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}>
                { p = Add(x, a)  [keep] y = Add(p, b) }"""
    rewriter.rewrites(before, PIPELINE, exclude="keep")
