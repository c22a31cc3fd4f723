"""ConvTranspose in `factorize`: replaced, and refitted on what it gets, like any other layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import Rewriter
from onnx import parser

import graphopt
from graphopt.data import open_samples
from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.session import Session
from graphopt_passes.factorization import compress, regression, sequential
from graphopt_passes.factorization.regression import RIDGE
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.transposed import TransposedLinear, layers_of
from graphopt_passes.reconstruction.walk import Walk

SETTINGS = {
    "plain": ("group=1", (4, 3, 3, 2)),
    "strides, pads": ("strides=[2,1], pads=[1,0,0,1], output_padding=[1,0]", (4, 3, 3, 2)),
    "phases that do not meet": ("strides=[2,2]", (4, 2, 2, 2)),
    "groups, dilations": ("group=2, strides=[2,2], dilations=[1,3]", (4, 2, 3, 2)),
}


def decoder(rewriter: Rewriter, kind: str) -> ir.Model:
    settings, extents = SETTINGS[kind]
    rng = np.random.default_rng(0)
    outputs = extents[1] * (2 if "group=2" in settings else 1)
    tensors = {"v": rng.normal(size=(4, 3, 1, 1)), "w": rng.normal(size=extents), "b": rng.normal(size=outputs)}
    text = f"""net (float[n,3,6,5] x) => (float[n,{outputs},?,?] y)
        {{ h = Conv(x, v) y = ConvTranspose<{settings}>(h, w, b) }}"""
    return rewriter.typed(text, {name: array.astype(np.float32) for name, array in tensors.items()})


def hidden(model: ir.Model, x: Array) -> Array:
    """What the ConvTranspose of `decoder` gets."""
    weight = model.graph.initializers["v"].const_value
    assert weight is not None
    found: Array = np.einsum("oc,nchw->nohw", weight.numpy()[:, :, 0, 0], x)
    return found


def spread(h: Array, weight: Array, settings: str) -> Array:
    """onnxruntime's ConvTranspose of h with a weight."""
    dims = ",".join(map(str, h.shape)), ",".join(map(str, weight.shape))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[{dims[0]}] h, float[{dims[1]}] w) => (float[a,b,c,d] y) {{ y = ConvTranspose<{settings}>(h, w) }}"""
    found: Array = Session(parser.parse_model(text)).run({"h": h.astype(np.float32), "w": weight})["y"]
    return found


def best(h: Array, targets: Array, weight: Array, settings: str) -> tuple[Array, Array]:
    """By `lstsq` on the answers to single elements of the weight, with a ridge towards `weight`: the weight and bias."""
    groups = 2 if "group=2" in settings else 1
    inputs, outputs = len(weight) // groups, weight.shape[1]
    found, bias = weight.astype(np.float64), np.zeros(groups * outputs)
    for group in range(groups):
        own = slice(group * inputs, (group + 1) * inputs)
        columns = []
        for index in np.ndindex(inputs, *weight.shape[2:]):
            single = np.zeros_like(weight)
            single[own, 0][index] = 1
            columns.append(spread(h, single, settings)[:, group * outputs].reshape(-1))
        design = np.stack(columns, 1).astype(np.float64)
        rows, width = design.shape
        penalty = np.sqrt(RIDGE * design.var(axis=0).mean() * rows)
        for channel in range(outputs):
            prior = weight[own, channel].reshape(-1)
            wanted = targets[:, group * outputs + channel].reshape(-1)
            left = np.block([[design, np.ones((rows, 1))], [penalty * np.eye(width), np.zeros((width, 1))]])
            solved = np.linalg.lstsq(left, np.concatenate([wanted, penalty * prior]), rcond=None)[0]
            found[own, channel] = solved[:-1].reshape(inputs, *weight.shape[2:])
            bias[group * outputs + channel] = solved[-1]
    return found, bias


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_refit_is_the_regression_of_all_outputs(rewriter: Rewriter, kind: str) -> None:
    original, compressed = decoder(rewriter, kind), decoder(rewriter, kind)
    x = np.random.default_rng(1).normal(size=(12, 3, 6, 5)).astype(np.float32) + 1
    first, second = layers_of(compressed.graph)
    assert isinstance(second, TransposedLinear)
    damaged = first.weight()
    damaged[:, :, 0] *= 0.5
    first.store(damaged, None, FreshNames(compressed))
    targets = Session(original).run({"x": x})["y"]
    weight = compressed.graph.initializers["w"].const_value
    assert weight is not None
    expected, bias = best(hidden(compressed, x), targets, weight.numpy(), SETTINGS[kind][0])
    with Walk(original, compressed, Evidence(open_samples({"x": x}, original))) as walk:
        walk.advance(first.key)
        touched = sequential.apply(walk, [second], {}, FreshNames(compressed))
    assert touched == [second.node]
    (layer,) = layers_of([second.node])
    found = layer.node.inputs[1]
    assert found is not None
    assert found.const_value is not None
    np.testing.assert_allclose(found.const_value.numpy(), expected, atol=1e-4)
    own = layer.bias()
    assert own is not None
    np.testing.assert_allclose(own, bias, atol=1e-3)


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,6,6] x) => (float[N,4,24,24] y)
{
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    a = Relu(c)
    t = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(a, w2, b1)
    u = Relu(t)
    y = ConvTranspose<strides=[2,2], group=2>(u, w3)
}
"""
SHAPES = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 4, 4), "w3": (16, 2, 2, 2)}


def network(dtype: Any = np.float32) -> onnx.ModelProto:
    """Weights with decaying spectra over their channels."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(NETWORK.replace("float[", "float16[") if dtype == np.float16 else NETWORK)
    for name, shape in SHAPES.items():
        array = rng.normal(size=shape)
        if len(shape) == 4:
            left, values, right = np.linalg.svd(array.reshape(shape[0], -1), full_matrices=False)
            decay = np.exp(-np.arange(len(values)) / 4)
            array = ((left * values * decay) @ right).reshape(shape) / 2
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(dtype), name))
    return model


def samples(count: int, seed: int = 1, dtype: Any = np.float32) -> dict[str, Array]:
    smooth = np.cumsum(np.random.default_rng(seed).normal(size=(count, 3, 6, 6)), axis=-1)
    return {"x": (smooth / 3 + 0.5).astype(dtype)}


def error(result: graphopt.Result, dtype: Any = np.float32) -> float:
    """Relative error of the outputs on samples that nothing was fitted to."""
    feeds = samples(16, 2, dtype)
    exact, found = (Session(one).run(feeds)["y"].astype(np.float64) for one in (network(dtype), result.model))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def run(pipeline: str, data: Any = None, dtype: Any = np.float32) -> graphopt.Result:
    return graphopt.optimize(network(dtype), pipeline=pipeline, data=data, verify="full")


def remarks(result: graphopt.Result) -> str:
    return "\n".join(str(remark) for one in result.report.passes for remark in one.remarks)


@pytest.mark.parametrize("scheme", ["input", "channel", "spatial", "tucker"])
def test_refits_come_nearer_than_weights_alone(scheme: str) -> None:
    text = f"factorize{{rank=0.3,schemes={scheme},align=1,prefer=macs}}"
    alone, refitted = run(text), run(text, samples(24))
    assert f"ConvTranspose 't': {scheme}" in remarks(refitted).replace("horizontal", "spatial")
    assert error(refitted) < 0.8 * error(alone)


def test_a_budget_is_kept_and_grouped_ones_are_refitted_in_their_place() -> None:
    result = run("factorize{macs=0.5,align=1,prefer=macs}", samples(24))
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    assert error(result) < 0.2
    kept = {one.name: onnx.numpy_helper.to_array(one) for one in result.model.graph.initializer}
    (last,) = [node for node in result.model.graph.node if node.output[0] == "y"]
    assert last.op_type == "ConvTranspose"
    before = onnx.numpy_helper.to_array(network().graph.initializer[3])
    assert kept[last.input[1]].shape != before.shape or not np.array_equal(kept[last.input[1]], before)


def test_decoupling_serves_transposed_convolutions_too() -> None:
    result = run("separate-depthwise{branches=2,prefer=macs}", samples(24))
    groups = [
        onnx.helper.get_attribute_value(one)
        for node in result.model.graph.node
        for one in node.attribute
        if node.op_type == "ConvTranspose" and one.name == "group"
    ]
    assert 16 in groups
    assert np.isfinite(error(result))


def test_float16_stays_float16() -> None:
    result = run("factorize{macs=0.6,align=1,prefer=macs}", samples(24, dtype=np.float16), np.float16)
    assert {one.data_type for one in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert error(result, np.float16) < 0.2


def test_fewer_positions_than_inputs_give_finite_weights_and_a_remark() -> None:
    result = run("factorize{rank=0.5,schemes=input,align=1,prefer=macs}", samples(1))
    assert "ConvTranspose 't': fewer calibration rows (144) than inputs (256)" in remarks(result)
    assert np.isfinite(error(result))


def test_layers_too_wide_for_moments_fit_their_weights_and_move_their_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (regression, compress):
        monkeypatch.setattr(module, "MOST_INPUTS", 100)
    text = "factorize{rank=0.3,schemes=input,align=1,prefer=macs}"
    wide, alone = run(text, samples(24)), run(text)
    assert "ConvTranspose 't': more than 100 inputs: parts fit its weights alone" in remarks(wide)
    assert error(wide) < 0.95 * error(alone)
