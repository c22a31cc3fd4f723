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
        floats: names of the values that the nodes make.
        reverted: of each product that stays float: its place, and why.
        against_float: time of the model as it is chosen, against float.
    """

    floats: frozenset[str]
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
    slow: dict[str, Latency] = {}
    for products in _by_shape(node for node in model.graph if _result(node) in converted):
        names = [_result(node) for node in products]
        variant, _ = _quantized(model, apply, names)
        time = race(evidence, variant, integer)
        if time.interval[0] > 1:
            slow |= dict.fromkeys(names, time)
    as_integer = Choice(frozenset(), (), race(evidence, model, integer))
    if not slow:
        return as_integer
    chosen, _ = _quantized(model, apply, slow)
    gain = race(evidence, integer, chosen).interval[1]
    if gain < WORTH or (gain < 1 < as_integer.against_float.interval[0]):
        reverted = tuple((label(node), _why(slow[name])) for node in model.graph if (name := _result(node)) in slow)
        return Choice(frozenset(slow), reverted, race(evidence, model, chosen))
    return as_integer


def allowing(floats: Collection[str]) -> Callable[[ir.Node], bool]:
    """Says of a node whether it may be quantized; `floats` are the names of what is to be made in float."""
    return lambda node: _result(node) not in floats


def race(evidence: Evidence, before: ir.Model, after: ir.Model) -> Latency:
    """Time of `after` against that of `before`."""
    return summarize(evidence.race([before, after]), evidence.threads, CONFIDENCE)


def _quantized(model: ir.Model, apply: Apply, floats: Collection[str]) -> tuple[ir.Model, frozenset[str]]:
    """A quantized clone, and the names of what products made that it has integers for."""
    copy = model.clone()
    products = {node: _result(node) for node in copy.graph if node.op_type in PRODUCTS}
    apply(copy, allowing(floats))
    return copy, frozenset(name for node, name in products.items() if node.graph is None)


def _result(node: ir.Node) -> str:
    return (node.outputs[0].name or "") if node.outputs else ""


def _by_shape(products: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """`products` by what their time depends on."""
    shapes: dict[tuple[str, ...], list[ir.Node]] = {}
    for node in products:
        described = (node.op_type, *(str(value and value.shape) for value in node.inputs[:2]))
        shapes.setdefault(described, []).append(node)
    return sorted(shapes.values(), key=lambda found: -sum(map(_weights, found)))[:_MOST]


def _weights(node: ir.Node) -> int:
    tensor = constant_tensor(node.inputs[1])
    return 0 if tensor is None else tensor.size


def _why(time: Latency) -> str:
    low, high = time.interval
    return (
        f"stays float, which is faster here: with integers in products of this shape the model takes {time.ratio:.2f} "
        f"times as long ({low:.2f} to {high:.2f})"
    )
