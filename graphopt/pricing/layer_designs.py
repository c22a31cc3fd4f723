"""Chains of convolutions, of every kind that networks have (see `graphopt.pricing.designs`)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from graphopt.pricing.chains import Chain
from graphopt.pricing.draws import affordable, between, extent, width

_LARGEST = 2e9
"""Multiply-accumulates of the largest layers: the second half of VGG."""


def small(draw: random.Random) -> Chain:
    """Layers that take microseconds, as in networks for microcontrollers."""
    if draw.random() < 0.3:
        chain = Chain((draw.choice((1, 1, 4, 16)), draw.choice((8, 16, 32, 64, 256))))
        for _ in range(draw.choice((2, 4, 6, 10))):
            chain.dense(draw.choice((4, 8, 10, 16, 32, 64, 128, 256, 512)))
            chain.layer(draw.choice(("Relu", "Relu", "Tanh", "Softmax", "Sigmoid")))
        return chain
    chain = Chain((1, draw.choice((1, 3, 8, 16)), *([draw.choice((4, 6, 8, 12, 16, 24, 32))] * 2)))
    for _ in range(draw.choice((2, 4, 6))):
        chain.conv(draw.choice((8, 16, 16, 24, 32, 64)), draw.choice((1, 1, 3, 3, 5)))
        if draw.random() < 0.4:
            chain.conv(chain.dims[1], 3, draw.choice((1, 2)), chain.dims[1])
        if draw.random() < 0.4:
            _block(chain, draw, 1e6)
        if draw.random() < 0.2:
            activate(chain, draw.choice(("Sigmoid", "HardSwish", "Silu", "Abs")))
    if draw.random() < 0.6 and chain.dims[2] > 2:
        pool(chain, draw.choice(("MaxPool", "AveragePool")), 2, 2)
    chain.layer("GlobalAveragePool", dims=(*chain.dims[:2], 1, 1))
    chain.layer("Flatten", dims=chain.dims[:2])
    chain.dense(10)
    chain.layer("Softmax", axis=-1)
    return chain


def convolutions(draw: random.Random, *, quantized: bool = False) -> Chain:
    """Convolutions with residual sums, pooling and concatenation in between."""
    side, macs = extent(draw), between(draw, 1e6, 2e7 if quantized else 2e8)
    batch = draw.choice((1, 1, 1, 1, 2, 4)) if side <= 32 else 1
    chain = Chain((batch, draw.choice((width(draw), width(draw), 3, 1)), side, side), quantized)
    for _ in range(6):
        kernel = draw.choice((1, 1, 3, 3, 3, 5, 7))
        stride = draw.choice((1, 1, 1, 2)) if chain.dims[2] > 7 else 1
        outputs = affordable(chain, width(draw), kernel, stride, macs)
        chain.conv(outputs, kernel, stride, activation=draw.choice(("Relu", "Relu", None)))
        after = draw.random()
        if after < 0.25:
            _block(chain, draw, macs)
        elif after < 0.35 and chain.dims[2] > 7:
            pool(chain, draw.choice(("MaxPool", "AveragePool")), draw.choice((2, 3)), 2)
        elif after < 0.45:
            _join(chain, width(draw, 8, 128))
    if draw.random() < 0.5:
        chain.layer("GlobalAveragePool", dims=(*chain.dims[:2], 1, 1))
        chain.quantize()
        chain.layer("Flatten", dims=chain.dims[:2])
        chain.dense(draw.choice((10, 100, 1000)))
    return chain


def _block(chain: Chain, draw: random.Random, macs: float) -> None:
    """A residual block."""
    before, dims = chain.name, chain.dims
    chain.conv(affordable(chain, dims[1], 3, 1, macs), 3)
    chain.conv(dims[1], draw.choice((1, 3)), activation=None)
    chain.layer("Add", before)
    if draw.random() < 0.7:
        chain.layer("Relu")
    chain.quantize()


def _join(chain: Chain, outputs: int) -> None:
    """A pointwise convolution beside what it reads."""
    first, dims = chain.name, chain.dims
    chain.conv(outputs, 1)
    second, chain.name = chain.name, first
    chain.layer("Concat", second, axis=1, dims=(dims[0], dims[1] + outputs, *dims[2:]))
    chain.quantize()


def pool(chain: Chain, op_type: str, kernel: int, stride: int) -> None:
    """Pooling with "same" padding."""
    batch, channels, height, across = chain.dims
    pad = (kernel - 1) // 2
    after = [(size + 2 * pad - kernel) // stride + 1 for size in (height, across)]
    chain.layer(
        op_type, dims=(batch, channels, *after), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
    )
    chain.quantize()


def activate(chain: Chain, activation: str) -> None:
    """An activation, those that are several operators included."""
    if activation == "Clip":
        chain.layer("Clip", chain.constant(np.array(0, np.float32)), chain.constant(np.array(6, np.float32)))
    elif activation == "Silu":
        before = chain.name
        chain.layer("Sigmoid")
        chain.layer("Mul", before)
    elif activation == "hard":
        before = chain.name
        chain.layer("HardSigmoid")
        chain.layer("Mul", before)
    else:
        chain.layer(activation)


def separable(draw: random.Random, *, quantized: bool = False) -> Chain:
    """Inverted residuals: pointwise, depthwise, excitation, pointwise."""
    side, macs = draw.choice((7, 14, 16, 28, 40, 56, 80, 112)), between(draw, 1e6, 2e7 if quantized else 1e8)
    chain = Chain((draw.choice((1, 1, 1, 2)), width(draw, 8, 128), side, side), quantized)
    for _ in range(4):
        channels = chain.dims[1]
        hidden = affordable(chain, channels * draw.choice((1, 2, 4, 6)), 1, 1, macs)
        activation = draw.choice(("Relu", "HardSwish", "Silu", "Silu", "Clip", "Sigmoid", "hard"))
        chain.conv(hidden, 1, activation="Relu")
        stride = draw.choice((1, 1, 2)) if chain.dims[2] > 7 else 1
        chain.conv(hidden, draw.choice((3, 3, 5, 7)), stride, hidden, activation=None)
        activate(chain, activation)
        chain.quantize()
        if draw.random() < 0.4:
            _excite(chain, draw)
        chain.conv(affordable(chain, width(draw, 8, 512), 1, 1, macs), 1, activation=None)
    return chain


def _excite(chain: Chain, draw: random.Random) -> None:
    before, dims = chain.name, chain.dims
    chain.layer(draw.choice(("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool")), dims=(*dims[:2], 1, 1))
    chain.quantize()
    chain.conv(max(8, dims[1] // 4 // 8 * 8), 1)
    chain.conv(dims[1], 1, activation=draw.choice(("Sigmoid", "HardSigmoid")))
    chain.layer("Mul", before, dims=dims)
    chain.quantize()


def images(draw: random.Random) -> Chain:
    """The first layers of networks on images, with the normalization of the first of them."""
    side = draw.choice((28, 32, 64, 96, 128, 160, 192, 224))
    chain = Chain((draw.choice((1, 1, 2)), draw.choice((1, 3, 3, 3)), side, side))
    if draw.random() < 0.2:
        patch = draw.choice((4, 8, 16))
        outputs = affordable(chain, width(draw, 32, 768), patch, patch, 1e8)
        chain.conv(outputs, patch, patch, padded=False, activation=None)
        return chain
    kernel, stride = draw.choice(((3, 2), (3, 2), (7, 2), (11, 4)) if side > 64 else ((3, 1), (3, 2), (5, 1)))
    chain.conv(draw.choice((16, 16, 24, 32, 32, 48, 64, 96)), kernel, stride)
    if draw.random() < 0.4:
        chain.conv(chain.dims[1], 3, draw.choice((1, 2)), chain.dims[1])
        chain.conv(width(draw, 16, 64), 1, activation=None)
        return chain
    if draw.random() < 0.6:
        chain.layer("LRN", size=5)
    pool(chain, "MaxPool", 3, 2)
    chain.conv(width(draw, 16, 192), draw.choice((1, 3, 5)))
    if draw.random() < 0.6:
        chain.layer("LRN", size=draw.choice((3, 5)))
    pool(chain, "MaxPool", draw.choice((2, 3)), 2)
    chain.conv(width(draw, 16, 128), 3)
    return chain


def large(draw: random.Random) -> Chain:
    """Layers of the largest networks, whose activations are beyond the caches."""
    side = draw.choice((28, 56, 56, 112, 112, 224))
    chain = Chain((1, width(draw, 32, 256), side, side))
    macs = between(draw, 2e8, _LARGEST)
    for _ in range(3):
        kernel = draw.choice((1, 3, 3))
        chain.conv(affordable(chain, draw.choice((64, 128, 256, 512)), kernel, 1, macs), kernel)
        if draw.random() < 0.5:
            _block(chain, draw, macs)
    pool(chain, "MaxPool", 2, 2)
    return chain


def heavy(draw: random.Random) -> Chain:
    """Layers whose weights fill the caches, so that each run reads them from memory."""
    side = draw.choice((5, 7, 7, 14))
    chain = Chain((1, draw.choice((256, 384, 512)), side, side))
    for _ in range(8):
        kernel = draw.choice((1, 3, 3, 3))
        chain.conv(draw.choice((256, 384, 512) if kernel == 3 else (512, 1024, 2048)), kernel)
        if chain.dims[1] > 512:
            chain.conv(draw.choice((256, 512)), 1)
    return chain


def classifiers(draw: random.Random) -> Chain:
    """Matrices of tens of millions of weights."""
    chain = Chain((draw.choice((1, 1, 1, 2, 4)), draw.choice((1024, 2048, 4096, 6272, 9216))))
    for outputs in (draw.choice((1024, 2048, 4096)), draw.choice((2048, 4096)), 1000):
        chain.dense(outputs)
        chain.layer("Relu")
    return chain


def unaligned(draw: random.Random) -> Chain:
    """Convolutions that cannot be blocked: widths that are no multiple of 4."""
    side, macs = draw.choice((7, 14, 28, 56)), between(draw, 1e6, 1e8)
    chain = Chain((1, width(draw, 8, 128) + draw.choice((1, 2, 3)), side, side))
    for _ in range(4):
        kernel = draw.choice((1, 3, 3))
        outputs = affordable(chain, width(draw, 8, 256), kernel, 1, macs)
        chain.conv(outputs + draw.choice((1, 2, 3)), kernel)
        if draw.random() < 0.5:
            chain.conv(chain.dims[1], 3, group=chain.dims[1])
        if draw.random() < 0.3:
            pool(chain, "MaxPool", 2, 1)
    return chain


def upsampling(draw: random.Random) -> Chain:
    """Decoders."""
    side, macs = draw.choice((4, 7, 8, 14, 20, 28)), between(draw, 1e6, 1e8)
    chain = Chain((1, width(draw, 16, 128), side, side))
    for _ in range(2):
        chain.conv(affordable(chain, width(draw, 16, 128), 3, 1, macs), 3)
        batch, channels, height, across = chain.dims
        scales = chain.constant(np.array([1, 1, 2, 2], np.float32))
        how: dict[str, Any] = {"mode": draw.choice(("nearest", "linear"))}
        if how["mode"] == "nearest":
            how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        chain.layer("Resize", "", scales, dims=(batch, channels, 2 * height, 2 * across), **how)
        chain.conv(affordable(chain, width(draw, 16, 64), 1, 1, macs), 1)
        if chain.dims[2] <= 28:
            outputs = width(draw, 8, 64)
            dims = (batch, outputs, 2 * chain.dims[2], 2 * chain.dims[3])
            weight = chain.weight(chain.dims[1], outputs, 2, 2, fan_in=chain.dims[1])
            chain.layer("ConvTranspose", weight, dims=dims, kernel_shape=[2, 2], strides=[2, 2])
    chain.layer("DepthToSpace", blocksize=2, dims=(1, chain.dims[1] // 4, 2 * chain.dims[2], 2 * chain.dims[3]))
    return chain
