from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Call


NO_MODELS = {"empty": b"", "text": b"not a model at all", "fields": b"\x08\x07" * 40, "bytes": b"\xff" * 1000}


@pytest.mark.parametrize("content", NO_MODELS)
@pytest.mark.parametrize("command", ["run", "cost"])
def test_files_that_are_no_model(command: str, content: str, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(NO_MODELS[content])
    outcome = call(command, path)
    assert (outcome.code, outcome.out) == (1, "")
    assert "bad.onnx" in outcome.error
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", [("run",), ("cost",), ("compare", "also_missing.onnx")])
def test_missing_file(command: tuple[str, ...], call: Call) -> None:
    outcome = call(*command, "missing.onnx")
    assert outcome.code == 1
    assert "missing.onnx" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--foo",), "No such option '--foo'"),
        (("--budget", "macs=lots"), "'lots' is no amount of macs"),
        (("--shape", "x"), "is no shape"),
        (("--metric", "best"), "is no metric"),
        (("--normalize", "men=1"), "'men=1': write scale"),
        (("--threads", "0"), "--threads"),
        (("--seed", "-1"), "--seed"),
        (("--max-drop", "-0.1"), "--max-drop"),
        (("--calibration-samples", "0"), "--calibration-samples"),
        (("--verify", "some"), "--verify"),
        (("--exclude", "("), "no regular expression"),
        (("-p", "lossless", "--preset", "lossless"), "--pipeline and --preset exclude each other"),
        (("--plan", "p.json", "--budget", "macs=0.5"), "--plan and --budget exclude each other"),
        (("-q", "-v"), "--quiet and --verbose exclude each other"),
        (("--shape", "x=1", "--shape", "x=2"), "'x' is given twice"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call("run", model, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.startswith("graphopt: error: ")
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "fold-constnts"), "did you mean 'fold-constants'?"),
        (("-p", "fold-constants{"), "^"),
        (("-p", "fold-constants{rato=1}"), "rato"),
        (("--preset", "lossles"), "lossless"),
    ],
)
def test_pipelines_that_cannot_be_read(arguments: tuple[str, ...], message: str, model: Path, call: Call) -> None:
    outcome = call("run", model, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_shape_and_provider_that_do_not_fit_the_model(model: Path, call: Call) -> None:
    assert "no input 'z'" in call("run", model, "--shape", "z=1,3,16,16").err
    for command in (("run", model, "--no-check"), ("compare", model, model)):
        outcome = call(*command, "--provider", "tpu")
        assert outcome.code == 2
        assert "'tpu'" in outcome.error


@pytest.mark.parametrize(
    "arguments",
    [
        ("--budget", "macs=0.5"),
        ("--max-drop", "0.01"),
        ("--plan", "plan.json"),
        ("--scheduler", "tcp://127.0.0.1:8786"),
    ],
)
def test_what_a_later_version_brings_is_refused_by_name(arguments: tuple[str, ...], model: Path, call: Call) -> None:
    outcome = call("run", model, *arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.error.startswith(arguments[0])
    assert re.search("not available|this version", outcome.error)
    assert not model.with_name("net.opt.onnx").exists()


@pytest.mark.parametrize("preset", ["small", "fast"])
def test_presets_that_quantize_ask_for_samples(preset: str, model: Path, call: Call) -> None:
    outcome = call("run", model, "--preset", preset)
    assert outcome.code == 1
    assert re.search("quantize: .* calibration samples", outcome.error)


def test_commands_of_later_versions(call: Call) -> None:
    outcome = call("plan", "m.onnx", "-d", "c.npz", "--budget", "macs=0.5", "-o", "p.json")
    assert outcome.code == 1
    assert outcome.error.startswith("plan")


def test_a_device_profile_that_is_there_must_be_one(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "p.json"
    path.write_text("[]")
    outcome = call("profile-device", "-o", path)
    assert outcome.code == 1
    assert "must be an object" in outcome.error


def test_a_measurement_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(path: Path, **options: object) -> None:
        path.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("graphopt.pricing.profiling.measure_profile", stopped)
    outcome = call("profile-device", "-o", tmp_path / "p.json")
    assert outcome.code == 130
    assert "p.json is a profile of what is measured; the same command without --overwrite goes on" in outcome.err


def test_commands_of_later_versions_still_check_their_options(call: Call) -> None:
    assert call("plan", "m.onnx").code == 2
    assert call("plan", "m.onnx", "-o", "p.json", "--budget", "mac=1").code == 2


def test_traceback_only_when_asked(call: Call) -> None:
    assert "Traceback" not in call("run", "missing.onnx").err
    assert "Traceback" in call("run", "missing.onnx", "-v").err


def test_defects_of_ours_are_one_line_too(model: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("nothing\nhere")

    monkeypatch.setattr("graphopt.api.cost", broken)
    outcome = call("cost", model)
    assert outcome.code == 1
    assert "internal error (KeyError" in outcome.error
    assert "report it" in outcome.error


INTERRUPTING = """
import importlib, os, signal, sys
module, _, name = sys.argv[1].rpartition(".")
owner = importlib.import_module(module)
original = getattr(owner, name)
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*args, **kwargs)
setattr(owner, name, interrupted)
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
from graphopt.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "place", ["graphopt.api.optimize", "graphopt.lift.lift", "graphopt.ir.emit._write", "os.replace"]
)
def test_interrupted_anywhere_leaves_nothing(place: str, model: Path, tmp_path: Path, process: Call) -> None:
    outcome = process(place, "run", model, program=("-c", INTERRUPTING))
    assert outcome.code == 130, outcome
    assert outcome.err == "graphopt: interrupted\n"
    assert [line for line in outcome.out.splitlines() if line and not line.startswith("pipeline: ")] == []
    assert list(tmp_path.iterdir()) == [model]


def test_reader_that_leaves() -> None:
    """`graphopt passes | head -0`: no traceback, nothing on stderr."""
    command = [sys.executable, "-m", "graphopt", "passes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141
