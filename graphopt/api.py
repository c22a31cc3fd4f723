"""The Python API: lift, rewrite, check, price and hand over.

Everything that the command line does goes through these functions, and nothing else does.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import onnx
import onnx_ir as ir

import graphopt
from graphopt.arguments import check_arguments
from graphopt.errors import NotAvailableError, OptionError
from graphopt.ir import emit
from graphopt.ir.walk import all_nodes
from graphopt.lift import Lifted, ModelLike, lift
from graphopt.pipeline.presets import PRESETS
from graphopt.report.model import Comparison, Report

if TYPE_CHECKING:
    from graphopt.pipeline.instruments import Instrument
    from graphopt.pricing import Cost, DeviceProfile

__all__ = ["Comparison", "Result", "compare", "cost", "load", "optimize"]

Shapes = Mapping[str, Sequence[int]]
Device: TypeAlias = "str | os.PathLike[str] | DeviceProfile | None"
Metric = str | Callable[..., float] | None
Normalize = str | Mapping[str, Any] | None
Progress = Callable[[str, float, float], None]
"""`progress(step, done, total)`: how far the step that is called `step` has come."""


@dataclasses.dataclass
class Result:
    """What `optimize` made.

    Attributes:
        ir: the result in the IR.
        report: costs before and after, per pass and in total; `to_json()`, `to_html()`.
    """

    ir: ir.Model
    report: Report
    _protected: tuple[Path, ...]
    _fixed_shapes: bool
    _progress: Progress | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The result as a ModelProto. Raises EmitError above 2 GiB: use `save` then."""
        return emit.to_proto(self.ir, fixed_shapes=self._fixed_shapes)

    @property
    def plan(self) -> Sequence[Mapping[str, Any]]:
        """What was done where, and why."""
        return self.report.plan

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know."""
        return self.report.warnings

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the result to `path`, external data (if any) to `path` + `.data`; whole or not at all.

        Raises:
            EmitError: the target exists, is the input, or cannot be written.
        """
        written = 0
        total = emit.serialized_size(self.ir, fixed_shapes=self._fixed_shapes) if self._progress else 0

        def progress(count: int) -> None:
            nonlocal written
            written += count
            if self._progress is not None:
                self._progress("writing", written, total)

        files = emit.emit(
            self.ir,
            Path(path),
            overwrite=overwrite,
            protected=self._protected,
            fixed_shapes=self._fixed_shapes,
            progress=progress if self._progress is not None else None,
        )
        self.report.written(sum(file.stat().st_size for file in files))


def optimize(
    model: ModelLike,
    pipeline: str | None = None,
    *,
    preset: str | None = None,
    data: Any = None,
    eval_data: Any = None,
    metric: Metric = None,
    normalize: Normalize = None,
    calibration_samples: int | None = None,
    statistics_folder: str | os.PathLike[str] | None = None,
    budget: Mapping[str, Any] | None = None,
    max_drop: float | None = None,
    plan: Any = None,
    shapes: Shapes | None = None,
    exclude: str | Sequence[str] | re.Pattern[str] | None = None,
    latency: bool = False,
    check: bool = True,
    dump: str | os.PathLike[str] | None = None,
    crash_folder: str | os.PathLike[str] = ".",
    device: Device = None,
    seed: int = 0,
    threads: int = 1,
    provider: str | None = None,
    verify: Literal["touched", "full"] = "touched",
    provenance: bool = True,
    price_passes: bool = True,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Rewrite a model; the input is never changed.

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model`, `onnx_graphsurgeon.Graph` or `torch.onnx.ONNXProgram`.
        pipeline: passes in order, as text (`graphopt passes` lists them). Default: the preset `lossless`.
        preset: the name of a pipeline, instead of one.
        data: calibration samples, for passes that read them and for the gate: a path, a reader (docs/evaluation.md).
        eval_data: samples for the final measurement; no decision is based on them.
        metric: what quality is measured by: a name, `file.py:function`, or a function `f(outputs, labels)`. Default:
            `top1` for classifiers with labels, else `agreement` or `sqnr` with the original.
        normalize: what is applied to integer arrays and images, such as "imagenet" or "scale=1/255".
        calibration_samples: how many samples of `data` are used, 256 by default.
        statistics_folder: where statistics of calibration samples are kept for later runs, by digests of the model and of
            the data; nowhere by default.
        budget: bounds on macs, params, bytes, memory or latency. Not available yet.
        max_drop: the gate: how much worse the metric may get on samples held out of `data`, in its own unit.
        plan: a plan to replay. Not available yet.
        shapes: extents to fix dynamic inputs to, by input name.
        exclude: nodes that no pass touches: a name or a regular expression for whole names, or several of them.
        latency: measure onnxruntime's time before and after; `max_drop` asks for it too.
        check: compare with the original in onnxruntime; an exact pass that changed the results is rolled back.
        dump: folder for the IR after each pass.
        crash_folder: where the model and pipeline are left that reproduce the failure of a pass.
        device: a device profile, or its file, to predict time by (docs/devices.md); None for the built-in one.
        seed: of everything random.
        threads: threads of onnxruntime.
        provider: execution provider of onnxruntime, None for the CPU.
        verify: what is verified after a pass: the nodes it touched, or everything.
        provenance: write into the model what made it.
        price_passes: price the model after each pass, for the report. A run of which nobody reads that is faster without.
        announce: told the pipeline as it was understood, before the first pass runs.
        progress: told how far long steps have come.

    Raises:
        TargetNotMetError: the gate does not hold.
        GraphoptError: with one message that says what is wrong and where.
    """
    started = time.perf_counter()
    check_arguments(
        pipeline=pipeline,
        preset=preset,
        metric=metric,
        normalize=normalize,
        calibration_samples=calibration_samples,
        max_drop=max_drop,
        shapes=shapes,
        exclude=exclude,
        device=device,
        seed=seed,
        threads=threads,
        verify=verify,
    )
    _refuse(budget=budget, plan=plan)
    if preset is not None and preset not in PRESETS:
        raise OptionError(f"--preset: there is no preset '{preset}'; there are {', '.join(PRESETS)}")
    if pipeline is not None and preset is not None:
        raise OptionError("--preset and --pipeline exclude each other; a preset's name may stand in a pipeline")
    if max_drop is not None and pipeline is None and preset is None:
        raise NotAvailableError(
            f"--max-drop without passes to gate is not available in graphopt {graphopt.__version__}; name them with -p "
            "or --preset"
        )
    from graphopt.pipeline.base import PassContext
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.pipeline import Pipeline
    from graphopt.pipeline.registry import Registry
    from graphopt.pipeline.tools import tools_for
    from graphopt.planning import sparing
    from graphopt.planning.study import Request, Study
    from graphopt.report import assembly
    from graphopt.runtime.evaluate import evaluate
    from graphopt.runtime.original import Original

    profile = _device(device)
    registry = Registry()
    text = pipeline if pipeline is not None else preset or "lossless"
    passes = Pipeline.parse(text, registry).completed(registry)
    request = Request(data, eval_data, metric, max_drop, normalize, calibration_samples)
    request.require(passes)
    timed = latency or max_drop is not None
    lifted = lift(model, shapes=shapes)
    folder = None if statistics_folder is None else Path(statistics_folder)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise OptionError(f"statistics_folder {folder}: is no folder")
    study = Study(request, lifted, seed=seed, threads=threads, provider=provider, folder=folder)
    original = Original(lifted, seed=seed, threads=threads, provider=provider)
    study.prepare(original, passes, timed=timed)
    if announce is not None:
        announce(str(passes))
    unmatched = _unmatched(exclude, lifted.model)
    manager = Manager(
        registry=registry,
        context=PassContext(
            seed=seed,
            threads=threads,
            exclude=_pattern(exclude),
            evaluate=evaluate,
            evidence=study.evidence(progress),
            profile=profile,
        ),
        tools=tools_for(
            lifted,
            original.expect_comparison().verdict if check else None,
            price_passes=price_passes,
            device=profile,
        ),
        instruments=_instruments(dump, progress),
        crash_folder=Path(crash_folder),
        crash_options=_as_options(
            {
                "--data": data,
                "--normalize": normalize,
                "--calibration-samples": calibration_samples,
                "--device": device,
                "--provider": provider,
                "--threads": None if threads == 1 else threads,
            }
        ),
        verify_all=verify == "full",
        provenance=provenance,
    )
    record, gate = sparing.run(
        manager, lifted.model, passes, lambda found: study.judge(original, found, progress), lifted.relift
    )
    measured = study.latency(original, record.model, progress) if timed else None
    evaluated = study.evaluate(original, record.model, progress)
    report = assembly.report_of(
        lifted,
        record,
        check=original.last,
        latency=measured,
        data=None if study.samples is None else assembly.data_of(data, study.samples, study.held_out),
        quality=assembly.quality_of(evaluated, gate, len(study.calibration or ())),
        warnings=[*lifted.warnings, *unmatched, *study.warnings, *record.warnings],
        device=profile,
    )
    if provenance:
        assembly.sign(record.model, report)
    report.seconds = time.perf_counter() - started
    return Result(record.model, report, _files(lifted), bool(shapes), progress)


def _as_options(values: Mapping[str, Any]) -> list[str]:
    """Those of `values` that the command line can say, as options."""
    return [
        text
        for name, value in values.items()
        if isinstance(value, str | int | os.PathLike)
        for text in (name, os.fspath(value) if isinstance(value, os.PathLike) else str(value))
    ]


def cost(model: ModelLike, *, batch: int | None = None, shapes: Shapes | None = None, device: Device = None) -> Cost:
    """What one inference of a model takes, in total and per node.

    Args:
        model: as `optimize` takes it.
        batch: the extent of a first axis that the model leaves open; 1 by default.
        shapes: extents to fix dynamic inputs to, by input name.
        device: a device profile, or its file, to predict time by (docs/devices.md); None for the built-in one.

    Raises:
        GraphoptError: the model is not valid, or an argument does not fit it.
    """
    from graphopt.pricing import price

    check_arguments(batch=batch, shapes=shapes, device=device)
    profile = _device(device)
    lifted = lift(model, shapes=shapes)
    found = price(lifted.model, batch=batch, shapes=shapes, device=profile, per_node=True)
    return dataclasses.replace(found, bytes=lifted.source.bytes)


def compare(
    reference: ModelLike,
    model: ModelLike,
    *,
    data: Any = None,
    metric: Metric = None,
    normalize: Normalize = None,
    latency: bool = False,
    shapes: Shapes | None = None,
    device: Device = None,
    seed: int = 0,
    threads: int = 1,
    provider: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Hold a model against a reference: costs side by side, and whether they compute the same on seeded inputs.

    Args:
        reference: the model that counts as right, as `optimize` takes it.
        model: the other one.
        data: samples to measure the metric of both on, and how near the outputs are.
        metric: as for `optimize`.
        normalize: as for `optimize`.
        latency: measure onnxruntime's time of both.
        shapes: extents to fix dynamic inputs to, by input name.
        device: a device profile, or its file, to predict time by (docs/devices.md); None for the built-in one.
        seed: of the inputs.
        threads: threads of onnxruntime.
        provider: execution provider of onnxruntime, None for the CPU.
        progress: told how far long steps have come.

    Raises:
        GraphoptError: one of the models is not valid, or cannot be run where time or quality is measured.
    """
    from graphopt.planning.study import open_comparison
    from graphopt.report import assembly
    from graphopt.runtime import quality
    from graphopt.runtime.original import Original, source_of

    check_arguments(metric=metric, normalize=normalize, shapes=shapes, device=device, seed=seed, threads=threads)
    profile = _device(device)
    first, second = lift(reference, shapes=shapes), lift(model, shapes=shapes)
    samples = open_comparison(data, first.model, metric=metric, normalize=normalize, seed=seed)
    original = Original(first, seed=seed, threads=threads, provider=provider).expect_comparison()
    measured = None
    if samples is not None:
        told = None if progress is None else lambda done: progress("evaluation", done, 1.0)
        measured = quality.measure(
            original.source,
            [source_of(second)],
            samples,
            metric,
            seed=seed,
            threads=threads,
            provider=provider,
            progress=told,
            names=(_called(first, "the reference"), _called(second, "the model")),
        )[0]
    return assembly.comparison_of(
        first,
        second,
        check=original.verdict(second.model),
        latency=original.latency(second.model, samples, progress) if latency else None,
        data=None if samples is None else assembly.data_of(data, samples),
        quality=assembly.quality_of(measured),
        warnings=[] if samples is None else samples.warnings,
        device=profile,
    )


def load(model: ModelLike, *, shapes: Shapes | None = None) -> ir.Model:
    """Lift a model and return it in the IR: typed, checked, its weights still where they were.

    Raises:
        GraphoptError: it is not valid.
    """
    check_arguments(shapes=shapes)
    return lift(model, shapes=shapes).model


def _refuse(**wanted: Any) -> None:
    """Raise NotAvailableError for the first argument that this version cannot serve."""
    for name, value in wanted.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise NotAvailableError(f"{option} is not available in graphopt {graphopt.__version__}")


def _device(device: Device) -> DeviceProfile | None:
    """The profile that was named, read where it is a file. Raises ProfileError where it is none."""
    if not isinstance(device, str | os.PathLike):
        return device
    from graphopt.pricing import DeviceProfile

    return DeviceProfile.load(Path(device))


def _instruments(dump: str | os.PathLike[str] | None, progress: Progress | None) -> list[Instrument]:
    """What watches the run."""
    from graphopt.pipeline.instruments import Dump, Steps

    found: list[Instrument] = [] if dump is None else [Dump(Path(dump))]
    return found if progress is None else [*found, Steps(progress)]


def _pattern(exclude: str | Sequence[str] | re.Pattern[str] | None) -> re.Pattern[str] | None:
    """One expression for the names of all nodes that are excluded; text stands for itself and for what it describes."""
    if exclude is None or isinstance(exclude, re.Pattern):
        return exclude
    found = [part for text in _listed(exclude) for part in _either(text)]
    return re.compile("|".join(found)) if found else None


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _either(text: str) -> list[str]:
    """`text` as a name, and as an expression where it is one."""
    try:
        re.compile(f"(?:{text})")
    except re.error:
        return [re.escape(text)]
    return [re.escape(text), f"(?:{text})"]


def _unmatched(exclude: str | Sequence[str] | re.Pattern[str] | None, model: ir.Model) -> list[str]:
    """A warning for each thing to exclude that is no node's name, in the words of the user."""
    if exclude is None:
        return []
    each = [exclude] if isinstance(exclude, re.Pattern) else _listed(exclude)
    names = {node.name for node in all_nodes(model) if node.name}
    warnings = []
    for one in each:
        pattern = _pattern(one)
        if pattern is not None and not any(map(pattern.fullmatch, names)):
            shown = one.pattern if isinstance(one, re.Pattern) else one
            warnings.append(f"--exclude {shown}: the name of no node, and no expression for one")
    return warnings


def _called(lifted: Lifted, otherwise: str) -> str:
    """What messages call a model: its file, where it has one."""
    return otherwise if lifted.source.path is None else str(lifted.source.path)


def _files(lifted: Lifted) -> tuple[Path, ...]:
    own = () if lifted.source.path is None else (lifted.source.path,)
    return (*own, *lifted.source.external_files)
