"""The options that several commands share, each declared once, in the sections that `--help` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from graphopt.cli import parameters
from graphopt.cli.config import drop_overridden, read_config

_Command = TypeVar("_Command", bound=Callable[..., Any])
_GENERAL = "General"
_FILE = click.Path(path_type=Path, readable=False)  # whether it is shows where it is read, as bad input


class _Option(click.Option):
    """An option that belongs to a section of the help text."""

    def __init__(self, *args: Any, section: str = _GENERAL, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help lists its options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block per section, general ones last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", _GENERAL), []).append(record)
        for title in sorted(sections, key=lambda title: title == _GENERAL):
            with formatter.section(title):
                formatter.write_dl(sections[title])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the options of `run`, `plan`, `cost` and `compare` can say; each declares a part of it."""

    output: Path | None = None
    pipeline: str | None = None
    preset: str | None = None
    plan: Path | None = None
    budget: dict[str, float | str] = dataclasses.field(default_factory=dict)
    max_drop: float | None = None
    pareto: bool = False
    data: str | None = None
    calibration_samples: int | None = None
    eval_data: str | None = None
    metric: str | None = None
    normalize: Any = None
    shape: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    batch: int | None = None
    exclude: tuple[str, ...] = ()
    latency: bool = False
    check: bool = True
    dump: Path | None = None
    device: str | None = None
    per_node: bool = False
    report: Path | None = None
    json: Path | None = None
    provider: str | None = None
    threads: int = 1
    jobs: int = 1
    scheduler: str | None = None
    seed: int = 0
    overwrite: bool = False
    no_provenance: bool = False
    verify: Literal["touched", "full"] = "touched"
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def read(cls, values: dict[str, Any]) -> Settings:
        """The values that click has parsed. Raises UsageError where two of them exclude each other."""
        drop_overridden(click.get_current_context(), values)
        values.pop("config", None)
        for name in ("shape", "budget"):
            if name in values:
                values[name] = _as_dict(name, values[name])
        settings = cls(**values)
        for first, second in _EXCLUSIVE:
            if getattr(settings, first) and getattr(settings, second):
                raise click.UsageError(f"--{first} and --{second} exclude each other")
        return settings


def check_provider(name: str) -> None:
    """Refuse a provider that is not there even where nothing would be run on it. Raises OptionError."""
    from graphopt.runtime.session import providers_for

    providers_for(name)


_EXCLUSIVE = (
    ("pipeline", "preset"),
    ("pipeline", "plan"),
    ("preset", "plan"),
    ("plan", "budget"),
    ("quiet", "verbose"),
)


def _as_dict(name: str, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise click.UsageError(f"--{name}: '{key}' is given twice")
        found[key] = value
    return found


def _remember_verbosity(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Tell the error handler, also where a later option fails to parse."""
    if value and isinstance(context.obj, dict):
        context.obj["verbose"] = True
    return value


def _group(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """One decorator for several options, listed in the order in which help shows them."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def option(section: str, *names: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option in a section of the help text."""
    return click.option(*names, cls=_Option, section=section, **settings)


def model_argument(name: str = "model") -> Callable[[Any], Any]:
    """A model file."""
    return click.argument(name, type=_FILE)


_REWRITES, _INPUT, _DATA = "Rewrites", "Input", "Data"
_OUTPUT, _CHECKS, _MACHINE = "Output", "Checks and costs", "Machine"

choosing = _group(
    option(
        _REWRITES, "-p", "--pipeline", metavar="PIPELINE",
        help="Passes in order, 'lossless,prune-channels{macs=0.5},quantize'; presets may stand among them.",
    ),
    option(
        _REWRITES, "--preset", metavar="NAME",
        help="A named pipeline: lossless (the default), int8, small or fast.",
    ),
)  # fmt: skip

replaying = option(
    _REWRITES,
    "--plan",
    type=_FILE,
    metavar="PLAN.json",
    help="Replay a plan; excludes -p and --budget. Not available yet.",
)

targets = _group(
    option(
        _REWRITES, "--budget", metavar="KEY=VALUE", multiple=True, type=parameters.budget,
        help="Limit macs, params, bytes, memory or latency: 0.5 is a fraction of the original, 3MB or 5ms absolute. "
        "Repeatable. Not available yet.",
    ),
    option(
        _REWRITES, "--max-drop", type=click.FloatRange(min=0), metavar="X",
        help="How much worse the metric may get, in its own unit, on a quarter of -d that is held out; "
        "where it gets worse than that nothing is written, and the exit code is 3.",
    ),
)  # fmt: skip

narrowing = _group(
    option(
        _REWRITES, "--exclude", metavar="NAME/REGEX", multiple=True, type=parameters.pattern,
        help="Nodes that no pass touches: a name, or a regular expression for whole names. Repeatable.",
    ),
)  # fmt: skip

shapes = option(
    _INPUT, "--shape", metavar="NAME=1,3,224,224", multiple=True, type=parameters.shape,
    help="Fix a dynamic input (NAME:1x3x224x224 is read too). Repeatable.",
)  # fmt: skip

data = _group(
    option(
        _DATA, "-d", "--data", metavar="DATA",
        help="Calibration samples: FILE.npz, FILE.npy, a folder of images, of class folders or of test_data_set_*, "
        "file.py:function, package.module:function, or random:N to try things out.",
    ),
    option(
        _DATA, "--calibration-samples", type=click.IntRange(min=1), metavar="N",
        help="How many samples of -d are used (default 256, or what there is).",
    ),
    option(_DATA, "--eval-data", metavar="DATA", help="Samples for the final measurement only; never used to choose."),
)  # fmt: skip

metric = _group(
    option(
        _DATA, "--metric", metavar="METRIC", type=parameters.metric,
        help=f"{', '.join(parameters.METRICS)}, or file.py:function, called as f(outputs, labels), of which higher is better. "
        "Default: top1 for classifiers with labels, else agreement or sqnr with the original.",
    ),
    option(
        _DATA, "--normalize", metavar="SPEC", type=parameters.normalize,
        help="Applied to integer arrays and images: scale=1/255,mean=a:b:c,std=a:b:c, or imagenet, tf, caffe.",
    ),
)  # fmt: skip

output = _group(
    option(
        _OUTPUT, "-o", "--output", type=_FILE, metavar="OUT",
        help="The new model (default MODEL.opt.onnx beside the input). Large data goes to OUT.data.",
    ),
    option(_OUTPUT, "--no-provenance", is_flag=True, help="Leave out the metadata that says what made the model."),
    option(_OUTPUT, "--report", type=_FILE, metavar="FILE.html", help="A report as one HTML page ('-' is stdout)."),
    option(
        _OUTPUT, "--dump", type=_FILE, metavar="DIR",
        help="Write the IR as text before the first pass, and after each that changes it.",
    ),
)  # fmt: skip

overwrite = option(_OUTPUT, "--overwrite", is_flag=True, help="Replace a model that exists already, never the input.")

json_report = option(_OUTPUT, "--json", type=_FILE, metavar="FILE", help="A report as JSON ('-' is stdout).")

checks = _group(
    option(
        _CHECKS, "--check/--no-check", default=True,
        help="Compare original and result in onnxruntime after exact rewrites (default: on).",
    ),
    option(
        _CHECKS, "--verify", type=click.Choice(["touched", "full"]), is_flag=False, flag_value="full",
        default="touched", help="How much of the graph is verified after each pass (default: touched).",
    ),
)  # fmt: skip

latency = option(_CHECKS, "--latency", is_flag=True, help="Measure the time of both models in turns.")

device = option(
    _CHECKS, "--device", metavar="PROFILE",
    help="Price by this device profile instead of the built-in one.",
)  # fmt: skip

running = _group(
    option(_MACHINE, "--provider", metavar="NAME", help="Execution provider of onnxruntime, such as cpu or cuda."),
    option(_MACHINE, "--threads", type=click.IntRange(min=1), default=1, help="Threads of onnxruntime (default: 1)."),
    option(_MACHINE, "--seed", type=click.IntRange(min=0), default=0, help="Of everything random (default: 0)."),
)  # fmt: skip

scaling = _group(
    option(_MACHINE, "--jobs", type=click.IntRange(min=1), default=1, help="Processes at a time (default: 1). No effect yet."),
    option(_MACHINE, "--scheduler", metavar="ADDRESS", help="Where a scheduler runs the jobs. Not available yet."),
)  # fmt: skip

general = _group(
    option(
        _GENERAL, "--config", type=_FILE, metavar="FILE.toml", is_eager=True, expose_value=False,
        callback=read_config, help="Options from a file, by their long names; flags on the command line win.",
    ),
    option(_GENERAL, "-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors."),
    option(
        _GENERAL, "-v", "--verbose", is_flag=True, is_eager=True, callback=_remember_verbosity,
        help="Print remarks as well, and a traceback when something fails.",
    ),
)  # fmt: skip
