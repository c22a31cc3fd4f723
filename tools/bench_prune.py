"""What `prune-channels` costs in accuracy on trained networks, what it gains in time, and what it does to every structure.

    python tools/bench_prune.py --corpus CORPUS
    python tools/bench_prune.py --corpus CORPUS --tasks 'resnet20*' --shares 0.5 --seeds 0 --tables accuracy

accuracy: each task is pruned to shares of its MACs with widths of any kind, once per calibration seed; then, after all
options are fixed, the evaluation samples are read. Printed are the drop of top-1 in points with the standard error of the
paired difference and its bar, the divergence of the class distributions from the original's (KL, in units of 10⁻³ nats) beside
that of the baseline (uniform widths by the L2 norm, refitted by the same least squares), and the share of predictions that
stay. A cell holds where the mean drop over the seeds is at most the bar plus one standard error, and KL is below the
baseline's; a row holds where the mean of its drops is at most the mean of its bars.

latency: models pruned to half of the MACs with aligned widths, against their originals in onnxruntime on one thread.

structure: see `prune_structures`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bench_quantize import ratio, time_all
from prune_structures import structures
from quantization_tasks import Task, tasks

import graphopt
from graphopt.errors import GraphoptError
from graphopt.runtime import quality

_RESNET20 = {0.8: 0.6, 0.7: 1.4, 0.6: 2.7, 0.5: 3.8, 0.4: 7.0}
BARS: Mapping[str, Mapping[float, float]] = {
    "resnet20_bn": _RESNET20,
    "resnet20_dynamo": _RESNET20,
    "vww": {0.8: 0.0, 0.7: 0.0, 0.5: 0.0, 0.4: 1.0},
    "kws": {0.8: 0.7, 0.7: 1.0, 0.5: 4.0},
    "squeezenet": {0.8: 8.0, 0.7: 13.0},
}
"""Drop of top-1 in points by share of the whole network's MACs."""
LEAST_AGREEMENT = {"vww": (0.5, 0.99)}
"""Tasks whose predictions must stay, down to which share of the MACs."""
BASELINE = "criterion=l2,scope=uniform"
ROUNDS = 60


@dataclass
class Pruned:
    """One result."""

    file: Path
    macs: float
    seconds: float


@dataclass
class Cell:
    """A task at one share of its MACs: one result per seed, and those of the baseline."""

    share: float
    ours: list[Pruned]
    baseline: list[Pruned]


def prune(task: Task, options: str, seed: int, samples: int | None, file: Path) -> Pruned:
    """Prune a task's model and write it to `file`."""
    start = time.perf_counter()
    result = graphopt.optimize(
        task.model,
        pipeline=f"lossless,prune-channels{{{options}}}",
        data=task.calibration_data,
        normalize=task.normalize,
        calibration_samples=samples,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    result.save(file)
    return Pruned(file, result.report.after.macs / result.report.before.macs, seconds)


def cells(task: Task, options: argparse.Namespace, folder: Path) -> list[Cell]:
    """All results of one task; nothing has been measured yet."""
    found = []
    for share in sorted(BARS[task.name], reverse=True):
        if options.shares and share not in options.shares:
            continue
        cell = Cell(share, [], [])
        for seed in options.seeds:
            for rows, more, name in ((cell.ours, "", "ours"), (cell.baseline, f",{BASELINE}", "baseline")):
                file = folder / f"{name}-{share}-{seed}.onnx"
                text = f"macs={share},align={options.align}{more}"
                rows.append(prune(task, text, seed, options.calibration_samples, file))
        print(f"  x{share}: {statistics.mean(one.seconds for one in cell.ours):.0f} s", flush=True)
        found.append(cell)
    return found


def accuracy(task: Task, options: argparse.Namespace) -> list[str]:
    """The accuracy table of one task; what it misses."""
    print(f"\n{task.name}, widths in multiples of {options.align}, seeds {options.seeds}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        found = cells(task, options, Path(scratch))
        print("          MACs        drop +- se     bar   KL (baseline)  agree    wall")
        missed, drops = [], []
        for cell in found:
            drop, failures = print_cell(task, cell)
            drops.append(drop)
            missed += failures
    bars = [BARS[task.name][cell.share] for cell in found]
    if drops and statistics.mean(drops) > statistics.mean(bars):
        missed.append(f"{task.name}: mean drop {statistics.mean(drops):.2f} > {statistics.mean(bars):.2f}")
    return missed


def print_cell(task: Task, cell: Cell) -> tuple[float, list[str]]:
    """Measure and print one line; the mean drop in points, and what the cell misses."""
    samples = task.evaluation()
    ours = quality.measure(task.model, [one.file for one in cell.ours], samples, "top1")
    files = [one.file for one in (*cell.ours, *cell.baseline)]
    divergences = [1e3 * one.after for one in quality.measure(task.model, files, samples, "kl")]
    kl, other = statistics.mean(divergences[: len(ours)]), statistics.mean(divergences[len(ours) :])
    drop, error = (100 * statistics.mean(getattr(one, name) for one in ours) for name in ("drop", "standard_error"))
    agreement = statistics.mean(one.fidelity.agreement or 0.0 for one in ours)
    bar = BARS[task.name][cell.share]
    place = f"{task.name} x{cell.share}"
    missed = [f"{place}: drop {drop:.2f} > {bar:.2f} + {error:.2f}"] if drop > bar + error else []
    missed += [f"{place}: KL {kl:.1f} is not below the baseline's {other:.1f}"] if kl >= other else []
    least = LEAST_AGREEMENT.get(task.name)
    if least is not None and cell.share >= least[0] and agreement < least[1]:
        missed.append(f"{place}: {100 * agreement:.1f} % of the predictions stay")
    print(
        f"  x{cell.share:<4} {statistics.mean(one.macs for one in cell.ours):7.3f}  {drop:8.2f} +- {error:<5.2f}"
        f"{bar:8.2f}  {kl:6.1f} ({other:6.1f})  {100 * agreement:5.1f}  {max(one.seconds for one in cell.ours):5.0f} s"
        f"{'  missed' if missed else ''}",
        flush=True,
    )
    return drop, missed


def latency(task: Task, options: argparse.Namespace) -> None:
    """Time of the aligned model at half of the MACs over that of the original, both in the same rounds."""
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        try:
            found = prune(task, "macs=0.5", 0, options.calibration_samples, Path(scratch) / "aligned.onnx")
        except GraphoptError as error:
            print(f"  {task.name:<18} {error}")
            return
        for batch in (1, 32):
            samples = task.evaluation()
            feeds = next(iter(samples.subset(list(range(min(batch, len(samples))))).batches(batch))).feeds
            times = time_all({"original": task.model, "pruned": found.file}, feeds, ROUNDS)
            median, bound = ratio(times["pruned"], times["original"])
            print(
                f"  {task.name:<18} MACs x{found.macs:.3f}  batch {len(next(iter(feeds.values()))):<3}"
                f" time x{median:.2f} (<= {bound:.2f}), {1 / median:.2f} times as fast",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tables", nargs="*", default=["accuracy", "latency", "structure"], help="which ones")
    parser.add_argument("--tasks", nargs="*", default=["*"], help="patterns of the tasks' names")
    parser.add_argument("--shares", nargs="*", type=float, default=[], help="of MACs; by default those that have a bar")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--align", type=int, default=1, help="of widths, for accuracy")
    parser.add_argument("--calibration-samples", type=int, help="as for `graphopt run`")
    parser.add_argument("--cache", type=Path, help="where exports are kept")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    options = parser.parse_args(arguments)
    known = tasks(options.corpus, options.cache)
    chosen = [known[name]() for name in BARS if name in known and any(fnmatch(name, text) for text in options.tasks)]
    missed = []
    if "accuracy" in options.tables:
        missed = [line for task in chosen for line in accuracy(task, options)]
    if "latency" in options.tables:
        print("\nlatency, aligned widths, 1 thread")
        for task in chosen:
            latency(task, options)
    if "structure" in options.tables:
        structures(options.corpus, options.cache, patterns=options.tasks)
    print("\nall figures held" if not missed else "\nmissed:\n  " + "\n  ".join(missed))


if __name__ == "__main__":
    main()
