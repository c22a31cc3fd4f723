"""The extents of sliding windows: convolution, pooling and transposed convolution over symbolic axes.

The formulas are those of the ONNX operator specifications of Conv, MaxPool and ConvTranspose; see
`graphopt.analysis.symbolic` for what a rule is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.analysis.call import Call
from graphopt.analysis.dims import Arithmetic, Dim, Dims

Rule = Callable[[Call, Arithmetic], list[Dims | None]]


def _window(call: Call, arithmetic: Arithmetic, spatial: Sequence[Dim], kernel: Sequence[Dim]) -> list[Dim]:
    """The extents of a sliding window's output along its spatial axes."""
    count = len(spatial)
    strides = call.integers("strides") or [1] * count
    dilations = call.integers("dilations") or [1] * count
    pads = call.integers("pads") or [0] * (2 * count)
    mode = call.text("auto_pad", "NOTSET")
    result: list[Dim] = []
    for axis, extent in enumerate(spatial):
        size, stride = kernel[axis], strides[axis]
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            result.append(arithmetic.ceil_divide(extent, stride))
            continue
        if not isinstance(size, int):
            result.append(None)
            continue
        reach = dilations[axis] * (size - 1) + 1
        begin, end = (0, 0) if mode == "VALID" else (pads[axis], pads[axis + count])
        room = arithmetic.add(extent, begin + end - reach)
        if not call.integer("ceil_mode", 0):
            steps = arithmetic.floor_divide(room, stride)
        elif end + stride <= reach:
            steps = arithmetic.ceil_divide(room, stride)
        else:
            # A last window that starts in the padding is dropped, which depends on the number behind the symbol.
            steps = None
        result.append(arithmetic.add(steps, 1))
    return result


def convolution(data: int, weight: int) -> Rule:
    """The rule of a convolution whose data and weight are these inputs."""

    def rule(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
        x, w = call.dims(data), call.dims(weight)
        if x is None or w is None or len(x) < 3 or len(w) != len(x):
            return [None]
        return [(x[0], w[0], *_window(call, arithmetic, x[2:], call.integers("kernel_shape") or w[2:]))]

    return rule


def pool(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    """Channels stay, space shrinks; the indices of MaxPool have the extents of its result."""
    x, kernel = call.dims(0), call.integers("kernel_shape")
    if x is None or kernel is None or len(x) != len(kernel) + 2:
        return [None] * len(call.outputs)
    return [(x[0], x[1], *_window(call, arithmetic, x[2:], kernel))] * len(call.outputs)


def transposed_convolution(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    """The extents of which a convolution with the same attributes would make the input's."""
    x, w = call.dims(0), call.dims(1)
    if x is None or w is None or len(x) < 3 or len(w) != len(x):
        return [None]
    count = len(x) - 2
    kernel = call.integers("kernel_shape") or w[2:]
    strides = call.integers("strides") or [1] * count
    dilations = call.integers("dilations") or [1] * count
    extra = call.integers("output_padding") or [0] * count
    pads = call.integers("pads") or [0] * (2 * count)
    mode = call.text("auto_pad", "NOTSET")
    wanted = call.integers("output_shape")
    spatial: list[Dim] = []
    for axis, extent in enumerate(x[2:]):
        size = kernel[axis]
        if wanted is not None:
            spatial.append(wanted[axis - count])
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            spatial.append(arithmetic.multiply(extent, strides[axis]))
        elif isinstance(size, int):
            trim = 0 if mode == "VALID" else pads[axis] + pads[axis + count]
            rest = extra[axis] + (size - 1) * dilations[axis] + 1 - trim - strides[axis]
            spatial.append(arithmetic.add(arithmetic.multiply(extent, strides[axis]), rest))
        else:
            spatial.append(None)
    return [(x[0], arithmetic.multiply(w[1], call.integer("group", 1)), *spatial)]
