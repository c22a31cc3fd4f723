"""Chains on tokens, and of what passes over its tensors (see `graphopt.pricing.designs`)."""

from __future__ import annotations

import random

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphopt.pricing.chains import Chain, Dims
from graphopt.pricing.draws import between, width

_MACS = (1e6, 3e8)


def attention(draw: random.Random) -> Chain:
    """A transformer's layer."""
    tokens = draw.choice((1, 2, 8, 16, 32, 49, 64, 128, 128, 197, 256))
    heads, head = draw.choice((1, 2, 3, 4, 6, 8, 12)), draw.choice((16, 24, 32, 64, 64, 80))
    across, macs = heads * head, between(draw, *_MACS)
    batch = draw.choice((1, 1, 2, 4)) if tokens <= 64 else 1
    chain = Chain((batch, tokens, across))
    _normalize(chain)
    before = chain.name
    chain.dense(across)
    query = _split_heads(chain, heads, head, (0, 2, 1, 3))
    chain.name, chain.dims = before, (batch, tokens, across)
    chain.dense(across)
    key = _split_heads(chain, heads, head, (0, 2, 3, 1))
    chain.name, chain.dims = query, (batch, heads, tokens, head)
    chain.layer("MatMul", key, dims=(batch, heads, tokens, tokens))
    chain.layer(draw.choice(("Div", "Mul")), chain.constant(np.array(0.1, np.float32)))
    if draw.random() < 0.5:
        chain.layer("Add", chain.weight(batch, 1, 1, tokens))
    chain.layer("Softmax", axis=-1)
    chain.layer("MatMul", query, dims=(batch, heads, tokens, head))
    chain.layer("Transpose", perm=[0, 2, 1, 3], dims=(batch, tokens, heads, head))
    chain.layer("Reshape", chain.constant(np.array([batch, tokens, across])), dims=(batch, tokens, across))
    chain.dense(_within(draw, chain, width(draw, 32, 1024), macs))
    chain.dense(_within(draw, chain, 4 * chain.dims[-1], macs))
    _gelu(chain, draw)
    chain.dense(across)
    chain.layer("Add", before)
    total = chain.name
    _normalize(chain)
    if draw.random() < 0.5:  # a sum that is read again is not taken into the normalization
        chain.layer("Add", total)
    for _ in range(draw.choice((0, 2))):
        chain.dense(_within(draw, chain, width(draw, 32, 3072), macs))
        _normalize(chain)
    return chain


def _within(draw: random.Random, chain: Chain, outputs: int, macs: float) -> int:
    """As many columns as a product may have that makes do with so many multiply-accumulates."""
    rows = chain.dims[0] * chain.dims[1] * chain.dims[2]
    return max(16, min(outputs, int(macs / rows)))


def _normalize(chain: Chain) -> None:
    across = chain.dims[-1]
    chain.layer("LayerNormalization", chain.weight(across), chain.weight(across), axis=-1)


def _gelu(chain: Chain, draw: random.Random) -> None:
    """An activation; the error function as opsets before 20 write it."""
    kind = draw.choice(("Gelu", "Erf", "Erf", "Relu", "Tanh"))
    if kind != "Erf":
        chain.layer(kind)
        return
    before = chain.name
    chain.layer("Div", chain.constant(np.array(2**0.5, np.float32)))
    chain.layer("Erf")
    chain.layer("Add", chain.constant(np.array(1, np.float32)))
    chain.layer("Mul", before)
    chain.layer("Mul", chain.constant(np.array(0.5, np.float32)))


def shapes(draw: random.Random) -> Chain:
    """Shapes that are computed at run time, as exports with an open batch do."""
    tokens, across = draw.choice((4, 16, 64)), draw.choice((16, 32, 64))
    chain = Chain((1, tokens, across), symbolic=True)
    for _ in range(draw.choice((3, 6))):
        value, dims = chain.name, chain.dims
        chain.layer("Shape")
        chain.layer("Gather", chain.constant(np.array(0)), axis=0)
        chain.layer("Unsqueeze", chain.constant(np.array([0])))
        chain.layer("Max", chain.constant(np.array([1])))  # without it, Reshape takes all of this in
        chain.layer("Concat", *(chain.constant(np.array([extent])) for extent in (dims[2], dims[1])), axis=0)
        shape, chain.name = chain.name, value
        chain.layer("Reshape", shape, dims=(1, dims[2], dims[1]))
        chain.layer(draw.choice(("Abs", "Neg")))
        if draw.random() < 0.5:
            chain.layer("Transpose", perm=[0, 2, 1], dims=(1, chain.dims[2], chain.dims[1]))
        if draw.random() < 0.5:
            chain.dense(draw.choice((16, 32, 64)))
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


def passes(draw: random.Random) -> Chain:
    """Operators that pass over their tensors, on images that are not in blocks."""
    size = between(draw, 1e2, 1e6)
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


def quantized(draw: random.Random) -> Chain:
    """Matrix products on integers, and those of which only the weights are integers beforehand."""
    tokens = draw.choice((1, 8, 32, 64, 128))
    chain = Chain((1, tokens, width(draw, 32, 512)), quantized=True)
    for _ in range(4):
        chain.dense(width(draw, 32, 1024))
        chain.layer(draw.choice(("Relu", "Sigmoid", "Softmax")))
        chain.quantize()
    chain.quantized = False
    for _ in range(3):  # the weights alone are integers beforehand
        inputs, outputs = chain.dims[-1], width(draw, 32, 1024)
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


def recurrent(draw: random.Random) -> Chain:
    """One recurrent layer."""
    steps, inputs, hidden = draw.choice((1, 8, 32)), width(draw, 16, 128), width(draw, 16, 128)
    chain = Chain((steps, 1, inputs))
    op_type, gates = draw.choice((("LSTM", 4), ("GRU", 3)))
    weights = [
        chain.weight(1, gates * hidden, inputs, fan_in=inputs),
        chain.weight(1, gates * hidden, hidden, fan_in=hidden),
    ]
    chain.layer(op_type, *weights, dims=(steps, 1, 1, hidden), hidden_size=hidden)
    return chain
