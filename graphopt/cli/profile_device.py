"""`graphopt profile-device`: measure this machine, so that costs are predicted for it."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli import options
from graphopt.cli.progress import progress_bars


@click.command("profile-device", cls=options.Command)
@options.option("Output", "-o", "--output", type=click.Path(path_type=Path), metavar="PROFILE.json", required=True,
                help="The profile, which --device takes; one that is there is gone on with.")  # fmt: skip
@options.option("Output", "--overwrite", is_flag=True, help="Start anew.")
def profile_device(output: Path, overwrite: bool) -> None:
    """Measure this machine for --device.

    Takes some minutes, with one thread; other work on the machine meanwhile makes it less exact. It can be stopped: what it
    has is a profile already, and the same command goes on with it.
    """
    from graphopt.pricing.profiling import measure_profile

    with progress_bars(True) as bars:
        progress = None if bars is None else lambda done, total: bars("measuring kernels", done, total)
        try:
            profile = measure_profile(output, overwrite=overwrite, progress=progress)
        except KeyboardInterrupt as stop:
            if not output.exists():
                raise
            said = f"{output} is a profile of what is measured; the same command without --overwrite goes on"
            raise KeyboardInterrupt(said) from stop
    click.echo(f"wrote {output}: {profile.title}, in {len(profile.designs)} networks")
