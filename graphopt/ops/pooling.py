"""Pooling: a window slides over the input and each output element looks at all of it.

The work is window elements times what the reduction does per element; padding is counted as if it were data.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Extents, IntegerForm, MacFree, input_at, output_at
from graphopt.ops.channels import Labels, Opaque, Trace, channels, project


class Pool(MacFree):
    """MaxPool, AveragePool and LpPool over a sliding window."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("MaxPool", "AveragePool", "LpPool"),
        MICROSOFT: ("NhwcMaxPool", "MaxpoolWithMask"),
    }
    # A comparison or an addition; a power and an addition.
    per_element: ClassVar[Mapping[str, int]] = {"LpPool": 2}

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Windows lie within channels; positions of maxima count elements over all channels, so that all stay."""
        if node.domain != "":
            raise Opaque(f"opaque operator {node.op_type}")
        labels = trace.labels(0)
        if trace.outputs() > 1:
            trace.pin(labels.ids, "the positions of maxima are counted over all channels")
        spatial = range(2, labels.rank)
        trace.put(
            0,
            project(trace, labels, spatial, f"{node.op_type} over channels", mixing=True).expanded(trace.output_dims()),
        )

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """The largest number is one of the input's, an average is not."""
        if node.domain != "" or node.op_type == "LpPool" or len(node.outputs) > 1:
            return None
        return IntegerForm(same_scale=node.op_type == "MaxPool")

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Output elements x window x operations per element."""
        window, size = attributes.integers(node, "kernel_shape"), extents.size(output_at(node, 0))
        if window is None or size is None:
            return None
        return size * prod(window) * self.per_element.get(node.op_type, 1)


class QuantizedPool(Pool):
    """QLinearAveragePool: X and Y with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearAveragePool",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)


class GlobalPool(MacFree):
    """The pools whose window is the whole image."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")}
    per_element: ClassVar[Mapping[str, int]] = {"GlobalLpPool": 2}

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Channels lose their spatial axes."""
        labels = trace.labels(0)
        folded = project(trace, labels, range(2, labels.rank), f"{node.op_type} over channels", mixing=True)
        trace.put(0, folded.expanded(trace.output_dims()))

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """The largest number is one of the input's, an average is not."""
        if node.op_type not in ("GlobalAveragePool", "GlobalMaxPool"):
            return None
        return IntegerForm(same_scale=node.op_type == "GlobalMaxPool")

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Input elements x operations per element."""
        size = extents.size(input_at(node, 0))
        return None if size is None else size * self.per_element.get(node.op_type, 1)


class QuantizedGlobalPool(GlobalPool):
    """QLinearGlobalAveragePool: X and Y with scales and zero points."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QLinearGlobalAveragePool",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)


class RegionPool(MacFree):
    """RoiAlign: each output element averages `sampling_ratio`² bilinear samples."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("RoiAlign",)}

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Regions are cut out of every channel."""
        for index in (1, 2):
            trace.pin(trace.labels(index).ids, "positions of regions")
        trace.put(0, Labels.along(trace.output_dims(), 1, channels(trace, trace.labels(0), 1)))

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Eight per sample (4 products, 3 sums, 1 to pool); unknown where the ratio follows the region's size."""
        ratio, size = attributes.integer(node, "sampling_ratio", 0), extents.size(output_at(node, 0))
        return None if ratio <= 0 or size is None else size * ratio**2 * 8


FAMILIES = (Pool(), QuantizedPool(), GlobalPool(), QuantizedGlobalPool(), RegionPool())
