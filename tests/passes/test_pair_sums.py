"""Pairs of products that saturate: the bound, integers that keep to it, and what onnxruntime does with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter
from hypothesis import given
from hypothesis import strategies as st
from quantized_models import SATURATES, outputs, sqnr

import graphopt
from graphopt.lift import lift
from graphopt.runtime.requests import ChannelRangeResult, Results
from graphopt_passes.numerics import pair_sums
from graphopt_passes.quantization import saturation
from graphopt_passes.quantization.insertion import Quantizer
from graphopt_passes.quantization.placement import Layer, place
from graphopt_passes.quantization.targets import TARGETS

MODELS = Path(__file__).parents[2] / "models"


def extremes(rows: np.ndarray, highest: np.ndarray) -> tuple[int, int]:
    """The smallest and the largest sum of a pair of products, by trying the ends of both inputs."""
    least = most = 0
    for row, inputs in zip(rows.tolist(), highest.tolist(), strict=True):
        for j in range(0, len(row), 2):
            for one in (0, inputs[j]):
                others = (0, inputs[j + 1]) if j + 1 < len(row) else (0,)
                for other in others:
                    total = one * row[j] + (other * row[j + 1] if j + 1 < len(row) else 0)
                    least, most = min(least, total), max(most, total)
    return least, most


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_the_excess_is_that_of_the_worst_inputs_and_fitted_rows_have_none(seed: int, inputs: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(-127, 128, (3, inputs)).astype(np.int8)
    highest = random.integers(0, 256, (3, inputs))
    for row, limits, found in zip(rows, highest, pair_sums.excess(rows, highest), strict=True):
        least, most = extremes(row[None], limits[None])
        assert found == pytest.approx(max(most / 32767, least / -32768))
    fitted = pair_sums.fitted(rows, highest)
    least, most = extremes(fitted, highest)
    assert least >= -32768
    assert most <= 32767
    assert (np.abs(fitted.astype(int)) <= np.abs(rows.astype(int))).all()
    assert (fitted.astype(int) * rows >= 0).all()
    fits = pair_sums.excess(rows, highest) <= 1
    np.testing.assert_array_equal(fitted[fits], rows[fits])


def test_pairs_are_moved_no_further_than_they_must() -> None:
    rows, highest = np.array([[127, 127, -127, -100]], np.int8), np.array([[255, 255, 255, 255]])
    np.testing.assert_array_equal(pair_sums.fitted(rows, highest), [[64, 64, -77, -50]])


CONVOLUTIONS = {
    "1x1": ("", (8, 6, 1, 1), 6),
    "3x3": ("<pads=[1,1,1,1]>", (8, 4, 3, 3), 4),
    "an odd number of channels": ("<pads=[1,1,1,1]>", (6, 3, 3, 3), 3),
    "groups": ("<pads=[1,1,1,1], group=2>", (8, 3, 3, 3), 6),
    "depthwise with a multiplier": ("<pads=[1,1,1,1], group=4>", (8, 1, 3, 3), 4),
    "depthwise": ("<pads=[1,1,1,1], group=4>", (4, 1, 3, 3), 4),
}


def layer_of(rewriter: Rewriter, attributes: str, weight: np.ndarray, channels: int) -> Layer:
    text = f"agraph (float[1,{channels},7,7] x) => (float[1,{len(weight)},7,7] y) {{ y = Conv{attributes}(x, w) }}"
    model = rewriter.typed(text, {"w": weight.astype(np.float32)})
    (layer,) = place(model.graph, TARGETS["ort-x86"], keep_heads=False).layers
    return layer


def convolved(
    rewriter: Rewriter, attributes: str, weight: np.ndarray, image: np.ndarray, *, integer: bool
) -> np.ndarray:
    """The u8 output of a convolution of integers, in an integer kernel or in float."""
    shapes = f"(uint8[1,{image.shape[1]},7,7] x) => (uint8[1,{len(weight)},7,7] y)"
    nodes = "y = QLinearConv ATTRIBUTES (x, one, zero, w, one, none, scale, middle)"
    if not integer:
        nodes = (
            "f = Cast<to = 1>(x) v = Cast<to = 1>(w) c = Conv ATTRIBUTES (f, v) y = QuantizeLinear(c, scale, middle)"
        )
    tensors = {"w": weight.astype(np.int8), "one": np.float32(1), "zero": np.uint8(0), "none": np.int8(0)}
    scale = np.float32(2 * np.abs(weight.astype(int)).reshape(len(weight), -1).sum(axis=1).max())
    model = rewriter.typed(
        f"agraph {shapes} {{ {nodes.replace('ATTRIBUTES', attributes)} }}",
        {name: np.asarray(array) for name, array in {**tensors, "scale": scale, "middle": np.uint8(128)}.items()},
    )
    return outputs(model, {"x": image.astype(np.uint8)}, optimize=integer)[0].astype(int)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_onnxruntime_computes_fitted_convolutions_exactly(rewriter: Rewriter, case: str) -> None:
    """The order of products is onnxruntime's: in another one, pairs would not fit and its sums be wrong on AVX2."""
    attributes, shape, channels = CONVOLUTIONS[case]
    random = np.random.default_rng(0)
    weight = random.integers(90, 128, shape) * random.choice([-1, 1], (shape[0], 1, 1, 1))
    ends = np.array([255.0, 200, 120, 255, 180, 255])[:channels]
    image = np.broadcast_to(ends[None, :, None, None], (1, channels, 7, 7))
    layer = layer_of(rewriter, attributes, weight, channels)
    results = Results({request: ChannelRangeResult(0 * ends, ends) for request in saturation.requests([layer])})
    inputs = saturation.highest([layer], results, {"x": Quantizer(1.0, 0, ir.DataType.UINT8)}).get(layer.key)
    assert (inputs is None) == (case == "depthwise")
    rows = weight.reshape(len(weight), -1)
    fitted = rows if inputs is None else saturation.fitted(layer, rows, inputs)
    assert inputs is None or saturation.excess(layer, fitted, inputs).max() <= 1
    for integers, exact in ((rows, inputs is None or not SATURATES), (fitted, True)):
        found, expected = (
            convolved(rewriter, attributes, integers.reshape(shape), image, integer=integer)
            for integer in (True, False)
        )
        assert (np.abs(found - expected).max() <= 1) == exact


@pytest.mark.parametrize("reduce_range", ["auto", "true", "false"])
def test_the_pass_leaves_room_where_it_must(reduce_range: str) -> None:
    pipeline = f"quantize{{reduce_range={reduce_range},feedback=false,ranges=minmax}}"
    samples = {"input": np.load(MODELS / "digits.calib.npz")["input"][:64]}
    result = graphopt.optimize(MODELS / "residual.onnx", pipeline=pipeline, data=samples)
    original = outputs(lift(MODELS / "residual.onnx").model, samples)[0]
    written, computed = (outputs(result.ir, samples, optimize=optimize)[0] for optimize in (False, True))
    quiet = reduce_range != "false" or not SATURATES
    assert (sqnr(written, computed) > 35) == quiet
    assert (sqnr(original, computed) > 22) == quiet
