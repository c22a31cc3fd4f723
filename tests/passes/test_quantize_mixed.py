"""quantize: the harm of single layers, and leaving the worst of them in float, by number, by a bound, or by the gate."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from quantized_models import outputs, sqnr
from test_quantize import samples, small_model
from test_quantize_speed import floats

import graphopt
from graphopt.errors import TargetNotMetError
from graphopt.pipeline.evidence import Evidence
from graphopt_passes.quantization import sensitivity

PRODUCTS = """<ir_version: 8, opset_import: ["" : 13]>
net (float[N,6] x) => (float[N,4] y) <float[6,5] w, float[5,4] v> { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"""


def products() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    arrays = {"w": rng.normal(size=(6, 5)).astype(np.float32), "v": rng.normal(size=(5, 4)).astype(np.float32)}
    model = parser.parse_model(PRODUCTS)
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model, arrays


def test_sensitivity_against_numpy() -> None:
    """The first layer alone: its input and its Relu in 256 steps from minmax ranges, its weight in 127 per column."""
    model, arrays = products()
    x = np.random.default_rng(4).normal(size=(16, 6)).astype(np.float32)
    plain = "equalize=false,clip_weights=false,feedback=false,correct_biases=false,ranges=minmax,reduce_range=false"
    result = graphopt.optimize(model, f"quantize{{mode=static,{plain}}}", data={"x": x})
    found = {entry["layer"].split("'")[1]: entry for entry in result.report.passes[-1].facts["sensitivity"]}

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}

    def rounded(values: np.ndarray, name: str) -> np.ndarray:
        scale, zero = float(constants[f"{name}_scale"]), int(constants[f"{name}_zero_point"])
        step = (max(values.max(), 0) - min(values.min(), 0)) / 255
        assert 0.98 * step <= scale <= 2 * step  # few numbers get some room
        return np.asarray((np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale)

    w, v = arrays["w"].astype(np.float64), arrays["v"].astype(np.float64)
    step = np.abs(w).max(axis=0) / 127
    exact = np.maximum(x @ w, 0) @ v
    changed = np.maximum(rounded(x, "x") @ (np.rint(w / step) * step), 0)
    changed = rounded(changed, "r") @ v
    difference = changed - exact
    difference -= difference.mean(axis=0)
    expected = -10 * np.log10(16 / 15 * np.square(difference).sum() / np.square(exact).sum())
    assert found["h"]["sqnr_db"] == pytest.approx(expected, abs=0.2)
    logs = [scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) for scores in (exact, changed)]
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean()
    assert found["h"]["kl"] == pytest.approx(divergence, rel=0.2)


def run(options: str, **others: Any) -> graphopt.Result:
    return graphopt.optimize(small_model(), f"quantize{{{options}}}", data=samples(64), **others)


def test_the_report_lists_layers_the_worst_first() -> None:
    entries = json.loads(run("mode=static").report.to_json())["passes"][-1]["sensitivity"]
    assert len(entries) == 3
    assert [entry["kl"] for entry in entries] == sorted((entry["kl"] for entry in entries), reverse=True)
    assert "sensitivity" not in run("sensitivity=false").report.passes[-1].facts


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_worst_layers_stay_float(count: int) -> None:
    result = run(f"spare_layers={count}")
    facts = result.report.passes[-1].facts
    kept = floats(result)
    assert len(kept) == count
    if count < 3:
        assert {entry["value"] for entry in facts["sensitivity"][:count]} == set(kept)
        said = [remark for remark in result.report.passes[-1].remarks if "alone costs much" in remark.what]
        assert said


def test_more_layers_in_float_lose_less() -> None:
    exact = outputs(graphopt.load(small_model()), samples(64))[0]
    worth = [sqnr(exact, outputs(run(f"spare_layers={count}").ir, samples(64))[0]) for count in range(4)]
    assert worth[0] < worth[2] <= worth[3]


def test_a_bound_is_reached_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = iter((20.0, 30.0))  # all on integers, one in float

    def judged(self: Evidence, original: object, result: object) -> float:
        assert len(self.samples) == 16  # a quarter, on which nothing calibrates
        return next(worth)

    monkeypatch.setattr(Evidence, "sqnr", judged)
    assert len(floats(run("sqnr=25"))) == 1


def test_a_bound_that_holds_already_changes_nothing() -> None:
    assert floats(run("sqnr=5")) == []


def test_a_bound_beyond_reach_leaves_everything_float() -> None:
    result = run("sqnr=300")
    assert len(floats(result)) == 3


def test_the_gate_is_met_by_leaving_layers_float(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measure = sensitivity.measure

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return measure(*arguments)

    monkeypatch.setattr(sensitivity, "measure", counted)
    loose = run("mode=static", metric="kl", max_drop=1.0)
    assert floats(loose) == []
    alone = loose.report.quality
    assert alone is not None
    tight = run("mode=static", metric="kl", max_drop=alone.after / 4)
    kept = floats(tight)
    assert 0 < len(kept) <= 3
    assert tight.report.quality is not None
    assert tight.report.quality.after <= alone.after / 4
    assert len(calls) == 2  # once for each model: what was measured is remembered when the pass runs again
    assert tight.report.passes[-1].options["spare_layers"] == len(kept)


def test_exit_where_even_that_is_not_enough(tmp_path: Any) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def never(outputs, labels):\n    never.calls = getattr(never, 'calls', 0) + 1\n    return -never.calls\n"
    )
    data = {**samples(64), "labels": np.zeros(64, np.int64)}
    with pytest.raises(TargetNotMetError, match="even with all 3 places left alone"):
        graphopt.optimize(small_model(), "quantize", data=data, metric=f"{judge}:never", max_drop=0.0)
