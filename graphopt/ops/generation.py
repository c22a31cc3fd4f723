"""Operators that make tensors from little: constants, ranges, random numbers, and facts about shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops.base import MICROSOFT, Extents, MacFree, output_at
from graphopt.ops.channels import Trace


class _WithoutChannels(MacFree):
    """Operators whose outputs hold none of the channels of their inputs, whatever these are."""

    def flow(self, node: ir.Node, trace: Trace) -> None:
        """Nothing comes through."""


class Generator(_WithoutChannels):
    """Tensors that are filled or stated, not computed."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("Constant", "ConstantOfShape", "EyeLike", "OneHot", "Shape", "Size"),
    }

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Zero."""
        return 0


class Sequence(_WithoutChannels):
    """Tensors of which each element is computed or drawn."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (
            *("Range", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"),
            *("Multinomial", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
        ),
        MICROSOFT: ("Range",),
    }
    # Windows are sums of one or two scaled cosines.
    per_element: ClassVar[Mapping[str, int]] = {
        "BlackmanWindow": 8,
        "HammingWindow": 4,
        "HannWindow": 4,
        "MelWeightMatrix": 4,
    }

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Output elements times operations per element."""
        size = extents.size(output_at(node, 0))
        return None if size is None else size * self.per_element.get(node.op_type, 1)


FAMILIES = (Generator(), Sequence())
