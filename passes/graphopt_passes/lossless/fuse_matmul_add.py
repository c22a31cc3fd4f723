"""MatMul and Add on matrices as Gemm.

    A B + C           ->  Gemm(A, B, C)            A: (M, K)   B: (K, N)   C broadcasts to (M, N) and not further
    Gemm(A, B) + C    ->  Gemm(A, B, C)
    Aᵀ B, A Bᵀ        ->  Gemm with transA, transB, where a Transpose that nothing else reads goes

Gemm takes matrices only: both factors must be known to have two axes. In onnxruntime it takes as long as MatMul and
Add, which are fused to it anyway (1 x 64 x 10 to 512 x 512 x 512: ratios of .98 to 1.01), so what decides is that there
are fewer nodes. Quantized factors are left alone: MatMul is what integer kernels are found by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.analysis.dims import Dims
from graphopt_passes.lossless import extents
from graphopt_passes.lossless.linear_operators import BROADCAST_SINCE, FLOATS
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_BFLOAT16_SINCE = 13
_WITHOUT_C_SINCE = 11


@dataclasses.dataclass(frozen=True)
class FuseMatMulAdd(RulePass):
    """Replace MatMul and Add of matrices by Gemm."""

    name: ClassVar[str] = "fuse-matmul-add"

    def rules(self) -> Sequence[Rule]:
        """The rules."""
        return [_Sum(), _Transposed()]


class _Sum(Rule):
    """A B + C."""

    roots = frozenset({"Add"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Let a Gemm compute the sum and the product before it."""
        for product, summand in (node.inputs, reversed(node.inputs)):
            factors = site.producer(product, "MatMul", "Gemm")
            if product is None or factors is None or site.only_reader(product) is not node or summand is product:
                continue
            attributes = None if any(factors.inputs[2:]) else _as_gemm(factors, site)
            if attributes is None:
                continue
            if not extents.broadcasts_into(extents.dims(summand), _product_dims(factors, attributes)):
                return "kept: what is added has more elements than the product, or its extents are not known"
            attributes.pop("beta", None)
            gemm = site.new_node("Gemm", [*factors.inputs[:2], summand], node.outputs[0], node, attributes)
            readers = site.replace(node, gemm.outputs[0])
            site.remove(factors)
            return Done("fused into a Gemm", (gemm, *readers))
        return None


class _Transposed(Rule):
    """Aᵀ B and A Bᵀ."""

    roots = frozenset({"MatMul", "Gemm"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Let `node` transpose by itself."""
        for index, name in enumerate(("transA", "transB")):
            value = node.inputs[index]
            transpose = site.producer(value, "Transpose")
            if value is None or transpose is None or site.only_reader(value) is not node:
                continue
            attributes = _as_gemm(node, site)
            if attributes is None or tuple(transpose.attributes.get_ints("perm", (1, 0))) != (1, 0):
                continue
            if site.opset < _WITHOUT_C_SINCE and len(node.inputs) < 3:
                continue
            attributes[name] = 1 - attributes.get(name, 0)
            inputs = list(node.inputs)
            inputs[index] = transpose.inputs[0]
            gemm = site.new_node("Gemm", inputs, node.outputs[0], node, attributes)
            readers = site.replace(node, gemm.outputs[0])
            site.remove(transpose)
            return Done("transposes by itself, as a Gemm", (gemm, *readers))
        return None


def _as_gemm(node: ir.Node, site: Site) -> dict[str, Any] | None:
    """The attributes of a Gemm that computes what `node` does; None where none can."""
    a, b = node.inputs[:2]
    if a is None or b is None or site.opset < BROADCAST_SINCE or a.dtype not in FLOATS:
        return None
    if a.dtype == ir.DataType.BFLOAT16 and site.opset < _BFLOAT16_SINCE:
        return None
    if any(site.producer(factor, "DequantizeLinear") is not None for factor in (a, b)):
        return None
    if node.op_type == "Gemm":
        return {name: attribute.value for name, attribute in node.attributes.items()}
    return {} if extents.rank(a) == extents.rank(b) == 2 else None


def _product_dims(node: ir.Node, attributes: dict[str, Any]) -> Dims:
    """The extents of the product that `node` computes."""
    a, b = extents.dims(node.inputs[0]), extents.dims(node.inputs[1])
    rows = None if a is None else a[1 if attributes.get("transA", 0) else 0]
    columns = None if b is None else b[0 if attributes.get("transB", 0) else 1]
    return rows, columns
