from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from graphopt.pipeline.options import options_of
from graphopt.pipeline.pipeline import missing_passes
from graphopt.pipeline.presets import PRESETS
from graphopt.pipeline.registry import Registry

if TYPE_CHECKING:
    from tests.cli.conftest import Call

CONV_MACS = 8 * 16 * 16 * 3 * 9


def test_cost_table(model: Path, call: Call) -> None:
    outcome = call("cost", model)
    assert (outcome.code, outcome.err) == (0, "")
    for title in ("MACs", "FLOPs", "parameters", "file", "weights", "peak activations", "nodes", "predicted time"):
        assert title in outcome.out


def test_cost_per_node_is_sorted(model: Path, call: Call) -> None:
    lines = call("cost", model, "--per-node").out.splitlines()
    nodes = [line.split()[0] for line in lines if line.strip() and line.split()[0] in ("conv", "norm", "copy", "relu")]
    assert nodes[0] == "conv"
    assert set(nodes) == {"conv", "norm", "copy", "relu"}
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("options", "factor"),
    [((), 1), (("--batch", 8), 8), (("--shape", "x=2,3,16,16"), 2), (("--shape", "x:5x3x16x16"), 5)],
)
def test_cost_json(options: tuple[object, ...], factor: int, model: Path, call: Call) -> None:
    outcome = call("cost", model, *options, "--per-node", "--json", "-")
    cost = json.loads(outcome.out)
    conv = next(node for node in cost["per_node"] if node["name"] == "conv")
    assert conv["macs"] == factor * CONV_MACS
    assert cost["bytes"] == model.stat().st_size
    assert cost["params"] == 8 * 27 + 4 * 8
    assert "MACs" in outcome.err


def test_cost_to_a_file_without_nodes(model: Path, tmp_path: Path, call: Call) -> None:
    assert call("cost", model, "--json", tmp_path / "c.json", "-q").out == ""
    assert "per_node" not in json.loads((tmp_path / "c.json").read_text())


def test_unknown_device_profile(model: Path, call: Call) -> None:
    outcome = call("cost", model, "--device", "nowhere.json")
    assert outcome.code == 1
    assert "--device" in outcome.error or "nowhere.json" in outcome.error


def test_costs_are_predicted_for_the_device_that_is_named(model: Path, tmp_path: Path, call: Call) -> None:
    slow = tmp_path / "slow.json"
    slow.write_text('{"name": "slow box", "overhead": 1.0}')
    own, other = call("cost", model, "--json", "-"), call("cost", model, "--device", slow, "--json", "-")
    assert "predicted by the roofline of 'built-in" in own.err
    assert "predicted by the roofline of 'slow box'" in other.err
    assert json.loads(other.out)["predicted_ms"] >= 1000 > json.loads(own.out)["predicted_ms"]
    assert "'slow box'" in call("compare", model, model, "--device", slow).out


def scaled_copy(model: Path, factor: float) -> Path:
    proto = onnx.load(model)
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight * weight.dtype.type(factor), "w"))
    path = model.with_name("scaled.onnx")
    onnx.save(proto, path)
    return path


def test_compare_the_result_of_a_run(model: Path, call: Call) -> None:
    call("run", model)
    outcome = call("compare", model, model.with_name("net.opt.onnx"), "--json", "-")
    comparison = json.loads(outcome.out)
    assert comparison["check"]["status"] == "same"
    assert (comparison["before"]["nodes"], comparison["after"]["nodes"]) == (4, 2)
    assert comparison["latency"] is None
    assert "reference" in outcome.err


def test_compare_finds_a_difference(model: Path, call: Call) -> None:
    outcome = call("compare", model, scaled_copy(model, 1.5))
    assert outcome.code == 0
    assert "NO: output 'y'" in outcome.out


def test_compare_measures_latency(model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call(
        "compare", model, model, "--latency", "--json", tmp_path / "c.json", "--seed", 3, "--provider", "cpu"
    )
    comparison = json.loads((tmp_path / "c.json").read_text())
    assert comparison["latency"]["ratio"] > 0
    assert comparison["before"]["latency_ms"] > 0
    assert "latency" in outcome.out


def test_compare_with_a_metric_needs_data(model: Path, call: Call) -> None:
    outcome = call("compare", model, model, "--metric", "sqnr")
    assert outcome.code == 1
    assert outcome.error.startswith("--metric needs samples to measure on; give some with -d FILE.npz")


def test_compare_on_samples(model: Path, tmp_path: Path, call: Call) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), np.uint8))
    options = ("-d", tmp_path / "x.npy", "--normalize", "scale=1/255", "--json", "-")
    outcome = call("compare", model, scaled_copy(model, 1.1), *options, "--latency")
    comparison = json.loads(outcome.out)
    quality, fidelity = comparison["quality"], comparison["fidelity"]
    assert (quality["metric"], quality["samples"], quality["gate"]) == ("sqnr", 20, None)
    assert fidelity["outputs"] == {"y": fidelity["sqnr_db"]}
    assert fidelity["sqnr_db"] == quality["after"] == pytest.approx(20, abs=2)  # a tenth of the signal, less a bias
    assert fidelity["agreement"] is None
    assert comparison["data"]["samples"] == 20
    assert comparison["latency"]["shapes"] == {"x": [1, 3, 16, 16]}
    assert "sqnr against the original" in outcome.err
    cosine = json.loads(call("compare", model, model, *options, "--metric", "cosine").out)["quality"]
    assert (cosine["before"], cosine["after"]) == (pytest.approx(1), pytest.approx(1))


def test_passes_lists_all_and_explains_one(call: Call) -> None:
    listed = call("passes")
    assert (listed.code, listed.err) == (0, "")
    names = (
        "fold-constants",
        "eliminate-dead-code",
        "remove-unused-initializers",
        "eliminate-identity",
        "fold-batch-norm",
    )
    assert all(name in listed.out for name in (*names, "lossless", "int8"))
    available = listed.out.partition("Presets:")[2].partition("Not available")[0]
    registry = Registry()
    for preset in PRESETS:
        assert (f"  {preset} " in available) == (not missing_passes(preset, registry))
    for name in names:
        explained = call("passes", name)
        assert explained.code == 0
        assert explained.out.startswith(f"{name}\n")
        assert "No description." not in explained.out


def test_passes_lists_every_option(call: Call) -> None:
    found, _ = Registry().find_all()
    for cls in found:
        text = call("passes", cls.name).out
        for option in options_of(cls).values():
            assert f"  {option.name}: {option.legal}" in text
            assert option.help in text


def test_passes_explains_presets_and_suggests_names(call: Call) -> None:
    assert "fold-batch-norm" in call("passes", "lossless").out
    outcome = call("passes", "fold-batchnorm")
    assert outcome.code == 2
    assert "did you mean 'fold-batch-norm'?" in outcome.error
