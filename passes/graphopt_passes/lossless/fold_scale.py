"""Constant factors and summands into the linear operator beside them.

    c · x    x / c    x + c    x - c    c - x    -x       c: one number, or one per channel

Each is an affine map per channel, and a linear operator takes it in (`absorb` says where, `numerics.affine` how):

    s · (conv(x, W) + b) + t  =  conv(x, s · W) + s · b + t       also ConvTranspose, Gemm, MatMul + Add and the scale
                                                                and bias of a normalization
    conv(s · x, W) + b        =  conv(x, W · s) + b
    conv(x + t, W) + b        =  conv(x, W) + (b + W · t)       without zero padding, which would show t missing

What ends an activation or a normalization that is written out, such as x · (1 + erf(x / √2)) · ½ or
(x - mean) / std · scale + bias, does not go into the operator behind it: runtimes recognize these as a whole.

A constant has any shape that broadcasts to the channels and changes no extent: (C, 1, 1) before a Conv, (C) behind a
MatMul. Division by c becomes multiplication of the weight by 1/c, computed in float64 and rounded once, as exact as
the division was. Constants that are not finite, and integers, are left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.spool import Spool
from graphopt_passes.lossless import extents
from graphopt_passes.lossless.absorb import into_producer, into_readers
from graphopt_passes.lossless.linear import Side
from graphopt_passes.lossless.linear_operators import BROADCAST_SINCE, FLOATS
from graphopt_passes.numerics.affine import Affine, Array
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_CHANNELS = 2**20
"""Elements of a constant that may be one number per channel."""
_ONE, _ZERO = np.ones(()), np.zeros(())


@dataclasses.dataclass(frozen=True)
class FoldScale(RulePass):
    """Take Mul, Add, Sub, Div and Neg by constants into the Conv, Gemm or MatMul beside them."""

    name: ClassVar[str] = "fold-scale"

    def rules(self) -> Sequence[Rule]:
        """One rule."""
        return [_FoldScale()]


class _FoldScale(Rule):
    """Fold one node."""

    roots = frozenset({"Mul", "Div", "Add", "Sub", "Neg"})

    def __init__(self) -> None:
        self._spool = Spool()

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Fold `node` if it is an affine map of one of its inputs."""
        found = _elementwise(node, site)
        if found is None:
            return None
        data, mapping = found
        before = into_producer(node, data, mapping, site, self._spool)
        if isinstance(before, Done) or not mapping.keeps_extents_of(data) or _is_written_out(data, site):
            return before
        behind = into_readers(node, data, mapping, site, self._spool)
        return behind if isinstance(behind, Done) else before or behind


def _is_written_out(data: ir.Value, site: Site) -> bool:
    """Whether `data` is a product or quotient of computed tensors, or an affine map of such a one."""
    current: ir.Value | None = data
    while current is not None:
        node = site.producer(current, *_FoldScale.roots)
        if node is None:
            return False
        found = _elementwise(node, site)
        if found is None:
            return node.op_type in ("Mul", "Div")
        current = found[0]
    return False


@dataclasses.dataclass(frozen=True)
class _Elementwise:
    """x -> scale · x + shift, with float64 arrays that are broadcast with x: the channel map of an elementwise node."""

    scale: Array
    shift: Array

    def on(self, side: Side) -> Affine | None:
        """The numbers per channel."""
        scale, shift = side.per_channel(self.scale), side.per_channel(self.shift)
        return None if scale is None or shift is None else Affine(scale, shift)

    def keeps_extents_of(self, data: ir.Value) -> bool:
        """Whether the result has the shape of `data`: the constants broadcast to it, and not the other way round."""
        dims = extents.dims(data)
        return all(extents.broadcasts_into(array.shape, dims) for array in (self.scale, self.shift))


def _elementwise(node: ir.Node, site: Site) -> tuple[ir.Value, _Elementwise] | None:
    """The input of `node` that it maps, and how; None where that is not an affine map with constant numbers."""
    if site.opset < BROADCAST_SINCE:
        return None
    data, constant, is_first = _operands(node, site)
    if data is None or constant is None or (node.op_type == "Div" and not is_first):
        return None
    with np.errstate(all="ignore"):  # whoever takes the map looks whether it is finite
        maps = {
            "Mul": (constant, _ZERO),
            "Div": (1 / constant, _ZERO),
            "Add": (_ONE, constant),
            "Sub": (_ONE, -constant) if is_first else (-_ONE, constant),
            "Neg": (-_ONE, _ZERO),
        }
    return data, _Elementwise(*maps[node.op_type])


def _operands(node: ir.Node, site: Site) -> tuple[ir.Value | None, Array | None, bool]:
    """The operand that is not constant, the one that is, and whether the former comes first."""
    if node.op_type == "Neg":
        return node.inputs[0], -_ONE, True
    a, b = node.inputs
    first, second = site.constant(a), site.constant(b)
    if (first is None) == (second is None):
        return None, None, True
    return (a, _float64(second), True) if first is None else (b, _float64(first), False)


def _float64(tensor: ir.TensorProtocol | None) -> Array | None:
    if tensor is None or tensor.dtype not in FLOATS or tensor.size > _CHANNELS:
        return None
    return tensor.numpy().astype(np.float64)
