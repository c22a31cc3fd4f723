"""`graphopt profile-device`: measure this machine, so that costs are predicted for it."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli import options
from graphopt.errors import NotAvailableError


@click.command("profile-device", cls=options.Command)
@options.option("Output", "-o", "--output", type=click.Path(path_type=Path), metavar="PROFILE.json", required=True,
                help="The profile, which --device takes.")  # fmt: skip
@options.overwrite
def profile_device(output: Path, overwrite: bool) -> None:
    """Measure this machine for --device."""
    raise NotAvailableError("profile-device: this version of graphopt has no device profiles yet")
