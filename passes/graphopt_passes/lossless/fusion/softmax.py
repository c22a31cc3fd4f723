"""Softmax and LogSoftmax from their stable definitions.

    Softmax       e / sum(e)        with e = exp(s), s = x - max(x), along one axis
    LogSoftmax    s - log(sum(e))

Without the maximum exp overflows where Softmax does not, so such graphs are no Softmax. From opset 13 on Softmax works
on one axis.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.lossless import extents, parameters
from graphopt_passes.lossless.fusion.base import fuse
from graphopt_passes.rewriting import Outcome, Rule, Site

_WIDE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
"""In float16 the sum of many terms overflows, which a kernel that sums in float32 does not show."""


class Softmax(Rule):
    """ReduceMax, Sub, Exp, ReduceSum and Div, or Log and Sub -> Softmax or LogSoftmax (opset 13)."""

    roots: ClassVar = frozenset({"Exp"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Exp."""
        shifted = site.producer(node.inputs[0], "Sub")
        largest = None if shifted is None else site.producer(shifted.inputs[1], "ReduceMax")
        if site.opset < 13 or shifted is None or largest is None or largest.inputs[0] is not shifted.inputs[0]:
            return None
        x = shifted.inputs[0]
        axis = single_axis(largest, x, site)
        if x is None or axis is None or x.dtype not in _WIDE:
            return None
        sums = [
            reader for reader in node.outputs[0].consumers() if reader.op_type == "ReduceSum" and reader.domain == ""
        ]
        if len(sums) != 1 or single_axis(sums[0], x, site) != axis:
            return None
        final = site.only_reader(sums[0].outputs[0])
        if final is None or final.domain != "":
            return None
        if final.op_type == "Div" and list(final.inputs) == [node.outputs[0], sums[0].outputs[0]]:
            return fuse(final, "Softmax", [x], site, {"axis": axis})
        difference = site.only_reader(final.outputs[0]) if final.op_type == "Log" else None
        if difference is None or (difference.domain, difference.op_type) != ("", "Sub"):
            return None
        if list(difference.inputs) != [shifted.outputs[0], final.outputs[0]]:
            return None
        return fuse(difference, "LogSoftmax", [x], site, {"axis": axis})


def single_axis(node: ir.Node, x: ir.Value | None, site: Site) -> int | None:
    """The one axis that a reduction of `x` reduces and keeps; negative where the rank is not known."""
    axes = parameters.integers(site, node, "axes")
    if axes is None or len(axes) != 1 or node.attributes.get_int("keepdims", 1) != 1:
        return None
    rank = extents.rank(x)
    return axes[0] if rank is None else parameters.axis(axes[0], rank)
