from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Call

COST = {"macs", "params", "bytes", "weight_bytes", "peak_activation_bytes", "nodes", "latency_ms", "unknown_cost_ops"}
REPORT = {"graphopt", "input", "pipeline", "before", "after", "quality", "passes", "plan", "warnings", "seconds"}


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_default_output_and_table(model: Path, call: Call) -> None:
    outcome = call("run", model)
    assert (outcome.code, outcome.err) == (0, "")
    assert operators(model.with_name("net.opt.onnx")) == ["Conv", "Relu"]
    lines = outcome.out.splitlines()
    assert lines[0].startswith("pipeline: inline-constant-if,")
    rows = [line.split()[0] for line in lines if line.strip()]
    for row in ("original", "fold-batch-norm", "eliminate-identity", "total"):
        assert row in rows
    assert all(len(line) <= 100 for line in lines if not line.startswith(("pipeline:", "wrote")))
    assert "same outputs" in outcome.out
    assert str(model.with_name("net.opt.onnx")) in outcome.out


def test_json_on_stdout_is_all_of_stdout(model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call("run", model, "-o", tmp_path / "out.onnx", "--json", "-")
    report = json.loads(outcome.out)
    assert report.keys() >= REPORT | {"peak_rss_bytes"}
    assert report["before"].keys() >= COST
    assert report["after"].keys() >= COST
    assert {"path", "sha256", "bytes"} <= report["input"].keys()
    assert report["input"]["path"] == str(model)
    assert (report["before"]["nodes"], report["after"]["nodes"]) == (4, 2)
    assert report["after"]["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert report["quality"] is None
    assert report["before"]["latency_ms"] is None
    assert report["check"]["status"] == "same"
    fold = next(record for record in report["passes"] if record["name"] == "fold-batch-norm")
    assert fold["modified"]
    assert {"options", "seconds", "before", "after", "remarks"} <= fold.keys()
    assert "original" in outcome.err  # the table moved over


def test_reports_in_files(model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call("run", model, "--json", tmp_path / "r.json", "--report", tmp_path / "r.html", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert json.loads((tmp_path / "r.json").read_text())["after"]["nodes"] == 2
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "fold-batch-norm" in page
    assert page.count("<td>relu</td>") == 2  # a row in the nodes of the result, one in those of the original


def test_pipeline_preset_and_exclude(model: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "o.onnx"
    assert call("run", model, "-p", "eliminate-identity", "-o", out).code == 0
    assert operators(out) == ["Conv", "BatchNormalization", "Relu"]
    assert call("run", model, "--preset", "lossless", "--exclude", "norm|conv", "-o", out, "--overwrite").code == 0
    assert operators(out) == ["Conv", "BatchNormalization", "Relu"]
    assert call("run", model, "--preset", "lossless", "--exclude", "cop", "-o", out, "--overwrite").code == 0
    assert operators(out) == ["Conv", "Relu"]  # an expression stands for whole names


def test_measured_latency(model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call("run", model, "--latency", "--threads", 1, "--json", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["before"]["latency_ms"] > 0
    assert report["after"]["latency_ms"] > 0
    low, high = report["latency"]["interval"]
    assert low <= report["latency"]["ratio"] <= high
    assert "latency:" in outcome.out


@pytest.mark.parametrize(
    "options",
    [
        ("--no-check",),
        ("--check", "--verify", "full", "--seed", "7", "--threads", "2", "--jobs", "2", "--provider", "cpu"),
        ("--shape", "x=1,3,16,16"),
        ("--shape", "x:4x3x16x16", "--normalize", "imagenet", "--calibration-samples", "64"),
    ],
)
def test_options_that_do_not_change_the_result(options: tuple[str, ...], model: Path, call: Call) -> None:
    outcome = call("run", model, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert operators(model.with_name("net.opt.onnx")) == ["Conv", "Relu"]
    assert ("same outputs" in outcome.out) == ("--no-check" not in options)


def test_fixed_shape_is_in_the_result(model: Path, call: Call) -> None:
    call("run", model, "--shape", "x=2,3,16,16")
    dims = onnx.load(model.with_name("net.opt.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 3, 16, 16]


def test_provenance_and_its_absence(model: Path, tmp_path: Path, call: Call) -> None:
    call("run", model, "-o", tmp_path / "with.onnx")
    call("run", model, "-o", tmp_path / "without.onnx", "--no-provenance")
    described, bare = (onnx.load(tmp_path / name) for name in ("with.onnx", "without.onnx"))
    assert any("graphopt" in prop.key for prop in described.metadata_props)
    assert not any("graphopt" in prop.key for prop in bare.metadata_props)


def test_dump_holds_the_ir_after_each_pass(model: Path, tmp_path: Path, call: Call) -> None:
    assert call("run", model, "--dump", tmp_path / "dump").code == 0
    assert any("fold-batch-norm" in path.name for path in (tmp_path / "dump").rglob("*"))


def test_data_that_no_pass_reads_is_a_warning(model: Path, tmp_path: Path, call: Call) -> None:
    np.savez(tmp_path / "calib.npz", x=np.zeros((4, 3, 16, 16), np.float32))
    outcome = call("run", model, "-d", tmp_path / "calib.npz")
    assert outcome.code == 0
    assert "no pass of this pipeline reads data" in outcome.out.splitlines()[-1]
    quiet = call("run", model, "-d", tmp_path / "calib.npz", "-q", "--overwrite")
    assert quiet.out == ""
    assert quiet.err.startswith("graphopt: warning: ")
    assert "no pass of this pipeline reads data" in quiet.err


def test_verbose_prints_remarks(model: Path, call: Call) -> None:
    assert "norm" not in call("run", model).out.replace("fold-batch-norm", "")
    assert "norm" in call("run", model, "-v", "--overwrite").out.replace("fold-batch-norm", "")


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "relative"])
def test_the_input_is_never_written(link: str, model: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()
    target = model.with_name("other.onnx")
    match link:
        case "symbolic":
            target.symlink_to(model)
        case "hard":
            os.link(model, target)
        case "relative":
            monkeypatch.chdir(model.parent)
            target = Path("net.onnx")
        case _:
            target = model
    outcome = call("run", model, "-o", target, "--overwrite")
    assert outcome.code == 1
    assert "is the input" in outcome.error
    assert model.read_bytes() == before


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_reports_do_not_replace_the_input_either(option: str, model: Path, call: Call) -> None:
    before = model.read_bytes()
    assert "is the input" in call("run", model, option, model).error
    assert model.read_bytes() == before


def test_existing_output_needs_overwrite(model: Path, call: Call) -> None:
    target = model.with_name("net.opt.onnx")
    target.write_bytes(b"precious")
    outcome = call("run", model)
    assert outcome.code == 1
    assert "--overwrite" in outcome.error
    assert target.read_bytes() == b"precious"
    assert call("run", model, "--overwrite").code == 0
    assert operators(target) == ["Conv", "Relu"]


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_reports_replace_reports(option: str, model: Path, tmp_path: Path, call: Call) -> None:
    target = tmp_path / "report"
    target.write_text("of the run before")
    assert call("run", model, option, target).code == 0
    assert "of the run before" not in target.read_text()


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_reports_do_not_replace_models(option: str, model: Path, tmp_path: Path, call: Call) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"precious")
    outcome = call("run", model, "--overwrite", option, other)
    assert outcome.code == 1
    assert f"{other}: is a model; a report does not replace one" in outcome.error
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize("read", ["-d", "--eval-data"])
@pytest.mark.parametrize("option", ["--json", "--report", "-o"])
def test_samples_are_never_written_over(read: str, option: str, model: Path, tmp_path: Path, call: Call) -> None:
    samples = tmp_path / "samples.npz"
    samples.write_bytes(b"precious")
    outcome = call("run", model, "--overwrite", read, samples, option, samples)
    assert outcome.code == 1
    assert f"{samples}: is the input, or part of it; it is never written to" in outcome.error
    assert samples.read_bytes() == b"precious"


def test_pipes_are_written_to_and_stay(model: Path, tmp_path: Path, call: Call) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert call("cost", model, "--json", pipe).code == 0
        assert json.loads(os.read(reader, 1 << 16))["macs"] > 0
        refused = call("run", model, "-o", pipe, "--overwrite")
    finally:
        os.close(reader)
    assert (refused.code, pipe.is_fifo()) == (1, True)
    assert "is no regular file" in refused.error


def test_an_exclusion_without_effect_is_named_as_it_was_typed(model: Path, call: Call) -> None:
    outcome = call("run", model, "--exclude", "norm", "--exclude", "nor[0-9]", "--exclude", "a.b")
    lines = outcome.out.splitlines()
    assert "warning: --exclude nor[0-9]: the name of no node, and no expression for one" in lines
    assert "warning: --exclude a.b: the name of no node, and no expression for one" in lines
    assert not any("--exclude norm" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "message"),
    [("-o", "there is no folder"), ("--json", "there is no folder"), ("--report", "there is no folder")],
)
def test_targets_in_no_folder(option: str, message: str, model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call("run", model, option, tmp_path / "nowhere" / "file")
    assert outcome.code == 1
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable to root")
def test_target_in_a_folder_that_cannot_be_written(model: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "cannot be written to" in call("run", model, "-o", folder / "o.onnx").error


def test_models_do_not_go_to_stdout(model: Path, call: Call) -> None:
    outcome = call("run", model, "-o", "-")
    assert outcome.code == 2
    assert "not to stdout" in outcome.error


def test_two_reports_for_one_target(model: Path, call: Call) -> None:
    outcome = call("run", model, "--json", "-", "--report", "-")
    assert outcome.code == 2
    assert "different targets" in outcome.error


def test_stdout_of_the_process_is_pure_json(model: Path, process: Call) -> None:
    """As a user's shell sees it, with whatever native libraries print."""
    outcome = process("run", model, "--json", "-")
    assert outcome.code == 0
    assert json.loads(outcome.out)["after"]["nodes"] == 2
    assert "total" in outcome.err


def test_a_second_run_changes_no_byte(call: Call, tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "models" / "transformer.onnx"
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    assert call("run", model, "-o", once).code == 0
    assert call("run", once, "-o", twice).code == 0
    assert once.read_bytes() == twice.read_bytes()
