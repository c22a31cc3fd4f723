"""Running a part of a model: from values that are at hand to values that are wanted.

The part is found in the graph as it is at that moment, by walking back from the wanted values until values at hand,
constants or nothing remains, and becomes a model of its own. What an If or Loop body reads from outside counts as
read by its node. Values inside of bodies cannot be wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError, UnsupportedModelError
from graphopt.ir.walk import graph_and_bodies, label, subgraphs
from graphopt.runtime.session import Session, SessionOptions

_OLDEST_FREE_INITIALIZERS = 4  # IR version from which on initializers need not be graph inputs


def values_named(model: ir.Model, names: Sequence[str]) -> dict[str, ir.Value]:
    """Values of the main graph by name, in the order of `names`.

    Raises:
        UnsupportedModelError: one lies in the body of a node.
        DataError: there is none of that name.
    """
    graph = model.graph
    known = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    known.update((output.name, output) for node in graph for output in node.outputs)
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise _not_found(graph, missing)
    return {name: known[name] for name in names}


def _not_found(graph: ir.Graph, name: str) -> UnsupportedModelError | DataError:
    for node in graph:
        for body in subgraphs(node):
            for inner in graph_and_bodies(body):
                values = [*inner.inputs, *inner.initializers.values()]
                values += [output for inside in inner for output in inside.outputs]
                if any(value.name == name for value in values):
                    return UnsupportedModelError(
                        f"value '{name}' lies in a body of {label(node)}; statistics are of values of the main graph"
                    )
    return DataError(f"the model has no value '{name}' to take statistics of")


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads: its inputs, and what its bodies read from around them."""
    yield from (value for value in node.inputs if value is not None)
    own: set[ir.Value] = set()
    for body in subgraphs(node):
        for graph in graph_and_bodies(body):
            own.update(graph.inputs, graph.initializers.values())
            for inner in graph:
                own.update(inner.outputs)
    for body in subgraphs(node):
        for graph in graph_and_bodies(body):
            inside = [value for inner in graph for value in inner.inputs if value is not None]
            yield from (value for value in (*inside, *graph.outputs) if value not in own)


@dataclasses.dataclass(frozen=True)
class Part:
    """Nodes in topological order, and what they read that none of them makes."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]


def part(wanted: Sequence[ir.Value], at_hand: Container[ir.Value]) -> Part:
    """What computes `wanted` from `at_hand`.

    Raises:
        DataError: it needs a graph input that is not at hand.
    """
    nodes: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}
    pending = [(value, False) for value in reversed(wanted)]
    while pending:
        value, entered = pending.pop()
        producer = value.producer()
        if entered:
            assert producer is not None
            nodes[producer] = None  # all that it reads has been dealt with
        elif value in at_hand:
            inputs[value] = None
        elif producer is None:
            if value.const_value is None:
                raise DataError(f"the samples hold nothing for input '{value.name}'")
            constants[value] = None
        elif producer not in nodes:
            pending.append((value, True))
            pending.extend((read, False) for read in reads(producer))
    return Part(tuple(nodes), tuple(inputs), tuple(constants))


class Piece:
    """A part of a model, loaded in onnxruntime. Weights are read once, as they are now."""

    def __init__(
        self,
        model: ir.Model,
        wanted: Sequence[ir.Value],
        types: Mapping[ir.Value, np.dtype],
        *,
        threads: int = 1,
    ) -> None:
        """Load what computes `wanted`.

        Args:
            model: the whole model; not changed.
            wanted: values of its main graph; of constants and of values at hand the arrays are passed on.
            types: the values at hand and the element types of their arrays.
            threads: threads within an operator.

        Raises:
            DataError: a graph input is missing among `types`.
            RuntimeFailureError: onnxruntime cannot load the part.
        """
        found = part(wanted, types)
        self.nodes = found.nodes
        self.inputs = found.inputs
        self._wanted = tuple(wanted)
        made = {output for node in found.nodes for output in node.outputs}
        self._outputs = [value for value in dict.fromkeys(wanted) if value in made]
        self._constants = {
            value: value.const_value.numpy()
            for value in wanted
            if value in found.constants and value.const_value is not None
        }
        self._session = None
        if self._outputs:
            extracted = _extract(model, found, self._outputs, types)
            # As it is written, so that a value does not depend on which other nodes are in the part.
            options = SessionOptions(threads=threads, integer=False)
            self._session = Session(extracted, options, name="the model")
        self._feeds = [value for value in found.inputs if self._session and value.name in self._session.input_names]

    def run(self, arrays: Mapping[ir.Value, np.ndarray]) -> dict[ir.Value, np.ndarray]:
        """The wanted values, from arrays of `inputs`.

        Raises:
            RuntimeFailureError: onnxruntime fails on them.
            UnsupportedModelError: a value is no tensor.
        """
        computed: dict[ir.Value, np.ndarray] = {}
        if self._session is not None:
            outputs = self._session.run({value.name or "": arrays[value] for value in self._feeds})
            computed = {value: outputs[value.name or ""] for value in self._outputs}
        result = {}
        for value in self._wanted:
            array = computed[value] if value in computed else self._constants.get(value)
            result[value] = _checked(value, arrays[value] if array is None else array)
        return result


def _extract(model: ir.Model, found: Part, outputs: Sequence[ir.Value], types: Mapping[ir.Value, np.dtype]) -> ir.Model:
    view = ir.GraphView(
        found.inputs,
        outputs,
        nodes=found.nodes,
        initializers=found.constants,
        opset_imports=model.graph.opset_imports,
        name=model.graph.name or "part",
    )
    graph = view.clone()
    for value, original in zip(graph.inputs, found.inputs, strict=True):
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.from_numpy(types[original]))
    version = max(_OLDEST_FREE_INITIALIZERS, model.ir_version)
    return ir.Model(graph, ir_version=version, functions=list(model.functions.values()))


def _checked(value: ir.Value, array: object) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype == object:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UnsupportedModelError(f"value '{value.name}' is no tensor of numbers ({kind})")
    return array
