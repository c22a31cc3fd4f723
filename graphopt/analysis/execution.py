"""How one version of a model would run: the schedule of each graph and the size of each tensor, looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import onnx_ir as ir

from graphopt.analysis.dataflow import Planned, Remembered
from graphopt.analysis.fusion import Kernel, Tensor
from graphopt.analysis.schedule import schedule
from graphopt.ops.base import Extents

Layout = tuple[tuple[int, ...], float]
"""Extents (channels rounded up to whole blocks) and bytes per element: two tensors that agree can share a buffer."""


class Execution:
    """Kernels and tensors of a model that does not change meanwhile.

    Args:
        model: the model.
        extents: concrete extents of its values.
        block: channels per block of the machine's convolutions, 1 for none (see `graphopt.analysis.layout`).

    Attributes:
        extents: the same, remembered.
        unsized: number of tensors asked for whose extents or type are not known.
    """

    def __init__(self, model: ir.Model, extents: Extents, block: int) -> None:
        self.extents = Remembered(extents)
        self.unsized = 0
        self._block = block
        self._planned = Planned(model)
        self._steps: dict[ir.Graph, list[Kernel]] = {}
        self._layouts: dict[Tensor, Layout | None] = {}

    def steps(self, graph: ir.Graph) -> Sequence[Kernel]:
        """The kernels of one graph in the order in which onnxruntime runs them."""
        if graph not in self._steps:
            self._steps[graph] = schedule(graph, self.extents, self._block)
            self._planned.add(graph)
        return self._steps[graph]

    def layout(self, tensor: Tensor) -> Layout | None:
        """Extents and bytes per element of `tensor` in memory, or None where they are not known."""
        if tensor not in self._layouts:
            self._layouts[tensor] = self._look_up(tensor)
            self.unsized += int(self._layouts[tensor] is None)
        return self._layouts[tensor]

    def shareable(self, tensor: Tensor) -> Layout | None:
        """The layout, where onnxruntime knows it in time to plan that another tensor takes the same buffer."""
        return self.layout(tensor) if tensor.value in self._planned else None

    def bytes(self, tensor: Tensor) -> int | None:
        """Bytes of `tensor` in memory, or None where they are not known."""
        return layout_bytes(self.layout(tensor))

    def _look_up(self, tensor: Tensor) -> Layout | None:
        dims, dtype = self.extents.dims(tensor.value), tensor.value.dtype
        if dims is None or dtype is None or dtype.is_string():
            return None
        if tensor.block:
            dims = (dims[0], -(-dims[1] // tensor.block) * tensor.block, *dims[2:])
        return dims, dtype.itemsize


def layout_bytes(layout: Layout | None) -> int | None:
    """Bytes of a tensor with this layout; elements below 8 bits are packed."""
    return None if layout is None else ceil(prod(layout[0]) * layout[1])
