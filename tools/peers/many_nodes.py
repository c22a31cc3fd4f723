"""A graph of 20,000 small nodes, where the time of an optimizer is the time it spends per node.

The graph is a row of residual blocks on a (1, 8, 8, 8) tensor. Each has 20 nodes, six of which a lossless
optimizer can remove: a BatchNormalization behind a Conv, two Identity, a Constant and the product of it with
an initializer, and a node that nobody reads. 14 remain. Each block adds little to its input, as in a trained
residual network: over a thousand of them values neither grow nor forget the input, and the outputs of two
optimizers remain comparable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from peers.cache import cached

BLOCK_NODES = 20
REMOVABLE_NODES = 6
_CHANNELS = 8


def many_nodes(folder: Path | str | None = None, nodes: int = 20_000) -> Path:
    """Return the ONNX file of the graph of exactly `nodes` nodes, from the cache or into it."""
    return cached(folder, f"many-nodes-{nodes}", lambda path: onnx.save(_model(nodes), path))


class _Graph:
    """Nodes and initializers under construction; values are named after their node's index."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.random = np.random.default_rng(7)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def initializer(self, values: NDArray[np.float64]) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def per_channel(self, low: float, high: float) -> str:
        return self.initializer(self.random.uniform(low, high, (1, _CHANNELS, 1, 1)))


def _model(nodes: int) -> onnx.ModelProto:
    graph = _Graph()
    blocks, rest = divmod(nodes, BLOCK_NODES)
    tip = "input"
    for _ in range(blocks):
        tip = _add_block(graph, tip, 1 / max(blocks, 1) ** 0.5)
    for _ in range(rest):
        tip = graph.node("Add", tip, graph.per_channel(-0.1, 0.1))
    shape = [1, _CHANNELS, 8, 8]
    proto = helper.make_graph(
        graph.nodes,
        "many_nodes",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(tip, TensorProto.FLOAT, shape)],
        graph.initializers,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _add_block(graph: _Graph, x: str, gain: float) -> str:
    """Append 20 nodes that compute x + gain * f(x) and return the name of the result."""
    # branch 1: Conv, its BatchNormalization, and a constant that must be computed before it can be added
    weight = graph.initializer(graph.random.normal(0, 0.1, (_CHANNELS, _CHANNELS, 3, 3)))
    conv = graph.node("Conv", x, weight, pads=[1, 1, 1, 1])
    ranges = ((0.6, 1.4), (-0.1, 0.1), (-0.1, 0.1), (0.6, 1.4))
    statistics = [graph.initializer(graph.random.uniform(low, high, _CHANNELS)) for low, high in ranges]
    norm = graph.node("BatchNormalization", conv, *statistics)
    features = graph.node("Identity", graph.node("Relu", norm))
    value = graph.random.uniform(-0.5, 0.5, (1, _CHANNELS, 1, 1)).astype(np.float32)
    constant = graph.node("Constant", value=numpy_helper.from_array(value))
    shift = graph.node("Mul", constant, graph.per_channel(0.5, 1.0))
    features = graph.node("Relu", graph.node("Add", features, shift))
    # branch 2: element by element, from both the features and the input
    scaled = graph.node("Identity", graph.node("Mul", features, graph.per_channel(-1.0, 1.0)))
    mixed = graph.node("Add", scaled, x)
    gate = graph.node("Relu", mixed)
    graph.node("Relu", scaled)  # nobody reads this one
    joined = graph.node("Relu", graph.node("Add", graph.node("Mul", gate, features), mixed))
    # back to the residual row
    step = graph.node("Mul", joined, graph.per_channel(-gain, gain))
    row = graph.node("Add", step, x)
    row = graph.node("Mul", row, graph.per_channel(1 - 0.1 * gain, 1 + 0.1 * gain))
    return graph.node("Add", row, graph.per_channel(-0.1 * gain, 0.1 * gain))
