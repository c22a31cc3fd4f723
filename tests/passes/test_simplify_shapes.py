"""simplify-shapes: which shape arithmetic goes, that no dynamic dim is frozen, and that empty tensors keep working."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis.dims import Bindings, Dim
from graphopt.errors import RuntimeFailureError
from graphopt_passes.lossless.shape_operands import expand_target, reshape_target

PIPELINE = "simplify-shapes,eliminate-dead-code,remove-unused-initializers"
INTS = "int64 i0 = {0}, int64 i1 = {1}, int64[1] z = {0}, int64[1] o = {1}, int64[1] m = {-1}"


def text(signature: str, body: str, constants: str = INTS, opset: int = 17) -> str:
    return f'<ir_version: 10, opset_import: ["": {opset}]> g {signature} <{constants}> {{ {body} }}'


def simplified(rewriter: Any, before: str, pipeline: str = PIPELINE) -> list[str]:
    """The operators after the pass; both models must agree for all sizes for which the first one runs at all."""
    original, model = rewriter.typed(before), rewriter.typed(before)
    outcome = rewriter.run(model, pipeline)
    rng = np.random.default_rng(0)
    ran = 0
    for sizes in ({"b": 2, "s": 5}, {"b": 1, "s": 1}, {"b": 7, "s": 3}, {"b": 0, "s": 4}, {"b": 3, "s": 0}):
        feeds = {}
        for value in original.graph.inputs:
            dims = [dim if isinstance(dim, int) else sizes.get(str(dim), 4) for dim in value.shape]
            feeds[value.name] = rng.standard_normal(dims).astype(value.dtype.numpy())
        try:
            expected = rewriter.outputs(original, feeds)
        except RuntimeFailureError:
            continue
        ran += 1
        actual = rewriter.outputs(outcome.model, feeds)
        for name, wanted in expected.items():
            np.testing.assert_array_equal(actual[name], wanted)
    assert ran >= 3
    return [node.op_type for node in outcome.model.graph]


# --- The forms that Reshape and Expand have -----------------------------------------------------------------------------

ENTRIES = st.lists(st.sampled_from(["b", "s", 0, -1, 1, 2, 6, None]), min_size=1, max_size=4)


def numpy_reshape(dims: tuple[int, ...], target: list[int], allowzero: bool) -> tuple[int, ...] | None:
    """What Reshape yields by its definition; None where it is not defined."""
    if target.count(-1) > 1 or (allowzero and 0 in target and -1 in target):
        return None
    copied = [dims[i] if size == 0 and not allowzero and i < len(dims) else size for i, size in enumerate(target)]
    if 0 in target and not allowzero and any(size == 0 and i >= len(dims) for i, size in enumerate(target)):
        return None
    others = int(np.prod([size for size in copied if size != -1]))
    total = int(np.prod(dims))
    if -1 in copied:
        if others == 0 or total % others:
            return None
        copied[copied.index(-1)] = total // others
    return tuple(copied) if int(np.prod(copied)) == total else None


@given(
    st.lists(st.sampled_from(["b", "s", 1, 2, 6]), max_size=4),
    ENTRIES,
    st.booleans(),
    st.dictionaries(st.sampled_from(["b", "s"]), st.integers(0, 4), min_size=2, max_size=2),
    st.integers(-1, 6),
)
def test_a_constant_target_means_the_same(
    dims: list[Dim], target: list[Dim], allowzero: bool, sizes: dict[str, int], unknown: int
) -> None:
    constant = reshape_target(tuple(dims), target, allowzero)
    if constant is None:
        return
    bound = Bindings(sizes)
    extents = tuple(bound.evaluate(dim) or 0 for dim in dims)
    entries = [unknown if size is None else bound.evaluate(size) if isinstance(size, str) else size for size in target]
    expected = numpy_reshape(extents, [size or 0 for size in entries], allowzero)
    if expected is not None:
        assert numpy_reshape(extents, constant, allowzero=False) == expected


@given(st.lists(st.sampled_from(["b", "s", 1, 2]), max_size=3), st.lists(st.sampled_from(["b", "s", 1, 2]), max_size=4))
def test_a_constant_expansion_means_the_same(dims: list[Dim], target: list[Dim]) -> None:
    constant = expand_target(tuple(dims), target)
    if constant is None:
        return
    for sizes in ({"b": 3, "s": 4}, {"b": 0, "s": 1}, {"b": 2, "s": 2}):
        extents, wanted = ([Bindings(sizes).evaluate(dim) or 0 for dim in numbers] for numbers in (dims, target))
        try:
            expected = np.broadcast_shapes(tuple(extents), tuple(wanted))
        except ValueError:
            continue
        assert np.broadcast_shapes(tuple(extents), tuple(constant)) == expected


@pytest.mark.parametrize(
    ("dims", "target", "allowzero", "constant"),
    [
        (("b", 6), ["b", 3, 2], False, [-1, 3, 2]),
        (("b", "s", 6), ["b", "s", 3, 2], False, [0, 0, 3, 2]),
        (("b", "s", 6), ["b", "s", 3, 2], True, [0, 0, 3, 2]),
        (("b", 4, "h", "w"), ["b", 4, "h*w"], False, None),
        (("b", 4, "h", "w"), ["b", 4, -1], False, [0, 4, -1]),
        (("b", "s"), ["b*s"], False, [-1]),
        (("b", "s"), ["s", "b"], False, None),
        (("b", 6), ["b", 0], False, [0, 0]),
        (("b", 6), ["b", 0], True, None),
        (None, [None, 6], False, [-1, 6]),
        (None, [None, None], False, None),
    ],
)
def test_reshape_target(dims: Any, target: list[Dim], allowzero: bool, constant: list[int] | None) -> None:
    assert reshape_target(dims, target, allowzero) == constant


# --- Whole graphs --------------------------------------------------------------------------------------------------------

HEADS = """sh = Shape(x)  g = Gather<axis = 0>(sh, i0)  u = Unsqueeze(g, z)  h = Gather<axis = 0>(sh, i1)  v = Unsqueeze(h, z)
           c = Concat<axis = 0>(u, v, three, two)  y = Reshape(x, c)"""
EXTRA = f"{INTS}, int64[1] two = {{2}}, int64[1] three = {{3}}"


@pytest.mark.parametrize(
    ("x", "y", "body", "expected"),
    [
        pytest.param("b,s,6", "b,s,3,2", HEADS, ["Reshape"], id="split heads"),
        pytest.param("2,s,6", "2,s,3,2", HEADS, ["Reshape"], id="one extent known"),
        pytest.param("2,5,6", "2,5,3,2", HEADS, ["Reshape"], id="all extents known"),
        pytest.param(
            "b,4,s",
            "b,q",
            "sh = Shape(x)  h = Slice(sh, z, o)  c = Concat<axis = 0>(h, m)  y = Reshape(x, c)",
            ["Reshape"],
            id="flatten, which has a -1 itself",
        ),
        pytest.param(
            "b,4,s,s",
            "b,4,q",
            """sh = Shape(x)  a = Slice(sh, z, two)  h = Slice(sh, two, three)  w = Slice(sh, three, four)  p = Mul(h, w)
               c = Concat<axis = 0>(a, p)  y = Reshape(x, c)""",
            ["Shape", "Shape", "Shape", "Mul", "Concat", "Reshape"],
            id="-1 beside an extent that may be zero: kept",
        ),
        pytest.param(
            "b,1,s",
            "b,4,s",
            "sh = Shape(x)  a = Slice(sh, z, o)  w = Slice(sh, two, three)  c = Concat<axis = 0>(a, four, w)  y = Expand(x, c)",
            ["Expand"],
            id="expand",
        ),
        pytest.param(
            "b,s,6", "b,s,6", "sh = Shape(x)  y1 = Expand(x, sh)  y = Relu(y1)", ["Relu"], id="expand to itself"
        ),
        pytest.param(
            "b,s,6",
            "b,s,6",
            "sh = Shape(x)  e = Slice(sh, o, two)  y1 = Slice(x, z, e, o)  y = Relu(y1)",
            ["Relu"],
            id="slice to the end",
        ),
        pytest.param(
            "b,s,6",
            "b,q,6",
            "sh = Shape(x)  e = Slice(sh, o, two)  y = Slice(x, o, e, o)",
            ["Slice"],
            id="slice from 1 to the end",
        ),
        pytest.param(
            "b,s,6",
            "b,q,6",
            "sh = Shape(x)  e = Slice(sh, o, two)  d = Sub(e, o)  y = Slice(x, z, d, o)",
            ["Shape", "Sub", "Slice"],
            id="slice to the last but one",
        ),
        pytest.param(
            "b,3,s,s",
            "b,3,q,r",
            """sh = Shape(x)  a = Slice(sh, z, two)  h = Slice(sh, two, four)  t = Mul(h, two)  c = Concat<axis = 0>(a, t)
               y = Resize<mode = "nearest">(x, , , c)""",
            ["Resize"],
            id="resize to twice the size",
        ),
        pytest.param(
            "b,s",
            "b,s",
            "sh = Shape(x)  k = ConstantOfShape<value = float[1] {3}>(sh)  y = Mul(x, k)",
            ["Mul"],
            id="a constant that is broadcast anyway",
        ),
        pytest.param(
            "b,s",
            "q,b,s",
            "sh = Shape(x)  c = Concat<axis = 0>(o, sh)  k = ConstantOfShape<value = float[1] {3}>(c)  y = Mul(x, k)",
            ["Shape", "Concat", "ConstantOfShape", "Mul"],
            id="a constant that raises the rank",
        ),
    ],
)
def test_rewrites(rewriter: Any, x: str, y: str, body: str, expected: list[str]) -> None:
    before = text(f"(float[{x}] x) => (float[{y}] y)", body, f"{EXTRA}, int64[1] four = {{4}}")
    assert simplified(rewriter, before) == expected


def test_the_text_of_a_reshape(rewriter: Any) -> None:
    rewriter.rewrites(
        text("(float[b,6] x) => (float[b,3,2] y)", HEADS.replace("u, v, three", "u, three"), EXTRA),
        PIPELINE,
        text("(float[b,6] x) => (float[b,3,2] y)", "y = Reshape(x, y_shape)", "int64[3] y_shape = {-1, 3, 2}"),
    )


MASK = """sh = Shape(q)  a = Slice(sh, z, o)  t = Slice(sh, two, three)  c = Concat<axis = 0>(a, o, t, t)
          e = Expand(x, c)  n = Neg(e)  k = Greater(n, half)  w = Where(k, half, n)"""
MASKED = "(float[b,1,1,s] x, float[b,2,s,s] q) => (float[b,2,s,s] y)"


def test_an_expanded_mask_stays_small(rewriter: Any) -> None:
    constants = f"{EXTRA}, float half = {{0.5}}"
    assert simplified(rewriter, text(MASKED, f"{MASK} y = Add(q, w)", constants)) == ["Neg", "Greater", "Where", "Add"]


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param("m1 = ReduceSum(w, three)  y = Add(q, m1)", id="an operator that is not elementwise"),
        pytest.param("p = Softmax(w)  y = Add(q, p)", id="another operator that is not elementwise"),
        pytest.param("y = Add(w, w)", id="nothing else broadcasts"),
    ],
)
def test_an_expanded_mask_that_matters_stays(rewriter: Any, tail: str) -> None:
    signature = MASKED.replace("[b,2,s,s] y", "[b,d,s,s] y")
    assert "Expand" in simplified(rewriter, text(signature, f"{MASK} {tail}", f"{EXTRA}, float half = {{0.5}}"))


def test_an_expanded_graph_output_stays(rewriter: Any) -> None:
    signature = MASKED.replace("y)", "y, float[b,1,s,s] n)")
    assert "Expand" in simplified(rewriter, text(signature, f"{MASK} y = Add(q, w)", f"{EXTRA}, float half = {{0.5}}"))


@pytest.mark.parametrize("opset", [13, 14, 15, 17, 23])
def test_extents_are_asked_for_directly(rewriter: Any, opset: int) -> None:
    body = """sh = Shape(x)  g = Gather<axis = 0>(sh, i1)  u = Unsqueeze(g, z)  h = Gather<axis = 0>(sh, i0)  v = Unsqueeze(h, z)
              c = Concat<axis = 0>(v, u, one)  k = ConstantOfShape<value = float[1] {2}>(c)  r = ReduceSum(k)  y = Add(x, r)"""
    before = text("(float[b,s,6] x) => (float[b,s,6] y)", body, f"{INTS}, int64[1] one = {{1}}", opset)
    expected = ["Shape", "Gather", "Concat"] if opset < 15 else ["Shape", "Concat"]
    assert simplified(rewriter, before) == [*expected, "ConstantOfShape", "ReduceSum", "Add"]


def test_equal_extents_are_the_extents_of_an_input(rewriter: Any) -> None:
    body = """r = Relu(x)  sh = Shape(r)  g = Gather<axis = 0>(sh, i1)  u = Unsqueeze(g, z)
              k = ConstantOfShape<value = float[1] {2}>(u)  q = ReduceSum(k)  y = Add(r, q)"""
    model = rewriter.typed(text("(float[b,s] x) => (float[b,s] y)", body))
    rewriter.run(model, PIPELINE)
    (shape,) = (node for node in model.graph if node.op_type == "Shape")
    assert shape.inputs[0] is model.graph.inputs[0]
    assert [shape.attributes.get_int(name) for name in ("start", "end")] == [1, 2]


def test_elements_that_were_there_before(rewriter: Any) -> None:
    body = """sh = Shape(x)  e = Equal(sh, m)  w = Where(e, o, sh)  r = Reshape(w, m)  k = ConstantOfShape<value = float[1] {1}>(r)
              q = ReduceSum(k)  y = Add(x, q)"""
    before = text("(float[b,s] x) => (float[b,s] y)", body)
    assert simplified(rewriter, before) == ["Shape", "ConstantOfShape", "ReduceSum", "Add"]


@pytest.mark.parametrize(
    ("n", "y", "body"),
    [
        ("int64[2] n", "p,q,3,2", "c = Concat<axis = 0>(n, three, two)  y1 = Reshape(x, c)"),
        ("int64[3] n", "p,q,r", "y1 = Expand(x, n)"),
        ("int64[1] n", "p,q,r", "y1 = Slice(x, z, n, o)"),
        ("int64[3] n", "p,q,r", 'y1 = Resize<mode = "nearest">(x, , , n)'),
        ("int64[2] n", "p,q", "k = ConstantOfShape(n)  y1 = Add(k, k)"),
    ],
)
def test_what_is_not_known_stays_open(rewriter: Any, n: str, y: str, body: str) -> None:
    model = rewriter.typed(text(f"(float[b,s,6] x, {n}) => (float[{y}] y)", f"{body}  y = Abs(y1)", EXTRA))
    assert not rewriter.run(model, "simplify-shapes").modified


def test_what_a_graph_output_declares_is_not_believed(rewriter: Any) -> None:
    before = text("(float[b,6] x) => (float[5,6] n, int64[2] y)", "n = Relu(x)  s = Shape(n)  y = Add(s, s)")
    model = rewriter.typed(before)
    assert not rewriter.run(model, "simplify-shapes").modified


def test_in_bodies_and_not_in_functions(rewriter: Any) -> None:
    constants = "int64[1] two = {2}, int64[1] three = {3}, int64[1] z = {0}, int64[1] o = {1}"
    chain = "sh = Shape(x)  h = Slice(sh, z, o)  c = Concat<axis = 0>(h, three, two)"
    before = f"""<ir_version: 10, opset_import: ["": 17, "local": 1]> g (float[b,6] x, bool k) => (float[b,3,2] z1) <{constants}> {{
                   f = local.f(x)
                   z1 = If (k) < then_branch = t () => (float[b,3,2] y) {{ {chain}  y = Reshape(x, c) }},
                                 else_branch = e () => (float[b,3,2] p) {{ p = Identity(f) }}> }}
                 <domain: "local", opset_import: ["": 17]> f (x) => (y) {{
                   z = Constant<value = int64[1] {{0}}>()  o = Constant<value = int64[1] {{1}}>()
                   three = Constant<value = int64[1] {{3}}>()  two = Constant<value = int64[1] {{2}}>()
                   {chain}  y = Reshape(x, c) }}"""
    model = rewriter.typed(before)
    rewriter.run(model, PIPELINE)
    branch = next(node for node in model.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Reshape"]
    (function,) = model.functions.values()
    assert [node.op_type for node in function if node.op_type != "Constant"] == ["Shape", "Slice", "Concat", "Reshape"]
    rewriter.same_outputs(rewriter.typed(before), model)


@pytest.mark.parametrize("excluded", ["reshape", "concat"])
def test_excluded_nodes_stay(rewriter: Any, excluded: str) -> None:
    body = HEADS.replace("c = Concat", "[concat] c = Concat").replace("y = Reshape", "[reshape] y = Reshape")
    model = rewriter.typed(text("(float[2,5,6] x) => (float[2,5,3,2] y)", body, EXTRA))
    rewriter.run(model, "simplify-shapes", exclude=excluded)
    assert excluded in {node.name for node in model.graph}
