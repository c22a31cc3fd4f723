"""Scalar factors of attention, moved to the linear layer in front, which takes them into its weight.

Attention scores are scaled, and exporters write the factor in three places:

    softmax((q kᵀ) · c)        softmax((c · q) kᵀ)        softmax((√c · q) (√c · k)ᵀ)

A factor commutes with MatMul and with everything that only rearranges elements, so each is c · (x W + b) further up: there
the passes that fold constants into linear layers finish it, and no pass over the scores is left. Two factors on both
sides of one MatMul become one first.

Only factors of at most 1 move, so that nothing overflows, and only where a linear layer with constant weights waits at
the end of a path that nothing else reads. float16 is left alone: small products would sink among its subnormals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt_passes.lossless.fusion.expressions import keeps_rank, scalar
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_REARRANGEMENTS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
_WIDE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
_SMALLEST = 2.0**-20


@dataclasses.dataclass(frozen=True)
class HoistScales(RulePass):
    """Move scalar factors through MatMul, Reshape and Transpose to the linear layer in front."""

    name: ClassVar[str] = "hoist-scales"

    def rules(self) -> Sequence[Rule]:
        """The rules."""
        return (OneFactor(), Hoist())


class OneFactor(Rule):
    """MatMul(a · x, b · y) -> MatMul(ab · x, y)."""

    roots: ClassVar = frozenset({"MatMul"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Give the first operand the factors of both."""
        left, right = (_scaling(site.producer(value, "Mul", "Div"), site) for value in node.inputs)
        if left is None or right is None or any(site.only_reader(read) is not node for read in node.inputs if read):
            return None
        factor = np.array(left.factor * right.factor, left.dtype)
        constant = site.new_constant(factor, f"{left.node.outputs[0].name}_factor", left.node)
        scaled = site.new_node("Mul", [left.value, constant], left.node.outputs[0], node)
        site.set_inputs(node, [scaled.outputs[0], right.value])
        site.remove_unread(left.node)
        site.remove_unread(right.node)
        return Done("scales one operand instead of two", (scaled, node))


class Hoist(Rule):
    """c · MatMul(rearranged(x W + b), y) -> MatMul(rearranged(c · (x W + b)), y); without the MatMul likewise."""

    roots: ClassVar = frozenset({"Mul", "Div"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Move the factor up, as far as the linear layer."""
        scaling = _scaling(node, site)
        if scaling is None or site.only_reader(scaling.value) is not node or _is_half(node, site):
            return None
        source = self._source(scaling.value, site)
        if source is None or source is scaling.value:
            return None
        why_not = site.editor.why_not_replace(node.outputs[0], scaling.value)
        if why_not is not None:
            return f"kept: {why_not}"
        (reader,) = source.consumers()
        factor = site.new_constant(np.array(scaling.factor, scaling.dtype), f"{source.name}_factor", reader)
        scaled = site.new_node("Mul", [source, factor], source, reader)
        site.set_inputs(reader, [scaled.outputs[0] if read is source else read for read in reader.inputs])
        readers = site.replace(node, scaling.value)
        return Done("moved up to the linear layer", (scaled, reader, *readers))

    def _source(self, value: ir.Value, site: Site) -> ir.Value | None:
        """The output of a linear layer that `value` is rearranged from, or is the product of two matrices of which one is."""
        product = site.producer(value, "MatMul")
        if product is None or _is_linear(product, site):
            return _origin(value, site)
        for operand in product.inputs:
            if operand is not None and site.only_reader(operand) is product:
                origin = _origin(operand, site)
                if origin is not None:
                    return origin
        return None


@dataclasses.dataclass(frozen=True)
class _Scaling:
    """`node` multiplies `value` with `factor`, a number of type `dtype`."""

    node: ir.Node
    value: ir.Value
    factor: float
    dtype: np.dtype


def _scaling(node: ir.Node | None, site: Site) -> _Scaling | None:
    """What `node`, a Mul or Div by a scalar, does, where the factor may move."""
    if node is None:
        return None
    a, b = node.inputs
    value, constant = (b, a) if node.op_type == "Mul" and site.constant(a) is not None else (a, b)
    number, tensor = scalar(constant, site), site.constant(constant)
    if value is None or tensor is None or number is None or tensor.dtype not in _WIDE or not number:
        return None
    factor = number if node.op_type == "Mul" else 1 / number
    if not _SMALLEST <= abs(factor) <= 1 or not keeps_rank(constant, value, site):
        return None
    return _Scaling(node, value, factor, tensor.dtype.numpy())


def _is_half(node: ir.Node, site: Site) -> bool:
    """Whether `node` scales one operand of a MatMul whose other operand is scaled too: these become one first."""
    product = site.only_reader(node.outputs[0])
    if product is None or (product.domain, product.op_type) != ("", "MatMul"):
        return False
    scalings = [_scaling(site.producer(value, "Mul", "Div"), site) for value in product.inputs]
    return all(s is not None and site.only_reader(s.node.outputs[0]) is product for s in scalings)


def _origin(value: ir.Value, site: Site) -> ir.Value | None:
    """The output of a linear layer that `value` is rearranged from, along a path that nothing else reads."""
    current = value
    while True:
        node = site.producer(current)
        if node is None or _is_linear(node, site):
            return None if node is None else current
        above = node.inputs[0] if node.op_type in _REARRANGEMENTS else None
        if above is None or site.only_reader(above) is not node:
            return None
        current = above


def _is_linear(node: ir.Node, site: Site) -> bool:
    """Whether `node` is a linear layer with parameters of its own, all constant, or the Add of its bias."""
    if node.op_type in ("Gemm", "Conv"):
        return all(read is None or _is_own_constant(read, site) for read in node.inputs[1:])
    if node.op_type == "MatMul":
        return _is_own_constant(node.inputs[1], site)
    if node.op_type != "Add":
        return False
    for product, bias in (node.inputs, reversed(node.inputs)):
        layer = site.producer(product, "MatMul") if _is_own_constant(bias, site) else None
        if layer is not None and product is not None and site.only_reader(product) is node:
            return _is_linear(layer, site)
    return False


def _is_own_constant(value: ir.Value | None, site: Site) -> bool:
    """Whether `value` is a constant that nothing else reads: it can be scaled in place of being copied."""
    return value is not None and site.constant(value) is not None and len(value.uses()) == 1
