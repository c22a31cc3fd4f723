from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import UnsupportedModelError
from graphopt.runtime.patches import Window, patches
from graphopt.runtime.session import Session


def conv(channels: int, filters: int, spatial: tuple[int, ...], kernel: tuple[int, ...], attributes: str) -> ir.Model:
    group = int(attributes.split("group = ")[1].split(",")[0]) if "group" in attributes else 1
    weight = np.random.default_rng(1).standard_normal((filters, channels // group, *kernel)).astype(np.float32)
    dims = ", ".join(map(str, ("N", channels, *spatial)))
    shape = ", ".join(map(str, weight.shape))
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[{dims}] x, float[{shape}] w) => (float y) {{
        y = Conv {f"<{attributes}>" if attributes else ""} (x, w) }}"""
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.Tensor(weight, name="w")
    model.graph.register_initializer(value)
    return model


CASES = [
    (3, 4, (7, 9), (3, 2), ""),
    (3, 4, (7, 9), (3, 3), "pads = [1, 2, 0, 3], strides = [2, 3]"),
    (4, 6, (11, 8), (3, 3), "group = 2, dilations = [2, 1], pads = [2, 1, 2, 1]"),
    (4, 8, (6, 6), (3, 3), "group = 4, auto_pad = \"SAME_UPPER\", strides = [2, 2]"),
    (3, 2, (8, 7), (4, 3), "auto_pad = \"SAME_LOWER\", strides = [3, 2]"),
    (3, 2, (8, 7), (4, 2), "auto_pad = \"SAME_UPPER\""),
    (3, 2, (8, 7), (3, 3), "auto_pad = \"VALID\", strides = [2, 1]"),
    (3, 2, (10,), (4,), "pads = [3, 0], strides = [2], dilations = [2]"),
    (2, 4, (5, 4, 6), (2, 1, 3), "pads = [0, 1, 1, 1, 0, 2], strides = [1, 2, 2], group = 2"),
    (5, 3, (4, 4), (1, 1), "strides = [3, 3]"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_times_patches_is_what_onnxruntime_convolves(
    case: tuple[int, int, tuple[int, ...], tuple[int, ...], str],
) -> None:
    model = conv(*case)
    node = model.graph.node(0)
    window = Window.of(node)
    x = np.random.default_rng(0).standard_normal((3, case[0], *case[2])).astype(np.float32)
    expected = Session(model).run({"x": x})["y"]
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    groups, filters = window.groups, case[1]
    weight = tensor.numpy().reshape(groups, filters // groups, -1)

    assert window.extents(x.shape[2:]) == expected.shape[2:]
    columns = patches(x, window)
    assert columns.shape == (groups, window.width(case[0]), 3 * math.prod(expected.shape[2:]))
    y = (weight @ columns).reshape(filters, 3, *expected.shape[2:])
    np.testing.assert_allclose(y.swapaxes(0, 1), expected, rtol=1e-4, atol=1e-4)

    sample, position = np.array([2, 0, 1, 1]), np.array([0, 1, 1, 0])
    picked = patches(x, window, (sample, position))
    flat = expected.reshape(3, filters, -1)[sample, :, position]
    np.testing.assert_allclose((weight @ picked).reshape(filters, 4).T, flat, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_does_not_fit_has_no_patches() -> None:
    window = Window(kernel=(5,), strides=(1,), dilations=(1,), pads=(0, 0))
    assert patches(np.zeros((2, 3, 4), np.float32), window).shape == (1, 15, 0)


def test_only_a_conv_has_a_window() -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 21]> g (float[4] x) => (float[4] y) { y = Relu(x) }')
    with pytest.raises(UnsupportedModelError, match="Relu 'y' is no Conv"):
        Window.of(model.graph.node(0))
