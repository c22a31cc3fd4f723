"""Extents: numbers, the model's own symbols, arithmetic on both, and symbols that inference had to invent.

Inference works on plain values, because they hash and compare fast: an extent is an `int`, a `str` (a symbol such as
`batch`, or an expression over symbols such as `2*batch + 1`), or None where nothing is known. The arithmetic is
sympy's, reached through `onnx_ir.SymbolicDim`, but for what is asked most (`window_dims`); every distinct operation is done once.

Symbols stand for positive integers, as in onnx-ir: what holds for them is taken to hold for an empty tensor too.
Names that inference makes up start with `_unk.` and are never written to a file:

* `_unk.12`: an extent that depends on data, the same wherever it appears;
* `_unk.in0.2`: axis 2 of graph input 0, which the model leaves open;
* `_unk.x3f`: a symbol of the model whose name ("a b", "n:0") would not survive arithmetic, spelled in hexadecimal.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir

from graphopt.analysis import window_dims

Dim = int | str | None
Dims = tuple[Dim, ...]

INVENTED = "_unk."
_SPELLED = INVENTED + "x"
_NUMBERED = re.compile(re.escape(INVENTED) + r"(\d+)")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_MULTIPLE = re.compile(r"(?:([1-9]\d*)\*)?([A-Za-z_][\w.]*)")
_LONGEST = 240
"""Characters. An expression that grew beyond this says nothing to anybody and costs sympy seconds."""


def is_invented(dim: int | str | ir.SymbolicDim | None) -> bool:
    """Whether `dim` uses a symbol that the model did not declare."""
    text = dim.value if isinstance(dim, ir.SymbolicDim) else dim
    return isinstance(text, str) and INVENTED in text


def invented_since(dim: Dim, first: int) -> bool:
    """Whether `dim` uses a data-dependent symbol with this number or a later one."""
    if not isinstance(dim, str) or INVENTED not in dim:
        return False
    return any(int(digits) >= first for digits in _NUMBERED.findall(dim))


def from_ir(dim: int | ir.SymbolicDim) -> Dim:
    """The extent that a declared dim stands for.

    A negative number (some exporters write -1 for "open") and a name without a letter or digit (Paddle writes "?" for
    every open dim) say nothing, so they are None.
    """
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    name = dim.value
    if name is None or _IDENTIFIER.fullmatch(name):
        return name
    return _spell(name)


def to_ir(dim: Dim) -> int | ir.SymbolicDim:
    """The dim that stands for an extent in an `onnx_ir.Shape`; undoes `from_ir` for declared names."""
    if isinstance(dim, str) and dim.startswith(_SPELLED):
        digits = dim[len(_SPELLED) :]
        if re.fullmatch(r"[0-9a-f]+", digits):
            return ir.SymbolicDim(bytes.fromhex(digits).decode())
    return dim if isinstance(dim, int) else ir.SymbolicDim(dim)


def symbols_of(dim: str) -> frozenset[str]:
    """The symbols of an expression."""
    known = dim if _IDENTIFIER.fullmatch(dim) else window_dims.symbol(dim)
    return ir.SymbolicDim(dim).free_symbols() if known is None else frozenset({known})


def input_symbol(index: int, axis: int) -> str:
    """The invented symbol of an axis that graph input number `index` leaves open."""
    return f"{INVENTED}in{index}.{axis}"


@functools.lru_cache(maxsize=4096)
def _spell(name: str) -> Dim:
    if not any(character.isalnum() for character in name):
        return None
    try:
        symbols_of(name)
    except ValueError:
        return _SPELLED + name.encode().hex()
    return name


class Arithmetic:
    """Operations on extents. Whatever cannot be told for certain is None."""

    def __init__(self) -> None:
        self._done: dict[tuple[object, ...], Dim] = {}

    def add(self, a: Dim, b: Dim) -> Dim:
        """Return a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self._symbolic("add", a, b, lambda x, y: x + y)

    def subtract(self, a: Dim, b: Dim) -> Dim:
        """Return a - b."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return self._symbolic("subtract", a, b, lambda x, y: x - y)

    def multiply(self, a: Dim, b: Dim) -> Dim:
        """Return a * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1:
            return b
        return a if b == 1 else self._symbolic("multiply", a, b, lambda x, y: x * y)

    def product(self, dims: Iterable[Dim]) -> Dim:
        """The product of all `dims`; 1 for none."""
        result: Dim = 1
        for dim in dims:
            result = self.multiply(result, dim)
        return result

    def floor_divide(self, a: Dim, b: Dim) -> Dim:
        """Return floor(a / b) for b > 0."""
        if isinstance(b, int) and b <= 0:
            return None
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        if isinstance(a, int):
            return None
        return a if b == 1 else self._symbolic("floor_divide", a, b, lambda x, y: x // y)

    def ceil_divide(self, a: Dim, b: int) -> Dim:
        """Return ceil(a / b) for b > 0."""
        return self.floor_divide(self.add(a, b - 1), b)

    def quotient(self, a: Dim, b: Dim) -> Dim:
        """Return a / b where that is known to leave no remainder (the -1 of a Reshape that can run at all)."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b if b and a % b == 0 else None
        if b == 0:
            return None
        return a if b == 1 else self._symbolic("quotient", a, b, lambda x, y: x / y)

    def fraction(self, a: Dim, numerator: int, denominator: int) -> Dim:
        """Return a * numerator / denominator, exactly: in general no integer, only to be rounded later."""
        return self._symbolic(f"* {numerator} /", a, denominator, lambda x, y: (x * numerator) / y)

    def floor(self, a: Dim) -> Dim:
        """The largest integer <= a, for the result of `fraction`."""
        return a if isinstance(a, int) else self._symbolic("floor", a, 1, lambda x, y: x // y)

    def ceil(self, a: Dim) -> Dim:
        """The smallest integer >= a, for the result of `fraction`."""
        return a if isinstance(a, int) else self._symbolic("ceil", a, 1, lambda x, y: -((-x) // y))

    def minimum(self, a: Dim, b: Dim) -> Dim:
        """The smaller of a and b."""
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return a if a == b else self._symbolic("minimum", a, b, lambda x, y: ir.SymbolicDim(f"Min({x}, {y})") + 0)

    def maximum(self, a: Dim, b: Dim) -> Dim:
        """The larger of a and b."""
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return a if a == b else self._symbolic("maximum", a, b, lambda x, y: ir.SymbolicDim(f"Max({x}, {y})") + 0)

    @staticmethod
    def not_negative(dim: Dim) -> bool:
        """Whether `dim` is certainly >= 0: only a minus sign can make an expression over symbols negative."""
        return dim >= 0 if isinstance(dim, int) else dim is not None and "-" not in dim

    def _symbolic(
        self, name: str, a: Dim, b: Dim, operation: Callable[[ir.SymbolicDim, ir.SymbolicDim], ir.SymbolicDim]
    ) -> Dim:
        if a is None or b is None:
            return None
        key = (name, a, b)
        if key not in self._done:
            known = _of_windows(name, a, b)
            known = _of_multiples(name, a, b) if known is None else known
            self._done[key] = _evaluate(operation, a, b) if known is None else known
        return self._done[key]


def _of_windows(name: str, a: int | str, b: int | str) -> Dim:
    """Sums with a number and rounded quotients by one, as windows make them."""
    if not isinstance(a, str) or not isinstance(b, int):
        return None
    if name in ("add", "subtract"):
        return window_dims.add(a, b if name == "add" else -b)
    return window_dims.floor_divide(a, b) if name == "floor_divide" else None


def _of_multiples(name: str, a: int | str, b: int | str) -> Dim:
    """Products and exact quotients of multiples of one symbol, which most are: sympy takes 40 MB to find them."""
    first, second = _multiple(a), _multiple(b)
    if first is None or second is None:
        return None
    (factor, symbol), (other, divisor) = first, second
    if name == "multiply" and not (symbol and divisor) and factor and other:
        return _text(factor * other, symbol or divisor)
    if name in ("quotient", "floor_divide") and symbol and other and divisor in ("", symbol) and factor % other == 0:
        return _text(factor // other, "" if divisor else symbol)
    return None


def _multiple(dim: int | str) -> tuple[int, str] | None:
    """`k` or `k*symbol` as (k, symbol); None for all else."""
    if isinstance(dim, int):
        return (dim, "") if dim > 0 else None
    found = _MULTIPLE.fullmatch(dim)
    return None if found is None else (int(found[1] or 1), found[2])


def _text(factor: int, symbol: str) -> Dim:
    if not symbol:
        return factor
    return symbol if factor == 1 else f"{factor}*{symbol}"


def _evaluate(operation: Callable[[ir.SymbolicDim, ir.SymbolicDim], ir.SymbolicDim], a: int | str, b: int | str) -> Dim:
    left = a if isinstance(a, int) else ir.SymbolicDim(a)
    right = b if isinstance(b, int) else ir.SymbolicDim(b)
    try:
        result = operation(left, right)  # type: ignore[arg-type]  # at most one of them is an int
        text = result.value
        if text is None or len(text) > _LONGEST:
            return None
        evaluated = ir.SymbolicDim(text).evaluate({})
    except (TypeError, ValueError, ZeroDivisionError):
        # sympy knows forms (ceiling, zoo, fractions) that are no dims and that SymbolicDim cannot read back.
        return None
    return evaluated if isinstance(evaluated, int) else text


class Bindings:
    """Symbols bound to numbers, and what expressions over them come to."""

    def __init__(self, symbols: Mapping[str, int]) -> None:
        self.symbols = dict(symbols)
        self._known: dict[str, int | None] = {}

    def evaluate(self, dim: Dim) -> int | None:
        """The number that `dim` stands for, or None where a symbol is not bound."""
        if not isinstance(dim, str):
            return dim
        if dim not in self._known:
            self._known[dim] = self.symbols[dim] if dim in self.symbols else self._expression(dim)
        return self._known[dim]

    def substitute(self, dim: Dim) -> Dim:
        """`dim` as a number where all its symbols are bound, else as it is."""
        number = self.evaluate(dim)
        return dim if number is None else number

    def leaves_nothing(self, dim: Dim) -> bool:
        """Whether `dim` comes to 0, or to less than that, so that no tensor with it can hold anything."""
        number = dim if isinstance(dim, int) else None if dim is None else self._number(dim)
        return number is not None and number <= 0

    def _expression(self, dim: str) -> int | None:
        number = self._number(dim)
        return number if number is not None and number >= 0 else None

    def _number(self, dim: str) -> int | None:
        if _IDENTIFIER.fullmatch(dim):
            return self.symbols.get(dim)
        if window_dims.symbol(dim) is not None:
            return window_dims.evaluate(dim, self.symbols)
        try:
            result = ir.SymbolicDim(dim).evaluate(self.symbols)
        except (TypeError, ValueError, ZeroDivisionError):
            return None
        return result if isinstance(result, int) else None
