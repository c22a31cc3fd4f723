from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.integrations import graphsurgeon
from graphopt.runtime.session import Session


def conv_bn() -> gs.Graph:
    """x -> Conv -> BatchNormalization -> Identity -> y, built with GraphSurgeon's own API."""
    rng = np.random.default_rng(0)
    x = gs.Variable("x", np.float32, ("N", 3, 8, 8))
    c, b = gs.Variable("c"), gs.Variable("b")
    y = gs.Variable("y", np.float32, ("N", 4, 6, 6))
    weight = gs.Constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    statistics = [gs.Constant(name, rng.uniform(0.5, 2, 4).astype(np.float32)) for name in ("s", "o", "m", "v")]
    nodes = [
        gs.Node("Conv", "conv", {"kernel_shape": [3, 3]}, [x, weight], [c]),
        gs.Node("BatchNormalization", "bn", {}, [c, *statistics], [b]),
        gs.Node("Identity", "last", {}, [b], [y]),
    ]
    return gs.Graph(nodes, [x], [y], name="net", opset=17)


def run(graph: gs.Graph) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    outputs = Session(gs.export_onnx(graph)).run({"x": x})
    return np.asarray(outputs["y"])


def test_graph_to_graph() -> None:
    original = conv_bn()
    before = run(original)
    optimized = graphsurgeon.optimize(original)
    assert isinstance(optimized, gs.Graph)
    assert [node.op for node in optimized.nodes] == ["Conv"]
    assert [node.op for node in original.nodes] == ["Conv", "BatchNormalization", "Identity"]
    assert ([v.name for v in optimized.inputs], [v.name for v in optimized.outputs]) == (["x"], ["y"])
    np.testing.assert_allclose(run(optimized), before, rtol=1e-4, atol=1e-4)


def test_pipeline_and_options_are_passed_on() -> None:
    optimized = graphsurgeon.optimize(conv_bn(), "eliminate-identity", check=False, provenance=False)
    assert [node.op for node in optimized.nodes] == ["Conv", "BatchNormalization"]
    onnx.checker.check_model(gs.export_onnx(optimized))
