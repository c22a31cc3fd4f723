"""The passes `factorize` and `separate-depthwise` through the API, on small networks."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.errors import OptionError, PipelineError, TargetNotMetError
from graphopt.runtime.session import Session
from graphopt_passes.factorization.choice import choose, undominated

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,10,10] x) => (float[N,5] y)
{
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    a1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(a1, w2)
    a2 = Relu(c2)
    c3 = Conv<pads=[1,1,1,1]>(a2, w3, b1)
    s = Add(c3, a1)
    a3 = Relu(s)
    p = GlobalAveragePool(a3)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w4)
}
"""
SHAPES = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (5, 16)}


def network(dtype: Any = np.float32, **arrays: np.ndarray) -> onnx.ModelProto:
    """Weights with decaying spectra, so that there is something to gain."""
    rng = np.random.default_rng(0)
    text = NETWORK.replace("float[", "float16[") if dtype == np.float16 else NETWORK
    model = parser.parse_model(text)
    for name, shape in SHAPES.items():
        array = rng.normal(size=shape)
        if len(shape) == 4:
            left, values, right = np.linalg.svd(array.reshape(shape[0], -1), full_matrices=False)
            decay = np.exp(-np.arange(len(values)) / 3)
            array = ((left * values * decay) @ right).reshape(shape) / math.sqrt(shape[1])
        array = arrays.get(name, array)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, dtype), name))
    return model


def samples(count: int = 12, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    smooth = np.cumsum(np.random.default_rng(1).normal(size=(count, 3, 10, 10)), axis=-1)
    return {"x": (smooth / 4).astype(dtype)}


def run(pipeline: str, model: onnx.ModelProto | None = None, data: Any = None, **options: Any) -> graphopt.Result:
    return graphopt.optimize(model or network(), pipeline=pipeline, data=data, verify="full", **options)


def outputs(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = Session(model).run(feeds)["y"]
    return found


def error(result: graphopt.Result, model: onnx.ModelProto | None = None) -> float:
    """Relative error of the outputs on samples that nothing was fitted to."""
    feeds = {"x": np.cumsum(np.random.default_rng(2).normal(size=(16, 3, 10, 10)), axis=-1).astype(np.float32) / 4}
    exact = outputs(model or network(), feeds)
    return float(np.linalg.norm(outputs(result.model, feeds) - exact) / np.linalg.norm(exact))


def remarks(result: graphopt.Result) -> str:
    return "\n".join(str(remark) for one in result.report.passes for remark in one.remarks)


@pytest.mark.parametrize("options", ["macs=0.6,schemes=auto:decoupling", "macs=0.6,schemes=spatial"])
def test_the_budget_is_kept_for_the_whole_model(options: str) -> None:
    result = run(f"factorize{{{options},align=4,prefer=macs}}", data=samples())
    ratio = result.report.after.macs / result.report.before.macs
    assert 0.5 < ratio <= 0.6
    assert error(result) < 0.1
    assert "MACs" in remarks(result)
    assert "harm" in remarks(result)


def test_data_and_refits_do_better_than_weights_alone() -> None:
    with_data = run("factorize{macs=0.5,schemes=channel:spatial,align=4,prefer=macs}", data=samples())
    without = run("factorize{macs=0.5,schemes=channel:spatial,align=4,prefer=macs}")
    assert without.report.after.macs <= 0.5 * without.report.before.macs
    assert error(with_data) < error(without)
    assert any("no samples" in warning for warning in without.warnings)
    assert not any("no samples" in warning for warning in with_data.warnings)


def test_params_and_macs_are_bounded_together() -> None:
    result = run("factorize{macs=0.7,params=0.6,schemes=channel,align=4,prefer=macs}")
    assert result.report.after.macs <= 0.7 * result.report.before.macs
    assert result.report.after.params <= 0.6 * result.report.before.params


@pytest.mark.parametrize("asked", ["0.01", "2"])
def test_an_unreachable_target_says_the_least_that_can_be_reached(asked: str) -> None:
    options = "schemes=channel,align=1,prefer=macs"
    with pytest.raises(TargetNotMetError, match=rf"of [\d,]+ macs \(macs={asked}\) cannot be met") as refused:
        run(f"factorize{{macs={asked},{options}}}")
    assert ("shares end at 1: macs=2 is a count of MACs" in str(refused.value)) == (asked == "2")
    least = re.search(r"can reach is ([\d,]+), macs=(0\.\d+)", str(refused.value))
    assert least is not None
    count = int(least[1].replace(",", ""))
    assert run(f"factorize{{macs={count},{options}}}").report.after.macs == count
    assert run(f"factorize{{macs={least[2]},{options}}}").report.after.macs >= count
    with pytest.raises(TargetNotMetError, match=r"^separate-depthwise: .*\(macs=0.01\)"):
        run("separate-depthwise{macs=0.01}")


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_of_nothing_is_one_clear_error(rank: int) -> None:
    with pytest.raises((OptionError, PipelineError), match="rank"):
        run(f"factorize{{rank={rank}}}")


def test_rank_deficient_layers_are_factorized_without_loss_and_without_data() -> None:
    rng = np.random.default_rng(0)
    low = (rng.normal(size=(16, 5)) @ rng.normal(size=(5, 144))).reshape(16, 16, 3, 3) / 12
    model = network(w2=low)
    result = run("factorize{energy=1,schemes=channel,prefer=macs}", model)
    assert remarks(result).count("channel 5") == 1
    assert error(result, model) < 1e-5
    again = run("factorize{energy=1,schemes=channel,prefer=macs}", result.model)
    assert not again.report.passes[-1].modified
    assert "no replacement pays" in again.report.passes[-1].facts["unchanged"]
    assert not any("no samples" in warning for warning in result.warnings)  # nothing is lost


def test_a_given_rank_is_taken_where_it_pays() -> None:
    result = run("factorize{rank=4,schemes=channel,prefer=macs}", data=samples())
    assert "channel 4" in remarks(result)
    assert "no replacement would be cheaper" in remarks(run("factorize{rank=16,schemes=channel,prefer=macs}"))
    half = run("factorize{rank=0.5,schemes=channel,align=4,prefer=macs}")
    assert "channel 8" in remarks(half)


def test_energy_decides_layer_by_layer() -> None:
    low, high = (
        run(f"factorize{{energy={one},schemes=channel,align=1,prefer=macs}}", data=samples()) for one in (0.9, 0.9999)
    )
    assert low.report.after.macs < high.report.after.macs
    assert error(high) < error(low)
    assert error(high) < 0.05


def test_excluded_layers_stay() -> None:
    model = network()
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    result = run("factorize{energy=0.8,schemes=channel,align=1,prefer=macs}", model, exclude=re.compile("n2|n4"))
    kernels = [tuple(one.dims) for one in result.model.graph.initializer]
    assert kernels.count((16, 16, 3, 3)) == 2
    assert (16, 3, 3, 3) not in kernels


@pytest.mark.parametrize(
    "pipeline", ["factorize{macs=0.6,schemes=channel,prefer=macs,align=4}", "separate-depthwise{macs=0.7,prefer=macs}"]
)
def test_the_same_seed_gives_the_same_bytes(pipeline: str) -> None:
    one, other = (run(pipeline, data=samples(), seed=3).model.SerializeToString() for _ in range(2))
    assert one == other


def test_a_network_of_pruned_widths_and_what_quantize_makes_of_the_result() -> None:
    rng = np.random.default_rng(0)
    arrays = {"w2": rng.normal(size=(11, 16, 3, 3)) / 12, "w3": rng.normal(size=(16, 11, 3, 3)) / 12}
    result = run("factorize{macs=0.6,schemes=channel,prefer=macs,align=4},quantize", network(**arrays), data=samples())
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert "QuantizeLinear" in {node.op_type for node in result.model.graph.node}


@pytest.mark.parametrize(
    "pipeline",
    [
        "factorize{macs=0.7,schemes=channel:spatial:tucker,prefer=macs,align=4}",
        "separate-depthwise{macs=0.8,prefer=macs}",
    ],
)
@pytest.mark.parametrize("kind", ["zero weights", "zero inputs", "one sample", "float16"])
def test_bad_input_gives_finite_results(pipeline: str, kind: str) -> None:
    dtype = np.float16 if kind == "float16" else np.float32
    model = network(dtype, **({"w2": np.zeros((16, 16, 3, 3))} if kind == "zero weights" else {}))
    data = samples(1 if kind == "one sample" else 8, dtype)
    if kind == "zero inputs":
        data = {"x": np.zeros_like(data["x"])}
    result = run(pipeline, model, data=data)
    assert result.report.passes[-1].modified
    assert np.isfinite(outputs(result.model, samples(4, dtype))).all()
    said = {
        "zero weights": "its weights are zero",
        "zero inputs": "inputs never vary",
        "one sample": "fewer calibration rows (100) than inputs (144)",
        "float16": "",
    }
    assert said[kind] in remarks(result)


def test_weights_that_are_not_finite_are_left_alone() -> None:
    weights = np.full((16, 16, 3, 3), np.nan)
    assert "its weights are not finite" in remarks(run("factorize{energy=0.9}", network(w2=weights)))


def test_fits_may_look_through_the_activation() -> None:
    plain, through = (
        run(f"factorize{{rank=0.25,schemes=channel,align=4,prefer=macs,through_activation={one}}}", data=samples())
        for one in ("false", "true")
    )
    assert plain.model.SerializeToString() != through.model.SerializeToString()
    assert error(through) < 1.2 * error(plain)


@pytest.mark.parametrize("branches", [1, 3, 9])
def test_branches_are_fixed_on_request(branches: int) -> None:
    result = run(f"separate-depthwise{{branches={branches},prefer=macs}}", data=samples())
    kinds = [node.op_type for node in result.model.graph.node]
    if branches == 9:  # costs more than the layer
        assert kinds.count("Add") == 1
        return
    assert kinds.count("Add") == 1 + 3 * (branches - 1)
    grouped = [node for node in result.model.graph.node for a in node.attribute if a.name == "group" and a.i > 1]
    assert len(grouped) == 3 * branches


def test_more_branches_are_nearer() -> None:
    errors = [error(run(f"separate-depthwise{{branches={one},prefer=macs}}", data=samples())) for one in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)


def test_error_and_energy_say_the_same() -> None:
    one, other = (
        run(f"separate-depthwise{{{text},prefer=macs}}", data=samples(), provenance=False).model.SerializeToString()
        for text in ("error=0.25", "energy=0.75")
    )
    assert one == other


def test_nothing_is_replaced_by_what_is_predicted_to_be_slower() -> None:
    result = run("separate-depthwise{branches=5}", data=samples())
    assert result.report.after.predicted_ms <= result.report.before.predicted_ms


@pytest.mark.parametrize(
    "text",
    [
        "factorize{rank=4,macs=0.5}",
        "separate-depthwise{error=0.1,energy=0.9}",
        "factorize{macs=-1}",
        "factorize{macs=1.5}",
        "separate-depthwise{macs=1.5}",
    ],
)
def test_options_that_contradict_are_refused(text: str) -> None:
    with pytest.raises((OptionError, PipelineError)):
        run(text)


def test_choice_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        harms = [rng.random(4) for _ in range(4)]
        costs = [rng.random((4, 2)) for _ in range(4)]
        grid = np.stack(np.meshgrid(*[np.arange(4)] * 4, indexing="ij"), -1).reshape(-1, 4)
        harm = np.sum([harms[site][grid[:, site]] for site in range(4)], axis=0)
        cost = np.sum([costs[site][grid[:, site]] for site in range(4)], axis=0)
        budgets = [1.8, 1.9]
        possible = (cost <= budgets).all(axis=1)
        found = choose(harms, costs, budgets)
        if not possible.any():
            assert found is None
            continue
        assert found is not None
        spent = np.sum([costs[site][index] for site, index in enumerate(found)], axis=0)
        assert (spent <= np.array(budgets) + 1e-9).all()
        best = harm[possible].min()
        assert sum(harms[site][index] for site, index in enumerate(found)) == pytest.approx(best, abs=1e-3)


def test_dominated_options_are_left_out() -> None:
    harm = np.array([3.0, 2.0, 2.0, 1.0, 0.5])
    cost = np.array([[1.0], [2.0], [2.0], [2.5], [9.0]])
    assert undominated(harm, cost).tolist() == [0, 1, 3, 4]
