"""merge-rearrangements: random chains against numpy, and which chains become what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis.dims import Arithmetic
from graphopt_passes.lossless.merge_rearrangements import fewest
from graphopt_passes.lossless.rearrangement import Rearrangement

PIPELINE = "merge-rearrangements,remove-unused-initializers"


@st.composite
def factorizations(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    """Extents whose product is `total`, 1 among them."""
    dims = []
    while total > 1 or draw(st.booleans()):
        divisor = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        dims.append(divisor)
        total //= divisor
        if len(dims) == 4:
            break
    return (*dims, total)


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, tuple[int, ...]]]]:
    """Extents, and Reshapes and Transposes one after the other."""
    total = draw(st.sampled_from([6, 12, 16, 24, 36]))
    dims = draw(factorizations(total))
    steps = []
    current = dims
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            permutation = tuple(draw(st.permutations(range(len(current)))))
            steps.append(("Transpose", permutation))
            current = tuple(current[axis] for axis in permutation)
        else:
            current = draw(factorizations(total))
            steps.append(("Reshape", current))
    return dims, steps


def applied(array: np.ndarray, steps: list[tuple[str, tuple[int, ...]]]) -> np.ndarray:
    for op_type, numbers in steps:
        array = array.transpose(numbers) if op_type == "Transpose" else array.reshape(numbers)
    return array


@given(chains())
def test_fewer_nodes_do_the_same(chain: tuple[tuple[int, ...], list[tuple[str, tuple[int, ...]]]]) -> None:
    dims, steps = chain
    rearrangement = Rearrangement(dims, Arithmetic())
    for op_type, numbers in steps:
        if op_type == "Transpose":
            rearrangement.transpose(numbers)
        elif not rearrangement.reshape(numbers):
            return  # extents that have no common pieces, such as (2, 3) as (3, 2)
    plan = fewest(rearrangement, dims)
    assert plan is not None
    assert len(plan) <= 3
    array = np.arange(math.prod(dims)).reshape(dims)
    merged = applied(array, [(step.op_type, tuple(step.numbers)) for step in plan])
    expected = applied(array, steps)
    assert merged.shape == expected.shape
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize(
    ("dims", "target", "possible"),
    [
        (("b", 12), ("b", 3, 4), True),
        (("b", 3, 4), ("3*b", 4), True),
        (("3*b", 4), ("b", 3, 4), True),
        (("b", "s", 4), ("b*s", 4), True),
        (("b*s", 4), ("s", "b", 4), True),
        (("b", "s"), ("s", "b"), False),
        (("b", 4), (2, "b/2", 4), False),
        ((2, 3), (3, 2), False),
    ],
)
def test_symbols_are_cut_only_where_that_is_certain(dims: Any, target: Any, possible: bool) -> None:
    assert Rearrangement(dims, Arithmetic()).reshape(target) == possible


def text(x: str, y: str, body: str, constants: str = "") -> str:
    return f"g (float[{x}] x) => (float[{y}] y) {f'<{constants}>' if constants else ''} {{ {body} }}"


KEY = "int64[3] a = {-1, 5, 8}, int64[4] c = {-1, 4, 8, 5}"
SHUFFLE = "int64[3] a = {3, 2, 16}, int64[5] c = {2, -1, 3, 4, 4}, int64 i = {0}, int64 j = {1}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            text("b,4,5,8", "b,4,8,5", "r = Reshape(x, a)  t = Transpose<perm = [0, 2, 1]>(r)  y = Reshape(t, c)", KEY),
            text("b,4,5,8", "b,4,8,5", "[n] y = Transpose<perm = [0, 1, 3, 2]>(x)"),
            id="the key of an attention",
        ),
        pytest.param(
            text(
                "2,3,4",
                "2,12",
                "t = Transpose<perm = [0, 2, 1]>(x)  u = Transpose<perm = [0, 2, 1]>(t)  y = Flatten(u)",
            ),
            text("2,3,4", "2,12", "[n] y = Reshape(x, y_shape)", "int64[2] y_shape = {2, 12}"),
            id="no atom moves",
        ),
        pytest.param(
            text(
                "b,6,5",
                "b,5,2,3",
                "r = Reshape(x, a)  u = Unsqueeze(r, z)  t = Transpose<perm = [1, 4, 2, 3, 0]>(u)  y = Squeeze(t, e)",
                "int64[4] a = {0, 2, 3, 5}, int64[1] z = {0}, int64[1] e = {4}",
            ),
            text(
                "b,6,5",
                "b,5,2,3",
                "[m] y_transpose = Transpose<perm = [0, 2, 1]>(x)  [n] y = Reshape(y_transpose, y_shape)",
                "int64[4] y_shape = {-1, 5, 2, 3}",
            ),
            id="Unsqueeze and Squeeze in between",
        ),
        pytest.param(
            text(
                "1,6,4,4",
                "1,6,4,4",
                """r = Reshape(x, a)  t = Transpose<perm = [1, 0, 2]>(r)  s = Reshape(t, c)  p = Gather<axis = 0>(s, i)
                   q = Gather<axis = 0>(s, j)  y = Concat<axis = 1>(p, q)""",
                SHUFFLE,
            ),
            text(
                "1,6,4,4",
                "1,6,4,4",
                """[m] s_reshape = Reshape(x, s_shape)  p = Gather<axis = 2>(s_reshape, i)
                   q = Gather<axis = 2>(s_reshape, j)  y = Concat<axis = 1>(p, q)""",
                "int64 i = {0}, int64 j = {1}, int64[5] s_shape = {1, 3, 2, 4, 4}",
            ),
            id="channel shuffle and split",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, after: str) -> None:
    names = {"[n] y = T": "[y_transpose_node] y = T", "[n] y = R": "[y_reshape_node] y = R"}
    names |= {"[m] y_t": "[y_transpose_node] y_t", "[m] s_r": "[s_reshape_node] s_r"}
    for short, full in names.items():
        after = after.replace(short, full)
    rewriter.rewrites(before, PIPELINE, after)


CHANGED = "r = Reshape(x, a)  t = Transpose<perm = [0, 2, 1]>(r)"


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(text("b,4,5,8", "b,4,8,5", f"{CHANGED}  s = Relu(t)  y = Reshape(s, c)", KEY), id="Relu between"),
        pytest.param(
            text("b,4,5,8", "b,4,8,5", f"{CHANGED}  y1 = Reshape(t, c)  n = ReduceSum(t)  y = Add(y1, n)", KEY),
            id="read elsewhere",
        ),
        pytest.param(
            text("b,4,5,8", "b,4,8,5", f"{CHANGED}  y = Reshape(t, c)", KEY).replace(
                "(float[b,4,8,5] y", "(float[q,8,5] t, float[b,4,8,5] y"
            ),
            id="a graph output",
        ),
        pytest.param(
            text("2,3,4", "3,8", "t = Transpose<perm = [2, 1, 0]>(x)  y = Reshape(t, c)", "int64[2] c = {3, 8}"),
            id="nothing shorter",
        ),
        pytest.param(
            text("b,s", "p,q", "r = Reshape(x, m)  y = Transpose(r)", "int64[2] m = {3, -1}"),
            id="extents with no common pieces",
        ),
        pytest.param(
            text(
                "2,3,4",
                "3,4",
                """t = Transpose<perm = [1, 0, 2]>(x)  a = Gather<axis = 0>(t, i)  b = Gather<axis = 1>(t, i)
                   r = ReduceSum(a)  y = Add(r, b)""",
                "int64 i = {0}",
            ),
            id="positions along different axes",
        ),
        pytest.param(
            text("2,3,4", "4,2", "t = Transpose<perm = [1, 2, 0]>(x)  y = Gather<axis = 0>(t, i)", "int64 i = {0}"),
            id="the other axes change their order",
        ),
        pytest.param(
            text(
                "2,3,4", "1,2,4", "t = Transpose<perm = [1, 0, 2]>(x)  y = Gather<axis = 0>(t, i)", "int64[1] i = {0}"
            ),
            id="a vector of positions",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str) -> None:
    assert not rewriter.run(rewriter.typed(before), "merge-rearrangements").modified


def test_in_a_body(rewriter: Any) -> None:
    chain = f"{CHANGED}  y = Reshape(t, c)"
    before = f"""g (float[2,4,5,8] x, bool k) => (float[2,4,8,5] z) <{KEY}> {{ z = If (k) <
                   then_branch = t1 () => (float[2,4,8,5] y) {{ {chain} }},
                   else_branch = e () => (float[2,4,8,5] p) {{ p = Transpose<perm = [0, 1, 3, 2]>(x) }}> }}"""
    model = rewriter.typed(before)
    rewriter.run(model, PIPELINE)
    assert [node.op_type for node in next(iter(model.graph)).attributes["then_branch"].as_graph()] == ["Transpose"]
    rewriter.same_outputs(rewriter.typed(before), model)


def test_excluded_nodes_stay(rewriter: Any) -> None:
    body = f"{CHANGED}  y = Reshape(t, c)".replace("t = T", "[turn] t = T")
    model = rewriter.typed(text("b,4,5,8", "b,4,8,5", body, KEY))
    assert not rewriter.run(model, "merge-rearrangements", exclude="turn").modified
