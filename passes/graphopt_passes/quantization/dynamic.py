"""Dynamic quantization: weights are integers in the file, activations become integers as they come.

    x -> DynamicQuantizeLinear -> q, s_x, z_x
    y = float(MatMulInteger(q, W_q, z_x)) · (s_x · s_w) [+ bias]

The range of x is measured in every run, so no calibration is needed and nothing outside it is clipped. Weights are s8
with a scale per output column and no zero point. Activations that several products read, directly or behind a Reshape,
are quantized once for all of them. Only operators of ONNX's own are written, in the form that onnxruntime fuses
(MatMulIntegerToFloatFusion, DynamicQuantizeMatMulFusion): a product that alone reads its quantized input becomes one
DynamicQuantizeMatMul, others a MatMulIntegerToFloat each behind one DynamicQuantizeLinear.

Measured with onnxruntime 1.32 on AVX512-VNNI, one thread, against float: 768 x 3072 with 128 rows .19 (u8 weights .62),
with one row .35; 48 x 96 with 128 rows .76, with one row 1.15. A zero point per column costs nothing there and gains
nothing with symmetric weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import label
from graphopt.ops.base import input_at
from graphopt.pipeline.base import PassContext, Remark
from graphopt_passes.numerics import pair_sums
from graphopt_passes.numerics.quantizer import S8_NARROW, Grid, parameters, quantize
from graphopt_passes.quantization import tables
from graphopt_passes.quantization.node_by_node import NodeByNode
from graphopt_passes.quantization.products import Product, product
from graphopt_passes.rewriting import Site

SINCE = 11
"""The opset from which on there is DynamicQuantizeLinear."""

S7_NARROW = Grid(-63, 63, symmetric=True)
"""Weights whose products with u8 activations fit 16 bits in pairs, in whatever order they are added."""

_FLOAT = frozenset({ir.DataType.FLOAT})
_DONE = "quantized dynamically"
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def apply(
    model: ir.Model,
    context: PassContext,
    *,
    saturates: bool = False,
    conv: bool = False,
    embeddings: bool = True,
    only: Callable[[ir.Node], bool] | None = None,
) -> tuple[list[ir.Node], tuple[Remark, ...]]:
    """Quantize products with constant weights dynamically, in place.

    Args:
        model: its opset must be `SINCE` or newer; what is older is left alone with a remark.
        context: says which nodes are excluded.
        saturates: whether pairs of products saturate (`numerics.pair_sums`), so that weights must leave room for any input.
        conv: whether to quantize Conv too; ConvInteger is slower than the float Conv nearly everywhere.
        embeddings: whether tables of Gather become 8-bit rows.
        only: which nodes may be quantized; None for all.

    Returns:
        The nodes that are new or changed, and remarks.
    """
    run = _Dynamic(model, context, saturates, conv, embeddings, only)
    return run.run(), run.remarks.listed()


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """The outputs of a DynamicQuantizeLinear."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class _Dynamic(NodeByNode):
    def __init__(
        self,
        model: ir.Model,
        context: PassContext,
        saturates: bool,
        conv: bool,
        embeddings: bool,
        only: Callable[[ir.Node], bool] | None,
    ) -> None:
        super().__init__(model, context, only)
        self.saturates = saturates
        self.conv = conv
        self.embeddings = embeddings
        self.activations: dict[ir.Value, _Quantized] = {}
        self.views: dict[ir.Node, None] = {}

    def convert(self, site: Site) -> None:
        """Convert one graph; what is quantized inside a body need not exist outside."""
        self.activations, self.views = {}, {}
        super().convert(site)
        for view in reversed(self.views):
            site.remove_unread(view)

    def rewrite(self, node: ir.Node, site: Site) -> Sequence[ir.Node] | str | None:
        """See `NodeByNode`."""
        table = tables.table(node, site, _FLOAT) if self.embeddings else None
        if isinstance(table, str):
            return table
        if table is not None:
            self.remarks.applied(label(node), "rows in 8 bits")
            return tables.gather_8_bits(node, table, site, self.derived)
        found = product(node, site, _FLOAT)
        if node.op_type == "Conv" and node.domain == "" and self.conv:
            return self.convolution(node, site)
        if found is None or isinstance(found, str):
            return found
        return "too old an opset" if site.opset < SINCE else self.product(found, site)

    # --- The rewrites

    def product(self, found: Product, site: Site) -> list[ir.Node]:
        """The integer product in place of the float one."""
        weight, scale = self.derived.get(
            found.weight, ("columns in 8 bits", found.transposed, found.alpha), lambda: self.columns(found)
        )
        node, new, data = found.node, [], found.data
        if found.data_transposed:
            transpose = site.new_node("Transpose", [data], data, node, {"perm": (1, 0)})
            data = transpose.outputs[0]
            data.shape = None if data.shape is None else ir.Shape(list(reversed(data.shape.dims)))
            new.append(transpose)
        integer = self.integer_node("MatMulInteger", data, weight, node, site, new)
        result = self.scaled(integer, data, scale, node, site, new)
        if found.added is not None and found.beta != 0:
            result = self.added(found, result, site, new)
        self.remarks.applied(label(node), _DONE)
        return [*new, *site.replace(node, result)]

    def columns(self, found: Product) -> dict[str, np.ndarray]:
        """The weight as s8 (K, N), and a scale for each column."""
        rows = found.rows()
        scale, _ = parameters(rows.min(axis=1), rows.max(axis=1), S8_NARROW)
        integers = quantize(rows, scale[:, None], 0, S8_NARROW)
        if self.saturates:
            highest = np.full(rows.shape, 255)
            scale *= np.maximum(pair_sums.excess(integers, highest), 1).astype(np.float32)
            integers = pair_sums.fitted(quantize(rows, scale[:, None], 0, S8_NARROW), highest)
        return {"quantized": integers.T, "scale": scale * np.float32(found.alpha)}

    def added(self, found: Product, result: ir.Value, site: Site, new: list[ir.Node]) -> ir.Value:
        """What Gemm adds, as an Add that onnxruntime takes for a bias."""
        summand, node = found.added, found.node
        assert summand is not None
        if found.beta != 1.0:
            factor = site.new_constant(np.array(found.beta, np.float32), f"{summand.name}_beta", node)
            new.append(site.new_node("Mul", [summand, factor], summand, node))
            summand = new[-1].outputs[0]
        new.append(site.new_node("Add", [result, summand], node.outputs[0], node))
        return new[-1].outputs[0]

    def convolution(self, node: ir.Node, site: Site) -> Sequence[ir.Node] | str:
        """ConvInteger in place of Conv."""
        weight, data = node.inputs[1], node.inputs[0]
        tensor = site.constant(weight)
        if weight is None or data is None or tensor is None:
            return "its weight is not constant"
        if tensor.dtype not in _FLOAT:
            return f"weights of type {tensor.dtype} are left alone"
        if site.opset < SINCE:
            return "too old an opset"
        rank, grid = len(tensor.shape), S7_NARROW if self.saturates else S8_NARROW

        def channels() -> dict[str, np.ndarray]:
            filters = tensor.numpy()
            flat = filters.reshape(len(filters), -1)
            scale, _ = parameters(flat.min(axis=1), flat.max(axis=1), grid)
            integers = quantize(flat, scale[:, None], 0, grid)
            return {"quantized": integers.reshape(filters.shape), "scale": scale.reshape(-1, *[1] * (rank - 2))}

        integers, scale = self.derived.get(weight, "filters in 8 bits", channels)
        new: list[ir.Node] = []
        integer = self.integer_node("ConvInteger", data, integers, node, site, new)
        integer.attributes.update(node.attributes)
        result = self.scaled(integer, data, scale, node, site, new)
        bias = input_at(node, 2)
        if bias is not None:
            shape = site.new_constant(np.array([-1, *[1] * (rank - 2)]), f"{bias.name}_shape", node)
            reshape = site.new_node("Reshape", [bias, shape], bias, node)
            reshape.outputs[0].shape = None
            new += [reshape, site.new_node("Add", [result, reshape.outputs[0]], node.outputs[0], node)]
            result = new[-1].outputs[0]
        self.remarks.applied(label(node), _DONE)
        return [*new, *site.replace(node, result)]

    # --- Their parts

    def integer_node(
        self, op_type: str, data: ir.Value, weight: ir.Value, node: ir.Node, site: Site, new: list[ir.Node]
    ) -> ir.Node:
        """The integer operator on what `data` is quantized to; its output is int32."""
        quantized = self.quantized(data, node, site, new)
        inputs = [quantized.integers, weight, quantized.zero_point]
        integer = site.new_node(op_type, inputs, node.outputs[0], node)
        integer.outputs[0].type = ir.TensorType(ir.DataType.INT32)
        new.append(integer)
        return integer

    def scaled(
        self, integer: ir.Node, data: ir.Value, scale: ir.Value, node: ir.Node, site: Site, new: list[ir.Node]
    ) -> ir.Value:
        """The int32 sums times the scales of data and weight."""
        output = node.outputs[0]
        cast = site.new_node("Cast", integer.outputs, output, node, {"to": ir.DataType.FLOAT})
        factor = site.new_node("Mul", [self.activations[data].scale, scale], output, node)
        factor.outputs[0].shape = scale.shape
        product = site.new_node("Mul", [cast.outputs[0], factor.outputs[0]], output, node)
        new += [cast, factor, product]
        return product.outputs[0]

    def quantized(self, data: ir.Value, node: ir.Node, site: Site, new: list[ir.Node]) -> _Quantized:
        """The integers of `data`; the first to ask makes them, just before it."""
        if data not in self.activations:
            view = self.shared_view(data, site)
            if view is None:
                made = self.quantize(data, node, site, new)
            else:
                made = self.quantized(view.inputs[0] or data, node, site, new)
                moved = site.new_node(view.op_type, [made.integers, *view.inputs[1:]], data, node, view.attributes)
                moved.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
                new.append(moved)
                self.views[view] = None
                made = dataclasses.replace(made, integers=moved.outputs[0])
            self.activations[data] = made
        return self.activations[data]

    def shared_view(self, data: ir.Value, site: Site) -> ir.Node | None:
        """The node that makes `data` as a view of what other products read, too: then one quantization does for all."""
        view = site.producer(data, *_VIEWS)
        source = None if view is None else view.inputs[0]
        if source is None or source in self.activations:
            return None if source is None else view
        for use in source.uses():
            is_view = use.node.op_type in _VIEWS and use.node is not view
            readers = [other.node for other in use.node.outputs[0].uses()] if is_view else [use.node]
            if any(site.graph_of(reader) is not None and _has_weight(reader, site) for reader in readers):
                return view
        return view if self.shared_view(source, site) is not None else None

    def quantize(self, data: ir.Value, node: ir.Node, site: Site, new: list[ir.Node]) -> _Quantized:
        """A DynamicQuantizeLinear of `data` before `node`."""
        outputs = [
            _value(site.fresh(f"{data.name}_{ending}"), dtype, shape)
            for ending, dtype, shape in (
                ("quantized", ir.DataType.UINT8, data.shape),
                ("scale", ir.DataType.FLOAT, ir.Shape([])),
                ("zero_point", ir.DataType.UINT8, ir.Shape([])),
            )
        ]
        name = site.fresh(f"{data.name}_quantize")
        new.append(ir.Node("", "DynamicQuantizeLinear", [data], outputs=outputs, name=name))
        site.graph.insert_before(node, new[-1])
        return _Quantized(*outputs)


def _has_weight(node: ir.Node, site: Site) -> bool:
    return isinstance(product(node, site, _FLOAT), Product)


def _value(name: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=None if shape is None else shape.copy())
