from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import Rewriter
from quantized_models import checked, counts, outputs, sqnr, weights

from graphopt.analysis import opset, shapes
from graphopt.ir import emit, walk
from graphopt.lift import lift
from graphopt.pipeline.base import PassContext
from graphopt.runtime.session import Session
from graphopt_passes.quantization import half

MODELS = Path(__file__).parents[2] / "models"
NETWORKS = [
    "residual",
    "residual.dynamo",
    "depthwise",
    "shuffle",
    "shuffle.dynamo",
    "transformer",
    "transformer.dynamo",
    "mlp",
]
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((6, 4)).astype(np.float32)


def apply(
    model: ir.Model,
    dtype: Literal["float16", "bfloat16"] = "float16",
    exclude: str | None = None,
    *,
    keep_io: bool = True,
    ranges: Mapping[str, float] | None = None,
) -> str:
    context = PassContext(exclude=re.compile(exclude) if exclude else None)
    return checked(model, half.apply(model, context, dtype, keep_io=keep_io, ranges=ranges))


def types(model: ir.Model) -> dict[str, str]:
    """Name and element type of what every node makes, in bodies too."""
    return {v.name or "": v.dtype.name for node in walk.all_nodes(model) for v in node.outputs if v.dtype is not None}


def close(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    for optimize in (False, True):
        pairs = zip(outputs(before, feeds, optimize=optimize), outputs(after, feeds, optimize=optimize), strict=True)
        for expected, actual in pairs:
            assert np.abs(expected - actual.astype(expected.dtype)).max() <= 1e-2 * np.abs(expected).max()


def test_golden(rewriter: Rewriter) -> None:
    text = (
        "agraph (float[2,6] x) => (float[2,4] y) <float[4] b = {1, 2, 3, 4}> "
        "{ p = MatMul(x, w) s = Add(p, b) y = Relu(s) }"
    )
    model, before = rewriter.typed(text, {"w": WEIGHT}), rewriter.typed(text, {"w": WEIGHT})
    apply(model)
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Add", "Relu", "Cast"]
    assert types(model) == {
        "x_float16": "FLOAT16", "p": "FLOAT16", "s": "FLOAT16", "y_float16": "FLOAT16", "y": "FLOAT",
    }  # fmt: skip
    assert {tensor.dtype for tensor in weights(model).values()} == {ir.DataType.FLOAT16}
    close(before, model, {"x": RANDOM.standard_normal((2, 6)).astype(np.float32)})
    printed = rewriter.printed(model)
    apply(model)
    assert rewriter.printed(model) == printed


def test_inputs_and_outputs_too(rewriter: Rewriter) -> None:
    model = rewriter.typed(
        "agraph (float[2,6] x, int64[1] i) => (float[2,4] y, int64[1] j) { y = MatMul(x, w) j = Neg(i) }", {"w": WEIGHT}
    )
    apply(model, keep_io=False)
    assert counts(model) == {"MatMul": 1, "Neg": 1}
    assert [str(v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        "FLOAT16",
        "INT64",
        "FLOAT16",
        "INT64",
    ]


def test_the_written_file_declares_the_new_types() -> None:
    model = lift(MODELS / "mlp.onnx").model
    apply(model, keep_io=False)
    proto = onnx.load_from_string(emit.to_bytes(model))
    assert [v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)] == [
        onnx.TensorProto.FLOAT16
    ] * 2
    Session(model)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        # schemas
        (
            "agraph (float[1,3,4] b, float[1,2,3] s) => (int64[n,3] y) "
            "{ c = Neg(b) d = Transpose<perm=[0,2,1]>(c) y = NonMaxSuppression(d, s) }",
            {"y"},
        ),
        (
            "agraph (float[1,1,4,4] x) => (float[1,1,8,8] z) <float[4] s = {1, 1, 2, 2}> "
            "{ n = Neg(x) y = Resize(n, , s) z = Relu(y) }",
            set(),
        ),
        # ranges
        (
            "agraph (float[4] x) => (float[4] z) <float c = {1e6}> "
            "{ n = Neg(x) y = Mul(n, c) t = Abs(y) u = Tanh(t) z = Neg(u) }",
            {"y", "t", "u"},
        ),
        (
            "agraph (float[4] x) => (float[4] z) <float c = {-3.4028234e38}> "
            "{ n = Neg(x) y = Add(n, c) z = Softmax(y) }",
            set(),
        ),
        (
            "agraph (float[4] x) => (float[4] z) <float two = {2}, float e = {1e-12}> "
            "{ n = Neg(x) p = Pow(n, two) a = Add(p, e) r = Sqrt(a) d = Div(n, r) z = Neg(d) }",
            {"p", "a", "r", "d"},
        ),
        (
            "agraph (float[4] x) => (float[4] z) "
            "{ n = Neg(x) m = Neg(x) y = Mul(n, n) w = Mul(n, m) s = Sqrt(y) t = Add(w, s) z = Softmax(t) }",
            {"y", "s", "t"},
        ),
        # whole numbers
        (
            "agraph (int64[4] x) => (float[4] z) <float f = {0.01}> "
            "{ c = Cast<to=1>(x) p = Mul(c, f) s = Cos(p) z = Neg(s) }",
            {"c", "p", "s"},
        ),
        ("agraph (uint8[4] x) => (float[4] z) { c = Cast<to=1>(x) z = Neg(c) }", set()),
        # long sums
        ("agraph (float[4,4000] x) => (float[4,4000] z) { n = Neg(x) s = Softmax(n) z = Neg(s) }", {"s"}),
        (
            "agraph (float[4,k] x) => (float[4] z) { n = Neg(x) s = ReduceMean<axes=[1], keepdims=0>(n) z = Neg(s) }",
            {"s"},
        ),
        ("agraph (float[4,64] x) => (float[4,64] z) { n = Neg(x) s = Softmax(n) z = Neg(s) }", set()),
        # other domains, functions, excluded nodes
        ("agraph (float[4] x) => (float[4] z) { n = Neg(x) y = acme.foo(n) z = Neg(y) }", {"y"}),
        ("agraph (float[4] x) => (float[4] z) { n = Neg(x) [keep] y = Neg(n) z = Neg(y) }", {"y"}),
        # quantized values
        (
            "agraph (float[4] x) => (float[4] z) <float s = {0.5}, uint8 o = {3}> "
            "{ n = Neg(x) q = QuantizeLinear(n, s, o) d = DequantizeLinear(q, s, o) r = Relu(d) z = Neg(r) }",
            {"n", "q", "d", "r"},
        ),
        # light nodes between such nodes
        (
            "agraph (float[4,4000] x) => (float[4,4000] z) "
            "{ n = Neg(x) s = Softmax(n) t = Transpose<perm=[0,1]>(s) u = Softmax(t) z = Neg(u) }",
            {"s", "t", "u"},
        ),
    ],
)
def test_what_stays_float(rewriter: Rewriter, text: str, kept: set[str]) -> None:
    model, before = rewriter.model(text), rewriter.model(text)
    for each in (model, before):
        shapes.infer(each)
        for node in each.graph:
            if node.domain == "acme":
                node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                shapes.infer(each)
    names = {v.name for node in model.graph for v in node.outputs}
    apply(model, exclude="keep", keep_io=False)
    assert {name for name, dtype in types(model).items() if name in names and dtype != "FLOAT16"} == kept
    producers = {v: node for node in model.graph for v in node.outputs}
    for node in model.graph:  # no Cast undoes another
        if node.op_type == "Cast" and node.inputs[0] in producers:
            assert producers[node.inputs[0]].op_type != "Cast" or node.inputs[0].name in names


def test_measured_ranges_decide(rewriter: Rewriter) -> None:
    text = "agraph (float[4] x) => (float[4] z) <float two = {2}> { n = Neg(x) p = Pow(n, two) r = Sqrt(p) z = Neg(r) }"
    model = rewriter.typed(text)
    apply(model, keep_io=False, ranges={"n": 3.0, "p": 9.0, "r": 3.0})
    assert types(model)["p"] == "FLOAT16"
    model = rewriter.typed(text)
    apply(model, keep_io=False, ranges={"n": 1e5, "p": 1e10, "r": 1e5})
    assert {name for name, dtype in types(model).items() if dtype == "FLOAT16"} == {"z"}  # the Cast at the end


def test_masks_and_open_bounds_become_the_types_own(rewriter: Rewriter) -> None:
    text = (
        "agraph (float[4] x, bool[4] c) => (float[4] y) <float low = {-3.4028234e38}, float high = {3e38}> "
        "{ a = Min(x, high) y = Where(c, a, low) }"
    )
    model = rewriter.typed(text)
    apply(model, keep_io=False)
    values = {name: float(tensor.numpy()) for name, tensor in weights(model).items()}
    assert values == {"low_float16": -65504, "high_float16": 65504}


def test_small_weights_are_counted(rewriter: Rewriter) -> None:
    weight = np.array([1.0, 1e-6, 1e-9, 0.0, -3e-5, 2.0], np.float32)
    model = rewriter.typed("agraph (float[6] x) => (float[6] y) { y = Add(x, w) }", {"w": weight})
    assert "3 of 6 weights: lie below 6.1e-05" in apply(model, keep_io=False)


def test_weights_that_users_may_replace_are_left_alone(rewriter: Rewriter) -> None:
    model = rewriter.typed("agraph (float[2,6] x, float[6,4] w) => (float[2,4] y) { y = MatMul(x, w) }", {"w": WEIGHT})
    assert "graph inputs" in apply(model)
    assert counts(model) == {"MatMul": 1}


def test_casts_that_the_model_has_become_one_or_none(rewriter: Rewriter) -> None:
    text = (
        "agraph (float[4] x) => (float[4] y, float16[4] h) "
        "{ n = Neg(x) c = Cast<to=10>(n) h = Neg(c) d = Cast<to=1>(h) y = Neg(d) }"
    )
    model = rewriter.typed(text)
    apply(model, keep_io=False)
    assert [node.op_type for node in model.graph] == ["Neg", "Neg", "Neg"]


def test_attributes_that_say_a_type(rewriter: Rewriter) -> None:
    text = (
        "agraph (float[4] x) => (float[4] y) <int64[1] s = {4}> "
        "{ f = ConstantOfShape<value = float[1] {2.5}>(s) c = CastLike(s, x) g = Add(f, x) y = Add(g, c) }"
    )
    model, before = rewriter.typed(text), rewriter.typed(text)
    apply(model, keep_io=False)
    assert types(model)["f"] == types(model)["c"] == "FLOAT16"
    found = outputs(model, {"x": np.arange(4, dtype=np.float16)})[0]
    np.testing.assert_array_equal(found, outputs(before, {"x": np.arange(4, dtype=np.float32)})[0])


def test_bodies(rewriter: Rewriter) -> None:
    text = """agraph (float[2,6] x, bool c, float[2,4] t) => (float[2,4] y, float[2,4] u, float[2,4] last)
        <int64 n = {3}, bool on = {1}> {
        p = MatMul(x, w)
        y, u = If(c) <
            then_branch = a () => (float[2,4] a1, float[2,4] a2) { a1 = Relu(p) a2 = MatMul(x, w) },
            else_branch = b () => (float[2,4] b1, float[2,4] b2) { b1 = Neg(p) [keep] b2 = Neg(p) }>
        last = Loop(n, on, t) <
            body = l (int64 i, bool go, float[2,4] s) => (bool on1, float[2,4] s1) { on1 = Identity(go) s1 = Add(s, p) }>
    }"""
    model, before = rewriter.typed(text, {"w": WEIGHT}), rewriter.typed(text, {"w": WEIGHT})
    apply(model, exclude="keep")
    found = types(model)
    assert found["p"] == found["a1"] == found["b1"] == "FLOAT16"
    assert found["y_float16"] == "FLOAT16"  # both branches make it so
    assert found["u"] == found["b2"] == found["a2"] == "FLOAT"
    assert found["s1"] == "FLOAT"
    assert [name for name in model.graph.initializers if name.startswith("w")] == ["w_float16"]
    feeds = {"x": RANDOM.standard_normal((2, 6)).astype(np.float32), "t": np.ones((2, 4), np.float32)}
    for condition in (True, False):
        close(before, model, {**feeds, "c": np.array(condition)})


def test_functions_stay_float(rewriter: Rewriter) -> None:
    text = """agraph (float[2,6] x) => (float[2,4] y) { n = MatMul(x, w) f = local.f(n) y = Add(f, n) }
        <domain: "local", opset_import: ["": 17]>
        f (a) => (b) { b = Relu(a) }"""
    model, before = rewriter.typed(text, {"w": WEIGHT}), rewriter.typed(text, {"w": WEIGHT})
    assert "function 'f': stays float32" in apply(model)
    assert types(model)["n"] == "FLOAT16"
    assert types(model)["f"] == "FLOAT"
    close(before, model, {"x": RANDOM.standard_normal((2, 6)).astype(np.float32)})


def test_old_opsets_are_left_alone(rewriter: Rewriter) -> None:
    model = rewriter.typed('<ir_version: 8, opset_import: ["": 12]> agraph (float[4] x) => (float[4] y) { y = Neg(x) }')
    assert "needs opset 13" in apply(model, "bfloat16")
    assert counts(model) == {"Neg": 1}


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks(name: str, keep_io: bool) -> None:
    source = MODELS / f"{name}.onnx"
    data = np.load(MODELS / "digits.eval.npz")["input"][:100]
    model = lift(source).model
    expected = outputs(model, {"input": data})[0]
    apply(model, keep_io=keep_io)
    found = outputs(model, {"input": data if keep_io else data.astype(np.float16)})[0]
    assert np.abs(expected - found).max() <= 1e-2 * np.abs(expected).max()
    assert sqnr(expected, found) > 45
    assert (expected.argmax(1) == found.argmax(1)).mean() >= 0.99
    before, after = (sum(tensor.nbytes for tensor in weights(each).values()) for each in (lift(source).model, model))
    assert after < 0.55 * before
    assert counts(model)["Cast"] <= counts(lift(source).model)["Cast"] + 2 * keep_io


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_legal(name: str) -> None:
    model = lift(MODELS / f"{name}.onnx").model
    opset.upgrade(model, half.WANTED["bfloat16"])
    apply(model, "bfloat16")
    floats = [tensor for tensor in weights(model).values() if tensor.dtype.is_floating_point()]
    assert all(tensor.dtype == ir.DataType.BFLOAT16 for tensor in floats if tensor.size > 100)


def test_bfloat16_numbers(rewriter: Rewriter) -> None:
    from onnx.reference import ReferenceEvaluator

    model = rewriter.typed("agraph (float[2,6] x) => (float[2,4] y) { y = MatMul(x, w) }", {"w": WEIGHT})
    apply(model, "bfloat16")
    data = RANDOM.standard_normal((2, 6)).astype(np.float32)
    (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": data})
    found = np.asarray(result, np.float32)
    assert np.abs(found - data @ WEIGHT).max() < 4e-2 * np.abs(data @ WEIGHT).max()
