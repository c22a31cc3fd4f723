"""What is reported: of a run, and of a comparison of two models.

These are plain data. The keys of their JSON form are an interface that stays; terminal and HTML
are views of the same objects.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

if TYPE_CHECKING:
    from graphopt.pipeline.records import PassRecord
    from graphopt.pricing import Cost, NodeCost
    from graphopt.pricing.integer_kernels import IntegerShare
    from graphopt.runtime.equivalence import Verdict
    from graphopt.runtime.latency import Latency
    from graphopt.runtime.quality import Fidelity


@dataclasses.dataclass(frozen=True)
class Input:
    """The model that was read.

    Attributes:
        path: the `.onnx` file, or None for a model in memory.
        sha256: of the `.onnx` file or the serialized model.
        bytes: size on disk, external data included.
        external_files: its external data files.
    """

    path: str | None
    sha256: str
    bytes: int
    external_files: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The input as the JSON report holds it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Gate:
    """The accuracy gate on the held-out samples.

    Attributes:
        before: the metric of the original.
        after: that of the result.
        samples: how many were held out.
        interval: 90 % confidence interval of `after`, given `before`: `before` plus the interval of the paired difference.
        max_drop: how much worse the metric was allowed to get.
    """

    before: float
    after: float
    samples: int
    interval: tuple[float, float]
    max_drop: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The gate as the JSON report holds it."""
        return {"before": self.before, "after": self.after, "samples": self.samples, "interval": self.interval}


@dataclasses.dataclass(frozen=True)
class Quality:
    """The metric before and after: on the evaluation samples, or where there are none on those held out for the gate.

    Attributes:
        metric: its name.
        before: of the original.
        after: of the result.
        samples: how many it was measured on.
        calibration_samples: how many the passes could read.
        gate: where there was one.
        unit: of the metric.
        against: what counts as right: labels, or the original's outputs.
        standard_error: of the paired difference.
        interval: as that of the gate.
        fidelity: how near the result's outputs are to the original's.
    """

    metric: str
    before: float
    after: float
    samples: int
    calibration_samples: int = 0
    gate: Gate | None = None
    unit: str = ""
    against: Literal["labels", "original"] = "labels"
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    fidelity: Fidelity | None = None

    def to_dict(self) -> dict[str, Any]:
        """The quality as the JSON report holds it."""
        return {
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "samples": self.samples,
            "calibration_samples": self.calibration_samples,
            "unit": self.unit,
            "against": self.against,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "gate": None if self.gate is None else self.gate.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Data:
    """The samples that a run or a comparison was given.

    Attributes:
        source: what the user named; for an object of Python its type.
        digest: SHA-256 of the source and the normalization.
        samples: how many of it are used.
        held_out_samples: how many of these the gate judges by, and no pass reads.
    """

    source: str
    digest: str
    samples: int
    held_out_samples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The samples as the JSON report holds them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Integer:
    """What quantization came to in onnxruntime.

    Attributes:
        share: the multiply-accumulates that run in integer kernels, and what keeps the others in float.
        size_ratio: bytes of the result's file over those of the original's.
        latency_ratio: measured time of the result over that of the original, or None where nobody measured.
        sqnr_db: signal of the original's outputs over their change, or None where there were no samples.
    """

    share: IntegerShare
    size_ratio: float
    latency_ratio: float | None = None
    sqnr_db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The proof as the JSON report holds it."""
        ratios = {"size_ratio": self.size_ratio, "latency_ratio": self.latency_ratio, "sqnr_db": self.sqnr_db}
        return {**self.share.to_dict(), **ratios}


@dataclasses.dataclass
class Report:
    """What one run did, and what it gained.

    Attributes:
        graphopt: the version that ran.
        input: the model that was read.
        pipeline: the passes as they were understood, as text that `-p` reads.
        costs: prices the original and the result; called when one of them is asked for.
        passes: one record per pass, in order.
        nodes: makes the rows per node of the original and of the result, for the page that shows them; pricing every
            node anew is not free.
        data: the calibration samples, where there are some.
        quality: the metric, where it was measured.
        check: the comparison with the original in onnxruntime, where it was made.
        latency: measured time, where it was asked for.
        integer: what runs in integer kernels, where the result is quantized.
        plan: what was done where, and why.
        warnings: what the user should know.
        seconds: duration of the whole run.
        peak_rss_bytes: largest resident memory of the process.
        output: the file that was written.
        written_bytes: its size, external data included.
    """

    graphopt: str
    input: Input
    pipeline: str
    costs: Callable[[], tuple[Cost, Cost]]
    passes: Sequence[PassRecord] = ()
    nodes: Callable[[], Sequence[Sequence[NodeCost]]] | None = None
    data: Data | None = None
    quality: Quality | None = None
    check: Verdict | None = None
    latency: Latency | None = None
    integer: Integer | None = None
    plan: Sequence[dict[str, Any]] = ()
    warnings: Sequence[str] = ()
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    output: str | None = None
    written_bytes: int | None = None

    @property
    def lossy(self) -> bool:
        """Whether a pass changed the model that need not be exact; `check` is of what the passes before it made."""
        return any(record.modified and not record.exact for record in self.passes)

    @property
    def before(self) -> Cost:
        """Cost of the original."""
        return self._priced[0]

    @property
    def after(self) -> Cost:
        """Cost of the result; of what was written, the size is that on disk."""
        found = self._priced[1]
        return found if self.written_bytes is None else dataclasses.replace(found, bytes=self.written_bytes)

    def written(self, size: int) -> None:
        """Take `size`, the bytes on disk, for the size of the result: what was priced knows nothing of the signature."""
        self.written_bytes = size
        if self.integer is not None:
            self.integer = dataclasses.replace(self.integer, size_ratio=self.after.bytes / self.before.bytes)

    @functools.cached_property
    def _priced(self) -> tuple[Cost, Cost]:
        return self.costs()

    def to_dict(self) -> dict[str, Any]:
        """The report as nested dicts and lists."""
        return {
            "graphopt": self.graphopt,
            "input": self.input.to_dict(),
            "output": self.output,
            "pipeline": self.pipeline,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "data": None if self.data is None else self.data.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "fidelity": _fidelity_dict(self.quality),
            "check": None if self.check is None else self.check.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "integer": None if self.integer is None else self.integer.to_dict(),
            "passes": [_pass_dict(record) for record in self.passes],
            "plan": list(self.plan),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return to_json(self.to_dict())

    def to_html(self) -> str:
        """The report as one HTML page that needs nothing else."""
        from graphopt.report import html

        return html.render(self)


@dataclasses.dataclass
class Comparison:
    """Two models side by side.

    Attributes:
        reference: the model that counts as right.
        model: the one held against it.
        before: cost of the reference.
        after: cost of the other.
        check: whether they compute the same on seeded inputs.
        data: the samples, where some were given.
        quality: the metric of both on them.
        latency: measured time, where it was asked for.
        predicted: whether predicted time is shown beside: it was not measured, or a device was named.
        integer: what runs in integer kernels, where the other is quantized.
        warnings: what the user should know.
    """

    lossy: ClassVar[bool] = False  # `check` is of the models as they are
    reference: Input
    model: Input
    before: Cost
    after: Cost
    check: Verdict
    data: Data | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    predicted: bool = True
    integer: Integer | None = None
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """The comparison as nested dicts and lists."""
        return {
            "reference": self.reference.to_dict(),
            "model": self.model.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "check": self.check.to_dict(),
            "data": None if self.data is None else self.data.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "fidelity": _fidelity_dict(self.quality),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "integer": None if self.integer is None else self.integer.to_dict(),
            "warnings": list(self.warnings),
        }

    def to_json(self) -> str:
        """The comparison as JSON text."""
        return to_json(self.to_dict())


def to_json(data: Any) -> str:
    """Strict, readable JSON: numbers that JSON has no word for (NaN, infinity) become null."""
    return json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"


def cost_dict(cost: Cost, *, per_node: bool) -> dict[str, Any]:
    """What `graphopt cost --json` holds: the cost of a report, what only a prediction knows, and the nodes."""
    found = {
        **cost.to_dict(),
        "flops": cost.flops,
        "predicted_ms": cost.predicted_ms,
        "predicted_by": cost.predicted_by,
        "assumed": cost.assumed,
        "peak": {"node": cost.peak_node, "held": [held._asdict() for held in cost.peak_held]},
    }
    if per_node:
        found["per_node"] = [dataclasses.asdict(node) for node in cost.per_node]
    return found


def _fidelity_dict(quality: Quality | None) -> dict[str, Any] | None:
    """How near the outputs are, beside the quality, whose keys are fixed."""
    return None if quality is None or quality.fidelity is None else quality.fidelity.to_dict()


def _pass_dict(record: PassRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "options": dict(record.options),
        "seconds": record.seconds,
        "modified": record.modified,
        "before": None if record.before is None else record.before.to_dict(),
        "after": None if record.after is None else record.after.to_dict(),
        "remarks": [dataclasses.asdict(remark) for remark in record.remarks],
        **record.facts,
    }


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [_plain(value) for value in data]
    if isinstance(data, np.generic | np.ndarray):
        return _plain(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if data is None or isinstance(data, bool | int | str) else str(data)
