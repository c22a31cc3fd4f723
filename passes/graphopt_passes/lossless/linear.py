"""Linear operators with constant weights, seen alike: channels on both sides, one weight, one bias.

A `Linear` takes in an affine map per channel, `after` it or `before` it (the mathematics is in `numerics.affine`): it
says what its weight and bias become, or why that cannot be. Nothing changes until `give`: then the operator gets
constants of its own, and whoever shared the old ones keeps them.

Which operators these are, and how to find them in a graph, is in `linear_operators`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from graphopt.ir.spool import Spool
from graphopt_passes.numerics.affine import Affine, Array, per_channel, response, rounded, scaled
from graphopt_passes.rewriting import Site

_NOT_FINITE = "its scale or shift is not finite"
_MAX_COPY = 2**20
"""Bytes of a weight that may be doubled because others read it too."""


@dataclasses.dataclass(frozen=True)
class Side:
    """The input or the output of a linear operator.

    Attributes:
        channels: how many there are.
        axis: where they are, counted from the end: -1 is the last axis.
        rank: number of axes, or fewer where that is all that is known.
    """

    channels: int
    axis: int
    rank: int

    def per_channel(self, array: Array) -> Array | None:
        """`array`, broadcast with this side, as one number per channel; None where it is not that."""
        return per_channel(array, self.channels, self.axis, self.rank)


@dataclasses.dataclass(frozen=True)
class Bias:
    """Where the bias of an operator is, and what it is.

    Attributes:
        node: the operator itself, or the Add behind a MatMul.
        index: which of its inputs.
        value: per output channel, (channels,) or () float64; None where there is none, or none that may change.
        why_not: why it may not change; None where it is absent, or constant and one number per channel.
    """

    node: ir.Node
    index: int
    value: Array | None = None
    why_not: str | None = None


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A new weight and a new bias; None where the old one stays."""

    weight: ir.TensorProtocol | None
    bias: ir.TensorProtocol | None


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear operator with a constant weight.

    Attributes:
        node: the operator.
        index: which of its inputs is the weight.
        weight: the weight.
        view: extents of the weight as (groups, outputs of a group, inputs of a group, taps); inputs before outputs
            where they are stored so.
        inputs_first: whether they are.
        bias: where the bias is; None where there can be none.
        output: the channels of the output.
        input: the channels of the input; None where no affine map can be taken in from before.
        factor: what the operator multiplies the weight with (Gemm's alpha).
        uniform: whether an input that is constant per channel gives such an output, as it does without zero padding.
    """

    node: ir.Node
    index: int
    weight: ir.TensorProtocol
    view: tuple[int, int, int, int]
    inputs_first: bool
    bias: Bias | None
    output: Side
    input: Side | None = None
    factor: float = 1.0
    uniform: bool = True

    def after(self, affine: Affine, spool: Spool) -> Parameters | str:
        """The parameters that do what this operator and `affine` behind it do, or why there are none."""
        if not affine.finite:
            return _NOT_FINITE
        has_bias = self.bias is not None and (self.bias.value is not None or self.bias.why_not is not None)
        changes_bias = affine.shifts or (affine.scales and has_bias)
        bias = affine.scale * self._bias() + affine.shift if changes_bias else None
        return self._parameters(affine.scale if affine.scales else None, bias, spool, outputs=True)

    def before(self, affine: Affine, spool: Spool) -> Parameters | str:
        """The parameters that do what `affine` and this operator behind it do, or why there are none."""
        if not affine.finite:
            return _NOT_FINITE
        bias = None
        if affine.shifts:
            if not self.uniform:
                return "what is added would not be the same everywhere: there is zero padding"
            weight = self.weight.numpy().reshape(self.view)
            bias = self._bias() + self.factor * response(weight, affine.shift, self.inputs_first)
        return self._parameters(affine.scale if affine.scales else None, bias, spool, outputs=False)

    def give(self, parameters: Parameters, site: Site) -> tuple[ir.Node, ...]:
        """Let the operator have `parameters`, and return the nodes that changed."""
        changed = [self.node]
        if parameters.weight is not None:
            self.node.attributes.pop("alpha", None)
            _set_constant(self.node, self.index, parameters.weight, site)
        if parameters.bias is not None and self.bias is not None:
            self.node.attributes.pop("beta", None)
            _set_constant(self.bias.node, self.bias.index, parameters.bias, site)
            changed.append(self.bias.node)
        return tuple(dict.fromkeys(changed))

    def _bias(self) -> Array:
        return np.zeros(()) if self.bias is None or self.bias.value is None else self.bias.value

    def _parameters(self, scale: Array | None, bias: Array | None, spool: Spool, *, outputs: bool) -> Parameters | str:
        if bias is not None and (self.bias is None or self.bias.why_not is not None):
            return "there is no bias to add to" if self.bias is None else str(self.bias.why_not)
        if scale is not None and self._is_shared() and self.weight.nbytes > _MAX_COPY:
            return f"its weight is read elsewhere too, and a copy would take {self.weight.nbytes} bytes"
        new_bias = None if bias is None else rounded(self._shaped(bias), self.weight.dtype.numpy())
        new_weight = None if scale is None else self._scaled(scale, outputs=outputs)
        if (bias is not None and new_bias is None) or (scale is not None and new_weight is None):
            return f"its new weight or bias would overflow {self.weight.dtype} or lose precision in it"
        return Parameters(_tensor(new_weight, self.weight.dtype, spool), _tensor(new_bias, self.weight.dtype, spool))

    def _scaled(self, scale: Array, *, outputs: bool) -> Array | None:
        """The weight with output or input channel c multiplied by `scale[c]`, and by `factor`."""
        first = outputs is not self.inputs_first  # of the two channel axes of the view
        groups, width = self.view[0], self.view[1 if first else 2]
        factor = np.broadcast_to(scale, (groups * width,)) * self.factor
        weight = self.weight.numpy()
        new = scaled(weight.reshape(self.view), factor.reshape(groups, *((width, 1) if first else (1, width)), 1))
        return None if new is None else new.reshape(weight.shape)

    def _shaped(self, bias: Array) -> Array:
        """The bias with one element per channel, unless it is added by an Add, which broadcasts."""
        if self.bias is not None and self.bias.node is not self.node:
            return bias
        return np.broadcast_to(bias, (self.output.channels,))

    def _is_shared(self) -> bool:
        value = self.node.inputs[self.index]
        return value is not None and len(value.uses()) > 1


def _set_constant(node: ir.Node, index: int, tensor: ir.TensorProtocol, site: Site) -> None:
    """Make `tensor` input `index` of `node`."""
    inputs = [*node.inputs, *[None] * (index + 1 - len(node.inputs))]
    old = inputs[index]
    base = old.name if old is not None and old.name else f"{node.outputs[0].name}_bias"
    inputs[index] = site.new_constant(tensor, f"{base.removesuffix('_folded')}_folded", node)
    site.set_inputs(node, inputs)


def _tensor(array: Array | None, dtype: ir.DataType, spool: Spool) -> ir.TensorProtocol | None:
    return None if array is None else spool.keep(ir.Tensor(np.ascontiguousarray(array), dtype))
