"""What a kernel has to do, as the quantities that its time grows with.

A kernel's time is close to a sum of a few amounts of work, each at its own price: multiply-accumulates on whole blocks
of channels, calls of the innermost routine, positions at the border that are computed one by one, partial sums that are
loaded and stored again, elements, bytes of weights. Which amounts matter depends on the algorithm, and that is called
the kernel's *family*: a blocked convolution counts other things than a matrix product. Prices come from measurements
(`graphopt.pricing.kernel_times`); this module only counts.

The algorithms are those of MLAS, onnxruntime's library of CPU kernels: direct convolution on blocks (snchwc.cpp), im2col
and matrix products for what cannot be blocked (convolve.cpp), packed integer products (qgemm.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import onnx_ir as ir

from graphopt.analysis.execution import Execution
from graphopt.analysis.fusion import Kernel
from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import input_at

_FILTER_BLOCKS = 4
"""Blocks of output channels that one call of a blocked convolution computes together."""

_POINTWISE_INPUTS = 128
"""Input channels after which a blocked pointwise convolution stores its partial sums."""

_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger"})
_PRODUCTS = frozenset(
    {
        *("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "QLinearMatMul", "QGemm", "MatMulInteger"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)
_INTEGER_PRODUCTS = frozenset(
    {"QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul"}
) | {"MatMulIntegerToFloat"}
_JOINS = frozenset({"Concat", "Split"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"})
_ROWS = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "SkipLayerNormalization", "RMSNormalization"})
_PIECES = frozenset({"Slice", "Gather", "Pad", "Expand", "Tile"})
_NAMES = (
    (frozenset({"Erf"}), "Gelu"),
    (frozenset({"Tanh", "Pow"}), "Gelu"),
    (frozenset({"Sqrt", "ReduceMean"}), "LayerNormalization"),
    (frozenset({"Sigmoid", "Mul"}), "QuickGelu"),
)
"""What onnxruntime calls the kernel that is put in the place of nodes with these operators."""


@dataclass(frozen=True)
class KernelWork:
    """Family of a kernel, and the amounts of work in it by what they are; all are positive."""

    family: str
    amounts: Mapping[str, float]


class _Window(NamedTuple):
    """A two-dimensional convolution: per group `inputs` to `outputs` channels; `edge` counts positions that touch padding."""

    batch: int
    groups: int
    inputs: int
    outputs: int
    height: int
    width: int
    taps: int
    edge: int
    pointwise: bool


def work_of(kernel: Kernel, execution: Execution, block: int) -> KernelWork | None:
    """What `kernel` has to do, or None where extents that decide it are not known.

    Args:
        kernel: of a schedule of `execution`.
        execution: extents and layouts of tensors.
        block: channels per block of the machine's convolutions.
    """
    if kernel.view_of is not None or kernel.main.op_type in ("Shape", "Size"):
        return KernelWork("view", {})
    name, main = kernel_name(kernel), kernel.main
    integer = kernel.integer or main.op_type in _INTEGER_PRODUCTS
    found: KernelWork | None
    if name in _CONVOLUTIONS:
        window = _window(main, execution)
        if window is None:
            return _elementwise(name, kernel, execution)
        blocked = any(tensor.block for tensor in kernel.writes)
        found = _blocked(window, block) if blocked else _plain(window, integer)
    elif name == "ConvTranspose":
        found = _transposed(main, execution)
    elif name in _PRODUCTS:
        found = _product(main, execution, integer)
    else:
        return _elementwise(name, kernel, execution)
    if found is None:
        return None
    joined = _elements(kernel.reads[1:], execution) if name in _CONVOLUTIONS else 0  # a residual sum
    return KernelWork(found.family, _positive({**found.amounts, "added": joined}))


def kernel_name(kernel: Kernel) -> str:
    """The operator that onnxruntime runs, close enough to tell kernels apart."""
    if not kernel.nodes:
        return "Reorder"
    name = kernel.main.op_type
    if len(kernel.nodes) == 1 or kernel.integer or name in _CONVOLUTIONS | _PRODUCTS:
        return name
    operators = {node.op_type for node in kernel.nodes}
    if "Add" in operators and (name == "LayerNormalization" or {"Sqrt", "ReduceMean"} <= operators):
        return "SkipLayerNormalization"
    return next((fused for parts, fused in _NAMES if parts <= operators), name)


def _window(node: ir.Node, execution: Execution) -> _Window | None:
    weight, output = execution.extents.dims(input_at(node, 1)), execution.extents.dims(node.outputs[0])
    if node.op_type == "QLinearConv":
        weight = execution.extents.dims(input_at(node, 3))
    if not weight or not output or len(weight) < 3 or len(output) != len(weight) or not prod((*weight, *output)):
        return None
    groups = attributes.integer(node, "group", 1)
    kernel, spatial = weight[2:], output[2:]
    strides = attributes.integers(node, "strides") or (1,) * len(kernel)
    pads = attributes.integers(node, "pads") or (0,) * (2 * len(kernel))
    if attributes.text(node, "auto_pad", "NOTSET").startswith("SAME"):
        pads = tuple(extent // 2 for extent in (*kernel, *kernel))
    edge = sum(-(-pad // strides[-1]) for pad in (pads[len(kernel) - 1], pads[-1]))
    return _Window(
        batch=output[0],
        groups=groups,
        inputs=weight[1],
        outputs=weight[0] // groups,
        height=prod(spatial[:-1]),
        width=spatial[-1],
        taps=prod(kernel),
        edge=min(edge, spatial[-1]),
        pointwise=prod(kernel) == 1 and not any(pads),
    )


def _blocked(window: _Window, block: int) -> KernelWork:
    """Direct convolution: for each row, block of inputs and four blocks of outputs one call."""
    w = window
    rows = w.batch * w.height
    if w.inputs == 1 and w.outputs == 1 and w.groups > 1:
        blocks = -(-w.groups // block)
        elements = rows * w.width * blocks * block
        amounts = {
            "elements": elements,
            "macs": elements * w.taps,
            "calls": rows * blocks,
            "edge": rows * w.edge * blocks * block * w.taps,
        }
        return KernelWork("blocked depthwise", amounts)
    filters = -(-w.outputs // block)
    calls = -(-filters // _FILTER_BLOCKS) * w.groups
    images = w.groups == 1 and w.inputs < block
    inputs = w.inputs if images else -(-w.inputs // block) * block
    deep = inputs * w.taps
    wide = filters * block * w.groups
    rest = filters % _FILTER_BLOCKS
    positions = rows * w.width
    sums = 1 if images else -(-inputs // (_POINTWISE_INPUTS if w.pointwise else block))
    amounts = {
        "macs": positions * deep * wide,
        "narrow": positions * deep * block * w.groups * ((_FILTER_BLOCKS - rest) if rest else 0),
        "edge": rows * w.edge * deep * wide,
        "calls": calls * sums * (w.batch if w.pointwise else rows),
        "sums": positions * wide * sums,
        "elements": positions * wide + positions * inputs * w.groups,
        "weights": deep * wide,
    }
    kind = "image" if images else "pointwise" if w.pointwise else "window"
    return KernelWork(f"blocked {kind}", amounts)


def _plain(window: _Window, integer: bool) -> KernelWork:
    """Rows of patches times the weights, one product per image and group."""
    w = window
    positions = w.batch * w.height * w.width
    depthwise = w.inputs == 1 and w.outputs == 1 and w.groups > 1
    amounts: dict[str, float] = {
        "macs": positions * w.groups * w.inputs * w.outputs * w.taps,
        "patches": 0 if w.pointwise else positions * w.groups * w.inputs * w.taps,
        "calls": w.batch * w.groups,
        "elements": positions * w.groups * w.outputs,
        "weights": w.groups * w.inputs * w.outputs * w.taps,
    }
    if depthwise:
        amounts = {key: amounts[key] for key in ("macs", "calls", "elements")}
    elif integer:  # products of rows of 16 outputs, four inputs at a time
        padded = -(-w.inputs * w.taps // 4) * 4 * (-(-w.outputs // 16) * 16)
        amounts["macs"] = positions * w.groups * padded
    kind = "depthwise" if depthwise else "convolution"
    return KernelWork(f"{'integer' if integer else 'plain'} {kind}", amounts)


def _transposed(node: ir.Node, execution: Execution) -> KernelWork | None:
    """A product, and the sum of overlapping patches."""
    weight, image = execution.extents.dims(input_at(node, 1)), execution.extents.dims(input_at(node, 0))
    output = execution.extents.dims(node.outputs[0])
    if not weight or not image or not output or len(weight) < 3:
        return None
    positions = image[0] * prod(image[2:])
    patches = positions * prod(weight[1:]) * attributes.integer(node, "group", 1)
    amounts = {"macs": positions * prod(weight), "patches": patches, "elements": prod(output), "weights": prod(weight)}
    return KernelWork("transposed convolution", amounts)


def _product(node: ir.Node, execution: Execution, integer: bool) -> KernelWork | None:
    at = 3 if node.op_type in ("QLinearMatMul", "QGemm") else 1
    first, second = execution.extents.dims(input_at(node, 0)), execution.extents.dims(input_at(node, at))
    output = execution.extents.dims(node.outputs[0])
    if not first or not second or not output:
        return None
    columns = output[-1]
    batch = prod(second[:-2])
    rows = max(1, prod(output) // max(columns, 1) // max(batch, 1))
    inner = prod(second[-2:]) // max(columns, 1) if len(second) > 1 else second[0]
    value = input_at(node, at)
    constant = constant_tensor(value) is not None or _dequantized_constant(value)
    amounts = {
        "macs": batch * rows * inner * (-(-columns // 16) * 16),
        "calls": batch,
        "packed": 0 if constant else batch * inner * columns,
        "elements": batch * rows * (inner + columns),
        "weights": inner * columns if constant else 0,
    }
    kind = "vector" if rows == 1 else "product"
    dynamic = node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
    number = "dynamic" if dynamic else "integer" if integer else "float"
    return KernelWork(f"{number} {kind}{'' if constant else ' of activations'}", amounts)


def _dequantized_constant(value: ir.Value | None) -> bool:
    """Whether `value` is a weight behind DequantizeLinear."""
    producer = None if value is None else value.producer()
    return (
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and (constant_tensor(input_at(producer, 0)) is not None)
    )


def _elementwise(name: str, kernel: Kernel, execution: Execution) -> KernelWork | None:
    """Whatever passes over its tensors: elements, and contiguous runs of them."""
    node = kernel.main
    tensors = (*kernel.reads, *kernel.writes)
    sizes = [execution.layout(tensor) for tensor in tensors]
    if not sizes or any(size is None for size in sizes):
        return None
    elements = max(prod(size[0]) for size in sizes if size is not None)
    output = sizes[-1][0] if sizes[-1] is not None else ()
    dims = execution.extents.dims(tensors[0].value) or ()
    amounts: dict[str, float] = {
        "elements": elements,
        "moved": sum(prod(size[0]) for size in sizes if size is not None),
    }
    blocked = any(tensor.block for tensor in tensors)
    kind = ""
    if name == "Reorder":
        kind = "to blocks" if kernel.writes[0].block else "from blocks"
    elif name in _JOINS:
        axis = attributes.integer(node, "axis", 0)
        whole = (execution.extents.dims(node.outputs[0]) if name == "Concat" else dims) or (1,)
        amounts["runs"] = prod(whole[: axis % len(whole)]) * len(node.inputs if name == "Concat" else node.outputs)
    elif name == "Transpose":
        amounts["runs"] = _transposed_runs(node, dims)
    elif name in _REDUCTIONS:
        last = bool(dims) and bool(output) and (output[-1] == dims[-1] or len(output) < len(dims))
        kind = "across" if last and len(dims) == len(output) else "along"
        amounts["runs"] = prod(output)
    elif name in _ROWS:
        axis = attributes.integer(node, "axis", -1)
        kind = "" if axis in (-1, len(dims) - 1) or prod(dims[axis:]) == dims[axis] else "across"
        amounts["runs"] = elements // max(1, dims[-1] if dims else 1)
    elif name in _PIECES:
        amounts["runs"] = prod(output[:-1])
    elif "Pool" in name:
        window = attributes.integers(node, "kernel_shape") or ()
        amounts["taps"] = prod(output) * prod(window) if window else elements
    elif len(node.inputs) > 1:
        amounts["runs"] = _broadcast_runs(node, execution)
    words = ("integer" if kernel.integer else "", name, kind, "in blocks" if blocked and name != "Reorder" else "")
    return KernelWork(" ".join(filter(None, words)), _positive(amounts))


def _transposed_runs(node: ir.Node, dims: tuple[int, ...]) -> int:
    """Contiguous runs that a Transpose copies: what stays last stays together."""
    perm = attributes.integers(node, "perm") or tuple(reversed(range(len(dims))))
    run = 1
    for axis in reversed(range(len(dims))):
        if axis >= len(perm) or perm[axis] != axis:
            break
        run *= dims[axis]
    return prod(dims) // max(run, 1)


def _broadcast_runs(node: ir.Node, execution: Execution) -> int:
    """Stretches of the result along which no operand of a broadcast changes its mode."""
    output = execution.extents.dims(node.outputs[0]) or ()
    run = 1
    modes: tuple[bool, ...] | None = None
    operands = [execution.extents.dims(value) for value in node.inputs if value is not None]
    for back in range(1, len(output) + 1):
        if output[-back] == 1:
            continue
        mode = tuple(dims is not None and len(dims) >= back and dims[-back] != 1 for dims in operands)
        if modes is not None and mode != modes:
            break
        modes = mode
        run *= output[-back]
    return prod(output) // max(run, 1)


def _elements(tensors: tuple[object, ...], execution: Execution) -> int:
    layouts = [execution.layout(tensor) for tensor in tensors]  # type: ignore[arg-type]
    return sum(prod(layout[0]) for layout in layouts if layout is not None)


def _positive(amounts: Mapping[str, float]) -> dict[str, float]:
    return {key: float(amount) for key, amount in amounts.items() if amount > 0}
