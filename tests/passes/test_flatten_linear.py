"""flatten-linear: parallel linear layers become Gemm where that saves nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PIPELINE = "flatten-linear,remove-unused-initializers"
TENSORS = {
    **{f"w{v}": np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32) for v in "qkv"},
    **{f"b{v}": np.random.default_rng(1).standard_normal(6).astype(np.float32) for v in "qkv"},
}


def layer(v: str) -> str:
    return f"{v}m = MatMul(n, w{v})  {v}a = Add({v}m, b{v})  {v} = Reshape({v}a, heads)  "


def text(body: str, x: str = "b,5,6", heads: str = "0, 5, 2, 3") -> str:
    return f"g (float[{x}] x) => (float[b,5,2,3] y) <int64[4] heads = {{{heads}}}> {{ n = Relu(x)  {body} }}"


THREE = f"{layer('q')}{layer('k')}{layer('v')} s = Add(q, k)  y = Add(s, v)"


@pytest.mark.parametrize(
    ("before", "gemms"),
    [
        pytest.param(text(THREE), 3, id="three layers, batch open"),
        pytest.param(text(THREE, "4,5,6", "4, 5, 2, 3"), 3, id="all extents fixed"),
        pytest.param(text(THREE).replace("Add(qm, bq)", "Add(bq, qm)"), 3, id="the bias first"),
        pytest.param(text(f"{layer('q')}{layer('k')} y = Add(q, k)"), 2, id="two layers"),
        pytest.param(text(f"{layer('q')} y = Relu(q)"), 0, id="one layer saves nothing"),
        pytest.param(text(THREE, "b,s,6", "0, 0, 2, 3"), 0, id="two open extents"),
        pytest.param(text(THREE.replace("q = Reshape", "z = Relu(qa)  q = Reshape")), 2, id="read by two"),
        pytest.param(text(THREE.replace("qa = Add(qm, bq)", "qa = Sub(qm, bq)")), 2, id="another bias"),
        pytest.param(
            text(THREE.replace("MatMul(n, wq)", "MatMul(x, wq)").replace("MatMul(n, wk)", "MatMul(x, wk)")),
            2,
            id="of an input",
        ),
    ],
)
def test_rewrites(rewriter: Any, before: str, gemms: int) -> None:
    model = rewriter.typed(before, TENSORS)
    nodes = len(model.graph)
    rewriter.run(model, PIPELINE)
    assert [node.op_type for node in model.graph].count("Gemm") == gemms
    assert len(model.graph) == nodes - (gemms - 1 if gemms else 0)
    rewriter.same_outputs(rewriter.typed(before, TENSORS), model)
    if gemms:
        empty = {"x": np.zeros([dim if isinstance(dim, int) else 0 for dim in model.graph.inputs[0].shape], np.float32)}
        assert rewriter.outputs(model, empty)["y"].size == (0 if 0 in empty["x"].shape else 120)


def test_a_single_layer_between_reshapes(rewriter: Any) -> None:
    body = f"r = Reshape(n, rows)  {layer('q').replace('MatMul(n', 'MatMul(r')}  y = Relu(q)"
    before = text(body, "b,10,3").replace("> {", ", int64[3] rows = {-1, 5, 6}> {", 1)
    model = rewriter.typed(before, TENSORS)
    rewriter.run(model, PIPELINE)
    assert [node.op_type for node in model.graph] == ["Relu", "Reshape", "Gemm", "Reshape", "Relu"]
    rewriter.same_outputs(rewriter.typed(before, TENSORS), model)
    shared = before.replace("y = Relu(q)", "t = ReduceSum(r)  y = Add(q, t)")
    assert not rewriter.run(rewriter.typed(shared, TENSORS), "flatten-linear").modified


def test_weights_that_are_no_constants_stay(rewriter: Any) -> None:
    before = text(THREE).replace("(float[b,5,6] x)", "(float[b,5,6] x, float[6,6] wq)")
    tensors = {name: array for name, array in TENSORS.items() if name != "wq"}
    model = rewriter.typed(before, tensors)
    rewriter.run(model, PIPELINE)
    assert [node.op_type for node in model.graph].count("Gemm") == 2


def test_in_a_body(rewriter: Any) -> None:
    before = f"""g (float[4,5,6] n, bool c) => (float[4,5,2,3] z) <int64[4] heads = {{4, 5, 2, 3}}> {{ z = If (c) <
                   then_branch = t () => (float[4,5,2,3] y) {{ {THREE} }},
                   else_branch = e () => (float[4,5,2,3] p) {{ p = Reshape(n, heads) }}> }}"""
    model = rewriter.typed(before, TENSORS)
    rewriter.run(model, PIPELINE)
    branch = next(iter(model.graph)).attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Reshape", *["Gemm", "Reshape"] * 3, "Add", "Add"]
    rewriter.same_outputs(rewriter.typed(before, TENSORS), model)


def test_excluded_nodes_stay(rewriter: Any) -> None:
    model = rewriter.typed(text(THREE.replace("qm = MatMul", "[first] qm = MatMul")), TENSORS)
    rewriter.run(model, PIPELINE, exclude="first")
    assert [node.op_type for node in model.graph].count("Gemm") == 2
