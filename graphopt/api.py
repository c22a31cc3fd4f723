"""The Python API: lift, rewrite, check, price and hand over.

Everything that the command line does goes through these functions, and nothing else does.
"""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import onnx_ir as ir

import graphopt
from graphopt.errors import NotAvailableError, OptionError
from graphopt.ir import emit
from graphopt.lift import Lifted, ModelLike, lift
from graphopt.report.model import Comparison, Input, Report

if TYPE_CHECKING:
    from graphopt.pipeline.manager import Tools
    from graphopt.pipeline.records import RunRecord
    from graphopt.pricing import Cost
    from graphopt.runtime.equivalence import Equivalence, Verdict
    from graphopt.runtime.latency import Latency

__all__ = ["Comparison", "Result", "compare", "cost", "load", "optimize"]

Shapes = Mapping[str, Sequence[int]]
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
        size = sum(file.stat().st_size for file in files)
        self.report.after = dataclasses.replace(self.report.after, bytes=size)


def optimize(
    model: ModelLike,
    pipeline: str | None = None,
    *,
    preset: str | None = None,
    data: Any = None,
    eval_data: Any = None,
    metric: Any = None,
    budget: Mapping[str, Any] | None = None,
    max_drop: float | None = None,
    plan: Any = None,
    shapes: Shapes | None = None,
    exclude: str | re.Pattern[str] | None = None,
    latency: bool = False,
    check: bool = True,
    dump: str | os.PathLike[str] | None = None,
    crash_folder: str | os.PathLike[str] = ".",
    device: str | os.PathLike[str] | None = None,
    seed: int = 0,
    threads: int = 1,
    provider: str | None = None,
    verify: Literal["touched", "full"] = "touched",
    provenance: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Rewrite a model; the input is never changed.

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model`, `onnx_graphsurgeon.Graph` or `torch.onnx.ONNXProgram`.
        pipeline: passes in order, as text (`graphopt passes` lists them). Default: the preset `lossless`.
        preset: the name of a pipeline, instead of one.
        data: calibration samples, for passes that read them.
        eval_data: samples for the final measurement. Not available yet.
        metric: what quality is measured by. Not available yet.
        budget: bounds on macs, params, bytes, memory or latency. Not available yet.
        max_drop: the accuracy gate. Not available yet.
        plan: a plan to replay. Not available yet.
        shapes: extents to fix dynamic inputs to, by input name.
        exclude: name, or pattern of names, of nodes that no pass touches.
        latency: measure onnxruntime's time before and after.
        check: compare with the original in onnxruntime; an exact pass that changed the results is rolled back.
        dump: folder for the IR after each pass.
        crash_folder: where the model and pipeline are left that reproduce the failure of a pass.
        device: device profile to price by. Not available yet.
        seed: of everything random.
        threads: threads of onnxruntime.
        provider: execution provider of onnxruntime, None for the CPU.
        verify: what is verified after a pass: the nodes it touched, or everything.
        provenance: write into the model what made it.
        progress: told how far long steps have come.

    Raises:
        GraphoptError: with one message that says what is wrong and where.
    """
    started = time.perf_counter()
    _refuse(eval_data=eval_data, metric=metric, budget=budget, max_drop=max_drop, plan=plan, device=device)
    if pipeline is not None and preset is not None:
        raise OptionError("--preset and --pipeline exclude each other; a preset's name may stand in a pipeline")
    from graphopt.pipeline.base import PassContext
    from graphopt.pipeline.instruments import Dump, Steps
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.pipeline import Pipeline
    from graphopt.pipeline.registry import Registry
    from graphopt.runtime.evaluate import evaluate

    registry = Registry()
    passes = Pipeline.parse(pipeline if pipeline is not None else preset or "lossless", registry)
    lifted = lift(model, shapes=shapes)
    original = _Original(lifted, seed, threads, provider)
    manager = Manager(
        registry=registry,
        context=PassContext(seed=seed, threads=threads, exclude=_pattern(exclude), evaluate=evaluate),
        tools=_tools(lifted, original.expect_comparison().verdict if check else None),
        instruments=[*([Dump(Path(dump))] if dump is not None else []), *([Steps(progress)] if progress else [])],
        crash_folder=Path(crash_folder),
        verify_all=verify == "full",
        provenance=provenance,
    )
    record = manager.run(lifted.model, passes)
    warnings = [*lifted.warnings, *record.warnings]
    if data is not None:
        warnings.append("no pass of this pipeline reads data: --data was not used")
    measured = original.latency(record.model, progress) if latency else None
    report = _report(lifted, record, original.last, measured, warnings)
    if provenance:
        _sign(record.model, report)
    report.seconds = time.perf_counter() - started
    report.peak_rss_bytes = peak_rss_bytes()
    return Result(record.model, report, _files(lifted), bool(shapes), progress)


def cost(
    model: ModelLike, *, batch: int | None = None, shapes: Shapes | None = None, device: str | None = None
) -> Cost:
    """What one inference of a model takes, in total and per node.

    Args:
        model: as `optimize` takes it.
        batch: the extent of a first axis that the model leaves open; 1 by default.
        shapes: extents to fix dynamic inputs to, by input name.
        device: device profile to price by. Not available yet.

    Raises:
        GraphoptError: the model is not valid, or an argument does not fit it.
    """
    _refuse(device=device)
    from graphopt.pricing import price

    lifted = lift(model, shapes=shapes)
    found = price(lifted.model, batch=batch, shapes=shapes, per_node=True)
    return dataclasses.replace(found, bytes=lifted.source.bytes)


def compare(
    reference: ModelLike,
    model: ModelLike,
    *,
    data: Any = None,
    metric: Any = None,
    latency: bool = False,
    shapes: Shapes | None = None,
    device: str | None = None,
    seed: int = 0,
    threads: int = 1,
    provider: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Hold a model against a reference: costs side by side, and whether they compute the same on seeded inputs.

    Args:
        reference: the model that counts as right, as `optimize` takes it.
        model: the other one.
        data: samples to compare on. Not available yet.
        metric: what quality is measured by. Not available yet.
        latency: measure onnxruntime's time of both.
        shapes: extents to fix dynamic inputs to, by input name.
        device: device profile to price by. Not available yet.
        seed: of the inputs.
        threads: threads of onnxruntime.
        provider: execution provider of onnxruntime, None for the CPU.
        progress: told how far long steps have come.

    Raises:
        GraphoptError: one of the models is not valid, or cannot be run where time is measured.
    """
    _refuse(data=data, metric=metric, device=device)
    from graphopt.pricing import price

    first, second = lift(reference, shapes=shapes), lift(model, shapes=shapes)
    original = _Original(first, seed, threads, provider).expect_comparison()
    measured = original.latency(second.model, progress) if latency else None
    before, after = (price(lifted.model, shapes=shapes) for lifted in (first, second))
    return Comparison(
        reference=_input(first),
        model=_input(second),
        before=_measured(before, first, measured.before_ms if measured else None),
        after=_measured(after, second, measured.after_ms if measured else None),
        check=original.verdict(second.model),
        latency=measured,
        warnings=[*first.warnings, *second.warnings],
    )


def load(model: ModelLike, *, shapes: Shapes | None = None) -> ir.Model:
    """Lift a model and return it in the IR: typed, checked, its weights still where they were.

    Raises:
        GraphoptError: it is not valid.
    """
    return lift(model, shapes=shapes).model


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _refuse(**wanted: Any) -> None:
    """Raise NotAvailableError for the first argument that this version cannot serve."""
    for name, value in wanted.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise NotAvailableError(f"{option} is not available in graphopt {graphopt.__version__}")


def _pattern(exclude: str | re.Pattern[str] | None) -> re.Pattern[str] | None:
    return re.compile(re.escape(exclude)) if isinstance(exclude, str) else exclude


class _Original:
    """The model as it was given, for comparing and timing."""

    def __init__(self, lifted: Lifted, seed: int, threads: int, provider: str | None) -> None:
        self._lifted = lifted
        self._seed = seed
        self._threads = threads
        self._provider = provider
        self._equivalence: Equivalence | None = None
        self.last: Verdict | None = None

    def expect_comparison(self) -> _Original:
        """Read what comparing needs of the lifted model, before any pass changes it; the original runs later."""
        from graphopt.runtime.equivalence import Equivalence

        self._equivalence = Equivalence(
            self._lifted.model,
            source=lambda: self.source,
            seed=self._seed,
            threads=self._threads,
            provider=self._provider,
        )
        return self

    @property
    def source(self) -> Any:
        """What to run: the file itself where there is one, which no defect of ours can have touched."""
        fixed = self._lifted.fixed
        return self._lifted.source.path if self._lifted.source.path is not None and not fixed else self._lifted.relift()

    def verdict(self, candidate: ir.Model) -> Verdict:
        """Compare `candidate` with the original on seeded inputs."""
        assert self._equivalence is not None
        self.last = self._equivalence.verdict(candidate)
        return self.last

    def latency(self, candidate: ir.Model, progress: Progress | None) -> Latency:
        """Time the original and `candidate` in turn."""
        from graphopt.runtime.inputs import candidate_inputs
        from graphopt.runtime.latency import measure

        return measure(
            self.source,
            candidate,
            candidate_inputs(self._lifted.relift(), seed=self._seed, batch=1),
            threads=self._threads,
            provider=self._provider,
            progress=None if progress is None else lambda done: progress("measuring latency", done, 1.0),
        )


def _tools(lifted: Lifted, equivalent: Callable[[ir.Model], Verdict] | None) -> Tools:
    from graphopt.analysis import meaning, opset
    from graphopt.analysis import shapes as inference
    from graphopt.ir.verify import verify
    from graphopt.pipeline.manager import Tools
    from graphopt.pricing import Pricer

    pricer = Pricer(shapes=lifted.fixed)
    return Tools(
        verify_structure=verify,
        infer=inference.infer,
        verify_meaning=meaning.check,
        save=lambda model, path: emit.emit(model, path, fixed_shapes=bool(lifted.fixed)),
        upgrade=opset.upgrade,
        price=lambda model, touched: pricer.price(model, touched=touched),
        equivalent=equivalent,
        relift=lifted.relift,
    )


def _input(lifted: Lifted) -> Input:
    source = lifted.source
    path = None if source.path is None else str(source.path)
    return Input(path, source.sha256, source.bytes, tuple(map(str, source.external_files)))


def _measured(cost: Cost, lifted: Lifted, latency_ms: float | None) -> Cost:
    """A cost with what the source itself says: its size on disk, and its measured time."""
    return dataclasses.replace(cost, bytes=lifted.source.bytes, latency_ms=latency_ms)


def _files(lifted: Lifted) -> tuple[Path, ...]:
    own = () if lifted.source.path is None else (lifted.source.path,)
    return (*own, *lifted.source.external_files)


def _report(
    lifted: Lifted, record: RunRecord, check: Verdict | None, measured: Latency | None, warnings: list[str]
) -> Report:
    from graphopt.pricing import Pricer, price

    before = record.passes[0].before if record.passes else None
    after = record.passes[-1].after if record.passes else None
    if before is None or after is None:
        before = after = Pricer(shapes=lifted.fixed).price(record.model)
    before = _measured(before, lifted, None if measured is None else measured.before_ms)
    after = dataclasses.replace(after, latency_ms=None if measured is None else measured.after_ms)
    return Report(
        graphopt=graphopt.__version__,
        input=_input(lifted),
        pipeline=record.pipeline,
        before=before,
        after=after,
        passes=record.passes,
        nodes=lambda: tuple(
            price(model, shapes=lifted.fixed, per_node=True).per_node for model in (lifted.relift(), record.model)
        ),
        check=check,
        latency=measured,
        warnings=warnings,
    )


def _sign(model: ir.Model, report: Report) -> None:
    """Write into the model what made it."""
    model.metadata_props["graphopt.version"] = report.graphopt
    model.metadata_props["graphopt.pipeline"] = report.pipeline
    model.metadata_props["graphopt.source"] = f"sha256:{report.input.sha256}"
