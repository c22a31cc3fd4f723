"""Normalizations: statistics over some axes, then every element is shifted and scaled by them.

All of them are counted per element of the first output: passes over the data times one operation each.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Extents, IntegerForm, MacFree, input_at, output_at


class Normalization(MacFree):
    """Batch, instance, group, layer and RMS normalization, with what onnxruntime fuses into them."""

    # Mean and variance cost 4 (sum, difference, square, sum), scale and shift one each.
    per_element: ClassVar[Mapping[str, int]] = {
        "BatchNormalization": 2,
        "InstanceNormalization": 6,
        "GroupNormalization": 6,
        "LayerNormalization": 6,
        "RMSNormalization": 4,
        "SimplifiedLayerNormalization": 4,
        "MeanVarianceNormalization": 5,
        "LpNormalization": 3,
        "GroupNorm": 6,
        "SkipGroupNorm": 7,
        "SkipLayerNormalization": 7,
        "SkipSimplifiedLayerNormalization": 5,
        "EmbedLayerNormalization": 8,
    }
    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            "BatchNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "LayerNormalization",
            "RMSNormalization",
            "MeanVarianceNormalization",
            "LpNormalization",
            "SimplifiedLayerNormalization",
        ),
        MICROSOFT: (
            "GroupNorm",
            "SkipGroupNorm",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
            "EmbedLayerNormalization",
        ),
    }

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Elements times passes."""
        size = extents.size(output_at(node, 0))
        return None if size is None else size * self.per_element[node.op_type]

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """Intermediate tensors of the operators that onnxruntime runs as functions of several nodes."""
        copies = {"MeanVarianceNormalization": 3, "GroupNormalization": 2}.get(node.op_type, 0)
        return copies * (extents.size(output_at(node, 0)) or 0)


class LocalResponse(MacFree):
    """LRN: each element is divided by a power of the sum of squares of `size` neighbouring channels."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("LRN",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """A square, `size` sums, scale, shift, power and quotient per element."""
        size = extents.size(output_at(node, 0))
        return None if size is None else size * (attributes.integer(node, "size", 1) + 5)

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """The scale, and the squares with channels to spare at the ends."""
        dims = extents.dims(output_at(node, 0))
        if dims is None or len(dims) < 2:
            return 0
        return prod(dims) + prod(dims[2:]) * dims[0] * (dims[1] + attributes.integer(node, "size", 1) - 1)


class Softmax(MacFree):
    """Softmax and its kin: maximum, difference, exponential, sum, quotient; they may work in place."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("Softmax", "LogSoftmax", "Hardmax"),
        MICROSOFT: ("BiasSoftmax",),
    }
    per_element: ClassVar[Mapping[str, int]] = {"Hardmax": 2, "BiasSoftmax": 6}

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """Tables of exponentials, then one quotient per element."""
        return IntegerForm() if node.op_type == "Softmax" else None

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Elements times passes."""
        size = extents.size(input_at(node, 0))
        return None if size is None else size * self.per_element.get(node.op_type, 5)

    def may_overwrite(self, node: ir.Node) -> tuple[int, ...]:
        """The input, except for Hardmax."""
        return () if node.op_type == "Hardmax" else (0,)

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """Along any axis but the last: the input and the result transposed."""
        dims, axis = extents.dims(input_at(node, 0)), attributes.integer(node, "axis", -1)
        return 0 if not dims or axis in (-1, len(dims) - 1) else 2 * prod(dims)


class QuantizedSoftmax(MacFree):
    """QLinearSoftmax: a Softmax on 8-bit numbers by table, then requantized."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearSoftmax",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Five as in Softmax, three to requantize."""
        size = extents.size(input_at(node, 0))
        return None if size is None else 8 * size


FAMILIES = (Normalization(), LocalResponse(), Softmax(), QuantizedSoftmax())
