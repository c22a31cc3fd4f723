"""Normalizations: statistics over some axes, then every element is shifted and scaled by them.

All of them are counted per element of the first output: passes over the data times one operation each.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Extents, IntegerForm, MacFree, input_at, output_at
from graphopt.ops.channels import Change, Labels, Opaque, Trace, channels, follow, mixed, project


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

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Parameters follow the channels; statistics over channels keep all of them."""
        rule = FLOWS.get(node.op_type) if node.domain == "" else None
        if rule is None:
            raise Opaque(f"opaque operator {node.op_type}")
        rule(node, trace)

    def shrink(self, node: ir.Node, change: Change) -> None:
        """The number of groups: those of which anything stays."""
        if node.op_type == "GroupNormalization":
            groups = attributes.integer(node, "num_groups", 1)
            change.set_attribute("num_groups", int(change.kept(0, 1).reshape(groups, -1).any(axis=1).sum()))

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

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Each channel sees its neighbours."""
        trace.put(0, mixed(trace, 0, [1], node.op_type))

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

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Elements along the axis are weighed against each other; before opset 13, along all axes from there on."""
        if node.domain != "":
            raise Opaque(f"opaque operator {node.op_type}")
        rank, old = len(trace.dims(0)), attributes.version(node) < 13
        axis = attributes.integer(node, "axis", 1 if old else -1) % max(rank, 1)
        trace.put(0, mixed(trace, 0, range(axis, rank) if old else [axis], node.op_type))

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


def _batch(node: ir.Node, trace: Trace) -> None:
    """Scale, shift, mean and variance per channel."""
    labels = trace.labels(0)
    along = channels(trace, labels, 1) if labels.rank > 1 else None
    for index in range(1, 5):
        if trace.has(index) and along is not None:
            trace.cut(index, {0: along})
    trace.put(0, labels)


def _instance(node: ir.Node, trace: Trace) -> None:
    """Statistics over everything but batch and channel."""
    labels = mixed(trace, 0, range(2, len(trace.dims(0))), node.op_type)
    # Where what differs within a channel goes as a whole, its parameters go with it.
    along = project(trace, labels, range(2, labels.rank), node.op_type)
    for index in (1, 2):
        trace.cut(index, {0: channels(trace, along, 1)})
    trace.put(0, labels)


def _group(node: ir.Node, trace: Trace) -> None:
    """Statistics over each group; parameters per group before opset 21, per channel since."""
    labels = trace.labels(0)
    groups = attributes.integer(node, "num_groups", 1)
    along = channels(trace, labels, 1)
    by_group = along.reshape(groups, -1)
    if groups < len(along):
        split = Labels.of(by_group.shape, by_group)
        whole = project(trace, split, [1], "GroupNormalization over channels", mixing=True)
        per_group = np.broadcast_to(whole.ids.reshape(-1), (groups,))
    else:
        per_group = along
    for index in (1, 2):
        trace.cut(index, {0: along if trace.dims(index) == (len(along),) else per_group})
    trace.put(0, labels)


def _over_axes(node: ir.Node, trace: Trace) -> None:
    """Statistics over all axes from `axis` on, where the parameters stand."""
    rank = len(trace.dims(0))
    axis = attributes.integer(node, "axis", -1) % max(rank, 1)
    labels = mixed(trace, 0, range(axis, rank), node.op_type)
    for index in range(1, len(node.inputs)):
        if trace.is_constant(index):
            follow(trace, index, labels)
        elif trace.has(index):
            raise Opaque("a normalization with computed parameters")
    trace.put(0, labels)


def _over_listed(node: ir.Node, trace: Trace) -> None:
    """MeanVarianceNormalization: by default over everything but channels."""
    trace.put(0, mixed(trace, 0, attributes.integers(node, "axes") or (0, 2, 3), node.op_type))


def _norm(node: ir.Node, trace: Trace) -> None:
    """LpNormalization along one axis."""
    trace.put(0, mixed(trace, 0, [attributes.integer(node, "axis", -1)], node.op_type))


FLOWS = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "LayerNormalization": _over_axes,
    "RMSNormalization": _over_axes,
    "SimplifiedLayerNormalization": _over_axes,
    "MeanVarianceNormalization": _over_listed,
    "LpNormalization": _norm,
}

FAMILIES = (Normalization(), LocalResponse(), Softmax(), QuantizedSoftmax())
