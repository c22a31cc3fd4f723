"""Float layers between integers, which onnxruntime would quantize on its own account.

Where a Conv, ConvTranspose or Gemm with float weights reads a DequantizeLinear and a QuantizeLinear reads its result,
onnxruntime rounds the weights to int8 with one scale for all of them, worse than any quantizer
(onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc; Relu, Clip and what only moves data may lie in
between, and what onnxruntime takes into the layer before: BatchNormalization, products and sums with constants). So a
layer that is to stay float reads a DequantizeLinear of its own, which says the same scale once per channel: the numbers
are the same, and the pattern does not match.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dataflow import only_reader
from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import input_at, operator

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_ABSORBED = frozenset({"Relu", "Clip", "BatchNormalization"})
_ABSORBED_CONSTANTS = frozenset({"Add", "Mul"})


def keep_float(model: ir.Model, graph: ir.Graph) -> list[ir.Node]:
    """Make the float layers of `graph` stay float in onnxruntime; returns the nodes that are new or changed."""
    names = FreshNames(model)
    touched: dict[ir.Node, None] = {}
    for node in tuple(graph):
        if node.domain != "" or node.op_type not in _LAYERS or not _has_float_weight(node):
            continue
        reader, restored = _source(node)
        channels = _channels(restored.outputs[0]) if restored is not None and _is_read_as_integers(node) else None
        if restored is None or channels is None:
            continue
        own = _per_channel(graph, restored, *channels, names)
        graph.insert_after(restored, own)
        reader.replace_input_with(0, own.outputs[0])
        touched.update(dict.fromkeys((own, reader)))
    return list(touched)


def _has_float_weight(node: ir.Node) -> bool:
    tensor = constant_tensor(input_at(node, 1))
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT


def _source(node: ir.Node) -> tuple[ir.Node, ir.Node | None]:
    """The node that reads a dequantized tensor for `node`, itself or one that moves data, and its DequantizeLinear."""
    while True:
        value = input_at(node, 0)
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not node.graph or not _moves(producer):
            break
        node = producer
    is_restored = producer is not None and producer.op_type == "DequantizeLinear" and producer.domain == ""
    return node, producer if is_restored and _has_one_scale(producer) else None


def _has_one_scale(restored: ir.Node | None) -> bool:
    """Whether a DequantizeLinear has constant parameters for the whole tensor."""
    tensors = [constant_tensor(value) for value in restored.inputs[1:]] if restored is not None else []
    return all(tensor is not None and tensor.size == 1 for tensor in tensors)


def _is_read_as_integers(node: ir.Node) -> bool:
    """Whether the result of `node` is quantized, and nothing else reads it."""
    reader = only_reader(node.outputs[0])
    while reader is not None and reader.domain == "" and (_goes_into_layers(reader) or _moves(reader)):
        reader = only_reader(reader.outputs[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


def _goes_into_layers(node: ir.Node) -> bool:
    """Whether onnxruntime may compute `node` within the layer before it."""
    if node.op_type in _ABSORBED_CONSTANTS:
        return any(constant_tensor(value) is not None for value in node.inputs)
    return node.op_type in _ABSORBED


def _moves(node: ir.Node) -> bool:
    form = operator(node).integer_form(node) if node.domain == "" and len(node.outputs) == 1 else None
    return form is not None and form.same_scale and tuple(form.data) == (0,)


def _channels(value: ir.Value) -> tuple[int, int] | None:
    """An axis along which a scale per channel is more than one number, and its extent; the batch as a last resort."""
    extents = enumerate(value.shape or ())
    known = [(axis, extent) for axis, extent in extents if isinstance(extent, int) and extent > 1]
    return next((found for found in known if found[0]), known[0] if known else None)


def _per_channel(graph: ir.Graph, restored: ir.Node, axis: int, extent: int, names: FreshNames) -> ir.Node:
    """`restored` once more, its scale and zero point repeated for every channel."""
    quantized, *parameters = restored.inputs
    inputs = [quantized]
    for parameter in parameters:
        tensor = constant_tensor(parameter)
        assert tensor is not None
        array = np.full(extent, tensor.numpy().reshape(()))
        constant = ir.Tensor(array, name=names.fresh(f"{restored.name}_per_channel"))
        kind = ir.TensorType(constant.dtype)
        repeated = ir.Value(name=constant.name, type=kind, shape=ir.Shape(array.shape), const_value=constant)
        graph.register_initializer(repeated)
        inputs.append(repeated)
    value = restored.outputs[0]
    shape = None if value.shape is None else value.shape.copy()
    output = ir.Value(name=names.fresh(f"{value.name}_float"), type=value.type, shape=shape)
    attributes = [ir.AttrInt64("axis", axis)]
    return ir.Node("", "DequantizeLinear", inputs, attributes, outputs=[output], name=f"{output.name}_node")
