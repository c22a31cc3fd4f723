"""`--config FILE.toml`: options from a file, by their long names; what the command line says wins.

pipeline = "lossless"
shape = { input = [1, 3, 224, 224] }
budget = { macs = 0.5 }
threads = 4
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

EXCLUSIVE = (("pipeline", "preset", "plan"), ("plan", "budget"))
"""Options that exclude each other: one on the command line drops the file's others."""


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of `--config`: its values become the defaults of the command's other options."""
    if path is not None:
        known = {_key(option): option for option in context.command.params if isinstance(option, click.Option)}
        known.pop("config", None)
        context.default_map = {
            str(_known(key, known, path).name): _value(key, value, known[key.replace("_", "-")], path)
            for key, value in _parse(path).items()
        }
    return path


def drop_overridden(context: click.Context, values: dict[str, Any]) -> None:
    """Where a command-line option excludes one from the file, forget the file's."""
    source = click.core.ParameterSource
    for group in EXCLUSIVE:
        explicit = {name for name in group if context.get_parameter_source(name) == source.COMMANDLINE}
        for name in group:
            if explicit and name in values and context.get_parameter_source(name) == source.DEFAULT_MAP:
                values[name] = () if isinstance(values[name], tuple) else None


def _parse(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config: {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--config: {path}: {error}") from error


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).removeprefix("--")


def _known(key: str, known: dict[str, click.Option], path: Path) -> click.Option:
    name = key.replace("_", "-")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(sorted(known))}"
        raise click.UsageError(f"--config: {path}: unknown key '{key}'; {hint}")
    return known[name]


def _value(key: str, value: Any, option: click.Option, path: Path) -> Any:
    """A TOML value as the option would have read it: tables become KEY=VALUE texts, lists join as it joins them."""
    if isinstance(value, dict):
        if not option.multiple:
            raise click.UsageError(f"--config: {path}: '{key}' takes a text, not a table")
        return [f"{name}={_joined(item)}" for name, item in value.items()]
    if option.multiple:
        return [_joined(item) for item in value] if isinstance(value, list) else [_joined(value)]
    if isinstance(value, list):
        raise click.UsageError(f"--config: {path}: '{key}' takes one value, not a list")
    if isinstance(value, bool) != option.is_flag:
        raise click.UsageError(f"--config: {path}: '{key}' takes {'true or false' if option.is_flag else 'a value'}")
    return value if option.is_flag else str(value)


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
