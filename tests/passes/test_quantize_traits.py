"""quantize keeps its accuracy whatever form a network's function is written in.

A separable network is rewritten without changing what it computes: channels of very different size, channels that are dead
and meet huge weights, channels that nobody reads. In float nothing changes; on 8 bits the noise must stay about as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from quantized_models import outputs, sqnr
from test_quantize_insertion import arrays

import graphopt
from graphopt_passes.quantization.layers import matrix, tensor
from graphopt_passes.quantization.placement import place
from graphopt_passes.quantization.targets import TARGETS

if TYPE_CHECKING:
    from conftest import Rewriter

CHANNELS, MORE = 12, 4
Weights = dict[str, np.ndarray]


def model(weights: Weights, ceiling: float | None = None) -> ir.Model:
    clip = "Relu" if ceiling is None else "Clip"
    bounds = "" if ceiling is None else ", zero, six"
    channels = len(weights["a"])
    text = f"""<ir_version: 8, opset_import: ["" : 13]> net (float[N,3,12,12] x) => (float[N,10] y) {{
        a0 = Conv<pads=[1,1,1,1]>(x, a, ab) a1 = {clip}(a0{bounds})
        b0 = Conv<pads=[1,1,1,1],group={channels}>(a1, b, bb) b1 = {clip}(b0{bounds})
        c0 = Conv(b1, c, cb) c1 = {clip}(c0{bounds}) p = GlobalAveragePool(c1) f = Flatten(p) y = Gemm(f, d)
    }}"""
    proto = parser.parse_model(text)
    constants = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    if ceiling is not None:
        constants |= {"zero": np.array(0, np.float32), "six": np.array(ceiling, np.float32)}
    proto.graph.initializer.extend(
        ir.serde.serialize_tensor(ir.Tensor(array, name=name)) for name, array in constants.items()
    )
    return graphopt.load(proto)


@functools.cache
def plain() -> Weights:
    rng = np.random.default_rng(0)
    shapes = {"a": (CHANNELS, 3, 3, 3), "b": (CHANNELS, 1, 3, 3), "c": (24, CHANNELS, 1, 1), "d": (24, 10)}
    weights = {name: rng.normal(0, np.prod(shape[1:]) ** -0.5, shape) for name, shape in shapes.items()}
    weights |= {
        "ab": rng.normal(0.1, 0.2, CHANNELS),
        "bb": rng.normal(0.1, 0.2, CHANNELS),
        "cb": rng.normal(0, 0.2, 24),
    }
    return weights


def wide(weights: Weights) -> Weights:
    """Channels on both sides of the depthwise layer between 2^-4 and 2^4 times as large."""
    first, second = np.random.default_rng(1).uniform(-4, 4, (2, CHANNELS))
    f, g = 2.0 ** first.reshape(-1, 1, 1, 1), 2.0 ** second.reshape(-1, 1, 1, 1)
    return weights | {
        "a": weights["a"] * f,
        "ab": weights["ab"] * f.ravel(),
        "b": weights["b"] * g / f,
        "bb": weights["bb"] * g.ravel(),
        "c": weights["c"] / g.reshape(1, -1, 1, 1),
    }


def widened(weights: Weights, a: float, ab: float, b: float, bb: float, c: float) -> Weights:
    """More channels: copies of the first ones with weights so many times as large, and with these biases."""
    few = slice(0, MORE)
    return weights | {
        "a": np.concatenate([weights["a"], weights["a"][few] * a]),
        "ab": np.concatenate([weights["ab"], np.full(MORE, ab)]),
        "b": np.concatenate([weights["b"], weights["b"][few] * b]),
        "bb": np.concatenate([weights["bb"], np.full(MORE, bb)]),
        "c": np.concatenate([weights["c"], weights["c"][:, few] * c], axis=1),
    }


TRAITS: dict[str, Callable[[Weights], Weights]] = {
    "wide ranges": wide,
    "no weights, and huge ones behind": functools.partial(widened, a=0, ab=-0.3, b=1000, bb=-0.1, c=1000),
    "never on, and huge weights behind": functools.partial(widened, a=30, ab=-1e5, b=100, bb=0, c=50),
    "off behind the depthwise layer": functools.partial(widened, a=1, ab=0.1, b=100, bb=-1e6, c=100),
    "always the same": functools.partial(widened, a=0, ab=2, b=0, bb=1, c=0),
    "large, and read by nobody": functools.partial(widened, a=20, ab=20, b=0, bb=0, c=0),
}
SAMPLES = np.random.default_rng(2).normal(0, 1, (96, 3, 12, 12)).astype(np.float32)
CALIBRATION, HELD_OUT = {"x": SAMPLES[:64]}, {"x": SAMPLES[64:]}


def noise(network: ir.Model) -> float:
    result = graphopt.optimize(network, "quantize{mode=static,prefer=integer,sensitivity=false}", data=CALIBRATION)
    return sqnr(outputs(network, HELD_OUT)[0], outputs(result.ir, HELD_OUT)[0])


@functools.cache
def of_plain() -> float:
    return noise(model(plain()))


@pytest.mark.parametrize("trait", TRAITS)
def test_the_form_of_a_network_does_not_matter(trait: str) -> None:
    network = model(TRAITS[trait](plain()))
    exact = outputs(model(plain()), HELD_OUT)[0]
    assert sqnr(exact, outputs(network, HELD_OUT)[0]) > 80  # it is the same function
    assert noise(network) > of_plain() - 3


def test_ranges_far_below_a_ceiling() -> None:
    """Behind a Relu6 that no channel reaches: each one between 1/16 and all of the room is used."""
    weights = plain()
    layers = model(weights)
    layers.graph.outputs.extend(value for node in layers.graph for value in node.outputs if value.name in ("a1", "b1"))
    seen = [array.max(axis=(0, 2, 3)) for array in outputs(layers, {"x": SAMPLES})[1:]]
    room = 2.0 ** np.random.default_rng(3).uniform(-4, 0, (2, CHANNELS))
    f, g = (6 / 1.5 / np.maximum(high, 1e-3) * part for high, part in zip(seen, room, strict=True))
    column = (-1, 1, 1, 1)
    capped = weights | {
        "a": weights["a"] * f.reshape(column),
        "ab": weights["ab"] * f,
        "b": weights["b"] * (g / f).reshape(column),
        "bb": weights["bb"] * g,
        "c": weights["c"] / g.reshape(1, -1, 1, 1),
    }
    network = model(capped, ceiling=6.0)
    assert sqnr(outputs(model(weights), HELD_OUT)[0], outputs(network, HELD_OUT)[0]) > 80
    assert noise(network) > of_plain() - 3


def test_what_is_clipped_are_weights_that_meet_nothing() -> None:
    network = model(TRAITS["no weights, and huge ones behind"](plain()))
    options = "mode=static,prefer=integer,sensitivity=false,equalize=false,feedback=false"
    clipped = arrays(graphopt.optimize(network, f"quantize{{{options}}}", data=CALIBRATION).ir)["c0_weight_quantized"]
    whole = arrays(graphopt.optimize(network, f"quantize{{{options},clip_weights=false}}", data=CALIBRATION).ir)[
        "c0_weight_quantized"
    ]
    assert np.abs(clipped[:, CHANNELS:]).max() == 127
    assert np.median(np.abs(clipped[:, :CHANNELS]).max(axis=1)) > 50
    assert np.median(np.abs(whole[:, :CHANNELS]).max(axis=1)) < 5


@pytest.mark.parametrize(
    ("layer", "inputs", "weight"),
    [
        ("Conv(x, w)", "n,4,5,5", (6, 4, 3, 3)),
        ("Conv<group = 2>(x, w)", "n,4,5,5", (6, 2, 3, 3)),
        ("Conv<group = 4>(x, w)", "n,4,5", (4, 1, 3)),
        ("ConvTranspose<group = 2>(x, w)", "n,4,5,5", (4, 3, 2, 2)),
        ("Gemm(x, w)", "n,4", (4, 6)),
        ("Gemm<transB = 1>(x, w)", "n,4", (6, 4)),
        ("MatMul(x, w)", "n,7,4", (4, 6)),
    ],
)
def test_which_input_each_weight_meets(rewriter: Rewriter, layer: str, inputs: str, weight: tuple[int, ...]) -> None:
    axes = ",".join("nopqr"[: len(inputs.split(","))])
    text = f"agraph (float[{inputs}] x) => (float[{axes}] y) {{ h = Identity(x) y = {layer.replace('x', 'h')} }}"
    graph = rewriter.typed(text, {"w": np.ones(weight, np.float32)}).graph
    (found,) = place(graph, TARGETS["qnn"], keep_heads=False).layers
    met = found.met(np.arange(4))
    assert met.shape == matrix(found, np.ones(weight)).shape
    index = tensor(found, met)
    group = found.node.attributes.get_int("group", 1)
    expected = np.empty(weight)
    for position in np.ndindex(*weight):
        if found.node.op_type == "Conv":
            expected[position] = position[0] // (weight[0] // group) * weight[1] + position[1]
        elif found.node.op_type == "Gemm" and "transB" in layer:
            expected[position] = position[1]
        else:
            expected[position] = position[0]
    np.testing.assert_array_equal(index, expected)
