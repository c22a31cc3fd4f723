"""What a convolution multiplies its weight with: the input under the kernel, position by position (im2col).

For x: (N, C, d1..dn) and a weight (M, C/G, k1..kn) the patches of group g are a matrix (K, rows) with
K = C/G * k1 * .. * kn in the order of the weight's own axes, so that

    y[n, m, o1..on] = weight.reshape(G, M/G, K)[g] @ patches[g]

and a row of positions runs over (n, o1..on) in this order. Padding is zeros. The formulas of `pads`, `auto_pad` and the
output's extents are those of the ONNX specification of Conv.
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


@dataclasses.dataclass(frozen=True)
class Window:
    """How the kernel of a convolution moves over the n spatial axes of its input.

    Attributes:
        kernel: extents (k1..kn).
        strides: steps, one per axis.
        dilations: distances between elements under the kernel, one per axis.
        pads: zeros before each axis, then zeros after each axis, as ONNX lists them; None where `same` decides.
        same: "upper" or "lower": as many zeros as make the output ceil(extent / stride), the odd one at that end.
        groups: into how many groups the channels are split.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    same: str | None = None
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node) -> Window:
        """The window of a Conv node. Raises UnsupportedModelError where it is none or its kernel's extents are open."""
        if node.op_type != "Conv" or node.domain != "":
            raise UnsupportedModelError(f"{label(node)} is no Conv; only the input of a Conv has patches")
        kernel = attributes.integers(node, "kernel_shape")
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if kernel is None and weight is not None and weight.shape is not None and weight.shape.is_static():
            kernel = weight.shape.numpy()[2:]
        if not kernel:
            raise UnsupportedModelError(f"{label(node)}: the extents of its kernel are not known")
        count = len(kernel)
        mode = attributes.text(node, "auto_pad", "NOTSET")
        pads = attributes.integers(node, "pads") if mode == "NOTSET" else None
        return cls(
            tuple(kernel),
            tuple(attributes.integers(node, "strides") or (1,) * count),
            tuple(attributes.integers(node, "dilations") or (1,) * count),
            None if mode.startswith("SAME") else tuple(pads or (0,) * (2 * count)),
            mode.removeprefix("SAME_").lower() if mode.startswith("SAME") else None,
            attributes.integer(node, "group", 1),
        )

    def padding(self, spatial: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after each axis of an input of extents `spatial`."""
        count = len(self.kernel)
        if self.pads is not None:
            return [(self.pads[axis], self.pads[axis + count]) for axis in range(count)]
        result = []
        for extent, size, stride, dilation in zip(spatial, self.kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-extent // stride) - 1) * stride + dilation * (size - 1) + 1 - extent)
            small = total // 2
            result.append((small, total - small) if self.same == "upper" else (total - small, small))
        return result

    def extents(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Extents (o1..on) of the output for an input of extents `spatial`; 0 where the kernel does not fit."""
        result = []
        for axis, (before, after) in enumerate(self.padding(spatial)):
            room = spatial[axis] + before + after - self.dilations[axis] * (self.kernel[axis] - 1) - 1
            result.append(max(0, room // self.strides[axis] + 1))
        return tuple(result)

    def width(self, channels: int) -> int:
        """K, the elements of one patch of one group of an input with this many channels."""
        return channels // self.groups * math.prod(self.kernel)


def patches(x: np.ndarray, window: Window, positions: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """The patches of x: (N, C, d1..dn), as (G, K, rows).

    Args:
        x: of any element type.
        window: how the kernel moves.
        positions: (rows,) sample numbers and (rows,) flat numbers of output positions; by default all, in order.
    """
    extents = window.extents(x.shape[2:])
    if not math.prod(extents):
        return np.zeros((window.groups, window.width(x.shape[1]), 0), x.dtype)
    windows = _windows(x, window, extents)
    rank = len(extents)
    if positions is None:
        # (N, C, o.., k..) -> (C, k.., N, o..)
        order = (1, *range(2 + rank, 2 + 2 * rank), 0, *range(2, 2 + rank))
        return windows.transpose(order).reshape(window.groups, window.width(x.shape[1]), -1)
    sample, position = positions
    index: Any = (sample, slice(None), *np.unravel_index(position, extents))
    chosen: np.ndarray = windows[index]  # (rows, C, k..)
    return chosen.reshape(len(sample), window.groups, -1).transpose(1, 2, 0)


def _windows(x: np.ndarray, window: Window, extents: tuple[int, ...]) -> np.ndarray:
    """A view (N, C, o1..on, k1..kn) of x with its zeros around it."""
    padding = window.padding(x.shape[2:])
    if any(before or after for before, after in padding):
        x = np.pad(x, [(0, 0), (0, 0), *padding])
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(window.dilations, window.kernel, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    steps = [
        slice(0, (extent - 1) * stride + 1, stride) for extent, stride in zip(extents, window.strides, strict=True)
    ]
    return views[(slice(None), slice(None), *steps, *(slice(None, None, dilation) for dilation in window.dilations))]
