"""The networks that a device profile is measured on: drawn at random from a fixed seed, of every kind of kernel.

Each is a chain of layers as real networks have them, so that a kernel finds its input where the one before left it. Widths
and extents are drawn evenly on a logarithmic scale over what networks use; most widths are multiples of 8, some are only
of 4, a few of nothing. The largest chains are beyond the caches, in activations or in weights, as large networks are. The
chains are no benchmark, and no network that anybody would run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt.pricing import layer_designs, token_designs
from graphopt.pricing.chains import Chain


@dataclass(frozen=True)
class Design:
    """A chain by name; `build` makes its model."""

    name: str
    build: Callable[[], onnx.ModelProto]


def designs() -> Iterator[Design]:
    """All chains: small ones, then the most common kinds of layers."""
    layers, tokens = layer_designs, token_designs
    kinds: tuple[tuple[str, int, Callable[[random.Random], Chain]], ...] = (
        ("small", 60, layers.small),
        ("convolutions", 36, layers.convolutions),
        ("separable", 24, layers.separable),
        ("tokens", 40, tokens.attention),
        ("elementwise", 24, tokens.passes),
        ("shapes", 8, tokens.shapes),
        ("images", 24, layers.images),
        ("large", 8, layers.large),
        ("heavy", 8, layers.heavy),
        ("classifiers", 6, layers.classifiers),
        ("plain", 8, layers.unaligned),
        ("quantized convolutions", 10, lambda draw: layers.convolutions(draw, quantized=True)),
        ("quantized separable", 6, lambda draw: layers.separable(draw, quantized=True)),
        ("quantized tokens", 6, tokens.quantized),
        ("upsampling", 6, layers.upsampling),
        ("recurrent", 4, tokens.recurrent),
    )
    for kind, count, make in kinds:
        for number in range(count):
            name = f"{kind} {number}"
            yield Design(name, lambda name=name, make=make: make(random.Random(name)).model())  # type: ignore[misc]


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
