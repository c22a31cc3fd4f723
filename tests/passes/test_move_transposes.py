"""move-transposes: Transposes meet and cancel, or move less; never back and forth."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt_passes.lossless.layout.minimum_cut import Net, minimum_cut

MOVE = "move-transposes"
CLEAN = "fold-constants,merge-consecutive,eliminate-no-ops"
W = "float[4,4,1,1] w = {1, 0, 0, 2, 0, 3, 0, 0, -1, 0, 1, 0, 0, 1, 0, 1}"
TO_LAST, TO_FIRST = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"


def between(nodes: str, constants: str = "") -> str:
    """Two convolutions, and between them `nodes` that compute b from a with the channels last."""
    more = f", {constants}" if constants else ""
    return f"""g (float[1,4,5,6] x) => (float[1,4,A,B] y) <{W}{more}>
               {{ c = Conv(x, w)  a = {TO_LAST}(c)  {nodes}  d = {TO_FIRST}(b)  y = Conv(d, w) }}"""


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def moved(rewriter: Any, text: str) -> list[str]:
    """The operators that are left of `text`, which must compute the same."""
    before, outcome = rewriter.typed(text), rewriter.run(rewriter.typed(text), MOVE)
    rewriter.same_outputs(before, outcome.model)
    rewriter.run(outcome.model, CLEAN)
    rewriter.same_outputs(before, outcome.model)
    return operators(outcome.model)


CANCEL = [
    ("b = Relu(a)", "", "Relu"),
    ("e = Sigmoid(a)  b = Mul(e, a)", "", "Sigmoid Mul"),
    ("b = Add(a, k)", "float[4] k = {1, 2, 3, 4}", "Add"),
    ("b = Mul(k, a)", "float[1,1,1,4] k = {1, 2, 3, 4}", "Mul"),
    ("b = Add(a, k)", "float[6,1] k = {1, 2, 3, 4, 5, 6}", "Add"),
    ("b = Clip(a, l, h)", "float l = {0}, float h = {6}", "Clip"),
    ("b = PRelu(a, k)", "float[4] k = {1, 2, 3, 4}", "PRelu"),
    ("e = Less(a, k)  b = Where(e, a, k)", "float k = {1}", "Less Where"),
    ("e = Cast<to = 11>(a)  f = Exp(e)  b = Cast<to = 1>(f)", "", "Cast Exp Cast"),
    ("e, f = Split<axis = 3>(a)  g = Relu(e)  b = Concat<axis = -1>(g, f)", "", "Split Relu Concat"),
    ("e, f = Split<axis = 3>(a)  b = Concat<axis = 3>(f, e)", "", "Split Concat"),
    ("b = Slice(a, s, e, s)", "int64[1] s = {1}, int64[1] e = {3}", "Slice"),
    ("b = Slice(a, s, e)", "int64[2] s = {0, 1}, int64[2] e = {9, 3}", "Slice"),
    ("b = Pad(a, p)", "int64[8] p = {0, 1, 2, 0, 0, 3, 0, 0}", "Pad"),
    ("b = Tile(a, p)", "int64[4] p = {1, 2, 1, 1}", "Tile"),
    ("e = ReduceMean<axes = [1, 2]>(a)  b = Mul(a, e)", "", "ReduceMean Mul"),
    ("e = ReduceSum(a, k)  b = Mul(a, e)", "int64[1] k = {-1}", "ReduceSum Mul"),
    ("b = CumSum(a, k)", "int64 k = {2}", "CumSum"),
    ("b = Gather<axis = 3>(a, k)", "int64[4] k = {3, 1, 2, 0}", "Gather"),
    ("b = Softmax<axis = 1>(a)", "", "Softmax"),
    ("e = Identity(a)  b = Elu(e)", "", "Identity Elu"),
    (
        "e = QuantizeLinear(a, s, z)  b = DequantizeLinear(e, s, z)",
        "float s = {0.1}, int8 z = {0}",
        "QuantizeLinear DequantizeLinear",
    ),
    (
        "e = QuantizeLinear<axis = 3>(a, s, z)  b = DequantizeLinear<axis = -1>(e, s, z)",
        "float[4] s = {0.1, 0.2, 0.3, 0.4}, int8[4] z = {0, 0, 0, 1}",
        "QuantizeLinear DequantizeLinear",
    ),
]


@pytest.mark.parametrize(("nodes", "constants", "left"), CANCEL)
def test_two_that_cancel(rewriter: Any, nodes: str, constants: str, left: str) -> None:
    assert moved(rewriter, between(nodes, constants)) == ["Conv", *left.split(), "Conv"]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param("e = Relu(a)  f = Reshape(e, s)  b = Reshape(f, t)", id="reshape"),
        pytest.param("b = Softmax(a)", id="softmax along the last axis"),
        pytest.param("b = acme.Do(a)", id="unknown operator"),
        pytest.param("e = MatMul(a, m)  b = Relu(e)", id="matmul"),
    ],
)
def test_through_others_none_moves(rewriter: Any, nodes: str) -> None:
    constants = (
        "int64[1] s = {-1}, int64[4] t = {1, 5, 6, 4}, float[4,4] m = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}"
    )
    text = between(nodes, constants)
    assert not rewriter.run(rewriter.typed(text), MOVE).modified


def test_a_residual_network_with_the_channels_last(rewriter: Any) -> None:
    block = "  ".join(
        f"p{i} = {TO_FIRST}(r{i})  q{i} = Conv(p{i}, w)  o{i} = {TO_LAST}(q{i})  s{i} = Add(o{i}, r{i})  "
        f"r{i + 1} = Relu(s{i})"
        for i in range(4)
    )
    text = f"""g (float[N,5,6,4] x) => (float[N,4] y) <{W}> {{ f = {TO_FIRST}(x)  c = Conv(f, w)  r0 = {TO_LAST}(c)
               {block}  m = ReduceMean<axes = [1, 2], keepdims = 0>(r4)  y = Sigmoid(m) }}"""
    assert moved(rewriter, text).count("Transpose") == 1


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        pytest.param(
            """g (float[2,64,32] x) => (float[32,1,2] y) <int64[1] s = {0}, int64[1] e = {1}, int64[1] d = {1}>
               { a = Transpose(x)  b = Slice(a, s, e, d)  y = Relu(b) }""",
            [32, 1, 2],
            id="behind a slice",
        ),
        pytest.param(
            "g (float[2,64,32] x) => (float[1,64,2] y) { a = Transpose(x)  b = ReduceMax<axes = [0]>(a)  y = Relu(b) }",
            [1, 64, 2],
            id="behind a reduction",
        ),
    ],
)
def test_it_moves_less(rewriter: Any, text: str, shape: list[int]) -> None:
    before, outcome = rewriter.typed(text), rewriter.run(rewriter.typed(text), MOVE)
    rewriter.same_outputs(before, outcome.model)
    (transpose,) = (node for node in outcome.model.graph if node.op_type == "Transpose")
    assert transpose.outputs[0].shape == shape


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param(
            """g (float[2,3,4] x) => (float[2,3,4] y, float[4,3,2] b)
               { a = Transpose(x)  b = Relu(a)  y = Transpose(b) }""",
            ["Relu", "Transpose"],
            id="a graph output is restored",
        ),
        pytest.param(
            """g (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] z)
               { a = Transpose(x)  b = Relu(a)  y = Transpose(b)  z = Transpose(b) }""",
            ["Relu", "Identity"],
            id="two graph outputs stay two",
        ),
        pytest.param(
            """g (float[2,3,4] x) => (float[2,3,4] y, float[4,3,2] a)
               { a = Transpose(x)  b = Relu(a)  y = Transpose(b) }""",
            ["Transpose", "Relu"],
            id="what is given is a graph output",
        ),
        pytest.param(
            """g (float[2,3,4] x, bool c) => (float[2,3,4] y) { a = Transpose(x)  b = Relu(a)  d = If (c) <
                 then_branch = t () => (float[4,3,2] ty) { ty = Exp(b) },
                 else_branch = e () => (float[4,3,2] ey) { ey = Neg(b) }>  f = Add(b, d)  y = Transpose(f) }""",
            None,
            id="read in bodies",
        ),
        pytest.param(
            """g (float[N,4,3,3] x) => (float[4,N,3,6] y) { a = Transpose<perm = [1, 0, 3, 2]>(x)  b = Relu(a)
               c = Transpose<perm = [1, 0, 3, 2]>(b)  y = Concat<axis = 3>(a, b) }""",
            ["Transpose", "Relu", "Concat"],
            id="to the output and back again to where it is smaller",
        ),
        pytest.param(
            """g (float[2,1,3] x, float[3,4,2] z) => (float[2,4,3] y) <int64[3] k = {1, 4, 1}>
               { a = Transpose(x)  b = Tile(a, k)  c = Add(b, z)  y = Transpose(c) }""",
            ["Transpose", "Tile", "Add"],
            id="one operand for another and the sum",
        ),
        pytest.param(
            """g (float[N,M,4] x) => (float[N,M,4] y) { a = Transpose(x)  b = Relu(a)  y = Transpose(b) }""",
            ["Relu"],
            id="symbolic extents",
        ),
        pytest.param(
            """g (float[3,3] x) => (float[3,3] y) { a = Transpose(x)  b = Add(a, x)  y = Relu(b) }""",
            None,
            id="its own inverse, on both sides of a sum",
        ),
        pytest.param(
            """g (float[3,3] x) => (float[3,3] y)
               { a = Transpose(x)  b = Relu(a)  c = Transpose(b)  d = Exp(c)  e = Transpose(d)  f = Neg(e)
                 y = Transpose(f) }""",
            ["Relu", "Exp", "Neg"],
            id="its own inverse, in a row",
        ),
    ],
)
def test_where_values_are_read(rewriter: Any, text: str, left: list[str] | None) -> None:
    before, outcome = rewriter.typed(text), rewriter.run(rewriter.typed(text), MOVE)
    rewriter.same_outputs(before, outcome.model)
    assert outcome.modified == (left is not None)
    if left is not None:
        assert operators(outcome.model) == left


def test_in_bodies(rewriter: Any) -> None:
    text = """g (float[2,3,4] x, bool c) => (float[2,3,4] y) { y = If (c) <
                then_branch = t () => (float[2,3,4] ty) { a = Transpose(x)  b = Relu(a)  ty = Transpose(b) },
                else_branch = e () => (float[2,3,4] ey) { ey = Neg(x) }> }"""
    after = """g (float[2,3,4] x, bool c) => (float[2,3,4] y) { y = If (c) <
                then_branch = t () => (float[2,3,4] ty) { ty = Relu(x) },
                else_branch = e () => (float[2,3,4] ey) { ey = Neg(x) }> }"""
    rewriter.rewrites(text, MOVE, after)


def test_excluded_nodes_stay(rewriter: Any) -> None:
    text = "g (float[2,3,4] x) => (float[2,3,4] y) {{ {}a = Transpose(x)  {}b = Relu(a)  {}y = Transpose(b) }}"
    for position in range(3):
        marks = ["[keep] " if i == position else "" for i in range(3)]
        outcome = rewriter.run(rewriter.typed(text.format(*marks)), MOVE, exclude="keep")
        kept = next(node for node in outcome.model.graph if node.name == "keep")
        assert kept.op_type == ("Transpose", "Relu", "Transpose")[position]
        assert not outcome.modified


def test_minimum_cut_is_the_minimum() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 7))
        nets = [
            Net(
                int(rng.integers(1, 9)),
                sorted(set(rng.integers(0, count, rng.integers(0, 4)).tolist())),
                bool(rng.integers(0, 3) == 0),
                bool(rng.integers(0, 3) == 0),
            )
            for _ in range(rng.integers(1, 9))
        ]

        def cost(left: set[int], nets: list[Net] = nets) -> int:
            return sum(net.cost for net in nets if len(_sides(net, left)) == 2)

        found, left = minimum_cut(nets, count)
        subsets = [set(s) for size in range(count + 1) for s in itertools.combinations(range(count), size)]
        best = min(map(cost, subsets))
        assert found == cost(left) == best
        assert len(left) == min(len(s) for s in subsets if cost(s) == best)


def _sides(net: Net, left: set[int]) -> set[bool]:
    sides = {node in left for node in net.nodes}
    if net.left:
        sides.add(True)
    if net.right:
        sides.add(False)
    return sides
