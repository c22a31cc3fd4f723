"""Resampling: output elements are interpolated between input elements.

Linear interpolation over d axes costs 2^d products and 2^d - 1 sums per output element, cubic 4^d and 4^d - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Extents, IntegerForm, MacFree, input_at, output_at
from graphopt.ops.channels import Change, Labels, Opaque, Trace, channels, project

_TAPS = {"linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}


def _interpolation(mode: str, axes: int) -> int:
    """Operations per output element; nearest neighbours are copied."""
    taps = _TAPS.get(mode)
    return 0 if taps is None or axes == 0 else 2 * taps**axes - 1


class Resize(MacFree):
    """Resize and Upsample interpolate along the axes whose extent changes."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Resize", "Upsample")}

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Axes whose extent changes are mixed, the others pass."""
        labels, dims = trace.labels(0), trace.output_dims()
        resized = [axis for axis, extent in enumerate(dims) if extent != labels.dims[axis]]
        trace.put(0, project(trace, labels, resized, "resized along channels", mixing=True).expanded(dims))

    def shrink(self, node: ir.Node, change: Change) -> None:
        """Entries of `sizes` whose extent changed."""
        if input_at(node, 3) is None:
            return
        rank = len(change.before(0))
        axes = [axis % rank for axis in attributes.integers(node, "axes") or range(rank)]
        kept = [change.output_kept(0, axis) for axis in axes]
        change.set_numbers(3, {i: int(mask.sum()) for i, mask in enumerate(kept) if not mask.all()})

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """Nearest neighbours are numbers of the input; what lies between them is rounded to such; cubic may lie outside."""
        if attributes.text(node, "mode", "nearest") == "cubic":
            return None
        mode = attributes.text(node, "coordinate_transformation_mode", "half_pixel")
        return None if mode == "tf_crop_and_resize" else IntegerForm(same_scale=True)

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Output elements times the cost of interpolation."""
        before, after = extents.dims(input_at(node, 0)), extents.dims(output_at(node, 0))
        size = extents.size(output_at(node, 0))
        if before is None or after is None or size is None or len(before) != len(after):
            return None
        axes = sum(a != b for a, b in zip(before, after, strict=True))
        return size * _interpolation(attributes.text(node, "mode", "nearest"), axes)


class GridSample(MacFree):
    """GridSample interpolates over all spatial axes at the positions of a grid."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("GridSample",), MICROSOFT: ("GridSample",)}

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Every channel is sampled at the same positions."""
        if node.domain != "":
            raise Opaque(f"opaque operator {node.op_type}")
        trace.pin(trace.labels(1).ids, "positions to sample at")
        trace.put(0, Labels.along(trace.output_dims(), 1, channels(trace, trace.labels(0), 1)))

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Output elements times the cost of interpolation."""
        dims, size = extents.dims(input_at(node, 0)), extents.size(output_at(node, 0))
        if dims is None or size is None or len(dims) < 3:
            return None
        return size * _interpolation(attributes.text(node, "mode", "linear"), len(dims) - 2)


class AffineGrid(MacFree):
    """AffineGrid maps every position of a grid by a matrix: d products and d sums per coordinate of the output."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("AffineGrid",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Coordinates times twice their number per position."""
        dims, size = extents.dims(output_at(node, 0)), extents.size(output_at(node, 0))
        return None if not dims or size is None else size * 2 * dims[-1]


FAMILIES = (Resize(), GridSample(), AffineGrid())
