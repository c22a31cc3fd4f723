"""Numbers that nodes read from shape arithmetic: what they must be once channels are gone, and how they become so.

Every number that leaves shape arithmetic has an expected value: the one that the reader's rule states (entries of a
target shape whose extent changed, see `Operator.shrink`), or else the one that it had. The latter is what keeps
attention's 1/sqrt(d) as it was trained. What the graph would compute now is compared with that; where the two differ,
a constant takes the place of what was computed, or of those of its elements that are numbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import shapes
from graphopt.analysis.contents import Contents
from graphopt.ir import surgery, walk

Use = tuple[ir.Node, int]


class Numbers:
    """The elements that the nodes of a model read from shape arithmetic, as they were.

    Args:
        model: as it is before anything is cut.
        computed: the names of all tensors that do not follow from constants alone.
    """

    def __init__(self, model: ir.Model, computed: Container[str]) -> None:
        self._model = model
        self._contents = contents = shapes.known(model).main.contents
        self._expected: dict[Use, np.ndarray] = {
            (node, index): known
            for node, index, value in _readers(model, contents)
            if value.name in computed
            and (known := contents.of(value)) is not None
            and any(x is not None for x in known.flat)
        }
        self._whole: dict[Use, np.ndarray] = {}

    def symbolic(self, value: ir.Value) -> np.ndarray:
        """Which elements of a small tensor are symbols."""
        found = self._contents.of(value)
        flags = [isinstance(x, str) for x in found.flat] if found is not None else []
        return np.array(flags, bool).reshape(() if found is None else found.shape)

    def expect(self, node: ir.Node, index: int, numbers: Mapping[int, int] | np.ndarray) -> None:
        """Other elements than before: some by position, or all of them."""
        if isinstance(numbers, np.ndarray):
            self._whole[node, index] = numbers
        elif numbers:
            tensor = walk.constant_tensor(node.inputs[index])
            old = self._contents.of(node.inputs[index]) if tensor is None else tensor.numpy()
            new = np.array(old, dtype=object)
            for position, number in numbers.items():
                new.flat[position] = number
            self._expected[node, index] = new

    def write(self) -> set[ir.Node]:
        """Bring the model, whose shapes are up to date, in line with what is expected; return what was touched."""
        contents = shapes.known(self._model).main.contents
        names = surgery.FreshNames(self._model)
        touched: set[ir.Node] = set()
        for (node, index), whole in self._whole.items():
            replace_numbers(self._model, node, index, whole, names)
            touched.add(node)
        for (node, index), expected in self._expected.items():
            value = node.inputs[index]
            actual = None if value is None or (node, index) in self._whole else contents.of(value)
            if actual is None or value is None or _alike(expected, actual):
                continue
            touched.update(self._correct(node, index, value, expected, names))
        return touched

    def _correct(
        self, node: ir.Node, index: int, value: ir.Value, expected: np.ndarray, names: surgery.FreshNames
    ) -> Iterator[ir.Node]:
        numeric = np.array([isinstance(x, int | float | bool | np.generic) for x in expected.flat], bool)
        yield node
        if numeric.all():
            replace_numbers(self._model, node, index, expected, names)
            return
        if value.dtype is None:
            raise ValueError(f"{walk.label(node)}: input {index} has no type")
        mask = numeric.reshape(expected.shape)
        fixed = np.where(mask, expected, 0).astype(value.dtype.numpy())
        graph, output = (
            self._model.graph,
            ir.Value(name=names.fresh(f"{value.name}_cut"), type=value.type, shape=value.shape),
        )
        inputs = [
            _constant(graph, names.fresh(f"{value.name}_{kind}"), array)
            for kind, array in (("known", mask), ("cut", fixed))
        ]
        chosen = ir.Node("", "Where", [*inputs, value], outputs=[output], name=names.fresh("keep_extents"))
        _insert_before(graph, node, chosen)
        node.replace_input_with(index, output)
        yield chosen


def _readers(model: ir.Model, contents: Contents) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Every read of what was computed by a node that is itself no shape arithmetic."""
    for node in model.graph:
        inner = [reader for body in walk.subgraphs(node) for graph in walk.graph_and_bodies(body) for reader in graph]
        for reader in (node, *inner):
            for index, value in enumerate(reader.inputs):
                if value is None or value.graph is not model.graph or value.producer() is None:
                    continue
                if reader is not node or not _is_arithmetic(node, contents):
                    yield reader, index, value


def _is_arithmetic(node: ir.Node, contents: Contents) -> bool:
    known = (contents.of(value) for value in node.outputs if value.name)
    return all(array is not None and all(x is not None for x in array.flat) for array in known)


def _alike(expected: np.ndarray, actual: np.ndarray) -> bool:
    return expected.shape == actual.shape and all(
        a is None or a == b or isinstance(a, str) for a, b in zip(expected.flat, actual.flat, strict=True)
    )


def replace_numbers(
    model: ir.Model, node: ir.Node, index: int, elements: np.ndarray, names: surgery.FreshNames
) -> None:
    """Let `node` read these elements; a constant that nobody else reads keeps its name."""
    value = node.inputs[index] if index < len(node.inputs) else None
    dtype = np.dtype(np.int64) if value is None or value.dtype is None else value.dtype.numpy()
    array = np.asarray(elements.astype(dtype), order="C")
    if value is not None and value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        value.const_value = ir.Tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    base = f"{node.outputs[0].name}_extents" if value is None else f"{value.name}_cut"
    new = _constant(model.graph, names.fresh(base), array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new)
    surgery.drop_unread([value])


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(new)
    return new


def _insert_before(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    """Insert before `node`, or before the node of `graph` that it stands inside."""
    if node.graph is graph:
        graph.insert_before(node, new)
        return
    for outer in graph:
        if any(node.graph is inner for body in walk.subgraphs(outer) for inner in walk.graph_and_bodies(body)):
            graph.insert_before(outer, new)
            return


def set_integers(node: ir.Node, name: str, value: int | Sequence[int]) -> None:
    """Give an attribute of `node` one integer, or several."""
    node.attributes[name] = ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, value)
