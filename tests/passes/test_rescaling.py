"""quantization.equalize and smooth: the same outputs, smaller predicted noise, and graphs that must stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import meaning, shapes
from graphopt.ir.verify import verify
from graphopt.pipeline.base import PassContext
from graphopt.runtime.requests import ChannelRange, ChannelRangeResult, Results
from graphopt_passes.quantization import equalize, smooth
from graphopt_passes.quantization.rescaling import Rescaled

CONTEXT = PassContext()
RNG = np.random.default_rng(0)
SPREAD = np.exp(np.linspace(-2, 2, 8)).astype(np.float32)
TENSORS = {
    "w1": RNG.standard_normal((8, 3, 1, 1)).astype(np.float32) * SPREAD.reshape(8, 1, 1, 1),
    "b1": RNG.standard_normal(8).astype(np.float32) * SPREAD,
    "d": RNG.standard_normal((8, 1, 3, 3)).astype(np.float32),
    "w2": RNG.standard_normal((4, 8, 3, 3)).astype(np.float32),
    "w3": RNG.standard_normal((4, 8, 1, 1)).astype(np.float32),
    "t2": RNG.standard_normal((8, 4, 2, 2)).astype(np.float32),
    "slope": RNG.random((8, 1, 1)).astype(np.float32),
    "m": RNG.standard_normal((8, 5)).astype(np.float32) / np.sqrt(SPREAD)[:, None],
    "m2": RNG.standard_normal((8, 8)).astype(np.float32) * SPREAD,
    "m16": RNG.standard_normal((16, 5)).astype(np.float32),
    "g": SPREAD,
    "zero": np.zeros((), np.float32),
    "six": np.full((), 6, np.float32),
    "minus": np.full((), -1, np.float32),
}


@pytest.fixture
def build(rewriter: Any) -> Callable[[str], ir.Model]:
    """A model from its body; the tensors that it names are initializers."""

    def build(text: str) -> ir.Model:
        body = text[text.index("{") :]
        tensors = {
            name: array
            for name, array in TENSORS.items()
            if any(f"{before}{name}{after}" in body for before in " (" for after in ",)")
        }
        model: ir.Model = rewriter.typed(text, tensors)
        return model

    return build


def measured(rewriter: Any, model: ir.Model, requests: list[ChannelRange]) -> Results:
    """The answers on random inputs, the same ones each time."""
    probe, rng = model.clone(), np.random.default_rng(7)
    values = {value.name: value for node in probe.graph for value in node.outputs}
    for request in requests:
        if not values[request.value].is_graph_output():
            probe.graph.outputs.append(values[request.value])
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else 3 for dim in value.shape or ()]
        assert value.dtype is not None
        feeds[value.name or ""] = np.asarray(rng.standard_normal(shape)).astype(value.dtype.numpy())
    outputs = rewriter.outputs(probe, feeds)
    results = Results()
    for request in requests:
        rows = np.moveaxis(outputs[request.value], request.axis, 0)
        rows = rows.reshape(len(rows), -1)
        results[request] = ChannelRangeResult(rows.min(axis=1), rows.max(axis=1))
    return results


def rewritten(rewriter: Any, model: ir.Model, module: Any, **options: Any) -> Rescaled:
    """Run `equalize` or `smooth`; the result must be legal."""
    results = measured(rewriter, model, module.requests(model, CONTEXT))
    function = getattr(module, module.__name__.rpartition(".")[2])
    done: Rescaled = function(model, results, CONTEXT, **options)
    verify(model)
    verify(model, done.touched)
    shapes.infer(model)
    meaning.check(model)
    return done


IMAGE = "g (float[N,3,6,6] x) => (float[N,?,?,?] y)"
HEAD = "g (float[N,3,6,6] x) => (float[N,5] y)"
EQUAL = {
    "Relu": IMAGE + "{ c = Conv(x, w1, b1)  r = Relu(c)  y = Conv(r, w2) }",
    "no activation": IMAGE + "{ c = Conv(x, w1)  y = Conv<pads = [1, 1, 1, 1]>(c, w2) }",
    "LeakyRelu and Identity": IMAGE + "{ c = Conv(x, w1, b1)  r = LeakyRelu(c)  i = Identity(r)  y = Conv(i, w2) }",
    "PRelu": IMAGE + "{ c = Conv(x, w1, b1)  r = PRelu(c, slope)  y = Conv(r, w2) }",
    "pooling": IMAGE + "{ c = Conv(x, w1, b1)  r = Relu(c)  p = MaxPool<kernel_shape = [2, 2]>(r)  y = Conv(p, w2) }",
    "depthwise": IMAGE
    + "{ c = Conv(x, w1, b1)  r = Relu(c)  e = Conv<group = 8>(r, d)  q = Relu(e)  y = Conv(q, w3) }",
    "ConvTranspose": IMAGE + "{ c = Conv(x, w1, b1)  r = Relu(c)  y = ConvTranspose(r, t2) }",
    "two readers": IMAGE + "{ c = Conv(x, w1, b1)  r = Relu(c)  p = Conv(r, w3)  q = Conv(r, w3)  y = Add(p, q) }",
    "two branches": IMAGE
    + "{ c = Conv(x, w1)  r = Relu(c)  p = Conv(r, w3)  l = LeakyRelu(c)  q = Conv(l, w3)  y = Add(p, q) }",
    "a pooled head": HEAD
    + "{ c = Conv(x, w1)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm(f, m) }",
    "Transpose": "g (float[N,3,6,6] x) => (float[N,6,6,5] y)"
    "{ c = Conv(x, w1)  t = Transpose<perm = [0, 2, 3, 1]>(c)  r = Relu(t)  y = MatMul(r, m) }",
    "Gemm": "g (float[N,8] x) => (float[N,5] y) { s = Gemm(x, m2, g)  r = Relu(s)  y = Gemm<alpha = 0.5>(r, m) }",
    "MatMul and Add": "g (float[N,2,8] x) => (float[N,2,5] y)"
    "{ p = MatMul(x, m2)  s = Add(p, g)  r = Relu(s)  y = MatMul(r, m) }",
}


@pytest.mark.parametrize("name", EQUAL)
def test_equalizing_keeps_outputs(rewriter: Any, build: Any, name: str) -> None:
    model, before = build(EQUAL[name]), build(EQUAL[name])
    done = rewritten(rewriter, model, equalize)
    assert done.touched, done.remarks
    assert all(s.max() > 1.1 * s.min() > 0 for s in done.factors.values())
    rewriter.same_outputs(before, model)
    assert not rewritten(rewriter, model, equalize).touched


def test_factors_say_how_ranges_have_changed(rewriter: Any, build: Any) -> None:
    model = build(EQUAL["depthwise"])
    request = [ChannelRange(name, 1) for name in ("c", "r", "e", "q")]
    before = measured(rewriter, model, request)
    done = rewritten(rewriter, model, equalize)
    after = measured(rewriter, model, request)
    assert "r" in done.factors
    for asked in request:
        factors = done.factors.get(asked.value, np.ones(8))
        np.testing.assert_allclose(after[asked].high, before[asked].high / factors, rtol=1e-4)


DIFFERENT = {
    "Sigmoid": (IMAGE + "{ c = Conv(x, w1)  r = Sigmoid(c)  y = Conv(r, w2) }", "Sigmoid reads it"),
    "Relu6": (IMAGE + "{ c = Conv(x, w1)  r = Clip(c, zero, six)  y = Conv(r, w2) }", "it makes is clipped"),
    "another Clip": (IMAGE + "{ c = Conv(x, w1)  r = Clip(c, minus, six)  y = Conv(r, w2) }", "Clip reads it"),
    "a graph output": (
        "g (float[N,3,6,6] x) => (float[N,?,?,?] y, float[N,8,6,6] r){ c = Conv(x, w1)  r = Relu(c)  y = Conv(r, w2) }",
        "graph output",
    ),
    "a residual Add": (
        "g (float[N,3,6,6] x, float[N,8,6,6] z) => (float[N,?,?,?] y)"
        "{ c = Conv(x, w1)  r = Add(c, z)  y = Conv(r, w2) }",
        "Add reads it",
    ),
    "another reader": (
        "g (float[N,3,6,6] x) => (float[N,?,?,?] y, float[N,8,6,6] z)"
        "{ c = Conv(x, w1)  r = Relu(c)  y = Conv(r, w2)  z = Exp(r) }",
        "Exp reads it",
    ),
    "a weight that varies": (
        "g (float[N,3,6,6] x, float[4,8,3,3] v) => (float[N,?,?,?] y) { c = Conv(x, w1)  y = Conv(c, v) }",
        "not constant",
    ),
    "a spatial Flatten": (
        "g (float[N,3,2,1] x) => (float[N,5] y) { c = Conv(x, w1)  f = Flatten(c)  y = Gemm(f, m16) }",
        "Flatten moves",
    ),
    "a body": (
        """g (float[N,3,6,6] x, bool b) => (float[N,?,?,?] y, float z) { c = Conv(x, w1)  y = Conv(c, w2)  z = If(b) <
        then_branch = t () => (float u) { u = ReduceMax<keepdims = 0>(c) },
        else_branch = e () => (float v) { v = ReduceMin<keepdims = 0>(c) }> }""",
        "in a body",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_left_alone(rewriter: Any, build: Any, name: str) -> None:
    text, why = DIFFERENT[name]
    model = build(text)
    before = rewriter.printed(model)
    done = rewritten(rewriter, model, equalize)
    assert not done.touched
    assert not done.factors
    assert rewriter.printed(model) == before
    said = " ".join(map(str, done.remarks))
    assert why in said
    assert ": not equalized: " in said


def test_even_channels_and_unknown_ranges_are_left_alone(rewriter: Any, build: Any) -> None:
    model = build(EQUAL["Relu"])
    model.graph.initializers["w2"].const_value = ir.Tensor(np.ones((4, 8, 3, 3), np.float32))
    (request,) = equalize.requests(model, CONTEXT)
    even = Results({request: ChannelRangeResult(np.zeros(8), np.ones(8))})
    for results, why in ((even, "not equalized: no factors"), (Results(), "not equalized: the ranges")):
        done = equalize.equalize(model, results, CONTEXT)
        assert not done.touched
        assert why in str(done.remarks[0])


def test_excluded_nodes_are_left_alone(rewriter: Any, build: Any) -> None:
    import re

    model = build(EQUAL["Relu"])
    for node in model.graph:
        node.name = f"node_{node.op_type}_{node.outputs[0].name}"
    context = PassContext(exclude=re.compile("node_Relu.*"))
    assert equalize.requests(model, context) == []


def test_shared_weights_are_copied(rewriter: Any, build: Any) -> None:
    text = IMAGE + "{ c = Conv(x, w1)  r = Relu(c)  p = Conv(r, w3)  t = Sigmoid(c2)  q = Conv(t, w3)  y = Add(p, q)  }"
    model = build(text.replace("t = Sig", "c2 = Conv(x, w1)  t = Sig"))
    before = model.clone()
    done = rewritten(rewriter, model, equalize)
    assert done.touched
    rewriter.same_outputs(before, model)
    np.testing.assert_array_equal(model.graph.initializers["w3"].const_value.numpy(), TENSORS["w3"])


def test_a_ceiling_is_never_passed(rewriter: Any, build: Any) -> None:
    """Channels that stay below 6 are amplified as far as the margin allows; those that reach it keep their numbers."""
    text = (
        IMAGE + "{ c = Conv(x, w1)  r = Clip(c, zero, six)  e = Conv<group = 8>(r, d)  q = Relu(e)  y = Conv(q, w3) }"
    )
    model = build(text)
    (request,) = [r for r in equalize.requests(model, CONTEXT) if r.value == "r"]
    before, ranges = (
        model.clone(),
        Results({request: ChannelRangeResult(np.zeros(8), np.array([0, 0.5, 1, 2, 4, 5, 5.9, 6]))}),
    )
    done = equalize.equalize(model, ranges, CONTEXT, clip_margin=1.25)
    np.testing.assert_allclose(
        done.factors["r"], np.minimum([1, 0.5 / 4.8, 1 / 4.8, 2 / 4.8, 4 / 4.8, 1, 1, 1], 1), rtol=1e-6
    )
    x = {"x": 0.01 * RNG.standard_normal((3, 3, 6, 6)).astype(np.float32)}  # small: nothing is clipped
    np.testing.assert_allclose(rewriter.outputs(model, x)["y"], rewriter.outputs(before, x)["y"], rtol=1e-4, atol=1e-6)


def test_weights_are_equalized_along_chains(rewriter: Any, build: Any) -> None:
    model = build(EQUAL["depthwise"])
    before = model.clone()
    done = equalize.equalize_weights(model, CONTEXT)
    assert len(done.touched) == 3
    rewriter.same_outputs(before, model)
    rows, middle, columns = (
        next(n for n in model.graph if n.outputs[0].name == name).inputs[1].const_value.numpy()
        for name in ("c", "e", "y")
    )
    ratios = np.abs(rows).max(axis=(1, 2, 3)) / np.abs(middle).max(axis=(1, 2, 3))
    np.testing.assert_allclose(ratios / ratios[0], np.ones(8), rtol=1e-2)
    ratios = np.abs(middle).max(axis=(1, 2, 3)) / np.abs(columns).max(axis=(0, 2, 3))
    np.testing.assert_allclose(ratios / ratios[0], np.ones(8), rtol=1e-2)


TOKENS = "g (float[N,4,8] x) => (float[N,4,5] y)"
SMOOTH = {
    "LayerNormalization": TOKENS + "{ n = LayerNormalization(x, g, b1)  y = MatMul(n, m) }",
    "no bias": TOKENS + "{ n = LayerNormalization(x, g)  y = MatMul(n, m) }",
    "two readers": TOKENS + "{ n = LayerNormalization(x, g)  p = MatMul(n, m)  q = MatMul(n, m)  y = Mul(p, q) }",
    "rows": """g (float[N,4,8] x) => (float[?,5] y) <int64[2] s = {-1, 8}>
        { n = LayerNormalization(x, g)  f = Reshape(n, s)  p = Gemm(f, m)  q = Gemm(f, m)  y = Mul(p, q) }""",
    "written out": TOKENS + "{ h = Mul(x, g)  n = Add(h, b1)  y = MatMul(n, m) }",
    "RMSNormalization": f'<ir_version: 10, opset_import: ["": 23]> {TOKENS}'
    "{ n = RMSNormalization(x, g)  y = MatMul(n, m) }",
    "only a scale": TOKENS + "{ h = Sigmoid(x)  n = Mul(g, h)  y = MatMul(n, m) }",
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_smoothing_keeps_outputs(rewriter: Any, build: Any, name: str, alpha: float | None) -> None:
    model = build(SMOOTH[name])
    before = model.clone()
    requests = smooth.requests(model, CONTEXT)
    done = rewritten(rewriter, model, smooth, alpha=alpha)
    assert done.touched, done.remarks
    rewriter.same_outputs(before, model)
    after = measured(rewriter, model, requests)
    assert all(np.ptp(np.log(after[r].high - after[r].low)) < 3 for r in requests)
    if alpha is None:
        assert not rewritten(rewriter, model, smooth).touched


@pytest.mark.parametrize(
    ("outputs", "rest", "why"),
    [
        ("float[N,4,8] y", "p = MatMul(n, m2)  y = Add(p, n)", "Add reads it"),
        ("float[N,4,8] y", "p = MatMul(n, n)  y = MatMul(n, p)", "weight is not constant"),
        ("float[N,4,5] y, float[N,4,8] n", "y = MatMul(n, m)", "graph output"),
        ("float[N,5,5] y", "t = Transpose<perm = [0, 2, 1]>(n)  u = Pad(t, p)  y = MatMul(u, m)", "Pad reads it"),
    ],
)
def test_normalizations_that_are_left_alone(rewriter: Any, build: Any, outputs: str, rest: str, why: str) -> None:
    size = 4 if "MatMul(n, n)" not in rest else 8
    pads = "<int64[6] p = {0, 0, 0, 0, -3, 4}>" if "Pad" in rest else ""
    text = f"g (float[N,{size},8] x) => ({outputs}) {pads} {{ n = LayerNormalization(x, g)  {rest} }}"
    model = build(text.replace("N,4,8] y", f"N,{size},8] y"))
    before = rewriter.printed(model)
    done = rewritten(rewriter, model, smooth)
    assert not done.touched
    assert rewriter.printed(model) == before
    said = " ".join(map(str, done.remarks))
    assert why in said
    assert ": not smoothed: " in said
