"""What pruning does to every structure: whether the result runs, how far MACs fall, what stays and why.

Subjects are the models of a corpus, the `light_*` architectures of the onnx wheel and torch exports (both exporters, batch 1,
2 and symbolic). Each is pruned at one ratio, held against the least that its kind should give, and run in onnxruntime.
onnxsim's pruner gets the same files, Torch-Pruning the networks that the exports came from.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import onnx_ir as ir
from peers.cache import cache_folder
from peers.exports import EXPORTERS, export
from peers.light import light, light_names
from peers.networks import example_inputs
from quantizers import TOOLS, Environment, last_line

from graphopt.analysis.coupling import couple
from graphopt.errors import GraphoptError, RuntimeFailureError
from graphopt.lift import lift
from graphopt.pricing import price
from graphopt.runtime.inputs import candidate_inputs
from graphopt.runtime.session import Session

PIPELINE = "lossless,prune-channels{{ratio={ratio},scope=uniform,align=1}}"
LEVELS = {
    **dict.fromkeys(("vgg", "densenet"), 0.45),
    **dict.fromkeys(("resnet50", "unet"), 0.40),
    **dict.fromkeys(("mobilenet", "squeezenet", "imagenet_squeezenet", "shufflenet", "yolo"), 0.30),
    **dict.fromkeys(("vit", "bert", "swin", "convnext"), 0.22),
}
"""By how much MACs should fall at ratio 0.3, by the beginning of a subject's name."""

ZOO = (
    *("resnet50", "mobilenetv2", "mobilenetv3", "efficientnet", "densenet", "shufflenetv2", "yolo", "unet"),
    *("vit", "bert-small", "swin", "convnext", "cbam"),
)
BATCHES: tuple[int | None, ...] = (1, 2, None)
ENVIRONMENTS = {
    "onnxsim": Environment("onnxsim", "with_onnxsim", ("onnxsim", "onnx", "onnxruntime", "numpy")),
    "Torch-Pruning": Environment("torch-pruning", "with_torch_pruning", ("torch-pruning", "torch", "numpy")),
}


@dataclass(frozen=True)
class Subject:
    """A model to prune; `network` is what it was exported from."""

    name: str
    path: Path
    network: str | None = None

    @property
    def level(self) -> float | None:
        """By how much its MACs should fall."""
        return next((least for start, least in LEVELS.items() if self.name.startswith(start)), None)


@dataclass
class Row:
    """What came out. MACs are relative to the original's; `problem` is what keeps the result from running."""

    name: str
    level: float | None = None
    macs: float | None = None
    pinned: float | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0
    peers: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether it runs and is as small as it should be."""
        return not self.problem and (self.level is None or (self.macs is not None and 1 - self.macs >= self.level))


def subjects(corpus: Path | None, cache: Path | None, patterns: Sequence[str]) -> Iterator[Subject]:
    """Those whose names match one of `patterns`; exports are made when their turn comes."""

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    for path in sorted(corpus.rglob("*.onnx")) if corpus is not None else ():
        name = path.stem if path.parent.name == "structures" else f"{path.parent.name}/{path.stem}"
        if wanted(name):
            yield Subject(name, path)
    for name in light_names():
        if wanted(f"{name} (light)"):
            yield Subject(f"{name} (light)", light(name, cache))
    for network in ZOO:
        for exporter in EXPORTERS:
            for batch in BATCHES:
                name = f"{network} {exporter} batch {'N' if batch is None else batch}"
                if wanted(name):
                    yield Subject(name, export(network, exporter, cache, batch=batch), network)


def structure_row(subject: Subject, ratio: float, pythons: Mapping[str, Path]) -> Row:
    """Prune one subject with graphopt and with the peers whose interpreters are given."""
    row = Row(subject.name, subject.level)
    started = time.perf_counter()
    try:
        _prune(subject, ratio, row)
    except GraphoptError as error:
        row.problem = str(error)
    except Exception as error:
        row.problem = f"{type(error).__name__}: {error}"
    row.seconds = time.perf_counter() - started
    if "onnxsim" in pythons:
        row.peers["onnxsim"] = _onnxsim(subject, ratio, pythons["onnxsim"])
    if "Torch-Pruning" in pythons and subject.network is not None:
        row.peers["Torch-Pruning"] = _torch_pruning(subject.network, ratio, pythons["Torch-Pruning"])
    return row


def interpreters(cache: Path | None) -> dict[str, Path]:
    """Those of the peers whose environments can be made."""
    found = {name: environment.python(cache) for name, environment in ENVIRONMENTS.items()}
    return {name: python for name, python in found.items() if python is not None}


def _prune(subject: Subject, ratio: float, row: Row) -> None:
    from graphopt import optimize

    original = lift(subject.path).model
    coupling = couple(optimize(subject.path, check=False).ir)
    total = sum(coupling.widths.values())
    reasons: Counter[str] = Counter()
    for pin in coupling.pinned:
        reasons[pin.reason] += pin.channels
    row.pinned = sum(reasons.values()) / total if total else None
    row.reasons = dict(reasons.most_common())
    result = optimize(subject.path, PIPELINE.format(ratio=ratio), check=False).ir
    row.macs = price(result).macs / max(1, price(original).macs)
    row.problem = _cannot_run(original, result, subject)


def _cannot_run(original: ir.Model, result: ir.Model, subject: Subject) -> str:
    """Why `result` does not do what `original` does, or nothing."""
    before, feeds = _accepted(original, subject)
    after = Session(result).run(feeds)
    shapes = [{name: getattr(array, "shape", None) for name, array in outputs.items()} for outputs in (before, after)]
    return "" if shapes[0] == shapes[1] else f"outputs {shapes[1]} instead of {shapes[0]}"


def _accepted(original: ir.Model, subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the original, and the first inputs that it takes."""
    session, failure = Session(original, name="the original"), None
    for feeds in _feeds(original, subject):
        try:
            return session.run(feeds), feeds
        except RuntimeFailureError as error:
            failure = error
    raise RuntimeFailureError(f"the original does not run here: {failure or 'there are no inputs for it'}")


def _feeds(model: ir.Model, subject: Subject) -> Iterator[dict[str, Any]]:
    if subject.network is None:
        yield from candidate_inputs(model)
        return
    leading = model.graph.inputs[0].shape
    batch = leading[0] if leading is not None and isinstance(leading[0], int) else 3
    yield dict(example_inputs(subject.network, batch=batch))


def _onnxsim(subject: Subject, ratio: float, python: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned.onnx"
        failure = _run(python, "with_onnxsim", subject.path, output, ratio)
        if failure:
            return failure
        try:
            original, result = lift(subject.path).model, lift(output).model
            problem = _cannot_run(original, result, subject)
            return problem or f"{price(result).macs / max(1, price(original).macs):.3f}"
        except GraphoptError as error:
            return f"does not run: {error}"


def _torch_pruning(network: str, ratio: float, python: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "macs.json"
        failure = _run(python, "with_torch_pruning", network, output, ratio)
        if failure:
            return failure
        macs = json.loads(output.read_text())
        return f"{macs['after'] / macs['before']:.3f}"


def _run(python: Path, module: str, *arguments: object) -> str:
    """Why the peer failed, or nothing."""
    command = [str(python), "-m", f"peers.pruners.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(TOOLS)})
    return f"fails: {last_line(done.stderr)}" if done.returncode else ""


def print_row(row: Row, names: Sequence[str]) -> None:
    """One line, and one per reason why channels stay."""
    level = "" if row.level is None else f"<= {1 - row.level:.2f}"
    macs = "-" if row.macs is None else f"{row.macs:.3f}"
    pinned = "-" if row.pinned is None else f"{100 * row.pinned:.0f} %"
    verdict = row.problem or ("ok" if row.holds else "above the level")
    peers = "".join(f" {row.peers.get(name, '')[:40]:>14}" for name in names)
    print(f"{row.name:42} {macs:>6} {level:>8} {pinned:>6} {row.seconds:6.1f} s{peers}  {verdict}", flush=True)
    for reason, channels in list(row.reasons.items())[:3]:
        print(f"{'':42} {channels:>6} stay: {reason}")


def structures(
    corpus: Path | None, cache: Path | None, *, ratio: float = 0.3, patterns: Sequence[str] = ("*",), peers: bool = True
) -> list[Row]:
    """Print the whole table; returns its rows."""
    pythons = interpreters(cache_folder(cache)) if peers else {}
    print(f"Pruned at ratio {ratio}: MACs relative to the original, share of channels that stay, and why")
    print(f"{'model':42} {'MACs':>6} {'level':>8} {'pinned':>6} {'time':>8}" + "".join(f" {n:>14}" for n in pythons))
    rows = []
    asked: dict[str, str] = {}
    for subject in subjects(corpus, cache, patterns):
        again = asked.get(subject.network or "")
        available = {name: python for name, python in pythons.items() if again is None or name != "Torch-Pruning"}
        row = structure_row(subject, ratio, available)
        if again is not None:
            row.peers["Torch-Pruning"] = again
        elif "Torch-Pruning" in row.peers and subject.network is not None:
            asked[subject.network] = row.peers["Torch-Pruning"]
        print_row(row, list(pythons))
        rows.append(row)
    held = sum(row.holds for row in rows)
    print(f"{held} of {len(rows)} run and reach their level")
    return rows
