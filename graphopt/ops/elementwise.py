"""Elementwise operators: every output element is computed from the elements at its own position.

`per_element` is the number of additions, products, comparisons and transcendental functions by the operator's
definition, where it is not one. Activations that onnxruntime computes in place say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops.base import MICROSOFT, Extents, IntegerForm, MacFree, output_at
from graphopt.ops.channels import Opaque, Trace, elementwise


class Broadcast(MacFree):
    """Operators whose operands are broadcast against each other.

    Attributes:
        scalars: indices of inputs that are single numbers rather than operands.
        alike: operators of other domains whose operands are broadcast as well.
    """

    scalars: ClassVar[tuple[int, ...]] = ()
    alike: ClassVar[frozenset[str]] = frozenset({"Gelu", "FastGelu", "QuickGelu", "BiasGelu"})

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Operands lose the same channels."""
        if node.domain != "" and node.op_type not in self.alike:
            raise Opaque(f"opaque operator {node.op_type}")
        elementwise(trace, [index for index in range(len(node.inputs)) if index not in self.scalars])

    def cut_through(self, node: ir.Node, rank: int, axis: int) -> Mapping[int, int] | None:
        """The same positions of every operand that has the axis."""
        if node.domain != "":
            return None
        axes: dict[int, int] = {}
        for index, value in enumerate(node.inputs):
            if value is None or index in self.scalars:
                continue
            if value.shape is None:
                return None
            if axis - rank + value.shape.rank() >= 0:
                axes[index] = axis - rank + value.shape.rank()
        return axes


class Elementwise(Broadcast):
    """What the elementwise families share."""

    per_element: ClassVar[Mapping[str, int]] = {}
    in_place: ClassVar[frozenset[str]] = frozenset()

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Output elements times operations per element."""
        size = extents.size(output_at(node, 0))
        return None if size is None else size * self.per_element.get(node.op_type, 1)

    def may_overwrite(self, node: ir.Node) -> tuple[int, ...]:
        """The input, where the kernel works in place."""
        return (0,) if node.op_type in self.in_place else ()


class Unary(Elementwise):
    """Functions of one number."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Cos", "Cosh", "Erf"),
            *("Exp", "Floor", "IsInf", "IsNaN", "Log", "Neg", "Not", "Reciprocal", "Round", "Sign", "Sin", "Sinh"),
            *("Sqrt", "Tan", "Cast", "CastLike"),
        ),
    }
    in_place: ClassVar[frozenset[str]] = frozenset({"Cast"})
    scalars: ClassVar[tuple[int, ...]] = (1,)  # of CastLike: its type alone matters


class Activation(Elementwise):
    """Nonlinearities, which onnxruntime mostly computes in place or fuses into the operator before them."""

    per_element: ClassVar[Mapping[str, int]] = {
        "Sigmoid": 4,
        "HardSigmoid": 4,
        "HardSwish": 5,
        "Swish": 5,
        "Mish": 5,
        "Elu": 3,
        "Celu": 5,
        "Selu": 4,
        "LeakyRelu": 2,
        "Softplus": 3,
        "Softsign": 3,
        "Clip": 2,
        "Shrink": 3,
        "Gelu": 5,
        "FastGelu": 9,
        "QuickGelu": 6,
        "BiasGelu": 6,
        "BiasSplitGelu": 7,
    }
    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("Relu", "LeakyRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Shrink", "Clip", "Sigmoid", "Tanh"),
            *("HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Gelu"),
        ),
        MICROSOFT: ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasSplitGelu"),
    }
    in_place: ClassVar[frozenset[str]] = frozenset(
        {
            *("Relu", "LeakyRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Shrink", "Clip"),
            *("Sigmoid", "Tanh", "HardSigmoid", "Softplus", "Softsign"),
        }
    )

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """A table of 256 entries, or none at all where the output's range clips by itself."""
        return IntegerForm() if node.domain == "" else None

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """One intermediate tensor of the activations that onnxruntime runs as functions of several nodes."""
        return (extents.size(output_at(node, 0)) or 0) if node.op_type in ("HardSwish", "Mish", "BiasGelu") else 0


class Binary(Elementwise):
    """Functions of two broadcast numbers, and gates."""

    per_element: ClassVar[Mapping[str, int]] = {"SwiGLU": 6, "PRelu": 2, "BiasAdd": 2}
    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "BitShift", "BitwiseAnd", "BitwiseOr"),
            *("BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "PRelu", "SwiGLU", "Where"),
        ),
        MICROSOFT: ("BiasAdd",),
    }

    def integer_form(self, node: ir.Node) -> IntegerForm | None:
        """Both operands have scales of their own, and so has the result."""
        return IntegerForm((0, 1)) if node.op_type in ("Add", "Sub", "Mul", "Div") else None


class Variadic(Broadcast):
    """Max, Mean, Min and Sum of any number of broadcast tensors."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Max", "Mean", "Min", "Sum")}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """One operation for each further operand, one more for the quotient of Mean."""
        size = extents.size(output_at(node, 0))
        operations = len(node.inputs) - 1 + int(node.op_type == "Mean")
        return None if size is None else size * operations


FAMILIES = (Unary(), Activation(), Binary(), Variadic())
