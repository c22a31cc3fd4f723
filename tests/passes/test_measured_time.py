"""Replacements that gain no time are given up; times are made up here, but where a test is about measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.pricing import DeviceProfile
from graphopt.runtime.latency import Latency
from graphopt_passes.factorization import racing
from graphopt_passes.factorization.candidates import Candidate
from graphopt_passes.factorization.racing import Comparison
from graphopt_passes.reconstruction import stopwatch

TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[1,32,12,12] x) => (float[1,32,12,12] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    a1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(a1, w2)
    a2 = Relu(c2)
    y = Conv<pads=[1,1,1,1]>(a2, w3)
}"""
DATA = {"x": np.random.default_rng(1).normal(size=(6, 32, 12, 12)).astype(np.float32)}


def network() -> onnx.ModelProto:
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name in ("w1", "w2", "w3"):
        low = (rng.normal(size=(32, 8)) @ rng.normal(size=(8, 288))).reshape(32, 32, 3, 3) / 40
        model.graph.initializer.append(onnx.numpy_helper.from_array(low.astype(np.float32), name))
    return model


def latency(ratio: float) -> Latency:
    return Latency(1.0, ratio, ratio, (ratio - 0.01, ratio + 0.01), 9, 1)


def measured(monkeypatch: pytest.MonkeyPatch, layers: Mapping[str, float], whole: float = 0.9) -> list[set[str]]:
    """Let each layer take so much of its time, and remember what was tried."""
    tried: list[set[str]] = []

    def compare(model: Any, replaced: Mapping[str, Candidate], evidence: Any) -> Comparison:
        tried.append(set(replaced))
        return Comparison(latency(whole), {key: latency(layers.get(key, 0.8)) for key in replaced})

    monkeypatch.setattr(stopwatch, "clock", lambda context: context.evidence if context.profile is None else None)
    monkeypatch.setattr(racing, "compare", compare)
    return tried


def run(pipeline: str, **options: Any) -> graphopt.Result:
    return graphopt.optimize(network(), pipeline=pipeline, data=DATA, **options)


def remarks(result: graphopt.Result, name: str) -> str:
    (record,) = (one for one in result.report.passes if one.name == name)
    return "\n".join(f"{one.where}: {one.what}" for one in record.remarks)


def test_a_layer_that_is_slower_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, {"c2": 1.1})
    result = run("factorize{schemes=channel,prefer=latency}")
    assert "c2" in tried[0]
    assert "c2" not in tried[-1]
    said = remarks(result, "factorize")
    assert "measured x1.10 of its time" in said
    assert "x0.80 measured" in said
    assert "measured time x0.90 of the original's (0.89 to 0.91)" in said


def test_of_a_model_that_is_slower_the_layers_that_gain_least_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, {"c1": 0.7, "c2": 0.8, "y": 0.9}, whole=1.2)
    result = run("factorize{schemes=channel}")
    assert tried == [{"c1", "c2", "y"}, {"c1"}]
    assert result.report.after.macs == result.report.before.macs


def test_a_budget_that_needs_slow_layers_is_kept_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {"c1": 1.1, "c2": 1.1, "y": 1.1}, whole=1.1)
    result = run("factorize{schemes=channel,macs=0.5}")
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    assert any("slower on this machine" in warning for warning in result.report.warnings)


def test_for_another_device_or_for_macs_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, {})
    run("factorize{schemes=channel}", device=DeviceProfile())
    run("factorize{schemes=channel,prefer=macs}")
    assert not tried


@pytest.mark.stopwatch
def test_layers_are_timed_by_their_kernels() -> None:
    result = run("factorize{schemes=channel,macs=0.6}")
    (record,) = (one for one in result.report.passes if one.name == "factorize")
    time = record.facts["time"]
    assert set(time["layers"]) <= {"c1", "c2", "y"}
    assert time["layers"]
    assert all(one["ratio"] > 0 for one in time["layers"].values())
    assert time["ratio"] > 0


@pytest.mark.stopwatch
def test_pruning_says_what_it_gains() -> None:
    result = run("prune-channels{macs=0.5}")
    (record,) = (one for one in result.report.passes if one.name == "prune-channels")
    assert record.facts["time"]["ratio"] > 0
    assert "measured time x" in remarks(result, "prune-channels")


def test_a_pruned_model_that_is_slower_brings_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "clock", lambda context: context.evidence)
    monkeypatch.setattr(stopwatch, "race", lambda original, result, evidence: latency(1.3))
    result = run("prune-channels{macs=0.5,align=4}")
    assert any("slower on this machine" in warning and "align=4" in warning for warning in result.report.warnings)
