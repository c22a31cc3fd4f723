"""Schedule: the kernels of a graph in the order in which onnxruntime runs them.

onnxruntime walks a graph depth first from its last nodes up, the input with the highest index first, and an index is
given when a node is made. Fused nodes are new, so every round of fusion changes the order: once before the layouts are
chosen, once after. The order in the file has its say only through the indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import onnx_ir as ir

from graphopt.analysis.fusion import Kernel, kernels
from graphopt.analysis.layout import laid_out
from graphopt.ops.base import Extents


def schedule(graph: ir.Graph, extents: Extents, block: int) -> list[Kernel]:
    """The kernels of `graph` as onnxruntime's CPU provider runs them.

    Args:
        graph: one graph; bodies of its nodes have schedules of their own.
        extents: concrete extents of its values.
        block: channels per block of the machine's convolutions, 1 for none (see `graphopt.analysis.layout`).
    """
    return depth_first(laid_out(depth_first(kernels(graph, extents)), extents, block))


def depth_first(steps: Sequence[Kernel], *, latest_first: bool = True) -> list[Kernel]:
    """Every kernel after its sources, finishing the source of the highest (or lowest) rank before the next."""
    by_rank = sorted(steps, key=lambda kernel: kernel.rank, reverse=not latest_first)
    sources = [sorted(row) for row in _sources(by_rank)]
    read = {source for row in sources for source in row}
    stack = [(index, False) for index in range(len(by_rank)) if index not in read]
    seen = [False] * len(by_rank)
    order: list[Kernel] = []
    while stack:
        index, leaving = stack.pop()
        if leaving:
            order.append(by_rank[index])
        elif not seen[index]:
            seen[index] = True
            stack.append((index, True))
            stack += [(source, False) for source in sources[index] if not seen[source]]
    return order


def stored_order(steps: Sequence[Kernel]) -> list[Kernel]:
    """Every kernel as early as its sources and the place of its last node in the graph allow."""
    places = {node: place for place, node in enumerate(steps[0].main.graph or ())} if steps else {}
    sources = _sources(steps)
    readers: list[list[int]] = [[] for _ in steps]
    for index, row in enumerate(sources):
        for source in row:
            readers[source].append(index)
    waiting = [len(row) for row in sources]
    keys = [max((places[node] for node in kernel.nodes), default=-1) for kernel in steps]
    ready = [(keys[index], index) for index, count in enumerate(waiting) if count == 0]
    heapify(ready)
    order: list[Kernel] = []
    while ready:
        _, index = heappop(ready)
        order.append(steps[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heappush(ready, (keys[reader], reader))
    return order


def _sources(steps: Sequence[Kernel]) -> list[list[int]]:
    """For every kernel the indices of those that make what it reads."""
    made_by = {tensor: index for index, kernel in enumerate(steps) for tensor in kernel.writes}
    return [[made_by[tensor] for tensor in kernel.reads if tensor in made_by] for kernel in steps]
