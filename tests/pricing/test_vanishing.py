"""Nodes that cost nothing: held against what onnxruntime runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.lift import lift
from graphopt.pricing.vanishing import vanishing
from graphopt.runtime.kernel_clock import kernel_times

HEADER = '<ir_version: 9, opset_import: ["" : 17]>\n'


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("n (float[b,4] x) => (int64[2] y, int64[2] z) { y = Shape(x) z = Shape(x) }", 0),
        ("n (float[b,4] x) => (int64[2] y) { a = Shape(x) c = Shape(x) y = Add(a, c) }", 1),
        ("n (float[b,4] x) => (int64[2] y) { a = Shape(x) y = Cast<to: int = 7>(a) }", 0),
        ("n (float[b,4] x) => (int64[2] y) { a = Shape(x) c = Cast<to: int = 7>(a) y = Neg(c) }", 1),
        ("n (float[b,4] x) => (int32[2] y) { a = Shape(x) y = Cast<to: int = 6>(a) }", 0),
        ("n (float[2,4] x, float[4,3] w) => (float[2,3] y) <float c = {2}> { a = MatMul(x, w) y = Mul(a, c) }", 1),
        ("n (float[2,4] x, float[4,3] w) => (float[2,3] y) <float c = {2}> { a = Mul(x, c) y = MatMul(a, w) }", 1),
        (
            "n (float[2,4] x, float[4,3] w) => (float[2,3] y) <float[3] c = {2,1,3}> { a = MatMul(x, w) y = Mul(a, c) }",
            0,
        ),
        ("n (float[2,4] x) => (float[2,4] y) <float c = {2}> { a = Tanh(x) y = Mul(a, c) }", 0),
    ],
)
def test_as_onnxruntime_does(text: str, gone: int) -> None:
    lifted = lift(ir.to_proto(ir.from_onnx_text(HEADER + text))).model
    found = vanishing(lifted.graph)
    assert len(found) == gone
    feeds = {"x": np.ones((2, 4), np.float32), "w": np.ones((4, 3), np.float32)}
    used = {value.name: feeds[value.name] for value in lifted.graph.inputs if value.name is not None}
    ran = Counter(time.op_type for time in kernel_times(lifted, used, runs=1))
    assert ran.total() == len([node for node in lifted.graph if node.op_type != "Constant"]) - gone
