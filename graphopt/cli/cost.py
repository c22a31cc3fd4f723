"""`graphopt cost`: what one inference of a model takes, in total and per node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options
from graphopt.cli.options import Settings
from graphopt.cli.output import check_targets, table_console, write_text


@click.command(cls=options.Command)
@options.model_argument()
@options.option("Checks and costs", "--per-node", is_flag=True, help="One row per node, the dearest first.")
@options.option("Checks and costs", "--batch", type=click.IntRange(min=1), metavar="N", help="Samples per inference.")
@options.shapes
@options.device
@options.json_report
@options.general
def cost(model: Path, **values: Any) -> None:
    """Say what MODEL takes.

    Prints MACs, parameters, bytes, peak activation memory and predicted time, in total and per node.
    """
    settings = Settings.read(values)
    check_targets(settings, model)
    from graphopt import api
    from graphopt.report import terminal
    from graphopt.report.model import cost_dict, to_json

    found = api.cost(model, batch=settings.batch, shapes=settings.shape or None, device=settings.device)
    if settings.json is not None:
        write_text(settings.json, to_json(cost_dict(found, per_node=settings.per_node)), (model,))
    shown = table_console(settings)
    if shown is not None:
        terminal.print_cost(found, shown, per_node=settings.per_node)
