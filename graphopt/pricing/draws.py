"""Numbers as the design draws them."""

from __future__ import annotations

import math
import random

from graphopt.pricing.chains import Chain


def between(draw: random.Random, low: float, high: float) -> float:
    """A number between two, evenly on a logarithmic scale."""
    return low * math.exp(math.log(high / low) * draw.random())


def width(draw: random.Random, low: int = 8, high: int = 512) -> int:
    """Mostly whole blocks."""
    step = draw.choice((4, 8, 8, 16, 16, 32))
    return max(step, round(between(draw, low, high) / step) * step)


def extent(draw: random.Random) -> int:
    """Height and width of an image."""
    return draw.choice((4, 5, 7, 7, 8, 10, 14, 14, 16, 20, 28, 32, 40, 49, 56, 64, 80, 112))


def affordable(chain: Chain, outputs: int, kernel: int, stride: int, macs: float) -> int:
    """As many outputs as a layer may have that makes do with so many multiply-accumulates."""
    batch, inputs, height, width = chain.dims
    each = batch * inputs * kernel * kernel * height * width / stride**2
    return max(8, min(outputs, int(macs / each) // 8 * 8))
