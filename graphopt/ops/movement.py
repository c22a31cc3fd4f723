"""Data movement: elements change place, shape or container, and nothing is computed.

Some of it moves nothing at all: the output of Reshape and its kin is a view of the input's buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops import moves, origins
from graphopt.ops.base import MICROSOFT, Extents, IntegerForm, MacFree, input_at, output_at
from graphopt.ops.channels import Change, Opaque, Trace


class Movement(MacFree):
    """Copies: layout, selection and assembly of tensors."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("Transpose", "Concat", "Split", "Slice", "Pad", "Tile", "Expand", "Gather", "GatherElements", "GatherND"),
            *("DepthToSpace", "SpaceToDepth", "ReverseSequence", "CenterCropPad", "Compress", "NonZero", "MaxUnpool"),
        ),
        MICROSOFT: ("Trilu", "Pad", "GatherND", "ExpandDims", "RemovePadding", "RestorePadding"),
    }

    elementwise_copies: ClassVar[frozenset[str]] = frozenset(
        {
            *("Transpose", "Concat", "Split", "Slice", "Tile", "Expand", "Gather", "GatherElements", "GatherND"),
            *("DepthToSpace", "SpaceToDepth", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        }
    )
    """Operators of the standard domain whose outputs hold numbers of the data and nothing else."""

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Moves labels as it moves numbers."""
        rule = moves.FLOWS.get(node.op_type) if node.domain == "" else None
        if rule is None:
            raise Opaque(f"opaque operator {node.op_type}")
        rule(node, trace)

    def shrink(self, node: ir.Node, change: Change) -> None:
        """Extents and positions that changed."""
        rule = moves.SHRINKS.get(node.op_type) if node.domain == "" else None
        if rule is not None:
            rule(node, change)

    def cut_through(self, node: ir.Node, rank: int, axis: int) -> Mapping[int, int] | None:
        """Of Identity the same axis, of Transpose and of views the one that it came from."""
        rule = origins.ORIGINS.get(node.op_type) if node.domain == "" else None
        origin = None if rule is None else rule(node, rank, axis)
        return None if origin is None else {0: origin}

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """Moves integers as it moves numbers."""
        if node.domain != "" or not (node.op_type in self.elementwise_copies or _pads_with_zeros(node)):
            return None
        data = tuple(range(len(node.inputs))) if node.op_type == "Concat" else (0,)
        return IntegerForm(data, same_scale=True)

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Zero."""
        return 0


def _pads_with_zeros(node: ir.Node) -> bool:
    """Whether `node` is a Pad whose new elements are zeros, which every quantized range has, or copies."""
    if node.op_type != "Pad" or "value" in node.attributes:
        return False
    value = input_at(node, 2)
    tensor = constant_tensor(value)
    return value is None or (tensor is not None and tensor.size == 1 and not np.any(tensor.numpy()))


class View(Movement):
    """Reshapes: the output is the input's buffer under other extents (Dropout: at inference)."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Identity",
            "Dropout",
            "BitCast",
            "Optional",
            "OptionalGetElement",
        )
    }

    def view_of(self, node: ir.Node) -> int | None:
        """The data."""
        return 0 if input_at(node, 0) is not None else None


class Overwriting(Movement):
    """Updates of a part of the data, which may be done in place."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("Scatter", "ScatterElements", "ScatterND", "TensorScatter", "Trilu"),
    }
    in_place: ClassVar[frozenset[str]] = frozenset({"ScatterElements", "Trilu"})

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """One per update, where updates may be added or multiplied."""
        if node.attributes.get("reduction") is None:
            return 0
        return extents.size(input_at(node, 2))

    def may_overwrite(self, node: ir.Node) -> tuple[int, ...]:
        """The data."""
        return (0,) if node.op_type in self.in_place else ()


class Overlay(MacFree):
    """Col2Im adds overlapping patches up."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Col2Im",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """One addition per element of the patches."""
        return extents.size(input_at(node, 0))


class BlockQuantizedGather(MacFree):
    """GatherBlockQuantized: rows of a block-quantized table, dequantized."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("GatherBlockQuantized",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (2, 3)

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """A difference and a product per output element."""
        size = extents.size(output_at(node, 0))
        return None if size is None else 2 * size


class Container(Movement):
    """Sequences and optionals: tensors are put into containers and taken out."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
            *("SplitToSequence", "ConcatFromSequence", "OptionalHasElement"),
        ),
    }


FAMILIES = (Movement(), View(), Overwriting(), Overlay(), BlockQuantizedGather(), Container())
