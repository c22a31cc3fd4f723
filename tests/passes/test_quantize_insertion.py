"""quantization.insertion: the text of the model that a placement and a recipe make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import meaning, shapes
from graphopt.ir.verify import verify
from graphopt_passes.quantization.insertion import LayerWeights, Quantizer, Recipe, insert
from graphopt_passes.quantization.placement import Placement, place
from graphopt_passes.quantization.targets import TARGETS

if TYPE_CHECKING:
    from conftest import Rewriter

U8 = ir.DataType.UINT8


def recipe(placement: Placement, *, biased: Sequence[str] = (), per_channel: bool = True) -> Recipe:
    """Numbers that are easy to recognize: the i-th group has the scale 2^-i, the i-th layer the scales 2, 4, ... i times."""
    values: dict[str, Quantizer] = {}
    for index, members in enumerate(placement.groups.members().values()):
        values.update({member.name or "": Quantizer(2.0**-index, index, U8) for member in members})
    constants = {}
    for layer in placement.layers:
        shape = layer.weight.shape.numpy()
        channels = shape[layer.axis]
        weight = layer.weight.numpy().astype(np.int8)
        scale = np.arange(1, channels + 1, dtype=np.float32) * 2 if per_channel else np.array(2, np.float32)
        groups = layer.node.attributes.get_int("group", 1) if layer.node.op_type == "ConvTranspose" else 1
        has_bias = layer.key in biased or layer.bias is not None
        bias = np.arange(channels * groups, dtype=np.int32) if has_bias else None
        constants[layer.key] = LayerWeights(weight, scale, bias)
    return Recipe(values, constants)


def inserted(
    rewriter: Rewriter,
    text: str,
    tensors: Mapping[str, np.ndarray],
    *,
    biased: Sequence[str] = (),
    per_channel: bool = True,
    target: str = "ort-x86",
) -> ir.Model:
    """The model that `text` describes with quantizers in it, verified."""
    model = rewriter.typed(text, tensors)
    placement = place(model.graph, TARGETS[target], keep_heads=False)
    touched = insert(model, model.graph, placement, recipe(placement, biased=biased, per_channel=per_channel))
    verify(model, touched)
    verify(model)
    shapes.infer(model, nodes=touched)
    meaning.check(model)
    return model


def nodes(rewriter: Rewriter, model: ir.Model) -> list[str]:
    """The nodes as text, without their names."""
    copy = model.clone()
    for node in copy.graph:
        node.name = ""
    text = rewriter.printed(copy)
    return [" ".join(line.split()) for line in text[text.rindex("{\n") :].splitlines()[1:-1]]


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}


W = np.arange(1, 5, dtype=np.float32).reshape(2, 2, 1, 1)
B = np.ones(2, np.float32)


def test_a_chain(rewriter: Rewriter) -> None:
    model = inserted(
        rewriter,
        """agraph (float[n,2,4,4] x) => (float[n,2,4,4] y, float[n,2,4,4] t) {
            c = Conv(x, w, b) a = Relu(c) t = Tanh(a) d = Conv(t, w) y = Neg(d)
        }""",
        {"w": W, "b": B},
        biased=["d"],
    )
    assert nodes(rewriter, model) == [
        "x_QuantizeLinear = QuantizeLinear (x, x_scale, x_zero_point)",
        "x_QuantizeLinear_DequantizeLinear = DequantizeLinear (x_QuantizeLinear, x_scale, x_zero_point)",
        "c_weight_DequantizeLinear = DequantizeLinear <axis: int = 0> "
        "(c_weight_quantized, c_weight_scale, c_weight_zero_point)",
        "c_bias_DequantizeLinear = DequantizeLinear <axis: int = 0> (c_bias_quantized, c_weight_scale, c_bias_zero_point)",
        "c = Conv (x_QuantizeLinear_DequantizeLinear, c_weight_DequantizeLinear, c_bias_DequantizeLinear)",
        "a = Relu (c)",  # inside the kernel
        "a_QuantizeLinear = QuantizeLinear (a, a_scale, a_zero_point)",
        "a_QuantizeLinear_DequantizeLinear = DequantizeLinear (a_QuantizeLinear, a_scale, a_zero_point)",
        "t = Tanh (a_QuantizeLinear_DequantizeLinear)",  # a float operator, whose result the output gets as it is
        "t_QuantizeLinear = QuantizeLinear (t, t_scale, t_zero_point)",
        "t_QuantizeLinear_DequantizeLinear = DequantizeLinear (t_QuantizeLinear, t_scale, t_zero_point)",
        "d_weight_DequantizeLinear = DequantizeLinear <axis: int = 0> "
        "(c_weight_quantized, c_weight_scale, c_weight_zero_point)",  # one weight for both
        "d_bias_DequantizeLinear = DequantizeLinear <axis: int = 0> (d_bias_quantized, d_bias_scale, c_bias_zero_point)",
        "d = Conv (t_QuantizeLinear_DequantizeLinear, d_weight_DequantizeLinear, d_bias_DequantizeLinear)",
        "d_QuantizeLinear = QuantizeLinear (d, d_scale, d_zero_point)",
        "d_QuantizeLinear_DequantizeLinear = DequantizeLinear (d_QuantizeLinear, d_scale, d_zero_point)",
        "y = Neg (d_QuantizeLinear_DequantizeLinear)",
    ]
    found = arrays(model)
    np.testing.assert_array_equal(found["c_weight_quantized"], W.astype(np.int8))
    np.testing.assert_array_equal(found["c_weight_scale"], [2, 4])
    np.testing.assert_array_equal(found["d_bias_quantized"], np.array([0, 1], np.int32))
    np.testing.assert_array_equal(found["d_bias_scale"], [0.5, 1])  # 1/4, the scale of t, times 2 and 4
    assert {"w", "b"}.isdisjoint(found)


def test_what_is_read_as_float_too_stays(rewriter: Rewriter) -> None:
    model = inserted(
        rewriter,
        "agraph (float[n,2,4,4] x) => (float[n,2,4,4] y, float[2,2,1,1] u, float[n,2,4,4] z) "
        "{ y = Conv(x, w) u = Neg(w) z = Neg(x) }",
        {"w": W},
    )
    assert {"u = Neg (w)", "z = Neg (x)"} <= set(nodes(rewriter, model))
    assert "w" in model.graph.initializers


def test_graph_outputs_keep_what_users_know_of_them(rewriter: Rewriter) -> None:
    text = """agraph (float[n,2,4,4] x) => (float[n,2,4,4] c, float[n,2,rows,4] y) {
        c = Conv(x, w) a = Relu(c) y = Conv(a, w) z = Sigmoid(c)
    }"""
    model = rewriter.typed(text, {"w": W})
    outputs = list(model.graph.outputs)
    for value in outputs:
        value.doc_string, value.metadata_props["key"] = f"about {value.name}", "kept"
    placement = place(model.graph, TARGETS["ort-x86"], keep_heads=False)
    insert(model, model.graph, placement, recipe(placement))
    verify(model)
    for before, after, name, rows in zip(outputs, model.graph.outputs, ("c", "y"), (4, "rows"), strict=True):
        assert (after.name, after.dtype, after.doc_string) == (name, ir.DataType.FLOAT, f"about {name}")
        assert after.metadata_props == {"key": "kept"}
        assert after.shape is not None
        assert after.shape[2] == (rows if isinstance(rows, int) else ir.SymbolicDim(rows))
        assert after is not before
        producer = after.producer()
        assert producer is not None
        assert producer.op_type == "DequantizeLinear"
    found = nodes(rewriter, model)
    assert "c_float_QuantizeLinear" not in "".join(found)
    assert any(line.startswith("c_float = Conv") for line in found)
    assert "a = Relu (c)" in found
    assert "z = Sigmoid (c)" in found


@pytest.mark.parametrize(
    ("layer", "inputs", "weight", "axis", "biases"),
    [
        ("Conv(x, w, b)", "n,2,4,4", (6, 2, 1, 1), 0, 6),
        ("Conv<group = 2>(x, w, b)", "n,2,4,4", (6, 1, 3, 3), 0, 6),
        ("Conv(x, w, b)", "n,2,4", (6, 2, 3), 0, 6),
        ("ConvTranspose(x, w, b)", "n,2,4,4", (2, 6, 1, 1), 1, 6),
        ("ConvTranspose<group = 2>(x, w, b)", "n,2,4,4", (2, 3, 2, 2), 1, 6),
        ("Gemm(x, w, b)", "n,4", (4, 6), 1, 6),
        ("Gemm<transB = 1>(x, w, b)", "n,4", (6, 4), 0, 6),
        ("MatMul(x, w)", "n,4", (4, 6), 1, None),
        ("MatMul(x, w)", "n,5,4", (4, 6), 1, None),
    ],
)
def test_scales_lie_along_the_output_channels(
    rewriter: Rewriter, layer: str, inputs: str, weight: tuple[int, ...], axis: int, biases: int | None
) -> None:
    rank = len(inputs.split(","))
    outputs = ",".join("nopqr"[:rank])
    tensors = {"w": np.ones(weight, np.float32), **({} if biases is None else {"b": np.ones(biases, np.float32)})}
    text = f"agraph (float[{inputs}] x) => (float[{outputs}] y) {{ h = Identity(x) y = {layer.replace('x', 'h')} }}"
    model = rewriter.typed(text, tensors)
    placement = place(model.graph, TARGETS["qnn"], keep_heads=False)
    insert(model, model.graph, placement, recipe(placement))
    verify(model)
    meaning.check(model)
    made = placement.layers[0].node
    values = [None if value is None else value.producer() for value in made.inputs]
    assert values[1] is not None
    assert values[1].attributes.get_int("axis") == axis
    scale = arrays(model)[(values[1].inputs[1] or ir.Value()).name or ""]
    assert scale.shape == (weight[axis],)
    if biases is not None:
        assert values[2] is not None
        assert values[2].attributes.get_int("axis") == 0
        unit = arrays(model)[(values[2].inputs[1] or ir.Value()).name or ""]
        np.testing.assert_array_equal(unit, np.tile(scale, biases // len(scale)))  # groups share their scales


def test_one_scale_for_a_whole_weight_has_no_axis(rewriter: Rewriter) -> None:
    text = "agraph (float[n,2,4,4] x) => (float[n,2,4,4] y) { y = Conv(x, w, b) }"
    model = inserted(rewriter, text, {"w": W, "b": B}, per_channel=False)
    dequantizers = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert all("axis" not in node.attributes for node in dequantizers)
    assert [node.inputs[1].shape for node in dequantizers if node.inputs[1]] == [ir.Shape(())] * 4


def test_a_group_shares_its_constants(rewriter: Rewriter) -> None:
    model = inserted(
        rewriter,
        """agraph (float[n,2,4,4] x) => (float[n,2,4,4] y) {
            c = Conv(x, w) t = Transpose<perm = [0, 1, 3, 2]>(c) y = Conv(t, w)
        }""",
        {"w": W},
    )
    quantizers = {node.inputs[0]: node for node in model.graph if node.op_type == "QuantizeLinear"}
    by_name = {value.name: [v.name for v in node.inputs[1:] if v] for value, node in quantizers.items() if value}
    assert by_name["c"] == by_name["t"]
    assert by_name["x"] != by_name["t"]


def test_names_that_are_taken_are_left_alone(rewriter: Rewriter) -> None:
    model = inserted(
        rewriter,
        "agraph (float[n,2,4,4] x, float x_scale) => (float[n,2,4,4] y, float z) "
        "{ y_weight_scale = Neg(x_scale) [x_QuantizeLinear] z = Neg(y_weight_scale) y = Conv(x, w) }",
        {"w": W},
    )
    assert "x_scale_2" in model.graph.initializers
    assert "y_weight_scale_2" in model.graph.initializers


def test_bodies_read_what_the_integers_say(rewriter: Rewriter) -> None:
    model = inserted(
        rewriter,
        """agraph (float[n,2,4,4] x, bool flag) => (float[n,2,4,4] y) {
            c = Conv(x, w)
            y = If(flag) <
                then_branch = g () => (float[n,2,4,4] p) { p = Neg(c) },
                else_branch = h () => (float[n,2,4,4] q) { q = Neg(x) }
            >
        }""",
        {"w": W},
    )
    node = next(node for node in model.graph if node.op_type == "If")
    read = [node.attributes[name].as_graph()[0].inputs[0] for name in ("then_branch", "else_branch")]
    assert [value.name for value in read if value] == ["c_QuantizeLinear_DequantizeLinear", "x"]
