from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from graphopt import __version__

if TYPE_CHECKING:
    from tests.cli.conftest import Call

OPTIONS = {
    "run": """--output --pipeline --preset --plan --budget --max-drop --data --calibration-samples --eval-data --metric
        --normalize --shape --exclude --latency --check --no-check --dump --device --report --json --provider --threads
        --jobs --scheduler --seed --config --overwrite --no-provenance --verify --quiet --verbose""",
    "plan": """--output --pareto --pipeline --preset --budget --max-drop --data --calibration-samples --eval-data
        --metric --normalize --shape --exclude --device --json --provider --threads --jobs --scheduler --seed --config
        --overwrite --quiet --verbose""",
    "cost": "--per-node --batch --shape --device --json --config --quiet --verbose",
    "compare": "--data --metric --normalize --latency --shape --device --json --provider --threads --seed --config",
    "passes": "--help",
    "profile-device": "--output --overwrite",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_listed_with_a_text(command: str, call: Call) -> None:
    outcome = call(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    words = outcome.out.replace(",", " ").split()
    assert set(OPTIONS[command].split()) <= set(words)


def test_short_names(call: Call) -> None:
    text = call("run", "--help").out
    assert all(f"{short}, --" in text for short in ("-o", "-p", "-d", "-q", "-v", "-h"))


def test_version(call: Call) -> None:
    assert call("--version").out == f"graphopt {__version__}\n"


def test_nothing_asked_for_is_wrong_usage(call: Call) -> None:
    outcome = call()
    assert (outcome.code, outcome.out) == (2, "")
    assert "Commands:" in outcome.err


def test_help_loads_nothing_heavy(process: Call) -> None:
    """Half a second for `graphopt --help` is a matter of what it imports."""
    program = """
import sys
from graphopt.cli.main import main
main(["--help"]); main(["run", "--help"])
heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "scipy", "sympy", "networkx", "torch"}
print("loaded:", *sorted(heavy & sys.modules.keys()))
"""
    assert process(program=("-c", program)).out.splitlines()[-1] == "loaded:"
