"""Initial states of zero, which recurrent operators have anyway.

    LSTM(x, W, R, B, lengths, 0, 0)  ->  LSTM(x, W, R, B, lengths)          GRU and RNN likewise

Exporters compute these zeros from the batch size (Shape, Concat, ConstantOfShape or Expand, Slice): with the last reader
that arithmetic goes too. ONNX: "initial_h: if not specified, assumed to be 0".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.rewriting import SMALL, Done, Outcome, Rule, RulePass, Site

_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
_REPEATING = ("Expand", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Tile", "Identity", "Cast", "Gather")
"""Operators whose output holds nothing but elements of their first input."""
_DEEPEST = 12


@dataclasses.dataclass(frozen=True)
class OmitZeroStates(RulePass):
    """Leave out initial states of zero of LSTM, GRU and RNN."""

    name: ClassVar[str] = "omit-zero-states"

    def rules(self) -> Sequence[Rule]:
        """The rule."""
        return (ZeroStates(),)


class ZeroStates(Rule):
    """A recurrent operator without its initial states."""

    roots: ClassVar = frozenset(_STATES)

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Leave out those states that are zero."""
        inputs = list(node.inputs)
        for index in _STATES[node.op_type]:
            if index < len(inputs) and _is_zero(inputs[index], site):
                inputs[index] = None
        if inputs == list(node.inputs):
            return None
        while inputs[-1] is None:
            inputs.pop()
        site.set_inputs(node, inputs)
        return Done("initial states of zero left out", (node,))


def _is_zero(value: ir.Value | None, site: Site) -> bool:
    """Whether all elements of `value` are zero, whatever its extents."""
    for _ in range(_DEEPEST):
        tensor = site.constant(value)
        if tensor is not None:
            return tensor.size <= SMALL and not tensor.numpy().any()
        node = site.producer(value, "ConstantOfShape", *_REPEATING)
        if node is None:
            return False
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            return fill is None or not fill.as_tensor().numpy().any()
        value = node.inputs[0]
    return False
