"""Arithmetic on extents agrees with arithmetic on the numbers that the symbols stand for."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis import dims
from graphopt.analysis.dims import Arithmetic, Bindings, Dim

NUMBERS = {"n": 7, "h": 16, "w": 9}
ARITHMETIC = Arithmetic()


def expressions() -> st.SearchStrategy[tuple[Dim, int]]:
    """An extent built up by operations, and the number that it comes to."""
    leaves = st.one_of(st.integers(0, 20).map(lambda i: (i, i)), st.sampled_from(sorted(NUMBERS.items())))
    return st.recursive(leaves, lambda inner: st.builds(combine, inner, inner, st.integers(0, 6)), max_leaves=5)


def combine(a: tuple[Dim, int], b: tuple[Dim, int], operation: int) -> tuple[Dim, int]:
    (x, i), (y, j) = a, b
    k = max(j % 5, 1)
    return [
        (ARITHMETIC.add(x, y), i + j),
        (ARITHMETIC.subtract(x, y), i - j),
        (ARITHMETIC.multiply(x, y), i * j),
        (ARITHMETIC.floor_divide(x, k), i // k),
        (ARITHMETIC.ceil_divide(x, k), -(-i // k)),
        (ARITHMETIC.minimum(x, y), min(i, j)),
        (ARITHMETIC.maximum(x, y), max(i, j)),
    ][operation]


@settings(max_examples=150, deadline=None)
@given(expressions())
def test_every_expression_comes_to_the_right_number(case: tuple[Dim, int]) -> None:
    dim, number = case
    if number < 0 or dim is None:
        return  # no extent, or one that is left open
    assert Bindings(NUMBERS).evaluate(dim) == number
    if not isinstance(dim, int):
        assert Bindings({}).evaluate(dim) is None


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (ARITHMETIC.quotient(ARITHMETIC.product(["n", "h", 64]), ARITHMETIC.multiply("h", 16)), "4*n"),
        (ARITHMETIC.quotient(12, 5), None),
        (ARITHMETIC.quotient("n", 0), None),
        (ARITHMETIC.floor_divide("n", 0), None),
        (ARITHMETIC.add("n", None), None),
        (ARITHMETIC.multiply(None, 0), 0),
        (ARITHMETIC.subtract("n", "n"), 0),
        (ARITHMETIC.floor(ARITHMETIC.fraction("n", 3, 2)), "floor(3*n/2)"),
    ],
)
def test_results_are_exact_or_open(dim: Dim, expected: Dim) -> None:
    assert dim == expected


@pytest.mark.parametrize("name", ["batch", "2*s0 + 1", "floor(h/2)", "a b", "n:0", "Größe", "1x", "ceiling(a/2)"])
def test_declared_names_survive(name: str) -> None:
    inside = dims.from_ir(ir.SymbolicDim(name))
    assert isinstance(inside, str)
    assert ARITHMETIC.add(inside, 1) is not None
    assert dims.to_ir(inside) == ir.SymbolicDim(name)


@pytest.mark.parametrize("dim", [ir.SymbolicDim(None), ir.SymbolicDim("?"), ir.SymbolicDim("*"), -1])
def test_what_says_nothing_is_open(dim: int | ir.SymbolicDim) -> None:
    assert dims.from_ir(dim) is None


def test_invented_symbols_are_recognized() -> None:
    invented = ARITHMETIC.add(dims.input_symbol(0, 2), 3)
    assert dims.is_invented(invented)
    assert dims.is_invented(ir.SymbolicDim("_unk.4"))
    assert not any(map(dims.is_invented, ("batch", "2*batch", 3, None)))
    assert dims.invented_since("_unk.4 + _unk.9", 9)
    assert not dims.invented_since("_unk.4 + _unk.in0.30", 9)


@pytest.mark.parametrize("name", ["n", "batch_size", "E", "_unk.x"])
@pytest.mark.parametrize(("k", "m"), [(1, 1), (64, 1), (64, 32), (64, 3), (6, 4), (1, 7)])
def test_multiples_of_a_symbol_are_what_sympy_makes_of_them(name: str, k: int, m: int) -> None:
    """They are found without it, and must be spelled as it spells them."""
    a = f"{k}*{name}" if k > 1 else name
    b = f"{m}*{name}" if m > 1 else name
    cases: list[tuple[str, int | str]] = [("multiply", m), ("quotient", m), ("floor_divide", m)]
    operations = {"multiply": lambda x, y: x * y, "quotient": lambda x, y: x / y, "floor_divide": lambda x, y: x // y}
    for operation, other in (*cases, ("quotient", b), ("floor_divide", b), ("multiply", b)):
        expected = dims._evaluate(operations[operation], a, other)
        assert getattr(Arithmetic(), operation)(a, other) in (expected, a if other == 1 else expected)
