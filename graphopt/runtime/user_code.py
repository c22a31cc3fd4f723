"""Functions of the user's, named on the command line as `FILE.py:function` or `package.module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import DataError


def load_function(reference: str, option: str) -> Callable[..., Any]:
    """The function that `FILE.py:function` or `package.module:function` names.

    Args:
        reference: the text.
        option: the option that it was given to, for messages.

    Raises:
        DataError: there is no such file, module or function, or importing it fails.
    """
    place, _, name = reference.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's module may fail in any way while it is imported
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{option} {reference}: '{place}' cannot be imported: {reason}") from error
    found: Any = getattr(module, name, None)
    if not callable(found):
        names: Mapping[str, Any] = vars(module)
        there = ", ".join(sorted(key for key, value in names.items() if callable(value) and not key.startswith("_")))
        raise DataError(f"{option} {reference}: '{place}' has no function '{name}' (it has: {there or 'none'})")
    return found  # type: ignore[no-any-return]


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    specification = importlib.util.spec_from_file_location(f"graphopt_user_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses and pickling look their module up there
    specification.loader.exec_module(module)
    return module
