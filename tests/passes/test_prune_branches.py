"""prune-channels on residual networks: branches that go as a whole, and those that must not."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.analysis.coupling import couple
from graphopt.ir.emit import to_proto
from graphopt.ir.verify import verify
from graphopt.lift import lift
from graphopt_passes.pruning import planning, sensitivity
from graphopt_passes.pruning.branches import branches, take_out
from graphopt_passes.pruning.structure import Structure

CHANNELS, INSIDE = 8, 6


def _network(scales: tuple[float, ...] = (1e-3, 1.0), *, projected: bool = False, seed: int = 0) -> onnx.ModelProto:
    """A convolution, one residual block per scale of its branch, pooling, Gemm; in the first a projection as the shortcut."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(value: str, name: str, outputs: int, inputs: int, size: int = 3, scale: float = 1.0) -> str:
        weight = scale * rng.normal(size=(outputs, inputs, size, size)) / np.sqrt(size**2 * inputs / 2)
        arrays = {f"{name}.w": weight, f"{name}.b": scale * 0.1 * rng.normal(size=outputs)}
        weights.extend(numpy_helper.from_array(array.astype(np.float32), key) for key, array in arrays.items())
        nodes.append(helper.make_node("Conv", [value, *arrays], [name], name, pads=[size // 2] * 4))
        return name

    def relu(value: str) -> str:
        nodes.append(helper.make_node("Relu", [value], [f"{value}.r"], f"{value}.r"))
        return f"{value}.r"

    value = relu(conv("x", "stem", CHANNELS, 3))
    for number, scale in enumerate(scales):
        first = relu(conv(value, f"first{number}", INSIDE, CHANNELS))
        second = conv(first, f"second{number}", CHANNELS, INSIDE, scale=scale)
        rest = conv(value, "projection", CHANNELS, CHANNELS, size=1) if projected and not number else value
        nodes.append(helper.make_node("Add", [second, rest], [f"sum{number}"], f"sum{number}"))
        value = relu(f"sum{number}")
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    weights.append(numpy_helper.from_array(rng.normal(size=(5, CHANNELS)).astype(np.float32), "w"))
    nodes.append(helper.make_node("Gemm", ["flat", "w"], ["y"], "head", transB=1))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
    graph = helper.make_graph(nodes, "g", [given], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _samples(count: int = 64, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def _outputs(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, _samples(seed=9))[0])


def _prune(model: onnx.ModelProto, options: str) -> graphopt.Result:
    return graphopt.optimize(model, pipeline=f"prune-channels{{{options}}}", data=_samples())


def _nodes(result: graphopt.Result) -> set[str]:
    return {node.name for node in result.model.graph.node}


def _remarks(result: graphopt.Result) -> str:
    return "\n".join(str(remark) for record in result.report.passes for remark in record.remarks)


@pytest.mark.parametrize("align", [1, 2])
def test_a_branch_that_gives_next_to_nothing_goes_as_a_whole(align: int) -> None:
    model = _network()
    result = _prune(model, f"macs=0.6,align={align}")
    assert not _nodes(result) & {"first0", "second0", "sum0", "sum0.r"}
    assert {"first1", "second1", "sum1"} <= _nodes(result)
    assert "first0: its branch goes as a whole, 6 channels" in _remarks(result)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    right = _outputs(model)
    assert np.sum((_outputs(result.model) - right) ** 2) < 0.02 * np.sum((right - right.mean(axis=0)) ** 2)


@pytest.mark.parametrize(
    "more", ["branches=false", "min_width=2", "scope=uniform", "criterion=l2", "repair=false", "exclude=second0"]
)
def test_branches_stay_where_they_may_not_go(more: str) -> None:
    result = _prune(_network(), f"macs=0.7,align=1,{more}")
    assert {"first0", "second0", "sum0"} <= _nodes(result)
    assert "as a whole" not in _remarks(result)


def test_branches_that_count_stay() -> None:
    result = _prune(_network((1.0, 1.0)), "macs=0.9,align=1")
    assert {"sum0", "sum1"} <= _nodes(result)


@pytest.mark.parametrize("projected", [False, True])
def test_without_the_branch_the_network_gives_what_zeros_give(projected: bool) -> None:
    model = _network((1.0, 1.0), projected=projected)
    zeros = onnx.ModelProto()
    zeros.CopyFrom(model)
    for tensor in zeros.graph.initializer:
        if tensor.name.startswith("second0"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    lifted = lift(model).model
    structure = Structure(lifted, couple(lifted))
    structure.branches = branches(lifted, structure, lambda _: False)
    assert sorted(structure.branches.values()) == ["sum0", "sum1"]
    number = next(number for number, key in structure.branches.items() if key == "sum0")
    inside = next(index for index, key in structure.branches.items() if key == "sum1")
    gone = {number: range(INSIDE), inside: range(2)}
    cut = lifted.clone()
    assert take_out(cut, structure, gone) is None
    verify(cut)
    assert not {"first0", "second0"} & {node.name for node in cut.graph}
    assert ("projection" in {node.name for node in cut.graph}) == projected
    fewer = lifted.clone()
    assert take_out(fewer, structure, {number: range(INSIDE)}) is None
    np.testing.assert_allclose(_outputs(to_proto(fewer)), _outputs(zeros), rtol=1e-4, atol=1e-5)


def test_a_value_that_something_else_reads_ends_no_branch() -> None:
    model = _network((1.0,))
    model.graph.output.append(helper.make_tensor_value_info("second0", TensorProto.FLOAT, ["n", CHANNELS, 8, 8]))
    lifted = lift(model).model
    structure = Structure(lifted, couple(lifted))
    assert branches(lifted, structure, lambda _: False) == {}


def test_what_was_measured_without_a_branch_counts_there_alone() -> None:
    curve = np.array([0.9, 0.4, 0.1, 0.0])
    points = [(0.1, 1.0), (0.4, 4.0)]
    without = sensitivity.harms(curve, points, 1.0)
    found = sensitivity.harms(curve, [*points, (0.9, 100.0)], 1.0)
    np.testing.assert_allclose(found[1:], without[1:])
    assert found[0] == pytest.approx(100.0)
    half = sensitivity.harms(curve, [*points, (0.9, 100.0)], 0.5)
    assert half[0] == pytest.approx(math.sqrt(0.9 * 100))


def test_branches_stay_where_nothing_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_TRIAL_WORK", 0)
    assert {"first0", "second0", "sum0"} <= _nodes(_prune(_network(), "macs=0.6,align=1"))
