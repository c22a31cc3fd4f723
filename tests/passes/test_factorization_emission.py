"""Replacements as nodes: at full rank they compute what the layer did, wherever strides, pads and groups put its windows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Rewriter

from graphopt.analysis import meaning, shapes
from graphopt.analysis.extents import Extents
from graphopt.ir.surgery import FreshNames
from graphopt.ir.verify import verify
from graphopt.pricing import price
from graphopt_passes.factorization.candidates import Search
from graphopt_passes.factorization.emission import emit
from graphopt_passes.factorization.schemes import SCHEMES, Fits, layer_shape
from graphopt_passes.factorization.sites import Site, site_of
from graphopt_passes.numerics.quadratic import Quadratic
from graphopt_passes.reconstruction.linear import linear_layers
from graphopt_passes.reconstruction.transposed import transposed_layers

CONVS = {
    "plain": ("group=1", (6, 4, 3, 3), (2, 4, 7, 8)),
    "pads": ("pads=[1,0,2,1]", (6, 4, 3, 3), (2, 4, 7, 8)),
    "strides": ("pads=[1,1,1,1], strides=[2,3]", (6, 4, 3, 3), (2, 4, 9, 8)),
    "dilations": ("pads=[2,1,0,3], dilations=[2,1], strides=[1,2]", (5, 4, 3, 2), (2, 4, 9, 8)),
    "same upper": ('auto_pad="SAME_UPPER", strides=[2,1]', (6, 4, 3, 4), (2, 4, 7, 8)),
    "same lower": ('auto_pad="SAME_LOWER", strides=[2,2]', (6, 4, 2, 3), (2, 4, 7, 8)),
    "groups": ("group=2, pads=[1,1,1,1], strides=[2,1]", (6, 2, 3, 3), (2, 4, 7, 8)),
    "one axis": ("pads=[2,1], strides=[2]", (6, 4, 3), (2, 4, 9)),
    "three axes": ("pads=[1,0,1,0,1,1], strides=[1,2,1]", (5, 3, 2, 3, 2), (1, 3, 5, 6, 4)),
    "pointwise": ("strides=[2,2]", (6, 4, 1, 1), (2, 4, 7, 8)),
    "depthwise": ("group=4, pads=[1,1,1,1]", (4, 1, 3, 3), (2, 4, 7, 8)),
}


def convolution(
    rewriter: Rewriter, settings: str, weight: tuple[int, ...], data: tuple[int, ...], dtype: str = "float"
) -> ir.Model:
    rng, kind = np.random.default_rng(0), {"float": np.float32, "float16": np.float16}[dtype]
    tensors = {"w": rng.normal(size=weight).astype(kind), "b": rng.normal(size=weight[0]).astype(kind)}
    text = f"""net ({dtype}[{",".join(map(str, data))}] x) => ({dtype}[{",".join("?" * len(data))}] y)
        {{ c = Conv<{settings}>(x, w, b)
           y = Relu(c) }}"""
    return rewriter.typed(text, tensors)


def only_site(model: ir.Model) -> Site:
    (layer,) = linear_layers(model.graph)
    site = site_of(layer, Extents(model))
    assert isinstance(site, Site)
    return site


def replace(model: ir.Model, scheme: str) -> tuple[Site, int]:
    """Replace the one layer of `model` at the full amount; the site, and the MACs that its shapes say."""
    site = only_site(model)
    fits = Fits(site, [Quadratic.of(one) for one in site.layer.weight()])
    amount = SCHEMES[scheme].most(site)
    macs = sum(shape.macs for shape in SCHEMES[scheme].shapes(site, amount))
    emit(site, fits.fit(scheme, amount), FreshNames(model))
    return site, macs


@pytest.mark.parametrize("kind", CONVS)
def test_full_amounts_compute_the_same(rewriter: Rewriter, kind: str) -> None:
    before = convolution(rewriter, *CONVS[kind])
    schemes = [scheme for scheme, rule in SCHEMES.items() if rule.applies(only_site(before))]
    assert schemes
    for scheme in schemes:
        after = before.clone()
        _, macs = replace(after, scheme)
        verify(after)
        stated = {value.name: value.shape for node in after.graph for value in node.outputs}
        shapes.infer(after)
        meaning.check(after)
        for node in after.graph:
            for value in node.outputs:
                assert stated[value.name] == value.shape
        assert {"c", "y"} <= set(stated)
        assert price(after).macs == macs
        rewriter.same_outputs(before, after)


def test_branches_are_added_up_and_never_multiply_channels(rewriter: Rewriter) -> None:
    model = convolution(rewriter, *CONVS["pads"])
    replace(model, "depthwise")
    assert [node.op_type for node in model.graph].count("Add") == 5
    for node in model.graph:
        if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1:
            weight = node.inputs[1]
            assert weight is not None
            assert weight.shape is not None
            assert weight.shape.numpy()[:2] == (4, 1)


@pytest.mark.parametrize("scheme", ["channel", "spatial", "depthwise", "pointwise"])
def test_float16_stays_float16(rewriter: Rewriter, scheme: str) -> None:
    before = convolution(rewriter, *CONVS["strides"], dtype="float16")
    after = before.clone()
    replace(after, scheme)
    rewriter.same_outputs(before, after)


TRANSPOSED = {
    "strides, pads": ("strides=[2,1], pads=[1,0,0,1], output_padding=[1,0]", (4, 3, 3, 2), (2, 4, 5, 6)),
    "groups, dilations": ("group=2, dilations=[1,2]", (4, 3, 3, 2), (2, 4, 5, 6)),
    "same": ('auto_pad="SAME_UPPER", strides=[2,2]', (4, 3, 3, 5), (2, 4, 5, 6)),
    "output shape": ("output_shape=[9,12], strides=[2,2]", (4, 3, 4, 3), (2, 4, 5, 6)),
    "phases that do not meet": ("strides=[2,2]", (4, 3, 2, 2), (2, 4, 5, 6)),
    "one axis": ("strides=[3], pads=[1,0]", (4, 3, 4), (2, 4, 7)),
    "three axes": ("strides=[1,2,1], pads=[1,0,0,0,0,1]", (3, 2, 2, 3, 2), (1, 3, 3, 4, 3)),
    "pointwise": ("strides=[2,2], output_padding=[1,0]", (4, 3, 1, 1), (2, 4, 5, 6)),
}


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_full_amounts_of_transposed_convolutions_compute_the_same(rewriter: Rewriter, kind: str) -> None:
    settings, extents, data = TRANSPOSED[kind]
    rng, channels = np.random.default_rng(0), extents[1] * (2 if "group" in settings else 1)
    tensors = {name: rng.normal(size=size).astype(np.float32) for name, size in (("w", extents), ("b", channels))}
    before = rewriter.typed(
        f"""net (float[{",".join(map(str, data))}] x) => (float[{",".join("?" * len(data))}] y)
            {{ c = ConvTranspose<{settings}>(x, w, b) y = Relu(c) }}""",
        tensors,
    )
    (layer,) = transposed_layers(before.graph)
    site = site_of(layer, Extents(before))
    assert isinstance(site, Site)
    assert layer_shape(site).macs == site.macs == price(before).macs
    schemes = [scheme for scheme, rule in SCHEMES.items() if rule.applies(site)]
    assert schemes
    for scheme in schemes:
        after = before.clone()
        (layer,) = transposed_layers(after.graph)
        site = site_of(layer, Extents(after))
        assert isinstance(site, Site)
        fits = Fits(site, [Quadratic.of(one) for one in layer.weight()])
        amount = SCHEMES[scheme].most(site)
        emit(site, fits.fit(scheme, amount), FreshNames(after))
        verify(after)
        stated = {value.name: value.shape for node in after.graph for value in node.outputs}
        shapes.infer(after)
        meaning.check(after)
        for node in after.graph:
            for value in node.outputs:
                assert stated[value.name] == value.shape
        assert price(after).macs == sum(shape.macs for shape in SCHEMES[scheme].shapes(site, amount))
        rewriter.same_outputs(before, after)


def test_a_transposed_convolution_becomes_a_pointwise_one_and_a_thinner_one(rewriter: Rewriter) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
    model = rewriter.typed(
        "net (float[2,4,5,6] x) => (float[?,?,?,?] y) { y = ConvTranspose<strides=[2,2]>(x, w) }", {"w": weight}
    )
    (layer,) = transposed_layers(model.graph)
    site = site_of(layer, Extents(model))
    assert isinstance(site, Site)
    emit(site, Fits(site, [Quadratic.of(layer.weight()[0])]).fit("input", (2,)), FreshNames(model))
    assert [node.op_type for node in model.graph] == ["Conv", "ConvTranspose"]
    extents = [node.inputs[1].shape.numpy() for node in model.graph]  # type: ignore[union-attr]
    assert extents == [(2, 4, 1, 1), (2, 3, 3, 2)]


PRODUCTS = {
    "matmul": "y = MatMul(x, w)",
    "matmul, add": "m = MatMul(x, w)  y = Add(b, m)",
    "gemm": "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)",
    "gemm, transposed": "y = Gemm<transB=1, alpha=2.0>(x, w, b)",
    "gemm without bias": "y = Gemm(x, w)",
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_become_two(rewriter: Rewriter, kind: str) -> None:
    extents = (6, 5) if "transposed" in kind else (5, 6)
    data = "x: 3".replace("x: 3", "3,5" if "gemm" in kind else "2,3,5")
    result = "3,6" if "gemm" in kind else "2,3,6"
    weight = np.random.default_rng(0).normal(size=extents).astype(np.float32)
    before = rewriter.typed(
        f"net (float[{data}] x) => (float[{result}] y) <float[6] b = {{1,2,3,4,5,6}}> {{ {PRODUCTS[kind]} }}",
        {"w": weight},
    )
    after = before.clone()
    replace(after, "channel")
    verify(after)
    shapes.infer(after)
    meaning.check(after)
    assert [node.op_type for node in after.graph if node.op_type in ("MatMul", "Gemm")] == [
        "MatMul",
        "Gemm" if "gemm" in kind else "MatMul",
    ]
    rewriter.same_outputs(before, after)


def test_a_shared_weight_stays_for_the_other_layer(rewriter: Rewriter) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
    before = rewriter.typed(
        "net (float[1,4,9,9] x) => (float[1,4,5,5] y) { h = Conv(x, w) y = Conv(h, w) }", {"w": weight}
    )
    after = before.clone()
    site = site_of(linear_layers(after.graph)[0], Extents(after))
    assert isinstance(site, Site)
    emit(site, Fits(site, [Quadratic.of(weight.reshape(4, 36))]).fit("channel", (4,)), FreshNames(after))
    verify(after)
    assert "w" in after.graph.initializers
    rewriter.same_outputs(before, after)


def test_only_what_costs_less_is_tried(rewriter: Rewriter) -> None:
    from graphopt.pricing import DeviceProfile

    site = only_site(convolution(rewriter, "pads=[1,1,1,1]", (16, 16, 3, 3), (1, 16, 8, 8)))
    tried = Search(tuple(SCHEMES), 4, DeviceProfile(), faster=False).candidates(site)
    assert {one.scheme for one in tried} == set(SCHEMES)
    assert all(one.macs < site.macs and one.weights < site.weights for one in tried)
    assert all(rank % 4 == 0 for one in tried if SCHEMES[one.scheme].option != "decoupling" for rank in one.amount)
    faster = Search(tuple(SCHEMES), 4, DeviceProfile(), faster=True)
    assert all(one.seconds < faster.keep(site).seconds for one in faster.candidates(site))


@pytest.mark.parametrize(
    ("channels", "extent", "scheme", "share", "measured"),
    [  # onnxruntime on one thread of an AVX-512 server, relative to the regular 3 x 3 convolution
        (64, 56, "spatial", 0.5, 0.367),
        (64, 56, "tucker", 0.5, 0.395),
        (64, 56, "channel", 0.5, 0.573),
        (128, 28, "spatial", 0.5, 0.360),
        (128, 28, "tucker", 0.5, 0.382),
        (256, 14, "spatial", 0.5, 0.346),
        (256, 14, "channel", 0.5, 0.559),
    ],
)
def test_predicted_times_are_near_measured_ones(
    rewriter: Rewriter, channels: int, extent: int, scheme: str, share: float, measured: float
) -> None:
    from graphopt.pricing import DeviceProfile
    from graphopt_passes.factorization.timing import seconds

    shape = (channels, channels, 3, 3)
    site = only_site(convolution(rewriter, "pads=[1,1,1,1]", shape, (1, channels, extent, extent)))
    rank = round(share * channels)
    amount = (rank, rank) if scheme == "tucker" else (rank,)
    parts = SCHEMES[scheme].shapes(site, amount)
    times = [seconds(one, DeviceProfile(), convolution=True) for one in (parts, (layer_shape(site),))]
    assert times[0] / times[1] == pytest.approx(measured, rel=0.15)
