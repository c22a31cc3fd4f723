"""quantize on graphs with something unusual about them: what it computes, what onnxruntime makes of it, what users see."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from quantized_models import SATURATES, counts, kernels, outputs, sqnr

import graphopt
from graphopt_passes.quantization.targets import TARGETS

if TYPE_CHECKING:
    from conftest import Rewriter

RANDOM = np.random.default_rng(3)
SHAPES = {
    "w1": (4, 2, 3, 3),
    "b": (4,),
    "w": (4, 4, 1, 1),
    "v": (4, 4, 1, 1),
    "w8": (4, 8, 1, 1),
    "w2": (4, 2, 1, 1),
    "wt": (4, 2, 2, 2),
    "m": (4, 4),
    "row": (1, 4),
}
TENSORS: dict[str, np.ndarray] = {
    **{name: RANDOM.normal(0, 0.5, shape).astype(np.float32) for name, shape in SHAPES.items()},
    "zero": np.zeros((), np.float32),
    "low": np.full((), -0.3, np.float32),
    "one": np.ones((), np.float32),
    "six": np.full((), 6, np.float32),
    "some": np.full((), 0.37, np.float32),
    "halves": np.array([2, 2]),
    "axes": np.array([2, 3]),
}
X = RANDOM.normal(0, 1, (32, 2, 6, 6)).astype(np.float32)
FIRST = "c = Conv<pads = [1, 1, 1, 1]>(x, w1, b)"
LAST = "p = GlobalAveragePool(last) f = Flatten(p) y = Gemm(f, m, b)"

Build = Callable[..., ir.Model]


@pytest.fixture
def build(rewriter: Rewriter) -> Build:
    """The model of `... => (outputs) { ... }` or of a whole text; the tensors that it names are initializers."""

    def build(text: str, inputs: str = "float[n,2,6,6] x", **others: np.ndarray) -> ir.Model:
        known = {**TENSORS, **others}
        tensors = {n: a for n, a in known.items() if any(f"{i}{n}{j}" in text for i in "( " for j in ",)")}
        return rewriter.model(text if "=>" in text else f"agraph ({inputs}) => ({text}", tensors)

    return build


@pytest.fixture
def network(build: Build) -> Build:
    """A network of two or more layers with `middle`, which makes `last`, between the first and the last."""

    def network(middle: str, **others: np.ndarray) -> ir.Model:
        return build(f"float[n,4] y) {{ {FIRST} {middle} {LAST} }}", **others)

    return network


def quantized(
    model: ir.Model,
    pipeline: str = "quantize",
    feeds: Mapping[str, np.ndarray] | None = None,
    least: float = 30,
    *,
    optimize: bool = True,
    **options: Any,
) -> graphopt.Result:
    """The result; all its outputs are within `least` dB of the original's, in onnxruntime with all of its optimizations."""
    feeds = {"x": X} if feeds is None else feeds
    result = graphopt.optimize(model, pipeline, data=feeds, **options)
    assert [value.name for value in result.ir.graph.outputs] == [value.name for value in model.graph.outputs]
    for exact, found in zip(outputs(model, feeds), outputs(result.ir, feeds, optimize=optimize), strict=True):
        assert exact.shape == found.shape
        assert exact.dtype == found.dtype
        assert sqnr(exact, found) > least
    return result


def remarks(result: graphopt.Result) -> str:
    return "\n".join(f"{remark.where}: {remark.what}" for remark in result.report.passes[-1].remarks)


@pytest.mark.parametrize(
    "middle",
    [
        "last = Conv(c, w)",
        "a = Relu(c) last = Conv(a, w)",
        "a = Clip(c, zero, six) last = Conv(a, w)",
        "a = Clip(c, zero, some) last = Conv(a, w)",
        "a = Clip(c, low, some) last = Conv(a, w)",  # neither bound is a multiple of the step
        "a = Clip(c, low) last = Conv(a, w)",
        "a = Clip(c, , some) last = Conv(a, w)",
        "d = Conv(c, w) s = Add(c, d) a = Relu(s) last = Conv(a, w)",
        "d = Conv(c, w) a = Mul(c, d) last = Conv(a, w)",
        "d = Conv(c, w) r = Relu(d) e = Conv(c, v) a = Concat<axis = 1>(r, e) last = Conv(a, w8)",
        "d = Conv(c, w) r = Relu(d) e = Conv(c, v) s = Relu(e) a = Concat<axis = 1>(r, s) last = Conv(a, w8)",
        "d, e = Split<axis = 1>(c, halves) g = Conv(d, w2) h = Conv(e, w2) s = Add(g, h) last = Conv(s, w)",
        "a = MaxPool<kernel_shape = [2, 2]>(c) t = Transpose<perm = [0, 1, 3, 2]>(a) last = Conv(t, w)",
        "a = Sigmoid(c) last = Conv(a, w)",
        "a = LeakyRelu(c) last = Conv(a, w)",
        "a = AveragePool<kernel_shape = [2, 2]>(c) last = Conv(a, w)",
    ],
)
def test_onnxruntime_runs_all_of_it_on_integers(network: Build, middle: str) -> None:
    result = quantized(network(middle))
    found = kernels(result.ir)
    assert found["QuantizeLinear"] == 1
    assert {"Conv", "FusedConv", "Gemm", "DequantizeLinear", "Relu", "Clip", "Add", "Mul"}.isdisjoint(found)
    assert found["QLinearConv"] == sum(node.op_type == "Conv" for node in result.ir.graph)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 16])
def test_every_target(network: Build, target: str, bits: int) -> None:
    model = network(
        "a = Relu(c) t = ConvTranspose<group = 2>(a, wt, b) d = Conv(t, w) r = Relu(d) e = Conv(t, v) "
        "j = Concat<axis = 1>(r, e) k = Conv(j, w8) s = Mul(k, t) last = Conv(s, w)"
    )
    pipeline, least = f"quantize{{mode=static,target={target},activations={bits}}}", 25 if bits == 8 else 40
    # what another runtime saturates is not what onnxruntime does on this machine
    result = quantized(model, pipeline, least=least, optimize=TARGETS[target].pairs or not SATURATES)
    kinds = {node.outputs[0].dtype for node in result.ir.graph if node.op_type == "QuantizeLinear"}
    assert kinds == {
        ir.DataType[f"{'' if TARGETS[target].activations.is_signed() else 'U'}INT{bits}"],
    }
    biases = [v for v in result.ir.graph.initializers.values() if v.dtype == ir.DataType.INT32]
    assert bool(biases) == TARGETS[target].quantized_bias


def test_sixteen_bits_imply_static(network: Build) -> None:
    result = quantized(network("last = Conv(c, w)"), "quantize{activations=16}", least=45)
    assert result.ir.opset_imports[""] >= 21


@pytest.mark.parametrize("text", ["Conv(x, w1, b) d = Relu(c)", "Conv(x, w1, b) d = Tanh(c)"])
@pytest.mark.parametrize("keep_heads", ["true", "false"])
def test_inner_values_that_are_outputs(build: Build, text: str, keep_heads: str) -> None:
    model = build(f"float[n,4,4,4] c, float[n,4,4,4] d, float[n,4,4,4] y) {{ c = {text} y = Conv(d, w) }}")
    for value in model.graph.outputs:
        value.metadata_props["of"] = value.name or ""
    result = quantized(model, f"quantize{{keep_heads={keep_heads}}}")
    assert [value.metadata_props["of"] for value in result.ir.graph.outputs] == ["c", "d", "y"]


@pytest.mark.parametrize(
    "middle",
    [
        "t = Tanh(c) last = Conv(t, w)",
        "d = Conv(c, v) s = Add(c, d) t = Tanh(s) e = Conv(t, w) g = Conv(s, v) last = Add(e, g)",
    ],
)
def test_float_work_between_layers_hands_on_what_is_exact(build: Build, middle: str) -> None:
    model = build(f"float[n,4,6,6] t, float[n,4] y) {{ {FIRST} {middle} {LAST} }}")
    result = quantized(model, "quantize{keep_heads=false}")
    output = result.ir.graph.outputs[0].producer()
    assert output is not None
    assert output.op_type == "Tanh"


def test_the_range_of_a_concat_covers_what_has_other_scales(network: Build) -> None:
    tiny = np.full((), 1e-3, np.float32)
    quantized(network("t = Tanh(c) h = Mul(t, tiny) a = Concat<axis = 1>(h, c) last = Conv(a, w8)", tiny=tiny))


def test_an_input_that_is_read_as_integers_and_as_float(build: Build) -> None:
    model = build(f"float[n,4] y, float[n,2,6,6] z) {{ {FIRST} last = Conv(c, w) {LAST} z = Sin(x) }}")
    result = quantized(model)
    sine = next(node for node in result.ir.graph if node.op_type == "Sin")
    assert sine.inputs[0] is result.ir.graph.inputs[0]
    np.testing.assert_array_equal(outputs(result.ir, {"x": X})[1], outputs(model, {"x": X})[1])


def test_tied_weights_stay_one_tensor(network: Build) -> None:
    result = quantized(network("d = Conv(c, w) r = Relu(d) last = Conv(r, w)"), "quantize{equalize=false}")
    weights = [value for value in result.ir.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert sorted(len(value.uses()) for value in weights if len(value.shape or ()) > 1) == [1, 1, 2]


@pytest.mark.parametrize("bias", ["one", "row", "b"])
def test_biases_of_other_shapes(build: Build, bias: str) -> None:
    model = build(f"float[n,4] y) {{ g = Gemm(x, m, {bias}) r = Relu(g) y = Gemm(r, m, {bias}) }}", "float[n,4] x")
    result = quantized(model, feeds={"x": X[:, 0, 0, :4]})
    assert kernels(result.ir) == {"QuantizeLinear": 1, "QGemm": 2}


def test_inputs_that_are_left_out(network: Build) -> None:
    model = network("last = Conv(c, w, )")
    result = quantized(model)
    assert kernels(result.ir)["QLinearConv"] == 2


def test_nodes_without_names_and_with_each_others(network: Build) -> None:
    model = network("d = Conv(c, w) last = Conv(d, v)")
    for node, name in zip(model.graph, ["", "last", "d", "y", "", "c"], strict=True):
        node.name = name
    quantized(model)


def test_weights_that_are_computed_from_constants(network: Build) -> None:
    model = network("t = Transpose<perm = [1, 0, 2, 3]>(w) i = Identity(t) last = Conv(c, i)")
    assert kernels(quantized(model).ir)["QLinearConv"] == 2


def test_several_inputs_and_a_fixed_batch(build: Build) -> None:
    model = build(
        f"float[4,4] y) {{ {FIRST} q = Gemm(e, m, b) u = Unsqueeze(q, axes) s = Add(c, u) last = Conv(s, w) {LAST} }}",
        "float[4,2,6,6] x, float[4,4] e",
    )
    feeds = {"x": X[:4], "e": X[:4, 0, 0, :4]}
    many = {"x": X[:30], "e": X[:30, 0, 0, :4]}  # the last batch is not full
    result = graphopt.optimize(model, "quantize", data=many)
    assert kernels(result.ir)["QLinearConv"] == 2
    assert sqnr(outputs(model, feeds)[0], outputs(result.ir, feeds)[0]) > 30


@pytest.mark.parametrize(
    ("inputs", "body", "shape"),
    [
        ("float[n,4,20] x", "c = Conv(x, k) r = Relu(c) last = Conv<group = 2>(r, g, b)", (32, 4, 20)),
        ("float[n,4,5,5,5] x", "c = Conv(x, k3) r = Relu(c) last = Conv(r, g3, b)", (32, 4, 5, 5, 5)),
    ],
)
def test_convolutions_along_one_axis_and_three(build: Build, inputs: str, body: str, shape: tuple[int, ...]) -> None:
    kernels_of = {"k": (4, 4, 3), "g": (4, 2, 3), "k3": (4, 4, 3, 3, 3), "g3": (4, 4, 1, 1, 1)}
    arrays = {name: RANDOM.normal(0, 0.5, extents).astype(np.float32) for name, extents in kernels_of.items()}
    model = build(f"float[n,4] y) {{ {body} {LAST} }}", inputs, **arrays)
    result = quantized(model, feeds={"x": RANDOM.normal(0, 1, shape).astype(np.float32)})
    assert kernels(result.ir)["QLinearConv"] == 2


def test_outputs_without_a_batch_and_outputs_of_integers(build: Build) -> None:
    model = build(
        f"""float q, int64[n,1] k) {{
            {FIRST} last = Conv(c, w) {LAST} q = ReduceMean<keepdims = 0>(y) k = ArgMax<axis = 1>(y)
        }}"""
    )
    result = graphopt.optimize(model, "quantize", data={"x": X})
    assert kernels(result.ir)["QLinearConv"] == 2
    exact, found = outputs(model, {"x": X}), outputs(result.ir, {"x": X})
    np.testing.assert_allclose(found[0], exact[0], atol=0.02)
    assert (found[1] == exact[1]).mean() > 0.9


@pytest.mark.parametrize("condition", [True, False])
def test_bodies_are_quantized_as_they_run_and_read_integers(build: Build, condition: bool) -> None:
    text = f"""agraph (float[n,2,6,6] x, bool flag) => (float[n,4] y, float[n,4,6,6] z) {{
        {FIRST} last = Conv(c, w) {LAST}
        z = If(flag) <
            then_branch = g () => (float[n,4,6,6] h) {{ d = Conv(c, v) r = Relu(d) h = Conv(r, v) }},
            else_branch = k () => (float[n,4,6,6] j) {{ j = Identity(c) }}
        >
    }}"""
    result = quantized(build(text), feeds={"x": X, "flag": np.array(condition)})
    assert "Conv 'd', Conv 'h': quantized dynamically" in remarks(result)
    body = next(node for node in result.ir.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    kinds = [node.op_type for node in body]
    assert kinds.count("ConvInteger") == kinds.count("DynamicQuantizeLinear") == 2
    assert "Conv" not in kinds


def test_functions_stay_float(rewriter: Rewriter) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
    agraph (float[n,2,6,6] x) => (float[n,4] y) {{ {FIRST} r = Relu(c) d = Conv(r, w) last = local.g(d, w) {LAST} }}
    <domain: "local", opset_import: ["": 17]> g (a, k) => (q) {{ h = Conv(a, k) s = Relu(h) q = Conv(s, k) }}"""
    model = rewriter.model(text, {name: TENSORS[name] for name in ("w1", "b", "w", "m")})
    result = quantized(model)
    assert "local.g 'last': its bodies stay float" in remarks(result)
    assert [node.op_type for function in result.ir.functions.values() for node in function] == ["Conv", "Relu", "Conv"]


def test_a_loop(build: Build) -> None:
    text = f"""agraph (float[n,2,6,6] x) => (float[n,4] y) <int64 three = {{3}}, bool true = {{1}}> {{
        {FIRST}
        last = Loop(three, true, c) <body = g (int64 i, bool go, float[n,4,6,6] a) => (bool on, float[n,4,6,6] o)
            {{ on = Identity(go) d = Conv(a, w) o = Tanh(d) }}>
        {LAST}
    }}"""
    result = quantized(build(text))
    assert "Conv 'd': quantized dynamically" in remarks(result)
    assert kernels(result.ir)["QGemm"] == 1


@pytest.mark.parametrize("option", ["quantize{keep=stay}", "quantize{keep=Sigmoid:stay}"])
def test_kept_nodes_stay_float(network: Build, option: str) -> None:
    model = network("[stay] d = Conv(c, w) a = Sigmoid(d) last = Conv(a, v)")
    result = quantized(model, option)
    node = next(node for node in result.ir.graph if node.outputs[0].name == "d")
    assert node.inputs[1] is result.ir.graph.initializers["w"]
    assert "'stay': stays float: excluded" in remarks(result)
    assert kernels(result.ir)["QLinearConv"] == 2


def test_excluded_nodes_stay_float(network: Build) -> None:
    model = network("[first_stay] d = Conv(c, w) [second_stay] last = Conv(d, v)")
    result = quantized(model, exclude=re.compile(".*_stay"))
    assert counts(result.ir)["Conv"] == 3
    assert kernels(result.ir)["QLinearConv"] == 1


def test_what_is_quantized_already_is_left_alone(network: Build) -> None:
    half = graphopt.optimize(
        network("[d] d = Conv(c, w) r = Relu(d) [last] last = Conv(r, v)"), "quantize{keep=last}", data={"x": X}
    )
    before = half.ir.clone()
    again = graphopt.optimize(half.ir, "quantize", data={"x": X})
    assert "quantized already" in remarks(again)
    names = collections.Counter(node.outputs[0].name for node in before.graph if "Linear" in node.op_type)
    after = collections.Counter(node.outputs[0].name for node in again.ir.graph if "Linear" in node.op_type)
    assert names == after


def test_models_of_onnxruntimes_quantizer_are_left_alone(network: Build, tmp_path: Any) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"x": X}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    source, target = tmp_path / "float.onnx", tmp_path / "peer.onnx"
    ir.save(network("a = Relu(c) last = Conv(a, w)"), source)
    for form in (quantization.QuantFormat.QDQ, quantization.QuantFormat.QOperator):
        quantization.quantize_static(source, target, Reader(), quant_format=form, per_channel=True)
        result = graphopt.optimize(target, "quantize", data={"x": X})
        assert not result.report.passes[-1].modified
        assert sqnr(outputs(ir.load(target), {"x": X})[0], outputs(result.ir, {"x": X})[0]) > 60


@pytest.mark.parametrize("middle", ["a = Relu(c) last = Conv(a, w)", "d = Conv(c, w) last = Add(c, d)"])
def test_a_second_run_changes_nothing(network: Build, rewriter: Rewriter, middle: str) -> None:
    once = quantized(network(middle)).ir
    text = rewriter.printed(once)
    again = graphopt.optimize(once, "quantize", data={"x": X}, provenance=False)
    assert not again.report.passes[-1].modified
    assert rewriter.printed(again.ir) == text


def test_older_opsets_are_raised(build: Build) -> None:
    model = build(
        f"""<ir_version: 5, opset_import: ["": 10]> agraph (float[n,2,6,6] x) => (float[n,4] y)
        {{ {FIRST} a = Clip<min = 0.0, max = 6.0>(c) last = Conv(a, w) {LAST} }}"""
    )
    result = quantized(model)
    assert result.ir.opset_imports[""] == 13
    assert kernels(result.ir)["QLinearConv"] == 2


@pytest.mark.parametrize(("dtype", "name"), [("float16", "float16"), ("double", "double")])
def test_other_element_types_are_left_alone(rewriter: Rewriter, dtype: str, name: str) -> None:
    numpy_type = np.float16 if dtype == "float16" else np.float64
    text = f"agraph ({dtype}[n,2,6,6] x) => ({dtype}[n,4,6,6] y) {{ {FIRST} y = Softmax(c) }}"
    model = rewriter.model(text, {key: TENSORS[key].astype(numpy_type) for key in ("w1", "b")})
    result = graphopt.optimize(model, "quantize", data={"x": X.astype(numpy_type)})
    assert f"its weight is {name}, not float32" in remarks(result)
    assert counts(result.ir) == {"Conv": 1, "Softmax": 1}


def test_nothing_to_quantize_is_said(build: Build) -> None:
    result = graphopt.optimize(build("float[n,2,6,6] y) { y = Tanh(x) }"), "quantize{mode=static}", data={"x": X})
    assert "no layer with constant float32 weights" in remarks(result)
    assert "no layer with constant float32 weights" in result.report.passes[-1].facts["unchanged"]
    assert not result.report.passes[-1].modified


def test_names_to_keep_that_are_not_there_are_a_warning(build: Build) -> None:
    model = build("float[n,4] y) { f = Gemm(x, m, b) y = Tanh(f) }", "float[n,4] x")
    samples = {"x": np.ones((16, 4), np.float32)}
    result = graphopt.optimize(model, "quantize{mode=static,keep=Gem:Gemm}", data=samples)
    assert result.warnings == ["quantize: keep=Gem names no node and no operator of the model"]


def test_overridable_initializers_that_nothing_needs(build: Build) -> None:
    model = build("float[n,4] y) { f = Gemm(x, m, b) y = Tanh(f) }", "float[n,4] x")
    model.graph.inputs.append(model.graph.initializers["b"])
    result = quantized(model, feeds={"x": X[:, 0, 0, :4]})
    assert [value.name for value in result.ir.graph.inputs] == ["x"]
    said = [str(remark) for record in result.report.passes for remark in record.remarks]
    assert "'b': no input any more: what follows holds for its default value" in said
