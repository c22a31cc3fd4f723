"""Random graphs, pruned at random: every one runs, and computes what the original does without those channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from generated_graphs import BATCH, BATCH_SIZE, Growth, Value, described, feeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from pruning import lifted, pruned, run, same, silenced

from graphopt.analysis.coupling import couple, remove
from graphopt.ir.emit import to_bytes


class Network(Growth):
    """A graph with linear layers at its beginning and at its end, and anything between."""

    def layer(self, x: Value) -> Value:
        """A linear layer on the channels of `x`: axis 1 of an image, else the last axis."""
        width = self.draw(st.sampled_from([4, 6, 8]))
        dims = [dim for dim in x.dims[1:] if isinstance(dim, int)]
        seed = self.draw(st.integers(0, 99))
        if len(x.dims) == 4 and len(dims) == 3 and self.draw(st.booleans()):
            groups = self.draw(st.sampled_from([g for g in (1, 2, dims[0]) if dims[0] % g == 0 and width % g == 0]))
            weight = self.constant(numbers(seed, (width, dims[0] // groups, 1, 1)))
            return self.node("Conv", [x.name, weight], (x.dims[0], width, *dims[1:]), group=groups)
        weight = self.constant(numbers(seed, (dims[-1], width)))
        return self.node("MatMul", [x.name, weight], (*x.dims[:-1], width))

    def shuffle(self) -> None:
        """Channels in groups, exchanged: Reshape, Transpose, Reshape."""
        x = self.value(lambda value: len(value.dims) > 2 and {*range(1, len(value.dims))} <= {*value.fixed})
        if x is None or x.dims[1] not in (4, 6, 8):
            return
        batch, channels, rest = x.dims[0], int(x.dims[1]), [int(dim) for dim in x.dims[2:]]
        dims: tuple[int | str, ...] = (batch, 2, channels // 2, *rest)
        split = self.node("Reshape", [x.name, self.integers(0, 2, channels // 2, *rest)], dims)
        order = [0, 2, 1, *range(3, len(dims))]
        moved = self.node("Transpose", [split.name], tuple(dims[axis] for axis in order), perm=order)
        self.node("Reshape", [moved.name, self.integers(0, channels, *rest)], x.dims)


def numbers(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that are no two alike."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Networks whose outputs are mostly those of linear layers."""
    batch: Any = draw(st.sampled_from([BATCH, BATCH_SIZE]))
    inputs = [Value("image", (batch, 4, 3, 3)), Value("row", (batch, 6)), Value("scalar", ())]
    growth = Network(draw, draw(st.sampled_from([13, 17, 20])), inputs)
    growth.values = [growth.layer(inputs[0]), growth.layer(inputs[1]), inputs[2]]
    for _ in range(draw(st.integers(1, 5))):
        growth.grow(draw(st.integers(0, 3)))
        if draw(st.booleans()):
            growth.shuffle()
        x = growth.value(
            lambda value: len(value.dims) > 1 and value.dims[0] == batch and len(value.fixed) >= len(value.dims) - 1
        )
        if x is not None and isinstance(x.dims[-1], int):
            growth.layer(x)
    made = [value for value in growth.values if len(value.dims) > 1 and isinstance(value.dims[-1], int)]
    outputs = [growth.layer(draw(st.sampled_from(made))) for _ in range(draw(st.integers(1, 2)))]
    condition = helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, ())
    graph = helper.make_graph(
        growth.nodes, "g", [*map(described, inputs), condition], [*map(described, outputs)], growth.initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", growth.opset)], ir_version=9)


def each_its_own(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a copy of every initializer for each reader, so that zeros in one layer are in no other."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for number, node in enumerate(result.graph.node):
        for index, name in enumerate(node.input):
            if name in stored:
                copy = result.graph.initializer.add()
                copy.CopyFrom(stored[name])
                copy.name = node.input[index] = f"{name}_{number}_{index}"
    return result


def products_of_activations(proto: onnx.ModelProto) -> bool:
    """Whether channels may meet in a product, where zeros at the beginning need not be zeros any more."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    return any(node.op_type == "MatMul" and stored.isdisjoint(node.input) for node in proto.graph.node)


RUNS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@RUNS
@given(networks(), st.integers(0, 9))
def test_pruned_networks_run_and_are_exact(proto: onnx.ModelProto, seed: int) -> None:
    proto = each_its_own(proto)
    small, units = pruned(proto, 0.5, seed)
    result = run(small, feeds(seed))
    if not products_of_activations(proto):
        assert same(run(silenced(proto, units), feeds(seed)), result)


@RUNS
@given(networks(), st.integers(0, 9))
def test_shared_weights(proto: onnx.ModelProto, seed: int) -> None:
    small, _ = pruned(proto, 0.5, seed)
    run(small, feeds(seed))


@settings(RUNS, max_examples=8)
@given(networks())
def test_removing_nothing_changes_nothing(proto: onnx.ModelProto) -> None:
    taken = lifted(proto)
    assert remove(taken, couple(taken), []) == set()
    assert to_bytes(taken) == to_bytes(lifted(proto))
