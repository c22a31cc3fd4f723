"""The operator table: all families, and the family of each operator by domain and name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from graphopt.ops import (
    attention,
    control,
    convolution,
    einsum,
    elementwise,
    generation,
    matmul,
    movement,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    resampling,
    signal,
)
from graphopt.ops.base import Operator

FAMILIES: tuple[Operator, ...] = (
    *convolution.FAMILIES,
    *matmul.FAMILIES,
    *einsum.FAMILIES,
    *recurrent.FAMILIES,
    *attention.FAMILIES,
    *pooling.FAMILIES,
    *normalization.FAMILIES,
    *elementwise.FAMILIES,
    *reduction.FAMILIES,
    *movement.FAMILIES,
    *resampling.FAMILIES,
    *generation.FAMILIES,
    *signal.FAMILIES,
    *quantized.FAMILIES,
    *control.FAMILIES,
)

BY_NAME: Mapping[tuple[str, str], Operator] = MappingProxyType(
    {
        (domain, op_type): family
        for family in FAMILIES
        for domain, op_types in family.op_types.items()
        for op_type in op_types
    }
)

KNOWINGLY_OPAQUE: frozenset[str] = frozenset(
    {
        # The work depends on the data: overlaps of boxes, sizes of regions.
        *("NonMaxSuppression", "MaxRoiPool"),
        # Decoders and operators on strings: their work has no measure in operations on numbers.
        *("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    }
)
"""Operators of ai.onnx that are left out of the table on purpose."""
