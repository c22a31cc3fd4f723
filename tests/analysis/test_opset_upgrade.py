"""Opset upgrades compute the same and lose nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest

from graphopt.analysis import meaning, opset, shapes
from graphopt.errors import UnsupportedModelError

Session = Callable[[onnx.ModelProto], Any]


def parsed(text: str, version: int, functions: str = "") -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : {version}, "d" : 1]> {text} {functions}')
    for graph in model.graphs():
        for value in graph.outputs:
            value.shape = value.shape or None
    shapes.infer(model)
    return model


def run(session: Session, proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    loaded = session(proto)
    return list(loaded.run(None, {value.name: feeds[value.name] for value in loaded.get_inputs()}))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, list):
            assert_same(a, b)
        elif isinstance(b, np.ndarray) and b.dtype != object:
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


def upgraded(model: ir.Model, version: int) -> onnx.ModelProto:
    """The upgraded model, checked in all the ways there are."""
    opset.upgrade(model, version)
    assert model.opset_imports[""] == version
    meaning.check(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


def random_feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        extents = [dim if isinstance(dim, int) else 2 for dim in value.shape]
        feeds[str(value.name)] = rng.normal(size=extents).astype(value.dtype.numpy())
    return feeds


@pytest.mark.parametrize("version", [13, 17, 21])
@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        ("y = Softmax(x)", 7),
        ("y = Softmax<axis=2>(x)", 11),
        ("y = LogSoftmax<axis=-1>(x)", 11),
        ("y = Hardmax(x)", 11),
        ("y = Hardmax<axis=2>(x)", 7),
        ("y = Clip<min=-0.5, max=0.5>(x)", 7),
        ("y = Clip<max=0.5>(x)", 9),
        ("y = Clip(x)", 9),
        ("y = Pad<pads=[0,0,1,2,0,0,2,1], value=1.5>(x)", 7),
        ('y = Pad<pads=[0,0,1,2,0,0,2,1], mode="reflect">(x)', 9),
        ("d = Cast<to=11>(x) c = Pad<pads=[0,0,1,2,0,0,2,1], value=0.5>(d) y = Cast<to=1>(c)", 9),
        ('y = Upsample<scales=[1.,1.,2.,3.], mode="nearest">(x)', 7),
        ('y = Upsample<scales=[1.,1.,2.,2.5], mode="linear">(x)', 7),
        ("s = Constant<value=float[4]{1.,1.,1.5,2.}>() y = Upsample(x, s)", 9),
        ("s = Constant<value=float[4]{1.,1.,1.5,2.}>() y = Resize(x, s)", 10),
        ("s = Constant<value=float[4]{1.,1.,0.6,0.5}>() y = Resize(x, s)", 10),
        ('s = Constant<value=float[4]{1.,1.,0.6,1.7}>() y = Resize<mode="linear">(x, s)', 10),
        ("s = Shape(x) f = Cast<to=1>(s) t = Div(f, f) y = Upsample(x, t)", 9),
        ("y = Dropout(x)", 7),
        ("y, m = Dropout<ratio=0.25>(x)", 10),
        ("y = Slice<starts=[1,-3], ends=[3,100], axes=[1,-1]>(x)", 7),
        ("t, i = TopK<k=2, axis=2>(x) y = Add(t, t)", 7),
        ("s = Unsqueeze<axes=[0,2]>(x) t = Squeeze<axes=[2]>(s) y = Squeeze<axes=[0]>(t)", 11),
        ("a, b = Split<axis=1, split=[1,2]>(x) y = Concat<axis=1>(b, a)", 11),
        ("a, b = Split<axis=2>(x) y = Sub(b, a)", 11),
        ("y = ReduceSum<axes=[1,-1], keepdims=0>(x)", 11),
        ("y = ReduceL2<axes=[2]>(x)", 11),
        ("a = ReduceMax<axes=[1]>(x) b = ReduceMean(x) y = Add(a, b)", 7),
        ("i = ArgMax<axis=1>(x) y = Cast<to=1>(i)", 7),
        ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", 7),
        ("y = AveragePool<kernel_shape=[2,2], auto_pad=\"SAME_UPPER\">(x)", 7),
        ("m = ReduceMean<axes=[0,2,3], keepdims=0>(x) v = Mul(m, m) y = BatchNormalization<epsilon=0.01>(x, m, m, m, v)", 7),
        ("f = Flatten(x) t = Transpose(f) y = Gemm<alpha=0.5>(f, t, h)", 7),
        ("y = Sum(x, x, h)", 8),
    ],
)  # fmt: skip
def test_changed_operators_compute_the_same(nodes: str, opset: int, version: int, session: Session) -> None:
    model = parsed(f"g (float[2,3,4,6] x, float[1] h) => (float y) {{ {nodes} }}", opset)
    feeds = random_feeds(model)
    expected = run(session, ir.to_proto(model), feeds)
    assert_same(run(session, upgraded(model, version), feeds), expected)


@pytest.mark.parametrize("element", ["double", "float16"])
def test_limits_have_the_type_of_the_data(element: str, session: Session) -> None:
    model = parsed(f"g ({element}[2,3] x) => ({element}[2,3] y) {{ y = Clip<min=-0.5, max=0.5>(x) }}", 7)
    feeds = random_feeds(model)
    assert_same(run(session, upgraded(model, 13), feeds), [np.clip(feeds["x"], -0.5, 0.5)])


@pytest.mark.parametrize("version", [13, 17, 21])
def test_the_node_tests_compute_the_same(version: int, node_cases: list[Any], session: Session) -> None:
    compared, unsupported = 0, []
    for case in node_cases:
        imports = {entry.domain: entry.version for entry in case.model.opset_import}
        if imports.get("", version) >= version or "ai.onnx.preview.training" in imports or not case.data_sets:
            continue
        feeds = dict(zip((value.name for value in case.model.graph.input), case.data_sets[0][0], strict=False))
        try:
            expected = run(session, case.model, feeds)
        except Exception:  # onnxruntime's own types have no common base; it does not implement all cases
            continue
        model = ir.from_proto(case.model)
        shapes.infer(model)
        try:
            proto = upgraded(model, version)
        except UnsupportedModelError as error:
            unsupported.append(str(error))
            continue
        assert_same(run(session, proto, feeds), expected)
        compared += 1
    assert unsupported == [f"Scan 'y': Scan of opset 8 cannot be expressed in opset {version}"]
    assert compared >= {13: 60, 17: 450, 21: 800}[version]


@pytest.mark.parametrize("version", [13, 17, 21])
@pytest.mark.parametrize(
    "name",
    ["mnist", "ch_ppocr_mobile_v2.0_cls_infer", "mlperftiny_ic_resnet8", "ultraface_version-RFB-320", "silero_vad"],
)
def test_real_models_compute_the_same(name: str, version: int, corpus: Path, session: Session) -> None:
    proto = onnx.load(corpus / "structures" / f"{name}.onnx")
    if name == "ch_ppocr_mobile_v2.0_cls_infer":
        for dim, extent in zip(proto.graph.input[0].type.tensor_type.shape.dim, (2, 3, 48, 192), strict=True):
            dim.dim_value = extent
    model = ir.from_proto(proto)
    shapes.infer(model)
    feeds = random_feeds(model)
    if name == "silero_vad":
        feeds = {"input": feeds["input"][:1, :1].repeat(512, 1), "state": feeds["state"][:, :1], "sr": np.array(16000)}
    expected = run(session, proto, feeds)
    if version > model.opset_imports[""]:
        assert_same(run(session, upgraded(model, version), feeds), expected)


# --- Nothing is lost ------------------------------------------------------------------------------

RICH = """g (float[2,3] x, bool c) => (float[2,3] y, float[2,3] z)
    <float[3] w = {1., 2., 3.}, float[3] unused = {4., 5., 6.}>
    { a = Clip<max=0.5>(x) b = d.Custom<axes=[1]>(a, w) k = d.Half(a)
      y = If(c) <then_branch = t () => (float[2,3] p) { p = Clip<max=0.5>(k) },
                 else_branch = e () => (float[2,3] q) { q = Relu(k) }>
      z = Softmax<axis=0>(x) }"""
HALF = '<domain: "d", opset_import: ["" : 9]> Half (v) => (r) { s = Clip<min=-0.5>(v) r = Softmax<axis=1>(s) }'


def rich_model() -> ir.Model:
    model = parsed(RICH, 9, HALF)
    model.doc_string, model.producer_name, model.model_version, model.domain = "of the model", "us", 3, "org.example"
    model.metadata_props["model"] = "kept"
    model.graph.doc_string = "of the graph"
    model.graph.metadata_props["graph"] = "kept"
    for graph in model.graphs():
        for node in graph:
            node.name = f"node {node.outputs[0].name}"
            node.doc_string = f"of {node.outputs[0].name}"
            node.metadata_props["node"] = str(node.outputs[0].name)
            node.outputs[0].metadata_props["value"] = str(node.outputs[0].name)
            node.outputs[0].doc_string = f"value {node.outputs[0].name}"
    function = next(iter(model.functions.values()))
    function.doc_string = "of the function"
    function.metadata_props["function"] = "kept"
    return model


def test_everything_else_stays() -> None:
    model = rich_model()
    proto = ir.to_proto(model)
    annotation = proto.graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    model = ir.from_proto(proto)
    shapes.infer(model)
    remarks = opset.upgrade(model, 21)
    assert sorted(remarks) == [
        "1 x Softmax rewritten for opset 21",
        "1 x Softmax rewritten for opset 21 as Shape + Flatten + Softmax + Reshape",
        "3 x Clip rewritten for opset 21",
    ]  # fmt: skip
    after = ir.to_proto(model)
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 21, "d": 1}
    assert list(after.graph.input) == list(proto.graph.input)
    assert list(after.graph.output) == list(proto.graph.output)
    for field in ("doc_string", "producer_name", "model_version", "domain", "ir_version"):
        assert getattr(after, field) == getattr(proto, field)
    assert list(after.metadata_props) == list(proto.metadata_props)
    assert list(after.graph.metadata_props) == list(proto.graph.metadata_props)
    assert after.graph.doc_string == "of the graph"
    assert list(after.graph.quantization_annotation) == list(proto.graph.quantization_annotation)
    assert [tensor.name for tensor in after.graph.initializer][:2] == ["w", "unused"]

    nodes = {node.name: node for graph in model.graphs() for node in graph}
    for name in "abkzpq":
        node = nodes[f"node {name}"]
        assert node.doc_string == f"of {name}"
        assert node.metadata_props["node"] == name
    assert nodes["node z"].op_type == "Softmax"
    assert nodes["node z_Reshape"].metadata_props == {"node": "z"}
    values = {value.name: value for graph in model.graphs() for node in graph for value in node.outputs}
    for name in "abkyzpq":
        assert values[name].metadata_props["value"] == name
        assert values[name].doc_string == f"value {name}"
        assert values[name].shape is not None or name in "bk"

    function = next(iter(model.functions.values()))
    assert (function.doc_string, function.metadata_props, function.opset_imports) == (
        "of the function", {"function": "kept"}, {"": 21},
    )  # fmt: skip
    assert [node.op_type for node in function] == ["Constant", "Clip", "Softmax"]


def test_functions_and_bodies_compute_the_same(session: Session) -> None:
    text = RICH.replace("b = d.Custom<axes=[1]>(a, w)", "b = Mul(a, w)")
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32), "c": np.array(True)}
    model = parsed(text, 9, HALF)
    expected = run(session, ir.to_proto(model), feeds)
    found = upgraded(model, 21)
    assert len(found.functions) == 1
    assert_same(run(session, found, feeds), expected)


def test_a_function_whose_attribute_changes_is_inlined(session: Session) -> None:
    function = '<domain: "d", opset_import: ["" : 11]> F <axis> (v) => (r) { r = Softmax<axis: int = @axis>(v) }'
    model = parsed("g (float[2,3,4] x) => (float y) { a = d.F<axis=1>(x) y = d.F<axis=2>(a) }", 11, function)
    feeds = random_feeds(model)
    expected = run(session, ir.to_proto(model), feeds)
    assert "inlined" in opset.upgrade(model, 13)[0]
    assert not model.functions
    assert_same(run(session, ir.to_proto(model), feeds), expected)


def test_equal_constants_are_shared() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { a = Clip<max=6.>(x) b = Neg(a) y = Clip<max=6.>(b) }", 9)
    opset.upgrade(model, 13)
    assert len(model.graph.initializers) == 1


class Unread(ir.Tensor[np.ndarray]):
    def numpy(self) -> np.ndarray:
        raise AssertionError("a weight was read")


def test_weights_are_not_touched() -> None:
    model = parsed("g (float[2,600] x, float[600,600] w) => (float y) { a = MatMul(x, w) y = Clip<max=6.>(a) }", 9)
    weight = model.graph.inputs.pop()
    weight.const_value = Unread(np.zeros((600, 600), np.float32), name="w")
    model.graph.register_initializer(weight)
    opset.upgrade(model, 21)
    assert isinstance(model.graph.initializers["w"].const_value, Unread)


# --- What stands in the way -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "version", "target", "message"),
    [
        (
            "s = Constant<value=float[4]{1.,1.,0.5,2.}>() y = Resize(x, s)",
            10,
            13,
            "Resize 'y': .* both grows and shrinks",
        ),
        ("y = Resize(x, v)", 10, 13, "Resize 'y': .* scales that are not known"),
        ("y = BatchNormalization<spatial=0>(x, v, v, v, v)", 7, 13, "BatchNormalization 'y': .*spatial"),
        ("y, m = BatchNormalization(x, v, v, v, v)", 7, 15, "BatchNormalization 'y': cannot be upgraded"),
        ("y = GroupNormalization<num_groups=2>(x, v, v)", 18, 21, "GroupNormalization 'y': cannot be upgraded"),
        ("y = NoSuchThing(x)", 9, 13, "NoSuchThing 'y'"),
        ("y = Relu(x)", 9, 999, "opset 999 is newer than what onnx"),
    ],
)
def test_what_cannot_be_upgraded_is_named_and_nothing_changes(
    node: str, version: int, target: int, message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = parsed(f"g (float[1,4,4,4] x, float[4] v) => (float y) {{ c = Clip<max=1.>(x) {node} }}", version)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedModelError, match=message):
        opset.upgrade(model, target)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_model_of_that_opset_or_a_newer_one_is_left_alone() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }", 17)
    assert opset.upgrade(model, 17) == opset.upgrade(model, 13) == []
    assert model.opset_imports[""] == 17
