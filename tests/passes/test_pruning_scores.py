"""pruning.scores: norms of the rows that make a channel, whatever the operator's layout of weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.coupling import Group, Unit
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning.scores import elimination_by, weight_scores

WEIGHT = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
TRANSPOSED = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
MATRIX = np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)


def _model(op_type: str, weight: Array, **attributes: int) -> ir.Model:
    value = ir.Value(name="w", const_value=ir.Tensor(weight))
    data = ir.Value(name="x")
    node = ir.Node("", op_type, [data, value], [ir.AttrInt64(name, number) for name, number in attributes.items()])
    node.outputs[0].name = "y"
    graph = ir.Graph([data], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 17})
    return ir.Model(graph, ir_version=9)


def _group(channels: int) -> Group:
    units = tuple(Unit({"y": (channel,)}, {}, channel + 1) for channel in range(channels))
    return Group("y", units, ("y",), (), (), 1)


@pytest.mark.parametrize(
    ("op_type", "weight", "attributes", "rows"),
    [
        ("Conv", WEIGHT, {}, list(WEIGHT)),
        ("MatMul", MATRIX, {}, list(MATRIX.T)),
        ("Gemm", MATRIX, {}, list(MATRIX.T)),
        ("Gemm", MATRIX, {"transB": 1}, list(MATRIX)),
        ("ConvTranspose", TRANSPOSED, {}, [TRANSPOSED[:, channel] for channel in range(3)]),
        (
            "ConvTranspose",
            TRANSPOSED,
            {"group": 2},
            [TRANSPOSED[2 * block : 2 * block + 2, channel] for block in range(2) for channel in range(3)],
        ),
    ],
)
@pytest.mark.parametrize(("criterion", "norm"), [("l1", 1), ("l2", 2)])
def test_norms(
    op_type: str, weight: Array, attributes: dict[str, int], rows: list[Array], criterion: str, norm: int
) -> None:
    expected = np.array([np.linalg.norm(row.ravel(), norm) for row in rows])
    found = weight_scores(_model(op_type, weight, **attributes), _group(len(rows)), criterion)
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-5)


def test_the_median_row_goes_first() -> None:
    rows = np.array([[0.0, 0], [1, 0], [0.45, 0.1], [0, 1], [1, 1]], np.float32)
    scores = weight_scores(_model("Gemm", rows, transB=1), _group(5), "geometric-median")
    assert elimination_by(scores).order[0] == 2


def test_harm_is_the_share_of_the_squares_that_went() -> None:
    found = elimination_by(np.array([3.0, 1.0, 2.0]))
    assert found.order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(found.errors, [0, 1 / 14, 5 / 14, 1])
