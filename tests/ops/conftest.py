"""Single nodes with values of given extents, and numbers that count how often they are multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ops.base import Extents

Operand = Sequence[int] | np.ndarray[Any, Any] | None


class DeclaredExtents:
    """Extents as they stand on the values, which all are static here."""

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        if value is None or value.shape is None:
            return None
        return tuple(int(extent) for extent in value.shape.numpy())

    def size(self, value: ir.Value | None) -> int | None:
        dims = self.dims(value)
        return None if dims is None else int(np.prod(dims))


def _value(operand: Operand) -> ir.Value | None:
    """A value of unknown content and these extents; an array is a constant; None is left out."""
    if operand is None:
        return None
    if isinstance(operand, np.ndarray):
        value = ir.Value(name="constant", const_value=ir.tensor(operand))
        ir.Graph([], [], nodes=[], initializers=[value])
        return value
    return ir.Value(name="value", shape=ir.Shape(operand), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.fixture(scope="session")
def make_node() -> Callable[..., ir.Node]:
    """`make_node(op_type, inputs, output, domain="", **attributes)`."""

    def make(
        op_type: str, inputs: Sequence[Operand], output: Operand = None, domain: str = "", **attributes: Any
    ) -> ir.Node:
        outputs = [_value(output) or ir.Value(name="output")]
        known = ir.convenience.convert_attributes(attributes)
        return ir.Node(domain, op_type, [_value(operand) for operand in inputs], known, outputs=outputs)

    return make


@pytest.fixture(scope="session")
def extents() -> Extents:
    return DeclaredExtents()


class Tally:
    """How many products of `Number`s were formed."""

    products = 0


class Number:
    """A number of which nothing matters but that a product of two is counted."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def __mul__(self, other: Number) -> Number:
        self.tally.products += 1
        return self

    def __add__(self, other: object) -> Number:
        return self

    __radd__ = __add__


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def numbers(tally: Tally) -> Callable[..., np.ndarray[Any, Any]]:
    """`numbers(2, 3)`: an array of counted numbers."""

    def make(*shape: int) -> np.ndarray[Any, Any]:
        array = np.empty(shape, dtype=object)
        array.fill(Number(tally))
        return array

    return make
