"""Slice after Slice, and Pad after Pad.

Two Slices with constant parameters are one. On different axes the one has the parameters of both. On the same axis,
with positive steps p, q and starts and ends that are not counted from the end,

    x[a : b : p][c : d : q] = x[a + c·p : min(b, a + d·p) : p·q]

because position j of the first is position a + j·p of x; this holds for every extent, also where bounds lie beyond
it. Where the extent of the axis is known, bounds that are counted from the end are counted from the start first.

Two Pads with the same constant are one, with the sums of their amounts, as long as none of these is negative (which
cuts off). Other modes repeat what is at the edge, which for two Pads is not the same edge.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dims import Dim
from graphopt_passes.lossless.extents import dims, rank
from graphopt_passes.lossless.merging.base import alone
from graphopt_passes.lossless.parameters import axes, integers, spelled
from graphopt_passes.rewriting import Done, Outcome, Rule, Site

_INT64_MAX = 2**63 - 1


class Cut(NamedTuple):
    """What a Slice takes from one axis."""

    start: int
    end: int
    step: int

    def then(self, other: Cut) -> Cut | None:
        """What this cut and then `other` take; None where a bound is counted from the end or a step is negative."""
        if min(*self, *other) < 0 or not (self.step and other.step):
            return None
        start = self.start + other.start * self.step
        end = min(self.end, self.start + other.end * self.step)
        return Cut(*(min(number, _INT64_MAX) for number in (start, end, self.step * other.step)))

    def counted_from_start(self, extent: Dim) -> Cut:
        """The same cut of an axis of `extent` elements, its bounds counted from the start where that can be told."""
        if not isinstance(extent, int) or self.step < 1:
            return self
        start, end, step = slice(self.start, self.end, self.step).indices(extent)
        return Cut(start, end, step)

    def length(self, extent: Dim) -> Dim:
        """How many elements it takes, None where that is not known."""
        return len(range(*slice(*self).indices(extent))) if isinstance(extent, int) else None


class Slices(Rule):
    """One Slice."""

    roots: ClassVar[frozenset[str]] = frozenset({"Slice"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Cut once."""
        inner = site.producer(node.inputs[0], "Slice")
        if inner is None:
            return None
        first, second = _cuts(inner, site), _cuts(node, site)
        if first is None or second is None:
            return "kept: what it takes, or the Slice before it, is not constant"
        if not alone(site, inner, node):
            return "kept: what it slices is read elsewhere too"
        both = dict(first)
        before = dims(inner.inputs[0])
        for axis, cut in second.items():
            extent = None if before is None else before[axis]
            merged = _merged(first.get(axis), cut, extent)
            if merged is None:
                return "kept: bounds are counted from the end of an axis of unknown extent"
            both[axis] = merged
        _give(node, inner, both, site)
        site.remove_unread(inner)
        return Done("merged with the Slice before it", (node,))


def _merged(first: Cut | None, second: Cut, extent: Dim) -> Cut | None:
    if first is None:
        return second
    return first.counted_from_start(extent).then(second.counted_from_start(first.length(extent)))


def _cuts(node: ir.Node, site: Site) -> dict[int, Cut] | None:
    """What a Slice takes from each axis that it cuts; None where that is not constant."""
    starts, ends = integers(site, node, "starts"), integers(site, node, "ends")
    if starts is None or ends is None:
        return None
    cut = integers(site, node, "axes", range(len(starts)))
    steps = integers(site, node, "steps", [1] * len(starts)) if site.opset >= 10 else (1,) * len(starts)
    known = None if cut is None else axes(cut, rank(node.inputs[0]))
    if known is None or steps is None or not len(starts) == len(ends) == len(set(known)) == len(steps):
        return None
    return dict(zip(known, map(Cut, starts, ends, steps), strict=True))


def _give(node: ir.Node, inner: ir.Node, cuts: dict[int, Cut], site: Site) -> None:
    """Let `node` take `cuts` from what `inner` reads."""
    starts, ends, steps = zip(*cuts.values(), strict=True)
    parameters = {"starts": starts, "ends": ends, "axes": tuple(cuts)}
    if any(step != 1 for step in steps):
        parameters["steps"] = steps
    inputs, attributes = spelled(site, "Slice", parameters, node.outputs[0].name or "slice", node)
    node.attributes.update({name: ir.AttrInt64s(name, numbers) for name, numbers in attributes.items()})
    site.set_inputs(node, [inner.inputs[0], *inputs])


class Pads(Rule):
    """One Pad."""

    roots: ClassVar[frozenset[str]] = frozenset({"Pad"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Pad once."""
        inner = site.producer(node.inputs[0], "Pad")
        if inner is None or site.opset < 2:
            return None
        if any(pad.attributes.get_string("mode", "constant") != "constant" for pad in (inner, node)):
            return "kept: only Pads with constants are merged"
        first, second = _constant(inner, site), _constant(node, site)
        if first is None or second is None or first != second:
            return "kept: the Pad before it fills in something else"
        amounts = [_amounts(pad, site) for pad in (inner, node)]
        axes_padded = rank(inner.inputs[0])
        if any(amount is None or min(amount.values(), default=0) < 0 for amount in amounts) or axes_padded is None:
            return "kept: how much it pads, or the Pad before it, is negative or not known"
        if not alone(site, inner, node):
            return "kept: what it pads is read elsewhere too"
        keys = [(side, axis) for side in (0, 1) for axis in range(axes_padded)]
        total = [sum(amount.get(key, 0) for amount in amounts if amount is not None) for key in keys]
        inputs, attributes = spelled(site, "Pad", {"pads": total}, node.outputs[0].name or "pad", node)
        node.attributes.update({name: ir.AttrInt64s(name, numbers) for name, numbers in attributes.items()})
        site.set_inputs(node, [inner.inputs[0], *inputs, *(node.inputs[2:3] if inputs else ())])
        site.remove_unread(inner)
        return Done("merged with the Pad before it", (node,))


def _constant(node: ir.Node, site: Site) -> bytes | None:
    """What a Pad fills in, as its type's bytes, 0 by default; None where that is not constant."""
    if site.opset < 11:
        return np.float64(node.attributes.get_float("value", 0.0)).tobytes()
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return b""
    array = site.array(node.inputs[2])
    if array is None or array.size != 1:
        return None
    return array.tobytes() if array.tobytes().strip(b"\0") else b""


def _amounts(node: ir.Node, site: Site) -> dict[tuple[int, int], int] | None:
    """What a Pad adds, by side (0 before, 1 behind) and axis; None where that is not constant."""
    pads = integers(site, node, "pads")
    if pads is None:
        return None
    count = len(pads) // 2
    padded = integers(site, node, "axes", range(count)) if site.opset >= 18 else tuple(range(count))
    known = None if padded is None else axes(padded, rank(node.inputs[0]))
    if known is None or len(known) != count:
        return None
    return {(side, axis): pads[side * count + i] for side in (0, 1) for i, axis in enumerate(known)}
