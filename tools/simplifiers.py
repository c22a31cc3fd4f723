"""The tools that benches compare graphopt with: how each rewrites one file into another, in a process of its own.

Every command does what the tool's own documentation tells users to do, with nothing switched off but checks. Tools that
are not installed are left out by `installed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import measure

ONNXSIM = """
import sys, onnx, onnxsim
model, ok = onnxsim.simplify(sys.argv[1])
onnx.save(model, sys.argv[2])
"""

ONNXSLIM = """
import sys, onnxslim
onnxslim.slim(sys.argv[1], sys.argv[2])
"""

ONNXSCRIPT = """
import sys, onnx_ir
from onnxscript import optimizer
model = onnx_ir.load(sys.argv[1])
optimizer.optimize_ir(model)
onnx_ir.save(model, sys.argv[2])
"""

ORT_BASIC = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = sys.argv[2]
options.log_severity_level = 3
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@dataclass(frozen=True)
class Simplifier:
    """A tool: its name in tables, the distribution it comes in, and its command for a file to read and one to write."""

    name: str
    package: str
    command: Callable[[Path, Path], list[str]]

    @property
    def version(self) -> str | None:
        """The version that is installed, None where it is not."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def graphopt(pipeline: str = "lossless") -> Simplifier:
    """graphopt's command line with `pipeline`, without the equivalence check."""

    def command(model: Path, output: Path) -> list[str]:
        return measure.graphopt("run", model, "-o", output, "-p", pipeline, "--no-check", "--overwrite", "-q")

    return Simplifier("graphopt", "graphopt", command)


def _script(name: str, package: str, code: str) -> Simplifier:
    return Simplifier(name, package, lambda model, output: measure.python(code, model, output))


PEERS = (
    _script("onnxsim", "onnxsim", ONNXSIM),
    _script("OnnxSlim", "onnxslim", ONNXSLIM),
    _script("onnxscript", "onnxscript", ONNXSCRIPT),
    _script("ORT basic", "onnxruntime", ORT_BASIC),
)
"""onnxruntime's own `ORT_ENABLE_BASIC` level is what remains a portable model of standard operators."""


def installed() -> list[Simplifier]:
    """The peers that can run here; prints a line about each one that cannot."""
    for peer in PEERS:
        if peer.version is None:
            print(f"{peer.name} is left out: pip install {peer.package}")
    return [peer for peer in PEERS if peer.version is not None]
