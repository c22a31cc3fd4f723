"""pruning.pairs: the rows of two convolutions in a row, against onnxruntime."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.lift import lift
from graphopt_passes.pruning.pairs import TapRows, couple_of
from graphopt_passes.reconstruction.linear import linear_layers


def _model(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 11])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _two(strides: tuple[int, int], pads: tuple[int, int], kernels: tuple[int, int], dilation: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.normal(size=(4, 3, kernels[0], kernels[0])),
        "b1": rng.normal(size=4),
        "w2": rng.normal(size=(5, 4, kernels[1], kernels[1])),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], strides=[strides[0]] * 2, pads=[pads[0]] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node(
            "Conv", ["r1", "w2"], ["y"], strides=[strides[1]] * 2, pads=[pads[1]] * 4, dilations=[dilation] * 2
        ),
    ]
    return _model(nodes, arrays)


@pytest.mark.parametrize(
    ("strides", "pads", "kernels", "dilation"),
    [
        ((1, 1), (1, 1), (3, 3), 1),
        ((2, 1), (0, 2), (1, 3), 2),
        ((1, 2), (1, 0), (3, 1), 1),
        ((1, 2), (0, 1), (3, 3), 1),
    ],
)
def test_rows_give_the_second_layers_output(
    strides: tuple[int, int], pads: tuple[int, int], kernels: tuple[int, int], dilation: int
) -> None:
    proto = _two(strides, pads, kernels, dilation)
    x = np.random.default_rng(1).normal(size=(2, 3, 9, 11)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    layers = linear_layers(lift(proto).model.graph)
    pair = couple_of(layers[0])
    assert pair is not None
    assert couple_of(layers[1]) is None
    source = TapRows(pair)
    count = source.positions(x.shape)
    assert count == math.prod(expected.shape[2:])
    samples, positions = np.repeat([0, 1], count), np.tile(np.arange(count), 2)
    rows = source.take(x, (samples, positions))[0].T
    taps, width = kernels[1] ** 2, pair.first.width
    by_tap, inside = rows[:, : taps * width].reshape(len(rows), taps, width), rows[:, taps * width :]
    h = np.maximum(by_tap @ pair.first.weight()[0].T + pair.first.bias(), 0) * inside[:, :, None]
    y = np.einsum("rth,cht->rc", h, pair.second.weight()[0].reshape(5, 4, taps))
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1).reshape(-1, 5), rtol=1e-3, atol=1e-4)


def _with_depthwise(kernel: int, stride: int, last: dict[str, list[int]] | None = None) -> onnx.ModelProto:
    """A convolution, a depthwise and a pointwise one, each but the last behind an activation."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.normal(size=(4, 3, 1, 1)),
        "b1": rng.normal(size=4),
        "wd": rng.normal(size=(4, 1, kernel, kernel)),
        "bd": rng.normal(size=4),
        "w2": rng.normal(size=(5, 4, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "wd", "bd"], ["d"], group=4, strides=[stride] * 2, pads=[kernel // 2] * 4),
        helper.make_node("Relu", ["d"], ["rd"]),
        helper.make_node("Conv", ["rd", "w2"], ["y"]),
    ]
    nodes[-1].attribute.extend(helper.make_attribute(name, value) for name, value in (last or {}).items())
    return _model(nodes, arrays)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_rows_through_a_depthwise_layer_give_the_last_ones_output(kernel: int, stride: int) -> None:
    proto = _with_depthwise(kernel, stride)
    x = np.random.default_rng(1).normal(size=(2, 3, 9, 11)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    pair = couple_of(linear_layers(lift(proto).model.graph)[0])
    assert pair is not None
    assert pair.between is not None
    assert [layer.channels for layer in pair.layers] == [4, 4, 5]
    source = TapRows(pair)
    count = source.positions(x.shape)
    assert count == math.prod(expected.shape[2:])
    rows = source.take(x, (np.repeat([0, 1], count), np.tile(np.arange(count), 2)))[0].T
    by_tap, inside = rows[:, : pair.taps * 3].reshape(len(rows), pair.taps, 3), rows[:, pair.taps * 3 :]
    h = np.maximum(by_tap @ pair.first.weight()[0].T + pair.first.bias(), 0) * inside[:, :, None]
    u = np.maximum(np.einsum("rth,ht->rh", h, pair.between.weight()[:, 0]) + pair.between.bias(), 0)
    y = u @ pair.second.weight()[0].T
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1).reshape(-1, 5), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("last", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}])
def test_behind_a_depthwise_layer_only_a_pointwise_one_makes_a_pair(last: dict[str, list[int]]) -> None:
    assert couple_of(linear_layers(lift(_with_depthwise(3, 1, last)).model.graph)[0]) is None
