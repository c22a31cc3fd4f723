"""Layers in the bodies of If, Loop and Scan: nothing in there is measured, so that their activations are quantized as they come.

What flows inside a body depends on which branch runs and how often, which calibration need not see. Dynamic quantization
(`dynamic`) asks for nothing and clips nothing. Functions stay float: what they compute depends on their callers.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir.walk import graph_and_bodies, subgraphs
from graphopt.ops.base import operator
from graphopt.pipeline.base import PassContext, Remark
from graphopt.runtime.latency import Latency
from graphopt_passes.quantization import dynamic
from graphopt_passes.quantization.targets import Target

NOT_SLOWER = 1.03
"""What the time of the whole model may come to, at its upper bound."""


def quantize(model: ir.Model, context: PassContext, *, saturates: bool) -> tuple[list[ir.Node], tuple[Remark, ...]]:
    """Quantize the layers in bodies of the main graph; returns nodes that are new or changed, and remarks."""
    bodies = (body for owner in model.graph for body in subgraphs(owner))
    inside = {node for body in bodies for graph in graph_and_bodies(body) for node in graph}
    return dynamic.apply(
        model, context, saturates=saturates, conv=True, embeddings=False, only=lambda node: node in inside
    )


def why_slow(found: Latency) -> str | None:
    """Why bodies stay float that take so much of the time that they take in float; None where they may be quantized."""
    low, high = found.interval
    if high <= NOT_SLOWER:
        return None
    return (
        f"its bodies stay float: with integers in bodies the model takes {found.ratio:.2f} times as long ({low:.2f} to "
        f"{high:.2f})"
    )


def with_layers(model: ir.Model, target: Target) -> list[ir.Node]:
    """The nodes of the main graph with layers in their bodies, or in the function that they call."""

    def is_layer(node: ir.Node) -> bool:
        form = operator(node).integer_form(node) if node.domain == "" and node.op_type in target.kernels else None
        return form is not None and form.weight is not None

    def has_layers(body: ir.Graph) -> bool:
        return any(is_layer(node) or any(map(has_layers, bodies(node))) for node in body)

    def bodies(node: ir.Node) -> Sequence[ir.Graph]:
        function = model.functions.get(node.op_identifier())
        return tuple(subgraphs(node)) if function is None else (function.graph,)

    return [node for node in model.graph if any(map(has_layers, bodies(node)))]
