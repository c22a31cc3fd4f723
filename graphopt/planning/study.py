"""The samples of one run, each with its one use: calibrating, gating, or being measured at the end.

`--data` is cut down to `--calibration-samples`, and with a gate a seeded quarter of what is left is held out for it;
passes see the rest through `PassContext.evidence`. `--eval-data` is opened early where that costs nothing, so that a wrong
path or missing labels show before hours of work, but no model runs on it before the last decision has been taken.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError, RuntimeFailureError
from graphopt.lift import Lifted
from graphopt.planning.gate import Gate, Outcome, within
from graphopt.runtime import quality
from graphopt.runtime.metrics import NEED_LABELS
from graphopt.runtime.metrics.choice import Wanted
from graphopt.runtime.original import Original
from graphopt.runtime.quality import Quality
from graphopt.runtime.streaming import Progress

if TYPE_CHECKING:
    from graphopt.data import Samples
    from graphopt.pipeline.base import Pass
    from graphopt.pipeline.evidence import Evidence
    from graphopt.runtime.latency import Latency

CALIBRATION_SAMPLES = 256
"""How many samples are used where `--calibration-samples` does not say."""

_HOW = (
    "give some with -d FILE.npz (-d random:N makes some up, which tells whether a pipeline runs, not what it is worth)"
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user gave and asked for.

    Attributes:
        data: the source of calibration samples.
        eval_data: the source of samples for the final measurement.
        metric: how quality is measured; None for the default.
        max_drop: how much worse it may get; None for no gate.
        normalize: what is applied to integer arrays and images.
        calibration_samples: how many of `data` are used.
    """

    data: Any = None
    eval_data: Any = None
    metric: Wanted = None
    max_drop: float | None = None
    normalize: str | Mapping[str, Any] | None = None
    calibration_samples: int | None = None

    def require(self, passes: Iterable[Pass]) -> None:
        """Raise DataError where a pass or the gate needs samples and there are none."""
        if self.data is not None:
            return
        needing = next((pass_.name for pass_ in passes if pass_.needs_data), None)
        if needing is not None:
            raise DataError(f"the pass '{needing}' needs calibration samples; {_HOW}")
        if self.max_drop is not None:
            raise DataError(f"--max-drop needs samples to measure on; {_HOW}")


class Study:
    """The samples of one run, opened for its model.

    Attributes:
        request: what the user asked for.
        samples: all of `--data` that is used; None without it.
        calibration: the part that passes may read.
        gate: judges results on the rest, where `--max-drop` was given.
    """

    def __init__(
        self,
        request: Request,
        lifted: Lifted,
        *,
        seed: int = 0,
        threads: int = 1,
        provider: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Open the samples that the model of `lifted` reads; statistics of them are kept in `folder` between runs.

        Raises:
            DataError: they cannot be read, do not fit the model, are too few, or have no labels where the metric asks.
        """
        self.request = request
        self.samples: Samples | None = None
        self.calibration: Samples | None = None
        self.gate: Gate | None = None
        self._warnings: list[str] = []
        self._lifted = lifted
        self._seed = seed
        self._threads = threads
        self._provider = provider
        self._folder = folder
        self._evaluation: Samples | None = None
        if request.data is not None:
            self._open_data(lifted.model)
        if request.eval_data is not None and not _is_reader(request.eval_data):
            self._evaluation = self._open_evaluation(lifted.model)
        if request.metric is not None and request.eval_data is None and request.max_drop is None:
            self._warnings.append("--metric was not used: quality is measured with --eval-data or --max-drop")
        if isinstance(request.data, str | os.PathLike) and request.data == request.eval_data:
            self._warnings.append("--eval-data is the calibration data: passes have seen what quality is measured on")

    @property
    def held_out(self) -> Samples | None:
        """The part that the gate judges by, and nothing else reads."""
        return None if self.gate is None else self.gate.held_out

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know; complete once everything has been measured."""
        opened = (samples for samples in (self.samples, self._evaluation) if samples is not None)
        return [*(warning for samples in opened for warning in samples.warnings), *self._warnings]

    def evidence(self, progress: Progress | None) -> Evidence | None:
        """What passes may ask of the calibration samples; None without any."""
        if self.calibration is None:
            return None
        from graphopt.pipeline.evidence import Evidence

        return Evidence(
            self.calibration,
            threads=self._threads,
            provider=self._provider,
            progress=progress,
            folder=self._folder,
        )

    def prepare(self, original: Original, passes: Iterable[Pass], *, timed: bool) -> None:
        """Find out before any work whether the gate can judge at all, and whether anybody reads the data.

        Args:
            original: runs one batch of the held-out samples.
            passes: of the pipeline.
            timed: whether latency is measured, which takes its input from the samples.

        Raises:
            DataError: the metric does not fit the samples or the model's outputs.
        """
        if self.gate is not None:
            self.gate.prepare(original.source)
        elif self.samples is not None and not timed and not any(pass_.reads_data for pass_ in passes):
            self._warnings.append("no pass of this pipeline reads data: --data was not used")

    def judge(self, original: Original, result: ir.Model, progress: Progress | None) -> Outcome | None:
        """The gate's word on `result`; None without a gate.

        Raises:
            RuntimeFailureError: it cannot be run here.
        """
        if self.gate is None:
            return None
        told = None if progress is None else lambda done: progress("gate", done, 1.0)
        try:
            return self.gate.check(original.source, result, told)
        except RuntimeFailureError as error:
            if _is_foreign(result):
                raise RuntimeFailureError(f"--max-drop cannot be judged here, in bfloat16: {error}") from error
            raise

    def evaluate(self, original: Original, result: ir.Model, progress: Progress | None) -> Quality | None:
        """The final measurement on `--eval-data`; None without it."""
        if self.request.eval_data is None:
            return None
        if self._evaluation is None:
            self._evaluation = self._open_evaluation(self._lifted.relift())
        try:
            measured = quality.measure(
                original.source,
                [result],
                self._evaluation,
                self.request.metric,
                seed=self._seed,
                threads=self._threads,
                provider=self._provider,
                progress=None if progress is None else lambda done: progress("evaluation", done, 1.0),
            )[0]
        except RuntimeFailureError as error:
            self._not_measured("quality", result, error)
            return None
        if self.gate is not None and not within(measured, self.gate.max_drop):
            self._warnings.append(
                f"{measured.metric} got worse by {measured.drop:.4g} on --eval-data, more than the "
                f"{self.gate.max_drop:g} of --max-drop that the held-out samples stayed within"
            )
        return measured

    def latency(self, original: Original, result: ir.Model, progress: Progress | None) -> Latency | None:
        """Time of the original and of `result`; None where this machine's runtime has no kernels for its types."""
        try:
            return original.latency(result, self.samples, progress)
        except RuntimeFailureError as error:
            self._not_measured("latency", result, error)
            return None

    def _not_measured(self, what: str, result: ir.Model, error: RuntimeFailureError) -> None:
        """Warn where `result` is for another machine; raise `error` where it should have run here."""
        if not _is_foreign(result):
            raise error
        self._warnings.append(f"{what} was not measured: the result computes in bfloat16, and {error}")

    def _open_data(self, model: ir.Model) -> None:
        from graphopt.data import hold_out, open_samples

        request = self.request
        samples = open_samples(
            request.data,
            model,
            normalize=request.normalize,
            limit=request.calibration_samples,
            default_limit=CALIBRATION_SAMPLES,
            seed=self._seed,
            option="--data",
        )
        if request.max_drop is not None:
            _check_labels(samples, request.metric, "--data")
        self.samples = self.calibration = samples
        if request.max_drop is not None:
            self.calibration, held_out = hold_out(samples, seed=self._seed)
            self.gate = Gate(request.max_drop, request.metric, held_out, self._seed, self._threads, self._provider)

    def _open_evaluation(self, model: ir.Model) -> Samples:
        from graphopt.data import open_samples

        request = self.request
        samples = open_samples(
            request.eval_data, model, normalize=request.normalize, seed=self._seed, option="--eval-data"
        )
        _check_labels(samples, request.metric, "--eval-data")
        return samples


def open_comparison(
    data: Any, model: ir.Model, *, metric: Wanted, normalize: str | Mapping[str, Any] | None, seed: int
) -> Samples | None:
    """The samples that two models are compared on, opened for one of them; None where `data` is.

    Raises:
        DataError: there are none but a metric, or they cannot be read, do not fit, or lack labels.
    """
    if data is None:
        if metric is not None:
            raise DataError(f"--metric needs samples to measure on; {_HOW}")
        return None
    from graphopt.data import open_samples

    samples = open_samples(data, model, normalize=normalize, seed=seed, option="--data")
    _check_labels(samples, metric, "--data")
    return samples


def _check_labels(samples: Samples, metric: Wanted, option: str) -> None:
    if isinstance(metric, str) and metric in NEED_LABELS and not samples.labelled:
        raise DataError(
            f"--metric {metric} needs labels, and {option} has none; agreement, cosine, sqnr and kl compare with the "
            "original instead"
        )


def _is_foreign(model: ir.Model) -> bool:
    """Whether `model` computes in a type for which onnxruntime's CPU provider has no kernels."""
    return any(value.dtype == ir.DataType.BFLOAT16 for node in model.graph for value in node.outputs)


def _is_reader(source: Any) -> bool:
    """Whether opening `source` runs the user's code, which may read any number of samples."""
    if isinstance(source, str):
        return re.fullmatch(r"(?!random:).+:[A-Za-z_]\w*", source) is not None and not os.path.exists(source)
    return not isinstance(source, os.PathLike | Mapping | np.ndarray)
