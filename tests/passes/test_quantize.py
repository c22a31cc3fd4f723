"""The pass `quantize`, through the API, on the project's own models and on small graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from quantized_models import outputs, sqnr

import graphopt
from graphopt.errors import DataError
from graphopt.lift import lift
from graphopt_passes.quantization.placement import place
from graphopt_passes.quantization.targets import TARGETS

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits.calib.npz"

SMALL = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N,2,6,6] x) => (float[N,3] y)
<float[4,2,3,3] w1, float[4] b1, float[4,4,1,1] w2, float[3,4] w3, float low, float high>
{
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    a1 = Clip(c1, low, high)
    c2 = Conv(a1, w2)
    s = Add(c2, a1)
    r = Relu(s)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3)
}
"""


def small_model(text: str = SMALL, **arrays: np.ndarray) -> onnx.ModelProto:
    """`text` with seeded weights where it leaves them out."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(text)
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 4, 1, 1), "w3": (3, 4)}
    values: dict[str, np.ndarray] = {
        name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }
    values.update(low=np.array(0, np.float32), high=np.array(6, np.float32))
    values.update(arrays)
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    return model


def samples(count: int = 32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(0, 1, (count, 2, 6, 6)).astype(np.float32)}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def fidelity(result: graphopt.Result) -> float:
    return float(json.loads(result.report.to_json())["fidelity"]["sqnr_db"])


def quantized(model: Any, pipeline: str = "quantize", **options: Any) -> graphopt.Result:
    options = {"data": samples(), "eval_data": samples(16), **options}
    return graphopt.optimize(model, pipeline, **options)


@pytest.mark.parametrize("network", ["residual", "depthwise.dynamo", "shuffle", "mlp"])
def test_all_work_runs_on_integers(network: str) -> None:
    result = quantized(MODELS / f"{network}.onnx", data=DIGITS, eval_data=DIGITS)
    assert result.report.integer is not None
    share = result.report.integer.share
    assert share.macs_integer == share.macs_total
    assert fidelity(result) > 25


def test_a_second_run_changes_nothing() -> None:
    once = quantized(small_model()).model
    again = quantized(once)
    assert not again.report.passes[-1].modified
    assert operators(again.model) == operators(once)


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (quantized(small_model()).model.SerializeToString() for _ in range(2))
    assert first == second


def test_weights_are_per_channel_and_biases_in_units_of_the_sums() -> None:
    model = quantized(small_model()).model
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    dequantized = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    data, weight, bias = (dequantized[name] for name in conv.input)
    assert constants[weight.input[0]].dtype == np.int8
    assert constants[weight.input[1]].shape == (4,)
    assert constants[bias.input[0]].dtype == np.int32
    np.testing.assert_allclose(
        constants[bias.input[1]], constants[data.input[1]] * constants[weight.input[1]], rtol=1e-6
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_a_model_that_runs(target: str) -> None:
    result = quantized(small_model(), f"quantize{{target={target}}}")
    exact = outputs(lift(small_model()).model, samples(16))[0]
    # as it is written: what other runtimes saturate is not known here
    assert sqnr(exact, outputs(result.ir, samples(16), optimize=False)[0]) > 25
    assert "QuantizeLinear" in operators(result.model)


def test_sixteen_bits_lose_less() -> None:
    wide = quantized(small_model(), "quantize{mode=static,activations=16}")
    assert fidelity(wide) > fidelity(quantized(small_model())) + 3
    assert wide.model.opset_import[0].version >= 21


def test_a_large_bias_does_not_overflow() -> None:
    weight = np.full((4, 2, 3, 3), 1e-9, np.float32)
    bias = np.array([100, -100, 1, 0], np.float32)
    assert fidelity(quantized(small_model(w1=weight, b1=bias))) > 25


def test_placement_absorbs_activations_and_keeps_the_last_result() -> None:
    graph = lift(small_model()).model.graph
    found = place(graph, TARGETS["ort-x86"])
    assert [layer.key for layer in found.layers] == ["c1", "c2", "y"]
    assert sorted(value.name or "" for value in found.groups) == ["a1", "c2", "f", "p", "r", "x"]
    assert found.groups.root(_value(found.groups, "p")) is found.groups.root(_value(found.groups, "f"))


def _value(groups: Any, name: str) -> Any:
    return next(value for value in groups if value.name == name)


def test_heads_stay_float_unless_asked() -> None:
    text = SMALL.replace("float[N,3] y", "float[N,4,6,6] c2").split("    s = Add")[0] + "}"
    graph = lift(small_model(text)).model.graph
    assert [layer.key for layer in place(graph, TARGETS["ort-x86"]).layers] == ["c1"]
    assert [layer.key for layer in place(graph, TARGETS["ort-x86"], keep_heads=False).layers] == ["c1", "c2"]


def test_excluded_nodes_stay_float() -> None:
    result = quantized(small_model(), "quantize{keep=Gemm}")
    gemm = next(node for node in result.model.graph.node if node.op_type == "Gemm")
    assert gemm.input[1] == "w3"


def test_overridable_initializers_are_frozen_with_a_remark() -> None:
    model = small_model()
    model.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, 1, t.dims) for t in model.graph.initializer[:4])
    result = quantized(model)
    assert [value.name for value in result.model.graph.input] == ["x"]
    said = [remark.what for record in result.report.passes for remark in record.remarks]
    assert any("default value" in what for what in said)


def test_nothing_to_quantize_is_no_error() -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> net (float[N,2,6,6] x) => (float[N,2,6,6] y) { y = Tanh(x) }'
    result = quantized(parser.parse_model(text))
    assert operators(result.model) == ["Tanh"]


def test_without_data_it_says_what_to_give() -> None:
    with pytest.raises(DataError, match=r"-d FILE\.npz"):
        graphopt.optimize(small_model(), "quantize")


def test_products_of_sequences_are_quantized_dynamically() -> None:
    result = graphopt.optimize(MODELS / "transformer.onnx", "quantize", eval_data=DIGITS)
    assert "DynamicQuantizeLinear" in operators(result.model)
    assert fidelity(result) > 20
