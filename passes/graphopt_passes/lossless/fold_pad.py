"""Pad into the convolution or pooling that reads it.

    Conv           pads with zeros by itself: Pad with 0 goes into its attribute `pads`
    AveragePool    likewise, where it counts the padding in (`count_include_pad`), which a Pad in front always did
    MaxPool        ignores its padding: right where Pad adds -inf, and where it adds 0 and no input is negative, since
                   every window has an element that is not padding

Only constant padding of spatial axes that removes nothing goes. Automatic padding is written out first where the
extents are known. A pool's padding stays smaller than its window, as runtimes want it, and one that rounds its output
up (`ceil_mode`) is left alone. All that reads the padded tensor must take it in, or the Pad stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt_passes.lossless import extents
from graphopt_passes.lossless.parameters import given, integers
from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site

_READERS = frozenset({"Conv", "AveragePool", "MaxPool"})
_NOT_NEGATIVE = frozenset(
    {
        "Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax",
        "Softplus", "Sqrt",
    }
)  # fmt: skip
_MOVES = frozenset(
    {
        "AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Reshape", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_KEEPS_SIGN = _MOVES | {"Add", "Concat", "Mean", "Mul", "Sum"}
"""Operators whose result is not negative where their inputs, or for `_MOVES` the first of them, are not."""
_FAR = 64
"""Nodes that are looked at to find that a tensor is not negative."""


@dataclasses.dataclass(frozen=True)
class FoldPad(RulePass):
    """Take Pad into the Conv, AveragePool or MaxPool behind it."""

    name: ClassVar[str] = "fold-pad"

    def rules(self) -> Sequence[Rule]:
        """One rule."""
        return [_FoldPad()]


@dataclasses.dataclass(frozen=True)
class _Padding:
    """What a Pad puts around each spatial axis of `data`: `value`, so many times before it and behind it."""

    data: ir.Value
    before: tuple[int, ...]
    behind: tuple[int, ...]
    value: float


class _FoldPad(Rule):
    """Fold one Pad."""

    roots = frozenset({"Pad"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Fold `node` into all that reads it."""
        padded = node.outputs[0]
        readers = list(padded.consumers())
        if not any(reader.op_type in _READERS and reader.domain == "" for reader in readers):
            return None
        padding = _padding(node, site)
        if isinstance(padding, str):
            return f"kept: {padding}"
        if padded.is_graph_output():
            return "kept: it makes a graph output"
        changes = []
        for reader, index in padded.uses():
            is_open = site.graph_of(reader) is not None and site.may_touch(reader)
            if not is_open or index != 0 or reader.op_type not in _READERS or reader.domain != "":
                return "kept: not all that reads it can pad by itself"
            attributes = _attributes(reader, padding, site)
            if isinstance(attributes, str):
                return f"kept: {attributes}"
            changes.append((reader, attributes))
        for reader, attributes in changes:
            reader.attributes.pop("auto_pad", None)
            for attribute in ir.convenience.convert_attributes(attributes):
                reader.attributes.add(attribute)
        readers = [*readers, *site.replace(node, padding.data)]
        return Done("folded into what reads it", tuple(dict.fromkeys(readers)))


def _padding(pad: ir.Node, site: Site) -> _Padding | str:
    """What `pad` does, or why it is not folded."""
    data, pads = pad.inputs[0], integers(site, pad, "pads") if site.opset >= 2 else None
    value = _value(pad, site)
    if data is None or pads is None or value is None or pad.attributes.get_string("mode", "constant") != "constant":
        return "only constant padding by known extents is folded"
    count = len(pads) // 2
    along = integers(site, pad, "axes", range(count))
    rank = extents.rank(data) or (None if given(site, pad, "axes") else count)
    if along is None or rank is None:
        return "it is not known which axes it pads"
    before, behind = [0] * rank, [0] * rank
    for position, index in enumerate(along):
        before[index], behind[index] = pads[position], pads[count + position]
    if min(pads, default=0) < 0:
        return "it removes elements"
    if any(before[:2]) or any(behind[:2]):
        return "it pads other axes than the spatial ones"
    return _Padding(data, tuple(before[2:]), tuple(behind[2:]), value)


def _value(pad: ir.Node, site: Site) -> float | None:
    """The number that `pad` adds, None where it is not constant."""
    if site.opset < 11:
        return pad.attributes.get_float("value", 0.0)
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    array = site.array(pad.inputs[2])
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _attributes(reader: ir.Node, padding: _Padding, site: Site) -> dict[str, int | list[int]] | str:
    """The attributes with which `reader` pads by itself, or why it cannot."""
    window = _window(reader)
    own = _own_padding(reader, window)
    if own is None or len(own) != 2 * len(padding.before):
        return f"the {reader.op_type} pads by extents that are not known"
    pads = [mine + its for mine, its in zip((*padding.before, *padding.behind), own, strict=True)]
    if reader.op_type == "Conv":
        return {"pads": pads} if padding.value == 0 else "a Conv pads with zeros only"
    if reader.attributes.get_int("ceil_mode", 0):
        return f"the {reader.op_type} rounds its output up"
    if window is None or any(pad >= width for pad, width in zip(pads, (*window, *window), strict=True)):
        return f"the padding is not smaller than the window of the {reader.op_type}"
    if reader.op_type == "AveragePool":
        return _average(reader, padding, own, pads, site)
    why_not = _why_not_maximum(reader, padding)
    return why_not or {"pads": pads}


def _average(
    reader: ir.Node, padding: _Padding, own: Sequence[int], pads: list[int], site: Site
) -> dict[str, int | list[int]] | str:
    counts = reader.attributes.get_int("count_include_pad", 0)
    if padding.value != 0 or (any(own) and not counts) or site.opset < 7:
        return "the AveragePool cannot count one padding in and another out, or pad with other numbers than 0"
    return {"pads": pads, "count_include_pad": 1}


def _why_not_maximum(reader: ir.Node, padding: _Padding) -> str | None:
    """Why a MaxPool that ignores its padding is something else; None where it is the same."""
    if any(output.uses() or output.is_graph_output() for output in reader.outputs[1:]):
        return "the MaxPool's indices are read"
    if any(dilation != 1 for dilation in reader.attributes.get_ints("dilations", ())):
        return "a window of the MaxPool might hold nothing but padding"
    if padding.value == -np.inf or (padding.value == 0 and _is_not_negative(padding.data)):
        return None
    return "a MaxPool ignores its padding, and the added numbers may be the largest"


def _window(reader: ir.Node) -> tuple[int, ...] | None:
    """The extents of the kernel, where they are known."""
    if "kernel_shape" in reader.attributes:
        return tuple(reader.attributes.get_ints("kernel_shape"))
    dims = extents.dims(reader.inputs[1]) if reader.op_type == "Conv" else None
    window = tuple(dim for dim in (dims or ())[2:] if isinstance(dim, int))
    return window if dims is not None and len(window) == len(dims) - 2 else None


def _own_padding(reader: ir.Node, window: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How `reader` pads already, written out as in `pads`; None where that is not known.

    SAME_UPPER and SAME_LOWER give ceil(extent / stride) outputs; source: ONNX Operators.md, Conv, `auto_pad`.
    """
    attributes = reader.attributes
    dims = extents.dims(reader.inputs[0]) or ()
    spatial = len(window) if window is not None else len(dims) - 2
    mode = attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return tuple(attributes.get_ints("pads", ())) if "pads" in attributes and mode == "NOTSET" else (0, 0) * spatial
    if window is None or len(dims) != spatial + 2:
        return None
    strides = attributes.get_ints("strides", (1,) * spatial)
    dilations = attributes.get_ints("dilations", (1,) * spatial)
    less, more = [], []
    for extent, width, stride, dilation in zip(dims[2:], window, strides, dilations, strict=True):
        if not isinstance(extent, int):
            return None
        total = max(0, (-(-extent // stride) - 1) * stride + (width - 1) * dilation + 1 - extent)
        less.append(total // 2)
        more.append(total - total // 2)
    return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)


def _is_not_negative(value: ir.Value) -> bool:
    """Whether no element of `value` is negative, whatever the model is given."""
    if value.dtype is None or not value.dtype.is_floating_point():
        return value.dtype is not None and value.dtype.is_integer() and not value.dtype.is_signed()
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        if node is None or node.domain != "" or len(seen) > _FAR:
            return False
        if node.op_type in _NOT_NEGATIVE or (node.op_type == "Clip" and _clips_negative(node)):
            continue
        if node.op_type not in _KEEPS_SIGN:
            return False
        reads = node.inputs[:1] if node.op_type in _MOVES else node.inputs
        new = [read for read in reads if read is not None and read not in seen]
        pending += new
        seen.update(new)
    return True


def _clips_negative(clip: ir.Node) -> bool:
    if "min" in clip.attributes:
        return clip.attributes.get_float("min") >= 0
    lower = constant_tensor(clip.inputs[1]) if len(clip.inputs) > 1 else None
    return lower is not None and lower.size == 1 and bool(lower.numpy().reshape(()) >= 0)
