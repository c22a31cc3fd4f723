"""What `factorize` and `separate-depthwise` cost in accuracy and give in time, per ratio of multiply-accumulates.

    python tools/bench_factorize.py --corpus CORPUS
    python tools/bench_factorize.py --corpus CORPUS --tasks resnet20_dynamo --variants free plain --ratios 0.6 0.4 --seeds 0

Per task, variant and ratio, means over the calibration seeds:

* drop: of top-1 in points, with the standard error of the paired difference over samples and seeds;
* KL: divergence of the outputs from the original's; agree: share of predictions that stay, in %;
* macs: what is left of the whole model's (the transformer: of the parameters of its linear layers);
* time: of onnxruntime on one thread and one sample over that of the original, median of paired rounds (`--latency`).

Variants are pipelines (`VARIANTS`); candidates of one seed serve all ratios, as the pass itself would find them. "plain" fits
weights alone, without samples. "baseline" prunes channels: uniform widths by the L2 norm, refitted by least squares. Evaluation
samples are read when all results of a task are there.

A cell holds where the mean drop over the seeds is at most its bar (`BARS`) plus one standard error (of the transformer: where
the agreement is at least `LEAST_AGREEMENT`) and KL is below the baseline's; a row where the mean of its drops is at most that of
its bars.

`--big` times a ResNet-50 with random weights instead, layer by layer as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from quantization_tasks import MODELS

import graphopt
from graphopt.data import Samples, open_samples
from graphopt.errors import TargetNotMetError
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.evidence import Evidence
from graphopt.pricing import price
from graphopt.runtime.latency import measure
from graphopt.runtime.session import Session
from graphopt_passes.factorization.compress import Compression, Settings
from graphopt_passes.factorization.decision import Budget
from graphopt_passes.factorization.options import search
from graphopt_passes.reconstruction.harm import divergence

ALL = ("channel", "input", "spatial", "tucker", "heads", "hidden")


@dataclasses.dataclass(frozen=True)
class Task:
    """A model with samples: calibration, evaluation, how they are normalized, and the ratios of the issue's table."""

    model: Path
    calibration: Path
    evaluation: Path
    normalize: str | None
    ratios: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5, 0.4)
    parameters: bool = False


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to compress.

    Attributes:
        schemes: as in the option.
        align: of ranks; None is the device's.
        faster: only what is predicted to be faster.
        samples: whether calibration samples are used.
        pruned: share of the wanted ratio's logarithm that `prune-channels` takes first; 1 leaves nothing to factorize.
        pruning: options of `prune-channels`.
    """

    schemes: tuple[str, ...]
    align: int | None = 1
    faster: bool = False
    samples: bool = True
    pruned: float = 0.0
    pruning: str = ""


VARIANTS = {
    "free": Variant((*ALL, "decoupling")),
    "default": Variant(ALL, align=None, faster=True),
    "multiples of 8": Variant((*ALL, "decoupling"), align=8),
    "decoupling": Variant(("decoupling",)),
    **{scheme: Variant((scheme,)) for scheme in ALL},
    "plain": Variant((*ALL, "decoupling"), samples=False),
    "pruned + free": Variant((*ALL, "decoupling"), pruned=0.5),
    "baseline": Variant((), pruned=1.0, pruning=",align=1,criterion=l2,scope=uniform"),
}

_RESNET20 = {
    "free": {0.8: 0.5, 0.7: 0.8, 0.6: 0.9, 0.5: 1.5, 0.4: 2.0},
    "decoupling": {0.6: 1.3, 0.4: 2.3},
    "multiples of 8": {0.6: 1.0},
}
BARS = {
    "resnet20_bn": _RESNET20,
    "resnet20_dynamo": _RESNET20,
    "squeezenet": {"free": {0.8: 1.5, 0.7: 2.5, 0.6: 4.0}},
}
"""Drop of top-1 in points by task, variant and ratio."""
LEAST_AGREEMENT = {"transformer": {"free": {0.8: 99.5, 0.7: 99.0, 0.6: 98.5, 0.5: 98.0}}}
"""Predictions that must stay, in %, by task, variant and ratio."""


def tasks(corpus: Path | None) -> dict[str, Task]:
    """All tasks that there is data for."""
    found = {}
    if corpus is not None:
        cifar, imagenet = corpus / "cifar10_resnet20", corpus / "imagenet_squeezenet"
        for name in ("resnet20_dynamo", "resnet20_bn"):
            found[name] = Task(cifar / f"{name}.onnx", cifar / "calib.npz", cifar / "eval.npz", "imagenet")
        found["squeezenet"] = Task(
            imagenet / "squeezenet.onnx", imagenet / "calib.npz", imagenet / "eval.npz", "caffe", (0.8, 0.7, 0.6)
        )
    digits = (MODELS / "digits.calib.npz", MODELS / "digits.eval.npz")
    found["transformer"] = Task(MODELS / "transformer.onnx", *digits, None, (0.8, 0.7, 0.6, 0.5), parameters=True)
    found["residual"] = Task(MODELS / "residual.onnx", *digits, None)
    return {name: task for name, task in found.items() if task.model.exists()}


def results(
    task: Task, model: ir.Model, variant: Variant, ratios: Sequence[float], seed: int, samples: int
) -> Iterator[tuple[float, ir.Model]]:
    """The compressed models of one seed by ratio; candidates are found once, unless channels are pruned before."""
    chosen = open_samples(str(task.calibration), model, normalize=task.normalize, default_limit=samples, seed=seed)
    if variant.pruned == 1:
        for ratio in ratios:
            yield ratio, pruned(task, model, variant, ratio, seed, samples)
        return
    context = PassContext(seed=seed, evidence=Evidence(chosen) if variant.samples else None)
    settings = Settings(search(variant.schemes, context, align=variant.align, faster=variant.faster), Budget(1))
    compression, proposals = None, {}
    for ratio in ratios:
        start = model
        if variant.pruned or compression is None:
            start = pruned(task, model, variant, ratio**variant.pruned, seed, samples) if variant.pruned else model
            compression = Compression(start, context, settings)
            proposals = compression.propose()
        try:
            picked = compression.choose(proposals, budget(task, model, ratio))
        except TargetNotMetError as error:
            print(f"    x{ratio}: {error}")
            continue
        result = start.clone()
        compression.apply(result, proposals, picked)
        yield ratio, result


def budget(task: Task, model: ir.Model, ratio: float) -> Budget:
    """MACs of the whole model, or parameters of its linear layers."""
    cost = price(model)
    if not task.parameters:
        return Budget(macs=ratio * cost.macs)
    return Budget(params=cost.params - (1 - ratio) * linear_parameters(model))


def linear_parameters(model: ir.Model) -> int:
    """Elements of the constant weights of products."""
    weights = {node.inputs[1] for node in model.graph if node.op_type in ("MatMul", "Gemm")}
    return sum(one.const_value.size for one in weights if one is not None and one.const_value is not None)


def pruned(task: Task, model: ir.Model, variant: Variant, ratio: float, seed: int, samples: int) -> ir.Model:
    """`model` with channels pruned to `ratio` of its budget."""
    kept = budget(task, model, ratio)
    target = f"macs={ratio}" if kept.params is None else f"params={kept.params:.0f}"
    done = graphopt.optimize(
        model, pipeline=f"prune-channels{{{target}{variant.pruning}}}", data=str(task.calibration), normalize=task.normalize,
        seed=seed, calibration_samples=samples,
    )  # fmt: skip
    return done.ir


class Judge:
    """The evaluation samples of a task, and what the original says of them."""

    def __init__(self, samples: Samples, model: ir.Model) -> None:
        self._batches = list(samples.batches())
        self._name = model.graph.outputs[0].name or ""
        self.exact = self._scores(model)
        labels = [batch.labels for batch in self._batches if batch.labels is not None]
        self.labels = np.concatenate(labels) if labels else self.exact.argmax(-1)

    def measure(self, model: ir.Model) -> tuple[np.ndarray, float, float]:
        """Per sample how much correctness was lost, KL, agreement."""
        found = self._scores(model)
        before, after = self.exact.argmax(-1), found.argmax(-1)
        lost = (before == self.labels).astype(float) - (after == self.labels)
        return lost, float(divergence(self.exact, found).mean()), float((before == after).mean())

    def _scores(self, model: ir.Model) -> np.ndarray:
        session = Session(model)
        scores = [session.run(batch.feeds)[self._name][: batch.count] for batch in self._batches]
        return np.concatenate(scores).reshape(sum(batch.count for batch in self._batches), -1)


@dataclasses.dataclass(frozen=True)
class Row:
    """Means over the seeds: points of top-1 with their standard error, KL, and the predictions that stay in %."""

    drop: float
    error: float
    divergence: float
    agreement: float


def bench(name: str, task: Task, variants: Mapping[str, Variant], arguments: argparse.Namespace) -> list[str]:
    """Compress all, then measure all, one table; what misses its bars."""
    model = graphopt.optimize(task.model, pipeline="lossless").ir
    made: dict[tuple[str, float], list[ir.Model]] = {}
    ratios = arguments.ratios or task.ratios
    for title, variant in variants.items():
        for seed in arguments.seeds if variant.samples else [0]:
            start = time.process_time()
            for ratio, result in results(task, model, variant, ratios, seed, arguments.samples):
                made.setdefault((title, ratio), []).append(result)
            print(f"  {name}, {title}, seed {seed}: {time.process_time() - start:.0f} s of processor time", flush=True)
    judge = Judge(open_samples(str(task.evaluation), model, normalize=task.normalize), model)
    print(f"{name}: {len(judge.labels)} samples, top-1 {100 * (judge.exact.argmax(-1) == judge.labels).mean():.2f} %")
    print(f"{'variant':<16}{'ratio':>6}{'macs':>7}{'seeds':>6}{'drop':>8}{'+-':>6}{'KL':>10}{'agree':>8}{'time':>7}")
    table: dict[str, dict[float, Row]] = {}
    for (title, ratio), models in made.items():
        found = [judge.measure(one) for one in models]
        lost = np.mean([one[0] for one in found], axis=0)
        one = Row(
            100 * float(lost.mean()),
            100 * float(lost.std()) / len(lost) ** 0.5,
            statistics.mean(each[1] for each in found),
            100 * statistics.mean(each[2] for each in found),
        )
        table.setdefault(title, {})[ratio] = one
        timed = f"{relative_time(task, model, models[0], arguments.latency):.2f}" if arguments.latency else "-"
        print(
            f"{title:<16}{ratio:>6}{kept(task, model, models[0]):>7.3f}{len(models):>6}{one.drop:>8.2f}{one.error:>6.2f}"
            f"{one.divergence:>10.4f}{one.agreement:>8.2f}{timed:>7}",
            flush=True,
        )
    return [f"{name}, {text}" for title, rows in table.items() for text in misses(name, title, rows, table)]


def misses(name: str, title: str, rows: Mapping[float, Row], table: Mapping[str, Mapping[float, Row]]) -> Iterator[str]:
    """What one variant's rows fall short of."""
    for ratio, row in rows.items():
        other = table.get("baseline", {}).get(ratio)
        if other is not None and title != "baseline" and row.divergence >= other.divergence:
            yield f"{title} x{ratio}: KL {row.divergence:.4f} is not below the baseline's {other.divergence:.4f}"
    for ratio, least in LEAST_AGREEMENT.get(name, {}).get(title, {}).items():
        if ratio in rows and rows[ratio].agreement < least:
            yield f"{title} x{ratio}: agreement {rows[ratio].agreement:.1f} % < {least} %"
    bars = {ratio: bar for ratio, bar in BARS.get(name, {}).get(title, {}).items() if ratio in rows}
    for ratio, bar in bars.items():
        if rows[ratio].drop > bar + rows[ratio].error:
            yield f"{title} x{ratio}: drop {rows[ratio].drop:.2f} > {bar:.2f} + {rows[ratio].error:.2f}"
    if bars:
        drop, bar = statistics.mean(rows[ratio].drop for ratio in bars), statistics.mean(bars.values())
        if drop > bar:
            yield f"{title}: mean drop {drop:.2f} > {bar:.2f}"


def kept(task: Task, before: ir.Model, after: ir.Model) -> float:
    """What is left of the whole model's MACs, or of the parameters of its linear layers."""
    if task.parameters:
        return 1 - (price(before).params - price(after).params) / linear_parameters(before)
    return price(after).macs / price(before).macs


def relative_time(task: Task, before: ir.Model, after: ir.Model, seconds: float) -> float:
    """Median of the paired ratio on one sample."""
    samples = open_samples(str(task.calibration), before, normalize=task.normalize, default_limit=1)
    return measure(before, after, (batch.feeds for batch in samples.batches(1)), seconds=seconds).ratio


def big(ratio: float, seconds: float) -> None:
    """Time of a ResNet-50 with random weights by aligned ranks, whole and layer by layer."""
    import peer_models

    model = graphopt.optimize(peer_models.export("resnet50", "legacy"), pipeline="lossless").ir
    after = graphopt.optimize(model, pipeline=f"factorize{{macs={ratio}}}").ir
    feeds = peer_models.example_inputs("resnet50", batch=1, seed=0)
    found = measure(model, after, [feeds], seconds=seconds)
    macs = price(after).macs / price(model).macs
    print(f"ResNet-50: MACs x{macs:.3f}, time x{found.ratio:.3f} {tuple(round(one, 3) for one in found.interval)}")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS))
    parser.add_argument("--ratios", nargs="*", type=float)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=256, help="calibration samples per seed")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds per measurement; 0 leaves it out")
    parser.add_argument("--big", action="store_true", help="time a ResNet-50 with random weights")
    arguments = parser.parse_args()
    if arguments.big:
        big((arguments.ratios or [0.5])[0], arguments.latency)
        return
    variants = {name: one for name, one in VARIANTS.items() if not arguments.variants or name in arguments.variants}
    missed = []
    for name, task in tasks(arguments.corpus).items():
        if not arguments.tasks or name in arguments.tasks:
            missed += bench(name, task, variants, arguments)
    print(*(f"missed: {one}" for one in missed), sep="\n")


if __name__ == "__main__":
    main()
