"""What an operator says about itself, and the table that finds it.

One class per operator family holds everything the compiler knows about it; adding an operator touches one file in
this package. An operator that is not in the table is *opaque*: its cost is unknown and it is left alone, which is
always safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import ClassVar, Protocol

import onnx_ir as ir

from graphopt.ops.channels import Change, Opaque, Trace

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators, which its fusions and its quantizer write into models."""


class Extents(Protocol):
    """Concrete extents of values: symbolic dims are bound (see `graphopt.analysis.shapes`)."""

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Extents of a tensor, or None where its shape is not known."""
        ...

    def size(self, value: ir.Value | None) -> int | None:
        """Number of elements of a tensor, or None where its shape is not known."""
        ...


@dataclasses.dataclass(frozen=True)
class IntegerForm:
    """How a node computes on quantized numbers; whether a runtime has such a kernel is the target's to say.

    Attributes:
        data: indices of the inputs that are quantized numbers.
        weight: which of them is a weight where it is constant.
        channel_axis: the axis of the weight along which each slice may have a scale of its own: the output channels.
        bias: index of the input that is added to the int32 sums.
        same_scale: whether the output's numbers are numbers of the input, so that both have one scale.
    """

    data: tuple[int, ...] = (0,)
    weight: int | None = None
    channel_axis: int | None = None
    bias: int | None = None
    same_scale: bool = False


class Operator:
    """An opaque operator, and the base of all known families.

    `macs` counts the multiply-accumulates of convolution- and matmul-like operators; `flops` counts 2 per MAC plus
    everything else (additions, comparisons and transcendental functions count one each per element), in floating point
    or in integers. None means unknown, never zero.

    Attributes:
        op_types: the members of the family, by domain ("" is ai.onnx).
        quantization_parameters: indices of the inputs that hold scales and zero points. Where it is not empty, the
            other integer inputs are quantized numbers.
    """

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    quantization_parameters: ClassVar[tuple[int, ...]] = ()

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Multiply-accumulates of one run of `node`, or None where they are not known."""
        return None

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Operations of one run of `node`, or None where they are not known."""
        return None

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """How `node` computes on quantized numbers; None where it does not, or is not known to."""
        return None

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Lead labels of channels from the inputs of `node` to its outputs. Raises Opaque where that cannot be told."""
        raise Opaque(f"opaque operator {node.op_type}")

    def shrink(self, node: ir.Node, change: Change) -> None:
        """Bring attributes, extents and positions of `node` up to date once channels are gone; constants are cut."""

    def cut_through(self, node: ir.Node, rank: int, axis: int) -> Mapping[int, int] | None:
        """The inputs, and their axes, that must be cut for the output of `node` to lose positions along an axis.

        Args:
            node: a node of this family, all inputs of which are constant.
            rank: of its output.
            axis: of its output, counted from the front.

        Returns:
            None where no cut of the inputs does just that, or it cannot be told. Inputs whose extent along that axis is
            1 are named too, and need no cut.
        """
        return None

    def view_of(self, node: ir.Node) -> int | None:
        """Index of the input of which output 0 is a view that moves no data (Reshape, Identity ...), or None."""
        return None

    def may_overwrite(self, node: ir.Node) -> tuple[int, ...]:
        """Indices of the inputs whose buffer output 0 may take over where nothing else reads them.

        These are what onnxruntime's CPU kernels do, not what they could do: Relu writes in place, Add does not.
        """
        return ()

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """Elements, as wide as output 0's, that onnxruntime's CPU kernel allocates while it runs; 0 if not known.

        Args:
            node: a node of this family.
            extents: concrete extents of its values.
            integer: whether it runs on 8-bit integers although the node itself is one on floats, because it stands
                between DequantizeLinear and QuantizeLinear.
        """
        return 0


class MacFree(Operator):
    """A family that multiplies and accumulates nothing; subclasses say what else it computes."""

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Zero."""
        return 0


class Contraction(Operator):
    """A family whose work is multiply-accumulates."""

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Two per MAC, and what comes on top of them."""
        macs = self.macs(node, extents)
        rest = self.other_flops(node, extents)
        return None if macs is None or rest is None else 2 * macs + rest

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Operations beyond the multiply-accumulates: a bias, a Softmax. None where they are not known."""
        return 0


OPAQUE = Operator()


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of `node`; None where it is left out, by an empty name or at the end."""
    return node.inputs[index] if index < len(node.inputs) else None


def output_at(node: ir.Node, index: int) -> ir.Value | None:
    """Output `index` of `node`; None where the node does not have it."""
    return node.outputs[index] if index < len(node.outputs) else None


def families() -> Iterator[Operator]:
    """Every operator family of the table, once."""
    return iter(dict.fromkeys(_by_name().values()))


def operator(node: ir.Node) -> Operator:
    """The family that `node` belongs to; the opaque operator where the table does not know it."""
    return _by_name().get((node.domain, node.op_type), OPAQUE)


@cache
def _by_name() -> Mapping[tuple[str, str], Operator]:
    from graphopt.ops import table  # here, because the families are built on this module

    return table.BY_NAME
