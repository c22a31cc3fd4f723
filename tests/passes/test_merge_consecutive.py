"""merge-consecutive: two nodes in a row become one, or none, where that computes the same."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from graphopt_passes.lossless.merging.clips import Bounds
from graphopt_passes.lossless.merging.constants import product_of, sum_of
from graphopt_passes.lossless.merging.slices import Cut

PIPELINE = "merge-consecutive"


def graph(nodes: str, x: str = "float[N,3,4] x", y: str = "float[A,B,C] y", constants: str = "", more: str = "") -> str:
    return f"g ({x}) => ({y}{more}) <{constants}> {{ {nodes} }}"


MERGED = [
    # Transpose
    (
        graph("a = Transpose<perm = [0, 2, 1]>(x)  b = Transpose<perm = [2, 1, 0]>(a)  y = Neg(b)"),
        graph("b = Transpose<perm = [1, 2, 0]>(x)  y = Neg(b)"),
    ),
    (
        graph("a = Transpose<perm = [1, 2, 0]>(x)  b = Transpose<perm = [2, 0, 1]>(a)  y = Neg(b)"),
        graph("y = Neg(x)"),
    ),
    (graph("a = Transpose(x)  b = Transpose(a)  y = Neg(b)"), graph("y = Neg(x)")),
    (
        graph("a = Transpose(x)  y = Transpose(a)"),
        graph("[y_identity_node] y = Identity(x)"),
    ),
    (
        graph("a = Transpose(x)  b = Transpose(a)  y = Neg(b)", more=", float[4,3,N] a"),
        graph("a = Transpose(x)  y = Neg(x)", more=", float[4,3,N] a"),
    ),
    (
        graph(
            "a = Transpose(x)  b = Transpose<perm = [0, 2, 1]>(a)  c = Transpose<perm = [1, 0, 2]>(a)  y = Add(b, c)",
            "float[2,2,2] x",
        ),
        graph(
            "b = Transpose<perm = [2, 0, 1]>(x)  c = Transpose<perm = [1, 2, 0]>(x)  y = Add(b, c)", "float[2,2,2] x"
        ),
    ),
    # Reshape and the like
    (
        graph("a = Reshape(x, s)  y = Reshape(a, t)", constants="int64[2] s = {0, 12}, int64[3] t = {-1, 6, 2}"),
        graph("y = Reshape(x, t)", constants="int64[3] t = {-1, 6, 2}"),
    ),
    (
        graph("a = Reshape(x, s)  y = Reshape(a, t)", constants="int64[2] s = {0, -1}, int64[3] t = {0, 6, 2}"),
        graph("y = Reshape(x, y_shape)", constants="int64[3] y_shape = {0, 6, 2}"),
    ),
    (
        graph("a = Reshape(x, s)  y = Reshape(a, t)", constants="int64[3] s = {3, 0, -1}, int64[3] t = {0, 0, 0}"),
        graph("y = Reshape(x, y_shape)", constants="int64[3] y_shape = {3, 3, -1}"),
    ),
    (
        graph(
            "a = Reshape(x, s)  b = Reshape(a, t)  y = Neg(b)", constants="int64[1] s = {-1}, int64[3] t = {-1, 3, 4}"
        ),
        graph("y = Neg(x)"),
    ),
    (
        graph("a = Reshape(x, s)  b = Flatten(a)  y = Neg(b)", y="float[A,B] y", constants="int64[4] s = {0, 3, 2, 2}"),
        graph(
            "[b_reshape_node] b_reshape = Reshape(x, b_shape)  y = Neg(b_reshape)",
            y="float[A,B] y",
            constants="int64[2] b_shape = {0, 12}",
        ),
    ),
    (
        graph("a = Unsqueeze(x, s)  b = Squeeze(a, s)  y = Neg(b)", "float[N,M,K] x", constants="int64[1] s = {2}"),
        graph("y = Neg(x)", "float[N,M,K] x"),
    ),
    (
        graph(
            "a = Unsqueeze(x, s)  y = Unsqueeze(a, t)",
            "float[N,M] x",
            "float[A,B,C,D,E] y",
            "int64[2] s = {0, 2}, int64[1] t = {-3}",
        ),
        graph("y = Unsqueeze(x, y_axes)", "float[N,M] x", "float[A,B,C,D,E] y", "int64[3] y_axes = {0, 2, 3}"),
    ),
    (
        graph(
            "a = Squeeze(x, s)  y = Squeeze(a, t)",
            "float[1,N,1,M,1] x",
            "float[A,B] y",
            "int64[1] s = {0}, int64[2] t = {-3, -1}",
        ),
        graph("y = Squeeze(x, y_axes)", "float[1,N,1,M,1] x", "float[A,B] y", "int64[3] y_axes = {0, 2, 4}"),
    ),
    (
        graph("a = Transpose<perm = [0, 2, 3, 1]>(x)  y = Flatten(a)", "float[N,8,1,1] x", "float[A,B] y"),
        graph(
            "[y_reshape_node] y = Reshape(x, y_shape)", "float[N,8,1,1] x", "float[A,B] y", "int64[2] y_shape = {0, 8}"
        ),
    ),
    # Cast
    (
        graph("a = Cast<to = 11>(x)  b = Cast<to = 1>(a)  y = Neg(b)"),
        graph("y = Neg(x)"),
    ),
    (
        graph("a = Cast<to = 7>(x)  y = Cast<to = 1>(a)", "int32[N] x", "float[N] y"),
        graph("y = Cast<to = 1>(x)", "int32[N] x", "float[N] y"),
    ),
    (
        graph("a = Cast<to = 7>(x)  y = Cast<to = 2>(a)", "int32[N] x", "uint8[N] y"),
        graph("y = Cast<to = 2>(x)", "int32[N] x", "uint8[N] y"),
    ),
    # Concat
    (
        graph(
            "a = Concat<axis = 1>(x, z)  b = Concat<axis = 1>(z, a)  y = Concat<axis = -2>(b, x)",
            "float[2,2,2] x, float[2,2,2] z",
        ),
        graph("y = Concat<axis = -2>(z, x, z, x)", "float[2,2,2] x, float[2,2,2] z"),
    ),
    (
        graph("a, b = Split<axis = 2>(x)  c = Concat<axis = -1>(a, b)  y = Neg(c)"),
        graph("y = Neg(x)"),
    ),
    # functions of one argument
    (graph("a = Neg(x)  b = Neg(a)  y = Exp(b)"), graph("y = Exp(x)")),
    (graph("a = Floor(x)  b = Floor(a)  y = Exp(b)"), graph("a = Floor(x)  y = Exp(a)")),
    (graph("a = Sigmoid(x)  y = Relu(a)"), graph("y = Sigmoid(x)")),
    (
        graph("a = Not(x)  b = Not(a)  y = Not(b)", "bool[N] x", "bool[N] y"),
        graph("y = Not(x)", "bool[N] x", "bool[N] y"),
    ),
    # Slice
    (
        graph(
            "a = Slice(x, s, e, d)  y = Slice(a, s, e, f)",
            constants="int64[1] s = {1}, int64[1] e = {-1}, int64[1] d = {2}, int64[1] f = {0}",
        ),
        graph(
            "y = Slice(x, y_starts, y_ends, y_axes)",
            constants="int64[2] y_starts = {1, 1}, int64[2] y_ends = {-1, -1}, int64[2] y_axes = {2, 0}",
        ),
    ),
    (
        graph(
            "a = Slice(x, s, e, d, p)  y = Slice(a, t, e, d)",
            constants="int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] d = {0}, int64[1] p = {2}, "
            "int64[1] t = {1}",
        ),
        graph(
            "y = Slice(x, y_starts, y_ends, y_axes, y_steps)",
            constants="int64[1] y_starts = {2}, int64[1] y_ends = {9223372036854775807}, int64[1] y_axes = {0}, "
            "int64[1] y_steps = {2}",
        ),
    ),
    (
        graph(
            "a = Slice(x, s, e, d)  y = Slice(a, s, e, d)",
            "float[2,9,2] x",
            constants="int64[1] s = {-7}, int64[1] e = {-1}, int64[1] d = {-2}",
        ),
        graph(
            "y = Slice(x, y_starts, y_ends, y_axes)",
            "float[2,9,2] x",
            constants="int64[1] y_starts = {2}, int64[1] y_ends = {7}, int64[1] y_axes = {1}",
        ),
    ),
    # Pad
    (
        graph(
            "a = Pad(x, s)  y = Pad(a, t, z)",
            "float[N,2] x",
            "float[A,B] y",
            "int64[4] s = {1, 0, 0, 2}, int64[4] t = {0, 3, 1, 1}, float z = {0}",
        ),
        graph("y = Pad(x, y_pads, z)", "float[N,2] x", "float[A,B] y", "float z = {0}, int64[4] y_pads = {1, 3, 1, 3}"),
    ),
    # Clip and Relu
    (graph("a = Relu(x)  b = Relu(a)  y = Exp(b)"), graph("a = Relu(x)  y = Exp(a)")),
    (
        graph("a = Relu(x)  y = Clip(a, l, h)", constants="float l = {-1}, float h = {6}"),
        graph("y = Clip(x, y_min, h)", constants="float h = {6}, float y_min = {0}"),
    ),
    (
        graph("a = Clip(x, l, h)  y = Relu(a)", constants="float l = {-1}, float h = {6}"),
        graph("y = Clip(x, a_min, h)", constants="float h = {6}, float a_min = {0}"),
    ),
    (
        graph("a = Clip(x, l, h)  y = Relu(a)", constants="float l = {0}, float h = {6}"),
        graph("y = Clip(x, l, h)", constants="float l = {0}, float h = {6}"),
    ),
    (
        graph(
            "a = Clip(x, l, h)  b = Clip(a, l, k)  y = Exp(b)", constants="float l = {0}, float h = {6}, float k = {1}"
        ),
        graph("b = Clip(x, l, k)  y = Exp(b)", constants="float l = {0}, float k = {1}"),
    ),
    (
        graph("a = Clip(x, , h)  b = Relu(a)  y = Exp(b)", constants="float h = {-1}"),
        graph("a = Clip(x, a_min, a_max)  y = Exp(a)", constants="float a_min = {0}, float a_max = {0}"),
    ),
    # constants
    (
        graph("a = Add(x, c)  y = Add(d, a)", constants="float[4] c = {1, 2, 3, 4}, float d = {0.5}"),
        graph("y = Add(d_merged, x)", constants="float[4] d_merged = {1.5, 2.5, 3.5, 4.5}"),
    ),
    (
        graph("a = Sub(x, c)  y = Add(a, d)", constants="float c = {4}, float d = {0.5}"),
        graph("y = Add(x, d_merged)", constants="float d_merged = {-3.5}"),
    ),
    (
        graph("a = Add(x, c)  y = Sub(a, d)", constants="float c = {4}, float d = {0.5}"),
        graph("y = Sub(x, d_merged)", constants="float d_merged = {-3.5}"),
    ),
    (
        graph("a = Mul(x, c)  y = Mul(a, d)", constants="float c = {0.5}, float[4] d = {4, 2, 1, 8}"),
        graph("y = Mul(x, d_merged)", constants="float[4] d_merged = {2, 1, 0.5, 4}"),
    ),
    (
        graph("a = Div(x, c)  y = Div(a, d)", constants="float c = {4}, float d = {2}"),
        graph("y = Div(x, d_merged)", constants="float d_merged = {8}"),
    ),
    (
        graph("a = Add(x, c)  y = Add(a, d)", "uint8[N] x", "uint8[N] y", "uint8 c = {200}, uint8 d = {100}"),
        graph("y = Add(x, d_merged)", "uint8[N] x", "uint8[N] y", "uint8 d_merged = {44}"),
    ),
]


@pytest.mark.parametrize(("before", "after"), MERGED)
def test_merged(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


KEPT = [
    # read elsewhere, or a graph output
    graph("a = Transpose<perm = [0, 2, 1]>(x)  b = Transpose<perm = [2, 1, 0]>(a)  c = Neg(a)  y = Add(b, c)",
          "float[2,2,2] x"),
    graph("a = Relu(x)  y = Clip(a, l)", constants="float l = {1}", more=", float[N,3,4] a"),
    graph("a = Add(x, c)  y = Add(a, c)", constants="float c = {1}", more=", float[N,3,4] a"),
    graph("a = Slice(x, s, e)  y = Slice(a, s, e)", constants="int64[1] s = {0}, int64[1] e = {9}",
          more=", float[N,3,4] a"),
    # -1 and 0 in Reshape
    graph("a = Reshape(x, s)  y = Flatten(a)", "float[N,M,4] x", "float[A,B] y", "int64[4] s = {0, 0, 2, 2}"),
    graph("a = Transpose<perm = [1, 0, 2]>(x)  y = Reshape(a, t)", "float[N,M,4] x", "float[A,B] y",
          "int64[2] t = {0, -1}"),
    graph("a = Unsqueeze(x, s)  y = Reshape(a, t)", "float[N,M,4] x", "float[A,B] y",
          "int64[1] s = {0}, int64[2] t = {-1, 0}"),
    graph("a = Reshape(x, s)  y = Reshape(a, t)", "float[2,6] x, int64[2] t", "float[A,B] y", "int64[1] s = {12}"),
    graph("a = Squeeze(x)  y = Unsqueeze(a, t)", "float[N,3] x", "float[A,B,C] y", "int64[1] t = {0}"),
    # Casts that lose something
    *(
        graph(f"a = Cast<to = {between}>(x)  y = Cast<to = {last}>(a)", f"{first}[N] x", f"{kind}[N] y")
        for first, between, last, kind in [
            ("float", 10, 1, "float"), ("float", 16, 1, "float"), ("float", 6, 1, "float"), ("float", 9, 1, "float"),
            ("float", 11, 6, "int32"), ("int32", 1, 6, "int32"), ("int64", 6, 7, "int64"), ("int8", 1, 2, "uint8"),
            ("int32", 7, 8, "string"), ("uint8", 3, 2, "uint8"),
        ]
    ),
    # other axes, other order
    graph("a = Concat<axis = 0>(x, x)  y = Concat<axis = 1>(a, a)"),
    graph("a, b = Split<axis = 2>(x)  y = Concat<axis = 2>(b, a)"),
    graph("a, b = Split<axis = 2>(x)  y = Concat<axis = 1>(a, b)"),
    graph("a = Reciprocal(x)  y = Reciprocal(a)"),
    graph("a = Relu(x)  y = Abs(a)"),
    # Slice and Pad
    graph("a = Slice(x, s, e)  y = Slice(a, s, e)", constants="int64[1] s = {0}, int64[1] e = {-1}"),
    graph("a = Slice(x, s, e, d, p)  y = Slice(a, s, e, d, p)", constants=
          "int64[1] s = {-1}, int64[1] e = {-9}, int64[1] d = {1}, int64[1] p = {-1}"),
    graph("a = Pad(x, s)  y = Pad(a, s, z)", "float[N] x", "float[A] y", "int64[2] s = {1, 1}, float z = {1}"),
    graph("a = Pad(x, s)  y = Pad(a, t)", "float[N] x", "float[A] y", "int64[2] s = {1, 1}, int64[2] t = {-1, 0}"),
    graph('a = Pad<mode = "reflect">(x, s)  y = Pad<mode = "reflect">(a, s)', "float[3] x", "float[A] y",
          "int64[2] s = {1, 1}"),
    graph("a = Pad(x, s)  y = Pad(a, t)", "float[N] x, int64[2] t", "float[A] y", "int64[2] s = {1, 1}"),
    # bounds the wrong way round, or not constant
    graph("a = Relu(x)  y = Clip(a, l, h)", constants="float l = {6}, float h = {2}"),
    graph("a = Relu(x)  y = Clip(a, l)", "float[N,3,4] x, float l"),
    # constants that must not meet
    graph("a = Add(x, c)  y = Sub(a, c)", constants="float c = {1e8}"),
    graph("a = Mul(x, c)  y = Div(a, c)", "int32[N] x", "int32[N] y", "int32 c = {3}"),
    graph("a = Div(x, c)  y = Div(a, c)", "int32[N] x", "int32[N] y", "int32 c = {3}"),
    graph("a = Mul(x, c)  y = Mul(a, d)", constants="float c = {1e30}, float d = {1e-30}"),
    graph("a = Mul(x, c)  y = Mul(a, c)", constants="float c = {1e30}"),
    graph("a = Mul(x, c)  y = Mul(a, c)", constants="float c = {0}"),
    graph("a = Sub(c, x)  y = Add(a, c)", constants="float c = {1}"),
    graph("a = Add(x, c)  y = Mul(a, c)", constants="float c = {2}"),
    graph("a = Add(x, c)  y = Add(a, d)", "float[3,4] x", "float[A,B] y",
          "float[4] c = {1, 2, 3, 4}, float[3,1] d = {1, 2, 3}"),
]  # fmt: skip


@pytest.mark.parametrize("before", KEPT)
def test_kept(rewriter: Any, before: str) -> None:
    rewriter.rewrites(before, PIPELINE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """g (float[N] x, bool c) => (float[N] y) { a = Neg(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { b = Neg(a)  ty = Exp(b) },
                 else_branch = e () => (float[N] ey) { d = Relu(a)  f = Relu(d)  ey = Exp(f) }> }""",
            """g (float[N] x, bool c) => (float[N] y) { a = Neg(x)  y = If (c) <
                 then_branch = t () => (float[N] ty) { b = Neg(a)  ty = Exp(b) },
                 else_branch = e () => (float[N] ey) { d = Relu(a)  ey = Exp(d) }> }""",
            id="in bodies, not across their border",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[2,3] x) => (float[3,2] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { k = Constant<value = int64[1] {1}>()  c = Unsqueeze(a, k)  d = Squeeze(c, k)
                 e = Transpose(d)  f = Transpose(e)  b = Transpose(f) }""",
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[2,3] x) => (float[3,2] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b) { b = Transpose(a) }""",
            id="in functions",
        ),
        pytest.param(
            """<ir_version: 4, opset_import: ["": 9]> g (float[2,3,4] x) => (float[1,2,2,2] y)
               { a = Slice<axes = [1], starts = [1], ends = [9]>(x)  b = Slice<axes = [2], starts = [0], ends = [2]>(a)
                 c = Unsqueeze<axes = [0]>(b)  d = Clip<min = 0.0>(c)  y = Clip<max = 1.0>(d) }""",
            """<ir_version: 4, opset_import: ["": 9]> g (float[2,3,4] x) => (float[1,2,2,2] y)
               { b = Slice<axes = [1, 2], starts = [1, 0], ends = [9, 2]>(x)
                 c = Unsqueeze<axes = [0]>(b)  y = Clip<max = 1.0, min = 0.0>(c) }""",
            id="parameters as attributes",
        ),
    ],
)
def test_where(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


def test_excluded_nodes_stay(rewriter: Any) -> None:
    rewriter.rewrites(graph("[keep] a = Neg(x)  y = Neg(a)"), PIPELINE, exclude="keep")
    rewriter.rewrites(graph("a = Neg(x)  [keep] y = Neg(a)"), PIPELINE, exclude="keep")


@pytest.mark.parametrize("opset", [6, 17])
@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("a = Relu(x)  b = Clip(a, l, h)  y = Relu(b)", 1),
        ("a = Relu(x)  y = Clip(a, z)", 1),  # whose upper bound is the largest finite number
        ("a = Clip(x, z)  y = Relu(a)", 1),
        ("a = Relu(x)  y = Clip(a, l)", 1),
        ("a = Clip(x)  y = Relu(a)", 1),
        ("a = Clip(x, , h)  b = Clip(a, l)  y = Relu(b)", 1),
        ("a = Clip(x, l, i)  y = Relu(a)", 1),
        ("a = Clip(x, j)  y = Clip(a, , h)", 1),
    ],
)
def test_nan_and_infinities_in_clips(rewriter: Any, nodes: str, left: int, opset: int) -> None:
    numbers = {"l": "-1", "h": "6", "z": "0", "i": "inf", "j": "-inf"}
    constants = ", ".join(f"float {name} = {{{number}}}" for name, number in numbers.items())
    if opset == 6:  # where the bounds are attributes
        bounds = re.compile(r"Clip\((\w),? ?(\w?),? ?(\w?)\)")
        nodes = bounds.sub(lambda m: f"Clip{attributes(numbers, min=m[2], max=m[3])}({m[1]})", nodes)
        constants = ""
    declared = f"<{constants}>" if constants else ""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[6] x) => (float[6] y) {declared} {{ {nodes} }}'
    before, outcome = rewriter.typed(text), rewriter.run(rewriter.typed(text), PIPELINE)
    assert len(outcome.model.graph) == left
    feeds = {"x": np.array([np.inf, -np.inf, np.nan, 9, -9, 0.5], np.float32)}
    np.testing.assert_array_equal(*(rewriter.outputs(model, feeds)["y"] for model in (before, outcome.model)))


def attributes(numbers: dict[str, str], **given: str) -> str:
    found = [f"{name} = {float(numbers[which])}" for name, which in given.items() if which]
    return f"<{', '.join(found)}>" if found else ""


def test_two_cuts_are_one_for_every_extent() -> None:
    cuts = [Cut(*bounds) for bounds in itertools.product((0, 1, 3, 9), (0, 2, 5, 2**63 - 1), (1, 2, 3))]
    for first, second in itertools.product(cuts, cuts):
        merged = first.then(second)
        assert merged is not None
        for extent in range(8):
            x = np.arange(extent)
            np.testing.assert_array_equal(x[slice(*first)][slice(*second)], x[slice(*merged)])


def test_cuts_from_the_end_of_a_known_extent() -> None:
    cuts = [Cut(*bounds) for bounds in itertools.product((-9, -2, 0, 1), (-3, -1, 4, 2**63 - 1), (1, 2))]
    for first, second, extent in itertools.product(cuts, cuts, range(6)):
        merged = first.counted_from_start(extent).then(second.counted_from_start(first.length(extent)))
        assert merged is not None
        x = np.arange(extent)
        np.testing.assert_array_equal(x[slice(*first)][slice(*second)], x[slice(*merged)])


def test_two_clips_are_one() -> None:
    x = np.linspace(-5, 5, 41)
    pairs = [Bounds(low, high) for low, high in itertools.combinations((-np.inf, -3, -1, 0, 2, 4, np.inf), 2)]
    for first, second in itertools.product(pairs, pairs):
        np.testing.assert_array_equal(np.clip(np.clip(x, *first), *second), np.clip(x, *first.then(second)))


OPERATIONS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


@pytest.mark.parametrize("family", [("Add", "Sub"), ("Mul", "Div")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_two_float_constants_are_one(dtype: str, family: tuple[str, str]) -> None:
    """Up to rounding, whatever the size of the numbers, and infinities where there were infinities."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    lowest = {"float16": -14, "float32": -60, "float64": -500}[dtype]
    x = (rng.choice([-1, 1], 200) * np.exp2(rng.uniform(lowest, info.maxexp, 200))).astype(dtype)
    extremes = (info.max / 3, info.tiny * 2)
    constants = [np.array(c, dtype) for c in (1e-3, 0.3, 1, 3, -7, 1e3, 1e4, *extremes)]
    merged = 0
    for a, b, inner, outer in itertools.product(constants, constants, family, family):
        constant = (sum_of if "Add" in family else product_of)(a, inner, b, outer)
        if constant is None:
            continue
        merged += 1
        with np.errstate(all="ignore"):
            expected = OPERATIONS[outer](OPERATIONS[inner](x, a), b).astype(np.float64)
            actual = OPERATIONS[outer](x, constant).astype(np.float64)
        finite = np.isfinite(expected) & (np.abs(expected) < float(info.max) * (1 - 8 * float(info.eps)))
        largest = np.maximum(np.abs(x.astype(np.float64)), max(abs(a), abs(b))) if "Add" in family else abs(expected)
        limit = 4 * float(info.eps) * largest + 4 * float(info.smallest_subnormal)
        assert (abs(actual[finite] - expected[finite]) <= limit[finite]).all(), (a, inner, b, outer)
        assert (np.abs(actual) > float(info.max) / 2)[~finite].all(), (a, inner, b, outer)
    assert merged > 20


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64"])
def test_two_integer_constants_are_one(dtype: str) -> None:
    """Exactly, wrapped around or not; and there is no merging divisions."""
    info, rng = np.iinfo(dtype), np.random.default_rng(0)
    x = rng.integers(info.min, info.max, 100, dtype=dtype)
    constants = [np.array(c, dtype) for c in (0, 1, 3, 100, info.max)]
    for a, b, inner, outer in itertools.product(constants, constants, ("Add", "Sub"), ("Add", "Sub")):
        merged = sum_of(a, inner, b, outer)
        assert merged is not None
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(OPERATIONS[outer](OPERATIONS[inner](x, a), b), OPERATIONS[outer](x, merged))
    for a, b, inner, outer in itertools.product(constants, constants, ("Mul", "Div"), ("Mul", "Div")):
        merged = product_of(a, inner, b, outer)
        assert (merged is not None) == (inner == outer == "Mul")
        if merged is not None:
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(x * a * b, x * merged)
