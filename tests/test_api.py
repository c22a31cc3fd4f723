"""The Python API from end to end: what goes in, what comes out, and what stays as it was."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import DataError, EmitError, InvalidModelError, NotAvailableError, OptionError, PipelineError

MODELS = Path(__file__).parent.parent / "models"
RESIDUAL = MODELS / "residual.onnx"


def outputs(model: onnx.ModelProto | Path, batch: int = 3) -> np.ndarray[Any, Any]:
    import onnxruntime as ort

    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    images = np.load(MODELS / "digits.eval.npz")["input"][:batch]
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.name)
def test_every_shipped_model_computes_the_same(path: Path, tmp_path: Path) -> None:
    before = digest(MODELS)
    result = graphopt.optimize(path, verify="full")
    assert not result.warnings
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx"), outputs(path), rtol=1e-3, atol=1e-3)
    assert digest(MODELS) == before

    again = graphopt.optimize(tmp_path / "out.onnx")
    again.save(tmp_path / "again.onnx")
    assert [record.name for record in again.report.passes if record.modified] == []


def inputs_of_all_kinds() -> dict[str, Any]:
    proto = onnx.load(RESIDUAL)
    return {
        "path": RESIDUAL,
        "text": str(RESIDUAL),
        "proto": proto,
        "ir": ir.load(RESIDUAL),
        "graphsurgeon": gs.import_onnx(proto),
    }


@pytest.mark.parametrize("kind", ["path", "text", "proto", "ir", "graphsurgeon"])
def test_optimize_takes_what_users_have(kind: str) -> None:
    source = inputs_of_all_kinds()[kind]
    before = source.SerializeToString() if kind == "proto" else str(source)
    result = graphopt.optimize(source)
    assert (source.SerializeToString() if kind == "proto" else str(source)) == before
    assert isinstance(result.ir, ir.Model)
    assert not [node for node in result.model.graph.node if node.op_type == "BatchNormalization"]
    np.testing.assert_allclose(outputs(result.model), outputs(RESIDUAL), rtol=1e-3, atol=1e-3)


def test_what_is_no_model() -> None:
    with pytest.raises(InvalidModelError, match="cannot lift a dict"):
        graphopt.optimize({})


def test_the_report_has_the_keys_that_stay() -> None:
    report = json.loads(graphopt.optimize(RESIDUAL).report.to_json())
    cost = {
        "macs",
        "params",
        "bytes",
        "weight_bytes",
        "peak_activation_bytes",
        "nodes",
        "latency_ms",
        "unknown_cost_ops",
    }
    assert report["graphopt"] == graphopt.__version__
    assert report["input"]["sha256"] == hashlib.sha256(RESIDUAL.read_bytes()).hexdigest()
    assert report["before"].keys() >= cost
    assert report["before"]["bytes"] == RESIDUAL.stat().st_size
    assert report["after"]["nodes"] < report["before"]["nodes"]
    assert {"pipeline", "quality", "passes", "plan", "warnings", "seconds", "peak_rss_bytes"} <= report.keys()
    assert {"name", "options", "seconds", "modified", "before", "after", "remarks"} <= report["passes"][0].keys()


def test_saved_bytes_are_reported_and_reproducible(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        result = graphopt.optimize(RESIDUAL)
        result.save(tmp_path / name)
        assert result.report.after.bytes == (tmp_path / name).stat().st_size
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with pytest.raises(EmitError, match="exists"):
        result.save(tmp_path / "a.onnx")
    with pytest.raises(EmitError, match="is the input"):
        result.save(RESIDUAL, overwrite=True)


def test_provenance_can_be_left_out() -> None:
    signed = {entry.key: entry.value for entry in graphopt.optimize(RESIDUAL).model.metadata_props}
    assert signed["graphopt.source"] == "sha256:" + hashlib.sha256(RESIDUAL.read_bytes()).hexdigest()
    plain = graphopt.optimize(RESIDUAL, provenance=False).model
    assert not [entry for entry in plain.metadata_props if entry.key.startswith("graphopt")]
    assert not [node for node in plain.graph.node for entry in node.metadata_props if entry.key == "graphopt"]


def test_the_input_and_its_data_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(RESIDUAL), path, save_as_external_data=True, location="other.onnx.data", size_threshold=0)
    before = digest(tmp_path)
    result = graphopt.optimize(path)
    for target in ("m.onnx", "other.onnx"):  # the second one's data would replace the input's
        with pytest.raises(EmitError, match="input"):
            result.save(tmp_path / target, overwrite=True)
    assert digest(tmp_path) == before
    result.save(tmp_path / "out.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx"), outputs(RESIDUAL), rtol=1e-3, atol=1e-3)


def test_fixed_shapes_reach_the_outputs() -> None:
    result = graphopt.optimize(RESIDUAL, shapes={"input": [2, 1, 16, 16]})
    dims = result.model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 10]
    assert outputs(result.model, batch=2).shape == (2, 10)


def test_excluded_nodes_stay() -> None:
    norms = [node.name for node in onnx.load(RESIDUAL).graph.node if node.op_type == "BatchNormalization"]
    kept = graphopt.optimize(RESIDUAL, exclude=norms[0]).model
    assert [node.name for node in kept.graph.node if node.op_type == "BatchNormalization"] == norms[:1]


def test_latency_is_measured_on_request_only() -> None:
    assert graphopt.optimize(RESIDUAL).report.after.latency_ms is None
    measured = graphopt.optimize(RESIDUAL, latency=True).report
    assert measured.before.latency_ms is not None
    assert measured.after.latency_ms is not None
    assert measured.after.latency_ms > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pipeline": "fold-constant"}, PipelineError, "fold-constants"),
        ({"pipeline": "fold-constants", "preset": "lossless"}, OptionError, "exclude each other"),
        ({"budget": {"macs": 0.5}}, NotAvailableError, "--budget"),
        ({"max_drop": 0.01}, NotAvailableError, "--max-drop"),
        ({"eval_data": "e.npz"}, DataError, "--eval-data: there is no file or folder e.npz"),
        ({"pipeline": "lossless", "max_drop": 0.01}, DataError, "--max-drop needs samples .* -d FILE.npz"),
        ({"preset": "small"}, DataError, "quantize: .* calibration samples"),
        ({"shapes": {"nothing": [1]}}, OptionError, "nothing"),
    ],
)
def test_errors_name_the_option(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        graphopt.optimize(RESIDUAL, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline": 3}, "--pipeline: 3 is not text"),
        ({"preset": "nope"}, "--preset: there is no preset 'nope'; there are lossless, int8, small, fast"),
        ({"metric": 3}, "--metric: 3 is not a name, or a function"),
        ({"normalize": 3}, "--normalize: 3 is not text such as"),
        ({"calibration_samples": 0}, "--calibration-samples: 0 is not a whole number of at least 1"),
        ({"calibration_samples": "many"}, "--calibration-samples: 'many' is not"),
        ({"max_drop": -1}, "--max-drop: -1 is not a number of at least 0"),
        ({"max_drop": float("nan")}, "--max-drop: nan is not"),
        ({"max_drop": "1 %"}, "--max-drop: '1 %' is not"),
        ({"shapes": [1, 1, 16, 16]}, r"--shape: \[1, 1, 16, 16\] is not a dict"),
        ({"shapes": {"input": 3}}, "--shape: {'input': 3} is not a dict of extents"),
        ({"shapes": {"input": (0, 1, 16, 16)}}, "is not a dict of extents of at least 1"),
        ({"exclude": 3}, "--exclude: 3 is not a name"),
        ({"exclude": [3]}, r"--exclude: \[3\] is not a name"),
        ({"device": {"flops": 1e9}}, "--device: {'flops': 1000000000.0} is not a device profile or its file"),
        ({"device": np.zeros(100)}, "--device: an object of type ndarray is not"),
        ({"seed": -1}, "--seed: -1 is not a whole number of at least 0"),
        ({"seed": 0.5}, "--seed: 0.5 is not"),
        ({"threads": 0}, "--threads: 0 is not a whole number of at least 1"),
        ({"verify": "all"}, "--verify: 'all' is not 'touched' or 'full'"),
        ({"statistics_folder": RESIDUAL}, "residual.onnx: is no folder"),
    ],
)
def test_arguments_are_checked_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        graphopt.optimize(RESIDUAL, **options)


def test_arguments_of_the_other_functions_are_checked_too() -> None:
    wrong: dict[str, Any] = {"shapes": 3}
    for call in (graphopt.cost, graphopt.load, lambda model, **given: graphopt.compare(model, model, **given)):
        with pytest.raises(OptionError, match="--shape: 3 is not"):
            call(RESIDUAL, **wrong)
    two: Any = "2"
    with pytest.raises(OptionError, match="--batch: '2' is not a whole number"):
        graphopt.cost(RESIDUAL, batch=two)
    two = np.int64(2)
    graphopt.cost(RESIDUAL, batch=two)


def test_a_comparison_names_the_model_that_does_not_fit_the_samples(tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1, 1, 16, 16])
    y = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 1, 16, 16])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["other"], ["logits"])], "g", [x], [y])
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(DataError, match=r"other\.onnx reads an input 'other' that the samples do not have"):
        graphopt.compare(RESIDUAL, path, data=MODELS / "digits.calib.npz")


def test_excluding_what_is_not_there_is_a_warning() -> None:
    for exclude in ("nowhere.*", re.compile("nowhere.*"), ("nowhere.*", "/0/Conv", "/[0-9]+/Conv")):
        result = graphopt.optimize(RESIDUAL, "eliminate-identity", exclude=exclude)
        assert result.warnings == ["--exclude nowhere.*: the name of no node, and no expression for one"]


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        ("i|x0", set[str]()),  # whole names
        ("i.0", {"i.0", "ix0"}),
        (["i.0"], {"i.0", "ix0"}),
        (re.compile("ix."), {"ix0"}),
        (["ix0", "j(0"], {"ix0", "j(0"}),
        ((), set[str]()),
    ],
)
def test_what_is_excluded_is_a_name_or_describes_names(exclude: Any, kept: set[str]) -> None:
    names = ("i.0", "ix0", "j(0")
    nodes = [
        onnx.helper.make_node("Identity", ["x" if i == 0 else f"v{i}"], [f"v{i + 1}"], n) for i, n in enumerate(names)
    ]
    nodes.append(onnx.helper.make_node("Relu", ["v3"], ["y"], "relu"))
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    result = graphopt.optimize(model, "eliminate-identity", exclude=exclude)
    assert {node.name for node in result.model.graph.node} == {*kept, "relu"}


@pytest.mark.parametrize("preset", ["small", "fast"])
def test_presets_that_compress(preset: str) -> None:
    result = graphopt.optimize(
        MODELS / "mlp.onnx", preset=preset, data=MODELS / "digits.calib.npz", eval_data=MODELS / "digits.eval.npz"
    )
    assert result.report.after.bytes < result.report.before.bytes / 2
    assert result.report.quality is not None
    assert result.report.quality.after > result.report.quality.before - 0.03


def test_cost_and_compare(tmp_path: Path) -> None:
    cost = graphopt.cost(RESIDUAL, batch=4)
    assert cost.macs == 4 * graphopt.cost(RESIDUAL).macs
    assert sum(node.macs or 0 for node in cost.per_node) == cost.macs
    graphopt.optimize(RESIDUAL).save(tmp_path / "o.onnx")
    comparison = graphopt.compare(RESIDUAL, tmp_path / "o.onnx")
    assert comparison.check.status == "same"
    assert graphopt.compare(RESIDUAL, MODELS / "shuffle.onnx").check.status == "different"


def test_real_models_compute_the_same(corpus: Path) -> None:
    for path in sorted(corpus.rglob("*.onnx")):
        result = graphopt.optimize(path, verify="full")
        check = result.report.check
        assert check is None or check.status != "different", path.name
        refused = [warning for warning in result.warnings if "not compared" not in warning and "taken back" in warning]
        assert not refused, path.name
