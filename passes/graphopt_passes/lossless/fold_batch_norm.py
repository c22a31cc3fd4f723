"""BatchNormalization into the linear operator before it, or into those behind it.

In inference a batch normalization is an affine map per channel with constant coefficients,

    y[c] = gamma[c] · (x[c] - mean[c]) / sqrt(var[c] + eps) + beta[c] = s[c] · x[c] + t[c]

and so goes into the weight and bias of a Conv, ConvTranspose, Gemm, MatMul + Add or another normalization before it, or
of those that read it (see `absorb` for where, `numerics.affine` for how). Behind a MatMul without a bias, an Add of t
remains of it.

All parameters must be constant, and the variance larger than -eps. A normalization that has no such neighbour, as in
networks that activate before they convolve, stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.spool import Spool
from graphopt_passes.lossless.absorb import into_producer, into_readers
from graphopt_passes.lossless.linear import Linear, Side
from graphopt_passes.lossless.linear_operators import BROADCAST_SINCE, FLOATS, making, trains
from graphopt_passes.numerics.affine import Affine, normalization, rounded
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site


@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """Take BatchNormalization into the weight and bias of the Conv, Gemm or MatMul beside it."""

    name: ClassVar[str] = "fold-batch-norm"

    def rules(self) -> Sequence[Rule]:
        """One rule."""
        return [_FoldBatchNorm()]


@dataclasses.dataclass(frozen=True)
class _AlongAxis1:
    """An affine map with other numbers for each channel, where channels are axis 1: the channel map of `absorb`."""

    affine: Affine

    def on(self, side: Side) -> Affine | None:
        """The map, where the channels of the linear operator are axis 1, too."""
        matches = side.axis == 1 - side.rank and side.channels == len(self.affine.scale)
        return self.affine if matches else None


class _FoldBatchNorm(Rule):
    """Fold one normalization."""

    roots = frozenset({"BatchNormalization"})

    def __init__(self) -> None:
        self._spool = Spool()

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Fold `node` into what makes its input, else into what reads its output."""
        data, mapping = node.inputs[0], _mapping(node, site)
        if data is None or isinstance(mapping, str):
            return f"kept: {mapping}"
        before = into_producer(node, data, mapping, site, self._spool)
        if isinstance(before, Done):
            return before
        behind = into_readers(node, data, mapping, site, self._spool)
        if isinstance(behind, Done):
            return behind
        return self._into_matmul(node, data, mapping, site) or before or behind or "kept: nothing linear is beside it"

    def _into_matmul(self, node: ir.Node, data: ir.Value, mapping: _AlongAxis1, site: Site) -> Outcome:
        """Where a MatMul without a bias makes `data`: let it do the scaling, and an Add the rest."""
        product = making(data, site)
        if not isinstance(product, Linear) or product.node.op_type != "MatMul" or product.bias is not None:
            return None
        affine = mapping.on(product.output)
        if affine is None or site.only_reader(data) is not node or site.opset < BROADCAST_SINCE:
            return None
        parameters = product.after(Affine(affine.scale, np.zeros(())), self._spool)
        shift = rounded(affine.shift, product.weight.dtype.numpy())
        if isinstance(parameters, str) or shift is None:
            return None
        changed = product.give(parameters, site)
        bias = site.new_constant(shift, f"{data.name}_bias_folded", node)
        add = site.new_node("Add", [data, bias], node.outputs[0], node)
        readers = site.replace(node, add.outputs[0])
        return Done("folded into the MatMul before it and an Add", (*changed, add, *readers))


def _mapping(norm: ir.Node, site: Site) -> _AlongAxis1 | str:
    """The affine map that `norm` is, or why it is none."""
    why_not = trains(norm, site.opset)
    if why_not is not None:
        return why_not
    constants = [site.constant(value) for value in norm.inputs[1:5]]
    found = [tensor for tensor in constants if tensor is not None]
    if len(found) != 4:
        return "not all of its parameters are constant"
    if not {tensor.dtype for tensor in found} <= FLOATS or len({tuple(tensor.shape.numpy()) for tensor in found}) != 1:
        return "its parameters do not fit together"
    gamma, beta, mean, variance = (tensor.numpy() for tensor in found)
    return _AlongAxis1(normalization(gamma, beta, mean, variance, norm.attributes.get_float("epsilon", 1e-5)))
