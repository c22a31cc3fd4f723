"""What keeps onnxruntime's CPU provider from running a convolution or matrix product on integers.

onnxruntime takes `DequantizeLinear`s, the node and `QuantizeLinear` for one integer kernel where all of these hold
(found by trying, see `tests/pricing/test_integer_kernels.py`, and in its `qdq_selectors.cc`):

* the input and the weight come from DequantizeLinear nodes of the same graph, on 8 bits, with constant scales;
* int8 inputs and results are turned into uint8 on x86, which is done only where one node alone reads them;
* the scale of the input is one number, that of the weight too or one per output channel;
* the bias is constant, and if it is quantized, it is int32; for Conv with the scale of the input times the weight's;
* one QuantizeLinear reads the result and nothing else does, but for a Relu or Clip in between that its range absorbs;
  of a Gemm or MatMul, other readers may read the result in float, if no QuantizeLinear reads it too;
* a Gemm transposes no input and scales nothing (alpha = beta = 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.analysis.integer_fusion import absorbs
from graphopt.ir.walk import constant_tensor, label
from graphopt.ops import attributes
from graphopt.ops.base import input_at, operator

_FUSED = frozenset({"Conv", "Gemm", "MatMul"})
_FLOAT_RESULT = frozenset({"Gemm", "MatMul"})
_EIGHT_BITS = (ir.DataType.UINT8, ir.DataType.INT8)
_ABSORBED = ("Relu", "Clip")


def obstacles(node: ir.Node) -> Iterator[str]:
    """The reasons, in words, why `node` does not run on integers; none where none is known."""
    if node.op_type not in _FUSED or node.domain != "":
        yield f"onnxruntime has no integer kernel for {node.op_type}"
        return
    form = operator(node).integer_form(node)
    if form is None:
        yield "alpha and beta must be 1 and transA 0"
        return
    operands = [(value, index) for index in form.data if (value := input_at(node, index)) is not None]
    if all(_dequantizer(value) is None for value, _ in operands) and not _is_quantized(node.outputs[0]):
        yield "it is not quantized"
        return
    for value, index in operands:
        is_weight = index == form.weight and _is_constant(value)
        yield from _operand(node, value, form.channel_axis if is_weight else None, "weight" if is_weight else "input")
    bias = None if form.bias is None else input_at(node, form.bias)
    if bias is not None:
        yield from _bias(node, bias)
    yield from _result(node)


def _dequantizer(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_quantized(value: ir.Value) -> bool:
    return any(use.node.op_type == "QuantizeLinear" for use in value.uses())


def _is_constant(value: ir.Value) -> bool:
    dequantizer = _dequantizer(value)
    return constant_tensor(value if dequantizer is None else input_at(dequantizer, 0)) is not None


def _operand(node: ir.Node, value: ir.Value, channel_axis: int | None, role: str) -> Iterator[str]:
    """Why `value`, the input or the weight of `node`, is not what the integer kernel takes."""
    dequantizer = _dequantizer(value)
    if dequantizer is None:
        yield f"its {role} '{value.name}' is float{_origin(value)}"
        return
    if dequantizer.graph is not node.graph:
        yield f"{label(dequantizer)} of its {role} lies outside of the body that the node is in"
    stored = _stored_type(dequantizer, input_at(dequantizer, 0))
    if stored is not None and stored not in _EIGHT_BITS:
        yield f"its {role} '{value.name}' is {stored.name.lower()}, not 8 bits"
    elif role == "input" and stored == ir.DataType.INT8 and _read_by_several(dequantizer.inputs[0]):
        yield f"its input '{value.name}' is int8 and read by several nodes: onnxruntime on x86 wants uint8"
    tensor = constant_tensor(input_at(dequantizer, 1))
    if tensor is None:
        yield f"the scale of its {role} '{value.name}' is not constant"
    elif attributes.integer(dequantizer, "block_size", 0):
        yield f"its {role} '{value.name}' has a scale per block"
    elif tensor.size > 1:
        rank = len(value.shape) if value.shape is not None else None
        axis = attributes.integer(dequantizer, "axis", 1)
        if channel_axis is None:
            yield f"its {role} '{value.name}' has a scale per channel (axis {axis})"
        elif rank is not None and axis % rank != channel_axis % rank:
            yield f"the scales of its {role} '{value.name}' lie along axis {axis}, not along axis {channel_axis % rank}"


def _read_by_several(quantized: ir.Value | None) -> bool:
    """Whether more than one node reads `quantized`, or what DequantizeLinear makes of it."""
    readers = [] if quantized is None else [use.node for use in quantized.uses()]
    return len(readers) > 1 or any(len(node.outputs[0].uses()) > 1 for node in readers)


def _origin(value: ir.Value) -> str:
    producer = value.producer()
    if producer is not None:
        return f", made by {label(producer)}"
    return ", an input of the graph" if value.is_graph_input() else ""


def _stored_type(node: ir.Node, quantized: ir.Value | None) -> ir.DataType | None:
    """The type of the numbers on the quantized side of `node`, by themselves or by their zero point."""
    zero = input_at(node, 2)
    known = [value.dtype for value in (quantized, zero) if value is not None and value.dtype is not None]
    return known[0] if known else None


def _bias(node: ir.Node, bias: ir.Value) -> Iterator[str]:
    if not _is_constant(bias):
        yield f"its bias '{bias.name}' is not constant"
        return
    dequantizer = _dequantizer(bias)
    if dequantizer is None:
        return
    stored = _stored_type(dequantizer, input_at(dequantizer, 0))
    if stored is not None and stored != ir.DataType.INT32:
        yield f"its bias '{bias.name}' is {stored.name.lower()}, not int32"
    if node.op_type == "Conv" and not _scales_multiply(*map(_scale, node.inputs[:3])):
        yield f"the scale of its bias '{bias.name}' is not that of the input times that of the weight"


def _scales_multiply(data: np.ndarray | None, weight: np.ndarray | None, bias: np.ndarray | None) -> bool:
    """Whether the third is the product of the others; True where the first two have faults of their own."""
    if data is None or weight is None or bias is None or data.size != 1:
        return True
    product = data * weight
    return product.size == bias.size and np.allclose(product, bias, rtol=1e-4, atol=0)


def _scale(value: ir.Value | None) -> np.ndarray | None:
    dequantizer = None if value is None else _dequantizer(value)
    tensor = None if dequantizer is None else constant_tensor(input_at(dequantizer, 1))
    return None if tensor is None else tensor.numpy().reshape(-1)


def _result(node: ir.Node) -> Iterator[str]:
    result = node.outputs[0]
    reader = only_reader(result)
    if reader is None:
        if node.op_type not in _FLOAT_RESULT or _is_quantized(result):
            yield _several_readers(result)
    elif reader.op_type in _ABSORBED:
        quantizer = only_reader(reader.outputs[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            if node.op_type not in _FLOAT_RESULT:
                yield f"its result is read by {label(reader)}, and that by no QuantizeLinear alone"
        elif not absorbs(quantizer, reader):
            yield f"its result is read by a float {label(reader)}, which the range of {label(quantizer)} does not absorb"
        else:
            yield from _quantizer(quantizer)
    elif reader.op_type == "QuantizeLinear":
        yield from _quantizer(reader)
    elif node.op_type not in _FLOAT_RESULT:
        yield f"its result is read by {label(reader)}, not by a QuantizeLinear"


def _several_readers(result: ir.Value) -> str:
    readers = [label(use.node) for use in result.uses()]
    if result.is_graph_output():
        readers.append("the caller")
    return f"its result '{result.name}' is read by {' and '.join(readers) or 'nobody'}, not by one QuantizeLinear alone"


def _quantizer(node: ir.Node) -> Iterator[str]:
    stored, scale = _stored_type(node, node.outputs[0]), constant_tensor(input_at(node, 1))
    if stored is not None and stored not in _EIGHT_BITS:
        yield f"its result is quantized to {stored.name.lower()}, not 8 bits"
    elif stored == ir.DataType.INT8 and _read_by_several(node.outputs[0]):
        yield "its result is quantized to int8 and read by several nodes: onnxruntime on x86 wants uint8"
    if scale is None:
        yield f"the scale of {label(node)}, which reads its result, is not constant"
    elif scale.size > 1:
        yield f"{label(node)}, which reads its result, has a scale per channel"
