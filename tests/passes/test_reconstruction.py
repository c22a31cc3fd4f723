"""The shared engine of structural passes: layers as matrices, and both networks side by side."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter

from graphopt.data import open_samples
from graphopt.errors import DataError, UnsupportedModelError
from graphopt.ir.surgery import FreshNames
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.session import Session, SessionOptions
from graphopt_passes.reconstruction.following import Activation, following
from graphopt_passes.reconstruction.linear import Linear, linear_layers, linear_of
from graphopt_passes.reconstruction.walk import Walk

Extents: TypeAlias = dict[str, tuple[int, ...]]
RNG = np.random.default_rng(5)

LAYERS: dict[str, tuple[str, Extents, tuple[int, ...]]] = {
    "grouped Conv": (
        "g (float[n,4,6,5] x) => (float[n,6,3,5] y) {y = Conv<group = 2, strides = [2, 1], pads = [1, 1, 1, 1]>(x, w, b)}",
        {"w": (6, 2, 3, 3), "b": (6,)},
        (3, 4, 6, 5),
    ),
    "Conv without bias": (
        "g (float[n,3,7] x) => (float[n,5,3] y) {y = Conv<dilations = [2]>(x, w)}",
        {"w": (5, 3, 3)},
        (2, 3, 7),
    ),
    "Gemm": (
        "g (float[n,4] x) => (float[n,3] y) {y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)}",
        {"w": (4, 3), "b": (1, 3)},
        (5, 4),
    ),
    "transposed Gemm": (
        "g (float[n,4] x) => (float[n,3] y) {y = Gemm<transB = 1>(x, w)}",
        {"w": (3, 4)},
        (5, 4),
    ),
    "MatMul with its Add": (
        "g (float[n,2,4] x) => (float[n,2,3] y) {t = MatMul(x, w) y = Add(b, t)}",
        {"w": (4, 3), "b": (3,)},
        (5, 2, 4),
    ),
}


def tensors(extents: Extents) -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in extents.items()}


def as_rows(layer: Linear, output: np.ndarray) -> np.ndarray:
    """(C, rows)"""
    return np.asarray(np.moveaxis(output, layer.channel_axis, 0).reshape(layer.channels, -1))


def product(layer: Linear, x: np.ndarray) -> np.ndarray:
    result = (layer.weight() @ layer.rows().take(x)).reshape(layer.channels, -1)
    bias = layer.bias()
    return np.asarray(result if bias is None else result + bias[:, None])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_matrix(rewriter: Rewriter, name: str) -> None:
    text, extents, shape = LAYERS[name]
    model = rewriter.model(text, tensors(extents))
    (layer,) = linear_layers(model.graph)
    x = RNG.normal(size=shape).astype(np.float32)
    y = Session(model, SessionOptions(optimize=False)).run({"x": x})["y"]
    assert layer.key == "y"
    np.testing.assert_allclose(product(layer, x), as_rows(layer, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_stored_is_what_is_computed(rewriter: Rewriter, name: str) -> None:
    text, extents, shape = LAYERS[name]
    model = rewriter.model(text, tensors(extents))
    (layer,) = linear_layers(model.graph)
    weight = RNG.normal(size=layer.weight().shape)
    bias = RNG.normal(size=layer.channels)
    layer.store(weight, bias, FreshNames(model))
    np.testing.assert_allclose(layer.weight(), weight, rtol=1e-6)
    x = RNG.normal(size=shape).astype(np.float32)
    expected = (weight @ layer.rows().take(x)).reshape(layer.channels, -1) + bias[:, None]
    y = Session(model, SessionOptions(optimize=False)).run({"x": x})["y"]
    np.testing.assert_allclose(as_rows(layer, y), expected, rtol=1e-4, atol=1e-4)


def test_a_shared_weight_is_left_to_its_other_readers(rewriter: Rewriter) -> None:
    model = rewriter.model(
        "g (float[n,4] x) => (float[n,4] y) {h = Gemm(x, w) y = Gemm(h, w)}", {"w": np.eye(4, dtype=np.float32)}
    )
    first, second = linear_layers(model.graph)
    first.store(2 * first.weight(), None, FreshNames(model))
    assert np.array_equal(second.weight()[0], np.eye(4))
    assert np.array_equal(first.weight()[0], 2 * np.eye(4))


def test_a_bare_matmul_takes_no_bias(rewriter: Rewriter) -> None:
    model = rewriter.model("g (float[n,4] x) => (float[n,3] y) {y = MatMul(x, w)}", tensors({"w": (4, 3)}))
    (layer,) = linear_layers(model.graph)
    assert not layer.takes_bias
    with pytest.raises(UnsupportedModelError, match="takes no bias"):
        layer.store(layer.weight(), np.zeros(3), FreshNames(model))


NO_LAYERS: dict[str, tuple[str, Extents]] = {
    "a weight that callers give": ("g (float[n,4] x, float[4,3] w) => (float[n,3] y) {y = MatMul(x, w)}", {}),
    "a transposed input": ("g (float[4,n] x) => (float[n,3] y) {y = Gemm<transA = 1>(x, w)}", {"w": (4, 3)}),
    "a number per row": ("g (float[5,4] x) => (float[5,3] y) {y = Gemm(x, w, c)}", {"w": (4, 3), "c": (5, 1)}),
    "nothing but the bias": ("g (float[n,4] x) => (float[n,3] y) {y = Gemm<alpha = 0.0>(x, w)}", {"w": (4, 3)}),
    "a stack of matrices": ("g (float[2,n,4] x) => (float[2,n,3] y) {y = MatMul(x, w)}", {"w": (2, 4, 3)}),
}


@pytest.mark.parametrize("why", NO_LAYERS)
def test_what_is_no_linear_layer(rewriter: Rewriter, why: str) -> None:
    text, extents = NO_LAYERS[why]
    assert linear_of(next(iter(rewriter.model(text, tensors(extents)).graph))) is None


RESIDUAL = """
    g (float[n,3,5,5] x) => (float[n,2] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba)
        s = Relu(a)
        b = Conv<pads = [1, 1, 1, 1]>(s, wb)
        t = Add(b, s)
        u = Clip(t, low, high)
        p = GlobalAveragePool(u)
        f = Flatten(p)
        y = Gemm(f, wf)
    }"""
WEIGHTS = {"wa": (4, 3, 3, 3), "ba": (4,), "wb": (4, 4, 3, 3), "wf": (4, 2)}
IMAGES = RNG.normal(size=(9, 3, 5, 5)).astype(np.float32)
CONSTANTS = {**tensors(WEIGHTS), "low": np.array(0, np.float32), "high": np.array(6, np.float32)}


def residual(rewriter: Rewriter) -> ir.Model:
    return rewriter.typed(RESIDUAL, CONSTANTS)


def evidence(model: ir.Model, images: np.ndarray = IMAGES) -> Evidence:
    return Evidence(open_samples({"x": images}, model))


def values(model: ir.Model, *names: str) -> list[np.ndarray]:
    """All rows of values: (C, rows)."""
    found = []
    for name in names:
        with evidence(model).stepper(model) as stepper:
            parts = [seen.values[name] for seen in stepper.stream([name])]
        array = np.concatenate(parts)
        found.append(np.moveaxis(array, 1, 0).reshape(array.shape[1], -1))
    return found


def test_a_refit_sees_compressed_inputs_and_the_original_targets(rewriter: Rewriter) -> None:
    original, compressed = residual(rewriter), residual(rewriter)
    first, second, _ = linear_layers(compressed.graph)
    with Walk(original, compressed, evidence(original)) as walk:
        before = walk.observe(first)
        assert (before.offset, before.activation) == (None, Activation(0.0, np.inf))
        first.store(0.5 * first.weight(), None, FreshNames(compressed))
        walk.advance(first.key)
        seen = walk.observe(second, original_inputs=True)
        y, shortcut, lost = (*values(original, "b", "s"), *values(compressed, "s"))
        np.testing.assert_allclose(seen.targets, y + shortcut - lost, rtol=1e-4, atol=1e-4)
        assert seen.offset is not None
        np.testing.assert_allclose(seen.offset, lost, rtol=1e-5)
        assert seen.activation == Activation(0.0, 6.0)
        # the layer as it is, on the compressed inputs
        mine = (second.weight() @ seen.inputs).reshape(4, -1)
        np.testing.assert_allclose(mine, values(compressed, "b")[0], rtol=1e-4, atol=1e-4)
        assert seen.original_inputs is not None
        theirs = (second.weight() @ seen.original_inputs).reshape(4, -1)
        np.testing.assert_allclose(theirs, y, rtol=1e-4, atol=1e-4)


def test_rows_are_the_same_in_both_networks_and_bounded(rewriter: Rewriter) -> None:
    original = residual(rewriter)
    layers = linear_layers(original.graph)
    with Walk(original, original.clone(), evidence(original), rows=40) as walk:
        seen = [walk.observe(layer) for layer in layers]
    assert [one.rows for one in seen] == [40, 40, 9]  # there are 9 x 25 positions; the classifier sees 9
    for layer, one in zip(layers, seen, strict=True):
        bias = layer.bias()
        y = (layer.weight() @ one.inputs).reshape(layer.channels, -1) + (0 if bias is None else bias[:, None])
        np.testing.assert_allclose(one.targets, y, rtol=1e-4, atol=1e-4)  # nothing is compressed


def test_only_the_kept_channels_are_targets(rewriter: Rewriter) -> None:
    original = residual(rewriter)
    (first, *_) = linear_layers(original.graph)
    with Walk(original, original.clone(), evidence(original)) as walk:
        every, some = walk.observe(first), walk.observe(first, kept=np.array([2, 0]))
    np.testing.assert_array_equal(some.targets, every.targets[[2, 0]])


def test_a_broadcast_addend_is_no_shortcut(rewriter: Rewriter) -> None:
    text = """
        g (float[n,2,4,4] x) => (float[n,2,4,4] y) {
            p = GlobalAveragePool(x)
            b = Conv(x, w)
            t = Add(b, p)
            y = Relu(t)
        }"""
    model = rewriter.typed(text, tensors({"w": (2, 2, 1, 1)}))
    (layer,) = linear_layers(model.graph)
    images = IMAGES[:, :2, :4, :4].copy()
    with Walk(model, model.clone(), evidence(model, images)) as walk:
        seen = walk.observe(layer)
    assert seen.offset is None
    assert seen.activation is None  # what is added before it is not known row by row


def test_what_else_reads_the_output_hides_what_follows(rewriter: Rewriter) -> None:
    model = rewriter.typed(
        "g (float[n,4] x) => (float[n,3] y, float[n,3] z) {t = MatMul(x, w) y = Relu(t) z = Neg(t)}",
        tensors({"w": (4, 3)}),
    )
    (layer,) = linear_layers(model.graph)
    assert following(layer.output) == following(model.graph.outputs[0])


def test_unknown_layers_and_infinities_are_errors(rewriter: Rewriter) -> None:
    original, compressed = residual(rewriter), residual(rewriter)
    (first, *_) = linear_layers(compressed.graph)
    first.output.name = "renamed"
    with Walk(original, compressed, evidence(original)) as walk, pytest.raises(DataError, match="'renamed'"):
        walk.observe(first)
    first.output.name = "a"
    images = IMAGES.copy()
    images[3, 0, 0, 0] = 1e38
    first.store(1e3 * first.weight(), None, FreshNames(compressed))
    with Walk(original, compressed, evidence(original, images)) as walk, pytest.raises(DataError, match="not finite"):
        walk.observe(linear_layers(compressed.graph)[1])
