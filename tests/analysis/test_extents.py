"""Numbers for symbols: the batch, `--shape`, assumptions, and extents that only bound inputs reveal."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from graphopt.analysis import shapes
from graphopt.analysis.extents import Extents
from graphopt.errors import OptionError
from graphopt.ir import walk
from graphopt.lift import lift


def parsed(text: str) -> ir.Model:
    """A model with inferred shapes; the text cannot leave a rank open, so outputs written as scalars are undeclared."""
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 18, "d" : 1]> {text}')
    for output in model.graph.outputs:
        output.shape = output.shape or None
    shapes.infer(model)
    return model


def value(model: ir.Model, name: str) -> ir.Value:
    return next(
        found
        for graph in model.graphs()
        for found in (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs))
        if found.name == name
    )


CONVOLUTION = """g (float[n,3,h,w] x, float[8,3,3,3] k, float[n,h] m) => (float[out,8,?,?] y)
    <int64[1] last = {2}> { c = Conv(x, k) y = Relu(c) i = NonZero(m) u = d.Custom(x) }"""


@pytest.mark.parametrize(
    ("batch", "given", "expected", "assumed"),
    [
        (None, {"x": [2, 3, 10, 12]}, (2, 8, 8, 10), {}),
        (5, {"m": [5, 10]}, (5, 8, 8, 30), {"w": 32}),  # one pixel is too few for the kernel
        (4, {"x": [4, 3, 10, 12]}, (4, 8, 8, 10), {}),
    ],
)
def test_symbols_get_numbers(
    batch: int | None, given: dict[str, list[int]], expected: tuple[int, ...], assumed: dict[str, int]
) -> None:
    extents = Extents(parsed(CONVOLUTION), batch=batch, shapes=given)
    model = parsed(CONVOLUTION)
    extents = Extents(model, batch=batch, shapes=given)
    assert extents.batch == expected[0]
    assert extents.assumed == assumed
    assert extents.dims(value(model, "c")) == expected
    assert extents.dims(value(model, "y")) == expected  # whose own symbol for the batch is nobody's
    assert extents.size(value(model, "c")) == expected[0] * 8 * expected[2] * expected[3]


@pytest.mark.parametrize(("kernel", "assumed"), [(1, 1), (33, 64), (400, 512), (20_000, 16_384)])
def test_an_open_extent_is_what_linear_layers_need(kernel: int, assumed: int) -> None:
    text = f"g (float[1,1,s] x, float[1,t] z, float[1,1,{kernel}] k) => (float y, float w) {{ y = Conv(x, k) w = Relu(z) }}"
    extents = Extents(parsed(text))
    assert extents.assumed == {"s": assumed, "t": 1}  # where nothing is large enough, the largest
    assert extents.chosen == extents.assumed


def test_what_other_layers_leave_empty_and_what_is_given_stays() -> None:
    shifted = "g (float[1,s] x) => (float y) <int64[1] one = {1}, int64[1] end = {99}> { y = Slice(x, one, end, one) }"
    assert Extents(parsed(shifted)).assumed == {"s": 1}
    text = "g (float[1,1,s] x, float[1,1,9] k) => (float y) { y = Conv(x, k) }"
    assert Extents(parsed(text), shapes={"x": [1, 1, 4]}).assumed == {}
    assert Extents(parsed(text), assume={"s": 100}).assumed == {"s": 100}


def test_one_sample_unless_told_otherwise() -> None:
    model = parsed("g (float[n,s,4] x) => (float[n,s,4] y) { y = Relu(x) }")
    extents = Extents(model)
    assert extents.batch == 1
    assert extents.assumed == {"s": 1}
    assert extents.dims(value(model, "y")) == (1, 1, 4)


def test_what_depends_on_data_or_is_opaque_is_not_known() -> None:
    model = parsed(CONVOLUTION)
    extents = Extents(model, shapes={"x": [1, 3, 9, 9]})
    for name in ("i", "u"):
        assert extents.dims(value(model, name)) is None
        assert extents.size(value(model, name)) is None
    assert extents.dims(None) is None
    assert extents.dims(value(model, "last")) == (1,)


def test_symbols_that_the_author_gave_to_data_are_assumed() -> None:
    model = parsed("g (float[n,4] x) => (float[boxes,4] y) <float[boxes,4] c> { c = d.Detect(x) y = Relu(c) }")
    extents = Extents(model, batch=3)
    assert extents.dims(value(model, "y")) == (1, 4)
    assert extents.assumed == {"boxes": 1}


def test_open_axes_of_inputs_can_be_bound() -> None:
    model = parsed('g (float[?,?,"a b"] x) => (float y) { s = Concat<axis=2>(x, x) y = Flatten<axis=2>(s) }')
    extents = Extents(model, batch=2)
    assert extents.assumed == {"x[1]": 1, "a b": 1}
    assert extents.dims(value(model, "y")) == (2, 2)
    assert Extents(model, shapes={"x": [2, 3, 4]}).dims(value(model, "y")) == (6, 8)


def test_inputs_without_a_rank_can_be_given_one() -> None:
    model = parsed("g (float x) => (float y) { y = Relu(x) }")
    for found in (model.graph.inputs[0], model.graph.outputs[0]):
        found.shape = None
    assert Extents(model).dims(model.graph.outputs[0]) is None
    extents = Extents(model, shapes={"x": [2, 3]})
    assert [extents.dims(value(model, name)) for name in "xy"] == [(2, 3), (2, 3)]


def test_rewrites_need_tell_nobody() -> None:
    model = parsed("g (float[n,4] x, float[4,6] a, float[4,7] b) => (float[m,?] y) { y = MatMul(x, a) }")
    extents = Extents(model, batch=2)
    assert extents.dims(value(model, "y")) == (2, 6)
    node = model.graph[0]
    node.replace_input_with(1, model.graph.inputs[2])
    model.graph.outputs[0].shape = ir.Shape(["m", None])
    shapes.infer(model, nodes=[node])
    assert extents.dims(value(model, "y")) == (2, 7)


@pytest.mark.parametrize(
    ("inputs", "batch", "given", "message"),
    [
        ("float[1,4] x", 8, {}, r"--batch 8: the batch is fixed at 1 \(dim 0 of input 'x'\)"),
        ("float x", 8, {}, "--batch 8: the model has no input with a batch dim"),
        ("float[n,4] x", 0, {}, "--batch 0: must be at least 1"),
        ("float[n,4] x", 8, {"x": [2, 4]}, "--batch 8: the batch is fixed at 2"),
        ("float[n,4] x", None, {"x": [2, 5]}, "--shape x: dim 1 is 4"),
        ("float[n,4] x", None, {"z": [2, 5]}, "no input 'z'"),
    ],
)
def test_contradictions(inputs: str, batch: int | None, given: dict[str, list[int]], message: str) -> None:
    model = parsed(f"g ({inputs}) => (float y) {{ y = Relu(x) }}")
    with pytest.raises(OptionError, match=message):
        Extents(model, batch=batch, shapes=given)


def test_a_fixed_batch_can_be_named() -> None:
    model = parsed("g (float[6,4] x) => (float[6,4] y) { y = Relu(x) }")
    assert Extents(model).batch == Extents(model, batch=6).batch == 6


def test_weights_that_are_inputs_are_no_batch(corpus: Path) -> None:
    model = lift(corpus / "structures" / "ultraface_version-RFB-320.onnx").model
    with pytest.raises(OptionError, match="fixed at 1"):
        Extents(model, batch=16)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ch_ppocr_mobile_v2.0_cls_infer", {"x": [2, 3, 48, 192]}),
        ("silero_vad_op18_ifless", {"input": [2, 512]}),
        ("superres_core_op18", {"_ppp5_expanded": [2, 1, 224, 224]}),
    ],
)
def test_real_models_leave_nothing_open(name: str, given: dict[str, list[int]], corpus: Path) -> None:
    model = lift(corpus / "structures" / f"{name}.onnx").model
    extents = Extents(model, shapes=given)
    open_ = [
        output.name
        for graph in walk.graph_and_bodies(model.graph)
        for node in graph
        for output in node.outputs
        if output.name and extents.dims(output) is None
    ]
    assert open_ == []
    assert extents.assumed == {}


def test_branches_that_do_not_fit_the_given_extents_stay_open(corpus: Path) -> None:
    model = lift(corpus / "structures" / "silero_vad.onnx").model
    extents = Extents(model, shapes={"input": [1, 512], "state": [2, 1, 128]})
    assert [extents.dims(output) for output in model.graph.outputs] == [(1, 1), (2, 1, 128)]
