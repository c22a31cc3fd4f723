"""Train the networks of `models/` and write them, their data and their model card.

    python tools/train_models.py --output models

Needs torch, onnxscript, scikit-learn, onnxruntime and graphopt, and nine minutes of processor time. The networks train in
parallel, one thread each. Everything is written to a temporary folder beside the output first and moved when all
networks are trained and checked, so that an interrupted run leaves `models/` as it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from zoo.card import Export, Facts, model_card
from zoo.data import Images, load_parts, render_fixed
from zoo.export import INPUT, export, run
from zoo.measure import accuracy, mac_count, measure_spread, parameter_count
from zoo.training import RECIPES, train

import graphopt

TOOLS = ("torch", "onnxscript", "onnx", "onnxruntime", "scikit-learn")


def build(folder: Path, name: str) -> tuple[Facts, float]:
    """Train, export and measure the network called `name`; return the facts and the seconds it took."""
    start = time.perf_counter()
    parts = load_parts()
    held_out = render_fixed("eval", parts["eval"])
    network = train(name, parts["train"])
    paths = export(name, network, held_out.images, folder)
    facts = Facts(
        name=name,
        trained=parameter_count(network),
        macs=mac_count(network, held_out.images[:1]),
        exports=tuple(_describe(path, exporter, held_out) for exporter, path in paths.items()),
        spread=measure_spread(network, held_out),
    )
    return facts, time.perf_counter() - start


def _describe(path: Path, exporter: str, held_out: Images) -> Export:
    logits = run(path, held_out.images.numpy())
    opset = next(entry.version for entry in onnx.load(path).opset_import if not entry.domain)
    size, parameters = path.stat().st_size, graphopt.cost(path).params
    return Export(path.name, exporter, opset, size, parameters, accuracy(logits, held_out.labels))


def write_data(folder: Path) -> None:
    """Write the calibration and the held-out images with their labels."""
    parts = load_parts()
    for name in ("calib", "eval"):
        data = render_fixed(name, parts[name])
        arrays = {INPUT: data.images.numpy(), "labels": data.labels.numpy()}
        np.savez_compressed(folder / f"digits.{name}.npz", allow_pickle=False, **arrays)


def train_all(output: Path, jobs: int) -> None:
    """Build all networks in `jobs` processes, print a line for each, and move the files to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".models-") as temporary:
        folder = Path(temporary)
        write_data(folder)
        print(f"{'network':12} {'parameters':>10} {'MACs':>8} {'accuracy':>16} {'kB':>10} {'seconds':>8}")
        facts = []
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for fact, seconds in pool.map(partial(build, folder), RECIPES):
                sizes = "+".join(f"{export.size / 1000:.0f}" for export in fact.exports)
                print(
                    f"{fact.name:12} {fact.exports[0].parameters:10,} {fact.macs / 1e6:6.2f} M "
                    f"{fact.exports[0].accuracy!s:>16} {sizes:>10} {seconds:8.0f}",
                    flush=True,
                )
                facts.append(fact)
        versions = {tool: version(tool).partition("+")[0] for tool in TOOLS}
        (folder / "README.md").write_text(model_card(facts, versions), encoding="utf-8")
        for path in sorted(folder.iterdir()):
            os.replace(path, output / path.name)
    total = sum(path.stat().st_size for path in output.iterdir())
    print(f"{len(list(output.iterdir()))} files, {total / 1e6:.2f} MB")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the networks of models/ and write them with their data.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "models")
    parser.add_argument("--jobs", type=int, default=2, help="networks to train at the same time (default: 2)")
    options = parser.parse_args()
    train_all(options.output.resolve(), options.jobs)


if __name__ == "__main__":
    main()
