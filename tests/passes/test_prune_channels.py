"""prune-channels on small networks: amounts, alignment, repair, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import OptionError, TargetNotMetError
from graphopt.runtime.blas import threads
from graphopt_passes.pruning.execution import Execution
from graphopt_passes.pruning.widths import Limits

MODELS = Path(__file__).parents[2] / "models"
RESIDUAL = str(MODELS / "residual.onnx")
DIGITS = str(MODELS / "digits.calib.npz")


def _network(widths: tuple[int, ...] = (8, 12, 8), dead: int = 0, seed: int = 0) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, ..., pooling, Gemm; the first `dead` channels of each layer are never above zero."""
    rng = np.random.default_rng(seed)
    nodes, weights, before, value = [], [], 3, "x"
    for number, width in enumerate(widths):
        bias = rng.normal(size=width) * 0.1
        bias[:dead] = -1000
        arrays = {"w": rng.normal(size=(width, before, 3, 3)) / np.sqrt(9 * before / 2), "b": bias}
        weights += [numpy_helper.from_array(a.astype(np.float32), f"{name}{number}") for name, a in arrays.items()]
        inputs = [value, f"w{number}", f"b{number}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{number}"], f"conv{number}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        before, value = width, f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    weights.append(numpy_helper.from_array(rng.normal(size=(5, before)).astype(np.float32), "w"))
    nodes.append(helper.make_node("Gemm", ["flat", "w"], ["y"], "head", transB=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _samples(count: int = 48, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def _outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def _prune(model: onnx.ModelProto, options: str, data: object = None) -> graphopt.Result:
    return graphopt.optimize(model, pipeline=f"prune-channels{{{options}}}", data=data)


def _remarks(result: graphopt.Result) -> str:
    return "\n".join(str(remark) for record in result.report.passes for remark in record.remarks)


def _widths(model: onnx.ModelProto) -> list[int]:
    return [tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 4]


def _error(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    feeds = _samples(64, seed=9)
    right = _outputs(model, feeds)
    return float(np.sum((_outputs(other, feeds) - right) ** 2) / np.sum((right - right.mean(axis=0)) ** 2))


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_macs_come_as_near_to_the_target_as_widths_allow(scope: str, share: float) -> None:
    result = _prune(_network((16, 24, 16)), f"macs={share},align=1,scope={scope}", _samples())
    assert ("widths: chosen by" in _remarks(result)) == (scope == "global")
    ratio = result.report.after.macs / result.report.before.macs
    assert share - 0.04 <= ratio <= share
    _outputs(result.model, _samples())


def test_a_trained_network_is_pruned_to_half_and_still_agrees() -> None:
    result = graphopt.optimize(
        RESIDUAL,
        pipeline="prune-channels{macs=0.5,align=1}",
        data=DIGITS,
        calibration_samples=96,
        eval_data=str(MODELS / "digits.eval.npz"),
        metric="agreement",
    )
    assert 0.48 <= result.report.after.macs / result.report.before.macs <= 0.5
    assert result.report.quality is not None
    assert result.report.quality.after is not None
    assert result.report.quality.after > 0.9


def test_dead_channels_cost_nothing_and_go_first() -> None:
    model = _network((8, 12, 8), dead=3)
    result = _prune(model, "ratio=0.2,align=1", _samples())
    assert _widths(result.model) == [5, 9, 5]
    assert _error(model, result.model) < 1e-9


@pytest.mark.parametrize(("samples", "stays"), [(80, True), (200, False)])
def test_few_rows_move_the_bias_of_a_layer_that_loses_nothing(samples: int, *, stays: bool) -> None:
    model = _network((8, 12, 16))  # ten rows per input of the Gemm are 160 samples
    result = _prune(model, "ratio=0.4,align=1,exclude=conv2", _samples(samples))
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in one.graph.initializer}
        for one in (model, result.model)
    )
    head = next(node for node in result.model.graph.node if node.name == "head")
    assert np.array_equal(before["w"], after[head.input[1]]) == stays
    assert np.abs(after[head.input[2]]).max() > 0


def test_repair_and_measured_choice_beat_norms() -> None:
    model, data = _network((16, 16, 16)), _samples(96)
    options = "macs=0.6,align=1"
    errors = [
        _error(model, _prune(model, f"{options},{more}", data).model)
        for more in ("criterion=obs", "criterion=l2,scope=uniform", "criterion=l2,scope=uniform,repair=false")
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.7 * errors[1] < 0.7 * errors[2]


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric-median", "random", "activation", "bn-scale"])
def test_every_criterion_ranks(criterion: str) -> None:
    data = _samples(16) if criterion in ("activation", "bn-scale") else None
    result = _prune(_network(), f"ratio=0.5,scope=uniform,align=1,criterion={criterion}", data)
    assert _widths(result.model) == [4, 6, 4]
    _outputs(result.model, _samples())


def test_smallest_weights_go_by_their_norm() -> None:
    model = _network((6, 4))
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[[1, 4]] *= 1e-3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w0"))
    result = _prune(model, "ratio=0.34,scope=uniform,align=1,criterion=l1")
    left = next(numpy_helper.to_array(t) for t in result.model.graph.initializer if t.dims[1] == 3)
    np.testing.assert_array_equal(left, weight[[0, 2, 3, 5]])


@pytest.mark.parametrize(("options", "widths"), [("align=8", {8, 16, 24}), ("align=4", {4, 8, 12, 16, 20, 24})])
def test_widths_are_aligned(options: str, widths: set[int]) -> None:
    result = _prune(_network((16, 24, 16)), f"macs=0.6,{options}", _samples())
    assert set(_widths(result.model)) <= widths
    assert result.report.after.macs <= 0.6 * result.report.before.macs


@pytest.mark.parametrize(
    ("units", "align", "widths"),
    [
        (48, 16, [16, 32, 48]),
        (32, 16, [8, 16, 24, 32]),
        (16, 16, [8, 16]),
        (16, 8, [8, 16]),
        (8, 16, [4, 8]),
        (8, 8, [4, 8]),
        (4, 8, [4]),
    ],
)
def test_alignment_that_leaves_little_choice_is_halved(units: int, align: int, widths: list[int]) -> None:
    assert Limits(align).widths(units, 1).tolist() == widths


def test_the_least_width_rules_halves_out() -> None:
    _prune(_network((16, 32, 8)), "macs=0.3,align=16", _samples())
    with pytest.raises(TargetNotMetError):
        _prune(_network((16, 32, 8)), "macs=0.3,align=16,min_width=16", _samples())


def test_least_width() -> None:
    result = _prune(_network((16, 16)), "macs=0.6,align=1,min_width=10", _samples(16))
    assert min(_widths(result.model)) >= 10


def test_nothing_goes_at_ratio_zero() -> None:
    model = _network()
    result = _prune(model, "ratio=0")
    assert not result.report.passes[-1].modified
    np.testing.assert_array_equal(_outputs(model, _samples()), _outputs(result.model, _samples()))


def test_small_networks_are_pruned_on_one_blas_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    repair = Execution.repair

    def watched(self: Execution, gone: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        seen.extend(threads())
        return repair(self, gone)

    monkeypatch.setattr(Execution, "repair", watched)
    before = threads()
    _prune(_network(), "ratio=0.5,align=1", _samples(16))
    assert all(count == 1 for count in seen)
    assert len(seen) == len(before)
    assert threads() == before


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = (_prune(_network(), "macs=0.6,align=1", _samples(24)).model for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize(
    "options", ["macs=1.5", "params=2.25", "ratio=1", "ratio=-0.1", "ratio=0.3,macs=0.5", 'exclude="("', "align=0"]
)
def test_options_that_cannot_be(options: str) -> None:
    with pytest.raises(OptionError, match="prune-channels"):
        _prune(_network(), options)


def test_a_target_out_of_reach_says_the_least_possible() -> None:
    with pytest.raises(TargetNotMetError, match=r"narrowest widths keep [\d,]+, macs=0\.\d+;") as caught:
        _prune(_network(), "macs=0.01,min_width=6,align=1")
    assert caught.value.exit_code == 3
    assert "shares end at 1" not in str(caught.value)
    with pytest.raises(TargetNotMetError, match="shares end at 1: params=2 is a count of parameters"):
        _prune(_network(), "params=2,min_width=6,align=1")
    least = str(caught.value).split("macs=")[1].split(";")[0]
    result = _prune(_network(), f"macs={least},min_width=6,align=1")
    assert _widths(result.model) == [6, 6, 6]


def test_a_ratio_that_alignment_rounds_is_a_remark() -> None:
    rounded = _prune(_network((16, 16)), "ratio=0.4,align=8")
    assert "ratio=0.4 means 0.50 of the channels here: widths are multiples of 8" in _remarks(rounded)
    (note,) = rounded.report.passes[-1].facts["notes"]
    assert note.startswith("ratio=0.4 means 0.50 of the channels here")
    assert note.endswith("; chosen where it harms least, a share of 0.50 saves as many MACs, and that went")
    (uniform,) = _prune(_network((16, 16)), "ratio=0.4,align=8,scope=uniform").report.passes[-1].facts["notes"]
    assert uniform.startswith("ratio=0.4 means 0.50 of the channels here")
    assert "as many MACs" not in uniform
    kept = _prune(_network((16, 16)), "ratio=0.1,align=8")
    assert "ratio=0.1 means 0.00 of the channels here" in kept.report.passes[-1].facts["unchanged"]
    exact = _prune(_network((10, 10)), "ratio=0.4,align=1")
    assert "of the channels here" not in _remarks(exact)
    assert "notes" not in exact.report.passes[-1].facts


def test_nothing_to_prune_is_a_remark() -> None:
    result = _prune(_network(()), "ratio=0.3")
    assert "nothing to prune" in _remarks(result)
    assert not result.report.passes[-1].modified


def test_layers_without_a_bias_are_pruned_behind_factorization() -> None:
    model = _network()
    del model.graph.node[2].input[2]  # of conv1
    result = graphopt.optimize(
        model, "factorize{rank=0.5,align=1,prefer=macs},prune-channels{ratio=0.3,align=1}", data=_samples()
    )
    assert result.report.after.macs < 0.5 * result.report.before.macs
    assert np.isfinite(_outputs(result.model, _samples(4))).all()


def test_biases_are_taken_back_where_nothing_goes() -> None:
    model = _network(())
    result = _prune(model, "ratio=0.3", _samples())
    assert len(result.model.graph.node[-1].input) == 2
    assert not result.report.passes[-1].modified


def test_excluded_layers_keep_their_channels_and_names_that_match_nothing_are_named() -> None:
    result = _prune(_network(), 'ratio=0.5,scope=uniform,align=1,exclude="conv1":"nowhere.*"')
    assert _widths(result.model)[1] == 12
    assert "prune-channels: exclude=nowhere.* matches no node" in result.warnings


def test_without_samples_channels_that_are_like_others_lose_nothing() -> None:
    model = _network((8, 6))
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    for lost, kept in ((1, 5), (4, 0)):
        arrays["w0"][lost], arrays["b0"][lost] = 0.1 * arrays["w0"][kept], 0.1 * arrays["b0"][kept]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    result = _prune(model, "ratio=0.25,scope=uniform,align=1,min_width=6")
    assert _widths(result.model) == [6, 6]
    assert _error(model, result.model) < 1e-9
    left = _prune(model, "ratio=0.25,scope=uniform,align=1,min_width=6,repair=false")
    assert _error(model, left.model) > 1e-4


@pytest.mark.parametrize("bias", [0.7, -0.7])
def test_without_samples_constant_channels_go_into_biases(bias: float) -> None:
    model = _network((6, 8))
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    arrays["w1"][[2, 3]], arrays["b1"][[2, 3]] = 0, bias
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    result = _prune(model, "ratio=0.25,scope=uniform,align=1,min_width=6")
    assert _widths(result.model) == [6, 6]
    assert _error(model, result.model) < 1e-9


def test_layers_that_are_too_wide_for_their_moments_are_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("repair", "structure"):
        monkeypatch.setattr(f"graphopt_passes.pruning.{module}.MOST_COLUMNS", 80)
    model = _network((8, 12, 8), dead=2)
    options = "ratio=0.17,scope=uniform,align=1"
    result = _prune(model, options, _samples())
    assert "ranked by weights alone" in _remarks(result)
    assert _error(model, result.model) < _error(model, _prune(model, f"{options},criterion=random").model)


def test_activation_goes_by_mean_magnitudes_behind_the_activation() -> None:
    model = _network((4, 2))
    weight, bias = np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)
    weight[0, 0, 1, 1] = 1  # rarely large: the mean is small, the mean square is not
    weight[1:, 1, 1, 1] = 1, 3, 3
    bias[2] = -1000  # far from zero, and never above it
    for tensor, array in zip(model.graph.initializer, (weight, bias), strict=False):
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    x = np.ones((8, 3, 8, 8), np.float32)
    x[:, 0], x[:, 0, 4, 4] = 0, 40
    options = "ratio=0.5,scope=uniform,align=1,min_width=2,criterion=activation,repair=false"
    left = next(
        numpy_helper.to_array(tensor)
        for tensor in _prune(model, options, {"x": x}).model.graph.initializer
        if tensor.dims[1:] == [3, 3, 3]
    )
    np.testing.assert_array_equal(left, weight[[1, 3]])


def test_without_samples_or_anything_to_do_it_says_so() -> None:
    blind = _prune(_network(), "ratio=0.3,align=1")
    assert any("no samples" in warning for warning in blind.warnings)
    idle = _prune(_network((4, 4)), "ratio=0.3,align=8", _samples(16))
    assert idle.report.passes[-1].facts["unchanged"].startswith("ratio=0.3 means 0.00 of the channels here: widths are")
    whole = _prune(_network((4, 4)), "macs=1", _samples(16))
    assert whole.report.passes[-1].facts["unchanged"] == "all widths stay as they are"
    assert not any("no samples" in warning for warning in idle.warnings)
