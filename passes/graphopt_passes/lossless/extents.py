"""What a rule may rely on about extents.

An extent is a number, a symbol (equal symbols are equal numbers), or None where nothing is known. What a model declares
on its outputs binds nobody: exporters give outputs the dims that the user named, and runtimes only warn where these
are not so. Of a graph output, therefore, only the rank counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analysis import facts
from graphopt.analysis.dims import Dim, Dims
from graphopt.ir.walk import constant_tensor


def dims(value: ir.Value | None) -> Dims | None:
    """The extents of `value` that can be relied on, or None where not even the rank is known."""
    if value is None:
        return None
    constant = constant_tensor(value)
    if constant is not None:
        return tuple(constant.shape.numpy())
    found = facts.declared(value).dims
    return (None,) * len(found) if found is not None and value.is_graph_output() else found


def rank(value: ir.Value | None) -> int | None:
    """The number of axes of `value`, where it is known."""
    if value is not None and value.shape is not None:
        return len(value.shape)
    found = dims(value)
    return None if found is None else len(found)


def same(a: Dim, b: Dim) -> bool:
    """Whether two extents are certainly equal."""
    return a is not None and a == b


def all_same(a: Dims | None, b: Dims | None) -> bool:
    """Whether all extents are known and certainly equal."""
    return a is not None and b is not None and len(a) == len(b) and all(map(same, a, b))


def same_but_one(a: Sequence[Dim], equal: Sequence[bool]) -> bool:
    """Whether two tensors with as many elements have the same extents.

    Args:
        a: extents of the one.
        equal: for each axis, whether the other certainly has the same. Where it is true for all but one axis, and the
            tensors are not empty on account of these, the number of elements says the same of the last.
    """
    return all(equal) or (
        equal.count(False) == 1 and all(dim != 0 for dim, known in zip(a, equal, strict=True) if known)
    )


def broadcasts_into(small: Dims | None, large: Dims | None) -> bool:
    """Whether a tensor of extents `large` keeps them when one of extents `small` is broadcast with it."""
    if small is None:
        return False
    if large is None:
        return not small
    if len(small) > len(large):
        return False
    pairs = zip(reversed(small), reversed(large), strict=False)
    return all(few == 1 or same(few, many) for few, many in pairs)
