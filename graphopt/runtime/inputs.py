"""Seeded input values that a model can run on, for the equivalence check and for measuring time; never for calibration.

Extents: fixed dims as they are, symbolic ones bound consistently by name. No single number suits every model (a batch
that was exported fixed, a network with a smallest image size), so callers try the entries of `GUESSES` in order until
the original runs. Values: floats from a standard normal, images over their whole range, integers within what their
consumers allow (see `graphopt.runtime.domains`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import OptionError, UnsupportedModelError
from graphopt.runtime.domains import Domain, domain_of

_SMALLEST_IMAGE = 32
_DEFAULT_INTEGERS = (0, 8)
_MASK_DENSITY = 0.8
_MOST_ELEMENTS = 1 << 26


@dataclasses.dataclass(frozen=True)
class Guess:
    """Extents for dims that the model leaves open: `batch` for the first axis, `other` for the rest."""

    batch: int
    other: int


GUESSES = (Guess(2, 32), Guess(1, 64), Guess(1, 224), Guess(1, 512), Guess(1, 1))
"""Tried in this order. 224 is the classifiers' usual image, 512 the usual block of speech and text models."""


def graph_inputs(model: ir.Model) -> list[ir.Value]:
    """Inputs that a caller must give: those without a default value."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def guesses(model: ir.Model) -> Sequence[Guess]:
    """What to try for `model`: everything, or just one where no input leaves an extent open."""
    is_open = any(not isinstance(dim, int) or dim < 0 for value in graph_inputs(model) for dim in value.shape or ())
    return GUESSES if is_open else GUESSES[:1]


class TooLargeError(UnsupportedModelError):
    """An input has more elements than are worth drawing."""


def candidate_inputs(
    model: ir.Model, *, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Values for every input, one set per guess at what the model leaves open; arguments as for `seeded_inputs`.

    Raises:
        UnsupportedModelError: values cannot be drawn for some input, whatever the guess.
    """
    found, failure = False, None
    for guess in guesses(model):
        try:
            values = seeded_inputs(model, seed=seed, shapes=shapes, batch=batch, guess=guess)
        except TooLargeError as error:
            failure = failure or error
        else:
            found = True
            yield values
    if failure is not None and not found:
        raise failure


def seeded_inputs(
    model: ir.Model,
    *,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    guess: Guess = GUESSES[0],
) -> dict[str, np.ndarray]:
    """Values for every input that `model` must be given.

    Args:
        model: types and shapes of values are used where they are known.
        seed: the same seed gives the same values.
        shapes: extents by input name; they also bind the symbols that they meet.
        batch: the extent of a first axis that the model leaves open.
        guess: what else is left open.

    Raises:
        UnsupportedModelError: an input is no tensor, its type or rank is not known, or it is huge (TooLargeError).
        OptionError: `shapes` names no input, or contradicts it.
    """
    if batch is not None:
        guess = dataclasses.replace(guess, batch=batch)
    inputs = graph_inputs(model)
    binding = _Binding(inputs, dict(shapes or {}), guess)
    rng = np.random.default_rng(seed)
    values = {}
    for value in inputs:
        dims = binding.dims(value)
        if math.prod(dims) > _MOST_ELEMENTS:
            raise TooLargeError(f"input '{value.name}' of extents {list(dims)} is too large to draw values for")
        domain = domain_of(value, model, binding.extent)
        values[value.name or ""] = _draw(_element_type(value), dims, domain, rng)
    return values


class _Binding:
    """Numbers for the symbols of the input shapes."""

    def __init__(self, inputs: Sequence[ir.Value], shapes: dict[str, Sequence[int]], guess: Guess) -> None:
        self._shapes = shapes
        self._guess = guess
        self._numbers: dict[str, int] = {}
        unknown = shapes.keys() - {value.name for value in inputs}
        if unknown:
            names = ", ".join(repr(value.name) for value in inputs) or "none"
            raise OptionError(f"--shape: the model has no input '{min(unknown)}' (its inputs: {names})")
        self._bind_given(inputs)
        self._bind_guessed(inputs)

    def dims(self, value: ir.Value) -> tuple[int, ...]:
        """Extents of an input."""
        given = self._shapes.get(value.name or "")
        if given is not None:
            return tuple(given)
        if value.shape is None:
            raise UnsupportedModelError(f"input '{value.name}' has no rank; give one with --shape {value.name}=...")
        shape = value.shape
        return tuple(self._number(shape, axis) for axis in range(len(shape)))

    def extent(self, value: ir.Value | None, axis: int) -> int | None:
        """Extent of any value along `axis` under this binding, or None where it is not known."""
        if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
            return None
        dim = value.shape[axis]
        return dim if isinstance(dim, int) else self._evaluate(dim)

    def _bind_given(self, inputs: Sequence[ir.Value]) -> None:
        for value in inputs:
            given = self._shapes.get(value.name or "")
            if given is None or value.shape is None:
                continue
            declared = ", ".join(str(dim) for dim in value.shape)
            if len(given) != len(value.shape):
                raise OptionError(f"--shape: input '{value.name}' has {len(value.shape)} dims ({declared})")
            for dim, number in zip(value.shape, given, strict=True):
                if isinstance(dim, int) and dim >= 0 and dim != number:
                    raise OptionError(f"--shape: input '{value.name}' is fixed to ({declared})")
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    self._numbers.setdefault(dim.value, number)

    def _bind_guessed(self, inputs: Sequence[ir.Value]) -> None:
        """Plain symbols first, so that expressions over them (`past + 1`) can be evaluated later."""
        for shape in (value.shape for value in inputs if value.shape is not None):
            for axis, dim in enumerate(shape):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim.value.isidentifier():
                    self._numbers.setdefault(dim.value, self._guessed(shape, axis))

    def _number(self, shape: ir.Shape, axis: int) -> int:
        dim = shape[axis]
        number = dim if isinstance(dim, int) else self._evaluate(dim)
        return self._guessed(shape, axis) if number is None or number < 0 else number

    def _evaluate(self, dim: ir.SymbolicDim) -> int | None:
        if dim.value is None:
            return None
        if dim.value in self._numbers or dim.value.isidentifier():
            return self._numbers.get(dim.value)
        if not any(character.isalnum() for character in dim.value):  # no expression, and sympy takes long to load
            return None
        try:
            number = dim.evaluate(self._numbers)
        except (ValueError, TypeError):  # a name that is no expression, such as "batch size?"
            return None
        return number if isinstance(number, int) and number >= 0 else None

    def _guessed(self, shape: ir.Shape, axis: int) -> int:
        rank, other = len(shape), self._guess.other
        is_state = rank == 3 and axis == 1 and isinstance(shape[0], int) and isinstance(shape[2], int)
        if axis == 0 or is_state:  # a recurrent state is (layers, batch, hidden)
            return self._guess.batch
        is_image = rank >= 4 and other > 1
        return max(other, _SMALLEST_IMAGE) if is_image else other


def _element_type(value: ir.Value) -> ir.DataType:
    if value.type is None or not isinstance(value.type, ir.TensorType):
        kind = "no known type" if value.type is None else f"the type {value.type}"
        raise UnsupportedModelError(f"input '{value.name}' has {kind}: no values can be drawn for it")
    return value.type.dtype


def _draw(dtype: ir.DataType, dims: tuple[int, ...], domain: Domain, rng: np.random.Generator) -> np.ndarray:
    if dtype == ir.DataType.STRING:  # digits, which a Cast to numbers reads as well as a tokenizer
        return rng.integers(0, 100, dims).astype(str).astype(object)
    if dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, dims).astype(bool)
    if dtype.is_floating_point() and domain.low is None:
        return np.asarray(rng.standard_normal(dims), dtype=np.float32).astype(dtype.numpy())
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return np.asarray(rng.standard_normal(dims) + 1j * rng.standard_normal(dims), dtype=dtype.numpy())
    return np.asarray(_draw_integers(dtype, dims, domain, rng)).astype(dtype.numpy())


def _draw_integers(dtype: ir.DataType, dims: tuple[int, ...], domain: Domain, rng: np.random.Generator) -> np.ndarray:
    restricted = domain.low is not None or domain.high is not None
    if domain.choices and not restricted:
        options = sorted(domain.choices | {0})
        return rng.choice(options, dims)
    if domain.mask and not restricted and dtype.bitwidth >= 32:
        mask = rng.random(dims) < _MASK_DENSITY
        if mask.ndim:
            mask[..., :1] = True  # a row without any one turns a masked softmax into NaN
        return mask.astype(np.int64)
    low, high = _bounds(dtype, domain)
    return rng.integers(low, max(high, low + 1), dims)


def _bounds(dtype: ir.DataType, domain: Domain) -> tuple[int, int]:
    """The interval to draw from: bytes over their whole range, wider integers small unless a table is known."""
    if dtype.bitwidth <= 8 and dtype.is_integer():
        lowest = -(1 << (dtype.bitwidth - 1)) if dtype.is_signed() else 0
        low, high = lowest, lowest + (1 << dtype.bitwidth)
        high = high if domain.high is None else min(high, domain.high)
    else:
        low, high = _DEFAULT_INTEGERS
        high = high if domain.high is None else domain.high
    return low if domain.low is None else max(low, domain.low), high
