"""analysis.window_dims against sympy: the same text, the same symbol, the same number, or None."""

from __future__ import annotations

import subprocess
import sys

import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis import window_dims

SYMBOLS = st.sampled_from(["n", "batch", "_unk.in0.2", "floor", "x1"])
STEPS = st.lists(st.tuples(st.integers(-5, 5), st.integers(2, 6)), max_size=5)


def by_sympy(symbol: str, steps: list[tuple[int, int]]) -> ir.SymbolicDim:
    dim = ir.SymbolicDim(symbol) + 0
    for number, step in steps:
        dim = (dim + number) // step
    return dim


@given(SYMBOLS, STEPS, st.integers(-5, 5))
def test_windows_come_to_what_sympy_says(symbol: str, steps: list[tuple[int, int]], last: int) -> None:
    dim: int | str | None = symbol
    for number, step in steps:
        assert isinstance(dim, str)
        added = window_dims.add(dim, number)
        assert isinstance(added, str)
        dim = window_dims.floor_divide(added, step)
        if dim is None:
            assert abs(number) >= step or abs(int(added.rpartition(" ")[2])) >= step
            return
    assert isinstance(dim, str)
    found = window_dims.add(dim, last)
    expected = by_sympy(symbol, steps) + last
    assert found == expected.value
    assert isinstance(found, str)
    assert window_dims.symbol(found) == symbol
    assert expected.free_symbols() == {symbol}
    for number in (1, 7, 64):
        assert window_dims.evaluate(found, {symbol: number}) == expected.evaluate({symbol: number})
    assert window_dims.evaluate(found, {}) is None


@given(
    st.sampled_from(
        ["2*n", "n*m", "n + m", "n/2", "Max(n, 3)", "n - m + 1", "floor(n/2 - m)", "floor(2*n/3)", "a b", "-n", ""]
    ),
    st.integers(-3, 3),
)
def test_what_is_not_known_here_is_left_to_sympy(dim: str, number: int) -> None:
    assert window_dims.add(dim, number) is None
    assert window_dims.floor_divide(dim, 2) is None
    assert window_dims.symbol(dim) is None
    assert window_dims.evaluate(dim, {"n": 3, "m": 2}) is None


def test_a_text_that_is_no_sum_of_a_window() -> None:
    for dim in ("floor(n/2 - 1/2", "floor(floor(n)/2)", "floor(n/2 - 1/2)) + 1", "n + -1", "floor()/2", "n + 1 + 1"):
        assert window_dims.symbol(dim) is None


def test_what_is_nested_without_end_is_not_followed() -> None:
    assert window_dims.symbol("floor(" * 10_000 + "n" + "/2)" * 10_000) is None


def test_sympy_stays_unloaded() -> None:
    """In a process of its own, which the command line keeps from loading sympy before it is asked for."""
    program = """
import sys
from graphopt.cli.startup import quick_start
with quick_start():
    from graphopt.analysis.dims import Arithmetic, Bindings, symbols_of
numbers = Arithmetic()
dim = "_unk.in0.2"
for _ in range(4):
    dim = numbers.add(numbers.floor_divide(numbers.add(dim, -1), 2), 1)
assert symbols_of(dim) == {"_unk.in0.2"}
assert Bindings({"_unk.in0.2": 48}).evaluate(dim) == 3
print("sympy.core" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
