"""Which nodes run in one inference, and how often.

Outside of control flow every node runs once. Of an If the branch that costs more is taken to run, of those that can run
with the extents at hand; the body of a Loop or
Scan runs as often as the operator table can tell, and where it cannot, what the body costs is unknown. All sums over a
model are sums over these runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.analysis.execution import Execution
from graphopt.ir.walk import subgraphs
from graphopt.ops.base import operator
from graphopt.ops.control import ControlFlow


@dataclass(frozen=True, slots=True)
class Work:
    """One run of one node, without its bodies. None means unknown."""

    macs: int | None
    flops: int | None
    params: int = 0
    weight_bytes: int = 0
    activation_bytes: int | None = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A node that runs, how often (None: unknown), and where: the labels of the nodes around it, outermost first."""

    node: ir.Node
    work: Work
    times: int | None = 1
    path: tuple[str, ...] = ()

    @property
    def macs(self) -> int | None:
        """MACs of all runs together."""
        return _product(self.work.macs, self.times)

    @property
    def flops(self) -> int | None:
        """FLOPs of all runs together."""
        return _product(self.work.flops, self.times)


@dataclass(slots=True)
class Runs:
    """What runs in one inference.

    Attributes:
        nodes: every node that runs.
        graphs: every graph that runs, and how often.
        unknown: operators of nodes, in all graphs, of which MACs, FLOPs or the number of iterations are unknown.
    """

    nodes: list[Run] = field(default_factory=list)
    graphs: list[tuple[ir.Graph, int | None]] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)

    @property
    def macs(self) -> int:
        """MACs of all runs, unknown ones left out."""
        return sum(run.macs or 0 for run in self.nodes)

    @property
    def flops(self) -> int:
        """FLOPs of all runs, unknown ones left out."""
        return sum(run.flops or 0 for run in self.nodes)


def runs_of(
    graph: ir.Graph, work: Mapping[ir.Node, Work], execution: Execution, not_taken: Collection[ir.Graph] = ()
) -> Runs:
    """What runs when `graph` runs once.

    Args:
        graph: the main graph of a model.
        work: of every node in it and its bodies, and of no others.
        execution: extents, for the number of iterations.
        not_taken: branches of If that do not run.
    """
    runs = _runs(graph, 1, (), work, execution, not_taken)
    idle = {node for branch in not_taken for node in branch.all_nodes()}
    runs.unknown.update(
        title(node) for node, own in work.items() if node not in idle and (own.macs is None or own.flops is None)
    )
    return runs


def title(node: ir.Node) -> str:
    """The operator of a node, with its domain where it is not ai.onnx."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def own_name(node: ir.Node) -> str:
    """The node's name, or that of its first output."""
    return node.name or next((output.name for output in node.outputs if output.name), None) or ""


def _runs(
    graph: ir.Graph,
    times: int | None,
    path: tuple[str, ...],
    work: Mapping[ir.Node, Work],
    execution: Execution,
    not_taken: Collection[ir.Graph],
) -> Runs:
    found = Runs(graphs=[(graph, times)])
    for node in graph:
        found.nodes.append(Run(node, work[node], times, path))
        family = operator(node)
        if isinstance(family, ControlFlow):
            inner = _product(family.iterations(node, execution.extents), times)
            within = (*path, own_name(node))
            running = [body for body in subgraphs(node) if body not in not_taken]
            bodies = [_runs(body, inner, within, work, execution, not_taken) for body in running]
            if bodies:
                dearest = max(bodies, key=lambda body: (body.macs, body.flops, len(body.nodes)))
                found.nodes += dearest.nodes
                found.graphs += dearest.graphs
    return found


def _product(cost: int | None, times: int | None) -> int | None:
    """Nothing is nothing, however often it is done."""
    if cost == 0:
        return 0
    return None if cost is None or times is None else cost * times
