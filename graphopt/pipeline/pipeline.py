"""A pipeline: passes in order, its text form, and its completion by what the passes require.

Text -> pipeline -> text is the identity on text that was printed. In text a preset's name stands for its passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from graphopt.errors import NotAvailableError, OptionError, PipelineError
from graphopt.pipeline import text as grammar
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import configure, options_of, to_text
from graphopt.pipeline.presets import PRESETS
from graphopt.pipeline.registry import Registry


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str, registry: Registry) -> Pipeline:
        """Read a pipeline from text.

        Raises:
            PipelineError: the text cannot be read, or names a pass or option that does not exist.
            OptionError: an option has a value that it cannot have.
            NotAvailableError: a preset needs passes that are not installed.
        """
        passes: list[Pass] = []
        for item in grammar.parse(text):
            if item.name in PRESETS:
                if item.settings:
                    message = f"the preset '{item.name}' takes no options; name its passes instead"
                    raise PipelineError(grammar.pointed(message, text, item.settings[0].start))
                passes += _preset(item.name, registry)
            else:
                passes.append(_pass(item, text, registry))
        return cls(tuple(passes))

    def __str__(self) -> str:
        """The text that `parse` reads as this pipeline; options at their defaults are left out."""
        return ",".join(map(to_text, self.passes))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def completed(self, registry: Registry) -> Pipeline:
        """The pipeline with every pass before which one that it `requires` is missing led by that one."""
        complete: list[Pass] = []
        for pass_ in self.passes:
            _require(pass_, complete, registry, ())
            complete.append(pass_)
        return Pipeline(tuple(complete))


def _require(pass_: Pass, earlier: list[Pass], registry: Registry, chain: Sequence[str]) -> None:
    if pass_.name in chain:
        raise PipelineError(f"passes require each other: {' -> '.join((*chain, pass_.name))}")
    for name in pass_.requires:
        if not any(other.name == name for other in earlier):
            required = configure(registry.find(name), {})
            _require(required, earlier, registry, (*chain, pass_.name))
            earlier.append(required)


def _preset(name: str, registry: Registry) -> list[Pass]:
    missing = missing_passes(name, registry)
    if missing:
        plural = "passes" if len(missing) > 1 else "pass"
        raise NotAvailableError(
            f"the preset '{name}' needs the {plural} {', '.join(missing)}, which this version of graphopt does not have"
        )
    return list(Pipeline.parse(PRESETS[name], registry))


def missing_passes(preset: str, registry: Registry) -> list[str]:
    """Names of the passes that a preset needs and that are not installed; where there are some it is not available."""
    return [name for name in _names(preset) if name not in registry.names()]


def _names(preset: str) -> Iterator[str]:
    for item in grammar.parse(PRESETS[preset]):
        yield from _names(item.name) if item.name in PRESETS else [item.name]


def _pass(item: grammar.Item, text: str, registry: Registry) -> Pass:
    if item.name not in registry.names():
        near = grammar.suggestion(item.name, (*registry.names(), *PRESETS))
        raise PipelineError(grammar.pointed(f"there is no pass '{item.name}'{near}", text, item.start))
    try:
        cls = registry.find(item.name)
    except PipelineError as error:
        raise PipelineError(grammar.pointed(str(error), text, item.start)) from error
    options, values = options_of(cls), dict[str, Any]()
    for setting in item.settings:
        option = options.get(setting.key)
        if option is None:
            known = f"'{item.name}' has no option '{setting.key}'" + grammar.suggestion(setting.key, options)
            raise PipelineError(grammar.pointed(known, text, setting.start))
        try:
            values[setting.key] = option.read(setting.words)
        except OptionError as error:
            raise OptionError(grammar.pointed(str(error), text, setting.value_start)) from None
    try:
        return configure(cls, values)
    except OptionError as error:
        raise OptionError(grammar.pointed(str(error), text, item.start)) from error
