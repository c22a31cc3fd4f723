"""integer_form of every family: which inputs are quantized, where the weight and its channels are, what shares a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ops import table
from graphopt.ops.base import IntegerForm, operator

MOVED = IntegerForm(same_scale=True)
OWN = IntegerForm()
PAIR = IntegerForm((0, 1))
ZERO, ONE = np.zeros((), np.float32), np.ones((), np.float32)
PADS = np.array([0, 0, 1, 1])

Make = Callable[..., ir.Node]


@pytest.mark.parametrize(
    ("op_type", "attributes", "form"),
    [
        ("Conv", {}, IntegerForm((0, 1), weight=1, channel_axis=0, bias=2)),
        ("ConvTranspose", {"group": 2}, IntegerForm((0, 1), weight=1, channel_axis=1, bias=2)),
        ("DeformConv", {}, None),
        ("MatMul", {}, IntegerForm((0, 1), weight=1, channel_axis=-1)),
        ("Gemm", {}, IntegerForm((0, 1), weight=1, channel_axis=1, bias=2)),
        ("Gemm", {"transB": 1}, IntegerForm((0, 1), weight=1, channel_axis=0, bias=2)),
        ("Gemm", {"transA": 1}, None),
        ("Gemm", {"alpha": 0.5}, None),
        ("Gemm", {"beta": 0.5}, None),
        ("Einsum", {"equation": "ij,jk->ik"}, None),
        *((name, {}, PAIR) for name in ("Add", "Sub", "Mul", "Div")),
        *((name, {}, None) for name in ("Pow", "PRelu", "Equal", "Max", "Sum")),
        *((name, {}, OWN) for name in ("Relu", "Clip", "Sigmoid", "LeakyRelu", "HardSwish", "Gelu", "Softmax")),
        *(
            (name, {}, None)
            for name in ("LogSoftmax", "LayerNormalization", "BatchNormalization", "ReduceMean", "LSTM")
        ),
        *((name, {}, MOVED) for name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose")),
        *((name, {}, MOVED) for name in ("Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth")),
        *((name, {}, None) for name in ("NonZero", "Dropout", "MaxUnpool", "ReverseSequence")),
        *((name, {}, MOVED) for name in ("MaxPool", "GlobalMaxPool")),
        *((name, {}, OWN) for name in ("AveragePool", "GlobalAveragePool")),
        *((name, {}, None) for name in ("LpPool", "GlobalLpPool")),
        ("Resize", {"mode": "nearest"}, MOVED),
        ("Resize", {"mode": "linear"}, MOVED),
        ("Resize", {"mode": "cubic"}, None),  # it overshoots
        ("Resize", {"coordinate_transformation_mode": "tf_crop_and_resize"}, None),  # it puts another number outside
    ],
)
def test_form(op_type: str, attributes: dict[str, Any], form: IntegerForm | None, make_node: Make) -> None:
    node = make_node(op_type, [(1, 4, 8, 8), (4, 4, 1, 1)], (1, 4, 8, 8), **attributes)
    assert operator(node).integer_form(node) == form


def test_concat_reads_all_of_its_inputs(make_node: Make) -> None:
    node = make_node("Concat", [(1, 2), (1, 2), (1, 2)], (1, 6), axis=1)
    assert operator(node).integer_form(node) == IntegerForm((0, 1, 2), same_scale=True)


@pytest.mark.parametrize(
    ("inputs", "attributes", "form"),
    [
        ([(1, 1), PADS], {}, MOVED),
        ([(1, 1), PADS, ZERO], {}, MOVED),
        ([(1, 1), PADS, None, (1,)], {}, MOVED),
        ([(1, 1), PADS], {"mode": "edge"}, MOVED),
        ([(1, 1), PADS, ONE], {}, None),
        ([(1, 1), PADS, ()], {}, None),  # not known
        ([(1, 1)], {"value": 1.0}, None),  # before opset 11
    ],
)
def test_a_pad_must_not_bring_numbers_of_its_own(
    inputs: list[Any], attributes: dict[str, Any], form: IntegerForm | None, make_node: Make
) -> None:
    node = make_node("Pad", inputs, (3, 3), **attributes)
    assert operator(node).integer_form(node) == form


def test_a_max_pool_with_indices_has_none() -> None:
    node = ir.Node("", "MaxPool", [ir.Value(name="x")], num_outputs=2)
    assert operator(node).integer_form(node) is None


def test_only_the_standard_domain_has_integer_forms(make_node: Make) -> None:
    for domain, op_type in sorted(table.BY_NAME):
        node = make_node(op_type, [(1, 4), (4, 4)], (1, 4), domain=domain)
        assert domain == "" or operator(node).integer_form(node) is None, op_type
