"""Matrix products with a constant weight: MatMul and Gemm as one thing.

    y = α · x W + β c        x: (..., K) activations   W: (K, N)   c: what Gemm adds, None for MatMul

A weight is looked at as a matrix (N, K), one row per output column, which is how scales lie; it is read from the
model only when asked for.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import input_at
from graphopt_passes.rewriting import Site

PRODUCTS = frozenset({"MatMul", "Gemm"})
"""Operators of ONNX's own domain that are found here."""

_BROADCAST_SINCE = 7
"""Before this opset Gemm had an attribute that said how to broadcast."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A MatMul or Gemm whose second factor is a constant matrix.

    Attributes:
        node: the operator.
        data: the first factor.
        weight: the value of the second factor, (N, K) where `transposed`, else (K, N).
        transposed: whether Gemm transposes the weight.
        data_transposed: whether Gemm transposes the data.
        alpha: factor of the product.
        beta: factor of `added`.
        added: what Gemm adds.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    transposed: bool = False
    data_transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    added: ir.Value | None = None

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight as it is stored."""
        tensor = constant_tensor(self.weight)
        assert tensor is not None
        return tensor

    @property
    def extents(self) -> tuple[int, int]:
        """N outputs and K inputs."""
        first, second = self.tensor.shape.numpy()
        return (first, second) if self.transposed else (second, first)

    def rows(self) -> npt.NDArray[np.float32]:
        """The weight as (N, K) float32."""
        array = self.tensor.numpy().astype(np.float32)
        return array if self.transposed else array.T


def product(node: ir.Node, site: Site, types: frozenset[ir.DataType]) -> Product | str | None:
    """`node` as a product with a weight of one of `types`; why it is none that can be changed; None where it is no product.

    A product that already works on quantized numbers is nobody's business.
    """
    if node.domain != "" or node.op_type not in PRODUCTS:
        return None
    data, weight = input_at(node, 0), input_at(node, 1)
    if data is None or weight is None or _dequantized(weight):
        return None
    tensor = site.constant(weight)
    if tensor is None:
        return "its second factor is not constant"
    if _dequantized(data):
        return "its input is quantized already"
    if len(tensor.shape) != 2 or tensor.size == 0:
        return "its weight is not a matrix"
    if tensor.dtype not in types:
        return f"weights of type {tensor.dtype} are left alone"
    if weight.is_graph_output():
        return "its weight is an output of the graph"
    if node.op_type == "MatMul":
        return Product(node, data, weight)
    if site.opset < _BROADCAST_SINCE:
        return "the opset is too old"
    attributes = node.attributes
    return Product(
        node,
        data,
        weight,
        bool(attributes.get_int("transB", 0)),
        bool(attributes.get_int("transA", 0)),
        attributes.get_float("alpha", 1.0),
        attributes.get_float("beta", 1.0),
        input_at(node, 2),
    )


def _dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"
