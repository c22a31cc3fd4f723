"""Cutting weights out of serialized models and splicing them in again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import InvalidModelError
from graphopt.ir import wire


def model_with(*tensors: TensorProto, nested: bool = False) -> onnx.ModelProto:
    """A model that holds `tensors` as initializers, or in the body of an If."""
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if nested:
        body = helper.make_graph([helper.make_node("Identity", [tensors[0].name], ["y"])], "body", [], outputs, tensors)
        node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])], outputs)
    else:
        graph = helper.make_graph([helper.make_node("Identity", [tensors[0].name], ["y"])], "g", [], outputs, tensors)
    return helper.make_model(graph)


def spliced(stub: bytes, data: bytes, runs: list[wire.Run]) -> bytes:
    result = wire.splice(stub, [run.length for run in runs])
    pieces = [
        data[runs[piece].offset : runs[piece].offset + runs[piece].length] if isinstance(piece, int) else piece
        for piece in result.pieces
    ]
    joined = b"".join(pieces)
    assert len(joined) == result.size
    return joined


@given(
    sizes=st.lists(st.integers(0, 900), min_size=1, max_size=6),
    nested=st.booleans(),
    packed=st.booleans(),
)
def test_cut_then_splice_gives_the_same_model(sizes: list[int], nested: bool, packed: bool) -> None:
    tensors = []
    for index, size in enumerate(sizes):
        array = np.arange(size, dtype=np.float32) + index
        tensor = numpy_helper.from_array(array, f"w{index}")
        if packed:
            tensor = helper.make_tensor(f"w{index}", TensorProto.FLOAT, [size], array)
        tensors.append(tensor)
    data = model_with(*tensors, nested=nested).SerializeToString()
    stub, runs = wire.cut(memoryview(data))
    copies = 2 if nested else 1
    assert [run.length for run in runs] == copies * [4 * size for size in sizes if 4 * size >= wire.MARKED_SIZE]
    assert len(stub) < len(data) - sum(run.length for run in runs) + 100 * len(runs) + 20

    def arrays(proto: onnx.ModelProto) -> list[tuple[str, bytes]]:
        graph = proto.graph.node[0].attribute[0].g if nested else proto.graph
        return [(tensor.name, numpy_helper.to_array(tensor).tobytes()) for tensor in graph.initializer]

    result = onnx.ModelProto.FromString(spliced(stub, data, runs))
    assert arrays(result) == arrays(onnx.ModelProto.FromString(data))


def test_numbers_that_are_not_raw_bytes_stay() -> None:
    """int64_data is a list of varints: its bytes are not those of raw_data."""
    tensor = helper.make_tensor("w", TensorProto.INT64, [1000], range(1000))
    data = model_with(tensor).SerializeToString()
    assert wire.cut(memoryview(data)) == (data, [])


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 200,
        b"\x3a\xff\xff\xff\xff\x0f" + b"x" * 10,  # a graph longer than the file
        b"\x07abc",  # wire type 7
        b"\x3a" + b"\x80" * 20,  # a length without an end
    ],
)
def test_damaged_bytes_are_named(data: bytes) -> None:
    with pytest.raises(InvalidModelError, match="at byte"):
        wire.cut(memoryview(data))


def test_deep_nesting_is_refused_without_recursion_error() -> None:
    message = b"x" * wire.MARKED_SIZE
    for depth in range(150):  # from the inside out: graph in attribute in node in graph ...
        number = (6, 5, 1)[depth % 3]
        message = wire.encode_varint(number << 3 | 2) + wire.encode_varint(len(message)) + message
    with pytest.raises(InvalidModelError, match="nested deeper"):
        wire.cut(memoryview(b"\x3a" + wire.encode_varint(len(message)) + message))
