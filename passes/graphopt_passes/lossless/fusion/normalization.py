"""LayerNormalization (Ba et al., arXiv:1607.06450) and RMSNormalization (Zhang and Sennrich, arXiv:1910.07467).

    d = x - mean(x)         LayerNormalization; x itself for RMSNormalization
    n = d / sqrt(mean(d²) + epsilon)
    y = n · scale + bias    scale, bias: (C,), no bias for RMSNormalization

along the last axis, of C elements. The division may be a product with the inverse; the square d · d, or Pow; scale and
bias may be missing. Exports from float16 compute n in float32, between two Casts: the operators do the same (stash_type
is 1). Without the Casts float16 is left alone, since the square overflows there and the operators' does not.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt_passes.lossless import extents
from graphopt_passes.lossless.fusion.base import fuse
from graphopt_passes.lossless.fusion.expressions import scalar
from graphopt_passes.lossless.fusion.softmax import single_axis
from graphopt_passes.rewriting import Outcome, Rule, Site

_SINCE = {"LayerNormalization": 17, "RMSNormalization": 23}
_STASHED = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class _Normalized(NamedTuple):
    """What a chain of nodes normalizes.

    Attributes:
        op_type: LayerNormalization or RMSNormalization.
        x: what is normalized.
        node: makes n.
        epsilon: added to the mean of squares.
    """

    op_type: str
    x: ir.Value
    node: ir.Node
    epsilon: float


class Normalization(Rule):
    """ReduceMean, Sub, Mul or Pow, ReduceMean, Add, Sqrt, Div, Mul, Add -> LayerNormalization or RMSNormalization."""

    roots: ClassVar = frozenset({"Sqrt", "Pow"})

    def __init__(self, *, layer: bool, rms: bool) -> None:
        self._enabled = {"LayerNormalization": layer, "RMSNormalization": rms}

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Start from the root: inwards to x, outwards to the scale and the bias."""
        if site.opset < min(_SINCE.values()):
            return None
        found = _normalized(node, site)
        if found is None or not self._enabled[found.op_type] or site.opset < _SINCE[found.op_type]:
            return None
        x, last = _sandwich(found, site)
        dims = None if site.scope.is_function else extents.dims(x)
        width = dims[-1] if dims else None
        if not isinstance(width, int) or x.dtype not in (ir.DataType.FLOAT, *_STASHED):
            return f"not fused into {found.op_type}: its type or its number of channels does not allow it"
        last, scale = _affine(last, "Mul", x, width, site)
        bias = None
        if found.op_type == "LayerNormalization":
            last, bias = _affine(last, "Add", x, width, site)
        if scale is None:
            assert x.dtype is not None  # one of the types above
            scale = site.new_constant(np.ones(width, x.dtype.numpy()), f"{x.name}_scale", last)
        inputs = [x, _vector(scale, last, site), *([] if bias is None else [_vector(bias, last, site)])]
        return fuse(last, found.op_type, inputs, site, {"axis": -1, "epsilon": found.epsilon})


def _normalized(node: ir.Node, site: Site) -> _Normalized | None:
    """What is normalized by the root that `node` takes."""
    if node.op_type == "Pow" and scalar(node.inputs[1], site) != -0.5:
        return None
    total = site.producer(node.inputs[0], "Add")
    if total is None:
        return None
    parts = [(scalar(epsilon, site), mean) for mean, epsilon in (total.inputs, reversed(total.inputs))]
    epsilon, mean = next(((number, value) for number, value in parts if number is not None), (None, None))
    d = _squared(_averaged(mean, site), site)
    if epsilon is None or d is None:
        return None
    centered = _centered(d, site)
    quotient = _quotient(node, d, centered, site)
    if quotient is None:
        return None
    if centered is None:
        return _Normalized("RMSNormalization", d, quotient, epsilon)
    return _Normalized("LayerNormalization", centered, quotient, epsilon)


def _averaged(value: ir.Value | None, site: Site) -> ir.Value | None:
    """What `value` is the mean of, along the last axis."""
    node = site.producer(value, "ReduceMean")
    if node is None:
        return None
    rank = extents.rank(node.inputs[0])
    axis = single_axis(node, node.inputs[0], site)
    return node.inputs[0] if axis == -1 or (rank is not None and axis == rank - 1) else None


def _squared(value: ir.Value | None, site: Site) -> ir.Value | None:
    """What `value` is the square of."""
    node = site.producer(value, "Mul", "Pow")
    if node is None:
        return None
    is_square = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else scalar(node.inputs[1], site) == 2
    return node.inputs[0] if is_square else None


def _centered(value: ir.Value | None, site: Site) -> ir.Value | None:
    """What `value` is less its mean, or None where it is no such difference."""
    node = site.producer(value, "Sub")
    if node is None or _averaged(node.inputs[1], site) is not node.inputs[0]:
        return None
    return node.inputs[0]


def _quotient(root: ir.Node, d: ir.Value, centered: ir.Value | None, site: Site) -> ir.Node | None:
    """The node that divides `d`, or another difference of the same, by `root`."""

    def is_d(value: ir.Value | None) -> bool:
        return value is d or (centered is not None and _centered(value, site) is centered)

    reader = site.only_reader(root.outputs[0])
    if reader is None or reader.domain != "":
        return None
    inverse = root.outputs[0]
    if root.op_type == "Sqrt":
        if reader.op_type == "Div" and reader.inputs[1] is inverse and is_d(reader.inputs[0]):
            return reader
        is_inverse = reader.op_type == "Reciprocal" or (
            reader.op_type == "Div" and reader.inputs[1] is inverse and scalar(reader.inputs[0], site) == 1
        )
        if not is_inverse:
            return None
        inverse = reader.outputs[0]
        reader = site.only_reader(inverse)
    if reader is None or (reader.domain, reader.op_type) != ("", "Mul"):
        return None
    return reader if any(is_d(value) for value in reader.inputs if value is not inverse) else None


def _sandwich(found: _Normalized, site: Site) -> tuple[ir.Value, ir.Node]:
    """x and the node that makes n; before and after the Casts where they stand around them."""
    before, after = site.producer(found.x, "Cast"), site.only_reader(found.node.outputs[0])
    narrow = None if before is None else before.inputs[0]
    if narrow is None or narrow.dtype not in _STASHED or found.x.dtype != ir.DataType.FLOAT:
        return found.x, found.node
    if after is None or (after.domain, after.op_type) != ("", "Cast") or after.outputs[0].dtype != narrow.dtype:
        return found.x, found.node
    return narrow, after


def _affine(node: ir.Node, op_type: str, x: ir.Value, width: int, site: Site) -> tuple[ir.Node, ir.Value | None]:
    """The node after `node` that multiplies by, or adds, one number per channel, and these; else `node` and None."""
    reader = site.only_reader(node.outputs[0])
    if reader is None or (reader.domain, reader.op_type) != ("", op_type):
        return node, None
    other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
    if other is None:
        return node, None
    dims, rank = extents.dims(other), extents.rank(x)
    constant = site.constant(other)
    if dims == (width,) or (
        constant is not None and rank is not None and dims and len(dims) <= rank and dims[-1] == width == constant.size
    ):
        return reader, other
    return node, None


def _vector(value: ir.Value, before: ir.Node, site: Site) -> ir.Value:
    """`value`, with one element per channel, as a vector."""
    constant = site.constant(value)
    if constant is None or len(constant.shape) == 1:
        return value
    return site.new_constant(constant.numpy().reshape(-1), f"{value.name}_vector", before)
