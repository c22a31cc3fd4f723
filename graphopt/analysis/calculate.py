"""The operators that shape arithmetic is made of, run on small arrays of numbers and symbols.

Each rule gets a `Call` whose `contents` are the inputs' elements and returns the elements of the outputs, None for an
output of which nothing is known. Numbers follow the operator's own arithmetic in the tensor's own type; a symbolic
element is only ever replaced by one that is equal to it for certain.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.call import Call
from graphopt.analysis.dims import Arithmetic

Arrays = list[np.ndarray | None]
Rule = Callable[[Call, Arithmetic], Arrays]
LARGEST = 4096
"""Bytes of a constant, or 8 times the elements of a computed tensor, beyond which nothing is read or computed."""

Element = Any
"""int, float or bool; str for a symbolic extent; None for unknown."""


def run(call: Call, arithmetic: Arithmetic) -> Arrays:
    """The elements of the outputs of `call`, which must be in `RULES`."""
    try:
        with np.errstate(all="ignore"):
            return RULES[call.op_type](call, arithmetic)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError):
        # The model's own numbers do not fit the operator, or an input that the rule needs is not known.
        return [None] * len(call.outputs)


# --- Constants and extents ------------------------------------------------------------------------


def _shape(call: Call, arithmetic: Arithmetic) -> Arrays:
    dims = call.dims(0)
    if dims is None:
        return [None]
    bounds = slice(call.integer("start", 0), call.integer("end", len(dims)))
    return [_objects(dims[bounds])]


def _constant(call: Call, arithmetic: Arithmetic) -> Arrays:
    ((name, attribute),) = call.attributes.items()
    if name == "value":
        tensor = attribute.as_tensor()
        return [tensor.numpy() if tensor.nbytes <= LARGEST else None]
    if name in ("value_int", "value_ints"):
        return [np.array(attribute.value, dtype=np.int64)]
    return [np.array(attribute.value, dtype=np.float32) if name in ("value_float", "value_floats") else None]


def _size(call: Call, arithmetic: Arithmetic) -> Arrays:
    dims = call.dims(0)
    return [None] if dims is None else [_objects([arithmetic.product(dims)]).reshape(())]


def _objects(elements: Sequence[Element]) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


# --- Moving elements ------------------------------------------------------------------------------


def _given(call: Call, index: int) -> np.ndarray:
    """An input that the rule cannot do without."""
    array = call.content(index)
    if array is None:
        raise ValueError("unknown")
    return array


def _numbers(call: Call, index: int) -> list[int]:
    """An input that must be known in numbers."""
    return [operator.index(element) for element in _given(call, index).reshape(-1).tolist()]


def _axes(call: Call) -> list[int] | None:
    """Axes given as an attribute or, in newer opsets, as the second input; None where they are left out."""
    axes = call.integers("axes")
    return list(axes) if axes is not None else _numbers(call, 1) if call.has(1) else None


def _same(call: Call, arithmetic: Arithmetic) -> Arrays:
    return [call.content(0)]


def _gather(call: Call, arithmetic: Arithmetic) -> Arrays:
    indices = np.array(_numbers(call, 1), dtype=np.int64).reshape(_given(call, 1).shape)
    data = _given(call, 0)
    return [np.asarray(np.take(data, indices, axis=call.integer("axis", 0)), dtype=data.dtype)]


def _slice(call: Call, arithmetic: Arithmetic) -> Arrays:
    data = _given(call, 0)
    if call.version < 10:
        starts, ends = call.integers("starts") or [], call.integers("ends") or []
        axes, steps = call.integers("axes"), None
    else:
        starts, ends = _numbers(call, 1), _numbers(call, 2)
        axes = _numbers(call, 3) if call.has(3) else None
        steps = _numbers(call, 4) if call.has(4) else None
    index = [slice(None)] * data.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes is not None else i) % data.ndim
        step = steps[i] if steps is not None else 1
        # numpy reads -1 as "the last element"; ONNX clamps an end below the start of the axis instead.
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return [data[tuple(index)]]


def _concat(call: Call, arithmetic: Arithmetic) -> Arrays:
    parts = [_given(call, index) for index in range(len(call.inputs))]
    if any(part.dtype == object for part in parts):
        parts = [part.astype(object) for part in parts]
    return [np.concatenate(parts, axis=call.integer("axis", 1 if call.version < 4 else 0))]


def _split(call: Call, arithmetic: Arithmetic) -> Arrays:
    data, axis, count = _given(call, 0), call.integer("axis", 0), len(call.outputs)
    sizes = call.integers("split") or (_numbers(call, 1) if call.has(1) else None)
    if sizes is None:
        size = -(-data.shape[axis] // count)
        sizes = [size] * (count - 1)
    return list(np.split(data, np.cumsum(sizes)[: count - 1], axis=axis))


def _unsqueeze(call: Call, arithmetic: Arithmetic) -> Arrays:
    return [np.expand_dims(_given(call, 0), tuple(_axes(call) or ()))]


def _squeeze(call: Call, arithmetic: Arithmetic) -> Arrays:
    axes = _axes(call)
    return [np.squeeze(_given(call, 0), axis=None if axes is None else tuple(axes))]


def _reshape(call: Call, arithmetic: Arithmetic) -> Arrays:
    data = _given(call, 0)
    target = list(call.integers("shape") or ()) if call.version < 5 else _numbers(call, 1)
    if not call.integer("allowzero", 0):
        target = [data.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return [data.reshape(target)]


def _flatten(call: Call, arithmetic: Arithmetic) -> Arrays:
    data, axis = _given(call, 0), call.integer("axis", 1)
    return [data.reshape(math.prod(data.shape[:axis]), -1)]


def _transpose(call: Call, arithmetic: Arithmetic) -> Arrays:
    return [np.transpose(_given(call, 0), call.integers("perm"))]


def _expand(call: Call, arithmetic: Arithmetic) -> Arrays:
    data = _given(call, 0)
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(_numbers(call, 1))))]


def _tile(call: Call, arithmetic: Arithmetic) -> Arrays:
    return [np.tile(_given(call, 0), _numbers(call, 1))]


def _constant_of_shape(call: Call, arithmetic: Arithmetic) -> Arrays:
    value = call.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    return [np.full(_numbers(call, 0), fill.reshape(-1)[0])]


def _range(call: Call, arithmetic: Arithmetic) -> Arrays:
    start, limit, delta = (_given(call, index).item() for index in range(3))
    return [np.arange(start, limit, delta)]


def _nonzero(call: Call, arithmetic: Arithmetic) -> Arrays:
    data = _given(call, 0)
    return [None if data.dtype == object else np.array(np.nonzero(data))]


# --- Calculating ----------------------------------------------------------------------------------


def _is_integer(dtype: ir.DataType | None) -> bool:
    return dtype is not None and dtype.is_integer()


def _cast(call: Call, arithmetic: Arithmetic) -> Arrays:
    data, target = _given(call, 0), ir.DataType(call.integer("to", 0))
    if data.dtype != object:
        return [data.astype(target.numpy())]

    def element(x: Element) -> Element:
        if not isinstance(x, str):
            return x if x is None else np.asarray(x).astype(target.numpy()).item()
        if target == ir.DataType.BOOL:
            return None
        rounds = _is_integer(target) and not _is_integer(call.fact(0).dtype)
        return x if not rounds else arithmetic.floor(x) if arithmetic.not_negative(x) else None

    return [_each(element, data)]


def _each(function: Callable[..., Element], *arrays: np.ndarray) -> np.ndarray:
    def plain(*elements: Element) -> Element:
        result = function(*elements)
        return result.item() if isinstance(result, np.generic) else result

    return np.asarray(np.frompyfunc(plain, len(arrays), 1)(*arrays), dtype=object)


def _elementwise(numbers: Callable[..., Any], symbols: Callable[[Arithmetic, Element, Element], Element]) -> Rule:
    """A rule that folds its inputs with `numbers` where all are numbers, else element by element with `symbols`."""

    def rule(call: Call, arithmetic: Arithmetic) -> Arrays:
        def element(a: Element, b: Element) -> Element:
            if a is None or b is None:
                return None
            if isinstance(a, str) or isinstance(b, str):
                return symbols(arithmetic, a, b)
            return numbers(a, b)

        result = _given(call, 0)
        for index in range(1, len(call.inputs)):
            other = _given(call, index)
            if result.dtype == object or other.dtype == object:
                result = _each(element, result, other)
            else:
                result = np.asarray(numbers(result, other))
        return [result]

    return rule


def _unknown(arithmetic: Arithmetic, a: Element, b: Element) -> Element:
    return None


def _multiply(arithmetic: Arithmetic, a: Element, b: Element) -> Element:
    symbol, number = (a, b) if isinstance(a, str) else (b, a)
    if not isinstance(number, float):
        return arithmetic.multiply(a, b)
    exact = _dyadic(number)
    return None if exact is None else arithmetic.fraction(symbol, exact.numerator, exact.denominator)


def _dyadic(number: float) -> Fraction | None:
    """`number` as a fraction where multiplying by it is exact in any floating-point type that holds extents."""
    if not math.isfinite(number):
        return None
    exact = Fraction(number)
    return exact if exact.denominator <= 1024 and abs(exact.numerator) <= 1024 else None


def _div(call: Call, arithmetic: Arithmetic) -> Arrays:
    whole = _is_integer(call.fact(0).dtype)

    def numbers(a: Any, b: Any) -> Any:
        # Integer division truncates; a zero divisor raises here rather than yield what no runtime agrees on.
        if not whole:
            return a / b
        if np.any(np.equal(b, 0)):
            raise ZeroDivisionError
        return np.sign(a) * np.sign(b) * (abs(a) // abs(b))

    def symbols(arithmetic: Arithmetic, a: Element, b: Element) -> Element:
        if whole:
            return arithmetic.floor_divide(a, b) if arithmetic.not_negative(a) else None
        if isinstance(b, int | float) and float(b).is_integer() and b > 0:
            return arithmetic.fraction(a, 1, int(b))
        return None

    return _elementwise(numbers, symbols)(call, arithmetic)


def _mod(call: Call, arithmetic: Arithmetic) -> Arrays:
    return _elementwise(np.fmod if call.integer("fmod", 0) else np.mod, _unknown)(call, arithmetic)


def _equal_symbols(arithmetic: Arithmetic, a: Element, b: Element) -> Element:
    if a == b:
        return True
    symbol, other = (a, b) if isinstance(a, str) else (b, a)
    # A symbol is no negative number: exporters compare extents with -1.
    return False if not isinstance(other, str) and other < 0 and arithmetic.not_negative(symbol) else None


def _unary(numbers: Callable[[Any], Any], symbols: Callable[[Arithmetic, str], Element]) -> Rule:
    def rule(call: Call, arithmetic: Arithmetic) -> Arrays:
        def element(x: Element) -> Element:
            return symbols(arithmetic, x) if isinstance(x, str) else x if x is None else numbers(x)

        data = _given(call, 0)
        return [_each(element, data) if data.dtype == object else np.asarray(numbers(data))]

    return rule


def _where(call: Call, arithmetic: Arithmetic) -> Arrays:
    def element(condition: Element, a: Element, b: Element) -> Element:
        if condition is None:
            return a if a == b else None
        return a if condition else b

    return [_each(element, *(_given(call, index) for index in range(3)))]


def _reduce(combine: Callable[[Arithmetic, Element, Element], Element]) -> Rule:
    def rule(call: Call, arithmetic: Arithmetic) -> Arrays:
        data, axes = _given(call, 0), _axes(call)
        noop = not axes and call.integer("noop_with_empty_axes", 0)
        if noop or data.ndim != 1 or data.size == 0 or not _is_integer(call.fact(0).dtype):
            return [None]
        total, *others = data.tolist()
        for other in others:
            total = None if total is None or other is None else combine(arithmetic, total, other)
        return [_objects([total]).reshape([1] if call.integer("keepdims", 1) else [])]

    return rule


RULES: dict[str, Rule] = {
    "Constant": _constant, "Shape": _shape, "Size": _size,
    "Identity": _same, "Gather": _gather, "Slice": _slice, "Concat": _concat, "Split": _split,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape, "Flatten": _flatten,
    "Transpose": _transpose, "Expand": _expand, "Tile": _tile, "ConstantOfShape": _constant_of_shape,
    "Range": _range, "NonZero": _nonzero, "Cast": _cast, "Where": _where, "Div": _div, "Mod": _mod,
    "Add": _elementwise(operator.add, Arithmetic.add),
    "Sub": _elementwise(operator.sub, Arithmetic.subtract),
    "Mul": _elementwise(operator.mul, _multiply),
    "Min": _elementwise(np.minimum, Arithmetic.minimum),
    "Max": _elementwise(np.maximum, Arithmetic.maximum),
    "Pow": _elementwise(np.power, _unknown),
    "Equal": _elementwise(operator.eq, _equal_symbols),
    "Greater": _elementwise(operator.gt, _unknown), "Less": _elementwise(operator.lt, _unknown),
    "GreaterOrEqual": _elementwise(operator.ge, _unknown), "LessOrEqual": _elementwise(operator.le, _unknown),
    "And": _elementwise(np.logical_and, _unknown), "Or": _elementwise(np.logical_or, _unknown),
    "Not": _unary(np.logical_not, lambda arithmetic, x: None),
    "Neg": _unary(operator.neg, lambda arithmetic, x: arithmetic.subtract(0, x)),
    "Abs": _unary(abs, lambda arithmetic, x: x if arithmetic.not_negative(x) else None),
    "Floor": _unary(np.floor, Arithmetic.floor), "Ceil": _unary(np.ceil, Arithmetic.ceil),
    "Sqrt": _unary(np.sqrt, lambda arithmetic, x: None),
    "ReduceProd": _reduce(Arithmetic.multiply), "ReduceSum": _reduce(Arithmetic.add),
    "ReduceMax": _reduce(Arithmetic.maximum), "ReduceMin": _reduce(Arithmetic.minimum),
}  # fmt: skip
"""ONNX operators whose results can be told from their inputs' elements."""
