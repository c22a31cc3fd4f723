"""What the functions of the API accept, checked before any work is done.

A wrong argument is an OptionError that names it as the command line does: what it is, and what it may be. What needs
more than a look (a metric's name, whether a file is there) is checked where it is used.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from graphopt.errors import OptionError


def check_arguments(**given: Any) -> None:
    """Check arguments by their names; None is always fine where the rule says so.

    Raises:
        OptionError: one of them cannot be what it is.
    """
    for name, value in given.items():
        accepts, expected = _RULES[name]
        if not accepts(value):
            option = "--" + {"shapes": "shape"}.get(name, name).replace("_", "-")
            raise OptionError(f"{option}: {_shown(value)} is not {expected}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"an object of type {type(value).__name__}"


def _whole(least: int, *, optional: bool = False) -> Callable[[Any], bool]:
    return lambda value: (
        (optional and value is None)
        or (isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least)
    )


def _text_or(*others: type) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, (str, *others))


def _is_drop(value: Any) -> bool:
    return value is None or (isinstance(value, Real) and 0 <= float(value) < math.inf)


def _are_shapes(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and all(isinstance(name, str) and _is_shape(dims) for name, dims in value.items())


def _is_shape(dims: Any) -> bool:
    return isinstance(dims, Sequence) and not isinstance(dims, str) and all(map(_whole(1), dims))


def _are_names(value: Any) -> bool:
    if value is None or isinstance(value, str | re.Pattern):
        return True
    return isinstance(value, Sequence) and all(isinstance(one, str) for one in value)


def _is_device(value: Any) -> bool:
    from graphopt.pricing.device import DeviceProfile

    return value is None or isinstance(value, str | os.PathLike | DeviceProfile)


def _is_metric(value: Any) -> bool:
    return value is None or isinstance(value, str) or callable(value)


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "pipeline": (_text_or(), "text that names passes, such as 'lossless,quantize'"),
    "preset": (_text_or(), "the name of a preset"),
    "metric": (_is_metric, "a name, or a function f(outputs, labels)"),
    "normalize": (_text_or(Mapping), "text such as 'imagenet' or 'scale=1/255', or a dict of scale, mean and std"),
    "calibration_samples": (_whole(1, optional=True), "a whole number of at least 1"),
    "max_drop": (_is_drop, "a number of at least 0"),
    "shapes": (_are_shapes, "a dict of extents of at least 1 by input name, such as {'x': (1, 3, 224, 224)}"),
    "exclude": (_are_names, "a name, a pattern, or a list of names"),
    "device": (_is_device, "a device profile or its file"),
    "seed": (_whole(0), "a whole number of at least 0"),
    "threads": (_whole(1), "a whole number of at least 1"),
    "batch": (_whole(1, optional=True), "a whole number of at least 1"),
    "verify": (lambda value: value in ("touched", "full"), "'touched' or 'full'"),
}
