"""Clip and Relu in a row.

With l ≤ h, clip(x; l, h) = min(max(x, l), h), and Relu is clip(x; 0, ∞). Two in a row are one:

    clip(clip(x; a, b); c, d) = clip(x; min(max(a, c), d), min(max(b, c), d))

since each is monotonous and constant outside of its bounds. A bound that is left out is infinite. Where a lower bound
is above the upper one nothing is merged. NaN stays NaN in all of them.
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
    """Lower and upper bound; infinite where there is none."""

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
    if site.opset < _INPUTS_SINCE:
        low = node.attributes.get_float("min", -math.inf)
        high = node.attributes.get_float("max", math.inf)
    else:
        numbers = [_number(node, index, site) for index in (1, 2)]
        low, high = (absent if number is None else number for number, absent in zip(numbers, _OPEN, strict=True))
    return Bounds(low, high) if low <= high else None


_OPEN = Bounds(-math.inf, math.inf)


def _number(node: ir.Node, index: int, site: Site) -> float | None:
    """The bound at input `index`, None where it is left out and NaN where it is not constant."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return None
    array = site.array(node.inputs[index])
    return math.nan if array is None or array.size != 1 else array.reshape(()).item()


def _give(node: ir.Node, nodes: tuple[ir.Node, ...], bounds: Bounds, site: Site) -> None:
    """Make `bounds` those of `node`, a Clip, with constants that `nodes` read already where there are such."""
    pairs = zip(("min", "max"), bounds, strict=True)
    if site.opset < _INPUTS_SINCE:
        node.attributes.update({name: ir.AttrFloat32(name, bound) for name, bound in pairs if math.isfinite(bound)})
        return
    inputs = [_constant(bound, nodes, i, name, site) for i, (name, bound) in enumerate(pairs, start=1)]
    site.set_inputs(node, [node.inputs[0], *inputs])


def _constant(bound: float, nodes: tuple[ir.Node, ...], index: int, name: str, site: Site) -> ir.Value | None:
    clips = [node for node in nodes if node.op_type == "Clip"]
    for clip in clips:
        if _number(clip, index, site) == bound:
            return clip.inputs[index]
    if math.isinf(bound):
        return None
    known = next(tensor for clip in clips for value in clip.inputs[1:] if (tensor := site.constant(value)) is not None)
    before = nodes[0]
    return site.new_constant(np.array(bound, known.dtype.numpy()), f"{before.outputs[0].name}_{name}", before)
