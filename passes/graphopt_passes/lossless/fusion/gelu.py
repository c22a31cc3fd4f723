"""Gelu, from its two definitions (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    erf      y = x/2 · (1 + erf(x / sqrt 2))
    tanh     y = x/2 · (1 + tanh(sqrt(2/pi) · (x + 0.044715 x³)))

The argument is compared as a polynomial in x, and the product in any order, so that every spelling matches. In float16
2x overflows where x does not: there the half must come before the product with x.
"""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.lossless.fusion.base import fuse
from graphopt_passes.lossless.fusion.expressions import Polynomial, arguments, climb, close, polynomial, scalar
from graphopt_passes.rewriting import Outcome, Rule, Site

_SINCE = 20
_SHAPES: dict[str, tuple[str, Polynomial]] = {
    "Erf": ("none", {1: 1 / math.sqrt(2)}),
    "Tanh": ("tanh", {1: math.sqrt(2 / math.pi), 3: math.sqrt(2 / math.pi) * 0.044715}),
}


class Gelu(Rule):
    """Mul, Div, Add and Erf or Tanh -> Gelu."""

    roots: ClassVar = frozenset(_SHAPES)

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the Erf or Tanh: outwards to the product, inwards to x."""
        if site.opset < _SINCE:
            return None
        plus_one = site.only_reader(node.outputs[0])
        if plus_one is None or plus_one.op_type != "Add" or plus_one.domain != "":
            return None
        one = plus_one.inputs[1] if plus_one.inputs[0] is node.outputs[0] else plus_one.inputs[0]
        tensor = site.constant(one)
        if tensor is None or scalar(one, site) != 1.0:
            return None
        approximate, wanted = _SHAPES[node.op_type]
        for x in arguments(node.inputs[0], site):
            found = polynomial(node.inputs[0], x, site)
            if found is None or not _alike(found, wanted, tensor.dtype):
                continue
            product = climb(plus_one.outputs[0], x, 0.5, tensor.dtype, site)
            if product is None:
                return "not fused into Gelu: what follows is not x/2 times it"
            if tensor.dtype == ir.DataType.FLOAT16 and product.largest > 0.5:
                return "not fused into Gelu: in float16 its intermediate product may overflow, Gelu does not"
            return fuse(product.root, "Gelu", [x], site, {"approximate": approximate})
        return None


def _alike(found: Polynomial, wanted: Polynomial, dtype: ir.DataType) -> bool:
    powers = {power for power, coefficient in found.items() if coefficient}
    return powers == set(wanted) and all(close(found[power], wanted[power], dtype) for power in powers)
