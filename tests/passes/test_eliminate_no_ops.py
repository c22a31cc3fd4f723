"""eliminate-no-ops: what changes nothing goes, and what only looks like it stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PIPELINE = "eliminate-no-ops"
OPSET = '<ir_version: 10, opset_import: ["": {}]> '


def around(node: str, inputs: str = "float[2,3] x", constants: str = "") -> str:
    """A model in which `node` computes b from a, with something before and after it."""
    return f"g ({inputs}) => (float y) <{constants}> {{ a = Neg(x)  {node}  y = ReduceSum<keepdims = 0>(b) }}"


GONE = [
    # neutral elements
    ("b = Add(a, c)", "float c = {-0.0}"),
    ("b = Add(c, a)", "float[1,3] c = {0, 0, 0}"),
    ("b = Sub(a, c)", "float[3] c = {0, 0, 0}"),
    ("b = Mul(a, c)", "float[2,1] c = {1, 1}"),
    ("b = Mul(c, a)", "float c = {1}"),
    ("b = Div(a, c)", "float[1] c = {1}"),
    ("b = Pow(a, c)", "float c = {1}"),
    ("b = PRelu(a, c)", "float[3] c = {1, 1, 1}"),
    ("b = Sum(a)", ""),
    ("b = Mean(a)", ""),
    ("b = Max(a)", ""),
    ("b = Where(t, a, c)", "bool t = {1}, float c = {5}"),
    ("b = Where(t, c, a)", "bool[1,3] t = {0, 0, 0}, float c = {5}"),
    ("t = Greater(a, c)  b = Where(t, a, a)", "float c = {5}"),
    # data movement
    ("b = Reshape(a, s)", "int64[2] s = {2, 3}"),
    ("b = Reshape(a, s)", "int64[2] s = {0, -1}"),
    ("b = Reshape(a, s)", "int64[2] s = {-1, 3}"),
    ("b = Reshape<allowzero = 1>(a, s)", "int64[2] s = {-1, 3}"),
    ("b = Flatten(a)", ""),
    ("b = Flatten<axis = -1>(a)", ""),
    ("b = Squeeze(a)", ""),
    ("b = Transpose<perm = [0, 1]>(a)", ""),
    ("b = Expand(a, s)", "int64[1] s = {3}"),
    ("b = Expand(a, s)", "int64[2] s = {1, 3}"),
    ("s = Shape(a)  b = Expand(a, s)", ""),
    ("b = Tile(a, s)", "int64[2] s = {1, 1}"),
    ("b = Pad(a, s)", "int64[4] s = {0, 0, 0, 0}"),
    ("b = Concat<axis = 1>(a)", ""),
    ("b = Split<axis = 1>(a)", ""),
    ("b = Gather<axis = 1>(a, s)", "int64[3] s = {0, 1, 2}"),
    ("b = Slice(a, s, e)", "int64[2] s = {0, 0}, int64[2] e = {2, 3}"),
    ("b = Slice(a, s, e, d, p)", "int64[1] s = {-3}, int64[1] e = {9}, int64[1] d = {-1}, int64[1] p = {1}"),
    # windows, reductions, types
    ("b = ReduceSum<noop_with_empty_axes = 1>(a)", ""),
    ("b = ReduceSum<noop_with_empty_axes = 1>(a, d)", "int64[0] d = {}"),
    ("b = Cast<to = 1>(a)", ""),
    ("b = CastLike(a, c)", "float c = {1}"),
]


@pytest.mark.parametrize(("node", "constants"), GONE)
def test_what_changes_nothing_goes(rewriter: Any, node: str, constants: str) -> None:
    before = rewriter.typed(around(node, constants=constants))
    outcome = rewriter.run(rewriter.typed(around(node, constants=constants)), PIPELINE + ",eliminate-dead-code")
    assert [node.op_type for node in outcome.model.graph] == ["Neg", "ReduceSum"]
    rewriter.same_outputs(before, outcome.model)


IMAGES = [
    ("b = AveragePool<kernel_shape = [1, 1]>(a)", "float[1,2,3,3] x", ""),
    ("b = MaxPool<kernel_shape = [1, 1], strides = [1, 1]>(a)", "float[1,2,3,3] x", ""),
    ("b = GlobalAveragePool(a)", "float[N,2,1,1] x", ""),
    ("b = ReduceMean<axes = [2, 3]>(a)", "float[N,2,1,1] x", ""),
    ("b = ReduceMax<axes = [-1]>(a)", "float[N,2,1,1] x", ""),
    ("b = DepthToSpace<blocksize = 1>(a)", "float[1,2,3,3] x", ""),
    ("b = Transpose<perm = [0, 1, 3, 2]>(a)", "float[N,2,1,1] x", ""),
    ("b = Transpose<perm = [1, 0, 2, 3]>(a)", "float[1,1,N,2] x", ""),
    ('b = Resize<mode = "linear">(a, , s)', "float[1,2,3,3] x", "float[4] s = {1, 1, 1, 1}"),
    ("b = Resize(a, , , s)", "float[1,2,3,3] x", "int64[4] s = {1, 2, 3, 3}"),
    ("b = Mul(a, c)", "float[N,2,H,W] x", "float[1,2,1,1] c = {1, 1}"),
    ("b = Slice(a, s, e, d)", "float[N,2,H,W] x", "int64[1] s = {0}, int64[1] e = {2147483647}, int64[1] d = {2}"),
    ("b = Slice(a, s, e)", "float[N,2] x", "int64[2] s = {0, 0}, int64[2] e = {9223372036854775807, 2}"),
    (
        "n = Shape<start = 2, end = 3>(a)  b = Slice(a, z, n, d)",
        "float[N,2,H,W] x",
        "int64[1] z = {0}, int64[1] d = {2}",
    ),
    ("b = Reshape(a, s)", "float[N,2,H,W] x", "int64[4] s = {0, 2, 0, -1}"),
    ("b = Reshape(a, s)", "float[?,2,3] x", "int64[3] s = {-1, 2, 3}"),
    ("n = Shape(x)  b = Reshape(a, n)", "float[N,M] x", ""),
    ("b = Flatten(a)", "float[?,?] x", ""),
]


@pytest.mark.parametrize(("node", "inputs", "constants"), IMAGES)
def test_windows_and_dynamic_extents(rewriter: Any, node: str, inputs: str, constants: str) -> None:
    text = around(node, inputs, constants)
    outcome = rewriter.run(rewriter.typed(text), PIPELINE + ",eliminate-dead-code")
    assert [node.op_type for node in outcome.model.graph] == ["Neg", "ReduceSum"]
    rewriter.same_outputs(rewriter.typed(text), outcome.model)


STAY = [
    # broadcast that changes extents or rank
    ("b = Add(a, c)", "float[3] x", "float[1,1] c = {-0.0}"),
    ("b = Add(a, c)", "float[N,3] x", "float[2,3] c = {-0.0, -0.0, -0.0, -0.0, -0.0, -0.0}"),
    ("b = Mul(a, c)", "float x", "float[1] c = {1}"),
    ("b = Mul(a, c)", "float[1] x", "float[3] c = {1, 1, 1}"),
    ("b = Where(t, a, c)", "float[3] x", "bool[2,1] t = {1, 1}, float c = {5}"),
    ("b = Where(t, a, c)", "float[3] x", "bool t = {1}, float[2,1] c = {5, 6}"),
    # not the neutral element, or on the wrong side
    ("b = Sub(c, a)", "float[3] x", "float c = {0}"),
    ("b = Div(c, a)", "float[3] x", "float c = {1}"),
    ("b = Pow(c, a)", "float[3] x", "float c = {1}"),
    ("b = Mul(a, c)", "float[2] x", "float[2] c = {1, 2}"),
    ("b = Where(t, a, c)", "float[2] x", "bool[2] t = {1, 0}, float c = {5}"),
    # other extents
    ("b = Reshape(a, s)", "float[2,3] x", "int64[2] s = {3, 2}"),
    ("b = Reshape(a, s)", "float[N,3] x", "int64[2] s = {3, -1}"),
    ("b = Reshape(a, s)", "float[N,M] x", "int64[2] s = {4, -1}"),
    ("b = Reshape<allowzero = 1>(a, s)", "float[N,M] x", "int64[2] s = {0, 0}"),
    ("b = Flatten<axis = 0>(a)", "float[N,3] x", ""),
    ("b = Squeeze(a)", "float[N,3] x", ""),
    ("b = Expand(a, s)", "float[N,3] x", "int64[2] s = {2, 3}"),
    ("b = Expand(a, s)", "float[3] x", "int64[2] s = {1, 3}"),
    ("b = Transpose<perm = [1, 0]>(a)", "float[3,3] x", ""),
    ("b = Transpose(a)", "float[3,3] x", ""),
    ("b = Transpose<perm = [0, 2, 1]>(a)", "float[N,1,3] x", ""),
    # slices that do not take everything
    ("b = Slice(a, s, e)", "float[N,3] x", "int64[1] s = {0}, int64[1] e = {-1}"),
    ("b = Slice(a, s, e)", "float[N,3] x", "int64[1] s = {0}, int64[1] e = {5}"),
    ("b = Slice(a, s, e)", "float[N,3] x", "int64[1] s = {-5}, int64[1] e = {2147483647}"),
    ("b = Slice(a, s, e)", "float[N,3] x", "int64[1] s = {1}, int64[1] e = {2147483647}"),
    ("b = Slice(a, s, e, d)", "float[N,3] x", "int64[1] s = {0}, int64[1] e = {2}, int64[1] d = {-1}"),
    (
        "b = Slice(a, s, e, d, p)",
        "float[2,3] x",
        "int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] d = {1}, int64[1] p = {-1}",
    ),
    (
        "b = Slice(a, s, e, d, p)",
        "float[N,3] x",
        "int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] d = {0}, int64[1] p = {2}",
    ),
    # others
    ("b = Pad(a, s)", "float[2,3] x", "int64[4] s = {0, 1, 0, -1}"),
    ("b = Gather<axis = 1>(a, s)", "float[2,3] x", "int64[3] s = {0, 2, 1}"),
    ("b = Gather<axis = 1>(a, s)", "float[2,3] x", "int64[1,3] s = {0, 1, 2}"),
    ("b = Gather<axis = 1>(a, s)", "float[2,3] x", "int64[2] s = {0, 1}"),
    ("b = ReduceMax<axes = [0]>(a)", "float[N,3] x", ""),
    ("b = ReduceMean<axes = [0], keepdims = 0>(a)", "float[1,3] x", ""),
    ("b = ReduceSumSquare<axes = [0]>(a)", "float[1,3] x", ""),
    ("c = Cast<to = 10>(a)  b = Cast<to = 1>(c)", "float[3] x", ""),
    ("b = AveragePool<kernel_shape = [1, 1], strides = [2, 2]>(a)", "float[1,2,3,3] x", ""),
    ("b = AveragePool<kernel_shape = [1, 1], pads = [0, 0, 1, 1]>(a)", "float[1,2,3,3] x", ""),
    ("b = GlobalAveragePool(a)", "float[1,2,H,1] x", ""),
    (
        'b = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil">(a, , s)',
        "float[1,2,3,3] x",
        "float[4] s = {1, 1, 1, 1}",
    ),
    ('b = Resize<mode = "cubic">(a, , s)', "float[1,2,3,3] x", "float[4] s = {1, 1, 1, 1}"),
]


@pytest.mark.parametrize(("node", "inputs", "constants"), STAY)
def test_what_changes_something_stays(rewriter: Any, node: str, inputs: str, constants: str) -> None:
    rewriter.rewrites(around(node, inputs, constants), PIPELINE)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        pytest.param(
            "g (float[N] x) => (float[N] y) <float c = {1}> { y = Mul(x, c) }",
            "a graph input or initializer cannot take the name of a graph output",
            id="input to output",
        ),
        pytest.param(
            "g (float[N] x) => (float[N] y, float[N] z) <float c = {1}> { y = Neg(x)  z = Mul(y, c) }",
            "two graph outputs would become one value",
            id="two outputs",
        ),
        pytest.param(
            """g (float[seq] x) => (float[seq] y) <int64[1] s = {1}, int64[1] e = {2147483647}>
               { a = Neg(x)  y = Slice(a, s, e) }""",
            "",
            id="the model gives its output a wrong extent",
        ),
        pytest.param(
            """g (float[N,3] x) => (float[1,3] y, float[1,3] z) <int64[1] s = {0}, int64[1] e = {1}>
               { y = Neg(x)  b = Slice(y, s, e)  z = Neg(b) }""",
            "",
            id="what the model says of its output does not hold for those who read it",
        ),
        pytest.param(
            "g (float[N] x, float c) => (float[N] y) <float c = {1}> { a = Mul(x, c)  y = Neg(a) }",
            "",
            id="a default that the caller can override",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f<p = [0]>(x) }
               <domain: "l", opset_import: ["": 17]> f <p> (a) => (b)
               { c = Transpose<perm: ints = @p>(a)  b = Neg(c) }""",
            "",
            id="an attribute that the caller gives",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float x) => (float[1] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { k = Constant<value = float[1] {1}>()  b = Mul(a, k) }""",
            "may change the shape",
            id="in a function nothing is known of extents",
        ),
    ],
)
def test_leaves_alone(rewriter: Any, before: str, reason: str) -> None:
    assert reason in rewriter.rewrites(before, PIPELINE).reasons


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """g (float[N,3] x, bool c) => (float[N,3] y) <float one = {1}> { a = Neg(x)  y = If (c) <
                 then_branch = t () => (float[N,3] ty) <int64[2] s = {-1, 3}> { b = Reshape(a, s)  ty = Exp(b) },
                 else_branch = e () => (float[N,3] ey) { d = Exp(a)  ey = Mul(one, d) }> }""",
            """g (float[N,3] x, bool c) => (float[N,3] y) { a = Neg(x)  y = If (c) <
                 then_branch = t () => (float[N,3] ty) { ty = Exp(a) },
                 else_branch = e () => (float[N,3] ey) { ey = Exp(a) }> }""",
            id="in bodies",
        ),
        pytest.param(
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b)
               { k = Constant<value = float {1}>()  c = Mul(a, k)  d = Transpose<perm = [0]>(c)  b = Neg(d) }""",
            """<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[N] x) => (float[N] y) { y = l.f(x) }
               <domain: "l", opset_import: ["": 17]> f (a) => (b) { b = Neg(a) }""",
            id="in functions",
        ),
        pytest.param(
            "g (float[2,3] x) => (float[2,3] y) <float c = {1}> { a = Neg(x)  y = Mul(a, c) }",
            "g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }",
            id="before a graph output",
        ),
        pytest.param(
            """<ir_version: 4, opset_import: ["": 9]> g (float[2,3] x) => (float[2,3] y)
               { a = Slice<starts = [0, -3], ends = [9, 2147483647]>(x)  b = Unsqueeze<axes = [0]>(a)
                 c = Pad<pads = [0, 0, 0, 0, 0, 0]>(b)  y = Squeeze<axes = [0]>(c) }""",
            """<ir_version: 4, opset_import: ["": 9]> g (float[2,3] x) => (float[2,3] y)
               { b = Unsqueeze<axes = [0]>(x)  y = Squeeze<axes = [0]>(b) }""",
            id="parameters as attributes",
        ),
    ],
)
def test_where(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, PIPELINE, after)


def test_excluded_nodes_stay(rewriter: Any) -> None:
    before = "g (float[N] x) => (float[N] y) <float c = {1}> { [keep] a = Mul(x, c)  y = Neg(a) }"
    rewriter.rewrites(before, PIPELINE, exclude="keep")


@pytest.mark.parametrize("zero", ["0.0", "-0.0"])
@pytest.mark.parametrize(
    ("reader", "divides"),
    [
        ("y = Reciprocal(b)", True),
        ("y = Div(one, b)", True),
        ("c = Neg(b)  d = Tanh(c)  y = Div(one, d)", True),
        ("c = Add(b, one)  y = Div(one, c)", False),
        ("c = Exp(b)  y = Reciprocal(c)", False),
        ("y = Div(b, one)", False),
    ],
)
def test_a_zero_keeps_its_sign_where_a_division_sees_it(rewriter: Any, zero: str, reader: str, divides: bool) -> None:
    text = f"g (float[2] x) => (float[2] y) <float z = {{{zero}}}, float one = {{2}}> {{ b = Add(x, z)  {reader} }}"
    before, outcome = rewriter.typed(text), rewriter.run(rewriter.typed(text), PIPELINE)
    assert outcome.modified == (not divides or zero == "-0.0")
    feeds = {"x": np.array([-0.0, 0.0], np.float32)}
    np.testing.assert_array_equal(*(rewriter.outputs(model, feeds)["y"] for model in (before, outcome.model)))


def test_what_is_removed_before_does_not_look_at_zeros(rewriter: Any) -> None:
    before = (
        "g (float[2] x) => (float[2] y) <float l = {1}, float z = {0}> { a = Pow(x, l)  b = Add(a, z)  y = Exp(b) }"
    )
    rewriter.rewrites(before, PIPELINE, "g (float[2] x) => (float[2] y) { y = Exp(x) }")


def test_infinities_and_nan_pass_through(rewriter: Any) -> None:
    text = """g (float[4] x) => (float[4] y) <float one = {1}, float zero = {0}>
              { a = Mul(x, one)  b = Sub(a, zero)  c = Pow(b, one)  d = Div(c, one)  y = Neg(d) }"""
    before, outcome = rewriter.typed(text), rewriter.run(rewriter.typed(text), PIPELINE)
    assert len(outcome.model.graph) == 1
    feeds = {"x": np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)}
    expected, actual = (rewriter.outputs(model, feeds)["y"] for model in (before, outcome.model))
    assert actual.tobytes() == expected.tobytes()
