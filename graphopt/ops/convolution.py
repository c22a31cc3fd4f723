"""Convolutions: every output element (of a transposed one: every input element) meets one slice of the weight.

The weight is laid out (M, C/group, k...) and for ConvTranspose (C, M/group, k...): in both cases the extents after the
first are the multiply-accumulates per element. Strides, dilations, padding and the layout of the data (NCHW or NHWC)
are already in the extents.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Contraction, Extents, IntegerForm, input_at, output_at
from graphopt.ops.channels import Change, Ids, Labels, Opaque, Trace, channels, grouped

PANEL = 128 * 128
"""Elements of the panel of patches that one thread of onnxruntime's matrix product works through at a time."""


class Convolution(Contraction):
    """Conv, with a bias and, in onnxruntime's fused form, a sum (input Z) and an activation."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("Conv", "CausalConvWithState"),
        MICROSOFT: ("FusedConv", "NhwcConv", "NhwcFusedConv"),
    }
    weight_input: ClassVar[int] = 1
    bias_input: ClassVar[int | None] = 2
    channel_axis: ClassVar[int] = 0
    """The axis of the weight that holds the output channels (of a group)."""

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """int8 products, summed in int32."""
        if node.op_type not in ("Conv", "ConvTranspose"):
            return None
        return IntegerForm((0, 1), weight=1, channel_axis=self.channel_axis, bias=2)

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Input channels are consumed and output channels produced; a depthwise convolution passes them through."""
        if (node.domain, node.op_type) not in (("", "Conv"), ("", "ConvTranspose")):
            raise Opaque(f"opaque operator {node.op_type}")
        dims, groups = trace.output_dims(), attributes.integer(node, "group", 1)
        inputs = channels(trace, trace.labels(0), 1)
        if groups > 1 and groups == len(inputs):
            outputs = np.repeat(inputs, dims[1] // groups)
            trace.passes_through()
        else:
            trace.consume(inputs)
            outputs = trace.produce(dims[1])
            if groups > 1:
                by_group = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
                grouped(trace, *by_group, reason="the groups of a convolution are equally wide")
        trace.cut(1, self.weight_axes(inputs, outputs, groups), shared=True)
        if trace.has(2):
            trace.cut(2, {0: outputs})
        trace.put(0, Labels.along(dims, 1, outputs))

    def weight_axes(self, inputs: Ids, outputs: Ids, groups: int) -> dict[int, Ids]:
        """Labels of the axes of the weight; of a depthwise one, `inputs` leave no trace on its extent of 1."""
        return {0: outputs} if groups == len(inputs) > 1 else {0: outputs, 1: inputs.reshape(groups, -1)}

    def shrink(self, node: ir.Node, change: Change) -> None:
        """The number of groups: those of which anything stays."""
        groups = attributes.integer(node, "group", 1)
        if groups > 1:
            change.set_attribute("group", int(change.kept(0, 1).reshape(groups, -1).any(axis=1).sum()))

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Elements of the output times C/group x kernel."""
        weight = extents.dims(input_at(node, self.weight_input))
        positions = extents.size(self._walked(node))
        return None if not weight or positions is None else positions * prod(weight[1:])

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """One addition per output element for the bias, one for the sum, one for the activation."""
        fused = self.bias_input is not None and input_at(node, self.bias_input) is not None
        operations = int(fused) + int("activation" in node.attributes)
        if node.op_type.endswith("FusedConv"):
            operations += int(input_at(node, 3) is not None)
        size = extents.size(output_at(node, 0))
        return None if size is None else operations * size

    def may_overwrite(self, node: ir.Node) -> tuple[int, ...]:
        """The sum of a fused convolution is accumulated in place."""
        return (3,) if node.op_type.endswith("FusedConv") else ()

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """Columns of patches (im2col): all of them for small images, otherwise a panel; none for a 1x1 convolution."""
        weight, out = extents.dims(input_at(node, self.weight_input)), extents.dims(output_at(node, 0))
        if not weight or len(weight) < 3 or not out:
            return 0
        pointwise = prod(weight[2:]) == 1 and out[2:] == (extents.dims(input_at(node, 0)) or ())[2:]
        if integer:
            return _integer_workspace(weight, out, pointwise)
        filters, positions = weight[0] // max(1, attributes.integer(node, "group", 1)), prod(out[2:])
        return 0 if pointwise else prod(weight[1:]) * positions if filters > positions else PANEL

    def _walked(self, node: ir.Node) -> ir.Value | None:
        """The value each of whose elements meets one slice of the weight."""
        return output_at(node, 0)


def _integer_workspace(weight: tuple[int, ...], out: tuple[int, ...], pointwise: bool) -> int:
    """Bytes: a pointer per element of the kernel and position; else, for odd channels, columns and int32 sums."""
    positions = prod(out[2:])
    if weight[1] == 1 or weight[1] % 4 == 0:
        return 0 if pointwise else 8 * prod(weight[2:]) * positions
    return (prod(weight[1:]) + 4 * weight[0]) * positions


class TransposedConvolution(Convolution):
    """ConvTranspose scatters each input element over M/group x kernel outputs."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("ConvTranspose",)}
    channel_axis: ClassVar[int] = 1

    def weight_axes(self, inputs: Ids, outputs: Ids, groups: int) -> dict[int, Ids]:
        """The weight is (C, M/group, k...)."""
        return {0: inputs} if groups == len(inputs) > 1 else {0: inputs, 1: outputs.reshape(groups, -1)}

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """The columns of one image and group, before they are added up."""
        weight, data = extents.dims(input_at(node, self.weight_input)), extents.dims(input_at(node, 0))
        return prod(weight[1:]) * prod(data[2:]) if weight and data else 0

    def _walked(self, node: ir.Node) -> ir.Value | None:
        return input_at(node, 0)


class TransposedConvolutionWithPads(TransposedConvolution):
    """The same with the padding as an input before the bias."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("ConvTransposeWithDynamicPads",)}
    bias_input: ClassVar[int | None] = 3


class DeformableConvolution(Convolution):
    """DeformConv: a convolution over bilinearly sampled inputs."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("DeformConv",)}
    bias_input: ClassVar[int | None] = 3

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Per sampled element 4 products and 3 additions, one more product under a mask; then the bias."""
        bias = super().other_flops(node, extents)
        data, weight = extents.dims(input_at(node, 0)), extents.dims(input_at(node, 1))
        out = extents.dims(output_at(node, 0))
        if bias is None or not data or len(data) < 3 or not weight or not out:
            return None
        samples = data[0] * data[1] * prod(weight[2:]) * prod(out[2:])
        return bias + samples * (7 + int(input_at(node, 4) is not None))


class IntegerConvolution(Convolution):
    """ConvInteger: x, w and their zero points; the sum stays int32."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("ConvInteger",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3)
    bias_input: ClassVar[int | None] = None


class QuantizedConvolution(Convolution):
    """QLinearConv: x, w, y with scales and zero points, int32 bias; the result is requantized."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("QLinearConv",), MICROSOFT: ("QLinearConv",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 4, 5, 6, 7)
    weight_input: ClassVar[int] = 3
    bias_input: ClassVar[int | None] = 8

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """The bias, and scale, round and clip of each output element."""
        bias = super().other_flops(node, extents)
        size = extents.size(output_at(node, 0))
        return None if bias is None or size is None else bias + 3 * size

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """That of an integer kernel; the output is 8 bits wide."""
        return super().workspace(node, extents, integer=True)


FAMILIES = (
    Convolution(),
    TransposedConvolution(),
    TransposedConvolutionWithPads(),
    DeformableConvolution(),
    IntegerConvolution(),
    QuantizedConvolution(),
)
