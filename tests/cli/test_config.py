from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Call


def configured(folder: Path, text: str) -> Path:
    path = folder / "graphopt.toml"
    path.write_text(text)
    return path


def test_values_from_the_file(model: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "from_config.onnx"
    config = configured(
        tmp_path,
        f"""
        output = "{out.as_posix()}"
        pipeline = "eliminate-identity"
        shape = {{ x = [2, 3, 16, 16] }}
        exclude = ["nothing.*", "conv"]
        no-provenance = true
        threads = 2
        """,
    )
    outcome = call("run", model, "--config", config, "--json", "-")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["pipeline"] == "eliminate-identity"
    written = onnx.load(out)
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert not written.metadata_props


@pytest.mark.parametrize("flags", [("-p", "eliminate-dead-code"), ("--pipeline", "eliminate-dead-code")])
def test_flags_win(flags: tuple[str, ...], model: Path, tmp_path: Path, call: Call) -> None:
    config = configured(tmp_path, 'pipeline = "eliminate-identity"')
    outcome = call("run", model, "--config", config, *flags, "--json", "-")
    assert json.loads(outcome.out)["pipeline"] == "eliminate-dead-code"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ('preset = "lossless"', ("-p", "eliminate-identity")),
        ('plan = "p.json"', ("-p", "eliminate-identity")),
        ('plan = "p.json"\nbudget = { macs = 0.5 }', ("-p", "eliminate-identity")),
    ],
)
def test_a_flag_drops_what_it_excludes(
    text: str, flags: tuple[str, ...], model: Path, tmp_path: Path, call: Call
) -> None:
    outcome = call("run", model, "--config", configured(tmp_path, text), *flags, "--json", "-")
    if "budget" in text:  # which excludes the plan, not the pipeline: it stays, and is refused for what it is
        assert outcome.error.startswith("--budget")
    else:
        assert json.loads(outcome.out)["pipeline"] == "eliminate-identity"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pipelin = "x"', "unknown key 'pipelin'; did you mean 'pipeline'?"),
        ("max_drop = -1", "max-drop"),
        ("threads = [1, 2]", "'threads' takes one value"),
        ("output = true", "'output' takes a value"),
        ("latency = 1", "'latency' takes true or false"),
        ("threads = { a = 1 }", "'threads' takes a text, not a table"),
        ('budget = { macs = "lots" }', "'lots' is no amount of macs"),
        ('config = "other.toml"', "unknown key 'config'"),
        ("pipeline = ", "graphopt.toml"),
        ('preset = "lossless"\npipeline = "eliminate-identity"', "exclude each other"),
    ],
)
def test_mistakes_in_the_file(text: str, message: str, model: Path, tmp_path: Path, call: Call) -> None:
    outcome = call("run", model, "--config", configured(tmp_path, text))
    assert outcome.code == 2
    assert message in outcome.error


def test_missing_file(model: Path, call: Call) -> None:
    outcome = call("run", model, "--config", "nowhere.toml")
    assert outcome.code == 2
    assert "nowhere.toml" in outcome.error


def test_other_commands_take_it_too(model: Path, tmp_path: Path, call: Call) -> None:
    config = configured(tmp_path, "batch = 4\n")
    one, four = (json.loads(call("cost", model, "--json", "-", *more).out) for more in ((), ("--config", config)))
    assert four["macs"] == 4 * one["macs"]
