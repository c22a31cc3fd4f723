"""Taking an affine map per channel into the linear operator before it, or into those behind it.

y = s · L(x) + t        ->  y = L'(x)         where nothing else reads what L makes
y = L(s · x + t), ...   ->  y = L'(x), ...    where all that reads s · x + t is linear and takes it in
"""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from graphopt.ir.spool import Spool
from graphopt_passes.lossless.linear import Linear, Side
from graphopt_passes.lossless.linear_operators import making, reading
from graphopt_passes.numerics.affine import Affine
from graphopt_passes.rewriting import Done, Outcome, Site


class ChannelMap(Protocol):
    """What a node does to the channels of the one input that is not constant."""

    def on(self, side: Side) -> Affine | None:
        """The map where one side of a linear operator is that input, or the output; None where it is not per channel."""
        ...


def into_producer(node: ir.Node, data: ir.Value, channel_map: ChannelMap, site: Site, spool: Spool) -> Outcome:
    """Take `node`, which maps `data` by `channel_map`, into the linear operator that makes `data`."""
    linear = making(data, site)
    if not isinstance(linear, Linear):
        return None if linear is None else f"kept: {linear}"
    if site.only_reader(data) is not node:
        return f"kept: what the {linear.node.op_type} makes is read elsewhere too"
    affine = channel_map.on(linear.output)
    if affine is None:
        return "kept: it is not one map per channel, or changes the shape by broadcasting"
    if affine.shifts and linear.bias is None:
        return None  # nothing to remark: an Add behind a MatMul is its bias
    why_not = site.editor.why_not_replace(node.outputs[0], data)
    if why_not is not None:
        return f"kept: {why_not}"
    parameters = linear.after(affine, spool)
    if isinstance(parameters, str):
        return f"kept: {parameters}"
    changed = linear.give(parameters, site)
    readers = site.replace(node, data)
    return Done(f"folded into the {linear.node.op_type} before it", (*changed, *readers))


def into_readers(node: ir.Node, data: ir.Value, channel_map: ChannelMap, site: Site, spool: Spool) -> Outcome:
    """Take `node`, which maps `data` by `channel_map` and keeps its extents, into the linear operators that read it."""
    result = node.outputs[0]
    if result.is_graph_output() or not result.uses():
        return None
    changes = []
    for reader, index in result.uses():
        is_near = site.graph_of(reader) is not None and site.may_touch(reader)
        linear = reading(reader, index, site) if is_near else None
        if not isinstance(linear, Linear):
            return None if linear is None else f"kept: {linear}"
        affine = None if linear.input is None else channel_map.on(linear.input)
        if affine is None:
            return f"kept: it is not one map per channel for the {reader.op_type} behind it"
        parameters = linear.before(affine, spool)
        if isinstance(parameters, str):
            return f"kept: {parameters}"
        changes.append((linear, parameters))
    changed = [touched for linear, parameters in changes for touched in linear.give(parameters, site)]
    readers = site.replace(node, data)
    behind = " and ".join(sorted({linear.node.op_type for linear, _ in changes}))
    return Done(f"folded into the {behind} behind it", (*changed, *readers))
