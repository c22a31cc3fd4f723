"""Widths that make layers slower go back; times are made up here, but where a test is about measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

import graphopt
from graphopt.pipeline.evidence import Evidence
from graphopt.pricing import DeviceProfile
from graphopt.runtime.latency import Latency
from graphopt_passes.reconstruction import stopwatch

TEXT = """<ir_version: 8, opset_import: ["": 17]>
net (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    a1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(a1, w2)
    a2 = Relu(c2)
    y = Conv<pads=[1,1,1,1]>(a2, w3)
}"""
WIDTH, BLOCK = 32, 16
DATA = {"x": np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)}


def network() -> onnx.ModelProto:
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (WIDTH, 3, 3, 3)), ("w2", (WIDTH, WIDTH, 3, 3)), ("w3", (4, WIDTH, 3, 3))):
        array = rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(9 * shape[1]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def widths(model: ir.Model) -> dict[str, int]:
    """Output channels of each convolution, by its output's name."""
    shapes = {node.outputs[0].name or "": node.inputs[1].shape for node in model.graph if node.op_type == "Conv"}  # type: ignore[union-attr]
    return {name: int(shape[0]) for name, shape in shapes.items() if shape is not None and isinstance(shape[0], int)}


Cost = Callable[[str, int], float]


def timed(monkeypatch: pytest.MonkeyPatch, cost: Cost) -> list[float]:
    """Let each convolution take what `cost` says of its name and width; the ratios of the models that raced."""
    raced: list[float] = []

    def seconds(model: ir.Model) -> float:
        return sum(cost(name, width) for name, width in widths(model).items())

    def race(original: ir.Model, result: ir.Model, evidence: Evidence) -> Latency:
        ratio = seconds(result) / seconds(original)
        raced.append(ratio)
        return Latency(1.0, ratio, ratio, (ratio - 0.01, ratio + 0.01), 9, 1)

    def kernel_times(self: Evidence, models: Sequence[ir.Model], *, seconds: float) -> list[dict[str, Any]]:
        return [
            {
                f"{node.name}_nchwc": np.full(
                    9, cost(node.outputs[0].name or "", widths(model)[node.outputs[0].name or ""])
                )
                for node in model.graph
                if node.op_type == "Conv"
            }
            for model in models
        ]

    monkeypatch.setattr(stopwatch, "clock", lambda context: context.evidence if context.profile is None else None)
    monkeypatch.setattr(stopwatch, "race", race)
    monkeypatch.setattr("graphopt.pricing.device.this_machine", lambda: DeviceProfile(block=BLOCK))
    monkeypatch.setattr(Evidence, "kernel_times", kernel_times)
    return raced


def run(options: str, **more: Any) -> graphopt.Result:
    return graphopt.optimize(network(), pipeline=f"prune-channels{{{options}}}", data=DATA, **more)


def remarks(result: graphopt.Result) -> str:
    return "\n".join(f"{one.where}: {one.what}" for record in result.report.passes for one in record.remarks)


def full_blocks(_: str, width: int) -> float:
    return float(width) if width % BLOCK == 0 else 3.0 * width


def test_half_full_blocks_that_are_slower_go_up_to_full_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    raced = timed(monkeypatch, full_blocks)
    result = run("macs=0.6")
    assert raced[0] > 1
    assert raced[-1] < 1
    assert sorted(widths(result.ir)[name] for name in ("c1", "c2")) == [BLOCK, WIDTH]
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert "slower on this machine" in remarks(result)
    assert not any("slower" in warning for warning in result.warnings)


def test_a_group_that_is_slower_at_any_width_keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda name, width: 1000.0 if name == "c1" and width < WIDTH else float(width))
    result = run("macs=0.8")
    found = widths(result.ir)
    assert found["c1"] == WIDTH
    assert found["c2"] < WIDTH
    assert result.report.after.macs <= 0.8 * result.report.before.macs


def test_a_budget_that_needs_slow_widths_is_kept_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda _, width: 50.0 if width < WIDTH else float(width))
    result = run("macs=0.3")
    assert result.report.after.macs <= 0.3 * result.report.before.macs
    assert any("slower on this machine" in warning for warning in result.warnings)


def test_widths_that_were_asked_for_stay_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, full_blocks)
    result = run("macs=0.6,align=1")
    assert 0.57 <= result.report.after.macs / result.report.before.macs <= 0.6
    assert any("slower on this machine" in warning for warning in result.warnings)
    assert "slower" not in remarks(result)


def test_what_is_faster_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raced = timed(monkeypatch, lambda _, width: float(width))
    result = run("macs=0.7")
    assert len(raced) == 1
    assert "slower" not in remarks(result)


def test_widths_for_another_device_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    raced = timed(monkeypatch, full_blocks)
    run("macs=0.7", device=DeviceProfile())
    assert not raced


@pytest.mark.stopwatch
def test_groups_are_timed_by_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On real kernels: where the race says slower, each group has a time, and widths go back."""
    monkeypatch.setattr(stopwatch, "race", lambda original, result, evidence: Latency(1.0, 2.0, 2.0, (1.9, 2.1), 9, 1))
    result = run("macs=0.9")
    assert "slower on this machine" in remarks(result)
