"""Going back: whatever happened since, the state is the earlier one to the byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.pipeline.history import WORTH, History, Step, clone

TEXT = """<ir_version: 10, opset_import: ["": 17]>
g (float[N] x, bool c) => (float[N] y) <float[1] w = {1}> { a = Add(x, w)  b = Relu(a)  y = If (c) <
    then_branch = t () => (float[N] p) <float[1] v = {2}> { p = Mul(b, v) },
    else_branch = e () => (float[N] q) { q = Neg(a) }> }"""


def build() -> ir.Model:
    model = ir.from_onnx_text(TEXT)
    model.meta["carried"] = "along"
    model.metadata_props["author"] = "somebody"
    return model


def data(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def add_constant(number: int) -> Step:
    """A step that adds a tensor, a node that reads it, and a name that depends on what is there already."""

    def step(model: ir.Model) -> None:
        name = f"k{len(model.graph.initializers)}"
        value = ir.Value(name=name, const_value=ir.tensor(np.array([number], np.float32), name=name))
        model.graph.register_initializer(value)
        output = model.graph.outputs[0]
        node = ir.Node("", "Add", [output, value], name=f"add_{name}")
        model.graph.append(node)
        node.outputs[0].name = f"sum_{name}"
        node.outputs[0].type = output.type
        model.graph.outputs[0] = node.outputs[0]

    return step


def rename(model: ir.Model) -> None:
    """A step that renames a value and its tensor, which states share."""
    value = next(iter(model.graph.initializers.values()))
    value.name = f"{value.name}_renamed"


def drop_body(model: ir.Model) -> None:
    """A step that changes the inside of a body."""
    for node in model.graph:
        if node.op_type == "If":
            node.attributes["else_branch"].as_graph()[0].op_type = "Abs"


def played(history: History, steps: list[Step], seconds: Callable[[], float]) -> list[bytes]:
    states = [data(history.model)]
    for step in steps:
        step(history.model)
        history.record(step, seconds())
        states.append(data(history.model))
    return states


@given(
    st.lists(st.sampled_from([add_constant(1), add_constant(2), rename, drop_body]), max_size=6),
    st.lists(st.sampled_from([0.0, 1.0, 100.0]), min_size=6, max_size=6),
    st.booleans(),
    st.data(),
)
def test_every_state_comes_back_to_the_byte(
    steps: list[Step], seconds: list[float], relifts: bool, drawn: st.DataObject
) -> None:
    ticks = itertools.count()
    history = History(build(), build if relifts else None, clock=lambda: float(next(ticks)))  # a clone takes 1 s
    states = played(history, steps, iter(seconds).__next__)
    for count in range(len(states)):
        model = history.state(count)
        assert data(model) == states[count]
        assert model.meta["carried"] == "along"
    count = drawn.draw(st.integers(0, len(steps)))
    history.go_back(count)
    assert data(history.model) == states[count]
    assert len(history.steps) == count
    add_constant(3)(history.model)
    history.record(add_constant(3), 0.0)
    after = data(history.model)
    rename(history.model)
    history.go_back(count + 1)
    assert data(history.model) == after


@pytest.mark.parametrize(("seconds", "replayed"), [(0.0, 3), (WORTH * 2.0, 0)])
def test_states_are_kept_where_replaying_costs_more(seconds: float, replayed: int) -> None:
    runs = 0

    def counted(model: ir.Model) -> None:
        nonlocal runs
        runs += 1

    ticks = itertools.count()
    history = History(build(), build, clock=lambda: float(next(ticks)))
    for _ in range(3):
        history.record(counted, seconds)
    history.state(3)
    assert runs == replayed


@pytest.mark.parametrize("guilty", range(7))
def test_bisection_finds_the_step(guilty: int) -> None:
    history = History(build(), build)
    steps = [drop_body if index == guilty else add_constant(index) for index in range(7)]
    played(history, steps, lambda: 0.0)
    probes = 0

    def is_wrong(model: ir.Model) -> bool:
        nonlocal probes
        probes += 1
        return b"Abs" in data(model)

    assert history.first_step(is_wrong) == guilty
    assert probes <= 3


def test_a_clone_shares_tensors_and_nothing_else() -> None:
    model = build()
    copy = clone(model)
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    rename(copy)
    drop_body(copy)
    assert data(model) == data(build())
