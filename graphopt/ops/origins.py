"""Where an axis comes from: of constants that are moved before somebody reads them, which axis to cut instead.

A rule is asked about an axis (not negative) of an output of some rank. It names the axis of the data that has the same
positions, or None where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt.ops import attributes, moves


def _same_axis(node: ir.Node, rank: int, axis: int) -> int:
    return axis


def _axis_before_transpose(node: ir.Node, rank: int, axis: int) -> int:
    return moves.permutation(node, rank)[axis]


def _axis_before_view(node: ir.Node, rank: int, axis: int) -> int | None:
    """The axis with the same extent and as many elements before it, where the view keeps it whole."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return None
    before, after = list(source.shape), list(result.shape)
    if not all(isinstance(extent, int) for extent in (*before, *after)):
        return None
    ahead = math.prod(after[:axis])
    alike = (i for i, extent in enumerate(before) if extent == after[axis] and math.prod(before[:i]) == ahead)
    return next(alike, None)


def _axis_before_expand(node: ir.Node, rank: int, axis: int) -> int | None:
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return None
    inner = axis - rank + source.shape.rank()
    return inner if inner >= 0 and source.shape[inner] == result.shape[axis] else None


def _axis_before_gather(node: ir.Node, rank: int, axis: int) -> int | None:
    """Of the axes behind those that the positions take the place of."""
    source, gathered = node.inputs[0], attributes.integer(node, "axis", 0)
    if source is None or source.shape is None or gathered < 0:
        return None
    inner = axis - rank + source.shape.rank()
    return inner if inner > gathered else None


ORIGINS: Mapping[str, Callable[[ir.Node, int, int], int | None]] = {
    "Identity": _same_axis, "Transpose": _axis_before_transpose, "Reshape": _axis_before_view,
    "Flatten": _axis_before_view, "Squeeze": _axis_before_view, "Unsqueeze": _axis_before_view,
    "Expand": _axis_before_expand, "Gather": _axis_before_gather,
}  # fmt: skip
"""Rules for operators of the standard domain."""
