"""Pruning without samples: what goes is made up for by channels that are like it.

Between the layer that makes a channel and those that read it lie only operators that commute with positive factors and
treat every channel alike (Relu, pooling ...). Then a channel whose weights and bias are α times those of another one,
α > 0, is α times that channel everywhere, and the readers' columns can be added: W_kept += α W_gone. Nothing is lost where
it is exactly so; else α is the least-squares factor of the two rows, and what is lost is the part of the row that is not
along the other one. A row without weights gives a constant, which goes into the readers' biases where no padding reads zeros
in its place. (Srinivas & Babu 2015, "Data-free Parameter Pruning for Deep Neural Networks".)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import FreshNames
from graphopt.runtime.patches import Window
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.pruning.structure import Reading, Structure
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of

_HOMOGENEOUS = frozenset({"Relu", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Identity", "Dropout"})
_LEAST_COSINE = 0.5
"""Rows that are less alike than this are not merged: the factor would fit noise."""


def merge(model: ir.Model, structure: Structure, gone: Mapping[int, Array]) -> int:
    """Add what goes to what stays, in place; how many channels were added to others.

    Args:
        model: the one that `structure` is of.
        structure: groups and readers.
        gone: numbers of the units that go, by group.
    """
    layers = {layer.key: layer for layer in layers_of(model.graph)}
    by_node = {layer.node.outputs[0].name or "": layer for layer in layers.values()}
    names, merged = FreshNames(model), 0
    for number, units in gone.items():
        group = structure.groups[number]
        producer = by_node.get(group.producers[0])
        if len(group.producers) != 1 or group.through or group.lanes != 1 or producer is None or producer.groups != 1:
            continue
        readers = [layers[reading.key] for reading in structure.readings[number]]
        if len(readers) != len(group.consumers) or not all(_is_reached(producer, reader) for reader in readers):
            continue
        channels = np.array([unit.outputs[group.producers[0]][0] for unit in group.units])
        rows = _rows(producer)[channels]
        factors = _factors(rows, units)
        constants = {int(unit): float(rows[unit, -1]) for unit in units if not rows[unit, :-1].any() and rows[unit, -1]}
        merged += len(factors)
        for reader, reading in zip(readers, structure.readings[number], strict=True):
            weight = reader.weight()
            for kept, lost, factor in factors:
                weight[reading.block][:, reading.columns[kept]] += (
                    factor * weight[reading.block][:, reading.columns[lost]]
                )
            bias = _with_constants(reader, reading, weight, constants, producer)
            weight[reading.block][:, reading.columns[units].reshape(-1)] = 0
            reader.store(weight, bias, names)
    return merged


def _factors(rows: Array, units: Array) -> list[tuple[int, int, float]]:
    """(kept, gone, factor) for every unit that goes and has one like it among those that stay."""
    stays = np.setdiff1d(np.arange(len(rows)), units)
    lengths = np.sqrt(np.einsum("ck,ck->c", rows, rows))
    found = []
    for lost in units:
        if not rows[lost, :-1].any():
            continue
        cosines = rows[stays] @ rows[lost] / np.maximum(lengths[stays] * lengths[lost], 1e-30)
        best = int(np.argmax(cosines))
        if cosines[best] >= _LEAST_COSINE:
            kept = int(stays[best])
            found.append((kept, int(lost), float(cosines[best] * lengths[lost] / lengths[kept])))
    return found


def _with_constants(
    reader: Linear, reading: Reading, weight: Array, constants: Mapping[int, float], producer: Linear
) -> Array | None:
    """The reader's bias with the share of channels that are constants; None where it stays as it is."""
    if not constants or not reader.takes_bias or _is_padded(reader):
        return None
    bias = reader.bias()
    result = np.zeros(reader.channels) if bias is None else np.array(bias)
    size = reader.channels // reader.groups
    for unit, value in constants.items():
        given = max(value, 0.0) if _is_rectified(producer, reader) else value
        share = weight[reading.block][:, reading.columns[unit]].sum(axis=1) * given
        result[reading.block * size : (reading.block + 1) * size] += share
    return result


def _is_padded(reader: Linear) -> bool:
    """Whether some outputs of a layer see but a part of its weight."""
    if reader.node.op_type == "ConvTranspose":
        return True
    if reader.node.op_type != "Conv":
        return False
    window = Window.of(reader.node)
    return window.pads is None or any(window.pads)


def _is_rectified(producer: Linear, reader: Linear) -> bool:
    value = reader.data
    while value is not producer.output:
        node = value.producer()
        assert node is not None
        if node.op_type == "Relu":
            return True
        before = node.inputs[0]
        assert before is not None
        value = before
    return False


def _rows(layer: Linear) -> Array:
    """(C, K + 1) weights and bias."""
    bias = layer.bias()
    return np.column_stack([layer.weight()[0], np.zeros(layer.channels) if bias is None else bias])


def _is_reached(producer: Linear, reader: Linear) -> bool:
    """Whether only homogeneous operators lie between two layers, one behind the other."""
    value = reader.data
    while value is not producer.output:
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _HOMOGENEOUS or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return True
