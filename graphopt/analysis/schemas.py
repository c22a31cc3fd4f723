"""The ONNX operator schemas, looked up once per operator and version."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx
import onnx.defs

DEFAULT_DOMAINS = ("", "ai.onnx")

RUNTIME_ONLY = frozenset(
    {
        "Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler", "LayerNormalization",
        "MeanVarianceNormalization", "ParametricSoftplus", "Scale", "ScaledTanh", "SimplifiedLayerNormalization",
        "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators that onnxruntime itself defines in ONNX's domain, some of them for opsets older than ONNX's definition."""


def normalized(domain: str) -> str:
    """The one spelling of a domain: `ai.onnx` is the default domain."""
    return "" if domain in DEFAULT_DOMAINS else domain


@functools.cache
def schema(domain: str, op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """The schema of an operator at an opset version, or None where ONNX does not define it."""
    try:
        return onnx.defs.get_schema(op_type, version, normalized(domain))
    except onnx.defs.SchemaError:
        return None


@functools.cache
def defined_domains() -> frozenset[str]:
    """The domains whose operators ONNX defines; an operator of any other domain is a custom operator."""
    return frozenset(entry.domain for entry in onnx.defs.get_all_schemas())  # a tenth of all versions


def opset_version(imports: Mapping[str, int], domain: str) -> int | None:
    """The version of `domain` that a model or function imports, whichever way the default domain is spelled."""
    if domain in DEFAULT_DOMAINS:
        return next((imports[name] for name in DEFAULT_DOMAINS if name in imports), None)
    return imports.get(domain)
