"""Surgery: free names, values that stand in for others, nodes that let go of what their bodies read; and the spool."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.extract import extract
from graphopt.ir.spool import SPOOLED, Spool
from graphopt.ir.surgery import Editor, FreshNames, add_constant, drop_unread, scopes
from graphopt.ir.verify import verify

TEXT = """<ir_version: 10, opset_import: ["": 17, "local": 1]>
g (float[N] x, bool c) => (float[N] y, float[N] z) <float[1] w = {1}> {
  a = Add(x, w)  b = Neg(a)  z = Abs(a)  y = If (c) <
    then_branch = t () => (float[N] p) { inner = Relu(b)  p = Mul(inner, w) },
    else_branch = e () => (float[N] q) { q = Neg(a) }> }
<domain: "local", opset_import: ["": 13]> f (r) => (s) { s = Neg(r) }"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def node(model: ir.Model, output: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == output)


def test_fresh_names_avoid_every_graph_and_each_other(model: ir.Model) -> None:
    names = FreshNames(model)
    assert [names.fresh(base) for base in ("new", "new", "inner", "w", "s", "x")] == [
        "new", "new_2", "inner_2", "w_2", "s_2", "x_2",
    ]  # fmt: skip


def test_scopes_have_their_own_opsets(model: ir.Model) -> None:
    main, function = scopes(model)
    assert (main.opset(), function.opset(), main.opset("elsewhere")) == (17, 13, 1)
    assert [graph.name for graph in main.graphs()] == ["g", "e", "t"]
    body = next(graph for graph in main.graphs() if graph.name == "t")
    assert (main.has_initializers(main.graph), main.has_initializers(body)) == (True, True)
    assert not function.has_initializers(function.graph)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("b", "a", None),
        ("z", "b", None),
        ("z", "x", "cannot take the name of a graph output"),
        ("z", "w", "cannot take the name of a graph output"),
        ("z", "y", "two graph outputs would become one"),
        ("z", "inner", "a body must produce its outputs itself"),
    ],
)
def test_which_values_can_stand_in(model: ir.Model, old: str, new: str, reason: str | None) -> None:
    values = ir.convenience.create_value_mapping(model.graph)
    found = Editor(model.graph).why_not_replace(values[old], values[new])
    assert (found is None) if reason is None else (reason in (found or ""))


def test_a_value_that_is_an_output_twice_stays(model: ir.Model) -> None:
    values = ir.convenience.create_value_mapping(model.graph)
    model.graph.outputs.append(values["z"])
    assert Editor(model.graph).why_not_replace(values["z"], values["b"]) is not None


def test_replacing_moves_reads_in_bodies_too(model: ir.Model) -> None:
    editor, values = Editor(model.graph), ir.convenience.create_value_mapping(model.graph)
    readers = editor.replace(values["b"], values["a"])
    editor.remove(node(model, "b"))
    editor.commit()
    assert [reader.op_type for reader in readers] == ["Relu"]
    verify(model)


def test_a_removed_node_lets_go_of_what_its_bodies_read(model: ir.Model) -> None:
    editor = Editor(model.graph)
    branch = node(model, "y")
    model.graph.outputs.pop(0)
    editor.remove(branch)
    assert editor.doomed(branch)
    editor.commit()
    assert node(model, "b").outputs[0].uses() == ()
    assert len(model.graph.initializers["w"].uses()) == 1
    verify(model)


def test_removing_what_is_read_is_refused(model: ir.Model) -> None:
    editor = Editor(model.graph)
    editor.remove(node(model, "a"))
    with pytest.raises(ValueError, match="still being used"):
        editor.commit()


def test_constants_are_made_where_they_can_be_and_dropped_when_unread(model: ir.Model) -> None:
    main, function = scopes(model)
    tensor = ir.tensor(np.ones(1, np.float32))
    first = add_constant(main.graph, "k", tensor, main.graph[0], main)
    second = add_constant(function.graph, "l", tensor, function.graph[0], function)
    assert first.is_initializer()
    producer = second.producer()
    assert producer is not None
    assert producer.op_type == "Constant"
    assert drop_unread([first, second, second, main.graph.initializers["w"], None]) == [first, second]
    assert (list(main.graph.initializers), len(function.graph)) == (["w"], 1)


def test_extracted_nodes_run_on_their_own(model: ir.Model) -> None:
    neg = node(model, "b")
    tensor = ir.tensor(np.array([2.0], np.float32), name="kept")
    program = extract([neg], [neg.outputs[0]], lambda value: tensor, {"": 17}, 10)
    verify(program)
    assert [n.op_type for n in program.graph] == ["Constant", "Neg"]
    assert not program.graph.inputs
    ir.to_proto(program)
    assert tensor.name == "kept"
    with pytest.raises(ValueError, match="'a' is not constant"):
        extract([neg], [neg.outputs[0]], lambda value: None, {"": 17}, 10)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_spooled_tensors_come_back(dtype: type[np.generic]) -> None:
    spool = Spool()
    arrays = [np.arange(SPOOLED + count).astype(dtype).reshape(2, -1) for count in (2, 4, 6)]
    kept = [spool.keep(ir.Tensor(array, name=str(index))) for index, array in enumerate(arrays)]
    for index, (tensor, array) in enumerate(zip(kept, arrays, strict=True)):
        assert not isinstance(tensor, ir.Tensor)
        assert tensor.name == str(index)
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.tobytes() == array.tobytes()


def test_small_tensors_and_strings_stay_in_memory() -> None:
    spool = Spool()
    for tensor in (ir.tensor(np.ones(3)), ir.StringTensor([b"x" * SPOOLED * 2], shape=ir.Shape([1]))):
        assert spool.keep(tensor) is tensor


def test_a_spool_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensor = Spool().keep(ir.tensor(np.ones(SPOOLED)))
    assert list(tmp_path.iterdir()) == []
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    del tensor
    gc.collect()
    assert before is None or len(os.listdir("/proc/self/fd")) == before - 1


def test_without_room_on_disk_tensors_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    tensor = ir.tensor(np.ones(SPOOLED))
    assert Spool().keep(tensor) is tensor
