"""Passes on single weights: accuracy that is lost, and bytes that are saved, in the file and after gzip.

    python tools/bench_weights.py --corpus CORPUS
    python tools/bench_weights.py --corpus CORPUS --rows 'resnet20_bn*' --seeds 0

Options are fixed here; calibration samples are drawn by seed from calib.npz, and each result is measured once on eval.npz, which
nothing has seen before. Printed per row: change of top-1 in points, mean over the seeds, with the standard error of the
paired difference; agreement with the original and divergence of the logits; bytes over those of the original, as they lie in the
file and gzipped. A row holds if the mean drop is at most its bar plus one standard error.

`planted` is models/residual.onnx with a block put behind its first sum whose branch adds 2 % of what it is added to: that block,
and no other, has to go.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import graphopt
from graphopt.data import open_samples
from graphopt.lift import lift
from graphopt.runtime import quality

MODELS = Path(__file__).resolve().parent.parent / "models"
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class Row:
    """One model with one pipeline.

    Attributes:
        name: in the table and for `--rows`.
        model: the file.
        data: files that calibrate and that are measured on.
        passes: what is run behind `lossless`.
        bar: points of top-1 that may be lost.
        normalize: preprocessing, as `--normalize`.
    """

    name: str
    model: Path
    data: tuple[Path, Path]
    passes: str
    bar: float
    normalize: str | None = None


def rows(corpus: Path | None, folder: Path) -> list[Row]:
    """All rows that there is data for."""
    found = []
    digits = (MODELS / "digits.calib.npz", MODELS / "digits.eval.npz")
    if corpus is not None:
        home = corpus / "cifar10_resnet20"
        data = (home / "calib.npz", home / "eval.npz")
        for passes, bar in (
            ("cluster-weights{values=16}", 0.5),
            ("cluster-weights{values=16,per=tensor}", 0.5),
            ("sparsify{sparsity=0.5}", 0.5),
            ("sparsify{pattern=2:4}", 1.0),
            ("sparsify{sparsity=0.7}", 1.5),
        ):
            for export in ("resnet20_bn", "resnet20_dynamo"):
                name = f"{export} {passes}"
                found.append(Row(name, home / f"{export}.onnx", data, passes, bar, "imagenet"))
    found.append(Row("mlp binarize", MODELS / "mlp.onnx", digits, "binarize{bases=4,harm=0.01}", 1.0))
    found.append(Row("planted drop-blocks", planted(folder), digits, "drop-blocks", 0.2))
    found.append(Row("residual drop-blocks", MODELS / "residual.onnx", digits, "drop-blocks", 0.2))
    return found


def planted(folder: Path) -> Path:
    """The residual network with a block behind its first sum that changes little."""
    model = onnx.load(MODELS / "residual.onnx")
    graph, rng = model.graph, np.random.default_rng(0)
    place = next(index for index, node in enumerate(graph.node) if node.op_type == "Add") + 1
    relu = graph.node[place]
    value, channels = relu.output[0], 16
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == value:
                node.input[index] = "planted_out"
    for name, scale in (("planted_w1", 1.0), ("planted_w2", 0.02)):
        weight = scale * rng.normal(size=(channels, channels, 3, 3)) * np.sqrt(1 / (9 * channels))
        graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    pads = [1, 1, 1, 1]
    block = [
        helper.make_node("Conv", [value, "planted_w1"], ["planted_a"], pads=pads),
        helper.make_node("Relu", ["planted_a"], ["planted_b"]),
        helper.make_node("Conv", ["planted_b", "planted_w2"], ["planted_c"], pads=pads),
        helper.make_node("Add", ["planted_c", value], ["planted_sum"], name="planted"),
        helper.make_node("Relu", ["planted_sum"], ["planted_out"]),
    ]
    for offset, node in enumerate(block):
        graph.node.insert(place + 1 + offset, node)
    target = folder / "planted.onnx"
    onnx.save(model, target)
    return target


def bench(row: Row, seeds: list[int], folder: Path) -> None:
    """Run and measure one row; prints a line, and what the pass says."""
    files, seconds, said = list[Path](), list[float](), dict[str, None]()
    for seed in seeds:
        start = time.process_time()
        result = graphopt.optimize(
            row.model,
            f"lossless,{row.passes}",
            data=str(row.data[0]),
            normalize=row.normalize,
            calibration_samples=CALIBRATION_SAMPLES,
            seed=seed,
            price_passes=False,
        )
        seconds.append(time.process_time() - start)
        remarks = map(str, result.report.passes[-1].remarks)
        said.update(dict.fromkeys(text for text in remarks if "%" in text or "harm" in text))
        files.append(folder / f"{len(files)}.onnx")
        result.save(files[-1], overwrite=True)
    samples = open_samples(str(row.data[1]), lift(row.model).model, normalize=row.normalize)
    found = quality.measure(row.model, files, samples, "top1")
    kl = quality.measure(row.model, files, samples, "kl")
    drop = 100 * statistics.mean(one.drop for one in found)
    error = 100 * statistics.mean(one.standard_error for one in found)
    agree = statistics.mean(one.fidelity.agreement or 0.0 for one in found)
    sizes = [ratio(file, row.model) for file in files]
    holds = "holds" if drop <= row.bar + error else "FAILS"
    print(
        f"{row.name:<52} {drop:6.2f} ± {error:.2f} of {row.bar:.1f} {holds}  agree {agree:.4f}  "
        f"kl {statistics.mean(one.after for one in kl):.4f}  file x{sizes[0][0]:.3f}  gzip x{sizes[0][1]:.3f}  "
        f"seeds {seeds}  {statistics.mean(seconds):.0f} s",
        flush=True,
    )
    for line in said:
        print(f"    {line}", flush=True)


def ratio(file: Path, original: Path) -> tuple[float, float]:
    """Bytes over the original's, plain and gzipped."""
    now, before = file.read_bytes(), original.read_bytes()
    return len(now) / len(before), len(gzip.compress(now)) / len(gzip.compress(before))


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of the corpus; without it only the project's own models")
    parser.add_argument("--rows", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(arguments.corpus, Path(folder)):
            if any(fnmatch(row.name, pattern) for pattern in arguments.rows):
                bench(row, arguments.seeds, Path(folder))


if __name__ == "__main__":
    main()
