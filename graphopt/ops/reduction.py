"""Reductions: sums, extrema and norms over axes, running sums, losses and sorted selections.

They are counted per element of the input, because each is looked at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Extents, MacFree, input_at, output_at
from graphopt.ops.channels import Opaque, Trace, mixed, project


class Reduction(MacFree):
    """Reductions over axes, running sums, and losses."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin", "CumSum", "CumProd"),
            *("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        ),
        MICROSOFT: ("ReduceSumInteger",),
    }
    per_element: ClassVar[Mapping[str, int]] = {
        "ReduceL1": 2,
        "ReduceL2": 2,
        "ReduceLogSumExp": 2,
        "ReduceSumSquare": 2,
        "NegativeLogLikelihoodLoss": 2,
        "SoftmaxCrossEntropyLoss": 7,
    }

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """What is reduced is mixed; a running sum along an axis as well."""
        if node.domain != "" or node.op_type.endswith("Loss"):
            raise Opaque(f"opaque operator {node.op_type}")
        if node.op_type.startswith("Cum"):
            trace.put(0, mixed(trace, 0, trace.numbers(1).reshape(-1).tolist(), node.op_type))
            return
        labels = trace.labels(0)
        axes = [labels.axis(axis) for axis in self._axes(node, trace, labels.rank)]
        folded = project(trace, labels, axes, f"{node.op_type} over channels", mixing=True)
        trace.put(0, folded.reshaped(trace.output_dims()))

    def _axes(self, node: ir.Node, trace: Trace, rank: int) -> Sequence[int]:
        """The axes that are reduced: an attribute or an input, all by default."""
        if node.op_type.startswith("Arg"):
            return [attributes.integer(node, "axis", 0)]
        axes = attributes.integers(node, "axes")
        if axes is None and trace.has(1):
            axes = tuple(trace.numbers(1).tolist())
        if not axes:
            return [] if attributes.integer(node, "noop_with_empty_axes", 0) else range(rank)
        return axes

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Input elements times operations per element."""
        size = extents.size(input_at(node, 0))
        return None if size is None else size * self.per_element.get(node.op_type, 1)


class QuantizedReduction(Reduction):
    """QLinearReduceMean: data and result with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearReduceMean",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)


class Selection(MacFree):
    """TopK and Unique order their input: n log2 n comparisons, for TopK with a heap of k elements n log2 k."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("TopK", "Unique")}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Comparisons; each element is at least looked at once."""
        size = extents.size(input_at(node, 0))
        if size is None:
            return None
        kept: int | None = size
        if node.op_type == "TopK":
            kept = extents.size(output_at(node, 0))
        return None if kept is None else size * max(1, kept.bit_length())


class Determinant(MacFree):
    """Det by LU decomposition: 2/3 n³ operations per matrix."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Det",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Matrices times 2/3 n³."""
        dims, size = extents.dims(input_at(node, 0)), extents.size(input_at(node, 0))
        return None if not dims or size is None else size * 2 * dims[-1] // 3


FAMILIES = (Reduction(), QuantizedReduction(), Selection(), Determinant())
