"""Weight-only quantization: weights are integers of 4 or 8 bits in blocks, arithmetic stays float.

    W_q (K, N) -> DequantizeLinear(scale (⌈K/B⌉, N), axis=0, block_size=B) -> MatMul(x, W)

No data is needed, and models whose time goes into reading weights get faster. This is the form that onnxruntime turns
into one MatMulNBits (DQMatMulToMatMulNBits in its QDQ selectors): blocks along axis 0, a matrix (K, N) that nothing else
reads, B a power of two from 16 on; K need not be a multiple of B. It does not know transposed weights, so that those of
Gemm are stored the other way round. Tables that Gather reads stand in `tables`.

A weight that several nodes read stays one weight, behind one DequantizeLinear. That is smaller, but onnxruntime fuses no
such pair and restores the float weight in every run.

Measured with onnxruntime 1.32 on AVX512-VNNI, one thread, 768 x 3072 against float: 4 bits, B = 128 .16 with one row
and .38 with 128 rows, B = 32 .25 and .58; 8 bits, B = 32 .43 and .66. A zero point costs a few percent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, Remark
from graphopt_passes.numerics.blockwise import quantize, ranges, sums
from graphopt_passes.numerics.quantizer import S4_SYMMETRIC, S8_SYMMETRIC, U4, U8, Array, Grid
from graphopt_passes.quantization import tables
from graphopt_passes.quantization.node_by_node import NodeByNode
from graphopt_passes.quantization.products import PRODUCTS, Product, product
from graphopt_passes.rewriting import Site

SINCE = 21
"""The opset from which on DequantizeLinear knows blocks and 4-bit types."""

_IR_VERSION = 10
"""The first one with 4-bit types."""

_SMALLEST = 1024
"""Elements from which on a weight is worth a node."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})

Tensor: TypeAlias = ir.TensorProtocol | np.ndarray[Any, Any]

_GRIDS = {
    (4, True): (S4_SYMMETRIC, ir.DataType.INT4),
    (4, False): (U4, ir.DataType.UINT4),
    (8, True): (S8_SYMMETRIC, ir.DataType.INT8),
    (8, False): (U8, ir.DataType.UINT8),
}


class RoundWeights(Protocol):
    """Rounding that knows more than the weight itself."""

    def __call__(
        self, node: ir.Node, weight: Array, scale: Array, zero_point: Array, block: int, grid: Grid
    ) -> Array | None:
        """The integers of a weight.

        Args:
            node: the product that reads it.
            weight: (N, K) float32.
            scale: (N, ⌈K/B⌉).
            zero_point: (N, ⌈K/B⌉), of the grid's storage type.
            block: B.
            grid: the integers.

        Returns:
            (N, K) integers of `grid`; None to round to nearest.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Form:
    """How weights are stored.

    Attributes:
        bits: 4 or 8.
        block: inputs that share a scale; a power of two from 16 on.
        symmetric: whether there is no zero point.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = False

    @property
    def grid(self) -> Grid:
        """The integers."""
        return _GRIDS[self.bits, self.symmetric][0]

    @property
    def dtype(self) -> ir.DataType:
        """Their element type."""
        return _GRIDS[self.bits, self.symmetric][1]

    def __str__(self) -> str:
        return f"{self.bits} bits, blocks of {self.block}, {'symmetric' if self.symmetric else 'asymmetric'}"


_DEFAULT = Form()


@dataclasses.dataclass
class _Sums:
    """What the weights of all products together have come to."""

    count: int = 0
    before: int = 0
    after: int = 0
    signal: float = 0.0
    noise: float = 0.0
    worst: tuple[float, str] = (math.inf, "")

    def add(self, where: str, before: int, after: Iterable[Tensor], signal: float, noise: float) -> None:
        """Count one weight: bytes before, tensors after, and squared numbers and errors."""
        self.count += 1
        self.before += before
        self.after += sum(tensor.nbytes for tensor in after)
        self.signal += signal
        self.noise += noise
        self.worst = min(self.worst, (_decibels(signal, noise), where))

    def __str__(self) -> str:
        size = f"{self.before:,} bytes become {self.after:,}"
        found, least = (f"{number:.1f} dB" for number in (_decibels(self.signal, self.noise), self.worst[0]))
        return f"{size}, SQNR of the weights {found}, least {least} at {self.worst[1]}"


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal and noise else math.inf


def apply(
    model: ir.Model,
    context: PassContext,
    form: Form = _DEFAULT,
    *,
    embeddings: bool = True,
    round_weights: RoundWeights | None = None,
    only: Callable[[ir.Node], bool] | None = None,
) -> tuple[list[ir.Node], tuple[Remark, ...]]:
    """Quantize the constant weights of MatMul, Gemm and Gather in blocks, in place.

    Args:
        model: its opset must be `SINCE` or newer; what is older is left alone with a remark. Its IR version is raised to
            the first one with 4-bit types.
        context: says which nodes are excluded.
        form: how weights are stored.
        embeddings: whether tables of Gather are quantized, too: those of 8 bits with a scale per row, those of 4 bits
            with a scale and a zero point per block of a row.
        round_weights: rounds in place of rounding to nearest.
        only: which nodes may be quantized; None for all.

    Returns:
        The nodes that are new or changed, and remarks.
    """
    run = _WeightOnly(model, context, form, embeddings, round_weights, only)
    touched = run.run()
    if touched:
        model.ir_version = max(model.ir_version, _IR_VERSION)
    return touched, (*run.summary(), *run.remarks.listed())


class _WeightOnly(NodeByNode):
    def __init__(
        self,
        model: ir.Model,
        context: PassContext,
        form: Form,
        embeddings: bool,
        round_weights: RoundWeights | None,
        only: Callable[[ir.Node], bool] | None,
    ) -> None:
        super().__init__(model, context, only)
        self.form = form
        self.embeddings = embeddings
        self.round_weights = round_weights
        self.restored: dict[tuple[ir.Graph, ir.Value], ir.Value] = {}
        self.shared: set[ir.Value] = set()
        self.sums = _Sums()

    def rewrite(self, node: ir.Node, site: Site) -> Sequence[ir.Node] | str | None:
        """See `NodeByNode`."""
        table = tables.table(node, site, frozenset({ir.DataType.FLOAT})) if self.embeddings else None
        if isinstance(table, str):
            return table
        if table is not None:
            return self.table(node, table, site)
        found = product(node, site, _FLOATS)
        if found is None or isinstance(found, str):
            return found
        return self.product(found, site)

    def table(self, node: ir.Node, value: ir.Value, site: Site) -> Sequence[ir.Node] | str:
        """Let `node` gather integers."""
        if self.form.bits == 8:
            self.remarks.applied(label(node), "rows in 8 bits")
            return tables.gather_8_bits(node, value, site, self.derived)
        made = tables.gather_4_bits(node, value, self.form.block, site, self.derived)
        if not isinstance(made, str):
            self.remarks.applied(label(node), f"rows in 4 bits, blocks of {self.form.block}")
        return made

    def product(self, found: Product, site: Site) -> Sequence[ir.Node] | str:
        """Let a product read its weight from a DequantizeLinear."""
        if found.tensor.size < _SMALLEST:
            return f"its weight has fewer than {_SMALLEST} elements"
        if site.opset < SINCE:
            return f"blocks need opset {SINCE}"
        readers = found.weight.uses()
        others = next((use.node for use in readers if not self.reads_alike(use.node, found)), None)
        if others is not None:
            return f"its weight is also read by {label(others)}"
        if len(readers) > 1:
            self.shared.add(found.weight)
        if found.weight in self.shared:
            self.remarks.applied(label(found.node), "shares its weight, which onnxruntime restores in every run")
        return self.restore(found, site)

    def reads_alike(self, node: ir.Node, found: Product) -> bool:
        """Whether `node` is a product that reads the weight of `found` in the same way and may be changed."""
        if node is found.node:
            return True
        if self.context.excluded(node) or not self.allowed(node):
            return False
        transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        second = len(node.inputs) > 1 and node.inputs[1] is found.weight and node.inputs[0] is not found.weight
        return node.domain == "" and node.op_type in PRODUCTS and second and transposed == found.transposed

    # --- Parts

    def restore(self, found: Product, site: Site) -> list[ir.Node]:
        """Let `found` read its weight from a DequantizeLinear, one for all readers in its graph."""
        node, key, new = found.node, (site.graph, found.weight), []
        values = self.derived.get(found.weight, (self.form, found.transposed), lambda: self.quantized(found))
        if key not in self.restored:
            attributes = {"axis": 0, "block_size": self.form.block}
            new.append(site.new_node("DequantizeLinear", values, found.weight, node, attributes))
            outputs, inputs = found.extents
            new[0].outputs[0].shape = ir.Shape([inputs, outputs])
            self.restored[key] = new[0].outputs[0]
        site.set_inputs(node, [node.inputs[0], self.restored[key], *node.inputs[2:]])
        if found.transposed:
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
        return [*new, node]

    def quantized(self, found: Product) -> dict[str, Tensor]:
        """The weight (K, N) in integers, scales (⌈K/B⌉, N), and zero points like these where there are any."""
        form, rows = self.form, found.rows()
        dtype = found.tensor.dtype
        scale, zero_point = ranges(rows, form.block, form.grid, dtype.numpy())
        if not np.isfinite(scale).all():
            raise ValueError("a weight is not finite")
        integers = None
        if self.round_weights is not None:
            integers = self.round_weights(found.node, rows, scale, zero_point, form.block, form.grid)
        if integers is None:
            integers = quantize(rows, scale, zero_point, form.block, form.grid)
        made: dict[str, Tensor] = {"quantized": _stored(integers.T, form.dtype), "scale": np.ascontiguousarray(scale.T)}
        if not form.symmetric:
            made["zero_point"] = _stored(zero_point.T, form.dtype)
        self.sums.add(
            label(found.node), found.tensor.nbytes, made.values(), *sums(rows, scale, zero_point, integers, form.block)
        )
        return made

    def summary(self) -> Iterator[Remark]:
        """What all weights of products together have come to."""
        if self.sums.count:
            yield Remark(f"{self.sums.count} weights", f"stored in {self.form}: {self.sums}", applied=True)


def _stored(array: Array, dtype: ir.DataType) -> ir.TensorProtocol:
    """Integers as a tensor of `dtype`, packed where it has fewer than 8 bits: two in a byte, the first one low."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype.bitwidth == 8:
        return ir.Tensor(flat.astype(dtype.numpy()).reshape(array.shape))
    halves = np.append(flat, np.zeros(flat.size % 2, flat.dtype)).astype(np.uint8) & 0xF
    return ir.PackedTensor(halves[0::2] | halves[1::2] << 4, dtype, shape=array.shape)
