"""Operators that read a computed shape, made to read a constant one.

A shape such as [batch, seq, 12, 64] is no constant, but the operator that reads it often has another way to say it:

    Reshape   a single open entry: -1 (the rest); an entry that equals the same axis of the input: 0 (copy)
    Expand    an entry that equals the axis of the input: 1 (broadcasting leaves that axis alone)
    Slice     an end that equals the axis: the largest integer (to the end)
    Resize    sizes that are fixed multiples of the axes: scales

Every form is exact for all extents, zero included. -1 stands for "elements of the input / product of the others",
which is what the entry must have been for the operator to run at all, but is not defined where one of the others is
zero: so it is used only beside positive numbers. An entry that equals an axis is never negative, so 0 can stand for it.

Where both do, -1 is written, as torch's exporter does. 0 would tell onnxruntime the batch of every value behind it, and
with that it fuses residual Adds and LayerNormalization into a kernel four times slower than the two (1.32, BERT: 4 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dims import Dim, Dims
from graphopt_passes.lossless.partial_values import Elements, PartialValues, all_numbers
from graphopt_passes.rewriting import Done, Outcome, Rule, Site


def reshape_target(dims: Dims | None, target: Elements, allowzero: bool) -> list[int] | None:
    """A constant that means the same as `target` to a Reshape without `allowzero`, or None.

    Args:
        dims: extents of the tensor that is reshaped.
        target: the shape that the Reshape reads.
        allowzero: whether 0 in `target` is an extent.
    """
    result: list[int | None] = []
    for axis, size in enumerate(target):
        if isinstance(size, int) and not (size == 0 and allowzero):
            result.append(size)
        elif isinstance(size, str) and dims is not None and axis < len(dims) and dims[axis] == size:
            result.append(0)
        else:
            result.append(None)
    open_axes = [axis for axis, size in enumerate(target) if not isinstance(size, int)]
    others = [size for size in target if isinstance(size, int)]
    if len(open_axes) == 1 and all(size > 0 for size in others):
        result[open_axes[0]] = -1
    known = [size for size in result if size is not None]
    return known if len(known) == len(result) else None


def expand_target(dims: Dims, target: Elements) -> list[int] | None:
    """A constant that means the same as `target` to an Expand of a tensor of extents `dims`, or None."""
    result = []
    padded = (None,) * (len(target) - len(dims)) + dims[max(len(dims) - len(target), 0) :]
    for dim, size in zip(padded, target, strict=True):
        if isinstance(size, str) and size == dim:
            size = 1
        if not isinstance(size, int):
            return None
        result.append(size)
    return result


class ConstantReshape(Rule):
    """Reshape(x, computed shape) -> Reshape(x, constant)."""

    roots: ClassVar = frozenset({"Reshape"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Write the shape as a constant where Reshape can express it."""
        if len(node.inputs) < 2 or site.constant(node.inputs[1]) is not None:
            return None
        dims, result = self._values.dims(node.inputs[0], site), self._values.dims(node.outputs[0], site)
        target = self._values.elements(node.inputs[1], site)
        if target is None and result is None:
            return None
        target = _refined(target, result)
        constant = reshape_target(dims, target, node.attributes.get_int("allowzero", 0) != 0)
        if constant is None:
            return "its shape is not fixed, and 0 and -1 cannot express it for all extents"
        _read_constant(node, 1, constant, site)
        node.attributes.pop("allowzero", None)
        return Done("reads a constant shape", (node,))


def _refined(target: Elements | None, result: Dims | None) -> list[Dim]:
    """`target` with what follows for the result where that says more; 0 may be a copy and stays."""
    if target is None or result is None or len(target) != len(result):
        return list(target if target is not None else [dim or None for dim in result or ()])
    return [_clearer(size, dim) for size, dim in zip(target, result, strict=True)]


def _clearer(size: Dim, dim: Dim) -> Dim:
    if isinstance(dim, int):
        return dim if dim > 0 and size != 0 else size
    return dim if size is None else size


class ConstantExpand(Rule):
    """Expand(x, computed shape) -> Expand(x, constant), or x where that changes nothing."""

    roots: ClassVar = frozenset({"Expand"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Write the shape as a constant where Expand can express it."""
        dims = self._values.dims(node.inputs[0], site)
        target = self._values.elements(node.inputs[1], site)
        if dims is None or target is None:
            return None
        constant = expand_target(dims, target)
        if constant is None:
            return "its shape is not fixed"
        if len(constant) <= len(dims) and all(size in (1, dim) for size, dim in _from_the_right(constant, dims)):
            return site.forward(node, node.inputs[0], "removed: it expands nothing")
        if site.constant(node.inputs[1]) is not None:
            return None
        _read_constant(node, 1, constant, site)
        return Done("reads a constant shape", (node,))


def _from_the_right(sizes: Sequence[int], dims: Dims) -> list[tuple[int, Dim]]:
    return list(zip(reversed(sizes), reversed(dims), strict=False))


class ConstantSlice(Rule):
    """Slice(x, starts, computed ends) -> Slice(x, starts, constant), or x where it takes everything."""

    roots: ClassVar = frozenset({"Slice"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Write ends that equal the axis as the largest integer."""
        if len(node.inputs) < 3 or site.constant(node.inputs[2]) is not None:
            return None
        dims, dtype = self._values.dims(node.inputs[0], site), node.inputs[2].dtype if node.inputs[2] else None
        starts, ends, axes, steps = (self._optional(node, index, site) for index in range(1, 5))
        if dims is None or dtype is None or starts is None or ends is None:
            return None
        axes = list(range(len(starts))) if len(node.inputs) < 4 or node.inputs[3] is None else axes
        steps = [1] * len(starts) if len(node.inputs) < 5 or node.inputs[4] is None else steps
        whole, forward = all_numbers(axes), all_numbers(steps)
        if whole is None or forward is None or not len(starts) == len(ends) == len(whole) == len(forward):
            return None
        if any(step <= 0 for step in forward) or any(not -len(dims) <= axis < len(dims) for axis in whole):
            return None
        to_the_end = int(np.iinfo(dtype.numpy()).max)
        constant = [to_the_end if end == dims[axis] else end for end, axis in zip(ends, whole, strict=True)]
        if starts == [0] * len(starts) and forward == [1] * len(forward) and set(constant) == {to_the_end}:
            return site.forward(node, node.inputs[0], "removed: it takes everything")
        numbers = all_numbers(constant)
        if numbers is None:
            return "its bounds are not fixed"
        _read_constant(node, 2, numbers, site)
        return Done("reads constant bounds", (node,))

    def _optional(self, node: ir.Node, index: int, site: Site) -> Elements | None:
        return self._values.elements(node.inputs[index], site) if index < len(node.inputs) else None


class ScaledResize(Rule):
    """Resize(x, sizes = k * extents of x) -> Resize(x, scales = k)."""

    roots: ClassVar = frozenset({"Resize"})

    def __init__(self, values: PartialValues) -> None:
        self._values = values

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Write the sizes as scales where all scales are whole numbers, so that nothing is rounded."""
        if len(node.inputs) != 4 or site.constant(node.inputs[3]) is not None or "axes" in node.attributes:
            return None
        if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
            return None  # sizes are those of the crop
        dims, sizes = self._values.dims(node.inputs[0], site), self._values.elements(node.inputs[3], site)
        if dims is None or sizes is None or len(dims) != len(sizes):
            return None
        scales = [self._scale(dim, size) for dim, size in zip(dims, sizes, strict=True)]
        known = [scale for scale in scales if scale is not None]
        if len(known) < len(scales):
            return "its sizes are no fixed multiples of the extents"
        constant = site.new_constant(np.array(known, np.float32), f"{node.outputs[0].name}_scales", node)
        site.set_inputs(node, [*node.inputs[:2], constant])
        return Done("reads constant scales", (node,))

    def _scale(self, dim: Dim, size: Dim) -> int | None:
        scale = self._values.arithmetic.quotient(size, dim)
        return scale if isinstance(scale, int) and 0 < scale <= 1024 else None


def _read_constant(node: ir.Node, index: int, numbers: Sequence[int], site: Site) -> None:
    """Let input `index` of `node` be a constant vector of `numbers`."""
    inputs = list(node.inputs)
    stem = f"{node.outputs[0].name}_{'shape' if index == 1 else 'ends'}"
    read = node.inputs[index]
    dtype = np.int64 if read is None or read.dtype is None else read.dtype.numpy()
    inputs[index] = site.new_constant(np.array(numbers, dtype), stem, node)
    site.set_inputs(node, inputs)
