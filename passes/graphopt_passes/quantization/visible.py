"""Between which numbers a value lies, and its readers tell its numbers apart.

A Relu, a Clip or a Sigmoid makes nothing outside of its bounds, whatever is seen later.

HardSigmoid makes the same of everything below its foot, and of everything above its top; x · HardSigmoid(x), which is
HardSwish, makes 0 of everything below the foot. A range that ends there loses nothing, and the step of a Conv's output in
front of a HardSwish is often a third smaller for it. (A Relu or Clip behind
needs no such rule, it is absorbed by the kernel in front.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.ops.base import input_at
from graphopt_passes.quantization.placement import Placement
from graphopt_passes.quantization.placement import bounds as clip_bounds

Bounds = tuple[float, float]
EVERYTHING: Bounds = (-math.inf, math.inf)


def bounds(members: Sequence[ir.Value], filling: Collection[str], placement: Placement) -> Bounds:
    """The least and the greatest number that matters, of any value of a group.

    Args:
        members: the values of the group.
        filling: names of those that the others have their numbers from.
        placement: of the graph.
    """
    made = [_made(value) for value in members if value.name in filling]
    least, most = min(low for low, _ in made), max(high for _, high in made)
    low, high = _read(members, placement)
    return (max(low, least), min(high, most)) if max(low, least) < min(high, most) else EVERYTHING


def _made(value: ir.Value) -> Bounds:
    """Between which numbers the producer of a value leaves it."""
    node = value.producer()
    if node is None or node.domain != "":
        return EVERYTHING
    if node.op_type in ("Sigmoid", "HardSigmoid", "Softmax"):
        return 0.0, 1.0
    return (clip_bounds(node) if node.op_type in ("Relu", "Clip") else None) or EVERYTHING


def _read(members: Iterable[ir.Value], placement: Placement) -> Bounds:
    """Between which numbers the readers of a group see differences."""
    low, high = math.inf, -math.inf
    for value in members:
        if value.is_graph_output() or not value.uses():
            return EVERYTHING
        for node in {use.node for use in value.uses()}:
            of_reader = _of(node, value, placement)
            low, high = min(low, of_reader[0]), max(high, of_reader[1])
    return (low, high) if low < high else EVERYTHING


def _of(node: ir.Node, value: ir.Value, placement: Placement) -> Bounds:
    """What one reader tells apart; nothing more than the other readers where it passes on members of the same group."""
    form = placement.others.get(node)
    if form is not None and form.same_scale:
        groups = placement.groups
        inside = all(output in groups and groups.root(output) is groups.root(value) for output in node.outputs)
        return (math.inf, -math.inf) if inside else EVERYTHING
    if node.domain != "":
        return EVERYTHING
    if node.op_type == "HardSigmoid":
        return _hard_sigmoid(node)
    if node.op_type == "HardSwish":
        return -3.0, math.inf
    if node.op_type == "Mul":
        gate = _gate(node, value)
        return EVERYTHING if gate is None else (_hard_sigmoid(gate)[0], math.inf)
    return EVERYTHING


def _gate(node: ir.Node, value: ir.Value) -> ir.Node | None:
    """The HardSigmoid of `value` itself that `node` multiplies it with."""
    others = [read for read in node.inputs if read is not value and read is not None]
    gate = others[0].producer() if len(others) == 1 else None
    is_gate = gate is not None and gate.domain == "" and gate.op_type == "HardSigmoid"
    if gate is None or not is_gate or input_at(gate, 0) is not value or only_reader(gate.outputs[0]) is not node:
        return None
    return gate


def _hard_sigmoid(node: ir.Node) -> Bounds:
    """Where max(0, min(1, αx + β)) is neither 0 nor 1."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else EVERYTHING
