"""Fourier transforms, counted as fast ones: 5 n log2 n operations for n complex points (Cooley and Tukey 1965)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2, prod
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import Extents, MacFree, input_at, output_at


def fft_flops(points: int) -> int:
    """Operations of one complex transform of this length."""
    return ceil(5 * points * log2(points)) if points > 1 else 0


class FourierTransform(MacFree):
    """DFT along one axis; a one-sided transform of real data costs half."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("DFT",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Transforms times the cost of one."""
        data, out = extents.dims(input_at(node, 0)), extents.dims(output_at(node, 0))
        axis = self._axis(node)
        if not data or not out or axis is None or not -len(out) <= axis < len(out):
            return None
        onesided = bool(attributes.integer(node, "onesided", 0))
        points = max(data[axis], out[axis])
        transforms = prod(out[:-1]) // max(1, out[axis])
        return transforms * fft_flops(points) // (2 if onesided else 1)

    def _axis(self, node: ir.Node) -> int | None:
        """An attribute before opset 20 (default 1), an input since (default -2)."""
        if input_at(node, 2) is not None:
            tensor = constant_tensor(input_at(node, 2))
            return None if tensor is None else int(tensor.numpy())
        version = node.version if node.version is not None else _imported(node)
        return attributes.integer(node, "axis", -2 if version >= 20 else 1)


def _imported(node: ir.Node) -> int:
    return 20 if node.graph is None else node.graph.opset_imports.get("", 20)


class ShortTimeFourierTransform(MacFree):
    """STFT: a window and a transform per frame."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("STFT",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Frames (B, frames, bins, 2) times one transform of the window's length."""
        out, window = extents.dims(output_at(node, 0)), extents.dims(input_at(node, 2))
        if out is None or len(out) != 4:
            return None
        onesided = bool(attributes.integer(node, "onesided", 1))
        points = window[0] if window else (2 * (out[2] - 1) if onesided else out[2])
        return out[0] * out[1] * (fft_flops(points) // (2 if onesided else 1) + points)


FAMILIES = (FourierTransform(), ShortTimeFourierTransform())
