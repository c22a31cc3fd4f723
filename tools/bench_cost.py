"""How good the cost model is: MACs and parameters against published figures, peak memory against onnxruntime.

    python tools/bench_cost.py [--folder DIR] [--repeats N] [--every-peak]

Figures to hold: MACs and parameters within 0.5 % of the reference; peak activation memory within 10 % of what
onnxruntime takes. That is measured in a fresh process per model and repeat, on one thread, as the growth of resident
memory in the second run. It needs Linux, and three settings: the arena off, memory patterns off (they add up what
buffers take in one block, gaps included), and a small `mmap` threshold of malloc, so that freed buffers really leave.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from peer_models import export, light

from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.analysis.liveness import peak_activation_memory
from graphopt.lift import lift
from graphopt.pricing import Cost, price
from graphopt.pricing.device import this_machine

MIB = 2**20
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Reference:
    """Published figures of a network, in millions: MACs at batch 1, and parameters."""

    title: str
    macs: float
    params: float


LIGHT = {
    "bvlc_alexnet": Reference("AlexNet", 654.6, 60.97),
    "zfnet512": Reference("ZFNet-512", 1482, 87.25),
    "squeezenet": Reference("SqueezeNet 1.1", 349.2, 1.235),
    "inception_v1": Reference("Inception v1", 1432, 7.00),
    "inception_v2": Reference("Inception v2", 2019, 11.24),
    "shufflenet": Reference("ShuffleNet g=3", 124.7, 1.42),
    "densenet121": Reference("DenseNet-121", 2834, 8.15),
    "resnet50": Reference("ResNet-50", 4089, 25.6),
    "vgg19": Reference("VGG-19", 19632, 143.67),
}
TORCH = {
    "vgg19": Reference("VGG-19", 19632, 143.67),
    "mobilenetv2": Reference("MobileNetV2", 300.8, 3.50),
    "resnet50": Reference("ResNet-50", 4089, 25.6),
    # The published 108.85 M are those of the encoder; this network has BERT's pooler, 768 x 768 + 768, too.
    "bert": Reference("BERT-base, 128 tokens", 11174, 108.85 + 0.59),
}


@dataclass(frozen=True)
class Model:
    """A file, the figures that its network should have, and how it came about."""

    path: Path
    reference: Reference
    source: str


def models(folder: Path | None) -> Iterator[Model]:
    """Every network of the list, torch's from both exporters."""
    for name, reference in TORCH.items():
        yield Model(export(name, "legacy", folder), reference, "torch, legacy")
        yield Model(export(name, "dynamo", folder), reference, "torch, dynamo")
    for name, reference in LIGHT.items():
        yield Model(light(name, folder), reference, "onnx wheel")


def compare_counts(found: Model, cost: Cost) -> str:
    """One row: MACs and parameters, and how far they are from the reference."""
    macs, params = cost.macs / 1e6, cost.params / 1e6
    reference = found.reference
    return (
        f"{reference.title:<24}{found.source:<16}"
        f"{macs:>10.1f}{reference.macs:>10.1f}{_error(macs, reference.macs):>9}"
        f"{params:>10.3f}{reference.params:>9.2f}{_error(params, reference.params):>9}"
        f"  {' '.join(cost.unknown_cost_ops)}"
    )


def compare_peak(found: Model, model: ir.Model, repeats: int) -> str:
    """One row: predicted and measured peak, the best order's, and where the peak stands."""
    execution = Execution(model, Extents(model), this_machine().block)
    peak = peak_activation_memory(model.graph, execution)
    best = peak_activation_memory(model.graph, execution, best_order=True)
    measured = statistics.median(measured_peak(found.path) for _ in range(repeats))
    where = "" if peak.node is None else f"{peak.node.op_type} {peak.node.name}"
    return (
        f"{found.reference.title:<24}{found.source:<16}"
        f"{peak.bytes / MIB:>10.2f}{measured / MIB:>10.2f}{_error(peak.bytes, measured):>9}"
        f"{best.bytes / MIB:>10.2f}  {where[-40:]}"
    )


def _error(value: float, reference: float) -> str:
    return f"{100 * (value / reference - 1):+.2f} %"


# --- measuring --------------------------------------------------------------------------------------------------------


def measured_peak(path: Path) -> int:
    """Bytes by which resident memory grows at most in the second run, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True, check=True)
    return int(done.stdout)


def growth_in_second_run(path: Path) -> int:
    """Run a model twice with seeded inputs; bytes of resident memory at the peak of the second run over before it."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        integer = "int" in value.type
        feeds[value.name] = (
            np.ones(value.shape, np.int64) if integer else random.standard_normal(value.shape).astype(np.float32)
        )
    session.run(None, feeds)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    results = session.run(None, feeds)
    peak = _status("VmHWM")
    del results
    return peak - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="cache of the models (default: $GRAPHOPT_BENCH_CACHE or the user's)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="processes per measurement; the median counts")
    parser.add_argument("--every-peak", action="store_true", help="measure the onnx wheel's networks, too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(growth_in_second_run(options.measure))
        return
    rows = []
    print(f"{'':<40}{'M MACs':>10}{'reference':>10}{'error':>9}{'M params':>10}{'ref.':>9}{'error':>9}  unknown")
    for found in models(options.folder):
        model = lift(found.path).model
        print(compare_counts(found, price(model)), flush=True)
        if found.source != "onnx wheel" or options.every_peak:
            rows.append((found, model))
    print(f"\npeak activation memory, MiB\n{'':<40}{'predicted':>10}{'measured':>10}{'error':>9}{'best':>10}  peak at")
    for found, model in rows:
        print(compare_peak(found, model, options.repeats), flush=True)


if __name__ == "__main__":
    main()
