"""Writing a quantized model: QuantizeLinear and DequantizeLinear where a placement says, with a recipe's numbers.

A value that an integer node makes becomes integers for all its readers: they read its DequantizeLinear. A value that
comes from elsewhere (a graph input, a float operator) is quantized only for the integer nodes that read it; the others
keep the float, which is exact.

Weights become int8 initializers with a DequantizeLinear, biases int32 ones whose scale is that of the input times that
of the weight, as the kernels add them to their sums (QLinearConv, ONNX Operators.md). One weight that several layers
read stays one tensor as long as they quantize it alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames, drop_unread
from graphopt_passes.quantization.placement import Layer, Placement

Array = npt.NDArray[np.generic]


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The numbers of a QuantizeLinear, for a whole tensor."""

    scale: float
    zero_point: int
    dtype: ir.DataType


@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """The quantized constants of a layer.

    Attributes:
        weight: integers of the weight's own shape.
        scale: (channels,) or () float32, positive.
        bias: (channels,) int32, float32 where the target keeps it so, or None.
        highest: (channels, inputs) the largest integer that meets each weight where pairs of products may saturate.
    """

    weight: Array
    scale: npt.NDArray[np.float32]
    bias: Array | None
    highest: npt.NDArray[Any] | None = None

    def bias_scale(self, data: Quantizer, channels: int) -> npt.NDArray[np.float32]:
        """The unit of an int32 bias, that of the sums: (channels,), or () where the weight has one scale."""
        unit = np.asarray(np.float32(data.scale) * self.scale)
        return np.tile(unit, channels // unit.size) if unit.ndim else unit  # groups of a ConvTranspose share scales


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All numbers of a quantized model, by name, so that they hold for any copy of the model.

    Attributes:
        values: quantizers by the name of the value; the members of a group have the same.
        layers: constants by the layer's key.
        converted: quantizers of kernels that read a value in another type than it has (`widths`), by the name of the value
            and the kernel's key, which is the name of its first output.
    """

    values: Mapping[str, Quantizer]
    layers: Mapping[str, LayerWeights]
    converted: Mapping[tuple[str, str], Quantizer] = dataclasses.field(default_factory=dict)

    def read(self, value: str, kernel: str) -> Quantizer:
        """The quantizer of `value` as `kernel` reads it."""
        return self.converted.get((value, kernel), self.values[value])


def insert(model: ir.Model, graph: ir.Graph, placement: Placement, recipe: Recipe) -> list[ir.Node]:
    """Rewrite `graph` of `model` in place and return the nodes that are new or changed."""
    return _Insertion(model, graph, placement, recipe).run()


class _Insertion:
    def __init__(self, model: ir.Model, graph: ir.Graph, placement: Placement, recipe: Recipe) -> None:
        self.graph = graph
        self.placement = placement
        self.recipe = recipe
        self.names = FreshNames(model)
        self.touched: dict[ir.Node, None] = {}
        self.parameters: dict[tuple[ir.Value, Quantizer], tuple[ir.Value, ir.Value]] = {}
        self.shared: dict[bytes, ir.Value] = {}

    def run(self) -> list[ir.Node]:
        integer = {node: node.outputs[0].name or "" for node in self.placement.integer_nodes()}
        for layer in self.placement.layers:
            self._constants(layer, self.recipe.layers[layer.key])
        kernels = integer.keys() | self.placement.absorbed
        for value in self.placement.groups:
            self._pair(value, integer, everyone=value.producer() in kernels)
        return list(self.touched)

    def _pair(self, value: ir.Value, integer: Mapping[ir.Node, str], *, everyone: bool) -> None:
        """QuantizeLinear and DequantizeLinear behind `value`, for `everyone` who reads it or for `integer` nodes.

        Kernels that read it in another type get a pair of their own, behind that if it is made in integers.
        """
        name = value.name or ""
        own = self.recipe.values[name]
        readers: dict[Quantizer, list[tuple[ir.Node, int]]] = {own: []} if everyone else {}
        for use in value.uses():
            if everyone or use.node in integer:
                quantizer = self.recipe.read(name, integer[use.node]) if use.node in integer else own
                readers.setdefault(quantizer, []).append((use.node, use.idx))
        root, source = self.placement.groups.root(value), value
        for quantizer, uses in readers.items():
            restored = self._quantized(source, root, quantizer)
            for node, index in uses:
                node.replace_input_with(index, restored)
                self.touched[node] = None
            if everyone and quantizer is own:
                source = restored
        if everyone and value.is_graph_output():
            self._hand_over(value, source)

    def _quantized(self, value: ir.Value, root: ir.Value, quantizer: Quantizer) -> ir.Value:
        """What is left of `value`, of the group of `root`, behind a new pair with the numbers of `quantizer`."""
        scale, zero_point = self._parameters(root, quantizer)
        quantized = self._node("QuantizeLinear", value, scale, zero_point)
        quantized.outputs[0].type = ir.TensorType(quantizer.dtype)
        restored = self._node("DequantizeLinear", quantized.outputs[0], scale, zero_point)
        restored.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        for node in (quantized, restored):
            node.outputs[0].shape = None if value.shape is None else value.shape.copy()
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], (quantized, restored))
        else:
            self.graph.insert_after(producer, (quantized, restored))
        return restored.outputs[0]

    def _hand_over(self, value: ir.Value, restored: ir.Value) -> None:
        """Let the graph's output be what the integers say, under its own name."""
        name, value.name = value.name, self.names.fresh(f"{value.name}_float")
        restored.name = name
        restored.shape = None if value.shape is None else value.shape.copy()
        restored.doc_string = value.doc_string
        restored.metadata_props.update(value.metadata_props)
        for position, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[position] = restored

    def _parameters(self, root: ir.Value, quantizer: Quantizer) -> tuple[ir.Value, ir.Value]:
        key = root, quantizer
        if key not in self.parameters:
            scale = self._constant(np.array(quantizer.scale, np.float32), f"{root.name}_scale", share=True)
            zero_point = np.array(quantizer.zero_point, quantizer.dtype.numpy())
            self.parameters[key] = scale, self._constant(zero_point, f"{root.name}_zero_point", share=True)
        return self.parameters[key]

    def _constants(self, layer: Layer, weights: LayerWeights) -> None:
        """Give `layer` its quantized weight and bias."""
        node, form = layer.node, layer.form
        assert form.weight is not None
        old = [node.inputs[form.weight]]
        axis = layer.axis if weights.scale.ndim else None
        weight = self._dequantized(node, weights.weight, weights.scale, axis, "weight")
        node.replace_input_with(form.weight, weight)
        if form.bias is not None and weights.bias is not None:
            if len(node.inputs) <= form.bias:
                node.resize_inputs(form.bias + 1)
            old.append(node.inputs[form.bias])
            node.replace_input_with(form.bias, self._bias(layer, weights, weights.bias))
        drop_unread(dict.fromkeys(old))
        self.touched[node] = None

    def _bias(self, layer: Layer, weights: LayerWeights, bias: Array) -> ir.Value:
        if bias.dtype != np.int32:
            return self._constant(bias, f"{layer.key}_bias", share=False)
        scale = weights.bias_scale(self.recipe.read(layer.data.name or "", layer.key), bias.size)
        return self._dequantized(layer.node, bias, scale, 0 if scale.ndim else None, "bias")

    def _dequantized(
        self, node: ir.Node, integers: Array, scale: npt.NDArray[np.float32], axis: int | None, what: str
    ) -> ir.Value:
        base = f"{node.outputs[0].name}_{what}"
        stored = self._constant(integers, f"{base}_quantized", share=what == "weight")
        zero_point = self._constant(np.zeros(scale.shape, integers.dtype), f"{base}_zero_point", share=True)
        step = self._constant(scale, f"{base}_scale", share=True)
        restored = self._node("DequantizeLinear", stored, step, zero_point, base)
        if axis is not None:
            restored.attributes["axis"] = ir.AttrInt64("axis", axis)
        restored.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        restored.outputs[0].shape = ir.Shape(integers.shape)
        self.graph.insert_before(node, restored)
        return restored.outputs[0]

    def _constant(self, array: Array, base: str, *, share: bool) -> ir.Value:
        """An initializer; where it may be shared, an equal one is made only once."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest() if share else b""
        known = self.shared.get(key)
        if known is not None:
            return known
        name = self.names.fresh(base)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        if share:
            self.shared[key] = value
        return value

    def _node(
        self, op_type: str, value: ir.Value, scale: ir.Value, zero_point: ir.Value, base: str | None = None
    ) -> ir.Node:
        name = self.names.fresh(f"{base or value.name}_{op_type}")
        node = ir.Node("", op_type, [value, scale, zero_point], outputs=[ir.Value(name=name)], name=f"{name}_node")
        self.touched[node] = None
        return node
