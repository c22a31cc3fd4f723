"""Which units go first by scores of their own, without looking at what the layers behind make of them.

    l1, l2              norm of the weights that produce the unit's channels
    geometric-median    distance of these weights from all others of the same layer (He et al. 2019, "Filter Pruning via
                        Geometric Median": what lies in the middle can be made up for by the others)
    bn-scale            |gamma| of the BatchNormalization behind the producer (Liu et al. 2017, "Network Slimming"): the
                        standard deviation that it gives the channel, measured, because normalizations have been folded
    activation          mean magnitude of the channel over the calibration samples, behind an activation that cuts off
    random              for comparison

The harm of a width is the share of the squared scores that went: relative, so that groups can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis.coupling import Group
from graphopt.analysis.dataflow import only_reader
from graphopt.ir.walk import constant_tensor
from graphopt.ops import attributes
from graphopt.ops.base import input_at
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.requests import Moments
from graphopt_passes.numerics.elimination import Elimination
from graphopt_passes.numerics.quantizer import Array
from graphopt_passes.reconstruction.following import following

_AXES = {"ConvTranspose": 1, "MatMul": -1, "Gather": -1}
"""Axis of the weight that holds output channels; 0 where nothing else is said."""


def elimination_by(scores: Array) -> Elimination:
    """Units in the order of their scores (U,), the least first."""
    order = np.argsort(scores, kind="stable")
    squares = np.asarray(scores, np.float64)[order] ** 2
    total = float(squares.sum()) or 1.0
    return Elimination(order, np.concatenate([[0.0], np.cumsum(squares) / total]))


def weight_scores(model: ir.Model, group: Group, criterion: str) -> Array:
    """(U,) score of each unit: root of the summed squares over all producers, each relative to the producer's own."""
    nodes = {node.outputs[0].name: node for node in model.graph if node.outputs}
    total = np.zeros(len(group.units))
    for name in group.producers:
        rows = _rows(nodes.get(name))
        if rows is None:
            continue
        by_channel = _SCORES[criterion](rows)
        squares = np.array([np.sum(by_channel[list(unit.outputs[name])] ** 2) for unit in group.units])
        total += squares / (float(squares.sum()) or 1.0)
    return np.sqrt(total)


def measured(model: ir.Model, groups: Sequence[Group], evidence: Evidence, criterion: str) -> list[Array]:
    """Scores from the channels on the samples: mean |x|, or for `bn-scale` the standard deviation that producers give.

    Raises what `Evidence.collect` does.
    """
    nodes = {node.outputs[0].name or "": node for node in model.graph if node.outputs}
    names = dict.fromkeys(name for group in groups for name in group.producers)
    magnitudes = criterion == "activation"
    asked = {name: _moments(nodes[name], magnitudes=magnitudes) for name in names}
    answers = evidence.collect(model, list(asked.values()))
    by_channel = {}
    for name, request in asked.items():
        found = answers[request]
        by_channel[name] = found.mean if magnitudes else np.sqrt(found.variance)
    result = []
    for group in groups:
        total = np.zeros(len(group.units))
        for name in group.producers:
            squares = np.array([np.sum(by_channel[name][list(unit.outputs[name])] ** 2) for unit in group.units])
            total += squares / (float(squares.sum()) or 1.0)
        result.append(np.sqrt(total))
    return result


def _moments(node: ir.Node, *, magnitudes: bool) -> Moments:
    """What is asked about the channels that `node` gives; for magnitudes behind the activation that alone reads them."""
    value = node.outputs[0]
    behind = following(value)
    reader = only_reader(value)
    if magnitudes and reader is not None and behind.shortcut is None and behind.activation is not None:
        value = reader.outputs[0]
    return Moments(value.name or "", 1 if node.op_type in ("Conv", "ConvTranspose") else -1, magnitudes)


def _rows(node: ir.Node | None) -> Array | None:
    """(C, elements) weights by output channel; None where they are no constant."""
    if node is None:
        return None
    tensor = constant_tensor(input_at(node, 0 if node.op_type == "Gather" else 1))
    if tensor is None or len(tensor.shape) < 2:
        return None
    axis = _AXES.get(node.op_type, 0)
    if node.op_type == "Gemm" and not attributes.integer(node, "transB", 0):
        axis = 1
    weight = np.asarray(tensor.numpy(), np.float64)
    if node.op_type == "ConvTranspose":  # (C_in, C_out / groups, ...): the groups' channels follow each other
        groups = attributes.integer(node, "group", 1)
        weight = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).swapaxes(0, 1)
        weight = weight.reshape(len(weight), -1, *weight.shape[3:])
    weight = np.moveaxis(weight, axis, 0)
    return weight.reshape(len(weight), -1)


def _distances(rows: Array) -> Array:
    """(C,) sum of the distances of each row from all others."""
    squares = np.einsum("ck,ck->c", rows, rows)
    between = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    return np.asarray(np.sqrt(np.maximum(between, 0)).sum(axis=1))


_SCORES = {
    "l1": lambda rows: np.abs(rows).sum(axis=1),
    "l2": lambda rows: np.sqrt(np.einsum("ck,ck->c", rows, rows)),
    "geometric-median": _distances,
}
