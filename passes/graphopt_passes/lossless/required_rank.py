"""The rank that a value must have because of those who read it: with any other, the model could not be computed.

Where inference cannot tell the rank of a value (an If whose branches differ), its readers may: an LSTM takes three axes
and a Conv as many as its weight has; a reader that keeps, adds or removes a known number of axes passes on what its own
readers require. Only readers in the value's own graph count, since they are computed whenever it is.

Source: ONNX Operators.md, "Inputs" of each operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from graphopt_passes.lossless.parameters import integers
from graphopt_passes.rewriting import Site

_MOST_VALUES = 32
"""Values that are followed from reader to reader."""

_RECURRENT = MappingProxyType({0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3})
_TAKES: Mapping[str, Mapping[int, int]] = MappingProxyType(
    {"GRU": _RECURRENT, "Gemm": {0: 2, 1: 2}, "LSTM": {**_RECURRENT, 7: 2}, "RNN": _RECURRENT}
)
"""The rank of each input that has a fixed one."""

_AS_WEIGHT = frozenset({"Conv", "ConvInteger", "ConvTranspose"})
_KEEPS = frozenset(
    {
        *("Abs", "Cast", "Elu", "Erf", "Exp", "HardSigmoid", "Identity", "LeakyRelu", "Log", "Neg", "Reciprocal"),
        *("Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh"),
    }
)
_ADDS = MappingProxyType({"Unsqueeze": 1, "Squeeze": -1})


def required_rank(value: ir.Value, site: Site) -> int | None:
    """The rank that `value`, one of the graph that `site` looks at, must have; None where nothing says so."""
    added = {value: 0}  # axes that a value has more than the one that was asked for
    pending = [value]
    while pending and len(added) <= _MOST_VALUES:
        current = pending.pop()
        for use in current.uses():
            node = use.node
            if node.domain != "" or site.graph_of(node) is None:
                continue
            rank = _rank_taken(node, use.idx)
            if rank is not None:
                return rank - added[current]
            change = _rank_change(node, use.idx, site)
            if change is not None and node.outputs[0] not in added:
                added[node.outputs[0]] = added[current] + change
                pending.append(node.outputs[0])
    return None


def _rank_taken(node: ir.Node, index: int) -> int | None:
    """The rank that input `index` of `node` must have."""
    if index == 0 and node.op_type in _AS_WEIGHT:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        return None if weight is None or weight.shape is None else len(weight.shape)
    return _TAKES.get(node.op_type, {}).get(index)


def _rank_change(node: ir.Node, index: int, site: Site) -> int | None:
    """How many axes more the output of `node` has than its input `index`."""
    if index != 0:
        return None
    if node.op_type in _KEEPS:
        return 0
    sign = _ADDS.get(node.op_type)
    axes = None if sign is None else integers(site, node, "axes")
    return None if sign is None or axes is None else sign * len(axes)
