"""The tasks of `bench_quantize`: a model, samples to calibrate and to measure on, and what must be reached.

Preparing data is one function for all tools (`Task.calibration`): the samples are read, chosen and normalized as graphopt
does it, and written as arrays that the models read as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peer_models

from graphopt.data import Samples, open_samples
from graphopt.lift import lift

MODELS = Path(__file__).resolve().parent.parent / "models"
CALIBRATION_SAMPLES = 256


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: in tables and for `--tasks`.
        model: the float model.
        calibration_data: samples that nothing is measured on.
        evaluation_data: samples that nothing is calibrated on; read once all quantizers have run.
        normalize: preprocessing, as `--normalize`.
        metric: as `--metric`; None is the default, top-1 where there are labels and agreement where there are not.
        transformer: whether quantizers for transformers come in.
        least_sqnr: dB that graphopt must reach, 0 where only the peers count.
        least_share: fraction of the MACs that it must run in integer kernels.
    """

    name: str
    model: Path
    calibration_data: Path
    evaluation_data: Path
    normalize: str | None = None
    metric: str | None = None
    transformer: bool = False
    least_sqnr: float = 0.0
    least_share: float = 0.0

    def calibration(self, target: Path, seed: int) -> None:
        """Write the calibration samples that `seed` chooses to the npz file `target`, ready to be fed."""
        columns: dict[str, list[np.ndarray]] = {}
        for batch in self._open(self.calibration_data, limit=CALIBRATION_SAMPLES, seed=seed).batches():
            for name, array in batch.feeds.items():
                columns.setdefault(name, []).append(array[: batch.count])
        np.savez(target, **{name: np.concatenate(arrays) for name, arrays in columns.items()})  # type: ignore[arg-type]

    def evaluation(self) -> Samples:
        """The samples to measure on."""
        return self._open(self.evaluation_data)

    def _open(self, data: Path, limit: int | None = None, seed: int = 0) -> Samples:
        model = lift(self.model).model
        return open_samples(str(data), model, normalize=self.normalize, default_limit=limit, seed=seed)


def tasks(corpus: Path | None, cache: Path | None) -> dict[str, Callable[[], Task]]:
    """Every task that there is data for, by name; exports are made when a task is asked for."""
    found: dict[str, Callable[[], Task]] = {}
    known = [*(_corpus_tasks(corpus) if corpus is not None else ()), *_own_tasks()]
    for task in known:
        if task.model.exists():
            found[task.name] = lambda task=task: task  # type: ignore[misc]  # mypy does not infer defaults of lambdas
    found["bert"] = lambda: _bert(cache)
    return found


def _corpus_tasks(corpus: Path) -> Iterator[Task]:
    def task(name: str, folder: str, model: str, normalize: str | None, sqnr: float, share: float) -> Task:
        home = corpus / folder
        data = (home / "calib.npz", home / "eval.npz")
        return Task(name, home / model, *data, normalize, "top1", least_sqnr=sqnr, least_share=share)

    yield task("resnet20_bn", "cifar10_resnet20", "resnet20_bn.onnx", "imagenet", 30, 1)
    yield task("resnet20_dynamo", "cifar10_resnet20", "resnet20_dynamo.onnx", "imagenet", 30, 1)
    yield task("squeezenet", "imagenet_squeezenet", "squeezenet.onnx", "caffe", 25, 0.98)
    yield task("vww", "vww_mobilenetv1", "vww.onnx", "scale=1/255", 31, 0)
    yield task("kws", "kws_dscnn", "kws.onnx", None, 32, 0)
    for name, stem, normalize, metric in (
        ("resnet8", "mlperftiny_ic_resnet8", "scale=1", None),
        ("fastestdet", "fastestdet_coco", "scale=1/255", "sqnr"),
        ("ultraface", "ultraface_version-RFB-320", "scale=1/128,mean=0.9921875:0.9921875:0.9921875", "sqnr"),
        ("ppocr", "ch_ppocr_mobile_v2.0_cls_infer", "tf", None),
    ):
        home = corpus / "structures"
        data = (home / f"{stem}.calib.npz", home / f"{stem}.eval.npz")
        yield Task(name, home / f"{stem}.onnx", *data, normalize, metric)


def _own_tasks() -> Iterator[Task]:
    data = (MODELS / "digits.calib.npz", MODELS / "digits.eval.npz")
    yield Task("depthwise", MODELS / "depthwise.onnx", *data, metric="top1", least_sqnr=24)
    for name in ("transformer", "transformer.dynamo"):
        yield Task(name, MODELS / f"{name}.onnx", *data, metric="top1", transformer=True, least_sqnr=20)


def _bert(cache: Path | None) -> Task:
    """BERT-base with random weights, on random token ids."""
    home = peer_models.cache_folder(cache)
    home.mkdir(parents=True, exist_ok=True)
    files = (home / "bert.calib.npz", home / "bert.eval.npz")
    for seed, file in enumerate(files, start=1):
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=home) as folder:
                scratch = Path(folder) / file.name
                np.savez(scratch, **peer_models.example_inputs("bert", batch=16, seed=seed))  # type: ignore[arg-type]
                scratch.replace(file)
    model = peer_models.export("bert", "legacy", cache)
    return Task("bert", model, *files, metric="sqnr", transformer=True, least_sqnr=20)
