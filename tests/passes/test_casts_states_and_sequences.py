"""resolve-casts, omit-zero-states and split-tensors: three small passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "g (float[2] x, int64[2] n) => (float[2] y) { c = CastLike(n, x)  y = Add(c, x) }",
            "g (float[2] x, int64[2] n) => (float[2] y) { [c_cast_node] c_cast = Cast<to = 1>(n)  y = Add(c_cast, x) }",
        ),
        (
            "g (int64[2] n) => (double[2] y) <double[1] d = {0}> { y = CastLike(n, d) }",
            "g (int64[2] n) => (double[2] y) { [y_cast_node] y = Cast<to = 11>(n) }",
        ),
    ],
)
def test_the_type_that_is_cast_to_is_named(rewriter: Any, before: str, after: str) -> None:
    rewriter.rewrites(before, "resolve-casts", after)


def test_inside_functions_the_type_is_the_callers(rewriter: Any) -> None:
    before = """<ir_version: 10, opset_import: ["": 17, "local": 1]>
                g (float[2] x, int64[2] n) => (float[2] y) { y = local.f(x, n) }
                <domain: "local", opset_import: ["": 17]> f (x, n) => (y) { y = CastLike(n, x) }"""
    assert not rewriter.run(rewriter.typed(before), "resolve-casts").modified


def lstm(states: str, prologue: str) -> str:
    return f"""g (float[5,b,4] x, float[1,12,4] w, float[1,12,3] r, float[1,b,3] s) => (float[5,1,b,3] y)
               <int64[1] o = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] z = {{0}}>
               {{ {prologue}  y = LSTM<hidden_size = 3>(x, w, r, , , {states}) }}"""


SHAPE = "sh = Shape(x)  b1 = Slice(sh, o, two)  c = Concat<axis = 0>(o, b1, three)"
ZEROS = f"{SHAPE}  h = ConstantOfShape<value = float[1] {{0}}>(c)"
EXPANDED = f"{SHAPE}  e = Constant<value = float {{0}}>()  h = Expand(e, c)"
SLICED = f"{SHAPE}  d = Concat<axis = 0>(two, b1, three)  f = ConstantOfShape(d)  h = Slice(f, z, o, z)"
ONES = f"{SHAPE}  h = ConstantOfShape<value = float[1] {{1}}>(c)"


@pytest.mark.parametrize(
    ("states", "prologue", "left"),
    [
        ("h, h", ZEROS, 3),
        ("h, h", EXPANDED, 3),
        ("h, h", SLICED, 3),
        ("s, h", ZEROS, 6),
        ("h, s", ZEROS, 7),
        ("h, h", ONES, 7),
        ("s, s", "n = Relu(x)", 7),
    ],
)
def test_states_of_zero_go(rewriter: Any, states: str, prologue: str, left: int) -> None:
    model = rewriter.typed(lstm(states, prologue))
    rewriter.run(model, "omit-zero-states,eliminate-dead-code,remove-unused-initializers")
    node = next(node for node in model.graph if node.op_type == "LSTM")
    assert len(node.inputs) == left
    rewriter.same_outputs(rewriter.typed(lstm(states, prologue)), model)


def parts(split: str, body: str, x: str = "b,7") -> str:
    return f"""g (float[{x}] x) => (float[p,q] y) <int64 i0 = {{0}}, int64 i1 = {{1}}, int64 last = {{-1}}, int64 three = {{3}},
               int64[2] sizes = {{2, 5}}> {{ s = SplitToSequence<axis = 1>(x, {split})  {body} }}"""


JOINED = "a = SequenceAt(s, i0)  c = SequenceAt(s, last)  y = Concat<axis = 1>(c, a)"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(parts("three", JOINED), ["Split", "Concat"], id="parts of one size, the last smaller"),
        pytest.param(parts("sizes", JOINED), ["Split", "Concat"], id="parts of given sizes"),
        pytest.param(parts("sizes", "y = SequenceAt(s, i1)"), ["Split"], id="a graph output"),
        pytest.param(
            parts("three", JOINED, "b,n"),
            ["SplitToSequence", "SequenceAt", "SequenceAt", "Concat"],
            id="an extent that is not known",
        ),
        pytest.param(
            parts(
                "sizes", f"n = SequenceLength(s)  k = Cast<to = 1>(n)  {JOINED.replace('y =', 'j =')}  y = Add(j, k)"
            ),
            ["SplitToSequence", "SequenceLength", "Cast", "SequenceAt", "SequenceAt", "Concat", "Add"],
            id="something else reads the sequence",
        ),
    ],
)
def test_sequences_of_parts(rewriter: Any, before: str, expected: list[str]) -> None:
    model = rewriter.typed(before)
    rewriter.run(model, "split-tensors,remove-unused-initializers")
    assert [node.op_type for node in model.graph] == expected
    for batch in (0, 3):
        feeds = {"x": np.random.default_rng(0).standard_normal((batch, 7)).astype(np.float32)}
        np.testing.assert_array_equal(
            rewriter.outputs(model, feeds)["y"], rewriter.outputs(rewriter.typed(before), feeds)["y"]
        )
