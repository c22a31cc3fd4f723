from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import OptionError, UnsupportedModelError
from graphopt.runtime.inputs import Guess, candidate_inputs, seeded_inputs


def model(text: str, opset: int = 21) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("uint8", 0, 255), ("int8", -128, 127), ("bool", 0, 1), ("int64", 0, 7), ("float16", -6, 6), ("double", -6, 6)],
)
def test_range_of_unrestricted_inputs(kind: str, low: float, high: float) -> None:
    drawn = seeded_inputs(model(f"g ({kind}[64, 64] x) => ({kind}[64, 64] y) {{ y = Identity(x) }}"), seed=1)["x"]
    assert drawn.dtype == np.dtype({"double": "float64"}.get(kind, kind))
    assert low <= drawn.min() < drawn.max() <= high
    if drawn.dtype.kind in "iub":  # the whole range is used
        assert (drawn.min(), drawn.max()) == (low, high)


def test_strings_are_digits() -> None:
    drawn = seeded_inputs(model("g (string[5] x) => (string[5] y) { y = Identity(x) }"))["x"]
    assert drawn.dtype == object
    assert all(isinstance(text, str) and text.isdigit() for text in drawn)


def test_the_seed_decides() -> None:
    graph = model("g (float[4] x, int64[4] i) => (float[4] y) { y = Identity(x) }")
    first, again, other = (seeded_inputs(graph, seed=seed) for seed in (3, 3, 4))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["x"] != other["x"]).any()


INDICES = {
    "plain": "y = Gather(table, x)",
    "through data movement": """
        a = Cast<to = 6>(x)  f = Constant<value_ints = [-1]>()  b = Reshape(a, f)
        c = Unsqueeze(b, z)  d = Transpose(c)  y = Gather(table, d)""",
    "shifted": "a = Add(x, two)  y = Gather(table, a)",
    "elements": "a = Flatten(x)  b = Squeeze(a, z)  y = GatherElements(table, a)",
    "from an If body": """
        t = Constant<value = bool {1}>()
        y = If(t) <then_branch = th () => (float[A] p) { p = Gather(table, x) },
                   else_branch = el () => (float[B] q) { q = Gather(table, x) }>""",
}


@pytest.mark.parametrize("body", INDICES.values(), ids=INDICES.keys())
def test_indices_stay_inside_the_table(body: str) -> None:
    graph = model(
        f"""g (int64[1, 200] x) => (y) <float[30, 2] table = {{{",".join(["0"] * 60)}}}, int64[1] z = {{0}},
            int64[1] two = {{2}}> {{ {body} }}"""
    )
    drawn = np.concatenate([seeded_inputs(graph, seed=seed)["x"].ravel() for seed in range(5)])
    assert drawn.min() >= 0
    assert drawn.max() + (2 if "Add" in body else 0) == 29


def test_indices_inside_functions_and_by_symbol() -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (float[N, 4] data, int64[50] x) => (float[50, 4] y) { y = local.Look(data, x) }
    <domain: "local", opset_import: ["": 21]> Look (d, i) => (o) { o = Gather(d, i) }"""
    graph = ir.from_onnx_text(text)
    function = next(iter(graph.functions.values()))
    function.inputs[0].shape = graph.graph.inputs[0].shape  # as shape inference leaves it
    drawn = seeded_inputs(graph, guess=Guess(batch=5, other=9))
    assert drawn["data"].shape == (5, 4)
    assert (drawn["x"].min(), drawn["x"].max()) == (0, 4)


@pytest.mark.parametrize(
    "body",
    [
        "f = Cast<to = 1>(x)  one = Constant<value_float = 1.0>()  y = Sub(one, f)",
        "b = Cast<to = 9>(x)  y = Not(b)",
    ],
)
def test_masks_are_zeros_and_ones_with_no_empty_row(body: str) -> None:
    drawn = seeded_inputs(model(f"g (int64[40, 8] x) => (y) {{ {body} }}"))["x"]
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn[:, 0].all()


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ("y = Div(c, x)", range(1, 8)),
        ("y = Mod(c, x)", range(1, 8)),
        ("y, i = TopK<axis = 0>(c, x)", range(1, 6)),
        ("y = ConstantOfShape(x)", range(1, 4)),
        ("y = Equal(x, rate)", (0, 16000)),
    ],
)
def test_amounts_divisors_and_compared_constants(body: str, allowed: range | tuple[int, ...]) -> None:
    graph = model(f"g (int64[1] x) => (y) <int64[5] c = {{1, 2, 3, 4, 5}}, int64 rate = {{16000}}> {{ {body} }}")
    drawn = {int(seeded_inputs(graph, seed=seed)["x"][0]) for seed in range(60)}
    assert drawn == set(allowed)


def test_float_input_that_ends_as_an_index() -> None:
    graph = model(
        "g (float[200] x) => (float[200] y) <float[3] t = {1, 2, 3}> { i = Cast<to = 7>(x)  y = Gather(t, i) }"
    )
    assert set(seeded_inputs(graph)["x"]) == {0.0, 1.0, 2.0}


def test_symbols_are_bound_consistently() -> None:
    graph = model(
        "g (float[B, S] a, float[B, 4, S, S] b, float[2, ?, 16] state, float[B, ?, ?, ?] image) => (float[B, S] y) {"
        " y = Identity(a) }"
    )
    shapes = {name: array.shape for name, array in seeded_inputs(graph, guess=Guess(batch=3, other=7)).items()}
    assert shapes == {"a": (3, 7), "b": (3, 4, 7, 7), "state": (2, 3, 16), "image": (3, 32, 32, 32)}
    given = seeded_inputs(graph, shapes={"b": (1, 4, 5, 5)}, batch=9)
    assert given["a"].shape == (1, 5)  # the given shape binds B and S elsewhere too


def test_expressions_over_symbols_are_evaluated() -> None:
    graph = model("g (float[B, S] a, float[B, S] b) => (float[B, S] y) { y = Identity(a) }")
    symbols = graph.graph.inputs[0].shape
    assert symbols is not None
    graph.graph.inputs[1].shape = ir.Shape([symbols[0], symbols[1] + 1])
    assert seeded_inputs(graph, guess=Guess(2, 10))["b"].shape == (2, 11)


def test_fixed_models_have_one_candidate() -> None:
    graph = model("g (float[2, 3] a) => (float[2, 3] y) { y = Identity(a) }")
    (only,) = candidate_inputs(graph, batch=7)
    assert only["a"].shape == (2, 3)


def test_initializers_that_are_inputs_keep_their_value() -> None:
    graph = model("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    assert list(seeded_inputs(graph)) == ["x"]


def test_huge_inputs_are_refused_and_huge_guesses_left_out() -> None:
    with pytest.raises(UnsupportedModelError, match="too large"):
        list(candidate_inputs(model("g (float[1152921504606846976] x) => (y) { y = Identity(x) }")))
    open_everywhere = model("g (float[A, B, C, D, E] x) => (y) { y = Identity(x) }")
    shapes = [feeds["x"].shape for feeds in candidate_inputs(open_everywhere)]
    assert shapes == [(2, 32, 32, 32, 32), (1, 64, 64, 64, 64), (1, 1, 1, 1, 1)]


@pytest.mark.parametrize("kind", ["seq(float[2])", "optional(float[2])"])
def test_inputs_that_are_no_tensors(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match="input 'x'"):
        seeded_inputs(model(f"g ({kind} x) => (y) {{ y = Identity(x) }}"))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, r"no input 'z' \(its inputs: 'x'\)"),
        ({"x": (1,)}, "has 2 dims"),
        ({"x": (1, 5)}, "is fixed to"),
    ],
)
def test_shapes_that_contradict_the_model(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        seeded_inputs(model("g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }"), shapes=shapes)


def test_long_chains_do_not_overflow_the_stack() -> None:
    nodes, last = [], ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([3]))
    first = last
    for _ in range(20_000):
        nodes.append(ir.node("Identity", [last]))
        last = nodes[-1].outputs[0]
    table = ir.tensor(np.zeros(11, np.float32), name="t")
    weights = ir.Value(name="t", const_value=table, shape=ir.Shape([11]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes.append(ir.node("Gather", [weights, last]))
    graph = ir.Graph([first], nodes[-1].outputs, nodes=nodes, initializers=[weights], opset_imports={"": 21})
    drawn = [seeded_inputs(ir.Model(graph, ir_version=10), seed=seed)["x"].max() for seed in range(20)]
    assert max(drawn) == 10
