"""The quantizers that `bench_quantize` runs: graphopt's command line and its peers, each in an environment of its own.

A peer is a small module in `peers/quantizers` and the packages that it needs. Its virtual environment is made under
the cache folder when it is first wanted, with the newest releases that pip finds, and kept; one that cannot be made is
reported in a line and left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import measure
from peers.cache import cache_folder

TOOLS = Path(__file__).resolve().parent
_VERSION = "from importlib.metadata import version; import sys; print(version(sys.argv[1]))"


@dataclass(frozen=True)
class Environment:
    """A peer's packages: the first is the tool itself; `module` of `peers.quantizers` is what runs in it."""

    name: str
    module: str
    packages: tuple[str, ...]

    def python(self, cache: Path | None) -> Path | None:
        """The environment's interpreter, made if it is not there; None, with a line that says why, where it fails."""
        folder = cache_folder(cache) / "environments" / self.name
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        complete = folder / "packages.json"
        if complete.exists() and json.loads(complete.read_text()) == list(self.packages):
            return python
        print(f"installing {' '.join(self.packages)} in {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{self.name} is left out: {last_line(done.stderr)}")
            return None
        complete.write_text(json.dumps(self.packages))
        return python

    def version(self, python: Path) -> str:
        """The version of the tool in the environment."""
        command = [str(python), "-c", _VERSION, self.packages[0]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def last_line(text: str) -> str:
    """The last line of what a program said, for a table."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "pip said nothing"


@dataclass(frozen=True)
class Quantizer:
    """One way to quantize.

    Attributes:
        name: in tables.
        command: from the model, the samples (npz) and the file to write to a command.
        variables: environment variables of the command.
        seeded: whether another seed gives another result on the same samples.
        version: of a peer: what it makes of the same samples is kept as long as this stays.
    """

    name: str
    command: Callable[[Path, Path, Path, int], list[str]]
    variables: Mapping[str, str] = field(default_factory=dict)
    seeded: bool = False
    version: str = ""


PLAIN = (
    "quantize{mode=static,ranges=minmax,equalize=false,smooth=never,clip_weights=false,feedback=false,"
    "correct_biases=false,prefer=integer,sensitivity=false}"
)
"""What onnxruntime's quantizer does with MinMax, and no more: for time and memory of the two."""


def graphopt(pipeline: str = "quantize", name: str = "graphopt") -> Quantizer:
    """graphopt's command line."""

    def command(model: Path, samples: Path, output: Path, seed: int) -> list[str]:
        chosen = ("-p", pipeline, "-d", samples, "--seed", str(seed), "--overwrite", "-q")
        return measure.graphopt("run", model, "-o", output, *chosen)

    return Quantizer(name, command, seeded=True)


_RUNTIME = ("onnx", "onnxruntime", "numpy")
ENVIRONMENTS = {
    "onnxruntime": Environment("onnxruntime", "with_onnxruntime", ("onnxruntime", "onnx", "numpy", "sympy")),
    "onnxsim": Environment("onnxsim", "with_onnxsim", ("onnxsim", *_RUNTIME)),
    "nncf": Environment("nncf", "with_nncf", ("nncf", *_RUNTIME)),
    "quark": Environment("quark", "with_quark", ("amd-quark", "torch", *_RUNTIME)),
    "inc": Environment(
        # the package does not say that it needs the last two
        "inc", "with_neural_compressor", ("onnx-neural-compressor", *_RUNTIME, "prettytable", "scipy")
    ),
}  # fmt: skip
PEERS: tuple[tuple[str, str, str], ...] = (
    ("ORT minmax", "onnxruntime", "minmax"),
    ("ORT entropy", "onnxruntime", "entropy"),
    ("ORT percentile", "onnxruntime", "percentile"),
    ("ORT minmax 7 bit", "onnxruntime", "minmax-7"),
    ("ORT entropy 7 bit", "onnxruntime", "entropy-7"),
    ("ORT dynamic", "onnxruntime", "dynamic"),
    ("ORT dynamic 7 bit", "onnxruntime", "dynamic-7"),
    ("NNCF mixed", "nncf", "mixed"),
    ("NNCF performance", "nncf", "performance"),
    ("NNCF transformer", "nncf", "transformer"),
    ("onnxsim minmax", "onnxsim", "minmax"),
    ("onnxsim auto", "onnxsim", "auto"),
    ("Quark U8S8", "quark", "u8s8_aaws"),
    ("Quark A8W8", "quark", "a8w8"),
    ("Quark AdaRound", "quark", "u8s8_aaws_adaround"),
    ("INC", "inc", "static"),
    ("INC smooth", "inc", "smooth"),
)
"""Name in tables, environment, variant."""

TRANSFORMERS_ONLY = frozenset({"ORT dynamic", "ORT dynamic 7 bit", "NNCF transformer", "INC smooth"})
SLOW = frozenset({"Quark AdaRound"})
"""Trains on the samples for minutes per model: runs only where it is asked for by its full name."""


def wanted(name: str, patterns: Iterable[str]) -> bool:
    """Whether `name` is asked for; the slow ones only by name."""
    return any(name == pattern or (name not in SLOW and fnmatch(name, pattern)) for pattern in patterns)


def peers(patterns: Iterable[str], cache: Path | None) -> list[Quantizer]:
    """The peers that are asked for and can run; prints their versions."""
    patterns = list(patterns)
    chosen = [peer for peer in PEERS if wanted(peer[0], patterns)]
    pythons: dict[str, tuple[Path, str]] = {}
    for name in dict.fromkeys(environment for _, environment, _ in chosen):
        python = ENVIRONMENTS[name].python(cache)
        if python is not None:
            pythons[name] = python, ENVIRONMENTS[name].version(python)
            print(f"{ENVIRONMENTS[name].packages[0]} {pythons[name][1]}", flush=True)
    return [_peer(title, *pythons[name], name, variant) for title, name, variant in chosen if name in pythons]


def _peer(title: str, python: Path, version: str, environment: str, variant: str) -> Quantizer:
    module = f"peers.quantizers.{ENVIRONMENTS[environment].module}"

    def command(model: Path, samples: Path, output: Path, seed: int) -> list[str]:
        return [str(python), "-m", module, str(model), str(samples), str(output), variant]

    return Quantizer(title, command, {"PYTHONPATH": str(TOOLS)}, version=version)
