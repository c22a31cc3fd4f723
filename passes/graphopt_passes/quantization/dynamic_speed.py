"""Products that float computes faster than integers whose activations are quantized as they come.

What a product takes depends on its shape alone, so that products of one shape are judged together: the model with all
products on integers races against those with one shape each in float, in processor time. Then it races against float, and
against the model with all those shapes in float that are faster so beyond doubt, or likely (`share_outs`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from graphopt.ir.walk import constant_tensor, label
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.latency import Latency, summarize
from graphopt.runtime.session import weight_bytes
from graphopt_passes.quantization.products import PRODUCTS
from graphopt_passes.quantization.share_outs import CONFIDENCE, Choice, ShareOut, best

Apply = Callable[[ir.Model, Callable[[ir.Node], bool]], object]
"""Quantizes a model in place, of its nodes those that the function allows."""

_MOST = 8
"""Shapes that are judged, those with most weights first."""
_SECONDS = 0.5
"""For each model in a race."""
_BYTES = 512 << 20
"""Of the weights of models that race at once."""


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
    shapes = [[_result(node) for node in found] for found in _by_shape(model.graph, converted)]
    times = _without(model, apply, shapes, integer, evidence)
    sure = _share_out(model, shapes, times, lambda time: time.interval[0] > 1)
    likely = _share_out(model, shapes, times, lambda time: time.ratio > 1)
    share_outs = [share_out for share_out in dict.fromkeys((sure, likely)) if share_out.floats]
    models = [model, integer, *(_quantized(model, apply, share_out.floats)[0] for share_out in share_outs)]
    return best(models, share_outs, converted, evidence)


def _share_out(
    model: ir.Model, shapes: Sequence[Sequence[str]], times: Sequence[Latency], is_slow: Callable[[Latency], bool]
) -> ShareOut:
    """The products of those shapes in float whose time on integers against float `is_slow`."""
    slow = {name: time for names, time in zip(shapes, times, strict=True) if is_slow(time) for name in names}
    said = tuple((label(node), _why(slow[name])) for node in model.graph if (name := _result(node)) in slow)
    return ShareOut(frozenset(slow), said)


def _without(
    model: ir.Model, apply: Apply, shapes: Sequence[Sequence[str]], integer: ir.Model, evidence: Evidence
) -> list[Latency]:
    """Time of `integer` against `model` quantized but for the products of each of `shapes`, as many at once as memory allows."""
    found: list[Latency] = []
    together = max(1, _BYTES // max(1, weight_bytes(model)) - 1)
    for start in range(0, len(shapes), together):
        variants = [_quantized(model, apply, names)[0] for names in shapes[start : start + together]]
        rows = evidence.race([integer, *variants], seconds=_SECONDS * (1 + len(variants)))
        found += [
            summarize([(row[place], row[0]) for row in rows], evidence.threads, CONFIDENCE)
            for place in range(1, 1 + len(variants))
        ]
    return found


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


def _by_shape(graph: ir.Graph, converted: Collection[str]) -> list[list[ir.Node]]:
    """The products that make the values `converted`, by what their time depends on."""
    shapes: dict[tuple[str, ...], list[ir.Node]] = {}
    for node in graph:
        if _result(node) not in converted:
            continue
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
