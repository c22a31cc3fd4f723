"""quantize{ranges=auto} on few samples: nothing is clipped that was seen."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from test_quantize import small_model

import graphopt

TEXT = """<ir_version: 8, opset_import: ["" : 13]>
net (float[N,2,64,64] x) => (float[N,3] y) <float[4,2,3,3] w1, float[4,4,1,1] w2, float[3,4] w3> {
    c1 = Conv(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) p = GlobalAveragePool(c2) f = Flatten(p)
    y = Gemm<transB=1>(f, w3)
}"""


def constants(ranges: str, count: int) -> dict[str, bytes]:
    """All constants of the model quantized on samples with long tails, which the least squared error cuts."""
    x = np.random.default_rng(0).standard_t(3, size=(count, 2, 64, 64)).astype(np.float32)
    pipeline = f"quantize{{prefer=integer,sensitivity=false,ranges={ranges}}}"
    graph = graphopt.optimize(small_model(TEXT), pipeline, data={"x": x}).model.graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}


@pytest.mark.parametrize(("count", "is_whole"), [(15, True), (16, False)])
def test_the_whole_range_of_few_samples_counts(count: int, is_whole: bool) -> None:
    assert constants("mse", count) != constants("minmax", count)
    assert (constants("auto", count) == constants("minmax", count)) is is_whole
