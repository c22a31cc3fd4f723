"""Recurrent layers: each step multiplies the input by W and the state by R, whole, for every gate and direction.

W is (directions, gates x hidden, input) and R is (directions, gates x hidden, hidden), so the MACs of one step of one
sequence are the elements of W and R together, whatever the number of gates and whichever way they are laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.ops.base import MICROSOFT, Contraction, Extents, input_at


class Recurrent(Contraction):
    """LSTM, GRU and RNN, in one direction or both, with sequences of one length or of several."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("LSTM", "GRU", "RNN")}
    # Per hidden unit and step: bias additions, activations, and the products and sums that make the new state.
    unit_flops: ClassVar[Mapping[str, int]] = {"LSTM": 13, "GRU": 11, "RNN": 2, "DynamicQuantizeLSTM": 13}
    peephole_flops: ClassVar[int] = 6

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Steps times the elements of W and R."""
        steps = self._steps(node, extents)
        input_weight, recurrence = extents.size(input_at(node, 1)), extents.size(input_at(node, 2))
        if steps is None or input_weight is None or recurrence is None:
            return None
        return steps * (input_weight + recurrence)

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """What each hidden unit computes in each step beside the products with W and R."""
        steps, recurrence = self._steps(node, extents), extents.dims(input_at(node, 2))
        if steps is None or recurrence is None or len(recurrence) != 3:
            return None
        hidden = min(recurrence[1:])
        per_unit = self.unit_flops[node.op_type]
        if input_at(node, 7) is not None:
            per_unit += self.peephole_flops
        return steps * recurrence[0] * hidden * per_unit

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """The products of all inputs with W, gates x hidden per step, of one direction."""
        data, recurrence = extents.dims(input_at(node, 0)), extents.dims(input_at(node, 2))
        if data is None or len(data) != 3 or recurrence is None or len(recurrence) != 3:
            return 0
        return data[0] * data[1] * max(recurrence[1:])

    def _steps(self, node: ir.Node, extents: Extents) -> int | None:
        """Sequence steps of all sequences of the batch; `sequence_lens` counts where it is a constant."""
        lengths = constant_tensor(input_at(node, 4))
        if lengths is not None:
            return int(lengths.numpy().sum())
        data = extents.dims(input_at(node, 0))
        return None if data is None or len(data) != 3 else data[0] * data[1]


class DynamicQuantizeLSTM(Recurrent):
    """DynamicQuantizeLSTM: an LSTM on int8 W and R, which are stored transposed."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("DynamicQuantizeLSTM",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (8, 9, 10, 11)


FAMILIES = (Recurrent(), DynamicQuantizeLSTM())
