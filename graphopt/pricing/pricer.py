"""Pricing a model, and pricing it again after a pass for the price of what the pass touched.

What a node costs follows from the operator table and the extents of its values, so it is remembered per node; after a
pass only the nodes it touched and their neighbours are looked at again. Sums, the schedule and the peak are made anew.

Function calls are inlined in a copy, so that each call is priced with its own extents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt.analysis import shapes as inference
from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.analysis.fusion import Kernel, Tensor
from graphopt.analysis.liveness import peak_activation_memory
from graphopt.errors import InvalidModelError
from graphopt.ir.collection import collection_paused
from graphopt.ir.walk import all_graphs, constant_tensor
from graphopt.ops.base import operator
from graphopt.ops.control import Branch, ControlFlow
from graphopt.pricing.cost import Cost, NodeCost
from graphopt.pricing.device import DeviceProfile, this_machine
from graphopt.pricing.filesize import FileSize
from graphopt.pricing.prediction import kernel_seconds
from graphopt.pricing.runs import Run, Runs, Work, own_name, runs_of, title
from graphopt.pricing.vanishing import vanishing
from graphopt.pricing.weights import Weighing, is_parameter


def price(
    model: ir.Model,
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: DeviceProfile | None = None,
    per_node: bool = False,
) -> Cost:
    """What one inference of `model` costs.

    Args:
        model: with inferred shapes (see `graphopt.analysis.shapes`); not changed.
        batch: the extent of a first axis that the inputs leave open; 1 by default.
        shapes: extents of graph inputs, by name.
        device: what to predict time and layouts for; by default the built-in profile that fits this machine.
        per_node: whether the result has a row per node.

    Raises:
        OptionError: `batch` or `shapes` contradict what the model fixes, or each other.
        InvalidModelError: its functions call each other in a circle.
    """
    return Pricer(batch=batch, shapes=shapes, device=device).price(model, per_node=per_node)


class Pricer:
    """Prices versions of one model; what it found out about a node is good until the node is touched.

    What the first version had to have assumed for its open extents is assumed for all.
    """

    def __init__(
        self,
        *,
        batch: int | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        device: DeviceProfile | None = None,
    ) -> None:
        self._batch = batch
        self._shapes = shapes
        self._chosen: dict[str, int] = {}
        self._device = device or this_machine()
        self._inference = self._device.inference if self._device.kernels else 0.0
        self._work: dict[ir.Node, Work] = {}
        self._file = FileSize()
        self._weighing = Weighing()

    def price(self, model: ir.Model, *, touched: Collection[ir.Node] | None = None, per_node: bool = False) -> Cost:
        """What one inference of `model` costs. Arguments and errors as for the function `price`.

        Args:
            model: the model, or a later version of the one priced before.
            touched: the nodes that changed or are new since then. None: everything is looked at.
            per_node: whether the result has a row per node.
        """
        with collection_paused():
            graphs = list(all_graphs(model))
            nodes = [node for graph in graphs for node in graph]
            if touched is None:
                self._forget(nodes)
            else:
                self._forget(_with_neighbours(touched))
            running = inlined(model) if model.functions else model
            extents = Extents(running, batch=self._batch, shapes=self._shapes, assume=self._chosen)
            execution = Execution(running, extents, self._device.block)
            self._look_at(nodes if running is model else running.graph.all_nodes(), execution)
            branches = extents.not_taken() if any(isinstance(operator(node), Branch) for node in self._work) else ()
            runs = runs_of(running.graph, self._work, execution, branches)
            self._chosen |= extents.chosen
            seconds = self._seconds(runs, execution)
            weights = self._weighing.of(graphs, nodes)
            peak = peak_activation_memory(running.graph, execution)
            return Cost(
                macs=runs.macs,
                flops=runs.flops,
                params=weights.params,
                bytes=self._file.of(model),
                weight_bytes=weights.bytes,
                peak_activation_bytes=peak.bytes,
                nodes=sum(node.op_type != "Constant" or node.domain != "" for node in nodes),
                predicted_ms=1e3 * (sum(filter(None, seconds.values())) + self._inference),
                predicted_by=self._device.title,
                unknown_cost_ops=tuple(sorted(runs.unknown)),
                assumed=dict(extents.assumed),
                peak_node="" if peak.node is None else own_name(peak.node),
                peak_held=tuple(sorted(peak.held, key=lambda held: held.bytes, reverse=True)),
                per_node=tuple(_row(run, seconds) for run in runs.nodes) if per_node else (),
            )

    def _forget(self, nodes: Collection[ir.Node]) -> None:
        for node in nodes:
            self._work.pop(node, None)
        self._file.forget(nodes)

    def _look_at(self, nodes: Iterable[ir.Node], execution: Execution) -> None:
        """Find out what is not known yet, and drop what is gone."""
        known = self._work
        self._work = {node: known[node] if node in known else _work(node, execution, self._weighing) for node in nodes}

    def _seconds(self, runs: Runs, execution: Execution) -> dict[ir.Node, float | None]:
        """Predicted seconds of all runs, by the main node of each kernel."""
        seconds: dict[ir.Node, float | None] = {}
        running = [
            (kernel, times)
            for graph, times in runs.graphs
            for kernel in _kept(execution.steps(graph), vanishing(graph) if self._device.kernels else set())
        ]
        predicted = kernel_seconds([kernel for kernel, _ in running], self._work, execution, self._device)
        for (kernel, times), once in zip(running, predicted, strict=True):
            before = seconds.get(kernel.main, 0.0)
            if once is None or times is None or before is None:
                seconds[kernel.main] = None
            else:
                seconds[kernel.main] = before + once * times
        return seconds


def _kept(kernels: Iterable[Kernel], gone: Collection[ir.Node]) -> Iterable[Kernel]:
    """The kernels that are not made of nodes that are `gone`."""
    return (kernel for kernel in kernels if not kernel.nodes or not all(node in gone for node in kernel.nodes))


def _work(node: ir.Node, execution: Execution, weighing: Weighing) -> Work:
    family, extents = operator(node), execution.extents
    if isinstance(family, ControlFlow):
        known = family.iterations(node, extents) is not None
        return Work(0, 0) if known else Work(None, None)
    params = weight_bytes = 0
    moved: list[ir.Value] = list(node.outputs)
    for value in node.inputs:
        tensor = constant_tensor(value)
        if tensor is not None and value is not None:
            elements, size = weighing.measure(tensor)
            weight_bytes += size
            params += elements if is_parameter(value, tensor) else 0
        elif value is not None:
            moved.append(value)
    sizes = [] if family.view_of(node) is not None else [execution.bytes(Tensor(v)) for v in moved if v.name]
    known_sizes = [size for size in sizes if size is not None]
    activation_bytes = sum(known_sizes) if len(known_sizes) == len(sizes) else None
    return Work(family.macs(node, extents), family.flops(node, extents), params, weight_bytes, activation_bytes)


def _row(run: Run, seconds: Mapping[ir.Node, float | None]) -> NodeCost:
    work, flops = run.work, run.flops
    once = None if work.activation_bytes is None else work.activation_bytes + work.weight_bytes
    return NodeCost(
        name="/".join((*run.path, own_name(run.node))),
        op_type=title(run.node),
        macs=run.macs,
        flops=flops,
        params=work.params,
        weight_bytes=work.weight_bytes,
        activation_bytes=work.activation_bytes,
        intensity=work.flops / once if once and work.flops is not None else None,
        seconds=seconds.get(run.node, 0.0),
    )


def _with_neighbours(nodes: Collection[ir.Node]) -> set[ir.Node]:
    """`nodes`, those that make what they read, and those that read what they make."""
    found = set(nodes)
    for node in nodes:
        found.update(node.predecessors())
        found.update(node.successors())
    return found


def inlined(model: ir.Model) -> ir.Model:
    """A copy of `model` in which every call of a function is its body, with types of its own.

    Raises:
        InvalidModelError: functions call each other in a circle.
    """
    from onnx_ir.passes import PreconditionError
    from onnx_ir.passes.common import InlinePass

    copy = model.clone()
    try:
        InlinePass()(copy)
    except PreconditionError as error:
        raise InvalidModelError(f"the functions of the model call each other in a circle: {error}") from error
    inference.infer(copy)
    return copy
