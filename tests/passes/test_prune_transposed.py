"""`prune-channels` around ConvTranspose: it is seen, and refitted, like any other layer that reads channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.runtime.session import Session
from graphopt_passes.numerics.quantizer import Array


def decoder(settings: str, tensors: dict[str, Array], behind: str = "y = Identity(t)") -> onnx.ModelProto:
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,7,6] x) => (float[N,c,h,w] y)
        {{ c = Conv(x, v, b) t = ConvTranspose<{settings}>(c, w) {behind} }}"""
    )
    for name, array in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


def images(count: int, seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 7, 6)).astype(np.float32)}


def outputs(model: Any, feeds: dict[str, Array]) -> Array:
    found: Array = Session(model).run(feeds)["y"]
    return found


@pytest.mark.parametrize(
    ("settings", "extents"),
    [("strides=[2,2], pads=[1,0,0,1]", (8, 3, 3, 3)), ("group=2, strides=[2,1], dilations=[1,2]", (8, 2, 2, 2))],
)
def test_channels_that_others_make_up_for_go_without_loss(settings: str, extents: tuple[int, ...]) -> None:
    """Of every four channels that a group reads two are sums of the others, which only a refit of the ConvTranspose shows."""
    rng = np.random.default_rng(0)
    free = rng.normal(size=(2, 2, 4))  # weights and bias
    channels = np.concatenate([free, rng.normal(size=(2, 2, 2)) @ free], axis=1).reshape(8, 4)
    tensors = {"v": channels[:, :3, None, None], "b": channels[:, 3], "w": rng.normal(size=extents)}
    model = decoder(settings, tensors)
    result = graphopt.optimize(model, pipeline="prune-channels{macs=0.55,align=1}", data=images(24, 1))
    assert result.report.after.macs <= 0.55 * result.report.before.macs
    exact, found = (outputs(one, images(8, 2)) for one in (model, result.model))
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)


def test_transposed_convolutions_behind_what_was_pruned_are_refitted() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "v": rng.normal(size=(12, 3, 1, 1)),
        "b": rng.normal(size=12),
        "w": rng.normal(size=(12, 12, 2, 2)) / 4,
        "u": rng.normal(size=(12, 4, 2, 2)) / 4,
    }
    model = decoder("strides=[2,2]", tensors, "r = Relu(t) y = ConvTranspose<strides=[2,2]>(r, u)")
    result = graphopt.optimize(model, pipeline="prune-channels{macs=0.6,align=1}", data=images(24, 1))
    plain = graphopt.optimize(model, pipeline="prune-channels{macs=0.6,align=1,criterion=l2}")
    exact, found, alone = (outputs(one, images(8, 2)) for one in (model, result.model, plain.model))
    assert np.linalg.norm(found - exact) < 0.5 * np.linalg.norm(alone - exact)


def test_a_constant_channel_is_no_bias_of_a_transposed_convolution() -> None:
    """Outputs meet one tap of each phase, so that a constant input is not the same everywhere."""
    rng = np.random.default_rng(0)
    tensors = {"v": rng.normal(size=(4, 3, 1, 1)), "b": np.array([0.0, 0, 0, 1]), "w": rng.normal(size=(4, 2, 3, 3))}
    tensors["v"][3] = 0
    tensors["w"][3] *= 1e-3
    model = decoder("strides=[2,2]", tensors)
    result = graphopt.optimize(model, pipeline="prune-channels{macs=0.8,align=1,criterion=l2}")
    assert result.report.after.macs < result.report.before.macs
    exact, found = (outputs(one, images(8, 2)) for one in (model, result.model))
    assert np.abs(found - exact).max() <= 1.1 * np.abs(tensors["w"][3]).sum(axis=(1, 2)).max()
    (transposed,) = [node for node in result.model.graph.node if node.op_type == "ConvTranspose"]
    biases = [
        onnx.numpy_helper.to_array(one) for one in result.model.graph.initializer if one.name in transposed.input[2:]
    ]
    assert not any(one.any() for one in biases)
