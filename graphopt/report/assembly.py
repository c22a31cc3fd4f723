"""Reports from what a run leaves behind: records of passes, measurements, and the samples they were made on."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

import graphopt
from graphopt.errors import RuntimeFailureError
from graphopt.lift import Lifted
from graphopt.report.model import Comparison, Data, Gate, Input, Integer, Quality, Report

if TYPE_CHECKING:
    from graphopt.data import Samples
    from graphopt.pipeline.records import RunRecord
    from graphopt.planning.gate import Outcome
    from graphopt.pricing import Cost, DeviceProfile
    from graphopt.runtime.equivalence import Verdict
    from graphopt.runtime.latency import Latency
    from graphopt.runtime.quality import Quality as Measured


def report_of(
    lifted: Lifted,
    record: RunRecord,
    *,
    check: Verdict | None,
    latency: Latency | None,
    data: Data | None,
    quality: Quality | None,
    warnings: Sequence[str],
    device: DeviceProfile | None = None,
) -> Report:
    """The report of a run over `lifted`, priced for `device`; what was not measured is None."""
    from graphopt.pricing import Pricer

    def priced(*, per_node: bool = False) -> tuple[Cost, Cost]:
        pricer = Pricer(shapes=lifted.fixed, device=device)
        before = pricer.price(lifted.relift(), per_node=per_node)
        return before, pricer.price(record.model, per_node=per_node)

    def costs() -> tuple[Cost, Cost]:
        before = record.passes[0].before if record.passes else None
        after = record.passes[-1].after if record.passes else None
        if before is None or after is None:
            before, after = priced()
        after = dataclasses.replace(after, latency_ms=None if latency is None else latency.after_ms)
        return _with_source(before, lifted, None if latency is None else latency.before_ms), after

    report = Report(
        graphopt=graphopt.__version__,
        input=_input(lifted),
        pipeline=record.pipeline,
        costs=costs,
        passes=record.passes,
        nodes=lambda: tuple(cost.per_node for cost in priced(per_node=True)),
        check=check,
        latency=latency,
        data=data,
        quality=quality,
        warnings=warnings,
        peak_rss_bytes=_peak_rss_bytes(),
    )
    report.integer = _integer(record.model, lifted, report)
    return report


def sign(model: ir.Model, report: Report) -> None:
    """Write into the model what made it; where the same pipeline made it and now found nothing to do, that stays."""
    made_by = model.metadata_props.get("graphopt.version"), model.metadata_props.get("graphopt.pipeline")
    if made_by == (report.graphopt, report.pipeline) and not any(record.modified for record in report.passes):
        return
    model.metadata_props["graphopt.version"] = report.graphopt
    model.metadata_props["graphopt.pipeline"] = report.pipeline
    model.metadata_props["graphopt.source"] = f"sha256:{report.input.sha256}"


def comparison_of(
    reference: Lifted,
    model: Lifted,
    *,
    check: Verdict,
    latency: Latency | None,
    data: Data | None,
    quality: Quality | None,
    warnings: Sequence[str],
    device: DeviceProfile | None = None,
) -> Comparison:
    """Two models side by side, priced for `device`."""
    from graphopt.pricing import Pricer

    pricer = Pricer(shapes=reference.fixed, device=device)
    before, after = (pricer.price(lifted.model) for lifted in (reference, model))
    comparison = Comparison(
        reference=_input(reference),
        model=_input(model),
        before=_with_source(before, reference, None if latency is None else latency.before_ms),
        after=_with_source(after, model, None if latency is None else latency.after_ms),
        check=check,
        latency=latency,
        predicted=latency is None or device is not None,
        data=data,
        quality=quality,
        warnings=[*reference.warnings, *model.warnings, *warnings],
    )
    comparison.integer = _integer(model.model, model, comparison)
    return comparison


def data_of(source: Any, samples: Samples, held_out: Samples | None = None) -> Data:
    """What is reported of the samples that came from `source`."""
    return Data(source_name(source), samples.digest, len(samples), 0 if held_out is None else len(held_out))


def source_name(source: Any) -> str:
    """What a report calls the source of samples."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"an object of type {type(source).__name__}"


def quality_of(measured: Measured | None, gate: Outcome | None = None, calibration_samples: int = 0) -> Quality | None:
    """What was measured on the evaluation samples, else on those that the gate held out, and what the gate said."""
    found = measured if measured is not None else gate.quality if gate is not None else None
    if found is None:
        return None
    return Quality(
        metric=found.metric,
        before=found.before,
        after=found.after,
        samples=found.samples,
        calibration_samples=calibration_samples,
        gate=None if gate is None else _gate(gate),
        unit=found.unit,
        against=found.against,
        standard_error=found.standard_error,
        interval=found.interval,
        fidelity=found.fidelity,
    )


def _gate(outcome: Outcome) -> Gate:
    found = outcome.quality
    return Gate(found.before, found.after, found.samples, found.interval, outcome.max_drop)


def _input(lifted: Lifted) -> Input:
    source = lifted.source
    path = None if source.path is None else str(source.path)
    return Input(path, source.sha256, source.bytes, tuple(map(str, source.external_files)))


def _with_source(cost: Cost, lifted: Lifted, latency_ms: float | None) -> Cost:
    """A cost with what the source itself says: its size on disk, and its measured time."""
    return dataclasses.replace(cost, bytes=lifted.source.bytes, latency_ms=latency_ms)


def _integer(model: ir.Model, lifted: Lifted, found: Report | Comparison) -> Integer | None:
    """What of a quantized model runs in integer kernels; None for another one, and for one that cannot be run."""
    from graphopt.pricing.integer_kernels import integer_share, is_quantized

    if not is_quantized(model):
        return None
    try:
        share = integer_share(model, shapes=lifted.fixed)
    except RuntimeFailureError as error:
        found.warnings = [*found.warnings, f"not known what runs in integer kernels: {error}"]
        return None
    ratio = found.latency.ratio if found.latency is not None else None
    fidelity = found.quality.fidelity if found.quality is not None else None
    return Integer(share, found.after.bytes / found.before.bytes, ratio, None if fidelity is None else fidelity.sqnr_db)


def _peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
