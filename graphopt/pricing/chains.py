"""Networks under construction: chains of layers, each of which reads what the last one made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 20, 9
_SCALE = 0.05

Dims = tuple[int, ...]


@dataclass
class Chain:
    """A model under construction: a sequence of layers, each of which reads what the last one made.

    Attributes:
        dims: extents of the value that the next layer reads.
        name: its name.
        quantized: whether layers stand between QuantizeLinear and DequantizeLinear.
        symbolic: whether the batch is left open.
    """

    dims: Dims
    quantized: bool = False
    name: str = "x"
    symbolic: bool = False
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _weights: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._input = self.dims
        self._random = np.random.default_rng(0)
        self.quantize()

    def constant(self, array: np.ndarray) -> str:
        """A new initializer, and its name."""
        name = f"c{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *dims: int, fan_in: int = 1) -> str:
        """A weight; behind DequantizeLinear where layers are quantized."""
        values = self._random.standard_normal(dims, np.float32)
        if not self.quantized:
            return self.constant(values / np.float32(np.sqrt(fan_in)))
        eighth = self.constant(np.clip(values * 20, -64, 64).astype(np.int8))
        scale = self.constant(np.full(dims[0], _weight_scale(fan_in), np.float32))
        zero = self.constant(np.zeros(dims[0], np.int8))
        return self._node("DequantizeLinear", [eighth, scale, zero], axis=0)

    def layer(self, op_type: str, *others: str, dims: Dims | None = None, outputs: int = 1, **attributes: Any) -> str:
        """Add an operator that reads the current value, then `others`; its first output is current afterwards."""
        self.name = self._node(op_type, [self.name, *others], outputs, **attributes)
        self.dims = dims or self.dims
        return self.name

    def quantize(self) -> None:
        """Where layers are quantized: end the one before here."""
        if self.quantized:
            scale, zero = self.constant(np.array(_SCALE, np.float32)), self.constant(np.array(0, np.uint8))
            self.layer("QuantizeLinear", scale, zero)
            self.layer("DequantizeLinear", scale, zero)

    def conv(
        self,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        *,
        activation: str | None = "Relu",
        padded: bool = True,
    ) -> None:
        """A convolution with bias, and "same" padding unless it is not `padded`."""
        batch, inputs, height, width = self.dims
        fan_in = inputs // group * kernel * kernel
        weight = self.weight(outputs, inputs // group, kernel, kernel, fan_in=fan_in)
        bias = self._quantized_bias(outputs, fan_in) if self.quantized else self.weight(outputs)
        pad = (kernel - 1) // 2 if padded else 0
        dims = (batch, outputs, *((extent + 2 * pad - kernel) // stride + 1 for extent in (height, width)))
        self.layer(
            "Conv",
            weight,
            bias,
            dims=dims,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=group,
        )
        if activation:
            self.layer(activation)
        self.quantize()

    def dense(self, outputs: int) -> None:
        """A matrix product and its bias."""
        inputs = self.dims[-1]
        if self.quantized:
            values = self._random.integers(-64, 64, (inputs, outputs)).astype(np.int8)
            scale, zero = self.constant(np.array(0.01, np.float32)), self.constant(np.array(0, np.int8))
            weight = self._node("DequantizeLinear", [self.constant(values), scale, zero])
        else:
            weight = self.weight(inputs, outputs, fan_in=inputs)
        self.layer("MatMul", weight, dims=(*self.dims[:-1], outputs))
        self.quantize()
        if not self.quantized:
            self.layer("Add", self.weight(outputs))

    def model(self) -> onnx.ModelProto:
        """The model, with the current value as its output."""
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims[1:]] if self.symbolic else dims)
            for name, dims in (("x", self._input), (self.name, self.dims))
        ]
        graph = helper.make_graph(self._nodes, "design", ends[:1], ends[1:], self._weights)
        return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])

    def _quantized_bias(self, outputs: int, fan_in: int) -> str:
        """A bias with the scale that integer kernels ask for: that of the input times that of the weight."""
        scale = self.constant(np.full(outputs, np.float32(_SCALE) * np.float32(_weight_scale(fan_in)), np.float32))
        zero = self.constant(np.zeros(outputs, np.int32))
        return self._node("DequantizeLinear", [self.constant(np.ones(outputs, np.int32)), scale, zero], axis=0)

    def _node(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        number = len(self._nodes)
        names = [f"v{number}", *(f"v{number}_{index}" for index in range(1, outputs))]
        self._nodes.append(helper.make_node(op_type, inputs, names, name=f"n{number}", **attributes))
        return names[0]


def _weight_scale(fan_in: int) -> float:
    return 0.05 / math.sqrt(fan_in)
