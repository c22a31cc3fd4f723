"""Sharing nodes out between integers and float so that a model takes the least time: a minimum cut.

    min over labels   Σ_node time(node, label) + Σ_value [made as integers, read as float] · border(value)
                                               + Σ_value [made as float, read as integers] · border(value)

Nodes that cannot run on integers are float. Each value is converted once for all who read it the other way, which takes
two more vertices per value (Greig, Porteous and Seheult 1989). What a border costs, by the value's elements, is fitted to
the conversions that were timed, and scaled to all that runs between the nodes: changes of memory layout come in as well,
under names that say nothing of their place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.extents import Extents
from graphopt.ir.walk import label
from graphopt.runtime.kernel_times import KernelTimes
from graphopt.runtime.latency import median_interval
from graphopt_passes.quantization.placement import Placement

_NUMBER = re.compile(r"#(\d+)#")
_CONVERSION = re.compile(r"@(-?\d+)@")

Rounds = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Region:
    """Connected nodes that are faster in float.

    Attributes:
        nodes: they, in the model's order.
        integer_ms: median milliseconds of their kernels on integers.
        float_ms: in float, with the conversions around them.
        interval: of integer over float, round by round.
    """

    nodes: tuple[ir.Node, ...]
    integer_ms: float
    float_ms: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        first, last = label(self.nodes[0]), label(self.nodes[-1])
        return first if len(self.nodes) == 1 else f"{first} to {last} ({len(self.nodes)} nodes)"

    @property
    def why(self) -> str:
        """Why it stays float, with figures."""
        low, high = self.interval
        return (
            f"stays float, which is faster here: integers take {self.integer_ms:.3f} ms, float {self.float_ms:.3f} ms with "
            f"its conversions (ratio {low:.2f} to {high:.2f})"
        )


def numbered(copy: ir.Model, originals: Sequence[ir.Node] | None = None) -> ir.Model:
    """`copy` with nodes and values called by the number of the node, which the names of onnxruntime's kernels go on saying.

    Args:
        copy: changed in place.
        originals: the nodes that have numbers, by number; the others are conversions, called by what they convert.
    """
    numbers = {node: number for number, node in enumerate(originals or tuple(copy.graph))}
    for node, number in numbers.items():
        node.name = f"#{number}#"
        for place, output in enumerate(node.outputs):
            output.name = f"#{number}#{place or ''}"
    for index, node in enumerate(copy.graph):
        if node not in numbers:
            node.name = f"@{_maker(node, numbers)}@{index}"
            for output in node.outputs:
                output.name = f"{node.name}:out"
    return copy


def _maker(node: ir.Node, numbers: Mapping[ir.Node, int]) -> int | str:
    """The number of the node whose value a conversion converts, -1 for an input; no number for a constant."""
    producer: ir.Node | None = node
    value: ir.Value | None = None
    while producer is not None and producer not in numbers:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    if producer is not None:
        return numbers[producer]
    return "constant" if value is None or value.is_initializer() else -1


@dataclasses.dataclass
class Border:
    """What it costs to change between float and integers: seconds per value, and per element of it.

    Attributes:
        conversions: elements and seconds of conversions that were timed.
        totals: elements of all values that a model converts, and the seconds of all that runs between its nodes.
    """

    conversions: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    totals: list[tuple[list[int], float]] = dataclasses.field(default_factory=list)
    per_value: float = 0.0
    per_element: float = 0.0

    def seconds(self, elements: int) -> float:
        """Of a value with so many elements."""
        return self.per_value + self.per_element * elements

    def fit(self) -> None:
        """Take what was timed: least squares over the conversions, scaled to what there is in all."""
        if not self.conversions:
            return
        sizes, seconds = np.array(self.conversions, np.float64).T
        from scipy.optimize import nnls  # here, because it takes half a second and 40 MB that few runs need

        self.per_value, self.per_element = map(float, nnls(np.stack([np.ones_like(sizes), sizes], axis=1), seconds)[0])
        expected = sum(self.seconds(size) for sizes, _ in self.totals for size in sizes)
        factor = sum(total for _, total in self.totals) / expected if expected else 1.0
        self.per_value *= max(1.0, factor)
        self.per_element *= max(1.0, factor)


class Problem:
    """The times, and the share-out that makes the least of them.

    An absorbed activation belongs to the node before it, under that node's number.
    """

    def __init__(self, model: ir.Model, placement: Placement) -> None:
        """For `model`, of which `placement` says what may run on integers."""
        self.nodes = tuple(model.graph)
        self.number = {node: number for number, node in enumerate(self.nodes)}
        self._owner = {number: number for number in range(len(self.nodes))}
        for reader in placement.absorbed:
            value = reader.inputs[0]
            maker = None if value is None else value.producer()
            if maker is not None:
                self._owner[self.number[reader]] = self.number[maker]
        self._free = frozenset(self.number[node] for node in placement.integer_nodes())
        self._layers = frozenset(self.number[layer.node] for layer in placement.layers)
        extents = Extents(model)
        self._values = {value: extents.size(value) or 0 for value in placement.groups}
        self._on_integers: dict[int, float] = {}
        self._in_float: dict[int, float] = {}
        self._apart: float = 0.0  # seconds between the nodes of the float model
        self.border = Border()

    def learn(self, in_float: KernelTimes, on_integers: KernelTimes) -> None:
        """Take the times of the model in float, and of all that may run on integers."""
        self._in_float = {number: _typical(rounds) for number, rounds in self._per_node(in_float).items()}
        self._apart = _typical(_apart(in_float))
        self.learn_mixed(frozenset(), on_integers)

    def learn_mixed(self, floats: Collection[int], times: KernelTimes) -> None:
        """Take the times of a model with `floats` in float: of its nodes, and of what stands between them.

        A node takes longer beside some neighbours than beside others. Its least time counts, so that what was slow in one
        share-out is tried in another.
        """
        nodes = self._per_node(times)
        for number in self._free:
            known = self._in_float if number in floats else self._on_integers
            seconds = _typical(nodes[number]) if number in nodes else 0.0
            known[number] = min(seconds, known.get(number, seconds))
        sizes = {self._made_in(value): self._values[value] for value in self._converted(floats)}
        for name, rounds in times.items():
            found = _CONVERSION.search(name)
            if found is not None and int(found.group(1)) in sizes:
                self.border.conversions.append((sizes[int(found.group(1))], _typical(rounds)))
        apart = _typical(_apart(times)) - self._apart
        self.border.totals.append((list(sizes.values()), max(0.0, apart)))
        self.border.fit()

    def movable(self) -> list[ir.Node]:
        """The nodes that may run either way."""
        return [self.nodes[number] for number in sorted(self._free)]

    def cut(self, price: float = 1, handicap: float = 1) -> frozenset[int]:
        """The numbers of the nodes that are to run in float.

        Borders cost `price` times what is known of them, nodes on integers `handicap` times.
        """
        graph = nx.DiGraph()
        graph.add_nodes_from(("integer", "float"))
        for number in self._free:
            graph.add_edge("integer", number, capacity=self._in_float.get(number, 0.0))
            graph.add_edge(number, "float", capacity=handicap * self._on_integers.get(number, 0.0))
        for value, size in self._values.items():
            maker, seconds = self._maker(value), price * self.border.seconds(size)
            for reader in set(self._readers(value)):  # edges without a capacity are never cut
                graph.add_edge(("dequantized", value), reader)
                graph.add_edge(reader, ("quantized", value))
            graph.add_edge(maker, ("dequantized", value), capacity=seconds)
            graph.add_edge(("quantized", value), maker, capacity=seconds)
        _, (on_integers, _) = nx.minimum_cut(graph, "integer", "float")
        return frozenset(number for number in self._free if number not in on_integers)

    def regions(
        self, floats: frozenset[int], on_integers: KernelTimes, mixed: KernelTimes, confidence: float
    ) -> tuple[Region, ...]:
        """The connected parts of `floats`, each with its times.

        Args:
            floats: a share-out.
            on_integers: times of the model without any of them in float, in the same rounds as `mixed`.
            mixed: times of the model with all of them in float.
            confidence: of the intervals.
        """
        together = nx.Graph()
        together.add_nodes_from(floats)
        for value in self._values:
            nx.add_path(together, [end for end in (self._maker(value), *self._readers(value)) if end in floats])
        before, after = self._per_node(on_integers), self._per_node(mixed)
        found = []
        for members in sorted(map(sorted, nx.connected_components(together))):
            integer = sum((before[number] for number in members if number in before), self._border_of(members, ()))
            in_float = sum((after[number] for number in members if number in after), self._border_of(members, floats))
            ratios = integer / np.maximum(in_float, 1e-9)
            interval = median_interval(ratios.tolist(), confidence)
            milliseconds = 1e3 * float(np.median(integer)), 1e3 * float(np.median(in_float))
            found.append(Region(tuple(self.nodes[number] for number in members), *milliseconds, interval))
        return tuple(found)

    def _per_node(self, times: KernelTimes) -> dict[int, Rounds]:
        """Seconds per round of every numbered node; a kernel that stands for several counts for the one with weights."""
        found: dict[int, Rounds] = {}
        for name, rounds in times.items():
            numbers = [self._owner[int(number)] for number in _NUMBER.findall(name)]
            if numbers:
                best = next((number for number in numbers if number in self._layers), numbers[0])
                found[best] = found.get(best, 0.0) + rounds
        for number in sorted(self._layers):
            behind = self._fused_into(number, found)
            if behind is not None:
                found[number] = found.pop(behind)
        return found

    def _fused_into(self, number: int, found: Mapping[int, Rounds]) -> int | None:
        """The node behind a layer without a kernel that has its time: onnxruntime calls some fusions by their result."""
        current = number
        while current not in found:
            uses = [use.node for use in self._result(current).uses()]
            if len(uses) != 1 or uses[0] not in self.number:
                return None
            current = self._owner[self.number[uses[0]]]
            if current in self._layers:
                return None
        return None if current == number else current

    def _result(self, number: int) -> ir.Value:
        """What a node makes, behind the activation that belongs to it."""
        value = self.nodes[number].outputs[0]
        for use in value.uses():
            other = self.number.get(use.node)
            if other is not None and other != number and self._owner[other] == number:
                return use.node.outputs[0]
        return value

    def _made_in(self, value: ir.Value) -> int:
        """The number of the node that makes `value`, -1 for an input: what a numbered copy calls its conversions by."""
        producer = value.producer()
        return -1 if producer is None else self.number[producer]

    def _maker(self, value: ir.Value) -> int | str:
        producer = value.producer()
        number = None if producer is None else self._owner[self.number[producer]]
        return number if number is not None and number in self._free else "float"

    def _readers(self, value: ir.Value) -> Iterator[int | str]:
        for use in value.uses():
            number = self.number.get(use.node)
            owner = None if number is None else self._owner[number]
            yield owner if owner is not None and owner in self._free else "float"
        if value.is_graph_output():
            yield "float"

    def _converted(self, floats: Collection[int]) -> Iterator[ir.Value]:
        """The values that are made one way and read the other while `floats` are in float."""
        for value in self._values:
            made = self._is_float(self._maker(value), floats)
            if any(self._is_float(reader, floats) != made for reader in self._readers(value)):
                yield value

    def _border_of(self, members: Collection[int], floats: Collection[int]) -> Rounds:
        """Seconds of the conversions at the nodes of a region while `floats` are in float, (1,)."""
        sizes = [
            self._values[value]
            for value in self._converted(floats)
            if self._maker(value) in members or any(reader in members for reader in self._readers(value))
        ]
        return np.array([sum(map(self.border.seconds, sizes))])

    @staticmethod
    def _is_float(end: int | str, floats: Collection[int]) -> bool:
        return end == "float" or end in floats


def _typical(rounds: Rounds) -> float:
    """The mean of the middle half of the rounds: as little moved by outliers as a median, and finer than the microseconds
    that kernels are timed in."""
    ordered, cut = np.sort(rounds), len(rounds) // 4
    return float(ordered[cut : len(rounds) - cut].mean())


def _apart(times: KernelTimes) -> Rounds:
    """Seconds per round of kernels that belong to no node: conversions, and changes of layout."""
    return sum((rounds for name, rounds in times.items() if not _NUMBER.search(name)), np.zeros(1))
