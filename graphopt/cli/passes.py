"""`graphopt passes`: what there is to put into a pipeline, read off the passes themselves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from graphopt.cli import options

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass
    from graphopt.pipeline.registry import Registry


@click.command(cls=options.Command)
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List all passes, or explain NAME."""
    from graphopt.pipeline.pipeline import missing_passes
    from graphopt.pipeline.presets import PRESETS
    from graphopt.pipeline.registry import Registry

    registry = Registry()
    if name is None:
        _list_all(registry)
    elif name in PRESETS:
        missing = missing_passes(name, registry)
        note = f"\n\nNot available in this version, for want of: {', '.join(missing)}." if missing else ""
        click.echo(f"{name}: a preset\n\n  {PRESETS[name]}{note}")
    else:
        _explain(registry.find(name))


def _list_all(registry: Registry) -> None:
    from graphopt.pipeline.pipeline import missing_passes
    from graphopt.pipeline.presets import PRESETS

    found, warnings = registry.find_all()
    click.echo("Passes (graphopt passes NAME explains one):\n")
    _columns([(cls.name, _first_line(cls)) for cls in found])
    missing = {preset: missing_passes(preset, registry) for preset in PRESETS}
    click.echo("\nPresets:\n")
    _columns([(name, pipeline) for name, pipeline in PRESETS.items() if not missing[name]])
    if any(missing.values()):
        click.echo("\nNot available in this version, for want of passes:\n")
        _columns([(name, ", ".join(names)) for name, names in missing.items() if names])
    for warning in warnings:
        click.echo(f"graphopt: warning: {warning}", err=True)


def _explain(cls: type[Pass]) -> None:
    from graphopt.pipeline.options import options_of

    click.echo(f"{cls.name}\n\n{inspect.getdoc(cls) or 'No description.'}\n")
    click.echo("It computes the same as before." if cls.exact else "It changes what the model computes.")
    if (data := _data(cls)) is not None:
        click.echo(data)
    if cls.requires:
        click.echo(f"Runs after: {', '.join(_as_presets(cls.requires))} (inserted where missing).")
    opset = inspect.getattr_static(cls, "min_opset")
    if isinstance(opset, int):
        click.echo(f"Raises the opset to at least {opset}.")
    found = options_of(cls)
    if not found:
        click.echo("\nIt has no options.")
        return
    click.echo("\nOptions:\n")
    for option in found.values():
        default = "must be given" if option.default is dataclasses.MISSING else _default(option.write(option.default))
        click.echo(f"  {option.name}: {option.legal}; {default}\n      {option.help or 'No description.'}")


def _default(text: str) -> str:
    return f"default {text}" if text else "empty by default"


def _as_presets(names: Sequence[str]) -> list[str]:
    """`names` with the passes of a preset of exact ones called by its name, where all of them are there."""
    from graphopt.pipeline.presets import PRESETS

    lossless = PRESETS["lossless"].split(",")
    if not set(lossless) <= set(names):
        return list(names)
    return ["the passes of lossless", *(name for name in names if name not in lossless)]


def _data(cls: type[Pass]) -> str | None:
    """What the pass asks of the user's samples; where a property says it, the options decide."""
    from graphopt.pipeline.base import Pass

    needs, reads = (inspect.getattr_static(cls, name) for name in ("needs_data", "reads_data"))
    if needs is True:
        return "It needs calibration samples (-d)."
    if needs is not inspect.getattr_static(Pass, "needs_data"):
        return "It needs calibration samples (-d) with some of its options."
    if reads is not inspect.getattr_static(Pass, "reads_data"):
        return "It reads calibration samples (-d) where there are some."
    return None


def _first_line(cls: type[Pass]) -> str:
    return (inspect.getdoc(cls) or "No description.").splitlines()[0]


def _columns(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"  {name:<{width}}  {text}")
