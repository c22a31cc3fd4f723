"""What is known of values while a pass runs: extents, and the elements of small tensors.

Both come from `graphopt.analysis`: an extent is a number, a symbol or an expression over symbols, and equal ones are
equal numbers for every input of the model; an element is a number, such an extent, or None where nothing is known.
Elements are evaluated on demand, backwards from where they are asked for.

Inside functions only constants are known: what a parameter looks like depends on the call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import shapes
from graphopt.analysis.dims import Arithmetic, Dim, Dims
from graphopt.analysis.facts import Fact
from graphopt.analysis.inference import Inference
from graphopt.ir.walk import subgraphs
from graphopt_passes.rewriting import Site

Elements = Sequence[Dim]
"""Elements of a tensor of integers, flat."""


class PartialValues:
    """Extents and elements of the values of one model, for one run of a pass."""

    def __init__(self) -> None:
        """Nothing is looked at yet."""
        self._inference: Inference | None = None

    @property
    def arithmetic(self) -> Arithmetic:
        """Arithmetic on extents."""
        assert self._inference is not None  # whoever has extents has asked for them
        return self._inference.arithmetic

    def dims(self, value: ir.Value | None, site: Site) -> Dims | None:
        """The extents of `value`, where its rank is known."""
        if value is None or site.scope.is_function:
            constant = site.constant(value)
            return None if constant is None else tuple(constant.shape.numpy())
        return self._known(site).fact(value).dims

    def contents(self, value: ir.Value | None, site: Site) -> np.ndarray | None:
        """The elements of `value`, shaped like it: of its own type where all are numbers, else objects."""
        if value is None:
            return None
        if site.scope.is_function:
            return site.array(value)
        return self._known(site).main.contents.of(value)

    def elements(self, value: ir.Value | None, site: Site) -> Elements | None:
        """The elements of a tensor of integers."""
        array = self.contents(value, site)
        if array is None or not (array.dtype == object or np.issubdtype(array.dtype, np.integer)):
            return None
        elements = array.reshape(-1).tolist()
        return elements if all(element is None or isinstance(element, int | str) for element in elements) else None

    def forget(self) -> None:
        """Look again: a rewrite has changed extents."""
        self._inference = None

    def _known(self, site: Site) -> Inference:
        if self._inference is None:
            self._inference = shapes.known(site.model)
            for output in site.model.graph.outputs:
                _infer_again(output, self._inference)
        return self._inference


def _infer_again(output: ir.Value, inference: Inference) -> None:
    """Take for a graph output what follows from the graph: what a model declares there binds nobody."""
    producer, dims = output.producer(), inference.fact(output).dims
    if producer is None or dims is None:
        return
    fact = Fact(output.type, (None,) * len(dims))
    if next(subgraphs(producer), None) is None and producer.op_identifier() not in inference.model.functions:
        inferred = inference.infer_node(producer, inference.main)[producer.outputs.index(output)]
        fact = inferred if inferred.dims is not None and len(inferred.dims) == len(dims) else fact
    inference.main.facts[output] = inference.named(fact)


def all_numbers(elements: Elements | None) -> list[int] | None:
    """`elements` where all of them are numbers."""
    if elements is None:
        return None
    numbers = [element for element in elements if isinstance(element, int)]
    return numbers if len(numbers) == len(elements) else None
