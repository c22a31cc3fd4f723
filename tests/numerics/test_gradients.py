"""Gradients of every rule against finite differences, and what the rules compute against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt.runtime.session import Session
from graphopt_passes.numerics.gradients import RULES

Array = np.ndarray[Any, Any]
SHAPES: dict[str, list[tuple[int, ...]]] = {
    **{name: [(2, 3, 4), (3, 1)] for name in ("Add", "Sub", "Mul", "Div")},
    "MatMul": [(2, 3, 4), (4, 5)],
    "Gemm": [(3, 4), (5, 4), (5,)],
    "LayerNormalization": [(2, 3, 4), (4,), (4,)],
}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Gemm": {"transB": 1, "alpha": 0.5, "beta": 2.0},
    "Transpose": {"perm": [2, 0, 1]},
    "ReduceMean": {"axes": [1], "keepdims": 0},
    "Softmax": {"axis": -1},
    "LayerNormalization": {"axis": -1, "epsilon": 1e-5},
}
CASES = [(name, SHAPES.get(name, [(2, 3, 4)])) for name in RULES if name != "Reshape"]
CASES += [("MatMul", [(2, 3, 4, 5), (3, 5, 2)]), ("Add", [(4,), (2, 3, 4)]), ("Mul", [(2, 3), ()])]


def operands(shapes: list[tuple[int, ...]], dtype: Any) -> list[Array]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(size=shape) + 2 * (len(shapes) > 1), dtype) for shape in shapes]


@pytest.mark.parametrize(("name", "shapes"), CASES)
def test_gradients_against_finite_differences(name: str, shapes: list[tuple[int, ...]]) -> None:
    attributes, values = ATTRIBUTES.get(name, {}), operands(shapes, np.float64)
    result, backward = RULES[name](values, attributes)
    weights = np.asarray(np.random.default_rng(1).normal(size=result.shape))
    found = backward(np.asarray(weights))
    for index, value in enumerate(values):
        expected = np.zeros(value.shape)
        for place in np.ndindex(*value.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [np.array(one) for one in values]
                moved[index][place] += step
                sides.append(float(np.sum(weights * RULES[name](moved, attributes)[0])))
            expected[place] = (sides[0] - sides[1]) / 2e-5
        gradient = found[index]
        assert gradient is not None
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shapes"), CASES)
def test_results_against_onnxruntime(name: str, shapes: list[tuple[int, ...]]) -> None:
    values, attributes = operands(shapes, np.float32), ATTRIBUTES.get(name, {})
    names = [f"x{index}" for index in range(len(values))]
    result = RULES[name](values, attributes)[0]
    inputs = [helper.make_tensor_value_info(one, 1, value.shape) for one, value in zip(names, values, strict=True)]
    opset = 20 if name == "Gelu" else 17
    graph = helper.make_graph(
        [helper.make_node(name, names, ["y"], **attributes)],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", 1, result.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    exact = Session(model).run(dict(zip(names, values, strict=True)))["y"]
    np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-5)


def test_reshape_copies_and_infers_extents() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    y, backward = RULES["Reshape"]([x, np.array([0, -1])], {})
    assert y.shape == (2, 12)
    gradient, none = backward(y)
    assert none is None
    np.testing.assert_array_equal(gradient, x)
