"""Peak activation memory: which buffers are alive at once while onnxruntime runs a graph on the CPU.

onnxruntime plans buffers before it runs anything. Walking the kernels in their order, the output of each is given, in
this order of preference:

1. for a graph output: memory of its own, which the caller keeps;
2. for a view (Reshape): the buffer of its input;
3. for a kernel that works in place (Relu, the sum of a convolution): the buffer of an input that nothing else needs and
   that has the same extents;
4. the buffer of a value that is dead by now and has the same extents and element size, the latest one;
5. a new buffer.

Extents that are only known when the model runs are not the same as any (`graphopt.analysis.dataflow.Planned`).

A buffer is allocated when its first value is made and freed after the last read of its *last* value. That is why
repeated layers keep their buffers between two uses, and why a Transformer needs more than the tensors that are alive.
The peak is the largest sum of allocated buffers over all steps. Graph inputs belong to the caller, weights to the
session; neither counts. The bodies of If, Loop and Scan are planned alone and added while their node runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, prod
from typing import NamedTuple

import onnx_ir as ir

from graphopt.analysis.execution import Execution, Layout, layout_bytes
from graphopt.analysis.fusion import Kernel, Tensor
from graphopt.analysis.schedule import depth_first, stored_order
from graphopt.ir.walk import subgraphs
from graphopt.ops.base import operator
from graphopt.ops.control import Branch, ControlFlow


class Held(NamedTuple):
    """What a buffer holds: the name of a value, bytes, and whether it is a copy of a value that is held otherwise too."""

    name: str
    bytes: int
    copy: bool = False


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest sum of buffers, and where it stands.

    Attributes:
        bytes: of all activations allocated at once; a lower bound where `unsized` is not 0.
        node: the main node of the kernel that runs at the peak, or None where nothing is allocated.
        unsized: number of values whose extents or type are not known; they count nothing.
        held: the buffers that are allocated at the peak, in the order in which they were; what is missing to `bytes` is
            the kernel's workspace, or a body.
    """

    bytes: int
    node: ir.Node | None
    unsized: int
    held: tuple[Held, ...] = ()


def peak_activation_memory(graph: ir.Graph, execution: Execution, *, best_order: bool = False) -> Peak:
    """Peak of `graph` in the order in which onnxruntime runs it.

    Args:
        graph: one graph; the bodies of its nodes are included.
        execution: how the model that it belongs to runs.
        best_order: take the better of a few topological orders instead, for a runtime that is free to choose: that of
            onnxruntime, its mirror image (the other input first), and the one in which the nodes are stored.
    """
    steps = execution.steps(graph)
    orders = [steps]
    if best_order:
        orders += [depth_first(steps, latest_first=False), stored_order(steps)]
    return min((_highest(order, execution) for order in orders), key=lambda peak: peak.bytes)


def _while_running(kernel: Kernel, execution: Execution) -> int:
    """Bytes that exist only while `kernel` runs: its workspace, or its largest body (one runs at a time)."""
    node = kernel.main
    family = operator(node)
    if isinstance(family, ControlFlow):
        # The results of a branch are written straight to those of If.
        handed_out = isinstance(family, Branch)
        peaks = (_highest(execution.steps(body), execution, keeps_outputs=not handed_out) for body in subgraphs(node))
        return max((peak.bytes for peak in peaks), default=0)
    if not kernel.nodes or not kernel.writes or any(tensor.block for tensor in kernel.writes):
        return 0
    elements = family.workspace(node, execution.extents, integer=kernel.integer)
    layout = execution.layout(kernel.writes[0]) if elements or kernel.copies else None
    return 0 if layout is None else ceil((elements + kernel.copies * prod(layout[0])) * layout[1])


@dataclass(slots=True)
class _Buffer:
    """Memory from step `born` to step `died`, both included.

    Attributes:
        layout: of its first tensor, which made it as large as it is; None where that is not known.
        shareable: whether later tensors may have it.
        kept: whether the caller keeps it.
        left: reads of its present tensors to come.
        tensors: what it holds, and from which step on.
    """

    layout: Layout | None
    born: int
    died: int
    shareable: bool
    kept: bool
    left: int = 0
    tensors: list[tuple[int, Tensor]] = field(default_factory=list)


class _Plan:
    """The buffers of one order of kernels, assigned as onnxruntime's allocation planner does."""

    def __init__(self, order: Sequence[Kernel], execution: Execution) -> None:
        self._execution = execution
        self._reads: dict[Tensor, int] = {}
        for kernel in order:
            for tensor in kernel.reads:
                self._reads[tensor] = self._reads.get(tensor, 0) + 1
        self._holder: dict[Tensor, _Buffer] = {}
        self._free: dict[Layout, list[_Buffer]] = {}
        self.buffers: list[_Buffer] = []
        for step, kernel in enumerate(order):
            self._assign_all(kernel, step)
            self._release(kernel, step)

    def _assign_all(self, kernel: Kernel, step: int) -> None:
        """Give every tensor that `kernel` makes a buffer, but for views of what is not the plan's to keep."""
        for position, tensor in enumerate(kernel.writes):
            if position == 0 and kernel.view_of is not None and not tensor.is_output:
                buffer = self._holder.get(kernel.view_of)
                if buffer is None:
                    continue  # a view of a graph input or a weight is nobody's activation
            else:
                buffer = self._assign(tensor, kernel.overwrites if position == 0 else (), step)
            buffer.left += self._reads.get(tensor, 0)
            buffer.tensors.append((step, tensor))
            self._holder[tensor] = buffer

    def _assign(self, tensor: Tensor, overwrites: Sequence[Tensor], step: int) -> _Buffer:
        shareable = self._execution.shareable(tensor)
        if not tensor.is_output and shareable is not None:
            for source in overwrites:
                buffer = self._holder.get(source)
                alone = buffer is not None and buffer.left == 1 and not buffer.kept
                if buffer is not None and alone and self._execution.shareable(source) == shareable:
                    return buffer
            if self._free.get(shareable):
                return self._free[shareable].pop()
        layout = self._execution.layout(tensor)
        buffer = _Buffer(layout, step, step, shareable=shareable is not None, kept=tensor.is_output)
        self.buffers.append(buffer)
        return buffer

    def held(self, step: int) -> tuple[Held, ...]:
        """What is allocated at `step`; a buffer that waits to be used again holds what it last did."""
        found: list[Held] = []
        for buffer in self.buffers:
            if buffer.born <= step <= buffer.died or (buffer.kept and buffer.born <= step):
                tensor = [tensor for since, tensor in buffer.tensors if since <= step][-1]
                name = tensor.value.name or ""
                copy = any(name == other.name for other in found)
                found.append(Held(name, layout_bytes(buffer.layout) or 0, copy))
        return tuple(found)

    def _release(self, kernel: Kernel, step: int) -> None:
        """Free the buffers that nothing reads after this step."""
        touched: dict[int, _Buffer] = {}
        for tensor in kernel.reads:
            if (buffer := self._holder.get(tensor)) is not None:
                buffer.left -= 1
                touched[id(buffer)] = buffer
        for tensor in kernel.writes:
            if (buffer := self._holder.get(tensor)) is not None:
                touched[id(buffer)] = buffer
        for buffer in touched.values():
            buffer.died = step
            if buffer.left == 0 and buffer.shareable and not buffer.kept and buffer.layout is not None:
                self._free.setdefault(buffer.layout, []).append(buffer)


def _highest(order: Sequence[Kernel], execution: Execution, *, keeps_outputs: bool = True) -> Peak:
    """The peak of one order; `keeps_outputs` is whether the graph's outputs take memory of their own."""
    change = [0] * (len(order) + 1)
    plan = _Plan(order, execution)
    for buffer in plan.buffers:
        size = layout_bytes(buffer.layout) or 0
        if not buffer.kept:
            change[buffer.born] += size
            change[buffer.died + 1] -= size
        elif keeps_outputs:
            change[buffer.born] += size
    peak, at = 0, -1
    for step, (kernel, alive) in enumerate(zip(order, accumulate(change), strict=False)):
        here = alive + _while_running(kernel, execution)
        if here > peak:
            peak, at = here, step
    if at < 0:
        return Peak(0, None, execution.unsized)
    return Peak(peak, order[at].main, execution.unsized, plan.held(at))
