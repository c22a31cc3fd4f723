"""reconstruction.distillation: all weights together come nearer to the original, where gradients can be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.data import open_samples
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.session import Session
from graphopt_passes.reconstruction.distillation import _Course, distill
from graphopt_passes.reconstruction.harm import divergence

MODELS = Path(__file__).parents[2] / "models"


def damaged(model: ir.Model, seed: int = 0) -> ir.Model:
    """All matrices with noise."""
    copy, rng = model.clone(), np.random.default_rng(seed)
    for value in copy.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.ndim == 2 and array.dtype == np.float32:
            noise = rng.normal(size=array.shape) * 0.15 * array.std()
            value.const_value = ir.Tensor((array + noise).astype(np.float32), name=value.name)
    return copy


def evidence(model: ir.Model, samples: np.ndarray) -> Evidence:
    return Evidence(open_samples({"input": samples}, model))


def harm(exact: ir.Model, found: ir.Model, samples: np.ndarray) -> float:
    scores = [Session(one).run({"input": samples})["logits"] for one in (exact, found)]
    return float(divergence(*scores).mean())


@pytest.mark.parametrize("name", ["transformer", "transformer.dynamo", "mlp"])
def test_unseen_samples_gain(name: str) -> None:
    model = graphopt.optimize(MODELS / f"{name}.onnx", pipeline="lossless").ir
    samples = np.load(MODELS / "digits.calib.npz")["input"]
    found = damaged(model)
    before = harm(model, found, samples[150:])
    changed = distill(model, found, evidence(model, samples[:150]), seed=0)
    assert changed
    assert harm(model, found, samples[150:]) < 0.8 * before


def test_many_steps_over_exchanged_boxes_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphopt.optimize(MODELS / "mlp.onnx", pipeline="lossless").ir
    samples = np.load(MODELS / "digits.calib.npz")["input"]
    harms = []
    for epochs in (40, 200):
        monkeypatch.setattr("graphopt_passes.reconstruction.distillation._MIXED_EPOCHS", epochs)
        found = damaged(model)
        distill(model, found, evidence(model, samples[:150]), seed=0)
        harms.append(harm(model, found, samples[150:]))
    assert harms[1] < 0.8 * harms[0]


def test_more_steps_are_for_numbers_and_for_small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tokens, numbers = (_Course.of(256, 1e7, mixed=mixed) for mixed in (False, True))
    assert tokens.steps == 320
    assert numbers.steps == 16 * tokens.steps
    medium = _Course.of(256, 1e9, mixed=True)
    assert tokens.steps < medium.steps < numbers.steps
    assert _Course.of(256, 3e9, mixed=True).steps == _Course.of(256, 3e9, mixed=False).steps


def test_nothing_changes_without_gradients_without_gain_and_where_it_is_excluded() -> None:
    samples = np.load(MODELS / "digits.calib.npz")["input"]
    model = graphopt.optimize(MODELS / "mlp.onnx", pipeline="lossless").ir
    seen = evidence(model, samples[:100])
    assert distill(model, model.clone(), seen) == []
    assert distill(model, damaged(model), seen, fixed=lambda _: True) == []
    first = damaged(model)
    again = damaged(model)
    assert distill(model, first, seen, fixed=lambda node: node.op_type == "Add")
    distill(model, again, seen, fixed=lambda node: node.op_type == "Add")
    for name, value in first.graph.initializers.items():
        other = again.graph.initializers[name].const_value
        assert value.const_value is not None
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())


def test_what_convolutions_follow_has_no_gradient() -> None:
    model = graphopt.optimize(MODELS / "depthwise.onnx", pipeline="lossless").ir
    samples = np.load(MODELS / "digits.calib.npz")["input"]
    found = damaged(model)
    convolutions = {
        node.inputs[1].name: node.inputs[1].const_value
        for node in found.graph
        if node.op_type == "Conv" and node.inputs[1]
    }
    distill(model, found, evidence(model, samples[:100]))
    for name, tensor in convolutions.items():
        assert found.graph.initializers[name or ""].const_value is tensor


def test_a_fixed_batch_and_outputs_without_gradients_are_left_alone() -> None:
    samples = np.load(MODELS / "digits.calib.npz")["input"][:60]
    model = graphopt.optimize(MODELS / "mlp.onnx", pipeline="lossless").ir
    fixed = model.clone()
    fixed.graph.inputs[0].shape = ir.Shape([1, *list(fixed.graph.inputs[0].shape or ())[1:]])
    assert distill(fixed, damaged(fixed), evidence(fixed, samples)) == []
    two = model.clone()
    logits = two.graph.outputs[0]
    extra = ir.Node("", "CumSum", [logits, two.graph.inputs[0]], outputs=[ir.Value(name="other", type=logits.type)])
    axis = ir.Value(name="axis", const_value=ir.Tensor(np.array(1, np.int64), name="axis"))
    two.graph.register_initializer(axis)
    extra.replace_input_with(1, axis)
    two.graph.append(extra)
    two.graph.outputs.append(extra.outputs[0])
    assert distill(two, damaged(two), evidence(two, samples)) == []
