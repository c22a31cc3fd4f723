"""Finding passes: everything that some installed distribution registers under the entry points `graphopt.passes`.

In-tree and third-party passes are found alike. Names are known without importing anything; a pass is imported when it
is asked for, and one that cannot be is the problem of its distribution, which the message names, not of the others.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from graphopt.errors import OptionError, PipelineError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import options_of
from graphopt.pipeline.text import suggestion

GROUP = "graphopt.passes"


class Registry:
    """The passes that can be named in a pipeline.

    Args:
        registered: entry points to look at; by default those of the installed distributions.
    """

    def __init__(self, registered: Iterable[EntryPoint] | None = None) -> None:
        """Read the entry points. Raises PipelineError where two distributions register one name."""
        self._entries: dict[str, EntryPoint] = {}
        for entry in entry_points(group=GROUP) if registered is None else registered:
            other = self._entries.setdefault(entry.name, entry)
            if other.value != entry.value:
                raise PipelineError(
                    f"two distributions register a pass '{entry.name}': {_distribution(other)} ({other.value}) and "
                    f"{_distribution(entry)} ({entry.value}); uninstall one of them"
                )

    def names(self) -> tuple[str, ...]:
        """The names of all passes, sorted. Imports none of them."""
        return tuple(sorted(self._entries))

    def find(self, name: str) -> type[Pass]:
        """The pass called `name`. Raises PipelineError where there is none or it cannot be imported."""
        entry = self._entries.get(name)
        if entry is None:
            raise PipelineError(f"there is no pass '{name}'{suggestion(name, self._entries)}")
        try:
            loaded = entry.load()
        except Exception as error:  # whatever the module of a third party raises while it is imported
            raise _broken(entry, f"{type(error).__name__}: {error}") from error
        if not (inspect.isclass(loaded) and issubclass(loaded, Pass)):
            raise _broken(entry, "it is not a subclass of graphopt.Pass")
        if not dataclasses.is_dataclass(loaded) or inspect.isabstract(loaded):
            raise _broken(entry, "it is not a dataclass with a method run")
        if getattr(loaded, "name", None) != name:
            raise _broken(entry, f"the class calls itself '{getattr(loaded, 'name', None)}'")
        try:
            options_of(loaded)
        except (OptionError, NameError) as error:
            raise _broken(entry, str(error)) from error
        return loaded

    def find_all(self) -> tuple[list[type[Pass]], list[str]]:
        """Every pass that can be imported, sorted by name, and a warning for each that cannot."""
        found, warnings = [], []
        for name in self.names():
            try:
                found.append(self.find(name))
            except PipelineError as error:
                warnings.append(str(error))
        return found, warnings


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def _broken(entry: EntryPoint, reason: str) -> PipelineError:
    origin = f"{_distribution(entry)} ({entry.value})"
    return PipelineError(f"the pass '{entry.name}' of the distribution {origin} cannot be used: {reason}")
