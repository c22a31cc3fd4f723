"""`factorize` on attention: heads get fewer dimensions where that can be written, and stay where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.analysis.extents import Extents
from graphopt.ir.surgery import FreshNames
from graphopt.lift import lift
from graphopt.runtime.session import Session
from graphopt_passes.factorization.attention import attention_pairs
from graphopt_passes.factorization.pair_fits import PairFits
from graphopt_passes.factorization.pairs import shrink

MODELS = Path(__file__).parents[2] / "models"
HEADS, SIZE, WIDTH = 2, 6, 12

ATTENTION = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,5,12] x) => (float[N,5,12] y)
<int64[4] split = {0, 0, 2, 6}, int64[4] other = {-1, 5, 2, 6}, int64[3] whole = {0, 0, 12}, float scale = {0.4}>
{
    q0 = MatMul(x, wq)
    q1 = Add(q0, bq)
    q2 = Reshape(q1, split)
    q3 = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(x, wk)
    k2 = Reshape(k0, other)
    k3 = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(x, wv)
    v1 = Add(v0, bv)
    v2 = Reshape(v1, split)
    v3 = Transpose<perm=[0,2,1,3]>(v2)
    s0 = MatMul(q3, k3)
    s1 = Mul(s0, scale)
    p = Softmax<axis=-1>(s1)
    z0 = MatMul(p, v3)
    z1 = Transpose<perm=[0,2,1,3]>(z0)
    z2 = Reshape(z1, whole)
    o = MatMul(z2, wo)
    y = Add(o, bo)
}
"""


def network(text: str = ATTENTION, rank: int | None = None) -> onnx.ModelProto:
    """Random weights; what q, k and v have in a head lies in `rank` dimensions of it."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(text)
    for name in ("wq", "wk", "wv", "wo"):
        array = rng.normal(size=(WIDTH, WIDTH)) / 3
        if rank is not None and name in ("wk", "wv"):
            within = [rng.normal(size=(SIZE, rank)) @ rng.normal(size=(rank, SIZE)) for _ in range(HEADS)]
            array = np.concatenate([array[:, SIZE * h : SIZE * (h + 1)] @ within[h] for h in range(HEADS)], axis=1) / 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for name in ("bq", "bv", "bo"):
        bias = rng.normal(size=WIDTH).astype(np.float32) * (rank is None or name != "bv")
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, name))
    return model


def feeds(count: int = 16, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 5, WIDTH)).astype(np.float32)}


def outputs(model: Any, data: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = Session(model).run(data)["y"]
    return found


def pairs(text: str) -> list[tuple[str, str, str, int, int, bool]]:
    model = lift(onnx.shape_inference.infer_shapes(network(text))).model
    found = attention_pairs(model.graph, Extents(model))
    return [(one.kind, one.first.key, one.second.key, one.count, one.size, one.shifts) for one in found]


def replaced(changes: dict[str, str]) -> str:
    text = ATTENTION
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    return text


def test_queries_and_keys_and_values_and_their_reader_are_pairs() -> None:
    assert pairs(ATTENTION) == [("scores", "q1", "k0", 2, 6, True), ("values", "v1", "y", 2, 6, False)]


BETWEEN_HEADS = {
    "Transpose<perm=[0,2,1,3]>(q2)": "Transpose<perm=[0,1,2,3]>(q2)",
    "Transpose<perm=[0,2,3,1]>(k2)": "Transpose<perm=[0,1,3,2]>(k2)",
    "Transpose<perm=[0,2,1,3]>(v2)": "Transpose<perm=[0,1,2,3]>(v2)",
    "Transpose<perm=[0,2,1,3]>(z0)": "Transpose<perm=[0,1,2,3]>(z0)",
}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"z2 = Reshape(z1, whole)": "z3 = Reshape(z1, whole)\n z2 = Relu(z3)"}, ["scores"]),
        ({"k0 = MatMul(x, wk)": "k4 = MatMul(x, wk)\n k0 = Relu(k4)"}, ["values"]),
        ({"(float[N,5,12] y)": "(float[N,5,12] y, float[N,5,2,6] q2)"}, ["values"]),
        ({"Add(q0, bq)": "Add(q0, x)"}, ["values"]),
    ],
)
def test_what_cannot_be_changed_is_no_pair(changes: dict[str, str], kinds: list[str]) -> None:
    assert [pair[0] for pair in pairs(replaced(changes))] == kinds


def test_heads_that_attend_to_each_other_are_no_pair() -> None:
    """There each meets all others, so that a basis of its own does not serve."""
    text = replaced(BETWEEN_HEADS)
    assert pairs(text) == []


def test_all_dimensions_that_count_are_enough() -> None:
    proto = network(rank=4)
    model = lift(onnx.shape_inference.infer_shapes(proto)).model
    found = attention_pairs(model.graph, Extents(model))
    fits = PairFits(model, found, None)
    names = FreshNames(model)
    for pair in found:
        shrink(pair, fits.bases(pair, 4), names)
    np.testing.assert_allclose(outputs(model, feeds()), outputs(proto, feeds()), atol=1e-4)
    shapes = {value.name: list(value.shape or ()) for node in model.graph for value in node.outputs}
    assert shapes["q1"][-1] == shapes["v0"][-1] == shapes["z2"][-1] == 8
    assert shapes["k3"][-2] == shapes["z0"][-1] == 4


def test_the_pass_takes_what_is_for_free() -> None:
    result = graphopt.optimize(
        network(rank=3), pipeline="factorize{energy=0.999,prefer=macs,align=1}", data=feeds(), verify="full"
    )
    np.testing.assert_allclose(outputs(result.model, feeds(seed=2)), outputs(network(rank=3), feeds(seed=2)), atol=0.02)
    weights = {one.name: list(one.dims) for one in result.model.graph.initializer}
    assert [6, 12] in weights.values() or [12, 6] in weights.values()
    remarks = [str(one) for entry in result.report.passes for one in entry.remarks]
    assert sum("heads 3" in one for one in remarks) == 2


@pytest.mark.parametrize("kind", ["zero weights", "zero inputs", "one sample", "float16"])
def test_bad_input_gives_finite_results(kind: str) -> None:
    model, data = network(), feeds(1 if kind == "one sample" else 16)
    for tensor in model.graph.initializer:
        if kind == "zero weights" and tensor.name in ("wk", "wv"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((WIDTH, WIDTH), np.float32), tensor.name))
        if kind == "float16" and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    if kind == "float16":
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    dtype = np.float16 if kind == "float16" else np.float32
    data = {"x": (data["x"] * (kind != "zero inputs")).astype(dtype)}
    result = graphopt.optimize(model, pipeline="factorize{params=0.7,prefer=macs,align=1}", data=data, verify="full")
    assert result.report.after.params <= 0.7 * result.report.before.params
    found = outputs(result.model, {"x": feeds(seed=3)["x"].astype(dtype)})
    assert found.dtype == dtype
    assert np.isfinite(found).all()


def test_heads_lose_less_than_parts_of_low_rank() -> None:
    data, file = np.load(MODELS / "digits.calib.npz")["input"], MODELS / "transformer.dynamo.onnx"
    exact = Session(file).run({"input": data[100:]})["logits"]
    lost = {}
    for schemes in ("auto", "svd"):
        pipeline = f"factorize{{params=0.7,prefer=macs,align=1,schemes={schemes}}}"
        result = graphopt.optimize(file, pipeline=pipeline, data={"input": data[:100]})
        lost[schemes] = float(np.square(Session(result.model).run({"input": data[100:]})["logits"] - exact).mean())
    assert lost["auto"] < 0.5 * lost["svd"]
