"""Matrix products: MatMul with broadcasting, Gemm, and their integer, quantized and fused forms."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Contraction, Extents, IntegerForm, input_at, output_at
from graphopt.ops.channels import Opaque, Trace, follow, meet
from graphopt.ops.contraction import product


def broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...] | None:
    """Extents of the numpy broadcast of two shapes; None where they do not fit together."""
    rank = max(len(left), len(right))
    padded = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    result = []
    for a, b in padded:
        if a != b and 1 not in (a, b):
            return None
        result.append(b if a == 1 else a)
    return tuple(result)


def matmul_macs(left: tuple[int, ...] | None, right: tuple[int, ...] | None) -> int | None:
    """MACs of numpy's matmul: (..., M, K) x (..., K, N), where a vector is one row or one column."""
    if not left or not right:
        return None
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    batch = broadcast(left[:-2], right[:-2])
    return None if batch is None else prod(batch) * rows * left[-1] * columns


class MatrixProduct(Contraction):
    """MatMul and everything that multiplies two tensors the same way.

    `right_input` is where the second factor stands. A fused addition or activation counts one per output element.
    """

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("MatMul",), MICROSOFT: ("GemmFastGelu",)}
    right_input: ClassVar[int] = 1
    bias_input: ClassVar[int | None] = 2
    requantized: ClassVar[int] = 0
    """Operations that bring one integer sum to the type of the output."""

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """int8 products, summed in int32; the columns of a constant right factor have scales of their own."""
        return IntegerForm((0, 1), weight=1, channel_axis=-1) if node.op_type == "MatMul" else None

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """A linear layer where one factor is constant."""
        if node.op_type != "MatMul":
            raise Opaque(f"opaque operator {node.op_type}")
        trace.put(0, product(trace, trace.output_dims()))

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Batch x M x K x N."""
        left = _swap_last(extents.dims(input_at(node, 0)), bool(attributes.integer(node, "transA", 0)))
        right = _swap_last(extents.dims(input_at(node, self.right_input)), bool(attributes.integer(node, "transB", 0)))
        return matmul_macs(left, right)

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """One per output element for each of: the bias, the activation, the steps of requantization."""
        size = extents.size(output_at(node, 0))
        biased = self.bias_input is not None and input_at(node, self.bias_input) is not None
        activated = "activation" in node.attributes or node.op_type == "GemmFastGelu"
        return None if size is None else size * (int(biased) + int(activated) + self.requantized)


def _swap_last(dims: tuple[int, ...] | None, swap: bool) -> tuple[int, ...] | None:
    if dims is None or not swap or len(dims) < 2:
        return dims
    return (*dims[:-2], dims[-1], dims[-2])


class Gemm(MatrixProduct):
    """Gemm: alpha A' B' + beta C, with optional transposes and, fused, an activation."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Gemm",), MICROSOFT: ("FusedGemm",)}

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """As MatMul; the bias joins the sums where nothing scales it."""
        plain = attributes.number(node, "alpha", 1.0) == attributes.number(node, "beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not plain or attributes.integer(node, "transA", 0):
            return None
        return IntegerForm((0, 1), weight=1, channel_axis=0 if attributes.integer(node, "transB", 0) else 1, bias=2)

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """As MatMul; C is broadcast to the result."""
        if node.op_type != "Gemm":
            raise Opaque(f"opaque operator {node.op_type}")
        dims = trace.output_dims()
        swap = bool(attributes.integer(node, "transA", 0)), bool(attributes.integer(node, "transB", 0))
        result = product(trace, dims, swap=swap)
        if trace.is_constant(2):
            follow(trace, 2, result)
        elif trace.has(2):
            result = meet(trace, [result, trace.labels(2).aligned(len(dims))], dims)
        trace.put(0, result)


class FusedMatMul(MatrixProduct):
    """FusedMatMul: MatMul of transposed factors; `transBatch` moves the first axis to just before the last."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        MICROSOFT: ("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul")
    }
    bias_input: ClassVar[int | None] = None

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Batch x M x K x N after the transposes."""
        factors = []
        for index, side in enumerate("AB"):
            dims = extents.dims(input_at(node, index))
            if dims is not None and len(dims) > 2 and attributes.integer(node, f"transBatch{side}", 0):
                dims = (*dims[1:-1], dims[0], dims[-1])
            factors.append(_swap_last(dims, bool(attributes.integer(node, f"trans{side}", 0))))
        return matmul_macs(factors[0], factors[1])


class IntegerMatMul(MatrixProduct):
    """MatMulInteger: A, B and their zero points; the sum stays int32."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("MatMulInteger",), MICROSOFT: ("MatMulInteger16",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3)
    bias_input: ClassVar[int | None] = None


class IntegerMatMulToFloat(MatrixProduct):
    """MatMulIntegerToFloat: an integer product, scaled to float."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("MatMulIntegerToFloat",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)
    bias_input: ClassVar[int | None] = 6
    requantized: ClassVar[int] = 1


class DynamicQuantizeMatMul(MatrixProduct):
    """DynamicQuantizeMatMul: quantizes A on the way in (counted as 5 per element), then the integer product."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("DynamicQuantizeMatMul",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3)
    bias_input: ClassVar[int | None] = 4
    requantized: ClassVar[int] = 1

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Range, scale, round and clip of A, and what the product itself adds."""
        rest, size = super().other_flops(node, extents), extents.size(input_at(node, 0))
        return None if rest is None or size is None else rest + 5 * size


class QuantizedMatMul(MatrixProduct):
    """QLinearMatMul: a, b, y with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("QLinearMatMul",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 4, 5, 6, 7)
    right_input: ClassVar[int] = 3
    bias_input: ClassVar[int | None] = None
    requantized: ClassVar[int] = 3


class QuantizedGemm(MatrixProduct):
    """QGemm: A, B, int32 C and the output, with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QGemm",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 4, 5, 7, 8)
    right_input: ClassVar[int] = 3
    bias_input: ClassVar[int | None] = 6
    requantized: ClassVar[int] = 3


class BlockQuantizedMatMul(MatrixProduct):
    """MatMulNBits and its kin: the right factor is packed in blocks; its true extents are attributes K and N."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("MatMulNBits", "MatMulBnb4")}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3, 4)
    bias_input: ClassVar[int | None] = 5

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Elements of A times N."""
        size, columns = extents.size(input_at(node, 0)), attributes.integer(node, "N", 0)
        return None if size is None or columns <= 0 else size * columns


FAMILIES = (
    MatrixProduct(),
    Gemm(),
    FusedMatMul(),
    IntegerMatMul(),
    IntegerMatMulToFloat(),
    DynamicQuantizeMatMul(),
    QuantizedMatMul(),
    QuantizedGemm(),
    BlockQuantizedMatMul(),
)
