"""`graphopt run`: lift a model, rewrite it, write it, and say what it gained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli import options
from graphopt.cli.options import Settings, check_provider
from graphopt.cli.output import check_targets, default_output, print_warnings, table_console, write_text
from graphopt.cli.progress import progress_bars
from graphopt.errors import NotAvailableError

if TYPE_CHECKING:
    from graphopt.api import Result


@click.command(cls=options.Command)
@options.model_argument()
@options.choosing
@options.replaying
@options.targets
@options.narrowing
@options.shapes
@options.data
@options.metric
@options.output
@options.overwrite
@options.json_report
@options.checks
@options.latency
@options.device
@options.running
@options.scaling
@options.general
def run(model: Path, **values: Any) -> None:
    """Rewrite MODEL and write the result.

    Without -p or --preset the result computes the same as MODEL. It is plain ONNX, and replaces no model unless told to.
    """
    settings = Settings.read(values)
    if settings.scheduler is not None:
        raise NotAvailableError("--scheduler: this version of graphopt has no distributed runs yet")
    if settings.provider is not None:
        check_provider(settings.provider)
    target = settings.output or default_output(model)
    check_targets(settings, model, model=target)
    result = _optimize(model, target, settings)
    result.save(target, overwrite=settings.overwrite)
    _report(result, settings, target, model)


def _optimize(model: Path, target: Path, settings: Settings) -> Result:
    from graphopt import api
    from graphopt.report import terminal

    shown = table_console(settings)
    with progress_bars(not settings.quiet) as progress:
        return api.optimize(
            model,
            settings.pipeline,
            preset=settings.preset,
            plan=settings.plan,
            budget=settings.budget or None,
            max_drop=settings.max_drop,
            data=settings.data,
            eval_data=settings.eval_data,
            metric=settings.metric,
            normalize=settings.normalize,
            calibration_samples=settings.calibration_samples,
            shapes=settings.shape or None,
            exclude=settings.exclude,
            latency=settings.latency,
            check=settings.check,
            dump=settings.dump,
            crash_folder=target.parent,
            device=settings.device,
            seed=settings.seed,
            threads=settings.threads,
            provider=settings.provider,
            verify=settings.verify,
            provenance=not settings.no_provenance,
            price_passes=shown is not None or settings.json is not None or settings.report is not None,
            announce=None if shown is None else lambda pipeline: terminal.print_pipeline(pipeline, shown),
            progress=progress,
        )


def _report(result: Result, settings: Settings, target: Path, model: Path) -> None:
    report = result.report
    report.output = str(target)
    protected = (model, target, *map(Path, report.input.external_files))
    if settings.json is not None:
        write_text(settings.json, report.to_json(), protected)
    if settings.report is not None:
        write_text(settings.report, report.to_html(), protected)
    shown = table_console(settings)
    if shown is not None:
        from graphopt.report import terminal

        terminal.print_report(report, shown, verbose=settings.verbose)
    print_warnings(report.warnings, shown)
