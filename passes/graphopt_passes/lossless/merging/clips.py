"""Clip and Relu in a row.

With l ≤ h, clip(x; l, h) = min(max(x, l), h), and Relu is clip(x; 0, ∞). Two in a row are one:

    clip(clip(x; a, b); c, d) = clip(x; min(max(a, c), d), min(max(b, c), d))

since each is monotonous and constant outside of its bounds. A bound that is left out is the largest or smallest finite
number of the type, so that Clip makes infinities finite, while Relu does not. Where a lower bound is above the upper one
nothing is merged. NaN stays NaN in all of them.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt_passes.lossless.merging.base import alone, read_past
from graphopt_passes.rewriting import Done, Outcome, Rule, Site

_INPUTS_SINCE = 11


class Bounds(NamedTuple):
    """Lower and upper bound."""

    low: float
    high: float

    def then(self, other: Bounds) -> Bounds:
        """The bounds of clipping to these and then to `other`."""
        return Bounds(*(min(max(bound, other.low), other.high) for bound in self))


class Clips(Rule):
    """One Clip, or one Relu."""

    roots: ClassVar[frozenset[str]] = frozenset({"Clip", "Relu"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Clip once, to the bounds of both."""
        inner = site.producer(node.inputs[0], "Clip", "Relu")
        first = None if inner is None else _bounds(inner, site)
        second = None if inner is None else _bounds(node, site)
        if inner is None or first is None or second is None:
            return None
        both = first.then(second)
        if both == first:
            return site.forward(node, inner.outputs[0], f"removed: it changes nothing after {inner.op_type}")
        if not alone(site, inner, node):
            return "kept: what it clips is read elsewhere too"
        what = f"merged with the {inner.op_type} before it"
        if both == second:
            return read_past(site, node, inner, what)
        if node.op_type == "Clip":
            _give(node, (node, inner), both, site)
            return read_past(site, node, inner, what)
        _give(inner, (inner,), both, site)
        outcome = site.forward(node, inner.outputs[0], what)
        return Done(what, (inner, *outcome.touched)) if isinstance(outcome, Done) else outcome


def _bounds(node: ir.Node, site: Site) -> Bounds | None:
    """The bounds of a Clip or Relu; None where they are not known, or the lower one is above the upper one."""
    if node.op_type == "Relu":
        return Bounds(0, math.inf)
    numbers: list[float | None]
    if site.opset < _INPUTS_SINCE:
        numbers = [node.attributes.get_float("min"), node.attributes.get_float("max")]
    else:
        numbers = [_number(node, index, site) for index in (1, 2)]
    low, high = (
        left_out if number is None else number for number, left_out in zip(numbers, _limits(node), strict=True)
    )
    return Bounds(low, high) if low <= high else None


def _limits(node: ir.Node) -> Bounds:
    """The bounds that a Clip has when they are left out; NaN where its type is not known."""
    x = node.inputs[0]
    if x is None or x.dtype is None:
        return Bounds(math.nan, math.nan)
    low, high = (limit if isinstance(limit, int) else limit.item() for limit in (x.dtype.min, x.dtype.max))
    return Bounds(low, high)


def _number(node: ir.Node, index: int, site: Site) -> float | None:
    """The bound at input `index`, None where it is left out and NaN where it is not constant."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return None
    array = site.array(node.inputs[index])
    return math.nan if array is None or array.size != 1 else array.reshape(()).item()


def _give(node: ir.Node, nodes: tuple[ir.Node, ...], bounds: Bounds, site: Site) -> None:
    """Make `bounds` those of `node`, a Clip, with constants that `nodes` read already where there are such."""
    if site.opset < _INPUTS_SINCE:
        node.attributes.update({"min": ir.AttrFloat32("min", bounds.low), "max": ir.AttrFloat32("max", bounds.high)})
        return
    inputs = [_constant(bounds, index, nodes, site) for index in (1, 2)]
    site.set_inputs(node, [node.inputs[0], *inputs])


def _constant(bounds: Bounds, index: int, nodes: tuple[ir.Node, ...], site: Site) -> ir.Value | None:
    """What a Clip reads as input `index` to have one of `bounds`."""
    bound, before = bounds[index - 1], nodes[0]
    for clip in nodes:
        if clip.op_type == "Clip" and _number(clip, index, site) == bound:
            return clip.inputs[index]
    if bound == _limits(before)[index - 1]:
        return None
    known = (site.constant(value) for clip in nodes if clip.op_type == "Clip" for value in clip.inputs[1:])
    x = before.inputs[0]
    dtype = next((tensor.dtype for tensor in known if tensor is not None), None if x is None else x.dtype)
    assert dtype is not None  # otherwise the bounds would not be known
    return site.new_constant(
        np.array(bound, dtype.numpy()), f"{before.outputs[0].name}_{('min', 'max')[index - 1]}", before
    )
