"""What runs in integer kernels, against what onnxruntime makes of models that its own quantizer wrote."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from graphopt.ir.walk import all_nodes
from graphopt.lift import lift
from graphopt.pricing.integer_kernels import IntegerShare, integer_share, is_quantized
from graphopt.runtime.optimized import optimized

FIRST_MACS, SECOND_MACS, GEMM_MACS = 8 * 4 * 9 * 36, 8 * 8 * 9 * 36, 8 * 4
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[1, 4, 6, 6] x) => (float[1, 4] y) {
    first_result = Conv <pads = [1, 1, 1, 1]> (x, first_weight, first_bias)
    active = Relu (first_result)
    second_result = Conv <pads = [1, 1, 1, 1]> (active, second_weight, second_bias)
    pooled = GlobalAveragePool (second_result)
    flat = Flatten (pooled)
    y = Gemm (flat, third_weight, third_bias)
}
"""
TRANSPOSED = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[1, 4, 6, 6] x) => (float[1, 8, 8, 8] y) {
    y = ConvTranspose (x, transposed_weight)
}
"""
SHAPES = {
    "first_weight": (8, 4, 3, 3),
    "first_bias": (8,),
    "second_weight": (8, 8, 3, 3),
    "second_bias": (8,),
    "third_weight": (8, 4),
    "third_bias": (4,),
    "transposed_weight": (4, 8, 3, 3),
}


def network(text: str = NETWORK) -> onnx.ModelProto:
    """The float model; nodes are named after what they make."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        if any(name in node.input for node in model.graph.node):
            array = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = node.output[0].removesuffix("_result")
    return model


class Noise(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
    """A few samples of noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.samples: Iterator[np.ndarray] = iter(rng.standard_normal((4, 1, 4, 6, 6)).astype(np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        sample = next(self.samples, None)
        return None if sample is None else {"x": sample}


def quantized(folder: Path, model: onnx.ModelProto | None = None, **options: object) -> onnx.ModelProto:
    """The model as onnxruntime's quantizer writes it."""
    arguments = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True, **options}
    path = folder / "quantized.onnx"
    quantize_static(model or network(), path, Noise(), quant_format=QuantFormat.QDQ, **arguments)
    return onnx.load(path)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    keep_relu = {"QDQKeepRemovableActivations": True}
    return quantized(tmp_path_factory.mktemp("fused"), extra_options=keep_relu)


def share_of(model: onnx.ModelProto) -> IntegerShare:
    return integer_share(lift(model).model)


def reading(model: onnx.ModelProto, op_type: str, stem: str) -> onnx.NodeProto:
    """The node of that operator whose result's or input's name begins with `stem`."""
    node: onnx.NodeProto
    for node in model.graph.node:
        if node.op_type == op_type and any(name.startswith(stem) for name in (node.input[0], node.output[0])):
            return node
    raise KeyError(f"{op_type} {stem}")


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
    return found[name]


def give_each(model: onnx.ModelProto, node: onnx.NodeProto, index: int, numbers: np.ndarray) -> None:
    """Let `node` read a constant with these numbers, one per channel, as its input `index`."""
    name = f"{node.output[0]}_{index}_each"
    model.graph.initializer.append(numpy_helper.from_array(numbers, name))
    node.input[index] = name


def test_everything_is_fused(fused: onnx.ModelProto) -> None:
    share = share_of(fused)
    assert (share.macs_total, share.macs_integer) == (FIRST_MACS + SECOND_MACS + GEMM_MACS,) * 2
    assert [(node.name, node.op_type, node.macs) for node in share.nodes] == [
        ("first", "Conv", FIRST_MACS),
        ("second", "Conv", SECOND_MACS),
        ("y", "Gemm", GEMM_MACS),
    ]
    assert share.share == 1
    assert share.exceptions == []
    assert share.conversions == 2


def test_a_float_model_has_no_integer_kernel() -> None:
    model = lift(network()).model
    share = integer_share(model)
    assert not is_quantized(model)
    assert share.share == share.conversions == 0
    assert [node.why for node in share.nodes] == ["it is not quantized"] * 3


def float_input(model: onnx.ModelProto) -> None:
    reading(model, "Conv", "x").input[0] = "x"


def float_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(SHAPES["first_weight"], np.float32), "ones"))
    reading(model, "Conv", "x").input[1] = "ones"


def second_reader(model: onnx.ModelProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info("second_result", onnx.TensorProto.FLOAT, None))


def no_quantize(model: onnx.ModelProto) -> None:
    reading(model, "GlobalAveragePool", "second_result").input[0] = "second_result"


def high_zero_point(model: onnx.ModelProto) -> None:
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        model.graph.node.remove(reading(model, op_type, "first_result"))
    reading(model, "Relu", "").input[0] = "first_result"
    zero_point = reading(model, "QuantizeLinear", "active").input[2]
    constant(model, zero_point).CopyFrom(numpy_helper.from_array(np.array(9, np.uint8), zero_point))


def bias_scale(model: onnx.ModelProto) -> None:
    scale = constant(model, reading(model, "DequantizeLinear", "second_bias").input[1])
    scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))


def weight_axis(model: onnx.ModelProto) -> None:
    node = reading(model, "DequantizeLinear", "first_weight")
    next(attribute for attribute in node.attribute if attribute.name == "axis").i = 1
    give_each(model, node, 1, np.full(4, 0.01, np.float32))
    give_each(model, node, 2, np.zeros(4, np.int8))


def input_per_channel(model: onnx.ModelProto) -> None:
    for node in (reading(model, "QuantizeLinear", "x"), reading(model, "DequantizeLinear", "x")):
        for index in (1, 2):
            tensor = numpy_helper.to_array(constant(model, node.input[index]))
            give_each(model, node, index, np.repeat(tensor, 4))


def alpha(model: onnx.ModelProto) -> None:
    gemm = reading(model, "Gemm", "")
    del gemm.attribute[:]
    gemm.attribute.append(onnx.helper.make_attribute("alpha", 0.5))


@pytest.mark.parametrize(
    ("damage", "name", "why"),
    [
        (float_input, "first", "its input 'x' is float, an input of the graph"),
        (float_weight, "first", "its weight 'ones' is float"),
        (weight_axis, "first", "lie along axis 1, not along axis 0"),
        (input_per_channel, "first", "has a scale per channel (axis 1)"),
        (high_zero_point, "first", "read by a float Relu 'active', which the range of QuantizeLinear"),
        (bias_scale, "second", "the scale of its bias 'second_bias' is not that of the input times that of the weight"),
        (second_reader, "second", "and the caller, not by one QuantizeLinear alone"),
        (no_quantize, "second", "its result 'second_result' is read by"),
        (alpha, "y", "alpha and beta must be 1"),
    ],
)
def test_why_a_node_stays_in_float(
    fused: onnx.ModelProto, damage: Callable[[onnx.ModelProto], None], name: str, why: str
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(fused)
    damage(model)
    share = share_of(model)
    left = {node.name: node.why for node in share.exceptions}
    assert left.keys() == {name}
    assert why in left[name]
    assert share.macs_integer < share.macs_total
    assert share.to_dict()["exceptions"][0].keys() == {"name", "op_type", "macs", "why"}


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="ARM has kernels for int8")
@pytest.mark.parametrize(("shared", "left"), [(None, set()), ("x", {"first"}), ("active", {"first", "second"})])
def test_shared_int8_activations(tmp_path: Path, shared: str | None, left: set[str]) -> None:
    model = quantized(tmp_path, activation_type=QuantType.QInt8)
    if shared is not None:
        node = reading(model, "DequantizeLinear", shared)
        reader = onnx.helper.make_node("Softplus", [node.output[0]], ["other"], "other")
        model.graph.node.insert(list(model.graph.node).index(node) + 1, reader)
        model.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None))
    share = share_of(model)
    assert {node.name for node in share.exceptions} == left
    assert all("int8 and read by several nodes" in node.why for node in share.exceptions)


@pytest.mark.parametrize("contrib", [False, True])
def test_sixteen_bits(tmp_path: Path, contrib: bool) -> None:
    wide = {"activation_type": QuantType.QUInt16, "extra_options": {"UseQDQContribOps": contrib}}
    left = {node.name: node.why for node in share_of(quantized(tmp_path, **wide)).exceptions}
    assert "is uint16, not 8 bits" in left["first"]


def test_an_operator_without_integer_kernel(tmp_path: Path) -> None:
    share = share_of(quantized(tmp_path, network(TRANSPOSED), op_types_to_quantize=["ConvTranspose"]))
    assert [node.why for node in share.nodes] == ["onnxruntime has no integer kernel for ConvTranspose"]


def test_quantized_at_run_time(tmp_path: Path) -> None:
    quantize_dynamic(network(), tmp_path / "dynamic.onnx", op_types_to_quantize=["Gemm", "MatMul"])
    share = share_of(onnx.load(tmp_path / "dynamic.onnx"))
    assert share.macs_integer == GEMM_MACS


@pytest.mark.parametrize(("accuracy", "runs_in"), [(0, "float"), (4, "integer")])
def test_a_quantized_weight_alone_is_no_integer_kernel(accuracy: int, runs_in: str) -> None:
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        agraph (float[1, 64] x) => (float[1, 8] y) <uint8[8, 2, 16] weight, float[16] scales> {{
            y = com.microsoft.MatMulNBits <K = 64, N = 8, bits = 4, block_size = 32, accuracy_level = {accuracy}>
                (x, weight, scales)
        }}
        """
    )
    del model.graph.value_info[:]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((8, 2, 16), np.uint8), "weight"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "scales"))
    (node,) = share_of(model).nodes
    assert (node.macs, node.runs_in) == (512, runs_in)
    assert node.why == ("" if runs_in == "integer" else "only its weight is quantized: MatMulNBits multiplies in float")


def test_nodes_in_functions_and_bodies_are_found() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        agraph (bool which, float[1, 8] x, float[8, 8] w) => (float[1, 8] y) {
            called = local.product (x, w)
            y = If (which) <
                then_branch = yes () => (float[1, 8] a) { a = local.product (called, w) },
                else_branch = no () => (float[1, 8] b) { b = Identity (called) }
            >
        }
        <domain: "local", opset_import: ["" : 17]>
        product (x, w) => (y) { y = MatMul (x, w) }
        """
    )
    share = share_of(model)
    assert [node.macs for node in share.nodes] == [64, 64]
    assert [node.why for node in share.nodes] == ["it is not quantized"] * 2


def test_memory_layouts_change_no_arithmetic(fused: onnx.ModelProto) -> None:
    """What `integer_share` reads, a level below the highest, has the same integer kernels as that."""

    def kernels(layouts: bool) -> list[str]:
        return sorted(n.op_type for n in all_nodes(optimized(fused, layouts=layouts)) if n.op_type.startswith("Q"))

    assert kernels(layouts=True) == kernels(layouts=False)


def test_the_optimized_graph_keeps_shapes_of_large_tensors() -> None:
    graph = optimized(network(), layouts=False).graph
    weights = {value.name: value.shape for value in graph.initializers.values()}
    assert weights["second_weight"] == ir.Shape([8, 8, 3, 3])
    assert [node.op_type for node in graph] == ["FusedConv", "Conv", "GlobalAveragePool", "Flatten", "Gemm"]
