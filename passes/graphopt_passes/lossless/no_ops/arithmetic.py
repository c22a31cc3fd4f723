"""Neutral elements.

    x + 0    x - 0    x · 1    x / 1    x¹    x ∧ true    x ∨ false    x ⊻ false    where(true, x, y)

The constant must not change the extents of x by broadcasting: it must have no more axes than x, and on each of them
one element or as many as x.

For floats, x · 1, x / 1, x¹, x + (-0.0) and x - 0.0 are x bit for bit, NaN and infinities included. x + 0.0 is x
except that -0.0 becomes 0.0, an equal number; it goes where no division can see the difference (see `signed_zero`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt_passes.lossless.extents import broadcasts_into, dims
from graphopt_passes.lossless.no_ops.base import Check
from graphopt_passes.lossless.signed_zero import SignedZeros
from graphopt_passes.rewriting import Site

_BROADCAST_SINCE = 7
"""Before this opset, broadcasting had attributes of its own."""

_Neutral = Callable[[np.ndarray[Any, Any]], bool]


def _all(number: int) -> _Neutral:
    return lambda array: bool((array == number).all())


def _all_bits(array: np.ndarray[Any, Any]) -> bool:
    return bool((array == np.invert(np.zeros((), array.dtype))).all())


_ZERO, _ONE = _all(0), _all(1)
_NEUTRAL: Mapping[str, tuple[_Neutral, bool]] = MappingProxyType(
    {
        "Mul": (_ONE, True),
        "Div": (_ONE, False),
        "Pow": (_ONE, False),
        "PRelu": (_ONE, False),
        "And": (_ONE, True),
        "Or": (_ZERO, True),
        "Xor": (_ZERO, True),
        "BitShift": (_ZERO, False),
        "BitwiseAnd": (_all_bits, True),
        "BitwiseOr": (_ZERO, True),
        "BitwiseXor": (_ZERO, True),
    }
)
"""Operator to its neutral element, and whether that may also be the first operand."""


def neutral(node: ir.Node, site: Site) -> ir.Value | str | None:
    """x where the other operand is neutral."""
    is_neutral, commutes = _NEUTRAL[node.op_type]
    for x, constant in _operands(node, site, commutes):
        array = site.array(constant)
        if array is not None and is_neutral(array):
            return x if broadcasts_into(dims(constant), dims(x)) else "kept: its constant may change the shape"
    return None


def where(node: ir.Node, site: Site) -> ir.Value | str | None:
    """What Where takes, where it always takes the same."""
    condition, x, y = node.inputs
    if x is None or condition is None or y is None or site.opset < 9:
        return None
    array = site.array(condition)
    if x is y:
        taken, others = x, [condition]
    elif array is not None and array.size and (array.all() or not array.any()):
        taken, others = (x, [condition, y]) if array.all() else (y, [condition, x])
    else:
        return None
    fits = all(broadcasts_into(dims(other), dims(taken)) for other in others)
    return taken if fits else "kept: an operand may change the shape"


def only_operand(node: ir.Node, site: Site) -> ir.Value | None:
    """Sum, Mean, Max, Min or Concat of one tensor."""
    return node.inputs[0] if len(node.inputs) == 1 else None


class Zeros:
    """x + 0 and x - 0, which need to know what happens to the sign of zeros."""

    def __init__(self) -> None:
        self._signs = SignedZeros()

    def __call__(self, node: ir.Node, site: Site) -> ir.Value | str | None:
        """x where the other operand is zero."""
        is_sum = node.op_type == "Add"
        for x, constant in _operands(node, site, commutes=is_sum):
            array = site.array(constant)
            if array is None or (array != 0).any():
                continue
            if not broadcasts_into(dims(constant), dims(x)):
                return "kept: its constant may change the shape"
            if self._changes_sign(array, is_sum) and self._signs.matter(node.outputs[0], site.scope):
                return "kept: it turns -0.0 into 0.0, and a division may see that"
            return x
        return None

    @staticmethod
    def _changes_sign(zeros: np.ndarray[Any, Any], is_sum: bool) -> bool:
        """Whether adding or subtracting `zeros` turns a -0.0 into 0.0."""
        if np.issubdtype(zeros.dtype, np.integer):
            return False
        negative = np.signbit(zeros)
        return not bool(negative.all() if is_sum else not negative.any())


def _operands(node: ir.Node, site: Site, commutes: bool) -> list[tuple[ir.Value, ir.Value]]:
    """The pairs (x, other operand) in which the other may be neutral."""
    if site.opset < _BROADCAST_SINCE or len(node.inputs) != 2:
        return []
    a, b = node.inputs
    if a is None or b is None:
        return []
    return [(a, b), (b, a)] if commutes else [(a, b)]


def checks() -> dict[str, Check]:
    """The checks of this family by operator."""
    zeros = Zeros()
    return {
        **dict.fromkeys(_NEUTRAL, neutral),
        **dict.fromkeys(("Sum", "Mean", "Max", "Min", "Concat"), only_operand),
        "Add": zeros,
        "Sub": zeros,
        "Where": where,
    }
