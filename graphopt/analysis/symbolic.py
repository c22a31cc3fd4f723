"""The extents that need arithmetic on symbols: what ONNX's inference, which knows only numbers, leaves open.

One rule per operator gives the extents of its outputs as far as they can be told; None for an extent means "not
known". Only extents that ONNX left open are ever taken from here. The rules are exact: where a result would need an
assumption about a symbol (that a slice stays in range, that two symbols are equal because they are broadcast), the
extent stays open.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.analysis import windows
from graphopt.analysis.call import Call
from graphopt.analysis.dims import Arithmetic, Dim, Dims

Rule = Callable[[Call, Arithmetic], list[Dims | None]]

WHOLE = 2**31 - 1
"""Slice bounds of at least this size mean "to the end"; exporters write INT32_MAX or INT64_MAX."""

MOST_AXES = 64
"""A tensor that claims to have more is not believed."""

CONTENTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "DFT": (1, 2), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "ImageDecoder": (),
    "MaxUnpool": (2,), "MelWeightMatrix": (0, 1), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2),
    "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,),
    "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,),
    "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,),
    "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1, 2), "TopK": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""The inputs whose elements, not only their extents, decide the extents of an operator's outputs."""


def infer(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    """The extents of the outputs of `call` as far as this module knows."""
    rule = RULES.get(call.op_type) if call.domain == "" else None
    if rule is None:
        return [None] * len(call.outputs)
    try:
        return [_possible(extents) for extents in rule(call, arithmetic)]
    except (ArithmeticError, IndexError, TypeError, ValueError):
        # Attributes and inputs do not fit each other; ONNX's inference, which had numbers to go by, has said so.
        return [None] * len(call.outputs)


def _possible(extents: Dims | None) -> Dims | None:
    """A window that is larger than its input comes out negative: nothing is known about what cannot be."""
    if extents is None or not any(isinstance(dim, int) and dim < 0 for dim in extents):
        return extents
    return tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in extents)


def _elements(array: np.ndarray | None) -> list[Dim] | None:
    """The elements of an integer input as extents."""
    return None if array is None else [x if isinstance(x, str) else None if x is None else int(x) for x in array.flat]


def _integers(array: np.ndarray | None) -> list[int] | None:
    """The elements of an integer input, where all are numbers."""
    return None if array is None or array.dtype == object else [int(x) for x in array.flat]


def _setting(call: Call, name: str, index: int, since: int) -> list[Dim] | None:
    """A list that is an attribute before opset `since` and an input from then on."""
    if call.version < since:
        attribute = call.integers(name)
        return None if attribute is None else list(attribute)
    return _elements(call.content(index))


def _optional_axes(call: Call, name: str, index: int, rank: int) -> list[int] | None:
    """Axes given as attribute or input; all of them where they are left out; None where they are not known."""
    axes = call.integers(name) or (_integers(call.content(index)) if call.has(index) else list(range(rank)))
    return None if axes is None else [axis % rank for axis in axes] if rank else []


def _replaced(dims: Dims, changes: dict[int, Dim]) -> Dims:
    return tuple(changes.get(axis, dim) for axis, dim in enumerate(dims))


# --- Joining and cutting --------------------------------------------------------------------------


def _concat(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    known = [call.dims(index) for index in range(len(call.inputs))]
    parts = [dims for dims in known if dims is not None]
    if len(parts) != len(known) or not parts or not parts[0]:
        return [None]
    axis = call.integer("axis", 1) % len(parts[0])
    total: Dim = 0
    for dims in parts:
        total = arithmetic.add(total, dims[axis])
    return [_replaced(parts[0], {axis: total})]


def _split(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, count = call.dims(0), len(call.outputs)
    if not dims:
        return [None] * count
    axis = call.integer("axis", 0) % len(dims)
    sizes = _setting(call, "split", 1, since=13)
    if sizes is None and (call.has(1) or len(call.inputs) > 1):
        sizes = [None] * count
    if sizes is None and "num_outputs" in call.attributes:
        part = arithmetic.ceil_divide(dims[axis], count)
        sizes = [part] * (count - 1)
        sizes.append(arithmetic.subtract(dims[axis], arithmetic.multiply(part, count - 1)))
    elif sizes is None:
        sizes = [arithmetic.quotient(dims[axis], count)] * count
    return [_replaced(dims, {axis: size}) for size in sizes]


def _slice(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims = call.dims(0)
    if dims is None:
        return [None]
    starts, ends = _setting(call, "starts", 1, since=10), _setting(call, "ends", 2, since=10)
    axes = _optional_axes(call, "axes", 3, len(dims))
    steps = _integers(call.content(4)) if call.has(4) else [1] * len(dims)
    if starts is None or ends is None or axes is None or steps is None:
        return [(None,) * len(dims) if axes is None else _replaced(dims, dict.fromkeys(axes[: len(dims)]))]
    cut = zip(axes, starts, ends, steps, strict=False)
    return [_replaced(dims, {a: _sliced(arithmetic, dims[a], start, end, step) for a, start, end, step in cut})]


def _sliced(arithmetic: Arithmetic, extent: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """The number of elements that `[start:end:step]` takes from an axis."""
    if step < 0:
        whole = isinstance(end, int) and end <= -WHOLE and isinstance(start, int) and (start == -1 or start >= WHOLE)
        return arithmetic.ceil_divide(extent, -step) if whole else None
    to_end = end == extent or (isinstance(end, int) and end >= WHOLE)
    if to_end and isinstance(start, int) and start < 0:
        return arithmetic.ceil_divide(arithmetic.minimum(extent, -start), step)
    first = 0 if start == 0 else _bound(arithmetic, extent, start)
    last = extent if to_end else _bound(arithmetic, extent, end)
    length = last if first == 0 else arithmetic.maximum(0, arithmetic.subtract(last, first))
    return arithmetic.ceil_divide(length, step)


def _bound(arithmetic: Arithmetic, extent: Dim, bound: Dim) -> Dim:
    """Where a slice bound falls on an axis of `extent` elements."""
    if isinstance(bound, int) and bound < 0:
        return arithmetic.maximum(0, arithmetic.add(extent, bound))
    return arithmetic.minimum(extent, bound) if arithmetic.not_negative(bound) else None


# --- Resizing -------------------------------------------------------------------------------------


def _pad(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims = call.dims(0)
    if dims is None:
        return [None]
    pads = _setting(call, "paddings" if call.version < 2 else "pads", 1, since=11)
    axes = _optional_axes(call, "", 3, len(dims))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return [(None,) * len(dims)]
    margins = {a: arithmetic.add(pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    return [_replaced(dims, {axis: arithmetic.add(dims[axis], margin) for axis, margin in margins.items()})]


def _tile(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, repeats = call.dims(0), _elements(call.content(1))
    if call.version < 6 or dims is None or repeats is None or len(repeats) != len(dims):
        return [None]
    return [tuple(map(arithmetic.multiply, dims, repeats))]


def _expand(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, target = call.dims(0), _elements(call.content(1))
    return [None if dims is None or target is None else broadcast(dims, tuple(target))]


def broadcast(a: Dims, b: Dims) -> Dims:
    """The extents of two tensors broadcast together. Two different symbols leave an extent open: either may be 1."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(_broadcast_dim(x, y) for x, y in pairs)


def _broadcast_dim(x: Dim, y: Dim) -> Dim:
    if x == y or y == 1:
        return x
    if x == 1 or (isinstance(y, int) and not isinstance(x, int)):
        return y
    return x if isinstance(x, int) else None


def _resize(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims = call.dims(0)
    if dims is None:
        return [None]
    axes = _optional_axes(call, "axes", len(call.inputs), len(dims))
    sizes = _elements(call.content(3))
    policy, mode = call.text("keep_aspect_ratio_policy", "stretch"), call.text("coordinate_transformation_mode", "")
    if axes is None or policy != "stretch" or mode == "tf_crop_and_resize":
        return [None]
    if sizes is None:
        scales = call.content(2 if call.version >= 11 else 1)
        if scales is None or scales.size != len(axes):
            return [None]
        sizes = [_scaled(arithmetic, dims[axis], scale) for axis, scale in zip(axes, scales.flat, strict=True)]
    return [_replaced(dims, dict(zip(axes, sizes, strict=False)))]


def _upsample(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, content = call.dims(0), call.content(1)
    scales = call.attributes["scales"].as_floats() if "scales" in call.attributes else content
    if dims is None or scales is None or len(scales) != len(dims):
        return [None]
    return [tuple(_scaled(arithmetic, dim, scale) for dim, scale in zip(dims, scales, strict=True))]


def _scaled(arithmetic: Arithmetic, dim: Dim, scale: float | None) -> Dim:
    """floor(dim * scale), where no rounding of `scale` can make the floor come out differently."""
    if scale is None:
        return None
    numerator, denominator = float(scale).as_integer_ratio()
    if isinstance(dim, int):
        return dim * numerator // denominator
    return None if denominator > 1024 else arithmetic.floor(arithmetic.fraction(dim, numerator, denominator))


# --- Reshaping ------------------------------------------------------------------------------------


def _reshape(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims = call.dims(0)
    target = _setting(call, "shape", 1, since=5)
    if target is None:
        shape = call.dims(1)
        rank = shape[0] if shape is not None and len(shape) == 1 else None
        return [(None,) * rank if isinstance(rank, int) and rank <= MOST_AXES else None]
    result: list[Dim] = []
    for axis, size in enumerate(target):
        if size == 0 and not call.integer("allowzero", 0):
            result.append(dims[axis] if dims is not None and axis < len(dims) else None)
        else:
            result.append(size if size is not None and arithmetic.not_negative(size) else None)
    # The total is given, so that a single open extent, whether written as -1 or not known, follows from the others.
    if dims is not None and result.count(None) == 1:
        others = arithmetic.product(size for size in result if size is not None)
        result[result.index(None)] = arithmetic.quotient(arithmetic.product(dims), others)
    return [tuple(result)]


def _flatten(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims = call.dims(0)
    if dims is None:
        return [None]
    axis = call.integer("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [(arithmetic.product(dims[:axis]), arithmetic.product(dims[axis:]))]


def _depth_to_space(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, block = call.dims(0), call.integer("blocksize", 1)
    if dims is None or len(dims) != 4:
        return [None]
    channels = arithmetic.quotient(dims[1], block * block)
    return [(dims[0], channels, arithmetic.multiply(dims[2], block), arithmetic.multiply(dims[3], block))]


def _space_to_depth(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, block = call.dims(0), call.integer("blocksize", 1)
    if dims is None or len(dims) != 4:
        return [None]
    channels = arithmetic.multiply(dims[1], block * block)
    return [(dims[0], channels, arithmetic.quotient(dims[2], block), arithmetic.quotient(dims[3], block))]


# --- Making ---------------------------------------------------------------------------------------


def _range(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    ends = [_elements(call.content(index)) for index in range(3)]
    dtype = call.fact(0).dtype
    if any(end is None or len(end) != 1 for end in ends) or dtype is None or not dtype.is_integer():
        return [(None,)]
    start, limit, delta = (end[0] for end in ends if end is not None)
    if not isinstance(delta, int) or delta <= 0:
        return [(None,)]
    return [(arithmetic.maximum(0, arithmetic.ceil_divide(arithmetic.subtract(limit, start), delta)),)]


def _constant_of_shape(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    target = _elements(call.content(0))
    return [None if target is None else tuple(target)]


def _one_hot(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, depth = call.dims(0), _elements(call.content(1))
    if dims is None:
        return [None]
    axis = call.integer("axis", -1) % (len(dims) + 1)
    return [(*dims[:axis], depth[0] if depth else None, *dims[axis:])]


def _top_k(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    dims, k = call.dims(0), _elements(call.content(1))
    if not dims:
        return [None, None]
    return [_replaced(dims, {call.integer("axis", -1) % len(dims): k[0] if k else call.integer("k", 0) or None})] * 2


# --- Attention ------------------------------------------------------------------------------------


def _attention(call: Call, arithmetic: Arithmetic) -> list[Dims | None]:
    q, k, v = (_heads(call, arithmetic, index) for index in range(3))
    if q is None or k is None or v is None:
        return [None] * len(call.outputs)
    past = call.dims(4) if call.has(4) else None
    earlier = 0 if not call.has(4) else past[2] if past is not None and len(past) == 4 else None
    length = arithmetic.add(earlier, k[2])
    result: Dims = (q[0], q[1], q[2], v[3])
    if len(call.dims(0) or ()) == 3:
        result = (q[0], q[2], arithmetic.multiply(q[1], v[3]))
    present = [(k[0], k[1], length, k[3]), (v[0], v[1], length, v[3])]
    found: list[Dims | None] = [result, *present, (q[0], q[1], q[2], length)]
    return found[: len(call.outputs)]


def _heads(call: Call, arithmetic: Arithmetic, index: int) -> Dims | None:
    """Query, key or value as (batch, heads, length, width); with three axes, heads and width are one."""
    dims = call.dims(index)
    if dims is None or len(dims) == 4:
        return dims
    heads = call.integer("kv_num_heads" if index else "q_num_heads", 0)
    if len(dims) != 3 or not heads:
        return None
    return (dims[0], heads, dims[1], arithmetic.quotient(dims[2], heads))


RULES: dict[str, Rule] = {
    "Conv": windows.convolution(0, 1), "ConvInteger": windows.convolution(0, 1),
    "DeformConv": windows.convolution(0, 1), "QLinearConv": windows.convolution(0, 3),
    "AveragePool": windows.pool, "LpPool": windows.pool, "MaxPool": windows.pool,
    "ConvTranspose": windows.transposed_convolution,
    "Concat": _concat, "Split": _split, "Slice": _slice, "Pad": _pad, "Tile": _tile, "Expand": _expand,
    "Resize": _resize, "Upsample": _upsample, "Reshape": _reshape, "Flatten": _flatten,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Range": _range,
    "ConstantOfShape": _constant_of_shape, "OneHot": _one_hot, "TopK": _top_k, "Attention": _attention,
    "BlackmanWindow": _constant_of_shape, "HammingWindow": _constant_of_shape, "HannWindow": _constant_of_shape,
}  # fmt: skip
"""The operators of ONNX's own domain whose extents need arithmetic."""
