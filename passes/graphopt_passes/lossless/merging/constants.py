"""Constants that are added, or multiplied by, one after the other.

    (x ± a) ± b = x ± (b ± a)        (x · a) · b = x · (a·b)        / likewise

For integers sums and products are exact modulo 2ⁿ, in any order; division is not (its remainder is lost), and stays.
For floats this is re-association: the result differs by rounding, provided that nothing is lost in between that the
constant merged from both would keep, and the reverse. Per element we therefore ask

* of a sum: that a and b do not cancel. They have the same sign; or they are too small to overflow anything, and their
  sum is at least half as large as the larger. (x + 10⁸) - 10⁸ rounds x, on purpose perhaps.
* of a product: that x · a neither overflows nor sinks among the subnormals where x · a · b does not. |a| and |b| are
  both ≤ 1 or both ≥ 1; or |a| is smaller, but not so small that this concerns numbers that matter.

And the merged constant must be finite, and no subnormal number. It may not be larger than the larger of both.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt_passes.lossless.merging.base import alone
from graphopt_passes.rewriting import Done, Outcome, Rule, Site

_SUMS = ("Add", "Sub")
_PRODUCTS = ("Mul", "Div")
_BROADCAST_SINCE = 7
_HARMLESS = {"float16": 1.0, "float32": 2.0**64, "float64": 2.0**512}
"""Adding a number below this to the largest one rounds to the largest one; dividing one above 2⁻⁶⁰ by it (in float32)
does not lead to subnormals. In float16, where neither extreme is far off, nothing is harmless."""

Array = np.ndarray[Any, Any]


class Constants(Rule):
    """One constant."""

    roots: ClassVar[frozenset[str]] = frozenset((*_SUMS, *_PRODUCTS))

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Compute one constant from two."""
        family = _SUMS if node.op_type in _SUMS else _PRODUCTS
        position = _constant_position(node, site)
        inner = None if position is None else site.producer(node.inputs[1 - position], *family)
        inner_position = None if inner is None else _constant_position(inner, site)
        if position is None or inner is None or inner_position is None:
            return None
        a, b = site.array(inner.inputs[inner_position]), site.array(node.inputs[position])
        if a is None or b is None:
            return "kept: the constants are large"
        if not alone(site, inner, node):
            return "kept: what it reads is read elsewhere too"
        merged = (sum_of if family is _SUMS else product_of)(a, inner.op_type, b, node.op_type)
        if merged is None:
            return f"kept: merging its constant with that of the {inner.op_type} before it would not be exact"
        old = node.inputs[position]
        assert old is not None
        inputs = list(node.inputs)
        inputs[position] = site.new_constant(np.asarray(merged), f"{old.name}_merged", node)
        inputs[1 - position] = inner.inputs[1 - inner_position]
        site.set_inputs(node, inputs)
        site.remove_unread(inner)
        return Done(f"merged with the {inner.op_type} before it", (node,))


def _constant_position(node: ir.Node, site: Site) -> int | None:
    """Which operand of `node` is a constant, the other not; it cannot be the first of Sub and Div."""
    if site.opset < _BROADCAST_SINCE or len(node.inputs) != 2:
        return None
    first, second = (site.constant(value) is not None for value in node.inputs)
    if first == second:
        return None
    return 1 if second else 0 if node.op_type in ("Add", "Mul") else None


def sum_of(a: Array, inner: str, b: Array, outer: str) -> Array | None:
    """The constant c with (x `inner` a) `outer` b = x `outer` c, for Add and Sub; None where that is not exact."""
    if not _fit(a, b):
        return None
    flip = inner != outer  # x + a - b = x - (b - a)
    if a.dtype.kind in "iu":
        with np.errstate(over="ignore"):  # wraps around, as it does in the model
            return b - a if flip else b + a
    if a.dtype.name not in _HARMLESS:
        return None
    with np.errstate(all="ignore"):
        merged = b - a if flip else b + a
        larger = np.maximum(np.abs(a), np.abs(b))
        fine = np.abs(merged) >= larger
        fine |= (np.abs(merged) >= larger / 2) & (larger < _HARMLESS[a.dtype.name])
    return merged if fine.all() and _is_normal(merged, zero_too=True) else None


def product_of(a: Array, inner: str, b: Array, outer: str) -> Array | None:
    """The constant c with (x `inner` a) `outer` b = x `outer` c, for Mul and Div; None where that is not exact."""
    if not _fit(a, b):
        return None
    if a.dtype.kind in "iu":
        with np.errstate(over="ignore"):
            return a * b if inner == outer == "Mul" else None
    if a.dtype.name not in _HARMLESS:
        return None
    with np.errstate(all="ignore"):
        first = np.abs(a.astype(np.float64)) ** (1 if inner == "Mul" else -1)
        second = np.abs(b.astype(np.float64)) ** (1 if outer == "Mul" else -1)
        exact = a.astype(np.float64) ** (1 if inner == outer else -1) * b.astype(np.float64)
        merged = exact.astype(a.dtype)
    fine = ((first <= 1) & (second <= 1)) | (second >= 1) & (first >= 1 / _HARMLESS[a.dtype.name])
    return merged if fine.all() and _is_normal(merged) else None


def _fit(a: Array, b: Array) -> bool:
    """Whether two constants have one type, and together no more elements than the larger."""
    return a.dtype == b.dtype and np.broadcast_shapes(a.shape, b.shape) in (a.shape, b.shape)


def _is_normal(array: Array, *, zero_too: bool = False) -> bool:
    """Whether every number is finite and not subnormal."""
    magnitude = np.abs(array)
    normal = np.isfinite(magnitude) & (magnitude >= np.finfo(array.dtype).tiny)
    return bool((normal | (magnitude == 0) if zero_too else normal).all())
