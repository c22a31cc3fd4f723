"""`graphopt plan`: choose rewrites that meet a budget, and write down what and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options
from graphopt.cli.options import Settings
from graphopt.errors import NotAvailableError


@click.command(cls=options.Command)
@options.model_argument()
@options.option("Output", "-o", "--output", type=click.Path(path_type=Path), metavar="PLAN.json", required=True,
                help="The plan: what, where, why, predicted and measured.")  # fmt: skip
@options.option("Output", "--pareto", is_flag=True, help="Plan several budgets and list what each costs and gains.")
@options.choosing
@options.targets
@options.narrowing
@options.shapes
@options.data
@options.metric
@options.overwrite
@options.json_report
@options.device
@options.running
@options.scaling
@options.general
def plan(model: Path, **values: Any) -> None:
    """Plan the rewrites that meet a budget (not available yet).

    The plan says what is to be done where, and why; `graphopt run --plan` replays it.
    """
    Settings.read(values)
    raise NotAvailableError("plan: this version of graphopt has no planner yet")
