"""Embedding tables: a Gather from a constant that reads a few rows of many.

    8 bits    Gather(q) -> Cast -> Mul(Gather(scale))                a scale per row; any opset
    4 bits    Gather(packed) -> BitwiseAnd, BitShift -> Concat -> DequantizeLinear(Gather(scale), Gather(zero point))

Rows are gathered first and only these become float. A DequantizeLinear before the Gather would be shorter, but
onnxruntime then dequantizes the whole table in every run: no fusion takes such a pair, and constants behind a
DequantizeLinear are not folded. Gather takes no 4-bit type, so each byte holds two numbers of one row: the low half that
of the row's first half, the high half that of the second, and a Concat restores the order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import input_at
from graphopt_passes.numerics import blockwise
from graphopt_passes.numerics.quantizer import S8_NARROW, U4, parameters, quantize
from graphopt_passes.quantization.derived import Derived
from graphopt_passes.rewriting import Site

SMALLEST = 4096
"""Elements from which on a table is worth more nodes."""

PACKED_SINCE = 21
"""The opset from which on DequantizeLinear knows blocks, which tables of 4 bits need."""


def table(node: ir.Node, site: Site, types: frozenset[ir.DataType]) -> ir.Value | str | None:
    """The table that `node` gathers rows from; why it is left alone; None where there is none worth the work."""
    if node.domain != "" or node.op_type != "Gather":
        return None
    value = input_at(node, 0)
    tensor = site.constant(value)
    if value is None or tensor is None or tensor.size < SMALLEST or not tensor.dtype.is_floating_point():
        return None
    if tensor.dtype not in types:
        return f"tables of type {tensor.dtype} are left alone"
    rank = len(tensor.shape)
    if rank < 2 or node.attributes.get_int("axis", 0) % rank == rank - 1:
        return "its table is not gathered by rows"
    if len(value.uses()) != 1 or value.is_graph_output():
        return "its table is read elsewhere, too"
    return value


def gather_8_bits(node: ir.Node, value: ir.Value, site: Site, derived: Derived) -> list[ir.Node]:
    """Let `node` gather from the table `value` in 8 bits; returns the new nodes."""

    def make() -> dict[str, ir.TensorProtocol | np.ndarray]:
        rows = _rows(value)
        scale, _ = parameters(rows.min(axis=-1), rows.max(axis=-1), S8_NARROW)
        return {"quantized": quantize(rows, scale[..., None], 0, S8_NARROW), "scale": scale[..., None]}

    quantized, scale = derived.get(value, "rows in 8 bits", make)
    output = node.outputs[0]
    gathered = _gather(node, quantized, output, site)
    scales = _gather(node, scale, output, site)
    cast = site.new_node("Cast", [gathered.outputs[0]], output, node, {"to": ir.DataType.FLOAT})
    product = site.new_node("Mul", [cast.outputs[0], scales.outputs[0]], output, node)
    site.replace(node, product.outputs[0])
    return [gathered, scales, cast, product]


def gather_4_bits(node: ir.Node, value: ir.Value, block: int, site: Site, derived: Derived) -> list[ir.Node] | str:
    """Let `node` gather from the table `value` in 4 bits with a scale per `block` of a row; returns the new nodes."""
    shape = _tensor(value).shape.numpy()
    if site.opset < PACKED_SINCE:
        return f"tables of 4 bits need opset {PACKED_SINCE}"
    if shape[-1] % 2:
        return "the rows of its table have an odd number of elements"

    def make() -> dict[str, ir.TensorProtocol | np.ndarray]:
        rows = _rows(value).reshape(-1, shape[-1])
        scale, zero_point = blockwise.ranges(rows, block, U4)
        first, second = np.split(blockwise.quantize(rows, scale, zero_point, block, U4), 2, axis=1)
        made = {"packed": first | second << 4, "scale": scale, "zero_point": zero_point}
        return {name: array.reshape(*shape[:-1], -1) for name, array in made.items()}

    values = derived.get(value, ("rows in 4 bits", block), make)
    output = node.outputs[0]
    packed, scale, zero_point = (_gather(node, read, output, site) for read in values)
    mask = site.new_constant(np.array(15, np.uint8), f"{value.name}_mask", node)
    width = site.new_constant(np.array(4, np.uint8), f"{value.name}_width", node)
    low = site.new_node("BitwiseAnd", [packed.outputs[0], mask], packed.outputs[0], node)
    high = site.new_node("BitShift", [packed.outputs[0], width], packed.outputs[0], node, {"direction": "RIGHT"})
    joined = site.new_node("Concat", [low.outputs[0], high.outputs[0]], output, node, {"axis": -1})
    joined.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    inputs = [joined.outputs[0], scale.outputs[0], zero_point.outputs[0]]
    restored = site.new_node("DequantizeLinear", inputs, output, node, {"axis": -1, "block_size": block})
    site.replace(node, restored.outputs[0])
    return [packed, scale, zero_point, low, high, joined, restored]


def _gather(node: ir.Node, table: ir.Value, output: ir.Value, site: Site) -> ir.Node:
    """A Gather like `node` from another table of as many axes, whose last one may differ."""
    gathered = site.new_node(
        "Gather", [table, node.inputs[1]], output, node, {"axis": node.attributes.get_int("axis", 0)}
    )
    result = gathered.outputs[0]
    result.type = table.type
    if result.shape is not None and table.shape is not None:
        result.shape = ir.Shape([*result.shape[:-1], table.shape[-1]])
    return gathered


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor


def _rows(value: ir.Value) -> np.ndarray:
    return _tensor(value).numpy().astype(np.float32)
