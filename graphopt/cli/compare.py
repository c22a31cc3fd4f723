"""`graphopt compare`: two models side by side, whether they compute the same, and how well each does on samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options
from graphopt.cli.options import Settings, check_provider
from graphopt.cli.output import check_targets, print_warnings, table_console, write_text
from graphopt.cli.progress import progress_bars


@click.command(cls=options.Command)
@options.model_argument("reference")
@options.model_argument()
@options.option(
    "Data", "-d", "--data", metavar="DATA", help="Samples to compare on, with labels where the metric asks."
)
@options.metric
@options.shapes
@options.latency
@options.device
@options.json_report
@options.running
@options.general
def compare(reference: Path, model: Path, **values: Any) -> None:
    """Hold MODEL against REFERENCE.

    Prints the costs of both side by side, whether they compute the same up to rounding on seeded random inputs, and with
    -d the metric of both and how near the outputs of MODEL are on these samples.
    """
    settings = Settings.read(values)
    if settings.provider is not None:
        check_provider(settings.provider)
    check_targets(settings, reference, model)
    from graphopt import api
    from graphopt.report import terminal

    with progress_bars(not settings.quiet) as progress:
        comparison = api.compare(
            reference,
            model,
            data=settings.data,
            metric=settings.metric,
            normalize=settings.normalize,
            latency=settings.latency,
            shapes=settings.shape or None,
            device=settings.device,
            seed=settings.seed,
            threads=settings.threads,
            provider=settings.provider,
            progress=progress,
        )
    if settings.json is not None:
        write_text(settings.json, comparison.to_json(), (reference, model))
    shown = table_console(settings)
    if shown is not None:
        terminal.print_comparison(comparison, shown)
    print_warnings(comparison.warnings, shown)
