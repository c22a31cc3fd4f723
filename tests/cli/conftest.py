from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cli.main import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr, checked to be one and to say nothing but the error."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("graphopt: error: "), self.err
        return self.err.removeprefix("graphopt: error: ").strip()


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def process() -> Call:
    """Run the command line, or another Python program, in a process of its own."""

    def run(*arguments: object, program: tuple[str, ...] = ("-m", "graphopt")) -> Outcome:
        command = [sys.executable, *program, *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "100"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with Conv, BatchNormalization, Identity and Relu, and a batch that is left open."""
    rng = np.random.default_rng(0)

    def tensor(name: str, *dims: int) -> TensorProto:
        return numpy_helper.from_array(rng.uniform(0.5, 1.5, dims).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], "norm"),
            helper.make_node("Identity", ["n"], ["i"], "copy"),
            helper.make_node("Relu", ["i"], ["y"], "relu"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 16, 16])],
        [tensor("w", 8, 3, 3, 3), *(tensor(name, 8) for name in "sbmv")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
