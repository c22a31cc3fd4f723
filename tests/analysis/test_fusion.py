"""Which nodes make one kernel, told by the operators of each kernel in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import shapes
from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.analysis.fusion import Kernel


def model_of(text: str, opset: int = 20) -> ir.Model:
    """The model in `text`; of its inputs all but x and c become weights of zeros."""
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    model = ir.from_onnx_text(header + text)
    for value in list(model.graph.inputs):
        if value.name not in ("x", "c") and value.shape is not None and value.dtype is not None:
            value.const_value = ir.tensor(np.zeros(value.shape.numpy(), value.dtype.numpy()), name=value.name)
            model.graph.inputs.remove(value)
            model.graph.initializers.add(value)
    shapes.infer(model)
    return model


def kernels_of(text: str, opset: int = 20, block: int = 16) -> list[Kernel]:
    model = model_of(text, opset)
    return list(Execution(model, Extents(model), block).steps(model.graph))


def names(kernels: list[Kernel]) -> list[str]:
    """ "Conv+Relu" for a kernel, "reorder" for a change of layout."""
    return ["+".join(node.op_type for node in kernel.nodes) or "reorder" for kernel in kernels]


IMAGE = "float[1,16,8,8]"
WEIGHTS = "float[16,16,3,3] w, float[16] b, float[16] s, float[16] t, float[16] m, float[16] v"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c)", ["reorder", "Conv+Relu", "reorder"]),
        (
            "c = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(c, s, t, m, v) y = Relu(n)",
            ["reorder", "Conv+BatchNormalization+Relu", "reorder"],
        ),
        # A function without an in-place or fused form is a kernel of its own, on plain channels.
        (
            "c = Conv<pads=[1,1,1,1]>(x, w) e = Elu(c) y = Identity(e)",
            ["reorder", "Conv", "reorder", "Elu", "Identity"],
        ),
        # The other operand of the sum is plain, so the sum is, too.
        ("c = Conv<pads=[1,1,1,1]>(x, w) a = Add(c, x) y = Relu(a)", ["reorder", "Conv", "reorder", "Add", "Relu"]),
        # Two convolutions: the sum goes into one of them, with the activation after it.
        (
            "c = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1]>(x, w) a = Add(c, d) y = Relu(a)",
            ["reorder", "Conv", "Conv+Add+Relu", "reorder"],
        ),
        # One sum per convolution.
        (
            "c = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1]>(x, w) a = Add(c, d) y = Add(a, d)",
            ["reorder", "Conv", "Conv+Add", "Add", "reorder"],
        ),
        # An activation before the sum closes the convolution to it.
        (
            "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w) q = Relu(d) y = Add(r, q)",
            ["reorder", "Conv+Relu", "Conv+Relu", "Add", "reorder"],
        ),
        # Read twice: nothing may disappear.
        ("c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) y = Mul(c, r)", ["reorder", "Conv", "Relu", "Mul", "reorder"]),
    ],
)
def test_convolutions(body: str, expected: list[str]) -> None:
    text = f"g ({IMAGE} x, {WEIGHTS}) => ({IMAGE} y) {{ {body} }}"
    found = names(kernels_of(text))
    assert found == expected


def test_without_blocks_nothing_is_reordered_and_sums_still_fuse() -> None:
    text = f"""g ({IMAGE} x, {WEIGHTS}) => ({IMAGE} y) {{
        c = Conv<pads=[1,1,1,1]>(x, w) a = Add(c, x) y = Relu(a) }}"""
    (kernel,) = kernels_of(text, block=1)
    assert names([kernel]) == ["Conv+Add+Relu"]
    assert [tensor.value.name for tensor in kernel.overwrites] == ["x"]


def test_zero_padding_belongs_to_the_convolution() -> None:
    text = """g (float[1,16,8,8] x, float[16,16,3,3] w) => (float[1,16,8,8] y)
        <int64[8] p = {0,0,1,1,0,0,1,1}, float v = {VALUE}> { q = Pad(x, p, v) y = Conv(q, w) }"""
    assert names(kernels_of(text.replace("VALUE", "0"))) == ["reorder", "Pad+Conv", "reorder"]
    assert names(kernels_of(text.replace("VALUE", "1"))) == ["Pad", "reorder", "Conv", "reorder"]


GELU = """d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"""
LAYER_NORM = """m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<keepdims=1>(p, last)
    e = Add(v, small) r = Sqrt(e) q = Div(d, r) g = Mul(q, scale) y = Add(g, shift)"""
CONSTANTS = """<float root = {1.4142135}, float one = {1}, float half = {0.5}, float two = {2}, float small = {1e-5},
    int64[1] last = {-1}>"""
LINEAR = "float[8] scale, float[8] shift, float[8,8] w, float[8] bias"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (GELU, ["Div+Erf+Add+Mul+Mul"]),
        (LAYER_NORM, ["ReduceMean+Sub+Pow+ReduceMean+Add+Sqrt+Div+Mul+Add"]),
        ("s = Sigmoid(x) y = Mul(x, s)", ["Sigmoid+Mul"]),
        # An inner value that something else reads keeps the nodes apart.
        ("s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)", ["Sigmoid", "Mul", "Add"]),
        ("p = MatMul(x, w) y = Add(p, bias)", ["MatMul+Add"]),
        ("p = MatMul(x, w) a = Add(bias, p) y = Relu(a)", ["MatMul+Add+Relu"]),
        ("p = MatMul(x, w) y = Add(p, x)", ["MatMul", "Add"]),
        ("a = Add(x, x) y = LayerNormalization(a, scale, shift)", ["Add+LayerNormalization"]),
        ("a = Add(x, bias) y = Gelu(a)", ["Add+Gelu"]),
        # What depends on constants alone is computed beforehand.
        ("c = Mul(scale, shift) y = Add(x, c)", ["Add"]),
        ("s = Shape(x) o = ConstantOfShape(s) f = Cast<to=1>(o) y = Add(x, f)", ["Add"]),
    ],
)
def test_functions_of_several_nodes(body: str, expected: list[str]) -> None:
    text = f"g (float[2,4,8] x, {LINEAR}) => (float[2,4,8] y) {CONSTANTS} {{ {body} }}"
    assert names(kernels_of(text)) == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("m = Mul(f, half) y = Add(m, bias)", ["DynamicQuantizeLinear", "MatMulInteger+Cast+Mul+Add"]),
        ("m = Mul(f, half) y = Add(m, x)", ["DynamicQuantizeLinear", "MatMulInteger+Cast+Mul", "Add"]),
        ("y = Exp(f)", ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Exp"]),
    ],
)
def test_dynamically_quantized_products(end: str, expected: list[str]) -> None:
    text = f"""g (float[2,4,8] x, int8[8,8] w, float[8] bias) => (float[2,4,8] y) <float half = {{0.5}}> {{
        q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast<to=1>(i) {end} }}"""
    assert names(kernels_of(text)) == expected


def test_a_bias_after_rows_that_nobody_can_count_stays_an_addition() -> None:
    text = f"g (float[N,4,8] x, {LINEAR}) => (float[N,4,8] y) {CONSTANTS} {{ p = MatMul(x, w) y = Add(p, bias) }}"
    assert names(kernels_of(text)) == ["MatMul", "Add"]


QUANTIZED = """<float one = {{0.1}}, uint8 zero = {{{zero}}}, int8 middle = {{0}}>"""


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        # With its zero point at the bottom the quantized range clips as Relu does.
        (0, ["QuantizeLinear", "Conv+Relu+QuantizeLinear", "DequantizeLinear"]),
        (
            128,
            [
                "QuantizeLinear",
                "DequantizeLinear",
                "DequantizeLinear",
                "Conv+Relu",
                "QuantizeLinear",
                "DequantizeLinear",
            ],
        ),
    ],
)
def test_integer_kernels(zero: int, expected: list[str]) -> None:
    text = f"""g ({IMAGE} x, int8[16,16,3,3] w) => ({IMAGE} y) {QUANTIZED.format(zero=zero)} {{
        q = QuantizeLinear(x, one, zero) d = DequantizeLinear(q, one, zero) dw = DequantizeLinear(w, one, middle)
        c = Conv<pads=[1,1,1,1]>(d, dw) r = Relu(c) o = QuantizeLinear(r, one, zero) y = DequantizeLinear(o, one, zero)
        }}"""
    found = kernels_of(text)
    assert sorted(names(found)) == sorted(expected)
    integer = [kernel for kernel in found if kernel.integer]
    assert [[tensor.value.name for tensor in kernel.reads] for kernel in integer] == ([["q"]] if zero == 0 else [])


def test_bodies_read_what_they_capture(captured_model: Callable[[], ir.Model]) -> None:
    model = captured_model()
    steps = Execution(model, Extents(model), 16).steps(model.graph)
    (conditional,) = [kernel for kernel in steps if kernel.main.op_type == "If"]
    assert {tensor.value.name for tensor in conditional.reads} == {"c", "h"}


@pytest.fixture
def captured_model() -> Callable[[], ir.Model]:
    text = """g (bool c, float[4] x) => (float[4] y) {
        h = Exp(x)
        y = If (c) <then_branch = t () => (float[4] a) { a = Neg(h) }, else_branch = e () => (float[4] b) {
            i = Abs(h) b = Sqrt(i) }>
    }"""
    return lambda: model_of(text)
