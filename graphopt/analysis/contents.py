"""What small tensors hold, as far as it follows from the graph: Shape -> Gather -> Concat -> Reshape and the like.

The elements of a tensor are a numpy array of its own type where all are numbers, and else an array of objects:
numbers, symbolic extents (see `graphopt.analysis.dims`), None where nothing is known. Operators that move elements
are run by numpy on either kind; operators that calculate use numpy on numbers and symbolic arithmetic on the rest.
Contents are evaluated on demand, backwards from the operator whose result's shape depends on them, and only for
tensors of at most 4 KiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis import calculate, facts
from graphopt.analysis.calculate import LARGEST
from graphopt.analysis.call import Call
from graphopt.analysis.dims import Arithmetic
from graphopt.analysis.facts import Fact
from graphopt.ir import walk

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})
MOST_FLOATS = 64
"""Floats that shapes depend on are few: the scales of a Resize, the ends of a Range."""

NUMERIC = frozenset(
    {
        ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
        ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE,
    }
)  # fmt: skip

FROM_SHAPE_ALONE = frozenset({"Shape", "Size"})


class Contents:
    """The contents of values, evaluated when asked for.

    Args:
        fact: what is known of a value.
        attributes: the attributes of a node, references resolved.
        version: the opset version of ONNX's own operators here.
        known: contents given from outside: those of a function's parameters.
    """

    def __init__(
        self,
        fact: Callable[[ir.Value], Fact],
        attributes: Callable[[ir.Node], Mapping[str, ir.Attr]],
        version: int,
        arithmetic: Arithmetic,
        known: Mapping[ir.Value, np.ndarray | None],
    ) -> None:
        self._fact = fact
        self._attributes = attributes
        self._version = version
        self._arithmetic = arithmetic
        self._known = dict(known)

    def forget(self, value: ir.Value) -> None:
        """Evaluate `value` anew when it is asked for again."""
        self._known.pop(value, None)

    def of(self, value: ir.Value | None) -> np.ndarray | None:
        """The contents of `value`, shaped like it, or None where the tensor is large or nothing is known of it."""
        if value is None:
            return None
        pending = [value]
        while pending:
            current = pending[-1]
            missing = [] if current in self._known else self._missing(current)
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            if current not in self._known:
                self._evaluate(current)
        return self._known[value]

    def _missing(self, value: ir.Value) -> Sequence[ir.Value]:
        """The values whose contents must be evaluated before that of `value`."""
        node = value.producer()
        if node is None or not self._calculable(node) or node.op_type in FROM_SHAPE_ALONE or self._large(value):
            return ()
        return [source for source in node.inputs if source is not None and source not in self._known]

    def _evaluate(self, value: ir.Value) -> None:
        self._known[value] = None
        constant = walk.constant_tensor(value)
        node = value.producer()
        if constant is not None:
            if not self._large(value):
                self._known[value] = constant.numpy()
        elif node is not None and self._calculable(node) and not self._large(value):
            self._calculate(node)
        if self._known[value] is None:
            self._known[value] = self._unknown(value)

    def _calculate(self, node: ir.Node) -> None:
        inputs = [None if source is None else self._fact(source) for source in node.inputs]
        if node.op_type in FROM_SHAPE_ALONE:
            arrays: list[np.ndarray | None] = []
        else:
            arrays = [None if source is None else self._known[source] for source in node.inputs]
        call = Call(
            "", node.op_type, self._version, self._attributes(node), tuple(inputs), tuple(arrays),
            tuple(bool(output.name) for output in node.outputs),
        )  # fmt: skip
        for output, array in zip(node.outputs, calculate.run(call, self._arithmetic), strict=False):
            settled = None if array is None else _settled(array, self._fact(output).dtype)
            self._known[output] = self._unknown(output) if settled is None else settled

    def _calculable(self, node: ir.Node) -> bool:
        return node.domain in ("", "ai.onnx") and node.op_type in calculate.RULES

    def _large(self, value: ir.Value) -> bool:
        """Whether `value` is too large, of a type or of extents that nothing can be said about."""
        fact = self._fact(value)
        if fact.dtype not in NUMERIC or fact.dims is None or not facts.is_static(fact):
            return True
        # An empty tensor may still claim axes that numpy refuses.
        elements = math.prod(max(int(dim or 0), 1) for dim in fact.dims)
        return elements * 8 > LARGEST or (fact.dtype in FLOATS and elements > MOST_FLOATS)

    def _unknown(self, value: ir.Value) -> np.ndarray | None:
        if self._large(value):
            return None
        return np.full(self._fact(value).dims, None, dtype=object)  # type: ignore[arg-type]  # not large: all ints


def _settled(array: np.ndarray, dtype: ir.DataType | None) -> np.ndarray | None:
    """An array of objects as one of numbers where it holds nothing else."""
    if array.size * 8 > LARGEST:
        return None
    if array.dtype == object and dtype in NUMERIC and all(isinstance(x, int | float | bool) for x in array.flat):
        try:
            return array.astype(dtype.numpy())
        except OverflowError:
            return None
    return array
