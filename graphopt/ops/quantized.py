"""Quantization itself, and the elementwise operators on quantized tensors (QLinear...).

A quantized elementwise operator dequantizes its inputs (2 per element), computes, and quantizes the result (3: scale,
round, clip). Convolutions, matrix products, pools and normalizations on integers stand with their families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Extents, MacFree, input_at, output_at
from graphopt.ops.channels import Opaque, Trace, positions


class Quantization(MacFree):
    """QuantizeLinear, DequantizeLinear: x, scale, zero point."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("QuantizeLinear", "DequantizeLinear"),
        MICROSOFT: ("QuantizeLinear", "DequantizeLinear"),
    }
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2)

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Scales and zero points per channel follow the channels."""
        labels, scale = trace.labels(0), trace.dims(1)
        if len(scale) > 1:
            raise Opaque("scales per block")
        axis = attributes.integer(node, "axis", 1)
        if scale not in ((), (1,)) and labels.axis(axis) in labels.varying:
            along = positions(labels, labels.axis(axis))
            for index in (1, 2):
                if trace.has(index):
                    trace.cut(index, {0: along})
        trace.put(0, labels)

    def cut_through(self, node: ir.Node, rank: int, axis: int) -> Mapping[int, int] | None:
        """The data, and scale and zero point where they lie along the axis."""
        scale = input_at(node, 1)
        if scale is None or scale.shape is None or scale.shape.rank() > 1:
            return None
        per_channel = scale.shape.rank() == 1 and scale.shape[0] != 1
        if per_channel and attributes.integer(node, "axis", 1) % rank == axis:
            return {0: axis, 1: 0} if input_at(node, 2) is None else {0: axis, 1: 0, 2: 0}
        return {0: axis}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Scale, round and clip; or difference and product."""
        size = extents.size(input_at(node, 0))
        return None if size is None else size * (3 if node.op_type == "QuantizeLinear" else 2)


class DynamicQuantization(MacFree):
    """DynamicQuantizeLinear finds the range of its input first."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("DynamicQuantizeLinear",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Minimum, maximum, scale, round and clip per element."""
        size = extents.size(input_at(node, 0))
        return None if size is None else 5 * size


class _QuantizedElementwise(MacFree):
    """Operations per output element, dequantization and quantization included."""

    per_element: ClassVar[int]

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Output elements times operations per element."""
        size = extents.size(output_at(node, 0))
        return None if size is None else size * self.per_element


class QuantizedBinary(_QuantizedElementwise):
    """QLinearAdd, QLinearMul: A, B and C with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearAdd", "QLinearMul")}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 4, 5, 6, 7)
    per_element: ClassVar[int] = 8


class QuantizedActivation(_QuantizedElementwise):
    """QLinearSigmoid, QLinearLeakyRelu: a look-up per element."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearSigmoid", "QLinearLeakyRelu")}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    per_element: ClassVar[int] = 1


class QuantizedConcat(_QuantizedElementwise):
    """QLinearConcat: every part is brought to the scale of the result; (tensor, scale, zero point) repeat."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearConcat",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (0, 1)
    per_element: ClassVar[int] = 5


class QuantizedWhere(_QuantizedElementwise):
    """QLinearWhere: condition, X, Y and Z with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearWhere",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3, 5, 6, 7, 8)
    per_element: ClassVar[int] = 6


FAMILIES = (
    Quantization(),
    DynamicQuantization(),
    QuantizedBinary(),
    QuantizedActivation(),
    QuantizedConcat(),
    QuantizedWhere(),
)
