"""Reading arithmetic back: scalars, products and polynomials, in whatever order they were written.

x / 1.4142, x * 0.7071 and 0.7071 * x are one polynomial in x; 0.5 * x * s, x * s / 2 and (x / 2) * s are one product.
The functions here read nodes as such, so that a rule need not list the orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx_ir as ir

from graphopt_passes.lossless import extents
from graphopt_passes.rewriting import Site

DEEPEST = 8
"""Nodes that a polynomial is read through, one inside the other."""

HIGHEST = 3
"""The highest power that occurs in an activation."""

Polynomial = Mapping[int, float]
"""Power to coefficient; no zeros."""


def scalar(value: ir.Value | None, site: Site) -> float | None:
    """The one number that a constant of rank 0, or of one element, holds."""
    tensor = site.constant(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return None
    return float(tensor.numpy().reshape(-1)[0])


def keeps_rank(constant: ir.Value | None, value: ir.Value, site: Site) -> bool:
    """Whether a constant of one element, broadcast with `value`, leaves its rank alone."""
    tensor = site.constant(constant)
    if tensor is None:
        return False
    rank = extents.rank(value)
    return len(tensor.shape) <= (0 if rank is None else rank)


def close(number: float | None, wanted: float, dtype: ir.DataType | None) -> bool:
    """Whether `number` is `wanted` as an exporter writes it: to a few units in the last place of `dtype`."""
    if number is None or dtype is None:
        return False
    finest = {ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 8e-3}.get(dtype, 2.5e-7)
    return abs(number - wanted) <= 4 * finest * abs(wanted)


def polynomial(value: ir.Value | None, x: ir.Value, site: Site, depth: int = DEEPEST) -> Polynomial | None:
    """`value` as a polynomial in `x`, of degree 3 at most; None where it is none."""
    if value is x:
        return {1: 1.0}
    constant = scalar(value, site)
    if constant is not None:
        return {0: constant} if keeps_rank(value, x, site) else None
    node = site.producer(value, "Add", "Sub", "Mul", "Div", "Neg", "Pow")
    if node is None or depth == 0:
        return None
    parts = [polynomial(read, x, site, depth - 1) for read in node.inputs]
    known = [part for part in parts if part is not None]
    return _combined(node.op_type, known) if len(known) == len(parts) else None


def _combined(op_type: str, parts: list[Polynomial]) -> Polynomial | None:
    a, b = parts[0], parts[-1]
    if op_type == "Neg":
        return _scaled(a, -1)
    if op_type in ("Add", "Sub"):
        return _sum(a, b if op_type == "Add" else _scaled(b, -1))
    if op_type == "Mul":
        return _product(a, b)
    constant = b.get(0, 0.0)
    if set(b) != {0}:
        return None
    if op_type == "Div":
        return _scaled(a, 1 / constant) if constant else None
    return _power(a, constant)


def _power(a: Polynomial, exponent: float) -> Polynomial | None:
    if exponent not in (1, 2, 3):
        return None
    result: Polynomial | None = a
    for _ in range(int(exponent) - 1):
        result = None if result is None else _product(result, a)
    return result


def _scaled(a: Polynomial, factor: float) -> Polynomial:
    return {power: coefficient * factor for power, coefficient in a.items()}


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    return {power: a.get(power, 0.0) + b.get(power, 0.0) for power in {*a, *b}}


def _product(a: Polynomial, b: Polynomial) -> Polynomial | None:
    result: dict[int, float] = {}
    for i, p in a.items():
        for j, q in b.items():
            result[i + j] = result.get(i + j, 0.0) + p * q
    return result if max(result, default=0) <= HIGHEST else None


def arguments(value: ir.Value | None, site: Site) -> Iterator[ir.Value]:
    """The values that `value` may be a polynomial in: itself, and what it is computed from by arithmetic."""
    pending = [value]
    seen: set[ir.Value] = set()
    while pending and len(seen) < DEEPEST:
        current = pending.pop(0)
        if current is None or current in seen or site.constant(current) is not None:
            continue
        seen.add(current)
        yield current
        node = site.producer(current, "Add", "Sub", "Mul", "Div", "Neg", "Pow")
        pending += [] if node is None else node.inputs


class Product(NamedTuple):
    """A product that has been climbed: `factor` times what was started from, times `x` as often as asked for.

    Attributes:
        root: the node whose output is the whole product.
        factor: the product of the constants.
        largest: the largest factor that stood before x at the time it was multiplied with x.
    """

    root: ir.Node
    factor: float
    largest: float


def climb(start: ir.Value, x: ir.Value | None, factor: float, dtype: ir.DataType, site: Site) -> Product | None:
    """The product of `start`, of `x` where it is given, and of constants that come to `factor`, in any order.

    Follows the only reader of each partial product until all factors are together.
    """
    current, product, largest = start, 1.0, 0.0
    wanted = x
    for _ in range(DEEPEST):
        node = site.only_reader(current)
        if node is None or node.domain != "" or node.op_type not in ("Mul", "Div"):
            return None
        other = node.inputs[1] if node.inputs[0] is current else node.inputs[0]
        constant = scalar(other, site)
        if constant is not None and keeps_rank(other, current, site) and constant != 0:
            if node.op_type == "Div" and node.inputs[0] is not current:
                return None
            product *= constant if node.op_type == "Mul" else 1 / constant
        else:
            share = None if wanted is None or node.op_type == "Div" else polynomial(other, wanted, site)
            if share is None or set(share) != {1}:
                return None
            product *= share[1]
            wanted, largest = None, abs(product)
        current = node.outputs[0]
        if wanted is None and close(product, factor, dtype):
            return Product(node, product, largest)
    return None
