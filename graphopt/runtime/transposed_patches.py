"""What a transposed convolution multiplies its weight with, seen from its outputs: the inputs that reach each of them.

Along an axis, input i spreads over the outputs i · stride + tap · dilation - pad. Turned around, output o meets under tap t

    x[(o + pad - t · dilation) / stride]         where that is a whole number within the input, else nothing

so that, with zeros for nothing, a ConvTranspose is a product like a Conv's, of patches (G, K, rows), K = C/G k1 .. kn:

    y[n, m, o1..on] = W[g] @ patches[g]          W: (G, M/G, K), from a weight (C, M/G, k1 .. kn)

Of a strided one each output has but the taps of its phase, o + pad modulo stride; the others are zeros. The moments of such
patches fall apart into the phases, and one regression on all of them is the separate ones, with one bias for all.

The formulas of `pads`, `auto_pad` and `output_shape` are those of the ONNX specification of ConvTranspose.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import UnsupportedModelError
from graphopt.ir.walk import label
from graphopt.ops import attributes
from graphopt.runtime.rows import Positions, WindowRows


@dataclasses.dataclass(frozen=True)
class TransposedWindow:
    """How the kernel of a ConvTranspose spreads over the n spatial axes of its output.

    Attributes:
        kernel: extents (k1..kn).
        strides: steps in the output per step in the input, one per axis.
        dilations: distances between elements of the kernel, one per axis.
        pads: outputs that are cut off before each axis, then after each axis.
        extra: outputs that are added after each axis (`output_padding`).
        groups: into how many groups the channels are split.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    extra: tuple[int, ...]
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node) -> TransposedWindow:
        """The window of a ConvTranspose node.

        Raises:
            UnsupportedModelError: it is none, its kernel's extents are open, or where it cuts its output off is not known or
                not the same in all runtimes: `output_shape` for an open input, more output than the input reaches.
        """
        if node.op_type != "ConvTranspose" or node.domain != "":
            raise UnsupportedModelError(f"{label(node)} is no ConvTranspose")
        weight = node.inputs[1]
        if weight is None or weight.shape is None or not weight.shape.is_static():
            raise UnsupportedModelError(f"{label(node)}: the extents of its kernel are not known")
        kernel = tuple(weight.shape.numpy()[2:])
        strides, dilations, extra = (
            tuple(attributes.integers(node, name) or (other,) * len(kernel))
            for name, other in (("strides", 1), ("dilations", 1), ("output_padding", 0))
        )
        pads = _pads(node, kernel, strides, dilations, extra)
        return cls(kernel, strides, dilations, pads, extra, attributes.integer(node, "group", 1))

    def extents(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Extents (o1..on) of the output for an input of extents `spatial`."""
        count = len(self.kernel)
        return tuple(
            max(0, stride * (extent - 1) + reach + extra - self.pads[axis] - self.pads[axis + count])
            for axis, (extent, stride, reach, extra) in enumerate(
                zip(spatial, self.strides, _reach(self.kernel, self.dilations), self.extra, strict=True)
            )
        )

    def sources(self, axis: int, extent: int, outputs: int) -> np.ndarray:
        """(o, k) the input that each output meets under each tap along `axis`; `extent` where there is none."""
        taps = np.arange(self.kernel[axis]) * self.dilations[axis]
        steps = np.arange(outputs)[:, None] + self.pads[axis] - taps
        found = steps // self.strides[axis]
        meets = (steps % self.strides[axis] == 0) & (found >= 0) & (found < extent)
        return np.where(meets, found, extent)


class TransposedRows(WindowRows[TransposedWindow]):
    """`RowSource`: what a ConvTranspose multiplies its weight with."""

    def take(self, x: np.ndarray, positions: Positions | None = None) -> np.ndarray:
        """See `RowSource`."""
        window, extents = self._window, self._window.extents(x.shape[2:])
        if positions is None:
            samples, pixels = x.shape[0], math.prod(extents)
            positions = np.repeat(np.arange(samples), pixels), np.tile(np.arange(pixels), samples)
        numbers, rows = positions
        rank = len(extents)
        index: list[Any] = [numbers.reshape(-1, *[1] * rank), slice(None)]
        for axis, at in enumerate(np.unravel_index(rows, extents)):
            sources = window.sources(axis, x.shape[2 + axis], extents[axis])[at]  # (rows, k)
            along = [size if axis == other else 1 for other, size in enumerate(window.kernel)]
            index.append(sources.reshape(len(rows), *along))
        padded = np.pad(x, [(0, 0), (0, 0), *[(0, 1)] * rank])  # the zero that is met where there is no input
        taken = np.moveaxis(padded[tuple(index)], -1, 1)  # (rows, C, k..)
        per_group = self.width(x.shape) // window.groups
        return np.asarray(taken.reshape(len(rows), window.groups, per_group).transpose(1, 2, 0))


def _reach(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Outputs that one input spreads over, along each axis."""
    return tuple(dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True))


def _pads(
    node: ir.Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], extra: Sequence[int]
) -> tuple[int, ...]:
    mode, wanted = attributes.text(node, "auto_pad", "NOTSET"), attributes.integers(node, "output_shape")
    count = len(kernel)
    if wanted is None and not mode.startswith("SAME"):
        given = attributes.integers(node, "pads") if mode == "NOTSET" else None
        return tuple(given or (0,) * (2 * count))
    cut = [reach - stride for reach, stride in zip(_reach(kernel, dilations), strides, strict=True)]
    if wanted is not None:
        dims = None if node.inputs[0] is None else node.inputs[0].shape
        spatial = [] if dims is None else [extent for extent in dims.dims[2:] if isinstance(extent, int)]
        if len(spatial) != count:
            raise UnsupportedModelError(f"{label(node)}: its output_shape cuts off what is not known beforehand")
        cut = [
            one + stride * extent - out
            for one, stride, extent, out in zip(cut, strides, spatial, wanted[-count:], strict=True)
        ]
    if any(extra) or min(cut) < 0:
        raise UnsupportedModelError(f"{label(node)}: runtimes differ in where it cuts its output off")
    before = [one // 2 if mode == "SAME_UPPER" else one - one // 2 for one in cut]
    return (*before, *(one - first for one, first in zip(cut, before, strict=True)))
