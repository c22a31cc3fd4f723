"""`factorize` on two products with an elementwise function between them: hidden units that others make up for go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.analysis.extents import Extents
from graphopt.lift import lift
from graphopt.runtime.session import Session
from graphopt_passes.factorization.feed_forward import feed_forward_pairs

FEED_FORWARD = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4,8] x) => (float[N,4,8] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}>
{
    h0 = MatMul(x, w1)
    h = Add(h0, b1)
    d = Div(h, root)
    e = Erf(d)
    a = Add(e, one)
    m = Mul(h, a)
    g = Mul(m, half)
    o = MatMul(g, w2)
    y = Add(o, b2)
}
"""
UNITS = 12


def network(text: str = FEED_FORWARD) -> onnx.ModelProto:
    """Random weights; the last four hidden units are those before them once more."""
    rng = np.random.default_rng(0)
    first, bias = rng.normal(size=(8, UNITS)) / 3, rng.normal(size=UNITS)
    first[:, 8:], bias[8:] = first[:, 4:8], bias[4:8]
    arrays = {"w1": first, "b1": bias, "w2": rng.normal(size=(UNITS, 8)) / 3, "b2": rng.normal(size=8)}
    model = parser.parse_model(text)
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


def samples(seed: int = 0, count: int = 40) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 4, 8)).astype(np.float32)}


def pairs(text: str) -> list[tuple[str, str, int]]:
    model = lift(onnx.shape_inference.infer_shapes(network(text))).model
    return [(one.first.key, one.second.key, one.size) for one in feed_forward_pairs(model.graph, Extents(model))]


def test_a_function_of_single_elements_lies_between() -> None:
    assert pairs(FEED_FORWARD) == [("h", "y", UNITS)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("e = Erf(d)", "e = Softmax(d)"),
        ("a = Add(e, one)", "a = Add(e, b1)"),
        ("y = Add(o, b2)", "o2 = Add(o, b2)\n r = ReduceMean<axes=[2],keepdims=1>(g)\n y = Add(o2, r)"),
        ("y = Add(o, b2)", "o2 = Add(o, b2)\n s = MatMul(h, w2)\n y = Add(o2, s)"),
        ("=> (float[N,4,8] y)", "=> (float[N,4,8] y, float[N,4,12] g)"),
        ("g = Mul(m, half)", "t = Transpose<perm=[0,2,1]>(m)\n g = Transpose<perm=[0,2,1]>(t)"),
    ],
)
def test_hidden_units_that_something_else_reads_or_mixes_stay(before: str, after: str) -> None:
    assert before in FEED_FORWARD
    assert pairs(FEED_FORWARD.replace(before, after)) == []


@pytest.mark.parametrize("data", [samples(), None])
def test_units_that_others_make_up_for_go(data: dict[str, np.ndarray] | None) -> None:
    energy = 0.999 if data is not None else 0.5
    pipeline = f"factorize{{energy={energy},schemes=hidden,prefer=macs,align=1}}"
    result = graphopt.optimize(network(), pipeline=pipeline, data=data, verify="full")
    weights = [list(one.dims) for one in result.model.graph.initializer if len(one.dims) == 2]
    assert all(8 in one and min(one) <= 8 for one in weights)
    if data is not None:
        exact = Session(network()).run(samples(1))["y"]
        np.testing.assert_allclose(Session(result.model).run(samples(1))["y"], exact, atol=0.05)
        remarks = [str(one) for entry in result.report.passes for one in entry.remarks]
        assert any("hidden 8" in one for one in remarks)


@pytest.mark.parametrize(("dims", "pairs"), [("1", 1), ("1,1,1,1", 0)])
def test_a_number_of_higher_rank_between_two_products_rules_them_out(dims: str, pairs: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[2,5,4] x) => (float y) <float[4,8] w = {{{", ".join(["1"] * 32)}}}, float[8,4] v = {{{", ".join(["1"] * 32)}}},
        float[{dims}] c = {{2}}> {{ a = MatMul(x, w) b = Mul(a, c) y = MatMul(b, v) }}"""
    model = lift(onnx.shape_inference.infer_shapes(parser.parse_model(text))).model
    assert len(feed_forward_pairs(model.graph, Extents(model))) == pairs
