"""quantization.placement: which nodes run on integers, which values share a scale, and why the others stay float."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt_passes.quantization.placement import Placement, place
from graphopt_passes.quantization.targets import TARGETS, Target

if TYPE_CHECKING:
    from conftest import Rewriter

X86 = TARGETS["ort-x86"]
FLOAT = {
    "w": (4, 4, 1, 1),
    "w8": (4, 8, 1, 1),
    "w2": (4, 2, 1, 1),
    "b": (4,),
    "m": (4, 4),
    "m3": (2, 4, 4),
    "column": (4, 1),
    "row": (1, 4),
    "depth": (4, 1, 1, 1),
}
TENSORS: dict[str, np.ndarray] = {
    **{name: np.ones(shape, np.float32) for name, shape in FLOAT.items()},
    "zero": np.zeros((), np.float32),
    "one": np.ones((), np.float32),
    "six": np.full((), 6, np.float32),
    "nan": np.full((4, 4, 1, 1), np.nan, np.float32),
    "infinite": np.full((4,), np.inf, np.float32),
    "half": np.ones((4, 4, 1, 1), np.float16),
    "double": np.ones((4, 4, 1, 1), np.float64),
    "shape": np.array([0, -1]),
    "starts": np.array([0]),
    "ends": np.array([2]),
    "axes": np.array([1]),
    "halves": np.array([2, 2]),
    "int8": np.ones((4, 4, 1, 1), np.int8),
    "scale": np.full((), 0.5, np.float32),
    "k": np.array([1]),
}
Build = Callable[..., Placement]


@pytest.fixture
def placed(rewriter: Rewriter) -> Build:
    """The placement of a body `... => (outputs) { ... }` whose input is x; the tensors that it names are constants."""

    def placed(body: str, target: Target = X86, inputs: str = "float[n,4,6,6] x", **options: Any) -> Placement:
        tensors = {n: a for n, a in TENSORS.items() if any(f"{i}{n}{j}" in body for i in "( " for j in ",)")}
        return place(rewriter.typed(f"agraph ({inputs}) => {body}", tensors).graph, target, **options)

    return placed


def names(values: Iterable[ir.Value]) -> list[str]:
    return sorted(value.name or "" for value in values)


def layers(found: Placement) -> list[str]:
    return [layer.key for layer in found.layers]


def others(found: Placement) -> list[str]:
    return names(node.outputs[0] for node in found.others)


def groups(found: Placement) -> list[list[str]]:
    """The groups of values that share a scale."""
    return sorted(names(members) for members in found.groups.members().values())


def kept(found: Placement) -> dict[str, str]:
    return {node.outputs[0].name or "": why for node, why in found.kept.items()}


def test_a_residual_network(placed: Build) -> None:
    found = placed("""(float[n,k] y) {
        c1 = Conv(x, w, b) r1 = Relu(c1)
        c2 = Conv(r1, w)
        s = Add(c2, r1) r2 = Relu(s)
        p = MaxPool<kernel_shape = [2, 2]>(r2)
        a = GlobalAveragePool(p) f = Flatten(a)
        y = Gemm(f, m, b)
    }""")
    assert layers(found) == ["c1", "c2", "y"]
    assert others(found) == ["a", "f", "p", "s"]
    assert names(node.outputs[0] for node in found.absorbed) == ["r1", "r2"]
    assert groups(found) == [["a", "f"], ["c2"], ["p", "r2"], ["r1"], ["x"]]
    assert kept(found) == {}


def test_operators_without_weights_join_between_integers(placed: Build) -> None:
    found = placed("""(float[n,4,1,1] y) {
        before = Add(x, x)
        c = Conv(before, w) d = Conv(c, w)
        between = Mul(c, d)
        e = Conv(between, w)
        behind = Sub(e, e)
        y = GlobalAveragePool(behind)
    }""")
    assert layers(found) == ["c", "d", "e"]
    assert others(found) == ["between"]
    assert groups(found) == [["before"], ["between"], ["c"], ["d"], ["e"]]


def test_data_movement_shares_one_scale(placed: Build) -> None:
    found = placed("""(float[n,4,1,1] y) {
        c = Conv(x, w)
        t = Transpose<perm = [0, 1, 3, 2]>(c)
        p = MaxPool<kernel_shape = [2, 2]>(t)
        s1, s2 = Split<axis = 1>(p, halves)
        d = Conv(s1, w2)
        y = GlobalAveragePool(d)
    }""")
    assert others(found) == ["p", "s1", "t"]
    assert groups(found) == [["c", "p", "s1", "t"], ["d"], ["x"]]  # nobody reads s2


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("p = Conv(x, w) q = Conv(x, w)", [["d"], ["j", "p", "q"], ["x"]]),
        # q is read elsewhere, too
        ("p = Conv(x, w) q = Conv(x, w) e = Add(q, x) f = Conv(e, w)", [["d"], ["e"], ["j", "p"], ["q"], ["x"]]),
        # a scale shared with negative numbers would not absorb the Relu any more
        ("c = Conv(x, w) p = Relu(c) q = Conv(x, w)", [["d"], ["j", "q"], ["p"], ["x"]]),
        ("c = Conv(x, w) p = Relu(c) e = Conv(x, w) q = Relu(e)", [["d"], ["j", "p", "q"], ["x"]]),
        ("c = Conv(x, w) p = Relu(c) e = Conv(x, w) q = Clip(e, zero, six)", [["d"], ["j"], ["p"], ["q"], ["x"]]),
        # q only holds what its input holds, whose scale is its own
        (
            "c = Conv(x, w) p = Relu(c) e = Conv(x, w) r = Relu(e) q = MaxPool<kernel_shape = [1, 1]>(r)",
            [["d"], ["j", "p"], ["q", "r"], ["x"]],
        ),
        # what is float becomes integers for the Concat alone
        ("p = Conv(x, w) q = Tanh(x)", [["d"], ["j", "p", "q"], ["x"]]),
    ],
)
def test_concat_shares_its_scale_with_what_is_made_for_it(placed: Build, made: str, expected: list[list[str]]) -> None:
    found = placed(
        f"(float[n,4,1,1] y) {{ {made} j = Concat<axis = 1>(p, q) d = Conv(j, w8) y = GlobalAveragePool(d) }}"
    )
    assert groups(found) == expected


@pytest.mark.parametrize(
    ("activation", "absorbed"),
    [
        ("Relu(c)", True),
        ("Clip(c, zero, six)", True),
        ("Clip(c, , six)", True),
        ("Clip(c, one, six)", False),  # no range of integers begins at 1
        ("Clip(c, zero, bound)", False),  # not known
        ("Sigmoid(c)", False),
        ("LeakyRelu(c)", False),
    ],
)
def test_activations_are_absorbed_by_ranges_inside_theirs(placed: Build, activation: str, absorbed: bool) -> None:
    body = f"(float[n,4,1,1] y) {{ c = Conv(x, w) a = {activation} d = Conv(a, w) y = GlobalAveragePool(d) }}"
    found = placed(body, inputs="float[n,4,6,6] x, float bound")
    assert [node.op_type for node in found.absorbed] == ([activation.split("(")[0]] if absorbed else [])
    assert groups(found) == [["a"], *([] if absorbed else [["c"]]), ["d"], ["x"]]


@pytest.mark.parametrize(
    "body",
    [
        "(float[n,4,6,6] y, float[n,4,6,6] c) { c = Conv(x, w) a = Relu(c) y = Conv(a, w) }",  # a graph output
        "(float[n,4,6,6] y) { c = Conv(x, w) a = Relu(c) e = Add(c, a) y = Conv(e, w) }",  # read twice
    ],
)
def test_an_activation_that_does_not_see_everything_is_not_absorbed(placed: Build, body: str) -> None:
    found = placed(body, keep_heads=False)
    assert not found.absorbed
    assert ["a"] in groups(found)
    assert ["c"] in groups(found)


def test_only_the_first_of_two_activations_is_absorbed(placed: Build) -> None:
    found = placed(
        "(float[n,4,1,1] y) { c = Conv(x, w) r = Relu(c) a = Clip(r, zero, six) d = Conv(a, w) y = GlobalAveragePool(d) }"
    )
    assert [node.op_type for node in found.absorbed] == ["Relu"]
    assert others(found) == ["a"]


def test_an_excluded_activation_stays_float(placed: Build) -> None:
    found = placed(
        "(float[n,4,1,1] y) { c = Conv(x, w) a = Relu(c) d = Conv(a, w) y = GlobalAveragePool(d) }",
        excluded=lambda node: node.op_type == "Relu",
    )
    assert not found.absorbed
    assert others(found) == []
    assert groups(found) == [["a"], ["c"], ["d"], ["x"]]


@pytest.mark.parametrize(
    ("behind", "head"),
    [
        ("y = Identity(d)", True),
        ("s = Sigmoid(d) y = Mul(s, s)", True),
        ("f = Flatten(d) y = Softmax(f)", True),
        ("y = ArgMax(d)", True),
        ("r = Reshape(d, shape) v, y = TopK(r, k)", True),
        ("y = GlobalAveragePool(d)", False),
        ("y = ReduceMean<axes = [2, 3]>(d)", False),
        ("e = Conv(d, w) y = GlobalAveragePool(e)", False),
        ("e = Mul(d, d) f = Conv(e, w) y = GlobalAveragePool(f)", False),
    ],
)
def test_heads(placed: Build, behind: str, head: bool) -> None:
    kind = "int64" if "ArgMax" in behind or "TopK" in behind else "float"
    body = f"({kind}[a,b,c,e] y) {{ c0 = Conv(x, w) d = Conv(c0, w) {behind} }}"
    body = body.replace("[a,b,c,e]", "[o,p]") if "f = Flatten" in behind or "TopK" in behind else body
    found = placed(body)
    assert ("d" in kept(found)) == head
    assert not head or "head" in kept(found)["d"]
    assert layers(found)[:2] == (["c0"] if head else ["c0", "d"])
    assert layers(placed(body, keep_heads=False))[:2] == ["c0", "d"]


def test_a_kernel_that_may_leave_its_result_in_float_is_no_head(placed: Build) -> None:
    found = placed("(float[n,4] y) { y = Gemm(x, m, b) }", inputs="float[n,4] x")
    assert layers(found) == ["y"]
    assert groups(found) == [["x"]]
    other = placed("(float[n,4] y) { y = Gemm(x, m, b) }", TARGETS["generic"], inputs="float[n,4] x")
    assert "head" in kept(other)["y"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("d = Conv(c, v)", "its weight is not constant"),
        ("d = Conv(c, w, v1)", "its bias is not constant"),
        ("d = Conv(c, nan)", "its weight or bias is not finite"),
        ("d = Conv(c, w, infinite)", "its weight or bias is not finite"),
        ("q = QuantizeLinear(c, scale) e = DequantizeLinear(q, scale) d = Conv(e, w)", "quantized already"),
        ("e = DequantizeLinear(int8, scale) d = Conv(c, e)", "quantized already"),
        ("d = Conv(c, w) q = QuantizeLinear(d, scale)", "quantized already"),
        ("d = Conv(c, w) e = Relu(d) q = QuantizeLinear(e, scale) z = Tanh(e)", "quantized already"),
        ("d = MatMul(c, m3)", "its weight has 3 axes"),
        ("[stay] d = Conv(c, w)", "excluded"),
    ],
)
def test_kept(placed: Build, node: str, reason: str) -> None:
    behind = "" if "z =" in node else "z = Tanh(d)"
    body = f"(float[n,4,1,1] y) {{ c = Identity(x) {node} {behind} y = GlobalAveragePool(z) }}"
    inputs = "float[n,4,2,4] x, float[4,4,1,1] v, float[4] v1"
    found = placed(body, inputs=inputs, excluded=lambda node: node.name == "stay")
    assert layers(found) == []
    assert reason in kept(found)["d"]
    assert groups(found) == []


@pytest.mark.parametrize(("dtype", "weight"), [("float16", "half"), ("double", "double")])
def test_other_element_types_stay_as_they_are(placed: Build, dtype: str, weight: str) -> None:
    body = f"({dtype}[n,4,1,1] y) {{ d = Conv(x, {weight}) y = GlobalAveragePool(d) }}"
    assert "not float32" in kept(placed(body, inputs=f"{dtype}[n,4,6,6] x"))["d"]


@pytest.mark.parametrize(("bias", "fits"), [("b", True), ("row", True), ("one", True), ("column", False), ("m", False)])
def test_a_bias_must_be_one_row(placed: Build, bias: str, fits: bool) -> None:
    found = placed(f"(float[4,4] y) {{ y = Gemm(x, m, {bias}) }}", inputs="float[4,4] x")
    assert layers(found) == (["y"] if fits else [])
    assert fits or "row to row" in kept(found)["y"]


def test_products_of_activations(placed: Build) -> None:
    body = """(float[n,4,4] y) {
        q = MatMul(x, m) r = MatMul(x, m) t = Transpose<perm = [0, 2, 1]>(r)
        s = MatMul(q, t) p = Softmax(s) o = MatMul(p, q) z = MatMul(o, m) y = LpNormalization(z)
    }"""
    inputs = "float[n,4,4] x"
    assert list(kept(placed(body, inputs=inputs))) == ["s", "o"]
    found = placed(body, TARGETS["qnn"], inputs=inputs)
    assert others(found) == ["o", "p", "s", "t"]
    assert groups(found) == [["o"], ["p"], ["q"], ["r", "t"], ["s"], ["x"]]
    assert "head" in kept(found)["z"]


def test_a_target_takes_only_what_it_has_kernels_for(placed: Build) -> None:
    body = """(float[n,4,1,1] y) {
        t = ConvTranspose(x, w) c = Conv(t, w) p = Mul(c, t) d = Conv(p, w) y = GlobalAveragePool(d)
    }"""
    assert layers(placed(body)) == ["c", "d"]
    found = placed(body, TARGETS["tensorrt"])
    assert layers(found) == ["t", "c", "d"]
    assert others(found) == []
    assert groups(found) == [["p"], ["t"], ["x"]]  # what nobody wants as integers is left in float


def test_bodies_are_not_looked_into(placed: Build) -> None:
    found = placed(
        """(float[n,4,6,6] y) {
            y = If(flag) <
                then_branch = g () => (float[n,4,6,6] p) { p = Conv(x, w) },
                else_branch = h () => (float[n,4,6,6] q) { q = Relu(x) }
            >
        }""",
        inputs="float[n,4,6,6] x, bool flag",
    )
    assert layers(found) == []
    assert kept(found) == {}
