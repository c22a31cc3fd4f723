"""What each runtime wants of a quantized model, as data.

A target says which operators have integer kernels, of which types their numbers are, which activations a kernel absorbs
into its output's range, and which values must share one scale. Placement reads these facts and has no branches of its
own for any of them.

Sources: onnxruntime's QDQ selectors (onnxruntime/core/optimizer/qdq_transformer), NVIDIA's TensorRT Developer Guide
("Explicit quantization"), OpenVINO's low-precision transformations, Qualcomm's QNN operator documentation, and the
measurements in docs/quantization.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import onnx_ir as ir

Spare: TypeAlias = Literal["float", "int16"]
"""What becomes of a layer that 8 bits would harm."""

_MOVEMENT = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Slice", "Split", "Gather", "Expand"),
        *("Tile", "DepthToSpace", "SpaceToDepth", "Pad", "MaxPool", "GlobalMaxPool", "Resize"),
    }
)
_COMMON = frozenset(
    {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Relu", "Clip"}
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A runtime on a kind of machine.

    Attributes:
        name: as the option says it.
        kernels: operators of ai.onnx that run on integers there.
        activations: element type of quantized activations; the 16-bit form has the same signedness.
        weights: element type of quantized weights, always symmetric.
        symmetric: whether the zero point of activations must be 0.
        per_channel: whether each output channel of a weight may have a scale of its own.
        absorbed: activations that run inside the kernel before them, so that nothing is quantized in between.
        float_results: operators whose integer kernel may leave its result in float.
        tied: operators whose output shares its scale with the inputs that are made for it alone, which rounds once
            instead of twice. Operators that only move data always share.
        products: whether a MatMul of two activations is quantized.
        quantized_bias: whether the bias is int32 with a DequantizeLinear of its own.
        quantizes_floats: whether it quantizes float weights between quantized values unless it is kept from it (`islands`).
        pairs: whether some of its processors add products of 8-bit integers in pairs that saturate (`saturation`).
        float_taps: depthwise Conv with so many taps per channel, or more, is faster in float; None where none is known to be.
            For machines that cannot measure the target; PP-OCR's time with its 5 x 5 ones in float was .67 of that on integers.
        dynamic: whether it has kernels for activations that are quantized as they come.
        machines: processors, as `platform.machine` calls them, on which measured time says what is fast on the target.
        dynamic_products: whether MatMul with weights is faster when its input is quantized as it comes.
        spare: what layers that 8 bits would harm are spared as: float, or 16-bit activations where kernels take these.
    """

    name: str
    kernels: frozenset[str] = _COMMON | _MOVEMENT
    activations: ir.DataType = ir.DataType.UINT8
    weights: ir.DataType = ir.DataType.INT8
    symmetric: bool = False
    per_channel: bool = True
    absorbed: frozenset[str] = frozenset({"Relu", "Clip"})
    float_results: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset({"Concat"})
    products: bool = False
    quantized_bias: bool = True
    quantizes_floats: bool = False
    pairs: bool = False
    float_taps: int | None = None
    dynamic: bool = False
    machines: frozenset[str] = frozenset()
    dynamic_products: bool = False
    spare: Spare = "float"


_ORT = _COMMON | _MOVEMENT | {"Sigmoid", "LeakyRelu"}

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            # u8 activations: with s8 the residual Adds fall out of integer. Softmax and attention products stay float:
            # on integers they take twice the time.
            Target(
                "ort-x86",
                _ORT,
                float_results=frozenset({"Gemm", "MatMul"}),
                quantizes_floats=True,
                pairs=True,
                float_taps=25,
                dynamic=True,
                machines=frozenset({"x86_64", "AMD64"}),
                dynamic_products=True,
            ),
            Target(
                "ort-arm",
                _ORT,
                ir.DataType.INT8,
                float_results=frozenset({"Gemm", "MatMul"}),
                quantizes_floats=True,
                dynamic=True,
                machines=frozenset({"aarch64", "arm64"}),
            ),
            Target(
                "tensorrt",
                (_COMMON - {"Mul", "Concat"}) | {"ConvTranspose", "MaxPool"},
                ir.DataType.INT8,
                symmetric=True,
                float_results=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}),
                products=True,
                quantized_bias=False,
            ),
            Target("openvino", _ORT | {"ConvTranspose"}, products=True, quantized_bias=False),
            Target(
                "qnn",
                _ORT | {"ConvTranspose", "Softmax", "Sub", "Div", "HardSwish", "Gelu"},
                products=True,
                spare="int16",
            ),
            Target("generic"),
        )
    }
)
"""The targets by name."""


def wide_type(dtype: ir.DataType) -> ir.DataType:
    """The 16-bit integer type of the same signedness."""
    return ir.DataType.INT16 if dtype.is_signed() else ir.DataType.UINT16
