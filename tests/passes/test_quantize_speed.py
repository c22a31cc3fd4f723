"""quantize{prefer=fastest} with made-up times, so that what it decides is known; the real clock is asked for its form only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from test_quantize import operators, samples, small_model

import graphopt
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.latency import summarize

pytestmark = pytest.mark.stopwatch

SLOW = 4.0


class Clock:
    """Times of models whose Conv with four inputs takes `slow` on integers, and 2 in float; others take `fast` and 1.5."""

    def __init__(self, slow: float = SLOW, whole: float | None = None, fast: float = 1.0) -> None:
        self.slow, self.whole, self.fast, self.asked = slow, whole, fast, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        monkeypatch.setattr("graphopt_passes.quantize.platform.machine", lambda: "x86_64")
        monkeypatch.setattr(Evidence, "kernel_times", lambda _, models, **__: [self.kernels(model) for model in models])
        monkeypatch.setattr(Evidence, "race", lambda _, models, **__: self.race(models))
        return self

    def kernels(self, model: ir.Model) -> dict[str, np.ndarray]:
        self.asked += 1
        return {node.name or "": np.full(9, time) for node in model.graph if (time := self.time(node))}

    def race(self, models: Sequence[ir.Model]) -> list[tuple[float, ...]]:
        totals = [sum(map(self.time, model.graph)) for model in models]
        if self.whole is not None:
            totals[1:] = [self.whole * totals[0]] * (len(totals) - 1)
        return [tuple(totals)] * 9

    def time(self, node: ir.Node) -> float:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return 0.0  # fused
        weight = node.inputs[1] if node.op_type in ("Conv", "Gemm") else None
        if weight is None:
            return 0.1
        on_integers = weight.producer() is not None
        if weight.shape is not None and list(weight.shape.dims) == [4, 4, 1, 1]:
            return self.slow if on_integers else 2.0
        return self.fast if on_integers else 1.5


def run(**options: Any) -> graphopt.Result:
    return graphopt.optimize(small_model(), "quantize", data=samples(), **options)


def floats(result: graphopt.Result) -> list[str]:
    """Outputs of the layers whose weights are still float."""
    weights = ((node, node.inputs[1]) for node in result.ir.graph if node.op_type in ("Conv", "Gemm"))
    return [node.outputs[0].name or "" for node, weight in weights if weight is not None and weight.producer() is None]


def test_what_is_slow_on_integers_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock().install(monkeypatch)
    result = run()
    assert floats(result) == ["c2"]
    record = result.report.passes[-1]
    said = next(remark for remark in record.remarks if "faster here" in remark.what)
    assert "c2" in said.where
    assert "4000.000 ms" in said.what
    assert record.facts["speed"]["reverted"] == ["c2"]
    assert record.facts["speed"]["against_integer"]["ratio"] < 1
    assert not [warning for warning in result.warnings if "slower" in warning]


def test_nothing_is_reverted_where_integers_win(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(slow=1.5).install(monkeypatch)
    assert floats(run()) == []


@pytest.mark.parametrize(("fast", "reverted"), [(1.3, []), (1.48, ["c2"])])
def test_a_small_gain_counts_only_against_what_is_slower_than_float(
    monkeypatch: pytest.MonkeyPatch, fast: float, reverted: list[str]
) -> None:
    """Float takes 5.5, integers 5.24 or 5.6; with c2 in float they take 2.5 % less."""
    Clock(slow=2.14, fast=fast).install(monkeypatch)
    assert floats(run()) == reverted


def test_nothing_is_reverted_that_does_not_help_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(whole=0.9).install(monkeypatch)
    assert floats(run()) == []


@pytest.mark.parametrize("whole", [1.3, 1.01])
def test_a_model_that_would_be_slower_than_float_stays_float(monkeypatch: pytest.MonkeyPatch, whole: float) -> None:
    Clock(whole=whole).install(monkeypatch)
    result = run()
    assert floats(result) == ["c1", "c2", "y"]
    assert any("the model stays float" in warning for warning in result.warnings)
    record = result.report.passes[-1]
    assert any(f"the fastest took {whole:.2f} times as long" in remark.what for remark in record.remarks)
    assert record.facts["speed"]["against_float"]["ratio"] == 1


def test_what_may_be_slower_than_float_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers take 0.98 in the median, but 1.2 in many rounds."""
    clock = Clock().install(monkeypatch)
    asked: list[int] = []

    def race(_: Evidence, models: Sequence[ir.Model], **__: Any) -> list[tuple[float, ...]]:
        asked.append(len(models))
        return [(1.0, *[0.98 if number % 2 else 1.2] * (len(models) - 1)) for number in (*range(20), 1)]

    monkeypatch.setattr(Evidence, "race", race)
    assert floats(run()) == ["c1", "c2", "y"]
    assert clock.asked > 0
    assert len(asked) == 3  # more rounds might have told


def test_of_what_is_no_slower_than_float_integers_need_not_be_beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on integers takes as long as float but for doubt; with c2 in float there is none."""
    Clock().install(monkeypatch)

    def race(_: Evidence, models: Sequence[ir.Model], **__: Any) -> list[tuple[float, ...]]:
        integer = [1.0, 1.1]
        return [(1.0, integer[number % 2], *[0.99] * (len(models) - 2)) for number in range(31)]

    monkeypatch.setattr(Evidence, "race", race)
    assert floats(run()) == ["c2"]


def test_no_two_groups_share_a_scale_while_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime leaves conversions out between values of one scale, which the final model does not have."""
    scales: list[list[float]] = []

    def race(_: Evidence, models: Sequence[ir.Model], **__: Any) -> list[tuple[float, ...]]:
        parameters = {node.inputs[1] for node in models[1].graph if node.op_type == "QuantizeLinear"}
        tensors = [value.const_value for value in parameters if value is not None]
        scales.append([float(tensor.numpy()) for tensor in tensors if tensor is not None])
        return [(1.0,) * len(models)] * 9

    Clock().install(monkeypatch)
    monkeypatch.setattr(Evidence, "race", race)
    run()
    (found,) = scales
    assert len(found) > 2
    assert len(set(found)) == len(found)
    assert max(found) <= 1 / 255


def test_a_model_that_is_faster_in_float_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(fast=5.0).install(monkeypatch)
    result = run()
    assert floats(result) == ["c1", "c2", "y"]
    assert any("the model stays float" in warning for warning in result.warnings)
    assert "QuantizeLinear" not in operators(result.model)


def test_integers_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock().install(monkeypatch)
    result = graphopt.optimize(small_model(), "quantize{prefer=integer}", data=samples())
    assert floats(result) == []
    assert clock.asked == 0
    assert "speed" not in result.report.passes[-1].facts


def dynamic_run(monkeypatch: pytest.MonkeyPatch, wide: float, narrow: float) -> graphopt.Result:
    """Three products of two shapes, which take 1 each in float and `wide` or `narrow` on integers; all else takes 1 in all."""
    text = """<ir_version: 8, opset_import: ["" : 13]>
    net (float[N,5,4] x) => (float[N,5,4] y) <float[4,8] w1, float[8,4] w2, float[4,8] w3, float[8,4] w4> {
        a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = MatMul(c, w3) e = Relu(d) y = MatMul(e, w4)
    }"""
    weights = {f"w{i}": np.full((4, 8) if i % 2 else (8, 4), 0.1, np.float32) for i in range(1, 5)}

    def time(node: ir.Node) -> float:
        if node.op_type not in ("MatMul", "MatMulInteger"):
            return 0.0
        weight = node.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        return 1.0 if node.op_type == "MatMul" else wide if weight.shape[0] == 4 else narrow

    def race(_: Evidence, models: Sequence[ir.Model], **__: Any) -> list[tuple[float, ...]]:
        return [tuple(1 + sum(map(time, model.graph)) for model in models)] * 9

    Clock().install(monkeypatch)
    monkeypatch.setattr(Evidence, "race", race)
    data = {"x": np.random.default_rng(0).normal(size=(40, 5, 4)).astype(np.float32)}
    return graphopt.optimize(small_model(text, **weights), "quantize{mode=dynamic,smooth=never}", data=data)


@pytest.mark.parametrize(
    ("wide", "narrow", "on_integers"),
    [
        pytest.param(0.5, 2.0, 2, id="slow shapes stay float"),
        pytest.param(0.5, 1.03, 4, id="not for a little, where integers win as a whole"),
        pytest.param(1.0, 1.03, 2, id="but for a little where they lose"),
        pytest.param(0.5, 0.5, 4, id="all are faster"),
        pytest.param(2.0, 2.0, 0, id="none is"),
    ],
)
def test_shapes_that_are_slow_with_dynamic_ranges(
    monkeypatch: pytest.MonkeyPatch, wide: float, narrow: float, on_integers: int
) -> None:
    result = dynamic_run(monkeypatch, wide, narrow)
    assert operators(result.model).count("MatMulInteger") == on_integers
    said = [str(remark) for remark in result.report.passes[-1].remarks]
    assert any("products of this shape" in remark for remark in said) is (on_integers < 4)
    assert any("the model stays float" in warning for warning in result.warnings) is (on_integers == 0)


@pytest.mark.parametrize(("whole", "is_warned"), [(1.3, True), (0.9, False)])
def test_dynamic_models_are_timed_once_more_in_the_end(
    monkeypatch: pytest.MonkeyPatch, whole: float, is_warned: bool
) -> None:
    """After smoothing, which may put a Mul in front of products."""
    Clock(whole=0.9).install(monkeypatch)
    final = summarize([(1.0, whole)] * 9, 1)
    monkeypatch.setattr("graphopt_passes.quantization.dynamic_speed.race", lambda *_: final)
    result = graphopt.optimize(small_model(), "quantize{mode=dynamic,smooth=never}", data=samples())
    assert any("slower than the float model" in warning for warning in result.warnings) is is_warned


def test_shapes_of_products_race_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: list[int] = []
    timed = Clock.race

    def race(clock: Clock, models: Sequence[ir.Model]) -> list[tuple[float, ...]]:
        fields.append(len(models))
        return timed(clock, models)

    monkeypatch.setattr(Clock, "race", race)
    Clock().install(monkeypatch)
    graphopt.optimize(small_model(), "quantize{mode=dynamic,smooth=never}", data=samples())
    shapes = 1  # one Gemm; Conv is not quantized dynamically
    assert fields[0] == 1 + shapes


@pytest.mark.parametrize("target", ["qnn", "tensorrt", "ort-arm"])
def test_other_machines_targets_are_not_measured(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    clock = Clock().install(monkeypatch)
    graphopt.optimize(small_model(), f"quantize{{target={target}}}", data=samples())
    assert clock.asked == 0


def test_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt_passes.quantize.platform.machine", lambda: "x86_64")
    speed = run().report.passes[-1].facts["speed"]
    assert speed["against_float"]["ratio"] > 0
    assert speed["against_float"]["rounds"] >= 7
    assert operators(run().model).count("Conv") == 2


@pytest.mark.parametrize(
    ("size", "prefer", "is_float"), [(5, "fastest", True), (3, "fastest", False), (5, "integer", False)]
)
def test_what_is_known_to_be_slow_where_it_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, size: int, prefer: str, is_float: bool
) -> None:
    monkeypatch.setattr("graphopt_passes.quantize.platform.machine", lambda: "riscv64")
    text = """<ir_version: 8, opset_import: ["" : 13]>
    net (float[N,2,6,6] x) => (float[N,3] y) <float[4,2,3,3] w1, float[4,1,5,5] w2, float[3,4] w3> {
        c1 = Conv(x, w1) c2 = Conv<group=4, auto_pad="SAME_UPPER">(c1, w2) p = GlobalAveragePool(c2) f = Flatten(p)
        y = Gemm<transB=1>(f, w3)
    }""".replace("5,5]", f"{size},{size}]")
    weights = np.random.default_rng(1).normal(size=(4, 1, size, size)).astype(np.float32)
    model = small_model(text, w2=weights)
    result = graphopt.optimize(model, f"quantize{{prefer={prefer}}}", data=samples())
    assert ("c2" in floats(result)) is is_float
    said = [str(remark) for remark in result.report.passes[-1].remarks]
    assert any("faster so on ort-x86" in remark for remark in said) is is_float
