"""Activations that are one operator, from their definitions.

    HardSigmoid    clip(a·x + b, 0, h) / h                  alpha = a/h, beta = b/h
    HardSwish      x · HardSigmoid(x; 1/6, 1/2)
    Mish           x · tanh(Softplus(x))
    Sigmoid        1 / (1 + exp(-x))
    Softsign       x / (1 + |x|)
    Swish          x · Sigmoid(alpha · x)
    Clip           min(max(x, low), high)

Softplus is not among them: log(1 + exp(x)) overflows where Softplus does not, and is the faster of the two.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.lossless.fusion.base import fuse
from graphopt_passes.lossless.fusion.expressions import Product, arguments, climb, close, keeps_rank, polynomial, scalar
from graphopt_passes.rewriting import Outcome, Rule, Site

_HALVES = frozenset({ir.DataType.FLOAT16})
_WITH_FLOAT_ATTRIBUTES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""alpha and beta are float32: enough for these types."""


class HardSigmoid(Rule):
    """Add and Clip, times a constant -> HardSigmoid; times x too -> HardSwish, before opset 14 HardSigmoid and Mul."""

    roots: ClassVar = frozenset({"Clip"})

    def __init__(self, *, sigmoid: bool, swish: bool) -> None:
        self._sigmoid = sigmoid
        self._swish = swish

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Clip: inwards to x, outwards to the product."""
        if site.opset < 6:
            return None
        low, high = _bounds(node, site)
        dtype, line = _dtype(node, site), node.inputs[0]
        if low != 0 or high is None or not 0 < high < 1e6 or dtype not in _WITH_FLOAT_ATTRIBUTES:
            return None
        if line is None or site.only_reader(line) is not node:
            return None
        found = [(x, polynomial(line, x, site)) for x in arguments(line, site) if x is not line]
        lines = [
            (x, terms[1] / high, terms[0] / high) for x, terms in found if terms is not None and set(terms) == {0, 1}
        ]
        for x, alpha, beta in lines:
            root = _swish(node, x, alpha, beta, high, dtype, site)
            if root is not None and self._swish and site.opset >= 14:
                return fuse(root, "HardSwish", [x], site)
            if root is not None and self._sigmoid:
                gate = site.new_node("HardSigmoid", [x], node.outputs[0], node, {"alpha": alpha, "beta": beta})
                return fuse(root, "Mul", [x, gate.outputs[0]], site)
        root = _normalized(node, high, dtype, site) if self._sigmoid and lines else None
        if root is None:
            return None
        x, alpha, beta = lines[-1]
        return fuse(root, "HardSigmoid", [x], site, {"alpha": alpha, "beta": beta})


def _swish(
    clip: ir.Node, x: ir.Value, alpha: float, beta: float, high: float, dtype: ir.DataType, site: Site
) -> ir.Node | None:
    """The node whose output is HardSwish(x), or None; in float16 the product with x may overflow where it does not."""
    if not (close(alpha, 1 / 6, dtype) and close(beta, 0.5, dtype)):
        return None
    product = climb(clip.outputs[0], x, 1 / high, dtype, site)
    if product is None or (dtype in _HALVES and product.largest * high > 1.01):
        return None
    return product.root


def _normalized(clip: ir.Node, high: float, dtype: ir.DataType, site: Site) -> ir.Node | None:
    """The node whose output is that of `clip` divided by `high`."""
    if high == 1:
        return clip
    product = climb(clip.outputs[0], None, 1 / high, dtype, site)
    return None if product is None else product.root


class HardSwish(Rule):
    """Mul of x and HardSigmoid(x) -> HardSwish (opset 14)."""

    roots: ClassVar = frozenset({"HardSigmoid"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the HardSigmoid."""
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        dtype, x = ir.DataType.FLOAT, node.inputs[0]
        if site.opset < 14 or x is None or not (close(alpha, 1 / 6, dtype) and close(beta, 0.5, dtype)):
            return None
        product = _times(node, x, dtype, site)
        return None if product is None else fuse(product.root, "HardSwish", [x], site)


class Mish(Rule):
    """Mul of x and Tanh(Softplus(x)) -> Mish (opset 18)."""

    roots: ClassVar = frozenset({"Softplus"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Softplus."""
        tanh, x = site.only_reader(node.outputs[0]), node.inputs[0]
        if site.opset < 18 or x is None or tanh is None or (tanh.domain, tanh.op_type) != ("", "Tanh"):
            return None
        product = _times(tanh, x, ir.DataType.FLOAT, site)
        return None if product is None else fuse(product.root, "Mish", [x], site)


class Swish(Rule):
    """Mul of x and Sigmoid(alpha x) -> Swish (opset 24)."""

    roots: ClassVar = frozenset({"Sigmoid"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Sigmoid."""
        if site.opset < 24:
            return None
        for x in arguments(node.inputs[0], site):
            slope = polynomial(node.inputs[0], x, site)
            product = _times(node, x, ir.DataType.FLOAT, site)
            if slope is not None and set(slope) == {1} and product is not None:
                return fuse(product.root, "Swish", [x], site, {"alpha": slope[1]})
        return None


class Sigmoid(Rule):
    """Neg, Exp, Add 1 and Reciprocal or Div -> Sigmoid."""

    roots: ClassVar = frozenset({"Exp"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Exp."""
        plus_one = _plus_one(node, site)
        inverse = None if plus_one is None else site.only_reader(plus_one.outputs[0])
        if site.opset < 6 or plus_one is None or inverse is None or inverse.domain != "":
            return None
        is_inverse = inverse.op_type == "Reciprocal" or (
            inverse.op_type == "Div"
            and inverse.inputs[1] is plus_one.outputs[0]
            and scalar(inverse.inputs[0], site) == 1
            and keeps_rank(inverse.inputs[0], plus_one.outputs[0], site)
        )
        for x in arguments(node.inputs[0], site) if is_inverse else ():
            if polynomial(node.inputs[0], x, site) == {1: -1.0}:
                return fuse(inverse, "Sigmoid", [x], site)
        return None


class Softsign(Rule):
    """Abs, Add 1 and Div -> Softsign."""

    roots: ClassVar = frozenset({"Abs"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Abs."""
        plus_one, x = _plus_one(node, site), node.inputs[0]
        quotient = None if plus_one is None else site.only_reader(plus_one.outputs[0])
        if quotient is None or plus_one is None or (quotient.domain, quotient.op_type) != ("", "Div"):
            return None
        if quotient.inputs[0] is not x or quotient.inputs[1] is not plus_one.outputs[0]:
            return None
        return fuse(quotient, "Softsign", [x], site)


class ClipFromMinMax(Rule):
    """Min(Max(x, low), high) and Max(Min(x, high), low) -> Clip (opset 12)."""

    roots: ClassVar = frozenset({"Min", "Max"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the inner one."""
        other = {"Min": "Max", "Max": "Min"}[node.op_type]
        outer = site.only_reader(node.outputs[0])
        if site.opset < 12 or outer is None or (outer.domain, outer.op_type) != ("", other):
            return None
        inner_x, inner_bound = _with_scalar(node, site)
        outer_x, outer_bound = _with_scalar(outer, site)
        if inner_x is None or inner_bound is None or outer_x is not node.outputs[0] or outer_bound is None:
            return None
        low, high = (inner_bound, outer_bound) if node.op_type == "Max" else (outer_bound, inner_bound)
        numbers = (_number(low, site), _number(high, site))
        if not numbers[0] <= numbers[1]:
            return "not fused into Clip: its bounds are not in order"
        bounds = [_of_rank_0(bound, outer, site) for bound in (low, high)]
        return fuse(outer, "Clip", [inner_x, *bounds], site)


def _times(factor: ir.Node, x: ir.Value, dtype: ir.DataType, site: Site) -> Product | None:
    """The node that multiplies the output of `factor` with `x` itself."""
    node = site.only_reader(factor.outputs[0])
    if node is None or (node.domain, node.op_type) != ("", "Mul") or x not in node.inputs:
        return None
    return Product(node, 1.0, 1.0)


def _plus_one(node: ir.Node, site: Site) -> ir.Node | None:
    """The node that adds 1 to the output of `node`, which nothing else reads."""
    total = site.only_reader(node.outputs[0])
    if total is None or (total.domain, total.op_type) != ("", "Add"):
        return None
    one = total.inputs[1] if total.inputs[0] is node.outputs[0] else total.inputs[0]
    return total if scalar(one, site) == 1.0 and keeps_rank(one, node.outputs[0], site) else None


def _bounds(clip: ir.Node, site: Site) -> tuple[float | None, float | None]:
    """Both bounds of `clip`; None for one that is left out or not constant."""
    if site.opset < 11:
        attributes = clip.attributes
        return tuple(attributes.get_float(name, None) for name in ("min", "max"))  # type: ignore[return-value]
    padded = [*clip.inputs[1:3], None, None]
    return scalar(padded[0], site), scalar(padded[1], site)


def _dtype(node: ir.Node, site: Site) -> ir.DataType | None:
    """The element type of the first input of `node`; inside functions, that of a constant beside it."""
    for value in node.inputs:
        tensor = site.constant(value)
        if tensor is not None:
            return tensor.dtype
    return None if node.inputs[0] is None else node.inputs[0].dtype


def _with_scalar(node: ir.Node, site: Site) -> tuple[ir.Value | None, ir.Value | None]:
    """The operand of a Min or Max of two that is no constant, and the other one, a scalar."""
    if len(node.inputs) != 2:
        return None, None
    a, b = node.inputs
    x, bound = (b, a) if site.constant(a) is not None else (a, b)
    tensor = site.constant(bound)
    if x is None or tensor is None or tensor.size != 1 or not keeps_rank(bound, x, site):
        return None, None
    return x, bound


def _number(value: ir.Value, site: Site) -> float | int:
    array = site.array(value)
    assert array is not None  # _with_scalar looked
    number: float | int = array.reshape(-1)[0].item()
    return number


def _of_rank_0(value: ir.Value, before: ir.Node, site: Site) -> ir.Value:
    array = site.array(value)
    assert array is not None  # _with_scalar looked
    return value if array.ndim == 0 else site.new_constant(array.reshape(()), f"{value.name}_scalar", before)
