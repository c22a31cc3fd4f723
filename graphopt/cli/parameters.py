"""Values of options that have a syntax of their own: shapes, budgets, metrics, preprocessing, node patterns.

Each function reads the text into what the Python API takes, or raises `click.BadParameter` and says what was expected.
"""

from __future__ import annotations

import math
import re

import click

from graphopt.errors import OptionError

METRICS = ("top1", "top5", "auc", "f1", "mse", "mae", "cosine", "sqnr", "kl", "agreement")

_COUNTS, _BYTES, _TIMES = ("k", "M", "G", "T"), ("B", "kB", "MB", "GB", "KiB", "MiB", "GiB"), ("us", "µs", "ms", "s")
BUDGET_UNITS = {"macs": _COUNTS, "params": _COUNTS, "bytes": _BYTES, "memory": _BYTES, "latency": _TIMES}

_SHAPE = re.compile(r"(?P<name>.+)[=:](?P<dims>\d+(?:[,x]\d+)*)")
_AMOUNT = re.compile(r"(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*(?P<unit>[A-Za-zµ]*)")


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME=1,3,224,224` or `NAME:1x3x224x224` to (name, dims). Names may hold `=` and `:` themselves."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"'{text}' is no shape; write NAME=1,3,224,224 or NAME:1x3x224x224")
    dims = tuple(int(dim) for dim in re.split("[,x]", match["dims"]))
    if min(dims) < 1 or math.prod(dims) >= 2**63:
        raise click.BadParameter(f"'{text}' has a dim that no tensor can have")
    return match["name"], dims


def budget(text: str) -> tuple[str, float | str]:
    """`KEY=VALUE` to (key, amount).

    A bare number is given as it is: at most 1 it is a fraction of the original. One with a unit stays text ("3MB"),
    because it is absolute however small.
    """
    key, _, amount = (part.strip() for part in text.partition("="))
    if key not in BUDGET_UNITS:
        raise click.BadParameter(f"'{key}' is no budget; there are {', '.join(BUDGET_UNITS)} (KEY=VALUE)")
    match = _AMOUNT.fullmatch(amount)
    if match is None or match["unit"] not in ("", *BUDGET_UNITS[key]):
        units = ", ".join(BUDGET_UNITS[key])
        raise click.BadParameter(f"'{amount}' is no amount of {key}; write a number, or one with a unit ({units})")
    number = float(match["number"])
    if not 0 < number < math.inf:
        raise click.BadParameter(f"a budget of {amount} for {key} leaves nothing")
    return key, amount if match["unit"] else number


def metric(text: str) -> str:
    """A named metric, or `package.module:function` / `file.py:function`, which is looked up when it is needed."""
    if text not in METRICS and not re.fullmatch(r".+:[A-Za-z_]\w*", text):
        raise click.BadParameter(f"'{text}' is no metric; there are {', '.join(METRICS)}, or file.py:function")
    return text


def normalize(text: str) -> str:
    """The text itself, once `graphopt.data` can read it."""
    from graphopt.data.normalization import parse_normalize

    try:
        parse_normalize(text)
    except OptionError as error:
        raise click.BadParameter(str(error).removeprefix("--normalize: ")) from None
    return text


def pattern(text: str) -> str:
    """The name of a node, or a regular expression for the whole of it; compiled once, so that a mistake shows here."""
    try:
        re.compile(f"(?:{text})")  # as part of a larger one
    except re.error as error:
        raise click.BadParameter(f"'{text}' is no regular expression ({error})") from error
    return text
