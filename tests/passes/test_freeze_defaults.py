from __future__ import annotations

import numpy as np
import pytest
from conftest import Rewriter

import graphopt

TEXT = """
    <ir_version: 10, opset_import: ["": 17]>
    g (float[n,2] x, float[2,2] w) => (float[n,2] y) <float[2,2] w = {1, 2, 3, 4}> {
        t = MatMul(x, w)
        y = Relu(t)
    }"""


def test_defaults_become_constants(rewriter: Rewriter) -> None:
    model = rewriter.model(TEXT)
    outcome = rewriter.run(model, "freeze-defaults")
    assert [value.name for value in outcome.model.graph.inputs] == ["x"]
    assert outcome.reasons == "'w': no input any more: what follows holds for its default value"
    x = np.array([[1, 1], [0, -1]], np.float32)
    np.testing.assert_array_equal(rewriter.outputs(model, {"x": x})["y"], [[4, 6], [0, 0]])


def test_inputs_without_a_default_stay(rewriter: Rewriter) -> None:
    text = "g (float[n,2] x, float[2,2] w) => (float[n,2] y) { y = MatMul(x, w) }"
    rewriter.golden(text, "freeze-defaults")


@pytest.mark.parametrize("pipeline", ["prune-channels", "factorize{rank=1}", "sparsify{sparsity=0.5}"])
def test_lossy_passes_freeze_first_and_fold_what_that_makes_possible(rewriter: Rewriter, pipeline: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "s": (4,), "b": (4,), "m": (4,), "v": (4,), "u": (2, 4, 1, 1)}
    tensors = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    model = rewriter.model(
        """g (float[n,3,5,5] x) => (float[n,2,3,3] y) {
            c = Conv(x, w)
            d = BatchNormalization(c, s, b, m, v)
            r = Relu(d)
            y = Conv(r, u)
        }""",
        tensors,
    )
    model.graph.inputs.extend([model.graph.initializers["s"], model.graph.initializers["w"]])
    result = graphopt.optimize(model, pipeline)
    assert [value.name for value in result.ir.graph.inputs] == ["x"]
    assert "BatchNormalization" not in [node.op_type for node in result.ir.graph]
