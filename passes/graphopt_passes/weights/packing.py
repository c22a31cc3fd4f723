"""Weights stored as numbers of entries in a small table, several to a byte, and restored by standard operators.

With V entries a byte holds n = ⌊log 256 / log V⌋ numbers in base V: 8 signs, 5 of three values, 2 of sixteen. The model
restores the weight W from bytes b, digits D (Vⁿ, n) and the table T:

    Reshape(Gather(D, Cast(b)))  -> (C, K) numbers          GatherElements(T: (C, V), numbers)  -> W, per channel
                                                            Gather(T: (V,), numbers)            -> W, one table for all

It depends on constants alone, so that runtimes compute it once when they load the model: nothing but the file gets smaller.
D is one tensor for all layers with as many entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames, drop_unread
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.linear import Linear

SINCE = 11
"""The opset from which on there is GatherElements."""
MOST_ENTRIES = 256
OVERHEAD = 1200
"""Bytes of the nodes and names around one packed weight, about: what packing must save at least."""


def per_byte(entries: int) -> int:
    """How many numbers below `entries` a byte holds."""
    digits = 1
    while entries ** (digits + 1) <= MOST_ENTRIES:
        digits += 1
    return digits


def pack(numbers: Array, entries: int) -> Array:
    """(⌈N / n⌉,) uint8 that hold (N,) numbers below `entries`, the first one as the highest digit."""
    digits = per_byte(entries)
    padded = np.zeros(-(-len(numbers) // digits) * digits, np.int64)
    padded[: len(numbers)] = numbers
    return np.asarray(padded.reshape(-1, digits) @ entries ** np.arange(digits)[::-1]).astype(np.uint8)


def digits_table(entries: int) -> Array:
    """(Vⁿ, n) uint8: the numbers that each byte holds."""
    digits = per_byte(entries)
    numbers = np.arange(entries**digits)[:, None] // entries ** np.arange(digits)[::-1] % entries
    return np.asarray(numbers.astype(np.uint8))


def packed_size(layer: Linear, tables: int, entries: int) -> int:
    """Bytes that a layer's weight takes with `tables` tables of `entries` numbers, the nodes included."""
    tensor = layer.node.inputs[1]
    assert tensor is not None
    assert tensor.dtype is not None
    count = layer.channels * layer.width
    return -(-count // per_byte(entries)) + tables * entries * tensor.dtype.bitwidth // 8 + OVERHEAD


@dataclass
class Packer:
    """Packs the weights of one model."""

    model: ir.Model
    names: FreshNames

    def __post_init__(self) -> None:
        self._constants: dict[tuple[str, int | tuple[int, ...]], ir.Value] = {}

    def pack(self, layer: Linear, choice: Array, tables: Array) -> list[ir.Node]:
        """Let `layer` read a restored weight; returns the nodes that were made or changed.

        Args:
            layer: of the main graph, with its own weight.
            choice: (C, K) entries.
            tables: (C, V), or (1, V) for one that all channels share.
        """
        weight = layer.node.inputs[1]
        assert weight is not None
        assert weight.dtype is not None
        assert weight.shape is not None
        shape = weight.shape.numpy()
        turned = self._is_turned(layer)
        kind = np.dtype(weight.dtype.numpy())
        entries, axis = tables.shape[1], 0 if turned else 1
        maker = _Maker(self, layer.node, weight.name or "weight")
        numbers = (choice.T if turned else choice).reshape(-1)
        table = (tables.T if turned else tables).astype(kind)
        shared = len(tables) == 1
        flat = (layer.width, layer.channels) if turned else (layer.channels, layer.width)
        read = maker.make("Cast", [maker.constant(pack(numbers, entries), "bytes")], to=ir.DataType.INT32)
        if per_byte(entries) > 1:
            read = maker.make("Gather", [self._digits(entries), read])
            read = maker.make("Reshape", [read, self._integers((-1,))])
            if len(numbers) % per_byte(entries):
                read = maker.make("Slice", [read, self._integers((0,)), self._integers((len(numbers),))])
            read = maker.make("Cast", [read], to=ir.DataType.INT32)
        read = maker.make("Reshape", [read, self._integers(tuple(shape) if shared else flat)])
        if shared:
            read = maker.make("Gather", [maker.constant(table.reshape(-1), "table"), read])
        else:
            read = maker.make("GatherElements", [maker.constant(table, "table"), read], axis=axis)
            if flat != tuple(shape):
                read = maker.make("Reshape", [read, self._integers(tuple(shape))])
        read.type, read.shape = ir.TensorType(weight.dtype), ir.Shape(shape)
        layer.node.replace_input_with(1, read)
        drop_unread([weight])
        return [*maker.nodes, layer.node]

    @staticmethod
    def _is_turned(layer: Linear) -> bool:
        """Whether the stored weight is (K, C)."""
        node = layer.node
        if node.op_type == "Conv":
            return False
        return node.op_type == "MatMul" or not (
            node.attributes["transB"].as_int() if "transB" in node.attributes else 0
        )

    def _digits(self, entries: int) -> ir.Value:
        return self._once(("digits", entries), digits_table(entries))

    def _integers(self, numbers: tuple[int, ...]) -> ir.Value:
        return self._once(("integers", numbers), np.array(numbers, np.int64))

    def _once(self, key: tuple[str, int | tuple[int, ...]], array: Array) -> ir.Value:
        if key not in self._constants:
            self._constants[key] = self.initializer(array, key[0])
        return self._constants[key]

    def initializer(self, array: Array, base: str) -> ir.Value:
        """A new initializer of the main graph."""
        name = self.names.fresh(base)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.model.graph.register_initializer(value)
        return value


class _Maker:
    """Makes the nodes in front of one layer."""

    def __init__(self, packer: Packer, before: ir.Node, base: str) -> None:
        self._packer = packer
        self._before = before
        self._base = base
        self.nodes: list[ir.Node] = []

    def constant(self, array: Array, what: str) -> ir.Value:
        return self._packer.initializer(array, f"{self._base}_{what}")

    def make(self, operator: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        name = self._packer.names.fresh(f"{self._base}_{operator.lower()}")
        output = ir.Value(name=name)
        listed = [ir.AttrInt64(key, int(number)) for key, number in attributes.items()]
        node = ir.Node("", operator, inputs, listed, outputs=[output], name=name)
        graph = self._before.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(self._before, node)
        self.nodes.append(node)
        return output
