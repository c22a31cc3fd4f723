"""Extents that windows of step d leave of one symbol, without sympy, which takes 40 MB and a third of a second to load.

Convolutions and pooling make of an extent n

    floor((n - c) / d) + 1        written as sympy writes it: floor(n/2 - 1/2) + 1, n a symbol or such an extent without its + 1

The forms known here are closed under adding an integer and dividing by one, and come to a number where the symbol has
one. Everything else, and whatever sympy would write otherwise, is None: the caller asks sympy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_LONGEST = 240
"""Characters of an extent that is looked at: what is longer may be nested deeper than it is safe to follow."""
_SYMBOL = r"[A-Za-z_][\w.]*"
_SUM = re.compile(r"(.*?)(?: ([+-]) (\d+))?")
_ATOM = re.compile(_SYMBOL)
_FLOOR = re.compile(r"floor\((.*?)/(\d+)(?: ([+-]) (\d+)/(\d+))?\)")


def add(dim: str, number: int) -> int | str | None:
    """`dim` + `number`."""
    found = _sum(dim)
    return None if found is None else _written(found[0], found[1] + number)


def floor_divide(dim: str, number: int) -> str | None:
    """floor(`dim` / `number`), where that is more than 1 and more than what is added in `dim`."""
    found = _sum(dim)
    if found is None or number < 2 or abs(found[1]) >= number:
        return None
    term, constant = found
    if not constant:
        return f"floor({term}/{number})"
    common = math.gcd(constant, number)
    sign = "+" if constant > 0 else "-"
    return f"floor({term}/{number} {sign} {abs(constant) // common}/{number // common})"


def symbol(dim: str) -> str | None:
    """The symbol of `dim`, which has one."""
    found = _sum(dim)
    term = None if found is None else found[0]
    while term is not None and not _ATOM.fullmatch(term):
        inner = _inside(term)
        term = None if inner is None else inner[0]
    return term


def evaluate(dim: str, symbols: Mapping[str, int]) -> int | None:
    """The number that `dim` comes to; None where its symbol has none."""
    found = _sum(dim)
    if found is None:
        return None
    term, constant = found
    if _ATOM.fullmatch(term):
        return symbols[term] + constant if term in symbols else None
    inner = _inside(term)
    value = None if inner is None else evaluate(inner[0], symbols)
    if inner is None or value is None:
        return None
    _, step, numerator, denominator = inner
    return (value * denominator + numerator * step) // (step * denominator) + constant


def _sum(dim: str) -> tuple[str, int] | None:
    """`term + constant` apart, if the term is known here."""
    found = _SUM.fullmatch(dim) if len(dim) <= _LONGEST else None
    if found is None:
        return None
    term = found[1]
    if not _ATOM.fullmatch(term):
        inner = _inside(term)
        if inner is None or _term(inner[0]) is None:
            return None
    constant = int(found[3] or 0)
    return term, -constant if found[2] == "-" else constant


def _term(text: str) -> str | None:
    """`text`, if it is a term: a symbol, or a floor of one."""
    found = _sum(text)
    return text if found is not None and found[0] == text else None


def _inside(term: str) -> tuple[str, int, int, int] | None:
    """n, d, p and q of floor(n/d + p/q), p = 0 and q = 1 where nothing is added."""
    found = _FLOOR.fullmatch(term)
    if found is None:
        return None
    numerator = int(found[4] or 0) * (-1 if found[3] == "-" else 1)
    return found[1], int(found[2]), numerator, int(found[5] or 1)


def _written(term: str, constant: int) -> str:
    if not constant:
        return term
    return f"{term} {'+' if constant > 0 else '-'} {abs(constant)}"
