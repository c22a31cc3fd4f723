"""What is reported: of a run, and of a comparison of two models.

These are plain data. The keys of their JSON form are an interface that stays; terminal and HTML
are views of the same objects.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from graphopt.pipeline.records import PassRecord
    from graphopt.pricing import Cost, NodeCost
    from graphopt.runtime.equivalence import Verdict
    from graphopt.runtime.latency import Latency


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
    """The accuracy gate: the metric on held-out samples, with its confidence interval after the rewrites."""

    before: float
    after: float
    samples: int
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Quality:
    """The metric before and after, on `samples` samples that no decision was based on."""

    metric: str
    before: float
    after: float
    samples: int
    calibration_samples: int = 0
    gate: Gate | None = None

    def to_dict(self) -> dict[str, Any]:
        """The quality as the JSON report holds it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class Report:
    """What one run did, and what it gained.

    Attributes:
        graphopt: the version that ran.
        input: the model that was read.
        pipeline: the passes as they were understood, as text that `-p` reads.
        before: cost of the original.
        after: cost of the result.
        passes: one record per pass, in order.
        nodes: makes the rows per node of the original and of the result, for the page that shows them; pricing every
            node anew is not free.
        quality: the metric, where it was measured.
        check: the comparison with the original in onnxruntime, where it was made.
        latency: measured time, where it was asked for.
        plan: what was done where, and why.
        warnings: what the user should know.
        seconds: duration of the whole run.
        peak_rss_bytes: largest resident memory of the process.
        output: the file that was written.
    """

    graphopt: str
    input: Input
    pipeline: str
    before: Cost
    after: Cost
    passes: Sequence[PassRecord] = ()
    nodes: Callable[[], Sequence[Sequence[NodeCost]]] | None = None
    quality: Quality | None = None
    check: Verdict | None = None
    latency: Latency | None = None
    plan: Sequence[dict[str, Any]] = ()
    warnings: Sequence[str] = ()
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    output: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as nested dicts and lists."""
        return {
            "graphopt": self.graphopt,
            "input": self.input.to_dict(),
            "output": self.output,
            "pipeline": self.pipeline,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "check": None if self.check is None else self.check.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
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
        quality: the metric of both, where data was given.
        latency: measured time, where it was asked for.
        warnings: what the user should know.
    """

    reference: Input
    model: Input
    before: Cost
    after: Cost
    check: Verdict
    quality: Quality | None = None
    latency: Latency | None = None
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """The comparison as nested dicts and lists."""
        return {
            "reference": self.reference.to_dict(),
            "model": self.model.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "check": self.check.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
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
        "assumed": cost.assumed,
    }
    if per_node:
        found["per_node"] = [dataclasses.asdict(node) for node in cost.per_node]
    return found


def _pass_dict(record: PassRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "options": dict(record.options),
        "seconds": record.seconds,
        "modified": record.modified,
        "before": record.before.to_dict(),
        "after": record.after.to_dict(),
        "remarks": [dataclasses.asdict(remark) for remark in record.remarks],
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
