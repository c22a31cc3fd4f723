"""The networks that a device profile is measured on: small, drawn at random from a fixed seed, of every kind of kernel.

Each is a chain of layers as real networks have them, so that a kernel finds its input where the one before left it. Widths
and extents are drawn evenly on a logarithmic scale over what networks use; most widths are multiples of 8, some are only
of 4, a few of nothing. What is measured is each kernel by itself: the chains are no benchmark, and no network that
anybody would run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 20, 9
_MOST_MACS = 12e6
_SCALE = 0.05

Dims = tuple[int, ...]


@dataclass
class Chain:
    """A model under construction: a sequence of layers, each of which reads what the last one made.

    Attributes:
        dims: extents of the value that the next layer reads.
        name: its name.
        quantized: whether layers stand between QuantizeLinear and DequantizeLinear.
    """

    dims: Dims
    quantized: bool = False
    name: str = "x"
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
        self, outputs: int, kernel: int = 3, stride: int = 1, group: int = 1, activation: str | None = "Relu"
    ) -> None:
        """A convolution with "same" padding and bias."""
        batch, inputs, height, width = self.dims
        fan_in = inputs // group * kernel * kernel
        weight = self.weight(outputs, inputs // group, kernel, kernel, fan_in=fan_in)
        bias = self._quantized_bias(outputs, fan_in) if self.quantized else self.weight(outputs)
        pad = (kernel - 1) // 2
        dims = (batch, outputs, -(-height // stride), -(-width // stride))
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
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
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


@dataclass(frozen=True)
class Design:
    """A chain by name; `build` makes its model."""

    name: str
    build: Callable[[], onnx.ModelProto]


def designs() -> Iterator[Design]:
    """All chains: small ones, then the most common kinds of layers."""
    kinds: tuple[tuple[str, int, Callable[[random.Random], Chain]], ...] = (
        ("small", 14, _small),
        ("convolutions", 24, lambda draw: _convolutions(draw, quantized=False)),
        ("separable", 12, lambda draw: _separable(draw, quantized=False)),
        ("tokens", 16, _tokens),
        ("elementwise", 16, _passes),
        ("heavy", 6, _heavy),
        ("plain", 6, _unaligned),
        ("quantized convolutions", 8, lambda draw: _convolutions(draw, quantized=True)),
        ("quantized separable", 5, lambda draw: _separable(draw, quantized=True)),
        ("quantized tokens", 5, _quantized_tokens),
        ("upsampling", 5, _upsampling),
        ("recurrent", 3, _recurrent),
    )
    for kind, count, make in kinds:
        for number in range(count):
            name = f"{kind} {number}"
            yield Design(name, lambda name=name, make=make: make(random.Random(name)).model())  # type: ignore[misc]


def _weight_scale(fan_in: int) -> float:
    return 0.05 / math.sqrt(fan_in)


def calls(count: int) -> onnx.ModelProto:
    """A chain of `count` kernels that do next to nothing."""
    chain = Chain((1, 8))
    for number in range(count):
        chain.layer(("Neg", "Abs")[number % 2])
    return chain.model()


def reference() -> onnx.ModelProto:
    """What tells the pace of the machine: a convolution, a matrix product and some elements."""
    chain = Chain((1, 32, 28, 28))
    chain.conv(48)
    chain.conv(32, 1)
    chain.layer("Reshape", chain.constant(np.array([1, 196, 128])), dims=(1, 196, 128))
    chain.dense(64)
    chain.layer("Tanh")
    return chain.model()


def _between(draw: random.Random, low: float, high: float) -> float:
    """A number between two, evenly on a logarithmic scale."""
    return low * math.exp(math.log(high / low) * draw.random())


def _width(draw: random.Random, low: int = 8, high: int = 512) -> int:
    """Mostly whole blocks."""
    step = draw.choice((4, 8, 8, 16, 16, 32))
    return max(step, round(_between(draw, low, high) / step) * step)


def _extent(draw: random.Random) -> int:
    return draw.choice((4, 5, 7, 7, 8, 10, 14, 14, 16, 20, 28, 32, 40, 49, 56, 64, 80, 112))


def _affordable(draw: random.Random, chain: Chain, outputs: int, kernel: int, stride: int) -> int:
    """As many outputs as keep a layer quick."""
    batch, inputs, height, width = chain.dims
    each = batch * inputs * kernel * kernel * height * width / stride**2
    return max(8, min(outputs, int(_MOST_MACS / each) // 8 * 8))


def _convolutions(draw: random.Random, *, quantized: bool) -> Chain:
    extent = _extent(draw)
    batch = draw.choice((1, 1, 1, 1, 2, 4)) if extent <= 32 else 1
    start = draw.choice((1, 3, 3, _width(draw), _width(draw), _width(draw)))
    chain = Chain((batch, start, extent, extent), quantized)
    for _ in range(6):
        kernel = draw.choice((1, 1, 3, 3, 3, 5, 7))
        stride = draw.choice((1, 1, 1, 2)) if chain.dims[2] > 7 else 1
        outputs = _affordable(draw, chain, _width(draw), kernel, stride)
        chain.conv(outputs, kernel, stride, activation=draw.choice(("Relu", "Relu", None)))
        after = draw.random()
        if after < 0.25:
            before, dims = chain.name, chain.dims
            chain.conv(_affordable(draw, chain, dims[1], 3, 1), 3)
            chain.conv(dims[1], draw.choice((1, 3)), activation=None)
            chain.layer("Add", before)
            if draw.random() < 0.7:
                chain.layer("Relu")
            chain.quantize()
        elif after < 0.35 and chain.dims[2] > 7:
            _pool(chain, draw.choice(("MaxPool", "AveragePool")), draw.choice((2, 3)), 2)
        elif after < 0.45:
            first = chain.name
            chain.conv(_width(draw, 8, 128), 1)
            second = chain.name
            chain.name, widths = first, chain.dims
            total = widths[1] + outputs if chain.dims[1] == widths[1] else widths[1]
            chain.dims = (widths[0], total, *widths[2:])
            chain.layer("Concat", second, axis=1)
            chain.quantize()
    if draw.random() < 0.5:
        chain.layer("GlobalAveragePool", dims=(*chain.dims[:2], 1, 1))
        chain.quantize()
        chain.layer("Flatten", dims=chain.dims[:2])
        chain.dense(draw.choice((10, 100, 1000)))
    return chain


def _pool(chain: Chain, op_type: str, kernel: int, stride: int) -> None:
    batch, channels, height, width = chain.dims
    pad = (kernel - 1) // 2
    after = [(extent + 2 * pad - kernel) // stride + 1 for extent in (height, width)]
    dims = (batch, channels, *after)
    chain.layer(op_type, dims=dims, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
    chain.quantize()


def _separable(draw: random.Random, *, quantized: bool) -> Chain:
    chain = Chain(
        (draw.choice((1, 1, 1, 2)), _width(draw, 8, 128), *([draw.choice((7, 14, 16, 28, 40, 56, 80))] * 2)), quantized
    )
    for _ in range(4):
        channels = chain.dims[1]
        hidden = _affordable(draw, chain, channels * draw.choice((1, 2, 4, 6)), 1, 1)
        activation = draw.choice(("Relu", "Relu", "HardSwish", "Clip", "Sigmoid"))
        chain.conv(hidden, 1, activation="Relu")
        stride = draw.choice((1, 1, 2)) if chain.dims[2] > 7 else 1
        chain.conv(hidden, draw.choice((3, 3, 5, 7)), stride, hidden, activation=None)
        if activation == "Clip":
            chain.layer("Clip", chain.constant(np.array(0, np.float32)), chain.constant(np.array(6, np.float32)))
        else:
            chain.layer(activation)
        chain.quantize()
        if draw.random() < 0.4:
            _excite(chain, draw)
        chain.conv(_width(draw, 8, 256), 1, activation=None)
    return chain


def _excite(chain: Chain, draw: random.Random) -> None:
    before, dims = chain.name, chain.dims
    chain.layer(draw.choice(("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool")), dims=(*dims[:2], 1, 1))
    chain.quantize()
    chain.conv(max(8, dims[1] // 4 // 8 * 8), 1)
    chain.conv(dims[1], 1, activation=draw.choice(("Sigmoid", "HardSigmoid")))
    chain.layer("Mul", before, dims=dims)
    chain.quantize()


def _tokens(draw: random.Random) -> Chain:
    tokens = draw.choice((1, 2, 8, 16, 32, 49, 64, 128, 197, 256))
    heads, head = draw.choice((1, 2, 3, 4, 6, 8, 12)), draw.choice((16, 24, 32, 64, 64, 80))
    width = heads * head
    batch = draw.choice((1, 1, 2, 4)) if tokens <= 64 else 1
    chain = Chain((batch, tokens, width))
    chain.layer("LayerNormalization", chain.weight(width), chain.weight(width), axis=-1)
    before = chain.name
    chain.dense(width)
    query = _split_heads(chain, heads, head, (0, 2, 1, 3))
    chain.name, chain.dims = before, (batch, tokens, width)
    chain.dense(width)
    key = _split_heads(chain, heads, head, (0, 2, 3, 1))
    chain.name, chain.dims = query, (batch, heads, tokens, head)
    chain.layer("MatMul", key, dims=(batch, heads, tokens, tokens))
    chain.layer(draw.choice(("Div", "Mul")), chain.constant(np.array(0.1, np.float32)))
    if draw.random() < 0.5:
        chain.layer("Add", chain.weight(batch, 1, 1, tokens))
    chain.layer("Softmax", axis=-1)
    chain.layer("MatMul", query, dims=(batch, heads, tokens, head))
    chain.layer("Transpose", perm=[0, 2, 1, 3], dims=(batch, tokens, heads, head))
    chain.layer("Reshape", chain.constant(np.array([batch, tokens, width])), dims=(batch, tokens, width))
    chain.dense(_width(draw, 32, 1024))
    inner = min(4 * chain.dims[-1], int(_MOST_MACS / (batch * tokens * chain.dims[-1])))
    chain.dense(max(16, inner))
    chain.layer(draw.choice(("Gelu", "Relu", "Gelu", "Tanh")))
    chain.dense(width)
    chain.layer("Add", before)
    chain.layer("LayerNormalization", chain.weight(width), chain.weight(width), axis=-1)
    return chain


def _split_heads(chain: Chain, heads: int, head: int, perm: tuple[int, ...]) -> str:
    batch, tokens, _ = chain.dims
    split = (batch, tokens, heads, head)
    chain.layer("Reshape", chain.constant(np.array(split)), dims=split)
    return chain.layer("Transpose", perm=list(perm), dims=tuple(split[axis] for axis in perm))


_UNARY = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Erf",
    "Sqrt",
    "HardSwish",
    "HardSigmoid",
    "LeakyRelu",
    "Gelu",
    "Neg",
    "Abs",
)
_BINARY = ("Add", "Mul", "Sub", "Div", "Max")


def _passes(draw: random.Random) -> Chain:
    """Operators that pass over their tensors, on images that are not in blocks."""
    size = _between(draw, 1e2, 3e5)
    channels = draw.choice((2, 4, 8, 16, 32, 64))
    side = max(2, round((size / channels) ** 0.5 / 2) * 2)
    chain = Chain((1, channels, side, side))
    dims = chain.dims
    chain.layer("Abs")
    for op_type in draw.sample(_UNARY, 4):
        chain.layer("Abs" if op_type == "Sqrt" else op_type)
        chain.layer(op_type)
    for op_type in draw.sample(_BINARY, 3):
        shape = draw.choice((dims, dims, (1, channels, 1, 1), (1, 1, 1, side), (1, 1, side, side), (1,)))
        chain.layer(op_type, chain.constant(np.full(shape, 1.5, np.float32)))
    chain.layer("Pow", chain.constant(np.array(2, np.float32)))
    normal = draw.choice(("BatchNormalization", "InstanceNormalization", "Softmax", "LRN"))
    if normal == "LRN":
        chain.layer(normal, size=5)
    elif normal == "Softmax":
        chain.layer(normal, axis=draw.choice((-1, 1)))
    else:
        ones = chain.constant(np.ones(channels, np.float32))
        chain.layer(normal, *([ones] * (4 if normal[0] == "B" else 2)))
    half = [chain.constant(np.array(numbers)) for numbers in ([0], [side // 2], [draw.choice((2, 3))])]
    full = chain.name
    chain.layer("Slice", *half, dims=_halved(dims, int(numpy_helper.to_array(chain._weights[-1])[0])))
    chain.layer("Relu")
    chain.name, chain.dims = full, dims
    _move(chain, draw)
    axes = draw.choice(((1,), (2, 3), (3,)))
    reduced = tuple(1 if axis in axes else extent for axis, extent in enumerate(chain.dims))
    op_type = draw.choice(("ReduceMean", "ReduceMax", "ReduceSum"))
    chain.layer(op_type, chain.constant(np.array(axes)), dims=reduced)
    return chain


def _halved(dims: Dims, axis: int) -> Dims:
    return tuple(extent // 2 if index == axis else extent for index, extent in enumerate(dims))


def _move(chain: Chain, draw: random.Random) -> None:
    """Operators that move data."""
    batch, channels, side, _ = chain.dims
    for axis in draw.sample((1, 2, 3), 2):
        first = chain._node("Split", [chain.name], 2, axis=axis, num_outputs=2)
        chain.name = f"{first}_1"
        chain.layer("Concat", first, axis=axis)
    chain.layer("Transpose", perm=list(draw.choice(((0, 2, 3, 1), (0, 1, 3, 2), (0, 2, 1, 3)))), dims=None)
    perm = helper.get_attribute_value(chain._nodes[-1].attribute[0])
    chain.dims = tuple((batch, channels, side, side)[axis] for axis in perm)
    chain.layer(
        "Pad",
        chain.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])),
        dims=(*chain.dims[:2], *(d + 2 for d in chain.dims[2:])),
    )
    count = chain.dims[1]
    chain.layer("Gather", chain.constant(np.arange(count)[::-1].copy()), axis=1)
    chain.layer("Cast", to=TensorProto.FLOAT16)
    chain.layer("Cast", to=TensorProto.FLOAT)


def _heavy(draw: random.Random) -> Chain:
    """Layers whose weights fill the caches, so that each run reads them from memory."""
    extent = draw.choice((4, 5, 7))
    chain = Chain((1, draw.choice((256, 384, 512)), extent, extent))
    for _ in range(5):
        kernel = draw.choice((1, 3, 3))
        chain.conv(draw.choice((256, 384, 512) if kernel == 3 else (512, 1024, 2048)), kernel)
        if chain.dims[1] > 512:
            chain.conv(draw.choice((256, 512)), 1)
    chain.layer("Flatten", dims=(1, chain.dims[1] * extent * extent))
    for _ in range(2):
        chain.dense(draw.choice((1000, 2048, 2048, 4096)))
        chain.layer("Relu")
    return chain


def _small(draw: random.Random) -> Chain:
    """Layers that take microseconds, as in networks for microcontrollers."""
    if draw.random() < 0.3:
        chain = Chain((draw.choice((1, 1, 4, 16)), draw.choice((8, 16, 32, 64))))
        for _ in range(6):
            chain.dense(draw.choice((4, 8, 10, 16, 32, 64, 128)))
            chain.layer(draw.choice(("Relu", "Tanh", "Softmax", "Sigmoid")))
        return chain
    chain = Chain((1, draw.choice((1, 3, 8, 16)), *([draw.choice((4, 6, 8, 12, 16))] * 2)))
    for _ in range(4):
        chain.conv(draw.choice((8, 16, 24, 32, 64)), draw.choice((1, 1, 3, 5)))
        if draw.random() < 0.6:
            chain.conv(chain.dims[1], 3, draw.choice((1, 2)), chain.dims[1])
        if draw.random() < 0.2:
            chain.layer(draw.choice(("Sigmoid", "HardSwish", "Abs")))
    _pool(chain, draw.choice(("MaxPool", "AveragePool")), 2, 2)
    chain.layer("GlobalAveragePool", dims=(*chain.dims[:2], 1, 1))
    chain.layer("Flatten", dims=chain.dims[:2])
    chain.dense(10)
    chain.layer("Softmax", axis=-1)
    return chain


def _unaligned(draw: random.Random) -> Chain:
    """Convolutions that cannot be blocked: widths that are no multiple of 4."""
    extent = draw.choice((7, 14, 28, 56))
    chain = Chain((1, _width(draw, 8, 128) + draw.choice((1, 2, 3)), extent, extent))
    for _ in range(4):
        kernel = draw.choice((1, 3, 3))
        chain.conv(_affordable(draw, chain, _width(draw, 8, 256), kernel, 1) + draw.choice((1, 2, 3)), kernel)
        if draw.random() < 0.5:
            chain.conv(chain.dims[1], 3, group=chain.dims[1])
        if draw.random() < 0.3:
            _pool(chain, "MaxPool", 2, 1)
    return chain


def _quantized_tokens(draw: random.Random) -> Chain:
    tokens = draw.choice((1, 8, 32, 64, 128))
    chain = Chain((1, tokens, _width(draw, 32, 512)), quantized=True)
    for _ in range(4):
        chain.dense(_width(draw, 32, 1024))
        chain.layer(draw.choice(("Relu", "Sigmoid", "Softmax")))
        chain.quantize()
    chain.quantized = False
    for _ in range(3):  # the weights alone are integers beforehand
        inputs, outputs = chain.dims[-1], _width(draw, 32, 1024)
        quantized = [chain._node("DynamicQuantizeLinear", [chain.name], 3)]
        quantized += [f"{quantized[0]}_1", f"{quantized[0]}_2"]
        weight = chain.constant(np.ones((inputs, outputs), np.int8))
        zero = chain.constant(np.array(0, np.int8))
        total = chain._node("MatMulInteger", [quantized[0], weight, quantized[2], zero])
        chain.name = chain._node("Cast", [total], to=TensorProto.FLOAT)
        scale = chain._node("Mul", [quantized[1], chain.constant(np.array(0.01, np.float32))])
        chain.layer("Mul", scale, dims=(*chain.dims[:-1], outputs))
        chain.layer("LayerNormalization", chain.weight(outputs), chain.weight(outputs), axis=-1)
    return chain


def _upsampling(draw: random.Random) -> Chain:
    extent = draw.choice((4, 7, 8, 14, 20, 28))
    chain = Chain((1, _width(draw, 16, 128), extent, extent))
    for _ in range(2):
        batch, inputs, height, width = chain.dims
        chain.conv(_affordable(draw, chain, _width(draw, 16, 128), 3, 1), 3)
        inputs = chain.dims[1]
        scales = chain.constant(np.array([1, 1, 2, 2], np.float32))
        mode = draw.choice(("nearest", "linear"))
        how: dict[str, Any] = {"mode": mode}
        if mode == "nearest":
            how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        doubled = (batch, inputs, 2 * height, 2 * width)
        chain.layer("Resize", "", scales, dims=doubled, **how)
        chain.conv(_affordable(draw, chain, _width(draw, 16, 64), 1, 1), 1)
        if chain.dims[2] <= 28:
            outputs = _width(draw, 8, 64)
            dims = (batch, outputs, 2 * chain.dims[2], 2 * chain.dims[3])
            weight = chain.weight(chain.dims[1], outputs, 2, 2, fan_in=chain.dims[1])
            chain.layer("ConvTranspose", weight, dims=dims, kernel_shape=[2, 2], strides=[2, 2])
    chain.layer("DepthToSpace", blocksize=2, dims=(1, chain.dims[1] // 4, 2 * chain.dims[2], 2 * chain.dims[3]))
    return chain


def _recurrent(draw: random.Random) -> Chain:
    steps, inputs, hidden = draw.choice((1, 8, 32)), _width(draw, 16, 128), _width(draw, 16, 128)
    chain = Chain((steps, 1, inputs))
    op_type, gates = draw.choice((("LSTM", 4), ("GRU", 3)))
    weights = [
        chain.weight(1, gates * hidden, inputs, fan_in=inputs),
        chain.weight(1, gates * hidden, hidden, fan_in=hidden),
    ]
    chain.layer(op_type, *weights, dims=(steps, 1, 1, hidden), hidden_size=hidden)
    return chain
