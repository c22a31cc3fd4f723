"""Concrete extents of every value, for pricing: symbols are bound to numbers.

The leading symbolic dim of the graph inputs is the batch. Other symbols get the numbers that the user gave with
`--shape`, or 1; where that would leave a linear layer nothing to compute (a window of audio samples, the smallest image
that survives all strides), the first of some usual sizes that does not. What was assumed is noted. An extent is read from
the value's shape each time it is asked for, so that a rewrite that sets new shapes needs to tell nobody. Where a shape
uses symbols that no graph input declares (an exporter's own name for the batch at an output) or that depend on data, the
model is inferred once more with its inputs bound to numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.analysis import dims as symbols
from graphopt.analysis import facts
from graphopt.analysis.dims import Bindings, Dim, Dims
from graphopt.analysis.facts import Fact
from graphopt.analysis.inference import Inference
from graphopt.analysis.shapes import bind
from graphopt.errors import OptionError
from graphopt.ir import walk
from graphopt.ops.base import Contraction, operator

USUAL_SIZES = (32, 64, 224, 512, 4096, 16384)
"""Images, blocks of speech and text, and stretches of sound: what an open extent is taken to be where 1 is too small."""


class Extents:
    """The extents of a model's values for one choice of its inputs' extents.

    Args:
        model: a model with inferred shapes (see `graphopt.analysis.shapes`).
        batch: the number of samples; 1 where it is not given and the model leaves it open.
        shapes: extents of graph inputs, by name; inputs that share a symbol share its number.
        assume: numbers for symbols that nobody gives one, by name, as `chosen` of another version of the model has them.

    Attributes:
        batch: the number of samples that the extents are for.
        assumed: the symbols that nobody gave a number, as reports call them, and what was taken for them.
        chosen: the same by their own names.

    Raises:
        OptionError: `batch` or `shapes` contradict what the model fixes, or each other.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        batch: int | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        assume: Mapping[str, int] | None = None,
    ) -> None:
        given = dict(shapes or {})
        self._model = model
        self._index = {value: index for index, value in enumerate(model.graph.inputs)}
        self._given = {value: tuple(given[value.name]) for value in self._index if value.name in given}
        self._inferred: dict[ir.Value, tuple[ir.Shape | None, tuple[int, ...] | None]] = {}
        self._bindings = Bindings(bind(model, given))
        self._before = dict(assume or {})
        self.assumed: dict[str, int] = {}
        self.chosen: dict[str, int] = {}
        self.batch = self._bind_batch(batch)
        for value in self._index:
            for dim in self._declared(value) or ():
                self._assume(dim)
        self._enlarge()

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The extents of a tensor, or None where they are not known or depend on data."""
        if value is None:
            return None
        declared = self._declared(value)
        if declared is not None:
            numbers = tuple(map(self._bindings.evaluate, declared))
            if None not in numbers:
                return numbers  # type: ignore[return-value]  # no None left
        return self._by_inference(value)

    def size(self, value: ir.Value | None) -> int | None:
        """The number of elements of a tensor, or None where its extents are not known."""
        extents = self.dims(value)
        return None if extents is None else math.prod(extents)

    def not_taken(self) -> set[ir.Graph]:
        """Branches of If that never run with these extents: by a condition that follows from them, or because they cannot."""
        inference = self._bound()
        inference.run()
        return inference.not_taken

    # --- Binding

    def _declared(self, value: ir.Value) -> Dims | None:
        """The extents on `value`; axes that a graph input leaves open have the symbols that inference gave them."""
        if value in self._given:
            return self._given[value]
        shape = value.shape
        if shape is None:
            return facts.declared(value).dims
        index = self._index.get(value)
        extents = map(symbols.from_ir, shape)
        if index is None:
            return tuple(extents)
        return tuple(symbols.input_symbol(index, axis) if dim is None else dim for axis, dim in enumerate(extents))

    def _leading(self) -> Iterator[tuple[ir.Value, Dim]]:
        """The leading dims of the inputs; those with a default value are weights."""
        for value in self._index:
            extents = self._declared(value)
            if extents and not value.is_initializer():
                yield value, extents[0]

    def _bind_batch(self, batch: int | None) -> int:
        """Bind the leading symbols of the inputs to `batch` and return the number of samples."""
        if batch is not None and batch < 1:
            raise OptionError(f"--batch {batch}: must be at least 1")
        numbers = self._bindings.symbols
        fixed: list[tuple[ir.Value, int]] = []
        names: set[str] = set()
        for value, dim in self._leading():
            number = self._bindings.evaluate(dim)
            if number is not None:
                fixed.append((value, number))
            elif isinstance(dim, str):
                names.add(dim)
        if names:
            size = batch or 1
            numbers.update(dict.fromkeys(names, size))
            self._bindings = Bindings(numbers)
            return size
        if batch is None or not fixed:
            if batch not in (None, 1):
                raise OptionError(f"--batch {batch}: the model has no input with a batch dim")
            return fixed[0][1] if fixed else 1
        value, number = fixed[0]
        if number != batch:
            raise OptionError(
                f"--batch {batch}: the batch is fixed at {number} (dim 0 of input '{value.name}'); "
                "export the model with a dynamic batch to price others"
            )
        return batch

    def _assume(self, dim: Dim) -> None:
        """Take 1 for every symbol of `dim` that is not bound, or what was assumed before."""
        if not isinstance(dim, str) or self._bindings.evaluate(dim) is not None:
            return
        unbound = [name for name in symbols.symbols_of(dim) if name not in self._bindings.symbols]
        self._take({name: self._before.get(name, 1) for name in unbound})

    def _take(self, numbers: Mapping[str, int]) -> None:
        self._bindings = Bindings({**self._bindings.symbols, **numbers})
        self.chosen.update(numbers)
        self.assumed.update({self._title(name): number for name, number in numbers.items()})

    def _enlarge(self) -> None:
        """Assume more than 1 for the symbols of inputs that would leave a linear layer nothing to compute."""
        free = self.chosen.keys() - self._before.keys()
        if not free:
            return
        extents = _extents_of_layers(self._model)
        for size in USUAL_SIZES:
            empty = [dim for dim in extents if self._bindings.leaves_nothing(dim)]
            small = {name for dim in empty for name in symbols.symbols_of(dim)} & free
            if not small:
                return
            self._take(dict.fromkeys(small, size))

    def _title(self, name: str) -> str:
        """How a symbol is called in reports: an axis that an input leaves open by input and axis."""
        for value, index in self._index.items():
            for axis, dim in enumerate(self._declared(value) or ()):
                if dim == name == symbols.input_symbol(index, axis):
                    return f"{value.name}[{axis}]"
        return str(symbols.to_ir(name))

    # --- Inference with bound inputs

    def _by_inference(self, value: ir.Value) -> tuple[int, ...] | None:
        known = self._inferred.get(value)
        # A value with another shape than it had then was rewritten since, and so were perhaps others.
        if known is None or known[0] is not value.shape:
            known = (value.shape, self._from_producer(value))
            if known[1] is None:
                self._inferred = self._from_inputs()
                known = self._inferred.get(value, known)
            self._inferred[value] = known
        return known[1]

    def _from_producer(self, value: ir.Value) -> tuple[int, ...] | None:
        """What the operator alone says, which is enough where only the value's own symbols are nobody else's."""
        node = value.producer()
        if node is None or node.op_identifier() in self._model.functions or next(walk.subgraphs(node), None):
            return None
        inference = self._bound()
        found = inference.infer_node(node, inference.main)[node.outputs.index(value)].dims
        if found is None:
            return None
        numbers = tuple(map(self._bindings.evaluate, found))
        return None if None in numbers else numbers  # type: ignore[return-value]  # no None left

    def _from_inputs(self) -> dict[ir.Value, tuple[ir.Shape | None, tuple[int, ...] | None]]:
        """What follows for every value from the extents of the graph inputs."""
        inference = self._bound()
        inference.run()
        return {value: (value.shape, self._numbers(fact.dims)) for value, fact in inference.main.facts.items()}

    def _bound(self) -> Inference:
        inference = Inference(self._model, bindings=self._bindings)
        for value, extents in self._given.items():
            inference.main.facts[value] = Fact(facts.declared(value).type, extents)
        return inference

    def _numbers(self, extents: Dims | None) -> tuple[int, ...] | None:
        if extents is None or any(map(symbols.is_invented, extents)):
            return None
        for dim in extents:
            self._assume(dim)
        numbers = tuple(map(self._bindings.evaluate, extents))
        return None if None in numbers else numbers  # type: ignore[return-value]  # no None left


def _extents_of_layers(model: ir.Model) -> set[str]:
    """The symbolic extents of what linear layers make, in all graphs."""
    return {
        dim
        for node in walk.all_nodes(model)
        if isinstance(operator(node), Contraction)
        for value in node.outputs
        for dim in map(symbols.from_ir, value.shape or ())
        if isinstance(dim, str)
    }
