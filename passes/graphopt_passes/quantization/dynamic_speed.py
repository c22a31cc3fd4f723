"""Products that float computes faster than integers whose activations are quantized as they come.

What a product takes depends on its shape alone, so that products of one shape are judged together: the model with all
products on integers races against the one with those of a shape in float, in processor time. What is faster in float
beyond doubt stays there where that makes the whole model clearly faster, or faster at all if it is slower than float:
integers save memory as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable

import onnx_ir as ir

from graphopt.ir.walk import constant_tensor, label
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.latency import Latency, summarize
from graphopt_passes.quantization.products import PRODUCTS
from graphopt_passes.quantization.speed import CONFIDENCE, WORTH

Apply = Callable[[ir.Model, Callable[[ir.Node], bool]], object]
"""Quantizes a model in place, of its nodes those that the function allows."""

_MOST = 8
"""Shapes that are judged, those with most weights first."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What stays float to be fast.

    Attributes:
        floats: places of nodes in the main graph.
        reverted: of each product that stays float: its place, and why.
        against_float: time of the model as it is chosen, against float.
    """

    floats: frozenset[int]
    reverted: tuple[tuple[str, str], ...]
    against_float: Latency


def fastest(model: ir.Model, apply: Apply, evidence: Evidence) -> Choice | None:
    """Find what is to stay float in `model`, which is not changed; None where nothing would be quantized.

    Args:
        model: in float.
        apply: the quantization; the runtime that it is for must be the one at hand.
        evidence: gives inputs, and the clock.
    """
    integer, converted = _quantized(model, apply, ())
    if not converted:
        return None
    nodes, slow = tuple(model.graph), dict[int, Latency]()
    for places in _by_shape(nodes, converted):
        variant, _ = _quantized(model, apply, places)
        time = _race(evidence, variant, integer)
        if time.interval[0] > 1:
            slow |= dict.fromkeys(places, time)
    as_integer = Choice(frozenset(), (), _race(evidence, model, integer))
    if not slow:
        return as_integer
    chosen, _ = _quantized(model, apply, slow)
    gain = _race(evidence, integer, chosen).interval[1]
    if gain < WORTH or (gain < 1 < as_integer.against_float.interval[0]):
        reverted = tuple((label(nodes[place]), _why(time)) for place, time in sorted(slow.items()))
        return Choice(frozenset(slow), reverted, _race(evidence, model, chosen))
    return as_integer


def allowing(model: ir.Model, floats: Collection[int]) -> Callable[[ir.Node], bool]:
    """Whether a node may be quantized, in `model` or a clone of it that still has all its nodes."""
    kept = {node for place, node in enumerate(model.graph) if place in floats}
    return lambda node: node not in kept


def _quantized(model: ir.Model, apply: Apply, floats: Collection[int]) -> tuple[ir.Model, list[int]]:
    """A quantized clone, and the places of the nodes that it has integers for."""
    copy = model.clone()
    nodes = tuple(copy.graph)
    apply(copy, allowing(copy, floats))
    return copy, [place for place, node in enumerate(nodes) if node.graph is None and node.op_type in PRODUCTS]


def _by_shape(nodes: tuple[ir.Node, ...], places: Iterable[int]) -> list[list[int]]:
    """`places` by what a product's time depends on."""
    shapes: dict[tuple[str, ...], list[int]] = {}
    for place in places:
        described = (nodes[place].op_type, *(str(value and value.shape) for value in nodes[place].inputs[:2]))
        shapes.setdefault(described, []).append(place)
    return sorted(shapes.values(), key=lambda found: -sum(_weights(nodes[place]) for place in found))[:_MOST]


def _weights(node: ir.Node) -> int:
    tensor = constant_tensor(node.inputs[1])
    return 0 if tensor is None else tensor.size


def _race(evidence: Evidence, before: ir.Model, after: ir.Model) -> Latency:
    return summarize(evidence.race([before, after]), evidence.threads, CONFIDENCE)


def _why(time: Latency) -> str:
    low, high = time.interval
    return (
        f"stays float, which is faster here: with integers in products of this shape the model takes {time.ratio:.2f} "
        f"times as long ({low:.2f} to {high:.2f})"
    )
