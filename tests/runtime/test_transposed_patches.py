"""Patches of a ConvTranspose: times its weight they are what onnxruntime computes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import UnsupportedModelError
from graphopt.runtime.session import Session
from graphopt.runtime.transposed_patches import TransposedRows, TransposedWindow


def transposed(spatial: str, weight: tuple[int, ...], attributes: str) -> ir.Model:
    array = np.random.default_rng(1).standard_normal(weight).astype(np.float32)
    shape = ", ".join(map(str, weight))
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[N,{weight[0]},{spatial}] x, float[{shape}] w) => (float y) {{
        y = ConvTranspose {f"<{attributes}>" if attributes else ""} (x, w) }}"""
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.Tensor(array, name="w")
    model.graph.register_initializer(value)
    return model


CASES = [
    ("4,3", (2, 3, 2, 3), ""),
    ("4,3", (2, 3, 3, 3), "strides = [2, 1], pads = [1, 0, 0, 1], output_padding = [1, 0]"),
    ("3,4", (4, 2, 3, 2), "group = 2, dilations = [2, 3], strides = [3, 2]"),
    ("3,4", (4, 1, 4, 4), "group = 4, strides = [2, 2], pads = [1, 1, 1, 1]"),
    ("3,3", (2, 3, 1, 2), "strides = [3, 4]"),
    ("5", (3, 2, 4), "strides = [2], pads = [2, 3], dilations = [2]"),
    ("2,3,2", (2, 2, 2, 1, 3), "strides = [2, 1, 2], pads = [0, 0, 1, 1, 0, 0]"),
    ("4,3", (2, 3, 5, 4), "strides = [2, 1], auto_pad = \"SAME_UPPER\""),
    ("4,3", (2, 3, 5, 4), "strides = [2, 1], auto_pad = \"SAME_LOWER\""),
    ("4,3", (2, 3, 2, 4), "strides = [2, 3], auto_pad = \"VALID\""),
    ("4,3", (2, 3, 5, 4), "strides = [2, 2], output_shape = [8, 7]"),
    ("4,3", (2, 3, 5, 4), "strides = [2, 2], output_shape = [8, 7], auto_pad = \"SAME_UPPER\""),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_times_patches_is_what_onnxruntime_computes(case: tuple[str, tuple[int, ...], str]) -> None:
    model = transposed(*case)
    window = TransposedWindow.of(model.graph.node(0))
    inputs, outputs, *kernel = case[1]
    x = np.random.default_rng(0).standard_normal((3, inputs, *map(int, case[0].split(",")))).astype(np.float32)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    by_group = tensor.numpy().reshape(window.groups, inputs // window.groups, outputs, -1)
    weight = by_group.transpose(0, 2, 1, 3).reshape(window.groups, outputs, -1)

    extents, rows = window.extents(x.shape[2:]), TransposedRows(window)
    assert rows.samples(x.shape) == 3
    assert rows.positions(x.shape) == math.prod(extents)
    assert rows.width(x.shape) == inputs * math.prod(kernel)
    columns = rows.take(x)
    y = (weight @ columns).reshape(-1, 3, *extents).swapaxes(0, 1)
    expected = Session(model).run({"x": x})["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    chosen = np.array([2, 0, 1]), np.array([math.prod(extents) - 1, 0, 0])
    some = (weight @ rows.take(x, chosen)).reshape(-1, 3)
    by_position = np.moveaxis(expected.reshape(*expected.shape[:2], -1), 1, 0)
    np.testing.assert_allclose(some, by_position[:, chosen[0], chosen[1]], rtol=1e-5, atol=1e-5)


def test_an_output_that_is_cut_off_wholly_has_no_rows() -> None:
    rows = TransposedRows(TransposedWindow.of(transposed("2", (2, 3, 2), "pads = [1, 2]").graph.node(0)))
    assert rows.take(np.ones((3, 2, 2), np.float32)).shape == (1, 4, 0)


@pytest.mark.parametrize(
    ("spatial", "attributes"),
    [
        ("h,w", "strides = [2, 2], output_shape = [8, 8]"),
        ("4,4", "strides = [2, 2], output_shape = [12, 12]"),
        ("4,4", 'strides = [7, 7], auto_pad = "SAME_UPPER"'),
        ("4,4", 'strides = [2, 2], output_padding = [1, 1], auto_pad = "SAME_UPPER"'),
    ],
)
def test_what_runtimes_cut_off_differently_is_refused(spatial: str, attributes: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cuts"):
        TransposedWindow.of(transposed(spatial, (2, 3, 3, 3), attributes).graph.node(0))


def test_other_operators_have_no_such_window() -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    with pytest.raises(UnsupportedModelError, match="no ConvTranspose"):
        TransposedWindow.of(model.graph.node(0))
