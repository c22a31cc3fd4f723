"""Extents and shape arithmetic in numbers: every symbol of a model is bound to a small one.

Labels of channels (see `graphopt.ops.labels`) are arrays, so extents must be numbers while they are followed. What
would come out differently under other numbers is found by following twice (see `graphopt.analysis.coupling`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphopt.analysis import dims as symbols
from graphopt.analysis import shapes
from graphopt.analysis.dims import Bindings
from graphopt.analysis.inference import Inference

BATCH = (2, 3)
OTHER = (64, 96)
"""Other symbols: images must survive five halvings, sequences must fit into tables of positions."""

DATA_DEPENDENT = (24, 40)


def bindings(model: ir.Model) -> Iterator[dict[str, int]]:
    """Two choices of numbers for the symbols of `model`; one that is empty where it has none."""
    found = input_symbols(model)
    for node in model.graph:
        for value in node.outputs:
            for dim in value.shape or ():
                if not isinstance(dim, int) and (name := symbols.from_ir(dim)) is not None:
                    for symbol in symbols.symbols_of(str(name)):
                        found.setdefault(symbol, DATA_DEPENDENT)
    for choice in range(2 if found else 1):
        yield {name: numbers[choice] for name, numbers in found.items()}


def input_symbols(model: ir.Model) -> dict[str, tuple[int, int]]:
    """The symbols in the extents of the inputs, with the two numbers that each gets."""
    found: dict[str, tuple[int, int]] = {}
    for index, value in enumerate(model.graph.inputs):
        for axis, declared in enumerate(value.shape or ()):
            dim = symbols.from_ir(declared)
            name = symbols.input_symbol(index, axis) if dim is None else dim
            for symbol in symbols.symbols_of(name) if isinstance(name, str) else ():
                found.setdefault(symbol, OTHER if axis else BATCH)
    return found


class Bound:
    """Extents and contents of the values of `model` where its symbols have the numbers `chosen`."""

    def __init__(self, model: ir.Model, chosen: Mapping[str, int]) -> None:
        self._model = model
        self._chosen = chosen
        self._bindings = Bindings(chosen)
        self._dims: dict[ir.Value, tuple[int, ...] | None] = {}

    @cached_property
    def _inference(self) -> Inference:
        own = input_symbols(self._model)
        if len(self._chosen) <= len(own):
            return shapes.known(self._model)
        # Some symbols are not of the inputs: what they come to follows from the numbers that these have now.
        inference = Inference(self._model, bindings=Bindings({name: self._chosen[name] for name in own}))
        inference.run()
        return inference

    def dims(self, value: ir.Value) -> tuple[int, ...] | None:
        """The extents of a tensor, or None where they are not known."""
        if value not in self._dims:
            self._dims[value] = self._evaluated(value)
        return self._dims[value]

    def _evaluated(self, value: ir.Value) -> tuple[int, ...] | None:
        found = self._inference.fact(value).dims
        if found is None:
            return None
        numbers = tuple(map(self._bindings.evaluate, found))
        return None if None in numbers else numbers  # type: ignore[return-value]  # no None left

    def numbers(self, value: ir.Value) -> np.ndarray | None:
        """The elements of a small tensor that follows from extents and constants, or None where they do not."""
        found = self._inference.main.contents.of(value)
        if found is None or found.dtype != object:
            return found
        elements = [self._bindings.evaluate(x) if isinstance(x, str) else x for x in found.reshape(-1).tolist()]
        if any(x is None for x in elements):
            return None
        return np.array(elements).reshape(found.shape)
